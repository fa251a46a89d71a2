"""A trained model behind OpenAI's protocol, asked by the client that curation has."""

import concurrent.futures
import dataclasses
import http.server
import json
import threading
import urllib.error
import urllib.request

import pytest
from goldens import make_lm_harness as models

from data_beam import model_server
from experiments import serve
from smoljax.checkpoints import load
from smoljax.data import chat_template
from smoljax.inference.generate import generate


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  found = load.load_model(models.export(str(tmp_path_factory.mktemp('chat'))))
  return found._replace(config=dataclasses.replace(found.config, max_seq_len=4096))


@pytest.fixture(scope='module')
def url(loaded):
  handle = serve.handler(serve.Server(loaded, batch_size=4), 'mine')
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handle) as listening:
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{listening.server_address[1]}'
    listening.shutdown()


def test_questions_asked_together_are_answered_as_alone(loaded, url):
  asked = ['one', 'two two', 'three', 'two two']
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    answers = list(pool.map(lambda text: model_server.ask(url, 'mine', text, 5), asked))
  template = load.chat_template_of(loaded)
  for text, answer in zip(asked, answers, strict=True):
    ids = chat_template.prompt_ids(template, [{'role': 'user', 'content': text}], loaded.tokenizer)
    (alone,) = generate(loaded.config, loaded.params, [ids], max_new_tokens=5,
                        eos_id=loaded.eos_ids)
    assert answer.text == loaded.tokenizer.decode(alone) and len(alone) == 5
    assert answer.ended == 'length'


@pytest.mark.parametrize('body, words', [
  (b'no json', 'Expecting value'), (b'[]', 'JSON object'), (b'{}', 'messages'),
  ({'messages': [{'role': 'user', 'content': [{'type': 'image_url'}]}]}, 'messages'),
  ({'stream': True}, 'stream'), ({'n': 2}, 'one whole answer'), ({'max_tokens': -1}, 'max_tokens'),
  ({'temperature': -1}, 'temperature=-1'), ({'temperature': [1]}, 'a number'),
  ({'stop': ['']}, 'stop'), ({'messages': [{'role': 'user', 'content': 'a b ' * 9999}]}, 'reads 1'),
])
def test_what_cannot_be_is_said_and_the_next_is_answered(url, body, words):
  if isinstance(body, dict):
    body = json.dumps({'messages': [{'role': 'user', 'content': 'hi'}]} | body).encode()
  with pytest.raises(urllib.error.HTTPError) as told:
    urllib.request.urlopen(urllib.request.Request(url + '/v1/chat/completions', body))
  assert told.value.code == 400 and words in json.load(told.value)['error']['message']
  with urllib.request.urlopen(url + '/v1/models') as models_there:
    assert json.load(models_there)['data'][0]['id'] == 'mine'

"""A trained model behind OpenAI's protocol, asked by the client that curation has."""

import concurrent.futures
import dataclasses
import json
import pathlib
import shutil
import socket
import struct
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
  with serve.Listener(('127.0.0.1', 0), handle) as listening:
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
  (b'no json', 'no JSON that can be read: Expecting value'), (b'[' * 99999, 'no JSON'),
  (b'[]', 'JSON object'), (b'{}', 'messages'),
  ({'messages': [{'role': 'user', 'content': [{'type': 'image_url'}]}]}, 'messages'),
  ({'stream': True}, 'stream'), ({'n': 2}, 'n: this server'), ({'max_tokens': -1}, 'max_tokens'),
  ({'temperature': -1}, 'temperature=-1'), ({'temperature': [1]}, 'a number'),
  ({'max_tokens': 0}, 'max_tokens=0'), ({'max_tokens': 'many'}, 'max_tokens: a number'),
  ({'max_tokens': True}, 'max_tokens: a number'), ({'seed': float('inf')}, 'seed: a number'),
  ({'temperature': 10**400}, 'temperature: a number'), ({'top_p': float('nan')}, 'top_p: a number'),
  ({'tools': [{'type': 'function'}]}, 'tools: this server'), ({'logprobs': True}, 'logprobs: this'),
  ({'response_format': {'type': 'json_object'}}, 'response_format: this'),
  ({'frequency_penalty': 1}, 'frequency_penalty'), ({'top_k': 5}, 'top_k'),
  ({'chat_template_kwargs': {'enable_thinking': False}}, 'chat_template_kwargs'),
  ({'messages': [{'role': 'user', 'content': 'half \ud800'}]}, 'half a surrogate'),
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


def _posted(url, body=None, path='/v1/chat/completions', method='POST', **fields):
  """(status, reply) of a question."""
  body = body if body is not None or method != 'POST' else json.dumps(
    {'messages': [{'role': 'user', 'content': 'hi'}], 'max_tokens': 3, 'temperature': 0} | fields
  ).encode()
  asked = urllib.request.Request(url + path, body, method=method)
  try:
    with urllib.request.urlopen(asked, timeout=60) as answer:
      return answer.status, answer.read()
  except urllib.error.HTTPError as e:
    return e.code, e.read()


def test_null_and_values_that_ask_for_nothing_are_as_if_left_out(url):
  nothing = dict.fromkeys(
    ('top_p', 'seed', 'stop', 'n', 'stream', 'tools', 'logprobs', 'response_format'))
  choices = [json.loads(_posted(url, **more)[1])['choices'] for more in (
    {}, nothing, {'n': 1, 'stream': False, 'tools': [], 'frequency_penalty': 0.0, 'top_k': -1,
                  'response_format': {'type': 'text'}, 'user': 'me', 'stream_options': None})]
  assert choices[0] == choices[1] == choices[2]
  assert _posted(url, temperature=None)[0] == 200


def test_replies_have_what_strict_clients_read(url):
  first, second = (json.loads(_posted(url)[1]) for _ in range(2))
  assert first['id'].startswith('chatcmpl-') and first['id'] != second['id']
  (there,) = json.loads(_posted(url, path='/v1/models', method='GET')[1])['data']
  assert there.keys() == {'id', 'object', 'created', 'owned_by'}
  for path, method in (('/v1/chat/completions', 'PUT'), ('/v1/models', 'OPTIONS'), ('/', 'GET')):
    status, body = _posted(url, path=path, method=method)
    assert status >= 400 and json.loads(body)['error']['message']
  assert _posted(url, path='/v1/models', method='HEAD')[1] == b''


@pytest.mark.parametrize('path', ['/v1/completions', '/v1/chat/completions'])
def test_a_large_question_that_is_refused_hears_why(url, path):
  status, body = _posted(url, b'x' * (serve._BODY + 1), path)
  assert status in (400, 404) and json.loads(body)['error']['message']


def test_many_who_come_at_once_are_all_heard(url):
  with concurrent.futures.ThreadPoolExecutor(60) as pool:
    found = list(pool.map(lambda _: _posted(url, max_tokens=1)[0], range(60)))
  assert found == [200] * 60


def _left(url, text):
  """Says this, and is gone at once."""
  with socket.create_connection(url.removeprefix('http://').split(':')) as client:
    client.sendall(text)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))


def test_clients_that_go_away_leave_no_traceback(url, capfd):
  post = b'POST /v1/chat/completions HTTP/1.1\r\nContent-Length: '
  for text in (b'GET /v1/mod', b'GET /v1/models HTTP/1.1\r\n\r\n', post + b'9\r\n\r\n{"mes',
               post + b'5\r\n\r\n{"mes', post + b'x\r\n\r\n'):
    _left(url, text)
  assert _posted(url)[0] == 200
  assert capfd.readouterr().err == ''


def test_nothing_is_computed_for_those_who_have_gone(loaded, url):
  server = serve.Server(loaded, batch_size=4)
  asked, write = [], server._writer.write
  server._writer.write = lambda prompts, *args, **how: (
    asked.extend(prompts), write(prompts, *args, **how))[1]
  question = server.question({'messages': [{'role': 'user', 'content': 'hi'}], 'max_tokens': 1})
  with pytest.raises(ConnectionError):
    server.ask(question, lambda: True)
  assert not asked
  server.ask(question, lambda: False)
  assert len(asked) == 1


def test_a_damaged_template_is_no_missing_one(tmp_path):
  folder = shutil.copytree(models.export(str(tmp_path)), tmp_path / 'broken')
  pathlib.Path(folder, 'chat_template.jinja').write_bytes(b'\xff')
  with pytest.raises(ValueError, match='not UTF-8'):
    serve.Server(load.load_model(str(folder)))

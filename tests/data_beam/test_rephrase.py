"""Documents written anew by a server's model: what is kept, what is dropped, where it is from."""

import http.server
import io
import json
import threading
import urllib.error
from email.message import Message

import pytest
from helpers.tokenised import write_corpus

from data_beam import model_server, records, rephrase, tokenize_corpus
from data_beam.options import RephraseOptions
from data_beam.records import Document

PROSE = ' '.join(f'word{i}' for i in range(40))


class Model(http.server.BaseHTTPRequestHandler):
  """Says by a document's first word what becomes of it."""

  def log_message(self, *args):
    pass

  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
    asked = body['messages'][0]['content']
    word = asked.split('DOCUMENT ')[1].split()[0]
    self.server.seen.append((body['model'], body['max_tokens'], asked))
    if word == 'fails':
      self.send_response(400)
      self.end_headers()
      return self.wfile.write(b'{"error": {"message": "300 tokens; the model reads 255"}}')
    text = {'circles': 'the same line again\n' * 9, 'short': 'No.', 'twin': f'twin {PROSE}',
            'twin2': f'twin {PROSE}'}.get(word, f'Rewritten {word}: {PROSE}{word} {word}')
    answer = json.dumps({'choices': [{
      'message': {'content': text}, 'finish_reason': 'length' if word == 'long' else 'stop'}]})
    self.send_response(200)
    self.end_headers()
    self.wfile.write(answer.encode())


@pytest.fixture
def server():
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Model) as s:
    s.seen = []
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown()


@pytest.mark.slow
def test_a_corpus_is_written_anew_with_lineage(server, tmp_path, monkeypatch):
  monkeypatch.setattr(model_server, 'PAUSE', 0.0)
  words = ['alpha', 'beta', 'fails', 'circles', 'short', 'long', 'twin', 'twin2']
  source = write_corpus(tmp_path, 'web', [f'{w} {PROSE} end' for w in words], {'page': 7})
  prompt = tmp_path / 'mine.txt'
  prompt.write_text('Say it better.\nDOCUMENT {text}')
  url = f'http://127.0.0.1:{server.server_address[1]}'
  options = RephraseOptions(server=url, model='m', prompt=str(prompt), max_tokens=77, most=30,
                            minhash='none', num_shards=1)
  path = rephrase.run(source, str(tmp_path), 'anew', options)
  kept = {d['metadata']['rephrased']['id']: d for d in records.read_corpus(path)}
  assert {'web-0', 'web-1'} < kept.keys() and len(kept) == 3  # one of the twins
  one = kept['web-0']
  assert one['text'].startswith('Rewritten alpha') and one['language'] == 'en'
  assert one['metadata']['page'] == 7 and one['metadata']['rephrased'] == {
    'id': 'web-0', 'prompt': 'mine.txt', 'model': 'm',
    'prompt_sha256': one['metadata']['rephrased']['prompt_sha256']}
  assert len(one['id']) == 64 and one['id'] != kept['web-1']['id']
  assert records.read_manifest(path)['config']['prompt_text'] == prompt.read_text()
  rejects = {d['metadata']['rephrased']['id']: d['reason'] for d in records.read_corpus(
    records.corpus_path(str(tmp_path), 'anew_rejects'))}
  assert rejects.items() >= {
    'web-2': 'no_answer', 'web-3': 'circles', 'web-4': 'short', 'web-5': 'cut'}.items()
  assert {(model, limit) for model, limit, _ in server.seen} == {('m', 77)}
  assert all(len(asked) < 70 for *_, asked in server.seen)


def test_a_reject_says_why_the_server_refused(server, monkeypatch):
  monkeypatch.setattr(model_server, '_failures', 0)
  options = RephraseOptions(server=f'http://127.0.0.1:{server.server_address[1]}', model='m')
  document = Document(id='a', text='fails')
  reject = rephrase.Writer('mine', 'DOCUMENT {text}', options)(document)
  assert reject.reason == 'no_answer' and len(server.seen) == 1
  assert reject.document.metadata['server'] == (
    'HTTPError: HTTP Error 400: Bad Request: 300 tokens; the model reads 255')


@pytest.mark.parametrize('body, said', [
  (b'{"error": "busy"}', ': busy'), (b'{"message": "busy"}', ': busy'),
  (b'{"error": {"code": 4}}', ''), (b'[1]', ''), (b'<html>', ''), (b'', '')])
def test_what_a_server_says_of_a_refusal(body, said):
  error = urllib.error.HTTPError('http://a.test', 400, 'Bad Request', Message(), io.BytesIO(body))
  assert model_server._said(error) == said


def test_what_is_held_out_is_not_written_anew(tmp_path):
  """Else a model would train on what was made of the documents that judge it."""
  source = write_corpus(tmp_path, 'web', [f'{i} {PROSE}' for i in range(200)])
  files = records.list_shards(records.read_manifest(source, 'curated'), 'train')
  read = lambda **more: {d.id for d in rephrase._read(files, RephraseOptions(**more))}
  held = {f'web-{i}' for i in range(200) if tokenize_corpus.is_validation(f'web-{i}', 0.05)}
  assert 3 < len(held) < 25 and read() == read(holdout=0.0) - held and len(read(holdout=0.0)) == 200


@pytest.mark.parametrize('options, words', [
  (dict(), '--server=http'),
  (dict(server='http://localhost:1', model='m', prompt='poem'), 'none of faq, tutorial'),
])
def test_what_cannot_be_is_said(options, words, tmp_path):
  with pytest.raises(ValueError, match=words):
    rephrase.run(str(tmp_path), str(tmp_path), options=RephraseOptions(**options))


def test_long_documents_go_in_parts_that_end_where_something_ends():
  text = 'One two three. Four five six seven eight nine.\nTen eleven\n\n' + 'x' * 45
  found = list(rephrase.parts(text, 20))
  assert found == ['One two three.', 'Four five six seven', 'eight nine.', 'Ten eleven',
                   'x' * 20, 'x' * 20, 'x' * 5]
  assert list(rephrase.parts(' ', 20)) == [] and list(rephrase.parts('a b', 3)) == ['a b']


def test_a_prompt_says_where_the_document_goes(tmp_path):
  (tmp_path / 'bad.txt').write_text('Write!')
  with pytest.raises(ValueError, match=r'say with \{text\}'):
    rephrase.template(str(tmp_path / 'bad.txt'))
  assert all('{text}' in rephrase.template(name)[1] for name in rephrase.PROMPTS)

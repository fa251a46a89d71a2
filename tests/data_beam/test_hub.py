"""An export goes to the hub whole, as a private repository; what the hub refuses is one line."""

import base64
import http.server
import json
import threading

import pytest

from data_beam import hub


class Hub(http.server.BaseHTTPRequestHandler):
  """As much of the hub's protocol as an upload of small files needs."""

  def do_POST(self):
    body = self.rfile.read(int(self.headers['Content-Length'] or 0))
    server = self.server
    server.asked.append((self.path, self.headers.get('Authorization')))
    if self.headers.get('Authorization') != 'Bearer hf_right':
      return self.answer({'error': 'Invalid username or password.'}, 401)
    if self.path == '/api/repos/create':
      server.created = json.loads(body)
      return self.answer({'url': f'{server.url}/me/x', 'id': 'me/x', 'name': 'me/x'})
    if self.path.endswith('/preupload/main'):
      return self.answer({'files': [
        {'path': f['path'], 'uploadMode': 'regular', 'shouldIgnore': False}
        for f in json.loads(body)['files']]})
    if not self.path.endswith('/commit/main'):  # is the card's head YAML?
      return self.answer({'errors': [], 'warnings': []})
    rows = [json.loads(line) for line in body.splitlines()]
    server.files = {r['value']['path']: base64.b64decode(r['value']['content'])
                    for r in rows if r['key'] == 'file'}
    return self.answer({'commitUrl': f'{server.url}/me/x/commit/1', 'commitOid': '1' * 40,
                        'pullRequestUrl': None, 'success': True})

  def do_GET(self):
    self.answer({'id': 'me/x', 'sha': '1' * 40, 'siblings': [], 'tags': []})

  def answer(self, value, status=200):
    data = json.dumps(value).encode()
    self.send_response(status)
    self.send_header('Content-Type', 'application/json')
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  def log_message(self, *args):
    pass


@pytest.fixture
def server(monkeypatch):
  constants = pytest.importorskip('huggingface_hub.constants')
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub) as s:
    s.asked, s.files, s.url = [], {}, f'http://127.0.0.1:{s.server_port}'
    threading.Thread(target=s.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, 'ENDPOINT', s.url)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setenv('HF_TOKEN', 'hf_right')
    yield s
    s.shutdown()


@pytest.mark.parametrize('kind', ['model', 'dataset'])
def test_all_files_of_an_export_arrive(server, tmp_path, kind):
  (tmp_path / 'data').mkdir()
  files = {'README.md': b'# card', 'data/train.bin': bytes(range(256))}
  for name, data in files.items():
    (tmp_path / name).write_bytes(data)
  where = hub.push(str(tmp_path), 'me/x', kind)
  assert where == server.url + ('/datasets/me/x' if kind == 'dataset' else '/me/x')
  assert {name: server.files.get(name) for name in files} == files
  created = server.created
  assert created.get('private') is True or created.get('visibility') == 'private', created


def test_what_the_hub_refuses_is_one_line_without_the_token(server, tmp_path, monkeypatch):
  monkeypatch.setenv('HF_TOKEN', 'hf_wrong_and_secret')
  (tmp_path / 'a').write_text('a')
  with pytest.raises(ValueError, match=r'--push_to_hub=me/x: .*hf auth login') as error:
    hub.push(str(tmp_path), 'me/x', 'model')
  assert 'hf_wrong' not in str(error.value) and '\n' not in str(error.value)
  with pytest.raises(ValueError, match='--push_to_hub=no such/name/at all'):
    hub.push(str(tmp_path), 'no such/name/at all', 'model')

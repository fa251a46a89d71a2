"""A model behind a server that speaks OpenAI's protocol, and says what it is told."""

import http.server
import json
import math
import threading

import pytest


class Model(http.server.BaseHTTPRequestHandler):
  """A model that has read the page before."""

  def log_message(self, *args):
    pass

  def do_POST(self):
    asked = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
    server = self.server
    server.asked.append(asked)
    if server.drops:
      server.drops -= 1
      self.close_connection = True
      return
    text = server.texts.pop(0) if server.texts else server.text
    body = json.dumps({'choices': [{
      'message': {'content': text}, 'finish_reason': server.ended,
      'logprobs': {'content': [{'logprob': 0.0}, {'logprob': math.log(.5)}]}}]}).encode()
    self.send_response(self.server.status)
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    self.wfile.write(body)


@pytest.fixture
def model():
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Model) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.where = {'url': f'http://127.0.0.1:{server.server_port}', 'model': 'reader'}
    server.asked, server.status, server.drops, server.ended, server.texts = [], 200, 0, 'stop', []
    yield server
    server.shutdown()

"""A web server that misbehaves as it is told."""

import gzip
import http.server
import socket
import threading
import time
import zlib

import pytest

from data_beam.sources import fetch

PUBLIC, DEAD = '93.184.216.34', '93.184.216.35'
PDF = b'%PDF-1.4 a small document %%EOF'
REDIRECTS = {
  '/to/port': 'http://127.0.0.1:22/', '/to/metadata': 'http://169.254.169.254/latest/meta-data/',
  '/to/file': 'file:///etc/passwd', '/to/mapped': 'http://[::ffff:127.0.0.1]/',
  '/to/itself': '/to/itself', '/to/number': 'http://2130706433/',
  '/to/user': 'http://user:pw@pub.example/ok', '/to/gopher': 'gopher://pub.example/',
  '/to/bracket': 'http://[', '/to/ok': '/ok',
  '/to/private': 'http://pub.example/private/a', '/to/nowhere': None}


class Hostile(http.server.BaseHTTPRequestHandler):
  """Answers by the path: one way to misbehave each."""

  def log_message(self, *args):
    pass

  def send(self, body=b'', status=200, **headers):
    self.send_response(status)
    for name, value in ({'Content_Length': str(len(body))} | headers).items():
      if value is not None:
        self.send_header(name.replace('_', '-'), value)
    self.end_headers()
    self.wfile.write(body)

  def do_GET(self):
    server, path = self.server, self.path
    with server.lock:
      server.seen.append((self.headers['Host'], path))
      server.active += 1
      server.most = max(server.most, server.active)
    if path.startswith('/a'):
      time.sleep(.01)                       # so that others would come meanwhile
    with server.lock:
      server.active -= 1
    try:
      self.answer(path)
    except OSError:
      pass                                  # the client has gone, as it should

  def answer(self, path):
    robots = {
      'none.example': (b'', 404), 'broken.example': (b'', 503), 'slow.example': (
        b'User-agent: *\nCrawl-delay: 600', 200), 'huge.example': (
          b'User-agent: *\nDisallow: /private\n' + b'# ' + b'x' * (2 << 20), 200),
      'wait.example': (b'User-agent: *\nCrawl-delay: 3', 200)}
    if path == '/robots.txt' and self.headers['Host'] in ('drops.example', 'busy.example'):
      server = self.server
      server.flaky += 1
      if server.flaky < 3:              # the first two: no answer at all, or none now
        return self.headers['Host'] == 'busy.example' and self.send(b'', 429)
    if path == '/robots.txt':
      rules = b'User-agent: *\nDisallow: /private\nAllow: /private/open\nDisallow: /*.cgi$'
      body, status = robots.get(self.headers['Host'], (rules, 200))
      return self.send(body, status)
    if path in REDIRECTS:
      return self.send(status=302, Location=REDIRECTS[path])
    if path == '/ok' or path.startswith('/private') or path.startswith('/a'):
      return self.send(PDF, ETag='"1"')
    if path == '/same':
      known = self.headers['If-None-Match'] == '"1"'
      return self.send(b'' if known else PDF, 304 if known else 200)
    if path == '/gzip':
      return self.send(gzip.compress(PDF), Content_Encoding='gzip')
    if path == '/members':
      halves = gzip.compress(PDF[:9]) + bytes(3) + gzip.compress(PDF[9:]) + b'and more'
      return self.send(halves, Content_Encoding='gzip')
    if path == '/cut_gzip':
      return self.send(gzip.compress(PDF)[:-9], Content_Encoding='gzip')
    if path == '/deflate':
      return self.send(zlib.compress(PDF), Content_Encoding='deflate')
    if path == '/bare_deflate':
      return self.send(zlib.compress(PDF)[2:-4], Content_Encoding='deflate')
    if path == '/broken_gzip':
      return self.send(b'\x1f\x8b no gzip at all', Content_Encoding='gzip')
    if path == '/brotli':
      return self.send(PDF, Content_Encoding='br')
    if path == '/bomb':
      return self.send(gzip.compress(PDF + bytes(100 << 20), 9), Content_Encoding='gzip')
    if path == '/html':
      return self.send(b'<html>gone' + b' ' * 5000, Content_Type='application/pdf')
    if path == '/404':
      return self.send(b'no', 404)
    if path == '/flaky':
      self.server.flaky += 1
      return self.send(PDF, 503 if self.server.flaky < 3 else 200)
    if path.startswith('/later'):
      return self.send(b'', 429, Retry_After={'/later': '7', '/later/date': (
        'Sun, 06 Nov 1994 08:49:37 GMT')}.get(path, '²'))
    if path == '/cut':
      return self.send(PDF, Content_Length='5000')
    if path == '/drip':
      self.send(PDF, Content_Length=None)
      for _ in range(100):
        self.wfile.write(b'x')
        self.wfile.flush()
        time.sleep(.1)
    elif path == '/drip_headers':
      for _ in range(100):
        self.wfile.write(b'x')
        self.wfile.flush()
        time.sleep(.1)
    elif path == '/endless':
      self.send(PDF, Content_Length=None)
      while True:
        self.wfile.write(bytes(1 << 16))
    elif path == '/silent':
      time.sleep(3)
    elif path == '/rubbish':
      self.wfile.write(b'\0\1\2 what is HTTP\r\n\r\n')
    else:
      self.send(b'?', 500)


@pytest.fixture(scope='module')
def server():
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hostile) as s:
    s.lock, s.seen, s.active, s.most, s.flaky = threading.Lock(), [], 0, 0, 0
    s.daemon_threads = True
    threading.Thread(target=s.serve_forever, daemon=True).start()
    yield s
    s.shutdown()


class World:
  """Names and connections as a test has them; notes every address that was connected to."""

  def __init__(self, server):
    self.server, self.connected, self.asked, self.slept = server, [], [], []

  def resolve(self, host, port, type=0):
    self.asked.append(host)
    answers = {'rebind.example': [PUBLIC if len(self.asked) % 2 else '127.0.0.1'],
               'mixed.example': [PUBLIC, '10.0.0.1'], 'two.example': [DEAD, PUBLIC],
               'inside.example': ['10.1.2.3'],
               'six.example': ['::1'], 'nat.example': ['64:ff9b::7f00:1'], 'none.at.all': None}
    if host in answers or host.endswith('.example'):
      found = answers.get(host, [PUBLIC])
      if found is None:
        raise socket.gaierror('no such name')
      return [(0, 0, 0, '', (address, port)) for address in found]
    return socket.getaddrinfo(host, port, type=type)       # forms of addresses

  def connect(self, address, timeout=None):
    self.connected.append(address[0])
    if address[0] == DEAD:
      raise ConnectionRefusedError
    assert address[0] == PUBLIC, address
    return socket.create_connection(('127.0.0.1', self.server.server_port), timeout=timeout)

  def fetcher(self, **limits):
    limits = {'seconds': 1.5, 'idle_seconds': 1.0, 'bytes': 8 << 20} | limits
    return fetch.Fetcher('smoljax-test (mail@example.org)', limits=fetch.Limits(**limits), delay=0,
                         resolve=self.resolve, connect=self.connect, sleep=self.slept.append)

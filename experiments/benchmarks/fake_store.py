"""An object store for tests that behaves as badly as real ones may: a server, and its driver.

  python -m experiments.benchmarks.fake_store serve --port_file=FILE [--faults=0.1] [--seed=0]
  python -m experiments.benchmarks.fake_store run --port=N -- experiments.run --config=…

`serve` answers at 127.0.0.1 until it is ended; `run` runs a module with `fake://` known to fsspec,
so that any command of ours can be started on it, and killed. Of all requests, a share FAULTS goes
wrong, each in one of the ways that its kind can:

  put     503 before anything; the connection cut after half of the body, with half an object left;
          the object there, and the connection cut before the answer; an answer a second late
  get     503; the answer cut after half of the body; a bit of the body flipped
  list    503; an answer a second late
  delete  503

Lists are stale beyond that: an object is listed LAG seconds after it is there, and as long after it
was deleted. Only the bucket `bucket` is there.
"""

import argparse
import http.client
import http.server
import json
import random
import runpy
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any, cast

import fsspec

SCHEME, BUCKET = 'fake', 'bucket'
COUNTS = 'counts'  # what is read there is how often which request came and which fault struck
FAULTS = {
  'PUT': ('busy', 'torn', 'unanswered', 'late'), 'GET': ('busy', 'cut', 'flipped'),
  'LIST': ('busy', 'late'), 'DELETE': ('busy',), 'HEAD': ('busy',)}


class Server(http.server.ThreadingHTTPServer):
  """The store.

  Args:
    faults: share of the requests that go wrong.
    lag: seconds by which lists are late.
    seed: of what goes wrong.
  """

  daemon_threads = True
  request_queue_size = 64

  def __init__(self, faults: float = 0.0, lag: float = 0.0, seed: int = 0):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.faults, self.lag, self.random = faults, lag, random.Random(seed)
    self.objects: dict[str, bytes] = {}
    self.changed: dict[str, float] = {}  # when a name came or went
    self.late = 1.0  # seconds of a late answer
    self.deny = 0  # a status that every request gets
    self.count: dict[str, int] = {}  # requests and faults, by kind
    self.lock = threading.Lock()

  @property
  def port(self) -> int:
    """Where it listens."""
    return self.server_address[1]

  def fault(self, kind: str) -> str:
    """What goes wrong with a request; '' for nothing."""
    with self.lock:
      fault = self.random.choice(FAULTS[kind]) if self.random.random() < self.faults else ''
      for name in (kind, fault and f'{kind} {fault}'):
        self.count[name] = self.count.get(name, 0) + bool(name)
    return fault

  def listed(self, prefix: str) -> dict[str, int]:
    """Name → bytes of the objects below a folder, as a list has them."""
    now = time.monotonic()
    with self.lock:
      old = {n for n, when in self.changed.items() if now - when >= self.lag}
      names = (self.objects.keys() & old) | (self.changed.keys() - self.objects.keys() - old)
      return {n: len(self.objects.get(n, b'')) for n in names if n.startswith(prefix)}

  def change(self, name: str, data: bytes | None) -> None:
    """Puts an object there, or takes it away."""
    with self.lock:
      if name not in self.objects or data is None:
        self.changed[name] = time.monotonic()
      if data is None:
        self.objects.pop(name, None)
      else:
        self.objects[name] = data


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def do_PUT(self):
    data, fault = self.rfile.read(int(self.headers['Content-Length'])), self._fault('PUT')
    if fault == 'torn':
      self._store.change(self._name, data[:len(data) // 2])
    elif fault != 'busy':
      self._store.change(self._name, data)
    if fault in ('torn', 'unanswered'):
      self.close_connection = True
    elif fault != 'busy':
      self._answer(200)

  def do_GET(self):
    if self._name == COUNTS:
      self._answer(200, json.dumps(self._store.count).encode())
      return
    if self._name.endswith('/'):
      if self._fault('LIST') != 'busy':
        self._answer(200, json.dumps(self._store.listed(self._name)).encode())
      return
    if (fault := self._fault('GET')) == 'busy':
      return
    data = self._store.objects.get(self._name)
    if data and fault == 'flipped':
      at = len(data) // 2
      data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]
    self._answer(404 if data is None else 200, data or b'', cut=fault == 'cut')

  def do_HEAD(self):
    if self._fault('HEAD') != 'busy':
      data = self._store.objects.get(self._name)
      self._answer(404 if data is None else 200, headers={'X-Size': str(len(data or b''))})

  def do_DELETE(self):
    if self._fault('DELETE') != 'busy':
      there = self._name in self._store.objects
      self._store.change(self._name, None)
      self._answer(204 if there else 404)

  def log_message(self, format, *args):
    pass

  @property
  def _store(self):
    return cast(Server, self.server)

  @property
  def _name(self):
    return urllib.parse.unquote(self.path.lstrip('/'))

  def _fault(self, kind):
    """What goes wrong; 'busy' has been answered."""
    if self._store.deny or not self._name.startswith(BUCKET + '/'):
      self._answer(self._store.deny or 404)
      return 'busy'
    fault = self._store.fault(kind)
    if fault == 'busy':
      self._answer(503)
    if fault == 'late':
      time.sleep(self._store.late)
    return fault

  def _answer(self, status, data=b'', cut=False, headers=()):
    self.send_response(status)
    for name, value in {'Content-Length': str(len(data)), **dict(headers)}.items():
      self.send_header(name, value)
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(data[:len(data) // 2] if cut else data)
    self.close_connection |= cut


class Error(OSError):
  """An answer with a status, as drivers of real stores raise them."""

  def __init__(self, status: int, said: str):
    super().__init__(f'HTTP {status}: {said}')
    self.status = status


_AbstractFileSystem: Any = fsspec.AbstractFileSystem  # its own types fit no subclass


class FileSystem(_AbstractFileSystem):
  """fsspec's side: `fake://bucket/…` at the port that `FileSystem.port` says."""

  protocol = SCHEME
  port = 0
  cachable = False

  def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
    """The bytes of an object."""
    return self._ask('GET', path)[0][start:end]

  def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
    """Downloads an object."""
    data = self._ask('GET', rpath)[0]
    with open(lpath, 'wb') as f:
      f.write(data)

  def pipe_file(self, path: str, value: bytes, mode: str = 'overwrite', **_: Any) -> None:
    """Writes an object."""
    self._ask('PUT', path, value)

  def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
    """Uploads a file."""
    with open(lpath, 'rb') as f:
      self._ask('PUT', rpath, f.read())

  def info(self, path: str, **_: Any) -> dict:
    """Name and size of an object."""
    size = int(self._ask('HEAD', path)[1]['X-Size'])
    return {'name': self._strip_protocol(path), 'size': size, 'type': 'file'}

  def find(self, path: str, *_: Any, **__: Any) -> list[str]:
    """The names below a folder, as the store lists them."""
    return sorted(json.loads(self._ask('GET', self._strip_protocol(path) + '/')[0]))

  def rm_file(self, path: str) -> None:
    """Deletes an object."""
    self._ask('DELETE', path)

  def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[bytes, Any]:
    name = self._strip_protocol(path) + '/' * path.endswith('/')
    connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=60)
    try:
      connection.request(method, '/' + urllib.parse.quote(name), body)
      answer = connection.getresponse()
      data = answer.read()
    finally:
      connection.close()
    if answer.status == 404:
      raise FileNotFoundError(path)
    if answer.status >= 300:
      raise Error(answer.status, f'{method} {path}')
    return data, answer.headers


def know(port: int) -> None:
  """Has fsspec know `fake://` in this process, at that port."""
  FileSystem.port = port
  fsspec.register_implementation(SCHEME, FileSystem, clobber=True)


def ask_counts(port: int) -> dict[str, int]:
  """How many requests of each kind a server had, and how many faults."""
  with urllib.request.urlopen(f'http://127.0.0.1:{port}/{COUNTS}') as answer:
    return dict(sorted(json.load(answer).items()))


def main(argv: Sequence[str]) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  commands = parser.add_subparsers(dest='command', required=True)
  serve = commands.add_parser('serve', help='the store, until it is ended')
  serve.add_argument('--port_file', required=True, help='gets the port')
  serve.add_argument('--faults', type=float, default=0.1, help='share of requests that go wrong')
  serve.add_argument('--lag', type=float, default=2.0, help='seconds by which lists are late')
  serve.add_argument('--seed', type=int, default=0)
  run = commands.add_parser('run', help='a module of ours, which finds the store as fake://')
  run.add_argument('--port', type=int, required=True)
  run.add_argument('module', nargs=argparse.REMAINDER, help='-- MODULE FLAGS…')
  args = parser.parse_args(argv)
  if args.command == 'serve':
    server = Server(args.faults, args.lag, args.seed)
    with open(args.port_file, 'w') as f:
      f.write(f'{server.port}\n')
    server.serve_forever()
  know(args.port)
  module, *rest = [a for i, a in enumerate(args.module) if i or a != '--']
  sys.argv = [module, *rest]
  runpy.run_module(module, run_name='__main__', alter_sys=True)


if __name__ == '__main__':
  main(sys.argv[1:])

"""HTTP for crawlers: polite to servers, and safe against what they and the URLs may be.

A URL comes from a crawl, so it is hostile input: it, and every redirect, may name this machine, its
network or a cloud's metadata service. A name is therefore resolved once, all its addresses must be
public, and the connection goes to the address that was checked (no second lookup that DNS could
answer otherwise). Bytes, decompression and time are capped, certificates are verified.

Politeness is RFC 9309 (robots.txt, read by Protego, kept for a day) and one request a host at a
time, `Crawl-delay` or a second apart.
"""

import contextlib
import dataclasses
import functools
import http.client
import io
import ipaddress
import random
import socket
import ssl
import threading
import time
import urllib.parse
import zlib
from collections.abc import Callable, Mapping

from protego import Protego

OUTCOMES = {
  'ok': 'the server gave the document',
  'not_modified': 'the server says it is as it was',
  'bad_url': 'no http or https URL, or one with a password or an odd port',
  'dns': 'the name does not resolve',
  'blocked_address': 'the name leads to an address that is not public',
  'robots': 'robots.txt forbids it',
  'robots_unreachable': 'robots.txt cannot be read, which forbids all (RFC 9309, 2.3.1.4)',
  'crawl_delay': 'robots.txt asks for longer pauses than we make',
  'tls': 'the certificate is not valid',
  'network': 'no connection, or one that broke off',
  'timeout': 'it took too long',
  'status': 'the server refused',
  'redirects': 'too many redirects, or one without an address',
  'too_large': 'more bytes than allowed',
  'ratio': 'it inflates more than documents do',
  'bad_encoding': 'its content coding is broken or unknown',
  'not_wanted': 'another kind of document, mostly a page that says where it was',
}
_RETRY = frozenset({408, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ROBOTS_BYTES = 500 << 10               # RFC 9309, 2.5: at least 500 KiB are to be read
_ROBOTS_SECONDS = 24 * 3600             # 2.4: kept no longer than a day
# Python calls these global, though they lead into private networks or to no single host.
_NOT_PUBLIC = tuple(map(ipaddress.ip_network, (
  '192.0.0.0/24', '192.88.99.0/24', '224.0.0.0/4', '240.0.0.0/4',
  '64:ff9b::/96', '64:ff9b:1::/48', '2001::/32', '2002::/16', 'ff00::/8')))


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one document may cost."""
  bytes: int = 256 << 20
  ratio: int = 200                      # inflated bytes for each that came, beyond the first MiB
  seconds: float = 600.0                # of wall time for a request, its redirects included
  idle_seconds: float = 30.0            # without a byte
  redirects: int = 5
  tries: int = 3
  crawl_delay: float = 60.0             # longer pauses are not made


@dataclasses.dataclass
class Fetched:
  """What became of one URL; `outcome` is a key of `OUTCOMES`."""
  outcome: str
  url: str                              # where the redirects led
  body: bytes = b''
  status: int = 0                       # of the last answer, 0 without one
  headers: Mapping[str, str] = dataclasses.field(default_factory=dict)    # names in lower case
  detail: str = ''
  robots: str = ''                      # what robots.txt said: 'allowed', 'none', 'disallowed', …


class _Stop(Exception):
  def __init__(self, outcome: str, detail: str = '', status: int = 0):
    super().__init__(outcome, detail)
    self.outcome, self.detail, self.status = outcome, detail, status


def is_public(address: str) -> bool:
  """Whether an IP address, as getaddrinfo gives it, can be a server on the public internet."""
  ip = ipaddress.ip_address(address.partition('%')[0])
  ip = getattr(ip, 'ipv4_mapped', None) or ip
  return ip.is_global and not any(ip in net for net in _NOT_PUBLIC if ip.version == net.version)


class Fetcher:
  """Fetches URLs; one object keeps robots.txt and the hosts' times, and may be used by threads."""

  def __init__(self, agent: str, *, limits: Limits = Limits(), delay: float = 1.0,
               resolve: Callable = socket.getaddrinfo,
               connect: Callable = socket.create_connection,
               sleep: Callable[[float], None] = time.sleep):
    """Makes a fetcher.

    Args:
      agent: the User-Agent, with an address at which a person can be reached.
      limits: of each request.
      delay: seconds between two requests to one host, where robots.txt asks for no longer ones.
      resolve, connect, sleep: as in the standard library; tests give others.
    """
    self.agent, self.limits, self.delay = agent, limits, delay
    self._resolve, self._connect, self._sleep = resolve, connect, sleep
    self._robots: dict[str, tuple[float, Protego | None, str]] = {}
    self._free: dict[str, float] = {}
    self._locks: dict[str, threading.Lock] = {}

  def fetch(self, url: str, *, etag: str = '', modified: str = '', expect: bytes = b'') -> Fetched:
    """Gets a URL, patiently; never raises for what a server or a URL does.

    Args:
      etag, modified: of the version at hand, so that the server may answer that it is the same.
      expect: bytes that the document's first KiB must hold; otherwise it is not read on.
    """
    headers = {'If-None-Match': etag} if etag else {}
    headers |= {'If-Modified-Since': modified} if modified else {}
    pause = random.Random(url)
    for n in range(self.limits.tries):
      result = self._follow(url, headers, expect)
      again = result.outcome == 'network' or (result.outcome == 'status'
                                              and result.status in _RETRY)
      if not again or n == self.limits.tries - 1:
        return result
      asked = result.headers.get('retry-after', '')
      wait = float(asked) if asked.isdigit() else 2.0 ** (n + 1) + pause.random()
      if wait > self.limits.crawl_delay:
        return result
      self._sleep(wait)

  def _follow(self, url: str, headers: Mapping[str, str], expect: bytes) -> Fetched:
    """One try, with its redirects."""
    end = time.monotonic() + self.limits.seconds
    robots = ''
    try:
      for _ in range(self.limits.redirects + 1):
        parts = _split(url)
        rules, robots = self._rules(parts, end)
        if robots in ('disallowed', 'unreachable'):
          raise _Stop('robots' if robots == 'disallowed' else 'robots_unreachable')
        if rules and not rules.can_fetch(url, self.agent):
          robots = 'disallowed'
          raise _Stop('robots')
        delay = max(self.delay, float((rules and rules.crawl_delay(self.agent)) or 0))
        if delay > self.limits.crawl_delay:
          raise _Stop('crawl_delay', f'{delay:g} s')
        result = self._request(parts, headers, end, self.limits.bytes, delay, expect)
        if result.status not in _REDIRECTS:
          result.robots = robots
          return result
        url = _target(url, result)
      raise _Stop('redirects')
    except _Stop as stop:
      return Fetched(stop.outcome, url, status=stop.status, detail=stop.detail, robots=robots)

  # robots.txt

  def _rules(self, parts: urllib.parse.SplitResult, end: float) -> tuple[Protego | None, str]:
    """The rules of a URL's host, and in a word what was found."""
    key = f'{parts.scheme}://{parts.netloc}'
    known = self._robots.get(key)
    if known is None or time.monotonic() - known[0] > _ROBOTS_SECONDS:
      known = self._robots[key] = (time.monotonic(), *self._read_robots(key + '/robots.txt', end))
    return known[1:]

  def _read_robots(self, url: str, end: float) -> tuple[Protego | None, str]:
    try:
      for _ in range(self.limits.redirects + 1):
        result = self._request(_split(url), {}, end, _ROBOTS_BYTES, self.delay, cut=True)
        if result.status not in _REDIRECTS:
          break
        url = _target(url, result)
      else:
        return None, 'none'             # 2.3.1.2: as if there were no such file
    except _Stop as stop:
      # The document itself would be refused for the same reason, which says more.
      if stop.outcome in ('bad_url', 'blocked_address', 'dns', 'tls'):
        raise
      return None, 'unreachable'
    if result.status == 200 and result.outcome == 'ok':
      return Protego.parse(result.body.decode('utf-8', 'replace')), 'allowed'
    if 400 <= result.status < 500 and result.status != 429:
      return None, 'none'               # 2.3.1.3
    return None, 'unreachable'          # 2.3.1.4

  # One request

  def _request(self, parts: urllib.parse.SplitResult, headers: Mapping[str, str], end: float,
               max_bytes: int, delay: float, expect: bytes = b'', cut: bool = False) -> Fetched:
    """One request to one host, no redirects followed; raises _Stop where there is no answer."""
    host, port = parts.hostname, parts.port or (443 if parts.scheme == 'https' else 80)
    with self._locks.setdefault(host, threading.Lock()), contextlib.ExitStack() as stack:
      wait = self._free.get(host, 0.0) - time.monotonic()
      if wait > 0:
        self._sleep(wait)
      try:
        sock = self._open(host, port, end)
        stack.callback(sock.close)
        if parts.scheme == 'https':
          sock = _tls().wrap_socket(sock, server_hostname=host)
          stack.callback(sock.close)
        client = http.client.HTTPConnection(host, port)
        client.sock = _Timed(sock, end, self.limits.idle_seconds)
        path = urllib.parse.quote(parts.path or '/', safe="/%:@!$&'()*+,;=~")
        query = urllib.parse.quote(parts.query, safe="/?%:@!$&'()*+,;=~")
        client.request('GET', path + ('?' + query if query else ''), headers={
          'Host': parts.netloc, 'User-Agent': self.agent, 'Accept-Encoding': 'gzip, identity',
          'Connection': 'close', **headers})
        answer = client.getresponse()
        return self._read(answer, parts.geturl(), max_bytes, expect, cut)
      except ssl.SSLError as error:
        raise _Stop('tls', str(error)[:200]) from error
      except TimeoutError as error:
        raise _Stop('timeout', str(error)) from error
      except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Stop('network', f'{type(error).__name__}: {error}'[:200]) from error
      finally:
        self._free[host] = time.monotonic() + delay

  def _open(self, host: str, port: int, end: float) -> socket.socket:
    try:
      found = self._resolve(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
      raise _Stop('dns', str(error)) from error
    addresses = [entry[4][0] for entry in found]
    if not addresses or not all(map(is_public, addresses)):
      raise _Stop('blocked_address', ', '.join(addresses)[:200])
    wait = max(0.1, min(self.limits.idle_seconds, end - time.monotonic()))
    return self._connect((addresses[0], port), timeout=wait)

  def _read(self, answer: http.client.HTTPResponse, url: str, max_bytes: int, expect: bytes,
            cut: bool) -> Fetched:
    headers = {name.lower(): value for name, value in answer.getheaders()}
    result = Fetched('ok', url, status=answer.status, headers=headers)
    if answer.status == 304:
      result.outcome = 'not_modified'
      return result
    if answer.status != 200:
      result.outcome, result.detail = 'status', f'{answer.status} {answer.reason}'[:200]
      return result
    inflate = _inflater(headers.get('content-encoding', ''))
    raw, out = 0, bytearray()
    while piece := answer.read1(1 << 16):
      raw += len(piece)
      try:
        out += inflate(piece, max_bytes + 1 - len(out)) if inflate else piece
      except zlib.error as error:
        raise _Stop('bad_encoding', str(error)) from error
      if expect and len(out) >= 1024 and expect not in out[:1024]:
        break
      if len(out) > max_bytes or raw > max_bytes:
        if cut:
          break
        raise _Stop('too_large', f'more than {max_bytes} bytes', 200)
      if len(out) > max(1 << 20, self.limits.ratio * raw):
        raise _Stop('ratio', f'{raw} bytes inflate to {len(out)}', 200)
    if expect and expect not in out[:1024]:
      raise _Stop('not_wanted', headers.get('content-type', ''), 200)
    if not cut and answer.length:
      raise _Stop('network', f'{answer.length} bytes are missing', 200)
    result.body = bytes(out[:max_bytes])
    return result


def _split(url: str) -> urllib.parse.SplitResult:
  try:
    parts = urllib.parse.urlsplit(url)
    name = (parts.hostname or '').encode('idna').decode()
    port = parts.port
  except (ValueError, UnicodeError) as error:
    raise _Stop('bad_url', str(error)[:200]) from error
  if parts.scheme not in ('http', 'https') or not name or '@' in parts.netloc or port not in (
      None, 80, 443) or any(c <= ' ' or c in '\\<>"' for c in parts.netloc):
    raise _Stop('bad_url', url[:200])
  netloc = f'[{name}]' if ':' in name else name
  return parts._replace(netloc=netloc + (f':{port}' if port else ''), fragment='')


def _target(url: str, result: Fetched) -> str:
  if not result.headers.get('location'):
    raise _Stop('redirects', 'a redirect without a Location', result.status)
  return urllib.parse.urljoin(url, result.headers['location'])


@functools.cache
def _tls() -> ssl.SSLContext:
  return ssl.create_default_context()


def _inflater(coding: str) -> Callable[[bytes, int], bytes] | None:
  coding = coding.strip().lower()
  if coding in ('', 'identity'):
    return None
  if coding not in ('gzip', 'x-gzip', 'deflate'):
    raise _Stop('bad_encoding', coding[:80], 200)
  return zlib.decompressobj(47).decompress


class _Timed:
  """A socket as http.client uses one, that no server holds beyond the deadline: each read waits no
  longer than what is left, so that a byte now and then does not help."""

  def __init__(self, sock: socket.socket, end: float, idle: float):
    self._sock, self._end, self._idle = sock, end, idle

  def close(self) -> None:
    """http.client closes while the answer is still to be read; the socket's owner does it."""

  def _wait(self) -> None:
    left = self._end - time.monotonic()
    if left <= 0:
      raise TimeoutError('wall time')
    self._sock.settimeout(min(self._idle, left))

  def sendall(self, data: bytes) -> None:
    self._wait()
    self._sock.sendall(data)

  def makefile(self, mode: str) -> io.BufferedReader:
    del mode                            # 'rb' alone is asked for
    return io.BufferedReader(_Reader(self))


class _Reader(io.RawIOBase):
  def __init__(self, timed: _Timed):
    self._timed = timed

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    self._timed._wait()
    return self._timed._sock.recv_into(buffer)

"""HTTP for crawlers: polite to servers, and safe against what they and the URLs may be.

A URL comes from a crawl, so it is hostile input: it, and every redirect, may name this machine, its
network or a cloud's metadata service. A name is therefore resolved once, all its addresses must be
public, and the connection goes to one that was checked (no second lookup that DNS could answer
otherwise). Bytes, decompression and time are capped, certificates are verified. Whatever a server
or a URL does is an outcome; nothing is raised.

Politeness is RFC 9309 (robots.txt, read by Protego, kept for a day) and one request a host at a
time, `Crawl-delay` or a second apart. What may pass by itself (`passing`) is tried again, later
each time; a host that keeps failing is left alone for a while, and none has more than its share of
time.
"""

import collections
import contextlib
import dataclasses
import email.utils
import functools
import http.client
import io
import ipaddress
import random
import re
import socket
import ssl
import threading
import time
import urllib.parse
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from protego import Protego

OUTCOMES = {
  'ok': 'the server gave the document',
  'not_modified': 'the server says it is as it was',
  'bad_url': 'no http or https URL, or one with a password or an odd port',
  'dns': 'there is no such name',
  'dns_failed': 'the name servers do not answer',
  'blocked_address': 'the name leads to an address that is not public',
  'robots': 'robots.txt forbids it',
  'robots_unreachable': 'robots.txt cannot be read, which forbids all (RFC 9309, 2.3.1.4)',
  'crawl_delay': 'robots.txt asks for longer pauses than we make',
  'tls': 'the certificate is not valid',
  'network': 'no connection, or one that broke off',
  'timeout': 'it took too long',
  'host_time': 'its host has taken all the time that one may have',
  'status': 'the server refused',
  'redirects': 'too many redirects, or one that leads nowhere',
  'too_large': 'more bytes than allowed',
  'ratio': 'it inflates more than documents do',
  'bad_encoding': 'its content coding is broken or unknown',
  'not_wanted': 'another kind of document, mostly a page that says where it was',
  'unexpected': 'an error that nobody foresaw',
}
_PASSING = frozenset({'dns_failed', 'robots_unreachable', 'network', 'timeout', 'host_time',
                      'unexpected'})
_RETRY = frozenset({408, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ROBOTS_BYTES = 500 << 10               # RFC 9309, 2.5: at least 500 KiB are to be read
_ROBOTS_SECONDS = 24 * 3600             # 2.4: kept no longer than a day
_UNREACHABLE_SECONDS = 600              # a host that has failed is asked again after
_KEPT_ROBOTS = 4 << 20                  # bytes of all hosts' robots.txt; parsed, 36 times as much
_KEPT_HOSTS = 10_000
_MEMBERS = 20_000                       # of one gzip body; 64 KiB each are 1.3 GB
# IANA's special-purpose registries. Python's own `is_global` depends on its version, and takes for
# global what leads into private networks or to no single host.
_PUBLIC_6 = ipaddress.ip_network('2000::/3')
_SPECIAL = tuple(map(ipaddress.ip_network, (
  '0.0.0.0/8', '10.0.0.0/8', '100.64.0.0/10', '127.0.0.0/8', '169.254.0.0/16', '172.16.0.0/12',
  '192.0.0.0/24', '192.0.2.0/24', '192.31.196.0/24', '192.52.193.0/24', '192.88.99.0/24',
  '192.168.0.0/16', '192.175.48.0/24', '198.18.0.0/15', '198.51.100.0/24', '203.0.113.0/24',
  '224.0.0.0/4', '240.0.0.0/4',
  '2001::/23', '2001:db8::/32', '2002::/16', '2620:4f:8000::/48', '3ffe::/16', '3fff::/20')))


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
  host_seconds: float = 3600.0          # that one host may take to answer, of all its documents


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


def passing(outcome: str, status: int) -> bool:
  """Whether another try, now or on another day, may end otherwise."""
  return outcome in _PASSING or (outcome == 'status' and status in _RETRY)


class _Stop(Exception):
  def __init__(self, outcome: str, detail: str = '', status: int = 0,
               headers: Mapping[str, str] | None = None):
    super().__init__(outcome, detail)
    self.outcome, self.detail, self.status, self.headers = outcome, detail, status, headers or {}


@dataclasses.dataclass
class _Robots:
  """What is known of an origin's robots.txt, until when."""
  until: float
  rules: Protego | None = None
  word: str = ''                        # as `Fetched.robots`
  stop: _Stop | None = None             # why there are no rules, if that forbids all
  bytes: int = 0


@dataclasses.dataclass
class _Host:
  """A host's turn, and what it has taken so far."""
  turn: threading.Lock = dataclasses.field(default_factory=threading.Lock)
  free: float = 0.0                     # when the next request may be made
  spent: float = 0.0                    # seconds of its answers, and of waiting for better ones
  failures: int = 0                     # of reading robots.txt


def is_public(address: str) -> bool:
  """Whether an IP address, as getaddrinfo gives it, can be a server on the public internet."""
  try:
    ip = ipaddress.ip_address(address.partition('%')[0])
  except ValueError:
    return False
  ip = getattr(ip, 'ipv4_mapped', None) or ip
  return (ip.version == 4 or ip in _PUBLIC_6) and not any(ip in net for net in _SPECIAL)


def host_of(url: str) -> str:
  """The name of an http or https URL's host, in lower case; '' of anything else."""
  try:
    parts = urllib.parse.urlsplit(url)
    return (parts.hostname or '') if parts.scheme in ('http', 'https') else ''
  except ValueError:
    return ''


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
    self._lock = threading.Lock()       # of the two below
    self._robots: collections.OrderedDict[str, _Robots] = collections.OrderedDict()
    self._hosts: collections.OrderedDict[str, _Host] = collections.OrderedDict()

  def fetch(self, url: str, *, etag: str = '', modified: str = '', expect: bytes = b'') -> Fetched:
    """Gets a URL, patiently; never raises.

    Args:
      etag, modified: of the version at hand, so that the server may answer that it is the same.
      expect: bytes that the document's first KiB must hold; otherwise it is not read on.
    """
    headers = {name: value for name, value in (('If-None-Match', etag),
                                               ('If-Modified-Since', modified))
               if value and value.isascii() and value.isprintable()}
    jitter = random.Random(url.encode('utf-8', 'surrogatepass'))
    for n in range(self.limits.tries):
      result = self._follow(url, headers, expect)
      if not passing(result.outcome, result.status) or n == self.limits.tries - 1:
        break
      wait = _asked(result.headers.get('retry-after', ''))
      wait = 2.0 ** (n + 1) + jitter.random() if wait is None else wait
      if wait > self.limits.crawl_delay or result.outcome == 'host_time':
        break
      self._sleep(wait)
      self._host(host_of(result.url)).spent += wait
    return result

  def _follow(self, url: str, headers: Mapping[str, str], expect: bytes) -> Fetched:
    """One try, with its redirects."""
    end = time.monotonic() + self.limits.seconds
    robots = ''
    try:
      for _ in range(self.limits.redirects + 1):
        parts = _split(url)
        rules, robots = self._rules(parts, end)
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
      if stop.outcome == 'robots_unreachable':
        robots = 'unreachable'
      return Fetched(stop.outcome, url, status=stop.status, headers=stop.headers,
                     detail=stop.detail, robots=robots)
    except Exception as error:          # of a library, at bytes that it was not made for
      return Fetched('unexpected', url, detail=f'{type(error).__name__}: {error}'[:200],
                     robots=robots)

  def _host(self, name: str) -> _Host:
    with self._lock:
      host = self._hosts.setdefault(name, _Host())
      self._hosts.move_to_end(name)
      if len(self._hosts) > _KEPT_HOSTS:
        self._hosts.popitem(last=False)
    return host

  # robots.txt

  def _rules(self, parts: urllib.parse.SplitResult, end: float) -> tuple[Protego | None, str]:
    """The rules of a URL's host, and in a word what was found; raises _Stop if all is forbidden."""
    key = f'{parts.scheme}://{parts.netloc}'
    with self._lock:
      known = self._robots.get(key)
    if known is None or time.monotonic() > known.until:
      known = self._read_robots(key + '/robots.txt', end)
      if known.stop and passing(known.stop.outcome, known.stop.status):
        host = self._host(parts.hostname or '')
        host.failures += 1              # as often as a document is tried
        patient = host.failures % self.limits.tries
        known.until = time.monotonic() + (0 if patient else _UNREACHABLE_SECONDS)
      with self._lock:
        self._robots[key] = known
        self._robots.move_to_end(key)
        while len(self._robots) > 1 and (len(self._robots) > _KEPT_HOSTS or sum(
            robots.bytes for robots in self._robots.values()) > _KEPT_ROBOTS):
          self._robots.popitem(last=False)
    if known.stop:
      raise known.stop.with_traceback(None)       # or each raise would make it longer
    return known.rules, known.word

  def _read_robots(self, url: str, end: float) -> _Robots:
    until = time.monotonic() + _ROBOTS_SECONDS
    try:
      for _ in range(self.limits.redirects + 1):
        # The pause is for documents: the first may follow at once.
        result = self._request(_split(url), {}, end, _ROBOTS_BYTES, 0.0, cut=True)
        if result.status not in _REDIRECTS:
          break
        url = _target(url, result)
      else:
        return _Robots(until, word='none')        # 2.3.1.2: as if there were no such file
    except _Stop as stop:
      # The document itself would be refused for the same reason, which says more.
      same = stop.outcome in ('bad_url', 'blocked_address', 'dns', 'dns_failed', 'tls', 'host_time')
      return _Robots(until, stop=_Stop(stop.outcome, stop.detail) if same else _Stop(
        'robots_unreachable', f'{stop.outcome}: {stop.detail}'))
    if result.status == 200 and result.outcome == 'ok':
      rules = Protego.parse(result.body.decode('utf-8', 'replace'))
      return _Robots(until, rules, 'allowed', bytes=len(result.body))
    if 400 <= result.status < 500 and result.status not in _RETRY:
      return _Robots(until, word='none')          # 2.3.1.3
    return _Robots(until, stop=_Stop('robots_unreachable', result.detail,
                                     headers=result.headers))      # 2.3.1.4

  # One request

  def _request(self, parts: urllib.parse.SplitResult, headers: Mapping[str, str], end: float,
               max_bytes: int, delay: float, expect: bytes = b'', cut: bool = False) -> Fetched:
    """One request to one host, no redirects followed; raises _Stop where there is no answer."""
    name, port = parts.hostname, parts.port or (443 if parts.scheme == 'https' else 80)
    host = self._host(name)
    if not host.turn.acquire(timeout=max(0.0, end - time.monotonic())):
      raise _Stop('timeout', 'others had their turn')
    start = None
    try:
      if host.spent > self.limits.host_seconds:
        raise _Stop('host_time', f'{host.spent:.0f} s')
      if (wait := host.free - time.monotonic()) > 0:
        self._sleep(wait)
      start = time.monotonic()
      with contextlib.ExitStack() as stack:
        sock = self._open(name, port, end)
        stack.callback(sock.close)
        if parts.scheme == 'https':
          sock = _tls().wrap_socket(sock, server_hostname=name)
          stack.callback(sock.close)
        client = http.client.HTTPConnection(name, port)
        client.sock = _Timed(sock, end, self.limits.idle_seconds)
        path = urllib.parse.quote(parts.path or '/', safe="/%:@!$&'()*+,;=~")
        query = urllib.parse.quote(parts.query, safe="/?%:@!$&'()*+,;=~")
        client.request('GET', path + ('?' + query if query else ''), headers={
          'Host': parts.netloc, 'User-Agent': self.agent,
          'Accept-Encoding': 'gzip, deflate, identity', 'Connection': 'close', **headers})
        return self._read(client.getresponse(), parts.geturl(), max_bytes, expect, cut)
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
      raise _Stop('network', f'TLS: {error}'[:200]) from error
    except ssl.SSLError as error:
      raise _Stop('tls', str(error)[:200]) from error
    except TimeoutError as error:
      raise _Stop('timeout', str(error)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
      raise _Stop('network', f'{type(error).__name__}: {error}'[:200]) from error
    finally:
      if start is not None:
        host.free = time.monotonic() + delay
        host.spent += time.monotonic() - start
      host.turn.release()

  def _open(self, host: str, port: int, end: float) -> socket.socket:
    """A connection to the first of a name's addresses that answers."""
    try:
      found = self._resolve(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
      again = getattr(error, 'errno', None) in (socket.EAI_AGAIN, socket.EAI_FAIL)
      raise _Stop('dns_failed' if again else 'dns', str(error)) from error
    except ValueError as error:         # names that IDNA or the system cannot hold
      raise _Stop('dns', str(error)) from error
    addresses = list(dict.fromkeys(entry[4][0] for entry in found))
    if not addresses or not all(map(is_public, addresses)):
      raise _Stop('blocked_address', ', '.join(addresses)[:200])
    for n, address in enumerate(addresses, 1):
      wait = min(self.limits.idle_seconds, (end - time.monotonic()) / (len(addresses) - n + 1))
      try:
        return self._connect((address, port), timeout=max(0.1, wait))
      except OSError:
        if n == len(addresses) or time.monotonic() > end:
          raise
    raise AssertionError

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
    raw, out, over = 0, bytearray(), False
    while piece := answer.read1(1 << 16):
      raw += len(piece)
      out += inflate(piece, max_bytes + 1 - len(out)) if inflate else piece
      if expect and len(out) >= 1024 and expect not in out[:1024]:
        break
      if over := len(out) > max_bytes or raw > max_bytes:
        if cut:
          break
        raise _Stop('too_large', f'more than {max_bytes} bytes', 200)
      if len(out) > max(1 << 20, self.limits.ratio * raw):
        raise _Stop('ratio', f'{raw} bytes inflate to {len(out)}', 200)
    if expect and expect not in out[:1024]:
      raise _Stop('not_wanted', headers.get('content-type', ''), 200)
    if not over and (answer.length or (inflate and not inflate.whole)):
      missing = f'{answer.length} bytes are missing' if answer.length else 'the coding is cut off'
      raise _Stop('network', missing, 200)
    result.body = bytes(out[:max_bytes])
    return result


def _split(url: str) -> urllib.parse.SplitResult:
  try:
    url.encode()                        # no half of a pair
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
  """Where a redirect leads. Raises _Stop."""
  location = result.headers.get('location', '')
  # http.client reads headers as Latin-1; who sends more than ASCII means UTF-8 (RFC 3987).
  with contextlib.suppress(UnicodeError):
    location = location.encode('latin-1').decode('utf-8')
  try:
    if location:
      return urllib.parse.urljoin(url, location)
  except ValueError:
    pass
  raise _Stop('redirects', f'a redirect to {location[:100]!r}', result.status)


def _asked(retry_after: str) -> float | None:
  """Seconds that a Retry-After asks for, a number or a date; None if it says nothing sensible."""
  if re.fullmatch('[0-9]{1,9}', retry_after):
    return float(retry_after)
  try:
    when = email.utils.parsedate_to_datetime(retry_after).timestamp()
  except (ValueError, TypeError, OverflowError, IndexError):
    return None
  return max(0.0, when - time.time())


@functools.cache
def _tls() -> ssl.SSLContext:
  return ssl.create_default_context()


def _inflater(coding: str) -> '_Inflater | None':
  codings = [name for c in coding.lower().split(',') if (name := c.strip()) not in ('', 'identity')]
  if not codings:
    return None
  if len(codings) > 1 or codings[0] not in ('gzip', 'x-gzip', 'deflate'):
    raise _Stop('bad_encoding', coding[:80], 200)
  return _Inflater('gzip' if codings[0] != 'deflate' else 'deflate')


class _Inflater:
  """A body's content coding undone: gzip of one or several members, zlib's form or bare deflate."""

  def __init__(self, coding: str):
    self._coding, self._head, self._members = coding, b'', 0
    self._inflate: Any = None

  @property
  def whole(self) -> bool:
    """Whether the last member came to its end."""
    return bool(self._inflate and self._inflate.eof)

  def __call__(self, piece: bytes, most: int) -> bytes:
    """What comes of another piece, `most` bytes at the most. Raises _Stop if it is broken."""
    piece, out = self._head + piece, bytearray()
    self._head = b''
    try:
      while piece and len(out) < most:
        if self._inflate is None or self._inflate.eof:
          if self._members:               # between members: zeros, or what is none, which ends it
            piece = piece.lstrip(b'\0')
            if self._coding == 'deflate' or not b'\x1f\x8b'.startswith(piece[:2]):
              break
          if len(piece) < 2:              # too little to tell what it is
            self._head = piece
            break
          self._members += 1
          if self._members > _MEMBERS:
            raise _Stop('bad_encoding', f'more than {_MEMBERS} members', 200)
          self._inflate = zlib.decompressobj(self._form(piece))
        out += self._inflate.decompress(piece, most - len(out))
        piece = self._inflate.unused_data if self._inflate.eof else b''
    except zlib.error as error:
      raise _Stop('bad_encoding', str(error), 200) from error
    return bytes(out)

  def _form(self, piece: bytes) -> int:
    """zlib's `wbits`. Many servers mean bare deflate by that word, against RFC 9110."""
    if self._coding == 'gzip':
      return 31
    wrapped = piece[0] & 15 == 8 and int.from_bytes(piece[:2], 'big') % 31 == 0
    return zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS


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

"""The safe fetcher against servers that misbehave, and URLs that lead where none should go.

A server on this machine plays the public internet: names resolve to public addresses, and the
connection to one of those is led to it. Any other address that is connected to fails the test.
"""

import contextlib
import datetime
import http.server
import ipaddress
import random
import ssl
import threading
import time
import zlib

import pytest
from helpers.server import DEAD, PDF, PUBLIC, Hostile, World, server  # noqa: F401 (fixtures)
from hypothesis import given
from hypothesis import strategies as st

from data_beam.sources import fetch


@pytest.fixture
def world(server):
  return World(server)


@pytest.mark.parametrize(('path', 'outcome'), [
  ('/ok', 'ok'), ('/gzip', 'ok'), ('/to/ok', 'ok'), ('/private/open', 'ok'),
  ('/to/port', 'bad_url'), ('/to/metadata', 'blocked_address'), ('/to/file', 'bad_url'),
  ('/to/mapped', 'blocked_address'), ('/to/itself', 'redirects'), ('/to/nowhere', 'redirects'),
  ('/to/bracket', 'redirects'), ('/members', 'ok'), ('/deflate', 'ok'), ('/bare_deflate', 'ok'),
  ('/cut_gzip', 'network'), ('/later/superscript', 'status'), ('/later/date', 'status'),
  ('/to/number', 'blocked_address'), ('/to/user', 'bad_url'), ('/to/gopher', 'bad_url'),
  ('/to/private', 'robots'), ('/private/a', 'robots'), ('/a.cgi', 'robots'), ('/a.cgi?b', 'ok'),
  ('/broken_gzip', 'bad_encoding'), ('/brotli', 'bad_encoding'),
  ('/html', 'not_wanted'), ('/404', 'status'), ('/cut', 'network'), ('/drip', 'timeout'),
  ('/drip_headers', 'timeout'), ('/endless', 'too_large'), ('/silent', 'timeout'),
  ('/rubbish', 'network')])
def test_servers_that_misbehave(world, path, outcome):
  start = time.monotonic()
  result = world.fetcher().fetch(f'http://pub.example{path}', expect=b'%PDF-')
  assert result.outcome == outcome and outcome in fetch.OUTCOMES, (result.outcome, result.detail)
  assert (result.body == PDF) == (outcome == 'ok')
  assert time.monotonic() - start < 6         # three tries at most, each with its limit


def test_a_bomb_stops_at_its_size_or_ratio(world):
  for size, outcome in ((1 << 19, 'too_large'), (1 << 30, 'ratio')):
    patient = world.fetcher(bytes=size, seconds=60.0, idle_seconds=60.0)
    assert patient.fetch('http://pub.example/bomb').outcome == outcome


@pytest.mark.parametrize('url', [
  'http://127.0.0.1/', 'http://127.1/', 'http://2130706433/', 'http://0x7f000001/',
  'http://0177.0.0.1/', 'http://[::1]/', 'http://[::ffff:127.0.0.1]/', 'http://0.0.0.0/',
  'http://localhost/', 'http://169.254.169.254/latest/meta-data/', 'http://10.0.0.1/',
  'http://192.168.1.1/', 'http://[64:ff9b::7f00:1]/', 'http://[2002:7f00:1::]/',
  'http://224.0.0.1/', 'http://[fe80::1]/', 'http://[fd00::1]/', 'http://mixed.example/ok',
  'http://inside.example/ok', 'http://six.example/ok', 'http://nat.example/ok',
  'http://pub.example:22/', 'http://pub.example:8080/ok', 'http://user:pw@pub.example/ok',
  'http://pub.example\\@127.0.0.1/', 'http://pub.example@127.0.0.1/', 'file:///etc/passwd',
  'gopher://pub.example/', 'ftp://pub.example/a.pdf', 'http:///ok', 'http://[::1', '', 'ok',
  'http://' + 'a' * 300 + '.example/', 'javascript:alert(1)', 'http://pub.example:99999/'])
def test_no_url_leads_to_an_address_that_is_not_public(world, url):
  result = world.fetcher().fetch(url)
  assert result.outcome in ('blocked_address', 'bad_url', 'dns'), (url, result)
  assert not world.connected


def test_a_name_is_resolved_once_for_each_connection(world):
  # DNS that answers publicly when asked first and privately then: the second answer is refused.
  result = world.fetcher().fetch('http://rebind.example/ok')
  assert result.outcome == 'blocked_address' and set(world.connected) <= {PUBLIC}


@pytest.mark.parametrize(('host', 'outcome', 'robots'), [
  ('pub.example', 'ok', 'allowed'), ('none.example', 'ok', 'none'),
  ('broken.example', 'robots_unreachable', 'unreachable'),
  ('slow.example', 'crawl_delay', 'allowed'), ('huge.example', 'ok', 'allowed')])
def test_robots(world, host, outcome, robots):
  result = world.fetcher().fetch(f'http://{host}/ok')
  assert (result.outcome, result.robots) == (outcome, robots)


def test_robots_are_read_once_a_host_and_its_rules_in_a_huge_file_hold(world, server):
  fetcher, before = world.fetcher(), len(server.seen)
  for path, outcome in (('/a1', 'ok'), ('/private/x', 'robots'), ('/a2', 'ok')):
    assert fetcher.fetch(f'http://huge.example{path}').outcome == outcome
  assert [path for _, path in server.seen[before:]] == ['/robots.txt', '/a1', '/a2']


def test_patience(world, server):
  server.flaky = 0
  assert world.fetcher().fetch('http://pub.example/flaky').outcome == 'ok'
  pauses = [s for s in world.slept if s > 1]
  assert len(pauses) == 2 and 2 <= pauses[0] < 3 and 4 <= pauses[1] < 5
  world.slept.clear()
  result = world.fetcher().fetch('http://pub.example/later')
  assert (result.outcome, result.status) == ('status', 429) and world.slept == [7.0, 7.0]
  result = world.fetcher().fetch('http://pub.example/404')
  assert result.status == 404 and len(world.slept) == 2                 # no second try


def test_crawl_delay_is_kept(world):
  fetcher = world.fetcher()
  fetcher.fetch('http://wait.example/a1')
  fetcher.fetch('http://wait.example/a2')
  assert max(world.slept) == pytest.approx(3, abs=.5)


def test_one_request_a_host_at_a_time(world, server):
  fetcher, server.most = world.fetcher(), 0
  threads = [threading.Thread(target=fetcher.fetch, args=(f'http://pub.example/a{i}',))
             for i in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert server.most == 1


def test_the_same_version_is_not_sent_again(world):
  assert world.fetcher().fetch('http://pub.example/same', etag='"1"').outcome == 'not_modified'
  assert world.fetcher().fetch('http://pub.example/same', etag='"0"').body == PDF


def certificate(folder, name):
  """A certificate for a name that nobody has signed but itself, and its key: one PEM file."""
  x509 = pytest.importorskip('cryptography.x509')
  from cryptography.hazmat.primitives import hashes, serialization
  from cryptography.hazmat.primitives.asymmetric import ec
  key = ec.generate_private_key(ec.SECP256R1())
  subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
  now = datetime.datetime.now(datetime.UTC)
  signed = (
    x509.CertificateBuilder().subject_name(subject).issuer_name(subject)
    .public_key(key.public_key()).serial_number(1)
    .not_valid_before(now - datetime.timedelta(days=1))
    .not_valid_after(now + datetime.timedelta(days=1))
    .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
    .sign(key, hashes.SHA256()))
  pem = folder / 'server.pem'
  pem.write_bytes(
    key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                      serialization.NoEncryption())
    + signed.public_bytes(serialization.Encoding.PEM))
  return pem


def test_certificates_are_checked(tmp_path, world, monkeypatch):
  pem = certificate(tmp_path, 'pub.example')
  context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
  context.load_cert_chain(pem)
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hostile) as s:
    s.lock, s.seen, s.active, s.most = threading.Lock(), [], 0, 0
    s.socket = context.wrap_socket(s.socket, server_side=True)
    threading.Thread(target=s.serve_forever, daemon=True).start()
    world.server = s
    assert world.fetcher().fetch('https://pub.example/ok').outcome == 'tls'       # nobody's word
    trusting = ssl.create_default_context(cafile=pem)
    monkeypatch.setattr(fetch, '_tls', lambda: trusting)
    result = world.fetcher().fetch('https://pub.example/ok')
    assert (result.outcome, result.body) == ('ok', PDF)
    assert world.fetcher().fetch('https://other.example/ok').outcome == 'tls'     # another's name
    s.shutdown()


def test_a_server_without_tls_is_not_spoken_to_in_plain(world):
  assert world.fetcher().fetch('https://pub.example/ok').outcome in ('tls', 'timeout')


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**128 - 1))
def test_public_addresses(four, six):
  ip = ipaddress.ip_address(four)
  if fetch.is_public(str(ip)):
    assert ip.is_global and not ip.is_multicast and not ip.is_private
    assert fetch.is_public(f'::ffff:{ip}')
  assert not fetch.is_public(str(ipaddress.ip_address(
    int(ipaddress.ip_address('64:ff9b::')) | four)))
  if six >> 125 != 1 and six >> 32 != 0xffff:
    assert not fetch.is_public(str(ipaddress.IPv6Address(six)))


@pytest.mark.parametrize('address', [
  '::', '::1', '::7f00:1', '::ffff:0:7f00:1', '::ffff:127.0.0.1', '64:ff9b::1', '64:ff9b:1::1',
  '100::1', '2001::1', '2001:2::1', '2001:10::1', '2001:20::1', '2001:db8::1', '2002:7f00:1::',
  '2620:4f:8000::1', '3ffe::1', '3fff::1', '5f00::1', 'fc00::1', 'fe80::1%eth0', 'fec0::1',
  'ff02::1', '0.0.0.1', '100.64.0.1', '192.0.0.9', '192.88.99.1', '198.18.0.1', '240.0.0.1',
  '255.255.255.255', 'no address', ''])
def test_addresses_that_are_not_public(address):
  assert not fetch.is_public(address)
  assert fetch.is_public('2606:2800:220:1::1') and fetch.is_public('8.8.8.8')


def test_every_address_of_a_name_is_tried(world):
  assert world.fetcher().fetch('http://two.example/ok').outcome == 'ok'
  assert world.connected == [DEAD, PUBLIC] * 2


@pytest.mark.parametrize('host', ['drops.example', 'busy.example'])
def test_a_passing_failure_of_robots_is_tried_again(world, server, host):
  server.flaky = 0
  assert world.fetcher().fetch(f'http://{host}/ok').outcome == 'ok'
  assert len([s for s in world.slept if s > 1]) == 2


def test_a_host_that_keeps_failing_is_left_alone(world, server):
  fetcher, before = world.fetcher(), len(server.seen)
  for i in range(4):
    assert fetcher.fetch(f'http://broken.example/a{i}').outcome == 'robots_unreachable'
  assert len(server.seen) - before == fetcher.limits.tries      # then it is known for a while


def test_a_host_has_its_share_of_time(world):
  fetcher = world.fetcher(host_seconds=1.0, seconds=.7)
  outcomes = [fetcher.fetch('http://pub.example/drip').outcome for _ in range(2)]
  assert outcomes == ['host_time', 'host_time'] and fetch.passing('host_time', 0)
  assert fetcher.fetch('http://other.example/ok').outcome == 'ok'


def test_what_is_kept_of_hosts_is_bounded(world, monkeypatch):
  monkeypatch.setattr(fetch, '_KEPT_HOSTS', 10)
  monkeypatch.setattr(fetch, '_KEPT_ROBOTS', 1 << 20)
  fetcher = world.fetcher()
  for i in range(12):
    assert fetcher.fetch(f'http://h{i}.example/ok').outcome == 'ok'
  assert len(fetcher._hosts) == len(fetcher._robots) == 10
  fetcher.fetch('http://huge.example/ok')
  assert sum(robots.bytes for robots in fetcher._robots.values()) <= 1 << 20


ODD = ['²', '', '-1', '1e400', 'nan', '9' * 20, 'Mon, 99 Foo 2020', 'http://[', 'http://[::1', '//',
       '/ok', 'http://pub.example:99999/', 'x' * 70000, 'gzip', 'deflate', 'br', '\0', 'chunked',
       'http://a..b/', 'http://' + 'a' * 64 + '.example/', '\xe9']
NAMES = ['Retry-After', 'Location', 'Content-Length', 'Content-Encoding', 'Transfer-Encoding',
         'ETag']
BODIES = [PDF, zlib.compress(PDF), b'\x1f\x8b', b'5\r\nabcde\r\n0\r\n\r\n', b'-5\r\nab', b'f' * 20,
          b'User-agent: *\nCrawl-delay: 1e999\nDisallow: *$*$',
          b'User-agent: \xff\nCrawl-delay: nan',
          b'User-agent:*\nAllow:\nDisallow: http://[\nSitemap: http://[\nRequest-rate: x/y']
URLS = ['http://{}.example/a', 'http://{}.example/%zz', 'http://{}.example/\udc80', 'http://[{}',
        'http://{}.example/\n\r\0', '//{}', 'http://{}.example:80:80/', 'HTTP://{}.EXAMPLE/é?[']


def test_no_answer_and_no_url_raises(world):
  draw = random.Random(5)

  class Odd(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
      pass

    def do_GET(self):
      status = draw.choice(['200', '200', '302', '304', '100', '204', '404', '429', '-1'])
      headers = [f'{draw.choice(NAMES)}: {draw.choice(ODD)}' for _ in range(draw.randrange(4))]
      answer = '\r\n'.join([f'HTTP/1.1 {status} OK', *headers, '', '']).encode('latin-1')
      answer += draw.choice(BODIES)
      with contextlib.suppress(OSError):
        self.wfile.write(answer[:draw.randrange(len(answer))] if draw.random() < .1 else answer)

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Odd) as s:
    threading.Thread(target=s.serve_forever, daemon=True).start()
    world.server, found = s, set()
    for i in range(500):
      found.add(world.fetcher().fetch(
        draw.choice(URLS).format(f'h{i}'), etag=draw.choice(['', '"1"', 'x\r\ny', 'é']),
        expect=b'%PDF-').outcome)
    s.shutdown()
  assert 'unexpected' not in found and len(found & fetch.OUTCOMES.keys()) == len(found) > 5
  assert all(0 <= seconds <= 60 for seconds in world.slept)

"""Small web archives."""

import io
import random

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

HTML = b'<html><body><p>Hello.</p></body></html>'
ID = '<urn:uuid:00000000-0000-0000-0000-{:012d}>'


def write_warc(path, responses, *, compress: bool = True):
  """A WARC of (url, body, HTTP headers, status) responses; record ids count up from 0."""
  with open(path, 'wb') as f:
    writer = WARCWriter(f, gzip=compress)
    writer.write_record(writer.create_warcinfo_record('test.warc', {'software': 'test'}))
    for i, (url, body, headers, status) in enumerate(responses):
      http = StatusAndHeaders(f'{status} X', list(headers.items()), protocol='HTTP/1.1')
      writer.write_record(writer.create_warc_record(
        url, 'response', payload=io.BytesIO(body), length=len(body), http_headers=http,
        warc_headers_dict={'WARC-Record-ID': ID.format(i), 'WARC-Date': '2024-05-01T00:00:00Z'}))
  return str(path)


def html(url='https://a.test/', body=HTML, *, status=200, **headers):
  headers = {k.replace('_', '-'): v for k, v in headers.items()}
  return url, body, {'Content-Type': 'text/html'} | headers, status


ADJECTIVES = [
  'old', 'small', 'famous', 'quiet', 'northern', 'wooden', 'broken', 'modern', 'narrow',
  'public', 'empty', 'royal',
]
NOUNS = [
  'harbour', 'mill', 'library', 'market', 'bridge', 'castle', 'garden', 'museum', 'school',
  'theatre', 'station', 'tower',
]
VERBS = [
  'overlooks', 'replaced', 'admired', 'bought', 'described', 'painted', 'remembers', 'left',
  'crossed', 'visited',
]


def article(seed: int, paragraphs: int = 8) -> list[str]:
  """English paragraphs in which hardly any five words occur twice."""
  rng = random.Random(seed)
  name = lambda: ''.join(rng.choices('abdeilmnorstu', k=7)).capitalize()
  thing = lambda: f'{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} of {name()}'
  sentence = lambda: (
    f'The {thing()} {rng.choice(VERBS)} the {thing()}.')
  return [' '.join(sentence() for _ in range(4)) for _ in range(paragraphs)]


def page(paragraphs, title='A page') -> bytes:
  body = ''.join(f'<p>{p}</p>' for p in paragraphs)
  return (f'<!doctype html><html><head><title>{title}</title></head><body><nav><a href="/">Home</a>'
          f'</nav><article><h1>{title}</h1>{body}</article><footer>© 2024</footer></body></html>'
          ).encode()

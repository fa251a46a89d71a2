"""HTML bytes → main text: charset, a choice of extractors, and a budget no page can exceed.

Every call depends on its arguments alone. In particular trafilatura's `deduplicate` stays off: its
segment cache is global to the process, so that a page's text would depend on the pages before it.
"""

import logging
import re
from collections.abc import Iterator

from resiliparse.extract.html2text import extract_plain_text
from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

from data_beam.sources.http_answer import mime
from data_beam.web import main_text as html_main

log = logging.getLogger('data_beam')

# The budget of one page: characters of markup, and tags. A page beyond it is read up to there, and
# its document says so. Of 343 real pages the largest has 70,000 tags, the tenth largest 3,200.
MAX_CHARS = 4_000_000
MAX_TAGS = 400_000
TRAFILATURA_TAGS = 60_000     # in the worst case its cost is quadratic in them

BOMS = ((b'\xef\xbb\xbf', 'utf-8'), (b'\xff\xfe', 'utf-16-le'), (b'\xfe\xff', 'utf-16-be'))
CHARSET = re.compile(r'''charset\s*=\s*["']?\s*([\w.:-]+)''', re.I)
META_CHARSET = re.compile(
  rb'''<(?:meta\b[^>]{0,400}?charset|\?xml\b[^>]{0,400}?encoding)\s*=\s*["']?\s*([\w.:-]+)''', re.I)
# As browsers read these labels: with the characters that were added to the standard later.
WIDER = {'gbk': 'gb18030', 'euc_kr': 'cp949', 'shift_jis': 'cp932', 'big5': 'big5hkscs',
         'iso8859-11': 'cp874'}
CONTROL = re.compile('[\x00-\x08\x0b\x0e-\x1f\ufffd]')


def extract(
  body: bytes, url: str = '', content_type: str = '', *, tier: str = 'default',
  markdown: bool = False,
) -> str | None:
  """Main text of a page, or None if it has none. Never raises on account of the page.

  Args:
    body: the payload, content encodings undone.
    url: only named in the log when the extractor fails.
    content_type: of the HTTP response. 'text/plain' is decoded and returned as it is.
    tier: 'default', 'balanced', 'fast' or 'trafilatura', see TIERS.
    markdown: keep the structure (headings, lists, tables, code) as Markdown; the fast tier marks
      lists only.

  Raises:
    ValueError: unknown tier.
  """
  if tier not in TIERS:
    raise ValueError(f'unknown tier {tier!r}: choose one of {", ".join(TIERS)}')
  text = decode(body, content_type)
  if len(CONTROL.findall(text, 0, 10_000)) > 100:
    return None   # an image or an archive under a false name
  if mime(content_type) != 'text/plain':
    try:
      text = TIERS[tier](within_budget(text), markdown)
    except MemoryError:
      raise
    # lxml, trafilatura and resiliparse raise whatever they like on broken markup.
    except Exception as error:
      log.debug('no text from %s: %r', url, error)
      return None
  text = CONTROL.sub('', text or '').strip()
  return text or None


def decode(body: bytes, content_type: str = '') -> str:
  """Text of a payload. A byte-order mark decides; then valid UTF-8, which other encodings hardly
  ever are; then the HTTP header, the page's own meta tag, and the bytes' statistics (the order of
  the HTML standard), each only if the bytes bear it out.
  """
  for bom, codec in BOMS:
    if body.startswith(bom):
      return body[len(bom):].decode(codec, 'replace')
  # Encodings in seven bits, and UTF-16, are valid UTF-8 too: ISO-2022 shows ESC, UTF-16 NUL.
  if b'\x00' not in body[:1024] and b'\x1b' not in body:
    try:
      return body.decode()
    except UnicodeDecodeError:
      pass
  text = ''
  for codec in _codecs(body, content_type):
    text = body.decode(codec, 'replace')
    foreign = len(text) - len(text.encode('ascii', 'ignore'))
    if text.count('\ufffd') * 10 <= foreign:   # at most a tenth of what is not ASCII is broken
      return text
  return text


def _codecs(body: bytes, content_type: str) -> Iterator[str]:
  """Python codec names, in order of trust, without repetition; the last one decodes anything."""
  labels = CHARSET.findall(content_type)[:1]
  labels += [label.decode('ascii', 'replace') for label in META_CHARSET.findall(body, 0, 4096)[:1]]
  labels += ['utf-8', 'euc-kr' if _is_korean(body) else '', detect_encoding(body) or '',
             'windows-1252']
  codecs = [map_encoding_to_html5(label, fallback_utf8=False) for label in labels]
  yield from dict.fromkeys(WIDER.get(codec, codec) for codec in codecs if codec)


def _is_korean(body: bytes) -> bool:
  """Whether bytes read as EUC-KR are Hangul nearly throughout: Chinese and Japanese bytes are half
  ideographs then. (The statistics of others take it for UTF-8.)"""
  foreign = [c for c in body[:100_000].decode('cp949', 'replace') if c >= '\x80']
  return len(foreign) > 10 and sum('가' <= c <= '힣' for c in foreign) > .8 * len(foreign)


def within_budget(html: str, max_tags: int = MAX_TAGS) -> str:
  """The page up to MAX_CHARS characters and `max_tags` tags."""
  html = html[:MAX_CHARS]
  if html.count('<') > max_tags:
    html = '<'.join(html.split('<', max_tags + 1)[:-1])
  return html


def is_cut(body: bytes, tier: str = 'default') -> bool:
  """Whether a page is over the budget, as far as its bytes tell, and is read in part."""
  max_tags = TRAFILATURA_TAGS if tier == 'trafilatura' else MAX_TAGS
  return len(body) > MAX_CHARS or body.count(b'<') > max_tags


def _trafilatura(html: str, markdown: bool) -> str | None:
  # Slow to import, and only this tier needs it.
  from trafilatura import extract
  from trafilatura.settings import Extractor

  # It reports every page it finds nothing in; our rejects say that, with the page's id.
  logging.getLogger('trafilatura').setLevel(logging.CRITICAL)
  options = Extractor(output_format='markdown' if markdown else 'txt', fast=True, comments=False,
                      formatting=markdown)
  return extract(within_budget(html, TRAFILATURA_TAGS), options=options)


def _resiliparse(html: str, markdown: bool) -> str:
  return extract_plain_text(
    html, main_content=True, comments=False, alt_texts=False, list_bullets=markdown)


# (html, markdown) → text. Figures of each: experiments/log/web.md, 2026-11-25, and
# experiments/benchmarks/web_extract.py, which measures them again.
TIERS = {
  'default': lambda html, markdown: html_main.extract(html, markdown=markdown),
  # Another extractor as long as the default was trafilatura; the name stays for who uses it.
  'balanced': lambda html, markdown: html_main.extract(html, markdown=markdown),
  'fast': _resiliparse,
  'trafilatura': _trafilatura,
}

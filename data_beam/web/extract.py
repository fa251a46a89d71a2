"""HTML bytes → main text: charset, a choice of extractors, and a budget no page can exceed.

Every call depends on its arguments alone. In particular trafilatura's `deduplicate` stays off: its
segment cache is global to the process, so that a page's text would depend on the pages before it.
"""

import codecs
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
         'iso8859-11': 'cp874', 'koi8-r': 'koi8-u'}
# Where the label is, any bytes can be decoded, so it is doubted where the letters are no words.
LATIN = frozenset({'cp1252', 'windows-1252', 'iso8859-15', 'mac-roman'})
ISO_2022_JP = re.compile(rb'\x1b(?:\$[@B]|\(J)')
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
  if codec := _wide(body[:16]):
    return body.decode(codec, 'replace')
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
    # At most a tenth of what is not ASCII is broken, and of no language most letters are accented.
    if text.count('\ufffd') * 10 <= foreign and not (
      codec in LATIN and foreign > 40 and _is_accented(text)):
      return text
  return text


def _wide(beginning: bytes) -> str:
  """UTF-16 without a mark: of the signs that markup begins with, every other byte is NUL. '' for
  what is none."""
  odd, even = beginning[1::2], beginning[::2]
  if len(beginning) < 16 or any(odd) == any(even):
    return ''
  return 'utf-16-be' if any(odd) and 0 not in odd else 'utf-16-le' if 0 not in even else ''


def _is_accented(text: str) -> bool:
  """Whether, outside of markup, there are more signs beyond ASCII than letters of it."""
  words = re.sub(r'<(?:script|style)\b.*?</|<[^<>]*>', ' ', text[:200_000], flags=re.S | re.I)
  return len(re.findall('[^\x00-\x7f]', words)) > max(40, len(re.findall('[A-Za-z]', words)))


def _codecs(body: bytes, content_type: str) -> Iterator[str]:
  """Python codec names, in order of trust; the last one decodes anything."""
  seen = {''}
  for label in _labels(body, content_type):
    codec = (label and map_encoding_to_html5(label, fallback_utf8=False)) or _code_page(label)
    codec = WIDER.get(codec, codec)
    if codec not in seen:
      seen.add(codec)
      yield codec
  yield 'cp1252'


def _code_page(label: str) -> str:
  """Python's name of an IBM or Windows code page, many of which the standard's labels lack."""
  found = re.fullmatch(r'(?:cp|ibm|windows)[-_]?(\d{3,4})', label, re.I)
  try:
    return codecs.lookup(f'cp{found[1]}').name if found else ''
  except LookupError:
    return ''


def _labels(body: bytes, content_type: str) -> Iterator[str]:
  """Names of encodings, what is declared before what is told from the bytes, which costs more."""
  if ISO_2022_JP.search(body):
    yield 'iso-2022-jp'
  yield from CHARSET.findall(content_type)[:1]
  yield from (label.decode('ascii', 'replace')
              for label in META_CHARSET.findall(body, 0, 4096)[:1])
  yield 'utf-8'
  yield _of_east_asia(body) or ('windows-874' if _is_thai(body) else '')
  yield detect_encoding(body) or ''


def _of_east_asia(body: bytes) -> str:
  """'euc-kr' of bytes that read so as Hangul nearly throughout (Chinese and Japanese ones are half
  ideographs then), 'shift_jis' of those with kana in plenty, else ''. (The statistics of others
  take them for UTF-8, or for each other.)"""
  for label, codec, first, last, share in (('euc-kr', 'euc_kr', '가', '힣', .8),
                                           ('shift_jis', 'cp932', 'ぁ', 'ヾ', .3)):
    foreign = [c for c in body[:100_000].decode(codec, 'replace') if c >= '\x80']
    if len(foreign) > 10 and sum(first <= c <= last for c in foreign) > share * len(foreign):
      return label
  return ''


def _is_thai(body: bytes) -> bool:
  """Whether bytes are Thai ones: hardly one beyond its signs (where Cyrillic, Greek, Hebrew have
  their commonest letters), many consonants before them, and no whole ideographs."""
  foreign = [byte for byte in body[:100_000] if byte >= 0x80]
  return (len(foreign) > 40 and sum(0xa1 <= byte <= 0xec for byte in foreign) > .97 * len(foreign)
          and sum(byte <= 0xc3 for byte in foreign) > .3 * len(foreign)
          and not any(_is_valid(body, codec) for codec in ('gb18030', 'big5', 'euc_jp', 'euc_kr')))


def _is_valid(body: bytes, codec: str) -> bool:
  try:
    body.decode(codec)
  except UnicodeDecodeError:
    return False
  return True


def within_budget(html: str, max_tags: int = MAX_TAGS) -> str:
  """The page up to MAX_CHARS characters and `max_tags` tags."""
  html = html[:MAX_CHARS]
  if len(html) > max_tags and html.count('<') > max_tags:
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

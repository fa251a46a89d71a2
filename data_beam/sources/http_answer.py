"""HTTP answers as crawls have stored them: whatever servers sent, and some only nearly HTTP."""

import re
from typing import NamedTuple

HEAD_END = re.compile(rb'\r?\n\r?\n')     # some servers end lines with a line feed alone
HEAD_BYTES = 64 << 10
# Of an answer; a page may begin under its headers without an empty line.
_ANSWER_HEAD_END = re.compile(rb'\r?\n(?:\r?\n|(?=<[!A-Za-z]))')
_INTERIM = re.compile(rb'HTTP/\S+[ \t]+1\d\d\b')
# Of the owner's wishes (web/rights.py); a server may send several of one name.
WISHES = ('x-robots-tag', 'tdm-reservation', 'content-usage', 'link')


def parse_headers(head: bytes) -> dict[str, str]:
  """The fields under the first line, names in lower case; of several of one name the first, but
  all of WISHES, with commas between."""
  try:
    text = head.decode()
  except UnicodeDecodeError:
    text = head.decode('latin-1')
  headers: dict[str, str] = {}
  for line in re.sub(r'\r?\n[ \t]+', ' ', text).split('\n')[1:]:
    name, colon, value = line.partition(':')
    if colon:
      name, value = name.strip().lower(), value.strip()
      before = headers.setdefault(name, value)
      if name in WISHES and before != value:
        headers[name] = f'{before}, {value}'
  return headers


class Answer(NamedTuple):
  """The HTTP answer that a response record holds."""

  status: int | None
  headers: dict[str, str]   # names in lower case
  body: bytes


def http_answer(block: bytes) -> Answer:
  """A block as an HTTP answer; its lines may end with a line feed alone, or there may be none."""
  for _ in range(5):      # 100 Continue, 103 Early Hints
    interim = _INTERIM.match(block) and HEAD_END.search(block, 0, HEAD_BYTES)
    if not interim or not block.startswith(b'HTTP/', interim.end()):
      break
    block = block[interim.end():]
  if not (end := _ANSWER_HEAD_END.search(block, 0, HEAD_BYTES)) or block[:1] == b'<':
    return Answer(None, {}, b'' if block.startswith(b'HTTP/') else block)
  status = re.match(rb'\S+[ \t]+(\d{3})\b', block)
  return Answer(int(status[1]) if status else None, parse_headers(block[:end.start()]),
                block[end.end():])


def mime(content_type: str) -> str:
  """The MIME type of a Content-Type header, which some servers give twice."""
  return re.split('[;,]', content_type, maxsplit=1)[0].strip(' \t"\'').lower()

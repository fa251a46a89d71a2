"""Running heads and feet and page numbers, told by what pages have in common and where it stands.

Looks do not tell: "1984" at the head of a page may be a heading, "4250" at its foot an amount, and
records differ in their digits alone. What goes must repeat from page to page at the same height,
letter for letter but for numbers that count pages; and of every such text one copy stays.

Single pages have no such evidence. There goes what nobody wrote into the text (`_is_stamp`), a head
or foot of three parts that counts pages or issues (`_in_parts`), and what looks like nothing but a
page's number (`_looks`).
"""

import itertools
import re
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from data_beam.pdf.lines import Line, row_text, rows_of

MARGIN = 0.12               # share of the page's height in which a few pages are enough
EDGE = 0.05                 # share of the page's height in which hardly any text stands
DEPTH = 0.25                # share of the page's height in which running lines are looked for
MAX_ROWS = 6                # at either end of a page
SAME_PLACE = 0.01           # of the page's height, between lines that stand at the same one
TITLE = 12                  # letters of a running title at least, with which numbers may leap
LEAP = 200                  # pages at most; sums that are carried forward leap further
NEAR = 6                    # pages within which a head of few pages stands on three of them

_NUMBER = re.compile(r'\d+|(?<![^\W_])(?:[ivxlc]{1,7}|[IVXLC]{1,7})(?![^\W_])')
_PAGE = r'page|frm|seite|página|pagina|pág|pag|side|sida|strona|стр|страница|第|p|s'
_OF = r'of|de|von|sur|di|aus|af|av|z|из'
_PAGE_CELL = re.compile(
  rf'\W*(?:(?:{_PAGE})(?![^\W\d_])\W*)?(?:[a-z]\W)?(?:\d+|[ivxlc]+)'
  rf'(?:\s*(?:\W|{_OF})\s*\d+)?(?:\s*(?:{_PAGE})\b)?\W*', re.I)
_CENTRED = re.compile(r'\d{1,3}|[ivx]{1,6}')
_DECORATED = re.compile(
  r'[-–—~|·•]\s?\d{1,4}\s?[-–—~|·•]|\[\d{1,4}\]|(?:page|seite|página|pagina|pág\.)\s*\d{1,4}'
  rf'(?:\s*(?:/|{_OF})\s*\d{{1,4}})?', re.I)
_PAGE_WORD = re.compile(rf'\b(?:{_PAGE})(?![^\W\d_])\W*\d', re.I)
_LABEL = re.compile(r'.*(?::|#|№|\bn[or°º]\.?|\bnumber|\bnumm?er)\s*', re.I)
_COUNTED = re.compile(rf'[^\W\d_]+[.:#\s]*|{_LABEL.pattern}', re.I)
# English, German, French, Italian, Spanish, Portuguese, Dutch.
_MONTHS = (
  r'(?:jan(?:uary?|uar|vier|uari)?|genn?(?:aio)?|enero|janeiro|feb(?:ruary?|ruar|braio|rero|ruari)?'
  r'|f[ée]v(?:rier|ereiro)?|mar(?:ch|s|zo|ço)?|märz|maart|apr(?:il|ile)?|avril|abril|ma[iy]|maggio|mayo'
  r'|maio|mei|june?|juni|juin|giugno|junio|junho|july?|juli|juillet|luglio|julio|julho|aug(?:ust)?'
  r'|augustus|août|agosto|sept?(?:ember|embre|iembre)?|set(?:tembre|embro)|o[ck]t(?:ober|obre|ubre)?'
  r'|ottobre|outubro|nov(?:ember|embre|iembre|embro)?|de[cz](?:ember|embre|embro)?|dic(?:embre|iembre)?'
  r'|déc(?:embre)?)\.?')
_DAY_OF, _MONTH = (re.compile(rf'(?i){pattern}') for pattern in (
  rf'\b{_MONTHS}\s*$', rf'[.º]?\s*(?:de\s+)?{_MONTHS}(?:\s|$)'))
_OF_ALL = re.compile(rf'^\s*(?:/|{_OF})\s*\d+')
_WORD = re.compile(r'[^\W\d_]{2}')
_COUNT = re.compile(
  rf'\W*(?:\b(?:{_PAGE})(?![^\W\d_])\W*)?\b(\d+)(?:\s*(?:/|{_OF})\s*\d+)?(?!\w)\W*', re.I)
# What libraries and publishers print on each copy that leaves them.
_STAMP = re.compile(
  r'(?:this content (?:was )?)?downloaded (?:from|by|at|on|via)\b.*[\d./]'
  r'|download(?:ed)? (?:date|on):? .*\d'
  r'|(?:heruntergeladen|téléchargé|descargado|scaricato|baixado) (?:von|am|depuis|de|sur|le|da|dal'
  r'|el|em)\b.*[\d./]', re.I)
_ISSUE = re.compile(
  r'(?i:\b(?:rev(?:ision)?|version|vol(?:ume)?|issue)\b[.:]? ?\d|\bwww\.\w|https?://|©)')
_ROMAN = {'i': 1, 'v': 5, 'x': 10, 'l': 50, 'c': 100}


class Page(NamedTuple):
  """Lines of a page, and what its running head and foot have that no other page has."""
  lines: list[Line]
  head: str
  foot: str


class _Row(NamedTuple):
  page: int
  lines: list[Line]
  distance: float           # of its outer edge from that of the page, a share of the height
  inner: float              # likewise, of its inner edge
  scale: float              # its largest font over the usual one
  form: str                 # its text without spaces, numbers alike
  numbers: list[int]


def strip(pages: Sequence[Sequence[Line]], heights: Sequence[float]) -> list[Page]:
  """The lines of each page without running heads and feet, and without page numbers.

  Running is what stands at the same height on several pages with the same letters and numbers,
  numbers apart that count the pages, if all that is further out on the page runs too. Near the edge
  three pages close to each other are enough (of two to four pages, all but one of four), elsewhere
  and for larger fonts it takes a quarter of the pages and five. Lines of numbers alone are no
  running lines, unless they count pages. One copy of every text stays: if no line has it that does
  not run, the first page's that does. A document of nothing else stays whole.

  Args:
    pages: lines of each page.
    heights: of the pages, in the unit of the lines.
  """
  usual = [_usual_size(page) for page in pages]
  gone: set[int] = set()                    # lines, by id
  stamps: set[int] = set()                  # likewise: no copy of these stays
  words: list[list[tuple[bool, str]]] = [[] for _ in pages]
  for bottom in (False, True):
    sides = [_side(i, page, height, usual[i], bottom) for i, (page, height) in enumerate(
      zip(pages, heights, strict=True))]
    running = _running(sides)
    for i, side in enumerate(sides):
      for row, inner in itertools.zip_longest(side, side[1:]):
        counts = running.get(id(row))
        if _is_stamp(row, inner) or (counts is None and _in_parts(row, inner, pages[i], bottom)):
          stamps.update(map(id, row.lines))
          continue
        if inner and id(inner) not in running and _heads(row, inner):
          break
        if counts is None:
          if not _looks(row, pages[i], bottom):
            break
          counts = set(row.numbers)
        gone.update(map(id, row.lines))
        words[i] += [(bottom, _without(line.text, counts)) for line in row.lines]
  gone |= stamps
  there = {line.text for page in pages for line in page if id(line) not in gone} | {''}
  out = []
  for page, texts in zip(pages, words, strict=True):
    ends: tuple[list[str], list[str]] = [], []
    for bottom, text in texts:
      if text not in there:
        ends[bottom].append(text)
        there.add(text)
    kept = [line for line in page if id(line) not in gone] if texts or stamps else list(page)
    out.append(Page(kept, ' '.join(ends[0]), ' '.join(ends[1])))
  if any(map(any, out)) or gone == stamps:
    return out
  return [Page(list(page), '', '') for page in pages]


def _heads(row: _Row, inner: _Row) -> bool:
  """Whether a row is the last of a table's head, and the next further in the first below it."""
  pitch = abs(row.lines[0].middle - inner.lines[0].middle)
  return min(len(row.lines), len(inner.lines)) >= 3 and pitch < 2.5 * inner.lines[0].size


def _usual_size(page: Sequence[Line]) -> float:
  """Of the font that most of a page's text is in."""
  characters: dict[float, int] = {}
  for line in page:
    characters[line.size] = characters.get(line.size, 0) + len(line.text)
  return max(characters, key=characters.__getitem__, default=1.0)


def _side(index: int, page: Sequence[Line], height: float, usual: float,
          bottom: bool) -> list[_Row]:
  """Rows near one end of a page, the outermost first."""
  edge = height * (1 - DEPTH if bottom else DEPTH)
  rows = rows_of([line for line in page if (line.y0 > edge if bottom else line.y1 < edge)])
  out = []
  for row in (rows[::-1] if bottom else rows)[:MAX_ROWS]:
    numbers: list[int] = []

    def counted(match: re.Match, numbers=numbers) -> str:
      number = _value(match[0])
      if number is None:
        return match[0]
      numbers.append(number)
      return '0'

    form = ''.join(_NUMBER.sub(counted, row_text(row)).split())
    y0, y1 = row[0].y0 / height, row[0].y1 / height
    outer, inner = (1 - y1, 1 - y0) if bottom else (y0, y1)
    scale = max(line.size for line in row) / usual
    out.append(_Row(index, row, outer, inner, scale, form, numbers))
  return out


def _value(text: str) -> int | None:
  """Of an Arabic or a Roman number; None for other words of those letters."""
  if text.isdecimal():
    return int(text[-9:])
  digits = [_ROMAN[letter] for letter in text.lower()]
  value = sum(-d if d < following else d for d, following in itertools.zip_longest(
    digits, digits[1:], fillvalue=0))
  return value if _roman(value) == text.lower() else None


def _roman(value: int) -> str:
  out = ''
  for number, letters in ((100, 'c'), (90, 'xc'), (50, 'l'), (40, 'xl'), (10, 'x'), (9, 'ix'),
                          (5, 'v'), (4, 'iv'), (1, 'i')):
    out += letters * (value // number)
    value %= number
  return out


def _running(sides: list[list[_Row]]) -> dict[int, set[int]]:
  """Rows, by id, that run; and those of their numbers that count the pages."""
  n = len(sides)
  if n < 2:
    return {}
  forms: dict[str, list[_Row]] = {}
  for row in itertools.chain.from_iterable(sides):
    forms.setdefault(row.form, []).append(row)
  out: dict[int, set[int]] = {}
  for form, rows in forms.items():
    if len(rows) < 2:
      continue
    rows.sort(key=lambda row: row.distance)
    place: list[_Row] = []
    for row in [*rows, None]:
      if place and (row is None or row.distance > place[0].distance + SAME_PLACE):
        if len(place) > 1:
          _judge(form, sorted(place, key=lambda row: row.page), n, out)
        place = []
      place.append(row)
  return out


def _judge(form: str, rows: list[_Row], n: int, out: dict[int, set[int]]) -> None:
  """Adds those of the rows that run; all have one form and stand at the same height."""
  least = 3 if n >= 5 else n - n // 4
  letters = sum(c.isalpha() for c in form)
  counting = [_counting(rows, slot, n, letters >= TITLE) for slot in range(len(rows[0].numbers))]
  alike: dict[tuple, list[_Row]] = {}
  for i, row in enumerate(rows):
    values = [None if steps[i] else number
              for number, steps in zip(row.numbers, counting, strict=True)]
    alike.setdefault(tuple(values), []).append(row)
  for values, found in alike.items():
    counts = None in values
    if counts:
      bare = all(_PAGE_CELL.fullmatch(line.text.strip()) for line in found[0].lines)
      slots = [slot for slot, value in enumerate(values) if value is None]
      if not _in_step(found, slots) or not (bare or _with_page_number(found[0], slots[0])):
        continue
    else:
      digits = sum(len(str(value)) for value in values)
      if len(form) < 3 or (digits > letters and not (letters and len(found) > n / 2)):
        continue
    scale = statistics.median([row.scale for row in found])
    inner = max(row.inner for row in found)
    many = len(found) >= max(5, n / 4) or (n < 5 and len(found) >= least) or (
      n == 4 and [row.page % 2 for row in found] in ([0, 0], [1, 1]))
    if counts and bare:
      years = scale > 1.1 and all(1500 <= number < 2100 for row in found for number in row.numbers)
      fit = found if scale < 1.5 and inner < 0.2 and not years else []
    elif many:
      fit = found
    elif n >= 5 and inner < MARGIN and (scale < 1.15 or len(found) >= n / 3):
      fit = list(itertools.compress(found, _near([row.page for row in found], n)))
    else:
      fit = []
    out |= {id(row): {number for number, value in zip(row.numbers, values, strict=True)
                      if value is None} for row in fit}


def _counting(rows: list[_Row], slot: int, n: int, title: bool) -> list[bool]:
  """Whether the number of each row goes up with the pages around it, by one or two a page; beside a
  title it may go up by more, as in an extract of some pages."""
  if title and len(rows) >= 3 and all(
      0 < b.numbers[slot] - a.numbers[slot] <= LEAP for a, b in itertools.pairwise(rows)):
    return [True] * len(rows)
  out = [False] * len(rows)
  for step in (1, 2):
    starts: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
      starts.setdefault(row.numbers[slot] - step * row.page, []).append(i)
    for places in starts.values():
      for i, near in zip(places, _near([rows[i].page for i in places], n), strict=True):
        out[i] |= near
  return out


def _in_step(rows: list[_Row], slots: list[int]) -> bool:
  """Whether the numbers of each row that go up with the pages do so by the same steps: of records,
  several may go up, each by its own."""
  first = rows[0].numbers
  return all(len({row.numbers[slot] - first[slot] for slot in slots}) == 1 for row in rows)


def _near(pages: list[int], n: int) -> list[bool]:
  """Whether each of the pages, in order, is one of three that are close to each other; in a
  document of two to four, one of two."""
  apart, most = (2, NEAR) if n >= 5 else (1, n)
  return [any(0 <= j < len(pages) - apart and pages[j + apart] - pages[j] <= most
              for j in range(i - apart, i + 1)) for i in range(len(pages))]


def _with_page_number(row: _Row, slot: int) -> bool:
  """Whether the number of a row that goes up with the pages is theirs: in a cell of its own, after
  a word for page, or at either end of a title. "Sample 3", "Invoice no. 1003", "Fee: 15 EUR",
  "Station 4: depth" and a numbered heading are none, of which each page has one.

  Args:
    row: one of several alike.
    slot: which of its numbers it is.
  """
  label = ''                                # the cell before
  for line in row.lines:
    cell = line.text.strip()
    found = [match for match in _NUMBER.finditer(cell) if _value(match[0]) is not None]
    if slot < len(found):
      break
    slot -= len(found)
    label = cell
  else:
    return False
  before, after = cell[:found[slot].start()], cell[found[slot].end():]
  if _PAGE_WORD.search(f'{before[-12:]}0'):
    return True
  title = sum(map(str.isalpha, row.form)) >= TITLE
  if row.scale > 1.15 and not title:
    return False
  if _PAGE_CELL.fullmatch(cell):
    return not _LABEL.fullmatch(label)
  if _COUNTED.fullmatch(before) or _MONTH.match(after) or _DAY_OF.search(before) or (
      _WORD.search(before) and _WORD.search(re.sub(_OF_ALL, '', after))):
    return False
  # Amid numbers alone it is one of them: a date's month, a reading.
  return title or (any(map(str.isalpha, row.form)) and abs(row.numbers[slot] - row.page) <= 30)


def _without(text: str, counts: set[int]) -> str:
  """The words of a cell of a running line, without a number that counts the pages."""
  text = text.strip()
  if counts and _PAGE_CELL.fullmatch(text):
    return ''
  return _COUNT.sub(lambda m: ' ' if int(m[1]) in counts else m[0], text).strip()


def _looks(row: _Row, page: Sequence[Line], bottom: bool) -> bool:
  """Whether a line of a page that is like no other looks like nothing but its number: one to three
  digits in the middle of its foot, or marked as one; small, and apart from the text."""
  if len(row.lines) > 1 or row.inner > MARGIN or row.scale > 1.1:
    return False
  line = row.lines[0]
  text = line.text.strip()
  if not _DECORATED.fullmatch(text):
    if not (bottom and _CENTRED.fullmatch(text)):
      return False
    x0, x1 = min([other.x0 for other in page]), max([other.x1 for other in page])
    if abs(line.x0 + line.x1 - x0 - x1) >= 0.2 * (x1 - x0):
      return False
  others = [other for other in page if other is not line]
  gap = min((abs(other.middle - line.middle) for other in others), default=0.0)
  return gap > 1.8 * line.size and sum(len(other.text) for other in others) > 200


def _is_stamp(row: _Row, inner: _Row | None) -> bool:
  """Whether a row says who took this copy from where, and when: at the very edge of a page, or near
  it and apart from the text."""
  if row.inner > MARGIN or row.scale > 1.3 or not _STAMP.match(row_text(row.lines)):
    return False
  line = row.lines[0]
  return row.inner < EDGE or not inner or (
    abs(line.middle - inner.lines[0].middle) > 1.8 * line.size)


def _in_parts(row: _Row, inner: _Row | None, page: Sequence[Line], bottom: bool) -> bool:
  """Whether a row at the edge of a page is its head or foot by its form: three parts far apart over
  text that has no such columns, one in the middle, and among them the page's number, outermost, or,
  at the foot, an issue, a revision or an address.

  A line to sign, a table's last row, and amounts are none.
  """
  if len(row.lines) != 3 or row.inner > MARGIN or row.scale > 1.3 or (
      inner and len(inner.lines) > 2):
    return False
  first, middle, last = row.lines
  x0, x1 = min([line.x0 for line in page]), max([line.x1 for line in page])
  texts = [line.text.strip() for line in row.lines]
  if min(middle.x0 - first.x1, last.x0 - middle.x1) < 3 * first.size or (
      first.x0 > x0 + 0.1 * (x1 - x0) or last.x1 < x1 - 0.1 * (x1 - x0)) or (
      inner and abs(first.middle - inner.lines[0].middle) < 1.4 * first.size):
    return False
  if bottom and any(map(_ISSUE.search, texts)):
    return True
  number = [bool(_CENTRED.fullmatch(text)) for text in texts]
  return sum(number) == 1 and not number[1] and all(
    bare or sum(map(str.isalpha, text)) > 3 for bare, text in zip(number, texts, strict=True))

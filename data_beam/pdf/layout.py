"""Lines with boxes → text in reading order: columns, tables, paragraphs.

Knows nothing of PDF files or OCR: both hand it `Line`s. Coordinates are points (or pixels) with
the origin at the top left of the page as it is displayed, x to the right and y downwards.

The page is cut recursively at its best gutter (an x that few lines cross while others stand on
both sides of it); the lines that do cross it (titles, wide figures' captions) end a band, and
within a band the left side is read before the right. Where the two sides are short and share
their baselines, the band is a table and becomes Markdown.
"""

import functools
import itertools
import math
import re
import statistics
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data_beam.pdf import cells as pdf_cells
from data_beam.pdf import headings as pdf_headings
from data_beam.pdf import lists as pdf_lists
from data_beam.pdf.lines import BOLD, PROSE_CHARS, Box, Line, row_text, rows_of
from data_beam.pdf.tables import Grid

BREAK = '\ufffe'            # a hyphen at a line end, not yet known to be soft (pdfium's own mark)
RTL = re.compile('[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]')

_BULLET = re.compile(r'^([•·°◦●○▪■□–‣▶►❖➢*-]|\(?\d{1,3}[.)]|\(?[a-z][.)]|\[\d{1,3}\])\s+\S')
_CAPTION = re.compile(
  r'^(?:fig(?:ure|ura|\.)?|abb(?:ildung|\.)?|bild|image[mn]?|imagen|ilustra\w+|schéma|illustration)'
  r'\s*\d', re.I)
_CONJUNCTIONS = frozenset({'and', 'or', 'und', 'oder', 'et', 'ou', 'e', 'o', 'y', 'ed'})
_LINE_END_HYPHEN = re.compile(rf'{BREAK}(?=(\S*))')
# Searched before what costs more is: these begin with a letter or a small set, which is fast.
_FIVE_DOTS = re.compile(r'[.·…_](?:\s?[.·…_]){4}')
_THREE_DOTS = re.compile(r'[.·…](?:\s?[.·…]){2}')
_CAPITALS_APART = re.compile(r' [^\W\d_a-zß-ÿ] [^\W\d_a-zß-ÿ] ')
_CAPITALIZED = re.compile(r'["“„«‘—(]*[^\W\d_a-zß-ÿ][^\W\d_]*(?!\w)')
_WORD_HYPHEN = re.compile(r'[^\W\d_]-$')
_SIGN = re.compile(r'^[•·°◦●○▪■‣▶►❖➢](?=\s)', re.M)
_LEADERS = re.compile(r'(?:\s?[.·…_]){5,}')
_ROMAN = frozenset('ivxlc')
_ENTRY = re.compile(r'(?:\s?[.·…]){3,}\s*(?:\d{1,4}|[ivxlc]{1,7})$', re.I)
_ENTRY_END = ' .....'       # so that entries are not taken for one wrapped paragraph
_SPACED_CAPITALS = re.compile(r'(?<!\S)(?:[^\W\d_a-zß-ÿ] ){4,}[^\W\d_a-zß-ÿ](?!\S)')
_ACCENTS = {'¨': '\u0308', '´': '\u0301', 'ˆ': '\u0302', '˜': '\u0303', '¸': '\u0327',
            'ˇ': '\u030c', '˚': '\u030a'}
_SPLIT_ACCENT = re.compile(f'([{"".join(_ACCENTS)}])([A-Za-zıȷ])')
# Written without spaces between words: Han, kana and their punctuation, Thai, Lao, Khmer, Burmese.
_UNSPACED = re.compile(
  '[\u2e80-\u30ff\u31f0-\u9fff\uf900-\ufaff\uff01-\uffdc\U00020000-\U0003ffff'
  '\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]')
# Of fonts without a double one; ’’ alone may be inches.
_TWO_QUOTES = re.compile('‘‘((?:[^‘’]|[‘’](?![‘’])){1,2000}?)’’')
_PRIVATE = re.compile('[\ue000-\uf8ff\U000f0000-\U0010fffd]')
# pdfium, which puts Arabic into logical order, loses the space where the script changes, and leaves
# vowel marks that were drawn apart before their letter.
_ARABIC = '\u0620-\u064a\u066e-\u06d3'
_CHANGE_OF_SCRIPT = re.compile(
  f'(?<=[A-Za-z])(?=[{_ARABIC}])|(?<=[{_ARABIC}])(?=[A-Za-z])')
_LOOSE_MARK = re.compile(f' ([\u064b-\u0652])([{_ARABIC}])')
_LIGATURES = {0xFB00 + i: s for i, s in enumerate(('ff', 'fi', 'fl', 'ffi', 'ffl', 'st', 'st'))}
_CHARACTERS = {**_LIGATURES, 0xAD: None, 0xFFFD: None, 0xFEFF: None, 0x200B: None,
               **dict.fromkeys((0xA0, 0x09, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000), ' '),
               **{c: None for c in range(32) if c not in (9, 10)}}
_SPELLED_ELSE = re.compile(f'[{re.escape("".join(map(chr, _CHARACTERS)))}]')


# Lines left and right of a gutter, or those of a stretch without one.
Band = tuple[list[Line], list[Line], list[Line]]


class Paragraph(NamedTuple):
  """Text and the size of its font."""
  text: str
  size: float
  level: int = 0            # see Line


def page_text(lines: Sequence[Line], grids: Sequence[Grid] = (),
              markers: Sequence[tuple[Box, str]] = (),
              headings: Sequence[float] | None = None) -> str:
  """Text of one page in reading order, paragraphs separated by blank lines, the cells of `grids`
  as tables, and the texts of `markers` where their boxes stand; headings marked as in Markdown
  where `headings`, the sizes of their fonts, are given.

  A hyphen at a line end whose word goes on stays as `BREAK` for `join_hyphens`, which needs the
  words of the whole document.
  """
  lines = [line for line in lines if line.text.strip()]
  if not lines:
    return ''
  whole = '\n'.join([line.text for line in lines])
  rtl = bool(RTL.search(whole)) and (
    sum(bool(RTL.search(line.text)) for line in lines) * 2 > len(lines))
  for grid in grids:
    lines = _filled(lines, grid, rtl)
  if _dotted(whole):
    lines = _contents(lines)
  lines = pdf_lists.joined(lines, rtl)
  usual = statistics.median(line.size for line in lines)
  lines = [*lines, *(Line(*box, text, usual) for box, text in markers)]
  paragraphs: list[Paragraph] = []
  for block in _read(lines, rtl, depth=0):
    _join_block(paragraphs, block)
  bold = sum(len(line.text) for line in lines if line.level == BOLD) < 0.4 * len(whole)
  paragraphs = [p for p in paragraphs if p.text.strip()]
  texts = [_spell_list(paragraph.text) for paragraph in paragraphs]
  if headings is not None:
    texts = [text if _apart(text) else pdf_headings.mark(*paragraph, after, headings, bold) + text
             for text, paragraph, after in zip(texts, paragraphs, [*texts[1:], ''], strict=True)]
  text = '\n\n'.join(texts)
  return text.replace(_ENTRY_END + '\n', '\n').removesuffix(_ENTRY_END)


def caption(box: Box, lines: Sequence[Line]) -> str:
  """The text of a figure's caption: a paragraph close under it, or above, that begins with a word
  for figure and a number; '' without one."""
  for line in sorted(lines, key=lambda line: abs(line.middle - box[3])):
    gap = max(line.y0 - box[3], box[1] - line.y1)
    if -line.size < gap < 4 * line.size and line.x0 < box[2] and line.x1 > box[0] and (
        _CAPTION.match(line.text)):
      text, last = line.text, line
      for row in rows_of([other for other in lines if other.middle > line.middle]):
        if row[0].middle - last.middle > 1.6 * line.size or abs(row[0].x0 - line.x0) > 60:
          break
        text, last = _glue(text, row_text(row)), row[0]
      return clean(text.replace(BREAK, ''))[:500]
  return ''


def join_pages(pages: Sequence[str]) -> tuple[str, list[int]]:
  """Joins page texts; returns the text and, for each page, the offset where it begins.

  A word cut by a hyphen at the page's end is made whole, a sentence that goes on in lower case
  is not broken; otherwise pages are paragraphs apart.
  """
  text, offsets = '', []
  for page in pages:
    if text and page:
      if page[0].islower() and _WORD_HYPHEN.search(text, len(text) - 2):
        text = text[:-1]
      elif _continues(text.rpartition('\n')[2], page):
        text += ' '
      else:
        text += '\n\n'
    offsets.append(len(text))
    text += page
  return text, offsets


def clean(text: str) -> str:
  """Ligatures, split accents, quotes of two signs, odd spaces, control and private-use characters,
  spaced capitals."""
  text = _SPELLED_ELSE.sub(lambda m: _CHARACTERS[ord(m[0])] or '', text)
  if not text.isascii():
    text = _PRIVATE.sub('', text)
    text = _SPLIT_ACCENT.sub(_accent, text)
    if '‘‘' in text:
      text = _TWO_QUOTES.sub(r'“\1”', text)
    if RTL.search(text):
      text = _LOOSE_MARK.sub(r'\2\1', _CHANGE_OF_SCRIPT.sub(' ', text))
    text = unicodedata.normalize('NFC', text)
  if _FIVE_DOTS.search(text):
    text = _LEADERS.sub(' … ', text)
  if _CAPITALS_APART.search(text):
    text = _SPACED_CAPITALS.sub(_word_of_spaced, text)
  return text


def _word_of_spaced(match: re.Match) -> str:
  """Capitals joined to a word, unless they are choices, marks or vitamins: in the order of the
  alphabet, its first few, one letter over and over, or named amid a sentence."""
  letters, text = match[0].replace(' ', ''), match.string
  rising = sum(a < b for a, b in itertools.pairwise(letters))
  line = text[text.rfind('\n', 0, match.start()) + 1:match.start()]
  apart = (rising >= 0.75 * (len(letters) - 1) or set(letters) <= set('ABCDEFX')
           or len(set(letters)) < 3 or len(re.findall(r'[^\W\dA-Z_]{2,}', line)) > 2)
  return match[0] if apart else letters


def join_hyphens(pages: Sequence[str]) -> list[str]:
  """Decides every hyphen at a line end (`BREAK`) by the document's own words.

  The hyphen goes if the whole word is known, or if the rest is lower case and the hyphenated form
  is not known ("well-known" stays if it stands so elsewhere); it stays in URLs and before
  conjunctions ("Haupt- und").
  """
  if not any(BREAK in page for page in pages):
    return list(pages)
  known: set[str] = set()
  for page in pages:
    known.update(page.replace(BREAK, ' ').lower().split())
  known = set(re.findall(r'\w+(?:-\w+)*', ' '.join(known)))

  def decide(match: re.Match) -> str:
    before = re.search(r'\S*$', match.string[max(0, match.start() - 200):match.start()])[0]
    if '/' in before or '@' in before:
      return '-'
    head, tail = re.search(r'\w*$', before)[0], re.match(r'\w*', match[1])[0]
    if before and tail in _CONJUNCTIONS:
      return '- '
    if not head or not tail or tail[0].isdigit():
      return '-'
    whole, hyphenated = f'{head}{tail}'.lower(), f'{head}-{tail}'.lower()
    soft = whole in known or (tail[0].islower() and hyphenated not in known)
    return '' if soft else '-'

  return [_LINE_END_HYPHEN.sub(decide, page) for page in pages]


# Reading order.

def _read(lines: list[Line], rtl: bool, depth: int) -> list[list[Paragraph]]:
  """Blocks of paragraphs in reading order."""
  rows, bands = rows_of(lines, rtl), []
  if len(lines) >= 6 and depth < 8:
    text = sum([len(line.text) > PROSE_CHARS for line in lines]) > 3
    tried = (b for x in _gutters(lines) for b in _ways(rows, x, text)
             if any(left for left, _, _ in b))
    bands = next(tried, [])
  if not bands:
    return [_paragraphs(rows)]
  parts = [_parts(band, rtl) for band in bands]
  if len(bands) > 2 and any(not groups for groups in parts):
    bands, parts = _untorn(bands, parts, rtl)
  if text and not all(parts):               # text beside a table, which would be cut first
    other = next((b for b in tried if any(left and pdf_lists.beside_prose(left, right, apart=True)
                                          for left, right, _ in b)), None)
    if other:
      bands, parts = other, [_parts(band, rtl) for band in other]
  blocks = []
  for i, ((left, right, others), groups) in enumerate(zip(bands, parts, strict=True)):
    if others and i + 1 < len(bands) and not parts[i + 1]:
      below = bands[i + 1]
      rest, heads = pdf_cells.heads(rows_of(others, rtl), below[0] + below[1])
      groups, bands[i + 1] = [rest], (below[0] + heads, *below[1:])
    if groups:
      blocks += [block for group in groups if group for block in _read(group, rtl, depth + 1)]
    else:
      blocks.append(_table(left + right, rtl))
  return blocks


def _parts(band: Band, rtl: bool) -> list[list[Line]]:
  """What of a band is to be read one after the other; nothing where it is a table."""
  left, right, others = band
  if others:
    return [others]
  sides = (right, left) if rtl else (left, right)
  if not _tabular(left, right):
    return list(sides)
  if sum(line.mono for line in left + right) * 2 > len(left + right):
    return []
  if labels := pdf_lists.labelled(*sides):
    return list(pdf_lists.spread(labels))
  return list(sides) if pdf_lists.alike(*sides) or pdf_lists.beside_prose(*sides) else []


def _untorn(bands: list[Band], parts: list[list[list[Line]]],
            rtl: bool) -> tuple[list[Band], list[list[list[Line]]]]:
  """Bands and their parts, a table of three columns or more whole that one row of several cells has
  torn: one of them lies across the gutter, and the row is no further from its neighbours than rows
  are."""
  bands, parts = list(bands), list(parts)
  for i in range(len(bands) - 2, 0, -1):
    if parts[i - 1] or not bands[i][2] or parts[i + 1]:
      continue
    rows = rows_of(bands[i][2], rtl)
    (left, right, _), (more_left, more_right, _) = bands[i - 1], bands[i + 1]
    row, far = rows[0], 1.8 * rows[0][0].size
    if len(rows) == 1 and len(row) > 1 and all(
        statistics.median(map(len, rows_of(side))) > 2
        for side in (left + right, more_left + more_right)) and (
        row[0].middle - max(line.middle for line in left + right) < far) and (
        min(line.middle for line in more_left + more_right) - row[0].middle < far):
      bands[i - 1:i + 2] = [(left + row + more_left, right + more_right, [])]
      parts[i - 1:i + 2] = [[]]
  return bands, parts


def _join_block(paragraphs: list[Paragraph], block: list[Paragraph]) -> None:
  """Appends a block; its first paragraph may go on with one that the column's end has cut.

  Footnotes and captions may stand between the two: the last few paragraphs are asked, and the
  size of the font tells them apart.
  """
  if block:
    for i in range(len(paragraphs) - 1, max(-1, len(paragraphs) - 5), -1):
      size = paragraphs[i].size
      if (abs(size - block[0].size) < 0.05 * size and paragraphs[i].level == block[0].level
          and _continues(paragraphs[i].text, block[0].text)):
        paragraphs[i] = paragraphs[i]._replace(text=_glue(paragraphs[i].text, block[0].text))
        block = block[1:]
        break
  paragraphs += block


def _gutters(lines: list[Line]) -> list[float]:
  """The x with many lines wholly on either side (three at least) and few across: the best six."""
  step = 2.0
  starts, ends = sorted([line.x0 for line in lines]), sorted([line.x1 for line in lines])
  origin = starts[0]
  if int((ends[2] - origin) / step) + 1 >= int((starts[-3] - origin) / step):
    return []
  x0_N, x1_N = np.array(starts), np.array(ends)
  bins = int((x1_N.max() - origin) / step) + 2
  if not 2 < bins < 20_000:
    return []
  ended_B = np.bincount(((x1_N - origin) / step).astype(int) + 1, minlength=bins).cumsum()[:bins]
  begun_B = np.bincount(((x0_N - origin) / step).astype(int), minlength=bins).cumsum()[:bins]
  few_B = np.minimum(ended_B, len(lines) - begun_B)     # wholly to the left, to the right
  score_B = np.where(few_B < 3, -len(lines), few_B - (begun_B - ended_B) / 2)
  edges = np.flatnonzero(np.diff(score_B, prepend=math.nan, append=math.nan) != 0).tolist()
  found = [(-score_B[a], float(origin + (a + b) / 2 * step))    # as wide as scores are alike
           for a, b in itertools.pairwise(edges) if few_B[a] >= 3]
  return [x for _, x in sorted(found)[:6]]


def _ways(rows: list[list[Line]], x: float, text: bool) -> Iterator[list[Band]]:
  """The bands of a gutter: a table that lies across it ends a band, if there are columns of `text`
  beside it."""
  across = _tables_across(rows, x) if text else set()
  if across:
    bands = _bands(rows, x, across)
    if any(left and pdf_cells.prose(left) and pdf_cells.prose(right) for left, right, _ in bands):
      yield bands
  yield _bands(rows, x, set())


def _tables_across(rows: list[list[Line]], x: float) -> set[int]:
  """Places of rows, three at least in a run, that are a table on both sides of a gutter: of three
  cells or more, with no wider gap at the gutter than elsewhere; or of a label and a number."""
  out: set[int] = set()
  if sum([len(row) >= 2 for row in rows]) < 3:
    return out

  def kind(i: int) -> str:
    row = rows[i]
    if not row[0].x1 < x < row[-1].x0:
      return ''
    return 'cells' if len(row) > 2 else 'amount' if pdf_cells.is_number(row[1].text) else ''

  for what, places in itertools.groupby(range(len(rows)), kind):
    run = list(places)
    if not what or len(run) < 3 or pdf_cells.prose([line for i in run for line in rows[i]]):
      continue
    columns = pdf_cells.columns([rows[i] for i in run])
    gaps = [(b[0] - a[1], a[1] < x < b[0]) for a, b in itertools.pairwise(columns)]
    inner = [gap for gap, middle in gaps if not middle]
    if what == 'amount' or (inner and max(
        (gap for gap, middle in gaps if middle), default=0) < 1.3 * max(inner)):
      out.update(run)
  return out


def _bands(rows: list[list[Line]], x: float, across: set[int]) -> list[Band]:
  """Top to bottom: (left, right, []) where two sides stand beside each other, or ([], [], rest).

  Args:
    rows: of a stretch of page.
    x: the gutter.
    across: places of rows that lie across it, whether or not a line does.
  """
  out, left, right, others = [], [], [], []

  def close():
    nonlocal left, right, others
    if left and right and _beside(left, right):
      if others:
        out.append(([], [], others))
      out.append((left, right, []))
      others = []
    else:
      others += left + right
    left, right = [], []

  for i, row in enumerate(rows):
    lies_across = i in across
    for line in row:
      lies_across |= line.x0 < x < line.x1
    if lies_across:
      close()
      others += row
    else:
      left += [line for line in row if line.x1 <= x]
      right += [line for line in row if line.x0 >= x]
  close()
  if others:
    out.append(([], [], others))
  return out


def _beside(left: list[Line], right: list[Line]) -> bool:
  """Two columns, or a table: two rows each at least, a gap between, side by side."""
  if len(left) < 2 or len(right) < 2:
    return False
  size = statistics.median(line.size for line in left + right)
  gap = min(line.x0 for line in right) - max(line.x1 for line in left)
  top = max(min(line.y0 for line in left), min(line.y0 for line in right))
  bottom = min(max(line.y1 for line in left), max(line.y1 for line in right))
  return gap > 0.35 * size and bottom - top > 1.5 * size


def _tabular(left: list[Line], right: list[Line]) -> bool:
  """Short cells that share baselines; prose on both sides is columns even on a common grid."""
  if pdf_cells.prose(left) and pdf_cells.prose(right):
    return False
  if pdf_lists.unspaced_prose(left) and pdf_lists.unspaced_prose(right):
    return False
  few, many = sorted((left, right), key=len)
  middles = sorted(line.middle for line in many)
  shared = sum(any(abs(line.middle - y) < 0.3 * line.size for y in middles) for line in few)
  return shared >= 0.6 * len(few)


# Rows, paragraphs, tables.

def _paragraphs(rows: list[list[Line]]) -> list[Paragraph]:
  """Wrapped lines joined; a break stays where the next line's first word would have fitted."""
  if not rows:
    return []
  prose = [row for row in rows if not _apart(row[0].text)] or rows
  right = _edge([row[-1].x1 for row in prose], 2 * rows[0][0].size)
  edge = min([row[0].x0 for row in prose])
  leading = [(b[0].middle - a[0].middle) / _size(b) for a, b in itertools.pairwise(rows)]
  usual = statistics.median_low([v for v in leading if v < 1.8] or [1.8])
  if len(leading) > 3 and 1.7 < (middle := statistics.median_low(leading)) < 2.8 and (
      sum(abs(v - middle) < 0.05 * middle for v in leading) > 0.6 * len(leading)):
    usual = middle                          # lines set far apart
  verse = _is_verse(rows, right)
  paragraphs: list[Paragraph] = []
  previous, previous_text, left = None, '', edge
  previous_size, previous_level, was_mono = 0.0, 0, False
  for row in rows:
    text, mono, size, level = row_text(row), _is_mono(row), _size(row), _level(row)
    if mono:
      width = (row[0].x1 - row[0].x0) / max(1, len(row[0].text))
      text = ' ' * min(40, round((row[0].x0 - edge) / max(width, 0.1))) + text
    separator = '\n\n'
    if previous is not None and not (_apart(text) or _apart(previous_text)):
      pitch = row[0].middle - previous[0].middle
      near = pitch / size < min(max(1.8, 1.1 * usual), 1.25 * usual)
      same = abs(size - previous_size) <= 0.08 * size and (
        level == previous_level or previous_text[-1] == BREAK)
      if mono and was_mono:
        separator = '\n' if pitch < 2.6 * size else '\n\n'
      elif near and same and mono == was_mono:
        if _BULLET.match(text) or _FIVE_DOTS.search(previous_text) or (
            text[-1:].isdigit() and previous_text[-1:].isdigit()
            and pdf_lists.ENTRY.fullmatch(text) and pdf_lists.ENTRY.fullmatch(previous_text)):
          separator = '\n'
        elif not (verse and text[:1].isupper()) and (
            _wrapped(previous, previous_text, row, text, right, left)):
          separator = ''
    if separator == '\n\n' or not paragraphs:
      paragraphs.append(Paragraph(text, size, level))
    else:
      last = paragraphs[-1]
      joined = f'{last.text}\n{text}' if separator else _glue(last.text, text)
      paragraphs[-1] = last._replace(text=joined)
    previous, previous_text = row, text
    previous_size, previous_level, was_mono = size, level, mono
    left = row[0].x0                        # so a hanging indent begins with the second line
  return paragraphs


def _is_verse(rows: list[list[Line]], right: float) -> bool:
  """Whether rows are lines of their own, verse or addresses: most begin with capitals, and few end
  near the right edge."""
  if len(rows) < 6 or (
      sum(row[-1].x1 > right - 4 * row[0].size for row in rows) > 0.25 * len(rows)):
    return False
  return sum(bool(_CAPITALIZED.match(row[0].text)) for row in rows) > 0.8 * len(rows)


def _edge(ends: list[float], slack: float) -> float:
  """The right edge of a column, given where its rows end: a row that stands out does not tell."""
  close = [x for x in ends if x > max(ends) - slack]
  if len(close) == 1:
    others = sorted(ends)[:-1]
    most = [x for x in others if x > others[-1] - slack]
    close = most if len(most) > max(3, 0.4 * len(ends)) else close
  return statistics.median(close)


def _apart(text: str) -> bool:
  """A table, or the marker of a figure."""
  return text.startswith(('|', '!['))


def _size(row: list[Line]) -> float:
  return row[0].size if len(row) == 1 else max(row, key=lambda line: line.x1 - line.x0).size


def _level(row: list[Line]) -> int:
  """That of all lines of a row, or 0."""
  return row[0].level if len(row) == 1 or len({line.level for line in row}) == 1 else 0


def _is_mono(row: list[Line]) -> bool:
  return row[0].mono if len(row) == 1 else sum(
    len(line.text) * (1 if line.mono else -1) for line in row) >= 0


def _wrapped(above: list[Line], before: str, row: list[Line], text: str, right: float,
             left: float) -> bool:
  """Whether `row`, of which `text` is the text, goes on with the paragraph of the row above it, of
  which that is `before`."""
  if before[-1:] in (BREAK, '-') and text[:1].islower():
    return True
  if row[0].x0 > left + 0.8 * row[0].size and row[0].x0 < left + 5 * row[0].size \
      and not text[:1].islower() and not _BULLET.match(before):
    return False                            # a first line's indent
  wide = above[-1].x1 - left > 0.6 * (right - left)
  if wide and text[:1].islower() and before[-1:] not in '.:;!?':
    return True
  length = sum(len(line.text) for line in row)
  width = sum(line.x1 - line.x0 for line in row) / max(1, length)
  first = 1 if _UNSPACED.match(text) else len(text.split(' ', 1)[0]) + 1
  return above[-1].x1 + first * width > right - 0.5 * row[0].size


def _continues(text: str, following: str) -> bool:
  """A paragraph cut by the end of a column or page."""
  if not text or not following or following[0] == '|' or text[-1] == '|':
    return False
  if text[-1] == BREAK:
    return True
  if text[-1].isdigit() and pdf_lists.ENTRY.fullmatch(text[text.rfind('\n') + 1:]):
    return False
  return (following[0].islower() and len(text) > 40 and text[-1] not in '.!?:;。！？")”»'
          and not _BULLET.match(following))


def _glue(text: str, following: str) -> str:
  if text.endswith(BREAK):
    return text + following
  if following[:1].islower() and _WORD_HYPHEN.search(text, len(text) - 2):
    return text[:-1] + BREAK + following
  if text and following and _UNSPACED.match(text[-1]) and _UNSPACED.match(following):
    return text + following
  return f'{text} {following}'


def _table(lines: list[Line], rtl: bool) -> list[Paragraph]:
  """A Markdown table, or the rows as lines where cells and columns cannot be told apart."""
  rows = rows_of(lines, rtl)
  if sum(line.mono for line in lines) * 2 > len(lines):
    return _paragraphs(rows)
  if len(rows) > 3 and (end := pdf_cells.below(rows)) < len(rows):
    return [p for part in (rows[:end], rows[end:]) for p in (
      _table([line for row in part for line in row], rtl)
      if sum([len(row) > 1 for row in part]) > 2 else _paragraphs(part))]
  wide = [row for row in rows if len(row) > 1]
  if len(rows) > 3 and (parts := pdf_cells.without_prose(rows, wide)):
    return [p for prose, part in parts for p in (
      _paragraphs(part) if prose else _table([line for row in part for line in row], rtl))]
  as_lines = [Paragraph('\n'.join(row_text(row) for row in rows), lines[0].size)]
  if len(wide) < 3:
    return as_lines
  columns = pdf_cells.usual_columns(wide)
  if not 2 <= len(columns) <= 20:
    return as_lines
  if rtl:
    columns.reverse()
  cells, last = [], rows[0]
  pitch = statistics.median_high((b[0].middle - a[0].middle) / b[0].size
                                 for a, b in itertools.pairwise(wide))
  full = next((i for i, row in enumerate(rows) if len(row) == len(columns)), 0)
  for number, row in enumerate(rows):
    out = [''] * len(columns)
    for line in row:
      for i in pdf_cells.places(line, row, columns, number, full):
        out[i] = f'{out[i]} {line.text.strip()}'.strip()
    leading = (row[0].middle - last[0].middle) / row[0].size
    if cells and pdf_cells.goes_on(cells[-1], out, leading, pitch):
      cells[-1] = [_glue(a, b) if a and b else a or b for a, b in zip(cells[-1], out, strict=True)]
    else:
      cells.append(out)
    last = row
  full = [i for i in range(len(columns)) if any(row[i] for row in cells)]
  cells = pdf_cells.joined_heads([[row[i] for i in full] for row in cells])
  if len(full) < 2 or sum(sum(map(bool, row)) > 1 for row in cells) < max(2, len(cells) / 2):
    return as_lines
  return [Paragraph(pdf_cells.markdown(cells), lines[0].size)]


def _filled(lines: list[Line], grid: Grid, rtl: bool) -> list[Line]:
  """The lines with those inside a grid as one, a table; as they were where it makes none.

  A frame around text, the panels of a figure and forms whose cells are mostly empty make none.
  """
  inside = [line for line in lines if grid.holds((line.x0 + line.x1) / 2, line.middle)]
  if any(_apart(line.text) for line in inside):
    return lines                            # the frame of a table
  cells: dict[tuple[int, int], list[Line]] = {}
  for line in inside:
    start = line.x1 - 2 if rtl else line.x0 + 2
    cells.setdefault(grid.cell(start, line.middle), []).append(line)
  used = [sorted(set(axis)) for axis in zip(*cells, strict=True)] if cells else [[], []]
  if rtl:
    used[1].reverse()
  several = sum(sum((i, j) in cells for j in used[1]) > 1 for i in used[0])
  if len(used[0]) < 2 or len(used[1]) < 2 or several < max(2, len(used[0]) / 2):
    return lines
  texts = {place: functools.reduce(_glue, map(row_text, rows_of(held, rtl)))
           if len(held) > 1 else held[0].text.strip() for place, held in cells.items()}
  pdf_cells.repeat_heads(texts, grid, used)
  text = pdf_cells.markdown([[texts.get((i, j), '') for j in used[1]] for i in used[0]])
  box = (grid.columns[0], grid.rows[0], grid.columns[-1], grid.rows[-1])
  table = Line(*box, text, statistics.median(line.size for line in inside))
  held = set(map(id, inside))
  return [*(line for line in lines if id(line) not in held), table]


def _dotted(text: str) -> bool:
  """Whether there may be leaders."""
  return '. .' in text or '..' in text or '…' in text or '··' in text or '__' in text


def _contents(lines: list[Line]) -> list[Line]:
  """Entries of a table of contents whole, without their leaders and page numbers."""
  out = []
  for row in rows_of(lines):
    if not _THREE_DOTS.search(row_text(row)):
      out += row
      continue
    entry: list[Line] = []
    for line in row:
      entry.append(line)
      end = line.text.rstrip()[-1:]         # of a page number, Roman maybe
      if not (end.isdecimal() or end.lower() in _ROMAN):
        continue
      if match := _ENTRY.search(text := row_text(entry)):
        first, last = entry[0], entry[-1]
        text = text[:match.start()].rstrip() + _ENTRY_END
        out.append(Line(first.x0, first.y0, last.x1, last.y1, text, first.size))
        entry = []
    out += entry
  return out


def _spell_list(paragraph: str) -> str:
  """List markers as Markdown knows them (FinePDFs' normalisation)."""
  return paragraph if paragraph.isascii() else _SIGN.sub('*', paragraph)


def _accent(match: re.Match) -> str:
  letter = {'ı': 'i', 'ȷ': 'j'}.get(match[2], match[2])
  whole = unicodedata.normalize('NFC', letter + _ACCENTS[match[1]])
  return whole if len(whole) == 1 else match[0]

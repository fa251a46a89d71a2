"""What stands left of lines and belongs to them: markers of lists, labels, drop caps, line numbers.

Taken for columns they would make tables of prose, or be read apart from it.
"""

import collections
import itertools
import re
import statistics
from collections.abc import Iterator, Sequence

from data_beam.pdf.lines import Line, row_text, rows_of

_MARKER = re.compile(
  r'[•·°◦●○▪■□–—‣▶►❖➢➤✓✔✗*-]|\(?\d{1,3}[.)]|\(?[a-zA-Z][.)]|\(?[ivx]{1,5}[.)]|[IVX]{1,5}[.)]'
  r'|\[\d{1,3}\]|§+\s?\d+[a-z]?|\d{1,2}(?:\.\d{1,2}){2,4}\.?|\d{1,2}\.\d{1,2}\.|№\s?\d+')
_COUNTED = re.compile(r'(\d{1,4})\s+(\S.*)')
_INTEGER = re.compile(r'\d{1,4}')
_DROP_CAP = re.compile(r'[\'"“„«¿¡]?[^\W\d_][\'’]?')
_PAGES = r'\d{1,4}(?:\s?[-–]\s?\d{1,4})?'
ENTRY = re.compile(rf'[^\W\d_].*?,\s*(?:{_PAGES}[,;]\s*)*{_PAGES}')
_WORD = re.compile(r'[^\W\d_]{3}|[^\W\d_a-zA-Z]|[^\W\d_].*\s')
_UNSPACED = re.compile('[\u2e80-\ua4cf\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]')
_LETTER = re.compile(r'[^\W\d_]')


def joined(lines: list[Line], rtl: bool) -> list[Line]:
  """The lines with drop caps and list markers at the head of those they belong to, and without
  line numbers."""
  sizes = [line.size for line in lines]
  if max(sizes) > 1.6 * (usual := statistics.median(sizes)):
    lines = _with_drop_caps(lines, usual)
  lines = _without_counts(lines)
  short = [line for line in lines if len(line.text) < 10]
  if len(short) < 2:
    return lines
  gone = _line_numbers(short, lines) if sum(
    bool(_INTEGER.fullmatch(line.text.strip())) for line in short) > 2 else set()
  marks = [line for line in short if id(line) not in gone and _MARKER.fullmatch(line.text.strip())]
  if not gone and not marks:
    return lines
  merged: dict[int, Line] = {}
  if marks:
    wanted = set(map(id, marks))
    for row in rows_of(lines, rtl):
      for mark, text in itertools.pairwise(row):
        gap = mark.x0 - text.x1 if rtl else text.x0 - mark.x1
        if id(mark) in wanted and -1 < gap < 5 * text.size and _WORD.search(text.text):
          gone.add(id(mark))
          merged[id(text)] = _glued(mark, text, ' ')
  return [merged.get(id(line), line) for line in lines if id(line) not in gone]


def _glued(first: Line, second: Line, between: str) -> Line:
  """A line with another before it, on the second's baseline."""
  return Line(min(first.x0, second.x0), second.y0, max(first.x1, second.x1), second.y1,
              first.text.strip() + between + second.text.lstrip(), second.size, second.mono)


def _with_drop_caps(lines: list[Line], usual: float) -> list[Line]:
  """Large first letters joined to the line they begin, and the lines beside them moved out to the
  paragraph's edge."""
  out = list(lines)
  for cap in lines:
    if cap.size < 1.6 * usual or not _DROP_CAP.fullmatch(cap.text.strip()):
      continue
    beside = [i for i, line in enumerate(out) if line is not cap and line.size < 0.7 * cap.size
              and -0.2 * cap.size < line.x0 - cap.x1 < 1.2 * line.size and line.x1 > cap.x1
              and cap.y0 - 0.2 * cap.size < line.middle < cap.y1]
    if not beside:
      continue
    first = min(beside, key=lambda i: out[i].middle)
    for i in beside:
      line = out[i]
      out[i] = Line(cap.x0, line.y0, line.x1, line.y1, line.text, line.size, line.mono)
    word = re.match(r'\w*', out[first].text.lstrip())[0]
    known = {word.lower() for line in lines for word in re.findall(r'\w+', line.text)}
    alone = (cap.text.strip() + word).lower() not in known and word.lower() in known and (
      cap.text.strip() in 'AIOEYÀÉÓ')
    out[first] = _glued(cap, out[first], ' ' if alone else '')
    out = [line for line in out if line is not cap]
  return out


def _line_numbers(short: list[Line], lines: list[Line]) -> set[int]:
  """Numbers, by id, that count lines of prose or code: in one column, up by one or by five."""
  gone: set[int] = set()
  numbers = [line for line in short if _INTEGER.fullmatch(line.text.strip())]
  columns: dict[int, list[Line]] = collections.defaultdict(list)
  for line in numbers:
    columns[round(line.x1 / 3)].append(line)
  rows = {id(line): row for row in rows_of(lines) for line in row}
  for edge in sorted(columns):
    column = sorted(columns[edge] + columns.get(edge + 1, []), key=lambda line: line.middle)
    column = [line for line in column if id(line) not in gone]
    if len(column) < 3:
      continue
    steps = [int(b.text) - int(a.text) for a, b in itertools.pairwise(column)]
    step, times = collections.Counter(steps).most_common(1)[0]
    if step not in (1, 2, 5, 10) or times < 0.8 * len(steps) or len(column) < (
        3 if step > 2 and int(column[0].text) % step == 0 else 4):
      continue
    texts = [_after(line, rows[id(line)]) for line in column]
    texts = [text for text in texts if text]
    if len(texts) < 0.7 * len(column):
      continue
    if step >= 5:                           # with the lines between that are not numbered
      lacking = step * (len(column) - 1) + 1
      counted = 0.75 * lacking <= _between(texts, lines) <= 1.25 * lacking
    else:
      code = sum(text.mono for text in texts) * 2 > len(texts)
      # Of records several lines stand between one number and the next.
      around = [text for row in rows_of([line for line in lines if line.mono])
                if (text := _after(column[0], row))] if code else lines
      counted = _between(texts, around) < 1.4 * len(texts) and (code or _flows(texts))
    if counted:
      gone.update(map(id, column))
  return gone


def _without_counts(lines: list[Line]) -> list[Line]:
  """The lines without line numbers that stand so close to the text that they are a part of it."""
  counted = [(line, int(match[1]), match[2]) for line in lines
             if line.text[:1].isdecimal() and (match := _COUNTED.match(line.text))]
  if len(counted) < 5:
    return lines
  out: dict[int, Line] = {}
  counted.sort(key=lambda item: item[0].x0)
  for _, group in itertools.groupby(counted, key=lambda item: round(item[0].x0 / 30)):
    column = sorted(group, key=lambda item: item[0].middle)
    places = [line for line, _, _ in column]
    steps = sum(b[1] - a[1] == 1 for a, b in itertools.pairwise(column))
    texts = [_shortened(line, text) for line, _, text in column]
    if len(column) > 4 and steps >= 0.8 * (len(column) - 1) and (
        _flows(texts) and _between(places, lines) < 1.4 * len(places)):
      out.update({id(line): text for (line, _, _), text in zip(column, texts, strict=True)})
  return [out.get(id(line), line) for line in lines] if out else lines


def _shortened(line: Line, text: str) -> Line:
  """A line of which only the end is left."""
  x0 = line.x1 - (line.x1 - line.x0) * len(text) / len(line.text)
  return Line(x0, line.y0, line.x1, line.y1, text, line.size, line.mono)


def _after(number: Line, row: list[Line]) -> Line | None:
  following = [line for line in row if line.x0 > number.x1 - 1 and line is not number]
  return min(following, key=lambda line: line.x0, default=None)


def _between(texts: Sequence[Line], lines: Sequence[Line]) -> int:
  """How many lines there are in the column of some, from the first to the last of them: of running
  text all are numbered, of entries of several lines only the first is."""
  first, last = texts[0], texts[-1]
  return sum(first.middle <= line.middle <= last.middle and line.x0 < first.x1
             and line.x1 > first.x0 for line in lines)


def _flows(texts: Sequence[Line]) -> bool:
  """Whether lines are those of running text: long, and many begin amid a sentence."""
  characters = statistics.fmean(len(text.text) for text in texts)
  if characters < 25:
    return False
  amid = sum(text.text.lstrip()[:1].islower() for text in texts)
  cased = sum(text.text != text.text.lower() for text in texts)
  return amid >= 0.3 * len(texts) if cased else characters > 35


def labelled(left: list[Line], right: list[Line]) -> list[tuple[list[Line], list[Line]]] | None:
  """Labels and the prose beside each: terms and definitions, years of a life, headings at the side.
  None where the two sides are something else.

  Labels are short and fewer than the lines of prose; most begin where a paragraph does.
  """
  characters = [statistics.fmean(len(line.text) for line in side) for side in (left, right)]
  if characters[1] < max(25, 1.5 * characters[0]) or len(left) > len(right):
    return None
  rows = rows_of(right)
  if len(rows) < 0.65 * len(right) or _share_of_letters(right) < 0.6 or (
      sum(line.text.endswith('. .') or '...' in line.text for line in right) > 0.3 * len(right)):
    return None                             # a table of its own, or numbers, or contents
  blocks: list[list[list[Line]]] = []
  for row in rows_of(left):
    near = blocks and row[0].middle - blocks[-1][-1][0].middle < 1.5 * row[0].size
    starts = near and any(abs(row[0].middle - other[0].middle) < 0.6 * other[0].size
                          and _begins(other[0], rows) for other in rows)
    if near and not (starts and len(left) > 0.8 * len(right)) and not (starts and _ends(row)):
      blocks[-1].append(row)
    else:
      blocks.append([row])
  heads = [block[0][0] for block in blocks]
  beginning = [next((row[0] for row in rows
                     if abs(row[0].middle - head.middle) < 0.6 * max(head.size, row[0].size)), None)
               for head in heads]
  good = sum(line is not None and _begins(line, rows) for line in beginning)
  if len(blocks) < 2 or good < 0.7 * len(blocks):
    return None
  if sum(map(len, blocks)) > 0.9 * len(rows) and characters[1] < 40:
    return None
  tops = [head.middle - 0.6 * head.size for head in heads]
  out: list[tuple[list[Line], list[Line]]] = []
  for i, block in enumerate([[], *blocks]):
    top = tops[i - 1] if i else float('-inf')
    bottom = tops[i] if i < len(tops) else float('inf')
    held = [line for line in right if top <= line.middle < bottom]
    if block or held:
      out.append(([line for row in block for line in row], held))
  return out


def _ends(row: list[Line]) -> bool:
  return not row[-1].text.rstrip().endswith(('-', ',', '–'))


def _begins(line: Line, rows: list[list[Line]]) -> bool:
  """Whether a line is the first of a paragraph: nothing close above, or what is ends short, or a
  sentence."""
  above = [row for row in rows if row[0].middle < line.middle - 0.5 * line.size]
  if not above or line.middle - above[-1][0].middle > 1.45 * line.size:
    return True
  right = max(row[-1].x1 for row in rows)
  last = above[-1][-1]
  return not line.text[:1].islower() and (
    last.x1 < right - 0.15 * (right - line.x0) or last.text.rstrip()[-1:] in '.!?:;')


def _share_of_letters(lines: Sequence[Line]) -> float:
  text = ''.join(line.text for line in lines).replace(' ', '')
  return sum(map(str.isalpha, text)) / max(1, len(text))


def alike(left: list[Line], right: list[Line]) -> bool:
  """Whether two sides are columns of one list that happen to share baselines: entries of an index
  or of a directory, each column with the same kinds of cells, labels first."""
  if len(left) < 3 or len(right) < 3:
    return False
  texts = [[row_text(row) for row in rows_of(side)] for side in (left, right)]
  if all(sum(bool(ENTRY.fullmatch(text)) for text in side) >= 0.6 * len(side) for side in texts):
    return True
  if all(len(side) > 4 and _in_order(side) for side in texts):
    return True
  if _cards(left) == _cards(right) > 2:
    return True
  kinds = [_kinds(side) for side in (left, right)]
  return kinds[0] == kinds[1] and kinds[0][:1] == ['text'] and 'number' in kinds[0]


def beside_prose(left: list[Line], right: list[Line], apart: bool = False) -> bool:
  """Whether one side is running text and the other no row of numbers for each of its lines; nor,
  where it must stand `apart`, rows of anything."""
  return any(len(prose) > 3 and _flows(prose) and _full(prose) and (
    _aligned(other, prose) < 0.7 or (not apart and _share_of_letters(other) > 0.5))
    for prose, other in ((left, right), (right, left)))


def unspaced_prose(lines: list[Line]) -> bool:
  """Whether lines are those of running text in a script without spaces: a line to a row, and all
  but few end at one right edge, at which cells of a table have no reason to end."""
  return (all(len(line.text) > 7 and _UNSPACED.match(line.text) for line in lines[:3])
          and len(rows_of(lines)) == len(lines) > 3 and _full(lines, 0.05, 0.7))


def _aligned(lines: list[Line], others: list[Line]) -> float:
  """The share of rows that stand on the baseline of one of the others."""
  rows = rows_of(lines)
  return sum(any(abs(row[0].middle - other.middle) < 0.15 * other.size for other in others)
             for row in rows) / len(rows)


def _full(lines: Sequence[Line], near: float = 0.15, share: float = 0.5) -> bool:
  """Whether a share of the lines end near one right edge."""
  left, right = min(line.x0 for line in lines), max(line.x1 for line in lines)
  return sum(line.x1 > right - near * (right - left) for line in lines) >= share * len(lines)


def _cards(side: list[Line]) -> int:
  """How many blocks of two to six lines of words a side is made of; 0 where it is not."""
  rows = rows_of(side)
  pitches = [(b[0].middle - a[0].middle) / b[0].size for a, b in itertools.pairwise(rows)]
  apart = [pitch > 1.4 * min(pitches) for pitch in pitches]
  blocks = sum(apart) + 1
  words = sum(bool(_LETTER.match(row[0].text)) for row in rows) / len(rows)
  alike_rows = len(set(map(len, rows))) == 1
  return blocks if 2 <= len(rows) / blocks <= 6 and alike_rows and words > 0.3 else 0


def _in_order(texts: Sequence[str]) -> bool:
  """Whether texts are in the order of the alphabet."""
  words = [text.casefold() for text in texts if _LETTER.match(text)]
  if len(words) < 0.8 * len(texts) or len(set(words)) < 0.8 * len(words):
    return False
  good = sum(a[:1] <= b[:1] for a, b in itertools.pairwise(words))
  return good >= 0.9 * (len(words) - 1) and words[0][:1] < words[-1][:1]


def _kinds(side: list[Line]) -> list[str]:
  """Of each column of a side: text or numbers; none where its rows differ in length."""
  rows = rows_of(side)
  usual = statistics.mode(len(row) for row in rows)
  full = [row for row in rows if len(row) == usual]
  if usual < 2 or len(full) < 0.7 * len(rows):
    return []
  return ['text' if _share_of_letters(column) > 0.5 else 'number'
          for column in zip(*full, strict=True)]


def spread(labels: list[tuple[list[Line], list[Line]]]) -> Iterator[list[Line]]:
  """Groups of lines to be read one after the other: a label of one line at the head of its prose,
  others before it."""
  for label, prose in labels:
    first = min(prose, key=lambda line: (line.middle, line.x0), default=None)
    if len(label) == 1 and first and abs(label[0].size - first.size) < 0.1 * first.size:
      head = _glued(label[0], first, ' ')
      head.x0 = first.x0                    # so that the prose has one edge
      yield [head, *(line for line in prose if line is not first)]
    else:
      if label:
        yield label
      if prose:
        yield prose

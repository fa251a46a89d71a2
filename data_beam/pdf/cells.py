"""Tables told by where their cells stand: columns, heads, cells of several lines, Markdown."""

import itertools
import statistics

from data_beam.pdf.lines import PROSE_CHARS, Line
from data_beam.pdf.tables import Grid


def heads(rows: list[list[Line]], table: list[Line]) -> tuple[list[Line], list[Line]]:
  """The lines of rows over a table: those before it, and those that are heads of its columns. A row
  of three cells close above is one, and short ones around it that a gutter was not free for."""
  top, start = min(line.middle for line in table), len(rows)
  for i in range(len(rows) - 1, max(-1, len(rows) - 5), -1):
    row, below = rows[i], rows[i + 1][0].middle if i + 1 < len(rows) else top
    if below - row[0].middle > 2 * row[0].size or (
        max(len(line.text) for line in row) > 2 * PROSE_CHARS):
      break
    if len(row) >= 3:
      start = i
  first = min(table, key=lambda line: line.x0)
  while 0 < start < len(rows):              # one over several of them
    row, below = rows[start - 1], rows[start][0]
    if len(row) > 2 or row[0].x0 <= first.x1 or below.middle - row[0].middle > 1.7 * below.size:
      break
    start -= 1
  before, heads = ([line for row in part for line in row] for part in (rows[:start], rows[start:]))
  return before, heads


def prose(lines: list[Line]) -> bool:
  """Whether lines are long on average."""
  return sum(len(line.text) for line in lines) >= PROSE_CHARS * len(lines)


def is_number(text: str) -> bool:
  """Whether a cell is an amount, a share, a year: more digits than anything else."""
  return 2 * sum(map(str.isdecimal, text)) >= len(text.replace(' ', ''))


def places(line: Line, row: list[Line], columns: list[list[float]], number: int,
           full: int) -> list[int]:
  """The column of a cell; those under a head that stands amid or over several. A label that runs on
  over other columns is the first one's.

  Args:
    line: the cell.
    row: that it is in.
    columns: see `columns`.
    number: of the row.
    full: the first row with a cell in each column; over it stand heads.
  """
  shared = [min(line.x1, b) - max(line.x0, a) for a, b in columns]
  head = number < full
  if head and number < 2 and len(row) == 1 and len(columns) > 2 and line.x0 > columns[0][1] and (
      abs(line.x0 + line.x1 - columns[1][0] - columns[-1][1]) < 2 * line.size):
    return list(range(1, len(columns)))     # over all but the labels
  if head and len(row) > 1:
    middle, middles = (line.x0 + line.x1) / 2, [(a + b) / 2 for a, b in columns]
    reach = min(abs(middle - (other.x0 + other.x1) / 2) for other in row if other is not line) / 2
    near = [i for i, x in enumerate(middles) if abs(x - middle) < reach]
    between = near and len(near) % 2 == 0 and (
      abs(middle - (middles[near[0]] + middles[near[-1]]) / 2) < 0.5 * line.size)
    over = near if between else [i for i, width in enumerate(shared) if width > 0]
    if len(over) > 1 and abs(middle - (columns[over[0]][0] + columns[over[-1]][1]) / 2) < line.size:
      return over
  if shared[0] > 0 and abs(line.x0 - columns[0][0]) < 0.5 * line.size:
    return [0]
  return [max(range(len(columns)), key=shared.__getitem__)]


def below(rows: list[list[Line]]) -> int:
  """Where what follows a table begins: a heading in larger letters, set apart from the rows before.
  The number of rows where nothing does."""
  usual = statistics.median(line.size for row in rows for line in row)
  gaps = [row[0].middle - above[0].middle for above, row in itertools.pairwise(rows)]
  far = 2.5 * statistics.median(gaps)
  return next((i for i, gap in enumerate(gaps, 1) if i > 2 and gap > far and (
    min(line.size for line in rows[i]) > 1.15 * usual)), len(rows))


def without_prose(rows: list[list[Line]],
                   wide: list[list[Line]]) -> list[tuple[bool, list[list[Line]]]]:
  """Stretches of rows that are text over, under or within a table, and of those that are its own;
  none where there is no such text. Text lies across columns; one line of it amid a table stays."""
  if not wide:
    return []
  second = statistics.median_low(row[1].x0 for row in wide)
  first = min(row[0].x0 for row in wide)
  across = [len(row) == 1 and row[0].x0 < second < row[0].x1 and (
    row[0].x1 - row[0].x0 > second - first or len(row[0].text) > PROSE_CHARS) for row in rows]
  for above, row, below in zip(range(len(rows)), rows[1:], rows[2:], strict=False):
    to_above, to_below = row[0].middle - rows[above][0].middle, below[0].middle - row[0].middle
    if len(row) == 1 and across[above] and 1.2 * to_above < to_below:     # a paragraph's last line
      across[above + 1] = True
  parts: list[tuple[bool, list[list[Line]]]] = []
  for prose, places in itertools.groupby(range(len(rows)), across.__getitem__):
    part = [rows[i] for i in places]
    inside = bool(parts) and part[-1] is not rows[-1]
    if parts and (parts[-1][0] == prose or (prose and inside and len(part) == 1)):
      parts[-1][1].extend(part)
    else:
      parts.append((prose, part))
  return parts if len(parts) > 1 else []


def goes_on(above: list[str], row: list[str], leading: float, usual: float) -> bool:
  """Whether cells go on with those above, in a row of several lines. A full row is one of its own.

  Args:
    above: cells.
    row: cells of the next line.
    leading: from one to the other, in sizes of the font.
    usual: that of the table's rows.
  """
  if leading > 1.35:
    return False
  filled, held = sum(map(bool, row)), sum(map(bool, above))
  if not row[0]:
    return filled * 2 <= held or (held == 1 and bool(above[0]) and leading < 0.9)
  if above[0] and min(filled, held) == 1 and max(filled, held) > 1:     # a label of two lines
    return row[0][:1].islower() or leading < 0.85 * usual
  return False


def joined_heads(cells: list[list[str]]) -> list[list[str]]:
  """The rows of a table, its first two made one where they are one head: no column has a cell in
  both, and the first of them has none for the labels."""
  if len(cells) < 3 or cells[0][0] or not cells[1][0] or any(
      a and b for a, b in zip(*cells[:2], strict=True)) or sum(map(bool, cells[0])) < 2:
    return cells
  return [[a or b for a, b in zip(*cells[:2], strict=True)], *cells[2:]]


def markdown(cells: list[list[str]]) -> str:
  """Rows of cells as Markdown, the first as the head."""
  plain = str.maketrans({'|': '\\|', '\n': ' '})
  rows = [f'| {" | ".join(cell.translate(plain) for cell in row)} |' for row in cells]
  rows.insert(1, '|' + ' --- |' * len(cells[0]))
  return '\n'.join(rows)


def repeat_heads(texts: dict[tuple[int, int], str], grid: Grid, used: list[list[int]]) -> None:
  """Heads over several columns stand over each of them: in the rows above the first full one."""
  heads = list(itertools.takewhile(lambda i: not all((i, j) in texts for j in used[1]), used[0]))
  if len(heads) == len(used[0]):
    return
  for i, j in [place for place in texts if place[0] in heads]:
    middle = (grid.rows[i] + grid.rows[i + 1]) / 2
    over = [k for k in grid.span(middle, j) if k in used[1]]
    if 1 < len(over) < len(used[1]) and sum((i, k) in texts for k in over) == 1:
      texts.update({(i, k): texts[i, j] for k in over})


def usual_columns(wide: list[list[Line]]) -> list[list[float]]:
  """The columns of rows of several cells. A head over several columns, a label that runs on into
  the next one would weld them, or make one between: heads have no say, and where columns are
  welded nevertheless, the commonest kind of row alone has."""
  usual = statistics.mode(len(row) for row in wide)
  common = [row for row in wide if len(row) == usual]
  body = wide[wide.index(common[0]):] if len(common) > 0.6 * len(wide) else wide
  found = columns(body)
  return columns(common) if len(found) < usual else found


def columns(rows: list[list[Line]]) -> list[list[float]]:
  """Stretches of x covered by the cells of these rows, left to right."""
  columns: list[list[float]] = []
  for line in sorted((line for row in rows for line in row), key=lambda line: line.x0):
    if columns and line.x0 < columns[-1][1] + 1:
      columns[-1][1] = max(columns[-1][1], line.x1)
    else:
      columns.append([line.x0, line.x1])
  return columns

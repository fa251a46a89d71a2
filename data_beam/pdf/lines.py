"""A line of text with its box, and lines grouped into rows."""

import dataclasses
import operator
from collections.abc import Sequence

PROSE_CHARS = 20            # a column whose lines are shorter on average is no prose
Box = tuple[float, float, float, float]     # x0, y0, x1, y1

_PLACE = operator.attrgetter('middle', 'x0')


@dataclasses.dataclass(slots=True)
class Line:
  """A run of text on one baseline; `size` is the height of its font."""
  x0: float
  y0: float
  x1: float
  y1: float
  text: str
  size: float
  mono: bool = False
  middle: float = dataclasses.field(init=False)

  def __post_init__(self):
    self.middle = (self.y0 + self.y1) / 2


def rows_of(lines: Sequence[Line], rtl: bool = False) -> list[list[Line]]:
  """Lines grouped by baseline, top to bottom, each row in reading order."""
  rows: list[list[Line]] = []
  for line in sorted(lines, key=_PLACE):
    if rows and line.middle - rows[-1][0].middle < 0.4 * min(line.size, rows[-1][0].size):
      rows[-1].append(line)
    else:
      rows.append([line])
  for row in rows:
    if len(row) > 1:
      row.sort(key=(lambda line: -line.x1) if rtl else (lambda line: line.x0))
  return rows


def row_text(row: list[Line]) -> str:
  """The cells of a row with spaces between."""
  if len(row) == 1:
    return row[0].text.strip()
  return ' '.join(line.text.strip() for line in row).strip()

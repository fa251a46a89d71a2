"""A line of text with its box, and lines grouped into rows."""

import dataclasses
import operator
from collections.abc import Sequence

PROSE_CHARS = 20            # a column whose lines are shorter on average is no prose
Box = tuple[float, float, float, float]     # x0, y0, x1, y1

BOLD = 7                    # as a level: all of a line in a bold font

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
  level: int = 0            # of the heading that it is by the file's tags, or BOLD
  middle: float = dataclasses.field(init=False)

  def __post_init__(self):
    self.middle = (self.y0 + self.y1) / 2


def rows_of(lines: Sequence[Line], rtl: bool = False) -> list[list[Line]]:
  """Lines grouped by baseline, top to bottom, each row in reading order."""
  rows: list[list[Line]] = []
  first = None
  for line in sorted(lines, key=_PLACE):
    if first is not None and line.middle - first.middle < 0.4 * min(line.size, first.size):
      rows[-1].append(line)
    else:
      rows.append([line])
      first = line
  for row in rows:
    if len(row) > 1:
      row.sort(key=(lambda line: -line.x1) if rtl else (lambda line: line.x0))
  return rows


def row_text(row: list[Line]) -> str:
  """The cells of a row with spaces between."""
  if len(row) == 1:
    return row[0].text.strip()
  return ' '.join(line.text.strip() for line in row).strip()

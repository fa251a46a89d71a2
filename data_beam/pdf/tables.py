"""Ruled tables: the lines drawn on a page → grids of cells. Geometry only; layout fills them.

Coordinates are those of layout: points from the top left of the page as displayed.
"""

import bisect
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

TOUCH = 3.0                 # points between two rules that are meant to meet
THICK = 3.0                 # a rule is no thicker
MAX_COLUMNS = 30            # more is a drawing, or graph paper


class Grid(NamedTuple):
  """Edges of a table's columns, and of the cells of each column: a cell may span many rows."""
  columns: list[float]      # left to right, both outer edges included
  rows: list[float]         # top to bottom, of every column together
  levels: list[list[float]] # of each column; a subset of `rows`
  drawn_E3: np.ndarray      # (x, y0, y1) of the vertical rules

  def holds(self, x: float, y: float) -> bool:
    """Whether a point is inside."""
    return self.columns[0] <= x <= self.columns[-1] and self.rows[0] <= y <= self.rows[-1]

  def cell(self, x: float, y: float) -> tuple[int, int]:
    """Row and column of the cell in which a point inside lies."""
    column = min(max(bisect.bisect(self.columns, x) - 1, 0), len(self.columns) - 2)
    levels = self.levels[column]
    top = levels[min(max(bisect.bisect(levels, y) - 1, 0), len(levels) - 2)]
    return self.rows.index(top), column

  def span(self, y: float, column: int) -> range:
    """The columns of the cell at a height, of which one is given: up to the next rules drawn."""
    def drawn(i: int) -> bool:
      x_E, y0_E, y1_E = self.drawn_E3.T
      return bool(((np.abs(x_E - self.columns[i]) <= TOUCH) & (y0_E <= y) & (y <= y1_E)).any())

    first, end = column, column + 1
    while first > 0 and not drawn(first):
      first -= 1
    while end < len(self.columns) - 1 and not drawn(end):
      end += 1
    return range(first, end)


def find(rules_R4: np.ndarray) -> list[Grid]:
  """The grids that horizontal and vertical rules form where they meet.

  A grid has two columns and two rows at least; its outermost vertical edges need not be drawn.

  Args:
    rules_R4: [R, 4], boxes (x0, y0, x1, y1) of thin lines; others are passed over.
  """
  if len(rules_R4) < 3:
    return []
  wide, high = rules_R4[:, 2] - rules_R4[:, 0], rules_R4[:, 3] - rules_R4[:, 1]
  across_H4 = rules_R4[(high <= THICK) & (wide > 2 * THICK)]
  down_V4 = rules_R4[(wide <= THICK) & (high > 2 * THICK)]
  if len(across_H4) < 2 or not len(down_V4):
    return []
  y_H, x_V = across_H4[:, 1::2].mean(1), down_V4[:, 0::2].mean(1)
  if len(_levels([across_H4[:, 0], across_H4[:, 2], x_V])) < 3:
    return []                               # frames, all of one width
  meet_VH = ((across_H4[:, 0] - TOUCH <= x_V[:, None]) & (x_V[:, None] <= across_H4[:, 2] + TOUCH)
             & (down_V4[:, 1, None] - TOUCH <= y_H) & (y_H <= down_V4[:, 3, None] + TOUCH))
  part_V, part_H = _components(meet_VH)
  grids = []
  for part in np.unique(part_V[meet_VH.any(1)]):
    h, v = part_H == part, part_V == part
    grid = _grid(across_H4[h], y_H[h], down_V4[v], x_V[v])
    grids += [grid] if grid else []
  return grids


def _components(meet_VH) -> tuple[np.ndarray, np.ndarray]:
  """A number for each connected part of the graph of meeting lines: of each V, and of each H."""
  v, h = meet_VH.shape
  part_V, part_H = np.arange(v), np.full(h, v)
  while True:
    new_H = np.where(meet_VH, part_V[:, None], v).min(0)
    new_V = np.minimum(part_V, np.where(meet_VH, new_H[None], v).min(1))
    if (new_V == part_V).all() and (new_H == part_H).all():
      return part_V, part_H
    part_V, part_H = new_V[new_V], new_H    # jumps: a long chain takes few rounds


def _grid(across_H4, y_H, down_V4, x_V) -> Grid | None:
  left, right = across_H4[:, 0].min(), across_H4[:, 2].max()
  columns = _levels([[left], x_V, [right]])
  if not 3 <= len(columns) <= MAX_COLUMNS + 1:
    return None
  top = min(y_H.min(), down_V4[:, 1].min())
  bottom = max(y_H.max(), down_V4[:, 3].max())
  rows = _levels([[top], y_H, [bottom]])
  if len(rows) < 3:
    return None
  middles_C1 = np.mean([columns[:-1], columns[1:]], 0)[:, None]
  over_CH = (across_H4[:, 0] <= middles_C1) & (middles_C1 <= across_H4[:, 2])
  row_H = np.abs(np.array(rows)[:, None] - y_H).argmin(0)
  levels = [[rows[i] for i in sorted({0, len(rows) - 1, *row_H[over_H].tolist()})]
            for over_H in over_CH]
  return Grid(columns, rows, levels, np.stack([x_V, down_V4[:, 1], down_V4[:, 3]], 1))


def _levels(values: Sequence[Any]) -> list[float]:
  """All of some arrays, sorted; of those within TOUCH of each other the first."""
  out: list[float] = []
  for value in np.sort(np.concatenate(values)).tolist():
    if not out or value - out[-1] > TOUCH:
      out.append(value)
  return out

"""Ruled tables: which lines belong together, and what is no table."""

import numpy as np
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from data_beam.pdf import tables as pdf_tables


@given(st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
  lambda shape: arrays.arrays(bool, shape, elements=st.sampled_from([False] * 4 + [True]))))
def test_parts_are_those_of_the_graph(meet_VH):
  part_V, part_H = pdf_tables._components(meet_VH)
  v, h = meet_VH.shape
  graph = scipy.sparse.bmat([[None, meet_VH], [meet_VH.T, None]]) if meet_VH.any() else (
    scipy.sparse.coo_matrix((v + h, v + h)))
  _, expected = scipy.sparse.csgraph.connected_components(graph)
  met = np.concatenate([meet_VH.any(1), meet_VH.any(0)])
  found = np.concatenate([part_V, part_H])
  same = found[:, None] == found
  np.testing.assert_array_equal(same[np.ix_(met, met)],
                                (expected[:, None] == expected)[np.ix_(met, met)])
  assert len(set(part_V[~meet_VH.any(1)])) == (~meet_VH.any(1)).sum()


def rules(frames):
  """The four lines of each frame (x0, y0, x1, y1), as boxes of one point's thickness."""
  return np.array([box for x0, y0, x1, y1 in frames for box in (
    (x0, y0, x1, y0 + 1), (x0, y1, x1, y1 + 1), (x0, y0, x0 + 1, y1), (x1, y0, x1 + 1, y1))])


def test_frames_are_no_table_but_what_parts_them_makes_one():
  frames = [(50, 100, 500, 200), (50, 300, 500, 400)]
  assert pdf_tables.find(rules(frames)) == []
  assert pdf_tables.find(rules([*frames, (80, 500, 300, 600)])) == []
  (grid,) = pdf_tables.find(np.concatenate([rules(frames), [(50, 150, 500, 151),
                                                            (200, 100, 201, 200)]]))
  assert len(grid.columns) == 3 and len(grid.rows) == 3

"""Connected components of a graph that no worker holds: rounds of grouping by key, without a loop.

Nodes are hashes of 16 bytes (`KEY`) and travel in arrays: one element for each part of the nodes
and block of edges, not one for each edge.

- Each block of edges is united where it is, so that it says of each of its nodes which is the
  smallest it is joined to. A hub of ten million edges is then one entry in each block that has it.
- A round: each node's part takes what all blocks said of it and unites that. Its nodes get a root;
  other roots that it met there are joined to it, and that is the graph of the next round, whose
  nodes are the roots: every one stands for two nodes at least. With each goes what its nodes have
  in sum (`Total`), so that nobody counts the members of a large component.
- Roots that nobody joins any more are settled. Of near duplicates a fifth is left after each round,
  of a chain two thirds. What is left in the end goes through the same once more, in one part, which
  settles it whatever it is.
- The totals go back the way they came, to each part once for each root it asked about.

Exact for any graph. Which node is the root is chance, since keys are hashes: an order in the input
cannot make long ways (as it does where labels are ranks), and the survivor is part of the total.
The idea is Kiveris et al. (2014), "Connected Components in MapReduce and Beyond", with blocks that
are united before anything is sent.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.transforms.window import GlobalWindows

KEY = np.dtype('S16')
FEW_PARTS = 8         # up to so many, one worker can hold the roots of all


class Total(NamedTuple):
  """Of some nodes: the smallest of what orders them, and the sum of their sizes."""

  best: Any
  size: int


class _Joined(NamedTuple):
  """What a block says of nodes: the smallest node each is joined to."""

  nodes: np.ndarray
  roots: np.ndarray


class _Totals(NamedTuple):
  """What nodes have in sum, and which part of the round before wants to know the outcome."""

  nodes: np.ndarray
  totals: list[Total]
  asker: int | None = None


class _Asked(NamedTuple):
  """Which root of the next round decides about a node, and who wants to know."""

  nodes: np.ndarray
  roots: np.ndarray
  askers: list[list[int | None]]


class Components(beam.PTransform):
  """(edges, members) → (nodes, totals of their components), for nodes that have an edge.

  `edges` are blocks (u, v): two arrays of KEY, equally long. `members` are blocks (nodes, totals):
  an array of KEY, and a Total of each. All nodes must be among them; of one that is there twice,
  totals add up.
  """

  def __init__(self, parts: int = 8, rounds: int | None = None):
    """Sets up the stage.

    Args:
      parts: a worker holds one of so many at a time: choose them so that one has at most about a
        million nodes. They do not change the result.
      rounds: before the rest is united in one worker; None for 1, or 5 with more than FEW_PARTS.
    """
    super().__init__()
    self.parts = parts
    self.rounds = rounds or (1 if parts <= FEW_PARTS else 5)

  def expand(self, inputs: Any) -> Any:
    """PCollection of (array of KEY, list of Total)."""
    edges, members = inputs
    messages = (
      edges | 'join blocks' >> beam.FlatMap(_join_block, self.parts),
      members | 'members' >> beam.FlatMap(_members, self.parts)) | 'first' >> beam.Flatten()
    asked, answers = [], []
    for n in range(self.rounds + 1):
      last = n == self.rounds
      ahead = None if last else self.parts if n + 1 < self.rounds else 1
      out = (messages | f'by node {n}' >> beam.GroupByKey()
             | f'unite {n}' >> beam.FlatMap(_unite, ahead).with_outputs(
               'asked', 'answers', main='messages'))
      messages = out.messages
      asked.append(out.asked)
      answers.append(out.answers)
    # Round n + 1 answers those who asked in round n.
    found = answers[self.rounds]
    for n in reversed(range(self.rounds)):
      told = ((found, asked[n]) | f'told {n}' >> beam.Flatten()
              | f'by asker {n}' >> beam.GroupByKey() | f'tell {n}' >> beam.FlatMap(_tell))
      found = (told, answers[n]) | f'found {n}' >> beam.Flatten() if n else told
    return found | 'outcome' >> beam.Values()


def smallest(u: np.ndarray, v: np.ndarray, count: int) -> np.ndarray:
  """The smallest node joined to each of `count` nodes by edges u – v: int64 [count]."""
  labels = np.arange(count)
  while len(u):
    u, v = labels[u], labels[v]
    apart = u != v
    u, v = np.minimum(u, v)[apart], np.maximum(u, v)[apart]
    np.minimum.at(labels, v, u)     # each root but the smallest among its neighbours gets a parent
    while not np.array_equal(further := labels[labels], labels):
      labels = further
  return labels


def part_of(nodes: np.ndarray, parts: int) -> np.ndarray:
  """The part of each node, from the half of its hash that does not order it."""
  return (np.ascontiguousarray(nodes).view(np.uint64)[1::2] % np.uint64(parts)).astype(np.int64)


def at_the_end(outputs: Iterable[Any]) -> Iterator[Any]:
  """What a DoFn gives, tagged or not, as its finish_bundle has to give it: with a window."""
  for output in outputs:
    tag = getattr(output, 'tag', None)
    value = GlobalWindows.windowed_value(output.value if tag else output)
    yield beam.pvalue.TaggedOutput(tag, value) if tag else value


def by_part(nodes: np.ndarray, parts: int) -> Iterator[tuple[int, np.ndarray]]:
  """(part, indices of its nodes in `nodes`) of each part that has some."""
  if parts == 1 or not len(nodes):
    if len(nodes):
      yield 0, np.arange(len(nodes))
    return
  part = part_of(nodes, parts)
  order = np.argsort(part, kind='stable')
  found, starts = np.unique(part[order], return_index=True)
  yield from zip(found.tolist(), np.split(order, starts[1:]), strict=True)


def _join_block(block: tuple[np.ndarray, np.ndarray], parts: int) -> Iterator[tuple[int, _Joined]]:
  u, v = block
  names, index = np.unique(np.concatenate([u, v]), return_inverse=True)
  labels = smallest(index[:len(u)], index[len(u):], len(names))
  # One whose only edge is to itself is joined to nobody.
  joined = np.bincount(labels, minlength=len(names))[labels] > 1
  yield from _joined(names[joined], names[labels[joined]], parts)


def _joined(nodes: np.ndarray, roots: np.ndarray, parts: int) -> Iterator[tuple[int, _Joined]]:
  for part, chosen in by_part(nodes, parts):
    yield part, _Joined(nodes[chosen], roots[chosen])


def _members(
  block: tuple[np.ndarray, Sequence[Total]], parts: int,
) -> Iterator[tuple[int, _Totals]]:
  nodes, totals = block
  for part, chosen in by_part(nodes, parts):
    yield part, _Totals(nodes[chosen], [totals[i] for i in chosen.tolist()])


def _add(totals: dict[int, Total], at: int, more: Total) -> None:
  have = totals.get(at)
  totals[at] = more if have is None else Total(min(have.best, more.best), have.size + more.size)


def _unite(group: tuple[int, Iterable[Any]], ahead: int | None) -> Iterator[Any]:
  """A round in one part: messages to the next, questions to remember, answers to who asked.

  `ahead` is the number of parts of the next round, None in the last.
  """
  part, messages = group
  joined, given = [], []
  for message in messages:
    (joined if isinstance(message, _Joined) else given).append(message)
  empty = np.empty(0, KEY)
  nodes, roots = (np.concatenate([m[i] for m in joined] or [empty]) for i in range(2))
  names, index = np.unique(
    np.concatenate([nodes, roots, *(m.nodes for m in given)]), return_inverse=True)
  here, there = index[:len(nodes)], index[len(nodes):2 * len(nodes)]
  labels = smallest(here, there, len(names))
  open_ = np.zeros(len(names), bool)      # nodes of this part that an edge joins
  open_[here] = True
  if ahead is None:
    open_[:] = False

  sums: dict[int, Total] = {}             # of roots, or in the last round of components
  askers: dict[int, list[int | None]] = {}
  at = 2 * len(nodes)
  for message in given:
    for i, total in zip(index[at:at + len(message.nodes)].tolist(), message.totals, strict=True):
      if ahead is None or open_[i] or message.asker is not None:
        _add(sums, int(labels[i]) if ahead is None or open_[i] else i, total)
        askers.setdefault(i, []).append(message.asker)
    at += len(message.nodes)

  settled = [i for i in askers if not open_[i]]
  outcome = [sums[int(labels[i]) if ahead is None else i] for i in settled]
  yield from _answers(names[settled], outcome, [askers[i] for i in settled])
  if ahead is None:
    return
  waiting = [i for i in askers if open_[i]]
  if waiting:
    yield beam.pvalue.TaggedOutput('asked', (part, _Asked(
      names[waiting], names[labels[waiting]], [askers[i] for i in waiting])))
  ups = sorted({int(labels[i]) for i in waiting})
  for chosen_part, chosen in by_part(names[ups], ahead):
    picked = [ups[j] for j in chosen.tolist()]
    yield chosen_part, _Totals(names[picked], [sums[i] for i in picked], part)
  # Roots that stand apart from the smallest they were found to be joined to: the next graph.
  met = np.unique(there)
  apart = met[labels[met] != met]
  both = np.union1d(apart, labels[apart])
  yield from _joined(names[both], names[labels[both]], ahead)


def _answers(
  nodes: np.ndarray, totals: Sequence[Total], askers: Sequence[Sequence[int | None]],
) -> Iterator[Any]:
  by_asker: dict[int | None, list[int]] = {}
  for i, wanting in enumerate(askers):
    for asker in set(wanting):
      by_asker.setdefault(asker, []).append(i)
  for asker, chosen in by_asker.items():
    yield beam.pvalue.TaggedOutput(
      'answers', (asker, (nodes[chosen], [totals[i] for i in chosen])))


def _tell(group: tuple[int, Iterable[Any]]) -> Iterator[tuple[int | None, Any]]:
  """Answers, as they came and to questions of this part, to those who asked it."""
  known: dict[bytes, Total] = {}
  asked: list[_Asked] = []
  for message in group[1]:
    if isinstance(message, _Asked):
      asked.append(message)
    else:
      known |= zip(message[0].tolist(), message[1], strict=True)
  for nodes, roots, askers in asked:
    totals = [known[root] for root in roots.tolist()]
    for answer in _answers(nodes, totals, askers):
      yield answer.value

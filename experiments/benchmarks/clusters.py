"""Clusters of near duplicates on many workers: seconds, memory, and whether union-find agrees.

  python -m experiments.benchmarks.clusters --graphs=minhash:1e5,minhash:1e6,chain:1e6,star:1e7

Prints one JSON line a graph. `minhash:N` is a graph of about N documents as bands make it (clusters
of Zipf's sizes, members .6 to 1 alike to their template, 14 bands of 8 rows, one in seven that
misses a band linked to another member by it), `chain:N` has N nodes in a row, its edges in no
order, `star:N` one hub. Beam runs on files (file_runner.py) with worker processes: `worker_mib` is
the peak of the largest, `runner_mib` of the process that hands out the work. `exact` compares each
node's survivor and cluster's size with scipy's connected components.
"""

import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial

import apache_beam as beam
import numpy as np
from absl import app, flags
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from data_beam.beam_options import pipeline_options
from data_beam.dedup.components import KEY, Components, Total

_GRAPHS = flags.DEFINE_list('graphs', ['minhash:1e5', 'minhash:1e6', 'chain:1e6'], 'KIND:NODES')
_PARTS = flags.DEFINE_integer('parts', 64, 'Parts of the nodes.')
_WORKERS = flags.DEFINE_integer('workers', 2, 'Worker processes.')
_WORK = flags.DEFINE_string('work_dir', '', 'Where shuffles lie; a temporary folder by default.')
_CHECK = flags.DEFINE_bool('check', True, 'Compare with scipy.')

KINDS = ('minhash', 'chain', 'star')
BLOCK = 1 << 15     # nodes, or edges, of an element: as many documents as a worker packs
_MIX = np.uint64(0x9E3779B97F4A7C15)


def mix(x: np.ndarray) -> np.ndarray:
  """Numbers shuffled as by a hash (splitmix64): uint64."""
  with np.errstate(over='ignore'):
    x = (np.asarray(x).astype(np.uint64) + np.uint64(1)) * _MIX
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def names(numbers: np.ndarray) -> np.ndarray:
  """KEY of each number."""
  return np.stack([mix(numbers), np.asarray(numbers).astype(np.uint64)], 1).view(KEY).ravel()


def length(numbers: np.ndarray) -> np.ndarray:
  """Of each document, what orders it: all differ."""
  return mix(numbers) >> np.uint64(1)


def edges(kind: str, nodes: int, block: int) -> list[tuple[np.ndarray, np.ndarray]]:
  """Edges (u, v) between numbers, of one of the graph's `BLOCK`s of nodes; one part each."""
  at = np.arange(block * BLOCK, min((block + 1) * BLOCK, nodes))
  if kind == 'star':
    return [(at, np.zeros_like(at))]
  if kind == 'chain':     # consecutive edges must not stand in one block
    step = next(p for p in (1_000_003, 999_983, 7) if nodes % p)
    i = at * step % nodes
    return [(i, np.minimum(i + 1, nodes - 1))]
  rng = np.random.default_rng(block)
  sizes = np.minimum(1 + rng.zipf(2.2, len(at)), 20_000)
  cluster = np.repeat(np.arange(len(sizes)), sizes)[:len(at)]
  alike = rng.uniform(.6, 1, len(at))
  members = rng.permutation(len(at))      # so that the first of a band is another each time
  found = []
  for _ in range(14):
    hit = rng.random(len(at)) < alike ** 8
    drift = np.flatnonzero(~hit & (rng.random(len(at)) < .15))
    drift = drift[(drift > 0) & (cluster[drift] == cluster[drift - 1])]
    order = rng.permutation(np.flatnonzero(hit))
    order = order[np.argsort(cluster[order], kind='stable')]
    _, first, index = np.unique(cluster[order], return_index=True, return_inverse=True)
    found.append((at[members[np.concatenate([order, drift])]],
                  at[members[np.concatenate([order[first[index]], drift - 1])]]))
  return found


def members(nodes: int, block: int) -> tuple[np.ndarray, list[Total]]:
  """Of one block the documents, with what orders them in the pipeline."""
  at = np.arange(block * BLOCK, min((block + 1) * BLOCK, nodes))
  keys = names(at)
  return keys, [Total((0.0, -n, f'https://example.org/{i}', f'<urn:uuid:{i:032x}>', key), 1)
                for i, n, key in zip(at.tolist(), length(at).tolist(), keys.tolist(), strict=True)]


def fingerprint(nodes: np.ndarray, best: np.ndarray, size: np.ndarray) -> int:
  """One number of a set of (hash of a node, its cluster's best, its size), whatever their order."""
  return int(mix(nodes ^ mix(best ^ mix(size))).sum(dtype=np.uint64)) % 2**62


def peak_mib() -> int:
  """The most memory that this process has held, MiB (getrusage would count its parent's)."""
  with open('/proc/self/status') as f:
    return int(f.read().split('VmHWM:')[1].split()[0]) >> 10


def outcome(block: tuple[np.ndarray, list[Total]]) -> tuple[int, int, int, int]:
  """(nodes, fingerprint, largest cluster, peak MiB here) of a block that the pipeline gave."""
  best = np.array([-total.best[1] for total in block[1]], np.uint64)
  size = np.array([total.size for total in block[1]], np.uint64)
  hashes = np.ascontiguousarray(block[0]).view(np.uint64)[::2]
  return len(hashes), fingerprint(hashes, best, size), int(size.max()), peak_mib()


def add(outcomes: Iterable[tuple[int, int, int, int]]) -> tuple[int, int, int, int]:
  """The outcome of several blocks."""
  count, prints, largest, peak = zip((0, 0, 0, 0), *outcomes, strict=True)
  return sum(count), sum(prints) % 2**62, max(largest), max(peak)


def blocks(nodes: int) -> range:
  """The numbers of a graph's blocks."""
  return range(-(-nodes // BLOCK))


def named_edges(block: int, kind: str, nodes: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """The edges of a block, as the pipeline has them."""
  for u, v in edges(kind, nodes, block):
    yield names(u), names(v)


def run(kind: str, nodes: int, parts: int, workers: int, folder: str) -> dict:
  """One graph through Beam: what was found, and what it took."""
  flags_ = ['--runner=files', f'--work_processes={workers}', f'--work_dir={folder}']
  start = time.monotonic()
  with tempfile.NamedTemporaryFile('r') as file:
    pipeline = beam.Pipeline(options=pipeline_options(flags_))
    numbers = pipeline | beam.Create(list(blocks(nodes))) | beam.Reshuffle()
    found = ((numbers | 'edges' >> beam.FlatMap(named_edges, kind, nodes),
              numbers | 'members' >> beam.Map(partial(members, nodes)))
             | Components(parts) | beam.Map(outcome) | beam.CombineGlobally(add))
    _ = found | 'write' >> beam.Map(partial(write, file.name))
    pipeline.run().wait_until_finish()
    *found, peak = json.load(file)
  return {'found': tuple(found), 'seconds': round(time.monotonic() - start, 1),
          'worker_mib': peak, 'runner_mib': peak_mib()}


def write(path: str, found: tuple[int, int, int, int]) -> None:
  """Leaves an outcome in a file."""
  with open(path, 'w') as f:
    json.dump(found, f)


def expected(kind: str, nodes: int) -> tuple[int, int, int]:
  """The outcome by scipy's connected components, all in one place."""
  parts = [part for block in blocks(nodes) for part in edges(kind, nodes, block)]
  u, v = (np.concatenate([part[i] for part in parts]) for i in range(2))
  graph = coo_matrix((np.ones(len(u), bool), (u, v)), (nodes, nodes))
  count, label = connected_components(graph, directed=False)
  size, best = np.bincount(label, minlength=count), np.zeros(count, np.uint64)
  order = length(np.arange(nodes))
  np.maximum.at(best, label, order)
  joined = np.flatnonzero(size[label] > 1)
  label = label[joined]
  return len(joined), fingerprint(mix(joined), best[label], size[label].astype(np.uint64)), int(
    size.max())


def main(argv: list[str]) -> None:
  """Prints a JSON line for each graph."""
  del argv
  for graph in _GRAPHS.value:
    kind, _, nodes = graph.partition(':')
    if kind not in KINDS or not nodes:
      raise app.UsageError(f'{graph!r}: give KIND:NODES, of kinds {", ".join(KINDS)}')
    with tempfile.TemporaryDirectory(dir=_WORK.value or None) as folder:
      row = run(kind, int(float(nodes)), _PARTS.value, _WORKERS.value, folder)
    found = row.pop('found')
    row |= {'clustered': found[0], 'largest': found[2]}
    if _CHECK.value:
      row['exact'] = found == expected(kind, int(float(nodes)))
    print(json.dumps({'graph': graph, 'parts': _PARTS.value, **row}), flush=True)


if __name__ == '__main__':
  app.run(main)

"""How much of the held-out text is known from training, in any corpus? One JSON line.

  python -m experiments.benchmarks.held_out runs/quickstart/tokens/web runs/quickstart/tokens/pdf

Of each corpus, tokenised by one tokenizer: how many documents are held out, how many of them share
more than half of their runs of 20 tokens with the training text of all corpora together, how many
with that of their own alone, and the largest share. `known` is the share of `more_than_half`.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_beam import records
from data_beam.dedup.minhash import ngram_hashes

RUN = 20  # tokens


def _documents(path: str, split: str) -> Iterator[np.ndarray]:
  """The distinct runs of each document, as numbers: sorted uint64."""
  manifest = records.read_manifest(path, 'tokenised')
  ids = np.random.default_rng(0).integers(1 << 63, size=manifest['vocab_size'], dtype=np.uint64)
  for row in records.read_corpus(path, split):
    yield np.unique(ngram_hashes(ids[np.frombuffer(row['tokens'], manifest['dtype'])], RUN))


def measure(paths: Sequence[str]) -> dict[str, dict[str, Any]]:
  """By name of the corpus; a path is DIR/NAME/1.0.0 or DIR/NAME."""
  held_out, found = {}, {}
  for path in paths:
    manifest = records.read_manifest(path, 'tokenised')
    count = manifest['splits'].get('validation', {}).get('documents')
    held_out[path] = list(_documents(path, 'validation')) if count else []
  wanted = np.unique(np.concatenate([np.empty(0, np.uint64), *itertools.chain(*held_out.values())]))
  seen_CW = np.zeros((len(paths), len(wanted)), bool)  # which runs a corpus trains on
  for i, path in enumerate(paths):
    for runs in _documents(path, 'train'):
      seen_CW[i, np.searchsorted(wanted, np.intersect1d(runs, wanted))] = True
  for i, path in enumerate(paths):
    places = [np.searchsorted(wanted, runs) for runs in held_out[path] if len(runs)]
    everywhere = [seen_CW[:, at].any(axis=0).mean() for at in places]
    own = [seen_CW[i, at].mean() for at in places]
    known = sum(bool(share > 0.5) for share in everywhere)
    found[records.read_manifest(path)['name']] = {
      'held_out': len(held_out[path]), 'more_than_half': known,
      'known': round(known / max(1, len(held_out[path])), 4),
      'in_its_own_corpus': sum(bool(share > 0.5) for share in own),
      'most': round(float(max(everywhere, default=0)), 3)}
  return found


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog='python -m experiments.benchmarks.held_out', description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('corpora', nargs='+', help='tokenised corpora that are trained on together')
  found = measure(parser.parse_args(argv).corpora)
  print(json.dumps({'benchmark': 'held_out', 'run': RUN, **found}))


if __name__ == '__main__':
  main()

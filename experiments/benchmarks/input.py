"""Times the input of training: packed batches from a tokenised corpus, one JSON line.

  python -m experiments.benchmarks.input --corpus=tokens/web/1.0.0 --rows=16 --seq_len=4096

Nothing is trained on. `restart_seconds` is the time to the first batch from the last position.
"""

import json
import os
import time

from absl import app, flags

from smoljax.data.batches import Batches, Stage, prefetch
from smoljax.data.corpus import open_corpus

_CORPUS = flags.DEFINE_string('corpus', None, 'Tokenised corpus.', required=True)
_ROWS = flags.DEFINE_integer('rows', 16, 'Rows a batch.')
_SEQ_LEN = flags.DEFINE_integer('seq_len', 4096, 'Tokens a row.')
_WINDOW = flags.DEFINE_integer('window', 2048, 'Documents shuffled and packed together.')
_BATCHES = flags.DEFINE_integer('batches', 100, 'Batches timed, after ten.')


def main(argv: list[str]) -> None:
  """Prints tokens a second of reading and packing a corpus, as one JSON line."""
  del argv
  corpus = open_corpus(_CORPUS.value)
  stage = Stage('all', 0, _BATCHES.value + 20, {corpus.name: 1.0})
  batches = Batches({corpus.name: corpus}, [stage], rows=_ROWS.value, seq_len=_SEQ_LEN.value,
                    window=_WINDOW.value, max_segments=0, seed=0)
  iterator = prefetch(batches)
  for _ in range(10):
    next(iterator)
  began, cpu_began, places = time.perf_counter(), time.process_time(), 0
  for _ in range(_BATCHES.value):
    places += int((next(iterator)['segment_ids'] > 0).sum())
  seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
  position = iterator.get_state()
  iterator.close()
  began = time.perf_counter()
  again = prefetch(batches, position)
  next(again)
  restart = time.perf_counter() - began
  again.close()
  print(json.dumps({
    'benchmark': 'input',
    'tokens_per_sec': round(places / seconds),
    'tokens_per_cpu_sec': round(places / cpu_seconds),
    'fill': round(places / (_BATCHES.value * _ROWS.value * _SEQ_LEN.value), 4),
    'documents': len(corpus.lengths),
    'rows': _ROWS.value,
    'seq_len': _SEQ_LEN.value,
    'max_segments': batches.max_segments,
    'restart_seconds': round(restart, 3),
    'cores': len(os.sched_getaffinity(0)),
  }))


if __name__ == '__main__':
  app.run(main)

"""Runs of words that stand twice: CPU-seconds and memory of cutting them; whether all are found.

  python -m experiments.benchmarks.substrings --input='/usr/share/doc/**' --megabytes=100

Prints one JSON line. A file is a document, as text (.gz unpacked), in the order of their names
until `--megabytes` are read; what is no UTF-8, empty or a copy of a file before is left out. Beam
runs on files (file_runner.py) with `--workers` processes. `cpu_seconds` and `worker_mib` (the peak
of the largest) are of the whole run, imports included. `--check` compares, document by document,
how many words are cut with a sort of all runs in this process: some 60 bytes a word.
"""

import glob
import gzip
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
from absl import app, flags

from data_beam.beam_options import pipeline_options
from data_beam.dedup import parts
from data_beam.dedup.exact import content_key
from data_beam.records import Document, Reject

_INPUT = flags.DEFINE_multi_string('input', None, 'Patterns of files, ** for any depth.',
                                   required=True)
_MEGABYTES = flags.DEFINE_float('megabytes', 100, 'Of text that are read.')
_WORDS = flags.DEFINE_integer('words', 50, 'Of a run.')
_WORKERS = flags.DEFINE_integer('workers', 2, 'Worker processes.')
_CHECK = flags.DEFINE_bool('check', False, 'Compare with a sort of all runs.')


def read(path: str) -> str:
  """A file's text, '' if it is none."""
  opened = gzip.open if path.endswith('.gz') else open
  try:
    with opened(path, 'rb') as f:
      return f.read(1 << 26).decode()
  except (OSError, EOFError, ValueError):
    return ''


def documents(paths: list[str]) -> Iterator[Document]:
  """A document of each file."""
  for path in paths:
    yield Document(id=path, text=read(path))


def choose(patterns: list[str], size: float) -> tuple[list[str], int]:
  """Files that are text, until there are `size` bytes; and how many there are."""
  found = sorted({path for pattern in patterns for path in glob.glob(pattern, recursive=True)
                  if os.path.isfile(path)})
  paths, total, seen = [], 0, set()
  for path in found:
    text = read(path)
    if text.strip() and (key := content_key(text)) not in seen:
      seen.add(key)
      paths.append(path)
      total += len(text.encode())
    if total >= size:
      break
  return paths, total


def told(result: Document | Reject) -> tuple[None, tuple[str, int]]:
  """A document's name, and how many words were cut of it."""
  document = result.document if isinstance(result, Reject) else result
  return None, (document.id, sum(document.metadata.get('cut', {}).values()))


def write(group: tuple[None, Iterable[tuple[str, int]]], path: str) -> None:
  """What was cut, as JSON."""
  with open(path, 'w', encoding='utf-8') as f:
    json.dump(dict(group[1]), f)


def cut(paths: list[str], words: int, workers: int) -> dict[str, int]:
  """How many words are cut of each document, by Beam."""
  with tempfile.TemporaryDirectory() as folder:
    options = pipeline_options(['--runner=files', f'--work_processes={workers}'])
    with beam.Pipeline(options=options) as pipeline:
      both = (pipeline | beam.Create([paths[at:at + 64] for at in range(0, len(paths), 64)])
              | beam.Reshuffle() | beam.FlatMap(documents) | parts.Substrings(words))
      _ = (both | beam.Flatten() | beam.Map(told) | beam.GroupByKey()
           | beam.Map(write, f'{folder}/cut'))
    with open(f'{folder}/cut', encoding='utf-8') as f:
      return json.load(f)


def expected(paths: list[str], words: int) -> dict[str, int]:
  """The same by a sort of all runs."""
  found = sorted(documents(paths), key=parts.owner)
  lengths, keys = [], []
  for document in found:
    hashes = parts.word_hashes(parts.words_of(document.text))
    lengths.append(len(hashes))
    both = np.zeros((len(hashes), 2), np.uint64)    # a run ends within its document
    for column, factor in enumerate((0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F)):
      total = np.zeros(max(0, len(hashes) - words + 1), np.uint64)
      for i in range(words):
        total = total * np.uint64(factor) + hashes[i:i + len(total)]
      both[:len(total), column] = total
    keys.append(both)
  ends = np.cumsum(lengths)
  all_keys = np.concatenate(keys)
  runs = np.concatenate([np.arange(max(0, n - words + 1)) + end - n
                         for n, end in zip(lengths, ends, strict=True)])
  rows = all_keys[runs].view([('a', np.uint64), ('b', np.uint64)]).ravel()
  order = np.lexsort((rows['b'], rows['a']))        # stable: of equal ones the first leads
  again = np.zeros(len(order), bool)
  again[1:] = rows[order[1:]] == rows[order[:-1]]
  starts = runs[order[again]]
  ways = np.zeros(len(all_keys) + words, np.int64)
  np.add.at(ways, starts, 1)
  np.add.at(ways, starts + words, -1)
  gone = np.cumsum(np.cumsum(ways) > 0)
  at = gone[ends - 1]
  return {d.id: int(n) for d, n in zip(found, np.diff(at, prepend=0), strict=True)}


def main(argv: list[str]) -> None:
  """Prints the line."""
  del argv
  paths, size = choose(_INPUT.value, _MEGABYTES.value * 1e6)
  before, start = cpu(), time.time()
  found = cut(paths, _WORDS.value, _WORKERS.value)
  line = {'documents': len(paths), 'megabytes': round(size / 1e6, 1),
          'seconds': round(time.time() - start), 'cpu_seconds': round(cpu() - before, 1),
          'worker_mib': resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10,
          'words_cut': sum(found.values()), 'cut_documents': sum(map(bool, found.values()))}
  if _CHECK.value:
    line['exact'] = found == expected(paths, _WORDS.value)
  print(json.dumps(line), flush=True)


def cpu() -> float:
  """CPU-seconds of this process and of its children that have ended."""
  return sum(u.ru_utime + u.ru_stime
             for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


if __name__ == '__main__':
  app.run(main)

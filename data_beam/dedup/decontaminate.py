"""Documents that quote evaluation sets."""

import functools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystems import FileSystems

from data_beam.dedup.exact import with_metadata
from data_beam.dedup.minhash import ngram_hashes, word_hashes
from data_beam.records import Reject
from data_beam.text.normalize import simplify

# --- decontamination -------------------------------------------------------------------------


class Decontaminate(beam.PTransform):
  """PCollection[Document] -> (kept, rejects): drops documents that quote an evaluation set.

  A document is dropped if it shares `ngram` consecutive words with an item of the evaluation sets,
  words as `simplify` has them (no case, punctuation, accents or values of numbers); items shorter
  than that are looked for whole if they have at least `shortest` words. Runs in which half of the
  words are repeats, such as sums of numbers, do not count. The reason is the name of
  the set; `metadata['contaminated']` lists set, line number of the item and the words shared, one
  entry per item, ten at most.
  """

  def __init__(self, evaluation_files: Sequence[str], ngram: int = 13, shortest: int = 8):
    super().__init__()
    if not evaluation_files:
      raise ValueError('Decontaminate needs the JSONL files of at least one evaluation set')
    if not 1 <= shortest <= ngram:
      raise ValueError(f'shortest is {shortest}: it must be between 1 and ngram, which is {ngram}')
    self.files, self.ngram, self.shortest = tuple(evaluation_files), ngram, shortest

  def expand(self, documents: Any) -> Any:
    """PCollections (kept, rejects)."""
    split = documents | beam.FlatMap(
      _decontaminate, self.files, self.ngram, self.shortest).with_outputs('rejects', main='kept')
    return split.kept, split.rejects


def _decontaminate(document, files, ngram, shortest):
  found = contamination(document.text, files, ngram, shortest)
  if found:
    yield beam.pvalue.TaggedOutput('rejects', Reject(
      with_metadata(document, contaminated=found[:10]), 'decontaminate', found[0]['set']))
  else:
    yield document


def contamination(
  text: str, evaluation_files: tuple[str, ...], ngram: int = 13, shortest: int = 8,
) -> list[dict[str, Any]]:
  """Which items of evaluation sets a text quotes: [{set, item, words}], in order of appearance."""
  index = _evaluation_index(tuple(evaluation_files), ngram, shortest)
  simple = simplify(text)
  hashes = word_hashes(simple)
  found: dict[tuple[str, int], tuple[int, int]] = {}
  for length, (keys, items) in index.items():
    grams = ngram_hashes(hashes, length)
    at = np.minimum(np.searchsorted(keys, grams), len(keys) - 1)
    for place in np.flatnonzero(keys[at] == grams).tolist():
      item = items[int(at[place])]
      if item not in found or place < found[item][0]:
        found[item] = place, length
  return [{'set': name, 'item': line, 'words': ' '.join(simple[place:place + length])}
          for (name, line), (place, length) in sorted(found.items(), key=lambda f: (f[1], f[0]))]


@functools.lru_cache(maxsize=2)
def _evaluation_index(
  files: tuple[str, ...], ngram: int, shortest: int,
) -> dict[int, tuple[np.ndarray, list[tuple[str, int]]]]:
  """{length: (sorted hashes of the n-grams, the item each is from)}."""
  grams: dict[int, dict[int, tuple[str, int]]] = {}
  for path in files:
    name = os.path.basename(path).removesuffix('.jsonl')
    with FileSystems.open(path) as file:
      for number, line in enumerate(file):
        if not line.strip():
          continue
        try:
          row = json.loads(line)
        except ValueError as error:
          raise ValueError(f'{path}, line {number + 1}, is not JSON: {error}') from error
        for part in _strings(row):
          hashes = word_hashes(simplify(part))
          length = min(ngram, len(hashes))
          if length < shortest:
            continue
          window = np.sort(np.lib.stride_tricks.sliding_window_view(hashes, length), axis=1)
          varied = (window[:, 1:] != window[:, :-1]).sum(axis=1) + 1 > length // 2
          for gram in ngram_hashes(hashes, length)[varied].tolist():
            grams.setdefault(length, {}).setdefault(gram, (name, number))
  index = {}
  for length, found in grams.items():
    keys = sorted(found)
    index[length] = np.array(keys, np.uint64), [found[key] for key in keys]
  return index


def _strings(value: Any) -> Iterator[str]:
  """All texts of a JSON value, each by itself: a question, one of its answers, and so on."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, dict):
    for part in value.values():
      yield from _strings(part)
  elif isinstance(value, list):
    for part in value:
      yield from _strings(part)

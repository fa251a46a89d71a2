"""Documents that quote evaluation sets, word for word or nearly so, in any pipeline.

  python -m data_beam.decontaminate --corpus=corpora/web/1.0.0 [--output=removed.jsonl]

prints what was removed from a corpus and from which evaluation it was: a JSON line for each set.
"""

import argparse
import collections
import functools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystems import FileSystems

from data_beam import records
from data_beam.command_line import Parser, complain
from data_beam.dedup.exact import with_metadata
from data_beam.dedup.minhash import ngram_hashes, word_hashes
from data_beam.records import Reject
from data_beam.sources.files import expand
from data_beam.text.normalize import simple_words

SEED = 5          # words of a run that an item and a document share, where they are nearly the same
SHORTEST = 20     # words of an item of which it can be told
HOT = 20          # a run that more items have says nothing
STRETCH = 1.25    # a document's place is at most so much longer than the item

# --- the stage -----------------------------------------------------------------------------------


def decontamination(options: Any) -> list[tuple[str, beam.PTransform]]:
  """The stage that options ask for by `decontaminate` and `near_verbatim`, or none."""
  if not options.decontaminate:
    return []
  files = [file['path'] for file in expand(options.decontaminate)]
  return [('decontaminate', Decontaminate(files, near=options.near_verbatim))]


class Decontaminate(beam.PTransform):
  """PCollection[Document] -> (kept, rejects): drops documents that quote an evaluation set.

  A document is dropped if it shares `ngram` consecutive words with an item of the evaluation sets,
  words as `simple_words` has them (no case, punctuation, accents or values of numbers); items
  shorter than that are looked for whole if they have at least `shortest` words. Runs in which half
  of the words are repeats, such as sums of numbers, do not count. So is one that has nearly an
  item: the share `near` of the words of an item of 20 at least, in runs of five, in one place.

  The reason is the name of the set; `metadata['contaminated']` lists set, line number of the item
  and the words shared, and of what is nearly the same the share as `cover`, one entry per item, ten
  at most.
  """

  def __init__(self, evaluation_files: Sequence[str], ngram: int = 13, shortest: int = 8,
               near: float = .8):
    super().__init__()
    if not evaluation_files:
      raise ValueError('Decontaminate needs the JSONL files of at least one evaluation set')
    if not 1 <= shortest <= ngram:
      raise ValueError(f'shortest is {shortest}: it must be between 1 and ngram, which is {ngram}')
    self.files, self.settings = tuple(evaluation_files), (ngram, shortest, near)

  def expand(self, documents: Any) -> Any:
    """PCollections (kept, rejects)."""
    split = documents | beam.FlatMap(_decontaminate, self.files, *self.settings).with_outputs(
      'rejects', main='kept')
    return split.kept, split.rejects


def _decontaminate(document, files, ngram, shortest, near):
  found = contamination(document.text, files, ngram, shortest, near)
  if found:
    yield beam.pvalue.TaggedOutput('rejects', Reject(
      with_metadata(document, contaminated=found[:10]), 'decontaminate', found[0]['set']))
  else:
    yield document


# --- what a text quotes --------------------------------------------------------------------------


class Items(NamedTuple):
  """Evaluation sets, as they are looked for.

  Attributes:
    quotes: {length: (sorted hashes of the n-grams, the item each is from)}.
    names: (set, line number) of each text of an item that is long enough to be nearly quoted.
    sizes: int64 [texts], words of each.
    seeds: uint64, sorted hashes of runs of SEED words, repeated for each text that has one.
    texts: int64, the number of the text that each seed is from.
    places: int64, where in it.
  """

  quotes: dict[int, tuple[np.ndarray, list[tuple[str, int]]]]
  names: list[tuple[str, int]]
  sizes: np.ndarray
  seeds: np.ndarray
  texts: np.ndarray
  places: np.ndarray


def contamination(
  text: str, evaluation_files: tuple[str, ...], ngram: int = 13, shortest: int = 8,
  near: float = .8,
) -> list[dict[str, Any]]:
  """Which items of evaluation sets a text quotes: [{set, item, words}], in order of appearance;
  those that it has nearly, with `cover`. See Decontaminate for the arguments."""
  items = _items(tuple(evaluation_files), ngram, shortest)
  simple = simple_words(text)
  hashes = word_hashes(simple)
  found: dict[tuple[str, int], tuple[int, int, float]] = {}   # of an item: place, words, cover
  for length, (keys, names) in items.quotes.items():
    grams = ngram_hashes(hashes, length)
    at = np.minimum(np.searchsorted(keys, grams), len(keys) - 1)
    for place in np.flatnonzero(keys[at] == grams).tolist():
      item = names[int(at[place])]
      if item not in found or place < found[item][0]:
        found[item] = place, length, 1.
  if near:
    for item, where in _nearly(items, ngram_hashes(hashes, SEED), near):
      found.setdefault(item, where)
  return [{'set': name, 'item': line, 'words': ' '.join(simple[place:place + length])}
          | ({'cover': round(cover, 3)} if cover < 1 else {})
          for (name, line), (place, length, cover) in sorted(
            found.items(), key=lambda f: (f[1], f[0]))]


def _nearly(
  items: Items, grams: np.ndarray, near: float,
) -> Iterator[tuple[tuple[str, int], tuple[int, int, float]]]:
  """Of each text of an item of which a document's runs of words cover enough somewhere: the item,
  and the first such place, its words and the share covered."""
  low = np.searchsorted(items.seeds, grams)
  count = np.searchsorted(items.seeds, grams, 'right') - low
  places = np.repeat(np.arange(len(grams)), count)
  if not len(places):
    return
  entries = np.arange(len(places)) + np.repeat(low - np.cumsum(count) + count, count)
  texts = items.texts[entries]
  order = np.argsort(texts, kind='stable')
  for group in np.split(order, np.flatnonzero(np.diff(texts[order])) + 1):
    text = int(texts[group[0]])
    size = int(items.sizes[text])
    least = near * size
    if len(group) * SEED < least:
      continue
    at, inside = places[group], items.places[entries[group]]
    ends = np.searchsorted(at, at + int(STRETCH * size) - SEED, 'right')
    for start in np.flatnonzero((ends - np.arange(len(at))) * SEED >= least)[:1000].tolist():
      covered = np.zeros(size, bool)
      for i in range(SEED):
        covered[inside[start:ends[start]] + i] = True
      if covered.sum() >= least:
        end = int(at[ends[start] - 1]) + SEED
        yield items.names[text], (int(at[start]), end - int(at[start]), float(covered.mean()))
        break


@functools.lru_cache(maxsize=2)
def _items(files: tuple[str, ...], ngram: int, shortest: int) -> Items:
  names, sizes = [], []
  quotes: dict[int, list[tuple[np.ndarray, tuple[str, int]]]] = {}
  seeds: list[np.ndarray] = []
  places: list[np.ndarray] = []
  for name, number, part in _parts(files):
    hashes = word_hashes(simple_words(part))
    length = min(ngram, len(hashes))
    if length < shortest:
      continue
    quoted = ngram_hashes(hashes, length)[_varied(hashes, length, length // 2)]
    if len(quoted):
      quotes.setdefault(length, []).append((quoted, (name, number)))
    if len(hashes) >= SHORTEST:
      varied = _varied(hashes, SEED, SEED // 2)
      names.append((name, number))
      sizes.append(len(hashes))
      seeds.append(ngram_hashes(hashes, SEED)[varied])
      places.append(np.flatnonzero(varied))
  keys = np.concatenate([np.zeros(0, np.uint64), *seeds])
  order = np.argsort(keys, kind='stable')
  _, index, count = np.unique(keys[order], return_inverse=True, return_counts=True)
  order = order[count[index] <= HOT]
  texts = np.repeat(np.arange(len(seeds)), list(map(len, seeds)))
  return Items(
    {length: _first_of(found) for length, found in quotes.items()}, names,
    np.array(sizes, np.int64), keys[order], texts[order],
    np.concatenate([np.zeros(0, np.int64), *places])[order])


def _first_of(
  found: Sequence[tuple[np.ndarray, tuple[str, int]]],
) -> tuple[np.ndarray, list[tuple[str, int]]]:
  """Hashes, sorted, and of each the first item that has it."""
  keys, first = np.unique(np.concatenate([keys for keys, _ in found]), return_index=True)
  owner = np.repeat(np.arange(len(found)), [len(keys) for keys, _ in found])
  return keys, [found[i][1] for i in owner[first].tolist()]


def _varied(hashes: np.ndarray, length: int, least: int) -> np.ndarray:
  """Of each run of `length` words, whether more than `least` are different: bool."""
  window = np.sort(np.lib.stride_tricks.sliding_window_view(hashes, length), axis=1)
  return (window[:, 1:] != window[:, :-1]).sum(axis=1) + 1 > least


def _parts(files: Sequence[str]) -> Iterator[tuple[str, int, str]]:
  """(name of the set, line number, text) of all texts of evaluation sets."""
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
          yield name, number, part


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


# --- the report ----------------------------------------------------------------------------------


def removed(corpus: str) -> Iterator[dict[str, Any]]:
  """What decontamination dropped from a finished corpus: {id, url, contaminated} of each document.

  Raises CorpusError where there is no such corpus, or its rejects are gone.
  """
  manifest = records.read_manifest(corpus, 'curated')
  rejects = records.read_manifest(records.rejects_path(manifest), 'rejects')
  for file, count in records.list_shards(rejects):
    for row in records.read_shard(file, count, 'rejects'):
      if row['stage'] == 'decontaminate':
        yield {'id': row['id'], 'url': row['url'],
               'contaminated': row['metadata'].get('contaminated', [])}


def report(documents: Iterator[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """One row for each evaluation set that `removed` documents quote.

  `documents` quote it, `items` of it (their line numbers) were quoted, `verbatim` counts the quotes
  that are word for word, and `cover` those that are nearly so, by the share of the item from .5 on.
  """
  rows: dict[str, dict[str, Any]] = {}
  for document in documents:
    for quote in document['contaminated']:
      row = rows.setdefault(quote['set'], {
        'documents': set(), 'items': set(), 'verbatim': 0, 'cover': collections.Counter()})
      row['documents'].add((document['id'], document['url']))
      row['items'].add(quote['item'])
      row['verbatim'] += 'cover' not in quote
      if 'cover' in quote:
        row['cover'][next(f'{low}' for low in (.9, .8, .7, .5, 0) if quote['cover'] >= low)] += 1
  return [{'set': name, 'documents': len(row['documents']), 'verbatim': row['verbatim'],
           'cover': dict(sorted(row['cover'].items())), 'items': sorted(row['items'])}
          for name, row in sorted(rows.items(), key=lambda kv: (-len(kv[1]['documents']), kv[0]))]


def main(argv: Sequence[str] | None = None) -> int:
  """The command line. Returns 0, or 2 after one line about what was wrong."""
  parser = Parser(
    prog='python -m data_beam.decontaminate',
    description='Says what was removed from a corpus because it quotes evaluation sets: a JSON '
    'line for each set, with the items that were found, so that a model can be scored on the '
    'others. (Pipelines remove by --decontaminate, data_beam.refine from a finished corpus.)')
  parser.add_argument('--corpus', required=True, metavar='DIR', help='DIR/NAME/1.0.0')
  parser.add_argument('--output', default='', metavar='FILE',
                      help='also write each removed document, with what it quotes, as JSON lines')
  args: argparse.Namespace = parser.parse_args(argv)
  try:
    found = list(removed(args.corpus))
    for row in report(iter(found)):
      print(json.dumps(row))
    if not found:
      print('nothing was removed', file=sys.stderr)
    if args.output:
      records.write_bytes(args.output, ''.join(
        json.dumps(row, ensure_ascii=False) + '\n' for row in found).encode())
  except (ValueError, OSError) as error:
    return complain(parser.prog, error)
  return 0

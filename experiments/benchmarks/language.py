"""How well is the language of text found, and from which score on is it to be believed?

  python -m experiments.benchmarks.language --data=DIR [--every=8]

Documents of six languages (Debian's manuals, whose language is known, and books) against each
other; then, with the Universal Declaration of Human Rights in 380 languages and spellings as
counterexamples, the lowest threshold whose precision is at least --precision, and the recall that
it leaves: what language.LANGUAGE_THRESHOLDS holds. Scores of lid.176 are no probabilities on
languages that it does not know (Nigerian Pidgin is English to it), so thresholds are fitted, and
not taken from FineWeb-2, whose detector is another.
"""

import argparse
import gzip
import json
import os
import time
import zipfile
from collections.abc import Iterator

import numpy as np

from data_beam.text.language import (
  LANGUAGE_THRESHOLDS,
  OTHER_THRESHOLD,
  detect_language,
  language_sample,
)
from experiments.benchmarks.parity import LANGUAGES, texts

# The Declaration by the file names of its own languages; close relatives and other spellings of the
# six are neither right nor wrong.
OWN = {'eng': 'en', 'fra': 'fr', 'deu': 'de', 'deu_1901': 'de', 'spa': 'es', 'ita': 'it',
       'por_PT': 'pt', 'por_BR': 'pt'}


def declarations(data: str) -> Iterator[tuple[str, str]]:
  """(language, 1,500 characters of the Declaration); the language is '' for all but the six."""
  with zipfile.ZipFile(f'{data}/text/udhr2.zip') as archive:
    for name in sorted(archive.namelist()):
      stem = name.removeprefix('udhr2/').removesuffix('.txt')
      if stem:
        body = archive.read(name).decode('utf-8', 'replace')
        for start in range(0, len(body) - 500, 1500):
          yield OWN.get(stem, ''), body[start:start + 1500]


def books(data: str) -> Iterator[tuple[str, str]]:
  """(language, text) of the books, whole and in parts of 60,000 characters."""
  folder = f'{data}/text/gutenberg'
  for book in sorted(os.listdir(folder)):
    with gzip.open(f'{folder}/{book}') as file:
      body = file.read().decode('latin-1' if 'latin1' in book else 'utf-8', 'replace')
    yield book[:2], body
    for start in range(0, len(body), 60_000):
      yield book[:2], body[start:start + 60_000]


def believed(found: tuple[str, float]) -> str:
  """The language, or '' if its score is too low to keep the document."""
  language, score = found
  at = LANGUAGE_THRESHOLDS.get(language, OTHER_THRESHOLD)
  return language if score > at else ''


def threshold(truth: np.ndarray, scores: np.ndarray, precision: float) -> tuple[float, ...]:
  """(threshold, precision, recall): the lowest threshold above which precision is reached."""
  order = np.argsort(-scores, kind='stable')
  right, found = truth[order], scores[order]
  precisions = np.cumsum(right) / np.arange(1, len(right) + 1)
  good = np.flatnonzero((precisions >= precision) & (found > 0))
  if not len(good):
    return 1., 0., 0.
  last = good[-1]
  lower = found[last + 1] if last + 1 < len(found) else 0.
  return (found[last] + lower) / 2, precisions[last], right[:last + 1].sum() / truth.sum()


def main() -> None:
  """Prints how often each language was told right, and at which score it can be believed."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--data', required=True, help='folder of the shared test data')
  parser.add_argument('--texts', help='texts that the benchmark parity has kept')
  parser.add_argument('--every', type=int, default=8, help='take every n-th page of the manuals')
  parser.add_argument('--precision', type=float, default=.98)
  args = parser.parse_args()
  if args.texts:
    with open(args.texts) as file:
      rows = [(row['language'], row['text']) for row in map(json.loads, file)]
  else:
    rows = [(row['language'], row['text']) for row in texts(args.data, args.every)]
  rows = [(language, text) for language, text in rows if len(text) >= 200]
  documents, whole = [*rows, *books(args.data)], None
  for name, cut in (('whole document', lambda text: text),
                    ('sample of 5,000 characters', language_sample),
                    ('first 5,000 characters', lambda text: text[:5000]),
                    ('first 200 characters', lambda text: text[:200])):
    start = time.process_time()
    found = [next(iter(detect_language(cut(text))), ('', 0.)) for _, text in documents]
    seconds = time.process_time() - start
    whole = whole or [believed(f) for f in found]
    best = [language for language, _ in found]
    right = np.array([a == b for a, (b, _) in zip(best, documents, strict=True)])
    print(json.dumps({
      'text': name, 'documents': len(documents), 'accuracy': round(right.mean(), 4),
      'decides_unlike_whole': sum(a != believed(b) for a, b in zip(whole, found, strict=True)),
      'docs_per_cpu_second': round(len(documents) / seconds),
      **{k: round(right[[k == b for b, _ in documents]].mean(), 4) for k in LANGUAGES}}))
  # The manuals of the five other languages hold pages left in English: no fair counterexamples.
  own, rows = rows, list(declarations(args.data))
  rows += own
  detected = [dict(detect_language(text)[:1]) for _, text in rows]
  for language in LANGUAGES:
    scores = np.array([found.get(language, 0.) for found in detected])
    truth = np.array([language == b for b, _ in rows])
    fair = truth | (np.arange(len(rows)) < len(rows) - len(own))
    truth, scores = truth[fair], scores[fair]
    at, precision, recall = threshold(truth, scores, args.precision)
    print(json.dumps({'language': language, 'threshold': round(at, 3),
                      'documents': int(truth.sum()), 'precision': round(precision, 4),
                      'recall': round(recall, 4)}))


if __name__ == '__main__':
  main()

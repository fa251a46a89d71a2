"""Text layer or OCR: whose text layer is not to be used. By rules, or by a trained classifier.

  python -m data_beam.pdf_route label --input='papers/*.pdf' --output=labels.jsonl
  python -m data_beam.pdf_route train --labels=labels.jsonl --output=router.txt
  python -m data_beam.pdf_route evaluate --labels=labels.jsonl [--router=router.txt]
  python -m data_beam.pdf --router=router.txt …

Labels come from agreement: a page is read by OCR as well, and where OCR is sure and its words are
not those of the text layer, the layer is not to be used. Or write them by hand: a line a page,
{"file": …, "page": …, "ocr": true, "features": …} (the features are those of pdf_pages.read_page).
The classifier is a gradient-boosted one (LightGBM), kept as text, which holds nothing to execute.
"""
import argparse
import collections
import functools
import hashlib
import json
import math
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

PAGES = 8                   # of a document that are labelled
THRESHOLD = 0.2             # of the classifier: FinePDFs' (a page lost is dearer than one OCR)
AGREE = 0.6                 # F1 of the two bags of words
FEATURES = ('characters', 'hidden', 'garbled', 'picture', 'vowels')


def needs_ocr(feature: dict[str, Any]) -> str:
  """Why a page should be read by OCR, or '': the rules.

  The thresholds are those measured on 71 real files: few characters on a picture, mostly hidden
  text (somebody's OCR under a scan), a picture of the whole page with little text, fonts without a
  map to Unicode, or with one that makes no language.
  """
  f = feature
  if (f['characters'] < 200 and f['picture'] > 0.3) or (
      f['characters'] < 1500 and f['picture'] > 0.8):
    return 'picture'
  if f['hidden'] > 0.5:
    return 'hidden'
  if f['characters'] and f['garbled'] > 0.1:
    return 'garbled'
  if f['vowels'] is not None and not 0.2 <= f['vowels'] <= 0.65:
    return 'garbled'
  return ''


@functools.cache
def decider(router: str = '') -> Callable[[dict[str, Any]], str]:
  """`needs_ocr`, or a classifier of the same form, whose only reason is 'classifier'.

  Raises ValueError where the file is no classifier of ours.
  """
  if not router:
    return needs_ocr
  model = load(router)
  return lambda feature: 'classifier' if probability(model, [feature])[0] >= THRESHOLD else ''


def matrix(features: Iterable[dict[str, Any]]):
  """float64 [N, len(FEATURES)]; what is not known is NaN, which the classifier can handle."""
  return np.array([[math.nan if f[name] is None else f[name] for name in FEATURES]
                   for f in features], np.float64).reshape(-1, len(FEATURES))


def load(path: str):
  """A classifier that `train` has written."""
  import fsspec
  import lightgbm

  with fsspec.open(path, 'rt') as f:
    text = f.read()
  if f'feature_names={" ".join(FEATURES)}\n' not in text:
    raise ValueError(f'{path} is no classifier of pages: make one by data_beam.pdf_route train')
  return lightgbm.Booster(model_str=text)


def digest(path: str) -> str:
  """What tells one classifier from another: sha256 of its trees."""
  return hashlib.sha256(load(path).model_to_string().encode()).hexdigest()


def probability(model, features: Sequence[dict[str, Any]]):
  """That each page needs OCR: [N]."""
  return model.predict(matrix(features), num_threads=1)


def train(rows: Sequence[dict[str, Any]], seed: int = 0):
  """A classifier of labelled pages; documents count alike, however many pages they have.

  FinePDFs' settings where LightGBM has them: rate .1, depth 5, 200 trees.
  """
  import lightgbm

  pages = collections.Counter(row['file'] for row in rows)
  data = lightgbm.Dataset(
    matrix(row['features'] for row in rows), [bool(row['ocr']) for row in rows],
    weight=[1 / pages[row['file']] for row in rows], feature_name=list(FEATURES))
  return lightgbm.train({
    'objective': 'binary', 'learning_rate': 0.1, 'max_depth': 5, 'min_data_in_leaf': 2,
    'min_sum_hessian_in_leaf': 1e-3, 'seed': seed, 'deterministic': True, 'num_threads': 1,
    'verbose': -1}, data, 200)


def cross_validated(rows: Sequence[dict[str, Any]], folds: int = 5) -> list[bool]:
  """For each page what a classifier says that has not seen its document."""
  fold = np.array([zlib.crc32(row['file'].encode()) % folds for row in rows])
  out = np.zeros(len(rows), bool)
  for k in range(folds):
    seen, kept = (np.flatnonzero(fold != k), np.flatnonzero(fold == k))
    if len(seen) and len(kept):
      model = train([rows[i] for i in seen])
      out[kept] = probability(model, [rows[i]['features'] for i in kept]) >= THRESHOLD
  return out.tolist()


def judge(rows: Sequence[dict[str, Any]], decisions: Sequence[bool]) -> dict[str, Any]:
  """Of documents (more than half of their pages decide): missed ones, false alarms, by name."""
  votes: dict[str, list[list[bool]]] = collections.defaultdict(lambda: [[], []])
  for row, decision in zip(rows, decisions, strict=True):
    for side, value in zip(votes[row['file']], (row['ocr'], decision), strict=True):
      side.append(bool(value))
  most = {file: [2 * sum(side) > len(side) for side in sides] for file, sides in votes.items()}
  return {'documents': len(most), 'ocr': sum(truth for truth, _ in most.values()),
          'misses': [file for file, (truth, said) in most.items() if truth and not said],
          'false_alarms': [file for file, (truth, said) in most.items() if said and not truth]}


def label(body: bytes, file: str, languages: Sequence[str]) -> Iterator[dict[str, Any]]:
  """Labelled pages of a PDF, evenly spread; those of which OCR is not sure are left out."""
  from data_beam import pdf_text

  with pdf_text.Extractor() as extractor:
    layer = extractor.extract(body, ocr='never', languages=languages)
    seen = extractor.extract(body, ocr='always', languages=languages)
  for i in sorted({round(x) for x in np.linspace(0, len(layer.pages) - 1, PAGES)}):
    sure = seen.ocr_confidence[i]
    if sure is None or sure < 0.8 or seen.page_methods[i] != 'ocr':
      continue
    bags = [collections.Counter(re.findall(r'\w+', found.pages[i].lower()))
            for found in (layer, seen)]
    both, total = (bags[0] & bags[1]).total(), bags[0].total() + bags[1].total()
    yield {'file': file, 'page': i, 'ocr': 2 * both / max(1, total) < AGREE,
           'features': {name: layer.features[i][name] for name in FEATURES}}


def main(argv: Sequence[str] | None = None) -> int:
  """The command line. Returns 0, or 2 after one line about what was wrong with the input."""
  parser = argparse.ArgumentParser(
    prog='python -m data_beam.pdf_route', allow_abbrev=False,
    description='Labels pages of PDFs by OCR, trains a classifier that tells which need it, and '
    'says how well it and the rules do.')
  commands = parser.add_subparsers(dest='command', required=True)
  add = commands.add_parser('label', help='read pages both ways, and compare').add_argument
  add('--input', nargs='+', required=True, metavar='GLOB')
  add('--languages', default='en', metavar='CODES')
  add('--output', required=True, metavar='FILE')
  add = commands.add_parser('train', help='fit a classifier').add_argument
  add('--labels', nargs='+', required=True, metavar='FILE')
  add('--output', required=True, metavar='FILE')
  add = commands.add_parser('evaluate', help='misses and false alarms').add_argument
  add('--labels', nargs='+', required=True, metavar='FILE')
  add('--router', metavar='FILE', help='a classifier; without, one is cross-validated')
  args = parser.parse_args(argv)
  try:
    return {'label': _label, 'train': _train, 'evaluate': _evaluate}[args.command](args)
  except (ValueError, OSError, LookupError) as error:
    print(f'data_beam.pdf_route: {type(error).__name__}: {error}', file=sys.stderr)
    return 2


def _label(args: argparse.Namespace) -> int:
  from data_beam import pdf_text, sources

  with open(args.output, 'w') as out:
    for entry in sources.expand(args.input):
      with sources.open_file(entry['path']) as f:
        body = f.read()
      try:
        for row in label(body, entry['path'], args.languages.split(',')):
          out.write(json.dumps(row) + '\n')
      except pdf_text.PdfError as error:
        print(f'{entry["path"]}: {error}', file=sys.stderr)
  return 0


def _rows(paths: Sequence[str]) -> list[dict[str, Any]]:
  rows = []
  for path in paths:
    with open(path) as f:
      rows += [json.loads(line) for line in f if line.strip()]
  if len({bool(row['ocr']) for row in rows}) < 2:
    raise ValueError(f'{", ".join(paths)}: pages of both kinds are needed')
  return rows


def _train(args: argparse.Namespace) -> int:
  train(_rows(args.labels)).save_model(args.output)
  return 0


def _evaluate(args: argparse.Namespace) -> int:
  rows = _rows(args.labels)
  features = [row['features'] for row in rows]
  print(json.dumps({'by': 'rules', **judge(rows, [bool(needs_ocr(f)) for f in features])}))
  if args.router:
    decisions = probability(load(args.router), features) >= THRESHOLD
    print(json.dumps({'by': args.router, **judge(rows, decisions.tolist())}))
  else:
    print(json.dumps({'by': 'classifier, cross-validated', **judge(rows, cross_validated(rows))}))
  return 0


if __name__ == '__main__':
  sys.exit(main())

"""Trains and judges the classifier of router: whose text layer is not to be used.

  python -m data_beam.pdf_route label --input='papers/*.pdf' --output=labels.jsonl
  python -m data_beam.pdf_route train --labels=labels.jsonl --output=router.txt
  python -m data_beam.pdf_route evaluate --labels=labels.jsonl [--router=router.txt]
  python -m data_beam.pdf --router=router.txt …

Labels come from agreement: a page is read by OCR as well, and where OCR is sure and its words are
not those of the text layer, the layer is not to be used. Or write them by hand: a line a page,
{"file": …, "page": …, "ocr": true, "features": …} (the features are those of pages.read_page).
"""

import argparse
import collections
import json
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_beam.command_line import Parser, complain
from data_beam.pdf import router
from data_beam.pdf.errors import PdfError
from data_beam.pdf.text import Extractor
from data_beam.sources.files import expand, open_file

PAGES = 8                   # of a document that are labelled
AGREE = 0.6                 # F1 of the two bags of words


def train(rows: Sequence[dict[str, Any]], seed: int = 0) -> Any:
  """A classifier of labelled pages; documents count alike, however many pages they have.

  FinePDFs' settings where LightGBM has them: rate .1, depth 5, 200 trees.
  """
  import lightgbm

  pages = collections.Counter(row['file'] for row in rows)
  data = lightgbm.Dataset(
    router.matrix(row['features'] for row in rows), [bool(row['ocr']) for row in rows],
    weight=[1 / pages[row['file']] for row in rows], feature_name=list(router.FEATURES))
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
      out[kept] = router.probability(model, [rows[i]['features'] for i in kept]) >= router.THRESHOLD
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
  with Extractor() as extractor:
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
           'features': {name: layer.features[i][name] for name in router.FEATURES}}


def main(argv: Sequence[str] | None = None) -> int:
  """The command line. Returns 0, or 2 after one line about what was wrong with the input."""
  parser = Parser(
    prog='python -m data_beam.pdf_route',
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
    return complain(parser.prog, error)


def _label(args: argparse.Namespace) -> int:
  with open(args.output, 'w') as out:
    for entry in expand(args.input):
      with open_file(entry['path']) as f:
        body = f.read()
      try:
        for row in label(body, entry['path'], args.languages.split(',')):
          out.write(json.dumps(row) + '\n')
      except PdfError as error:
        print(f'{entry["path"]}: {error}', file=sys.stderr)
  return 0


def _rows(paths: Sequence[str]) -> list[dict[str, Any]]:
  rows = []
  for path in paths:
    try:
      with open(path) as f:
        rows += [json.loads(line) for line in f if line.strip()]
    except ValueError as e:
      raise ValueError(f'{path} holds no JSON lines: {e}') from e
  if len({bool(row['ocr']) for row in rows}) < 2:
    raise ValueError(f'{", ".join(paths)}: pages of both kinds are needed')
  return rows


def _train(args: argparse.Namespace) -> int:
  train(_rows(args.labels)).save_model(args.output)
  return 0


def _evaluate(args: argparse.Namespace) -> int:
  rows = _rows(args.labels)
  features = [row['features'] for row in rows]
  print(json.dumps({'by': 'rules', **judge(rows, [bool(router.needs_ocr(f)) for f in features])}))
  if args.router:
    decisions = router.probability(router.load(args.router), features) >= router.THRESHOLD
    print(json.dumps({'by': args.router, **judge(rows, decisions.tolist())}))
  else:
    print(json.dumps({'by': 'classifier, cross-validated', **judge(rows, cross_validated(rows))}))
  return 0


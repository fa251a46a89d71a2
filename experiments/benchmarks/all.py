"""Every hot path in small on a CPU, each beside a reference in the same call: one table.

  python -m experiments.benchmarks.all [--only=attention,optimizer] [--json]

For each line a benchmark of this folder is run at a size that takes seconds, as a process of its
own, and what it measured is divided by what a reference took there: PyTorch, transformers, optax,
trafilatura, pdfium, or another way to do the same. Times of a busy machine mean little, their
ratios more. Below 1 ours is the faster; `bar` is where a ratio means that something became slow,
far above the usual one; what is beyond it is measured once more, both sides. Ends with status 1 if
one is beyond its bar, or a benchmark failed. What a reference needs and is not installed is left
out and said. Not here: what needs a GPU, a corpus or hours (kills, contests, scaling).
"""

import functools
import importlib.util
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import app, flags

_ONLY = flags.DEFINE_list('only', [], 'Parts of names of lines to run; all if none.')
_JSON = flags.DEFINE_bool('json', False, 'A JSON line for each instead of a table.')

Rows = Sequence[dict]  # what a benchmark printed
_STEP = 'train_step --shape=tiny --rows=4 --seq_len=128 --chunk=64 --steps=8'
_CASES = pathlib.Path(__file__).resolve().parents[2] / 'tests' / 'data_beam'


class Line(NamedTuple):
  """One line of the table."""

  name: str
  against: str
  commands: tuple[str, ...]  # benchmarks of this folder, or functions of this file as ':name'
  ratio: Callable[..., float]  # the rows of each command → ours over the reference's
  bar: float
  needs: str = ''  # a module that the reference is in


def row(rows: Rows, **fields: Any) -> dict:
  """The first row with these fields."""
  return next(r for r in rows if all(r.get(k) == v for k, v in fields.items()))


def _step(ours: Rows, theirs: Rows) -> float:
  return theirs[0]['tokens_per_sec'] / ours[0]['tokens_per_sec']


LINES = (
  Line('training step', 'PyTorch', (_STEP, f'{_STEP} --framework=torch'), _step, 1.2, 'torch'),
  Line('step with Muon', 'with AdamW', (f'{_STEP} --optimizer=muon', _STEP), _step, 3.0),
  Line('step with a module of MTP', 'without', (f'{_STEP} --model=mtp=sequential', _STEP), _step,
       2.0),
  Line('step of fine-tuning', 'of pretraining', (f'{_STEP} --objective=sft', _STEP), _step, 1.5),
  Line('step of DPO', 'of pretraining', (f'{_STEP} --objective=dpo', _STEP), _step, 2.5),
  Line('Newton–Schulz', "optax's", ('newton_schulz --stack=2,128,512 --only=float32,smoljax'
                                    ' --repeat=5',),
       lambda rows: row(rows, variant='smoljax jordan')['ms'] / row(
         rows, variant='optax, float32')['ms'], 2.0),
  Line('optimizer: Muon', 'optax.contrib.muon', ('optimizer_step --shape=tiny --repeat=5',),
       lambda rows: row(rows, optimizer='muon pe5')['ms'] / row(
         rows, optimizer='optax.contrib.muon')['ms'], 1.5),
  Line('attention, packed', 'one document', ('attention --size=tiny --repeats=5',),
       lambda rows: row(rows, implementation='xla', packed=True)['forward_backward_ms'] / row(
         rows, implementation='xla', packed=False)['forward_backward_ms'], 3.0),
  Line('decoding', 'transformers', (
    'decode --size=tiny --batch=2 --prompt=16 --new=32 --runs=2 --against=transformers',),
       lambda rows: row(rows, case='transformers')['tokens_per_sec'] / row(
         rows, case='greedy')['tokens_per_sec'], 1.2, 'transformers'),
  Line('memory of a long row', 'whole logits', ('long_context --size=tiny --repeats=2',),
       lambda rows: rows[0]['planned_temporaries_gb'] / rows[0]['whole_logits_gb'], 5.0),
  Line('web extraction', 'trafilatura', (':web',), lambda rows: rows[0]['ratio'], 0.6,
       'trafilatura'),
  Line('text of PDFs', "pdfium's plain text", (':pdf',), lambda rows: rows[0]['ratio'], 12.0),
)


def web() -> None:
  """Prints CPU seconds of our extractor over trafilatura's, on the pages of the tests."""
  import trafilatura

  from data_beam.web import extract as html_text

  pages = [path.read_bytes() for path in sorted((_CASES / 'cases' / 'web').glob('*.html'))]
  theirs = lambda page: trafilatura.extract(html_text.decode(page))
  print(json.dumps({'pages': len(pages), 'ratio': _cpu(html_text.extract, pages) / _cpu(
    theirs, pages)}))


def pdf() -> None:
  """Prints CPU seconds of our reading of pages over pdfium's, on the PDFs of the tests."""
  import pypdfium2

  from data_beam.pdf import text

  files = [path.read_bytes() for path in sorted((_CASES / 'pdf' / 'cases').glob('*/in.pdf'))]

  def plain(body: bytes) -> None:
    document = pypdfium2.PdfDocument(body)
    for page in document:
      page.get_textpage().get_text_bounded()

  ours = functools.partial(text.parse, ocr='never')
  print(json.dumps({'files': len(files), 'ratio': _cpu(ours, files) / _cpu(plain, files)}))


def _cpu(function: Callable[[bytes], Any], inputs: Sequence[bytes]) -> float:
  """The least CPU seconds of three rounds over the inputs, after one for imports."""
  seconds = []
  for _ in range(4):
    began = time.process_time()
    for x in inputs:
      function(x)
    seconds.append(time.process_time() - began)
  return min(seconds[1:])


@functools.cache
def rows_of(command: str) -> tuple[dict, ...]:
  """What a benchmark prints, run as a process of its own; ValueError with its last line if it
  fails."""
  name, *arguments = command.split()
  line = [sys.executable, '-m', 'experiments.benchmarks.' + name, *arguments]
  if name.startswith(':'):
    line = [sys.executable, '-c', f'from experiments.benchmarks import all; all.{name[1:]}()']
  done = subprocess.run(line, capture_output=True, text=True)
  if done.returncode:
    raise ValueError((done.stderr.strip().splitlines() or ['no message'])[-1])
  return tuple(json.loads(x) for x in done.stdout.splitlines() if x.startswith('{'))


def measure(line: Line) -> dict:
  """The line's figures: ratio, bar, seconds that it took, or why there are none."""
  found: dict[str, Any] = {'name': line.name, 'against': line.against, 'bar': line.bar}
  if line.needs and importlib.util.find_spec(line.needs) is None:
    return found | {'skipped': f'{line.needs} is not installed'}
  began = time.perf_counter()
  try:
    ratio = line.ratio(*map(rows_of, line.commands))
    if ratio > line.bar:  # both sides again: other work may have begun between them
      rows_of.cache_clear()
      ratio = min(ratio, line.ratio(*map(rows_of, line.commands)))
    found['ratio'] = round(ratio, 3)
  except (ValueError, KeyError, StopIteration) as error:
    found['failed'] = str(error)[:200] or type(error).__name__
  return found | {'seconds': round(time.perf_counter() - began, 1)}


def main(_: list[str]) -> None:
  """Prints a line for each benchmark as it is done."""
  slow = 0
  for line in LINES:
    if _ONLY.value and not any(part in line.name for part in _ONLY.value):
      continue
    found = measure(line)
    bad = 'failed' in found or found.get('ratio', 0) > found['bar']
    slow += bad
    text = found.get('ratio', found.get('skipped', found.get('failed')))
    print(json.dumps(found) if _JSON.value else
          f'{line.name:<28}{"over " + line.against:<28}{text!s:>8}  (bar {line.bar:g})'
          f'{"  SLOW" if bad else ""}', flush=True)
  sys.exit(bool(slow))


if __name__ == '__main__':
  app.run(main)

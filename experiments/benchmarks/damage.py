"""What do a flipped bit and a cut in any file of a run lead to? One JSON line.

  python -m experiments.benchmarks.damage --output=DIR [--cases=200] [--kinds=seals,study]

A run of the whole path, one that learns from a teacher's cache, and a search are stopped where what
they have written is read next. One bit of one file is flipped, or the file is cut, kind by kind of
file in turn; then the same command is given again. What came of it, for each kind:

  told     it said so, naming the file, and ended with the undisturbed result
  mended   it did not, but the file was written anew, and the result is right
  unread   it did not, the file is as damaged, and the result is right: nobody reads that part
           (what fills blocks of ArrayRecord files, unused pages of the study's database, the end
           of a line that a kill might have cut)
  silent   it did not, the file is as damaged, and somebody will read it; or the result is wrong
  blocked  it ended with another status than 0

The last two are faults. DIR keeps what was prepared, and every case's outcome: a call goes on.
"""

import argparse
import collections
import dataclasses
import importlib
import json
import os
import pathlib
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import app
from ml_collections import ConfigDict

from experiments import run as run_command
from experiments import search as search_command
from experiments.benchmarks import kills
from experiments.engine.cli import read_json, write_json
from smoljax import metrics

_LOOK = os.WEXITED | os.WNOHANG | os.WNOWAIT
OUTCOMES = ('told', 'mended', 'unread', 'silent', 'blocked')


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of file.

  Attributes:
    stage: key of STAGES: the workdir in which it is damaged.
    files: patterns of the files, below the workdir.
    idle: parts of it need not be read.
  """

  stage: str
  files: Sequence[str]
  idle: bool = False


KINDS = {
  'crawl': Kind('curated', ['steps/selfdocs-*/**/*']),
  'documents': Kind('curated', ['steps/web-*/web/1.0.0/*.array_record*'], idle=True),
  'manifests': Kind('curated', ['steps/web-*/web/1.0.0/*.json', 'steps/web-*/web/1.0.0/_SUCCESS']),
  'tokenizer': Kind('tokenised', ['steps/tokenizer-*/tokenizer*']),
  'tokens': Kind('tokenised', ['steps/tokenize_web-*/web/1.0.0/*.array_record*'],
                 idle=True),
  'lengths': Kind('tokenised', ['steps/tokenize_web-*/web/1.0.0/*.npy']),
  'manifests of tokens': Kind('tokenised', [
    'steps/tokenize_web-*/web/1.0.0/*.json', 'steps/tokenize_web-*/web/1.0.0/_SUCCESS']),
  'records of steps': Kind('tokenised', ['steps/*/step.json']),
  'teacher cache': Kind('cached', ['steps/teacher_*/docs/1.0.0/*'], idle=True),
  'checkpoints': Kind('stopped', ['steps/train-*.partial/checkpoints/80/**/*']),
  'seals': Kind('stopped', ['steps/train-*.partial/checkpoints/_integrity/80.json']),
  'rows': Kind('stopped', ['steps/train-*.partial/metrics.jsonl'], idle=True),
  'events': Kind('stopped', ['steps/train-*.partial/events.jsonl'], idle=True),
  'inputs of steps': Kind('stopped', ['steps/train-*.partial/inputs.json']),
  'evaluations': Kind('finished', ['steps/evaluate-*/evals/*']),
  'exports': Kind('finished', ['steps/export-*/export/*', 'steps/export-*/samples.json']),
  'reports': Kind('finished', ['steps/report-*/report/*']),
  'summaries': Kind('finished', ['summary.json', 'config.json']),
  'study': Kind('searched', ['search.db'], idle=True),
  'log of the study': Kind('searched', ['search.jsonl']),
}


def get_config(arg: str = '') -> ConfigDict:
  """Of the whole path, `arg` = '', or of a student of the teacher in a folder of inputs."""
  c = kills.get_config(arg)
  c.train.tokens, c.train.checkpoint_every = 120 * 512, 40
  c.mesh.data = c.mesh.fsdp = c.mesh.tensor = c.mesh.context = 1
  if arg:
    c.distill.teacher, c.distill.cache, c.distill.draws = f'{arg}/teacher', 'sampled', 4
  else:
    c.corpora, c.tokenizer.path, c.tokenizer.vocab_size = '', '', 600
    c.web.enabled, c.web.filters, c.web.min_language_score = True, 'docs', 0.5
    c.selfdocs.pages, c.selfdocs.pdfs = 160, 0
    c.tokenize.holdout = 0.2
    c.train.stages = (dict(name='all', fraction=1.0, mixture=dict(web=1.0)),)
  return c


# --- Commands, in a child of this process, which has imported what takes seconds ------------------


def _run(inputs: pathlib.Path, work: pathlib.Path) -> int:
  return _app([f'--config={__file__}', f'--workdir={work}'])


def _student(inputs: pathlib.Path, work: pathlib.Path) -> int:
  return _app([f'--config={__file__}:{inputs}', f'--workdir={work}'])


def _app(argv: list[str]) -> int:
  sys.argv = ['experiments.run', *argv]
  app.run(run_command.main, flags_parser=run_command._parse)
  return 0


def _search(trials: int) -> Callable[[pathlib.Path, pathlib.Path], int]:
  return lambda inputs, work: search_command.main([
    f'--config={kills.__file__}:{inputs}', f'--workdir={work}', f'--trials={trials}', '--widen=0'])


@dataclasses.dataclass(frozen=True)
class Stage:
  """A workdir that stands still.

  Attributes:
    command: what is given again.
    before: what brought it so far; the command if None.
    until: a file, as a pattern, at which it was killed; '' if it ended. A step is done, and what it
      wrote is read and not made anew, when its folder has no name but with eight digits.
    digest: of the result, as in kills.py.
  """

  command: Callable[[pathlib.Path, pathlib.Path], int]
  digest: Callable[[pathlib.Path], Mapping[str, Any]]
  until: str = ''
  before: Callable[[pathlib.Path, pathlib.Path], int] | None = None


STAGES = {
  'curated': Stage(_run, kills.training, 'steps/tokenizer-????????/step.json'),
  'tokenised': Stage(_run, kills.training, 'steps/tokenize_web-????????/step.json'),
  'stopped': Stage(_run, kills.training, 'steps/train-*/checkpoints/_integrity/80.json'),
  'finished': Stage(_run, kills.training),
  'cached': Stage(_student, kills.training, 'steps/teacher_docs-????????/step.json'),
  'searched': Stage(_search(3), kills.searched, before=_search(2)),
}


def _begin(
  command: Callable, inputs: pathlib.Path, work: pathlib.Path, log: pathlib.Path,
  digest: Callable[[pathlib.Path], Mapping[str, Any]] | None = None,
) -> int:
  """Runs a command in a child, whose process id is returned, with its words in a file.

  This process itself never uses jax, Beam or ArrayRecord, so that it can be forked: a child lacks
  their threads, and ends by a segmentation fault where it uses what the parent has begun. What
  `digest` says of the result is in the file beside the workdir.
  """
  sys.stdout.flush()
  if pid := os.fork():
    return pid
  os.setsid()
  with open(log, 'wb') as f:
    os.dup2(f.fileno(), 1)
    os.dup2(f.fileno(), 2)
  try:
    status = command(inputs, work)
  except SystemExit as e:
    status = e.code if isinstance(e.code, int) else bool(e.code)
  except BaseException as e:
    print(f'{type(e).__name__}: {e}')
    status = 1
  if digest and not status:
    write_json(f'{work}.digest', digest(work))
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status or 0)


def _end(pid: int) -> int:
  return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Place:
  """Where cases are: DIR/work, always the same, since files say where they are of."""

  def __init__(self, root: pathlib.Path):
    self.root, self.work, self.log = root, root / 'work', root / 'log.txt'
    self.inputs = root / 'inputs'

  def prepare(self, name: str) -> dict[str, Any]:
    """Makes a stage, kept in DIR/NAME, where it is not there; the digest of its end."""
    stage, kept = STAGES[name], self.root / name
    if not (kept / 'digest.json').exists():
      shutil.rmtree(kept, ignore_errors=True)
      self.take(None)
      pid = _begin(stage.before or stage.command, self.inputs, self.work, self.log)
      while stage.until and not (ended := os.waitid(os.P_PID, pid, _LOOK)) and not list(
          self.work.glob(stage.until)):
        time.sleep(0.002)
      if stage.until and not ended:
        os.killpg(pid, signal.SIGKILL)
      if (status := _end(pid)) != (-signal.SIGKILL if stage.until else 0):
        raise ValueError(f'{name}: status {status}: {self.log.read_text()[-500:]}')
      shutil.copytree(self.work, kept / 'work', symlinks=True)
      if self.finish(stage):
        raise ValueError(f'{name}, undisturbed: {self.log.read_text()[-500:]}')
      (kept / 'rows').write_text(json.dumps(self.rows()))
      write_json(kept / 'digest.json', self.digest())
    return read_json(kept / 'digest.json')

  def take(self, name: str | None) -> None:
    """Puts the workdir of a stage, or an empty one, in its place."""
    shutil.rmtree(self.work, ignore_errors=True)
    if name:
      shutil.copytree(self.root / name / 'work', self.work, symlinks=True)

  def finish(self, stage: Stage) -> int:
    """Gives the command; its status."""
    return _end(_begin(stage.command, self.inputs, self.work, self.log, stage.digest))

  def digest(self) -> dict[str, Any]:
    """Of what the finished command left."""
    return read_json(f'{self.work}.digest')

  def rows(self) -> list[str]:
    """Of the finished run's metrics."""
    path = self.work / 'metrics.jsonl'
    return [json.dumps(r) for r in kills.rows(path)] if path.exists() else []


def case(place: Place, name: str, rng: np.random.Generator, cut: bool) -> dict[str, Any]:
  """Damages a file of a kind and gives the command again; where, and what came of it."""
  kind = KINDS[name]
  stage, wanted = STAGES[kind.stage], place.prepare(kind.stage)
  place.take(kind.stage)
  found = sorted({p for pattern in kind.files for p in place.work.glob(pattern)
                  if p.is_file() and not p.name.endswith('.lock')})
  file = found[rng.integers(len(found))]
  data = bytearray(file.read_bytes())
  at = int(rng.integers(max(1, len(data))))
  if cut or not data:
    data = data[:at] if data else bytearray(b'?')
  else:
    data[at] ^= 1 << int(rng.integers(8))
  file.write_bytes(data)
  status = place.finish(stage)
  row = {'kind': name, 'file': str(file.relative_to(place.work)), 'at': at, 'cut': cut}
  said = place.log.read_text('utf-8', 'replace')
  if status:
    return row | {'outcome': 'blocked', 'why': said.strip().splitlines()[-1:]}
  result = place.digest()
  wrong = kills.differences(result, wanted)
  if name == 'rows':  # of the past, which nobody can measure again
    wrong = [k for k in wrong if not k.startswith(('trained ', 'measured '))]
  if name == 'rows':
    known = json.loads((place.root / kind.stage / 'rows').read_text())
    wrong += ['a row that nobody wrote'] * bool(set(place.rows()) - set(known))
  words = {file.name, 'checkpoints/80'} if name in ('checkpoints', 'seals') else {file.name}
  told = any(w in line and ('damaged' in line or 'warning' in line or 'not as' in line or
                            'missing' in line or 'cannot be read' in line)
             for line in said.splitlines() for w in words)
  finished = place.work / row['file'].replace('.partial/', '/')
  mended = not finished.exists() or finished.read_bytes() != bytes(data)
  outcome = ('silent' if wrong else 'told' if told else 'mended' if mended else
             'unread' if kind.idle else 'silent')
  return row | {'outcome': outcome} | ({'wrong': wrong[:5]} if wrong else {})


def prepare(root: pathlib.Path) -> Place:
  """The inputs, and a teacher on them; modules are imported before any child begins."""
  # Programs are compiled once: here, where jax is imported already, and in what children start.
  programs = str(root / 'xla')
  os.environ |= {'JAX_COMPILATION_CACHE_DIR': programs,
                 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  jax.config.update('jax_compilation_cache_dir', programs)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  for name in ('data_beam.tokenize_corpus', 'data_beam.web.pipeline', 'smoljax.train.loop',
               'experiments.engine.teacher_cache', 'smoljax.checkpoints.export_formats',
               'smoljax.evals', 'smoljax.report.run_page'):
    importlib.import_module(name)
  warnings.filterwarnings('ignore', 'os.fork')  # none of their threads has begun
  root.mkdir(parents=True, exist_ok=True)
  place = Place(root)
  for what, made, make in (
      ('inputs', place.inputs, lambda inputs, work: kills.prepare(inputs)),
      ('teacher', place.inputs / 'teacher/summary.json', lambda inputs, work: _app([
        f'--config={kills.__file__}:{inputs}', f'--workdir={inputs}/teacher']))):
    if not made.exists() and _end(_begin(make, place.inputs, place.work, place.log)):
      raise ValueError(f'no {what}: {place.log.read_text()[-500:]}')
  return place


def main(argv: Sequence[str] | None = None) -> int:
  """The command line; the status is 1 if there was a fault."""
  parser = argparse.ArgumentParser(
    prog='python -m experiments.benchmarks.damage', description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--output', required=True, help='folder of what is prepared, and outcomes')
  parser.add_argument('--cases', type=int, default=200, help='in turn through the kinds')
  parser.add_argument('--kinds', type=lambda s: s.split(','), default=list(KINDS),
                      help=f'with commas, of {", ".join(KINDS)}')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--minutes', type=float, default=600.0, help='after which no case is begun')
  args = parser.parse_args(argv)
  if unknown := set(args.kinds) - KINDS.keys():
    parser.error(f'unknown kind {min(unknown)!r}: of {", ".join(KINDS)}')
  began = time.monotonic()
  place = prepare(pathlib.Path(args.output).absolute())
  done = place.root / 'cases.jsonl'
  before = {(r['seed'], r['number'], r['kind']): r for r in metrics.read_rows(done)}
  table = {name: collections.Counter() for name in args.kinds}
  for number in range(args.cases):
    name = args.kinds[number % len(args.kinds)]
    row = before.get((args.seed, number, name))
    if row is None and time.monotonic() < began + 60 * args.minutes:
      rng = np.random.default_rng([args.seed, number])
      cut = number // len(args.kinds) % 2 == 1
      since = time.monotonic()
      row = {'seed': args.seed, 'number': number, **case(place, name, rng, cut)}
      row['seconds'] = round(time.monotonic() - since, 1)
      with done.open('a') as f:
        f.write(json.dumps(row) + '\n')
      print(json.dumps(row), file=sys.stderr, flush=True)
    if row:
      table[name][row['outcome']] += 1
  total = sum(table.values(), collections.Counter())
  print(json.dumps({'benchmark': 'damage', 'seed': args.seed, 'cases': total.total(),
                    **{k: total[k] for k in OUTCOMES}, 'kinds': table}))
  return int(bool(total['silent'] + total['blocked']))


if __name__ == '__main__':
  sys.exit(main())

"""Is anything lost, or done twice, when commands die at any moment? SIGKILLs; one JSON line.

  python -m experiments.benchmarks.kills --output=DIR [--kills=100] [--kinds=web,pdf] [--minutes=8]

Each kind of work is one command of this repository, small. It is run once undisturbed, which gives
its wall time T and what it leaves. Then it is begun in an empty folder, killed by SIGKILL at a
moment drawn evenly from 0 to T, and begun again by the same command until it ends by itself; this
is repeated until the kind has had its share of the kills. Every second kill is of the command's
process alone, whose children must end by themselves, the others are of its children too, as when a
machine goes down. Counted are

  different  rounds whose result is not the undisturbed one's: corpora byte by byte; of trainings
             the parameters bit by bit, the rows of metrics but for times, scores, samples, exports;
             of sweeps and searches those of each point, and the study's trials
  twice      what was finished, or saved in a sealed checkpoint, before a kill and done again after
  orphans    rounds after which a process of theirs still ran
  failed     commands that ended with another status than 0, unless they were killed

A training that is told to end, as those of a sweep are when it dies, saves at once and measures so
far: a row more, after which the next one is of fewer steps. These two are no other result.

Start by start the seed decides when and how. DIR keeps the rounds' results, so that a call with
--minutes does a part, and the same call goes on.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import base
from experiments.engine.cli import read_json, write_json
from smoljax import metrics

FAULTS = ('different', 'twice', 'orphans', 'failed')
_PATIENCE = 30.0  # seconds in which the children of a killed command end
_TIMES = ('time/', 'perf/', 'data/wait')  # metrics that no two runs have in common


@dataclasses.dataclass(frozen=True)
class Kind:
  """One kind of work.

  Attributes:
    command: `(inputs, work) -> arguments` after `python -m`.
    digest: of what a finished command leaves in `work`, name → hash or value.
    share: how many of a hundred kills it gets.
  """

  command: Callable[[pathlib.Path, pathlib.Path], list[str]]
  digest: Callable[[pathlib.Path], dict[str, Any]]
  share: int


# --- The work: this file is also the recipe that its trainings use -------------------------------


def get_config(inputs: str = '') -> ConfigDict:
  """A training of seconds on the tokenised corpus of the inputs."""
  c = base.get_config()
  c.name = 'kills'
  c.web.enabled = c.pdf.enabled = False
  c.corpora, c.tokenizer.path = f'docs={inputs}/tokens/docs', f'{inputs}/tokenizer.model'
  c.model.update(dict(num_layers=2, embed_dim=32, mlp_dim=64, head_dim=16, num_heads=2,
                      num_kv_heads=1, dtype='float32'))
  c.data.seq_len = 64
  c.train.batch_tokens = 512
  c.train.tokens = 60 * 512
  c.train.stages = (dict(name='all', fraction=1.0, mixture=dict(docs=1.0)),)
  c.train.log_every, c.train.eval_every, c.train.checkpoint_every = 5, 30, 10
  c.train.eval_documents = 4
  c.train.tensorboard = False
  c.eval.tasks, c.eval.documents = (), 4
  c.sample.tokens = 8
  return c


def sweep() -> list[dict[str, Any]]:
  """Three points, of which one goes on from another."""
  return [{'name': 'a', 'optimizer.learning_rate': 1e-3},
          {'name': 'b', 'optimizer.learning_rate': 4e-3},
          {'name': 'c', 'train.init_from': '@a/checkpoints', 'seed': 1}]


def space() -> dict[str, Any]:
  """What the search searches."""
  return {'optimizer.learning_rate': ('log', 1e-4, 1e-2), 'optimizer.name': ['adamw', 'muon']}


def prepare(inputs: pathlib.Path) -> None:
  """A small crawl, its corpus, its tokenizer and tokens: what the kinds read."""
  from data_beam import records, tokenize_corpus
  from data_beam.options import TokenizeOptions, WebOptions
  from data_beam.web import pipeline as web
  from experiments.quickstart import crawl
  from smoljax.data import tokenizer

  if inputs.exists():
    return
  building = inputs.with_name('building')
  shutil.rmtree(building, ignore_errors=True)
  crawl.build(str(building), max_pages=160, pdfs=16)
  corpus = web.run([str(building / 'web' / '*.warc.gz')], str(building / 'corpora'), 'docs',
                   WebOptions(filters='docs', min_language_score=0.5))
  model = str(building / 'tokenizer.model')
  tokenizer.train((d['text'] for d in records.read_corpus(corpus)), model, vocab_size=600)
  tokenize_corpus.run(corpus, model, str(building / 'tokens'), 'docs', TokenizeOptions(holdout=0.2))
  building.rename(inputs)


def _run(command: str, *flags: str) -> Callable[[pathlib.Path, pathlib.Path], list[str]]:
  return lambda inputs, work: [
    f'experiments.{command}', f'--config={__file__}:{inputs}', f'--workdir={work}', *flags]


def _bytes(folder: pathlib.Path) -> dict[str, str]:
  """Of each file below a folder."""
  return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
          for p in sorted(folder.rglob('*')) if p.is_file()}


def rows(path: pathlib.Path) -> list[dict[str, Any]]:
  """Of metrics, without what no two runs have in common."""
  return [{k: v for k, v in row.items() if not k.startswith(_TIMES)}
          for row in metrics.read_rows(path)]


def training(run: pathlib.Path) -> dict[str, Any]:
  """Of the workdir of a finished run."""
  import jax

  from smoljax.checkpoints import store

  _, params, _ = store.load_params(str(run / 'checkpoints'))
  weights = hashlib.sha256(b''.join(np.asarray(x).tobytes() for x in jax.tree.leaves(params)))
  found: dict[str, Any] = {'weights': weights.hexdigest()}
  for row in rows(run / 'metrics.jsonl'):
    what = 'trained' if 'train/loss' in row else 'measured'
    found.setdefault(f'{what} {row["step"]}', []).append(
      hashlib.sha256(json.dumps(row).encode()).hexdigest()[:16])
  for name in ('evals', 'export'):
    found |= {f'{name}/{k}': v for k, v in _bytes(run / name).items()}
  del found['export/smoljax_export.json']  # which has times
  resumed = sorted({e['step'] for e in _events(run) if e['event'] == 'resume'})
  return found | {'samples': hashlib.sha256((run / 'samples.json').read_bytes()).hexdigest(),
                  'resumed': resumed}


def _points(work: pathlib.Path) -> dict[str, Any]:
  """Of the runs of a sweep or search."""
  return {f'{p.name}/{k}': v for p in sorted((work / 'points').iterdir())
          for k, v in training(p).items()}


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
  """Names of what is not as in the undisturbed result, but for rows around a save between them."""
  excused = {name for name in found | wanted if name.endswith('resumed')}
  for run, steps in [(name.removesuffix('resumed'), found.get(name, ())) for name in excused]:
    for step in steps:
      if (saved := f'{run}trained {step}') in found and saved not in wanted:
        later = [int(name.split()[-1]) for name in wanted if name.startswith(f'{run}trained ')]
        excused |= {saved, f'{run}trained {min((s for s in later if s > step), default=0)}'}
  return [name for name in found | wanted
          if name not in excused and found.get(name) != wanted.get(name)]


def searched(work: pathlib.Path) -> dict[str, Any]:
  """Of the workdir of a finished search: its runs, its trials."""
  import optuna

  optuna.logging.set_verbosity(optuna.logging.ERROR)
  study = optuna.load_study(study_name='search', storage=f'sqlite:///{work}/search.db')
  return _points(work) | {
    f'trial {t.number}': [t.state.name, t.values, sorted(t.params.items())] for t in study.trials}


KINDS = {
  'web': Kind(lambda inputs, work: [
    'data_beam.web', f'--input={inputs}/web/*.warc.gz', f'--output={work}', '--name=web',
    '--filters=docs', '--min_language_score=.5'], _bytes, 16),
  'pdf': Kind(lambda inputs, work: [
    'data_beam.pdf', f'--input={inputs}/pdf/*.pdf', f'--output={work}', '--name=pdf', '--ocr=never',
    '--filters=length'], _bytes, 16),
  'tokenize': Kind(lambda inputs, work: [
    'data_beam.tokenize_corpus', f'--input={inputs}/corpora/docs', f'--output={work}',
    f'--tokenizer={inputs}/tokenizer.model', '--holdout=.2'], _bytes, 16),
  'train': Kind(_run('run'), training, 20),
  'sweep': Kind(_run('sweep', '--parallel=2'), _points, 16),
  'search': Kind(_run('search', '--trials=3', '--processes=2', '--widen=0'), searched, 16),
}


# --- Killing it ----------------------------------------------------------------------------------


class Work:
  """One kind in a folder of its own: begun, killed, begun again; its tally is kept there."""

  def __init__(self, name: str, root: pathlib.Path, seed: int):
    self.name, self.kind, self._seed = name, KINDS[name], seed
    self._root, self._inputs = root / name, root / 'inputs'
    self._tally_file = self._root / 'tally.json'
    self.tally: dict[str, Any] = {'kills': 0, 'rounds': 0} | dict.fromkeys(FAULTS, 0)
    self.tally['starts'] = 0
    if self._tally_file.exists():
      self.tally = read_json(self._tally_file)

  def undisturbed(self) -> None:
    """Runs the command once, where that was not done; keeps its time and result."""
    if 'seconds' in self.tally:
      return
    work = self._root / 'work'  # the same folder in all rounds, since exports say where they are of
    shutil.rmtree(work, ignore_errors=True)
    self._begin(work).wait()  # the first one may compile what is kept
    shutil.rmtree(work)
    began = time.monotonic()
    if status := self._begin(work).wait():
      raise ValueError(f'{self.name}: undisturbed it ends with status {status}: {self._log(work)}')
    self.tally['seconds'] = round(time.monotonic() - began, 2)
    self.tally['digest'] = _plain(self.kind.digest(work))
    shutil.rmtree(work)
    self._keep()

  def round(self, kills: int, end: float) -> None:
    """Begins the command until it ends by itself, killed up to `kills` times in all.

    After the moment `end` it is not killed any more.
    """
    work = self._root / 'work'
    seen: list[Seen] = []
    groups = []
    while True:
      rng = np.random.default_rng([self._seed, self.tally['starts'], *self.name.encode()])
      self.tally['starts'] += 1
      process = self._begin(work)
      groups.append(process.pid)
      patience = rng.uniform(0, self.tally['seconds'])
      if self.tally['kills'] >= kills or time.monotonic() > end:
        patience = None
      try:
        status = process.wait(patience)
        break
      except subprocess.TimeoutExpired:
        seen.append(Seen.of(work))
        if self.tally['kills'] % 2:
          os.killpg(process.pid, signal.SIGKILL)
        else:
          process.kill()
        process.wait()
        self.tally['kills'] += 1
        self._keep()
    self._judge(work, status, seen, groups)

  def _judge(self, work, status, seen, groups) -> None:
    faults = []
    if status:
      faults.append(('failed', f'status {status}: {self._log(work)}'))
    else:
      other = differences(_plain(self.kind.digest(work)), self.tally['digest'])
      faults += [('different', ', '.join(other[:5]))] * bool(other)
    faults += [('twice', what) for before in seen for what in before.done_again(work)]
    faults += [('orphans', str(g)) for g in groups if not _has_ended(g)]
    for fault, what in faults:
      self.tally[fault] += 1
      kept = self._root / f'{fault}-{self.tally["rounds"]}'
      print(f'{self.name}, round {self.tally["rounds"]}: {fault}: {what}; kept in {kept}',
            file=sys.stderr)
      shutil.copytree(work, kept, symlinks=True, dirs_exist_ok=True)
    self.tally['rounds'] += 1
    self._keep()
    shutil.rmtree(work)

  def _begin(self, work: pathlib.Path) -> subprocess.Popen:
    work.mkdir(parents=True, exist_ok=True)
    cache = self._root.parent / 'xla'  # compiled once; a kill may come while it is written, too
    environment = os.environ | {
      'JAX_COMPILATION_CACHE_DIR': str(cache), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    with open(self._root / 'log.txt', 'ab') as log:
      return subprocess.Popen(
        [sys.executable, '-m', *self.kind.command(self._inputs, work)], env=environment,
        stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)

  def _log(self, work: pathlib.Path) -> str:
    lines = (self._root / 'log.txt').read_text('utf-8', 'replace').strip().splitlines()
    return lines[-1] if lines else ''

  def _keep(self) -> None:
    self._tally_file.parent.mkdir(parents=True, exist_ok=True)
    write_json(self._tally_file, self.tally)


@dataclasses.dataclass(frozen=True)
class Seen:
  """What was finished or saved in a workdir when its command was killed.

  Attributes:
    done: record of a finished step → which file that was.
    saved: folder of an unfinished training, without its ending → its newest sealed checkpoint, and
      how many events it had.
  """

  done: dict[str, tuple[int, int]]
  saved: dict[str, tuple[int, int]]

  @classmethod
  def of(cls, work: pathlib.Path) -> 'Seen':
    """Of a workdir of experiments.run, sweep or search; nothing of any other."""
    done = {str(p.relative_to(work)): (p.stat().st_ino, p.stat().st_mtime_ns)
            for p in work.glob('steps/*/step.json') if p.parent.suffix != '.partial'}
    saved = {}
    for folder in work.glob('steps/train-*.partial'):
      seals = [int(p.stem) for p in folder.glob('checkpoints/_integrity/*.json')]
      saved[folder.stem] = (max(seals, default=0), len(_events(folder)))
    return cls(done, saved)

  def done_again(self, work: pathlib.Path) -> Iterator[str]:
    """Says what of it was not taken as it was."""
    for name, was in self.done.items():
      s = (work / name).stat() if (work / name).exists() else None
      if s is None or (s.st_ino, s.st_mtime_ns) != was:
        yield f'{name} was made again'
    for name, (step, events) in self.saved.items():
      first = next((e for e in _events(work / 'steps' / name)[events:]
                    if e['event'] in ('start', 'resume')), None)
      if first and first['step'] < step:
        yield f'{name} began at step {first["step"]}, after {step} was sealed'


def _events(folder: pathlib.Path) -> list[dict]:
  return metrics.read_rows(folder / 'events.jsonl', note=lambda line: None)


def _plain(found: dict[str, Any]) -> dict[str, Any]:
  """As JSON has it."""
  return json.loads(json.dumps(found))


def _has_ended(group: int) -> bool:
  """Whether no process of a group is left, after some patience."""
  end = time.monotonic() + _PATIENCE
  while time.monotonic() < end:
    try:
      os.killpg(group, 0)
    except ProcessLookupError:
      return True
    time.sleep(0.1)
  return False


def run(
  output: str, kills: int, kinds: Sequence[str], seed: int = 0, minutes: float = 60.0
) -> dict:
  """Kills each kind's share, or what is left of it, for about `minutes`; what came of it."""
  root, end = pathlib.Path(output).absolute(), time.monotonic() + 60 * minutes
  root.mkdir(parents=True, exist_ok=True)
  prepare(root / 'inputs')
  shares = np.array([KINDS[name].share for name in kinds], float)
  # The largest remainders are rounded up, so that there are `kills` in all.
  upto = np.round(np.cumsum(shares) / shares.sum() * kills).astype(int)
  rows = {}
  for name, quota in zip(kinds, np.diff(upto, prepend=0).tolist(), strict=True):
    work = Work(name, root, seed)
    if time.monotonic() < end and work.tally['kills'] < quota:
      work.undisturbed()
    while time.monotonic() < end and work.tally['kills'] < quota:
      work.round(quota, end)
      print(name, {k: v for k, v in work.tally.items() if k != 'digest'}, file=sys.stderr)
    rows[name] = {k: v for k, v in work.tally.items() if k != 'digest'} | {'of': quota}
  total = {k: sum(row[k] for row in rows.values()) for k in ('kills', 'rounds', *FAULTS)}
  return {'benchmark': 'kills', 'seed': seed, **total, 'kinds': rows}


def main(argv: Sequence[str] | None = None) -> int:
  """The command line; the status is 1 if there was a fault."""
  parser = argparse.ArgumentParser(
    prog='python -m experiments.benchmarks.kills', description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--output', required=True, help='folder of inputs, rounds and tallies')
  parser.add_argument('--kills', type=int, default=100, help='of all kinds together')
  parser.add_argument('--kinds', type=lambda s: s.split(','), default=list(KINDS),
                      help=f'with commas, of {", ".join(KINDS)}')
  parser.add_argument('--seed', type=int, default=0, help='of moments')
  parser.add_argument('--minutes', type=float, default=60.0, help='after which no round is begun')
  args = parser.parse_args(argv)
  if unknown := set(args.kinds) - KINDS.keys():
    parser.error(f'unknown kind {min(unknown)!r}: of {", ".join(KINDS)}')
  found = run(args.output, args.kills, args.kinds, args.seed, args.minutes)
  print(json.dumps(found))
  return int(any(found[fault] for fault in FAULTS))


if __name__ == '__main__':
  sys.exit(main())

"""Which optimizer needs how many steps? A contest of equally tuned ones, with intervals.

  python -m experiments.benchmarks.optimizer_contest tokens --text='GLOB' --output=DIR
  python -m experiments.benchmarks.optimizer_contest run    --output=DIR [--seconds=500] [--names …]
  python -m experiments.benchmarks.optimizer_contest report --output=DIR
  (with --size=124m: the larger model; configs/optimizer_contest.py has whole contests as lines)

`tokens` trains a tokenizer on text files and stores their tokens, documents shuffled; two samples
of documents are held out, one to tune by and one for the verdict. `run` does what is left of the
contest of configs/optimizer_contest.py, a line in DIR/runs.jsonl each, and stops before --seconds
are over: call it again to go on. `report` writes the leaderboard, DIR/contest.md and contest.svg.

First all are tuned, a round each in turn: a round is as many runs as the chip trains side by side,
at the best cell so far and its neighbours, until one cell is the best of those around it in all
three of its rates. From there the reference and the best of the others are tuned on at full length,
and what is best runs with other seeds, judged on documents that tuning never saw. Cooldowns branch
off one stable phase at several lengths, so that the steps to the reference's final loss can be read
off, seed by seed. A contestant that comes later is run alone, --names=NAME, in the same folder: the
reference's runs there are what it is held against. A folder takes no runs of other tokens.

Copies that differ in seed, rates or initialisation alone are one compiled program, vmapped.
"""

import argparse
import concurrent.futures
import copy
import dataclasses
import functools
import glob
import gzip
import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import base, optimizer_contest
from experiments.benchmarks.optimizer_step import matrix_dims
from smoljax import files, metrics, model, optim
from smoljax.optim import averaging
from smoljax.optim import optimizer as optimizer_lib
from smoljax.optim.matrices import path_name
from smoljax.optim.qk_clip import qk_clip
from smoljax.scaling import comparison
from smoljax.train import objectives

BLOCK = 8  # steps a call; all lengths are multiples of it


# --- tokens --------------------------------------------------------------------------------------


def make_tokens(
  patterns: list[str], output: pathlib.Path, vocab_size: int, limit: int,
  held_out: Sequence[tuple[str, int]] = (), row: int = 0,
) -> None:
  """Tokenises the files that match, whole documents in a fixed random order, up to `limit`.

  Of each (name, count) of `held_out` the next `count` documents of at least `row` tokens are left
  out of training and of the tokenizer, and give their first `row` tokens to output/NAME.npy.
  """
  from smoljax.data import tokenizer

  paths = sorted({p for pattern in patterns for p in glob.glob(pattern, recursive=True)})
  if not paths:
    raise SystemExit(f'no file matches {" ".join(patterns)}')
  np.random.default_rng(0).shuffle(paths)
  seen, texts = set(), []
  for path in paths:
    opener = gzip.open if path.endswith('.gz') else open
    with opener(path, 'rb') as file:
      text = file.read().decode('utf-8', 'replace')
    if len(text) > 500 and text not in seen:
      seen.add(text)
      texts.append(text)
  output.mkdir(parents=True, exist_ok=True)
  sample = [line for text in texts[-400:] for line in text.split('\n')]
  tokenizer.train(sample, str(output / 'tokenizer.model'), vocab_size=vocab_size)
  encoder = tokenizer.load(str(output / 'tokenizer.model'))
  encode = lambda text: np.array([encoder.bos_id, *encoder.encode(text)], np.uint16)
  rest = iter(texts)
  for name, count in held_out:
    rows: list[np.ndarray] = []
    while len(rows) < count:
      if (text := next(rest, None)) is None:
        raise SystemExit(f'too few documents of {row} tokens for {count} held out as {name}')
      if len(part := encode(text)) >= row:
        rows.append(part[:row])
    np.save(output / f'{name}.npy', np.stack(rows))
  parts, total = [], 0
  for text in rest:
    parts.append(encode(text))
    total += len(parts[-1])
    if total >= limit:
      break
  tokens = np.concatenate(parts)[:limit]
  np.save(output / 'tokens.npy', tokens)
  print(f'{len(tokens):,} tokens of {len(parts):,} documents in {output}/tokens.npy')


# --- runs ----------------------------------------------------------------------------------------


class Cell(NamedTuple):
  """What a contestant is tuned in."""

  lr: float  # peak learning rate
  warmup: int  # steps; 1 = none
  third: float  # weight decay, or on a hyperball the factor on the matrices' initialisation


class Copies(NamedTuple):
  """Models that train side by side: a seed and a cell each."""

  seeds: list[int]
  cells: list[Cell]


class Data(NamedTuple):
  """The tokens to train on, and documents held out to tune by and for the verdict."""

  train: np.ndarray
  tune: np.ndarray
  test: np.ndarray
  digest: str = ''  # begins the sha256 of the file of tokens

  @classmethod
  def load(cls, folder: pathlib.Path) -> 'Data':
    """What `tokens` has written."""
    train, tune, test = (np.load(folder / f'{name}.npy') for name in ('tokens', 'tune', 'test'))
    return cls(train, tune, test, files.sha256(folder / 'tokens.npy')[:8])


def settings_of(contestant: Any) -> Any:
  """Section `optimizer` of the config of a contestant of configs/optimizer_contest.py."""
  settings = copy.deepcopy(base.get_config().optimizer)
  settings.update(contestant.get('settings', {}))
  return settings


def batch_of(rows_BX: jax.Array) -> dict[str, jax.Array]:
  """A batch whose rows, [B, T + 1] tokens, are one document each."""
  B, T = rows_BX.shape[0], rows_BX.shape[1] - 1
  return {
    'inputs': rows_BX[:, :-1].astype(jnp.int32), 'targets': rows_BX[:, 1:].astype(jnp.int32),
    'segment_ids': jnp.ones((B, T), jnp.int32), 'source': jnp.zeros(B, jnp.int32),
    'positions': jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T)),
  }  # fmt: skip


class Runner:
  """Trains many copies of one model by one contestant at once."""

  def __init__(self, contestant: Any, c: Any, data: Data):
    self.c, self.data, self.contestant = c, data, contestant
    self.config = model.ModelConfig(**c.model, **contestant.get('model', {}))
    self.settings = settings_of(contestant)
    self.abstract = model.abstract_params(self.config)
    self.labels = optim.label_params(self.settings, self.abstract)
    self.tokens = jnp.asarray(data.train)
    self.init: Any = jax.jit(jax.vmap(self._init))
    # SOAP's step branches on its number, which vmapped would take all branches.
    each = (lambda f: functools.partial(jax.lax.map, f)) if contestant.get('one_by_one') else (
      jax.vmap)
    self.advance: Any = jax.jit(
      lambda *args: each(lambda run: self._advance(*run, tokens=args[-1]))(args[:-1]))
    self.evaluate: Any = jax.jit(jax.vmap(self._evaluate, in_axes=(0, None)))

  def chain(self, lr: Any, decay: Any) -> optax.GradientTransformation:
    """The contestant's whole chain at a learning rate and weight decay that may be traced."""
    first: Any
    if name := self.contestant.get('optax'):
      labelled = dict(consistent_rms=.2, adam_b2=.95,
                      muon_weight_dimension_numbers=matrix_dims(self.abstract))
      first = (optax.contrib.muon(1.0, **(labelled if name == 'labelled' else {})),
               optax.scale(-1.0))
    else:
      first = optimizer_lib.directions(self.settings, self.labels, self.abstract)
    return optax.chain(*first, *optimizer_lib.steps(self.settings, self.labels, lr, decay, -1))

  def _init(self, seed: jax.Array, third: jax.Array) -> Any:
    params = model.init(self.config, jax.random.key(seed))
    if self.settings.hyperball:
      views = optim.matrix_views(params)
      params = jax.tree.map_with_path(
        lambda path, x: x * third if path_name(path) in views else x, params)
    return params, self.chain(1.0, 0.0).init(params)

  def _loss(self, params, rows_BT, max_logits=None):
    loss = objectives.next_token(
      self.config, params, batch_of(rows_BT), num_sources=1, max_logits=max_logits,
      total_tokens=jnp.float32(rows_BT.shape[0] * self.c.seq_len))
    return loss.total, loss.metrics

  def _advance(self, state, starts_SB, lr_S, third, tokens):
    tau = self.contestant.get('qk_clip_tau', 0.0)  # QK-Clip's; 0 = none
    decay = 0.0 if self.settings.hyperball else third

    def step(state, inputs):
      (params, opt_state), (starts_B, lr) = state, inputs
      rows_BT = tokens[starts_B[:, None] + jnp.arange(self.c.seq_len + 1)]
      measure = 'bound' if tau else None
      (loss, aux), grads = jax.value_and_grad(self._loss, has_aux=True)(params, rows_BT, measure)
      updates, opt_state = self.chain(lr, decay).update(grads, opt_state, params)
      params = jax.tree.map(jnp.add, params, updates)
      if tau:
        params = qk_clip(params, aux['max_logits_LN'], tau)
      return (params, opt_state), loss

    return jax.lax.scan(step, state, (starts_SB, lr_S))

  def _evaluate(self, state, rows_NX):
    """Mean losses on the rows of the weights as they are, and of their tail average."""
    rows_GBX = rows_NX.reshape(-1, math.gcd(len(rows_NX), 32), rows_NX.shape[1])
    mean = lambda params: jnp.mean(jax.lax.map(lambda rows: self._loss(params, rows)[0], rows_GBX))
    params, opt_state = state
    if not self.settings.tail_steps:
      return jnp.stack([mean(params)] * 2)
    mixed = averaging.mixture(params, opt_state, self.settings.tail_weight)
    return jnp.stack([mean(params), mean(mixed)])

  def start(self, copies: Copies) -> Any:
    """Fresh states."""
    third = np.array([cell.third for cell in copies.cells], np.float32)
    return self.init(jnp.asarray(copies.seeds, jnp.int32), third)

  def compile(self, copies: int) -> None:
    """Compiles all there is, for so many copies; may be called from a thread."""
    of = jax.ShapeDtypeStruct
    seeds, thirds = of((copies,), jnp.int32), of((copies,), jnp.float32)
    state = jax.eval_shape(self.init, seeds, thirds)
    starts, rates = of((copies, BLOCK, self.c.rows), jnp.int32), of((copies, BLOCK), jnp.float32)
    rows = of((self.c.tune_documents, self.c.seq_len + 1), jnp.uint16)
    self.init = self.init.lower(seeds, thirds).compile()
    self.advance = self.advance.lower(state, starts, rates, thirds, self.tokens).compile()
    self.evaluate = self.evaluate.lower(state, rows).compile()

  def steps(
    self, state: Any, copies: Copies, start: int, stop: int, scale: Callable[[int, Cell], float]
  ) -> Any:
    """`state` after the steps [start, stop), with the learning rates times scale(step, cell)."""
    third = np.array([cell.third for cell in copies.cells], np.float32)
    for at in range(start, stop, BLOCK):
      block = range(at, min(at + BLOCK, stop))
      starts = np.stack([[self._rows(seed, s) for s in block] for seed in copies.seeds])
      lr = np.array([[cell.lr * scale(s, cell) for s in block] for cell in copies.cells])
      state, _ = self.advance(
        state, starts.astype(np.int32), lr.astype(np.float32), third, self.tokens)
    return state

  def _rows(self, seed: int, step: int) -> np.ndarray:
    """Where the rows of a step begin: every place once, in an order of the seed's own."""
    whole = (len(self.data.train) - 1) // self.c.seq_len
    order = _order(seed, whole)
    return order[np.arange(step * self.c.rows, (step + 1) * self.c.rows) % whole] * self.c.seq_len

  def score(self, state: Any, rows: np.ndarray) -> list[dict]:
    """Of each copy the loss on held-out rows; `raw` is that without the tail average."""
    parts = jnp.asarray(rows).reshape(-1, self.c.tune_documents, rows.shape[1])
    losses = np.mean(jax.device_get([self.evaluate(state, part) for part in parts]), axis=0)
    return [{'loss': round(float(mixed), 5), 'raw': round(float(raw), 5)} for raw, mixed in losses]


@functools.cache
def _order(seed: int, size: int) -> np.ndarray:
  return np.random.default_rng([7, seed]).permutation(size)


def stable_steps(c: Any, steps: int) -> int:
  """Steps of a run before its cooldown."""
  return steps - whole(c.cooldown * steps)


def whole(steps: float) -> int:
  """The nearest multiple of BLOCK, one at least."""
  return max(1, round(steps / BLOCK)) * BLOCK


def cooled(runner: Runner, state: Any, copies: Copies, steps: int) -> Any:
  """The state at the end of a run of `steps`, from the stable phase's at its last step."""
  stable = stable_steps(runner.c, steps)
  left = lambda s, cell: (steps - s) / (steps - stable) * warm(s, cell)
  return runner.steps(state, copies, stable, steps, left)


def warm(step: int, cell: Cell) -> float:
  """Share of the peak rate that warm-up gives a step."""
  return min(1.0, (step + 1) / cell.warmup)


def tune(runner: Runner, cells: list[Cell], steps: int) -> list[dict]:
  """Scores of runs of so many steps with seed 0, one a cell, on the documents to tune by."""
  c = runner.c
  copies = Copies([0] * c.copies, (cells * c.copies)[:c.copies])
  state = runner.steps(runner.start(copies), copies, 0, stable_steps(c, steps), warm)
  return runner.score(cooled(runner, state, copies, steps), runner.data.tune)[:len(cells)]


def branch(
  runner: Runner, cell: Cell, lengths: Sequence[float], fits: Callable[[int], bool]
) -> Iterator[tuple[int, Any]]:
  """(steps, the cooled state of all seeds) for each length, from one stable phase; without those
  after which the longest would not fit any more."""
  c, at = runner.c, 0
  copies = Copies(list(range(c.first_seed, c.first_seed + c.copies)), [cell] * c.copies)
  state, longest = runner.start(copies), max(lengths)
  for length in lengths:
    steps = whole(length * c.steps)
    stable = stable_steps(c, steps)
    if not fits(verdict_steps(c, sorted({length, longest})) - at):
      continue
    state, at = runner.steps(state, copies, at, stable, warm), stable
    yield steps, cooled(runner, state, copies, steps)


def verdict_steps(c: Any, lengths: Sequence[float]) -> int:
  """Steps that `branch` takes for these lengths."""
  steps = [whole(length * c.steps) for length in lengths]
  return stable_steps(c, max(steps)) + sum(s - stable_steps(c, s) for s in steps)


# --- the contest ---------------------------------------------------------------------------------


def read(output: pathlib.Path) -> list[dict]:
  """The rows of all runs there are in a folder of the contest."""
  return metrics.read_rows(output / 'runs.jsonl')


def cell_of(row: dict) -> Cell:
  """The cell of a row of runs.jsonl."""
  return Cell(row['lr'], row['warmup'], row['third'])


def tried(rows: list[dict], name: str, kind: str = 'tune') -> dict[Cell, float]:
  """Loss of each run that tuned the contestant; with kind 'final' of those at full length."""
  return {cell_of(r): r['loss'] for r in rows if r['kind'] == kind and r['name'] == name}


def best(losses: dict[Cell, float]) -> Cell:
  """The cell of the lowest finite loss."""
  return min(losses, key=lambda cell: losses[cell] if math.isfinite(losses[cell]) else math.inf)


def neighbours(cell: Cell) -> list[Cell]:
  """The six cells a factor of two from it in one of its three; fewer where there is no warm-up to
  halve, or no decay to change."""
  lr, warmup, third = cell
  around = [Cell(lr * f, warmup, third) for f in (.5, 2)]
  around += [Cell(lr, warmup, third * f) for f in (.5, 2)]
  around += [Cell(lr, w, third) for w in (warmup // 2, warmup * 2) if w]
  return [c for c in around if c != cell]


def chosen(rows: list[dict], name: str) -> Cell:
  """The cell to judge the contestant by: the best at full length, where any ran at that."""
  return best(tried(rows, name, 'final') or tried(rows, name))


def interior(losses: dict[Cell, float]) -> bool:
  """Whether the best cell's neighbours were all tried."""
  return bool(losses) and all(c in losses for c in neighbours(best(losses)))


def next_round(losses: dict[Cell, float], start: Cell, size: int) -> list[Cell]:
  """The cells to try next, `size` of them: the neighbours that the best one lacks, then what is
  further around it; none if it has them all."""
  middle = best(losses) if losses else start
  if interior(losses):
    return []
  first = [c for c in [middle, *neighbours(middle)] if c not in losses]
  lr, warmup, third = middle
  diagonal = [Cell(lr * a, warmup, third * b) for a, b in ((2, 2), (.5, .5), (2, .5), (.5, 2))]
  more = [*diagonal, *(c for n in neighbours(middle) for c in neighbours(n))]
  return list(dict.fromkeys([*first, *(c for c in more if c not in losses)]))[:size]


class Clock:
  """Whether so many steps of all copies fit into what is left, by the last round of tuning."""

  def __init__(self, seconds: float):
    self.began, self.seconds, self.a_step = time.monotonic(), seconds, 0.0

  def spent(self) -> float:
    """Seconds since the start."""
    return time.monotonic() - self.began

  def fits(self, steps: int) -> bool:
    """True before the first round was timed, if there is any time at all."""
    return self.seconds - self.spent() > 1.1 * steps * self.a_step

  def timed(self, steps: int, function: Callable[..., Any], *args: Any) -> Any:
    """function(*args), which takes so many steps."""
    start = time.monotonic()
    out = function(*args)
    self.a_step = (time.monotonic() - start) / steps
    return out


def run(
  output: pathlib.Path, seconds: float, c: Any, names: Sequence[str] | None = None,
  verdict: bool = False, full_length: bool = False, judge: bool = False,
) -> bool:
  """Goes on with the contest; True if nothing is left.

  With `verdict` tuning ends in time for the verdict, whether or not everyone's best is inside: the
  report says. After `c.screening` rounds each, only the reference and the `c.finalists` best go on.
  With `c.final` these are then tuned at full length, a round each at least, two if time allows;
  with `full_length` from now on, however far the shorter runs came. Who has had fewest runs is
  next. With `judge` nobody is tuned any more: the verdict's runs alone. Raises SystemExit where the
  folder's runs are of other tokens.
  """
  clock, data = Clock(seconds), Data.load(output)
  if others := {r['data'] for r in read(output) if 'data' in r} - {data.digest}:
    raise SystemExit(f'{output}/runs.jsonl has runs of other tokens, sha256 {min(others)}…, than '
                     f'{output}/tokens.npy, {data.digest}…: their losses do not compare')
  names = list(names or c.contestants)
  runners: dict[str, Runner] = {}

  def write(rows: list[dict]) -> None:
    for row in rows:
      row |= {'device': jax.devices()[0].device_kind, 'at': round(clock.spent(), 1),
              'data': data.digest}
      files.append(output / 'runs.jsonl', json.dumps(row) + '\n')
      print(json.dumps(row), flush=True)

  def ready(wanted: Sequence[str]) -> None:
    new = [name for name in wanted if name not in runners]
    runners.update({name: Runner(c.contestants[name], c, data) for name in new})
    with concurrent.futures.ThreadPoolExecutor() as pool:
      list(pool.map(lambda name: runners[name].compile(c.copies), new))

  def search(
    kind: str, steps: int, all_of: Sequence[str], start: Callable[[list[dict], str], Cell],
    least: int, reserved: int,
  ) -> bool:
    """Rounds in turn until everyone's best is inside; False if the time is over before each of
    `all_of` had `least` runs."""
    late = lambda: verdict and not clock.fits(steps + reserved)
    while True:
      rows = read(output)
      screened = all(len(tried(rows, n, kind)) >= least or interior(tried(rows, n, kind))
                     for n in all_of)
      in_play = finalists(rows, names, c) if screened else all_of
      todo = {name: next_round(tried(rows, name, kind), start(rows, name), c.copies)
              for name in in_play}
      if not any(todo.values()):
        return True
      runs = {name: len(tried(rows, name)) + len(tried(rows, name, 'final')) for name in todo}
      for name, cells in sorted(todo.items(), key=lambda item: runs[item[0]]):
        if not cells or (screened and late()):
          continue
        if not clock.fits(steps):
          return False
        ready([n for n in todo if todo[n]])
        scores = clock.timed(steps, tune, runners[name], cells, steps)
        write([{'kind': kind, 'name': name, **cell._asdict(), **score, 'steps': steps}
               for cell, score in zip(cells, scores, strict=True)])
      if screened and late():
        return True

  full, own = whole(c.steps), c.reference in names
  last = min(c.finalists, len(names) - own)
  reserved = own * verdict_steps(c, [1.0]) + last * verdict_steps(c, c.lengths)
  rows = read(output)
  done = judge or any(tried(rows, name, 'final') for name in names if name != c.reference) or (
    full_length and all(tried(rows, name) for name in names))
  if not done and not search(
    'tune', whole(c.tuning * c.steps), names, lambda _, n: Cell(*c.contestants[n].start),
    c.copies * c.screening, reserved + c.final * 2 * (own + last) * full):
    return False
  in_play = finalists(read(output), names, c)
  if c.final and not judge and not search(
    'final', full, in_play, lambda rows, n: best(tried(rows, n)), 1, reserved):
    return False
  rows = read(output)
  lengths_of = {name: [1.0] if name == c.reference else c.lengths for name in in_play}
  left = {name: of for name, all_of in lengths_of.items() if (of := missing(rows, name, all_of, c))}
  for name, lengths in left.items():
    ready(list(left))
    cell = chosen(rows, name)
    for steps, state in branch(runners[name], cell, lengths, clock.fits):
      scores = runners[name].score(state, data.test)
      write([{'kind': 'branch', 'name': name, **cell._asdict(), 'steps': steps, 'seed': seed,
              **score} for seed, score in enumerate(scores, c.first_seed)])
    if missing(read(output), name, lengths, c):
      return False
  return True


def finalists(rows: list[dict], names: Sequence[str], c: Any) -> list[str]:
  """The reference, and the best others by their tuning runs, best first."""
  found = {name: min(losses.values()) for name in names
           if name != c.reference and (losses := tried(rows, name))}
  return [*(n for n in names if n == c.reference), *sorted(found, key=found.__getitem__)[
    :c.finalists]]


def missing(rows: list[dict], name: str, lengths: Sequence[float], c: Any) -> list[float]:
  """The lengths of which the contestant has no branches yet."""
  there = {r['steps'] for r in branches(rows, name)}
  return [length for length in lengths if whole(length * c.steps) not in there]


def branches(rows: list[dict], name: str) -> list[dict]:
  """The contestant's runs from the stable phase at its chosen cell."""
  if not tried(rows, name):
    return []
  cell = chosen(rows, name)
  return [r for r in rows if r['kind'] == 'branch' and r['name'] == name and cell_of(r) == cell]


# --- the report ----------------------------------------------------------------------------------


def steps_to(target: float, steps: Sequence[float], losses: Sequence[float]) -> float:
  """Steps at which the curve (falling, by linear interpolation in log steps) reaches the target;
  infinity if it does not, the shortest run's steps if that was already below."""
  order = np.argsort(steps)
  falling = np.minimum.accumulate(np.asarray(losses, float)[order]).tolist()
  return comparison.tokens_to(list(zip(sorted(steps), falling, strict=True)), target)


class Standing(NamedTuple):
  """A contestant's row of the leaderboard."""

  name: str
  cell: Cell
  inside: bool  # the best cell's neighbours were all tried
  tuning_runs: int  # those at full length included
  losses: dict[int, float]  # at full length, by seed
  ratio: comparison.Estimate | None  # log of steps to the reference's final loss over its steps
  reached: int  # seeds that came to it, at the shortest of their runs or later
  shorter: dict[int, comparison.Estimate]  # steps → loss there minus the reference's final loss


def standings(rows: list[dict], c: Any) -> list[Standing]:
  """The leaderboard, least steps first.

  Each seed's target is the final loss of the reference with that seed, which had the same
  initialisation and order of data; the log ratios of steps are paired over seeds, and their
  interval is Student's t. There is none where a seed's shortest run is at the target already.
  """
  curves: dict[str, dict[int, dict[int, float]]] = {}
  for name in dict.fromkeys(r['name'] for r in rows):
    for r in branches(rows, name):
      curves.setdefault(name, {}).setdefault(r['seed'], {})[r['steps']] = r['loss']
  targets = {seed: losses[max(losses)] for seed, losses in curves[c.reference].items()}
  end = max(curves[c.reference][next(iter(targets))])
  out = []
  for name, every in curves.items():
    seeds = {seed: of for seed, of in every.items() if seed in targets}
    if not seeds:
      continue
    found = {seed: steps_to(targets[seed], list(of), list(of.values()))
             for seed, of in seeds.items()}
    cut = any(of[min(of)] <= targets[seed] for seed, of in seeds.items())
    reached = {seed: steps for seed, steps in found.items() if math.isfinite(steps)}
    ratio = None
    if name != c.reference and len(reached) == len(found) and not cut:
      ratio = comparison.log_ratio(dict.fromkeys(reached, float(end)), reached)
    lengths = set.intersection(*(set(of) for of in seeds.values()))
    losses, finals = tried(rows, name), tried(rows, name, 'final')
    out.append(Standing(
      name, chosen(rows, name), interior(finals or losses), len(losses) + len(finals),
      {seed: of[max(of)] for seed, of in seeds.items()}, ratio, len(reached),
      {} if name == c.reference else {
        steps: comparison.difference(targets, {seed: of[steps] for seed, of in seeds.items()})
        for steps in sorted(lengths)}))
  order = lambda s: s.ratio.mean if s.ratio else 0.0 if s.name == c.reference else 1.0
  return sorted(out, key=order)


def leaderboard(rows: list[dict], c: Any) -> str:
  """The report as Markdown."""
  found = standings(rows, c)
  title = lambda name: c.contestants[name].title
  end = max(r['steps'] for r in rows if r['kind'] == 'branch' and r['name'] == c.reference)
  n = len(found[0].losses)
  lines = [
    f'Steps of {c.rows * c.seq_len:,} tokens to the loss that {title(c.reference)} has after {end}:'
    f' {n} seeds, 95 % t-intervals of paired log ratios, on documents that tuning never saw.',
    '',
    '| optimizer | rate | warm-up | decay (ball: × init) | tuning runs | final loss, mean ± s.d. | '
    f'steps to the target | share of the reference’s | p | p of {c.bar:g} |',
    '|---|---|---|---|---|---|---|---|---|---|']
  for s in found:
    known = len(s.losses) > 1 and all(map(math.isfinite, s.losses.values()))
    spread = statistics.stdev(s.losses.values()) if known else math.nan
    share = steps = p = p_bar = '–'
    if s.ratio:
      low, mean, high = (math.exp(x) for x in (s.ratio.low, s.ratio.mean, s.ratio.high))
      share, steps = f'{mean:.3f} ({low:.3f}–{high:.3f})', f'{mean * end:.0f}'
      p = f'{s.ratio.p:.1g}'
      p_bar = f'{dataclasses.replace(s.ratio, mean=s.ratio.mean - math.log(c.bar)).p:.1g}'
    elif s.name == c.reference:
      share, steps = '1', str(end)
    else:
      share = f'reached by {s.reached} of {len(s.losses)}'
    lines.append(
      f'| {title(s.name)} | {s.cell.lr:g} | {s.cell.warmup} | {s.cell.third:g}'
      f'{"" if s.inside else " (search cut)"} | {s.tuning_runs} | '
      f'{statistics.fmean(s.losses.values()):.4f} ± {spread:.4f} | {steps} | {share} | {p} | '
      f'{p_bar} |')
  lines += ['', '| optimizer | steps | loss minus the reference’s final one, paired | p | '
            'could have seen |', '|---|---|---|---|---|']
  for s in found:
    for steps, e in s.shorter.items():
      lines.append(f'| {title(s.name)} | {steps} ({steps / end:.2f}) | '
                   f'{e.mean:+.4f} ± {e.half:.4f} | {e.p:.1g} | {e.detectable:.4f} |')
  tuned = {name: tried(rows, name) for name in dict.fromkeys(r['name'] for r in rows)}
  lines += ['', 'Tuned, runs of ' + ', '.join(
    sorted({str(r['steps']) for r in rows if r['kind'] == 'tune'})) + ' steps with one seed:', '',
    '| optimizer | runs | best loss | at | inside | at full length, runs | best loss | at | '
    'inside |', '|---|---|---|---|---|---|---|---|---|']
  for name, losses in sorted(tuned.items(), key=lambda item: min(item[1].values())):
    cells = [f'{len(of)} | {min(of.values()):.4f} | rate {best(of).lr:g}, warm-up '
             f'{best(of).warmup}, {best(of).third:g} | {"yes" if interior(of) else "no"}'
             if of else '– | – | – | –' for of in (losses, tried(rows, name, 'final'))]
    lines.append(f'| {title(name)} | {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def report(output: pathlib.Path, c: Any) -> None:
  """Writes the leaderboard of the contest and its figure into the folder."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  rows, board = read(output), 'contest'
  if c.reference != optimizer_contest.get_config().reference:
    board += f'_{c.reference}'
  text = leaderboard(rows, c)
  (output / f'{board}.md').write_text(text)
  figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout='constrained')
  for name in dict.fromkeys(r['name'] for r in rows):
    lowest: dict[float, float] = {}  # of all cells with this rate
    for cell, loss in tried(rows, name).items():
      lowest[cell.lr] = min(loss, lowest.get(cell.lr, math.inf))
    axes[0].plot(*zip(*sorted(lowest.items()), strict=True), marker='.')
    ends = branches(rows, name)
    steps = sorted({r['steps'] for r in ends})
    means = [np.mean([r['loss'] for r in ends if r['steps'] == s]) for s in steps]
    axes[1].plot(steps, means, marker='.', label=c.contestants[name].title)
  low = min(r['loss'] for r in rows if r['kind'] == 'tune' and math.isfinite(r['loss']))
  axes[0].set(xscale='log', xlabel='learning rate, all else at its best',
              ylabel='loss on the documents to tune by', ylim=(low - .05, low + 1))
  axes[1].set(xlabel='steps, cooled down', ylabel='loss on the documents for the verdict')
  axes[1].legend(fontsize=8)
  figure.savefig(output / f'{board}.svg', metadata={'Date': None})
  print(text)


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('command', choices=('tokens', 'run', 'report'))
  parser.add_argument('--output', required=True, type=pathlib.Path)
  parser.add_argument('--text', nargs='+', default=[], help='globs of text files')
  parser.add_argument('--size', choices=list(optimizer_contest.MODELS), default='12m')
  parser.add_argument('--steps', type=int, help='of the runs, where not those of the config')
  known = list(optimizer_contest.get_config().contestants)
  parser.add_argument('--names', nargs='+', choices=known, help='all if none')
  parser.add_argument('--seconds', type=float, default=1e9, help='stop before so many are over')
  parser.add_argument('--verdict', action='store_true', help='stop tuning in time for the verdict')
  parser.add_argument('--full_length', action='store_true', help='no more of the shorter runs')
  parser.add_argument('--judge', action='store_true', help='no more tuning: the verdict alone')
  parser.add_argument('--reference', choices=known, help='whose final loss is the target')
  parser.add_argument('--lengths', nargs='+', type=float, help='of branches, in shares of --steps')
  parser.add_argument('--limit', type=int, default=0, help='tokens to keep; 0 = one epoch')
  args = parser.parse_args()
  if wrong := [x for x in args.lengths or () if not 0 < x <= 1]:
    parser.error(f'--lengths {wrong[0]}: give shares of a run, above 0 to 1')
  c = optimizer_contest.get_config(args.size)
  c.steps, c.reference = args.steps or c.steps, args.reference or c.reference
  c.lengths = tuple(args.lengths or c.lengths)
  if args.command == 'tokens':
    make_tokens(
      args.text, args.output, c.model.vocab_size,
      args.limit or (c.steps * c.rows + 2) * c.seq_len,
      [('tune', c.tune_documents), ('test', c.test_documents)], c.seq_len + 1)
  elif args.command == 'run':
    how = args.verdict, args.full_length, args.judge
    done = run(args.output, args.seconds, c, args.names, *how)
    print('done' if done else 'to be continued')
  else:
    report(args.output, c)


if __name__ == '__main__':
  main()

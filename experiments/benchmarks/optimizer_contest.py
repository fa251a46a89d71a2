"""Which optimizer needs how many tokens? A contest of equally tuned ones, with intervals.

  python -m experiments.benchmarks.optimizer_contest tokens --text='GLOB' --output=DIR
  python -m experiments.benchmarks.optimizer_contest run    --output=DIR [--seconds=500] [--names …]
  python -m experiments.benchmarks.optimizer_contest report --output=DIR

`tokens` trains a tokenizer on text files and stores their tokens, documents shuffled. `run` does
what is left of the contest of configs/optimizer_contest.py, a line in DIR/runs.jsonl each, and
stops before --seconds are over: call it again to go on. `report` writes DIR/contest.md and
DIR/contest.svg. The contestants, all or those named:

  adamw                SmolLM3's optimizer
  adamw_warm           the same with four times the warm-up
  adamw_eighth         the same with the settings that were best for a model an eighth the size
  optax_muon           optax.contrib.muon(learning_rate), as its documentation has it: no decay
  optax_muon_labelled  optax.contrib.muon told which dims are matrices, with the settings of `muon`
  muon                 ours: Polar Express, scaled to AdamW's update RMS
  muon_heads           ours, queries and keys one matrix a head
  muonclip             `muon` with QK-Clip
  muon_rates           `muon`, and the learning rate and clipping of q and k follow a head's logits
  soap                 SOAP, Adam in the eigenbasis of Shampoo's preconditioner, b1 = b2 = .95,
                       with the warm-up of adamw_warm

Runs that differ in seed, learning rate or weight decay alone are one compiled program, vmapped
(SOAP's, whose step branches on its number, take turns in it). Updates are linear in both rates,
which are therefore inputs: optimizers are built at a learning rate of 1 without decay.
"""

import argparse
import copy
import functools
import glob
import gzip
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import base, optimizer_contest
from experiments.benchmarks.optimizer_step import matrix_dims
from smoljax import metrics, model, optim
from smoljax.optim.matrices import path_name
from smoljax.optim.qk_clip import qk_clip, qk_clip_grads, qk_rates
from smoljax.train import diagnostics, objectives

BLOCK = 8  # steps a call

NAMES = {
  'adamw': 'AdamW', 'adamw_warm': 'AdamW, longer warm-up',
  'adamw_eighth': 'AdamW, tuned at 1/8 the size',
  'optax_muon': 'optax Muon, as documented', 'optax_muon_labelled': 'optax Muon, labelled right',
  'muon': 'our Muon', 'muon_heads': 'our Muon, q and k by head', 'muonclip': 'our MuonClip',
  'muon_rates': 'our Muon, rates of q and k by logits', 'soap': 'SOAP, longer warm-up',
}  # fmt: skip


# --- tokens --------------------------------------------------------------------------------------


def make_tokens(patterns: list[str], output: pathlib.Path, vocab_size: int, limit: int) -> None:
  """Tokenises the files that match, whole documents in a fixed random order, up to `limit`."""
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
  sample = [line for text in texts[:400] for line in text.split('\n')]
  tokenizer.train(sample, str(output / 'tokenizer.model'), vocab_size=vocab_size)
  encoder = tokenizer.load(str(output / 'tokenizer.model'))
  parts, total = [], 0
  for text in texts:
    part = np.array([encoder.bos_id, *encoder.encode(text)], np.uint16)
    parts.append(part)
    total += len(part)
    if total >= limit:
      break
  tokens = np.concatenate(parts)[:limit]
  np.save(output / 'tokens.npy', tokens)
  print(f'{len(tokens):,} tokens of {len(parts):,} documents in {output}/tokens.npy')


# --- runs ----------------------------------------------------------------------------------------


Cell = tuple[float, float]  # learning rate, weight decay


class Copies(NamedTuple):
  """What copies of a model that train side by side differ in, an entry a copy."""

  seeds: list[int]
  lrs: list[float]
  decays: list[float]  # weight decay


def make_optimizer(
  name: str, c: Any, params: Any
) -> tuple[optax.GradientTransformation, dict[str, float]]:
  """The contestant's transformation at a learning rate of 1 without weight decay, and, by leaf,
  the share of the weight decay that the contestant gives it."""
  shares = {path_name(path): 1.0 for path, _ in jax.tree.leaves_with_path(params)}
  if name == 'optax_muon':
    return optax.contrib.muon(1.0), dict.fromkeys(shares, 0.0)
  if name == 'optax_muon_labelled':
    return optax.contrib.muon(1.0, consistent_rms=.2, adam_b2=.95,
                              muon_weight_dimension_numbers=matrix_dims(params)), shares
  settings = copy.deepcopy(base.get_config().optimizer)
  settings.name = 'muon' if name.startswith('muon') else name.split('_')[0]
  if name == 'soap':
    settings.b1 = settings.b2 = .95
  settings.learning_rate, settings.schedule, settings.warmup_fraction = 1.0, 'constant', 0.0
  settings.weight_decay = 0.0
  settings.muon.per_head = 'qk' if name == 'muon_heads' else 'none'
  optimizer, info = optim.make_optimizer(settings, params, c.steps)
  return optimizer, {path: label.decay for path, label in info.labels.items()}


def batch_of(rows_BX: jax.Array) -> dict[str, jax.Array]:
  """A batch whose rows, [B, T + 1] tokens, are one document each."""
  B, T = rows_BX.shape[0], rows_BX.shape[1] - 1
  return {
    'inputs': rows_BX[:, :-1].astype(jnp.int32), 'targets': rows_BX[:, 1:].astype(jnp.int32),
    'segment_ids': jnp.ones((B, T), jnp.int32), 'source': jnp.zeros(B, jnp.int32),
    'positions': jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T)),
  }  # fmt: skip


class Runner:
  """Trains many copies of one model by one optimizer at once."""

  def __init__(self, name: str, c, config: model.ModelConfig, tokens: np.ndarray):
    self.c, self.config = c, config
    self.warmup = c.long_warmup if name in ('adamw_warm', 'soap') else c.warmup
    held_out = c.eval_rows * (c.seq_len + 1)
    self.train, self.held_out = jnp.asarray(tokens[:-held_out]), tokens[-held_out:]
    self.rule = {'muonclip': 'weights', 'muon_rates': 'rates'}.get(name)
    self.optimizer, self.shares = make_optimizer(name, c, model.abstract_params(config))
    self.init = jax.jit(jax.vmap(self._init))
    each = (lambda f: functools.partial(jax.lax.map, f)) if name == 'soap' else jax.vmap
    self.advance = jax.jit(
      lambda *args: each(lambda run: self._advance(*run, tokens=args[-1]))(args[:-1]))
    self.evaluate = jax.jit(jax.vmap(self._evaluate))

  def _init(self, seed):
    params = model.init(self.config, jax.random.key(seed))
    return params, self.optimizer.init(params)

  def _loss(self, params, rows_BT, max_logits):
    loss = objectives.next_token(
      self.config, params, batch_of(rows_BT), num_sources=1, max_logits=max_logits,
      total_tokens=jnp.float32(rows_BT.shape[0] * self.c.seq_len))
    return loss.total, loss.metrics

  def _advance(self, state, starts_SB, lr_S, decay, tokens):
    def decayed(path, update, param):
      return update - decay * self.shares[path_name(path)] * param

    def step(state, inputs):
      (params, opt_state), (starts_B, lr), tau = state, inputs, self.c.qk_clip_tau
      rows_BT = tokens[starts_B[:, None] + jnp.arange(self.c.seq_len + 1)]
      measure = 'bound' if self.rule else None
      (loss, aux), grads = jax.value_and_grad(self._loss, has_aux=True)(params, rows_BT, measure)
      if self.rule == 'rates':
        grads = qk_clip_grads(grads, aux['max_logits_LN'], tau, 1.0)
      updates, opt_state = self.optimizer.update(grads, opt_state, params)
      updates = jax.tree.map_with_path(decayed, updates, params)
      if self.rule == 'rates':
        updates = qk_rates(updates, aux['max_logits_LN'], tau)
      params = jax.tree.map(lambda p, u: p + lr * u, params, updates)
      if self.rule == 'weights':
        params = qk_clip(params, aux['max_logits_LN'], tau)
      return (params, opt_state), loss

    return jax.lax.scan(step, state, (starts_SB, lr_S))

  def _evaluate(self, params):
    group = math.gcd(self.c.eval_rows, 16)
    rows = jnp.asarray(self.held_out.reshape(-1, group, self.c.seq_len + 1))

    def some(rows_BT):
      loss, aux = self._loss(params, rows_BT, 'exact')
      return loss, jnp.max(aux['max_logits_LN'])

    losses, logits = jax.lax.map(some, rows)
    return jnp.mean(losses), jnp.max(logits)

  def steps(
    self, state: Any, copies: Copies, start: int, stop: int, scale: Callable[[int], float]
  ) -> Any:
    """`state` after the steps [start, stop), with the learning rates times scale(step)."""
    at, decays = start, np.array(copies.decays, np.float32)
    while at < stop:
      n = min(BLOCK, stop - at)
      starts = np.stack([[self._rows(seed, s) for s in range(at, at + n)] for seed in copies.seeds])
      lr = np.array([[base_lr * scale(s) for s in range(at, at + n)] for base_lr in copies.lrs])
      state, _ = self.advance(
        state, starts.astype(np.int32), lr.astype(np.float32), decays, self.train)
      at += n
    return state

  def _rows(self, seed: int, step: int) -> np.ndarray:
    """Where the rows of a step begin: every place once, in an order of the seed's own."""
    whole = (len(self.train) - 1) // self.c.seq_len
    order = _order(seed, whole)
    return order[np.arange(step * self.c.rows, (step + 1) * self.c.rows) % whole] * self.c.seq_len

  def score(self, state: Any) -> list[dict]:
    """Of each copy: loss on the held-out tokens, and the largest logit."""
    losses, logits = jax.device_get(self.evaluate(state[0]))
    return [{'loss': round(float(a), 5), 'max_logit': round(float(b), 2)}
            for a, b in zip(losses, logits, strict=True)]


@functools.cache
def _order(seed: int, size: int) -> np.ndarray:
  return np.random.default_rng([7, seed]).permutation(size)


def cooled(runner: Runner, state: Any, copies: Copies, steps: int) -> Any:
  """The state at the end of a run of `steps`, from the stable phase's at its last step."""
  stable = steps - round(runner.c.decay * steps)
  left = lambda s: (steps - s) / (steps - stable)
  return runner.steps(state, copies, stable, steps, left)


def stable_to(
  runner: Runner, state: Any, copies: Copies, start: int, steps: int
) -> tuple[Any, int]:
  """(the state at the end of the stable phase of a run of `steps`, the step it is at)."""
  stable = steps - round(runner.c.decay * steps)
  warm = lambda s: min(1.0, (s + 1) / runner.warmup)
  return runner.steps(state, copies, start, stable, warm), stable


def tune(runner: Runner, cells: list[Cell]) -> list[dict]:
  """Final losses of short runs, one a cell; as many at once as there are seeds."""
  c, scores = runner.c, []
  steps = round(c.tuning * c.steps)
  for i in range(0, len(cells), c.seeds):
    some = cells[i:i + c.seeds]
    padded = some + some[-1:] * (c.seeds - len(some))
    copies = Copies([0] * c.seeds, *map(list, zip(*padded, strict=True)))
    state = runner.init(jnp.zeros(c.seeds, jnp.int32))
    state, _ = stable_to(runner, state, copies, 0, steps)
    scores += runner.score(cooled(runner, state, copies, steps))[:len(some)]
  return scores


def branch(runner: Runner, lr: float, decay: float) -> Iterator[tuple[int, list[dict], Any]]:
  """(steps, a score per seed, the cooled state) for each length, from one stable phase."""
  c, at = runner.c, 0
  copies = Copies(list(range(1, c.seeds + 1)), [lr] * c.seeds, [decay] * c.seeds)
  state = runner.init(jnp.asarray(copies.seeds, jnp.int32))
  for length in c.lengths:
    steps = round(length * c.steps)
    state, at = stable_to(runner, state, copies, at, steps)
    end = cooled(runner, state, copies, steps)
    yield steps, runner.score(end), end


def spectrum(params: dict) -> float:
  """Mean over all matrices of diagnostics.svd_entropy, 0 (rank one) to 1 (all directions alike)."""
  found = diagnostics.svd_entropy(params, optim.matrix_views(params))
  return float(np.mean(np.concatenate([np.asarray(x) for x in found.values()])))


# --- the contest ---------------------------------------------------------------------------------


def read(output: pathlib.Path) -> list[dict]:
  """The rows of all runs there are in a folder of the contest."""
  return metrics.read_rows(output / 'runs.jsonl')


def tried(rows: list[dict], name: str) -> dict[Cell, float]:
  """Loss of each run that tuned the contestant."""
  return {(r['lr'], r['weight_decay']): r['loss']
          for r in rows if r['kind'] == 'tune' and r['name'] == name}


def best(losses: dict[Cell, float]) -> Cell:
  """The cell of the lowest finite loss."""
  return min(losses, key=lambda cell: losses[cell] if math.isfinite(losses[cell]) else math.inf)


def branches(rows: list[dict], name: str) -> list[dict]:
  """The contestant's runs from the stable phase at its best cell."""
  cell = best(tried(rows, name))
  return [r for r in rows if r['kind'] == 'branch' and r['name'] == name
          and (r['lr'], r['weight_decay']) == cell]


def untried(losses: dict[Cell, float], start: list[Cell]) -> list[Cell]:
  """What is left of the cells to start with; then of those around the best, a factor of two apart
  both ways: none if it is the best of a square of nine."""
  if left := [cell for cell in start if cell not in losses]:
    return left
  lr, decay = best(losses)
  around = dict.fromkeys((a * lr, b * decay) for a in (.5, 1, 2) for b in (.5, 1, 2))
  return [cell for cell in around if cell not in losses]


def run(output: pathlib.Path, seconds: float, c: Any, names: list[str] | None = None) -> bool:
  """Goes on with the contest; True if nothing is left."""
  began = time.monotonic()
  tokens = np.load(output / 'tokens.npy')
  full = model.ModelConfig(**c.model)
  eighth = model.ModelConfig(**{**c.model, **c.eighth})
  runner = functools.cache(lambda name, config: Runner(name, c, config, tokens))
  longest = 0.0

  def timed(function, *args):
    """Writes the rows that function(*args) gives; False if there was no time for it."""
    nonlocal longest
    start = time.monotonic()
    if start - began + longest > seconds:
      return False
    rows = function(*args)
    longest = max(longest, time.monotonic() - start)
    with open(output / 'runs.jsonl', 'a') as file:
      for row in rows:
        row |= {'device': jax.devices()[0].device_kind, 'at': round(time.monotonic() - began, 1)}
        file.write(json.dumps(row) + '\n')
        print(json.dumps(row), flush=True)
    return True

  def tuned(name, cells):
    scores = tune(runner(name, eighth if name == 'adamw_eighth' else full), cells)
    return [{'kind': 'tune', 'name': name, 'lr': lr, 'weight_decay': decay, **score}
            for (lr, decay), score in zip(cells, scores, strict=True)]

  def branched(name, lr, decay):
    rows: list[dict[str, Any]] = []
    end: Any = None
    for steps, scores, state in branch(runner(name, full), lr, decay):
      end = state
      rows += [{'kind': 'branch', 'name': name, 'lr': lr, 'weight_decay': decay, 'steps': steps,
                'seed': i + 1, **score} for i, score in enumerate(scores)]
    first = jax.tree.map(lambda x: x[0], jax.device_get(end[0]))
    rows[-c.seeds]['weight_entropy'] = round(spectrum(first), 4)
    return rows

  for name in names or c.grids:
    decay = 0.0 if name == 'optax_muon' else c.weight_decay  # its documentation has none
    while cells := untried(tried(read(output), name), [(lr, decay) for lr in c.grids[name]]):
      if not timed(tuned, name, cells):
        return False
    rows = read(output)
    if not (branches(rows, name) or timed(branched, name, *best(tried(rows, name)))):
      return False
  return True


# --- the report ----------------------------------------------------------------------------------


def steps_to(target: float, steps: np.ndarray, losses: np.ndarray) -> float:
  """Steps at which the curve (falling, by linear interpolation in log steps) reaches the target;
  infinity if it does not, the shortest run's steps if that was already below."""
  order = np.argsort(steps)
  steps, losses = np.log(np.asarray(steps, float)[order]), np.asarray(losses, float)[order]
  losses = np.minimum.accumulate(losses)
  if losses[0] <= target:
    return float(np.exp(steps[0]))
  for i in range(1, len(steps)):
    if losses[i] <= target:
      share = (losses[i - 1] - target) / (losses[i - 1] - losses[i])
      return float(np.exp(steps[i - 1] + share * (steps[i] - steps[i - 1])))
  return math.inf


def summarize(rows: list[dict], draws: int = 2000) -> list[dict]:
  """A row for each contestant: final loss by seed, and tokens to the final loss of the best AdamW
  as a share of that one's, with the 95 % interval of resampled seeds (both sides)."""
  curves = {}
  for name in dict.fromkeys(r['name'] for r in rows):
    for r in branches(rows, name):
      curves.setdefault(name, {}).setdefault(r['seed'], {})[r['steps']] = r
  end = max(steps for seeds in curves.values() for seed in seeds.values() for steps in seed)
  reference = min((seeds for name, seeds in curves.items() if name.startswith('adamw')),
                  key=lambda seeds: np.mean([seed[end]['loss'] for seed in seeds.values()]))
  rng = np.random.default_rng(0)

  def ratio(name, seeds, reference_seeds):
    target = np.mean([reference[s][end]['loss'] for s in reference_seeds])
    steps = sorted(next(iter(curves[name].values())))
    mean = [np.mean([curves[name][s][k]['loss'] for s in seeds]) for k in steps]
    return steps_to(target, np.array(steps), np.array(mean)) / end

  out = []
  for name, seeds in curves.items():
    names, reference_seeds = sorted(seeds), sorted(reference)
    resample = lambda of: rng.choice(of, len(of))
    resampled = [ratio(name, resample(names), resample(reference_seeds)) for _ in range(draws)]
    finals = [seeds[s][end] for s in names]
    losses = tried(rows, name)
    lr, decay = best(losses)
    out.append({
      'name': name, 'lr': lr, 'weight_decay': decay, 'inside': not untried(losses, []),
      'losses': [f['loss'] for f in finals],
      'max_logit': max(f['max_logit'] for f in finals),
      'entropy': next(f['weight_entropy'] for f in finals if 'weight_entropy' in f),
      'ratio': ratio(name, names, reference_seeds),
      'reference': seeds is reference,
      'interval': tuple(np.quantile(resampled, [.025, .975], method='nearest').tolist()),
    })
  return out


def report(output: pathlib.Path, c: Any) -> None:
  """Writes the table of the contest and its figure into the folder."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  rows = read(output)
  table = summarize(rows)
  share = lambda x: f'{x:.2f}' if math.isfinite(x) else 'not reached'
  interval = lambda r: (
    '' if r['reference'] or math.isinf(r['ratio']) else f' ({"–".join(map(share, r["interval"]))})')
  lines = [
    '| optimizer | best learning rate | weight decay | final loss, mean ± s.d. | '
    'tokens to the best AdamW, share (95 %) | largest logit | entropy of weights |',
    '|---|---|---|---|---|---|---|']
  for r in sorted(table, key=lambda r: np.mean(r['losses'])):
    lines.append(
      f'| {NAMES[r["name"]]} | {r["lr"]:g} | {r["weight_decay"]:g}'
      f'{"" if r["inside"] else " (search unfinished)"} | '
      f'{np.mean(r["losses"]):.4f} ± {np.std(r["losses"], ddof=1):.4f} | {share(r["ratio"])}'
      f'{interval(r)} | {r["max_logit"]:.0f} | {r["entropy"]:.3f} |')
  (output / 'contest.md').write_text('\n'.join(lines) + '\n')
  figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout='constrained')
  tokens = c.rows * c.seq_len / 1e6
  for name in dict.fromkeys(r['name'] for r in rows):
    lowest = {}  # of all weight decays
    for (lr, _), loss in tried(rows, name).items():
      lowest[lr] = min(loss, lowest.get(lr, math.inf))
    axes[0].plot(*zip(*sorted(lowest.items()), strict=True), marker='.')
    ends = branches(rows, name)
    steps = sorted({r['steps'] for r in ends})
    means = [np.mean([r['loss'] for r in ends if r['steps'] == s]) for s in steps]
    axes[1].plot([s * tokens for s in steps], means, marker='.', label=NAMES[name])
  low = min(r['loss'] for r in rows if r['kind'] == 'tune' and math.isfinite(r['loss']))
  axes[0].set(xscale='log', xlabel='learning rate, at its best weight decay',
              ylabel='held-out loss, half the steps', ylim=(low - .1, low + 2))
  axes[1].set(xlabel='million tokens, cooled down', ylabel='held-out loss')
  axes[1].legend(fontsize=8)
  figure.savefig(output / 'contest.svg', metadata={'Date': None})
  print('\n'.join(lines))


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('command', choices=('tokens', 'run', 'report'))
  parser.add_argument('--output', required=True, type=pathlib.Path)
  parser.add_argument('--text', nargs='+', default=[], help='globs of text files')
  parser.add_argument('--names', nargs='+', choices=NAMES, help='contestants to run; all if none')
  parser.add_argument('--seconds', type=float, default=1e9, help='stop before so many are over')
  parser.add_argument('--limit', type=int, default=0, help='tokens to keep; 0 = one epoch and eval')
  args = parser.parse_args()
  c = optimizer_contest.get_config()
  if args.command == 'tokens':
    rows = c.steps * c.rows + c.eval_rows
    make_tokens(args.text, args.output, c.model.vocab_size,
                args.limit or (rows + 2) * (c.seq_len + 1))
  elif args.command == 'run':
    print('done' if run(args.output, args.seconds, c, args.names) else 'to be continued')
  else:
    report(args.output, c)


if __name__ == '__main__':
  main()

"""The guard: a step that would hurt is not taken, and a run that keeps being hurt goes back.

A ladder of four rungs, each a function of the run's state and data alone, so that a run killed on
any of them continues to the same bits:

1. skip      inside the jitted step: parameters and optimizer state stay as they are, bit for bit
2. rollback  after `patience` skips in a row: back to the last good snapshot, and past its data
3. back off  with a second rollback within `horizon` batches: from the snapshot before, if that one
             led here again, and at `backoff` times the learning rate, which then slowly recovers
4. stop      with a third, and a report

A step is bad if one of its statistics is not finite, or lies `sigma` standard deviations beyond the
mean of that statistic's last `window` values: `loss`, `grad_norm` and `update_norm` above it,
`layer_grad_norm` (one number a layer, as a logarithm) above it or below: a layer whose gradient
vanishes is as ill as one whose gradient explodes. The update's norm is there since it moves before
the loss does (marin#1368).

The gradient's norm is judged leniently while the loss is below its own mean. Where a model leaves a
plateau the gradient is ten times as large for some steps, the loss falls, and to skip those steps
is to stay: skipping changes no weights, so the next batch finds the gradient as large.

Skip-steps in public code multiply the update by 0 (0 · NaN = NaN) and keep NaN among the values
that they compare with, which then compares false for a whole window (OLMo-core#424, levanter#973).
Here results are selected, and what is not finite is never kept. A finite outlier is kept as the
bound that it broke: a level that has truly changed is accepted in the end, a burst moves little.

The config is any object with these attributes (configs/base.py holds the defaults):

  enabled        False: every step is taken, and nothing is kept but the counts
  sigma, window  see above; batches
  min_steps      values that a statistic needs before it is compared; non-finite ones are always bad
  patience       bad steps in a row before a rollback
  skip_batches   batches left out after those between the snapshot and the incident
  horizon        batches within which rollbacks belong together
  backoff        factor on the learning rate
  recovery       its growth a step, up to 1 again
  inject         faults to inject, such as 'nan@40,spike@60,bitflip@80,lr8x@100:120,vanish@140'

What it knows is a dict of small arrays in the optimizer state, hence in every checkpoint:

  batches      int32, drawn from the stream so far, those left out by rollbacks included
  applied      int32, updates made
  skips        int32, steps skipped
  streak       int32, bad steps in a row
  lr_scale     float32, factor on every update
  rollbacks    int32 [2], `batches` at the last two rollbacks
  rollback_to  int32, step of the snapshot that the last one went to
  rings        per statistic, its last values [window, …] and how many there have been
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any

_NEVER = -(2**30)


class Rule(NamedTuple):
  """How a statistic is compared. The floors keep a steady one from being judged too hard."""

  relative_floor: float = 0.0  # least standard deviation as a share of the mean
  floor: float = 0.0  # least standard deviation
  log: bool = False  # the logarithm is compared, and below the mean too
  lenience: float = 1.0  # factor on the distance allowed while the loss is below its mean


RULES: dict[str, Rule] = {
  'loss': Rule(relative_floor=0.01),
  # Four times the usual norm: leaving a plateau, a clean run's rises as much within tens of steps.
  'grad_norm': Rule(relative_floor=1 / 2, lenience=10.0),
  'update_norm': Rule(relative_floor=0.05),  # Muon's hardly varies
  'layer_grad_norm': Rule(floor=0.5, log=True),
}


def init(config: Any, num_layers: int) -> dict:
  """The state before the first step, on the host.

  Raises ValueError for a value out of range or a fault that is not understood.
  """
  for key, low, high in (
    ('sigma', 1e-6, math.inf), ('window', 2, math.inf), ('min_steps', 2, config.window),
    ('patience', 1, math.inf), ('skip_batches', 0, math.inf), ('horizon', 1, 2**29),
    ('backoff', 1e-6, 1), ('recovery', 1, math.inf),
  ):  # fmt: skip
    if not low <= getattr(config, key) <= high:
      raise ValueError(f'guard.{key}={getattr(config, key)}: give a number from {low} to {high}')
  parse_faults(config.inject)
  shapes = {name: (num_layers,) if name == 'layer_grad_norm' else () for name in RULES}
  return {
    **{name: np.zeros((), np.int32) for name in ('batches', 'applied', 'skips', 'streak')},
    'lr_scale': np.ones((), np.float32),
    'rollbacks': np.full(2, _NEVER, np.int32),
    'rollback_to': np.full((), -1, np.int32),
    'rings': {
      name: {
        'values': np.zeros((config.window, *shape), np.float32),
        'count': np.zeros((), np.int32),
      }
      for name, shape in shapes.items()
    },
  }


def window(state: Mapping[str, Any]) -> int:
  """How many past values the rings of a state have room for."""
  return len(state['rings']['loss']['values'])


def as_stored(state: dict, stored: Mapping[str, Any]) -> dict:
  """A state of `jax.ShapeDtypeStruct` with the rings as long as those of a stored one."""
  def ring(now: dict, then: Mapping[str, Any]) -> dict:
    values = now['values']
    shape = (then['values'].shape[0], *values.shape[1:])
    return {**now, 'values': jax.ShapeDtypeStruct(shape, values.dtype, sharding=values.sharding)}
  return {**state, 'rings': {k: ring(r, stored['rings'][k]) for k, r in state['rings'].items()}}


def resized(state: dict, window: int) -> dict:
  """The state, on the host, with another window: it keeps the newest values that have room."""
  def ring(old: dict) -> dict:
    values, count = old['values'], int(old['count'])
    kept = min(count, len(values), window)
    new = np.zeros((window, *values.shape[1:]), values.dtype)
    new[:kept] = values[np.arange(count - kept, count) % len(values)]
    return {'values': new, 'count': np.int32(kept)}
  return {**state, 'rings': {name: ring(r) for name, r in state['rings'].items()}}


# --- In the step ---------------------------------------------------------------------------------


def judge(config: Any, state: dict, stats: Mapping[str, jax.Array]) -> tuple[jax.Array, dict, dict]:
  """Whether a step is to be taken.

  Args:
    stats: a float32 array for each of RULES, `[L]` for 'layer_grad_norm', otherwise a scalar.
  Returns:
    `(ok, state, report)`: a bool scalar, the state after the step, and what `incidents` reads.
  """
  ok, rings, compared = jnp.array(True), {}, {}
  improving = stats['loss'] < _moments(state['rings']['loss'])[0]
  for name, rule in RULES.items():
    value = stats[name].astype(jnp.float32)
    if rule.log:  # a gradient of exactly 0 has a logarithm too
      value = jnp.log(jnp.maximum(value, 1e-30))
    lenience = jnp.where(improving, rule.lenience, 1.0)
    low, high = _bounds(config, rule, state['rings'][name], lenience)
    finite = jnp.all(jnp.isfinite(value))
    # The outer `all` is False for NaN.
    ok &= finite & jnp.all((value >= low) & (value <= high))
    rings[name] = _push(state['rings'][name], jnp.clip(value, low, high), finite)
    compared[name] = jnp.stack([value, low, high])
  if not config.enabled:
    ok, rings = jnp.array(True), state['rings']
  taken = ok.astype(jnp.int32)
  state = {
    **state,
    'batches': state['batches'] + 1,
    'applied': state['applied'] + taken,
    'skips': state['skips'] + 1 - taken,
    'streak': jnp.where(ok, 0, state['streak'] + 1),
    'lr_scale': jnp.where(
      ok, jnp.minimum(1.0, state['lr_scale'] * config.recovery), state['lr_scale']
    ),
    'rings': rings,
  }
  report = {k: v for k, v in state.items() if k != 'rings'}
  return ok, state, report | {'compared': compared}


def select(ok: jax.Array, new: PyTree, old: PyTree) -> PyTree:
  """`new` if the step is taken, otherwise `old`, bit for bit, whatever `new` holds."""
  return jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)


def _moments(ring: dict) -> tuple[jax.Array, jax.Array]:
  """Mean and standard deviation of the values that a ring holds."""
  values, count = ring['values'], jnp.minimum(ring['count'], len(ring['values']))
  there = (jnp.arange(len(values)) < count).reshape(-1, *[1] * (values.ndim - 1))
  mean = jnp.sum(jnp.where(there, values, 0.0), axis=0) / jnp.maximum(count, 1)
  squares = jnp.sum(jnp.where(there, jnp.square(values - mean), 0.0), axis=0)
  return mean, jnp.sqrt(squares / jnp.maximum(count - 1, 1))


def _bounds(
  config: Any, rule: Rule, ring: dict, lenience: jax.Array
) -> tuple[jax.Array, jax.Array]:
  mean, std = _moments(ring)
  least = rule.floor + rule.relative_floor * jnp.abs(mean)
  band = lenience * config.sigma * jnp.maximum(std, least)
  active = ring['count'] >= config.min_steps
  low = jnp.where(active & rule.log, mean - band, -jnp.inf)
  return low, jnp.where(active, mean + band, jnp.inf)


def _push(ring: dict, value: jax.Array, finite: jax.Array) -> dict:
  values, count = ring['values'], ring['count']
  place = (jnp.arange(len(values)) == count % len(values)).reshape(-1, *[1] * (values.ndim - 1))
  return {
    'values': jnp.where(place & finite, value, values),
    'count': count + finite.astype(jnp.int32),
  }


# --- Between steps, on the host ------------------------------------------------------------------


def incidents(report: Mapping[str, Any]) -> list[dict]:
  """The rules that a step broke: rows of rule, statistic, threshold, numbers or 'nan', 'inf'.

  A rule of layers names all that broke it; its numbers are those of the first.

  Args:
    report: of one step, on the host.
  """
  rows = []
  for name, (value, low, high) in report['compared'].items():
    value, low, high = (np.atleast_1d(x).astype(np.float64) for x in (value, low, high))
    broken = np.flatnonzero(~(np.isfinite(value) & (value >= low) & (value <= high)))
    if len(broken):
      i = broken[0]
      pair = value[i], low[i] if value[i] < low[i] else high[i]
      statistic, threshold = np.exp(pair) if RULES[name].log else pair
      rows.append({
        'rule': name,
        'statistic': _json(statistic),
        'threshold': _json(threshold),
        **({'layers': broken.tolist()} if RULES[name].log else {}),
      })
  return rows


def decide(config: Any, state: Mapping[str, Any], streak: int) -> str:
  """'go on', 'rollback', 'back off' or 'stop' after so many bad steps in a row.

  Args:
    state: the guard's, or a step's report, on the host.
  """
  if not config.enabled or streak < config.patience:
    return 'go on'
  recent = int(np.sum(np.asarray(state['rollbacks']) > state['batches'] - config.horizon))
  return ('rollback', 'back off', 'stop')[recent]


def roll_back(config: Any, now: Mapping[str, Any], snapshot: Mapping[str, Any], step: int) -> dict:
  """The state with which a run goes on from a snapshot: its rings, and what happened since.

  Args:
    now, snapshot: the states of the incident and of the snapshot, on the host.
    step: the snapshot's.
  """
  again = decide(config, now, config.patience) == 'back off'
  return {
    **snapshot,
    'batches': np.int32(now['batches'] + config.skip_batches),
    'skips': np.int32(now['skips']),
    'streak': np.int32(0),
    'lr_scale': np.float32(now['lr_scale'] * (config.backoff if again else 1)),
    'rollbacks': np.array([now['rollbacks'][1], now['batches']], np.int32),
    'rollback_to': np.int32(step),
  }


def forget(state: dict, name: str) -> dict:
  """The state without the past values of a statistic, which is about to change its level."""
  ring = state['rings'][name]
  ring = {**ring, 'count': 0 * ring['count']}
  return {**state, 'rings': {**state['rings'], name: ring}}


def _json(x: float) -> float | str:
  return float(f'{x:.6g}') if math.isfinite(x) else str(x)


# --- Faults --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fault:
  """One of KINDS in the batches [start, stop), counted from 1 as in metrics.jsonl."""

  kind: str
  factor: float
  start: int
  stop: int

  def now(self, batch: jax.Array) -> jax.Array:
    """Whether it acts on this batch, counted from 1."""
    return (batch >= self.start) & (batch < self.stop)


def parse_faults(text: str) -> tuple[Fault, ...]:
  """'nan@40,lr8x@100:120' → faults; one without an end lasts one batch.

  Batches are counted as they are drawn, those that a rollback leaves out included: a fault belongs
  to the data, and a run that goes past the data goes past the fault.

  Raises ValueError for what is not understood.
  """
  faults = []
  for part in filter(None, text.split(',')):
    m = re.fullmatch(r'([a-z]+?)(?:([\d.]+)x)?@(\d+)(?::(\d+))?', part.strip())
    if not m or m[1] not in KINDS or (m[2] is None) == (m[1] == 'lr'):
      raise ValueError(
        f'guard.inject: {part.strip()!r} is no fault: give KIND@BATCH or KIND@FIRST:END '
        f'with a kind of {", ".join(k + "8x" * (k == "lr") for k in KINDS)}'
      )
    start = int(m[3])
    faults.append(Fault(m[1], float(m[2] or 1), start, int(m[4] or start + 1)))
  return tuple(faults)


def inject(faults: tuple[Fault, ...], where: str, batch: jax.Array, tree: PyTree) -> PyTree:
  """The tree of `where` ('batch', 'grads' or 'updates') with the faults of this batch number."""
  for fault in faults:
    place, hurt = KINDS[fault.kind]
    if place == where:
      now = fault.now(batch)
      tree = jax.tree.map(lambda h, x: jnp.where(now, h, x), hurt(fault, tree), tree)  # noqa: B023
  return tree


def _repeated_token(_: Fault, batch: dict) -> dict:
  text = {k: jnp.ones_like(batch[k]) for k in ('inputs', 'targets')}
  return {**batch, **text}


def _one_nan(_: Fault, grads: PyTree) -> PyTree:
  return _at_largest(grads, lambda first, g: jnp.where(first, jnp.nan, g))


def _flipped_bit(_: Fault, grads: PyTree) -> PyTree:
  return _at_largest(grads, lambda first, g: jnp.where(first, 1e4, g))


def _vanished(_: Fault, grads: dict) -> dict:
  def leaf(g):
    middle = jnp.arange(g.shape[0]) == g.shape[0] // 2
    return jnp.where(middle.reshape(-1, *[1] * (g.ndim - 1)), g * 1e-6, g)

  return {**grads, 'blocks': jax.tree.map(leaf, grads['blocks'])}


def _scaled(fault: Fault, updates: PyTree) -> PyTree:
  return jax.tree.map(lambda u: u * fault.factor, updates)


def _at_largest(tree: PyTree, change: Any) -> PyTree:
  """Applies `change(is this the first element, leaf)` to the largest leaf."""
  leaves, structure = jax.tree.flatten(tree)
  i = max(range(len(leaves)), key=lambda i: leaves[i].size)
  first = True
  for dim, size in enumerate(leaves[i].shape):
    shape = [1] * leaves[i].ndim
    shape[dim] = size
    first &= (jnp.arange(size) == 0).reshape(shape)
  leaves[i] = change(first, leaves[i])
  return jax.tree.unflatten(structure, leaves)


# Kind of fault → where it strikes, and (fault, tree) → the tree it leaves.
KINDS = {
  'nan': ('grads', _one_nan),  # in one element
  'spike': ('batch', _repeated_token),  # a batch of one token over and over
  'bitflip': ('grads', _flipped_bit),  # one element is 10,000
  'lr': ('updates', _scaled),  # lr8x: the learning rate times 8
  'vanish': ('grads', _vanished),  # the middle layer's, times 1e-6
}

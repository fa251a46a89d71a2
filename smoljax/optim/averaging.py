"""The tail average: a run ends on the mean of its last weights rather than on the last of them.

Late in a run weights swing about a valley's floor; their exponential average lies lower, and costs
one more copy of the parameters (modded-nanogpt's optimizer track: 42 of 2,760 steps). From a step
on E ← E + (W − E) / τ, and the last update of the run moves the parameters to (1 − λ) W + λ E.
Until then they train as ever, so nothing but the last checkpoint differs from a run without. A full
replacement, λ = 1, lags behind a falling learning rate (LAWA); 0.6 was best there.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from smoljax.optim.matrices import Params


class TailState(NamedTuple):
  """What the average needs between updates."""

  count: jax.Array  # int32, updates made
  tail: Params  # E, as the parameters


def tail_average(
  horizon: float, weight: float, start: int, last: int
) -> optax.GradientTransformation:
  """The last of a chain: it sees whole updates.

  Args:
    horizon: τ, steps; a cooldown over D steps by a straight line wants about D / 3 or less.
    weight: λ, share of the average in the run's last weights.
    start: update (from 0) before which E is W.
    last: update after which the parameters are the mixture; -1 = never (`mixture` gives it).
  Raises:
    ValueError: a horizon below a step, a share that is none.
  """
  if not (horizon >= 1 and 0 <= weight <= 1):
    raise ValueError(f'optimizer.tail_steps={horizon}, tail_weight={weight}: give 1 step or more, '
                     'and a share from 0 to 1')

  def init(params):
    return TailState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.asarray, params))

  def update(updates, state, params=None):
    moved = jax.tree.map(jnp.add, params, updates)
    share = jnp.where(state.count < start, 1.0, 1.0 / horizon)
    tail = jax.tree.map(lambda e, w: e + share * (w - e), state.tail, moved)
    take = jnp.where(state.count == last, weight, 0.0)
    updates = jax.tree.map(lambda u, e, w: u + take * (e - w), updates, tail, moved)
    return updates, TailState(state.count + 1, tail)

  return optax.GradientTransformation(init, update)


def mixture(params: Params, opt_state: optax.OptState, weight: float) -> Params:
  """(1 − λ) W + λ E with the E in an optimizer's state; W where it keeps none."""
  tail = optax.tree.get(opt_state, 'tail')
  if tail is None:
    return params
  return jax.tree.map(lambda w, e: w + weight * (e - w), params, tail)

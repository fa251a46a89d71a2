"""The batch ramp: small batches while the gradient is large, larger ones as its noise takes over.

The batch beyond which a step gains little (the noise scale of `diagnostics.every`, or what a branch
of a run at twice the batch shows) is near 0 at first, rises fast and then stays (arXiv 2410.21676,
2505.23971). So a run begins with one step of train.batch_tokens an update, and from given shares of
it on averages the gradients of so many steps before each update. What a step reads, computes and
stores stays the same. The learning rate is that of the step an update ends at, times the square
root of how many it takes: noise per token is then the same.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Phase(NamedTuple):
  """Updates [start, end) of a run, each of `every` steps, the first beginning with `step`."""

  start: int
  end: int
  step: int
  every: int


def phases(ramp: Sequence[Sequence[float]], total_steps: int) -> list[Phase]:
  """The phases of a run; without a ramp one, an update a step.

  A phase lasts until a whole number of its updates has reached the next one's share. A branch may
  have another ramp than its parent, from where it branches on, if both have one.

  Args:
    ramp: pairs (share of the run, steps an update): shares rise from 0, steps never fall.
  Raises:
    ValueError: they are not so, or a number of steps is no whole one of 1 or more.
  """
  pairs = [(float(share), every) for share, every in ramp] or [(0.0, 1)]
  shares, counts = zip(*pairs, strict=True)
  rising = all(a < b for a, b in itertools.pairwise(shares))
  if not rising or list(counts) != sorted(counts) or shares[0] != 0 or shares[-1] >= 1 or any(
    n < 1 or n != int(n) for n in counts):
    raise ValueError(f'optimizer.ramp={tuple(ramp)}: give pairs (share of the run, steps an '
                     'update), both rising, the first share 0, such as ((0.0, 1), (0.2, 2))')
  found, update, step = [], 0, 0
  for (_, every), until in zip(pairs, [*shares[1:], 1.0], strict=True):
    number = max(0, -(-(round(until * total_steps) - step) // int(every)))
    found.append(Phase(update, update + number, step, int(every)))
    update, step = update + number, step + number * int(every)
  return found


def last_update(of: list[Phase], total_steps: int) -> int:
  """Number of the last update that the run comes to: the final phase may end beside its steps."""
  start, end, step, every = of[-1]
  return end - 1 - (step + (end - start) * every > total_steps)


def stretched(rate: Callable[..., jax.Array], of: list[Phase]) -> Callable[..., jax.Array]:
  """Number of an update → its learning rate, of a schedule by steps; both take a Horizon too."""
  if len(of) == 1 and of[0].every == 1:
    return rate
  starts, ends, firsts, every = (jnp.asarray(column) for column in zip(*of, strict=True))

  def of_update(count, *horizon):
    i = jnp.minimum(jnp.searchsorted(ends, count, side='right'), len(of) - 1)
    step = firsts[i] + (count - starts[i] + 1) * every[i] - 1
    return rate(step, *horizon) * jnp.sqrt(every[i].astype(jnp.float32))

  return of_update


class RampState(NamedTuple):
  """Gradients since the last update."""

  steps: jax.Array  # int32, steps since then
  update: jax.Array  # int32, updates made
  sums: Any  # of the gradients, float32, as the parameters
  inner: Any  # the optimizer's state


def accumulated(
  tx: optax.GradientTransformationExtraArgs, of: list[Phase]
) -> optax.GradientTransformationExtraArgs:
  """`tx` on the mean gradient of each update's steps; the steps before its last move nothing."""
  ends, every = (jnp.asarray([phase[i] for phase in of]) for i in (1, 3))

  def init(params):
    sums = jax.tree.map(lambda x: jnp.zeros_like(x, dtype=jnp.float32), params)
    zero = jnp.zeros((), jnp.int32)
    return RampState(zero, zero, sums, tx.init(params))

  def update(grads, state, params=None, **extra):
    i = jnp.minimum(jnp.searchsorted(ends, state.update, side='right'), len(of) - 1)
    steps = state.steps + 1
    sums = jax.tree.map(lambda s, g: s + g.astype(jnp.float32), state.sums, grads)
    due = steps >= every[i]

    def step(sums, inner):
      mean = jax.tree.map(lambda s, g: (s / every[i]).astype(g.dtype), sums, grads)
      return tx.update(mean, inner, params, **extra)

    def wait(sums, inner):
      del sums
      return jax.tree.map(jnp.zeros_like, grads), inner

    moves, inner = jax.lax.cond(due, step, wait, sums, state.inner)
    kept = jax.tree.map(lambda s: jnp.where(due, 0, s), sums)
    return moves, RampState(jnp.where(due, 0, steps), state.update + due, kept, inner)

  return optax.GradientTransformationExtraArgs(init, update)

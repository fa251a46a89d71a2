"""Batches that grow: phases by hand, and an update on the mean gradient of its steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smoljax import optim
from smoljax.optim import ramp
from tests.smoljax.optim.test_optimizer import make_config

PHASES = [ramp.Phase(0, 4, 0, 1), ramp.Phase(4, 7, 4, 2), ramp.Phase(7, 10, 10, 4)]


def test_phases_by_hand():
  assert ramp.phases([], 20) == [ramp.Phase(0, 20, 0, 1)]
  # The second lasts until step 10: three updates of two steps, and the last until after step 20.
  assert ramp.phases([(0, 1), (.2, 2), (.45, 4)], 20) == PHASES
  for wrong in ([(.1, 1)], [(0, 2), (.5, 1)], [(0, 1.5)], [(0, 1), (1.0, 2)]):
    with pytest.raises(ValueError, match='both rising'):
      ramp.phases(wrong, 20)


def test_the_rate_is_that_of_the_last_step_times_the_root_of_their_number():
  rate = ramp.stretched(lambda step: 100.0 + step, PHASES)
  steps = [0, 1, 2, 3, 5, 7, 9, 13, 17, 21]
  expected = [(100 + s) * np.sqrt(p.every) for p in PHASES for s in steps[p.start:p.end]]
  assert [float(rate(n)) for n in range(10)] == pytest.approx(expected)


def test_a_tail_average_is_taken_at_the_last_update_that_a_run_comes_to():
  """Eight steps make two updates of three; the last two steps make none."""
  params = {'up_DF': jnp.ones((2, 3))}
  ends = {}
  for tau in (0.0, 2.0):
    tx, _ = optim.make_optimizer(
      make_config(ramp=((0, 3),), tail_steps=tau, tail_weight=0.5, no_decay=()), params, 8)
    state, ends[tau] = tx.init(params), params
    for t in range(8):
      updates, state = tx.update({'up_DF': jnp.full((2, 3), 1.0 + t)}, state, ends[tau])
      ends[tau] = optax.apply_updates(ends[tau], updates)
  last, tail = ends[0.0]['up_DF'], optax.tree.get(state, 'tail')['up_DF']
  assert np.abs(tail - last).max() > 1e-4
  np.testing.assert_allclose(ends[2.0]['up_DF'], (last + tail) / 2, rtol=1e-6)


def test_updates_take_the_mean_gradient_of_their_steps():
  config = make_config(ramp=((0, 1), (.5, 3)), no_decay=(), clip_norm=1.0)
  params = {'up_DF': jnp.ones((2, 3))}
  tx, _ = optim.make_optimizer(config, params, 8)
  plain, _ = optim.make_optimizer(make_config(no_decay=(), clip_norm=1.0), params, 8)
  state, own = tx.init(params), plain.init(params)
  step = jax.jit(tx.update)
  grads = [{'up_DF': jnp.asarray(np.random.default_rng(t).standard_normal((2, 3)), jnp.float32)}
           for t in range(10)]
  for group in ([0], [1], [2], [3], [4, 5, 6], [7, 8, 9]):
    mean = jax.tree.map(lambda *x: sum(x) / len(x), *(grads[i] for i in group))
    wanted, own = plain.update(mean, own, params)
    for i in group:
      updates, state = step(grads[i], state, params)
      if i != group[-1]:
        assert not np.any(updates['up_DF'])
    root = np.sqrt(len(group))
    np.testing.assert_allclose(updates['up_DF'], wanted['up_DF'] * root, rtol=1e-5)
    params = optax.apply_updates(params, updates)

"""Cross entropy as one kernel, interpreted on CPUs, against autodiff of its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoljax import sharding
from smoljax.train import cross_entropy

INTERPRET = jax.default_backend() == 'cpu'


@pytest.mark.parametrize('z_loss', [0.0, 0.1])
def test_the_kernel_equals_autodiff_of_the_definition(z_loss):
  rng = np.random.default_rng(0)
  B, C, V = 2, 3, 517
  logits = jnp.asarray(8 * rng.normal(size=(B, C, V)), jnp.bfloat16)
  logits = logits.at[0, 0, 3].set(300).at[1, 2].add(-200)  # beyond what exp takes without care
  targets = jnp.asarray(rng.integers(0, V, (B, C)))
  weight = jnp.asarray(rng.random((B, C)), jnp.float32).at[1, 1].set(0)

  def by_definition(x):
    log_z = jax.nn.logsumexp(x, axis=-1)
    nll = log_z - jnp.take_along_axis(x, targets[..., None], -1)[..., 0]
    return weight * (nll + z_loss * log_z**2), nll, log_z

  expected, pull = jax.vjp(by_definition, logits.astype(jnp.float32))
  zeros = jnp.zeros((B, C))
  (expected_grad,) = pull((jnp.ones((B, C)), zeros, zeros))
  nll, log_z, grad = cross_entropy.gradient(
    logits, targets, weight, z_loss=z_loss, interpret=INTERPRET, tile=(64, 2, 1))
  for got, want in zip((nll, log_z), expected[1:], strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-5)
  assert grad.dtype == jnp.bfloat16
  np.testing.assert_allclose(grad.astype(jnp.float32), expected_grad, rtol=5e-3, atol=1e-6)
  # As the step calls it: on a mesh, with a factor from above, under jit.
  with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:2])):
    names = 'batch', 'length', 'vocab'
    here = [sharding.constrain(x, *names[: x.ndim]) for x in (logits, targets, weight)]

    @jax.jit
    def run(logits, targets, weight):
      losses, pull = jax.vjp(
        lambda x: cross_entropy.weighted(x, targets, weight, z_loss, INTERPRET)[0], logits)
      return losses, pull(2 * jnp.ones_like(losses))[0]

    losses, twice = run(*here)
  np.testing.assert_allclose(losses, expected[0], rtol=1e-5, atol=1e-5)
  # To rounding: the tiles are others.
  np.testing.assert_allclose(
    twice.astype(jnp.float32), 2 * grad.astype(jnp.float32), rtol=8e-3, atol=1e-6)
  # Not differentiated it is plain jax, with the same losses.
  np.testing.assert_allclose(
    cross_entropy.weighted(logits, targets, weight, z_loss)[0], expected[0], rtol=1e-5, atol=1e-5)


def test_logits_that_are_no_numbers_give_none():
  logits = jnp.zeros((1, 3, 130), jnp.bfloat16).at[0, 0, 129].set(jnp.nan).at[0, 1, 5].set(jnp.inf)
  nll, _, grad = cross_entropy.gradient(
    logits, jnp.ones((1, 3), jnp.int32), jnp.ones((1, 3)), interpret=INTERPRET, tile=(64, 2, 1))
  assert np.isnan(nll[0]).tolist() == [True, True, False]
  assert not np.isfinite(grad[0, :2].astype(jnp.float32)).all(axis=-1).any()

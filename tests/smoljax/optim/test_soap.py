"""SOAP against its definition in NumPy, and what its authors prove of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoljax.optim import soap
from smoljax.optim.matrices import View

SETTINGS = dict(b1=0.9, b2=0.95, eps=1e-8, every=3, max_dim=64, momentum_dtype='float32')
KERNEL = View((-2,), (-1,))


def run(gradients, views, **changes):
  """The updates that a sequence of gradients (trees) gives."""
  tx = soap.scale_by_soap(views, **SETTINGS | changes)
  state, out = tx.init(gradients[0]), []
  update = jax.jit(tx.update)
  for g in gradients:
    direction, state = update(g, state)
    out.append(jax.device_get(direction))
  return out, state


def by_definition(gradients, *, b1, b2, eps, every, rotate_cols=True, **_):
  """SOAP on one matrix in float64, as in the paper's algorithm 3 and its authors' code."""
  rows, cols = gradients[0].shape
  m, v = np.zeros((rows, cols)), np.zeros((rows, cols))
  left, right = np.zeros((rows, rows)), np.zeros((cols, cols))
  q_left, q_right, out = np.eye(rows), np.eye(cols), []
  for step, g in enumerate(np.asarray(gradients, np.float64)):
    if step:
      m = b1 * m + (1 - b1) * g
      v = b2 * v + (1 - b2) * (q_left.T @ g @ q_right) ** 2
      turned = q_left.T @ (m / (1 - b1**step)) @ q_right
      out.append(q_left @ (turned / (np.sqrt(v / (1 - b2**step)) + eps)) @ q_right.T)
    else:
      out.append(np.zeros_like(g))
    left = b2 * left + (1 - b2) * g @ g.T
    right = b2 * right + (1 - b2) * g.T @ g
    if step == 0:
      q_left = np.linalg.eigh(left)[1][:, ::-1]
      q_right = np.linalg.eigh(right)[1][:, ::-1] if rotate_cols else q_right
    elif step % every == 0:
      order = np.argsort(-np.diag(q_left.T @ left @ q_left), kind='stable')
      v, q_left = v[order], np.linalg.qr(left @ q_left[:, order])[0]
      if rotate_cols:
        order = np.argsort(-np.diag(q_right.T @ right @ q_right), kind='stable')
        v, q_right = v[:, order], np.linalg.qr(right @ q_right[:, order])[0]
  return np.array(out)


def gradients(shape, steps=11, seed=0):
  """Correlated in both dims; full rank at the first step, so that eigenvectors are defined."""
  rng = np.random.default_rng(seed)
  rows, cols = shape[-2:]
  mix_rows, mix_cols = rng.standard_normal((rows, rows)), rng.standard_normal((cols, cols))
  g = rng.standard_normal((steps, *shape))
  return (mix_rows @ g @ mix_cols / cols).astype(np.float32)


def test_a_square_matrix_by_definition():
  g = gradients((6, 6))
  got, _ = run([{'w_DF': x} for x in g], {'w_DF': KERNEL})
  np.testing.assert_allclose([x['w_DF'] for x in got], by_definition(g, **SETTINGS), atol=2e-3)


@pytest.mark.parametrize('tall', [False, True])
def test_a_long_side_is_left_alone(tall):
  """Either way the matrix lies; also the only case in which a first gradient has no full rank."""
  g = gradients((5, 9))
  given = np.swapaxes(g, 1, 2) if tall else g
  got, state = run([{'w_DF': x} for x in given], {'w_DF': KERNEL}, max_dim=8)
  got = np.array([x['w_DF'] for x in got])
  want = by_definition(g, **SETTINGS, rotate_cols=False)
  np.testing.assert_allclose(np.swapaxes(got, 1, 2) if tall else got, want, atol=2e-3)
  assert [x.shape for x in state.grams.values()] == [(1, 5, 5)]


def test_layers_and_heads_are_matrices_of_their_own():
  g = gradients((2, 3, 4, 4))  # [steps, L, N, D, H] to q_DNH
  leaf = [{'q_DNH': np.moveaxis(x, 1, 2)} for x in g]
  got, _ = run(leaf, {'q_DNH': View((-3,), (-1,))})
  for layer in range(2):
    for head in range(3):
      want = by_definition(g[:, layer, head], **SETTINGS)
      mine = [x['q_DNH'][layer, :, head] for x in got]
      np.testing.assert_allclose(mine, want, atol=2e-3)


def test_turning_the_gradients_turns_the_updates():
  """Which AdamW's do not: the step depends on no choice of coordinates."""
  rng = np.random.default_rng(1)
  left, right = (np.linalg.qr(rng.standard_normal((6, 6)))[0] for _ in range(2))
  g = gradients((6, 6))
  turned = (left @ g @ right).astype(np.float32)
  plain, other = (
    np.array([x['w_DF'] for x in run([{'w_DF': x} for x in some], {'w_DF': KERNEL})[0]])
    for some in (g, turned)
  )
  np.testing.assert_allclose(left @ plain @ right, other, atol=5e-3)


def test_the_first_gradient_and_zeros_move_nothing():
  zero = [{'w_DF': jnp.zeros((4, 4))}] * 5
  assert not any(x['w_DF'].any() for x in run(zero, {'w_DF': KERNEL})[0])
  assert not run([{'w_DF': jnp.ones((4, 4))}], {'w_DF': KERNEL})[0][0]['w_DF'].any()


def test_a_step_between_refreshments_is_none():
  with pytest.raises(ValueError, match=r'soap\.every=0: give 1'):
    soap.scale_by_soap({}, **SETTINGS | {'every': 0})

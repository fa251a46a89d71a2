"""What newer optimizers add, each against its definition written in NumPy.

Hyperball (MuonH, AdamH), AdaMuon, SOAP-Muon, the tail average, decays of their own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smoljax import muon, optim, sharding
from smoljax.optim import averaging, hyperball
from smoljax.optim import psgd as psgd_lib
from smoljax.optim.dion import scale_by_dion
from smoljax.optim.soap import scale_by_soap
from tests.smoljax.optim.test_muon import F64, JORDAN, KERNEL
from tests.smoljax.optim.test_optimizer import abstract, make_config, random_like, train_steps

EXACT = dict(coefficients='taylor', steps=30, scale_rule='none')  # converges: UVᵀ


def polar(x):
  u, _, vt = np.linalg.svd(x, full_matrices=False)
  return u @ vt


def test_hyperball_by_its_definition():
  """Three steps of W ← R (W − η R u/‖u‖) / ‖…‖, the gradient's size and a decay without effect."""
  with jax.enable_x64(True):
    views = {'w_DF': KERNEL}
    tx = optax.chain(hyperball.relative(views), optax.scale_by_learning_rate(.02),
                     hyperball.project(views))
    rng = np.random.default_rng(0)
    start = rng.standard_normal((2, 4, 7))
    params = {'w_DF': jnp.asarray(start), 'b_D': jnp.ones(3)}
    state, expected = tx.init(params), start.copy()
    for _ in range(3):
      u = rng.standard_normal((2, 4, 7)) * 1e3
      updates, state = tx.update({'w_DF': jnp.asarray(u), 'b_D': jnp.ones(3)}, state, params)
      params = optax.apply_updates(params, updates)
      for i in range(2):
        radius = np.linalg.norm(expected[i])
        moved = expected[i] - .02 * radius * u[i] / np.linalg.norm(u[i])
        expected[i] = radius * moved / np.linalg.norm(moved)
  np.testing.assert_allclose(params['w_DF'], expected, rtol=1e-12)
  np.testing.assert_allclose(np.linalg.norm(params['w_DF'], axis=(1, 2)),
                             np.linalg.norm(start, axis=(1, 2)), rtol=1e-12)
  np.testing.assert_allclose(params['b_D'], 1 - 3 * .02)  # no view, no ball
  with pytest.raises(ValueError, match='b_D has a matrix of zeros'):
    hyperball.relative({'b_D': KERNEL}).init({'b_D': jnp.zeros((2, 3))})


@pytest.mark.slow
@pytest.mark.parametrize('name', ['adamw', 'muon'])
def test_a_hyperball_of_the_whole_model_keeps_each_matrix_and_frees_the_rest(name):
  params = random_like(abstract(), 0)
  grads = [random_like(abstract(), 1 + t) for t in range(2)]
  step = functools.partial(train_steps, params=params, grads=grads)
  muon_section = dict(normuon=.95, per_head='qk') if name == 'muon' else {}
  held, _ = step(make_config(name, muon=muon_section, hyperball=True))
  free, _ = step(make_config(name, muon=muon_section))
  for path, view in optim.matrix_views(params).items():
    old, new, other = (functools.reduce(lambda t, k: t[k], path.split('/'), tree)
                       for tree in (params, held, free))
    size = lambda x, view=view: np.asarray(hyperball.frobenius(jnp.asarray(x), view)).ravel()
    np.testing.assert_allclose(size(new), size(old), rtol=1e-6)
    assert np.all(np.abs(size(other) / size(old) - 1) > 1e-5)
    assert np.abs(new - old).max() > 1e-3
  np.testing.assert_array_equal(held['embed_VD'], free['embed_VD'])


def test_adamuon_by_its_definition():
  with jax.enable_x64(True):
    tx = muon.scale_by_muon({'w_DF': KERNEL}, **JORDAN | F64 | EXACT | dict(
      nesterov=False, adamuon=.9))
    state, moment, v = tx.init({'w_DF': jnp.zeros((2, 4, 7))}), 0, np.zeros((2, 4, 7))
    for t in range(3):
      g = np.random.default_rng(t).standard_normal((2, 4, 7))
      updates, state = tx.update({'w_DF': jnp.asarray(g)}, state)
      moment = .95 * moment + .05 * g
      for i in range(2):
        o = polar(moment[i])
        v[i] = .9 * v[i] + .1 * o**2
        scaled = o / (np.sqrt(v[i] / (1 - .9 ** (t + 1))) + 1e-12)
        scaled *= np.sqrt(4) / np.linalg.norm(scaled)  # an orthogonal matrix has norm √min
        np.testing.assert_allclose(updates['w_DF'][i], scaled, atol=5e-6)
  with pytest.raises(ValueError, match='set one'):
    muon.scale_by_muon({}, **JORDAN | dict(adamuon=.9, normuon=.9))


def test_soap_muon_whitens_the_momentum_in_the_basis_of_earlier_gradients():
  """modded-nanogpt's optimizer track, record 46, its basis refreshed at each step."""
  mu, beta2 = .95, .9
  with jax.enable_x64(True):
    tx = scale_by_soap({'w': KERNEL}, b1=mu, b2=beta2, eps=1e-8, every=1, max_dim=64,
                       momentum_dtype='float64', of_momentum=True)
    # Square: one gradient leaves no side of it with directions of its own choosing.
    params = {'w': jnp.zeros((1, 5, 5))}
    state = tx.init(params)
    m, s, rows, cols, bases = np.zeros((5, 5)), np.zeros((5, 5)), 0, 0, None
    for t in range(5):
      g = np.random.default_rng(t).standard_normal((5, 5))
      updates, state = tx.update({'w': jnp.asarray(g[None])}, state, params)
      m = mu * m + (1 - mu) * g
      ahead = expected = mu * m + (1 - mu) * g
      if bases is not None:
        q, p = bases
        turned = q.T @ ahead @ p
        s = beta2 * s + (1 - beta2) * turned**2
        expected = q @ (turned / np.sqrt(s)) @ p.T
      rows = beta2 * rows + (1 - beta2) * g @ g.T
      cols = beta2 * cols + (1 - beta2) * g.T @ g
      if bases is None:
        bases = [np.linalg.eigh(x)[1][:, ::-1] for x in (rows, cols)]
      else:
        for axis, gram in enumerate((rows, cols)):
          q = bases[axis]
          order = np.argsort(-np.diag(q.T @ gram @ q), kind='stable')
          s = np.take(s, order, axis)
          bases[axis] = np.linalg.qr(gram @ q[:, order])[0]
      np.testing.assert_allclose(updates['w'][0], expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize('shape', [(4, 7), (7, 4)])
def test_dion_by_its_definition(shape):
  """The authors' algorithm 1, on the momentum with its short side first."""
  tx = scale_by_dion({'w': KERNEL}, mu=.9, rank=.5, momentum_dtype='float32')
  state = tx.init({'w': jnp.zeros((1, *shape))})
  q, m = np.asarray(state.bases['w/basis_II'][0], np.float64), np.zeros((4, 7))
  for t in range(4):
    g = np.random.default_rng(t).standard_normal(shape)
    updates, state = tx.update({'w': jnp.asarray(g[None], jnp.float32)}, state)
    b = m + (g if shape == (4, 7) else g.T)
    p = np.linalg.qr(b @ q)[0]
    r = b.T @ p
    m = b - .1 * p @ r.T
    q = r / np.linalg.norm(r, axis=0)
    u = np.sqrt(shape[1] / shape[0]) * p @ q.T
    np.testing.assert_allclose(updates['w'][0], u if shape == (4, 7) else u.T, atol=2e-5)
  assert np.linalg.matrix_rank(updates['w'][0], tol=1e-3) == 2
  zero, _ = tx.update({'w': jnp.zeros((1, *shape))}, tx.init({'w': jnp.zeros((1, *shape))}))
  assert not np.any(zero['w'])


def test_psgd_by_its_definition():
  """modded-nanogpt's entry, written in NumPy; the random probes are given."""
  tx = psgd_lib.scale_by_psgd({'w': KERNEL}, beta=.9, rate=1.0, momentum_dtype='float32')
  state = tx.init({'w': jnp.zeros((1, 3, 5))})

  def norm(a):
    scale = np.abs(a).max()
    a = a / scale
    x = a @ a[:, (a * a).sum(0).argmax()]
    return scale * np.linalg.norm(a @ (x / np.linalg.norm(x)))

  mean = np.zeros((3, 5))
  for t in range(4):
    g = np.random.default_rng(t).standard_normal((3, 5))
    mean = .9 * mean + .1 * g
    m = mean / (1 - .9 ** (t + 1))
    _, v = psgd_lib.probes('w', jnp.int32(t), jnp.asarray(m[None], jnp.float32))
    v = np.asarray(v[0], np.float64)
    updates, state = tx.update({'w': jnp.asarray(g[None], jnp.float32)}, state)
    if t == 0:
      s = np.mean(m**4) ** (-1 / 32)
      q0, q1 = s * np.eye(3), s * np.eye(5)
    balance = np.sqrt(np.abs(q1).max() / np.abs(q0).max())
    q0, q1 = q0 * balance, q1 / balance
    a, b = q0 @ m @ q1.T, np.linalg.inv(q0).T @ v @ np.linalg.inv(q1)
    q0 = q0 - np.triu(a @ a.T - b @ b.T) @ q0 / norm(a @ a.T + b @ b.T)
    q1 = q1 - np.triu(a.T @ a - b.T @ b) @ q1 / norm(a.T @ a + b.T @ b)
    np.testing.assert_allclose(updates['w'][0], q0.T @ q0 @ m @ q1.T @ q1, rtol=2e-3, atol=1e-4)


def test_a_run_ends_on_the_average_of_its_tail():
  tx = averaging.tail_average(horizon=4, weight=.6, start=2, last=5)
  params = {'w': jnp.zeros(1)}
  state, w, e = tx.init(params), 0., 0.
  for t in range(6):
    updates, state = tx.update({'w': jnp.full(1, float(t))}, state, params)
    w += t
    e = w if t < 2 else e + (w - e) / 4
    mixed = averaging.mixture({'w': jnp.full(1, w)}, state, .6)
    params = optax.apply_updates(params, updates)
    if t < 5:
      np.testing.assert_allclose(params['w'], w)
    np.testing.assert_allclose(mixed['w'], .4 * w + .6 * e, rtol=1e-6)
  np.testing.assert_allclose(params['w'], .4 * w + .6 * e, rtol=1e-6)
  assert averaging.mixture(params, optax.EmptyState(), .6) is params


def test_muon_and_adamw_have_decays_of_their_own():
  w = {'embed_VD': jnp.ones((4, 3)), 'up_DF': jnp.ones((2, 3))}
  config = make_config('muon', muon=dict(decay_multiplier=3.0), no_decay=())
  tx, _ = optim.make_optimizer(config, w, 9)
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, w), tx.init(w), w)
  np.testing.assert_allclose(updates['embed_VD'], -.01 * .1, rtol=1e-6)
  np.testing.assert_allclose(updates['up_DF'], -.01 * .3, rtol=1e-6)


def test_decay_as_a_timescale_follows_length_and_rate():
  w = {'up_DF': jnp.ones((2, 3))}
  for lr, steps in ((.01, 10), (.02, 40)):
    config = make_config(decay_timescale=.5, learning_rate=lr, no_decay=())
    tx, _ = optim.make_optimizer(config, w, steps)
    updates, _ = tx.update({'up_DF': jnp.zeros((2, 3))}, tx.init(w), w)
    np.testing.assert_allclose(updates['up_DF'], -1 / (.5 * steps), rtol=1e-6)


@pytest.mark.parametrize('size', [1e20, 1e30])
def test_a_huge_gradient_moves_muon_as_a_usual_one_does(size):
  """Its norm is beyond float32, and the step was zero."""
  g = np.random.default_rng(0).standard_normal((2, 4, 7)).astype(np.float32)
  tx = muon.scale_by_muon({'w': KERNEL}, **JORDAN)
  params = {'w': jnp.zeros((2, 4, 7))}
  steps = [tx.update({'w': jnp.asarray(x)}, tx.init(params))[0]['w'] for x in (g, g * size)]
  assert np.linalg.norm(steps[0]) > 1
  np.testing.assert_allclose(*steps, atol=.02)  # bfloat16
  broken, _ = tx.update({'w': jnp.asarray(g).at[0, 0, 0].set(np.inf)}, tx.init(params))
  assert np.isnan(broken['w'][0]).all() and np.isfinite(broken['w'][1]).all()


@pytest.mark.slow
@pytest.mark.parametrize(('section', 'growth'), [
  (dict(normuon=.95), ()), (dict(adamuon=.999), ()), (dict(soap=True), ()),
  ({}, ((0.0, 1), (0.1, 2)))])  # fmt: skip
def test_sharded_equals_unsharded(section, growth):
  params = random_like(abstract(), 0)
  grads = [random_like(abstract(), 1 + t) for t in range(3)]
  config = make_config('muon', muon=section, hyperball=True, tail_steps=2, ramp=growth)
  alone = train_steps(config, params, grads)
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  homes = sharding.shardings(params, mesh)
  with jax.set_mesh(mesh):
    together = train_steps(config, params, grads, lambda x: jax.device_put(x, homes))
  near = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=5e-5)
  jax.tree.map(near, alone[0], together[0])
  for x, home in zip(jax.tree.leaves(together[0]), jax.tree.leaves(homes), strict=True):
    assert x.sharding.is_equivalent_to(home, x.ndim)

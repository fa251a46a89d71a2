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
  params = random_like(abstract(), 0)
  zeros = [jax.tree.map(np.zeros_like, params)]
  got, _ = train_steps(make_config(
    'muon', muon=dict(decay_multiplier=3.0), no_decay=(), schedule='constant'), params, zeros)
  np.testing.assert_allclose(got['embed_VD'], params['embed_VD'] * (1 - .01 * .1), rtol=1e-6)
  up = params['blocks']['mlp']['up_DF']
  np.testing.assert_allclose(got['blocks']['mlp']['up_DF'], up * (1 - .01 * .3), rtol=1e-6)


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
@pytest.mark.parametrize('section', [dict(normuon=.95), dict(adamuon=.999), dict(soap=True)])
def test_sharded_equals_unsharded(section):
  params = random_like(abstract(), 0)
  grads = [random_like(abstract(), 1 + t) for t in range(3)]
  config = make_config('muon', muon=section, hyperball=True, tail_steps=2)
  alone = train_steps(config, params, grads)
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  homes = sharding.shardings(params, mesh)
  with jax.set_mesh(mesh):
    together = train_steps(config, params, grads, lambda x: jax.device_put(x, homes))
  near = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-5)
  jax.tree.map(near, alone[0], together[0])
  for x, home in zip(jax.tree.leaves(together[0]), jax.tree.leaves(homes), strict=True):
    assert x.sharding.is_equivalent_to(home, x.ndim)
  states = sharding.shardings(together[1], mesh)  # what a checkpoint is restored to
  for x, home in zip(jax.tree.leaves(together[1]), jax.tree.leaves(states), strict=True):
    assert x.sharding.is_equivalent_to(home, x.ndim)

"""Newton–Schulz, Muon and QK-Clip against published anchors, torch, numpy and each other."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from smoljax.optim import muon, symmetric
from smoljax.optim import newton_schulz as newton_schulz_lib
from smoljax.optim import qk_clip as qk_clip_lib
from smoljax.optim.matrices import View, as_matrices, matrix_shape
from smoljax.optim.newton_schulz import COEFFICIENTS
from smoljax.optim.qk_clip import qk_clip_grads, qk_rates

KERNEL = View((-2,), (-1,))
VIEWS = {
  'q': View((-3,), (-2, -1)),
  'k': View((-3,), (-2, -1)),
  'v': View((-3,), (-2, -1)),
  'o': View((-3, -2), (-1,)),
  'gate': KERNEL,
  'up': KERNEL,
  'down': KERNEL,
}
HEAD_VIEWS = VIEWS | {
  'q': View((-3,), (-1,)), 'k': View((-3,), (-1,)), 'v': View((-3,), (-1,)), 'o': View((-2,), (-1,))
}
SPECS = {
  'q': P(None, 'fsdp', 'tensor'),
  'k': P(None, 'fsdp', 'tensor'),
  'v': P(None, 'fsdp', 'tensor'),
  'o': P(None, 'tensor', None, 'fsdp'),
  'gate': P(None, 'fsdp', 'tensor'),
  'up': P(None, 'fsdp', 'tensor'),
  'down': P(None, 'tensor', 'fsdp'),
}
JORDAN = dict(
  beta=0.95, beta_start=0.85, beta_warmup=0, momentum='average', nesterov=True,
  coefficients='jordan', steps=5, scale_rule='jordan', rms=0.2, normuon=0.0, at_once=0,
  compute_dtype='float32', momentum_dtype='float32',
)
F64 = dict(compute_dtype='float64', momentum_dtype='float64')


newton_schulz = jax.jit(
  newton_schulz_lib.newton_schulz, static_argnames=('coefficients', 'steps', 'dtype')
)
qk_clip = jax.jit(qk_clip_lib.qk_clip, static_argnames='tau')


def block(seed, L=3, D=32, N=4, K=2, H=8, F=48):
  """The matrices of L transformer layers; q and o are square."""
  rng = np.random.default_rng(seed)
  shapes = dict(
    q=(L, D, N, H), k=(L, D, K, H), v=(L, D, K, H), o=(L, N, H, D),
    gate=(L, D, F), up=(L, D, F), down=(L, F, D),
  )
  return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def wave(shape, frequency):
  """Numbers any language can make again: sin(frequency · n^1.5)."""
  return np.sin(frequency * np.arange(1, math.prod(shape) + 1) ** 1.5).reshape(shape)


def singular_values(x):
  return np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)


# ----------------------------------------------------------------------------- Newton–Schulz


@pytest.mark.parametrize(
  'coefficients, smallest, low, high',
  # Computed in float64 from the published coefficients, outside this library. Polar Express holds
  # from 1e-3 after its own division by 1.02.
  [('jordan', 5e-3, 0.682, 1.154), ('pe5', 1.02e-3, 0.859, 1.141)],
)
def test_every_singular_value_lands_in_the_published_interval(coefficients, smallest, low, high):
  sigma = np.geomspace(smallest, 1, 4001)
  diagonals = np.zeros((len(sigma), 2, 2))
  diagonals[:, 0, 0], diagonals[:, 1, 1] = sigma, np.sqrt(1 - sigma**2)  # Frobenius norm 1
  with jax.enable_x64(True):
    out = np.asarray(newton_schulz(jnp.asarray(diagonals), coefficients, dtype=jnp.float64))
  values = out[:, 0, 0]
  # The interval is tight: the polynomial reaches both ends, to the three digits published.
  np.testing.assert_allclose([values.min(), values.max()], [low, high], atol=1e-3)
  assert not out[:, 0, 1].any() and not out[:, 1, 0].any()


def test_jordan_is_not_convergent_near_zero():
  diagonals = np.zeros((2, 2, 2))
  diagonals[:, 0, 0], diagonals[:, 1, 1] = (1e-3, 1e-4), 1
  with jax.enable_x64(True):
    out = np.asarray(newton_schulz(jnp.asarray(diagonals), 'jordan', dtype=jnp.float64))
  np.testing.assert_allclose(out[:, 0, 0], [0.471, 0.048], atol=6e-4)


@pytest.mark.parametrize(
  'coefficients, steps, tolerance',
  [('taylor', 14, 1e-10), ('pe', 8, 1e-4), ('deepseek10', 10, 0.05)],
)
@pytest.mark.parametrize('shape', [(12, 24), (24, 12)])
def test_convergent_tables_give_the_polar_factor(coefficients, steps, tolerance, shape):
  x = np.random.default_rng(0).standard_normal(shape)
  u, _, vt = np.linalg.svd(x, full_matrices=False)
  with jax.enable_x64(True):
    out = newton_schulz(jnp.asarray(x), coefficients, steps, jnp.float64)
  assert np.abs(singular_values(np.asarray(out)) - 1).max() < tolerance
  np.testing.assert_allclose(np.asarray(out), u @ vt, atol=tolerance)


@pytest.mark.parametrize('coefficients', sorted(COEFFICIENTS))
def test_every_table_is_near_orthogonal_in_bfloat16(coefficients, request):
  if coefficients == 'gram5':  # it takes float16 for bfloat16
    request.getfixturevalue('float16')
  x = jnp.asarray(np.random.default_rng(1).standard_normal((32, 64)), jnp.float32)
  rows = len(COEFFICIENTS[coefficients].rows)
  steps = {'taylor': 12, 'jordan': 5}.get(coefficients, rows)
  out = newton_schulz(x, coefficients, steps)
  assert out.dtype == x.dtype
  values = singular_values(out)
  assert values.min() > 0.6
  assert values.max() < 1.35


@pytest.mark.parametrize('shape', [(24, 96), (96, 24), (24, 24)])
def test_the_gram_form_is_the_plain_one(shape):
  x = np.random.default_rng(7).standard_normal((3, *shape))
  plain = COEFFICIENTS['gram5']._replace(restart=None)
  with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
    gram = np.asarray(newton_schulz(jnp.asarray(x), 'gram5', dtype=jnp.float64))
    patch.setitem(COEFFICIENTS, 'gram5', plain)
    expected = np.asarray(newton_schulz(jnp.asarray(x), 'gram5', dtype=jnp.float64))
  np.testing.assert_allclose(gram, expected, atol=1e-10)


def test_the_gram_form_loses_little_in_float16(float16):
  x = np.random.default_rng(8).standard_normal((2, 64, 256)) * np.geomspace(1, 1e-3, 64)[:, None]
  exact = np.asarray(newton_schulz(jnp.asarray(x, jnp.float32), 'gram5', dtype=jnp.float32))
  out = np.asarray(newton_schulz(jnp.asarray(x, jnp.float32), 'gram5'))
  assert np.linalg.norm(out - exact) < .05 * np.linalg.norm(exact)


@pytest.mark.parametrize('coefficients', ['pe5', 'gram5'])
@pytest.mark.parametrize('shape', [(2, 96, 64), (2, 64, 96)])
def test_newton_schulz_by_half_products_is_the_plain_one(coefficients, shape, monkeypatch):
  x = jnp.asarray(np.random.default_rng(10).standard_normal(shape), jnp.float32)
  iterate = lambda x: newton_schulz_lib.newton_schulz(x, coefficients, dtype=jnp.float32)
  expected, used = np.asarray(iterate(x)), []

  def half(y, rows, add=None, factor=1.0, of_add=1.0, of_eye=0.0, tall=False):
    out = factor * jnp.einsum('BKM,BKN->BMN' if tall else 'BMK,BNK->BMN', y, rows)
    out += of_eye * jnp.eye(out.shape[1])
    return out if add is None else out + of_add * add

  monkeypatch.setattr(symmetric, 'fits', lambda x, tall=False: used.append(x.shape) or True)
  monkeypatch.setattr(symmetric, 'product', half)
  monkeypatch.setattr(jax.lax, 'platform_dependent', lambda *args, cuda, default: cuda(*args))
  np.testing.assert_allclose(np.asarray(iterate(x)), expected, atol=2e-4)
  assert len(used) == (10 if coefficients == 'pe5' else 16)


def test_you5_is_optax_dion():
  from optax.contrib import _muon

  assert list(COEFFICIENTS['you5'].rows) == list(_muon._DION_NS_COEFFS)


def test_a_batch_is_its_matrices_one_by_one():
  x = np.random.default_rng(2).standard_normal((2, 3, 8, 5))
  with jax.enable_x64(True):
    together = np.asarray(newton_schulz(x, dtype=jnp.float64))
    apart = [[newton_schulz(m, dtype=jnp.float64) for m in row] for row in x]
    flipped = np.asarray(newton_schulz(x.swapaxes(-2, -1), dtype=jnp.float64))
  np.testing.assert_allclose(together, apart, atol=1e-12)
  np.testing.assert_allclose(together, flipped.swapaxes(-2, -1), atol=1e-12)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float32])
def test_zero_stays_zero_and_nan_stays_in_its_matrix(dtype):
  x = np.random.default_rng(3).standard_normal((4, 6, 6)).astype(np.float32)
  x[1], x[2, 0, 0], x[3, 5, 5] = 0, np.nan, np.inf
  out = np.asarray(newton_schulz(x, dtype=dtype))
  assert not out[1].any()
  assert np.isnan(out[2]).all() and np.isnan(out[3]).any()
  x[2:] = x[0]
  np.testing.assert_array_equal(out[0], np.asarray(newton_schulz(x, dtype=dtype))[0])


@pytest.mark.parametrize(
  'coefficients, steps, words',
  [
    ('jordon', 5, 'choose one of jordan'),
    ('pe5', 6, 'steps must be 5'),
    ('taylor', 0, 'at least 1'),
  ],
)
def test_wrong_tables_say_what_to_type(coefficients, steps, words):
  with pytest.raises(ValueError, match=words):
    newton_schulz(jnp.eye(3), coefficients, steps)


# ------------------------------------------------------------------------------------- Muon


def reference_step(w, m, g, *, lr, weight_decay, scale, beta=0.95):
  """Keller Jordan's rule for one [fan_in, fan_out] matrix, from its definition, in float64."""
  m += (1 - beta) * (g - m)
  x = g + beta * (m - g)
  flip = x.shape[0] > x.shape[1]
  x = x.T if flip else x
  x = x / (np.linalg.norm(x) + 1e-7)
  for _ in range(5):
    a = x @ x.T
    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
  x = x.T if flip else x
  w *= 1 - lr * weight_decay
  w -= lr * scale(*x.shape) * x


RULES = {
  'jordan': lambda i, o: max(1, o / i) ** 0.5,
  'spectral': lambda i, o: (o / i) ** 0.5,
  'moonlight': lambda i, o: 0.2 * max(i, o) ** 0.5,
  'none': lambda i, o: 1.0,
}


@pytest.mark.parametrize('scale_rule', sorted(muon.SCALE_RULES))
def test_four_steps_equal_the_rule_from_its_definition(scale_rule):
  lr, weight_decay = 0.02, 0.1
  with jax.enable_x64(True):
    tx = optax.chain(
      muon.scale_by_muon(VIEWS, **{**JORDAN, **F64, 'scale_rule': scale_rule}),
      optax.add_decayed_weights(weight_decay),
      optax.scale_by_learning_rate(lr),
    )
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), block(0))
    state = tx.init(params)
    expected = jax.tree.map(lambda x: np.array(x, np.float64), block(0))
    moments = jax.tree.map(np.zeros_like, expected)
    for t in range(4):
      grads = jax.tree.map(lambda x: np.asarray(x, np.float64), block(10 + t))
      updates, state = jax.jit(tx.update)(grads, state, params)
      params = optax.apply_updates(params, updates)
      for name, view in VIEWS.items():
        fan_in = math.prod(expected[name].shape[d] for d in view.fan_in)
        for layer in range(3):  # in place: reshapes of one layer are views
          w, m, g = (x[name][layer].reshape(fan_in, -1) for x in (expected, moments, grads))
          reference_step(w, m, g, lr=lr, weight_decay=weight_decay, scale=RULES[scale_rule])
  for name in VIEWS:
    np.testing.assert_allclose(params[name], expected[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize('nesterov', [True, False])
def test_debiased_momentum_is_optax(nesterov):
  rng = np.random.default_rng(11)
  with jax.enable_x64(True):
    params = {'w': jnp.asarray(rng.standard_normal((3, 6, 10)))}
    dims = {'w': optax.contrib.MuonDimensionNumbers(1, 2)}
    theirs = optax.contrib.muon(
      .02, nesterov=nesterov, eps=1e-12, weight_decay=.1, muon_weight_dimension_numbers=dims)
    ours = optax.chain(
      muon.scale_by_muon(
        {'w': KERNEL}, **JORDAN | F64 | dict(momentum='debiased', nesterov=nesterov)),
      optax.add_decayed_weights(.1), optax.scale_by_learning_rate(.02))
    results = []
    for tx in (theirs, ours):
      p, state = params, tx.init(params)
      for t in range(4):
        g = {'w': jnp.asarray(np.random.default_rng(t).standard_normal((3, 6, 10)))}
        updates, state = tx.update(g, state, p)
        p = optax.apply_updates(p, updates)
      results.append(np.asarray(p['w']))
  np.testing.assert_allclose(*results, rtol=0, atol=1e-6)


@pytest.mark.parametrize('shape', [(4, 7), (7, 4), (5, 5)])
def test_normuon_by_its_definition(shape):
  """torch's layout is transposed: rows there are fan-out; a wide matrix here keeps its columns."""
  with jax.enable_x64(True):
    change = dict(coefficients='taylor', steps=30, nesterov=False, normuon=.9, scale_rule='none')
    tx = muon.scale_by_muon({'w_DF': KERNEL}, **JORDAN | F64 | change)
    state, moment, v = tx.init({'w_DF': jnp.zeros((2, *shape))}), 0, np.zeros((2, max(shape)))
    for t in range(3):
      g = np.random.default_rng(t).standard_normal((2, *shape))
      updates, state = tx.update({'w_DF': jnp.asarray(g)}, state)
      moment = .95 * moment + .05 * g
      for i in range(2):
        u, _, vt = np.linalg.svd(moment[i], full_matrices=False)
        o = u @ vt
        axis = 0 if shape[1] >= shape[0] else 1
        v[i] = .9 * v[i] + .1 * np.mean(o**2, axis=axis)
        scaled = o / np.sqrt(np.expand_dims(v[i], axis))
        scaled *= np.linalg.norm(o) / np.linalg.norm(scaled)
        np.testing.assert_allclose(updates['w_DF'][i], scaled, atol=2e-6)
  assert list(state.nu) == ['w_DF/nu_' + ('F' if shape[1] >= shape[0] else 'D')]


def test_beta_rises_over_its_warmup():
  taylor = dict(coefficients='taylor', steps=25, nesterov=False)
  with jax.enable_x64(True):
    tx = muon.scale_by_muon({'w': KERNEL}, **JORDAN | F64 | taylor | dict(beta_warmup=2))
    grads = [np.random.default_rng(t).standard_normal((4, 7)) for t in range(4)]
    state, moment = tx.init({'w': jnp.zeros((4, 7))}), 0
    for g, beta in zip(grads, (.85, .9, .95, .95), strict=True):
      updates, state = tx.update({'w': jnp.asarray(g)}, state)
      moment = beta * moment + (1 - beta) * g
      u, _, vt = np.linalg.svd(moment, full_matrices=False)
      np.testing.assert_allclose(updates['w'], u @ vt * math.sqrt(7 / 4), atol=1e-6)


# torch 2.13, optim.Muon(lr=.02, weight_decay=.1, momentum=.95), its bfloat16 cast made float64,
# four steps: weight wave((3, 5), 1), gradients wave((3, 5), 2 + t), transposed to [out, in].
TORCH_MUON = {
  'jordan': (
    [0.83616632, 0.293288849, -0.883511453, 0.992927965, -0.996804086],
    [0.856981874, -0.253987964, -0.599719794, 0.975641596, 0.167973851],
    [-0.956997755, -0.679637126, 0.241340674, 0.87588192, 0.99529685],
  ),
  'moonlight': (
    [0.835246762, 0.301344804, -0.880033391, 0.985437256, -0.982644049],
    [0.846286452, -0.297654565, -0.593013355, 0.958064113, 0.191350265],
    [-0.939561702, -0.667097981, 0.245096171, 0.857211128, 0.992959731],
  ),
}


def run_muon(weight, grads, scale_rule, dtype):
  tx = optax.chain(
    muon.scale_by_muon(
      {'w': KERNEL},
      **JORDAN | dict(scale_rule=scale_rule, compute_dtype=dtype, momentum_dtype=dtype),
    ),
    optax.add_decayed_weights(0.1),
    optax.scale_by_learning_rate(0.02),
  )
  params = {'w': jnp.asarray(weight, dtype)}
  state = tx.init(params)
  update = jax.jit(tx.update)
  for g in grads:
    updates, state = update({'w': jnp.asarray(g, dtype)}, state, params)
    params = optax.apply_updates(params, updates)
  return np.asarray(params['w'])


@pytest.mark.parametrize('dtype, tolerance', [('float64', 1e-6), ('float32', 1e-5)])
@pytest.mark.parametrize('scale_rule', sorted(TORCH_MUON))
def test_stored_steps_of_torch(scale_rule, dtype, tolerance):
  grads = [wave((3, 5), 2.0 + t) for t in range(4)]
  with jax.enable_x64(True):
    got = run_muon(wave((3, 5), 1.0), grads, scale_rule, dtype)
  np.testing.assert_allclose(got, TORCH_MUON[scale_rule], atol=tolerance)


@pytest.mark.parametrize(
  'scale_rule, adjust, shape',
  [('jordan', 'original', (24, 10)), ('jordan', 'original', (10, 24)),
   ('moonlight', 'match_rms_adamw', (16, 16))],
)
def test_live_torch(scale_rule, adjust, shape, monkeypatch):
  torch = pytest.importorskip('torch')
  # torch iterates in bfloat16; in float64 the two must agree on the algebra.
  monkeypatch.setattr(torch.Tensor, 'bfloat16', lambda x: x.double().clone())
  rng = np.random.default_rng(5)
  weight, *grads = rng.standard_normal((5, *shape))
  w = torch.nn.Parameter(torch.tensor(weight.T.copy()))  # [out, in]
  optimizer = torch.optim.Muon([w], lr=0.02, weight_decay=0.1, adjust_lr_fn=adjust)
  for g in grads:
    w.grad = torch.tensor(g.T.copy())
    optimizer.step()
  with jax.enable_x64(True):
    got = run_muon(weight, grads, scale_rule, 'float64')
  np.testing.assert_allclose(got, w.detach().numpy().T, atol=1e-6)


def test_moonlight_update_has_the_asked_rms():
  params = block(1)
  tx = muon.scale_by_muon(
    VIEWS, **JORDAN | dict(coefficients='taylor', steps=25, scale_rule='moonlight', rms=0.3)
  )
  updates, _ = jax.jit(tx.update)(block(2), tx.init(params))
  for u in jax.tree.leaves(updates):
    assert float(jnp.sqrt(jnp.mean(jnp.square(u)))) == pytest.approx(0.3, rel=1e-3)


def test_a_head_view_keeps_heads_apart():
  """One head's gradient 100 times the others': seen alone, every head still moves as far."""
  params, grads = block(3, D=16), block(4, D=16)
  grads['q'][:, :, 0] *= 100
  spread = {}
  for name, views in (('fused', VIEWS), ('heads', HEAD_VIEWS)):
    tx = muon.scale_by_muon(views, **JORDAN | dict(coefficients='taylor', steps=25))
    update = jax.jit(tx.update)(grads, tx.init(params))[0]['q']
    norms = np.linalg.norm(update, axis=(1, 3))
    spread[name] = (norms.max(axis=1) / norms.min(axis=1)).max()
  assert spread['heads'] < 1.01 < spread['fused']


def test_equal_shapes_share_one_call(monkeypatch):
  shapes = []
  original = muon.newton_schulz
  monkeypatch.setattr(
    muon, 'newton_schulz', lambda x, *args: shapes.append(x.shape) or original(x, *args))
  tx = muon.scale_by_muon(VIEWS, **JORDAN)
  params = block(0)
  jax.eval_shape(tx.update, block(1), tx.init(params))
  # q and o, k and v, gate and up, and down, of three layers each.
  assert sorted(shapes) == [(3, 48, 32), (6, 32, 16), (6, 32, 32), (6, 32, 48)]
  # Where they are large, which to join would copy, each alone: here gate and up, and down.
  shapes.clear()
  monkeypatch.setattr(muon, '_LARGE', 3 * 32 * 48)
  jax.eval_shape(muon.scale_by_muon(VIEWS, **JORDAN).update, block(1), tx.init(params))
  assert sorted(shapes) == [(3, 32, 48), (3, 32, 48), (3, 48, 32), (6, 32, 16), (6, 32, 32)]


def test_momentum_is_stored_in_its_dtype():
  tx = muon.scale_by_muon(VIEWS, **JORDAN | dict(momentum_dtype='bfloat16'))
  params = block(0)
  updates, state = jax.eval_shape(tx.update, block(1), tx.init(params))
  assert {x.dtype for x in jax.tree.leaves(state.mu)} == {jnp.dtype('bfloat16')}
  assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype('float32')}


@given(st.data())
@settings(max_examples=8)  # each shape compiles anew
def test_any_view_can_be_undone(data):
  shape = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
  dims = data.draw(st.permutations(range(len(shape))))
  cut = data.draw(st.integers(1, len(shape) - 1))
  end = data.draw(st.integers(cut + 1, len(shape)))
  view = View(tuple(dims[:cut]), tuple(dims[cut:end]))
  x = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
  stack, restore = as_matrices(jnp.asarray(x), view)
  number, fan_in, fan_out = matrix_shape(tuple(shape), view)
  assert stack.shape == (number, min(fan_in, fan_out), max(fan_in, fan_out))
  np.testing.assert_array_equal(restore(stack), x)


@pytest.mark.parametrize(
  'change, words',
  [
    (dict(coefficients='quintic'), 'choose one of jordan'),
    (dict(scale_rule='rms'), 'choose one of jordan, spectral'),
    (dict(momentum='sum'), 'choose one of average, debiased'),
    (dict(momentum='debiased', beta_warmup=9), 'set beta_warmup to 0'),
    (dict(compute_dtype='float16'), 'range of bfloat16'),
  ],
)
def test_wrong_arguments(change, words):
  with pytest.raises(ValueError, match=words):
    muon.scale_by_muon(VIEWS, **JORDAN | change)


def test_a_leaf_without_a_view_is_an_error():
  with pytest.raises(ValueError, match=r'blocks/router_DE.*add one to views'):
    muon.scale_by_muon(VIEWS, **JORDAN).init({'blocks': {'router_DE': jnp.ones((4, 4))}})


# ---------------------------------------------------------------------------------- sharded


@functools.cache
def sharded_step(per_head, mesh_shape, at_once=0):
  """Two updates without a mesh and on one, in float64: both results, and the HLO of the latter.

  In float32 the two differ by some 2e-6: XLA multiplies stacks of other sizes in another order,
  and the iteration magnifies that by up to a thousand where singular values are small.
  """
  with jax.enable_x64(True):
    tx = muon.scale_by_muon(
      HEAD_VIEWS if per_head else VIEWS,
      **JORDAN | F64 | dict(coefficients='pe5', at_once=at_once),
    )
    grads = [jax.tree.map(np.float64, block(seed)) for seed in (1, 2)]

    def run(place):
      state = jax.jit(tx.init)(place(grads[0]))
      step = jax.jit(tx.update).lower(place(grads[0]), state).compile()
      for g in grads:
        updates, state = step(place(g), state)
      return updates, state, step.as_text()

    *alone, _ = run(lambda x: jax.tree.map(jnp.asarray, x))
    mesh = jax.make_mesh(mesh_shape, ('data', 'fsdp', 'tensor'))
    homes = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
    with jax.set_mesh(mesh):
      *together, text = run(lambda x: jax.device_put(x, homes))
  return alone, together, text


COLLECTIVE = re.compile(
  r' (all-to-all|all-gather|all-reduce|collective-permute|reduce-scatter)(?:-start)?\('
)


@pytest.mark.parametrize(
  'per_head, mesh_shape, at_once',
  [(False, (2, 2, 2), 0), (False, (1, 8, 1), 0), (True, (2, 2, 2), 0), (False, (2, 2, 2), 2)],
)
def test_sharded_equals_unsharded(per_head, mesh_shape, at_once):
  alone, together, _ = sharded_step(per_head, mesh_shape, at_once)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10),
    alone, sharded_step(per_head, mesh_shape)[0])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), alone, together)
  for name, update in together[0].items():
    home = (*SPECS[name], *[None] * (update.ndim - len(SPECS[name])))
    assert tuple(update.sharding.spec) == tuple(together[1].mu[name].sharding.spec) == home


def test_no_communication_inside_the_iteration():
  _, _, text = sharded_step(False, (2, 2, 2))
  # Four shapes, since tall matrices lie as they do; five steps of three products.
  assert text.count(' dot(') + text.count('custom-call') >= 4 * 3 * 5
  kinds = [m.group(1) for m in COLLECTIVE.finditer(text)]
  # A shape goes out by one all-to-all for each axis that cuts it, and comes back likewise; the
  # copies along `data` come back by one all-gather. That is all: none is left for the steps.
  assert kinds.count('all-to-all') == 4 * 2 * 2
  assert kinds.count('all-gather') == 4 and len(kinds) == 20


# ---------------------------------------------------------------------------------- QK-Clip


def attention_params(seed, L=2, D=16, N=4, K=2, H=8):
  rng = np.random.default_rng(seed)
  shapes = dict(
    q_DNH=(L, D, N, H), k_DKH=(L, D, K, H), v_DKH=(L, D, K, H), o_NHD=(L, N, H, D),
    q_bias_NH=(L, N, H), k_bias_KH=(L, K, H),
  )
  attn = {k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in shapes.items()}
  return {'blocks': {'attn': attn}, 'embed_VD': jnp.ones((3, D))}


def max_logits(params, x_TD, rope):
  """Largest logit per layer and head of these inputs, computed plainly in float64."""
  attn = {k: np.asarray(v, np.float64) for k, v in params['blocks']['attn'].items()}
  q = np.einsum('TD,LDNH->LTNH', x_TD, attn['q_DNH']) + attn['q_bias_NH'][:, None]
  k = np.einsum('TD,LDKH->LTKH', x_TD, attn['k_DKH']) + attn['k_bias_KH'][:, None]
  if rope:
    half = q.shape[-1] // 2
    angle = np.arange(len(x_TD))[:, None, None] / 100 ** (np.arange(half) / half)
    turn = np.exp(1j * angle)
    q, k = ((x[..., :half] + 1j * x[..., half:]) * turn for x in (q, k))
  k = np.repeat(k, q.shape[2] // k.shape[2], axis=2)
  logits = np.einsum('LTNH,LSNH->LNTS', q, k.conj()).real / math.sqrt(attn['q_DNH'].shape[-1])
  return np.where(np.tri(len(x_TD), dtype=bool), logits, -np.inf).max((2, 3))


@pytest.mark.parametrize('rope', [True, False])
@pytest.mark.parametrize('heads', [(4, 4), (4, 2), (4, 1)], ids=['mha', 'gqa', 'mqa'])
def test_qk_clip_brings_each_head_to_tau_and_no_lower(heads, rope):
  params = attention_params(0, N=heads[0], K=heads[1])
  x_TD = np.random.default_rng(1).standard_normal((12, 16))
  s_LN = max_logits(params, x_TD, rope)
  tau = float(np.median(s_LN))  # some heads above, some below
  clipped = qk_clip(params, jnp.asarray(s_LN), tau)
  np.testing.assert_allclose(max_logits(clipped, x_TD, rope), np.minimum(s_LN, tau), rtol=1e-5)
  again = qk_clip(clipped, jnp.minimum(jnp.asarray(s_LN, jnp.float32), tau), tau)
  jax.tree.map(np.testing.assert_array_equal, again, clipped)
  # A key head with one query head in bounds is untouched; otherwise both sides shrink.
  before, after = (p['blocks']['attn']['k_DKH'] for p in (params, clipped))
  free = (s_LN <= tau).reshape(2, heads[1], -1).any(-1)
  same = (np.asarray(before) == np.asarray(after)).all(axis=(1, 3))
  np.testing.assert_array_equal(same, free)
  if heads[0] == heads[1]:  # with one query head a key head both sides take √γ
    ratio = np.asarray(after / before)[:, 0, :, 0]
    np.testing.assert_allclose(ratio, np.sqrt(np.minimum(1, tau / s_LN)), rtol=1e-5)


@pytest.mark.parametrize('s', [np.nan, np.inf, -np.inf, 0.0, -5.0, 100.0])
def test_qk_clip_leaves_params_alone_without_a_cause(s):
  params = attention_params(2)
  clipped = qk_clip(params, jnp.full((2, 4), s), 100.0)
  jax.tree.map(np.testing.assert_array_equal, clipped, params)
  untouched = qk_clip(params, jnp.full((2, 4), 1e4), np.inf)
  jax.tree.map(np.testing.assert_array_equal, untouched, params)


def test_rates_and_clipping_by_head():
  """A head in bounds keeps its rate; a key head takes the least of its group of two."""
  updates = attention_params(6)
  s_LN = jnp.array([[50, 200, 100, 80], [400, np.nan, -np.inf, 0]], jnp.float32)
  slowed = qk_rates(updates, s_LN, 100.0)['blocks']['attn']
  ratio = lambda name, axes: np.mean(slowed[name] / updates['blocks']['attn'][name], axis=axes)
  q_LN = [[1, 0.5, 1, 1], [0.25, 1, 1, 1]]
  np.testing.assert_allclose(ratio('q_DNH', (1, 3)), q_LN, rtol=1e-6)
  np.testing.assert_allclose(ratio('q_bias_NH', 2), q_LN, rtol=1e-6)
  np.testing.assert_allclose(ratio('k_DKH', (1, 3)), [[0.5, 1], [0.25, 1]], rtol=1e-6)
  np.testing.assert_array_equal(slowed['v_DKH'], updates['blocks']['attn']['v_DKH'])

  clipped = qk_clip_grads(updates, s_LN, 100.0, 4.0)['blocks']['attn']
  norm = lambda x: np.sqrt(np.sum(np.square(x), axis=(1, 3)))
  np.testing.assert_allclose(norm(clipped['q_DNH']), 4 * np.array(q_LN), rtol=1e-5)  # were about 11
  untouched = qk_clip_grads(updates, s_LN, 100.0, 1e3)
  jax.tree.map(np.testing.assert_array_equal, untouched, updates)


def test_qk_clip_sharded():
  params = attention_params(3)
  s_LN = jnp.asarray(np.random.default_rng(4).uniform(50, 200, (2, 4)), jnp.float32)
  expected = qk_clip(params, s_LN, 100.0)['blocks']['attn']
  mesh = jax.make_mesh((4, 2), ('fsdp', 'tensor'))
  specs = dict(q_DNH=P(None, 'fsdp', 'tensor'), k_DKH=P(None, 'fsdp', 'tensor'))
  with jax.set_mesh(mesh):
    attn = {
      k: jax.device_put(x, NamedSharding(mesh, specs.get(k, P())))
      for k, x in params['blocks']['attn'].items()
    }
    got = qk_clip({'blocks': {'attn': attn}}, jax.device_put(s_LN, NamedSharding(mesh, P())), 100.0)
  got = got['blocks']['attn']
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, expected)
  assert got['q_DNH'].sharding.is_equivalent_to(attn['q_DNH'].sharding, 4)


def test_qk_clip_refuses_what_it_cannot_do():
  params = attention_params(5)
  with pytest.raises(ValueError, match='tau=0'):
    qk_clip(params, jnp.ones((2, 4)), 0)
  params['blocks']['attn']['q_norm'] = {'scale_H': jnp.ones((2, 8))}
  with pytest.raises(ValueError, match='turn one of them off'):
    qk_clip(params, jnp.ones((2, 4)), 100.0)

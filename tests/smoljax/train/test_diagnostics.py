"""Diagnostics against numbers known in advance, and where a run writes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.training import fit, tiny

from smoljax import metrics, model, optim, sharding
from smoljax.train import diagnostics, loop


def test_leaves_are_those_of_numpy():
  rng = np.random.default_rng(0)
  p, g, u = ({'a': {'up_DF': rng.standard_normal((3, 4, 5))}} for _ in range(3))
  found = diagnostics.leaves(*(jax.tree.map(jnp.float32, x) for x in (p, g, u)))
  p, g, u = (x['a']['up_DF'] for x in (p, g, u))
  rms = lambda x: np.sqrt(np.mean(x**2))
  expected = {
    'grad_norm/a/up_DF': np.linalg.norm(g.ravel()),
    'update_rms/a/up_DF': rms(u),
    'param_rms/a/up_DF': rms(p),
    'update_ratio/a/up_DF': rms(u) / rms(p),
  }
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-5)


@pytest.mark.parametrize('micros', [2, 8])
def test_the_noise_scale_of_a_gaussian_gradient(micros):
  """A token's gradient is N(G, Σ): |G|² = 9, tr Σ = 300 · 4; averaged before dividing."""
  rng = np.random.default_rng(0)
  mean, tokens, steps = np.full(300, np.sqrt(9 / 300)), 512, 400
  per_micro = rng.normal(mean, 2 / np.sqrt(tokens / micros), (steps, micros, 300))
  parts = per_micro / micros  # each divided by the tokens of the whole batch
  micro_sq = np.mean(np.sum(parts**2, axis=(1, 2)))
  grad_sq = np.mean(np.sum(np.sum(parts, axis=1) ** 2, axis=1))
  found = diagnostics.micro_batches(micro_sq, grad_sq, micros, tokens)
  assert found['grad_sq'] == pytest.approx(9, rel=0.02)
  assert found['noise_trace'] == pytest.approx(1200, rel=0.05)
  assert found['noise_scale'] == pytest.approx(1200 / 9, rel=0.06)
  dot = np.mean(per_micro[:, 0] @ per_micro[:, 1].T) / np.mean(np.sum(per_micro**2, axis=2))
  assert found['grad_cos'] == pytest.approx(dot, abs=0.02)


def test_opposed_halves_have_no_noise_scale():
  found = diagnostics.micro_batches(2.0, 0.0, 2, 100)
  assert found['grad_cos'] == -1 and 'noise_scale' not in found


@pytest.mark.parametrize('rank', [1, 5, 16])
def test_effective_rank_counts_equal_directions(rank):
  rng = np.random.default_rng(0)
  q, r = (np.linalg.qr(rng.standard_normal((n, 16)))[0] for n in (40, 16))
  tokens = q[:, :rank] @ r[:, :rank].T
  for x in (tokens, tokens.T):
    np.testing.assert_allclose(diagnostics.effective_rank(jnp.float32(x)), rank, rtol=1e-3)


def test_token_cosine():
  x = np.array([[1.0, 0], [0, 2], [3, 3], [9, -9]])
  both = np.mean([0, np.sqrt(0.5), np.sqrt(0.5)])
  found = diagnostics.token_cosine(jnp.float32(x), jnp.float32([1, 1, 1, 0]))
  np.testing.assert_allclose(found, both, rtol=1e-5)


def test_movement_is_the_change_of_the_residual_stream():
  rng = np.random.default_rng(0)
  params = model.init(CONFIG, jax.random.key(0))
  updates = jax.tree.map(lambda p: 0.01 * rng.standard_normal(p.shape).astype(np.float32), params)
  segments = np.ones((2, 16), np.int32)
  segments[1, 9:] = 0
  batch = {'inputs': rng.integers(0, 64, (2, 16)), 'segment_ids': segments,
           'positions': np.tile(np.arange(16), (2, 1))}

  def residual(params):
    _, aux = model.hidden(CONFIG, params, batch['inputs'], positions_BT=batch['positions'],
                          segment_ids_BT=segments, capture=('residual',))
    return np.asarray(aux['residual_LBTD'], np.float64)[:, segments > 0].reshape(3, -1)

  before, after = residual(params), residual(jax.tree.map(jnp.add, params, updates))
  expected = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)
  found = diagnostics.movement(CONFIG, params, updates, batch)
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  still = diagnostics.movement(CONFIG, params, jax.tree.map(jnp.zeros_like, params), batch)
  np.testing.assert_array_equal(still, 0)


CONFIG = model.ModelConfig(
  vocab_size=64, num_layers=3, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48,
  max_seq_len=32, dtype='float32',
)  # fmt: skip


def activations(params, place=dict, **changes):
  rng = np.random.default_rng(0)
  batch = {
    'inputs': rng.integers(1, 64, (4, 32)).astype(np.int32),
    'positions': np.tile(np.arange(32, dtype=np.int32), (4, 1)),
    'segment_ids': np.ones((4, 32), np.int32),
  } | changes
  look = jax.jit(diagnostics.activations, static_argnums=0)
  return jax.device_get(look(CONFIG, params, place(batch)))


def test_dead_units_outliers_and_collapse_are_seen():
  params = model.init(CONFIG, jax.random.key(0))
  healthy = activations(params)
  assert healthy['resid_rms_L'].shape == (3,) and healthy['max_logits_LN'].shape == (3, 4)
  assert (healthy['dead_frac_L'] == 0).all()
  assert (np.abs(healthy['act_kurtosis_L'] - 3) < 1).all()
  assert (healthy['eff_rank_L'] > 20).all() and (healthy['eff_rank_L'] <= 32).all()
  up = params['blocks']['mlp']['up_DF'].at[1, :, :12].set(0)
  dead = activations({**params, 'blocks': {**params['blocks'], 'mlp': {
    **params['blocks']['mlp'], 'up_DF': up}}})  # fmt: skip
  np.testing.assert_allclose(dead['dead_frac_L'], [0, 0.25, 0])
  outlier = activations({**params, 'embed_VD': params['embed_VD'].at[:, 3].set(1.0)})
  assert (outlier['act_kurtosis_L'] > 20).all()
  assert (outlier['eff_rank_L'] < 3).all()
  assert outlier['token_cos'] > 0.9 > 0.3 > healthy['token_cos']


def test_sites_gates_entropy_and_logits_by_hand():
  """One layer whose keys are zero: attention is uniform over what a query sees."""
  params = model.init(CONFIG, jax.random.key(0))
  blocks = params['blocks']
  attn = {**blocks['attn'], 'k_DKH': jnp.zeros_like(blocks['attn']['k_DKH'])}
  mlp = {**blocks['mlp'], 'gate_DF': blocks['mlp']['gate_DF'].at[2].multiply(1e3)}
  params = {**params, 'blocks': {**blocks, 'attn': attn, 'mlp': mlp}}
  segments = np.ones((4, 32), np.int32)
  segments[:, 20:] = 0
  found = activations(params, segment_ids=segments)
  seen = np.arange(1, 21)
  np.testing.assert_allclose(found['attn_entropy_LN'], np.mean(np.log(seen)), rtol=1e-5)
  assert (found['gate_sat_L'][:2] == 0).all() and found['gate_sat_L'][2] > 0.9
  tokens = np.random.default_rng(0).integers(1, 64, (4, 32)).astype(np.int32)
  out = model.apply(CONFIG, params, tokens, segment_ids_BT=segments, capture=('residual',))
  np.testing.assert_allclose(found['logit_max'], np.abs(out.logits).max(), rtol=1e-5)
  before, after = out.aux['residual_LBTD'][:2]
  added = np.sqrt(np.mean(np.square(after - before)))
  parts = found['act_rms/attn_out_L'][1], found['act_rms/mlp_out_L'][1]
  assert abs(parts[0] - parts[1]) <= added <= sum(parts)
  assert (found['act_max/mlp_mid_L'] >= found['act_rms/mlp_mid_L']).all()


@pytest.mark.parametrize('shape', [(2, 12, 5), (2, 5, 12), (1, 1, 7)])
def test_entropy_of_singular_values_is_that_of_numpy(shape):
  w = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
  found = diagnostics.svd_entropy({'up_DF': jnp.asarray(w)}, optim.matrix_views({'up_DF': w}))
  p = np.square(np.linalg.svd(w, compute_uv=False).astype(np.float64))
  p /= p.sum(1, keepdims=True)
  n = min(shape[1:])
  want = -np.sum(p * np.log(p), axis=1) / np.log(n) if n > 1 else [1]
  np.testing.assert_allclose(found['up_DF'], want, rtol=1e-4)


def test_a_mesh_sees_the_same():
  params = model.init(CONFIG, jax.random.key(0))
  alone = activations(params)
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  place = lambda batch: sharding.shard_batch(batch, mesh)
  with jax.set_mesh(mesh):
    homes = sharding.shardings(params, mesh)
    together = activations(jax.device_put(params, homes), place)
  for name, value in alone.items():
    np.testing.assert_allclose(together[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_padding_counts_for_nothing():
  params = model.init(CONFIG, jax.random.key(0))
  segments = np.ones((4, 32), np.int32)
  segments[:, 20:] = 0
  a, b = (activations(params, segment_ids=segments, inputs=x) for x in (
    np.full((4, 32), 5, np.int32), np.where(segments, 5, 9).astype(np.int32)))  # fmt: skip
  for name in ('resid_rms_L', 'act_kurtosis_L', 'eff_rank_L', 'token_cos'):
    np.testing.assert_allclose(a[name], b[name], rtol=1e-5)


@pytest.mark.parametrize('accumulate', [1, 4])
def test_a_run_writes_them(markov_corpora, tmp_path, monkeypatch, accumulate):
  make_probe, ready = loop.make_probe, []

  def make(*args, **kwargs):
    probe = make_probe(*args, **kwargs)

    def look(state, batch):
      ready.append(all(x.is_ready() for x in jax.tree.leaves(state)))
      return probe(state, batch)

    return look

  monkeypatch.setattr(loop, 'make_probe', make)
  c = tiny(**{'diagnostics.every': 4, 'train.accumulate': accumulate})
  fit(c, markov_corpora, tmp_path)
  assert ready == [True] * 3  # or a look would wait for steps, whose time would count nowhere
  rows = metrics.read_rows(tmp_path / 'metrics.jsonl')
  looks = [r for r in rows if 'eff_rank_L' in r]
  assert [r['step'] for r in looks] == [4, 8, 12]
  for name in ('resid_rms_L', 'attn/entropy_L', 'act_rms/mlp_out_L'):
    assert all(len(r[name]) == c.model.num_layers for r in looks)
  for tree in ('weights', 'updates'):
    assert all(0 < r[f'svd_entropy/{tree}/blocks/attn/q_DNH'] <= 1 for r in looks)
  trained = [r for r in rows if 'train/loss' in r]
  assert all(1e-6 < r['update_ratio/blocks/mlp/up_DF'] < 1 for r in trained)
  told = looks if accumulate == 1 else trained
  assert all(-1 <= r['grad_cos'] <= 1 and r['noise_trace'] > 0 for r in told)


def test_a_split_sequence_is_refused(markov_corpora, tmp_path):
  c = tiny(**{'diagnostics.every': 4, 'mesh.context': 2})
  with pytest.raises(ValueError, match=r'diagnostics.every .*mesh.context'):
    fit(c, markov_corpora, tmp_path)

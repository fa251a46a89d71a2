"""The model against transformers, against itself, and against what a transformer must do."""

import dataclasses
import functools
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from goldens import make_hf_logits as goldens
from goldens import make_hf_steps as steps
from helpers.references import live_reference, random_hf_config

from configs import base
from smoljax import model, optim, sharding
from smoljax.checkpoints import huggingface
from smoljax.evals import likelihood
from smoljax.model import one_row
from smoljax.model.attention.masks import positions_from_segments, segments_from_positions
from smoljax.train import guard, objectives
from smoljax.train.step import Objective, make_train_step

TINY = model.ModelConfig(
  vocab_size=64, num_layers=4, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48,
  max_seq_len=256, dtype='float32', init_std=0.2,
)  # fmt: skip
TOKENS = np.random.default_rng(1).integers(0, TINY.vocab_size, (2, 24)).astype(np.int32)
apply = jax.jit(model.apply, static_argnums=0, static_argnames=('max_logits', 'capture'))


def with_(**fields):
  return dataclasses.replace(TINY, **fields)


@functools.cache
def make(config):
  return model.init(config, jax.random.key(0))


def mean_loss(config, params, tokens_BT, **places):
  """Next-token loss over all places of a row but the last."""
  logits_BTV = model.apply(config, params, tokens_BT[:, :-1], **places).logits
  hot_BTV = jax.nn.one_hot(tokens_BT[:, 1:], config.vocab_size)
  return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits_BTV) * hot_BTV, axis=-1))


def close(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


# ------------------------------------------------------------------------- against transformers


@pytest.mark.parametrize('case', goldens.CASES)
def test_logits_equal_stored_transformers_logits(case, tmp_path):
  prefix, entries, lengths = goldens.CASES[case]
  with np.load(goldens.FILE) as stored:
    expected, shapes = stored[case], json.loads(str(stored[f'{case}/shapes']))
  hf = {'architectures': [f'{prefix}ForCausalLM'], **goldens.BASE, **entries}
  (tmp_path / 'config.json').write_text(json.dumps(hf))
  tensors = {name: goldens.weights(name, tuple(shape)) for name, shape in shapes.items()}
  safetensors.numpy.save_file(tensors, tmp_path / 'model.safetensors')
  config, params = huggingface.load_hf(str(tmp_path), dtype='float32')
  out = apply(config, params, goldens.tokens(), positions_BT=goldens.positions(lengths))
  assert np.abs(expected).max() > 2  # the bound below means something
  np.testing.assert_allclose(out.logits, expected, atol=5e-4, rtol=0)
  # A control: the bound tells apart a model whose rotating layers are other ones.
  flipped = tuple(int(not r) for r in config.rope_flags)
  if prefix == 'SmolLM3' and not config.sliding_window:
    wrong = dataclasses.replace(config, rope_layers=flipped)
    out = apply(wrong, params, goldens.tokens(), positions_BT=goldens.positions(lengths))
    assert np.abs(out.logits - expected).max() > 0.1


@pytest.mark.parametrize('case', goldens.FOREIGN)
def test_switches_that_smollm3_lacks_equal_other_classes_of_transformers(case, monkeypatch):
  _, entries, lengths, fields, names, one = goldens.FOREIGN[case]
  with np.load(goldens.FILE) as stored:
    expected, shapes = stored[case], json.loads(str(stored[f'{case}/shapes']))
  rope = {'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e4}}
  llama = {**goldens.BASE, **{k: v for k, v in entries.items() if k == 'head_dim'}, **rope}
  config = model.ModelConfig.from_hf(
    {'architectures': ['LlamaForCausalLM'], **llama}, dtype='float32', **fields)
  monkeypatch.setattr(huggingface, 'NAMES', huggingface.NAMES | names)
  used = set()

  def read(name):
    used.add(name)
    return goldens.weights(name, tuple(shapes[name])) + one * name.endswith('norm.weight')

  params = huggingface.from_hf_tensors(config, read)
  assert used == set(shapes) and config.num_params() == sum(map(math.prod, shapes.values()))
  if case.startswith('geglu'):  # Gemma scales its embeddings
    params['embed_VD'] *= np.float32(config.embed_dim**0.5)
  out = apply(config, params, goldens.tokens(), positions_BT=goldens.positions(lengths))
  assert np.abs(expected).max() > 2
  np.testing.assert_allclose(out.logits, expected, atol=5e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(28))
def test_logits_equal_live_transformers_logits(seed):
  torch = pytest.importorskip('torch')
  reference, config, params = live_reference(*random_hf_config(seed))
  rng = np.random.default_rng(seed)
  tokens_BT = rng.integers(0, config.vocab_size, (2, 60))
  cuts = [np.sort(rng.choice(np.arange(1, 60), 3, replace=False)) for _ in range(2)]
  packed_BT = np.stack([
    np.concatenate([np.arange(n) for n in np.diff([0, *c, 60])]) for c in cuts])
  for positions_BT in (None, packed_BT):
    with torch.no_grad():
      expected = reference(
        torch.from_numpy(tokens_BT), use_cache=False,
        position_ids=None if positions_BT is None else torch.from_numpy(positions_BT),
      ).logits.numpy()
    logits = apply(config, params, tokens_BT, positions_BT=positions_BT).logits
    np.testing.assert_allclose(logits, expected, atol=5e-4, rtol=0)


def our_steps(case):
  """What make_hf_steps.train gives, by our own training step, optimizer and all."""
  prefix, entries = steps.CASES[case]
  hf = {'architectures': [f'{prefix}ForCausalLM'], **goldens.BASE, **entries}
  config = model.ModelConfig.from_hf(hf, dtype='float32')
  shapes = {name: x.shape for name, x in huggingface.to_hf_tensors(config, make(config), 'float32')}
  params = huggingface.from_hf_tensors(config, lambda name: steps.weights(name, shapes[name]))
  tx, _ = optim.make_optimizer(
    types.SimpleNamespace(
      name='adamw', clip='norm', no_decay=('embedding',), momentum_dtype='float32',
      schedule='constant',
      warmup_steps=0, warmup_fraction=0.0, decay_steps=0, decay_fraction=0.0, decay_shape='linear',
      floor=0.0, decay_timescale=0.0, cooldowns=(), power=0.0, power_steps=1, ramp=(),
      hyperball=False, tail_steps=0, tail_weight=0.0, **steps.OPTIMIZER),
    params, steps.STEPS)
  params = jax.tree.map(jnp.asarray, params)
  guarding = base.get_config().guard
  opt_state = {'optimizer': tx.init(params), 'guard': guard.init(guarding, config.num_layers)}
  state = {'params': params, 'opt_state': opt_state}
  step = make_train_step(config, tx, guarding, Objective(chunk=8))
  found = {'loss': [], 'grad_norm': []}
  for i in range(steps.STEPS):
    state, metrics = step(state, steps.batch(i))
    for name, values in found.items():
      values.append(float(metrics[name]))
  return found


@pytest.mark.parametrize('case', [
  'smollm3', *(pytest.param(x, marks=pytest.mark.slow) for x in ('llama', 'qwen3'))])  # fmt: skip
def test_training_follows_stored_torch_runs(case):
  expected = json.loads(steps.FILE.read_text())[case]
  found = our_steps(case)
  assert expected['loss'][0] - expected['loss'][-1] > 0.1 and max(expected['grad_norm']) > 1
  np.testing.assert_allclose(found['loss'], expected['loss'], atol=2e-4, rtol=0)
  np.testing.assert_allclose(found['grad_norm'], expected['grad_norm'], atol=2e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize('case', steps.CASES)
def test_training_follows_live_torch(case):
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  expected, found = steps.train(case, 'float32'), our_steps(case)
  np.testing.assert_allclose(found['loss'], expected['loss'], atol=2e-4, rtol=0)
  np.testing.assert_allclose(found['grad_norm'], expected['grad_norm'], atol=2e-4, rtol=0)


# ------------------------------------------------------------------------------ documents, masks


@pytest.mark.parametrize('fields', [
  {}, {'nope_interval': 0, 'sliding_window': 5, 'window_layers': (1, 0, 1, 1)},
])  # fmt: skip
def test_packed_documents_equal_separate_ones_and_so_do_their_gradients(fields):
  config = with_(**fields)
  params = make(config)
  lengths = [7, 1, 16]
  tokens_1T = TOKENS[:1]
  segments_1T = np.repeat([3, 1, 2], lengths)[None].astype(np.int32)  # any distinct ids will do

  def packed(params):
    out = model.apply(config, params, tokens_1T, segment_ids_BT=segments_1T)
    return jnp.sum(out.logits[0] * scale_TV), out.logits[0]

  def separate(params):
    rows = jnp.split(tokens_1T, np.cumsum(lengths)[:-1], axis=1)
    logits_TV = jnp.concatenate([model.apply(config, params, row).logits[0] for row in rows])
    return jnp.sum(logits_TV * scale_TV), logits_TV

  scale_TV = np.random.default_rng(2).normal(size=(24, config.vocab_size)).astype(np.float32)
  (_, one), one_gradient = jax.jit(jax.value_and_grad(packed, has_aux=True))(params)
  (_, many), many_gradient = jax.jit(jax.value_and_grad(separate, has_aux=True))(params)
  np.testing.assert_allclose(one, many, atol=2e-5)
  close(one_gradient, many_gradient, rtol=2e-4, atol=2e-4)
  unmasked = apply(config, params, tokens_1T).logits[0]
  assert np.abs(unmasked - one).max() > 0.1


def test_documents_may_be_given_by_segments_by_positions_or_by_both():
  params = make(TINY)
  segments = np.repeat([[1, 2, 3, 0], [5, 6, 7, 8]], 6, axis=1).astype(np.int32)
  positions = np.tile(np.arange(6, dtype=np.int32), (2, 4))
  np.testing.assert_array_equal(positions_from_segments(segments), positions)
  same = segments_from_positions(positions)
  np.testing.assert_array_equal(same[0], np.repeat([1, 2, 3, 4], 6))
  outs = [
    apply(TINY, params, TOKENS, **places).logits
    for places in (
      dict(segment_ids_BT=segments),
      dict(positions_BT=positions),
      dict(segment_ids_BT=segments, positions_BT=positions),
    )
  ]
  np.testing.assert_array_equal(outs[0], outs[1])
  np.testing.assert_array_equal(outs[0], outs[2])


def test_no_token_sees_the_future_or_another_document():
  config = with_(tie_embeddings=False)  # so that the embedding's gradient is the input's alone
  params = make(config)
  tokens_1T = np.arange(24, dtype=np.int32)[None]  # all different: row t of the table is token t
  segments_1T = np.repeat([1, 2], [10, 14])[None].astype(np.int32)

  @jax.jit
  def gradient(t):
    def one_place(table_VD):
      out = model.apply(config, {**params, 'embed_VD': table_VD}, tokens_1T,
                        segment_ids_BT=segments_1T)
      return out.logits[0, t].sum()

    return jnp.abs(jax.grad(one_place)(params['embed_VD'])).sum(axis=1)

  seen = np.stack([gradient(t)[:24] for t in (0, 9, 10, 17, 23)]) > 0
  expected = [range(1), range(10), range(10, 11), range(10, 18), range(10, 24)]
  np.testing.assert_array_equal(seen, [[s in r for s in range(24)] for r in expected])


def test_max_logits_come_per_layer_and_head_only_on_request():
  params = make(TINY)
  assert apply(TINY, params, TOKENS).aux == {}
  max_LN = apply(TINY, params, TOKENS, max_logits='exact').aux['max_logits_LN']
  assert max_LN.shape == (TINY.num_layers, TINY.num_heads)
  # Queries twice as large: the first layer's logits, whose inputs stay the same, double.
  doubled = jax.tree.map(lambda x: x, params)
  doubled['blocks']['attn']['q_DNH'] = 2 * params['blocks']['attn']['q_DNH']
  again_LN = apply(TINY, doubled, TOKENS, max_logits='exact').aux['max_logits_LN']
  np.testing.assert_allclose(again_LN[0], 2 * max_LN[0], rtol=1e-5)


@pytest.mark.parametrize('fields', [
  {}, {'scan_layers': False, 'norm_position': 'sandwich', 'attention_softcap': 2.0,
       'sliding_window': 5, 'window_layers': (1, 0, 1, 1)},
])  # fmt: skip
def test_captured_activations_are_what_the_model_computes_with(fields):
  config = with_(**fields)
  params = make(config)
  segments = np.repeat([[1, 2, 3], [5, 6, 7]], 8, axis=1).astype(np.int32)
  out = apply(config, params, TOKENS, segment_ids_BT=segments, capture=('residual', 'attention'))
  plain = apply(config, params, TOKENS, segment_ids_BT=segments)
  assert plain.aux == {}
  np.testing.assert_allclose(out.logits, plain.logits, atol=1e-5)
  residual, weights = out.aux['residual_LBTD'], out.aux['attention_LBNTS']
  assert residual.shape == (4, 2, 24, 32) and weights.shape == (4, 2, 4, 24, 24)
  np.testing.assert_allclose(model.final_norm(config, params, residual[-1]), out.hidden, atol=1e-5)
  np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
  hidden_from = segments[:, None] != segments[:, :, None]
  assert (np.where(hidden_from[:, None], weights, 0) == 0).all()
  assert (np.triu(weights, 1) == 0).all()
  assert (np.asarray(weights) > 0.9).mean() < 0.2  # not all of a query's weight is on one key
  # One layer again, by hand, from the stream before it and the weights it reads with.
  block = jax.tree.map(lambda x: x[1], params['blocks'])
  norm = lambda x, name: x if name not in block else (
    x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * block[name]['scale_D'])
  v = np.einsum('btd,dkh->btkh', norm(residual[0], 'attn_norm'), block['attn']['v_DKH'])
  read = np.einsum('bnts,bsnh->btnh', weights[1], np.repeat(v, 2, axis=2))
  x = residual[0] + norm(np.einsum('btnh,nhd->btd', read, block['attn']['o_NHD']), 'attn_post_norm')
  h = norm(x, 'mlp_norm')
  h = (jax.nn.silu(h @ block['mlp']['gate_DF']) * (h @ block['mlp']['up_DF'])) @ (
    block['mlp']['down_FD'])
  np.testing.assert_allclose(x + norm(h, 'mlp_post_norm'), residual[1], rtol=1e-3, atol=1e-3)
  with pytest.raises(ValueError, match="capture='probs': one of residual, attention"):
    model.apply(config, params, TOKENS, capture=('probs',))


def test_capture_works_on_a_mesh():
  expected = apply(TINY, make(TINY), TOKENS, capture=('residual', 'attention')).aux
  with jax.set_mesh(sharding.make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])):
    params = model.init(TINY, jax.random.key(0))
    aux = apply(TINY, params, TOKENS, capture=('residual', 'attention')).aux
  close(aux, expected, atol=1e-4)


def test_losses_are_of_the_capped_logits():
  config = with_(logit_softcap=2.0)
  params = make(config)
  logits_BTV = apply(config, params, TOKENS).logits
  assert 1.9 < np.abs(logits_BTV).max() <= 2
  targets_BT = np.roll(TOKENS, -1, axis=1)
  expected_BT = -np.take_along_axis(
    np.asarray(jax.nn.log_softmax(logits_BTV)), targets_BT[..., None], axis=-1)[..., 0]
  hidden_BTD, _ = model.hidden(config, params, TOKENS)
  total, places = objectives.head_loss(
    config, hidden_BTD, model.unembedding(config, params), targets_BT, np.ones_like(expected_BT),
    chunk=8)
  np.testing.assert_allclose(total, expected_BT.sum(), rtol=1e-6)
  np.testing.assert_allclose(places['nll'], expected_BT, atol=1e-5)
  logprobs_BT, _ = likelihood._score(config, params, TOKENS[:, :-1], TOKENS[:, 1:])
  np.testing.assert_allclose(logprobs_BT, -expected_BT[:, :-1], atol=1e-5)


# ------------------------------------------------------------------- one model, computed variously


@pytest.mark.parametrize('fields', [
  {'remat': 'full'}, {'remat': 'qkv+ctx+mid+gu'}, {'scan_layers': False, 'remat': 'dots'},
])  # fmt: skip
def test_loss_and_gradient_do_not_depend_on_how_layers_run(fields):
  params = make(TINY)
  f = lambda config: jax.jit(jax.value_and_grad(lambda p: mean_loss(config, p, TOKENS)))(params)
  close(f(TINY), f(with_(**fields)), rtol=1e-4, atol=1e-6)


def test_remat_ctx_keeps_attention_from_running_again():
  """What `ctx` saves is used: the backward pass has fewer matrix products than without it."""
  count = lambda remat: str(jax.make_jaxpr(jax.grad(
    lambda p: mean_loss(with_(remat=remat), p, TOKENS)))(make(TINY))).count('dot_general')
  assert count('qkv+ctx+mid+gu') < count('qkv+mid+gu') < count('full')


def test_bfloat16_stays_near_float32():
  params = make(with_(init_std=0.05))
  exact = apply(with_(init_std=0.05), params, TOKENS)
  rough = apply(with_(init_std=0.05, dtype='bfloat16'), params, TOKENS)
  assert rough.logits.dtype == jnp.float32 and rough.hidden.dtype == jnp.bfloat16
  assert 0 < np.abs(rough.logits - exact.logits).max() < 0.02 * np.abs(exact.logits).max()


def test_hidden_and_unembedding_give_the_logits():
  for config in (TINY, with_(tie_embeddings=False)):
    params = make(config)
    hidden_BTD, _ = model.hidden(config, params, TOKENS)
    unembed_DV = model.unembedding(config, params)
    assert unembed_DV.shape == (config.embed_dim, config.vocab_size)
    np.testing.assert_allclose(
      hidden_BTD @ unembed_DV, apply(config, params, TOKENS).logits, atol=1e-4)


# --------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize('name, total', [
  ('smollm3-3b', 3_075_098_624), ('smollm2-1.7b', 1_711_376_384),
  ('smollm2-360m', 361_821_120), ('smollm2-135m', 134_515_008),
  ('llama-3.2-3b', 3_212_749_824), ('llama-3.2-1b', 1_235_814_400),
])  # fmt: skip
def test_released_shapes_have_the_released_number_of_parameters(name, total):
  config = model.SHAPES[name]
  params = model.abstract_params(config)
  assert config.num_params() == total == sum(x.size for x in jax.tree.leaves(params))
  assert total - config.num_params(embedding=False) == config.vocab_size * config.embed_dim


def test_the_family_is_smollm3_in_small():
  """Sizes count what is not embedding; all else is as in the 3B model."""
  big = model.SHAPES['smollm3-3b']
  for size, millions in {'50m': 50, '135m': 135, '360m': 360, '500m': 500, '1b': 1000}.items():
    config = model.SHAPES[f'smollm3-{size}']
    assert config.num_params(embedding=False) == pytest.approx(millions * 1e6, rel=0.01)
    assert config.num_layers % 4 == 0 and config.num_heads * config.head_dim == config.embed_dim
    shape = ('num_layers', 'embed_dim', 'num_heads', 'num_kv_heads', 'head_dim', 'mlp_dim')
    assert dataclasses.replace(config, **{f: getattr(big, f) for f in shape}) == big


@pytest.mark.parametrize('fields', [
  {'tie_embeddings': False}, {'attention_bias': True, 'mlp_bias': True}, {'qk_norm': True},
  {'norm': 'layer'}, {'norm_position': 'post', 'norm': 'layer'}, {'norm_position': 'sandwich'},
  {'activation': 'geglu', 'mlp_bias': True}, {'activation': 'relu2', 'mlp_bias': True},
])  # fmt: skip
def test_num_params_counts_every_switch(fields):
  config = with_(**fields)
  assert config.num_params() == sum(x.size for x in jax.tree.leaves(model.abstract_params(config)))


def test_flops_follow_the_stated_convention():
  config = model.SHAPES['smollm3-3b']
  # Smol Training Playbook: 22.07 GFLOP per token with full attention; 20.262 with causal halving.
  assert config.flops_per_token(4096, causal=False) == pytest.approx(22.07e9, rel=1e-3)
  assert config.flops_per_token(4096) == pytest.approx(20.262e9, rel=1e-4)
  # By hand: keys seen by queries 0…9 under a window of 4 are 1, 2, 3, 4, 4, …: 34 in all.
  windowed = with_(sliding_window=4, window_layers=(1, 0, 0, 0))
  saved = with_().flops_per_token(10) - windowed.flops_per_token(10)
  assert saved == pytest.approx(12 * 32 * (55 - 34) / 10)


def test_flops_count_the_matrices_that_there_are():
  forward = lambda config: jax.jit(lambda p: model.apply(config, p, TOKENS[:1]).logits).lower(
    model.abstract_params(config)).cost_analysis()['flops']
  gated, plain = with_(num_layers=1, remat='full'), with_(num_layers=1, activation='gelu')
  saved = 2 * TINY.embed_dim * TINY.mlp_dim * 24
  assert forward(gated) - forward(plain) == pytest.approx(saved, rel=0.1)
  assert gated.flops_per_token(9) - plain.flops_per_token(9) == 3 * saved / 24


def test_rope_flags():
  assert with_().rope_flags == (True, True, True, False)
  assert model.SHAPES['smollm3-3b'].rope_flags.count(False) == 9
  assert with_(nope_interval=0).rope_flags == (True,) * 4
  assert with_(rope_layers=(0, 1, 1, 0)).rope_flags == (False, True, True, False)


@pytest.mark.parametrize('init', ['nanotron', 'hf'])
def test_init_has_the_stated_spread(init):
  config = model.ModelConfig(
    vocab_size=512, num_layers=8, embed_dim=64, num_heads=4, num_kv_heads=2, head_dim=16,
    mlp_dim=128, max_seq_len=64, tie_embeddings=False, init=init)
  params = make(config)
  into_residual = 0.02 / math.sqrt(16) if init == 'nanotron' else 0.02
  blocks = params['blocks']
  for x, std in [
    (params['embed_VD'], 0.02), (params['head_DV'], 0.02), (blocks['attn']['q_DNH'], 0.02),
    (blocks['attn']['o_NHD'], into_residual), (blocks['mlp']['down_FD'], into_residual),
  ]:
    assert np.std(x) == pytest.approx(std, rel=0.03)
    assert x.dtype == jnp.float32
  assert (np.asarray(params['final_norm']['scale_D']) == 1).all()
  # Layers and parameters are independent draws.
  q, k = (np.asarray(blocks['attn'][n]).reshape(8, -1) for n in ('q_DNH', 'k_DKH'))
  assert np.abs(np.corrcoef(np.concatenate([q[:, : k.shape[1]], k])) - np.eye(16)).max() < 0.12


def test_a_new_parameter_changes_no_other():
  plain, more = make(TINY), make(with_(qk_norm=True, attention_bias=True, tie_embeddings=False))
  np.testing.assert_array_equal(plain['blocks']['attn']['q_DNH'], more['blocks']['attn']['q_DNH'])
  np.testing.assert_array_equal(plain['embed_VD'], more['embed_VD'])


# ---------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize('fields, message', [
  ({'num_kv_heads': 3}, 'num_heads=4 is not a multiple of num_kv_heads=3'),
  ({'head_dim': 7}, 'head_dim=7'),
  ({'vocab_size': 0}, 'vocab_size=0'),
  ({'embed_dim': 32.0}, 'embed_dim=32.0'),
  ({'rope_layers': (1, 0)}, 'rope_layers'),
  ({'window_layers': (1, 0, 0, 0)}, 'sliding_window=0'),
  ({'rope_scaling': {'factor': 0.5, 'original_max_seq_len': 64}}, 'factor must be at least 1'),
  ({'init': 'xavier'}, "init='xavier': one of nanotron, hf"),
  ({'dtype': 'float16'}, 'one of bfloat16, float32'),
  ({'remat': 'qkv+everything'}, "remat='everything': one of"),
  ({'norm_eps': 0.0}, 'norm_eps=0.0'),
  ({'activation': 'silu'}, "activation='silu': one of swiglu, geglu, gelu, relu2"),
  ({'norm': 'batch'}, "norm='batch': one of rms, layer"),
  ({'norm_position': 'none'}, "norm_position='none': one of pre, post, sandwich"),
  ({'logit_softcap': -1.0}, 'logit_softcap=-1.0'),
  ({'rope_scaling': {'rope_type': 'dynamic'}}, "rope_type='dynamic': one of linear, llama3, yarn"),
  ({'rope_scaling': {'rope_type': 'llama3', 'factor': 8.0}}, 'lacks original_max_seq_len'),
  ({'rope_scaling': {'rope_type': 'linear', 'factor': 2.0, 'beta_fast': 1}}, "'beta_fast': one of"),
  ({'rope_scaling': model.Llama3Rope(8.0, 64, 4.0, 1.0)}, 'low_freq_factor=4.0'),
])  # fmt: skip
def test_a_config_that_does_not_fit_names_the_field(fields, message):
  with pytest.raises(ValueError, match=message.replace('(', r'\(').replace('+', r'\+')):
    with_(**fields)


def test_too_long_rows_and_unknown_tokens():
  params = make(TINY)
  with pytest.raises(ValueError, match='max_seq_len=256'):
    model.apply(TINY, params, np.zeros((1, 257), np.int32))
  out = apply(TINY, params, np.array([[1, 2, 3], [1, 64, 3], [1, -1, 3]], np.int32))
  assert np.isfinite(out.logits[0]).all() and np.isnan(out.logits[1:]).all()
  for wrong, message in [
    (np.array([[1, 2], [3, 64]]), r'id 64 in row 1 at place 1 .* vocabulary of 64: was'),
    ([[-1, 99]], r'id -1 in row 0 at place 0 .* \(1 more do\)'),
    (np.zeros((1, 2)), r'shape \(1, 2\) and dtype float64'),
  ]:
    with pytest.raises(ValueError, match=message):
      model.apply(TINY, params, wrong)


@pytest.mark.parametrize('D', [64, 96])
def test_the_kernel_of_one_row_adds_and_norms(D):
  x, y, scale = (jnp.asarray(np.random.default_rng(i).normal(size=D), 'bfloat16') for i in range(3))
  total, normed = one_row.add_and_norm(x[None, None], y[None, None], scale, 1e-6, interpret=True)
  np.testing.assert_array_equal(total[0, 0], x + y)
  wide = np.asarray(x + y, np.float64)
  want = wide / np.sqrt(np.mean(wide**2) + 1e-6) * np.asarray(scale, np.float64)
  np.testing.assert_allclose(np.asarray(normed[0, 0], np.float64), want, rtol=2e-2)

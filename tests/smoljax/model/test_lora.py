"""Adapters: nothing at first, learned alone, the same folded in, on meshes and in runs."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from helpers.training import fit, tiny

from smoljax import model, sharding
from smoljax.checkpoints import huggingface, load, store
from smoljax.model import lora

CONFIG = model.ModelConfig(
  vocab_size=64, num_layers=2, nope_interval=2, embed_dim=32, num_heads=4, num_kv_heads=2,
  head_dim=8, mlp_dim=48, max_seq_len=64, dtype='float32', init_std=0.1, lora_rank=3,
)  # fmt: skip
BASE, ADAPTERS = model.init(CONFIG, jax.random.key(0)), lora.init(CONFIG, jax.random.key(1))
TOKENS = np.random.default_rng(0).integers(0, 64, (4, 16)).astype(np.int32)


def loss(config, base, adapters, tokens):
  return jnp.sum(jnp.sin(model.hidden(config, lora.joined(base, adapters), tokens)[0]))


def moved(adapters, seed=2):
  """Adapters after some steps: neither is 0."""
  leaves, tree = jax.tree.flatten(adapters)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  return jax.tree.unflatten(tree, [
    x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)])


def test_training_begins_with_the_model_bit_for_bit_and_moves_one_side_first():
  plain = dataclasses.replace(CONFIG, lora_rank=0)
  np.testing.assert_array_equal(
    model.hidden(plain, BASE, TOKENS)[0],
    model.hidden(CONFIG, lora.joined(BASE, ADAPTERS), TOKENS)[0])
  for part in BASE['blocks'].keys() & {'attn', 'mlp'}:
    for name, x in lora.merged(CONFIG, BASE, ADAPTERS)['blocks'][part].items():
      np.testing.assert_array_equal(x, BASE['blocks'][part][name])
  grads = jax.grad(functools.partial(loss, CONFIG, BASE))(ADAPTERS, TOKENS)
  found = {name: float(jnp.abs(g).max()) for part in grads['blocks'].values()
           for name, g in part.items()}
  assert len(found) == 14  # of seven matrices
  assert all((size == 0) == ('_in_' in name) for name, size in found.items()), found


def test_the_folder_for_peft_says_the_same(tmp_path):
  """By its own rule, W + alpha / r · B A, on the tensors of transformers."""
  plain, adapters = dataclasses.replace(CONFIG, lora_rank=0), moved(ADAPTERS)
  base, folder = str(tmp_path / 'base'), str(tmp_path / 'adapters')
  huggingface.save_hf(plain, BASE, base, dtype='float32')
  huggingface.save_peft(CONFIG, adapters, folder, base)
  said = json.loads((tmp_path / 'adapters/adapter_config.json').read_text())
  found = safetensors.numpy.load_file(f'{folder}/adapter_model.safetensors')
  names = [k.removesuffix('.lora_A.weight') for k in found if k.endswith('.lora_A.weight')]
  assert len(found) == 2 * len(names) == 2 * 7 * 2
  before, after = (dict(huggingface.to_hf_tensors(plain, params, 'float32'))
                   for params in (BASE, lora.merged(CONFIG, BASE, adapters)))
  for name in names:
    assert name.rpartition('.')[2] in said['target_modules']
    w = f'{name.removeprefix("base_model.model.")}.weight'
    a, b = found[f'{name}.lora_A.weight'], found[f'{name}.lora_B.weight']
    assert a.shape[0] == b.shape[1] == said['r'] == 3
    np.testing.assert_allclose(
      before[w] + said['lora_alpha'] / said['r'] * b @ a, after[w], atol=1e-5)
  with pytest.raises(ValueError, match='not finite'):
    huggingface.save_peft(CONFIG, jax.tree.map(lambda x: x * np.nan, adapters), folder, base)


@pytest.mark.slow
def test_peft_reads_it(tmp_path):
  peft, transformers = pytest.importorskip('peft'), pytest.importorskip('transformers')
  base, folder, adapters = str(tmp_path / 'base'), str(tmp_path / 'adapters'), moved(ADAPTERS)
  huggingface.save_hf(dataclasses.replace(CONFIG, lora_rank=0), BASE, base, dtype='float32')
  huggingface.save_peft(CONFIG, adapters, folder, base)
  theirs = peft.PeftModel.from_pretrained(
    transformers.AutoModelForCausalLM.from_pretrained(base), folder)
  logits = theirs(pytest.importorskip('torch').tensor(TOKENS)).logits.detach().numpy()
  ours = model.apply(CONFIG, lora.joined(BASE, adapters), TOKENS).logits
  np.testing.assert_allclose(logits, ours, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('scan', [True, False])
def test_folded_in_it_is_the_same_model(scan):
  config, adapters = dataclasses.replace(CONFIG, scan_layers=scan), moved(ADAPTERS)
  plain = dataclasses.replace(config, lora_rank=0)
  merged = lora.merged(config, BASE, adapters)
  np.testing.assert_allclose(
    model.apply(plain, merged, TOKENS).logits,
    model.apply(config, lora.joined(BASE, adapters), TOKENS).logits, atol=1e-5)
  w, a, b = (x[1].astype(np.float64) for x in (
    BASE['blocks']['attn']['o_NHD'], adapters['blocks']['attn']['o_in_NHR'],
    adapters['blocks']['attn']['o_out_RD']))
  np.testing.assert_allclose(
    merged['blocks']['attn']['o_NHD'][1],
    w + 32 / 3 * (a.reshape(-1, 3) @ b).reshape(w.shape), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('mesh', [dict(data=2, fsdp=2), dict(fsdp=2, tensor=2)])
def test_meshes_give_what_one_device_gives(mesh):
  adapters = moved(ADAPTERS)
  f = jax.jit(jax.value_and_grad(functools.partial(loss, CONFIG), argnums=1))
  expected = f(BASE, adapters, TOKENS)
  mesh = sharding.make_mesh(**mesh, devices=jax.devices()[:4])
  with jax.set_mesh(mesh):
    placed = [jax.device_put(p, sharding.shardings(p, mesh)) for p in (BASE, adapters)]
    got = f(*placed, sharding.shard_batch({'x': TOKENS}, mesh)['x'])
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-3, rtol=1e-4), got, expected)


@pytest.mark.slow
def test_a_run_keeps_its_adapters_alone_and_is_read_as_the_model_with_them(
    markov_corpora, tmp_path):
  base = str(tmp_path / 'base')
  fit(tiny(**{'train.tokens': 8 * 64}), markov_corpora, base)
  c = tiny(**{'train.init_from': base, 'model.lora_rank': 2, 'tokenizer.path': 'none'})
  fit(c, markov_corpora, tmp_path / 'run', meta={'config': c.to_dict()})
  config, adapters, _ = store.load_params(str(tmp_path / 'run'))
  assert config.lora_rank == 2 and set(adapters) == {'blocks'}
  assert all('_in_' in n or '_out_' in n for part in adapters['blocks'].values() for n in part)
  before, (config, after, _) = load.load_weights(base)[1], load.load_weights(str(tmp_path / 'run'))
  assert config.lora_rank == 0
  np.testing.assert_array_equal(before['embed_VD'], after['embed_VD'])
  assert np.abs(before['blocks']['attn']['q_DNH'] - after['blocks']['attn']['q_DNH']).max() > 1e-4
  assert load.load_adapters(str(tmp_path / 'run'))[2] == base
  with pytest.raises(ValueError, match='trained all parameters'):
    load.load_adapters(base)
  expected = lora.merged(dataclasses.replace(config, lora_rank=2), before, adapters)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), after, expected)

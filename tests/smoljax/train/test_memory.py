"""The memory plan against XLA's own account, and against arithmetic by hand."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from experiments import shapes
from smoljax import model, sharding
from smoljax.inference.cache import init_cache
from smoljax.model.config import GATED
from smoljax.train import memory, objectives

# Wide and long enough that activations and logits, not constants, decide.
CONFIG = model.ModelConfig(
  vocab_size=4096, num_layers=8, embed_dim=256, num_heads=4, num_kv_heads=2, head_dim=64,
  mlp_dim=768, max_seq_len=1024, dtype='float32', attention='xla',
)  # fmt: skip
NAMES = 'qkv+ctx+mid+gu'


def with_(**fields):
  return dataclasses.replace(CONFIG, **fields)


def compiled(config, rows, seq_len, chunk):
  """XLA's account of the gradient: (arguments, results, everything else at the peak)."""
  int_BT = jax.ShapeDtypeStruct((rows, seq_len), jnp.int32)
  batch = dict.fromkeys(('inputs', 'targets', 'positions', 'segment_ids'), int_BT)
  batch['source'] = jax.ShapeDtypeStruct((rows,), jnp.int32)

  def gradient(params, batch):
    loss = lambda p: objectives.next_token(
      config, p, batch, total_tokens=jnp.float32(1), num_sources=1, chunk=chunk).total
    return jax.grad(loss)(params)

  found = jax.jit(gradient).lower(model.abstract_params(config), batch).compile().memory_analysis()
  return found.argument_size_in_bytes, found.output_size_in_bytes, found.temp_size_in_bytes


@pytest.mark.parametrize('remat', [
  NAMES, 'full', pytest.param('none', marks=pytest.mark.slow),
  pytest.param('ctx+mid', marks=pytest.mark.slow),
])  # fmt: skip
def test_the_plan_is_near_what_xla_allocates(remat):
  config = with_(remat=remat)
  plan = memory.training(config, rows=4, seq_len=1024, chunk=256)
  arguments, results, rest = compiled(config, 4, 1024, 256)
  assert plan['parameters'] == pytest.approx(arguments, rel=0.02)
  assert plan['gradients'] == pytest.approx(results, rel=0.02)
  planned = plan['weights in use'] + plan['saved activations'] + plan['working set']
  assert planned == pytest.approx(rest, rel=0.12)


@pytest.mark.parametrize('fields', [
  {}, {'dtype': 'bfloat16', 'attention_bias': True, 'nope_interval': 0},
  {'activation': 'relu2', 'norm_position': 'sandwich', 'sliding_window': 128},
])  # fmt: skip
def test_what_is_saved_follows_the_stated_formula(fields):
  """Per layer and token; what is kept once for all layers cancels in the difference."""
  config = with_(**fields)
  D, F, N, K, H = (config.dims[c] for c in 'DFNKH')
  c = jnp.dtype(config.dtype).itemsize
  parts = {
    'full': c * D, 'qkv': c * (N + 2 * K) * H, 'ctx': c * N * H + 4 * N, 'mid': c * D,
    'gu': c * (2 if GATED[config.activation] else 1) * F,
  }  # fmt: skip
  for remat in ('full', 'ctx', NAMES):
    expected = parts['full'] + sum(parts[name] for name in remat.split('+') if name != 'full')
    saved = [memory.saved(with_(**fields, remat=remat, num_layers=n), 2, 512) for n in (8, 4)]
    assert saved[0] - saved[1] == pytest.approx(4 * expected * 2 * 512, rel=1e-3)


def test_a_mesh_divides_what_it_should():
  config = with_(remat=NAMES)
  one = memory.training(config, rows=8, seq_len=512)
  two = memory.training(config, rows=8, seq_len=512, mesh=dict(data=2))
  assert two['saved activations'] == pytest.approx(one['saved activations'] / 2, rel=0.01)
  assert two['optimizer'] == one['optimizer'] == 2 * 4 * config.num_params()
  split = memory.training(config, rows=8, seq_len=512, mesh=dict(fsdp=2, tensor=2))
  assert split['parameters'] == pytest.approx(one['parameters'] / 4, rel=0.01)
  # Of a layer's values only those of model size are not split over `tensor`.
  whole = 8 * 512 // 2 * CONFIG.num_layers * 4 * 2 * CONFIG.embed_dim
  assert split['saved activations'] == pytest.approx(
    whole + (two['saved activations'] - whole) / 2, rel=0.03)
  momentum = {'m': model.abstract_params(config), 'count': jax.ShapeDtypeStruct((), jnp.int32)}
  assert memory.training(config, rows=8, seq_len=512, opt_state=momentum)['optimizer'] == (
    one['parameters'] + 4)


def test_bad_meshes():
  for mesh, message in [
    (dict(data=3), '8 rows do not divide'), (dict(tensor=3), r'a dim of 2 does not divide over 3'),
    (dict(expert=2), "mesh axis 'expert': one of data, fsdp, tensor, context"),
  ]:  # fmt: skip
    with pytest.raises(ValueError, match=message):
      memory.training(CONFIG, rows=8, seq_len=64, mesh=mesh)


def test_inference_counts_the_caches_that_decoding_makes():
  for fields in ({}, {'sliding_window': 128, 'dtype': 'bfloat16'}):
    config = with_(**fields)
    cache = jax.eval_shape(lambda c=config: init_cache(c, 3, 512))
    plan = memory.inference(config, rows=3, seq_len=512)
    assert plan['KV cache'] == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache))
    assert plan['parameters'] == jnp.dtype(config.dtype).itemsize * config.num_params()


def test_the_command(tmp_path):
  hf = with_(nope_interval=0).to_hf()
  (tmp_path / 'config.json').write_text(json.dumps(hf))
  found = shapes.configs(['tiny'], [str(tmp_path)])
  assert found['tiny'] == model.SHAPES['tiny']
  assert found[str(tmp_path)].num_params() == CONFIG.num_params()
  table = shapes.counts(found, 4096)
  assert list(table.columns[1].cells) == ['1,049,728', f'{CONFIG.num_params():,}']
  assert next(iter(table.columns[-1].cells)) == f'{2 * 4 * 2 * 32 * 4:,}'
  assert shapes.parse_mesh(['data=2', 'fsdp=4']) == dict(data=2, fsdp=4)
  with pytest.raises(ValueError, match=r"--mesh has 'fsdp': give data=N,"):
    shapes.parse_mesh(['fsdp'])
  with pytest.raises(ValueError, match='unknown shape'):
    shapes.configs(['smollm3-7b'], [])
  plan = {'a': 2**30, 'b': 2**29}
  assert list(shapes.plan_table('x', {'m': plan}).columns[-1].cells) == ['1.50']


@pytest.mark.parametrize('devices, rows, seq_len, given, more, chosen', [
  (1, 4, 64, {}, {}, (1, 1, 1, 1)),
  (8, 16, 64, {}, {}, (1, 8, 1, 1)),
  (16, 16, 64, {}, dict(island=8), (2, 8, 1, 1)),  # copies beyond the fast links
  (16, 16, 64, {}, dict(island=8, memory=110_000_000), (1, 16, 1, 1)),  # unless that needs too much
  (8, 2, 64, {}, {}, (1, 2, 4, 1)),
  (8, 2, 32768, {}, {}, (1, 2, 1, 4)),  # long rows are split before matrices
  (8, 16, 64, dict(data=2), {}, (2, 4, 1, 1)),
  (8, 16, 64, dict(tensor=2, data=1), {}, (1, 4, 2, 1)),
  (8, 16, 8, {}, dict(memory=1), (1, 2, 4, 1)),  # nothing fits: what needs least
])  # fmt: skip
def test_a_mesh_is_chosen(devices, rows, seq_len, given, more, chosen):
  config = dataclasses.replace(CONFIG, embed_dim=512, num_heads=8, num_kv_heads=4, mlp_dim=2048)
  sizes = {axis: given.get(axis, -1) for axis in sharding.AXES}
  mesh = memory.choose_mesh(config, sizes, devices=devices, rows=rows, seq_len=seq_len, **more)
  assert tuple(mesh[axis] for axis in sharding.AXES) == chosen


def test_no_mesh_fits():
  sizes = dict.fromkeys(sharding.AXES, -1)
  with pytest.raises(ValueError, match='no mesh of 7 devices divides a micro-batch of 8 rows'):
    memory.choose_mesh(CONFIG, sizes, devices=7, rows=8, seq_len=64)
  with pytest.raises(ValueError, match=r'no mesh of 8 devices with mesh\.tensor=3 divides'):
    memory.choose_mesh(CONFIG, sizes | dict(tensor=3), devices=8, rows=8, seq_len=64)

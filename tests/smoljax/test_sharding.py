"""Meshes: the same numbers on every one of them, and clear words where something does not fit."""

import dataclasses
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from smoljax import model, sharding
from smoljax.train import objectives

CONFIG = model.ModelConfig(
  vocab_size=64, num_layers=2, nope_interval=2, embed_dim=32, num_heads=4, num_kv_heads=2,
  head_dim=8, mlp_dim=48, max_seq_len=64, dtype='float32', init_std=0.1, tie_embeddings=False,
)  # fmt: skip
LIMIT = 1.1  # of attention logits: some heads of CONFIG's start have larger ones, some have not
RNG = np.random.default_rng(0)
BATCH = {
  'tokens': RNG.integers(0, 64, (8, 16)).astype(np.int32),
  'segments': np.cumsum(RNG.random((8, 16)) < 0.2, axis=1).astype(np.int32) + 1,
  'targets': RNG.integers(0, 64, (8, 16)).astype(np.int32),
}
MESHES = [
  dict(data=2, fsdp=2, tensor=2), dict(data=1, context=2, tensor=2),
  dict(data=1, context=2, fsdp=2),
  *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in (
    dict(data=8), dict(data=1, fsdp=4), dict(data=1, tensor=2), dict(data=1, context=4))),
]  # fmt: skip


def make_mesh(sizes):
  count = int(np.prod(list(sizes.values())))
  return sharding.make_mesh(**sizes, devices=jax.devices()[:count])


def loss(config, params, batch):
  hidden_BTD, aux = model.hidden(
    config, params, batch['tokens'], segment_ids_BT=batch['segments'], max_logits=LIMIT)
  weight_BT = jnp.full_like(batch['targets'], 1 / batch['targets'].size, jnp.float32)
  mean, _ = objectives.head_loss(
    config, hidden_BTD, model.unembedding(config, params), batch['targets'], weight_BT, chunk=8)
  return mean, aux['max_logits_LN']


@functools.partial(jax.jit, static_argnums=0)
def step(config, params, batch):
  (value, max_LN), gradients = jax.value_and_grad(loss, 1, has_aux=True)(config, params, batch)
  return value, max_LN, gradients


@functools.cache
def alone():
  params = model.init(CONFIG, jax.random.key(0))
  return jax.device_get((params, step(CONFIG, params, BATCH)))


@pytest.mark.parametrize('sizes', MESHES, ids=str)
def test_every_mesh_gives_the_same_parameters_loss_and_gradient(sizes):
  expected_params, (value, max_LN, gradients) = alone()
  assert max_LN.min() < LIMIT < max_LN.max()
  mesh = make_mesh(sizes)
  with jax.set_mesh(mesh):
    params = model.init(CONFIG, jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, params, expected_params)  # to the last bit
    places = sharding.shardings(params, mesh)
    jax.tree.map(lambda x, s: x.sharding == s or pytest.fail(str(x.sharding)), params, places)
    got = step(CONFIG, params, sharding.shard_batch(BATCH, mesh))
  np.testing.assert_allclose(got[0], value, rtol=1e-6)
  np.testing.assert_allclose(got[1], max_LN, rtol=1e-5)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-7), got[2], gradients)
  # Gradients live where the parameters do.
  jax.tree.map(
    lambda x, s: x.sharding.spec == s.spec or pytest.fail(str(x.sharding)), got[2], places)


def test_parameters_are_really_split():
  mesh = make_mesh(dict(data=2, fsdp=2, tensor=2))
  config = dataclasses.replace(CONFIG, attention_bias=True, mlp_bias=True)
  with jax.set_mesh(mesh):
    params = model.init(config, jax.random.key(0))
  for group, leaf, parts in [
    ('attn', 'q_DNH', 4), ('attn', 'k_DKH', 4), ('attn', 'o_NHD', 4), ('attn', 'q_bias_NH', 2),
    ('mlp', 'gate_DF', 4), ('mlp', 'down_bias_D', 1), ('mlp_norm', 'scale_D', 1),
  ]:
    x = params['blocks'][group][leaf]
    assert x.addressable_shards[0].data.size * parts == x.size, leaf


@pytest.mark.parametrize('fields, sizes', [
  (dict(tie_embeddings=True, scan_layers=False, attention_bias=True, mlp_bias=True),
   dict(data=1, fsdp=2, tensor=2)),
  (dict(num_kv_heads=1, nope_interval=0, sliding_window=5, window_layers=(1, 0)), dict(data=2)),
  (dict(norm_position='post', qk_norm=True, qk_norm_over='width', qkv_bias=True),
   dict(data=1, fsdp=2, tensor=2)),
])  # fmt: skip
def test_other_models_on_a_mesh(fields, sizes):
  config = dataclasses.replace(CONFIG, max_seq_len=128, **fields)
  batch = {name: np.tile(x, (1, 8)) for name, x in BATCH.items()}  # long enough for two chunks
  batch['segments'] = np.sort(batch['segments'], axis=1)
  value = step(config, model.init(config, jax.random.key(0)), batch)[0]
  mesh = make_mesh(sizes)
  with jax.set_mesh(mesh):
    params = model.init(config, jax.random.key(0))
    got = step(config, params, sharding.shard_batch(batch, mesh))[0]
  np.testing.assert_allclose(got, value, rtol=1e-6)


def test_a_split_sequence_is_split_everywhere():
  mesh = make_mesh(dict(data=1, fsdp=2, context=4))
  with jax.set_mesh(mesh):
    params = model.init(CONFIG, jax.random.key(0))
    batch = sharding.shard_batch(BATCH, mesh)
    out = jax.jit(functools.partial(model.apply, CONFIG))(
      params, batch['tokens'], segment_ids_BT=batch['segments'])
  assert batch['tokens'].sharding.spec == P(('data', 'fsdp'), 'context')
  assert out.hidden.sharding.spec == P(('data', 'fsdp'), 'context', None)
  assert out.logits.sharding.spec == P(('data', 'fsdp'), 'context', 'tensor')


def test_slices_cut_each_part_of_a_split_sequence_and_come_back():
  x = np.arange(2 * 16 * 3).reshape(2, 16, 3)
  for sizes, size, shape, places in [
    (dict(data=2), 6, (4, 2, 4, 3), [0, 1, 2, 3]),
    (dict(data=1, context=4), 2, (2, 2, 8, 3), [0, 1, 4, 5, 8, 9, 12, 13]),
  ]:
    mesh = make_mesh(sizes)
    with jax.set_mesh(mesh):
      cut = sharding.slices(sharding.shard_batch({'x': x}, mesh)['x'], size)
      back = sharding.unsliced(cut)
    assert cut.shape == shape and cut.sharding.spec == P(None, ('data', 'fsdp'), 'context', None)
    np.testing.assert_array_equal(cut[0], x[:, places])
    np.testing.assert_array_equal(back, x)


def test_abstract_state_has_the_shardings_of_the_real_one():
  mesh = make_mesh(dict(data=2, fsdp=4))
  params = model.abstract_params(CONFIG, mesh)
  state = sharding.abstract(jax.eval_shape(optax.adamw(1e-3).init, params), mesh)
  with jax.set_mesh(mesh):
    real = model.init(CONFIG, jax.random.key(0))
    real_state = jax.jit(optax.adamw(1e-3).init)(real)
  same = lambda a, b: (a.shape, a.dtype, a.sharding.spec) == (b.shape, b.dtype, b.sharding.spec)
  assert all(jax.tree.leaves(jax.tree.map(same, params, real)))
  assert all(jax.tree.leaves(jax.tree.map(same, state, real_state)))


@pytest.mark.parametrize('sizes, shape', [
  ({}, (8, 1, 1, 1)), (dict(data=1, fsdp=-1), (1, 8, 1, 1)), (dict(fsdp=2, tensor=2), (2, 2, 2, 1)),
  (dict(context=4), (2, 1, 1, 4)),
])  # fmt: skip
def test_mesh_sizes_are_computed(sizes, shape):
  assert tuple(sharding.make_mesh(**sizes).shape.values()) == shape


@pytest.mark.parametrize('sizes, message', [
  (dict(data=3), 'data=3 .* does not fit 8 device'),
  (dict(data=2, fsdp=2), 'must multiply to 8'),
  (dict(tensor=16), 'does not fit 8'),
  (dict(data=-1, fsdp=-1), 'data and fsdp are both -1'),
  (dict(tensor=0), 'tensor=0'),
])  # fmt: skip
def test_impossible_meshes_say_why(sizes, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(**sizes)


def test_typos_are_errors():
  with pytest.raises(ValueError, match="unknown logical dim 'bacth': one of batch"):
    sharding.spec('bacth', None)
  with pytest.raises(ValueError, match="'kernel' does not end in its dims"):
    sharding.param_names('kernel')
  with pytest.raises(ValueError, match='3 dims do not fit'):
    sharding.shardings({'down_F': jnp.zeros((2, 2, 2))}, sharding.make_mesh())
  with pytest.raises(ValueError, match='2 names'):
    sharding.constrain(jnp.zeros(3), 'batch', 'length')


def test_what_does_not_divide_is_named():
  mesh = make_mesh(dict(data=2, fsdp=4))
  with pytest.raises(ValueError, match=r'6 rows.*data=2 x fsdp=4.*multiple of 8'):
    sharding.shard_batch({'tokens': np.zeros((6, 4), np.int32)}, mesh)
  odd = dataclasses.replace(CONFIG, embed_dim=30)
  with pytest.raises(ValueError, match=r'k_DKH: dim 1 of size 30 .* fsdp=4'):
    model.abstract_params(odd, mesh)
  with jax.set_mesh(mesh), pytest.raises(ValueError, match='size 30'):
    model.init(odd, jax.random.key(0))


def test_parameters_on_a_mesh_need_it_set():
  with jax.set_mesh(make_mesh(dict(data=2, fsdp=2))):
    params = model.init(CONFIG, jax.random.key(0))
  with pytest.raises(ValueError, match=r'jax\.set_mesh'):
    model.apply(CONFIG, params, BATCH['tokens'])


def test_shard_batch_places_rows():
  mesh = make_mesh(dict(data=2, fsdp=2))
  batch = sharding.shard_batch({**BATCH, 'source': np.arange(8)}, mesh)
  assert batch['tokens'].sharding.spec == P(('data', 'fsdp'), 'context')
  assert batch['source'].sharding.spec == P(('data', 'fsdp'))
  assert batch['source'].addressable_shards[3].data.tolist() == [6, 7]
  np.testing.assert_array_equal(batch['segments'], BATCH['segments'])


@pytest.mark.slow
def test_collectives_of_a_run_on_cores_do_not_starve_each_other():
  """In a process of its own: XLA ends it if its threads wait for each other."""
  code = """
import jax, jax.numpy as jnp
from configs import base
from experiments.engine import config
c = base.get_config()
c.mesh.update(dict(data=2, fsdp=1, tensor=1, context=1))
config.use_all_cores(c)
mesh = jax.make_mesh((2,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
many = [jax.device_put(jnp.full((800, 40), i), split) for i in range(60)]
@jax.jit
def step(many):
  sums = [jnp.sum(jnp.sin(x @ jnp.ones((40, 40)))) for x in many]
  return [0.99 * x + 1e-6 * sums[7 * i % len(many)] for i, x in enumerate(many)]
for _ in range(300):
  many = step(many)
print(len(jax.devices()), jnp.isfinite(jax.block_until_ready(many)[0]).all())
"""
  environment = {k: v for k, v in os.environ.items() if k != 'NPROC'} | {
    'XLA_FLAGS': '--xla_cpu_collective_call_terminate_timeout_seconds=20', 'JAX_PLATFORMS': 'cpu'
  }
  done = subprocess.run(
    [sys.executable, '-c', code], env=environment, capture_output=True, text=True, timeout=300
  )
  assert done.stdout.split() == ['2', 'True'], done.stderr[-2000:]

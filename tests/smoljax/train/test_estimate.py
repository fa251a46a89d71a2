"""Steps compiled for devices that are not here."""

import dataclasses
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY
from jax.sharding import PartitionSpec as P

from configs import quickstart
from experiments.engine import config as config_lib
from smoljax import model, sharding
from smoljax.train import estimate, memory
from smoljax.train.step import Objective, make_gradients

COMPILERS = REPOSITORY / '.venv' / 'compilers'  # made by `make test-slow`


def test_collectives_in_loops_count_each_time():
  mesh = jax.make_mesh((8,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))

  def body(x, _):
    total = jax.lax.psum(x, 'x')
    return x + total * 0.5, jnp.sum(jax.lax.all_gather(x, 'x'))

  def f(x):
    x, seen = jax.lax.scan(body, x, length=5)
    return jax.lax.psum(x, 'x'), seen

  f = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P('x'), out_specs=(P(), P()), check_vma=False))
  found = estimate.collectives(f.lower(jnp.ones((8, 100))).compile().as_text())
  assert found['all-gather'] == (5, 5 * 8 * 400)
  assert found['all-reduce'] == (6, 6 * 400)


def test_a_sum_that_a_tpu_scatters_counts_as_what_a_device_gets():
  """As libtpu 0.0.42 writes the gradient of a matrix split over eight chips, shortened."""
  program = '''
%all-reduce-scatter.1 (param_0.1: bf16[2048,8192]) -> bf16[256,8192] {
  %param_0.1 = bf16[2048,8192]{0,1} parameter(0)
  %all-reduce.3 = bf16[2048,8192]{0,1} all-reduce(%param_0.1), channel_id=3
  ROOT %dynamic-slice.1 = bf16[256,8192]{0,1} dynamic-slice(%all-reduce.3, %c, %d)
}

ENTRY %main.2 (param.1: bf16[2048,8192]) -> bf16[256,8192] {
  %param.1 = bf16[2048,8192]{0,1} parameter(0)
  ROOT %fusion.1 = bf16[256,8192]{0,1} fusion(%param.1), calls=%all-reduce-scatter.1
}
'''
  assert estimate.collectives(program) == {'reduce-scatter': (1, 2 * 256 * 8192)}


@pytest.mark.parametrize('name', ['v5e-7', 'tpu', 'h100x12', 'h300', 'v5p-1'])
def test_an_unknown_topology_names_the_known_ones(name):
  with pytest.raises(ValueError, match=r'v5e-N|h200'):
    estimate.topology(name)


@pytest.mark.slow
@pytest.mark.skipif(not COMPILERS.exists(), reason='make test-slow installs the compilers')
@pytest.mark.parametrize(('topology', 'flags', 'held', 'kinds'), [
  # parameters and AdamW's two moments, 12 bytes a parameter, over the devices that split them
  ('v5e-8', ['--config.mesh.data=2'], 12 / 4, {'all-gather', 'all-reduce'}),
  ('h200x2', [], 12 / 2, {'all-gather', 'reduce-scatter', 'all-reduce'}),
])
def test_a_step_compiles_for_devices_that_are_not_here(topology, flags, held, kinds):
  command = [
    sys.executable, '-m', 'experiments.run', '--config=configs/smollm3.py:size=50m', '--estimate',
    f'--topology={topology}', '--config.model.num_layers=4', '--config.tokenizer.vocab_size=4096',
    '--config.train.batch_tokens=32768', '--config.train.loss_chunk=1024', *flags]
  environment = {**os.environ, 'PYTHONPATH': f'{REPOSITORY}:{COMPILERS}', 'JAX_PLATFORMS': 'cpu',
                 'XLA_FLAGS': '', 'COLUMNS': '120'}
  out = subprocess.run(command, cwd=REPOSITORY, env=environment, text=True, capture_output=True)
  assert out.returncode == 0, out.stderr[-3000:]
  parameters = 4 * (384 * 6 * 64 * 2 + 384 * 2 * 64 * 2 + 3 * 384 * 1024 + 2 * 384) + 4097 * 384
  said = float(re.search(r'parameters and optimizer\s*│\s*([\d.]+) GB', out.stdout)[1])
  np.testing.assert_allclose(said, parameters * held / 1e9, rtol=.1)  # a TPU pads
  assert {kind for kind in kinds if kind in out.stdout} == kinds, out.stdout


def calls(axes, layers=2, chunks=2):
  """Collectives of a step's gradients on eight devices, loops counted, by kind."""
  config = dataclasses.replace(
    model.SHAPES['tiny'], num_layers=layers, vocab_size=256, embed_dim=64, mlp_dim=128,
    scan_layers=True, remat='qkv+ctx+mid+gu')
  mesh, chunk = sharding.make_mesh(**{'data': 1, **axes}), 64 // chunks // axes.get('context', 1)
  gradients = make_gradients(config, Objective(chunk=chunk))

  def placed(shape, *names):
    placing = jax.sharding.NamedSharding(mesh, sharding.spec(*names))
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=placing)

  batch = {name: placed((16, 64), 'batch', 'length')
           for name in ('inputs', 'targets', 'segment_ids', 'positions')}
  batch['source'] = placed((16,), 'batch')
  with jax.set_mesh(mesh):
    lowered = jax.jit(gradients).lower(model.abstract_params(config, mesh), batch, jnp.int32(1))
    found = estimate.collectives(lowered.compile().as_text())
  return {kind: number for kind, (number, _) in found.items()}


@pytest.mark.parametrize(('axes', 'of_a_layer'), [
  (dict(data=8), {'all-reduce': 1}),  # its gradients
  (dict(fsdp=8), {'all-reduce': 1, 'all-gather': 14}),  # and seven matrices, there and back
  (dict(data=2, fsdp=2, context=2), None),
])
def test_collectives_are_in_no_loop_where_none_belong(axes, of_a_layer):
  """The loop over places has none: the head's gradient is summed over devices once, at its end."""
  base = calls(axes)
  assert calls(axes, chunks=4) == base
  if of_a_layer:
    deeper = calls(axes, layers=4)
    assert {k: (deeper[k] - base[k]) / 2 for k in base} == of_a_layer


@pytest.mark.slow
def test_what_does_not_fit_is_told_what_would():
  c = config_lib.resolve(quickstart.get_config())
  tiny = config_lib.model_config(c, 2048)

  def need(accumulate, remat='none', devices=1):
    return sum(memory.training(
      dataclasses.replace(tiny, remat=remat), rows=c.train.rows // accumulate, seq_len=256,
      chunk=c.train.loss_chunk, mesh={'fsdp': devices}).values())

  where = estimate.Topology('h200', [None], int(need(4) / .9) + 1, {})
  found = estimate.proposals(c, tiny, where)
  assert found[0] == '--config.train.accumulate=4' and need(2) > where.memory * .9 >= need(4)
  assert any('--config.model.remat=full' in flags for flags in found)
  assert all(flags.startswith('--') for flags in found) and len(found) <= 3
  assert estimate.proposals(c, tiny, dataclasses.replace(where, memory=1000)) == []

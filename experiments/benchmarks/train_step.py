"""Times the train step on this machine's devices: one JSON line.

  python -m experiments.benchmarks.train_step --shape=tiny --rows=32 --seq_len=256 [--noguard]

Rows are packed from documents of log-normal length (median 400 tokens) of random ids; the first
step compiles and is timed apart.
"""

import dataclasses
import json
import time

import jax
import numpy as np
from absl import app, flags

from configs import base
from smoljax import data, guard, metrics, model, optim, sharding, train

_SHAPE = flags.DEFINE_enum('shape', 'tiny', list(model.SHAPES), 'Model to train.')
_ROWS = flags.DEFINE_integer('rows', 32, 'Rows a step.')
_SEQ_LEN = flags.DEFINE_integer('seq_len', 256, 'Tokens a row.')
_STEPS = flags.DEFINE_integer('steps', 10, 'Steps timed.')
_OPTIMIZER = flags.DEFINE_enum('optimizer', 'adamw', list(optim.OPTIMIZERS), 'Optimizer.')
_GUARD = flags.DEFINE_bool('guard', True, 'With the guard.')
_LEAVES = flags.DEFINE_bool('leaves', True, 'With norms and RMS of every leaf.')
_REMAT = flags.DEFINE_string('remat', None, "The config's `model.remat`, if not the shape's.")
_CHUNK = flags.DEFINE_integer('chunk', 512, 'Places whose logits exist at once.')


def packed_batch(rows: int, seq_len: int, vocab_size: int, seed: int = 0) -> dict[str, np.ndarray]:
  """A batch of random ids packed from documents of log-normal length."""
  rng = np.random.default_rng(seed)
  lengths = np.maximum(2, rng.lognormal(np.log(400), 1.0, 4 * rows * seq_len // 400)).astype(int)
  packed = data.pack(lengths.tolist(), seq_len, 32)[:rows]
  batch = {k: np.zeros((rows, seq_len), np.int32) for k in ('segment_ids', 'positions')}
  for i, row in enumerate(packed):
    ends = np.cumsum([p.length for p in row])
    for segment, (end, piece) in enumerate(zip(ends, row, strict=True), start=1):
      batch['segment_ids'][i, end - piece.length : end] = segment
      batch['positions'][i, end - piece.length : end] = np.arange(piece.length)
  batch['inputs'], batch['targets'] = rng.integers(0, vocab_size, (2, rows, seq_len), np.int32)
  batch['source'] = np.zeros(rows, np.int32)
  return batch


def main(_: list[str]) -> None:
  config = model.SHAPES[_SHAPE.value]
  if _REMAT.value:
    config = dataclasses.replace(config, remat=_REMAT.value)
  settings, guarding = base.get_config().optimizer, base.get_config().guard
  settings.name = _OPTIMIZER.value
  guarding.enabled = _GUARD.value
  mesh = sharding.make_mesh(data=1, fsdp=-1)
  with jax.set_mesh(mesh):
    params = model.init(config, jax.random.key(0))
    optimizer, _ = optim.make_optimizer(settings, params, 1000)
    state = {
      'params': params,
      'opt_state': {
        'optimizer': jax.jit(optimizer.init)(params),
        'guard': guard.init(guarding, config.num_layers),
      },
    }
    step = train.make_train_step(
      config, optimizer, guarding, num_sources=1, chunk=_CHUNK.value, leaves=_LEAVES.value
    )
    batch = sharding.shard_batch(
      packed_batch(_ROWS.value, _SEQ_LEN.value, config.vocab_size), mesh
    )
    began = time.perf_counter()
    state, out = step(state, batch)
    jax.block_until_ready(out)
    first = time.perf_counter() - began
    seconds, cpu_seconds = [], []
    for _ in range(_STEPS.value):
      began, cpu_began = time.perf_counter(), time.process_time()
      state, out = step(state, batch)
      jax.block_until_ready((state, out))
      cpu_seconds.append(time.process_time() - cpu_began)
      seconds.append(time.perf_counter() - began)
  rate = _ROWS.value * _SEQ_LEN.value / float(np.median(seconds))
  peak = metrics.peak_flops(jax.devices()[0].device_kind)
  flops = config.flops_per_token(_SEQ_LEN.value)
  stats = jax.devices()[0].memory_stats() or {}
  print(
    json.dumps(
      {
        'benchmark': 'train_step',
        'shape': _SHAPE.value,
        'optimizer': _OPTIMIZER.value,
        'guard': _GUARD.value,
        'leaves': _LEAVES.value,
        'rows': _ROWS.value,
        'seq_len': _SEQ_LEN.value,
        'remat': config.remat,
        'cpu_seconds_per_step': round(float(np.median(cpu_seconds)), 4),
        'tokens_per_sec': round(rate, 1),
        'mfu': peak and round(rate * flops / peak / jax.device_count(), 4),
        'gflops_per_sec': round(rate * flops / 1e9, 2),
        'first_step_seconds': round(first, 2),
        'peak_gb': round(stats.get('peak_bytes_in_use', 0) / 1e9, 2) or None,
        'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
        'jax': jax.__version__,
      }
    )
  )


if __name__ == '__main__':
  app.run(main)

"""A whole optimizer update of a model's parameters on the devices at hand: time and memory.

  python -m experiments.benchmarks.optimizer_step [--shape=smollm3-3b] [--repeat=5]

Gradients are given, and float32 parameters updated, so nothing but the optimizer is timed. Prints
one JSON line per optimizer: AdamW, our Muon by three settings, and optax.contrib.muon told which
dims are matrices. Where memory does not suffice, that line says so.
"""

import copy
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from configs import base
from smoljax import model, optim
from smoljax.optim.matrices import path_name

_SHAPE = flags.DEFINE_enum('shape', 'smollm3-3b', sorted(model.SHAPES), 'Whose parameters.')
_REPEAT = flags.DEFINE_integer('repeat', 5, 'Timed updates.')
_ONLY = flags.DEFINE_list('only', [], 'Variants to run, by name; all if none is named.')


def _muon(params, **changes):
  settings = copy.deepcopy(base.get_config().optimizer)
  settings.name = 'muon'
  settings.muon.update(changes)
  return optim.make_optimizer(settings, params, 1000)[0]


def matrix_dims(params: Any) -> Any:
  """Which dims of each leaf are a matrix's, as optax.contrib.muon wants to be told."""
  views = optim.matrix_views(params)

  def dims(path, leaf):
    view = views.get(path_name(path))
    if view is None:
      return None
    positive = lambda ds: tuple(d % leaf.ndim for d in ds)
    return optax.contrib.MuonDimensionNumbers(positive(view.fan_in), positive(view.fan_out))

  return jax.tree.map_with_path(dims, params)


VARIANTS = {
  'adamw': lambda p: optim.make_optimizer(base.get_config().optimizer, p, 1000)[0],
  'muon pe5': lambda p: _muon(p),
  'muon pe5, 4 at once': lambda p: _muon(p, at_once=4),
  'muon gram5': lambda p: _muon(p, coefficients='gram5'),
  'muon gram5, 4 at once': lambda p: _muon(p, coefficients='gram5', at_once=4),
  'optax.contrib.muon': lambda p: optax.contrib.muon(
    1e-3, weight_decay=.1, consistent_rms=.2, muon_weight_dimension_numbers=matrix_dims(p)),
}


def main(_: list[str]) -> None:
  """Prints a JSON line for each optimizer."""
  config = model.SHAPES[_SHAPE.value]
  for name, make in VARIANTS.items():
    if _ONLY.value and name not in _ONLY.value:
      continue
    row = {'benchmark': 'optimizer_step', 'device': jax.devices()[0].device_kind,
           'shape': _SHAPE.value, 'optimizer': name}
    try:
      row |= _measure(config, make)
    except jax.errors.JaxRuntimeError as error:
      row['error'] = str(error).splitlines()[0][:120]
    print(json.dumps(row), flush=True)


def _measure(config, make) -> dict:
  params = model.init(config, jax.random.key(0))
  grads = jax.tree.map(lambda x: (1e-3 * jnp.sin(jnp.arange(x.size, dtype=jnp.float32))).reshape(
    x.shape), params)
  optimizer = make(params)
  state = jax.jit(optimizer.init)(params)

  def update(params, state, grads):
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  step: Any = jax.jit(update, donate_argnums=(0, 1)).lower(params, state, grads).compile()
  params, state = step(params, state, grads)
  jax.block_until_ready(params)
  seconds = []
  for _ in range(_REPEAT.value):
    start = time.perf_counter()
    params, state = step(params, state, grads)
    jax.block_until_ready(params)
    seconds.append(time.perf_counter() - start)
  return {
    'ms': round(1e3 * float(np.median(seconds)), 1),
    'scratch_gb': round(step.memory_analysis().temp_size_in_bytes / 1e9, 2),
    'parameters': config.num_params(),
  }


if __name__ == '__main__':
  app.run(main)

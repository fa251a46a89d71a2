"""What a run begins with: first parameters, the teacher."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax

from smoljax import model, sharding
from smoljax.checkpoints import load
from smoljax.data import teacher_cache
from smoljax.optim import mup
from smoljax.train import distill
from smoljax.train.step import PyTree


def load_teacher(
  config: Any,
  student: model.ModelConfig,
  mesh: jax.sharding.Mesh,
  caches: Mapping[str, teacher_cache.Cache],
) -> tuple[distill.Teacher | None, PyTree]:
  """The teacher that `config` (section distill of configs/base.py) names, and its parameters.

  They are in the student's compute dtype, on the mesh: all of them if it runs beside the student,
  the output matrix for stored hidden states, nothing for samples.

  Raises ValueError if teacher, student and caches do not fit each other.
  """
  if not config.teacher:
    return None, None
  given = {f.name: config[f.name] for f in dataclasses.fields(distill.Teacher) if f.name in config}
  if config.cache != 'none':
    found = json.loads(json.dumps(load.weights_fingerprint(config.teacher)))
    for name, cache in caches.items():
      wanted = {'cache': config.cache, 'teacher': found}
      if config.cache != 'hidden':
        wanted['temperature'] = config.temperature
      for what, value in wanted.items():
        if cache.manifest[what] != value:
          raise ValueError(
            f'the teacher cache of {name!r} has another {what} than distill.{what}: '
            f'{cache.manifest[what]!r}, not {value!r}; write it again')
    if config.cache != 'hidden':
      return distill.Teacher(None, student, **given), None
  teacher, params, _ = load.load_weights(config.teacher)
  teacher, params = model.without_mtp(teacher, params)
  teacher = dataclasses.replace(
    teacher, dtype=student.dtype, attention=student.attention, remat='none',
    max_segments=student.max_segments)
  made = distill.Teacher(teacher, student, **given)
  params = jax.tree.map(lambda x: x.astype(teacher.dtype), params)
  params = jax.device_put(params, sharding.shardings(params, mesh))
  if config.cache == 'hidden':
    params = {'unembed_DV': jax.jit(model.unembedding, static_argnums=0)(teacher, params)}
  return made, params


def first_params(
  init_from: str, config: model.ModelConfig, key: jax.Array, expected: PyTree,
  scales: Mapping[str, mup.Multipliers],
) -> PyTree:
  """Fresh parameters, or those of another model of the same shape, placed on the mesh that is set.

  What gives parameters no shape may differ: rotary base, context length, which layers rotate.
  """
  if not init_from:
    return mup.initialise(model.init(config, key), scales)
  params = load.load_weights(init_from)[1]
  shapes, wanted = (
    {jax.tree_util.keystr(k): x.shape for k, x in jax.tree_util.tree_leaves_with_path(tree)}
    for tree in (params, expected)
  )
  for name in sorted(shapes.keys() | wanted.keys()):
    if shapes.get(name) != wanted.get(name):
      raise ValueError(
        f'train.init_from={init_from}: its parameter {name} has the shape {shapes.get(name)}, '
        f'but the config means {wanted.get(name)}: set --config.model.shape and tokenizer to fit'
      )
  return jax.device_put(params, jax.tree.map(lambda x: x.sharding, expected))

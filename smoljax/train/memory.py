"""Bytes a model needs per device for training and for inference, before anything runs.

Parameters, gradients, optimizer state and caches are counted from their shapes and shardings. What
the backward pass keeps is not guessed by formula but read off the traced program (`saved`), so it
follows every switch of the model and every remat policy. On a policy of names it is, in the compute
dtype (c bytes) and per token and layer,

  full      c D                      the layer's input
  + qkv     c (N + 2K) H             + ctx   c N H + 4 N        (output and fp32 log-sum-exp)
  + mid     c D                      + gu    c 2F               (c F without a gate)

tests/smoljax/train/test_memory.py holds the sum to XLA's own account (`memory_analysis` on CPU, in
fp32: within 12 %). Collectives in flight and a GPU allocator's fragmentation come on top.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from smoljax import model, sharding
from smoljax.inference import cache
from smoljax.model.attention import xla

Bytes = dict[str, int]  # what for → bytes on one device


def training(
  config: model.ModelConfig,
  *,
  rows: int,
  seq_len: int,
  chunk: int = 512,
  mesh: Mapping[str, int] | None = None,
  opt_state: Any = None,
) -> Bytes:
  """Bytes on one device at the peak of a training step, which lies in the backward pass.

  'working set' is the larger of two moments: the logits of a chunk (fp32, their gradient, its
  rounded copy), and the backward pass of one layer (what remat made it compute again, and the
  gradients within the MLP and of the residual stream; with `attention='xla'` a chunk's logits).

  Args:
    config: its `remat` says what is saved.
    rows, seq_len: of the global micro-batch (with accumulation: of one of its parts).
    chunk: places whose logits are formed at a time (`objectives.over_places`).
    mesh: sizes of the axes of smoljax.sharding; missing ones are 1. None is one device.
    opt_state: abstract optimizer state, as `jax.eval_shape(optimizer.init, params)` gives it;
      None means AdamW's two fp32 moments.
  Raises:
    ValueError: rows or a dim of a parameter does not divide over the mesh.
  """
  sizes = _sizes(mesh)
  _check_rows(rows, sizes)
  params = _tree_bytes(model.abstract_params(config), sizes)
  itemsize = jnp.dtype(config.dtype).itemsize
  local_rows = rows // _num_shards(sizes, 'batch')
  vocab = config.vocab_size // _num_shards(sizes, 'vocab')
  logits = local_rows * min(chunk, seq_len) * vocab * (4 + 4 + itemsize)
  width = 2 * config.embed_dim + 3 * config.mlp_dim // _num_shards(sizes, 'mlp')
  layer = local_rows * seq_len // _num_shards(sizes, 'length') * width * itemsize
  if config.remat != 'none':
    one = dataclasses.replace(
      config, remat='none', num_layers=1, rope_layers=config.rope_layers[:1],
      window_layers=config.window_layers[:1],
      sliding_window=config.sliding_window if any(config.window_layers[:1]) else 0)
    layer += saved(one, rows, seq_len, sizes)
  if config.attention == 'xla':  # logits, weights and their gradients, fp32; kernels keep none
    queries = min(-(-seq_len // xla.CHUNKS), xla.MAX_CHUNK)
    heads = config.num_heads // _num_shards(sizes, 'heads')
    layer += 4 * 4 * local_rows * heads * queries * seq_len
  return {
    'parameters': params,
    'gradients': params,
    'optimizer': 2 * params if opt_state is None else _tree_bytes(opt_state, sizes),
    'weights in use': itemsize * _gathered(config, sizes),
    'saved activations': saved(config, rows, seq_len, sizes),
    'working set': max(logits, layer),
  }


def choose_mesh(
  config: model.ModelConfig,
  sizes: Mapping[str, int],
  *,
  devices: int,
  rows: int,
  seq_len: int,
  chunk: int = 512,
  memory: int | None = None,
  island: int | None = None,
) -> dict[str, int]:
  """Sizes of the mesh's axes, those that are -1 chosen by what the model and its batch need.

  As few devices as the batch allows work on one row; then long rows are split (`context`) before
  matrices are (`tensor`). The rest share the parameters (`fsdp`) as far as fast links reach, and
  repeat them (`data`) beyond. Of meshes in that order the first is taken on which a step fits, by
  `training`; if none does, the one that needs least.

  Args:
    rows, seq_len: of the global micro-batch.
    memory: bytes of a device; None if unknown, and then everything fits.
    island: neighbouring devices that fast links join; None = all.
  Raises:
    ValueError: no mesh of so many devices has these sizes and divides batch and model.
  """
  island = min(island or devices, devices)
  parts = [n for n in range(1, devices + 1) if devices % n == 0]
  params, found = model.abstract_params(config), []
  for data, fsdp, tensor in itertools.product(parts, parts, parts):
    context, rest = divmod(devices, data * fsdp * tensor)
    mesh = dict(zip(sharding.AXES, (data, fsdp, tensor, context), strict=True))
    if rest or any(sizes[axis] not in (-1, n) for axis, n in mesh.items()):
      continue
    if rows % (data * fsdp) or tensor > island or (context > 1 and seq_len % (2 * context)):
      continue
    try:
      _tree_bytes(params, mesh)
    except ValueError:
      continue
    copy = devices // data  # that many hold one of all parameters
    split = tensor * context, tensor if seq_len >= _LONG else context
    found.append(((*split, copy > island, copy if copy > island else -copy), mesh))
  if not found:
    given = ', '.join(f'mesh.{axis}={n}' for axis, n in sizes.items() if n != -1)
    raise ValueError(
      f'no mesh of {devices} devices {f"with {given} " * bool(given)}divides a micro-batch of '
      f'{rows} rows of {seq_len} tokens and the model: change train.batch_tokens or the mesh')
  found = [mesh for _, mesh in sorted(found, key=lambda x: x[0])]
  if not memory or len(found) == 1:
    return found[0]
  needs: list[tuple[int, dict[str, int]]] = []
  for mesh in found:
    same = [m for _, m in needs if all(m[a] == mesh[a] for a in ('tensor', 'context'))]
    if any(m['data'] <= mesh['data'] for m in same):
      continue  # more copies need no less
    need = training(config, rows=rows, seq_len=seq_len, chunk=chunk, mesh=mesh)
    needs.append((sum(need.values()), mesh))
    if needs[-1][0] <= memory:
      return mesh
  return min(needs, key=lambda x: x[0])[1]


_LONG = 16384  # tokens of a row from which splitting it pays sooner than splitting matrices


def inference(config: model.ModelConfig, *, rows: int, seq_len: int) -> Bytes:
  """Bytes on the one device that smoljax.decode generates on, with `seq_len` places a row.

  Parameters are in the compute dtype. 'working set' is the attention logits that prefill holds at
  once, within its bound, and the logits of one step.
  """
  scores = 4 * rows * config.num_heads * seq_len**2
  return {
    'parameters': jnp.dtype(config.dtype).itemsize * config.num_params(),
    'KV cache': rows * kv_cache_per_row(config, seq_len),
    'working set': min(cache.PREFILL_BYTES, scores) + 4 * rows * config.vocab_size,
  }


def kv_cache_per_row(config: model.ModelConfig, seq_len: int) -> int:
  """Bytes of keys and values of one row: a windowed layer needs no more places than its window."""
  places = sum(min(window or seq_len, seq_len) for window in config.windows)
  return 2 * config.num_kv_heads * config.head_dim * jnp.dtype(config.dtype).itemsize * places


def saved(
  config: model.ModelConfig, rows: int, seq_len: int, mesh: Mapping[str, int] | None = None
) -> int:
  """Bytes on one device that the forward pass keeps for the backward pass, parameters aside."""
  return _saved(config, rows, seq_len, tuple(_sizes(mesh).items()))


@functools.lru_cache(maxsize=256)
def _saved(config, rows, seq_len, sizes):
  # Whatever the device, 'xla' keeps what the other implementations do.
  config = dataclasses.replace(
    config, attention='xla', max_seq_len=max(config.max_seq_len, seq_len))
  mesh = AbstractMesh(
    tuple(n for _, n in sizes), tuple(axis for axis, _ in sizes),
    axis_types=(AxisType.Explicit,) * len(sizes))

  def residuals(params, tokens_BT, segments_BT):
    forward = lambda p: model.hidden(config, p, tokens_BT, segment_ids_BT=segments_BT)[0]
    return jax.vjp(forward, params)[1]

  def trace(params, *places):
    jaxpr = jax.make_jaxpr(residuals)(params, *places).jaxpr
    given = {id(v) for v in jaxpr.invars}
    kept = {id(v): v.aval for v in jaxpr.outvars if not hasattr(v, 'val')}  # not a literal
    return sum(_aval_bytes(x) for i, x in kept.items() if i not in given)

  params = model.abstract_params(config)
  if math.prod(n for _, n in sizes) == 1:
    return trace(params, *2 * [jax.ShapeDtypeStruct((rows, seq_len), jnp.int32)])
  with jax.sharding.use_abstract_mesh(mesh):
    placed = NamedSharding(mesh, sharding.spec('batch', 'length'))
    places = jax.ShapeDtypeStruct((rows, seq_len), jnp.int32, sharding=placed)
    return trace(sharding.abstract(params, mesh), places, places)


def _aval_bytes(x) -> int:
  shape = x.shape if x.sharding.mesh.empty else x.sharding.shard_shape(x.shape)
  return math.prod(shape) * x.dtype.itemsize


def _tree_bytes(tree, sizes) -> int:
  """Bytes on one device of a tree of (abstract) parameters or of what mirrors them."""
  total = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    num_shards = 1
    for dim, axes in zip(leaf.shape, sharding.param_spec(path, leaf.ndim), strict=False):
      n = math.prod(sizes[a] for a in ((axes,) if isinstance(axes, str) else axes or ()))
      if dim % n:
        raise ValueError(f'{jax.tree_util.keystr(path)}: a dim of {dim} does not divide over {n} '
                         f'devices (mesh axis {axes}): change the mesh')
      num_shards *= n
    total += math.prod(leaf.shape) * leaf.dtype.itemsize // num_shards
  return total


def _gathered(config, sizes) -> int:
  """Numbers of the weights as computed with: one layer's, and the (un)embedding."""
  params = model.abstract_params(config)
  whole = {**sizes, 'fsdp': 1}
  layer = _tree_bytes(params['blocks'], whole) // (4 * config.num_layers)
  return layer + config.embed_dim * config.vocab_size // _num_shards(sizes, 'vocab')


def _sizes(mesh) -> dict[str, int]:
  unknown = set(mesh or {}) - set(sharding.AXES)
  if unknown:
    raise ValueError(f'mesh axis {min(unknown)!r}: one of {", ".join(sharding.AXES)}')
  return {axis: (mesh or {}).get(axis, 1) for axis in sharding.AXES}


def _num_shards(sizes, name) -> int:
  axes = sharding.RULES[name]
  return math.prod(sizes[a] for a in ((axes,) if isinstance(axes, str) else axes or ()))


def _check_rows(rows, sizes) -> None:
  num_shards = _num_shards(sizes, 'batch')
  if rows % num_shards:
    raise ValueError(f'{rows} rows do not divide over the mesh (data x fsdp = {num_shards}): give '
                     f'a multiple of {num_shards}')

"""Context parallelism: rows that the mesh splits, and what each device computes of them.

Each device gathers the keys and values of its rows; their gradients are summed and scattered back.
Rows are cut in a zigzag, into pairs of an early and a late piece (`sharding.zigzag`), so that each
device has the same work: a kernel runs on a device's own two pieces, and once for each on the keys
before it."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from smoljax import sharding
from smoljax.model.attention.masks import Places, Static, positions_from_segments

QUERY = ('batch', 'length', 'heads', 'head_dim')
KEY = ('batch', 'length', 'kv_heads', 'head_dim')
STATISTIC = ('batch', 'length', 'heads')


class RemoteSpan(NamedTuple):
  """What a piece of a row needs of earlier pieces: its first `queries_B` places belong to the
  document that holds the keys from `start_B` to `stop_B` of the whole row; none, if it begins one.
  """

  queries_B: jax.Array
  start_B: jax.Array
  stop_B: jax.Array


def remote_spans(
  q_BTNH: jax.Array, places: Places
) -> tuple[Places, list[tuple[slice, RemoteSpan]]]:
  """Zigzag rows → (places within this device's own two pieces, which are documents apart;
  and of each piece its slice and `RemoteSpan`)."""
  parts, axis = sharding.num_parts('length'), sharding.RULES['length']
  B, T = q_BTNH.shape[:2]
  segments_BT = places.q_segments_BT
  if segments_BT is None:
    segments_BT = jnp.zeros((1, T), jnp.int32)
  segments_BT = jnp.broadcast_to(segments_BT, (B, T))
  half = T // 2
  own_BT = 2 * segments_BT + (jnp.arange(T) >= half)
  own = Places(places.q_positions_BT, places.kv_positions_BS, own_BT, own_BT)
  whole_BS = whole_row(segments_BT)
  starts_BS = jnp.arange(T * parts) - positions_from_segments(whole_BS)  # of each one's document
  spans = []
  first_piece = jax.lax.axis_index(axis)
  for i, piece in enumerate((first_piece, 2 * parts - 1 - first_piece)):
    stop = piece * half
    piece_BT = jax.lax.dynamic_slice_in_dim(starts_BS, stop, half, axis=1)
    start_B = piece_BT[:, 0]
    queries_B = jnp.sum(piece_BT == start_B[:, None], axis=1) * (start_B < stop)
    span = RemoteSpan(*(x.astype(jnp.int32) for x in (queries_B, start_B, jnp.full(B, stop))))
    spans.append((slice(i * half, (i + 1) * half), span))
  return own, spans


def gather(
  static: Static, k_BSKH: jax.Array, v_BSKH: jax.Array | None, places: Places
) -> tuple[Static, Any, Any, Places]:
  """Keys and values of the whole row, still in the zigzag's order, where the mesh splits it."""
  if sharding.num_parts('length') == 1:
    return static, k_BSKH, v_BSKH, places
  whole = lambda x: x if x is None else jax.lax.all_gather(
    x, sharding.RULES['length'], axis=1, tiled=True)
  places = places._replace(
    kv_positions_BS=whole(places.kv_positions_BS), kv_segments_BS=whole(places.kv_segments_BS))
  return static._replace(in_order=False), whole(k_BSKH), whole(v_BSKH), places


def whole_row(x: jax.Array) -> jax.Array:
  """All pieces of a split row, in reading order."""
  x = jax.lax.all_gather(x, sharding.RULES['length'], axis=1, tiled=True)
  return sharding.zigzag_parts(x, sharding.num_parts('length'), back=True)


def scatter(dx_BSKH: jax.Array) -> jax.Array:
  """Gradients of gathered keys: the devices' sums, each one its part."""
  if sharding.num_parts('length') == 1:
    return dx_BSKH
  dx = jax.lax.psum_scatter(dx_BSKH.astype(jnp.float32), sharding.RULES['length'],
                            scatter_dimension=1, tiled=True)
  return dx.astype(dx_BSKH.dtype)


def branch(static: Static, places: Places, function: Callable, *args: Any) -> Any:
  """function(static, window, *args), the window static as the kernels need it."""
  if len(static.windows) == 1 or static.implementation == 'xla':
    return function(static, static.windows[0] if static.windows else None, *args)
  no_window = jnp.iinfo(jnp.int32).max
  sizes = jnp.array([w or no_window for w in static.windows])
  window = jnp.where(jnp.any(sizes == places.window), places.window, no_window)
  branches = [functools.partial(function, static, w) for w in static.windows]
  return jax.lax.switch(jnp.argmax(sizes == window), branches, *args)


def per_device(
  function: Callable, out_names: Sequence[Sequence[str]], static: Static, *args: Any
) -> Any:
  """function(static, *args) on each device's part of the arguments; without a mesh, on all."""
  function = functools.partial(function, static)
  if jax.sharding.get_abstract_mesh().empty:
    return function(*args)
  out_specs = tuple(sharding.spec(*names) for names in out_names)
  return jax.shard_map(function, out_specs=out_specs, check_vma=False)(*args)


def place_names(x: jax.Array) -> tuple[str | None, str]:
  """Logical names of the dims of positions or segments, of which there may be one row for all."""
  return 'batch' if x.shape[0] > 1 else None, 'length'


def needs_order(static: Static) -> str | None:
  """Why a kernel that skips what comes after a query's place cannot do this; None if it can."""
  if not static.in_order:
    return 'needs in_order (training and prefill on whole rows)'
  if not static.windows:
    return 'needs all `windows` that a traced window may be'
  if sharding.num_parts('length') > 1 and not static.zigzag:
    return 'needs rows as sharding.zigzag has them where the mesh splits the sequence'
  if sharding.num_parts('length') > 1 and static.windows != (None,):
    return 'has no sliding window where the mesh splits the sequence'
  return None


def pieces() -> int:
  """Into how many pieces the zigzag cuts a row; 1 where no mesh splits the sequence."""
  parts = sharding.num_parts('length')
  return 2 * parts if parts > 1 else 1


def platform() -> str:
  """Of the mesh's devices, which may not be here (experiments.run --estimate), or of jax's own."""
  mesh = jax.sharding.get_abstract_mesh()
  device = None if mesh.empty else mesh.abstract_device
  return device.platform if device else jax.default_backend()

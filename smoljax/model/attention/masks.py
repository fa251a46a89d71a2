"""Who sees whom: positions and segment ids, and the masks that follow from them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

MASKED = -1e30  # not -inf: a row without any visible key must not become NaN


class Places(NamedTuple):
  """Where queries and keys stand; all int32. Segments are both given or both None."""

  q_positions_BT: jax.Array
  kv_positions_BS: jax.Array
  q_segments_BT: jax.Array | None = None
  kv_segments_BS: jax.Array | None = None
  window: jax.Array | int | None = None


class Static(NamedTuple):
  """What is static about a call."""

  implementation: str
  windows: tuple[int | None, ...]  # that `window` may be, None = no window; kernels need them
  softcap: float
  in_order: bool
  zigzag: bool
  max_segments: int = 32


def visible(places: Places) -> jax.Array:
  """mask_BTS, True where query t sees key s: the one place where masks are made."""
  q_BT1, kv_B1S = places.q_positions_BT[:, :, None], places.kv_positions_BS[:, None, :]
  mask_BTS = kv_B1S <= q_BT1
  if places.q_segments_BT is not None:
    assert places.kv_segments_BS is not None, 'both or neither'
    mask_BTS &= places.q_segments_BT[:, :, None] == places.kv_segments_BS[:, None, :]
  if places.window is not None:
    mask_BTS &= q_BT1 - kv_B1S < places.window
  return mask_BTS


def segments_from_positions(positions_BT: jax.Array) -> jax.Array:
  """Document ids counted from the places where the position is 0."""
  return jnp.cumsum(positions_BT == 0, axis=1, dtype=jnp.int32)


def positions_from_segments(segment_ids_BT: jax.Array) -> jax.Array:
  """Positions that restart wherever the segment id changes."""
  index_T = jnp.arange(segment_ids_BT.shape[1], dtype=jnp.int32)
  start_BT = jnp.pad(segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1], ((0, 0), (1, 0)))
  return index_T - jax.lax.cummax(jnp.where(start_BT, index_T, 0), axis=1)


def broadcast_segments(q_BTNH: jax.Array, segments_BT: jax.Array | None) -> jax.Array | None:
  """Document ids of one row for all, or of each: [B, T] with the queries' B; None stays None."""
  return None if segments_BT is None else jnp.broadcast_to(segments_BT, q_BTNH.shape[:2])

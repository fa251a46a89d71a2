"""Causal attention over packed documents, behind one function.

What may be seen is decided by positions and segment ids alone: key s is visible to query t when
both belong to the same segment (document) and s's position is not after t's (nor further back
than the sliding window). Positions restart at each document, so the same rule serves training on
packed rows and decoding against a cache whose slot s holds position s.

Shapes: B batch, T query time, S key time, N query heads, K kv heads, G = N/K, H head dim.
"""

import jax
import jax.numpy as jnp

from smoljax import sharding

MASKED = -1e30  # not -inf: a row without any visible key must not become NaN


def attention(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  *,
  q_positions_BT: jax.Array,
  kv_positions_BS: jax.Array,
  q_segments_BT: jax.Array | None = None,
  kv_segments_BS: jax.Array | None = None,
  window: jax.Array | int | None = None,
  max_logits: bool = False,
  implementation: str = 'auto',
) -> tuple[jax.Array, jax.Array | None]:
  """Grouped-query attention, scale H^-0.5, softmax in fp32.

  Args:
    q_BTNH, k_BSKH, v_BSKH: queries, keys, values of one dtype; N is a multiple of K.
    q_positions_BT, kv_positions_BS: int32 positions within the document; B may be 1.
    q_segments_BT, kv_segments_BS: int32 document ids; both or neither.
    window: a query sees this many positions, itself included (a traced int is allowed).
    max_logits: also return the largest visible scaled logit of each head, [N] fp32, exactly
      (MuonClip, arXiv:2507.20534).
    implementation: 'auto' or 'xla'.
  Returns:
    out_BTNH in q's dtype, and max_logits_N or None.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f'attention implementation {implementation!r}: one of {", ".join(IMPLEMENTATIONS)}'
    )
  # Where the mesh splits the sequence, every device needs all keys of its rows.
  k_BSKH = sharding.constrain(k_BSKH, 'batch', None, 'kv_heads', 'head_dim')
  v_BSKH = sharding.constrain(v_BSKH, 'batch', None, 'kv_heads', 'head_dim')
  mask_BTS = visible(q_positions_BT, kv_positions_BS, q_segments_BT, kv_segments_BS, window)
  return IMPLEMENTATIONS[implementation](q_BTNH, k_BSKH, v_BSKH, mask_BTS, max_logits)


def visible(
  q_positions_BT: jax.Array,
  kv_positions_BS: jax.Array,
  q_segments_BT: jax.Array | None = None,
  kv_segments_BS: jax.Array | None = None,
  window: jax.Array | int | None = None,
) -> jax.Array:
  """mask_BTS, True where query t sees key s: the one place where masks are made."""
  q_BT1, kv_B1S = q_positions_BT[:, :, None], kv_positions_BS[:, None, :]
  mask_BTS = kv_B1S <= q_BT1
  if q_segments_BT is not None:
    mask_BTS &= q_segments_BT[:, :, None] == kv_segments_BS[:, None, :]
  if window is not None:
    mask_BTS &= q_BT1 - kv_B1S < window
  return mask_BTS


def segments_from_positions(positions_BT: jax.Array) -> jax.Array:
  """Document ids counted from the places where the position is 0."""
  return jnp.cumsum(positions_BT == 0, axis=1, dtype=jnp.int32)


def positions_from_segments(segment_ids_BT: jax.Array) -> jax.Array:
  """Positions that restart wherever the segment id changes."""
  index_T = jnp.arange(segment_ids_BT.shape[1], dtype=jnp.int32)
  start_BT = jnp.pad(segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1], ((0, 0), (1, 0)))
  return index_T - jax.lax.cummax(jnp.where(start_BT, index_T, 0), axis=1)


def _xla(q_BTNH, k_BSKH, v_BSKH, mask_BTS, max_logits):
  """Plain einsums, [B, K, G, T, S] logits in fp32: runs anywhere, memory grows with T * S."""
  B, T, N, H = q_BTNH.shape
  K = k_BSKH.shape[2]
  # Named, because the heads' axis may not fall on G: with one kv head jax would put it there.
  q_BTKGH = jnp.reshape(
    q_BTNH, (B, T, K, N // K, H),
    out_sharding=sharding.out('batch', 'length', 'kv_heads', None, 'head_dim'),
  )
  logits_BKGTS = jnp.einsum(
    'BTKGH,BSKH->BKGTS', q_BTKGH, k_BSKH, preferred_element_type=jnp.float32
  )
  logits_BKGTS = jnp.where(mask_BTS[:, None, None], logits_BKGTS * H**-0.5, MASKED)
  probs_BKGTS = jax.nn.softmax(logits_BKGTS, axis=-1).astype(v_BSKH.dtype)
  out_BTKGH = jnp.einsum('BKGTS,BSKH->BTKGH', probs_BKGTS, v_BSKH)
  max_N = None
  if max_logits:
    max_N = jax.lax.stop_gradient(logits_BKGTS.max(axis=(0, 3, 4)).reshape(N))
  return out_BTKGH.reshape(B, T, N, H), max_N


IMPLEMENTATIONS = {'auto': _xla, 'xla': _xla}

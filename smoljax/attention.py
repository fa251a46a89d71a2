"""Causal attention over packed documents, behind one function.

What may be seen is decided by positions and segment ids alone: key s is visible to query t when
both belong to the same segment (document) and s's position is not after t's (nor further back
than the sliding window). Positions restart at each document, so the same rule serves training on
packed rows and decoding against a cache whose slot s holds position s.

Shapes: B batch, T query time, S key time, N query heads, K kv heads, G = N/K, H head dim;
X = T * G, the queries that share a kv head.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from smoljax import sharding

MASKED = -1e30  # not -inf: a row without any visible key must not become NaN
MIN_CHUNK, MAX_CHUNKS = 64, 8  # queries handled at a time: at least, and in at most so many parts


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
  in_order: bool = False,
  implementation: str = 'auto',
) -> tuple[jax.Array, jax.Array]:
  """Grouped-query attention, scale H^-0.5, softmax in fp32.

  Args:
    q_BTNH, k_BSKH, v_BSKH: queries, keys, values of one dtype; N is a multiple of K.
    q_positions_BT, kv_positions_BS: int32 positions within the document; B may be 1.
    q_segments_BT, kv_segments_BS: int32 document ids; both or neither.
    window: a query sees this many positions, itself included (a traced int is allowed).
    in_order: queries and keys are the same tokens of rows whose documents lie one after the
      other, so no key after a query's own place is needed; those are skipped, not just masked.
    implementation: 'auto' or 'xla'.
  Returns:
    out_BTNH in q's dtype, and max_logits_N: the largest visible scaled logit of each head, fp32,
    exact and without gradient (for MuonClip, arXiv:2507.20534).
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f'attention implementation {implementation!r}: one of {", ".join(IMPLEMENTATIONS)}'
    )
  # Where the mesh splits the sequence, every device needs all keys of its rows.
  k_BSKH = sharding.constrain(k_BSKH, 'batch', None, 'kv_heads', 'head_dim')
  v_BSKH = sharding.constrain(v_BSKH, 'batch', None, 'kv_heads', 'head_dim')
  places = (q_positions_BT, kv_positions_BS, q_segments_BT, kv_segments_BS, window)
  return IMPLEMENTATIONS[implementation](q_BTNH, k_BSKH, v_BSKH, places, in_order)


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


# ---------------------------------------------------------------------------------------- XLA
# Plain matrix products that run anywhere. As in FlashAttention (arXiv:2205.14135) the backward
# pass recomputes the probabilities from the log-sum-exp instead of keeping [B, N, T, S] of every
# layer, and queries are taken a chunk at a time, each against the keys up to its end only. The
# queries of a kv head are merged into one matrix dim: XLA's CPU products are slow otherwise.


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _xla(q_BTNH, k_BSKH, v_BSKH, places, in_order):
  return _xla_forward(q_BTNH, k_BSKH, v_BSKH, places, in_order)[0]


def _xla_forward(q_BTNH, k_BSKH, v_BSKH, places, in_order):
  K = k_BSKH.shape[2]
  k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
  parts = []
  for t, s, chunk_places in _chunks(q_BTNH, k_BSKH, places, in_order):
    s_BKXS = _logits(_merge(q_BTNH[:, t], K), k_BKSH[:, :, s], chunk_places)
    max_BKX = s_BKXS.max(axis=-1)
    e_BKXS = jnp.exp(s_BKXS - max_BKX[..., None])
    sum_BKX = e_BKXS.sum(axis=-1)
    o_BKXH = _dot('BKXS,BKSH->BKXH', e_BKXS.astype(v_BSKH.dtype), v_BKSH[:, :, s])
    o_BKXH = (o_BKXH / sum_BKX[..., None]).astype(q_BTNH.dtype)
    parts.append((_split(o_BKXH, q_BTNH[:, t].shape), max_BKX + jnp.log(sum_BKX), max_BKX))
  out, lse, maxima = zip(*parts, strict=True)
  # Named, so that a policy that saves `ctx` need not run the forward pass again.
  out_BTNH = checkpoint_name(_join(out, 1), 'ctx')
  lse = [checkpoint_name(x, 'ctx') for x in lse]
  # [B, K, X] with X = (T, G) → the largest per head, heads ordered (K, G).
  B, _, N, _ = q_BTNH.shape
  max_BKTG = _join(maxima, 2).reshape(B, K, -1, N // K)
  max_N = jnp.reshape(max_BKTG.max(axis=(0, 2)), (N,), out_sharding=sharding.out('heads'))
  return (out_BTNH, max_N), (q_BTNH, k_BSKH, v_BSKH, places, out_BTNH, lse)


def _xla_backward(in_order, residuals, gradients):
  q_BTNH, k_BSKH, v_BSKH, places, out_BTNH, lse = residuals
  dout_BTNH, _ = gradients
  K, S, H = k_BSKH.shape[2], k_BSKH.shape[1], k_BSKH.shape[3]
  k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
  gathered = sharding.out('batch', 'kv_heads', None, 'head_dim')  # summed over a split sequence
  dq, dk, dv = [], [], []
  for (t, s, chunk_places), lse_BKX in zip(
    _chunks(q_BTNH, k_BSKH, places, in_order), lse, strict=True
  ):
    q_BKXH, do_BKXH, o_BKXH = (_merge(x[:, t], K) for x in (q_BTNH, dout_BTNH, out_BTNH))
    p_BKXS = jnp.exp(_logits(q_BKXH, k_BKSH[:, :, s], chunk_places) - lse_BKX[..., None])
    delta_BKX = jnp.sum(do_BKXH.astype(jnp.float32) * o_BKXH.astype(jnp.float32), axis=-1)
    dp_BKXS = _dot('BKXH,BKSH->BKXS', do_BKXH, v_BKSH[:, :, s])
    ds_BKXS = (p_BKXS * (dp_BKXS - delta_BKX[..., None]) * H**-0.5).astype(q_BTNH.dtype)
    dq_BKXH = _dot('BKXS,BKSH->BKXH', ds_BKXS, k_BKSH[:, :, s])
    dq.append(_split(dq_BKXH, q_BTNH[:, t].shape).astype(q_BTNH.dtype))
    after = ((0, 0), (0, 0), (0, S - s.stop), (0, 0))  # keys that this chunk did not need
    dk.append(jnp.pad(_dot('BKXS,BKXH->BKSH', ds_BKXS, q_BKXH, gathered), after))
    dv.append(
      jnp.pad(_dot('BKXS,BKXH->BKSH', p_BKXS.astype(v_BSKH.dtype), do_BKXH, gathered), after))
  dk_BSKH = sum(dk[1:], dk[0]).swapaxes(1, 2).astype(k_BSKH.dtype)
  dv_BSKH = sum(dv[1:], dv[0]).swapaxes(1, 2).astype(v_BSKH.dtype)
  return _join(dq, 1), dk_BSKH, dv_BSKH, None


_xla.defvjp(_xla_forward, _xla_backward)


def _chunks(q_BTNH, k_BSKH, places, in_order):
  """(queries, keys, places) of each chunk: two slices, and the arguments of `visible`."""
  T, S = q_BTNH.shape[1], k_BSKH.shape[1]
  split = sharding.num_parts('length') > 1  # by the mesh already: no further
  size = T if split else -(-T // max(1, min(T // MIN_CHUNK, MAX_CHUNKS)))
  q_positions, kv_positions, q_segments, kv_segments, window = places
  for start in range(0, T, size):
    t = slice(start, min(start + size, T))
    s = slice(0, t.stop if in_order and not split else S)
    segments = (None, None) if q_segments is None else (q_segments[:, t], kv_segments[:, s])
    yield t, s, (q_positions[:, t], kv_positions[:, s], *segments, window)


def _logits(q_BKXH, k_BKSH, places):
  """Scaled logits in fp32, hidden ones at MASKED."""
  logits_BKXS = _dot('BKXH,BKSH->BKXS', q_BKXH, k_BKSH) * q_BKXH.shape[-1] ** -0.5
  mask_BTS = visible(*places)
  B, K, X, S = logits_BKXS.shape
  T = mask_BTS.shape[1]
  logits_BKTGS = logits_BKXS.reshape(B, K, T, X // T, S)
  return jnp.where(mask_BTS[:, None, :, None, :], logits_BKTGS, MASKED).reshape(B, K, X, S)


def _dot(equation, a, b, out_sharding=None):
  return jnp.einsum(
    equation, a, b, preferred_element_type=jnp.float32, out_sharding=out_sharding)


def _merge(x_BTNH, K):
  """[B, T, N, H] → [B, K, X, H]."""
  B, T, N, H = x_BTNH.shape
  x_BTKGH = jnp.reshape(x_BTNH, (B, T, K, N // K, H),
                        out_sharding=sharding.out('batch', 'length', 'kv_heads', None, 'head_dim'))
  return x_BTKGH.swapaxes(1, 2).reshape(B, K, T * (N // K), H)


def _split(x_BKXH, shape):
  """[B, K, X, H] → [B, T, N, H], the given shape."""
  B, T, N, H = shape
  K = x_BKXH.shape[1]
  x_BTKGH = x_BKXH.reshape(B, K, T, N // K, H).swapaxes(1, 2)
  return jnp.reshape(
    x_BTKGH, shape, out_sharding=sharding.out('batch', 'length', 'heads', 'head_dim'))


def _join(parts, dim):
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=dim)


IMPLEMENTATIONS = {'auto': _xla, 'xla': _xla}

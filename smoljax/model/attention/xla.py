"""Attention as plain matrix products, a chunk of queries at a time: anywhere, any mask."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from smoljax.model.attention import context
from smoljax.model.attention.masks import MASKED, Places, Static, visible

# Plain matrix products that run anywhere. As in FlashAttention (arXiv:2205.14135) the backward
# pass recomputes the probabilities from the log-sum-exp instead of keeping [B, N, T, S] of every
# layer, and queries are taken a chunk at a time, each against the keys up to its end only. The
# queries of a kv head are merged into one matrix dim: XLA's CPU products are slow otherwise.

MIN_CHUNK, MAX_CHUNK, CHUNKS = 64, 2048, 8  # queries at a time: an 8th of the row, within bounds


def forward(
  static: Static, _: int | None, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array,
  places: Places,
) -> tuple[jax.Array, jax.Array]:
  """(out_BTNH, lse_BTN) of a device's own rows; the window is that of the places."""
  K = k_BSKH.shape[2]
  k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
  outs, lses = [], []
  for t, s, chunk_places in _chunks(static, q_BTNH, k_BSKH, places):
    s_BKXS = _logits(static, _merge(q_BTNH[:, t], K), k_BKSH[:, :, s], chunk_places)[0]
    max_BKX = s_BKXS.max(axis=-1)
    e_BKXS = jnp.exp(s_BKXS - max_BKX[..., None])
    sum_BKX = e_BKXS.sum(axis=-1)
    o_BKXH = _dot('BKXS,BKSH->BKXH', e_BKXS.astype(v_BSKH.dtype), v_BKSH[:, :, s])
    o_BKXH = (o_BKXH / sum_BKX[..., None]).astype(q_BTNH.dtype)
    outs.append(_split(o_BKXH, q_BTNH[:, t].shape))
    lses.append(_split(max_BKX + jnp.log(sum_BKX), q_BTNH[:, t].shape[:3]))
  return join(outs), join(lses)


def backward(
  static: Static, _: int | None, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array,
  out_BTNH: jax.Array, lse_BTN: jax.Array, dout_BTNH: jax.Array, places: Places,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(dq_BTNH, dk_BSKH, dv_BSKH) from what `forward` gave and the output's gradient."""
  K, S, H = k_BSKH.shape[2], k_BSKH.shape[1], k_BSKH.shape[3]
  k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
  dq, dk, dv = [], [], []
  for t, s, chunk_places in _chunks(static, q_BTNH, k_BSKH, places):
    q_BKXH, do_BKXH, o_BKXH, lse_BKX = (
      _merge(x[:, t], K) for x in (q_BTNH, dout_BTNH, out_BTNH, lse_BTN))
    s_BKXS, slope_BKXS = _logits(static, q_BKXH, k_BKSH[:, :, s], chunk_places)
    p_BKXS = jnp.exp(s_BKXS - lse_BKX[..., None])
    delta_BKX = jnp.sum(do_BKXH.astype(jnp.float32) * o_BKXH.astype(jnp.float32), axis=-1)
    dp_BKXS = _dot('BKXH,BKSH->BKXS', do_BKXH, v_BKSH[:, :, s])
    ds_BKXS = p_BKXS * (dp_BKXS - delta_BKX[..., None]) * slope_BKXS * H**-0.5
    ds_BKXS = ds_BKXS.astype(q_BTNH.dtype)
    dq_BKXH = _dot('BKXS,BKSH->BKXH', ds_BKXS, k_BKSH[:, :, s])
    dq.append(_split(dq_BKXH, q_BTNH[:, t].shape).astype(q_BTNH.dtype))
    after = ((0, 0), (0, 0), (0, S - s.stop), (0, 0))  # keys that this chunk did not need
    dk.append(jnp.pad(_dot('BKXS,BKXH->BKSH', ds_BKXS, q_BKXH), after))
    dv.append(jnp.pad(_dot('BKXS,BKXH->BKSH', p_BKXS.astype(v_BSKH.dtype), do_BKXH), after))
  dk_BSKH = sum(dk[1:], dk[0]).swapaxes(1, 2).astype(k_BSKH.dtype)
  dv_BSKH = sum(dv[1:], dv[0]).swapaxes(1, 2).astype(v_BSKH.dtype)
  return join(dq), dk_BSKH, dv_BSKH


def largest(
  static: Static, q_BTNH: jax.Array, k_BSKH: jax.Array, places: Places
) -> tuple[jax.Array]:
  """The largest visible logit of each query, [B, T, N]."""
  static, k_BSKH, _, places = context.gather(static, k_BSKH, None, places)
  K, k_BKSH = k_BSKH.shape[2], k_BSKH.swapaxes(1, 2)
  parts = []
  for t, s, chunk_places in _chunks(static, q_BTNH, k_BSKH, places):
    s_BKXS, _ = _logits(static, _merge(q_BTNH[:, t], K), k_BKSH[:, :, s], chunk_places)
    parts.append(_split(s_BKXS.max(axis=-1), q_BTNH[:, t].shape[:3]))
  return (join(parts),)


def _chunks(static, q_BTNH, k_BSKH, places):
  """(queries, keys, places) of each chunk: two slices, and the arguments of `visible`."""
  T, S = q_BTNH.shape[1], k_BSKH.shape[1]
  size = min(-(-T // max(1, min(T // MIN_CHUNK, CHUNKS))), MAX_CHUNK)
  for start in range(0, T, size):
    t = slice(start, min(start + size, T))
    s = slice(0, t.stop if static.in_order else S)
    q_segments, kv_segments = places.q_segments_BT, places.kv_segments_BS
    if q_segments is not None:
      q_segments, kv_segments = q_segments[:, t], kv_segments[:, s]
    yield t, s, Places(places.q_positions_BT[:, t], places.kv_positions_BS[:, s],
                       q_segments, kv_segments, places.window)


def _logits(static, q_BKXH, k_BKSH, places):
  """Logits as they enter the softmax, fp32, hidden ones at MASKED; and the softcap's slope."""
  logits_BKXS = _dot('BKXH,BKSH->BKXS', q_BKXH, k_BKSH) * q_BKXH.shape[-1] ** -0.5
  slope_BKXS = 1.0
  if static.softcap:
    tanh_BKXS = jnp.tanh(logits_BKXS / static.softcap)
    logits_BKXS, slope_BKXS = static.softcap * tanh_BKXS, 1 - tanh_BKXS**2
  mask_BTS = visible(places)
  B, K, X, S = logits_BKXS.shape
  T = mask_BTS.shape[1]
  logits_BKTGS = logits_BKXS.reshape(B, K, T, X // T, S)
  masked_BKTGS = jnp.where(mask_BTS[:, None, :, None, :], logits_BKTGS, MASKED)
  return masked_BKTGS.reshape(B, K, X, S), slope_BKXS


def _dot(equation, a, b):
  return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _merge(x, K):
  """[B, T, N, …] → [B, K, X, …]."""
  B, T, N, *rest = x.shape
  return x.reshape(B, T, K, N // K, *rest).swapaxes(1, 2).reshape(B, K, T * (N // K), *rest)


def _split(x, shape):
  """[B, K, X, …] → [B, T, N, …], the given shape."""
  B, T, N, *rest = shape
  K = x.shape[1]
  return x.reshape(B, K, T, N // K, *rest).swapaxes(1, 2).reshape(shape)


def join(parts: Sequence[jax.Array]) -> jax.Array:
  """Chunks of a sequence (dim 1) as one."""
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)

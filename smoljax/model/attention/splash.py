"""Attention by JAX's splash kernel on TPUs: blocks outside the mask are skipped."""


import jax
import jax.numpy as jnp

from smoljax.model.attention import context, cudnn
from smoljax.model.attention.context import RemoteSpan
from smoljax.model.attention.masks import MASKED, Places, Static, broadcast_segments

# ------------------------------------------------------------------------------------- splash
# The TPU kernel that comes with jax. Its own gradient is not used, so that one rule names the
# residuals for every implementation; forward and backward kernels are called apart.

BLOCK = 1024  # queries and keys of a tile at most; fits the smallest VMEM (v5e) up to H = 128
interpret_splash = False  # set by tests: runs the kernels on any device, slowly


def refusal(
  static: Static, q_BTNH: jax.Array, k_BSKH: jax.Array, segmented: bool
) -> str | None:
  """Why these kernels cannot do this, in words that follow their name; None if they can."""
  if context.platform() != 'tpu' and not interpret_splash:
    return f'runs on TPUs, not on {context.platform()}'
  if q_BTNH.shape[1] % (128 * context.pieces()):
    return f'needs rows of a multiple of {128 * context.pieces()} tokens, not {q_BTNH.shape[1]}'
  return context.needs_order(static)


def forward(
  static: Static, window: int | None, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array,
  places: Places,
) -> tuple[jax.Array, jax.Array]:
  """(out_BTNH, lse_BTN) of a device's own rows; `window` None = the whole document."""
  segments = _splash_segments(q_BTNH, places)
  return _splash_run(static, window, True, q_BTNH, k_BSKH, v_BSKH, segments)


def forward_across(
  static: Static, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, span: RemoteSpan
) -> tuple[jax.Array, jax.Array]:
  """(out_BTNH, lse_BTN) of one piece on the earlier keys in its span; lse MASKED without any."""
  segments = _splash_span(q_BTNH, k_BSKH, span)
  out_BTNH, lse_BTN = _splash_run(static, None, False, q_BTNH, k_BSKH, v_BSKH, segments)
  inside_BT1 = cudnn.in_span(q_BTNH.shape[1], 0, span.queries_B)[..., None]
  return out_BTNH, jnp.where(inside_BT1, lse_BTN, MASKED)


def backward(
  static: Static, window: int | None, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array,
  out_BTNH: jax.Array, lse_BTN: jax.Array, dout_BTNH: jax.Array, places: Places,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(dq_BTNH, dk_BSKH, dv_BSKH) from what `forward` gave and the output's gradient."""
  segments = _splash_segments(q_BTNH, places)
  return _splash_gradients(
    static, window, True, q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH, segments)


def backward_across(
  static: Static, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, out_BTNH: jax.Array,
  lse_BTN: jax.Array, dout_BTNH: jax.Array, span: RemoteSpan,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(dq_BTNH, dk_BSKH, dv_BSKH) of the same; keys are those of the whole row."""
  segments = _splash_span(q_BTNH, k_BSKH, span)
  return _splash_gradients(
    static, None, False, q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH, segments)


def _splash_run(static, window, causal, q_BTNH, k_BSKH, v_BSKH, segments):
  kernel = _splash_kernel(static, window, causal, q_BTNH, k_BSKH)

  def row(q_NTH, k_KSH, v_KSH, segments):
    out_NTH, (lse_NT,) = kernel(q_NTH, k_KSH, v_KSH, segments)
    return out_NTH, lse_NT

  q_BNTH, k_BKSH, v_BKSH = (x.swapaxes(1, 2) for x in (scaled(q_BTNH), k_BSKH, v_BSKH))
  out_BNTH, lse_BNT = jax.vmap(row)(q_BNTH, k_BKSH, v_BKSH, segments)
  return out_BNTH.swapaxes(1, 2), lse_BNT.swapaxes(1, 2)


def _splash_gradients(
  static, window, causal, q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH, segments
):
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

  kernel = _splash_kernel(static, window, causal, q_BTNH, k_BSKH)
  options = kernel.kwargs

  def row(q_NTH, k_KSH, v_KSH, out_NTH, lse_NT, dout_NTH, segments):
    residuals = (q_NTH, k_KSH, v_KSH, segments, None, out_NTH, lse_NT,
                 kernel.dq_mask_info, kernel.dkv_mask_info)
    return splash._splash_attention_bwd(
      False, options['mask_value'], False, options['block_sizes'], None, options['mask_function'],
      options['attn_logits_soft_cap'], options['interpret'], residuals, dout_NTH,
    )[3:6]

  arrays = (scaled(q_BTNH), k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH)
  dq, dk, dv = jax.vmap(row)(*[x.swapaxes(1, 2) for x in arrays] + [segments])
  return scaled(dq.swapaxes(1, 2)), dk.swapaxes(1, 2), dv.swapaxes(1, 2)


def _splash_kernel(static, window, causal, q_BTNH, k_BSKH):
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  (_, T, N, _), S = q_BTNH.shape, k_BSKH.shape[1]
  if not causal:
    mask = masks.FullMask((T, S))
  elif window:
    mask = masks.LocalMask((T, S), (window - 1, 0), 0)
  else:
    mask = masks.CausalMask((T, S))
  q_block, kv_block = (
    next(b for b in range(min(n, BLOCK), 0, -128) if n % b == 0) for n in (T, S))
  return splash.make_splash_mha(
    masks.MultiHeadMask([mask] * N), head_shards=1, q_seq_shards=1, save_residuals=True,
    block_sizes=splash.BlockSizes(
      block_q=q_block, block_kv=kv_block, block_q_dkv=q_block, block_kv_dkv=kv_block,
      use_fused_bwd_kernel=True,
    ),
    attn_logits_soft_cap=static.softcap or None, interpret=interpret_splash,
  )


def _splash_span(q_BTNH, k_BSKH, span):
  """Segment 1 for what is in the span; queries and keys outside have different ones."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

  queries = cudnn.in_span(q_BTNH.shape[1], 0, span.queries_B)
  keys = cudnn.in_span(k_BSKH.shape[1], span.start_B, span.stop_B)
  return splash.SegmentIds(jnp.where(queries, 1, 2), jnp.where(keys, 1, 3))


def _splash_segments(q_BTNH, places):
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

  if places.q_segments_BT is None:
    return None
  q_segments, kv_segments = (
    broadcast_segments(q_BTNH, x) for x in (places.q_segments_BT, places.kv_segments_BS))
  return splash.SegmentIds(q_segments, kv_segments)


def scaled(q_BTNH: jax.Array) -> jax.Array:
  """Times head_dim^-0.5, which the kernel leaves to its caller."""
  return (q_BTNH.astype(jnp.float32) * q_BTNH.shape[3] ** -0.5).astype(q_BTNH.dtype)

"""Attention by JAX's splash kernel on TPUs: blocks outside the mask are skipped."""


import jax
import jax.numpy as jnp

from smoljax.model.attention import context, cudnn
from smoljax.model.attention.masks import MASKED, broadcast_segments

# ------------------------------------------------------------------------------------- splash
# The TPU kernel that comes with jax. Its own gradient is not used, so that one rule names the
# residuals for every implementation; forward and backward kernels are called apart.

BLOCK = 1024  # queries and keys of a tile at most; fits the smallest VMEM (v5e) up to H = 128
interpret_splash = False  # set by tests: runs the kernels on any device, slowly


def refusal(how, q_BTNH, k_BSKH, segmented):
  if context.platform() != 'tpu' and not interpret_splash:
    return f'runs on TPUs, not on {context.platform()}'
  if q_BTNH.shape[1] % (128 * context.pieces()):
    return f'needs rows of a multiple of {128 * context.pieces()} tokens, not {q_BTNH.shape[1]}'
  return context.needs_order(how)


def forward(how, window, q_BTNH, k_BSKH, v_BSKH, places):
  segments = _splash_segments(q_BTNH, places)
  return _splash_run(how, window, True, q_BTNH, k_BSKH, v_BSKH, segments)


def forward_across(how, q_BTNH, k_BSKH, v_BSKH, reach):
  segments = _splash_reach(q_BTNH, k_BSKH, reach)
  out_BTNH, lse_BTN = _splash_run(how, None, False, q_BTNH, k_BSKH, v_BSKH, segments)
  reached_BT1 = cudnn.in_span(q_BTNH.shape[1], 0, reach.queries_B)[..., None]
  return out_BTNH, jnp.where(reached_BT1, lse_BTN, MASKED)


def backward(how, window, q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH, places):
  segments = _splash_segments(q_BTNH, places)
  return _splash_gradients(
    how, window, True, q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH, segments)


def backward_across(how, q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH, reach):
  segments = _splash_reach(q_BTNH, k_BSKH, reach)
  return _splash_gradients(
    how, None, False, q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH, segments)


def _splash_run(how, window, causal, q_BTNH, k_BSKH, v_BSKH, segments):
  kernel = _splash_kernel(how, window, causal, q_BTNH, k_BSKH)

  def row(q_NTH, k_KSH, v_KSH, segments):
    out_NTH, (lse_NT,) = kernel(q_NTH, k_KSH, v_KSH, segments)
    return out_NTH, lse_NT

  q_BNTH, k_BKSH, v_BKSH = (x.swapaxes(1, 2) for x in (scaled(q_BTNH), k_BSKH, v_BSKH))
  out_BNTH, lse_BNT = jax.vmap(row)(q_BNTH, k_BKSH, v_BKSH, segments)
  return out_BNTH.swapaxes(1, 2), lse_BNT.swapaxes(1, 2)


def _splash_gradients(
  how, window, causal, q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH, segments
):
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

  kernel = _splash_kernel(how, window, causal, q_BTNH, k_BSKH)
  options = kernel.kwargs

  def row(q_NTH, k_KSH, v_KSH, out_NTH, lse_NT, dout_NTH, segments):
    residuals = (q_NTH, k_KSH, v_KSH, segments, None, out_NTH, lse_NT,
                 kernel.dq_mask_info, kernel.dkv_mask_info)
    return splash._splash_attention_bwd(
      False, options['mask_value'], False, options['block_sizes'], None, options['mask_function'],
      options['attn_logits_soft_cap'], options['interpret'], residuals, dout_NTH,
    )[3:6]

  arrays = (scaled(q_BTNH), k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH)
  dq, dk, dv = jax.vmap(row)(*(x.swapaxes(1, 2) for x in arrays), segments)
  return scaled(dq.swapaxes(1, 2)), dk.swapaxes(1, 2), dv.swapaxes(1, 2)


def _splash_kernel(how, window, causal, q_BTNH, k_BSKH):
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
    attn_logits_soft_cap=how.softcap or None, interpret=interpret_splash,
  )


def _splash_reach(q_BTNH, k_BSKH, reach):
  """Segment 1 for what is reached; queries and keys outside have different ones."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

  queries = cudnn.in_span(q_BTNH.shape[1], 0, reach.queries_B)
  keys = cudnn.in_span(k_BSKH.shape[1], reach.start_B, reach.stop_B)
  return splash.SegmentIds(jnp.where(queries, 1, 2), jnp.where(keys, 1, 3))


def _splash_segments(q_BTNH, places):
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

  if places.q_segments_BT is None:
    return None
  q_segments, kv_segments = (
    broadcast_segments(q_BTNH, x) for x in (places.q_segments_BT, places.kv_segments_BS))
  return splash.SegmentIds(q_segments, kv_segments)


def scaled(q_BTNH):
  return (q_BTNH.astype(jnp.float32) * q_BTNH.shape[3] ** -0.5).astype(q_BTNH.dtype)

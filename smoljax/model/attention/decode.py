"""Attention of a row's next token, or few, over a cache, as one kernel, for NVIDIA GPUs (Pallas).

With so few queries nothing is there to compute, so that what counts is how often the device is
asked: XLA makes eight kernels of writing the new key and value, two products, a softmax and their
paddings, each of which takes longer to begin than to run. This one writes, reads what the cache
holds so far and no more, and keeps a running softmax (arXiv:2205.14135). Long caches are cut into
parts that are read side by side and joined by their log-sum-exp (arXiv:2311.01282).

Shapes: B batch, T new tokens, K kv heads, G query heads of each, X = T·G padded, R slots of a row,
H head dim, P parts.
"""

import functools

import jax
import jax.numpy as jnp

from smoljax.model.attention import context

BLOCK = 64  # slots that are read at once
PART = 512  # slots of a part, up to MAX_PARTS of them
MAX_PARTS = 16
ROWS = 16  # the fewest rows of a product on tensor cores
_NOTHING = -1e30  # as a logit; finite, so that a part without any key gives no NaN


def available() -> bool:
  """Whether kernels in Triton run here, if this is a GPU: NVIDIA's from Ampere on."""
  device = jax.devices()[0]
  if device.platform != 'gpu':
    return True
  return 'nvidia' in device.device_kind.lower() and float(device.compute_capability) >= 8.0


def on_gpu() -> bool:
  """Whether what is traced is for a GPU on which they do."""
  return context.platform() in ('gpu', 'cuda') and available()


def fits(q_BTNH: jax.Array, k_BTKH: jax.Array) -> bool:
  """Whether the kernel can do it: few tokens, 16-bit numbers, heads of 16, 32, 64, … dims."""
  T, N, H = q_BTNH.shape[1:]
  return (T * N // k_BTKH.shape[2] <= ROWS and q_BTNH.dtype.itemsize == 2
          and H >= ROWS and H & (H - 1) == 0 and available())


def attend(
  q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, held: tuple[jax.Array, jax.Array],
  index: jax.Array, offset_B: jax.Array, *, softcap: float = 0.0, interpret: bool = False,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  """What the tokens from `index` on see of the cache, of each other and of themselves.

  Args:
    held: k_BKRH and v_BKRH; slot r holds the last index before `index` that is r modulo R. Several
      new tokens may not go round: index + T ≤ R.
    index: int32 of the first new token, one for all rows or [B].
    offset_B: int32, indices below it are hidden (padding).
    softcap: see `attention`.
    interpret: run it as plain jax, on any device (to test).
  Returns:
    out_BTNH in q's dtype, and `held` with the new tokens in their slots, in place.
  """
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  B, K, R, H = held[0].shape
  T, N = q_BTNH.shape[1:3]
  parts = min(-(-R // PART), MAX_PARTS)
  # One kernel turns all of them.
  qkv_BYH = jnp.concatenate([q_BTNH, k_BTKH, v_BTKH], axis=2).reshape(B, T * (N + 2 * K), H)
  of_row = pl.BlockSpec((1,), lambda b, k, p: (b,))
  whole = pl.BlockSpec((None, T * (N + 2 * K), H), lambda b, k, p: (b, 0, 0))
  cache = pl.BlockSpec((None, None, R, H), lambda b, k, p: (b, k, 0, 0))
  result = lambda *dims: pl.BlockSpec(
    (None, None, None, T * N // K, *dims), lambda b, k, p: (b, p, k, 0, *(0 for _ in dims)))
  dtype = q_BTNH.dtype if parts == 1 else jnp.float32
  out_BPKXH, lse_BPKX, k_BKRH, v_BKRH = pl.pallas_call(
    functools.partial(_kernel, sizes=(T, N, K), parts=parts, softcap=softcap),
    grid=(B, K, parts),
    in_specs=[pl.BlockSpec((1,), lambda b, k, p: (0,)) if jnp.ndim(index) == 0 else of_row, of_row,
              whole, cache, cache],
    out_specs=[result(H), result(), cache, cache],
    out_shape=[jax.ShapeDtypeStruct((B, parts, K, T * N // K, H), dtype),
               jax.ShapeDtypeStruct((B, parts, K, T * N // K), jnp.float32),
               *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in held)],
    input_output_aliases={3: 2, 4: 3}, name='attend_cache', interpret=interpret,
    compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
  )(jnp.reshape(index, -1), offset_B, qkv_BYH, *held)
  if parts > 1:
    share_BPKX = jax.nn.softmax(lse_BPKX, axis=1)
    out_BPKXH = jnp.sum(out_BPKXH * share_BPKX[..., None], axis=1)
  out_BKTGH = out_BPKXH.astype(q_BTNH.dtype).reshape(B, K, T, N // K, H)
  return out_BKTGH.swapaxes(1, 2).reshape(q_BTNH.shape), (k_BKRH, v_BKRH)


def _kernel(index_ref, offset_ref, qkv_ref, k_ref, v_ref, out_ref, lse_ref, k_out_ref, v_out_ref,
            *, sizes, parts, softcap):
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  index, offset, (T, N, K) = index_ref[0], offset_ref[0], sizes
  head, part, slots = pl.program_id(1), pl.program_id(2), k_ref.shape[0]
  G, Y = N // K, N + 2 * K  # Y: rows of a token
  query_X = jnp.arange(ROWS) % (T * G)  # the same ones again, as many as a product needs
  token_X = query_X // G
  q_XH = qkv_ref[token_X * Y + head * G + query_X % G, :]
  new = [tuple(qkv_ref[pl.ds(t * Y + at + head, 1), :] for at in (N, N + K)) for t in range(T)]
  own = index % slots
  scale = q_XH.shape[1] ** -0.5

  def capped(logits):
    return softcap * jnp.tanh(logits / softcap) if softcap else logits

  def add(carry, logits_X, v_1H, seen_X):
    """The running softmax with one more key."""
    top_X, sum_X, out_XH = carry
    now_X = jnp.where(seen_X, jnp.maximum(top_X, logits_X), top_X)
    p_X, fade_X = jnp.where(seen_X, jnp.exp(logits_X - now_X), 0.0), jnp.exp(top_X - now_X)
    return now_X, sum_X * fade_X + p_X, out_XH * fade_X[:, None] + p_X[:, None] * v_1H

  def block(i, carry):
    top_X, sum_X, out_XH = carry
    slot_S = i * BLOCK + jnp.arange(BLOCK)
    held_S = index - (index - slot_S) % slots  # the index that the slot holds
    kept_S = slot_S != own if T == 1 else slot_S < own
    seen_S = (slot_S < slots) & (slot_S <= index) & kept_S & (held_S >= offset)
    rows = pl.ds(i * BLOCK, BLOCK)
    k_SH, v_SH = (triton.load(ref.at[rows, :], mask=seen_S[:, None], other=0.0)
                  for ref in (k_ref, v_ref))
    logits_XS = capped(scale * _dot(q_XH, k_SH, 1))
    logits_XS = jnp.where(seen_S[None], logits_XS, _NOTHING)
    now_X = jnp.maximum(top_X, jnp.max(logits_XS, axis=1))
    p_XS = jnp.where(seen_S[None], jnp.exp(logits_XS - now_X[:, None]), 0.0)
    fade_X = jnp.exp(top_X - now_X)
    out_XH = out_XH * fade_X[:, None] + _dot(p_XS.astype(v_SH.dtype), v_SH, 0)
    return now_X, sum_X * fade_X + jnp.sum(p_XS, axis=1), out_XH

  # The first part also has the new tokens, which are not read from where they are being written.
  first = part == 0
  with_new = []
  for t, (k_1H, v_1H) in enumerate(new):
    logits_X = capped(scale * jnp.sum(q_XH.astype(jnp.float32) * k_1H.astype(jnp.float32), axis=1))
    v_1H = v_1H.astype(jnp.float32)
    with_new = add(with_new, logits_X, v_1H, token_X >= t) if t else (
      logits_X, jnp.ones_like(logits_X), jnp.broadcast_to(v_1H, q_XH.shape))
  carry = tuple(jnp.where(first, x, jnp.full_like(x, without))
                for x, without in zip(with_new, (_NOTHING, 0.0, 0.0), strict=True))
  each = -(-slots // (BLOCK * parts))
  filled = (jnp.minimum(index + 1, slots) + BLOCK - 1) // BLOCK
  top_X, sum_X, out_XH = jax.lax.fori_loop(
    part * each, jnp.minimum(part * each + each, filled), block, carry)
  sum_X = jnp.maximum(sum_X, 1e-30)
  out_XH /= sum_X[:, None]
  out_ref[query_X, :] = out_XH.astype(out_ref.dtype)
  lse_ref[query_X] = top_X + jnp.log(sum_X)

  @pl.when(first)
  def _():
    for t, (k_1H, v_1H) in enumerate(new):
      k_out_ref[pl.ds(own + t, 1), :] = k_1H
      v_out_ref[pl.ds(own + t, 1), :] = v_1H


def _dot(a, b, dim):
  return jax.lax.dot_general(a, b, (((1,), (dim,)), ((), ())), preferred_element_type=jnp.float32)

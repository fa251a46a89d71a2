"""Matrices in 8 or 4 bits for decoding, multiplied without a wider copy where it counts.

Where there is one token per row to compute, all the time goes into reading matrices: a matrix in
half the bytes is read in half the time. Weights are q · scale, with whole q; activations, norms and
biases keep the compute dtype. int8 has one scale a row (an output), applied to the product; int4
one for each `GROUP` weights of a row. The scale is the weight of the largest magnitude, sign and
all, over -128 or -8, so that every level is used (llama.cpp's Q4_0).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

BITS = {'int8': 8, 'int4': 4}
GROUP = 64  # weights of a row that share a scale in 4 bits: 4.25 bits a weight
SMALL = 1 << 23  # matrices of no more weights gain nothing from `sum_of_words`, and XLA splits it


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantised:
  """A matrix w_OI ≈ values · scales, with G groups of weights in each row.

  Attributes:
    values: int8 [O, I]; in 4 bits [O, I / 2], where the lower half of a byte comes first.
    scales_OG: in the compute dtype.
    bits: 8 or 4.
  """

  values: jax.Array
  scales_OG: jax.Array
  bits: int = dataclasses.field(metadata={'static': True})


def quantise(w_OI: jax.Array, kind: str) -> Quantised:
  """The nearest values of a matrix in `kind` (of `BITS`); scales in the dtype of the matrix.

  Raises ValueError for an unknown kind, and for 4 bits of rows of odd length.
  """
  if kind not in BITS:
    raise ValueError(f'weights={kind!r}: one of {", ".join(BITS)}')
  bits, (O, I) = BITS[kind], w_OI.shape
  if bits == 4 and I % 2:
    raise ValueError(f'rows of {I} weights: int4 needs an even number; use int8')
  levels = 2 ** (bits - 1)
  w_OGI = w_OI.astype(jnp.float32).reshape(O, -1, I if bits == 8 else math.gcd(I, GROUP))
  most_OG1, least_OG1 = (f(w_OGI, axis=-1, keepdims=True) for f in (jnp.max, jnp.min))
  largest_OG1 = jnp.where(most_OG1 > -least_OG1, most_OG1, least_OG1)
  scales_OG1 = (largest_OG1 / -levels).astype(w_OI.dtype)
  divisor_OG1 = jnp.where(scales_OG1 == 0, 1, scales_OG1.astype(jnp.float32))
  q_OI = jnp.clip(jnp.round(w_OGI / divisor_OG1), -levels, levels - 1).reshape(O, I)
  values = q_OI.astype(jnp.int8)
  if bits == 4:
    values = (values[:, ::2] & 15) | (values[:, 1::2] << 4)
  return Quantised(values, scales_OG1[..., 0], bits)


def dequantised(w: Quantised, dtype: jax.typing.DTypeLike) -> jax.Array:
  """w_OI as products of many rows take it."""
  q_OI = _whole(w).astype(dtype)
  O, G = w.scales_OG.shape
  return (q_OI.reshape(O, G, -1) * w.scales_OG.astype(dtype)[..., None]).reshape(q_OI.shape)


def rows(w: Quantised, index: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
  """Rows of the matrix, [*index.shape, I]; NaN where there is none of that index."""
  take = lambda x, **how: x.at[index].get(mode='fill', wrap_negative_indices=False, **how)
  part = Quantised(take(w.values).reshape(index.size, -1),
                   take(w.scales_OG, fill_value=jnp.nan).reshape(index.size, -1), w.bits)
  return dequantised(part, dtype).reshape(*index.shape, -1)


def matmul(x_BTI: jax.Array, w: Quantised, dtype: jax.typing.DTypeLike) -> jax.Array:
  """x times w transposed, accumulated in fp32 and given in `dtype`."""
  def dot(x_BTI, w):
    if w.scales_OG.shape[1] == 1:  # XLA reads the whole numbers inside the product
      y_BTO = jnp.einsum('BTI,OI->BTO', x_BTI, _whole(w).astype(x_BTI.dtype),
                         preferred_element_type=jnp.float32)
      return (y_BTO * w.scales_OG[:, 0].astype(jnp.float32)).astype(dtype)
    return jnp.einsum('BTI,OI->BTO', x_BTI, dequantised(w, x_BTI.dtype),
                      preferred_element_type=dtype)

  def total(x_11I, w):  # see `layers.matmul`
    x_I = x_11I[0, 0]
    if w.bits == 8 and w.values.size <= SMALL:
      y_O = jnp.sum(x_I.astype(jnp.float32) * w.values * w.scales_OG.astype(jnp.float32), axis=1)
    else:
      y_O = sum_of_words(x_I, w)
    return y_O[None, None].astype(dtype)

  group = x_BTI.shape[-1] // w.scales_OG.shape[1]
  if x_BTI.shape[:2] == (1, 1) and group % (32 // w.bits) == 0:
    return jax.lax.platform_dependent(x_BTI, w, cuda=total, default=dot)
  return dot(x_BTI, w)


def _whole(w):
  """The whole numbers, int8 [O, I]."""
  if w.bits == 8:
    return w.values
  return jnp.stack([(w.values << 4) >> 4, w.values >> 4], axis=-1).reshape(len(w.values), -1)


def sum_of_words(x_I: jax.Array, w: Quantised) -> jax.Array:
  """fp32 products y_O of one row; weights are read by the 32-bit word, 16 bytes a thread."""
  O, G = w.scales_OG.shape
  words_OW = jax.lax.bitcast_convert_type(w.values.reshape(O, -1, 4), jnp.int32)
  each = 32 // w.bits  # weights a word
  x_WE = x_I.astype(jnp.float32).reshape(-1, each)
  sum_OW = jnp.zeros(words_OW.shape)
  for e in range(each):
    q_OW = (words_OW << (32 - w.bits * (e + 1))) >> (32 - w.bits)
    sum_OW += q_OW.astype(jnp.float32) * x_WE[:, e]
  return jnp.sum(sum_OW.reshape(O, G, -1) * w.scales_OG.astype(jnp.float32)[..., None],
                 axis=(1, 2))

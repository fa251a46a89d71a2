"""Sum and RMSNorm of a single row as one kernel, for decoding on NVIDIA GPUs (Pallas, Triton).

XLA makes two of it, one for the mean and one for the product, each of which takes longer to begin
than to run; of several rows it makes one.
"""

import functools

import jax
import jax.numpy as jnp

from smoljax.model.attention import decode
from smoljax.model.config import ModelConfig


def fits(config: ModelConfig, x_BTD: jax.Array) -> bool:
  """Whether it is one row of 16-bit numbers, to be divided by its root mean square."""
  return (x_BTD.shape[:2] == (1, 1) and x_BTD.dtype.itemsize == 2 and config.norm == 'rms'
          and decode.available())


def add_and_norm(
  x_11D: jax.Array, y_11D: jax.Array, scale_D: jax.Array, eps: float, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
  """(x + y, that as normed by `layers.Norm`), in x's dtype.

  `interpret`: run it as plain jax, on any device (to test).
  """
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  row = jax.ShapeDtypeStruct(x_11D.shape[2:], x_11D.dtype)
  sum_D, normed_D = pl.pallas_call(
    functools.partial(_kernel, eps=eps), name='add_and_norm', interpret=interpret,
    out_shape=(row, row), compiler_params=triton.CompilerParams(num_warps=8, num_stages=1),
  )(x_11D[0, 0], y_11D[0, 0], scale_D.astype(x_11D.dtype))
  return sum_D[None, None], normed_D[None, None]


def _kernel(x_ref, y_ref, scale_ref, sum_ref, normed_ref, *, eps):
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  (D,) = x_ref.shape
  size = 1 << (D - 1).bit_length()
  whole, inside = pl.ds(0, size), jnp.arange(size) < D
  x, y, scale = (
    triton.load(ref.at[whole], mask=inside, other=0) for ref in (x_ref, y_ref, scale_ref))
  x += y
  x32 = x.astype(jnp.float32)
  x32 *= jax.lax.rsqrt(jnp.sum(x32 * x32) / D + eps)
  triton.store(sum_ref.at[whole], x, mask=inside)
  triton.store(normed_ref.at[whole], x32.astype(x.dtype) * scale, mask=inside)

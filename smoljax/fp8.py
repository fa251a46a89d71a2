"""Matrix products in 8-bit floats, for training on NVIDIA GPUs since Hopper (arXiv:2209.05433).

Values are e4m3, gradients e5m2, products are summed in fp32 and given in the dtype of the input.
Each tensor has one scale, a power of two that brings its largest magnitude into the upper half of
the format's range (current scaling: no state, and the same on every run). The factors are written
where XLA looks for them, before the product; on a GPU the whole becomes one call of cuBLASLt, and
elsewhere it computes the same numbers in the wider dtype, slowly.

Tensor cores want what is summed over as the last dim of both operands. So the weight is transposed
as it is rounded, and for the weight's own gradient input and cotangent are.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from smoljax import sharding

VALUES, GRADIENTS = jnp.float8_e4m3fn, jnp.float8_e5m2


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(x_BTI: jax.Array, w_IO: jax.Array, inwards: str, outwards: str) -> jax.Array:
  """x times w, `[B, T, O]` in x's dtype. Gradients of both are products in 8 bits too.

  Args:
    inwards, outwards: logical names (smoljax.sharding) of the dims I and O.
  """
  return _forward(x_BTI, w_IO, inwards, outwards)[0]


def _forward(x_BTI, w_IO, inwards, outwards):
  x, w = scale(x_BTI, VALUES), scale(w_IO, VALUES)
  y_BTO = _dot(round_to(x_BTI, x, VALUES), round_to(w_IO.T, w, VALUES), x, w, x_BTI.dtype,
               'batch', 'length', outwards)
  return y_BTO, (x_BTI, w_IO, x, w)


def _backward(inwards, outwards, residuals, dy_BTO):
  x_BTI, w_IO, x, w = residuals
  dtype, dy = dy_BTO.dtype, scale(dy_BTO, GRADIENTS)
  dx_BTI = _dot(round_to(dy_BTO, dy, GRADIENTS), round_to(w_IO, w, VALUES), dy, w, dtype,
                'batch', 'length', inwards)
  x_IX, dy_OX = (a.reshape(-1, a.shape[-1]).T for a in (x_BTI, dy_BTO))
  dw_IO = _dot(round_to(x_IX, x, VALUES), round_to(dy_OX, dy, GRADIENTS), x, dy, dtype,
               inwards, outwards)
  return dx_BTI, dw_IO


product.defvjp(_forward, _backward)


def scale(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
  """The power of two, fp32, that x is divided by to fit `dtype`; 1 for zeros, NaN if x has any."""
  largest = jnp.max(jnp.abs(x)).astype(jnp.float32)
  exponent = jnp.ceil(jnp.log2(largest / float(jnp.finfo(dtype).max)))
  # Not exp2, whose results are no powers of two where the exponent is large.
  power = jnp.ldexp(jnp.ones(()), jnp.where(jnp.isfinite(exponent), exponent, 0).astype(jnp.int32))
  return checkpoint_name(jnp.where(jnp.isnan(largest), jnp.nan, power), 'fp8')


def round_to(x: jax.Array, scale: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
  """x / scale in `dtype`."""
  return (x * (1 / scale).astype(x.dtype)).astype(dtype)


def _dot(a_XI, b_OI, a, b, dtype, *names):
  """a · bᵀ over the last dims of both, of numbers rounded with the scales a and b."""
  a_XI, b_OI = (x.astype(dtype) * s.astype(dtype) for x, s in ((a_XI, a), (b_OI, b)))
  return jnp.einsum('...I,OI->...O', a_XI, b_OI, preferred_element_type=dtype,
                    out_sharding=sharding.out(*names))

"""Matrix products in 8-bit floats, for training on NVIDIA GPUs since Hopper (arXiv:2209.05433).

Values and gradients are e4m3: a third bit of mantissa does more for gradients than e5m2's range
(experiments/log/speed.md). Products are given in the dtype of the input. Each tensor has one scale,
a power of two that brings its largest magnitude into the upper half of the format's range (current
scaling: no state, and the same on every run). The factors are written where XLA looks for them,
before the product; on a GPU the whole becomes one call of cuBLASLt, and elsewhere it computes the
same numbers in the wider dtype, slowly.

Tensor cores want what is summed over as the last dim of both operands. So the weight is transposed
as it is rounded, and for the weight's own gradient input and cotangent are.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from smoljax import sharding

DTYPE = jnp.float8_e4m3fn


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def product(x_BTI: jax.Array, w_IO: jax.Array, inwards: str, outwards: str) -> jax.Array:
  """x times w, `[B, T, O]` in x's dtype. Gradients of both are products in 8 bits too.

  Args:
    inwards, outwards: logical names (smoljax.sharding) of the dims I and O.
  """
  return _forward(x_BTI, w_IO, inwards, outwards)[0]


def _forward(x_BTI, w_IO, inwards, outwards):
  x, w = scale(x_BTI), scale(w_IO)
  y_BTO = _dot(rounded(x_BTI, x), rounded(w_IO.T, w), x, w, x_BTI.dtype,
               'batch', 'length', outwards)
  return y_BTO, (x_BTI, w_IO, x, w)


def _backward(inwards, outwards, residuals, dy_BTO):
  x_BTI, w_IO, x, w = residuals
  dtype, dy = dy_BTO.dtype, scale(dy_BTO)
  dx_BTI = _dot(rounded(dy_BTO, dy), rounded(w_IO, w), dy, w, dtype,
                'batch', 'length', inwards, exact=True)
  x_IX, dy_OX = (a.reshape(-1, a.shape[-1]).T for a in (x_BTI, dy_BTO))
  dw_IO = _dot(rounded(x_IX, x), rounded(dy_OX, dy), x, dy, dtype,
               inwards, outwards, exact=True)
  return dx_BTI, dw_IO


product.defvjp(_forward, _backward)


def scale(x: jax.Array) -> jax.Array:
  """The power of two, fp32, that x is divided by to fit DTYPE; 1 for zeros, NaN if x has any."""
  largest = jnp.max(jnp.abs(x)).astype(jnp.float32)
  exponent = jnp.ceil(jnp.log2(largest / float(jnp.finfo(DTYPE).max)))
  # Not exp2, whose results are no powers of two where the exponent is large.
  power = jnp.ldexp(jnp.ones(()), jnp.where(jnp.isfinite(exponent), exponent, 0).astype(jnp.int32))
  return checkpoint_name(jnp.where(jnp.isnan(largest), jnp.nan, power), 'fp8')


def rounded(x: jax.Array, scale: jax.Array) -> jax.Array:
  """x / scale in DTYPE."""
  return (x * (1 / scale).astype(x.dtype)).astype(DTYPE)


def _dot(a_XI, b_OI, a, b, dtype, *names, exact=False):
  """a · bᵀ over the last dims of both, of numbers rounded with the scales a and b.

  A Hopper's tensor cores sum 8-bit products in about 14 bits. With `exact` partial sums go to fp32
  every few of them, as a gradient summed over all tokens of a batch needs.
  """
  a_XI, b_OI = (x.astype(dtype) * s.astype(dtype) for x, s in ((a_XI, a), (b_OI, b)))
  return jnp.einsum('...I,OI->...O', a_XI, b_OI, preferred_element_type=dtype,
                    precision=jax.lax.Precision.HIGHEST if exact else None,
                    out_sharding=sharding.out(*names))

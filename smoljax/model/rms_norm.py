"""RMSNorm in training as one kernel each way, for NVIDIA GPUs (Pallas, Triton).

XLA makes two kernels of the norm and three of its gradient, which read the stream five times more
often than it has to be, and rows of few numbers at half the rate. Here a program holds some rows.
The stream itself is given back, so that its gradient is added where the norm's is written.

Shapes: R rows (tokens), D model, P programs, S rows of a program at a time.
"""

import functools

import jax
import jax.numpy as jnp

from smoljax import sharding
from smoljax.model.attention import decode
from smoljax.model.config import ModelConfig

_PLACES = 4096  # numbers that a program holds of an array
_WARPS = 4
_PROGRAMS = 396  # of the gradient: three a multiprocessor, each with its sum for the scale
_NAMES = 'batch', 'length', 'residual'


def fits(config: ModelConfig, x_BTD: jax.Array) -> bool:
  """Whether it is RMSNorm of many rows in 16 bits on an NVIDIA GPU."""
  return (config.norm == 'rms' and x_BTD.dtype.itemsize == 2 and x_BTD.shape[1] > 1
          and x_BTD.shape[2] <= 2 * _PLACES and decode.on_gpu())


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def stream_and_norm(
  x_BTD: jax.Array, scale_D: jax.Array, eps: float, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
  """(x, x as normed by `layers.Norm`), in x's dtype, which scale_D has too.

  `interpret`: run the kernels as plain jax, on any device (to test).
  """
  return _forward(x_BTD, scale_D, eps, interpret)[0]


def _forward(x_BTD, scale_D, eps, interpret):
  kernel = functools.partial(_norm, eps=eps, interpret=interpret)
  normed_BTD = _per_device(kernel, sharding.out(*_NAMES))(x_BTD, scale_D)
  return (x_BTD, normed_BTD), (x_BTD, scale_D)


def _backward(eps, interpret, residuals, gradients):
  x_BTD, scale_D = residuals
  kernel = functools.partial(_gradient, eps=eps, interpret=interpret)
  dx_BTD, dscale_PD = _per_device(
    kernel, (sharding.out(*_NAMES), sharding.out('batch', 'length', None)))(
      x_BTD, scale_D, *(sharding.constrain(g, *_NAMES) for g in gradients))
  dscale_D = jnp.sum(dscale_PD, axis=(0, 1)).astype(scale_D.dtype)
  return dx_BTD, dscale_D


stream_and_norm.defvjp(_forward, _backward)


def _per_device(kernel, out_specs):
  if jax.sharding.get_abstract_mesh().empty:
    return kernel
  return jax.shard_map(kernel, out_specs=out_specs, check_vma=False)


def _sizes(D):
  """Numbers of a row as a power of two, and rows at a time."""
  size = 1 << (D - 1).bit_length()
  return size, max(1, _PLACES // size)


def _norm(x_BTD, scale_D, *, eps, interpret):
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  D = x_BTD.shape[2]
  x_RD = x_BTD.reshape(-1, D)
  whole = pl.BlockSpec(x_RD.shape, lambda p: (0, 0))
  normed_RD = pl.pallas_call(
    functools.partial(_norm_kernel, eps=eps), grid=(-(-len(x_RD) // _sizes(D)[1]),),
    in_specs=[whole, pl.BlockSpec((D,), lambda p: (0,))], out_specs=whole,
    out_shape=jax.ShapeDtypeStruct(x_RD.shape, x_RD.dtype), name='rms_norm', interpret=interpret,
    compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
  )(x_RD, scale_D)
  return normed_RD.reshape(x_BTD.shape)


def _gradient(x_BTD, scale_D, dx_BTD, dnormed_BTD, *, eps, interpret):
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  D = x_BTD.shape[2]
  arrays = [x.reshape(-1, D) for x in (x_BTD, dx_BTD, dnormed_BTD)]
  R = len(arrays[0])
  programs = min(_PROGRAMS, -(-R // _sizes(D)[1]))
  whole = pl.BlockSpec((R, D), lambda p: (0, 0))
  dx_RD, dscale_PD = pl.pallas_call(
    functools.partial(_gradient_kernel, eps=eps, programs=programs), grid=(programs,),
    in_specs=[pl.BlockSpec((D,), lambda p: (0,)), whole, whole, whole],
    out_specs=[whole, pl.BlockSpec((None, D), lambda p: (p, 0))],
    out_shape=[jax.ShapeDtypeStruct((R, D), x_BTD.dtype),
               jax.ShapeDtypeStruct((programs, D), jnp.float32)],
    name='rms_norm_gradient', interpret=interpret,
    compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
  )(scale_D, *arrays)
  return dx_RD.reshape(x_BTD.shape), dscale_PD[None]


def _places(ref, at):
  """(index, mask) of the rows of a program from `at` on, and of all of their numbers."""
  from jax.experimental import pallas as pl

  R, D = ref.shape
  size, rows = _sizes(D)
  inside = ((at + jnp.arange(rows)) < R)[:, None] & (jnp.arange(size) < D)[None]
  return (pl.ds(at, rows), pl.ds(0, size)), inside


def _scale_of(ref):
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  (D,) = ref.shape
  size, _ = _sizes(D)
  return triton.load(ref.at[pl.ds(0, size)], mask=jnp.arange(size) < D, other=0)[None]


def _norm_kernel(x_ref, scale_ref, normed_ref, *, eps):
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  D = x_ref.shape[1]
  here, inside = _places(x_ref, pl.program_id(0) * _sizes(D)[1])
  x_SD = triton.load(x_ref.at[here], mask=inside, other=0)
  x32_SD = x_SD.astype(jnp.float32)
  x32_SD *= jax.lax.rsqrt(jnp.sum(x32_SD * x32_SD, axis=1, keepdims=True) / D + eps)
  triton.store(normed_ref.at[here], x32_SD.astype(x_SD.dtype) * _scale_of(scale_ref), mask=inside)


def _gradient_kernel(
  scale_ref, x_ref, dstream_ref, dnormed_ref, dx_ref, dscale_ref, *, eps, programs
):
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  R, D = x_ref.shape
  size, rows = _sizes(D)
  program, scale_1D = pl.program_id(0), _scale_of(scale_ref).astype(jnp.float32)

  def some(i, dscale_D):
    here, inside = _places(x_ref, (i * programs + program) * rows)
    x_SD, dstream_SD, dnormed_SD = (
      triton.load(ref.at[here], mask=inside, other=0) for ref in (x_ref, dstream_ref, dnormed_ref))
    x32_SD, pull_SD = x_SD.astype(jnp.float32), dnormed_SD.astype(jnp.float32)
    mean = lambda y_SD: jnp.sum(y_SD, axis=1, keepdims=True) / D
    root_S1 = jax.lax.rsqrt(mean(x32_SD * x32_SD) + eps)
    unit_SD = x32_SD * root_S1
    dscale_D += jnp.sum(pull_SD * unit_SD, axis=0)
    pull_SD *= scale_1D
    dx_SD = (pull_SD - unit_SD * mean(pull_SD * unit_SD)) * root_S1 + dstream_SD.astype(jnp.float32)
    triton.store(dx_ref.at[here], dx_SD.astype(dx_ref.dtype), mask=inside)
    return dscale_D

  dscale_D = jax.lax.fori_loop(
    0, -(-R // (rows * programs)), some, jnp.zeros(size, jnp.float32))
  triton.store(dscale_ref.at[pl.ds(0, size)], dscale_D, mask=jnp.arange(size) < D)

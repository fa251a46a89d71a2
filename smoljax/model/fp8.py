"""Matrix products in 8-bit floats, for training on NVIDIA GPUs since Hopper (arXiv:2209.05433).

Values and gradients are e4m3: a third bit of mantissa does more for gradients than e5m2's range
(experiments/log/speed.md). Products are given in the dtype of the input. Each tensor has one scale,
a power of two that brings its largest magnitude into the upper half of the format's range (current
scaling: no state, and the same on every run). The factors are written where XLA looks for them,
before the product; on a GPU the whole becomes one call of cuBLASLt, and elsewhere it computes the
same numbers in the wider dtype, slowly.

Tensor cores want what is summed over as the last dim of both operands. So the weight is transposed
as it is rounded, and for the weight's own gradient input and cotangent are.

On a single NVIDIA GPU a gated MLP is one function (`swiglu`), with two kernels (Pallas, Triton) for
what is as large as its hidden units: they are rounded with a scale a row as they are made; and
what its backward pass rounds is read once for its scale and once to be written as it lies and
turned. Shapes: R rows (tokens), F hidden units.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from smoljax import sharding
from smoljax.model.attention import decode
from smoljax.model.config import ModelConfig

DTYPE = jnp.float8_e4m3fn
_TILE = 128, 64  # rows and units that a program turns
_WARPS = 8
_ROW_WARPS = 16  # of a program that rounds a row
_MOST = float(jnp.finfo(DTYPE).max)


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
               ('batch', 'length', outwards))
  return y_BTO, (x_BTI, w_IO, x, w)


def _backward(inwards, outwards, residuals, dy_BTO):
  x_BTI, w_IO, x, w = residuals
  dtype, dy = dy_BTO.dtype, scale(dy_BTO)
  dx_BTI = _dot(rounded(dy_BTO, dy), rounded(w_IO, w), dy, w, dtype,
                ('batch', 'length', inwards), exact=True)
  x_IX, dy_OX = (a.reshape(-1, a.shape[-1]).T for a in (x_BTI, dy_BTO))
  dw_IO = _dot(rounded(x_IX, x), rounded(dy_OX, dy), x, dy, dtype,
               (inwards, outwards), exact=True)
  return dx_BTI, dw_IO


product.defvjp(_forward, _backward)


def fits(config: ModelConfig, x_BTD: jax.Array) -> bool:
  """Whether `swiglu`'s kernels can do the MLP: whole tiles of 16-bit numbers on one NVIDIA GPU.

  (Of 32-bit ones ptxas 13.0 does not compile what turns.)
  """
  mesh, (B, T, _) = jax.sharding.get_abstract_mesh(), x_BTD.shape
  return (config.fp8 and config.activation == 'swiglu' and not config.mlp_bias
          and decode.on_gpu() and (mesh.empty or mesh.size == 1) and x_BTD.dtype.itemsize == 2
          and not any(n % tile for n, tile in zip((B * T, config.mlp_dim), _TILE, strict=True)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def swiglu(
  x_BTD: jax.Array, gate_DF: jax.Array, up_DF: jax.Array, down_FD: jax.Array,
  interpret: bool = False,
) -> jax.Array:
  """(silu(x gate) · x up) down, `[B, T, D]` in x's dtype; gradients of all in 8 bits too.

  By kernels on a GPU, where it is for what `fits`; elsewhere the same numbers without them.
  `interpret`: run the kernels as plain jax, on any device (to test).
  """
  return _swiglu_forward(x_BTD, gate_DF, up_DF, down_FD, interpret)[0]


def _swiglu_forward(x_BTD, gate_DF, up_DF, down_FD, interpret):
  matrices, dtype = (gate_DF, up_DF, down_FD), x_BTD.dtype
  x, *scales = map(scale, (x_BTD, *matrices))
  x8_BTD = rounded(x_BTD, x)
  gate_BTF, up_BTF = (
    checkpoint_name(_dot(x8_BTD, rounded(w_DF.T, w), x, w, dtype, ('batch', 'length', 'mlp')), 'gu')
    for w_DF, w in zip(matrices[:2], scales[:2], strict=True))
  make = (functools.partial(round_units, interpret=interpret) if interpret or decode.on_gpu()
          else rounded_units)
  mid8_BTF, mid_BT = make(gate_BTF, up_BTF)
  y_BTD = _dot(mid8_BTF, rounded(down_FD.T, scales[2]), jnp.float32(1), scales[2], dtype,
               ('batch', 'length', 'residual'))
  y_BTD = (y_BTD * mid_BT[..., None]).astype(dtype)
  mid = _power(_MOST * jnp.max(mid_BT))
  return y_BTD, (x_BTD, gate_BTF, up_BTF, matrices, (x, mid, *scales))


def _swiglu_backward(interpret, residuals, dy_BTD):
  x_BTD, gate_BTF, up_BTF, (gate_DF, up_DF, down_FD), (x, mid, gate, up, down) = residuals
  dtype, dy = dy_BTD.dtype, scale(dy_BTD)
  dot = functools.partial(_dot, dtype=dtype, exact=True)
  turn = lambda a_BTD, a: rounded(a_BTD.reshape(-1, a_BTD.shape[-1]).T, a)
  dmid_BTF = dot(rounded(dy_BTD, dy), rounded(down_FD, down), dy, down,
                 names=('batch', 'length', 'mlp'))
  given = gate_BTF, up_BTF, dmid_BTF
  # One scale of both gradients, so that they are looked at once.
  _, *pulled = _pulled(*given)
  d = scale(functools.reduce(jnp.maximum, (jnp.abs(a).astype(dtype) for a in pulled)))
  make = (functools.partial(round_both_ways, interpret=interpret) if interpret or decode.on_gpu()
          else rounded_both_ways)
  dgate_BTF, dup_BTF, dgate_FR, dup_FR, mid_FR = make(*given, d, mid)
  dx_BTD = sum(
    dot(a_BTF, rounded(w_DF, w), d, w, names=('batch', 'length', 'residual'))
    for a_BTF, w_DF, w in ((dgate_BTF, gate_DF, gate), (dup_BTF, up_DF, up)))
  x_DR = turn(x_BTD, x)
  dgate_DF, dup_DF = (
    dot(x_DR, a_FR, x, d, names=('residual', 'mlp')) for a_FR in (dgate_FR, dup_FR))
  ddown_FD = dot(mid_FR, turn(dy_BTD, dy), mid, dy, names=('mlp', 'residual'))
  return dx_BTD, dgate_DF, dup_DF, ddown_FD


swiglu.defvjp(_swiglu_forward, _swiglu_backward)


def _pulled(gate, up, dmid=None):
  """silu(gate) · up, and given its gradient those of gate and up; all in float32."""
  gate, up = (a.astype(jnp.float32) for a in (gate, up))
  share = jax.nn.sigmoid(gate)
  silu = gate * share
  if dmid is None:
    return (silu * up,)
  dmid = dmid.astype(jnp.float32)
  return silu * up, dmid * up * (share + silu * (1 - share)), dmid * silu


def rounded_units(gate_BTF: jax.Array, up_BTF: jax.Array) -> tuple[jax.Array, jax.Array]:
  """silu(gate) · up in 8 bits with a scale of each row's own, fp32 [B, T].

  One look is enough then: a row's scale is a factor of what the product gives for it.
  """
  mid_BTF = _pulled(gate_BTF, up_BTF)[0].astype(gate_BTF.dtype).astype(jnp.float32)
  most_BT = jnp.max(jnp.abs(mid_BTF), axis=-1)
  scale_BT = jnp.where(most_BT == 0, 1, most_BT / _MOST)
  return (mid_BTF / scale_BT[..., None]).astype(DTYPE), scale_BT


def round_units(
  gate_BTF: jax.Array, up_BTF: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
  """`rounded_units` as one kernel, a program a row."""
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  def kernel(*given):
    F = given[0].shape[-1]
    arrays = [a.reshape(-1, F) for a in given]
    row = pl.BlockSpec((None, F), lambda r: (r, 0))
    mid_RF, scale_R = pl.pallas_call(
      _units_kernel, grid=(len(arrays[0]),), in_specs=[row, row],
      out_specs=[row, pl.BlockSpec((1,), lambda r: (r,))],
      out_shape=[jax.ShapeDtypeStruct(arrays[0].shape, DTYPE),
                 jax.ShapeDtypeStruct(arrays[0].shape[:1], jnp.float32)],
      name='fp8_units', interpret=interpret,
      compiler_params=triton.CompilerParams(num_warps=_ROW_WARPS, num_stages=1),
    )(*arrays)
    return mid_RF.reshape(given[0].shape), scale_R.reshape(given[0].shape[:-1])

  if not jax.sharding.get_abstract_mesh().empty:
    specs = sharding.spec('batch', 'length', 'mlp'), sharding.spec('batch', 'length')
    kernel = jax.shard_map(kernel, out_specs=specs, check_vma=False)
  return kernel(gate_BTF, up_BTF)


def _units_kernel(gate_ref, up_ref, mid_ref, scale_ref):
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  (F,) = gate_ref.shape
  size = 1 << (F - 1).bit_length()
  here, inside = pl.ds(0, size), jnp.arange(size) < F
  gate_F, up_F = (triton.load(ref.at[here], mask=inside, other=0) for ref in (gate_ref, up_ref))
  mid_F = _pulled(gate_F, up_F)[0].astype(gate_F.dtype).astype(jnp.float32)
  most = jnp.max(jnp.abs(mid_F))
  scale = jnp.where(most == 0, 1, most / _MOST)
  triton.store(mid_ref.at[here], (mid_F / scale).astype(DTYPE), mask=inside)
  scale_ref[0] = scale


def rounded_both_ways(
  gate_BTF: jax.Array, up_BTF: jax.Array, dmid_BTF: jax.Array, d: jax.Array, mid: jax.Array
) -> tuple[jax.Array, ...]:
  """The gradients of gate and up in 8 bits, the same turned [F, R], the hidden units turned.

  Args:
    dmid_BTF: the gradient of the hidden units silu(gate) · up.
    d, mid: scales of the gradients, and of the hidden units.
  """
  mid_BTF, *grads = (a.astype(gate_BTF.dtype) for a in _pulled(gate_BTF, up_BTF, dmid_BTF))
  turn = lambda a_BTF: a_BTF.reshape(-1, a_BTF.shape[-1]).T
  return (*(rounded(a, d) for a in grads), *(rounded(turn(a), d) for a in grads),
          rounded(turn(mid_BTF), mid))


def round_both_ways(
  gate_BTF: jax.Array, up_BTF: jax.Array, dmid_BTF: jax.Array, d: jax.Array, mid: jax.Array, *,
  interpret: bool = False,
) -> tuple[jax.Array, ...]:
  """`rounded_both_ways` as one kernel."""
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  def kernel(*given):
    *arrays, inverse_2 = given
    F = arrays[0].shape[-1]
    arrays = [a.reshape(-1, F) for a in arrays]
    R = len(arrays[0])
    here = pl.BlockSpec(_TILE, lambda i, j: (i, j))
    there = pl.BlockSpec(_TILE[::-1], lambda i, j: (j, i))
    as_is, turned = (jax.ShapeDtypeStruct(s, DTYPE) for s in ((R, F), (F, R)))
    dgate_RF, dup_RF, *rest = pl.pallas_call(
      _both_ways_kernel, grid=(R // _TILE[0], F // _TILE[1]),
      in_specs=[pl.BlockSpec((2,), lambda i, j: (0,)), here, here, here],
      out_specs=[here, here, there, there, there],
      out_shape=[as_is, as_is, turned, turned, turned], name='fp8_both_ways', interpret=interpret,
      compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
    )(inverse_2, *arrays)
    shape = given[0].shape
    return dgate_RF.reshape(shape), dup_RF.reshape(shape), *rest

  if not jax.sharding.get_abstract_mesh().empty:
    specs = sharding.spec('batch', 'length', 'mlp'), sharding.spec('mlp', None)
    kernel = jax.shard_map(
      kernel, out_specs=(*specs[:1] * 2, *specs[1:] * 3), check_vma=False)
  return kernel(gate_BTF, up_BTF, dmid_BTF, 1 / jnp.stack([d, mid]))


def _both_ways_kernel(
  inverse_ref, gate_ref, up_ref, dmid_ref, dgate_ref, dup_ref, dgate_turned_ref, dup_turned_ref,
  mid_turned_ref,
):
  found = _pulled(gate_ref[...], up_ref[...], dmid_ref[...])
  mid, *grads = (a.astype(gate_ref.dtype).astype(jnp.float32) for a in found)
  outs = (dgate_ref, dgate_turned_ref), (dup_ref, dup_turned_ref)
  for a, (ref, turned_ref) in zip(grads, outs, strict=True):
    a = (a * inverse_ref[0]).astype(DTYPE)
    ref[...], turned_ref[...] = a, a.T
  mid_turned_ref[...] = (mid * inverse_ref[1]).astype(DTYPE).T


def scale(x: jax.Array) -> jax.Array:
  """The power of two, fp32, that x is divided by to fit DTYPE; 1 for zeros, NaN if x has any."""
  return _power(jnp.max(jnp.abs(x)).astype(jnp.float32))


def _power(largest):
  exponent = jnp.ceil(jnp.log2(largest / _MOST))
  # Not exp2, whose results are no powers of two where the exponent is large.
  power = jnp.ldexp(jnp.ones(()), jnp.where(jnp.isfinite(exponent), exponent, 0).astype(jnp.int32))
  return checkpoint_name(jnp.where(jnp.isnan(largest), jnp.nan, power), 'fp8')


def rounded(x: jax.Array, scale: jax.Array) -> jax.Array:
  """x / scale in DTYPE."""
  return (x * (1 / scale).astype(x.dtype)).astype(DTYPE)


def _dot(a_XI, b_OI, a, b, dtype, names, exact=False):
  """a · bᵀ over the last dims of both, of numbers rounded with the scales a and b.

  A Hopper's tensor cores sum 8-bit products in about 14 bits. With `exact` partial sums go to fp32
  every few of them, as a gradient summed over all tokens of a batch needs.
  """
  a_XI, b_OI = (x.astype(dtype) * s.astype(dtype) for x, s in ((a_XI, a), (b_OI, b)))
  return jnp.einsum('...I,OI->...O', a_XI, b_OI, preferred_element_type=dtype,
                    precision=jax.lax.Precision.HIGHEST if exact else None,
                    out_sharding=sharding.out(*names))

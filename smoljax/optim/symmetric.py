"""Products of matrices whose result is symmetric, at half the work, on NVIDIA GPUs (Pallas).

X Xᵀ is symmetric, and so is the product of two polynomials of one such matrix. Libraries for dense
products compute both halves of it; this kernel computes the tiles on and above the diagonal and
writes each of them twice. What else a polynomial needs, c·A·B + b·C + a·I, is done in float32
before anything is rounded. Anywhere else it is the plain product.

Shapes: B batch, M rows of the result, K summed over.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from smoljax.model.attention import decode

# Rows of a tile, as many columns, places summed over at once, warps, stages of the pipeline.
TILE = (128, 64, 4, 3)


def fits(x_BMK: jax.Array, tall: bool = False) -> bool:
  """Whether the kernel can do it, and is faster than the whole product: large, in 16 bits."""
  M, K = x_BMK.shape[-2:][:: -1 if tall else 1]
  return (x_BMK.ndim == 3 and x_BMK.dtype.itemsize == 2 and M >= 1024
          and M % TILE[0] == 0 and K % TILE[1] == 0 and decode.available())


def product(
  x_BMK: jax.Array, y_BMK: jax.Array, add_BMM: jax.Array | None = None, *,
  factor: float = 1.0, of_add: float = 1.0, of_eye: float = 0.0, tall: bool = False,
  interpret: bool = False, tile: tuple[int, int, int, int] = TILE,
) -> jax.Array:
  """factor·X Yᵀ + of_add·C + of_eye·I in X's dtype, where the caller knows X Yᵀ is symmetric.

  What lies below the diagonal is a copy of what lies above it, also of C.

  Args:
    factor: not 0.
    tall: X and Y are given transposed, [B, K, M].
    interpret: run it as plain jax, on any device (to test).
    tile: see TILE; M is a multiple of the first, K of the second.
  """
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  B, M, K = x_BMK.shape
  M = K if tall else M
  side, _, warps, stages = tile
  at = _upper(M // side)
  whole = lambda *dims: pl.BlockSpec((None, *dims), lambda t: (t // len(at), 0, 0))
  given = [x_BMK, y_BMK] + ([] if add_BMM is None else [add_BMM])
  return pl.pallas_call(
    functools.partial(_kernel, factor=factor, of_add=of_add, of_eye=of_eye, tall=tall, tile=tile),
    grid=(B * len(at),),
    in_specs=[pl.BlockSpec((None, 2), lambda t: (t % len(at), 0)),
              *(whole(*x.shape[1:]) for x in given)],
    out_specs=whole(M, M), out_shape=jax.ShapeDtypeStruct((B, M, M), x_BMK.dtype),
    name='symmetric_product', interpret=interpret,
    compiler_params=triton.CompilerParams(num_warps=warps, num_stages=stages),
  )(jnp.asarray(at), *given)


def _upper(tiles: int) -> np.ndarray:
  """Row and column of the tiles on and above the diagonal, of so many a side: int32 [number, 2].

  In an order in which programs that run together read the same rows: blocks of eight.
  """
  places = [(i, j) for i in range(tiles) for j in range(i, tiles)]
  return np.array(sorted(places, key=lambda p: (p[0] // 8, p[1] // 8, p[1], p[0])), np.int32)


def _kernel(at_ref, x_ref, y_ref, *refs, factor, of_add, of_eye, tall, tile):
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  side, depth = tile[:2]
  *added, out_ref = refs
  # Multiplied here, and no masks above the diagonal: where Triton does not see what a place is a
  # multiple of, or that all of 16 bytes are wanted, it moves numbers one by one.
  top, left = at_ref[0] * side, at_ref[1] * side
  of_rows, of_columns = pl.ds(top, side), pl.ds(left, side)

  def block(k, sum_RC):
    places = pl.ds(k * depth, depth)
    if tall:
      x, y, dim = x_ref[places, of_rows], y_ref[places, of_columns], 0
    else:
      x, y, dim = x_ref[of_rows, places], y_ref[of_columns, places], 1
    return sum_RC + jax.lax.dot_general(
      x, y, (((dim,), (dim,)), ((), ())), preferred_element_type=jnp.float32)

  row_RC, column_RC = (jax.lax.broadcasted_iota(jnp.int32, (side, side), dim) for dim in (0, 1))
  # What is added comes first: after the products it would want as many registers once more.
  first_RC = jnp.zeros((side, side), jnp.float32)
  if added:
    first_RC = of_add / factor * added[0][of_rows, of_columns].astype(jnp.float32)
  if of_eye:
    first_RC += jnp.where(row_RC - column_RC == left - top, of_eye / factor, 0.0)
  sum_RC = jax.lax.fori_loop(0, x_ref.shape[0 if tall else 1] // depth, block, first_RC)
  out_RC = (factor * sum_RC).astype(out_ref.dtype)

  @pl.when(top < left)
  def _():
    out_ref[of_rows, of_columns] = out_RC
    out_ref[of_columns, of_rows] = out_RC.T

  @pl.when(top == left)
  def _():
    triton.store(out_ref.at[of_rows, of_columns], out_RC, mask=row_RC <= column_RC)
    triton.store(out_ref.at[of_columns, of_rows], out_RC.T, mask=(row_RC < column_RC).T)

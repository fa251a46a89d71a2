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

# Rows and columns of a tile, places summed over at once, warps, stages of the pipeline.
TILE = (128, 128, 64, 4, 4)


def fits(x_BMK: jax.Array, tall: bool = False) -> bool:
  """Whether the kernel can do it, and is faster than the whole product: large, in 16 bits."""
  M, K = x_BMK.shape[-2:][:: -1 if tall else 1]
  return (x_BMK.ndim == 3 and x_BMK.dtype.itemsize == 2 and M >= 1024
          and M % max(TILE[:2]) == 0 and K % TILE[2] == 0 and decode.available())


def product(
  x_BMK: jax.Array, y_BMK: jax.Array, add_BMM: jax.Array | None = None, *,
  factor: float = 1.0, of_add: float = 1.0, of_eye: float = 0.0, tall: bool = False,
  interpret: bool = False, tile: tuple[int, int, int, int, int] = TILE,
) -> jax.Array:
  """factor·X Yᵀ + of_add·C + of_eye·I in X's dtype, where the caller knows X Yᵀ is symmetric.

  What lies below the diagonal is a copy of what lies above it, also of C.

  Args:
    tall: X and Y are given transposed, [B, K, M].
    interpret: run it as plain jax, on any device (to test).
    tile: see TILE; M is a multiple of the first two, K of the third.
  """
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  B, M, K = x_BMK.shape
  M = K if tall else M
  rows, columns, _, warps, stages = tile
  at = _upper(M, rows, columns)
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


def _upper(M: int, rows: int, columns: int) -> np.ndarray:
  """First row and column of the tiles that are not wholly below the diagonal, int32 [tiles, 2].

  In an order in which programs that run together read the same rows: blocks of eight.
  """
  wide = 8 * max(rows, columns)
  places = [(i, j) for i in range(0, M, rows) for j in range(0, M, columns) if j + columns > i]
  return np.array(
    sorted(places, key=lambda p: (p[0] // wide, p[1] // wide, p[1], p[0])), np.int32)


def _kernel(at_ref, x_ref, y_ref, *refs, factor, of_add, of_eye, tall, tile):
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  rows, columns, depth = tile[:3]
  *added, out_ref = refs
  top, left = at_ref[0], at_ref[1]
  of_rows, of_columns = pl.ds(top, rows), pl.ds(left, columns)

  def block(k, sum_RC):
    places = pl.ds(k * depth, depth)
    if tall:
      x, y, dim = x_ref[places, of_rows], y_ref[places, of_columns], 0
    else:
      x, y, dim = x_ref[of_rows, places], y_ref[of_columns, places], 1
    return sum_RC + jax.lax.dot_general(
      x, y, (((dim,), (dim,)), ((), ())), preferred_element_type=jnp.float32)

  sum_RC = jax.lax.fori_loop(
    0, x_ref.shape[0 if tall else 1] // depth, block, jnp.zeros((rows, columns), jnp.float32))
  row_RC = top + jax.lax.broadcasted_iota(jnp.int32, (rows, columns), 0)
  column_RC = left + jax.lax.broadcasted_iota(jnp.int32, (rows, columns), 1)
  sum_RC *= factor
  if added:
    sum_RC += of_add * added[0][of_rows, of_columns].astype(jnp.float32)
  if of_eye:
    sum_RC += jnp.where(row_RC == column_RC, of_eye, 0.0)
  out_RC = sum_RC.astype(out_ref.dtype)
  triton.store(out_ref.at[of_rows, of_columns], out_RC, mask=row_RC <= column_RC)
  triton.store(out_ref.at[of_columns, of_rows], out_RC.T, mask=(row_RC < column_RC).T)

"""Dion: orthogonal updates of low rank, by one power iteration a step (arXiv 2504.05295).

The momentum's buffer B = M + G is approximated by r directions, of which the last step's are the
start; what they hold is forgotten a little, and the rest stays whole until its turn comes:

  P = orth(B Q),  R = Bᵀ P,  M ← B − (1 − μ) P Rᵀ,  Q ← R by columns of length 1
  direction √(fan-out / fan-in) · P Qᵀ

It costs a QR of [short side, r] a matrix where Muon multiplies [short, short] fifteen times. On a
mesh each matrix is whole on every device, as in soap.py: for comparison at small sizes.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from smoljax.optim.matrices import (
  Params,
  View,
  as_matrices,
  fans,
  matrix_shape,
  path_name,
  reshard,
  spec_of,
  whole,
)


class DionState(NamedTuple):
  """What Dion keeps between updates."""

  mu: Params  # M, as the parameters
  bases: dict[str, jax.Array]  # path/basis_II → Q of each matrix, float32 [matrices, long side, r]


def scale_by_dion(
  views: Mapping[str, View], *, mu: float, rank: float, momentum_dtype: jax.typing.DTypeLike
) -> optax.GradientTransformation:
  """Dion's direction for leaves that are matrices, of which every one has a view.

  Args:
    mu: what stays of the part of the momentum that a step has used.
    rank: r as a share of the short side, above 0 to 1.

  Raises:
    ValueError: a rank out of range.
  """
  if not 0 < rank <= 1:
    raise ValueError(f'optimizer.dion.rank={rank}: give a share above 0, at most 1')

  def init(params):
    bases = {}
    for index, (path, x) in enumerate(jax.tree.leaves_with_path(params)):
      count, *sides = matrix_shape(x.shape, views[path_name(path)])
      shape = (count, max(sides), max(1, round(rank * min(sides))))
      q_BOR = jax.random.normal(jax.random.key(index), shape)
      bases[f'{path_name(path)}/basis_II'] = q_BOR / jnp.linalg.norm(q_BOR, axis=1, keepdims=True)
    return DionState(jax.tree.map(lambda x: jnp.zeros_like(x, dtype=momentum_dtype), params), bases)

  def update(updates, state, params=None):
    del params
    bases = dict(state.bases)

    def leaf(path, g, m):
      name = path_name(path)
      key, view = f'{name}/basis_II', views[name]
      buffer = m.astype(jnp.float32) + g.astype(jnp.float32)
      b_BIO, restore = as_matrices(whole(buffer), view)
      p_BIR = jnp.linalg.qr(b_BIO @ bases[key])[0]
      r_BOR = jnp.swapaxes(b_BIO, 1, 2) @ p_BIR
      left_BIO = b_BIO - (1 - mu) * p_BIR @ jnp.swapaxes(r_BOR, 1, 2)
      lengths = jnp.linalg.norm(r_BOR, axis=1, keepdims=True)
      bases[key] = jnp.where(lengths > 0, r_BOR / jnp.maximum(lengths, 1e-30), bases[key])
      moved = jnp.any(lengths > 0, axis=(1, 2), keepdims=True)
      u_BIO = jnp.where(moved, p_BIR @ jnp.swapaxes(bases[key], 1, 2), 0.0)
      fan_in, fan_out = fans(g.shape, view)
      home = lambda x_BIO, like: reshard(restore(x_BIO), spec_of(like)).astype(like.dtype)
      return home((fan_out / fan_in) ** 0.5 * u_BIO, g), home(left_BIO, m)

    found = jax.tree.map_with_path(leaf, updates, state.mu)
    out, mu_ = jax.tree.transpose(jax.tree.structure(updates), None, found)
    return out, DionState(mu_, bases)

  return optax.GradientTransformation(init, update)

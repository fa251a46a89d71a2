"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner, a true preconditioner beside Muon.

Shampoo keeps two covariances of a matrix's gradient, L = E[GGᵀ] and R = E[GᵀG], whose Kronecker
product approximates the Gauss–Newton Hessian. SOAP (Vyas et al., arXiv 2409.11321) rotates the
gradient into their eigenvectors, takes Adam's step there, where coordinates are nearly
uncorrelated, and rotates back. The eigenvectors are refreshed every few steps by one power
iteration and a QR decomposition. If all that is known is the last gradient, this is Muon's U Vᵀ;
over time the covariances average, and directions that vary little get longer steps.

Matrices are seen through Views, as in smoljax/optim/muon.py.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from smoljax.optim.matrices import (
  View,
  as_matrices,
  matrix_shape,
  path_name,
  reshard,
  spec_of,
  whole,
)

Params = Any  # nested dict of arrays


class SoapState(NamedTuple):
  """SOAP's moments, and each matrix's eigenbases."""

  count: jax.Array  # int32, gradients seen
  mu: Params  # first moment, as the parameters
  nu: Params  # second moment in the eigenbasis, as the parameters
  grams: dict[str, jax.Array]  # path/SIDE_II → E[GGᵀ] or E[GᵀG], float32, one a matrix
  bases: dict[str, jax.Array]  # the same names → eigenvectors as columns, by falling eigenvalue


def scale_by_soap(
  views: Mapping[str, View],
  *,
  b1: float,
  b2: float,
  eps: float,
  every: int,
  max_dim: int,
  momentum_dtype: jax.typing.DTypeLike,
  of_momentum: bool = False,
) -> optax.GradientTransformation:
  """SOAP's direction for leaves that are matrices; as the authors' code has it.

  The first gradient makes the first basis and no update. A later one is rotated by the basis of the
  gradients before it, enters the covariances after, and refreshes the basis after every `every`-th.

  Covariances, bases and the arithmetic are float32 and, on a mesh, whole on every device: this is
  for comparison at sizes where a few [fan-in, fan-in] matrices a layer are small.

  Args:
    views: path of a leaf → its View. Every leaf must have one.
    b1, b2: decays of the first moment, and of the second moment and the covariances (SOAP: .95).
    eps: added to the root of the second moment.
    every: steps from one refreshment of the basis to the next (SOAP: 10).
    max_dim: a side longer than this is not rotated (SOAP: 10,000).
    of_momentum: what SOAP-Muon whitens before it orthogonalises (modded-nanogpt's optimizer track):
      Nesterov's look-ahead b1·M + (1 − b1)·G, by the mean square of its own coordinates, without
      corrections of bias. The first gradient's goes through as it is.

  Raises:
    ValueError: `every` is below 1.
  """
  if every < 1:
    raise ValueError(f'optimizer.soap.every={every}: give 1 or more')

  def sides(name, shape, view):
    """(key of the state, which side) of those sides of a leaf's matrices that are rotated."""
    _, *fans = matrix_shape(shape, view)
    lengths = {'short': min(fans), 'long': max(fans)}
    return [(f'{name}/{side}_II', side) for side, n in lengths.items() if n <= max_dim]

  def init(params):
    grams, bases = {}, {}
    for path, x in jax.tree.leaves_with_path(params):
      name = path_name(path)
      count, *fans = matrix_shape(x.shape, views[name])
      for key, side in sides(name, x.shape, views[name]):
        n = min(fans) if side == 'short' else max(fans)
        grams[key] = jnp.zeros((count, n, n), jnp.float32)
        bases[key] = jnp.broadcast_to(jnp.eye(n, dtype=jnp.float32), (count, n, n))
    mu = jax.tree.map(lambda x: jnp.zeros_like(x, dtype=momentum_dtype), params)
    nu = jax.tree.map(lambda x: jnp.zeros_like(x, dtype=jnp.float32), params)
    return SoapState(jnp.zeros((), jnp.int32), mu, nu, grams, bases)

  def update(updates, state, params=None):
    del params
    first, t = state.count == 0, state.count.astype(jnp.float32)
    change = jnp.where(first, 0, jnp.where(state.count % every == 0, 1, 2))
    grams, bases = dict(state.grams), dict(state.bases)

    def leaf(path, g, mu, nu):
      name = path_name(path)
      view, own_sides = views[name], sides(name, g.shape, views[name])
      (g_BIO, restore), (mu_BIO, _), (nu_BIO, _) = (
        as_matrices(whole(x.astype(jnp.float32)), view) for x in (g, mu, nu)
      )
      rotation = {side: bases[key] for key, side in own_sides}
      new_mu = b1 * mu_BIO + (1 - b1) * g_BIO
      if of_momentum:
        ahead = b1 * new_mu + (1 - b1) * g_BIO
        turned = rotate(ahead, rotation)
        new_nu = b2 * nu_BIO + (1 - b2) * jnp.square(turned)
        white = rotate(turned / jnp.maximum(jnp.sqrt(new_nu), eps), rotation, back=True)
        out = jnp.where(first, ahead, white)
      else:
        turned = rotate(g_BIO, rotation)
        new_nu = b2 * nu_BIO + (1 - b2) * jnp.square(turned)
        # Bias corrections count updates, not gradients: the first gradient made none.
        adam = rotate(new_mu, rotation) / (1 - b1**t)
        adam /= jnp.sqrt(new_nu / (1 - b2**t)) + eps
        out = jnp.where(first, 0.0, rotate(adam, rotation, back=True))
      for key, side in own_sides:
        gram = b2 * grams[key] + (1 - b2) * _product(*_pair(g_BIO, side))
        basis, order = jax.lax.switch(
          change, (eigenvectors, power_iteration, keep), gram, bases[key]
        )
        grams[key], bases[key] = gram, basis
        by_row = side == 'short'
        order = order[:, :, None] if by_row else order[:, None]
        new_nu = jnp.take_along_axis(new_nu, order, axis=1 if by_row else 2)
      if not of_momentum:
        new_mu = jnp.where(first, mu_BIO, new_mu)
      new_nu = jnp.where(first, nu_BIO, new_nu)
      pairs = ((out, g), (new_mu, mu), (new_nu, nu))
      return tuple(reshard(restore(new), spec_of(like)).astype(like.dtype) for new, like in pairs)

    found = jax.tree.map_with_path(leaf, updates, state.mu, state.nu)
    out, mu, nu = jax.tree.transpose(jax.tree.structure(updates), None, found)
    return out, SoapState(state.count + 1, mu, nu, grams, bases)

  return optax.GradientTransformation(init, update)


def rotate(x_BIO: jax.Array, bases: Mapping[str, jax.Array], back: bool = False) -> jax.Array:
  """Qₛᵀ X Qₗ with the bases 'short' and 'long', or with `back` Qₛ X Qₗᵀ; a missing one is I."""
  turn = (lambda q: q) if back else (lambda q: jnp.swapaxes(q, 1, 2))
  if 'short' in bases:
    x_BIO = _product(turn(bases['short']), x_BIO)
  if 'long' in bases:
    x_BIO = _product(x_BIO, jnp.swapaxes(turn(bases['long']), 1, 2))
  return x_BIO


def eigenvectors(gram_BII: jax.Array, q_BII: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(eigenvectors by falling eigenvalue, the order in which old coordinates stay: as they were)."""
  basis_BII = jnp.linalg.eigh(gram_BII)[1][:, :, ::-1]
  return basis_BII, _as_they_were(q_BII)


def power_iteration(gram_BII: jax.Array, q_BII: jax.Array) -> tuple[jax.Array, jax.Array]:
  """One step of orthogonal iteration from q, its columns first sorted by falling Rayleigh quotient.

  Returns:
    (basis, order_BI): the second moment's coordinate i is from now on the one that was order[i].
  """
  product_BII = _product(gram_BII, q_BII)
  quotient_BI = jnp.sum(q_BII * product_BII, axis=1)
  order_BI = jnp.argsort(quotient_BI, axis=1, descending=True)
  sorted_BII = jnp.take_along_axis(product_BII, order_BI[:, None], axis=2)
  return jnp.linalg.qr(sorted_BII)[0], order_BI


def keep(gram_BII: jax.Array, q_BII: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The basis as it is."""
  del gram_BII
  return q_BII, _as_they_were(q_BII)


def _as_they_were(q_BII: jax.Array) -> jax.Array:
  return jnp.broadcast_to(jnp.arange(q_BII.shape[-1]), q_BII.shape[:2])


def _pair(g_BIO: jax.Array, side: str) -> tuple[jax.Array, jax.Array]:
  transposed = jnp.swapaxes(g_BIO, 1, 2)
  return (g_BIO, transposed) if side == 'short' else (transposed, g_BIO)


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)

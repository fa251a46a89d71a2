"""PSGD with a Kronecker-factored preconditioner (arXiv 1512.04202), one learned by its own descent.

Of each matrix two triangular factors Q₀, Q₁ are fitted so that Q₀ G Q₁ᵀ is white: the criterion is
E‖Q₀ G Q₁ᵀ‖² + E‖Q₀⁻ᵀ v Q₁⁻¹‖² with random v, whose descent on the group of triangular matrices is

  A = Q₀ G Q₁ᵀ,  B = Q₀⁻ᵀ v Q₁⁻¹,  Q₀ ← Q₀ − λ triu(AAᵀ − BBᵀ) Q₀ / ‖AAᵀ + BBᵀ‖₂,  Q₁ likewise

and the direction Q₀ᵀQ₀ M Q₁ᵀQ₁ of the momentum M, which G is too. As in modded-nanogpt's optimizer
track, where it stands on a hyperball (optimizer.hyperball). Factors are float32 and, on a mesh,
whole on every device, as in soap.py: for comparison at small sizes.
"""

import functools
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from smoljax.optim.matrices import (
  Params,
  View,
  as_matrices,
  matrix_shape,
  path_name,
  reshard,
  spec_of,
  whole,
)


class PsgdState(NamedTuple):
  """PSGD's momentum, and each matrix's factors."""

  count: jax.Array  # int32, updates made
  mu: Params  # first moment, as the parameters
  factors: dict[str, jax.Array]  # path/SIDE_II → Q₀ (short) and Q₁ (long), upper triangular


def scale_by_psgd(
  views: Mapping[str, View], *, beta: float, rate: float, momentum_dtype: jax.typing.DTypeLike
) -> optax.GradientTransformation:
  """PSGD-Kron's direction for leaves that are matrices, of which every one has a view.

  Args:
    beta: decay of the momentum, corrected for its bias.
    rate: λ.
  """

  def init(params):
    factors = {}
    for path, x in jax.tree.leaves_with_path(params):
      count, *sides = matrix_shape(x.shape, views[path_name(path)])
      for side, n in (('short', min(sides)), ('long', max(sides))):
        factors[f'{path_name(path)}/{side}_II'] = jnp.broadcast_to(jnp.eye(n), (count, n, n))
    mu = jax.tree.map(lambda x: jnp.zeros_like(x, dtype=momentum_dtype), params)
    return PsgdState(jnp.zeros((), jnp.int32), mu, factors)

  def update(updates, state, params=None):
    del params
    factors = dict(state.factors)

    def leaf(path, g, mu):
      name = path_name(path)
      new = beta * mu.astype(jnp.float32) + (1 - beta) * g.astype(jnp.float32)
      m_BIO, restore = as_matrices(whole(new / (1 - beta ** (state.count + 1))), views[name])
      short, long = f'{name}/short_II', f'{name}/long_II'
      # The first gradient sets the scale; what it is is found by the descent.
      fourth = jnp.mean(m_BIO**4, axis=(1, 2), keepdims=True)
      scale = jnp.where(state.count == 0, jnp.maximum(fourth, 1e-24) ** (-1 / 32), 1.0)
      noisy_BIO, v_BIO = probes(name, state.count, m_BIO)
      q0, q1 = jax.vmap(functools.partial(descend, rate=rate))(
        scale * factors[short], scale * factors[long], noisy_BIO, v_BIO)
      factors[short], factors[long] = q0, q1
      left, right = (jnp.swapaxes(q, 1, 2) @ q for q in (q0, q1))
      home = lambda x, like: reshard(x, spec_of(like)).astype(like.dtype)
      return home(restore(left @ m_BIO @ right), g), home(new, mu)

    found = jax.tree.map_with_path(leaf, updates, state.mu)
    out, mu = jax.tree.transpose(jax.tree.structure(updates), None, found)
    return out, PsgdState(state.count + 1, mu, factors)

  return optax.GradientTransformation(init, update)


def probes(name: str, count: jax.Array, m_BIO: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(the matrices with noise of the last bit, random matrices v), of an update's number."""
  key = jax.random.fold_in(jax.random.key(zlib.crc32(name.encode())), count)
  v_BIO, noise_BIO = jax.random.normal(key, (2, *m_BIO.shape))
  return m_BIO + jnp.finfo(jnp.float32).eps * jnp.abs(m_BIO) * noise_BIO, v_BIO


def descend(
  q0: jax.Array, q1: jax.Array, m_IO: jax.Array, v_IO: jax.Array, rate: float
) -> tuple[jax.Array, jax.Array]:
  """One step of descent on the factors of one matrix, which are balanced first."""
  solve = jax.scipy.linalg.solve_triangular
  balance = jnp.sqrt(jnp.max(jnp.abs(q1)) / jnp.max(jnp.abs(q0)))
  q0, q1 = q0 * balance, q1 / balance
  a = q0 @ m_IO @ q1.T
  b = solve(q1, solve(q0, v_IO, trans='T').T, trans='T').T

  def step(q, aa, bb):
    return q - rate / jnp.maximum(spectral_norm(aa + bb), 1e-30) * jnp.triu(aa - bb) @ q

  return step(q0, a @ a.T, b @ b.T), step(q1, a.T @ a, b.T @ b)


def spectral_norm(a_II: jax.Array) -> jax.Array:
  """Of a symmetric matrix without negative eigenvalues, by one and a half power iterations."""
  scale = jnp.maximum(jnp.max(jnp.abs(a_II)), 1e-30)
  a_II /= scale
  x = a_II @ a_II[:, jnp.argmax(jnp.sum(a_II * a_II, axis=0))]
  return scale * jnp.linalg.norm(a_II @ (x / jnp.maximum(jnp.linalg.norm(x), 1e-30)))

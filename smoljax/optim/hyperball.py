"""The hyperball: matrices whose norm never changes, so that a rate is an angle and decay is moot.

A direction u moves a matrix W along the sphere of its own radius (the "H" of MuonH and AdamH, after
modded-nanogpt's optimizer track; arXiv 2606.16899):

  V = W − η ‖W‖ u / ‖u‖,   W ← V ‖W‖ / ‖V‖

with Frobenius norms, a matrix at a time: η is the angle's tangent, whatever the sizes of u and W.
The radius is not stored but that of W as it is: what QK-Clip or a checkpoint makes of a matrix
stands, and rounding moves the norm by 1e-7 in thousands of steps. The initialisation decides it
(model.init_std), as no later step can: a matrix of zeros would never move, and is refused.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from smoljax.optim.matrices import Params, View, path_name


def relative(views: Mapping[str, View]) -> optax.GradientTransformation:
  """u → u ‖W‖ / ‖u‖ for the leaves that have a view; to stand before the learning rate.

  Raises:
    ValueError: at init, a matrix of zeros (where its values are known: not while tracing).
  """

  def init(params):
    for path, x in jax.tree.leaves_with_path(params):
      view = views.get(path_name(path))
      known = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
      if view and known and not bool(jnp.all(frobenius(x, view) > 0)):
        raise ValueError(f'optimizer.hyperball: {path_name(path)} has a matrix of zeros, which '
                         'could never move: initialise it otherwise')
    return optax.EmptyState()

  def leaf(path, u, w):
    if (view := views.get(path_name(path))) is None:
      return u
    return u * (frobenius(w, view) / jnp.maximum(frobenius(u, view), 1e-10))

  def update(updates, state, params=None):
    return jax.tree.map_with_path(leaf, updates, params), state

  return optax.GradientTransformation(init, update)


def project(views: Mapping[str, View]) -> optax.GradientTransformation:
  """Δ → the step from W to where W + Δ meets W's sphere again; the last of a chain."""

  def leaf(path, delta, w):
    if (view := views.get(path_name(path))) is None:
      return delta
    moved = w + delta
    return moved * (frobenius(w, view) / jnp.maximum(frobenius(moved, view), 1e-30)) - w

  return optax.stateless(lambda updates, params: jax.tree.map_with_path(leaf, updates, params))


def frobenius(x: Params, view: View) -> jax.Array:
  """Norm of each matrix of a leaf, float32 or more, with dims of 1 for the matrix's own."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  dims = tuple(d % x.ndim for d in view.fan_in + view.fan_out)
  return jnp.sqrt(jnp.sum(jnp.square(wide), axis=dims, keepdims=True))

"""Clipping of gradients: by a fixed norm, by its history (ZClip), per leaf (AdaGC)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from smoljax.optim.matrices import Params, path_name


def norm(tree: Params) -> jax.Array:
  """Global norm, float32."""
  return jnp.sqrt(sum(jnp.sum(squares(x)) for x in jax.tree.leaves(tree)))


def layer_norms(blocks: Params) -> jax.Array:
  """Norm of each layer's part of a tree whose leaves are stacked layers `[L, …]`: float32 [L]."""
  return jnp.sqrt(sum(map(squares, jax.tree.leaves(blocks))))


def squares(x: jax.Array) -> jax.Array:
  """Sum of squares over all dims but the first, float32; of a stack of layers, each layer's.

  The barrier keeps the compiler from summing over all dims at once where that is asked for too: so
  norms of leaves, of layers and of everything take one look at the leaves.
  """
  sums = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=tuple(range(1, x.ndim)))
  return jax.lax.optimization_barrier(sums)


class ClipState(NamedTuple):
  """State of clipping by the global norm."""

  clip_kept: jax.Array  # float32, the last gradients' norm after clipping over that before


def clip_by_norm(max_norm: float) -> optax.GradientTransformation:
  """Gradients of a larger global norm are scaled down to it."""

  def init(params):
    del params
    return ClipState(jnp.ones(()))

  def update(grads, state, params=None):
    del state, params
    grads, kept = _scale_to(grads, norm(grads), max_norm)
    return grads, ClipState(kept)

  return optax.GradientTransformation(init, update)


def clip_kept(opt_state: Any) -> jax.Array:
  """`clip_kept` (see ClipState) in the state of `make_optimizer`'s transformation."""
  return optax.tree.get(opt_state, 'clip_kept')


class ZClipState(NamedTuple):
  """State of ZClip: the usual norm and how much it varies."""

  clip_kept: jax.Array  # as ClipState's
  count: jax.Array  # int32, steps seen
  mean: jax.Array  # of the gradient's norm, float32
  var: jax.Array


def zclip(
  max_norm: float, *, threshold: float = 2.5, decay: float = 0.97, warmup: int = 25
) -> optax.GradientTransformation:
  """Clips the global norm by its own statistics: ZClip (arXiv 2504.02507).

  With z = (‖g‖ − mean) / std above the threshold t, ‖g‖ becomes mean + t²/z · std: the further out,
  the harder. Mean and variance are those of the first `warmup` norms, then exponential averages of
  the clipped ones. Never above `max_norm`, the only bound during the warm-up.
  """

  def init(params):
    del params
    return ZClipState(jnp.ones(()), jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(()))

  def update(grads, state, params=None):
    del params
    length, std = norm(grads), jnp.sqrt(state.var)
    z = (length - state.mean) / jnp.maximum(std, 1e-6)
    warm = state.count < warmup
    clipped = jnp.where(~warm & (z > threshold), state.mean + threshold**2 / z * std, length)
    # Welford's sums while it warms up, which make the population's variance.
    share = jnp.where(warm, 1 / (state.count + 1), 1 - decay)
    mean = state.mean + share * (clipped - state.mean)
    spread = (clipped - mean) * jnp.where(warm, clipped - state.mean, clipped - mean)
    var = state.var + share * (spread - state.var)
    grads, kept = _scale_to(grads, length, jnp.minimum(clipped, max_norm))
    return grads, ZClipState(kept, state.count + 1, mean, var)

  return optax.GradientTransformation(init, update)


class AdaGCState(NamedTuple):
  """State of AdaGC: the usual norm of each tensor."""

  clip_kept: jax.Array  # as ClipState's
  count: jax.Array  # int32, steps seen
  norms: dict[str, jax.Array]  # path → usual norm of the tensor, [L] for a stack of layers


def adagc(
  max_norm: float, *, factor: float = 1.05, decay: float = 0.98, warmup: int = 100
) -> optax.GradientTransformation:
  """Clips each tensor by its own past: AdaGC (arXiv 2502.11034); a stack of layers is L tensors.

  A gradient longer than `factor` times its usual norm is cut to that; the usual norm is an
  exponential average of what that lets through. Before this during the warm-up, when the usual norm
  is the smallest seen, and after it from then on, the global norm is clipped to `max_norm`.
  """

  def axes(path, x):
    return tuple(range(int(path_name(path).startswith('blocks/')), x.ndim))

  def key(path):
    return path_name(path) + '/norm_L'

  def init(params):
    norms = {
      key(path): jnp.full(x.shape[: x.ndim - len(axes(path, x))], jnp.inf)
      for path, x in jax.tree.leaves_with_path(params)
    }
    return AdaGCState(jnp.ones(()), jnp.zeros((), jnp.int32), norms)

  def update(grads, state, params=None):
    del params
    warm = state.count < warmup
    whole = norm(grads)
    globally = jnp.where(warm, jnp.minimum(1, max_norm / (whole + 1e-6)), 1)
    norms, kept_sq = {}, []

    def leaf(path, g):
      usual, name = state.norms[key(path)], key(path)
      length = globally * jnp.sqrt(jnp.sum(jnp.square(g.astype(jnp.float32)), axis=axes(path, g)))
      clipped = jnp.where(warm, length, jnp.minimum(length, factor * usual))
      averaged = decay * usual + (1 - decay) * clipped
      norms[name] = jnp.where(warm, jnp.minimum(usual, length), averaged)
      kept_sq.append(jnp.sum(jnp.square(clipped)))
      scale = globally * jnp.where(length > 0, clipped / jnp.maximum(length, 1e-30), 1)
      return g * scale.reshape(*scale.shape, *[1] * len(axes(path, g))).astype(g.dtype)

    grads = jax.tree.map_with_path(leaf, grads)
    left = jnp.sqrt(sum(kept_sq))
    grads, scale = _scale_to(grads, left, jnp.where(warm, jnp.inf, max_norm))
    kept = jnp.where(whole > 0, scale * left / whole, 1.0)
    return grads, AdaGCState(kept, state.count + 1, norms)

  return optax.GradientTransformation(init, update)


def watching(clip: optax.GradientTransformation) -> optax.GradientTransformation:
  """A clip that changes no gradient but keeps its state, so that a run may begin or cease to clip.

  Args:
    clip: one of CLIPS with its norm.
  """

  def update(grads, state, params=None):
    after: Any = clip.update(grads, state, params)[1]
    return grads, after._replace(clip_kept=jnp.ones(()))

  return optax.GradientTransformation(clip.init, update)


def _scale_to(
  grads: Params, length: jax.Array, target: jax.Array | float
) -> tuple[Params, jax.Array]:
  """The gradients no longer than `target`, and by what they were scaled; NaN if length is."""
  scale = jnp.where(length <= target, 1.0, target / jnp.maximum(length, 1e-30))
  return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads), scale


# Largest norm → transform of gradients.
CLIPS: dict[str, Callable[[float], optax.GradientTransformation]] = {
  'norm': clip_by_norm,
  'zclip': zclip,
  'adagc': adagc,
}

"""Muon: the momentum of each weight matrix, orthogonalised, is the update.

Write the momentum's SVD as U S Vᵀ. Muon steps along U Vᵀ: every direction the gradient has seen
moves equally far. That is steepest descent under the spectral norm; no Hessian is approximated.
U Vᵀ comes from a few matrix products alone: the odd polynomial p(X) = aX + b(XXᵀ)X + c(XXᵀ)²X acts
on the singular values only, and iterated with the right coefficients drives them all towards 1.

References: Keller Jordan's Muon (github.com/KellerJordan/Muon); Moonlight (arXiv 2502.16982) for
the scale that makes AdamW's learning rate fit; Polar Express (arXiv 2505.16932) for `pe`, `pe5`.

Kernels here are [fan_in, fan_out] (y = x @ W); torch stores [out, in]. A leaf is one matrix or
many: a `View` names the dims of fan-in and fan-out, and all other dims (layers, heads) are a batch.
What is a matrix is said by the caller, by role; nothing is guessed from the number of dims.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from smoljax.optim.matrices import (
  Params,
  View,
  as_matrices,
  fans,
  path_name,
  reshard,
  short_side,
  spec_of,
)
from smoljax.optim.newton_schulz import coefficient_table, newton_schulz

_LARGE = 1 << 26  # elements of a leaf


class MuonState(NamedTuple):
  """What Muon keeps between updates."""

  count: jax.Array  # int32, updates made
  mu: Params  # first moment, as the parameters
  nu: dict[str, jax.Array]  # path/nu_DIMS → mean square of the update: NorMuon's, AdaMuon's


def scale_by_muon(
  views: Mapping[str, View],
  *,
  beta: float,
  beta_start: float,
  beta_warmup: int,
  momentum: str,
  nesterov: bool,
  coefficients: str,
  steps: int,
  scale_rule: str,
  rms: float,
  normuon: float,
  adamuon: float = 0.0,
  at_once: int,
  compute_dtype: jax.typing.DTypeLike,
  momentum_dtype: jax.typing.DTypeLike,
) -> optax.GradientTransformation:
  """Momentum, Nesterov look-ahead, Newton–Schulz, scale by shape (Keller Jordan's step).

  Compose with weight decay and `optax.scale_by_learning_rate`: W ← W − lr·(O + wd·W). Clipping the
  gradients of these leaves would change nothing but the share of this step in the momentum: the
  direction does not depend on the gradient's size.

  Leaves whose matrices have one shape and one sharding go through the iteration in one call, but
  for large ones of a single device, which to join takes longer than a call more. Under a mesh of
  Explicit axes such a stack is first spread over all devices, whole matrices on each, and brought
  back after: no communication inside the iteration.

  Args:
    views: path of a leaf ('blocks/attn/q_DNH') → its View. Every leaf must have one.
    beta: decay of the first moment M.
    beta_start, beta_warmup: over its first `beta_warmup` updates the decay rises linearly from
      `beta_start` to `beta` (modded-nanogpt); 0 = it is `beta` at once.
    momentum: a name in MOMENTA: 'average', M ← beta·M + (1 − beta)·G, or 'debiased', the same over
      1 − beta^t as in Adam (optax), which weighs the look-ahead of the first steps otherwise. (The
      sum M ← beta·M + G differs from the average by a factor that the iteration divides out.)
    nesterov: orthogonalise beta·M + (1 − beta)·G rather than M.
    coefficients, steps: as in newton_schulz.
    scale_rule: a name in SCALE_RULES, a factor from the fan-in and fan-out of the view.
    rms: root mean square of the update's elements under 'moonlight' (AdamW's is about 0.2).
    normuon: decay of NorMuon's second moment (arXiv 2510.05491: 0.95); 0 = plain Muon. The mean
      square of the orthogonalised update along the short side of each matrix is averaged over time,
      the update divided by its root, and brought back to the size it had.
    adamuon: the same of each element, its square averaged over time alone (AdaMuon, arXiv
      2507.11005, whose code has .999 and no sign before the iteration); 0 = plain Muon.
    at_once: how many matrices each device iterates on at a time, for less scratch memory; 0 = all.
    compute_dtype: of the iteration and of what travels between devices; not float16.
    momentum_dtype: of the stored first moment.

  Raises:
    ValueError: an unknown name, a dtype of too small a range, or (at init) a leaf without a view.
  """
  coefficient_table(coefficients, steps)
  if momentum not in MOMENTA:
    raise ValueError(f'momentum {momentum!r}: choose one of {", ".join(MOMENTA)}')
  if momentum == 'debiased' and beta_warmup:
    raise ValueError("momentum='debiased' wants a constant beta: set beta_warmup to 0")
  if scale_rule not in SCALE_RULES:
    raise ValueError(f'scale_rule {scale_rule!r}: choose one of {", ".join(SCALE_RULES)}')
  if normuon and adamuon:
    raise ValueError('muon.normuon and muon.adamuon are two ways to even out one update: set one')
  if jnp.finfo(compute_dtype).maxexp < 128:
    raise ValueError(f'compute_dtype {compute_dtype}: gradients need the range of bfloat16')

  iterate = functools.partial(
    _iterate, function=lambda x: newton_schulz(x, coefficients, steps, compute_dtype),
    at_once=at_once)
  # The dims of a leaf over which a mean square is a mean, and the name of what is left of it.
  kept_together = short_side if normuon else lambda name, view, shape: (
    (), f'{name}/nu_{name.rpartition("_")[2]}')

  def init(params):
    for path, x in jax.tree.leaves_with_path(params):
      if (name := path_name(path)) not in views:
        raise ValueError(f'Muon has no matrix view for {name!r} {x.shape}: add one to views')
    mu = jax.tree.map(lambda x: jnp.zeros_like(x, dtype=momentum_dtype), params)
    nu = {}
    if normuon or adamuon:
      for path, x in jax.tree.leaves_with_path(params):
        short, key = kept_together(path_name(path), views[path_name(path)], x.shape)
        kept = tuple(n for d, n in enumerate(x.shape) if d not in short)
        nu[key] = jnp.zeros(kept, jnp.float32)
    return MuonState(jnp.zeros((), jnp.int32), mu, nu)

  def update(updates, state, params=None):
    del params
    decay = beta
    if beta_warmup:
      decay = beta_start + (beta - beta_start) * jnp.minimum(1.0, state.count / beta_warmup)

    def average(m, g, of_m=1.0, of_g=1.0):
      wide = jnp.result_type(m, g, jnp.float32)
      return of_m * decay * m.astype(wide) + of_g * (1 - decay) * g.astype(wide)

    mu = jax.tree.map(average, state.mu, updates)
    direction = mu
    if nesterov:
      of_m, of_g = MOMENTA[momentum](beta, state.count + 1)
      direction = jax.tree.map(lambda m, g: average(m, g, of_m, of_g), mu, updates)
    mu = jax.tree.map(lambda m: m.astype(momentum_dtype), mu)
    scale = lambda i, o: SCALE_RULES[scale_rule](i, o, rms)
    direction = _orthogonalize(direction, views, iterate, scale, compute_dtype)
    nu = dict(state.nu)
    if normuon or adamuon:
      def evened(path, o):
        name, view = path_name(path), views[path_name(path)]
        return _normalize(o, nu, view, normuon or adamuon, *kept_together(name, view, o.shape))

      direction = jax.tree.map_with_path(evened, direction)
    return direction, MuonState(state.count + 1, mu, nu)

  return optax.GradientTransformation(init, update)


def _iterate(stack_BIO: jax.Array, function: Callable, at_once: int) -> jax.Array:
  """`function` of a stack of matrices, `at_once` of them at a time on each device; 0 = all."""
  def here(stack):
    return jax.lax.map(function, stack, batch_size=at_once) if at_once else function(stack)

  if (spec := spec_of(stack_BIO)) is None:
    return here(stack_BIO)
  # Each device by itself: what XLA cannot split, a kernel of ours, is in it.
  return jax.shard_map(here, in_specs=P(*spec), out_specs=P(*spec), check_vma=False)(stack_BIO)


def _orthogonalize(
  updates: Params,
  views: Mapping[str, View],
  iterate: Callable[[jax.Array], jax.Array],
  scale: Callable[[int, int], float],
  compute_dtype: jax.typing.DTypeLike,
) -> Params:
  """Direction of every leaf: grouped by matrix shape, one call of `iterate` a group.

  What is large and moves between no devices stays apart: to be joined it would be copied.
  """
  leaves, treedef = jax.tree.flatten_with_path(updates)
  groups: dict[Any, list] = {}
  for index, (path, x) in enumerate(leaves):
    view = views[path_name(path)]
    stack_BIO, restore = as_matrices(x.astype(compute_dtype), view, wide=False)
    # Two stacks can be joined without communication only if they are sharded alike.
    spec = spec_of(stack_BIO)
    moves = spec is not None and jax.typeof(stack_BIO).sharding.mesh.size > 1
    key = index if stack_BIO.size >= _LARGE and not moves else (stack_BIO.shape[1:], spec)
    groups.setdefault(key, []).append((index, stack_BIO, scale(*fans(x.shape, view)), restore))
  out: list[Any] = [None] * len(leaves)
  for members in groups.values():
    stacks = [stack for _, stack, _, _ in members]
    spread, gather = _whole_matrices(jnp.concatenate(stacks) if stacks[1:] else stacks[0])
    o_BIO = gather(iterate(spread))
    start = 0
    for index, stack, factor, restore in members:
      o = restore(o_BIO[start : start + stack.shape[0]])
      out[index] = o.astype(leaves[index][1].dtype) * factor  # the moment's dtype: float32 or more
      start += stack.shape[0]
  return jax.tree.unflatten(treedef, out)


def _normalize(
  o: jax.Array, nu: dict[str, jax.Array], view: View, decay: float, short: tuple[int, ...], key: str
) -> jax.Array:
  """NorMuon's or AdaMuon's step on one leaf; its second moment goes into `nu`.

  Without a correction of its bias: that would be a factor, and the update's size is restored.
  """
  whole = tuple(d % o.ndim for d in view.fan_in + view.fan_out)
  size = lambda x: jnp.sqrt(jnp.sum(jnp.square(x), axis=whole, keepdims=True))
  squares = jnp.mean(jnp.square(o), axis=short) if short else jnp.square(o)
  mean = decay * nu[key] + (1 - decay) * squares
  nu[key] = reshard(mean, spec_of(nu[key])).astype(nu[key].dtype)
  scaled = o * jax.lax.rsqrt(jnp.maximum(jnp.expand_dims(mean, short), 1e-10))
  return scaled * (size(o) / jnp.maximum(size(scaled), 1e-10))


def _whole_matrices(stack_BIO: jax.Array) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
  """A stack spread over all devices of its mesh by its first dim, and the function that undoes it.

  The mesh axes move one at a time, first those that held copies (a local slice), then those that
  cut the matrices (one all-to-all each): asked for all at once, XLA replicates the stack instead.
  Zeros fill the stack up to a multiple of the mesh; Newton–Schulz leaves them zero.
  """
  home = spec_of(stack_BIO)
  mesh = jax.typeof(stack_BIO).sharding.mesh
  if home is None:
    return stack_BIO, lambda o: o
  axes_of = lambda axes: () if axes is None else (axes if isinstance(axes, tuple) else (axes,))
  rows, cols = axes_of(home[1]), axes_of(home[2])
  moves = [a for a in mesh.axis_names if a not in rows + cols] + [*rows[::-1], *cols[::-1]]
  hops = [tuple(home)]
  for n in range(1, len(moves) + 1):
    moved = tuple(moves[:n])
    left = [tuple(a for a in axes if a not in moved) or None for axes in (rows, cols)]
    hops.append((moved, *left))
  size = stack_BIO.shape[0]
  x = jnp.pad(stack_BIO, ((0, -size % mesh.size), (0, 0), (0, 0)))
  for spec in hops[1:]:
    x = reshard(x, spec)

  def gather(o_BIO):
    for spec in hops[-2::-1]:
      o_BIO = reshard(o_BIO, spec)
    return o_BIO[:size]

  return x, gather


# (beta, number of this update) → factors on moment and gradient in Nesterov's look-ahead.
# Without it all are the same: the iteration divides any factor out.
MOMENTA: dict[str, Callable[[float, jax.Array], tuple[Any, Any]]] = {
  'average': lambda beta, t: (1.0, 1.0),
  'debiased': lambda beta, t: (1 / (1 - beta ** (t + 1)), 1 / (1 - beta**t)),
}

# (fan_in, fan_out, rms) → factor on an orthogonalised matrix, whose RMS is 1/√max(fan_in, fan_out).
SCALE_RULES: dict[str, Callable[[int, int, float], float]] = {
  'jordan': lambda i, o, rms: math.sqrt(max(1, o / i)),  # learning rates near 0.02
  'spectral': lambda i, o, rms: math.sqrt(o / i),  # unit RMS-to-RMS operator norm
  'moonlight': lambda i, o, rms: rms * math.sqrt(max(i, o)),  # AdamW's learning rate and decay fit
  'none': lambda i, o, rms: 1.0,
}

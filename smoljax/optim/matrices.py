"""Parameters as stacks of matrices: which dims are rows, which columns, and their places."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

Params = Any  # nested dict of arrays, or of anything with a shape


class View(NamedTuple):
  """The dims of a leaf that are a matrix's fan-in and fan-out, for example (-3,) and (-2, -1)."""

  fan_in: tuple[int, ...]
  fan_out: tuple[int, ...]


def path_name(path: tuple[Any, ...]) -> str:
  """Key path of a leaf as text: 'blocks/attn/q_DNH'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def matrix_shape(shape: tuple[int, ...], view: View) -> tuple[int, int, int]:
  """(number of matrices, fan_in, fan_out) of a leaf of this shape seen through its view."""
  fan_in, fan_out = fans(shape, view)
  return math.prod(shape) // (fan_in * fan_out), fan_in, fan_out


def fans(shape: tuple[int, ...], view: View) -> tuple[int, int]:
  """(fan_in, fan_out) of a leaf of this shape seen through its view."""
  return math.prod(shape[d] for d in view.fan_in), math.prod(shape[d] for d in view.fan_out)


def short_side(name: str, view: View, shape: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
  """(the dims of a leaf that are the short side of its matrices, a name for what is left).

  The name ends in the letters of the dims that are left, as names of parameters do.
  """
  fan_in, fan_out = fans(shape, view)
  short = tuple(d % len(shape) for d in (view.fan_in if fan_out >= fan_in else view.fan_out))
  letters = name.rpartition('_')[2]
  extra = len(shape) - len(letters)  # the stack of layers has no letter
  return short, f'{name}/nu_{"".join(c for i, c in enumerate(letters, extra) if i not in short)}'


def spec_of(x: jax.Array) -> tuple | None:
  """Mesh axes of each dim if x is on a mesh of Explicit axes; else None: nothing to reshard."""
  sharding = jax.typeof(x).sharding
  if sharding.mesh.empty or any(t != AxisType.Explicit for t in sharding.mesh.axis_types):
    return None
  return (*sharding.spec, *[None] * (x.ndim - len(sharding.spec)))


def reshard(x: jax.Array, spec: tuple | None) -> jax.Array:
  """x moved to these mesh axes of its dims; as it is where there are none to move to."""
  if spec is None or spec == spec_of(x):
    return x
  return jax.reshard(x, NamedSharding(jax.typeof(x).sharding.mesh, P(*spec)))


def whole(x: jax.Array) -> jax.Array:
  """x as it is on every device of its mesh."""
  return reshard(x, None if spec_of(x) is None else (None,) * x.ndim)


def reshape(x: jax.Array, shape: tuple[int, ...], spec: tuple | None) -> jax.Array:
  """jnp.reshape, with these mesh axes for the new dims if there are any."""
  if spec is None:
    return jnp.reshape(x, shape)
  return jnp.reshape(x, shape, out_sharding=NamedSharding(jax.typeof(x).sharding.mesh, P(*spec)))


def as_matrices(
  x: jax.Array, view: View, *, wide: bool = True
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
  """A leaf as one stack of matrices, and the function that undoes it.

  With `wide` they are no taller than wide; else those that are lie as they do, since to turn them
  costs passes over all that is computed from them.
  Joining dims is free where only the first of them is sharded (heads of [heads, head_dim], say). An
  axis found elsewhere, on layers or on head_dim, is gathered first.
  """
  fan_in = tuple(d % x.ndim for d in view.fan_in)
  fan_out = tuple(d % x.ndim for d in view.fan_out)
  batch = tuple(d for d in range(x.ndim) if d not in fan_in + fan_out)
  home, order = spec_of(x), (*batch, *fan_in, *fan_out)
  clean = merged = None
  if home is not None:
    kept = (fan_in[0], fan_out[0])
    clean = tuple(axes if d in kept else None for d, axes in enumerate(home))
    merged = (None, *(clean[d] for d in kept))
  shape_BIO = tuple(math.prod(x.shape[d] for d in dims) for dims in (batch, fan_in, fan_out))
  y = jnp.transpose(reshard(x, clean), order)
  split, split_spec = y.shape, spec_of(y)
  y = reshape(y, shape_BIO, merged)
  # Which way a square matrix lies is free: choose it by sharding, so that q and o can be joined.
  flip = wide and shape_BIO[1] > shape_BIO[2]
  if merged is not None and shape_BIO[1] == shape_BIO[2]:
    flip = str(merged[1]) > str(merged[2])

  def restore(o_BIO):
    o_BIO = jnp.swapaxes(o_BIO, 1, 2) if flip else o_BIO
    o = reshape(o_BIO, split, split_spec)
    return reshard(jnp.transpose(o, tuple(order.index(d) for d in range(x.ndim))), home)

  return (jnp.swapaxes(y, 1, 2) if flip else y), restore

"""Where arrays live: mesh axes, logical names → PartitionSpec, host batches → global arrays.

The mesh has four axes. `data` replicates the parameters, `fsdp` also splits them, `tensor` splits
heads, MLP columns and vocabulary, `context` splits the sequence in activations and batches. Axis
types are Explicit, so a mistake is an error while tracing; computation runs under
`with jax.set_mesh(mesh):` and everything here does nothing without a mesh. `jax.jit` on arrays
(or abstract arrays) that carry shardings is what used to be called pjit; there is no other way in.

A parameter's name ends in its dims (`q_DNH`), so its name is also its sharding.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any

AXES = ('data', 'fsdp', 'tensor', 'context')

# Logical name → mesh axis (or axes) it is split over. `embed` is the model dim of a stored
# parameter; `residual` is the same dim in activations and in weights gathered for use.
RULES: dict[str, str | tuple[str, ...] | None] = {
  'batch': ('data', 'fsdp'),
  'length': 'context',
  'residual': None,
  'layers': None,
  'embed': 'fsdp',
  'mlp': 'tensor',
  'heads': 'tensor',
  'kv_heads': 'tensor',
  'head_dim': None,
  'vocab': 'tensor',
  'side': None,
  'rank': None,
}

# The letters of the shape legend that appear in parameter names.
DIMS = {
  'D': 'embed',
  'F': 'mlp',
  'N': 'heads',
  'K': 'kv_heads',
  'H': 'head_dim',
  'V': 'vocab',
  'L': 'layers',
  'E': 'residual',  # the model dim again, where a matrix has it on both sides
  'I': 'side',  # of a matrix that an optimizer keeps whole
  'R': 'rank',  # of an adapter
}


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  context: int = 1,
  *,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """An Explicit mesh over all devices (of all processes); at most one size is -1 = what is left.

  Raises ValueError if the sizes do not multiply to the number of devices.
  """
  devices = list(devices) if devices is not None else jax.devices()
  sizes = dict(zip(AXES, (data, fsdp, tensor, context), strict=True))
  for axis, size in sizes.items():
    if size != -1 and size < 1:
      raise ValueError(f'mesh axis {axis}={size}: give a positive size, or -1 for what is left')
  free = [axis for axis, size in sizes.items() if size == -1]
  if len(free) > 1:
    raise ValueError(f'mesh axes {" and ".join(free)} are both -1: at most one can be automatic')
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if len(devices) % fixed or (not free and fixed != len(devices)):
    text = ' x '.join(f'{axis}={size}' for axis, size in sizes.items())
    raise ValueError(
      f'mesh {text} does not fit {len(devices)} device(s): '
      f'the sizes must multiply to {len(devices)}; set one of them to -1 to have it computed'
    )
  if free:
    sizes[free[0]] = len(devices) // fixed
  return jax.make_mesh(
    tuple(sizes.values()), AXES, axis_types=(AxisType.Explicit,) * len(AXES), devices=devices
  )


def workers() -> list[jax.Device]:
  """Devices of this process that each do work of their own; a CPU is one, with all its cores."""
  devices = jax.local_devices()
  return devices[:1] if devices[0].platform == 'cpu' else devices


@contextlib.contextmanager
def all_devices(params: PyTree) -> Iterator[PyTree]:
  """Sets a mesh over this process's devices, over which batches are split; each holds the params.

  Gives the parameters, so placed.
  """
  mesh = make_mesh(devices=jax.local_devices())
  with jax.set_mesh(mesh):
    yield jax.device_put(params, shardings(params, mesh))


def place(tree: PyTree, places: PyTree) -> PyTree:
  """`jax.device_put`, also over several processes, each of which has the same whole arrays."""
  def put(x, where):
    if where.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
      return jax.device_put(x, where)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, where, x.__getitem__)

  return jax.tree.map(put, tree, places)


def spec(*names: str | None) -> PartitionSpec:
  """The PartitionSpec of an array whose dims bear these logical names (None: not split)."""
  unknown = [n for n in names if n is not None and n not in RULES]
  if unknown:
    raise ValueError(f'unknown logical dim {unknown[0]!r}: one of {", ".join(RULES)}')
  return PartitionSpec(*(None if n is None else RULES[n] for n in names))


def out(*names: str | None) -> PartitionSpec | None:
  """`spec(*names)` for `out_sharding=` arguments; None when no mesh is set."""
  return None if _no_mesh() else spec(*names)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Reshard `x` to `spec(*names)`; the identity when no mesh is set."""
  if len(names) != x.ndim:
    raise ValueError(f'constrain: {len(names)} names {names} for an array of {x.ndim} dims')
  return x if _no_mesh() else jax.reshard(x, spec(*names))


def whole(tree: PyTree) -> PyTree:
  """Every array whole on each device, so that each process of a run can read it."""
  return jax.tree.map(lambda x: constrain(x, *(None,) * x.ndim), tree)


def reduced(x: jax.Array) -> jax.Array:
  """An array that is whole wherever places are split, so that its gradients stay partial sums.

  Each device then sums its own places' gradients (`unreduced` in jax's terms), until `like` adds
  them up. The identity where the mesh splits no places.
  """
  if num_parts('batch') * num_parts('length') == 1:
    return x
  split = jax.typeof(x).sharding.spec.partitions
  axes = {*(RULES['batch'] or ()), RULES['length']}
  return jax.reshard(x, PartitionSpec(*split, reduced=axes))


def zero_gradient(x: jax.Array) -> jax.Array:
  """Zeros, float32, to sum gradients of `x` in; as it is `reduced` they are not."""
  spec = jax.typeof(x).sharding.spec
  return jnp.zeros(x.shape, jnp.float32, out_sharding=None if _no_mesh() else
                   PartitionSpec(*spec.partitions, unreduced=spec.reduced))


def like(gradient: jax.Array, x: jax.Array) -> jax.Array:
  """The gradient summed over devices, if it was not, and split as `x` is."""
  return gradient if _no_mesh() else jax.reshard(gradient, jax.typeof(x).sharding.spec)


def num_parts(name: str) -> int:
  """Into how many parts the mesh that is set splits this logical dim; 1 without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else _num_shards(mesh, spec(name)[0])


def zigzag(x: jax.Array) -> jax.Array:
  """[B, T, …] whole rows → split as `context` devices share them, in the order they compute in.

  Causal attention gives late tokens more work. So a row is cut into 2C pieces and device r holds
  pieces r and 2C - 1 - r (as in Llama 3, arXiv:2407.21783): each pair has the same work. The
  identity where no mesh splits the sequence. `unzigzag` is the way back, for hidden states.

  Raises ValueError if T does not divide into 2C pieces.
  """
  parts = num_parts('length')
  names = ('batch' if x.shape[0] > 1 else None, 'length', *(None,) * (x.ndim - 2))
  if parts > 1:
    x = zigzag_parts(constrain(x, names[0], *(None,) * (x.ndim - 1)), parts)
  return constrain(x, *names)


def zigzag_parts(x: jax.Array, parts: int, *, back: bool = False) -> jax.Array:
  """Whole rows [B, T, …] with their pieces in the devices' order, or `back` in reading order."""
  B, T, *rest = x.shape
  if T % (2 * parts):
    raise ValueError(f'rows of {T} tokens do not divide over the mesh (context={parts}, two pieces '
                     f'a device): use a multiple of {2 * parts}')
  order = np.array([piece for r in range(parts) for piece in (r, 2 * parts - 1 - r)])
  order = np.argsort(order) if back else order
  return x.reshape(B, 2 * parts, T // (2 * parts), *rest)[:, order].reshape(x.shape)


def unzigzag(x_BTD: jax.Array) -> jax.Array:
  """Hidden states of a zigzag row, back in reading order; each device swaps one half."""
  parts, axis = num_parts('length'), RULES['length']
  if parts == 1:
    return x_BTD
  names = ('batch', 'length', 'residual')

  def swap(x_BTD):
    # Of pieces r and 2C - 1 - r one is even and one odd; piece p goes to device p // 2.
    first, second = jnp.split(x_BTD, 2, axis=1)
    held = [(r, 2 * parts - 1 - r) for r in range(parts)]
    moves = [[(r, p // 2) for r, pieces in enumerate(held) for p in pieces if p % 2 == parity]
             for parity in (0, 1)]
    even = jax.lax.axis_index(axis) % 2 == 0
    return jnp.concatenate([
      jax.lax.ppermute(jnp.where(even, first, second), axis, moves[0]),
      jax.lax.ppermute(jnp.where(even, second, first), axis, moves[1]),
    ], axis=1)  # fmt: skip

  return jax.shard_map(swap, out_specs=spec(*names), check_vma=False)(constrain(x_BTD, *names))


def slices(x: jax.Array, size: int) -> jax.Array:
  """[B, T, …] → [n, B, c, …] to scan over, c being `size` places of each device that T is split on.

  The largest divisor of a device's places up to `size` is used. `unsliced` puts it back.
  """
  B, T, *rest = x.shape
  parts = num_parts('length')
  size = next(c for c in range(min(size, T // parts), 0, -1) if T // parts % c == 0)
  none = (None,) * len(rest)
  x = constrain(x, 'batch', 'length', *none)
  x = jnp.reshape(x, (B, parts, T // parts // size, size, *rest),
                  out_sharding=out('batch', 'length', None, None, *none))
  return jnp.reshape(jnp.moveaxis(x, 2, 0), (T // parts // size, B, parts * size, *rest),
                     out_sharding=out(None, 'batch', 'length', *none))


def unsliced(x: jax.Array) -> jax.Array:
  """[n, B, c, …] of `slices` → [B, T, …]."""
  n, B, c, *rest = x.shape
  parts, none = num_parts('length'), (None,) * len(rest)
  x = jnp.reshape(x, (n, B, parts, c // parts, *rest),
                  out_sharding=out(None, 'batch', 'length', None, *none))
  return jnp.reshape(jnp.moveaxis(x, 0, 2), (B, n * c, *rest),
                     out_sharding=out('batch', 'length', *none))


def dim_letters(name: str) -> str:
  """The dims a parameter's name ends in: 'q_DNH' → 'DNH'. Raises ValueError if it has none."""
  letters = name.rpartition('_')[2]
  if not letters or set(letters) - set(DIMS):
    raise ValueError(
      f'parameter name {name!r} does not end in its dims: letters of {"".join(DIMS)} as in q_DNH'
    )
  return letters


def param_names(name: str, *, stored: bool = True) -> tuple[str, ...]:
  """Logical names of a parameter's dims: as stored, or as gathered over `fsdp` for use.

  Vectors of model size (norm scales, output biases) are too small to be worth splitting.
  """
  letters = dim_letters(name)
  split = stored and len(letters) > 1
  return tuple('residual' if c == 'D' and not split else DIMS[c] for c in letters)


def param_spec(path: Sequence[Any], ndim: int) -> PartitionSpec:
  """The spec of a leaf by the name of its innermost dict key; scalars are replicated.

  Works on parameters and on optimizer states that mirror them. A leading dim beyond the letters
  of the name is the stack of layers. Raises ValueError for an array whose name fits neither.
  """
  if ndim == 0:
    return PartitionSpec()
  keys = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)]
  names = param_names(str(keys[-1])) if keys else ()
  if ndim == len(names) + 1:
    names = ('layers', *names)
  if ndim != len(names):
    raise ValueError(f'{jax.tree_util.keystr(path)}: {ndim} dims do not fit its name')
  return spec(*names)


def shardings(tree: PyTree, mesh: Mesh) -> PyTree:
  """NamedShardings of a tree of (abstract) parameters or optimizer state on `mesh`.

  Raises ValueError, naming the parameter, where a dim does not divide by its mesh axes.
  """

  def place(path, leaf):
    parts = param_spec(path, leaf.ndim)
    for dim, (size, axes) in enumerate(zip(leaf.shape, parts, strict=True)):
      num_shards = _num_shards(mesh, axes)
      if size % num_shards:
        raise ValueError(
          f'{"/".join(str(getattr(k, "key", k)) for k in path)}: dim {dim} of size {size} does not '
          f'divide over mesh axis {axes}={num_shards}; change that size or the mesh'
        )
    return NamedSharding(mesh, parts)

  return jax.tree_util.tree_map_with_path(place, tree)


def abstract(tree: PyTree, mesh: Mesh) -> PyTree:
  """ShapeDtypeStructs of `tree` with shardings on `mesh`: what Orbax restores into."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings(tree, mesh)
  )


def replicated(tree: PyTree, mesh: Mesh) -> PyTree:
  """ShapeDtypeStructs of `tree`, every leaf whole on every device: for small states."""
  whole = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), tree)


def shard_batch(host_batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This process's rows of a batch ([B_local, T] or [B_local] arrays) → global arrays on `mesh`.

  With several processes each gives its own rows; the global batch is all of them. Raises
  ValueError if the global batch does not divide over the data and fsdp axes.
  """
  num_shards, parts = _num_shards(mesh, RULES['batch']), _num_shards(mesh, RULES['length'])
  local_shards = len(local_rows(mesh, num_shards))

  def place(name, x):
    x = np.asarray(x)
    rows = x.shape[0] * num_shards // local_shards
    if rows % num_shards:
      raise ValueError(
        f'batch {name!r} has {rows} rows, which do not divide over the mesh '
        f'(data={mesh.shape["data"]} x fsdp={mesh.shape["fsdp"]}): use a multiple of {num_shards}'
      )
    if x.ndim > 1 and x.shape[1] % parts:
      raise ValueError(f'batch {name!r} has {x.shape[1]} tokens a row, which do not divide over '
                       f'the mesh (context={parts}): use a multiple of {parts}')
    names = ('batch', 'length', *(None,) * x.ndim)[: x.ndim]
    return jax.make_array_from_process_local_data(
      NamedSharding(mesh, spec(*names)), x, (rows, *x.shape[1:]))

  return {name: place(name, x) for name, x in host_batch.items()}


def local_rows(mesh: Mesh, rows: int) -> range:
  """Those of a batch's rows that this process's devices hold: what it gives to `shard_batch`.

  Raises ValueError if the batch does not divide over the mesh, or they are not neighbours.
  """
  num_shards = _num_shards(mesh, RULES['batch'])
  if rows % num_shards:
    raise ValueError(
      f'a batch of {rows} rows does not divide over the mesh (data={mesh.shape["data"]} x '
      f'fsdp={mesh.shape["fsdp"]}): use a multiple of {num_shards}')
  placed = NamedSharding(mesh, spec('batch'))
  places: Any = placed.addressable_devices_indices_map((rows,))
  held = {i for x, in places.values()
          for i in range(*x.indices(rows))}
  if len(held) != max(held) - min(held) + 1:
    raise ValueError('the rows of a process lie apart on this mesh: order its axes otherwise')
  return range(min(held), max(held) + 1)


def _no_mesh() -> bool:
  return jax.sharding.get_abstract_mesh().empty


def _num_shards(mesh: Mesh, axes: str | tuple[str, ...] | None) -> int:
  axes = (axes,) if isinstance(axes, str) else axes or ()
  return math.prod(mesh.shape[a] for a in axes)

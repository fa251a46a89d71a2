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

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

Params = Any  # nested dict of arrays


class Table(NamedTuple):
  """Coefficients of one Newton–Schulz preset.

  X is first divided by `norm`·‖X‖_F + `eps`. `rows` holds (a, b, c) of each step. An `endless`
  table may be cut short or prolonged by its last row; the others are tuned as a whole. A table with
  a `restart` is iterated on the Gram matrix, anew from that step on (see newton_schulz).
  """

  rows: tuple[tuple[float, float, float], ...]
  norm: float
  eps: float
  endless: bool
  restart: int | None = None


class View(NamedTuple):
  """The dims of a leaf that are a matrix's fan-in and fan-out, for example (-3,) and (-2, -1)."""

  fan_in: tuple[int, ...]
  fan_out: tuple[int, ...]


class MuonState(NamedTuple):
  count: jax.Array  # int32, updates made
  mu: Params  # first moment, as the parameters
  nu: dict[str, jax.Array]  # of NorMuon: path/nu_DIMS → mean square of the update by neuron


def newton_schulz(
  x: jax.Array,
  coefficients: str = 'pe5',
  steps: int = 5,
  dtype: jax.typing.DTypeLike = jnp.bfloat16,
) -> jax.Array:
  """Replaces the singular values of each matrix by values near 1, keeping its singular vectors.

  A step is X ← (aI + bA + cA²)X with A = XXᵀ, three products, of which two have the long side of X
  in them. The Gram form (Dao-AILab/gram-newton-schulz) runs on A alone, of the short side squared,
  and multiplies X only before a restart and at the end: fewer operations where X is twice as wide
  as tall or more, for less accuracy. It wants the ten bits of float16's fraction rather than the
  range of bfloat16, and a restart, lest what rounding adds to A grow. Square matrices take the
  plain form.

  Args:
    x: [..., rows, cols], any float dtype; each matrix whole on its device if sharded.
    coefficients: a name in COEFFICIENTS.
    steps: iterations; tables tuned as a whole allow only their own number.
    dtype: of the matrices between products. Products accumulate in float32 (float64 for float64).
      The Gram form takes float16 where it is bfloat16.

  Returns:
    Array like x. A zero matrix stays zero; a NaN or an infinity makes its own matrix NaN, so that a
    guard can see it, and no other in the batch. Matrices far smaller than the table's eps shrink.

  Raises:
    ValueError: unknown coefficients, or a number of steps the table has no rows for.
  """
  table = _table(coefficients, steps)
  wide = jnp.promote_types(dtype, jnp.float32)
  # On accelerators float32 products are rounded to TF32 or bfloat16 unless told otherwise.
  precision = jax.lax.Precision.HIGHEST if jnp.finfo(dtype).bits >= 32 else None

  def product(y, z):
    # The matrix units accumulate in float32 whatever they give out: rounded there, the result
    # need not pass through memory at twice the size.
    return jnp.matmul(y, z, precision=precision, preferred_element_type=y.dtype)

  def transposed(y):
    return jnp.swapaxes(y, -2, -1)

  def plus(y, a):  # y + a I
    return y + a * jnp.eye(y.shape[-1], dtype=wide)

  def polynomial(gram, a, b, c):
    square = product(gram, gram)
    return plus(b * gram.astype(wide) + c * square.astype(wide), a).astype(gram.dtype)

  def gram_form(y):
    """Q such that Q y is what the steps make of y, restarted where the table says."""
    gram, q = product(y, transposed(y)), None
    for i, abc in enumerate(table.rows):
      if i == table.restart:
        y = product(q, y)
        gram, q = product(y, transposed(y)), None
      poly = polynomial(gram, *abc)
      q = poly if q is None else product(poly, q)
      if i + 1 not in (table.restart, len(table.rows)):
        gram = product(product(poly, gram), poly)
    return product(q, y)

  tall = x.shape[-2] > x.shape[-1]  # the Gram matrix of the short side is the cheap one
  y = (jnp.swapaxes(x, -2, -1) if tall else x).astype(wide)
  frobenius = jnp.sqrt(jnp.sum(jnp.square(y), axis=(-2, -1), keepdims=True))
  y = (y / (table.norm * frobenius + table.eps)).astype(dtype)
  if table.restart is not None and y.shape[-2] < y.shape[-1]:
    y = gram_form(y.astype(jnp.float16) if y.dtype == jnp.bfloat16 else y)
    return (transposed(y) if tall else y).astype(x.dtype)
  # Unrolled: 10 % faster than a scan, which copies what it carries, and the steps share two buffers
  # of the size of y.
  for abc in table.rows:
    y = product(polynomial(product(y, transposed(y)), *abc), y)
  return (transposed(y) if tall else y).astype(x.dtype)


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
  at_once: int,
  compute_dtype: jax.typing.DTypeLike,
  momentum_dtype: jax.typing.DTypeLike,
) -> optax.GradientTransformation:
  """Momentum, Nesterov look-ahead, Newton–Schulz, scale by shape (Keller Jordan's step).

  Compose with weight decay and `optax.scale_by_learning_rate`: W ← W − lr·(O + wd·W). Clipping the
  gradients of these leaves would change nothing but the share of this step in the momentum: the
  direction does not depend on the gradient's size.

  Leaves whose matrices have one shape (or its transpose) and one sharding go through the iteration
  in one call. Under a mesh of Explicit axes such a stack is first spread over all devices, whole
  matrices on each, and brought back after: no communication inside the iteration.

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
    at_once: how many matrices each device iterates on at a time, for less scratch memory; 0 = all.
    compute_dtype: of the iteration and of what travels between devices; not float16.
    momentum_dtype: of the stored first moment.

  Raises:
    ValueError: an unknown name, a dtype of too small a range, or (at init) a leaf without a view.
  """
  _table(coefficients, steps)
  if momentum not in MOMENTA:
    raise ValueError(f'momentum {momentum!r}: choose one of {", ".join(MOMENTA)}')
  if momentum == 'debiased' and beta_warmup:
    raise ValueError("momentum='debiased' wants a constant beta: set beta_warmup to 0")
  if scale_rule not in SCALE_RULES:
    raise ValueError(f'scale_rule {scale_rule!r}: choose one of {", ".join(SCALE_RULES)}')
  if jnp.finfo(compute_dtype).maxexp < 128:
    raise ValueError(f'compute_dtype {compute_dtype}: gradients need the range of bfloat16')

  def iterate(stack_BIO):
    function = lambda x: newton_schulz(x, coefficients, steps, compute_dtype)
    if not at_once:
      return function(stack_BIO)
    in_turn = lambda stack: jax.lax.map(function, stack, batch_size=at_once)
    if (spec := spec_of(stack_BIO)) is None:
      return in_turn(stack_BIO)
    return jax.shard_map(in_turn, in_specs=P(*spec), out_specs=P(*spec))(stack_BIO)

  def orthogonalize(updates):
    """Direction of every leaf: grouped by matrix shape, one Newton–Schulz call a group."""
    leaves, treedef = jax.tree.flatten_with_path(updates)
    groups = {}
    for index, (path, x) in enumerate(leaves):
      view = views[path_name(path)]
      stack_BIO, restore = as_matrices(x.astype(compute_dtype), view)
      scale = SCALE_RULES[scale_rule](*_fans(x.shape, view), rms)
      # Two stacks can be joined without communication only if they are sharded alike.
      key = (stack_BIO.shape[1:], spec_of(stack_BIO))
      groups.setdefault(key, []).append((index, stack_BIO, scale, restore))
    out = [None] * len(leaves)
    for members in groups.values():
      spread, gather = _whole_matrices(jnp.concatenate([stack for _, stack, _, _ in members]))
      o_BIO = gather(iterate(spread))
      start = 0
      for index, stack, scale, restore in members:
        o = restore(o_BIO[start : start + stack.shape[0]])
        out[index] = o.astype(leaves[index][1].dtype) * scale  # the moment's dtype: float32 or more
        start += stack.shape[0]
    return jax.tree.unflatten(treedef, out)

  def init(params):
    for path, x in jax.tree.leaves_with_path(params):
      if (name := path_name(path)) not in views:
        raise ValueError(f'Muon has no matrix view for {name!r} {x.shape}: add one to views')
    mu = jax.tree.map(lambda x: jnp.zeros_like(x, dtype=momentum_dtype), params)
    nu = {}
    if normuon:
      for path, x in jax.tree.leaves_with_path(params):
        short, key = _short_side(path_name(path), views[path_name(path)], x.shape)
        kept = tuple(n for d, n in enumerate(x.shape) if d not in short)
        nu[key] = jnp.zeros(kept, jnp.float32)
    return MuonState(jnp.zeros((), jnp.int32), mu, nu)

  def normalize(path, o, nu):
    """NorMuon's step on one leaf; its second moment goes into `nu`."""
    view = views[path_name(path)]
    short, key = _short_side(path_name(path), view, o.shape)
    whole = tuple(d % o.ndim for d in view.fan_in + view.fan_out)
    size = lambda x: jnp.sqrt(jnp.sum(jnp.square(x), axis=whole, keepdims=True))
    mean = normuon * nu[key] + (1 - normuon) * jnp.mean(jnp.square(o), axis=short)
    nu[key] = reshard(mean, spec_of(nu[key])).astype(nu[key].dtype)
    scaled = o * jax.lax.rsqrt(jnp.maximum(jnp.expand_dims(mean, short), 1e-10))
    return scaled * (size(o) / jnp.maximum(size(scaled), 1e-10))

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
    direction, nu = orthogonalize(direction), dict(state.nu)
    if normuon:
      direction = jax.tree.map_with_path(lambda path, o: normalize(path, o, nu), direction)
    return direction, MuonState(state.count + 1, mu, nu)

  return optax.GradientTransformation(init, update)


def qk_clip(params: Params, max_logits_LN: jax.Array, tau: float) -> Params:
  """Shrinks q and k of the heads whose largest attention logit exceeded tau, to exactly tau.

  Kimi K2's QK-Clip (kexue.fm/archives/11126), to be applied after an optimizer step. That rule has
  no word on grouped queries; here head n with γ = min(1, tau / S) shares key head k with its group:
  k is scaled by κ = √(largest γ of the group), q by γ/κ. So each head ends at min(S, tau), a group
  with a head in bounds keeps its k, and with one query head a key head both take √γ. Rotary
  embeddings do not change this. Moments are left alone.

  Args:
    params: the model's; `blocks/attn` holds q_DNH [L, D, N, H], k_DKH [L, D, K, H], maybe biases.
    max_logits_LN: S, largest scaled logit per layer and query head in the forward pass. A head
      whose S is NaN or infinite is not clipped.
    tau: largest logit allowed, above 0 (K2: 100).

  Raises:
    ValueError: tau is not above 0, or the model normalises q and k, which undoes any scaling.
  """
  attn = params['blocks']['attn']
  if 'q_norm' in attn or 'k_norm' in attn:
    raise ValueError('qk_clip does nothing to a model with qk_norm: turn one of them off')
  gamma_LKG = _gammas(attn, max_logits_LN, tau)
  kappa_LK1 = jnp.sqrt(jnp.max(gamma_LKG, axis=2, keepdims=True))
  q_LN = (gamma_LKG / kappa_LK1).reshape(max_logits_LN.shape)
  return _scale_heads(params, q_LN, kappa_LK1[..., 0])


def qk_rates(updates: Params, max_logits_LN: jax.Array, tau: float) -> Params:
  """Updates with the learning rate of each head's q and k times γ = min(1, tau / S).

  What is sometimes said of Kimi K2: that it sets the learning rate by the largest logit of a head.
  A slower head grows more slowly and does not shrink: no bound follows, unlike from `qk_clip`.
  A key head takes the smallest γ of its group; S, tau and errors as in `qk_clip`.
  """
  gamma_LKG = _gammas(updates['blocks']['attn'], max_logits_LN, tau)
  return _scale_heads(updates, gamma_LKG.reshape(max_logits_LN.shape), jnp.min(gamma_LKG, axis=2))


def qk_clip_grads(grads: Params, max_logits_LN: jax.Array, tau: float, max_norm: float) -> Params:
  """Gradients with each head's of q, and of k, clipped to a norm of max_norm · min(1, tau / S).

  The other half of what is said of Kimi K2 (see `qk_rates`).
  """
  attn = grads['blocks']['attn']
  gamma_LKG = _gammas(attn, max_logits_LN, tau)

  def factor(name, gamma_L):
    square_L = jnp.sum(jnp.square(attn[name].astype(jnp.float32)), axis=(1, 3))
    return jnp.minimum(1.0, max_norm * gamma_L / jnp.maximum(jnp.sqrt(square_L), 1e-30))

  q_LN = factor('q_DNH', gamma_LKG.reshape(max_logits_LN.shape))
  k_LK = factor('k_DKH', jnp.min(gamma_LKG, axis=2))
  return _scale_heads(grads, q_LN, k_LK)


QK_RULES = {'weights': qk_clip, 'rates': qk_rates}  # what large logits act on


def _gammas(attn: Params, max_logits_LN: jax.Array, tau: float) -> jax.Array:
  """γ = min(1, tau / S) of each query head, by group: float32 [L, K, N/K]; 1 where S is no number.

  Raises ValueError unless tau is above 0.
  """
  if not tau > 0:
    raise ValueError(f'optimizer.qk_clip.tau={tau}: give a logit above 0, or 0 for none')
  s_LN = max_logits_LN.astype(jnp.float32)
  gamma_LN = jnp.where(jnp.isfinite(s_LN) & (s_LN > tau), tau / s_LN, 1.0)
  return gamma_LN.reshape(len(gamma_LN), attn['k_DKH'].shape[-2], -1)


def _scale_heads(tree: Params, q_LN: jax.Array, k_LK: jax.Array) -> Params:
  """A tree like the parameters with the leaves of q and k times a factor a head."""
  factors = {'q': q_LN, 'k': k_LK}

  def scaled(name, x):
    if name not in ('q_DNH', 'k_DKH', 'q_bias_NH', 'k_bias_KH'):
      return x
    factor = factors[name[0]][..., None]
    return x * (factor if 'bias' in name else factor[:, None]).astype(x.dtype)

  attn = {name: scaled(name, x) for name, x in tree['blocks']['attn'].items()}
  return {**tree, 'blocks': {**tree['blocks'], 'attn': attn}}


def path_name(path: tuple[Any, ...]) -> str:
  """Key path of a leaf as text: 'blocks/attn/q_DNH'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def matrix_shape(shape: tuple[int, ...], view: View) -> tuple[int, int, int]:
  """(number of matrices, fan_in, fan_out) of a leaf of this shape seen through its view."""
  fan_in, fan_out = _fans(shape, view)
  return math.prod(shape) // (fan_in * fan_out), fan_in, fan_out


def _fans(shape: tuple[int, ...], view: View) -> tuple[int, int]:
  return math.prod(shape[d] for d in view.fan_in), math.prod(shape[d] for d in view.fan_out)


def _short_side(name: str, view: View, shape: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
  """(the dims of a leaf that are the short side of its matrices, a name for what is left).

  The name ends in the letters of the dims that are left, as names of parameters do.
  """
  fan_in, fan_out = _fans(shape, view)
  short = tuple(d % len(shape) for d in (view.fan_in if fan_out >= fan_in else view.fan_out))
  letters = name.rpartition('_')[2]
  extra = len(shape) - len(letters)  # the stack of layers has no letter
  return short, f'{name}/nu_{"".join(c for i, c in enumerate(letters, extra) if i not in short)}'


def _table(name: str, steps: int) -> Table:
  """The preset with exactly `steps` rows."""
  if name not in COEFFICIENTS:
    raise ValueError(f'coefficients {name!r}: choose one of {", ".join(COEFFICIENTS)}')
  table = COEFFICIENTS[name]
  if steps < 1 or (steps != len(table.rows) and not table.endless):
    need = 'at least 1' if table.endless else f'{len(table.rows)}, for which they were tuned'
    raise ValueError(f'coefficients {name!r} with {steps} steps: steps must be {need}')
  rows = table.rows[:steps] + table.rows[-1:] * (steps - len(table.rows))
  return table._replace(rows=rows)


def spec_of(x: jax.Array) -> tuple | None:
  """Mesh axes of each dim if x is on a mesh of Explicit axes; else None: nothing to reshard."""
  sharding = jax.typeof(x).sharding
  if sharding.mesh.empty or any(t != AxisType.Explicit for t in sharding.mesh.axis_types):
    return None
  return (*sharding.spec, *[None] * (x.ndim - len(sharding.spec)))


def reshard(x: jax.Array, spec: tuple | None) -> jax.Array:
  if spec is None or spec == spec_of(x):
    return x
  return jax.reshard(x, NamedSharding(jax.typeof(x).sharding.mesh, P(*spec)))


def _reshape(x: jax.Array, shape: tuple[int, ...], spec: tuple | None) -> jax.Array:
  if spec is None:
    return jnp.reshape(x, shape)
  return jnp.reshape(x, shape, out_sharding=NamedSharding(jax.typeof(x).sharding.mesh, P(*spec)))


def as_matrices(x: jax.Array, view: View) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
  """A leaf as one stack of matrices, no taller than wide, and the function that undoes it.

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
  y = _reshape(y, shape_BIO, merged)
  # Which way a square matrix lies is free: choose it by sharding, so that q and o can be joined.
  flip = shape_BIO[1] > shape_BIO[2]
  if merged is not None and shape_BIO[1] == shape_BIO[2]:
    flip = str(merged[1]) > str(merged[2])

  def restore(o_BIO):
    o_BIO = jnp.swapaxes(o_BIO, 1, 2) if flip else o_BIO
    o = _reshape(o_BIO, split, split_spec)
    return reshard(jnp.transpose(o, tuple(order.index(d) for d in range(x.ndim))), home)

  return (jnp.swapaxes(y, 1, 2) if flip else y), restore


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


_JORDAN = (3.4445, -4.7750, 2.0315)
_TAYLOR = (2.0, -1.5, 0.5)
_PE = (
  (8.28721201814563, -23.595886519098837, 17.300387312530933),
  (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
  (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
  (3.3184196573706015, -2.488488024314874, 0.51004894012372),
  (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
  (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
  (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)

COEFFICIENTS: dict[str, Table] = {
  # Keller Jordan's: steep at zero, does not converge (singular values end in about [0.68, 1.15]).
  'jordan': Table((_JORDAN,), norm=1.0, eps=1e-7, endless=True),
  # You Jiacheng's five rows (optax calls them 'dion').
  'you5': Table(
    (
      (4.0848, -6.8946, 2.9270),
      (3.9505, -6.3029, 2.6377),
      (3.7418, -5.5913, 2.3037),
      (2.8769, -3.1427, 1.2046),
      (2.8366, -3.0525, 1.2012),
    ),
    norm=1.0,
    eps=1e-7,
    endless=False,
  ),
  # Polar Express, Algorithm 1: each row is optimal for the interval the last one left; 1 % safety.
  'pe': Table(
    (*((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in _PE), (1.875, -1.25, 0.375)),
    norm=1.01,
    eps=1e-7,
    endless=True,
  ),
  # Polar Express for five steps, 2 % safety inside the recursion (modded-nanogpt, nanochat, dion).
  'pe5': Table(
    (
      (8.156554524902461, -22.48329292557795, 15.878769915207462),
      (4.042929935166739, -2.808917465908714, 0.5000178451051316),
      (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
      (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
      (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
    norm=1.02,
    eps=1e-6,
    endless=False,
  ),
  # CANS (Chebyshev-accelerated), five steps, as in Emerging-Optimizers.
  'cans5': Table(
    (
      (8.4703, -25.1081, 18.6293),
      (4.1828, -3.1087, 0.5806),
      (3.9619, -2.9541, 0.5630),
      (3.2866, -2.4647, 0.5074),
      (2.2737, -1.6447, 0.4162),
    ),
    norm=1.0,
    eps=1e-7,
    endless=False,
  ),
  # The first five rows of Polar Express, 5 % safety, for the Gram form.
  'gram5': Table(
    tuple((a / 1.05, b / 1.05**3, c / 1.05**5) for a, b, c in _PE[:5]),
    norm=1.0,
    eps=1e-7,
    endless=False,
    restart=2,
  ),
  # DeepSeek-V4: the last two rows pull the singular values to 1.
  'deepseek10': Table((_JORDAN,) * 8 + (_TAYLOR,) * 2, norm=1.0, eps=1e-7, endless=False),
  # Converges to the exact polar factor; give it 12 steps or more.
  'taylor': Table((_TAYLOR,), norm=1.0, eps=1e-7, endless=True),
}

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

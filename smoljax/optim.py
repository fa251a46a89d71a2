"""Optimizers and learning-rate schedules.

Every optimizer here is one optax chain:

  direction of each leaf      one transform per label: OPTIMIZERS[label]: AdamW's, Muon's, SOAP's
  + decay · parameter         decoupled weight decay, times the leaf's decay multiplier
  × −learning rate            schedule(step), times the leaf's learning-rate multiplier

so W ← W − lr·(direction + wd·W). A leaf's label follows from its role, and its role from its name
(ROLES): weight matrices go to the optimizer the config names, all else (embedding, head, norms,
biases) to AdamW. A leaf whose name fits no role, or two, is an error.

The config is any object with these attributes (configs/base.py holds the defaults and units):

  name             a key of OPTIMIZERS
  learning_rate    peak
  weight_decay     and no_decay: tuple of the roles that are not decayed
  b1, b2, eps      AdamW
  clip             a key of CLIPS: how the gradients of AdamW's leaves are clipped
  clip_norm        largest global norm of these gradients, with any clip; 0 = no clipping at all
  momentum_dtype   of the first moments, AdamW's and Muon's
  schedule         a key of SCHEDULES
  warmup_steps     steps of linear warm-up; if 0, warmup_fraction of all steps
  decay_steps      steps of the final cooldown (wsd); if 0, decay_fraction of all steps
  decay_shape      a key of COOLDOWNS (wsd)
  floor            last learning rate as a share of the peak (wsd, cosine)
  muon             attributes of its own, read if name is 'muon': beta, nesterov, coefficients,
                   steps, scale_rule, rms, compute_dtype (see muon.scale_by_muon), lr_multiplier
                   (Muon's learning rate over AdamW's), per_head (a key of PER_HEAD: the attention
                   kernels that are one matrix a head)
  soap             attributes of its own, read if name is 'soap': every, max_dim (see
                   soap.scale_by_soap)

SmolLM3 (nanotron): adamw, 2e-4, decay 0.1 on all but the embedding (norms too), 0.9, 0.95, 1e-8,
clip 1.0, wsd with 2000 steps of warm-up and a linear cooldown to 0 over the last 522,000 of
4,720,000 steps.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from smoljax.muon import View, matrix_shape, path_name, scale_by_muon
from smoljax.soap import scale_by_soap

Params = Any  # nested dict of arrays, or of anything with a shape


class Role(NamedTuple):
  """What a leaf is for. Views count dims from the end, so that stacks of layers need no mention."""

  pattern: str  # regular expression of the last part of the leaf's path
  view: View | None = None  # its matrix, if it is one
  head_view: View | None = None  # its matrices, one a head


class Label(NamedTuple):
  """How one leaf is optimised."""

  optimizer: str
  role: str
  view: View | None  # None unless the optimizer sees matrices
  lr: float  # multiplier of the learning rate
  decay: float  # multiplier of the weight decay
  eps: float = 1.0  # multiplier of AdamW's eps


class OptimizerInfo(NamedTuple):
  schedule: optax.Schedule  # step (from 0) → learning rate
  labels: dict[str, Label]  # by path
  table: str  # the labels, to be printed

  @property
  def elementwise(self) -> bool:
    """Whether updates are made place by place, so that computing one costs what reading it does."""
    return all(label.optimizer == 'adamw' for label in self.labels.values())


def make_optimizer(
  config: Any, params: Params, total_steps: int, multipliers: Mapping[str, Any] | None = None
) -> tuple[optax.GradientTransformation, OptimizerInfo]:
  """The optax transformation that the config describes, for these parameters.

  `update` needs the parameters as its third argument. Gradients and parameters may be sharded over
  a mesh of Explicit axes. A NaN in a gradient reaches the update (clipping spreads it over all of
  AdamW's leaves) and the state: to skip such a step is the caller's business.

  Args:
    config: see the top of this file.
    params: nested dict of arrays or ShapeDtypeStructs.
    total_steps: length of the run in optimizer steps.
    multipliers: path → what smoljax.parametrization has for it; all 1 if None.

  Raises:
    ValueError: a missing key, an unknown name, a value out of range, a leaf without a role.
  """
  _require(config, _KEYS, 'optimizer')
  _choose(OPTIMIZERS, config.name, 'optimizer.name')
  _choose(CLIPS, config.clip, 'optimizer.clip')
  if own := _OWN_KEYS.get(config.name):
    _require(config, (config.name,), 'optimizer')
    _require(getattr(config, config.name), own, f'optimizer.{config.name}')
  for key in ('learning_rate', 'weight_decay', 'clip_norm', 'eps'):
    if not 0 <= getattr(config, key) < math.inf:
      raise ValueError(f'optimizer.{key}={getattr(config, key)}: give a number of 0 or more')
  learning_rate = schedule(config, total_steps)
  labels = label_params(config, params)
  if multipliers:
    labels = {path: label._replace(
      lr=label.lr * multipliers[path].lr, decay=label.decay * multipliers[path].decay,
      eps=multipliers[path].eps) for path, label in labels.items()}
  transforms = {}
  for name in sorted({label.optimizer for label in labels.values()}):
    mine = {path: label for path, label in labels.items() if label.optimizer == name}
    transforms[name] = OPTIMIZERS[name](config, mine)
  optimizers = jax.tree.map_with_path(lambda path, _: labels[path_name(path)].optimizer, params)
  tx = optax.chain(
    optax.partition(transforms, optimizers),
    decay_and_multiply(
      config.weight_decay, labels, config.name == 'muon' and config.muon.cautious_decay),
    optax.scale_by_learning_rate(learning_rate),
  )
  return tx, OptimizerInfo(learning_rate, labels, label_table(labels, params))


def adamw(config: Any, labels: Mapping[str, Label]) -> optax.GradientTransformation:
  """AdamW's direction (torch's rule), after clipping the gradients it is given by their norm.

  With every leaf on AdamW that is the usual global clip. Beside Muon it is the norm of AdamW's
  leaves alone: Muon's step does not depend on the size of its gradient, so clipping one would do
  nothing but weigh it less in the momentum.
  """
  clip = CLIPS[config.clip](config.clip_norm) if config.clip_norm else clip_by_norm(math.inf)
  adam = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.momentum_dtype)
  if all(label.eps == 1 for label in labels.values()):
    return optax.chain(clip, adam)
  # A gradient over c with eps is one with c · eps.
  of_eps = optax.stateless(lambda grads, _: jax.tree.map_with_path(
    lambda path, g: g / labels[path_name(path)].eps, grads))
  return optax.chain(clip, of_eps, adam)


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
  clip_kept: jax.Array  # as ClipState's
  count: jax.Array  # int32, steps seen
  norms: dict[str, jax.Array]  # path → usual norm of the tensor, [L] for a stack of layers


def adagc(
  max_norm: float, *, factor: float = 1.05, decay: float = 0.98, warmup: int = 100
) -> optax.GradientTransformation:
  """Clips each tensor by its own past: AdaGC (arXiv 2502.11034); a stack of layers is L tensors.

  A gradient longer than `factor` times its usual norm is cut to that; the usual norm is an
  exponential average of what was let through. During the warm-up the global norm is clipped to
  `max_norm`, and the usual norm is the smallest seen.
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
    kept = jnp.where(whole > 0, jnp.sqrt(sum(kept_sq)) / whole, 1.0)
    return grads, AdaGCState(kept, state.count + 1, norms)

  return optax.GradientTransformation(init, update)


def _scale_to(
  grads: Params, length: jax.Array, target: jax.Array | float
) -> tuple[Params, jax.Array]:
  """The gradients no longer than `target`, and by what they were scaled; NaN if length is."""
  scale = jnp.where(length <= target, 1.0, target / jnp.maximum(length, 1e-30))
  return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads), scale


def muon(config: Any, labels: Mapping[str, Label]) -> optax.GradientTransformation:
  """Muon's direction for the matrices; see muon.scale_by_muon."""
  m = config.muon
  return scale_by_muon(
    {path: label.view for path, label in labels.items()},
    beta=m.beta,
    beta_start=m.beta_start,
    beta_warmup=m.beta_warmup,
    momentum=m.momentum,
    nesterov=m.nesterov,
    coefficients=m.coefficients,
    steps=m.steps,
    scale_rule=m.scale_rule,
    rms=m.rms,
    normuon=m.normuon,
    at_once=m.at_once,
    compute_dtype=m.compute_dtype,
    momentum_dtype=config.momentum_dtype,
  )


def soap(config: Any, labels: Mapping[str, Label]) -> optax.GradientTransformation:
  """SOAP's direction for the matrices, with AdamW's b1, b2 and eps; see soap.scale_by_soap."""
  return scale_by_soap(
    {path: label.view for path, label in labels.items()},
    b1=config.b1,
    b2=config.b2,
    eps=config.eps,
    every=config.soap.every,
    max_dim=config.soap.max_dim,
    momentum_dtype=config.momentum_dtype,
  )


def decay_and_multiply(
  weight_decay: float, labels: Mapping[str, Label], cautious: bool = False
) -> optax.GradientTransformation:
  """direction → (direction + weight_decay · decay multiplier · parameter) · lr multiplier.

  With `cautious`, Muon's matrices decay only where the step makes the parameter smaller anyway:
  where direction · parameter ≥ 0 (nanochat).
  """

  def leaf(path, update, param):
    label = labels[path_name(path)]
    if label.decay:
      decay = weight_decay * label.decay * param
      if cautious and label.optimizer == 'muon':
        decay = jnp.where(update * param >= 0, decay, 0)
      update = update + decay
    return update * label.lr

  return optax.stateless(lambda updates, params: jax.tree.map_with_path(leaf, updates, params))


def label_params(config: Any, params: Params) -> dict[str, Label]:
  """The Label of every leaf, by its path. Raises ValueError if a leaf has no role or two."""
  for role in config.no_decay:
    _choose(ROLES, role, 'optimizer.no_decay')
  per_head = ()
  if config.name == 'muon':
    per_head = _choose(PER_HEAD, config.muon.per_head, 'optimizer.muon.per_head')
  labels = {}
  for path, leaf in jax.tree.leaves_with_path(params):
    name = path_name(path)
    roles = [r for r, role in ROLES.items() if re.fullmatch(role.pattern, name.split('/')[-1])]
    if len(roles) != 1:
      raise ValueError(
        f'parameter {name!r} {leaf.shape} fits {" and ".join(roles) or "no role"}: '
        'its name must fit exactly one pattern of ROLES in smoljax/optim.py'
      )
    role = ROLES[roles[0]]
    optimizer = config.name if role.view else 'adamw'
    labels[name] = Label(
      optimizer=optimizer,
      role=roles[0],
      view=None if optimizer == 'adamw' else role.head_view if roles[0] in per_head else role.view,
      lr=float(config.muon.lr_multiplier) if optimizer == 'muon' else 1.0,
      decay=0.0 if roles[0] in config.no_decay else 1.0,
    )
  return labels


def matrix_views(params: Params) -> dict[str, View]:
  """Path → view of every leaf whose role is to be a matrix, heads side by side."""
  views = {}
  for path, _ in jax.tree.leaves_with_path(params):
    name = path_name(path)
    for role in ROLES.values():
      if role.view and re.fullmatch(role.pattern, name.split('/')[-1]):
        views[name] = role.view
  return views


def label_table(labels: Mapping[str, Label], params: Params) -> str:
  """The labels as text; matrices are [fan-in, fan-out] as the optimizer sees them."""
  rows = [('path', 'shape', 'role', 'optimizer', 'matrices', 'lr ×', 'decay ×', 'eps ×')]
  counts = {}
  for path, leaf in jax.tree.leaves_with_path(params):
    label = labels[path_name(path)]
    view = '-'
    if label.view:
      number, fan_in, fan_out = matrix_shape(leaf.shape, label.view)
      view = f'{number} of [{fan_in}, {fan_out}]'
    shape = 'x'.join(map(str, leaf.shape)) or 'scalar'
    rows.append((path_name(path), shape, label.role, label.optimizer, view,
                 f'{label.lr:g}', f'{label.decay:g}', f'{label.eps:g}'))
    counts[label.optimizer] = counts.get(label.optimizer, 0) + math.prod(leaf.shape)
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = ['  '.join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
  total = ', '.join(f'{name} {count:,}' for name, count in sorted(counts.items()))
  return '\n'.join([*(line.rstrip() for line in lines), f'parameters: {total}'])


def schedule(config: Any, total_steps: int) -> optax.Schedule:
  """Learning rate of each step, counted from 0: linear warm-up, then SCHEDULES[config.schedule].

  The first of W warm-up steps has peak/W and the last the peak; the first of D cooldown steps has
  the peak, and the floor belongs to step `total_steps`, the one after the last: no step is idle.
  Before the cooldown wsd does not depend on total_steps (with warmup_steps, not warmup_fraction),
  so that a cooldown may branch from any earlier checkpoint by another total_steps.

  Returns a function of a Python or traced integer that gives a float32 scalar.
  """
  shape = _choose(SCHEDULES, config.schedule, 'optimizer.schedule')
  if total_steps < 1:
    raise ValueError(f'total_steps={total_steps}: a schedule needs at least 1 step')
  if not 0 <= config.floor <= 1:
    raise ValueError(f'optimizer.floor={config.floor}: give a share of the peak, from 0 to 1')
  peak, warmup = float(config.learning_rate), _steps(config, 'warmup', total_steps)
  factor = shape(config, warmup, total_steps)

  def learning_rate(step):
    step = jnp.asarray(step, jnp.float32)
    return peak * jnp.minimum(1.0, (step + 1) / max(warmup, 1)) * factor(step)

  return learning_rate


def wsd(config: Any, warmup: int, total_steps: int) -> optax.Schedule:
  """Warm-up, stable, decay (arXiv 2404.06395): 1, then the cooldown over the last steps."""
  decay, floor = _steps(config, 'decay', total_steps), config.floor
  cooldown = _choose(COOLDOWNS, config.decay_shape, 'optimizer.decay_shape')
  if warmup + decay > total_steps:
    raise ValueError(
      f'{warmup} steps of warm-up and {decay} of cooldown do not fit in {total_steps} steps: '
      'lower optimizer.warmup_steps or decay_steps (or the fractions), or train longer'
    )

  def factor(step):
    return floor + (1 - floor) * cooldown(jnp.clip((total_steps - step) / max(decay, 1), 0, 1))

  return factor


def cosine(config: Any, warmup: int, total_steps: int) -> optax.Schedule:
  """Half a cosine from the end of warm-up to the floor."""
  floor = config.floor

  def factor(step):
    progress = jnp.clip((step - warmup) / max(total_steps - warmup, 1), 0, 1)
    return floor + (1 - floor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))

  return factor


def constant(config: Any, warmup: int, total_steps: int) -> optax.Schedule:
  """1 after warm-up."""
  del config, warmup, total_steps
  return jnp.ones_like


def _steps(config: Any, phase: str, total_steps: int) -> int:
  """Steps of 'warmup' or 'decay': given, or as a fraction of all."""
  steps, fraction = getattr(config, f'{phase}_steps'), getattr(config, f'{phase}_fraction')
  if steps < 0 or not 0 <= fraction <= 1:
    raise ValueError(
      f'optimizer.{phase}_steps={steps}, {phase}_fraction={fraction}: '
      'give steps of 0 or more and a fraction from 0 to 1'
    )
  steps = steps or round(fraction * total_steps)
  if steps > total_steps:
    raise ValueError(
      f'optimizer.{phase}_steps={steps} exceeds the {total_steps} steps of the run: '
      f'lower it, or set it to 0 and use {phase}_fraction'
    )
  return steps


def _choose(options: Mapping[str, Any], name: str, key: str) -> Any:
  if name not in options:
    raise ValueError(f'{key}={name!r}: choose one of {", ".join(options)}')
  return options[name]


def _require(config: Any, keys: Iterable[str], name: str) -> None:
  missing = [key for key in keys if not hasattr(config, key)]
  if missing:
    raise ValueError(f'{name} lacks {", ".join(missing)}: see the top of smoljax/optim.py')


_KEYS = (
  'name', 'learning_rate', 'weight_decay', 'no_decay', 'b1', 'b2', 'eps', 'clip', 'clip_norm',
  'momentum_dtype', 'schedule', 'warmup_steps', 'warmup_fraction', 'decay_steps', 'decay_fraction',
  'decay_shape', 'floor',
)
# Of the config's section with the optimizer's name.
_OWN_KEYS = {
  'muon': (
    'beta', 'beta_start', 'beta_warmup', 'momentum', 'nesterov', 'cautious_decay', 'coefficients',
    'steps', 'scale_rule', 'rms', 'normuon', 'at_once', 'compute_dtype', 'lr_multiplier',
    'per_head',
  ),
  'soap': ('every', 'max_dim'),
}

_KERNEL = View((-2,), (-1,))

# A new kind of parameter is one line here.
ROLES: dict[str, Role] = {
  'embedding': Role('embed_VD'),
  'head': Role('head_DV'),
  'norm': Role('scale_[DH]'),
  'bias': Role('([a-z]+_)?bias_(NH|KH|D|F)'),
  'q': Role('q_DNH', View((-3,), (-2, -1)), View((-3,), (-1,))),
  'k': Role('k_DKH', View((-3,), (-2, -1)), View((-3,), (-1,))),
  'v': Role('v_DKH', View((-3,), (-2, -1)), View((-3,), (-1,))),
  'o': Role('o_NHD', View((-3, -2), (-1,)), View((-2,), (-1,))),
  'gate': Role('gate_DF', _KERNEL),
  'up': Role('up_DF', _KERNEL),
  'down': Role('down_FD', _KERNEL),
  'feature': Role('feature_DI'),
  'combine': Role('from_(hidden|embed)_DE', _KERNEL),
}

PER_HEAD: dict[str, tuple[str, ...]] = {
  'none': (),
  'qk': ('q', 'k'),
  'qko': ('q', 'k', 'o'),
  'all': ('q', 'k', 'v', 'o'),
}

# (config, labels of its leaves) → transform from gradients to directions. `adamw` gets every leaf
# that is not a matrix, whatever the config names.
OPTIMIZERS: dict[str, Callable[[Any, Mapping[str, Label]], optax.GradientTransformation]] = {
  'adamw': adamw,
  'muon': muon,
  'soap': soap,
}

# Largest norm → transform of gradients.
CLIPS: dict[str, Callable[[float], optax.GradientTransformation]] = {
  'norm': clip_by_norm,
  'zclip': zclip,
  'adagc': adagc,
}

# (config, warm-up steps, all steps) → share of the peak at each step after warm-up.
SCHEDULES: dict[str, Callable[[Any, int, int], optax.Schedule]] = {
  'wsd': wsd,
  'cosine': cosine,
  'constant': constant,
}

# Share of the cooldown that is left (from 1 to 0) → share of the peak.
COOLDOWNS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'linear': lambda left: left,
  '1-sqrt': lambda left: 1 - jnp.sqrt(1 - left),  # Hägele et al., arXiv 2405.18392
}

"""Which update each parameter gets: optimizers as optax chains.

Every optimizer here is one optax chain:

  direction of each leaf      one transform per label: OPTIMIZERS[label]: AdamW's, Muon's, SOAP's
  + decay · parameter         decoupled weight decay, times the leaf's decay multiplier
  × −learning rate            schedule(step), times the leaf's learning-rate multiplier

so W ← W − lr·(direction + wd·W). With `hyperball` the matrices' norms stay what they are instead
of decaying (hyperball.py: with muon this is MuonH, with adamw AdamH), and with `tail_steps` the run
ends on an average of its last weights (averaging.py).

A leaf's label follows from its role, and its role from its name (ROLES): weight matrices go to the
optimizer the config names, all else (embedding, head, norms, biases) to AdamW. A leaf whose name
fits no role, or two, is an error.

The config is any object with these attributes (configs/base.py holds the defaults and units):

  name             a key of OPTIMIZERS
  learning_rate    peak
  weight_decay     and no_decay: tuple of the roles that are not decayed
  decay_timescale  share of the run over which weights average their updates, 1 / (rate · decay ·
                   steps); if above 0, the weight decay follows from it, the peak rate and the
                   steps, and so from tokens and batch (arXiv 2405.13698, 2505.13738)
  b1, b2, eps      AdamW
  clip             a key of CLIPS: how the gradients of AdamW's leaves are clipped
  clip_norm        largest global norm of these gradients, with any clip; 0 = no clipping at all
  momentum_dtype   of the first moments, AdamW's and Muon's
  schedule         a key of SCHEDULES
  warmup_steps     steps of linear warm-up; if 0, warmup_fraction of all steps
  decay_steps      steps of the final cooldown (wsd); if 0, decay_fraction of all steps
  decay_shape      a key of COOLDOWNS (wsd, wsd_s, power)
  floor            last learning rate as a share of the peak (all but constant)
  cooldowns        shares of the run at which cooldowns end (wsd_s)
  power            and power_steps: see schedules.power
  ramp             pairs (share of the run, steps an update) of the batch ramp: see ramp.py
  hyperball        whether matrices keep their norm; they have no weight decay then
  tail_steps       τ of the tail average; 0 = none. tail_weight: its share in the last weights
  muon             attributes of its own, read if name is 'muon': beta, nesterov, coefficients,
                   steps, scale_rule, rms, normuon, adamuon, compute_dtype (see
                   muon.scale_by_muon), lr_multiplier and decay_multiplier (Muon's learning rate
                   and weight decay over AdamW's), per_head (a key of PER_HEAD: the attention
                   kernels that are one matrix a head), soap (whether SOAP's preconditioner comes
                   before the orthogonalisation: SOAP-Muon)
  dion             attributes of its own, read if name is 'dion': mu, rank (see dion.scale_by_dion)
  psgd             likewise: beta, rate (see psgd.scale_by_psgd)
  soap             attributes of its own, read by 'soap' and SOAP-Muon: every, max_dim (see
                   soap.scale_by_soap)

SmolLM3 (nanotron): adamw, 2e-4, decay 0.1 on all but the embedding (norms too), 0.9, 0.95, 1e-8,
clip 1.0, wsd with 2000 steps of warm-up and a linear cooldown to 0 over the last 522,000 of
4,720,000 steps.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from smoljax.optim import averaging, hyperball, ramp, schedules
from smoljax.optim.clipping import CLIPS, watching
from smoljax.optim.dion import scale_by_dion
from smoljax.optim.matrices import Params, View, matrix_shape, path_name
from smoljax.optim.muon import scale_by_muon
from smoljax.optim.psgd import scale_by_psgd
from smoljax.optim.schedules import choose, require
from smoljax.optim.soap import scale_by_soap


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
  eps: float = 1.0  # multiplier of eps, AdamW's or SOAP's


class OptimizerInfo(NamedTuple):
  """What was decided for each leaf."""

  schedule: Callable[..., jax.Array]  # step (from 0) → learning rate
  horizon: schedules.Horizon  # what `update` may be given, so that other lengths share a program
  labels: dict[str, Label]  # by path
  table: str  # the labels, to be printed

  @property
  def elementwise(self) -> bool:
    """Whether updates are made place by place, so that computing one costs what reading it does."""
    return all(label.optimizer == 'adamw' for label in self.labels.values())


def make_optimizer(
  config: Any, params: Params, total_steps: int, multipliers: Mapping[str, Any] | None = None
) -> tuple[optax.GradientTransformationExtraArgs, OptimizerInfo]:
  """The optax transformation that the config describes, for these parameters.

  `update` needs the parameters as its third argument, and takes a `horizon` (OptimizerInfo) where
  the run is not `total_steps` long. Gradients and parameters may be sharded over
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
  require(config, _KEYS, 'optimizer')
  choose(OPTIMIZERS, config.name, 'optimizer.name')
  choose(CLIPS, config.clip, 'optimizer.clip')
  if own := _OWN_KEYS.get(config.name):
    require(config, (config.name,), 'optimizer')
    require(getattr(config, config.name), own, f'optimizer.{config.name}')
  try:
    jnp.finfo(config.momentum_dtype)
  except (TypeError, ValueError):
    raise ValueError(f'optimizer.momentum_dtype={config.momentum_dtype}: give bfloat16 or float32'
                     ) from None
  for key in ('learning_rate', 'weight_decay', 'decay_timescale', 'clip_norm', 'eps', 'tail_steps'):
    if not 0 <= getattr(config, key) < math.inf:
      raise ValueError(f'optimizer.{key}={getattr(config, key)}: give a number of 0 or more')
  learning_rate = schedules.schedule(config, total_steps)
  labels = label_params(config, params)
  if multipliers:
    labels = {path: label._replace(
      lr=label.lr * multipliers[path].lr, decay=label.decay * multipliers[path].decay,
      eps=multipliers[path].eps) for path, label in labels.items()}
  decay = config.weight_decay
  if config.decay_timescale:
    if not config.learning_rate:
      raise ValueError('optimizer.decay_timescale wants a learning rate above 0')
    decay = 1 / (config.decay_timescale * config.learning_rate * total_steps)
  phases = ramp.phases(config.ramp, total_steps)
  tx = optax.chain(*directions(config, labels, params), *steps(
    config, labels, ramp.stretched(learning_rate, phases), decay,
    ramp.last_update(phases, total_steps)))
  if config.ramp:
    tx = ramp.accumulated(tx, phases)
  return tx, OptimizerInfo(
    learning_rate, schedules.horizon(config, total_steps), labels, label_table(labels, params))


def directions(
  config: Any, labels: Mapping[str, Label], params: Params
) -> tuple[optax.GradientTransformation, ...]:
  """From gradients to each leaf's direction, by its label."""
  transforms = {}
  for name in sorted({label.optimizer for label in labels.values()}):
    own_labels = {path: label for path, label in labels.items() if label.optimizer == name}
    transforms[name] = OPTIMIZERS[name](config, own_labels)
  optimizers = jax.tree.map_with_path(lambda path, _: labels[path_name(path)].optimizer, params)
  return (optax.partition(transforms, optimizers),)


def steps(
  config: Any,
  labels: Mapping[str, Label],
  learning_rate: Any,
  weight_decay: Any,
  last: int,
) -> tuple[optax.GradientTransformation, ...]:
  """From directions to what is added to the parameters.

  Args:
    learning_rate: a schedule, or a number that may be traced.
    weight_decay: a number that may be traced.
    last: number (from 0) of the run's last update, after which the tail average is taken; -1 =
      never.
  """
  balls = {}
  if config.hyperball:
    balls = {path: view for path, label in labels.items() if (view := ROLES[label.role].view)}
  chain = [decay_and_multiply(
    weight_decay, {path: label._replace(decay=0.0) if path in balls else label
                   for path, label in labels.items()},
    config.name == 'muon' and config.muon.cautious_decay)]
  if balls:  # before the leaf's multiplier of the rate, which `relative` would undo
    chain.insert(0, hyperball.relative(balls))
  chain.append(schedules.scale_by_rate(learning_rate) if callable(learning_rate)
               else optax.scale_by_learning_rate(learning_rate))
  if balls:
    chain.append(hyperball.project(balls))
  if config.tail_steps:
    start = max(0, last + 1 - round(5 * config.tail_steps))
    chain.append(averaging.tail_average(config.tail_steps, config.tail_weight, start, last))
  return tuple(chain)


def adamw(config: Any, labels: Mapping[str, Label]) -> optax.GradientTransformation:
  """AdamW's direction (torch's rule), after clipping the gradients it is given by their norm.

  With every leaf on AdamW that is the usual global clip. Beside Muon it is the norm of AdamW's
  leaves alone: Muon's step does not depend on the size of its gradient, so clipping one would do
  nothing but weigh it less in the momentum.
  """
  clip = CLIPS[config.clip](config.clip_norm or math.inf)
  if not config.clip_norm:
    clip = watching(clip)
  adam = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=config.momentum_dtype)
  return optax.chain(clip, *_own_eps(labels), adam)


def _own_eps(labels: Mapping[str, Label]) -> tuple[optax.GradientTransformation, ...]:
  """Gradients over the leaf's multiplier c of eps: these with eps are the old ones with c · eps."""
  if all(label.eps == 1 for label in labels.values()):
    return ()
  return (optax.stateless(lambda grads, _: jax.tree.map_with_path(
    lambda path, g: g / labels[path_name(path)].eps, grads)),)


def muon(config: Any, labels: Mapping[str, Label]) -> optax.GradientTransformation:
  """Muon's direction for the matrices; see muon.scale_by_muon.

  With `muon.soap` SOAP turns the momentum's look-ahead into its eigenbasis, whitens it there and
  turns it back; what comes out is orthogonalised without a momentum of its own.
  """
  m = config.muon
  views = {path: label.view for path, label in labels.items()}
  orthogonalised = scale_by_muon(
    views,
    beta=0.0 if m.soap else m.beta,
    beta_start=m.beta_start,
    beta_warmup=0 if m.soap else m.beta_warmup,
    momentum=m.momentum,
    nesterov=m.nesterov and not m.soap,
    coefficients=m.coefficients,
    steps=m.steps,
    scale_rule=m.scale_rule,
    rms=m.rms,
    normuon=m.normuon,
    adamuon=m.adamuon,
    at_once=m.at_once,
    compute_dtype=m.compute_dtype,
    momentum_dtype=config.momentum_dtype,
  )
  if not m.soap:
    return orthogonalised
  whitened = scale_by_soap(
    views, b1=m.beta, b2=0.9, eps=1e-8, every=config.soap.every, max_dim=config.soap.max_dim,
    momentum_dtype=config.momentum_dtype, of_momentum=True)
  return optax.chain(whitened, orthogonalised)


def soap(config: Any, labels: Mapping[str, Label]) -> optax.GradientTransformation:
  """SOAP's direction for the matrices, with AdamW's b1, b2 and eps; see soap.scale_by_soap."""
  transform = scale_by_soap(
    {path: label.view for path, label in labels.items()},
    b1=config.b1,
    b2=config.b2,
    eps=config.eps,
    every=config.soap.every,
    max_dim=config.soap.max_dim,
    momentum_dtype=config.momentum_dtype,
  )
  return optax.chain(*own, transform) if (own := _own_eps(labels)) else transform


def dion(config: Any, labels: Mapping[str, Label]) -> optax.GradientTransformation:
  """Dion's direction for the matrices; see dion.scale_by_dion."""
  return scale_by_dion(
    {path: label.view for path, label in labels.items()}, mu=config.dion.mu, rank=config.dion.rank,
    momentum_dtype=config.momentum_dtype)


def psgd(config: Any, labels: Mapping[str, Label]) -> optax.GradientTransformation:
  """PSGD-Kron's direction for the matrices; see psgd.scale_by_psgd."""
  return scale_by_psgd(
    {path: label.view for path, label in labels.items()}, beta=config.psgd.beta,
    rate=config.psgd.rate, momentum_dtype=config.momentum_dtype)


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
    choose(ROLES, role, 'optimizer.no_decay')
  per_head = ()
  if config.name == 'muon':
    per_head = choose(PER_HEAD, config.muon.per_head, 'optimizer.muon.per_head')
  labels = {}
  for path, leaf in jax.tree.leaves_with_path(params):
    name = path_name(path)
    roles = [r for r, role in ROLES.items() if re.fullmatch(role.pattern, name.split('/')[-1])]
    if len(roles) != 1:
      raise ValueError(
        f'parameter {name!r} {leaf.shape} fits {" and ".join(roles) or "no role"}: '
        'its name must fit exactly one pattern of ROLES in smoljax/optim/optimizer.py'
      )
    role = ROLES[roles[0]]
    optimizer = config.name if role.view else 'adamw'
    labels[name] = Label(
      optimizer=optimizer,
      role=roles[0],
      view=None if optimizer == 'adamw' else role.head_view if roles[0] in per_head else role.view,
      lr=float(config.muon.lr_multiplier) if optimizer == 'muon' else 1.0,
      decay=0.0 if roles[0] in config.no_decay
      else float(config.muon.decay_multiplier) if optimizer == 'muon' else 1.0,
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


_KEYS = (
  'name', 'learning_rate', 'weight_decay', 'decay_timescale', 'no_decay', 'b1', 'b2', 'eps', 'clip',
  'clip_norm',
  'momentum_dtype', 'schedule', 'warmup_steps', 'warmup_fraction', 'decay_steps', 'decay_fraction',
  'decay_shape', 'floor', 'cooldowns', 'power', 'power_steps', 'ramp', 'hyperball', 'tail_steps',
  'tail_weight',
)
# Of the config's section with the optimizer's name.
_OWN_KEYS = {
  'muon': (
    'beta', 'beta_start', 'beta_warmup', 'momentum', 'nesterov', 'cautious_decay', 'coefficients',
    'steps', 'scale_rule', 'rms', 'normuon', 'adamuon', 'at_once', 'compute_dtype',
    'lr_multiplier', 'decay_multiplier', 'per_head', 'soap',
  ),
  'soap': ('every', 'max_dim'),
  'dion': ('mu', 'rank'),
  'psgd': ('beta', 'rate'),
}

_KERNEL = View((-2,), (-1,))

# A new kind of parameter is one line here.
ROLES: dict[str, Role] = {
  'embedding': Role('embed_VD'),
  'head': Role('head_DV'),
  'norm': Role('scale_(D|H|NH|KH)'),
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
  'adapter': Role('[a-z]+_(in_(D|F|NH)R|out_R(D|F|NH|KH))'),
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
  'dion': dion,
  'psgd': psgd,
}

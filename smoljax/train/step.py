"""The jitted train step, and what a config says of it: mesh, optimizer, schedule, teacher."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from smoljax import distributed, model, optim, sharding
from smoljax.data.batches import learned
from smoljax.model import lora
from smoljax.optim import clipping, mup
from smoljax.optim import qk_clip as qk_clip_lib
from smoljax.optim.qk_clip import logit_measure, qk_clip_grads, qk_rates
from smoljax.train import (
  diagnostics,
  distill,
  guard,
  memory,
  objectives,
  preferences,
  reinforce,
)
from smoljax.train.preferences import Preference
from smoljax.train.reinforce import Reinforce

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Objective:
  """What is minimised, and in how many pieces: with `preference` what preferences.objective says,
  with `reinforce` what reinforce.objective says, else what objectives.next_token says."""

  num_sources: int = 1  # corpora whose losses are told apart
  accumulate: int = 1  # micro-batches whose gradients are summed in fp32
  chunk: int = 512  # places whose logits exist at once
  z_loss: float = 0.0
  cos_reg: float = 0.0
  mtp_weight: Callable[[jax.Array], jax.Array] | None = None  # step (from 1) → λ
  teacher: distill.Teacher | None = None  # what is learned from another model
  preference: Preference | None = None  # batches are of pairs of answers
  reinforce: Reinforce | None = None  # batches are of the policy's own answers

  def total(self, batch: Mapping[str, jax.Array]) -> jax.Array:
    """What the sums over a global batch are divided by: its pairs, or its places with a target."""
    count = preferences.num_pairs(batch) if self.preference else jnp.sum(learned(batch))
    return jnp.maximum(count, 1).astype(jnp.float32)


def make_train_step(
  config: model.ModelConfig,
  optimizer: Any,
  guard_config: Any,
  objective: Objective,
  *,
  qk_clip: Any = None,
  clip_norm: float = 0.0,
  leaves: bool = False,
  update_twice: bool = False,
) -> jax.stages.Wrapped:
  """The jitted `(state, batch[, params of a teacher or reference, horizon]) -> (state, metrics)`.

  `state` = {params, opt_state} is donated. The horizon, if given, replaces the optimizer's own
  (schedules.Horizon), so that runs of all lengths have one compiled program.

  `opt_state` is {optimizer, guard}: what `optimizer.init` and `guard.init` give. A step that the
  guard refuses changes nothing but the guard's own state.

  With `qk_clip` (attributes tau, measure, rule) and its tau above 0, something is done about heads
  whose largest logit exceeded tau in this step, measured as logit_measure says: by rule 'weights'
  they are shrunk after the update (qk_clip); by 'rates' their gradients are clipped to a share of
  `clip_norm` (0 = not at all) and their updates made smaller (qk_rates).

  With `update_twice` the update is computed for its norms, and once more when the guard has judged
  them: for an optimizer that works place by place this is faster than to write it down between.

  With `accumulate` > 1 the rows are split into that many micro-batches whose gradients are summed
  in float32; the loss is divided by the token count of the whole batch, so the result is that of
  one big batch up to rounding.

  Metrics: `loss` (nats per token), `loss_sum_S` and `tokens_S` per source, `grad_norm` and
  `update_norm` over all leaves, `clip_kept` (see clipping.ClipState), `guard` (the report of
  guard.judge); `max_logits_LN` and, with `leaves`, those of diagnostics.leaves if asked for.
  """
  faults = guard.parse_faults(guard_config.inject)
  tau = qk_clip.tau if qk_clip else 0.0
  slower = tau and qk_clip.rule == 'rates'
  gradients = make_gradients(
    config, objective, max_logits=logit_measure(config, qk_clip) if tau else None)

  def train_step(
    state: dict, batch: dict, teacher_params: PyTree = None, horizon: PyTree = None
  ) -> tuple[dict, dict]:
    params, opt_state, guarded = state['params'], *(state['opt_state'][k] for k in _OPT_STATE)
    number = guarded['batches'] + 1
    batch = guard.inject(faults, 'batch', number, batch)
    grads, aux = gradients(params, batch, number, teacher_params)
    grads = guard.inject(faults, 'grads', number, grads)
    lr_scale = guarded['lr_scale']

    def update(params: PyTree, opt_state: PyTree) -> tuple[PyTree, PyTree]:
      clipped = float32(grads)
      if slower and clip_norm:
        clipped = qk_clip_grads(clipped, aux['max_logits_LN'], tau, clip_norm)
      given = {'horizon': horizon} if horizon else {}
      updates, new_opt_state = optimizer.update(clipped, opt_state, params, **given)
      updates = jax.tree.map(lambda u: u * lr_scale, updates)
      updates = guard.inject(faults, 'updates', number, updates)
      if slower:
        updates = qk_rates(updates, aux['max_logits_LN'], tau)
      return updates, new_opt_state

    updates, new_opt_state = update(params, opt_state)
    if leaves:
      aux['leaves'] = diagnostics.leaves(params, grads, updates)
    aux['clip_kept'] = clipping.clip_kept(new_opt_state)
    aux |= {'grad_norm': clipping.norm(grads), 'update_norm': clipping.norm(updates)}
    stats = {k: aux[k] for k in ('loss', 'grad_norm', 'update_norm')}
    stats['layer_grad_norm'] = clipping.layer_norms(grads['blocks'])
    ok, guarded, aux['guard'] = guard.judge(guard_config, guarded, stats)
    if update_twice:
      updates, new_opt_state = update(*jax.lax.optimization_barrier((params, opt_state)))
    new_params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)
    if tau and not slower:
      new_params = qk_clip_lib.qk_clip(new_params, aux['max_logits_LN'], tau)
    params, opt_state = guard.select(ok, (new_params, new_opt_state), (params, opt_state))
    state = {'params': params, 'opt_state': {'optimizer': opt_state, 'guard': guarded}}
    return state, sharding.whole(aux)

  return jax.jit(train_step, donate_argnums=0, compiler_options=compiler_options(config))


def compiler_options(config: model.ModelConfig) -> dict[str, bool | str]:
  """XLA's options for a step, understood on every platform.

  Before a product is given to Triton or cuBLAS, conversions to 8 bits and back are taken for noise
  and left out; without Triton cuBLAS finds them first. XLA's own rematerialisation computes the
  largest products up to three times where memory is nearly full, beside `config.remat`. A layer's
  parameters are gathered in one exchange rather than in eight: they run beside the products and
  take multiprocessors from them for half as long (benchmarks/scaling.py).
  """
  options: dict[str, bool | str] = {'xla_disable_hlo_passes': 'rematerialization'}
  for exchange in ('all_gather', 'reduce_scatter', 'all_reduce'):
    options[f'xla_gpu_{exchange}_combine_threshold_bytes'] = str(_EXCHANGE_BYTES)
  return options | ({'xla_gpu_enable_triton_gemm': False} if config.fp8 else {})


def make_gradients(
  config: model.ModelConfig,
  objective: Objective,
  *,
  max_logits: str | float | None = None,
) -> Callable[..., tuple[PyTree, dict]]:
  """`(params, batch, step, teacher's params) -> (gradients, metrics)`, to be jitted.

  For the arguments see make_train_step. Gradients are in the dtype that they were computed in
  (see model.computed), sums over micro-batches in float32.

  With `accumulate` > 1 the metrics have `micro_sq` too, the sum of the micro-batches' |gradient|².
  """

  def loss_fn(
    params: PyTree, batch: dict, total: jax.Array, step: jax.Array, teacher_params: PyTree
  ) -> tuple[jax.Array, dict]:
    if config.lora_rank:  # what is frozen is the model itself
      params = lora.joined(model.computed(config, teacher_params), params)
    common: dict[str, Any] = {
      'num_sources': objective.num_sources, 'chunk': objective.chunk, 'max_logits': max_logits}
    if objective.preference:
      loss = preferences.objective(
        config, params, batch, objective.preference, total_pairs=total,
        reference_params=teacher_params, **common)
    elif objective.reinforce:
      loss = reinforce.objective(
        config, params, batch, objective.reinforce, reference_params=teacher_params, **common)
    else:
      loss = objectives.next_token(
        config,
        params,
        batch,
        total_tokens=total,
        z_loss=objective.z_loss,
        cos_reg=objective.cos_reg,
        mtp_weight=objective.mtp_weight(step) if objective.mtp_weight else 0.0,
        teacher=objective.teacher,
        teacher_params=teacher_params,
        **common,
      )
    return loss.total, loss.metrics

  grad_fn, accumulate = jax.value_and_grad(loss_fn, has_aux=True), objective.accumulate

  def gradients(
    params: PyTree, batch: dict, step: jax.Array, teacher_params: PyTree = None
  ) -> tuple[PyTree, dict]:
    rest = objective.total(batch), step, teacher_params
    params = model.computed(config, params)
    if accumulate == 1:
      (loss, aux), grads = grad_fn(params, batch, *rest)
      return model.stacked(grads), {'loss': loss, **aux}

    def one(total: PyTree, micro: dict) -> tuple[PyTree, None]:
      (loss, aux), grads = grad_fn(params, micro, *rest)
      aux |= {'loss': loss, 'micro_sq': jnp.square(clipping.norm(grads))}
      sums = jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, (grads, aux))
      if max_logits:
        sums[1]['max_logits_LN'] = jnp.maximum(total[1]['max_logits_LN'], aux['max_logits_LN'])
      return sums, None

    # Neighbouring rows go to different micro-batches: the rows of each device stay on it.
    def split(x: jax.Array) -> jax.Array:
      x = x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1)
      # Of micro-batches of one row jax would take the micro-batches for the rows.
      return sharding.constrain(x, None, 'batch', *('length', *[None] * x.ndim)[: x.ndim - 2])

    micros = jax.tree.map(split, batch)
    first = jax.tree.map(lambda x: x[0], micros)
    (loss, aux), grads = grad_fn(params, first, *rest)
    others = jax.tree.map(lambda x: x[1:], micros)
    aux |= {'loss': loss, 'micro_sq': jnp.square(clipping.norm(grads))}
    (grads, aux), _ = jax.lax.scan(one, (float32(grads), aux), others)
    return model.stacked(grads), aux

  return gradients


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a run's config says of its step: nothing is computed yet."""

  config: Any
  model_config: model.ModelConfig
  params: PyTree  # abstract, with their places on the mesh
  opt_state: PyTree  # likewise: {optimizer, guard}
  fresh_guard: dict  # the guard's state before the first step, on the host
  optimizer: Any
  info: optim.OptimizerInfo
  scales: Mapping[str, mup.Multipliers]
  teacher: distill.Teacher | None

  @property
  def places(self) -> dict:
    """Shardings of `opt_state`."""
    return jax.tree.map(lambda x: x.sharding, self.opt_state)

  def step(self, num_sources: int) -> jax.stages.Wrapped:
    """The run's train step; see make_train_step."""
    c = self.config
    return make_train_step(
      self.model_config,
      self.optimizer,
      c.guard,
      self.objective(num_sources),
      qk_clip=c.optimizer.qk_clip,
      clip_norm=c.optimizer.clip_norm,
      leaves=c.diagnostics.leaves,
      update_twice=self.info.elementwise,
    )

  def objective(self, num_sources: int) -> Objective:
    """What the run minimises."""
    c = self.config
    return Objective(
      num_sources, c.train.accumulate, c.train.loss_chunk, c.train.z_loss, c.train.cos_reg,
      mtp_weight(c.mtp, c.train.steps), self.teacher, *post_training(c.train))


def make_mesh(
  config: Any,
  model_config: model.ModelConfig,
  devices: Sequence[jax.Device] | None = None,
  device_memory: int | None = None,
) -> jax.sharding.Mesh:
  """The mesh of a run, over these devices or all: its section `mesh`, see memory.choose_mesh.

  Args:
    device_memory: bytes; None = what the device says itself.
  Raises:
    ValueError: sizes that fit neither devices, batch nor model.
  """
  devices = devices or jax.devices()
  sizes = {axis: config.mesh[axis] for axis in sharding.AXES}
  if list(sizes.values()).count(-1) > 1:
    if config.diagnostics.every:  # they need whole rows
      sizes['context'] = 1 if sizes['context'] == -1 else sizes['context']
    if device_memory is None:
      known = (jax.local_devices()[0].memory_stats() or {}).get('bytes_limit', 0)
      device_memory = int(distributed.agreed(known)) or None
    sizes = memory.choose_mesh(
      model_config, sizes, devices=len(devices), rows=config.train.rows // config.train.accumulate,
      seq_len=config.data.seq_len, chunk=config.train.loss_chunk, memory=device_memory,
      island=8 if devices[0].platform in ('gpu', 'cuda') else None)
  return sharding.make_mesh(**sizes, devices=devices)


def make_plan(
  config: Any,
  model_config: model.ModelConfig,
  mesh: jax.sharding.Mesh,
  teacher: distill.Teacher | None = None,
) -> Plan:
  """Raises ValueError where config, model and mesh do not fit each other."""
  params = (lora.abstract(model_config, mesh) if model_config.lora_rank
            else model.abstract_params(model_config, mesh))
  if teacher:
    params |= sharding.abstract(jax.eval_shape(teacher.init, jax.random.key(0)), mesh)
  scales = mup.multipliers(
    config.parametrization, model_config, config.optimizer, params)
  optimizer, info = optim.make_optimizer(config.optimizer, params, config.train.steps, scales)
  fresh_guard = guard.init(config.guard, model_config.num_layers)
  opt_state = {
    'optimizer': sharding.abstract(jax.eval_shape(optimizer.init, params), mesh),
    'guard': sharding.replicated(fresh_guard, mesh),
  }
  return Plan(
    config, model_config, params, opt_state, fresh_guard, optimizer, info, scales, teacher)


def post_training(
  config: Any
) -> tuple[Preference | None, Reinforce | None]:
  """How a run learns from pairs of answers, or from its own, if it does.

  Args:
    config: section `train` of a config, with sections preference and reinforce.
  Raises:
    ValueError: values out of range, both at once, or terms of a loss that they do not have.
  """
  kinds: dict[str, Any] = {'preference': Preference, 'reinforce': Reinforce}
  wanted = [name for name in kinds if config[name].loss]
  if len(wanted) > 1:
    raise ValueError('train.preference.loss and train.reinforce.loss: a run has one of them')
  for name in wanted:
    for term in ('z_loss', 'cos_reg'):
      if config[term]:
        raise ValueError(f'train.{term}={config[term]} is no term of train.{name}: set it to 0')
  made = {name: kinds[name](**{
    f.name: config[name][f.name] for f in dataclasses.fields(kinds[name])}) for name in wanted}
  return made.get('preference'), made.get('reinforce')


def mtp_weight(config: Any, total_steps: int) -> Callable[[jax.Array], jax.Array]:
  """Step (from 1) → λ: `config.weight`, and `config.weight_last` after `switch` of all steps.

  Raises ValueError for weights below 0, or a switch that is no share.
  """
  if min(config.weight, config.weight_last) < 0 or not 0 <= config.switch <= 1:
    raise ValueError(
      f'mtp.weight={config.weight}, mtp.weight_last={config.weight_last}, mtp.switch='
      f'{config.switch}: weights are 0 or more, switch a share of the run')
  if config.weight == config.weight_last:
    return lambda step: jnp.float32(config.weight)
  last = math.floor(config.switch * total_steps)
  return lambda step: jnp.where(step <= last, config.weight, config.weight_last)


_OPT_STATE = ('optimizer', 'guard')
_EXCHANGE_BYTES = 300_000_000  # of exchanges that are joined: of 80, 170 and 300 MB the best at 3B


def float32(tree: PyTree) -> PyTree:
  """Every leaf in float32."""
  return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

"""One run of pretraining: batches in, checkpoints and metrics out, exactly resumable."""

import dataclasses
import json
import math
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

import smoljax
from smoljax import (
  attention,
  checkpoint,
  data,
  diagnostics,
  distill,
  distributed,
  evals,
  guard,
  memory,
  metrics,
  model,
  muon,
  objectives,
  optim,
  parametrization,
  sharding,
  teacher_cache,
)
from smoljax.checkpoint import Checkpoints

PyTree = Any


class Diverged(ArithmeticError):
  """The loss is not finite, or the guard gave up; the checkpoints before that are untouched."""


def make_train_step(
  config: model.ModelConfig,
  optimizer: Any,
  guard_config: Any,
  *,
  num_sources: int,
  accumulate: int = 1,
  chunk: int = 512,
  z_loss: float = 0.0,
  cos_reg: float = 0.0,
  qk_clip: Any = None,
  clip_norm: float = 0.0,
  leaves: bool = False,
  update_twice: bool = False,
  mtp_weight: Callable[[jax.Array], jax.Array] | None = None,
  teacher: distill.Teacher | None = None,
) -> Callable[..., tuple[dict, dict]]:
  """The jitted `(state, batch[, teacher's params]) -> (state, metrics)`.

  `state` = {params, opt_state} is donated. `mtp_weight` gives λ of a step, and `teacher` what is
  learned from another model (see objectives.next_token).

  `opt_state` is {optimizer, guard}: what `optimizer.init` and `guard.init` give. A step that the
  guard refuses changes nothing but the guard's own state.

  With `qk_clip` (attributes tau, measure, rule) and its tau above 0, something is done about heads
  whose largest logit exceeded tau in this step, measured as logit_measure says: by rule 'weights'
  they are shrunk after the update (muon.qk_clip); by 'rates' their gradients are clipped to a share
  of `clip_norm` (0 = not at all) and their updates made smaller (muon.qk_rates).

  With `update_twice` the update is computed for its norms, and once more when the guard has judged
  them: for an optimizer that works place by place this is faster than to write it down between.

  With `accumulate` > 1 the rows are split into that many micro-batches whose gradients are summed
  in float32; the loss is divided by the token count of the whole batch, so the result is that of
  one big batch up to rounding.

  Metrics: `loss` (nats per token), `loss_sum_S` and `tokens_S` per source, `grad_norm` and
  `update_norm` over all leaves, `clip_kept` (see optim.ClipState), `guard` (the report of
  guard.judge); `max_logits_LN` and, with `leaves`, those of diagnostics.leaves if asked for.
  """
  faults = guard.parse_faults(guard_config.inject)
  tau = qk_clip.tau if qk_clip else 0.0
  slower = tau and qk_clip.rule == 'rates'
  gradients = make_gradients(
    config,
    num_sources=num_sources,
    accumulate=accumulate,
    chunk=chunk,
    z_loss=z_loss,
    cos_reg=cos_reg,
    max_logits=logit_measure(config, qk_clip) if tau else None,
    mtp_weight=mtp_weight,
    teacher=teacher,
  )

  def train_step(
    state: dict, batch: dict, teacher_params: PyTree = None
  ) -> tuple[dict, dict]:
    params, opt_state, guarded = state['params'], *(state['opt_state'][k] for k in _OPT_STATE)
    number = guarded['batches'] + 1
    batch = guard.inject(faults, 'batch', number, batch)
    grads, aux = gradients(params, batch, number, teacher_params)
    grads = guard.inject(faults, 'grads', number, grads)
    lr_scale = guarded['lr_scale']

    def update(params: PyTree, opt_state: PyTree) -> tuple[PyTree, PyTree]:
      clipped = _float32(grads)
      if slower and clip_norm:
        clipped = muon.qk_clip_grads(clipped, aux['max_logits_LN'], tau, clip_norm)
      updates, new_opt_state = optimizer.update(clipped, opt_state, params)
      updates = jax.tree.map(lambda u: u * lr_scale, updates)
      updates = guard.inject(faults, 'updates', number, updates)
      if slower:
        updates = muon.qk_rates(updates, aux['max_logits_LN'], tau)
      return updates, new_opt_state

    updates, new_opt_state = update(params, opt_state)
    if leaves:
      aux['leaves'] = diagnostics.leaves(params, grads, updates)
    aux['clip_kept'] = optim.clip_kept(new_opt_state)
    aux |= {'grad_norm': optim.norm(grads), 'update_norm': optim.norm(updates)}
    stats = {k: aux[k] for k in ('loss', 'grad_norm', 'update_norm')}
    stats['layer_grad_norm'] = optim.layer_norms(grads['blocks'])
    ok, guarded, aux['guard'] = guard.judge(guard_config, guarded, stats)
    if update_twice:
      updates, new_opt_state = update(*jax.lax.optimization_barrier((params, opt_state)))
    new_params = jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)
    if tau and not slower:
      new_params = muon.qk_clip(new_params, aux['max_logits_LN'], tau)
    params, opt_state = guard.select(ok, (new_params, new_opt_state), (params, opt_state))
    return {'params': params, 'opt_state': {'optimizer': opt_state, 'guard': guarded}}, aux

  return jax.jit(train_step, donate_argnums=0, compiler_options=compiler_options(config))


def logit_measure(config: model.ModelConfig, qk_clip: Any) -> str | float:
  """What attention is asked for (`max_logits` of model.apply) with these settings of QK-Clip.

  Kimi K2 clips after a step what the step has measured, so that the next batch can find a larger
  logit: by a third at 1,024 tokens a step, by less in larger batches. By the measure 'limit' logits
  are scaled down to tau within the step too, as if its own batch had clipped the weights before.

  Raises:
    ValueError: an unknown rule or measure, or a limit where it would not hold.
  """
  for name, valid in (('rule', muon.QK_RULES), ('measure', (*attention.MEASURES, 'limit'))):
    if (value := getattr(qk_clip, name)) not in valid:
      raise ValueError(f'unknown optimizer.qk_clip.{name} {value!r}: one of {", ".join(valid)}')
  if qk_clip.measure != 'limit':
    return qk_clip.measure
  if qk_clip.rule != 'weights' or config.attention_softcap:
    raise ValueError("optimizer.qk_clip.measure='limit' wants rule='weights' and no "
                     'model.attention_softcap: take measure=exact with these')
  return float(qk_clip.tau)


def compiler_options(config: model.ModelConfig) -> dict[str, bool | str]:
  """XLA's options for a step, understood on every platform.

  Before a product is given to Triton or cuBLAS, conversions to 8 bits and back are taken for noise
  and left out; without Triton cuBLAS finds them first. XLA's own rematerialisation computes the
  largest products up to three times where memory is nearly full, beside `config.remat`.
  """
  options = {'xla_disable_hlo_passes': 'rematerialization'}
  return options | ({'xla_gpu_enable_triton_gemm': False} if config.fp8 else {})


def make_gradients(
  config: model.ModelConfig,
  *,
  num_sources: int,
  accumulate: int = 1,
  chunk: int = 512,
  z_loss: float = 0.0,
  cos_reg: float = 0.0,
  max_logits: str | None = None,
  mtp_weight: Callable[[jax.Array], jax.Array] | None = None,
  teacher: distill.Teacher | None = None,
) -> Callable[..., tuple[PyTree, dict]]:
  """`(params, batch, step, teacher's params) -> (gradients, metrics)`, to be jitted.

  For the arguments see make_train_step. Gradients are in the dtype that they were computed in
  (see model.computed), sums over micro-batches in float32.

  With `accumulate` > 1 the metrics have `micro_sq` too, the sum of the micro-batches' |gradient|².
  """

  def loss_fn(
    params: PyTree, batch: dict, total_tokens: jax.Array, step: jax.Array, teacher_params: PyTree
  ) -> tuple[jax.Array, dict]:
    loss = objectives.next_token(
      config,
      params,
      batch,
      total_tokens=total_tokens,
      num_sources=num_sources,
      chunk=chunk,
      z_loss=z_loss,
      cos_reg=cos_reg,
      max_logits=max_logits,
      mtp_weight=mtp_weight(step) if mtp_weight else 0.0,
      teacher=teacher,
      teacher_params=teacher_params,
    )
    return loss.total, loss.metrics

  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

  def gradients(
    params: PyTree, batch: dict, step: jax.Array, teacher_params: PyTree = None
  ) -> tuple[PyTree, dict]:
    total_tokens = jnp.maximum(jnp.sum(batch['segment_ids'] > 0), 1).astype(jnp.float32)
    rest = total_tokens, step, teacher_params
    params = model.computed(config, params)
    if accumulate == 1:
      (loss, aux), grads = grad_fn(params, batch, *rest)
      return model.stacked(grads), {'loss': loss, **aux}

    def one(total: PyTree, micro: dict) -> tuple[PyTree, None]:
      (loss, aux), grads = grad_fn(params, micro, *rest)
      aux |= {'loss': loss, 'micro_sq': jnp.square(optim.norm(grads))}
      sums = jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, (grads, aux))
      if max_logits:
        sums[1]['max_logits_LN'] = jnp.maximum(total[1]['max_logits_LN'], aux['max_logits_LN'])
      return sums, None

    # Neighbouring rows go to different micro-batches: the rows of each device stay on it.
    micros = jax.tree.map(
      lambda x: x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
    )
    first = jax.tree.map(lambda x: x[0], micros)
    (loss, aux), grads = grad_fn(params, first, *rest)
    others = jax.tree.map(lambda x: x[1:], micros)
    aux |= {'loss': loss, 'micro_sq': jnp.square(optim.norm(grads))}
    (grads, aux), _ = jax.lax.scan(one, (_float32(grads), aux), others)
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
  scales: Mapping[str, parametrization.Multipliers]
  teacher: distill.Teacher | None

  def step(self, num_sources: int) -> Callable[..., tuple[dict, dict]]:
    """The run's train step; see make_train_step."""
    c = self.config
    return make_train_step(
      self.model_config,
      self.optimizer,
      c.guard,
      num_sources=num_sources,
      accumulate=c.train.accumulate,
      chunk=c.train.loss_chunk,
      z_loss=c.train.z_loss,
      cos_reg=c.train.cos_reg,
      qk_clip=c.optimizer.qk_clip,
      clip_norm=c.optimizer.clip_norm,
      leaves=c.diagnostics.leaves,
      update_twice=self.info.elementwise,
      mtp_weight=mtp_weight(c.mtp, c.train.steps),
      teacher=self.teacher,
    )


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
  params = model.abstract_params(model_config, mesh)
  if teacher:
    params |= sharding.abstract(jax.eval_shape(teacher.init, jax.random.key(0)), mesh)
  scales = parametrization.multipliers(
    config.parametrization, model_config, config.optimizer, params)
  optimizer, info = optim.make_optimizer(config.optimizer, params, config.train.steps, scales)
  fresh_guard = guard.init(config.guard, model_config.num_layers)
  opt_state = {
    'optimizer': sharding.abstract(jax.eval_shape(optimizer.init, params), mesh),
    'guard': sharding.replicated(fresh_guard, mesh),
  }
  return Plan(
    config, model_config, params, opt_state, fresh_guard, optimizer, info, scales, teacher)


def train(
  config: Any,
  model_config: model.ModelConfig,
  corpora: Mapping[str, str],
  directory: str,
  *,
  targets: Mapping[str, str] | None = None,
  caches: Mapping[str, str] | None = None,
  meta: Mapping[str, Any] | None = None,
  say: Callable[[str], None] = print,
) -> dict:
  """Trains in `directory` until `config.train.steps`, from the newest checkpoint there if any.

  Args:
    config: attribute mapping with `name`, `seed`, `xprof`, `wandb` and the sections data, train,
      mesh, optimizer, guard, mtp, distill, parametrization, diagnostics of configs/base.py, with
      the derived `train.steps`, `train.rows`.
    corpora: name → tokenised corpus, as named by `train.stages`.
    directory: gets `checkpoints/`, `metrics.jsonl`, `events.jsonl`, `tensorboard/`, `profile/`.
    targets: name → tokenised corpus whose held-out documents are evaluated on; `corpora` if None.
    caches: name → teacher cache of that corpus, if config.distill.cache says that there is one.
    meta: stored with each checkpoint beside the model config, JSON-able.
  Returns:
    Key figures: steps, tokens, parameters, loss (first, final), tokens_per_sec, …
  Raises:
    ValueError: config, mesh, corpora and checkpoint do not fit each other.
    Diverged: the guard stopped the run, or without it the loss stopped being finite.
  """
  t, qk_clip = config.train, config.optimizer.qk_clip
  mesh = make_mesh(config, model_config)
  opened = {name: data.open_corpus(path, 'train', name) for name, path in corpora.items()}
  if config.diagnostics.every and mesh.shape['context'] > 1:
    raise ValueError('diagnostics.every needs whole rows: set it to 0, or mesh.context to 1')
  held_out = evals.load_held_out(targets or corpora, limit=t.eval_documents)
  stages = data.make_stages(t.stages, t.steps)
  cached = teacher_cache.open_caches(caches or {}, opened)
  batches = data.Batches(
    opened,
    stages,
    caches=cached,
    rows=t.rows,
    seq_len=config.data.seq_len,
    window=config.data.window,
    max_segments=config.data.max_segments,
    seed=config.seed,
    local_rows=sharding.local_rows(mesh, t.rows),
  )
  model_config = dataclasses.replace(model_config, max_segments=batches.max_segments)
  meta = {
    **(meta or {}),
    'model': dataclasses.asdict(model_config),
    'fingerprint': batches.fingerprint(),
    'code_version': smoljax.__version__,
  }

  with jax.set_mesh(mesh), Checkpoints(os.path.join(directory, 'checkpoints'), keep=t.keep) as ckpt:
    key = jax.random.fold_in(jax.random.key(config.seed), _name_seed('init'))
    teacher, teacher_params = load_teacher(config.distill, model_config, mesh, cached)
    plan = make_plan(config, model_config, mesh, teacher)
    params, opt_state, optimizer = plan.params, plan.opt_state, plan.optimizer
    placed = jax.tree.map(lambda x: x.sharding, opt_state)

    def snapshot() -> tuple[int, dict, dict]:
      """(step, state, position of the data) of the newest checkpoint, or of the run's start."""
      restored = ckpt.restore(params, opt_state)
      if restored is None:
        if t.branch_from:
          return branch()
        first = _first_params(t.init_from, model_config, key, params, plan.scales)
        if teacher:
          more = teacher.init(key)
          first |= jax.device_put(more, sharding.shardings(more, mesh))
        state = {'params': first}
        init = jax.jit(optimizer.init, out_shardings=placed['optimizer'])
        state['opt_state'] = {
          'optimizer': init(state['params']),
          'guard': jax.device_put(plan.fresh_guard, placed['guard']),
        }
        return 0, state, iter(batches).get_state()
      step, *arrays, position, stored = restored
      if stored['fingerprint'] != meta['fingerprint']:
        raise ValueError(
          f'{directory}: the checkpoint at step {step} was trained on another stream of batches '
          '(corpus, mixture, rows or seed differ): use a fresh workdir'
        )
      return step, dict(zip(('params', 'opt_state'), arrays, strict=True)), position

    def branch() -> tuple[int, dict, dict]:
      step, *arrays, position, stored = checkpoint.restore_other(t.branch_from, params, opt_state)
      if stored.get('past') != batches.fingerprint(step):
        raise ValueError(
          f'train.branch_from={t.branch_from}: before its step {step} other batches were trained '
          'on than this config has there: let corpora, rows, seed, and train.stages up to that '
          'step be the same'
        )
      if step >= t.steps:
        raise ValueError(
          f'train.branch_from={t.branch_from} is at step {step}, but train.tokens={t.tokens} end '
          f'with step {t.steps}: raise them, or branch from an earlier checkpoint'
        )
      return step, dict(zip(('params', 'opt_state'), arrays, strict=True)), position

    resumed = ckpt.latest() is not None
    step, state, position = snapshot()
    iterator = data.prefetch(batches, position)
    ckpt.reserve((params, opt_state))
    if lacking := ckpt.lacks((params, opt_state), -(-(t.steps - step) // t.checkpoint_every)):
      say(f'warning: {directory}: its disk has {lacking / 1e9:.1f} GB too few for the checkpoints '
          f'to come: make room, or lower train.keep={t.keep}')

    train_step = plan.step(len(batches.sources))
    flops = model_config.flops_per_token(config.data.seq_len)
    probe = make_probe(
      model_config, optimizer, mesh, t, num_sources=len(batches.sources),
      fixed=fixed_rows(held_out, config.data.seq_len, mesh) if config.diagnostics.every else {},
      mtp_weight=mtp_weight(config.mtp, t.steps), teacher=teacher, teacher_params=teacher_params)
    peak = metrics.peak_flops(jax.devices()[0].device_kind)
    gpus = [d.local_hardware_id for d in jax.local_devices() if d.platform == 'gpu']
    energy = metrics.Energy(gpus)
    window: list[tuple[dict, float, float]] = []  # metrics, step seconds, wait seconds since a row

    with (
      metrics.Log(directory, step=step, tensorboard=t.tensorboard, wandb=config.wandb,
                  name=config.name, config=meta.get('config'), writes=distributed.is_lead()) as log,
      _Termination() as termination,
      _Profile(config.xprof, os.path.join(directory, 'profile')) as profile,
    ):
      log.event(
        step,
        'resume' if resumed else 'branch' if t.branch_from else 'start',
        **{k: t[k] for k in ('init_from', 'branch_from') if t[k] and not resumed},
        devices=f'{jax.device_count()} x {jax.devices()[0].device_kind}',
        mesh=dict(mesh.shape),
        **({'quarantined': ckpt.quarantined} if ckpt.quarantined else {}),
      )

      def write_row(step: int, stage: str) -> list[dict]:
        """One row over the steps since the last one, of which it returns the guard's reports.

        Steps that were skipped count for time only. Blocks until all are computed.
        """
        everything = jax.device_get([m for m, _, _ in window])
        reports = [v['guard'] for v in everything]
        values = [v for v in everything if not v['guard']['streak']]
        seconds = sum(s for _, s, _ in window)
        tokens_S = np.sum([v['tokens_S'] for v in everything], axis=0)
        rate = tokens_S.sum() / seconds
        tokens = step * t.rows * config.data.seq_len
        row = {'stage': stage, 'tokens': tokens, 'flops': tokens * flops}
        if values:
          counted_S = np.sum([v['tokens_S'] for v in values], axis=0)
          loss_S = np.sum([v['loss_sum_S'] for v in values], axis=0) / np.maximum(counted_S, 1)
          row |= {
            'train/loss': float(np.average(loss_S, weights=counted_S)),
            **{
              f'train/loss/{n}': float(x)
              for n, x, k in zip(batches.sources, loss_S, counted_S, strict=True)
              if k
            },
            'grad/norm': float(np.mean([v['grad_norm'] for v in values])),
            **_terms(values, float(counted_S.sum())),
            'clip_frac': float(np.mean([v['clip_kept'] < 1 - 1e-6 for v in values])),
            **{k: float(x) for k, x in values[-1].get('leaves', {}).items()},
          }
          if t.accumulate > 1:
            row |= diagnostics.micro_batches(
              float(np.mean([v['micro_sq'] for v in values])),
              float(np.mean([v['grad_norm'] ** 2 for v in values])),
              t.accumulate,
              float(counted_S.sum()) / len(values),
            )
        lr_scale = float(reports[-1]['lr_scale'])
        row |= {
          'optim/lr': float(plan.info.schedule(max(int(reports[-1]['applied']) - 1, 0))) * lr_scale,
          'guard/skips': int(reports[-1]['skips']),
          'guard/lr_scale': lr_scale,
          'perf/tokens_per_sec': round(float(rate), 1),
          'perf/step_time': round(seconds / len(window), 4),
          'data/wait': round(sum(w for _, _, w in window) / seconds, 4),
        }
        if qk_clip.tau and values:
          row |= _logit_metrics([v['max_logits_LN'] for v in values], qk_clip)
        if peak:
          used = float(rate) / peak / jax.device_count()
          whole = model_config.flops_per_token(config.data.seq_len, causal=False)
          row |= {'perf/mfu': round(used * flops, 4), 'perf/mfu_noncausal': round(used * whole, 4)}
        if (joules := energy.joules()) is not None:  # of this process's devices, as are its tokens
          local = tokens_S.sum() * jax.local_device_count() / jax.device_count()
          row['perf/joules_per_token'] = round(float(joules / local), 6)
        if held := (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use'):
          row['perf/peak_gb'] = round(held / 1e9, 2)
        window.clear()
        log.row(step, row)
        loss, norm = row.get('train/loss', 0.0), row.get('grad/norm', 0.0)
        if not (math.isfinite(loss) and math.isfinite(norm)):
          log.event(step, 'diverged', loss=str(loss), grad=str(norm))
          raise Diverged(
            f'loss {loss} and gradient norm {norm} at step {step}: '
            'lower --config.optimizer.learning_rate; the last good checkpoint is kept'
          )
        left = (t.steps - step) * row['perf/step_time']
        say(
          f'step {step}/{t.steps} | {stage} | loss {loss:.3f} | '
          f'lr {row["optim/lr"]:.2e} | grad {norm:.2f} | {rate:,.0f} tok/s | {left:.0f} s left'
        )
        return reports

      def log_skips(step: int, reports: list[dict], position: dict) -> dict | None:
        """An event for each step that was skipped; the last one's first broken rule, if any.

        Args:
          reports: of the steps up to `step`.
          position: of the data before the first of them.
        """
        broken = None
        for i, report in enumerate(reports):
          if report['streak'] and (rows := guard.incidents(report)):
            broken = rows[0]
            log.event(
              step - len(reports) + 1 + i,
              'guard',
              action='skip',
              broken=rows,
              documents=batches.documents(position, i),
            )
        return broken

      def roll_back(step: int, state: dict, broken: dict) -> tuple[int, dict, dict]:
        """What the guard's ladder says after too many skips; returns what `snapshot` returns."""
        now = jax.device_get(state['opt_state']['guard'])
        action = guard.decide(config.guard, now, config.guard.patience)
        if action == 'stop':
          log.event(step, 'guard', action='stop', **broken, rollbacks=now['rollbacks'].tolist())
          raise Diverged(
            f'stopped at step {step}: {broken["rule"]} {broken["statistic"]} against '
            f'{broken["threshold"]}, after two rollbacks in the last {config.guard.horizon} '
            f'batches; {directory}/events.jsonl names the documents. Lower '
            '--config.optimizer.learning_rate or look at these documents'
          )
        if action == 'back off' and ckpt.latest() == now['rollback_to']:
          ckpt.discard(ckpt.latest())  # it led here again
        to, state, position = snapshot()
        ckpt.discard(to + 1)
        before = jax.device_get(state['opt_state']['guard'])
        after = guard.roll_back(config.guard, now, before, to)
        state['opt_state']['guard'] = jax.device_put(after, placed['guard'])
        position = batches.after(position, int(after['batches'] - before['batches']))
        log.event(
          step,
          'guard',
          action=action,
          **broken,
          to=to,
          batches_left_out=int(after['batches'] - before['batches']),
          lr_scale=float(after['lr_scale']),
          position=position,
        )
        log.rewind(to)
        say(f'step {step}: {action} to step {to}: {broken["rule"]} {broken["statistic"]}')
        return to, state, position

      def evaluate(step: int) -> None:
        """A row of what held-out documents say, at the bounds of stages too."""
        row, options = {}, {'batch_size': t.rows, 'seq_len': config.data.seq_len}
        for name, documents in held_out.items():
          score = evals.bits_per_byte(model_config, state['params'], documents, **options)
          row |= {f'val/{name}/{k}': score[k] for k in ('loss', 'bpb', 'ece')}
        everything = [d for documents in held_out.values() for d in documents]
        copied = evals.copy_probe(model_config, state['params'], everything, rows=16, **options)
        row |= {f'copy/{far}/{k}': x for far, found in copied.items() for k, x in found.items()}
        log.row(step, {'tokens': step * t.rows * config.data.seq_len, **row})
        say(f'step {step}/{t.steps} | ' + ' | '.join(f'{k} {v:.3f}' for k, v in row.items()))

      due = False  # a checkpoint
      if step == 0:
        evaluate(step)
      while step < t.steps:
        stage = next(s for s in stages if s.start <= step < s.stop)
        if step == stage.start:
          log.event(step, 'stage', stage=stage.name, mixture=dict(stage.mixture))
          # Another mixture has another loss.
          state['opt_state']['guard'] = guard.forget(state['opt_state']['guard'], 'loss')
        began = time.perf_counter()
        batch = next(iterator)
        waited = time.perf_counter() - began
        look = None
        looks = config.diagnostics.every and (step + 1) % config.diagnostics.every == 0
        if looks or profile.turns(step):
          jax.block_until_ready(state)  # the steps before this one take their time
          spent = time.perf_counter() - began
          profile.before(step)
          if looks:
            look = probe(state, batch)
          began = time.perf_counter() - spent  # neither is part of the step
        batch = sharding.shard_batch(batch, mesh)
        state, step_metrics = train_step(state, batch, teacher_params)
        step += 1
        last = step == t.steps
        due |= step % t.checkpoint_every == 0
        stop = termination.requested(step)
        save = last or stop or due
        told = step % t.log_every == 0 or save or step == stage.stop
        evaluated = step % t.eval_every == 0 or step == stage.stop
        if told or evaluated:
          jax.block_until_ready(step_metrics)
        window.append((step_metrics, time.perf_counter() - began, waited))
        if told:
          reports = write_row(step, stage.name)
          streak = max(int(r['streak']) for r in reports)
          broken = log_skips(step, reports, position)
          if guard.decide(config.guard, reports[-1], streak) != 'go on':
            iterator.close()
            step, state, position = roll_back(step, state, broken)
            iterator, due = data.prefetch(batches, position), False
            continue
          position = iterator.get_state()
          # In the midst of skips the state may be what makes the steps bad: the checkpoint waits.
          save &= last or not reports[-1]['streak']
        if look:
          log.row(step, look)
        if evaluated:
          evaluate(step)
        if save:
          due = False
          past = {'past': batches.fingerprint(step)}
          began = time.perf_counter()
          ckpt.save(step, state['params'], state['opt_state'], position, meta | past)
          log.event(step, 'checkpoint', pause=round(time.perf_counter() - began, 2))
        if stop and not last:
          ckpt.close()
          log.event(step, 'stop', reason='SIGTERM')
          raise SystemExit(128 + signal.SIGTERM)
      ckpt.close()
      iterator.close()
      log.event(step, 'stop', reason='finished')

  distributed.wait('metrics are written')
  rows = metrics.read_rows(os.path.join(directory, 'metrics.jsonl'))
  trained = [r for r in rows if 'train/loss' in r]
  rates = [r['perf/tokens_per_sec'] for r in trained[1:]] or [trained[0]['perf/tokens_per_sec']]
  return {
    'steps': t.steps,
    'tokens': t.steps * t.rows * config.data.seq_len,
    'parameters': model_config.num_params(),
    'non_embedding_parameters': model_config.num_params(embedding=False),
    'loss': {'first': trained[0]['train/loss'], 'final': trained[-1]['train/loss']},
    'tokens_per_sec': float(np.median(rates)),
    'goodput': metrics.goodput(metrics.read_rows(os.path.join(directory, 'events.jsonl')), rows),
    'flops': flops * t.steps * t.rows * config.data.seq_len,
    'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
  }


def mtp_weight(config: Any, total_steps: int) -> Callable[[jax.Array], jax.Array]:
  """Step (from 1) → λ: `config.weight`, and `config.weight_last` after `switch` of all steps.

  Raises ValueError for weights below 0, or a switch that is no share.
  """
  if min(config.weight, config.weight_last) < 0 or not 0 <= config.switch <= 1:
    raise ValueError(
      f'mtp.weight={config.weight}, mtp.weight_last={config.weight_last}, mtp.switch='
      f'{config.switch}: weights are 0 or more, switch a share of the run')
  last = math.floor(config.switch * total_steps)
  return lambda step: jnp.where(step <= last, config.weight, config.weight_last)


def load_teacher(
  config: Any,
  student: model.ModelConfig,
  mesh: jax.sharding.Mesh,
  caches: Mapping[str, teacher_cache.Cache],
) -> tuple[distill.Teacher | None, PyTree]:
  """The teacher that `config` (section distill of configs/base.py) names, and its parameters.

  They are in the student's compute dtype, on the mesh: all of them if it runs beside the student,
  the output matrix for stored hidden states, nothing for samples.

  Raises ValueError if teacher, student and caches do not fit each other.
  """
  if not config.teacher:
    return None, None
  given = {f.name: config[f.name] for f in dataclasses.fields(distill.Teacher) if f.name in config}
  if config.cache != 'none':
    found = json.loads(json.dumps(evals.weights_fingerprint(config.teacher)))
    for name, cache in caches.items():
      wanted = {'cache': config.cache, 'teacher': found}
      if config.cache != 'hidden':
        wanted['temperature'] = config.temperature
      for what, value in wanted.items():
        if cache.manifest[what] != value:
          raise ValueError(
            f'the teacher cache of {name!r} has another {what} than distill.{what}: '
            f'{cache.manifest[what]!r}, not {value!r}; write it again')
    if config.cache != 'hidden':
      return distill.Teacher(None, student, **given), None
  teacher, params, _ = evals.load_weights(config.teacher)
  teacher, params = model.without_mtp(teacher, params)
  teacher = dataclasses.replace(
    teacher, dtype=student.dtype, attention=student.attention, remat='none',
    max_segments=student.max_segments)
  made = distill.Teacher(teacher, student, **given)
  params = jax.tree.map(lambda x: x.astype(teacher.dtype), params)
  params = jax.device_put(params, sharding.shardings(params, mesh))
  if config.cache == 'hidden':
    params = {'unembed_DV': jax.jit(model.unembedding, static_argnums=0)(teacher, params)}
  return made, params


def make_probe(
  config: model.ModelConfig,
  optimizer: Any,
  mesh: jax.sharding.Mesh,
  t: Any,
  *,
  num_sources: int,
  fixed: dict,
  mtp_weight: Callable[[jax.Array], jax.Array] | None = None,
  teacher: distill.Teacher | None = None,
  teacher_params: PyTree = None,
) -> Callable[[dict, dict], dict]:
  """`(state, this process's batch) -> row` of diagnostics too dear for every step.

  To be taken before the step on that batch. Activations of about 4,096 tokens; how evenly weights,
  and the update that the step will make, use their directions (`svd_entropy/weights/LEAF` and
  `svd_entropy/updates/LEAF`, means over layers); how far that update moves the residual stream of
  the `fixed` rows after each layer (`move_L`, see diagnostics.movement); and, where no
  micro-batches tell it in every row, what the gradients of the batch's two halves say. Rows that do
  not divide into micro-batches on this mesh say nothing of gradients and updates.
  """
  ways, micros = mesh.shape['data'] * mesh.shape['fsdp'], max(2, t.accumulate)
  gradients = make_gradients(
    config, num_sources=num_sources, accumulate=micros, chunk=t.loss_chunk, z_loss=t.z_loss,
    cos_reg=t.cos_reg, mtp_weight=mtp_weight, teacher=teacher,
  )
  views = optim.matrix_views(model.abstract_params(config))

  @jax.jit
  def of_gradients(
    state: dict, batch: dict, fixed: dict, teacher_params: PyTree
  ) -> tuple[tuple[jax.Array, ...], jax.Array, dict]:
    number = state['opt_state']['guard']['batches'] + 1
    grads, aux = gradients(state['params'], batch, number, teacher_params)
    updates, _ = optimizer.update(
      _float32(grads), state['opt_state']['optimizer'], state['params'])
    updates = jax.tree.map(lambda u: u * state['opt_state']['guard']['lr_scale'], updates)
    sums = aux['micro_sq'], jnp.square(optim.norm(grads)), jnp.sum(aux['tokens_S'])
    move_L = diagnostics.movement(config, state['params'], updates, fixed)
    return sums, move_L, diagnostics.svd_entropy(updates, views)

  @jax.jit
  def of_activations(params: PyTree, batch: dict) -> tuple[dict, dict]:
    return (
      diagnostics.activations(config, params, batch), diagnostics.svd_entropy(params, views))

  def probe(state: dict, batch: dict) -> dict:
    rows, seq_len = batch['inputs'].shape
    share = len(sharding.local_rows(mesh, ways))
    few = min(rows, -(-4096 // (seq_len * ways)) * share)
    few = sharding.shard_batch({k: x[:few] for k, x in batch.items()}, mesh)
    found, of_weights = jax.device_get(of_activations(state['params'], few))
    max_L = np.max(found.pop('max_logits_LN'), axis=1)
    row = {'attn/max_logit': float(max_L.max()), 'attn/max_logit_L': max_L.tolist()}
    row['attn/entropy_L'] = np.mean(found.pop('attn_entropy_LN'), axis=1).tolist()
    row |= {name: x.tolist() for name, x in found.items()}
    row |= {f'svd_entropy/weights/{name}': float(np.mean(x)) for name, x in of_weights.items()}
    if t.rows % (micros * ways) == 0:
      whole = sharding.shard_batch(batch, mesh)
      sums, move_L, of_updates = jax.device_get(
        of_gradients(state, whole, fixed, teacher_params))
      row['move_L'] = move_L.tolist()
      row |= {f'svd_entropy/updates/{name}': float(np.mean(x)) for name, x in of_updates.items()}
      if t.accumulate == 1:
        micro_sq, grad_sq, tokens = map(float, sums)
        row |= diagnostics.micro_batches(micro_sq, grad_sq, micros, tokens)
    return row

  return probe


def fixed_rows(
  held_out: Mapping[str, Sequence[evals.Document]], seq_len: int, mesh: jax.sharding.Mesh
) -> dict[str, jax.Array]:
  """Beginnings of the first held-out documents as a batch of about 2,048 tokens, on the mesh."""
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  rows = -(-2048 // (seq_len * ways)) * ways
  documents = [d['tokens'] for of in zip(*held_out.values(), strict=False) for d in of]
  documents = [documents[i % len(documents)] for i in range(rows)]
  inputs_BT = np.zeros((rows, seq_len), np.int32)
  for row, tokens in zip(inputs_BT, documents, strict=True):
    row[:len(tokens)] = tokens[:seq_len]
  lengths_B1 = np.array([[len(tokens)] for tokens in documents])
  places_T = np.arange(seq_len, dtype=np.int32)
  mine = sharding.local_rows(mesh, rows)
  return sharding.shard_batch({
    'inputs': inputs_BT[mine],
    'positions': np.tile(places_T, (rows, 1))[mine],
    'segment_ids': (places_T < lengths_B1).astype(np.int32)[mine],
  }, mesh)


_OPT_STATE = ('optimizer', 'guard')


def _float32(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _terms(values: Sequence[dict], tokens: float) -> dict[str, Any]:
  """Loss of each module of multi-token prediction and each term of a teacher, over some steps."""
  row = {}
  if 'mtp_sum_M' in values[0]:
    sum_M, tokens_M = (
      np.sum([v[k] for v in values], axis=0) for k in ('mtp_sum_M', 'mtp_tokens_M'))
    row['mtp/loss_M'] = (sum_M / np.maximum(tokens_M, 1)).tolist()
  for name in (k for k in values[0] if k.startswith('teacher_sum/')):
    row[name.replace('_sum', '')] = float(np.sum([v[name] for v in values])) / tokens
  return row


def _first_params(
  init_from: str, config: model.ModelConfig, key: jax.Array, expected: PyTree,
  scales: Mapping[str, parametrization.Multipliers],
) -> PyTree:
  """Fresh parameters, or those of another model of the same shape, placed on the mesh that is set.

  What gives parameters no shape may differ: rotary base, context length, which layers rotate.
  """
  if not init_from:
    return parametrization.initialise(model.init(config, key), scales)
  params = evals.load_weights(init_from)[1]
  shapes, wanted = (
    {jax.tree_util.keystr(k): x.shape for k, x in jax.tree_util.tree_leaves_with_path(tree)}
    for tree in (params, expected)
  )
  for name in sorted(shapes.keys() | wanted.keys()):
    if shapes.get(name) != wanted.get(name):
      raise ValueError(
        f'train.init_from={init_from}: its parameter {name} has the shape {shapes.get(name)}, '
        f'but the config means {wanted.get(name)}: set --config.model.shape and tokenizer to fit'
      )
  return jax.device_put(params, jax.tree.map(lambda x: x.sharding, expected))


def _logit_metrics(max_logits: Sequence[np.ndarray], qk_clip: Any) -> dict[str, float]:
  """Of the largest logits `[L, N]` of some steps: the largest of all, and what QK-Clip did."""
  largest_LN, tau = np.max(max_logits, axis=0), qk_clip.tau
  clipped = largest_LN > tau
  entered = np.minimum(largest_LN, tau) if qk_clip.measure == 'limit' else largest_LN
  return {
    'attn/max_logit': float(entered.max()),
    'qkclip/heads': int(clipped.sum()),
    'qkclip/min_gamma': float(tau / largest_LN.max()) if clipped.any() else 1.0,
  }


class _Termination:
  """While entered, SIGTERM is noted instead of ending the process, so that a step can be saved.

  Of several processes jax's own service notes it, and lets all agree on the step.
  """

  def requested(self, step: int) -> bool:
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._noted

  def __enter__(self) -> '_Termination':
    self._noted, self._previous = False, None
    if jax.process_count() > 1:
      return self
    try:
      self._previous = signal.signal(signal.SIGTERM, self._note)
    except ValueError:  # not the main thread: the embedding program owns the signals
      self._previous = None
    return self

  def _note(self, *_: object) -> None:
    self._noted = True

  def __exit__(self, *_: object) -> None:
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)


class _Profile:
  """Profiles the steps from FIRST up to END, for TensorBoard's profiler or xprof."""

  def __init__(self, steps: str, directory: str):
    try:
      self._first, self._end = map(int, steps.split(':')) if steps else (-1, -1)
    except ValueError as e:
      raise ValueError(f'xprof={steps!r}: give FIRST:END, such as 10:15') from e
    self._directory, self._running = directory, False

  def turns(self, step: int) -> bool:
    """Whether profiling begins or ends before this step."""
    return step in (self._first, self._end)

  def before(self, step: int) -> None:
    """To be called before each step that `turns`, when all steps before it are done."""
    if step == self._first:
      jax.profiler.start_trace(self._directory)
      self._running = True
    elif step == self._end:
      self.__exit__()

  def __enter__(self) -> '_Profile':
    return self

  def __exit__(self, *_: object) -> None:
    if self._running:
      jax.profiler.stop_trace()
      self._running = False


def _name_seed(name: str) -> int:
  """A 32-bit number that a consumer of randomness folds into the run's key."""
  return int.from_bytes(name.encode()[:4].ljust(4, b'\0'), 'little')

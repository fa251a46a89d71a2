"""One run of pretraining: batches in, checkpoints and metrics out, exactly resumable."""

import dataclasses
import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

import smoljax
from smoljax import distributed, metrics, model, sharding
from smoljax.checkpoints import store
from smoljax.checkpoints.store import Checkpoints
from smoljax.data import teacher_cache
from smoljax.data.batches import Batches, make_stages, prefetch
from smoljax.data.corpus import open_corpus
from smoljax.evals.held_out import bits_per_byte, copy_probe, load_held_out
from smoljax.optim.qk_clip import logit_metrics
from smoljax.train import diagnostics, guard
from smoljax.train import step as step_lib
from smoljax.train.probe import fixed_rows, make_probe
from smoljax.train.start import first_params, load_teacher
from smoljax.train.step import make_mesh, make_plan
from smoljax.train.telemetry import Profile, Termination, loss_terms


class Diverged(ArithmeticError):
  """The loss is not finite, or the guard gave up; the checkpoints before that are untouched."""


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
  opened = {name: open_corpus(path, 'train', name) for name, path in corpora.items()}
  if config.diagnostics.every and mesh.shape['context'] > 1:
    raise ValueError('diagnostics.every needs whole rows: set it to 0, or mesh.context to 1')
  held_out = load_held_out(targets or corpora, limit=t.eval_documents)
  stages = make_stages(t.stages, t.steps)
  cached = teacher_cache.open_caches(caches or {}, opened)
  batches = Batches(
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
        first = first_params(t.init_from, model_config, key, params, plan.scales)
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
      step, *arrays, position, stored = store.restore_other(t.branch_from, params, opt_state)
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
    iterator = prefetch(batches, position)
    ckpt.reserve((params, opt_state))
    if lacking := ckpt.lacks((params, opt_state), -(-(t.steps - step) // t.checkpoint_every)):
      say(f'warning: {directory}: its disk has {lacking / 1e9:.1f} GB too few for the checkpoints '
          f'to come: make room, or lower train.keep={t.keep}')

    train_step = plan.step(len(batches.sources))
    flops = model_config.flops_per_token(config.data.seq_len)
    probe = make_probe(
      model_config,
      optimizer,
      mesh,
      t,
      num_sources=len(batches.sources),
      fixed=fixed_rows(held_out, config.data.seq_len, mesh) if config.diagnostics.every else {},
      mtp_weight=step_lib.mtp_weight(config.mtp, t.steps),
      teacher=teacher,
      teacher_params=teacher_params,
    )
    peak = metrics.peak_flops(jax.devices()[0].device_kind)
    gpus = [d.local_hardware_id for d in jax.local_devices() if d.platform == 'gpu']
    energy = metrics.Energy(gpus)
    window: list[tuple[dict, float, float]] = []  # metrics, step seconds, wait seconds since a row

    with (
      metrics.Log(directory, step=step, tensorboard=t.tensorboard, wandb=config.wandb,
                  name=config.name, config=meta.get('config'), writes=distributed.is_lead()) as log,
      Termination() as termination,
      Profile(config.xprof, os.path.join(directory, 'profile')) as profile,
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
            **loss_terms(values, float(counted_S.sum())),
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
          row |= logit_metrics([v['max_logits_LN'] for v in values], qk_clip)
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
          score = bits_per_byte(model_config, state['params'], documents, **options)
          row |= {f'val/{name}/{k}': score[k] for k in ('loss', 'bpb', 'ece')}
        everything = [d for documents in held_out.values() for d in documents]
        copied = copy_probe(model_config, state['params'], everything, rows=16, **options)
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
            iterator, due = prefetch(batches, position), False
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


def _name_seed(name: str) -> int:
  """A 32-bit number that a consumer of randomness folds into the run's key."""
  return int.from_bytes(name.encode()[:4].ljust(4, b'\0'), 'little')

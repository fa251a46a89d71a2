"""What a run tells: rows of metrics, events, lines on the terminal; its profile; its signals."""

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from smoljax import distributed, metrics
from smoljax.optim.qk_clip import logit_metrics
from smoljax.train import diagnostics, guard
from smoljax.train.start import Run


class Diverged(ArithmeticError):
  """The loss is not finite, or the guard gave up; the checkpoints before that are untouched."""


class Stopwatch:
  """Seconds since it was made, without those spent inside `paused`."""

  def __init__(self):
    self._began = time.perf_counter()

  def seconds(self) -> float:
    """Since it was made, without what was paused."""
    return time.perf_counter() - self._began

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Does not count the time inside the context."""
    before = self.seconds()
    yield
    self._began = time.perf_counter() - before


class Telemetry:
  """Of one run, opened at a step: metrics.jsonl, events.jsonl, TensorBoard, and lines of text.

  Steps are gathered as they are dispatched (`add`) and become one row together (`row`), so that the
  host waits for the device only then.

  Args:
    log_line: gets a line of text at each row.
  """

  def __init__(self, run: Run, step: int, log_line: Callable[[str], None]):
    config, self._run, self.log_line = run.config, run, log_line
    self._log = metrics.Log(
      run.directory, step=step, tensorboard=config.train.tensorboard, wandb=config.wandb,
      name=config.name, config=run.meta.get('config'), writes=distributed.is_lead())
    self._steps: list[tuple[dict, float, float]] = []  # metrics, seconds, seconds of waiting
    self._flops = run.model_config.flops_per_token(config.data.seq_len)
    self._flops_noncausal = run.model_config.flops_per_token(config.data.seq_len, causal=False)
    self._peak = metrics.peak_flops(jax.devices()[0].device_kind)
    self._energy = metrics.Energy(
      [d.local_hardware_id for d in jax.local_devices() if d.platform == 'gpu'])
    self.event, self.rewind = self._log.event, self._log.rewind

  def __enter__(self) -> 'Telemetry':
    return self

  def __exit__(self, *error: object) -> None:
    self._log.__exit__(*error)

  def started(
    self, step: int, event: str, quarantined: Sequence[int], changed: Mapping[str, tuple]
  ) -> None:
    """The first event: how the run begins ('start', 'resume' or 'branch'), and on what.

    Args:
      quarantined: steps of checkpoints that were damaged.
      changed: config field → (its value so far, its value from now on).
    """
    t = self._run.config.train
    self.event(
      step, event,
      **{k: t[k] for k in ('init_from', 'branch_from') if t[k] and event != 'resume'},
      devices=f'{jax.device_count()} x {jax.devices()[0].device_kind}',
      mesh=dict(self._run.mesh.shape),
      **({'quarantined': quarantined} if quarantined else {}),
      **({'changed': dict(changed)} if changed else {}),
    )

  def add(self, step_metrics: dict, seconds: float, waited: float) -> None:
    """A step that was dispatched: its metrics, its time, and how much of that was for data."""
    self._steps.append((step_metrics, seconds, waited))

  def row(self, step: int, stage: str) -> list[dict]:
    """One row over the steps since the last one, of which it returns the guard's reports.

    Steps that were skipped count for time only. Blocks until all are computed.

    Raises Diverged if loss or gradients are not finite.
    """
    steps, self._steps = self._steps, []
    values = jax.device_get([v for v, _, _ in steps])
    reports = [v['guard'] for v in values]
    taken = [v for v in values if not v['guard']['streak']]
    tokens = self._run.tokens(step)
    row = {'stage': stage, 'tokens': tokens, 'flops': tokens * self._flops}
    if taken:
      row |= self._learned(taken)
    lr_scale = float(reports[-1]['lr_scale'])
    lr = self._run.plan.info.schedule(max(int(reports[-1]['applied']) - 1, 0))
    row |= {
      'optim/lr': float(lr) * lr_scale,
      'guard/skips': int(reports[-1]['skips']),
      'guard/lr_scale': lr_scale,
    }
    row |= self._speed(
      float(np.sum([v['tokens_S'] for v in values])), len(steps), sum(s for _, s, _ in steps),
      sum(w for _, _, w in steps))
    if self._run.config.optimizer.qk_clip.tau and taken:
      row |= logit_metrics([v['max_logits_LN'] for v in taken], self._run.config.optimizer.qk_clip)
    self._log.row(step, row)
    self._progress(step, row)
    return reports

  def measured(self, step: int, row: dict) -> None:
    """A row of what was measured between steps."""
    self._log.row(step, row)

  def evaluated(self, step: int, row: dict) -> None:
    """A row of what held-out documents say, and a line of text."""
    self._log.row(step, {'tokens': self._run.tokens(step), **row})
    figures = ' | '.join(f'{k} {v:.3f}' for k, v in row.items())
    self.log_line(f'step {step}/{self._run.config.train.steps} | {figures}')

  def skips(self, step: int, reports: list[dict], position: dict) -> dict | None:
    """An event for each step that the guard skipped; the last one's first broken rule, if any.

    Args:
      reports: of the steps up to `step`.
      position: of the data before the first of them.
    """
    broken = None
    for i, report in enumerate(reports):
      if report['streak'] and (rows := guard.incidents(report)):
        broken = rows[0]
        self.event(step - len(reports) + 1 + i, 'guard', action='skip', broken=rows,
                   documents=self._run.batches.documents(position, i))
    return broken

  def _learned(self, taken: list[dict]) -> dict[str, Any]:
    """Of the steps that were taken: losses, gradients, what the leaves did."""
    t = self._run.config.train
    tokens_S = np.sum([v['tokens_S'] for v in taken], axis=0)
    loss_S = np.sum([v['loss_sum_S'] for v in taken], axis=0) / np.maximum(tokens_S, 1)
    sources = zip(self._run.batches.sources, loss_S, tokens_S, strict=True)
    row = {
      'train/loss': float(np.average(loss_S, weights=tokens_S)),
      **{f'train/loss/{name}': float(x) for name, x, tokens in sources if tokens},
      'grad/norm': float(np.mean([v['grad_norm'] for v in taken])),
      **loss_terms(taken, float(tokens_S.sum())),
      'clip_frac': float(np.mean([v['clip_kept'] < 1 - 1e-6 for v in taken])),
      **{k: float(x) for k, x in taken[-1].get('leaves', {}).items()},
    }
    if t.accumulate > 1:
      row |= diagnostics.micro_batches(
        float(np.mean([v['micro_sq'] for v in taken])),
        float(np.mean([v['grad_norm'] ** 2 for v in taken])),
        t.accumulate,
        float(tokens_S.sum()) / len(taken),
      )
    return row

  def _speed(self, tokens: float, steps: int, seconds: float, waited: float) -> dict[str, float]:
    """Of some steps: tokens a second, the share of the devices' peak, energy, memory."""
    rate = tokens / seconds
    row = {
      'perf/tokens_per_sec': round(rate, 1),
      'perf/step_time': round(seconds / steps, 4),
      'data/wait': round(waited / seconds, 4),
    }
    if self._peak:
      used = rate / self._peak / jax.device_count()
      row['perf/mfu'] = round(used * self._flops, 4)
      row['perf/mfu_noncausal'] = round(used * self._flops_noncausal, 4)
    if (joules := self._energy.joules()) is not None:  # of this process's devices, as its tokens
      local = tokens * jax.local_device_count() / jax.device_count()
      row['perf/joules_per_token'] = round(float(joules / local), 6)
    if held := (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use'):
      row['perf/peak_gb'] = round(held / 1e9, 2)
    return row

  def _progress(self, step: int, row: dict) -> None:
    loss, norm = row.get('train/loss', 0.0), row.get('grad/norm', 0.0)
    if not (math.isfinite(loss) and math.isfinite(norm)):
      self.event(step, 'diverged', loss=str(loss), grad=str(norm))
      raise Diverged(
        f'loss {loss} and gradient norm {norm} at step {step}: '
        'lower --config.optimizer.learning_rate; the last good checkpoint is kept'
      )
    steps = self._run.config.train.steps
    self.log_line(
      f'step {step}/{steps} | {row["stage"]} | loss {loss:.3f} | lr {row["optim/lr"]:.2e} | '
      f'grad {norm:.2f} | {row["perf/tokens_per_sec"]:,.0f} tok/s | '
      f'{(steps - step) * row["perf/step_time"]:.0f} s left'
    )


def summarize(run: Run) -> dict[str, Any]:
  """Key figures of a run that has ended, from its files."""
  distributed.wait('metrics are written')
  rows = metrics.read_rows(os.path.join(run.directory, 'metrics.jsonl'))
  events = metrics.read_rows(os.path.join(run.directory, 'events.jsonl'))
  trained = [r for r in rows if 'train/loss' in r]
  rates = [r['perf/tokens_per_sec'] for r in trained[1:]] or [trained[0]['perf/tokens_per_sec']]
  tokens = run.tokens(run.config.train.steps)
  return {
    'steps': run.config.train.steps,
    'tokens': tokens,
    'parameters': run.model_config.num_params(),
    'non_embedding_parameters': run.model_config.num_params(embedding=False),
    'loss': {'first': trained[0]['train/loss'], 'final': trained[-1]['train/loss']},
    'tokens_per_sec': float(np.median(rates)),
    'goodput': metrics.goodput(events, rows),
    'flops': run.model_config.flops_per_token(run.config.data.seq_len) * tokens,
    'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
  }


def loss_terms(values: Sequence[dict], tokens: float) -> dict[str, Any]:
  """Loss of each module of multi-token prediction and each term of a teacher, over some steps."""
  row = {}
  if 'mtp_sum_M' in values[0]:
    sum_M, tokens_M = (
      np.sum([v[k] for v in values], axis=0) for k in ('mtp_sum_M', 'mtp_tokens_M'))
    row['mtp/loss_M'] = (sum_M / np.maximum(tokens_M, 1)).tolist()
  for name in (k for k in values[0] if k.startswith('teacher_sum/')):
    row[name.replace('_sum', '')] = float(np.sum([v[name] for v in values])) / tokens
  return row


class Termination:
  """While entered, SIGTERM is noted instead of ending the process, so that a step can be saved.

  Of several processes jax's own service notes it, and lets all agree on the step.
  """

  def requested(self, step: int) -> bool:
    """Whether to end after this step; the same answer in all processes."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._noted

  def __enter__(self) -> 'Termination':
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


class Profile:
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

  def __enter__(self) -> 'Profile':
    return self

  def __exit__(self, *_: object) -> None:
    if self._running:
      jax.profiler.stop_trace()
      self._running = False

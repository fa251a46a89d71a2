"""What a run tells: rows of metrics, events, lines on the terminal; its profile."""

import collections
import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_beam.redact import public
from smoljax import distributed, gpu, metrics
from smoljax.data import chat
from smoljax.optim.qk_clip import logit_metrics
from smoljax.train import diagnostics, guard
from smoljax.train.start import Run
from smoljax.train.step import PyTree
from smoljax.train.watchdog import Watchdog

MANY_EPOCHS = 4
MUCH_PADDING = .1  # share of a batch's places; of documents of all lengths it is a hundredth


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
      name=config.name, config=run.meta.get('config'), writes=distributed.is_lead(), note=log_line)
    self._step = step  # of the last row
    self._steps: list[tuple[dict, float, float]] = []  # metrics, seconds, seconds of waiting
    self._apart: dict[str, float] = collections.defaultdict(float)  # seconds that were no steps
    self._repeated: set[str] = set()  # what was warned of: corpora gone through too often, …
    self.watchdog = Watchdog(
      config.train.watchdog, run.directory,
      lambda why: self.event(self._step, 'hang', reason=why))
    self._flops = run.model_config.flops_per_token(config.data.seq_len)
    self._flops_noncausal = run.model_config.flops_per_token(config.data.seq_len, causal=False)
    self._peak = metrics.peak_flops(jax.devices()[0].device_kind)
    self._energy = gpu.Energy(
      [d.local_hardware_id for d in jax.local_devices() if d.platform == 'gpu'])
    self.event, self.rewind = self._log.event, self._log.rewind

  def __enter__(self) -> 'Telemetry':
    self.watchdog.__enter__()
    _compiled()  # what was compiled before is part of the start
    return self

  def __exit__(self, *error: object) -> None:
    self.watchdog.__exit__()
    self._log.__exit__(*error)

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """What is no step: its time is told apart, and the watchdog is patient."""
    watch = Stopwatch()
    with self.watchdog.phase(name):
      yield
    _compiled()  # is part of it
    self._apart[name] += watch.seconds()

  def started(
    self, step: int, event: str, quarantined: Sequence[str], changed: Mapping[str, tuple],
    seconds: float,
  ) -> None:
    """The first event: how the run begins ('start', 'resume' or 'branch'), and on what.

    Args:
      quarantined: what was wrong with checkpoints that were put away.
      changed: config field → (its value so far, its value from now on).
      seconds: since this process began with it.
    """
    t = self._run.config.train
    self.event(
      step, event, seconds=round(seconds, 2),
      **{k: public(t[k]) for k in ('init_from', 'branch_from') if t[k] and event != 'resume'},
      devices=f'{jax.device_count()} x {jax.devices()[0].device_kind}',
      mesh=dict(self._run.mesh.shape),
      **({'quarantined': quarantined} if quarantined else {}),
      **({'changed': dict(changed)} if changed else {}),
    )

  def add(self, step_metrics: dict, seconds: float, waited: float) -> None:
    """A step that was dispatched: its metrics, its time, and how much of that was for data."""
    self.watchdog.step(step_metrics['grad_norm'])
    compiled = min(_compiled(), 0.999 * seconds)  # its parts may overlap
    self._apart['compile'] += compiled
    self._steps.append((step_metrics, seconds - compiled, waited))

  def row(self, step: int, stage: str, position: dict) -> list[dict]:
    """One row over the steps since the last one, of which it returns the guard's reports.

    Steps that were skipped count for time only. Blocks until all are computed.

    Args:
      position: of the data after the step.
    Raises:
      Diverged: loss or gradients are not finite.
    """
    steps, self._steps, self._step = self._steps, [], step
    values = jax.device_get([v for v, _, _ in steps])
    reports = [v['guard'] for v in values]
    taken = [v for v in values if not v['guard']['streak']]
    tokens = self._run.tokens(int(reports[-1]['applied']))
    row = {'stage': stage, 'tokens': tokens, 'flops': tokens * self._flops}
    if taken:
      row |= self._learned(taken)
      self._warn_of_displacement(step, row)
      if 'places' not in taken[0]:  # conversations are not cut, so their rows have room
        self._warn_of_padding(step, row['data/padding'])
    lr_scale = float(reports[-1]['lr_scale'])
    lr = self._run.plan.info.schedule(max(int(reports[-1]['applied']) - 1, 0))
    row |= {
      'optim/lr': float(lr) * lr_scale,
      'guard/skips': int(reports[-1]['skips']),
      'guard/lr_scale': lr_scale,
    }
    seconds = sum(s for _, s, _ in steps)
    row |= self._speed(
      float(np.sum([_places(v) for v in taken])), len(steps), seconds, sum(w for _, _, w in steps))
    row |= self._times(**{'steps': seconds * len(taken) / len(steps),
                          'skipped': seconds * (1 - len(taken) / len(steps))})
    learned = tokens * (1 - float(row.get('data/padding', 0)))
    row |= self._epochs(step, position, learned)
    if self._run.config.optimizer.qk_clip.tau and taken:
      row |= logit_metrics([v['max_logits_LN'] for v in taken], self._run.config.optimizer.qk_clip)
    self._log.row(step, row)
    self._progress(step, row)
    return reports

  def measured(self, step: int, row: dict) -> None:
    """A row of what was measured between steps."""
    self._log.row(step, row)

  def evaluated(self, step: int, state: dict, row: dict) -> None:
    """A row of what held-out documents say, and a line of text."""
    applied = int(jax.device_get(state['opt_state']['guard']['applied']))
    self._log.row(step, {'tokens': self._run.tokens(applied), **row})
    figures = ' | '.join(f'{k} {v:.3f}' for k, v in row.items())
    self.log_line(f'step {step}/{self._run.config.train.steps} | {figures}')

  def require_finite(self, step: int, state: dict) -> None:
    """Raises Diverged if a checkpoint of this state could not be gone on from."""
    if not _finite(state['params'], state['opt_state']['optimizer']):
      self.event(step, 'diverged', reason='parameters or optimizer state')
      raise Diverged(
        f'parameters or optimizer state are not finite after step {step}: no checkpoint is made '
        'of them; lower --config.optimizer.learning_rate; the last good checkpoint is kept')

  def stopped(self, step: int, reason: str) -> None:
    """The last event, and where the time went since the last row."""
    self.event(step, 'stop', reason=reason, **self._times())

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
    # The loss is of a token, or of a pair of answers.
    counts_S = np.sum([v.get('pairs_S', v['tokens_S']) for v in taken], axis=0)
    loss_S = np.sum([v['loss_sum_S'] for v in taken], axis=0) / np.maximum(counts_S, 1)
    sources = zip(self._run.batches.sources, loss_S, counts_S, strict=True)
    row = {
      'train/loss': float(np.average(loss_S, weights=np.maximum(counts_S, 1e-9))),
      **{f'train/loss/{name}': float(x) for name, x, count in sources if count},
      'grad/norm': float(np.mean([v['grad_norm'] for v in taken])),
      **loss_terms(taken, float(tokens_S.sum())),
      'clip_frac': float(np.mean([v['clip_kept'] < 1 - 1e-6 for v in taken])),
      **{k: float(x) for k, x in taken[-1].get('leaves', {}).items()},
    }
    places = sum(map(_places, taken))
    row['data/padding'] = round(
      1 - places / (len(taken) * t.rows * self._run.config.data.seq_len), 4)
    if 'places' in taken[0]:
      row['data/learned'] = round(float(tokens_S.sum()) / max(1, places), 4)
      if 'chat_sum/hits' in taken[0]:
        row |= _of_chats(taken)
    if t.accumulate > 1:
      row |= diagnostics.micro_batches(
        float(np.mean([v['micro_sq'] for v in taken])),
        float(np.mean([v['grad_norm'] ** 2 for v in taken])),
        t.accumulate,
        float(tokens_S.sum()) / len(taken),
      )
    return row

  def _warn_of_displacement(self, step: int, row: Mapping[str, Any]) -> None:
    """Once, where most chosen answers become less likely: the loss falls, and the model unlearns
    what it is shown (likelihood displacement, arXiv:2410.08847)."""
    share, reward = (row.get(f'preference/{k}', 0.0) for k in ('displaced', 'reward_chosen'))
    if share > 0.5 and reward < 0 and 'displaced' not in self._repeated:
      self._repeated.add('displaced')
      self.event(step, 'displaced', share=round(share, 3), reward_chosen=round(reward, 4))
      self.log_line(
        f'warning: step {step}: {share:.0%} of the chosen answers are less likely than they were: '
        'a lower --config.optimizer.learning_rate, a larger preference.beta or apo_zero keep them')

  def _warn_of_padding(self, step: int, padding: float) -> None:
    """Once, where rows are far from full: a run learns from fewer tokens than it is said to."""
    if padding > MUCH_PADDING and 'padding' not in self._repeated:
      self._repeated.add('padding')
      self.event(step, 'padding', padding=padding)
      self.log_line(
        f'warning: step {step}: {padding:.0%} of the places of a batch are empty, and train.tokens '
        f'counts them: rows of {self._run.config.data.seq_len} tokens hold few documents of these '
        'lengths whole; more of them fit with another --config.data.seq_len')

  def _times(self, **seconds: float) -> dict[str, float]:
    """Where the time went since it was last asked, with that of steps, in seconds."""
    apart, self._apart = self._apart, collections.defaultdict(float)
    return {f'time/{name}': round(s, 3) for name, s in {**seconds, **apart}.items() if s}

  def _epochs(self, step: int, position: dict, learned: float) -> dict[str, float]:
    """How often each corpus was gone through, which past MANY_EPOCHS is said once; and how many
    different tokens the run has learned from, about: no more than it `learned` from at all, since
    batches that were left out are gone through too."""
    epochs = self._run.batches.epochs(position)
    for name in {n for n, x in epochs.items() if x >= MANY_EPOCHS} - self._repeated:
      self._repeated.add(name)
      self.event(step, 'epochs', corpus=name, epochs=round(epochs[name], 2))
      self.log_line(
        f'warning: step {step}: the corpus {name!r} is gone through for the '
        f'{int(epochs[name]) + 1}th time. Up to {MANY_EPOCHS} times a text is nearly as good as '
        'new, then less and less (Muennighoff et al. 2023): give it more, or a smaller weight')
    corpora = self._run.batches.corpora
    unique = sum(min(1.0, x) * float(corpora[name].lengths.sum(dtype=np.int64))
                 for name, x in epochs.items())
    return {'data/unique': round(min(unique, learned)),
            **{f'data/epochs/{name}': round(x, 3) for name, x in epochs.items()}}

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


def _places(step_metrics: dict) -> int:
  """Tokens that a step went through: those that are learned are fewer in conversations."""
  return int(step_metrics.get('places', np.sum(step_metrics['tokens_S'])))


def _of_chats(taken: Sequence[dict]) -> dict[str, float]:
  """Of some steps on conversations: losses by mode, shares of first guesses that are right."""
  total = {k: float(np.sum([v[k] for v in taken])) for k in taken[0] if k.startswith('chat_sum/')}
  tokens = {mode: total[f'chat_sum/{mode}_tokens'] for mode in chat.MODES}
  shares = {'accuracy': (total['chat_sum/hits'], sum(tokens.values())),
            'end_accuracy': (total['chat_sum/end_hits'], total['chat_sum/ends']),
            **{f'loss/{m}': (total[f'chat_sum/{m}_loss'], tokens[m]) for m in chat.MODES}}
  return {f'chat/{name}': value / count for name, (value, count) in shares.items() if count}


def summarize(run: Run) -> dict[str, Any]:
  """Key figures of a run that has ended, from its files."""
  distributed.wait('metrics are written')
  rows = metrics.read_rows(os.path.join(run.directory, 'metrics.jsonl'))
  events = metrics.read_rows(os.path.join(run.directory, 'events.jsonl'))
  trained = [r for r in rows if 'train/loss' in r]
  rates = [r['perf/tokens_per_sec'] for r in trained[1:]] or [trained[0]['perf/tokens_per_sec']]
  tokens, time = trained[-1]['tokens'], metrics.account(events, rows)
  return {
    'steps': run.config.train.steps,
    'tokens': tokens,
    'parameters': run.model_config.num_params(),
    'non_embedding_parameters': run.model_config.num_params(embedding=False),
    'loss': {'first': trained[0]['train/loss'], 'final': trained[-1]['train/loss']},
    'tokens_per_sec': float(np.median(rates)),
    'goodput': time['steps'],
    'time': time,
    'flops': run.model_config.flops_per_token(run.config.data.seq_len) * tokens,
    'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
  }


def loss_terms(values: Sequence[dict], tokens: float) -> dict[str, Any]:
  """Means over some steps: the loss of each module of multi-token prediction, each term of a
  teacher, what is seen of pairs of answers, and of the policy's own."""
  row = {}
  pairs = max(1.0, float(np.sum([v.get('pairs_S', 0) for v in values])))
  for kind, name, count in (('pair_sum/', 'preference/', pairs), ('token_sum/', 'rl/', tokens)):
    for key in (k for k in values[0] if k.startswith(kind)):
      row[key.replace(kind, name)] = float(np.sum([v[key] for v in values])) / max(1, count)
  if 'mtp_sum_M' in values[0]:
    sum_M, tokens_M = (
      np.sum([v[k] for v in values], axis=0) for k in ('mtp_sum_M', 'mtp_tokens_M'))
    row['mtp/loss_M'] = (sum_M / np.maximum(tokens_M, 1)).tolist()
  for name in (k for k in values[0] if k.startswith('teacher_sum/')):
    row[name.replace('_sum', '')] = float(np.sum([v[name] for v in values])) / tokens
  return row


BESIDE = 'beside'  # a thread whose compiling costs the steps nothing
_compiling: dict[str, float] = collections.defaultdict(float)  # seconds, since the last look


def _note_compiling(event: str, seconds: float, **_: object) -> None:
  if event.startswith('/jax/core/compile/') and threading.current_thread().name != BESIDE:
    # Functions are traced inside one another: the longest is the one that was called.
    nested = event.endswith('trace_duration')
    _compiling[event] = max(_compiling[event], seconds) if nested else _compiling[event] + seconds


jax.monitoring.register_event_duration_secs_listener(_note_compiling)


def _compiled() -> float:
  """Seconds that went into tracing and compiling since the last call."""
  seconds = sum(_compiling.values())
  _compiling.clear()
  return seconds


@jax.jit
def _finite(params: PyTree, optimizer_state: PyTree) -> jax.Array:
  """Whether parameters are finite, and the optimizer's state, which may be infinite, is numbers."""
  floats = lambda tree: [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
  good = [jnp.all(jnp.isfinite(x)) for x in floats(params)]
  good += [~jnp.any(jnp.isnan(x)) for x in floats(optimizer_state)]
  return jnp.all(jnp.stack(good))


class Profile:
  """Profiles the steps from FIRST up to END, for TensorBoard's profiler or xprof."""

  def __init__(self, steps: str, directory: str):
    try:
      self._first, self._end = map(int, steps.split(':')) if steps else (-1, -1)
      if steps and not 0 < self._first < self._end:
        raise ValueError('it ends before it begins')
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

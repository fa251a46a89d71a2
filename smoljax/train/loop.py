"""One run of pretraining: batches in, checkpoints and metrics out, exactly resumable."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from smoljax import model, sharding
from smoljax.data.batches import prefetch
from smoljax.train import guard
from smoljax.train.probe import evaluate, make_probe
from smoljax.train.rollback import roll_back
from smoljax.train.start import Run, Snapshot, newest, open_checkpoints, prepare
from smoljax.train.telemetry import BESIDE, Profile, Stopwatch, Telemetry, summarize
from smoljax.train.termination import Termination


def train(
  config: Any,
  model_config: model.ModelConfig,
  corpora: Mapping[str, str],
  directory: str,
  *,
  targets: Mapping[str, str] | None = None,
  caches: Mapping[str, str] | None = None,
  meta: Mapping[str, Any] | None = None,
  log_line: Callable[[str], None] = print,
  beside: Callable[[Run], Iterator[None]] | None = None,
) -> dict[str, Any]:
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
    log_line: gets a line of text now and then.
    beside: what is gone through while an accelerator is busy with the steps, where it has room: to
      compile what is run after them. What goes wrong there is told where it is needed.
  Returns:
    Key figures: steps, tokens, parameters, loss (first, final), tokens_per_sec, …
  Raises:
    ValueError: config, mesh, corpora and checkpoint do not fit each other.
    Diverged: the guard stopped the run, or without it the loss stopped being finite.
  """
  watch = Stopwatch()
  run = prepare(
    config, model_config, corpora, directory, targets=targets, caches=caches, meta=meta)
  t, mesh = config.train, run.mesh
  train_step = run.plan.step(len(run.batches.sources))
  with jax.set_mesh(mesh), open_checkpoints(run, log_line) as checkpoints:
    resumed = checkpoints.latest() is not None
    ahead = _compile_ahead(run, train_step)
    step, state, position, changed = newest(run, checkpoints)
    iterator, checkpoint_due = prefetch(run.batches, position), False
    checkpoints.reserve((run.plan.params, run.plan.opt_state))
    _warn(run, checkpoints, step, log_line)
    probe = make_probe(run)
    with (
      Telemetry(run, step, log_line) as telemetry,
      Termination() as termination,
      Profile(config.xprof, os.path.join(directory, 'profile')) as profile,
      Beside(run, beside, telemetry) as background,
    ):
      event = 'resume' if resumed else 'branch' if t.branch_from else 'start'
      telemetry.started(step, event, checkpoints.quarantined, changed, watch.seconds())
      if step == 0:
        with telemetry.phase('evaluation'):
          telemetry.evaluated(step, state, evaluate(run, state['params']))
      while step < t.steps:
        stage = run.stage(step)
        if step == stage.start:
          telemetry.event(step, 'stage', stage=stage.name, mixture=dict(stage.mixture))
          # Another mixture has another loss.
          state['opt_state']['guard'] = guard.forget(state['opt_state']['guard'], 'loss')
          telemetry.watchdog.compiling()
        watch, probed, scores = Stopwatch(), None, {}
        batch = next(iterator)
        waited = watch.seconds()
        if run.rollouts:
          batch = _answered(run, telemetry, watch, batch, state['params'], step)
        probe_now = config.diagnostics.every and (step + 1) % config.diagnostics.every == 0
        if probe_now or profile.turns(step):
          jax.block_until_ready(state)  # the steps before this one take their time
          with watch.paused(), telemetry.phase('diagnostics'):
            profile.before(step)
            probed = probe(state, batch) if probe_now else None
        ahead()
        state, step_metrics = train_step(
          state, sharding.shard_batch(batch, mesh), run.teacher_params, run.plan.info.horizon)
        step += 1
        last, stop = step == t.steps, termination.requested(step) and run.whole(step)
        checkpoint_due |= step % t.checkpoint_every == 0 or checkpoints.again()
        save_now = last or stop or (checkpoint_due and run.whole(step))
        log_now = step % t.log_every == 0 or save_now or step == stage.stop
        evaluate_now = step % t.eval_every == 0 or step == stage.stop
        if log_now or evaluate_now:
          jax.block_until_ready(step_metrics)
        telemetry.add(step_metrics, watch.seconds(), waited)
        if log_now:
          reports = telemetry.row(step, stage.name, iterator.get_state())
          background.begin()
          broken = telemetry.skips(step, reports, position)
          streak = max(int(r['streak']) for r in reports)
          if guard.decide(config.guard, reports[-1], streak) != 'go on':
            iterator.close()
            with telemetry.phase('roll-back'):
              step, state, position, _ = roll_back(
                run, checkpoints, telemetry, Snapshot(step, state, position), broken)
            iterator, checkpoint_due = prefetch(run.batches, position), False
            telemetry.watchdog.compiling()
            continue
          position = iterator.get_state()
          # In the midst of skips the state may be what makes the steps bad: the checkpoint waits.
          save_now &= last or not reports[-1]['streak']
        if probed:
          telemetry.measured(step, probed)
        if evaluate_now:
          with telemetry.phase('evaluation'):
            scores = evaluate(run, state['params'])
            telemetry.evaluated(step, state, scores)
        if save_now:
          checkpoint_due, now = False, Snapshot(step, state, position)
          _save(run, checkpoints, telemetry, now, scores.get(t.keep_best), wait=last or stop)
        if stop and not last:
          _stop(telemetry, step, termination.signal)
      with telemetry.phase('checkpoint'):
        checkpoints.close()
      background.wait()
      iterator.close()
      telemetry.stopped(step, 'finished')
  return summarize(run)


def _save(run, checkpoints, telemetry, now, score, *, wait):
  """Saves where the run stands, if it could be gone on from."""
  watch = Stopwatch()
  with telemetry.phase('checkpoint'):
    telemetry.require_finite(now.step, now.state)
    checkpoints.save(
      now.step, now.state['params'], now.state['opt_state'], now.position,
      run.meta | {'past': run.batches.fingerprint(now.step)}, score=score, wait=wait)
  telemetry.event(now.step, 'checkpoint', pause=round(watch.seconds(), 2))


def _stop(telemetry, step, number):
  """Ends the process as the signal asked that it was sent."""
  reason = signal.Signals(number)
  telemetry.stopped(step, reason.name)
  raise SystemExit(128 + reason)


def _compile_ahead(run: Run, train_step: jax.stages.Wrapped) -> Callable[[], None]:
  """Begins to compile the step; a function that waits for it, if it is still under way."""
  thread = threading.Thread(target=compile_step, args=(run, train_step))
  if _has_time_for_more(run):
    thread.start()
  return lambda: thread.join() if thread.is_alive() else None


def _has_time_for_more(run: Run) -> bool:
  """Whether the host may compile beside what it does.

  A CPU would be done no sooner; several processes, and answers to come, are not foreseen.
  """
  return jax.default_backend() != 'cpu' and jax.process_count() == 1 and not run.rollouts


class Beside:
  """A thread that goes through an iterator while the steps run; as a context, it ends with them.

  After an error, or where the run is stopped, the iterator's next turn is the last. A turn may take
  longer than the watchdog waits for a step.
  """

  def __init__(
    self, run: Run, work: Callable[[Run], Iterator[None]] | None, telemetry: Telemetry
  ):
    self._run, self._work, self._telemetry, self._stopped = run, work, telemetry, False
    self._thread = threading.Thread(target=self._go, name=BESIDE)

  def __enter__(self) -> 'Beside':
    return self

  def begin(self) -> None:
    """Starts it, once: the steps are compiled, and have shown how much memory they need."""
    if self._work and not self._thread.ident and _has_time_for_more(self._run) and _has_room():
      self._thread.start()

  def wait(self) -> None:
    """Returns when all is gone through, if it was begun."""
    if self._thread.is_alive():
      with self._telemetry.phase('compile'):
        self._thread.join()

  def __exit__(self, error: object, *_: object) -> None:
    self._stopped = error is not None
    self.wait()

  def _go(self) -> None:
    with contextlib.suppress(Exception):
      for _ in self._work(self._run) if self._work else ():
        if self._stopped:
          return


def _has_room(share: float = 1 / 8) -> bool:
  """Whether this share of the device's memory was never used: the compiler tries products there."""
  known = jax.local_devices()[0].memory_stats() or {}
  limit = known.get('bytes_limit', 0)
  return limit - known.get('peak_bytes_in_use', limit) >= share * limit


def compile_step(run: Run, train_step: jax.stages.Wrapped) -> None:
  """Compiles the step of a run, which the first call of it then need not do.

  In a thread this takes the time in which parameters are made, or read, and evaluated. What goes
  wrong goes wrong again where the step is called, and is told there.
  """
  with contextlib.suppress(Exception), jax.set_mesh(run.mesh):
    state = {'params': run.plan.params, 'opt_state': run.plan.opt_state}
    batch = sharding.shard_batch(next(iter(run.batches)), run.mesh)
    train_step.lower(state, batch, run.teacher_params, run.plan.info.horizon).compile()


def _answered(run, telemetry, watch, asked, params, step):
  """The policy's answers to what is asked: no part of the step's time."""
  with watch.paused(), telemetry.phase('sampling'):
    batch, seen = run.rollouts.next(run.batches, asked, params, step)
    telemetry.measured(step + 1, seen)
  return batch


def _warn(run, checkpoints, step, log_line):
  """Of what is foreseen: a disk that is too small, conversations longer than a row."""
  t = run.config.train
  steps = range((step // t.checkpoint_every + 1) * t.checkpoint_every, t.steps, t.checkpoint_every)
  if lacking := checkpoints.lacks((run.plan.params, run.plan.opt_state), [*steps, t.steps]):
    log_line(
      f'warning: {run.directory}: its disk has {lacking / 1e9:.1f} GB too few for the checkpoints '
      f'to come: make room, or lower train.keep={t.keep}')
  seq_len, pairs = run.config.data.seq_len, bool(run.config.train.preference.loss)
  what = ('pairs', 'left out') if pairs else ('conversations', 'cut at the end of a turn')
  for name, corpus in run.batches.corpora.items():
    lengths = corpus.pair_lengths if pairs else corpus.lengths
    if corpus.has_mask and (long := int((lengths > seq_len + 1).sum())):
      log_line(
        f'warning: {long:,} of {len(lengths):,} {what[0]} of {name!r} are longer than a row and '
        f'are {what[1]}: raise --config.data.seq_len={seq_len} (the longest has '
        f'{int(lengths.max()):,} tokens)')

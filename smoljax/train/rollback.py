"""What follows when the guard has skipped too many steps: back to a checkpoint, past the data."""

import jax

from smoljax import sharding
from smoljax.checkpoints.store import Checkpoints
from smoljax.train import guard
from smoljax.train.start import Run, Snapshot, newest
from smoljax.train.telemetry import Diverged, Telemetry


def roll_back(
  run: Run, checkpoints: Checkpoints, telemetry: Telemetry, at: Snapshot, broken: dict
) -> Snapshot:
  """Where the run goes on, as the guard's ladder says: rollback, back off, stop.

  Args:
    at: where too many steps were skipped.
    broken: the rule that the last of them broke, as Telemetry.skips gives it.
  Raises:
    Diverged: the ladder ends.
  """
  config, step = run.config.guard, at.step
  now = jax.device_get(at.state['opt_state']['guard'])
  action = guard.decide(config, now, config.patience)
  if action == 'stop':
    telemetry.event(step, 'guard', action='stop', **broken, rollbacks=now['rollbacks'].tolist())
    raise Diverged(
      f'stopped at step {step}: {broken["rule"]} {broken["statistic"]} against '
      f'{broken["threshold"]}, after two rollbacks in the last {config.horizon} '
      f'batches; {run.directory}/events.jsonl names the documents. Lower '
      '--config.optimizer.learning_rate or look at these documents'
    )
  if action == 'back off' and checkpoints.latest() == now['rollback_to']:
    checkpoints.discard(checkpoints.latest())  # it led here again
  to, state, position, _ = newest(run, checkpoints)
  checkpoints.discard(to + 1)
  before = jax.device_get(state['opt_state']['guard'])
  after = guard.roll_back(config, now, before, to)
  state['opt_state']['guard'] = sharding.place(after, run.plan.places['guard'])
  left_out = int(after['batches'] - before['batches'])
  position = run.batches.after(position, left_out)
  telemetry.event(step, 'guard', action=action, **broken, to=to, batches_left_out=left_out,
                  lr_scale=float(after['lr_scale']), position=position)
  telemetry.rewind(to)
  telemetry.log_line(f'step {step}: {action} to step {to}: {broken["rule"]} {broken["statistic"]}')
  return Snapshot(to, state, position)

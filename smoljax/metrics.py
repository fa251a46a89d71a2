"""Numbers of a run: JSON lines that a resumed run continues, TensorBoard, W&B; FLOPs, energy."""

import calendar
import importlib.util
import json
import math
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

import pynvml

# Peak dense bf16 FLOP/s of one device by a substring of `jax.Device.device_kind` (vendors' data
# sheets, without sparsity). A kind that is not here has no MFU.
PEAK_FLOPS = {
  'H200': 989.4e12,
  'H100': 989.4e12,
  'A100': 312e12,
  'v6 lite': 918e12,
  'v5p': 459e12,
  'v5 lite': 197e12,
  'v4': 275e12,
}


def peak_flops(device_kind: str) -> float | None:
  """Peak bf16 FLOP/s of a device kind, or None where it is not known."""
  return next((peak for name, peak in PEAK_FLOPS.items() if name in device_kind), None)


def changes(before: Mapping, after: Mapping) -> dict[str, tuple[Any, Any]]:
  """Dotted names of the fields in which two nested configs differ, with both values; None = none.

  Values are compared as JSON has them, where a tuple is a list.
  """
  old, new = (_flat(json.loads(json.dumps(c, default=str))) for c in (before, after))
  return {name: (old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys())
          if old.get(name) != new.get(name)}


def _flat(config: Mapping, prefix: str = '') -> dict[str, Any]:
  found: dict[str, Any] = {}
  for key, value in config.items():
    found |= _flat(value, f'{prefix}{key}.') if isinstance(value, dict) else {prefix + key: value}
  return found


class Energy:
  """What NVIDIA GPUs use, by NVML's counters: the whole board, idle time included."""

  def __init__(self, gpus: Sequence[int]):
    """Of the GPUs with these numbers as CUDA counts them; it knows nothing where NVML does not."""
    self._boards = []
    visible = os.environ.get('CUDA_VISIBLE_DEVICES', '').replace(' ', '')
    try:
      pynvml.nvmlInit()
      for gpu in gpus:
        name = visible.split(',')[gpu] if visible else str(gpu)
        self._boards.append(
          pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal()
          else pynvml.nvmlDeviceGetHandleByUUID(name))
      self._before = self._read()
    except pynvml.NVMLError:
      self._boards = []

  def _read(self) -> float:
    return sum(map(pynvml.nvmlDeviceGetTotalEnergyConsumption, self._boards)) / 1e3

  def joules(self) -> float | None:
    """Used since the last call, or since the start; None where it is not known."""
    if not self._boards:
      return None
    before, self._before = self._before, self._read()
    return self._before - before


def goodput(events: Sequence[Mapping], rows: Sequence[Mapping]) -> float:
  """Share of a run's time, restarts and what lies between included, that its kept steps took.

  The rest went into starting and compiling, evaluations, waiting for checkpoints, steps that were
  taken again after a kill or a rollback, and standing still.

  Args:
    events, rows: of events.jsonl and metrics.jsonl.
  """
  times = [calendar.timegm(time.strptime(e['time'], '%Y-%m-%dT%H:%M:%SZ')) for e in events]
  useful, before = 0.0, 0
  for row in rows:
    if 'perf/step_time' in row:
      useful += row['perf/step_time'] * (row['step'] - before)
      before = row['step']
  return min(1.0, useful / max(1, times[-1] - times[0]))


def require_wandb(project: str) -> None:
  """Raises ValueError if metrics are to go to Weights & Biases, but its package is missing."""
  if project and not importlib.util.find_spec('wandb'):
    raise ValueError(f'wandb={project} needs the package: pip install wandb')


class Log:
  """Appends rows to `DIR/metrics.jsonl` and `DIR/events.jsonl`, scalars to TensorBoard and W&B.

  Opening it at `step` drops the rows after that step (at 0 all), which a run killed later had
  written: the file of a resumed run reads like that of an undisturbed one. Events are kept for
  ever. Of several processes all but one write to `os.devnull`.

  Args:
    wandb: project of Weights & Biases; '' = none. What is resumed goes on as the same run there.
    name, config: what the run is called there, and what is shown beside it.
  """

  def __init__(
    self,
    directory: str,
    *,
    step: int = 0,
    tensorboard: bool = False,
    wandb: str = '',
    name: str = '',
    config: Mapping | None = None,
    writes: bool = True,
  ):
    self._writer = self._wandb = None
    self._path = os.path.join(directory, 'metrics.jsonl') if writes else None
    if not writes:
      self._metrics = self._events = open(os.devnull, 'a')  # noqa: SIM115
      return
    os.makedirs(directory, exist_ok=True)
    self._metrics = _reopen(self._path, last_step=step or -1)
    self._events = _reopen(os.path.join(directory, 'events.jsonl'))
    if tensorboard:
      import tensorboardX

      self._writer = tensorboardX.SummaryWriter(
        os.path.join(directory, 'tensorboard'), purge_step=step + 1
      )
    if wandb:
      self._wandb = _wandb_run(directory, wandb, name, config)

  def __enter__(self) -> 'Log':
    return self

  def __exit__(self, *_: object) -> None:
    self._metrics.close()
    self._events.close()
    if self._writer:
      self._writer.close()
    if self._wandb:
      self._wandb.finish()

  def rewind(self, step: int) -> None:
    """Drops the rows after `step`, as opening at `step` does."""
    if self._path:
      self._metrics.close()
      self._metrics = _reopen(self._path, last_step=step)

  def row(self, step: int, values: Mapping[str, float | int | str | list]) -> None:
    """Writes one row of metrics (names as in the README, such as `train/loss`)."""
    self._metrics.write(json.dumps({'step': step, **values}) + '\n')
    scalars = {k: v for k, v in values.items() if isinstance(v, int | float)}
    if self._writer:
      for name, value in scalars.items():
        self._writer.add_scalar(name, value, step)
    if self._wandb:
      self._wandb.log({'step': step, **scalars})

  def event(self, step: int, event: str, **details: object) -> None:
    """Writes one event: a decision or a change of state, with the time it happened (UTC)."""
    now = time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())
    self._events.write(json.dumps({'time': now, 'step': step, 'event': event, **details}) + '\n')


def _wandb_run(directory: str, project: str, name: str, config: Mapping | None) -> Any:
  require_wandb(project)
  import wandb

  path = os.path.join(directory, 'wandb.id')
  if not os.path.exists(path):
    with open(path, 'w') as f:
      f.write(secrets.token_hex(4))
  with open(path) as f:
    run = wandb.init(project=project, name=name, id=f.read(), resume='allow', dir=directory,
                     config=dict(config or {}))
  # Their own count of steps may not go back, as ours does after a rollback or a kill.
  run.define_metric('*', step_metric='step')
  return run


def _reopen(path: str, last_step: float = math.inf) -> TextIO:
  """Opens a JSONL file for appending, without rows after `last_step` or a line cut by a kill."""
  rows = [r for r in read_rows(path) if r['step'] <= last_step]
  with open(path + '.tmp', 'w') as f:
    f.writelines(json.dumps(r) + '\n' for r in rows)
  os.replace(path + '.tmp', path)
  return open(path, 'a', buffering=1)


def read_rows(
  path: str | os.PathLike, note: Callable[[str], None] | None = None
) -> list[dict[str, Any]]:
  """Rows of a JSONL file; a last line cut short by a kill is left out, a missing file is empty.

  Args:
    note: gets a line about each line that is left out, for readers who would rather have the rest
      of a damaged file than none of it.
  Raises:
    ValueError: without `note`, where a line before the last is no JSON object.
  """
  if not os.path.exists(path):
    return []
  rows = []
  with open(path, encoding='utf-8', errors='replace') as f:
    for number, line in enumerate(f, 1):
      try:
        row = json.loads(line) if line.endswith('\n') else None
      except ValueError:
        row = None
      if isinstance(row, dict):
        rows.append(row)
      elif note:
        note(f'{os.path.basename(path)}: a torn line was skipped')
      elif line.endswith('\n'):
        raise ValueError(f'{path}: line {number} is no JSON object')
  return rows


def diverged(events: Sequence[Mapping]) -> bool:
  """Whether a run's last event is that its loss blew up, or that the guard gave up."""
  last = events[-1] if events else {}
  return last.get('event') == 'diverged' or last.get('action') == 'stop'

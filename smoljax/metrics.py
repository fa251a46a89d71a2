"""Numbers of a run: JSON lines that a resumed run continues, TensorBoard, W&B; FLOPs."""

import calendar
import importlib.util
import json
import math
import os
import re
import secrets
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from smoljax import files

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


def account(events: Sequence[Mapping], rows: Sequence[Mapping]) -> dict[str, float]:
  """Where a run's time went, restarts and what lies between included, as shares of all of it.

  `steps` are those that were taken and are kept; further there are what rows and events tell apart
  (`skipped`, `compile`, `checkpoint`, `evaluation`, …), and `other`: starting, steps that were
  taken again after a kill or a rollback, and standing still.

  Args:
    events, rows: of events.jsonl and metrics.jsonl.
  """
  times = [calendar.timegm(time.strptime(e['time'], '%Y-%m-%dT%H:%M:%SZ')) for e in events]
  whole = times[-1] - times[0] + events[0].get('seconds', 0.0)
  seconds = {'steps': 0.0}
  for row in (*rows, *events):
    for key in row:
      if key.startswith('time/'):
        name = key.removeprefix('time/')
        seconds[name] = seconds.get(name, 0.0) + row[key]
  whole = max(whole, sum(seconds.values()), 1e-9)  # events know whole seconds only
  seconds['other'] = whole - sum(seconds.values())
  return {name: round(s / whole, 4) for name, s in seconds.items()}


def _tensorboard() -> Any:
  """tensorboardX, kept from loading torch where that is installed: it takes seconds, for a type."""
  hidden = {'torch': None} if 'torch' not in sys.modules else {}
  sys.modules.update(hidden)  # pyrefly: ignore (None says that there is no such module)
  try:
    import tensorboardX
  finally:
    for name in hidden:
      del sys.modules[name]
  return tensorboardX


def require_wandb(project: str) -> None:
  """Raises ValueError if metrics are to go to Weights & Biases, but its package is missing."""
  if project and not importlib.util.find_spec('wandb'):
    raise ValueError(f'wandb={project} needs the package: pip install wandb')


class Log:
  """Appends rows to `DIR/metrics.jsonl` and `DIR/events.jsonl`, scalars to TensorBoard and W&B.

  Opening it at `step` drops the rows after that step (at 0 all), which a run killed later had
  written: the file of a resumed run reads like that of an undisturbed one. Events are kept for
  ever. A file with damaged lines is kept as FILE.damaged, and goes on without them. Of several
  processes all but one write nothing. A disk that is full, or not there, is waited for.

  Args:
    note: gets a line about what is damaged.
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
    note: Callable[[str], None] = print,
  ):
    self._writer = self._wandb = None
    self._writes, self._note = writes, note
    self._metrics, self._events = (
      os.path.join(directory, name) for name in ('metrics.jsonl', 'events.jsonl'))
    if not writes:
      return
    os.makedirs(directory, exist_ok=True)
    there = os.path.exists(self._metrics)
    last = _rewrite(self._metrics, note, last_step=step or -1)
    if there and last < step:
      note(f'warning: {self._metrics} ends at step {last}, and the run goes on from {step}: the '
           'rows between are lost')
    _rewrite(self._events, note)
    if tensorboard:
      self._writer = _tensorboard().SummaryWriter(
        os.path.join(directory, 'tensorboard'), purge_step=step + 1
      )
    if wandb:
      self._wandb = _wandb_run(directory, wandb, name, config)

  def __enter__(self) -> 'Log':
    return self

  def __exit__(self, *_: object) -> None:
    if self._writer:
      self._writer.close()
    if self._wandb:
      self._wandb.finish()

  def rewind(self, step: int) -> None:
    """Drops the rows after `step`, as opening at `step` does."""
    if self._writes:
      _rewrite(self._metrics, self._note, last_step=step)
    if self._writer:  # as its `purge_step` does at the start
      import tensorboardX.proto.event_pb2

      proto: Any = tensorboardX.proto.event_pb2
      writer: Any = self._writer.file_writer
      start = proto.SessionLog(status=proto.SessionLog.START)
      writer.add_event(proto.Event(session_log=start), step=step + 1)

  def row(self, step: int, values: Mapping[str, float | int | str | list]) -> None:
    """Writes one row of metrics (names such as `train/loss`)."""
    if not self._writes:
      return
    files.append(self._metrics, line({'step': step, **values}))
    scalars = {k: v for k, v in values.items() if isinstance(v, int | float)}
    if self._writer:
      for name, value in scalars.items():
        self._writer.add_scalar(name, value, step)
    if self._wandb:
      self._wandb.log({'step': step, **scalars})

  def event(self, step: int, event: str, **details: object) -> None:
    """Writes one event: a decision or a change of state, with the time it happened (UTC)."""
    now = time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())
    if self._writes:
      files.append(self._events, line({'time': now, 'step': step, 'event': event, **details}))


def _wandb_run(directory: str, project: str, name: str, config: Mapping | None) -> Any:
  require_wandb(project)
  import wandb

  path = os.path.join(directory, 'wandb.id')
  if not os.path.exists(path):
    with open(path, 'w') as f:
      f.write(secrets.token_hex(4))
  with open(path) as f:
    run = wandb.init(project=project, name=name, id=f.read(), resume='allow', dir=directory,
                     config=dict(config or {}),
                     # Their metadata have the command line as it was typed, secrets and all.
                     settings=wandb.Settings(x_disable_meta=True))
  # Their own count of steps may not go back, as ours does after a rollback or a kill.
  run.define_metric('*', step_metric='step')
  return run


def _rewrite(path: str, note: Callable[[str], None], last_step: float = math.inf) -> int:
  """Writes a JSONL file anew, without rows after `last_step`, damaged ones, or a line that was cut.

  Returns the last step that it has rows of, 0 if none.
  """
  damaged: list[str] = []
  rows = read_rows(path, damaged.append)
  if any(not line.endswith(_TORN) for line in damaged):
    note(f'{damaged[0]}; the file is kept as {os.path.basename(path)}.damaged')
    shutil.copyfile(path, f'{path}.damaged')
  kept = [r for r in rows if isinstance(at := r.get('step'), int) and at <= last_step]
  files.write(path, ''.join(map(line, kept)).encode())
  return max((r['step'] for r in kept), default=0)


def line(row: Mapping) -> str:
  """A row with a checksum of its text as its last entry: a flipped digit is a digit too."""
  text = json.dumps(row)
  return f'{text[:-1]}, "crc": "{_crc(text)}"}}\n'


def _crc(text: str) -> str:
  return f'{zlib.crc32(text.encode()):08x}'


_TORN = 'was cut off by a kill'
_CRC = re.compile(r', "crc": "([0-9a-f]{8})"}\n$')


def read_rows(
  path: str | os.PathLike, note: Callable[[str], None] | None = None
) -> list[dict[str, Any]]:
  """Rows of a JSONL file without those that are damaged; a missing file is empty.

  Args:
    note: gets a line about each line that is left out: no JSON object, not as its checksum says
      (files of older runs have none), or cut off at the end. Without it stderr does, but for the
      last.
  """
  if not os.path.exists(path):
    return []
  with open(path, encoding='utf-8', errors='replace', newline='\n') as f:
    lines = list(f)
  checked = any(map(_CRC.search, lines))
  rows = []
  for number, line in enumerate(lines, 1):
    row, what = _row(line, checked), 'is damaged' if line.endswith('\n') else _TORN
    if row is not None and what != _TORN:
      rows.append(row)
    elif note:
      note(f'{os.fspath(path)}: line {number} {what}')
    elif what != _TORN:
      print(f'warning: {os.fspath(path)}: line {number} {what}', file=sys.stderr)
  return rows


def _row(line: str, checked: bool) -> dict | None:
  """What a line says; None if it is damaged."""
  if found := _CRC.search(line):
    line = line[:found.start()] + '}'
  if checked and not (found and _crc(line) == found[1]):
    return None
  try:
    row = json.loads(line)
  except ValueError:
    return None
  return row if isinstance(row, dict) else None


def diverged(events: Sequence[Mapping]) -> bool:
  """Whether a run's last event is that its loss blew up, or that the guard gave up."""
  last = events[-1] if events else {}
  return last.get('event') == 'diverged' or last.get('action') == 'stop'

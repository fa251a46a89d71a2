"""Where the numbers of a run go, and those that are read off the hardware."""

import sys
import time
import types

import pytest

from smoljax import metrics


def test_wandb_goes_on_as_the_same_run(tmp_path, monkeypatch):
  started, rows, ended = [], [], []
  run = types.SimpleNamespace(
    define_metric=lambda name, step_metric: started.append((name, step_metric)),
    log=rows.append, finish=lambda: ended.append(1))
  fake = types.ModuleType('wandb')
  fake.init = lambda **kwargs: started.append(kwargs) or run
  fake.Settings = dict
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  monkeypatch.setattr(metrics.importlib.util, 'find_spec', lambda name: fake)
  options = dict(wandb='small', name='first', config={'seed': 1})
  with metrics.Log(str(tmp_path), **options) as log:
    log.row(4, {'train/loss': 2.5, 'stage': 'stable', 'move_L': [1, 2]})
    log.row(8, {'train/loss': 2.0})
  with metrics.Log(str(tmp_path), step=4, **options) as log:  # killed at 8, and that step again
    log.row(8, {'train/loss': 2.0})
  first, axis, second, _ = started
  assert first == second and axis == ('*', 'step') and len(ended) == 2
  assert first['project'] == 'small' and first['name'] == 'first' and first['config'] == {'seed': 1}
  assert first['resume'] == 'allow' and len(first['id']) == 8
  assert rows == [{'step': 4, 'train/loss': 2.5}, *2 * [{'step': 8, 'train/loss': 2.0}]]


def test_wandb_is_missed_in_time(monkeypatch):
  metrics.require_wandb('')
  monkeypatch.setattr(metrics.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ValueError, match='wandb=small needs the package: pip install wandb'):
    metrics.require_wandb('small')


def test_wandb_itself(tmp_path, monkeypatch):
  """The package as it is, writing to disk alone."""
  pytest.importorskip('wandb')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_SILENT', 'true')
  for step in (0, 1):
    with metrics.Log(str(tmp_path), step=step, wandb='small', name='x', config={'a': 1}) as log:
      log.row(step + 1, {'train/loss': 2.0, 'stage': 'stable'})
  name = (tmp_path / 'wandb.id').read_text()
  written = list(tmp_path.glob(f'wandb/offline-run-*-{name}/run-{name}.wandb'))
  assert written
  for path in written:  # by a process of its own, in its own time
    until = time.monotonic() + 30
    while b'train/loss' not in path.read_bytes():
      assert time.monotonic() < until, path
      time.sleep(0.1)


def test_a_damaged_line_costs_itself_alone_and_is_kept_aside(tmp_path):
  """Every byte of the file, flipped one at a time: no row is read that was not written."""
  path, said = tmp_path / 'metrics.jsonl', []
  with metrics.Log(str(tmp_path)) as log:
    for step in (1, 2, 3):
      log.row(step, {'train/loss': step + 0.5, 'stage': 'all', 'move_L': [1, 2]})
  whole, rows = path.read_bytes(), metrics.read_rows(path)
  assert rows[1] == {'step': 2, 'train/loss': 2.5, 'stage': 'all', 'move_L': [1, 2]}
  for place in range(len(whole)):
    data = bytearray(whole)
    data[place] ^= 1
    path.write_bytes(data)
    said.clear()
    read = metrics.read_rows(path, said.append)
    assert all(row in rows for row in read) and len(read) < 3 and said, place
    assert str(path) in said[0]
  data = bytearray(whole)
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  said.clear()
  with metrics.Log(str(tmp_path), step=3, note=said.append) as log:  # the run goes on
    log.row(4, {})
  assert 'metrics.jsonl.damaged' in said[0] and len(said) == 1
  assert [row['step'] for row in metrics.read_rows(path)] == [1, 3, 4]
  assert (tmp_path / 'metrics.jsonl.damaged').read_bytes() == data
  with open(path, 'ab') as f:
    f.write(b'{"step": 5')  # cut off by a kill: no damage
  metrics.Log(str(tmp_path), step=4, note=said.append)
  assert len(said) == 1
  metrics.Log(str(tmp_path), step=8, note=said.append)  # more was cut off than a kill does
  assert 'ends at step 4, and the run goes on from 8' in said[1]


def test_tensorboard_has_each_step_once_after_a_roll_back(tmp_path):
  """As TensorBoard reads it: what comes after a START is all there is from its step on."""
  from tensorboardX.proto import event_pb2
  from tensorboardX.record_writer import RecordWriter  # noqa: F401 (the format that is read below)

  with metrics.Log(str(tmp_path), tensorboard=True) as log:
    for step in (1, 2, 3):
      log.row(step, {'loss': float(step)})
    log.rewind(1)
    log.row(2, {'loss': 20.0})
  values: dict[int, list[float]] = {}
  (file,) = (tmp_path / 'tensorboard').iterdir()
  data, at = file.read_bytes(), 0
  while at < len(data):
    size = int.from_bytes(data[at:at + 8], 'little')
    event = event_pb2.Event.FromString(data[at + 12:at + 12 + size])
    at += 16 + size
    if event.session_log.status == event_pb2.SessionLog.START:
      values = {step: v for step, v in values.items() if step < event.step}
    for value in event.summary.value:
      values.setdefault(event.step, []).append(value.simple_value)
  assert values == {1: [1.0], 2: [20.0]}


def test_where_the_time_went():
  at = lambda second, **more: {'time': f'2026-01-01T00:00:{second:02d}Z', **more}
  rows = [{'step': 4, 'time/steps': 8.0, 'time/compile': 4.0}, {'step': 4},
          {'step': 6, 'time/steps': 2.0, 'time/skipped': 1.0}]
  events = [at(0, seconds=10.0), at(9), at(30, **{'time/checkpoint': 3.0})]
  assert metrics.account(events, rows) == {
    'steps': 10 / 40, 'compile': 4 / 40, 'skipped': 1 / 40, 'checkpoint': 3 / 40, 'other': 22 / 40}

"""Where the numbers of a run go, and those that are read off the hardware."""

import sys
import time
import types

import pytest

from smoljax import metrics


@pytest.fixture
def boards(monkeypatch):
  """Two GPUs whose counters rise by 1 and 2 kJ a reading; NVML is asked by number or by UUID."""
  asked, counters = [], {0: 0, 1: 0}

  def read(board):
    counters[board] += (board + 1) * 1_000_000  # millijoules
    return counters[board]

  def by_number(i):
    asked.append(i)
    return i

  def by_uuid(name):
    asked.append(name)
    return {'GPU-a': 0, 'GPU-b': 1}[name]

  monkeypatch.setattr(metrics.pynvml, 'nvmlInit', lambda: None)
  monkeypatch.setattr(metrics.pynvml, 'nvmlDeviceGetHandleByIndex', by_number)
  monkeypatch.setattr(metrics.pynvml, 'nvmlDeviceGetHandleByUUID', by_uuid)
  monkeypatch.setattr(metrics.pynvml, 'nvmlDeviceGetTotalEnergyConsumption', read)
  return asked


@pytest.mark.parametrize('visible, asked', [('', [0, 1]), ('1, 0', [1, 0]), ('GPU-b,GPU-a', None)])
def test_energy_since_the_last_reading(boards, monkeypatch, visible, asked):
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
  energy = metrics.Energy([0, 1])
  assert boards == (asked or ['GPU-b', 'GPU-a'])
  assert energy.joules() == 3000 == energy.joules()


def test_energy_of_what_has_no_counter(monkeypatch):
  assert metrics.Energy([]).joules() is None

  def fail():
    raise metrics.pynvml.NVMLError(metrics.pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

  monkeypatch.setattr(metrics.pynvml, 'nvmlInit', fail)
  assert metrics.Energy([0]).joules() is None


def test_wandb_goes_on_as_the_same_run(tmp_path, monkeypatch):
  started, rows, ended = [], [], []
  run = types.SimpleNamespace(
    define_metric=lambda name, step_metric: started.append((name, step_metric)),
    log=rows.append, finish=lambda: ended.append(1))
  fake = types.ModuleType('wandb')
  fake.init = lambda **kwargs: started.append(kwargs) or run
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

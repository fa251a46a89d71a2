"""Which GPUs a run has, how much of each, and what they use."""

import os

import pytest

from smoljax import gpu

UUIDS = ['GPU-aa', 'GPU-ab', 'GPU-cc']


@pytest.fixture
def boards(monkeypatch):
  counters = [0, 0, 0]

  def read(board):
    counters[board] += (board + 1) * 1_000_000  # millijoules
    return counters[board]

  for name, answer in {
    'Init': lambda: None, 'DeviceGetCount': lambda: 3, 'DeviceGetHandleByIndex': lambda i: i,
    'DeviceGetUUID': UUIDS.__getitem__, 'DeviceGetHandleByUUID': UUIDS.index,
    'DeviceGetTotalEnergyConsumption': read,
  }.items():
    monkeypatch.setattr(gpu.pynvml, f'nvml{name}', answer)


@pytest.fixture
def no_driver(monkeypatch):
  def fail():
    raise gpu.pynvml.NVMLError(gpu.pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

  monkeypatch.setattr(gpu.pynvml, 'nvmlInit', fail)


def test_a_run_takes_most_of_a_gpu_unless_the_user_says_how_much(monkeypatch):
  names = 'XLA_PYTHON_CLIENT_MEM_FRACTION', 'XLA_CLIENT_MEM_FRACTION'
  for name in names:
    monkeypatch.delenv(name, raising=False)
  assert gpu.share() == gpu.SHARE
  gpu.take()
  assert float(os.environ[names[0]]) == gpu.SHARE == gpu.share()
  for name in names:
    monkeypatch.delenv(names[0], raising=False)
    monkeypatch.setenv(name, '.4')
    gpu.take()
    assert os.environ[name] == '.4' and gpu.share() == 0.4
    assert sum(n in os.environ for n in names) == 1  # jax refuses both
    monkeypatch.delenv(name)
  monkeypatch.setenv(names[0], 'most')
  with pytest.raises(ValueError, match='MEM_FRACTION=most: give a share'):
    gpu.share()


@pytest.mark.parametrize('named, found', [
  (None, UUIDS), ('', []), ('2, 0', ['GPU-cc', 'GPU-aa']), ('GPU-c,GPU-ab', ['GPU-cc', 'GPU-ab']),
  ('1,-1,0', ['GPU-ab']), ('0,9', ['GPU-aa']), ('MIG-x', ['MIG-x'])])
def test_gpus_by_their_uuid_as_cuda_counts_them(boards, monkeypatch, named, found):
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  if named is not None:
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', named)
  assert gpu.visible() == found


def test_a_machine_without_a_driver_has_no_gpus(no_driver):
  assert gpu.visible() == []


def test_gpus_without_nvml_are_counted(no_driver, monkeypatch):
  monkeypatch.setattr(gpu.glob, 'glob', lambda _: ['/dev/nvidia0', '/dev/nvidia1', '/dev/nvidia2'])
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  assert gpu.visible() == ['0', '1', '2']
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,0')
  assert gpu.visible() == ['2', '0']


@pytest.mark.parametrize('visible, joules', [
  ('0,1', 3000), ('2, 0', 4000), ('GPU-ab,GPU-cc', 5000)])
def test_energy_since_the_last_reading(boards, monkeypatch, visible, joules):
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
  energy = gpu.Energy([0, 1])
  assert energy.joules() == joules == energy.joules()
  assert gpu.Energy([0, 2]).joules() is None  # no such GPU


def test_energy_of_what_has_no_counter(no_driver):
  assert gpu.Energy([]).joules() is None and gpu.Energy([0]).joules() is None

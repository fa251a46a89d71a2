"""How much of a GPU a run takes."""

import os

import pytest

from smoljax import gpu


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

"""Which GPUs there are, what they use, and how much of their memory jax takes.

Without jax, since what jax is to have is decided before it starts.
"""

import glob
import os
from collections.abc import Sequence

import pynvml

SHARE = 0.92  # jax takes three quarters; beyond are CUDA's own, cuBLAS's and NCCL's needs
_NAMES = ('XLA_PYTHON_CLIENT_MEM_FRACTION', 'XLA_CLIENT_MEM_FRACTION')  # jax refuses both


def take() -> None:
  """Lets jax have SHARE of each GPU that it finds; what the user set stays."""
  if not any(os.environ.get(name) for name in _NAMES):
    os.environ[_NAMES[0]] = str(SHARE)


def divided(among: int) -> dict[str, str]:
  """Variables for a process that shares its GPU with others, `among` in all: its part of SHARE.

  None where it has the GPU alone, or where the user said what each takes.
  """
  if among == 1 or any(os.environ.get(name) for name in _NAMES):
    return {}
  return {_NAMES[0]: f'{SHARE / among:.3f}'}


def share() -> float:
  """The share that jax has in a run: what the environment says, or SHARE.

  Raises ValueError where that is no number.
  """
  for name in _NAMES:
    if value := os.environ.get(name):
      try:
        return float(value)
      except ValueError:
        raise ValueError(f'{name}={value}: give a share of the memory, such as 0.9') from None
  return SHARE


def visible() -> list[str]:
  """The GPUs that this process may use, as CUDA counts them: their UUIDs, or their numbers where
  NVML is kept from it; [] without a driver."""
  try:
    pynvml.nvmlInit()
    boards = [str(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(i)))
              for i in range(pynvml.nvmlDeviceGetCount())]
  except pynvml.NVMLError:  # a container may have CUDA without it
    boards = [str(i) for i in range(len(glob.glob('/dev/nvidia[0-9]*')))]
  if not boards or (named := os.environ.get('CUDA_VISIBLE_DEVICES')) is None:
    return boards
  found = []
  for name in map(str.strip, named.split(',')):
    if name.isdecimal():
      known = boards[int(name):][:1]
    else:  # a part of a board has a name of its own
      known = [name] * name.startswith('MIG-') or [b for b in boards if name and b.startswith(name)]
    if not known:  # CUDA stops at the first that is none
      break
    found += known[:1]
  return found


class Energy:
  """What NVIDIA GPUs use, by NVML's counters: the whole board, idle time included."""

  def __init__(self, gpus: Sequence[int]):
    """Of the GPUs with these numbers as CUDA counts them; it knows nothing where NVML does not."""
    self._boards, known = [], visible() if gpus else []
    try:
      self._boards = [pynvml.nvmlDeviceGetHandleByUUID(known[i]) for i in gpus]
      self._before = self._read()
    except (pynvml.NVMLError, IndexError):
      self._boards = []

  def _read(self) -> float:
    return sum(map(pynvml.nvmlDeviceGetTotalEnergyConsumption, self._boards)) / 1e3

  def joules(self) -> float | None:
    """Used since the last call, or since the start; None where it is not known."""
    if not self._boards:
      return None
    before, self._before = self._before, self._read()
    return self._before - before

"""How much of a GPU's memory jax takes; without jax, since it is decided before jax starts."""

import os

SHARE = 0.92  # jax takes three quarters; beyond are CUDA's own, cuBLAS's and NCCL's needs
_NAMES = ('XLA_PYTHON_CLIENT_MEM_FRACTION', 'XLA_CLIENT_MEM_FRACTION')  # jax refuses both


def take() -> None:
  """Lets jax have SHARE of each GPU that it finds; what the user set stays."""
  if not any(os.environ.get(name) for name in _NAMES):
    os.environ[_NAMES[0]] = str(SHARE)


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

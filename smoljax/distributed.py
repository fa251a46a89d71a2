"""Runs of several processes, one a host: how they begin, who writes, where all wait for each other.

All are started with the same command (experiments/cloud/tpu.sh, srun) on one shared file system.
Process 0, the lead, writes everything but its peers' parts of checkpoints.
"""

import itertools
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_WEEK = 7 * 24 * 3600 * 1000  # milliseconds: the lead may curate a crawl meanwhile
_barriers = itertools.count()


def start(coordinator: str = '', processes: int = 0, process: int = -1) -> None:
  """Joins this process to the others; before jax has looked for devices.

  Args:
    coordinator, processes, process: HOST:PORT of process 0, how many there are, and which this
      is. On TPU slices, under SLURM and Open MPI jax finds them itself.
  Raises:
    ValueError: some of the three are given, not all.
  """
  given = bool(coordinator), processes > 0, process >= 0
  if any(given) and not all(given):
    raise ValueError('give --coordinator, --processes and --process, or none of them where jax can '
                     'find them itself (TPU slices, SLURM, Open MPI)')
  if all(given):
    jax.distributed.initialize(coordinator, processes, process)
  else:
    jax.distributed.initialize()


def is_lead() -> bool:
  """Whether this process is the one that writes files and prints."""
  return jax.process_index() == 0


def agreed(number: float) -> float:
  """The lead's number, in fp32, where each process might see its own."""
  if jax.process_count() == 1:
    return number
  return float(multihost_utils.broadcast_one_to_all(np.float32(number)))


def wait(what: str) -> None:
  """Returns when all processes have come here, however long one works before it does.

  All must call it in the same order. Raises an error of jax if one has died.
  """
  if jax.process_count() > 1:
    # The barrier of multihost_utils is a collective of devices, which gives up after a while.
    from jax._src import distributed

    client: Any = distributed.global_state.client
    client.wait_at_barrier(f'smoljax/{next(_barriers)}/{what}', _WEEK)

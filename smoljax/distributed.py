"""Runs of several processes, one a host: how they begin, who writes, where all wait for each other.

All are started with the same command (experiments/cloud/tpu.sh, srun) on one shared file system.
Process 0, the lead, writes everything but its peers' parts of checkpoints.
"""

import itertools
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from smoljax.metrics import changes

_WEEK = 7 * 24 * 3600 * 1000  # milliseconds: the lead may curate a crawl meanwhile
_MINUTE = 60 * 1000  # milliseconds
_barriers, _shared = itertools.count(), itertools.count()


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


def share(what: str, value: Any) -> Any:
  """The lead's value, JSON-able, in every process; `what` names it, for errors of jax.

  All must call it in the same order, as `wait`.
  """
  if jax.process_count() == 1:
    return value
  key = f'smoljax/share/{next(_shared)}/{what}'
  if is_lead():
    _client().key_value_set(key, json.dumps(value))
  wait(what)
  return json.loads(_client().blocking_key_value_get(key, _MINUTE))


def require_same(facts: Mapping[str, Any]) -> None:
  """Compares what must be the same in all processes, such as the config: name → JSON-able value.

  Raises ValueError in all of them if one differs from the lead's, naming the process and, of nested
  mappings, the fields.
  """
  if jax.process_count() == 1:
    return
  key = f'smoljax/same/{next(_shared)}'
  _client().key_value_set(f'{key}/{jax.process_index()}', json.dumps(facts))
  wait('all have said what they are')
  complaint = ''
  if is_lead():
    for process in range(1, jax.process_count()):
      theirs = json.loads(_client().blocking_key_value_get(f'{key}/{process}', _MINUTE))
      if differ := changes(facts, theirs):
        said = [f'{field} ({there!r} against {here!r})' for field, (here, there) in differ.items()]
        complaint = (
          f'process {process} is not like process 0: {", ".join(said[:4])}'
          + f' and {len(said) - 4} more' * (len(said) > 4)
          + ': start all with the same command, code and packages')
        break
  if complaint := share('whether all are alike', complaint):
    raise ValueError(complaint)


def _client() -> Any:
  from jax._src import distributed

  return distributed.global_state.client


def wait(what: str) -> None:
  """Returns when all processes have come here, however long one works before it does.

  All must call it in the same order. Raises an error of jax if one has died.
  """
  if jax.process_count() > 1:
    # The barrier of multihost_utils is a collective of devices, which gives up after a while.
    _client().wait_at_barrier(f'smoljax/{next(_barriers)}/{what}', _WEEK)

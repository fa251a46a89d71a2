"""Runs of several processes, one a host: how they begin, who writes, where all wait for each other.

All are started with the same command (experiments/cloud/tpu.sh, srun) on one shared file system.
Process 0, the lead, writes everything but its peers' parts of checkpoints.

A peer that dies says nothing, and on GPUs who waits for it waits for ever. So each process gives
signs of life, the lead misses them, and all that are left end with the status os.EX_TEMPFAIL: the
same command goes on. jax's own service would notice too, later, and abort. Where the lead itself
dies, that abort (SIGABRT, status 134) comes at once.
"""

import atexit
import contextlib
import functools
import itertools
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from smoljax import gpu
from smoljax.metrics import changes

_POLL = 2.0  # seconds between looks at whether those one waits for are still there
SIGN = 2.0  # seconds between signs of life
SIGNS = 20  # that may be missing in a row: 40 seconds; jax aborts from 70 on
GRACE = 5.0  # seconds in which a process ends by itself when the run is over
_meetings = itertools.count()


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
  port = coordinator.rpartition(':')[2]
  if coordinator and not (':' in coordinator and port.isdecimal() and 0 < int(port) < 2**16):
    raise ValueError(f'--coordinator={coordinator}: give HOST:PORT, such as host0:1234')
  if processes and not process < processes:
    raise ValueError(f'--process={process}: of --processes={processes} the last one is '
                     f'{processes - 1}')
  # Its handler would swallow SIGTERM outside training too; train/termination.py has its own.
  jax.config.update('jax_enable_preemption_service', False)
  if all(given):
    jax.distributed.initialize(coordinator, processes, process)
  else:
    jax.distributed.initialize()
  atexit.register(end, 'it has ended: its own output says why')  # before jax says goodbye
  if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
    signal.signal(signal.SIGTERM, _leave)
  _divide_gpus()
  threading.Thread(target=_live, daemon=True, name='signs of life').start()


def _divide_gpus() -> None:
  """Gives this process the GPUs of its host that are its own: all, or its part of them.

  jax would give each process that SLURM or Open MPI starts a single one, and each that is started
  by hand all of them. Raises ValueError where those of a host cannot be divided.
  """
  if 'JAX_LOCAL_DEVICE_IDS' in os.environ:
    return
  config: Any = jax.config
  platforms = config.jax_platforms or ''
  here = [] if platforms and not re.search('gpu|cuda', platforms) else gpu.visible()
  mine, me = [socket.gethostname(), here], _state().process_id
  there = _meet('the GPUs of each', mine, me, _state().num_processes)
  if not here:
    return
  together = [i for i, of in enumerate(there) if of == mine]
  each, rest = divmod(len(here), len(together))
  if rest or any(of[0] == mine[0] and of != mine and {*of[1]} & {*here} for of in there):
    raise ValueError(
      f'the processes of {mine[0]} cannot divide its {len(here)} GPUs: start one of them, or one a '
      'GPU, or let CUDA_VISIBLE_DEVICES name those of each')
  first = each * together.index(me)
  config.update('jax_cuda_visible_devices', ','.join(map(str, range(first, first + each))))


def _live() -> None:
  """Gives signs of life, looks for those of the others, and ends this process with the run."""
  missing: dict[str, tuple[str, int]] = {}  # process → its last sign, how often it was the last
  # The lead has gone, or this process is about to and has no client any more.
  with contextlib.suppress(ConnectionError, AttributeError):
    for number in itertools.count():
      signs = _signs(number)
      if _state().process_id == 0:
        # Looks are counted, not seconds, in which this process may have stood still itself.
        missing = {who: (sign, missing[who][1] + 1 if missing.get(who, '')[:1] == (sign,) else 0)
                   for who, sign in signs}
        for who, (_, times) in missing.items():
          if times > SIGNS:
            end(f'no sign of life of process {who} for {SIGN * SIGNS:.0f} s', os.EX_TEMPFAIL)
      reason, status = over()
      if status:
        # The lead keeps the service without which the others abort: it leaves last.
        time.sleep(GRACE * (2 if _state().process_id == 0 else 1))
        print(f'error: the run is over: {reason}', file=sys.stderr, flush=True)
        os._exit(status)
      time.sleep(SIGN)


def _signs(number: int) -> list[tuple[str, str]]:
  """Gives one; process → the last that it gave."""
  folder = 'smoljax/alive/'
  try:
    _client().key_value_set(f'{folder}{_state().process_id}', str(number), allow_overwrite=True)
    found = _client().key_value_dir_get(folder) if _state().process_id == 0 else []
  except jax.errors.JaxRuntimeError as e:
    raise ConnectionError(str(e)) from None
  return [(key.removeprefix(folder), sign) for key, sign in found]


def _leave(number: int, _: object) -> None:
  """Dies of a signal as a process does, but not before the others know."""
  end(f'it was told to end by {signal.Signals(number).name}')
  signal.signal(number, signal.SIG_DFL)
  os.kill(os.getpid(), number)


def is_lead() -> bool:
  """Whether this process is the one that writes files and prints."""
  return jax.process_index() == 0


@functools.cache
def leads_host() -> bool:
  """Whether this is the first process of its host; all must ask together the first time."""
  hosts = gather('hosts', socket.gethostname())
  return hosts.index(socket.gethostname()) == jax.process_index()


def agreed(number: float) -> float:
  """The lead's number, in fp32, where each process might see its own."""
  if jax.process_count() == 1:
    return number
  return float(multihost_utils.broadcast_one_to_all(np.float32(number)))


def share(what: str, value: Any) -> Any:
  """The lead's value, JSON-able, in every process; otherwise as `wait`."""
  return gather(what, value if is_lead() else None)[0]


def require_same(facts: Mapping[str, Any]) -> None:
  """Compares what must be the same in all processes, such as the config: name → JSON-able value.

  Raises ValueError in all of them if one differs from the lead's, naming the process and, of nested
  mappings, the fields.
  """
  differ = changes(share('what the lead is', facts), facts)
  said = [f'{field} ({there!r} against {here!r})' for field, (here, there) in differ.items()]
  more = f' and {len(said) - 4} more' * (len(said) > 4)
  for process, fields in enumerate(gather('who is not alike', ', '.join(said[:4]) + more)):
    if fields:
      raise ValueError(f'process {process} is not like process 0: {fields}: start all with the '
                       'same command, code and packages')


def wait(what: str) -> None:
  """Returns when all processes have come here, however long one works before it does.

  All must call it in the same order. Raises ConnectionError if one has gone.
  """
  gather(what, None)


def gather(what: str, value: Any) -> list[Any]:
  """The values, JSON-able, with which all processes have come here; otherwise as `wait`."""
  return _meet(what, value, jax.process_index(), jax.process_count())


def _meet(what: str, value: Any, me: int, count: int) -> list[Any]:
  """`gather`, where jax does not know yet that this is process `me` of `count`."""
  if count == 1:
    return [value]
  # The barrier of multihost_utils is a collective of devices, which gives up after a while.
  meeting = f'smoljax/{next(_meetings)}/{what}'
  post(f'{meeting}/{me}', [value])
  if me:
    return _await(f'{meeting}/all')
  values = [value for i in range(count) for value in _await(f'{meeting}/{i}')]
  post(f'{meeting}/all', values)
  return values


def end(reason: str, status: int = 0) -> None:
  """Tells all processes that this one takes no further part, and so the run is over.

  Args:
    status: with which all end, whatever they are at, within twice GRACE; 0: when they need it.
  """
  with contextlib.suppress(ConnectionError):  # no one is left to tell
    if status:
      post('smoljax/leave', status)
    post('smoljax/over', f'process {_state().process_id}: {reason}')


def post(key: str, value: Any) -> None:
  """Lets all processes `read` a JSON-able value; of several under one key the first stays.

  Raises ConnectionError as `read` does.
  """
  try:
    _client().key_value_set(key, json.dumps(value))
  except jax.errors.JaxRuntimeError as e:
    if 'ALREADY_EXISTS' not in str(e):
      raise ConnectionError(f'the lead of this run has gone: {e}') from None


def read(key: str, seconds: float) -> Any:
  """What some process has posted, or will within so many seconds; None if none does.

  Raises ConnectionError if the lead, who keeps the posts, has gone.
  """
  try:
    return json.loads(_client().blocking_key_value_get(key, round(1000 * seconds)))
  except jax.errors.JaxRuntimeError as e:
    if 'DEADLINE_EXCEEDED' in str(e):
      return None
    raise ConnectionError(f'the lead of this run has gone: {e}') from None


def over(seconds: float = 0.01) -> tuple[str, int]:
  """What `end` told first, waiting for it so long, and any status; '' and 0 if nothing."""
  reason = read('smoljax/over', seconds) or ''
  return reason, (reason and read('smoljax/leave', 0.01)) or 0


def _await(key: str) -> Any:
  while not (found := read(key, _POLL)):
    if reason := over()[0]:
      raise ConnectionError(f'the run is over: {reason}')
  return found


def _client() -> Any:
  return _state().client


def _state() -> Any:
  from jax._src import distributed

  return distributed.global_state

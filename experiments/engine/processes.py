"""Child processes that do not outlive their parent, and leases that end with their holder."""

import fcntl
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import IO, Any

# Run by the child before it becomes the command: the kernel (Linux) sends it SIGTERM when the
# parent dies, however that dies. Not Popen's preexec_fn, which may hang beside other threads.
_TIED = '''
import ctypes, os, signal, sys
if hasattr(libc := ctypes.CDLL(None), 'prctl'):
  libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):  # else the parent has died already
  os.execvp(sys.argv[2], sys.argv[2:])
'''


def start(command: Sequence[str], **options: Any) -> subprocess.Popen:
  """Starts a command that gets SIGTERM when this process dies, by SIGKILL too.

  To be called from a thread that lasts: the kernel looks at the thread.

  Args:
    options: of subprocess.Popen.
  """
  tied = [sys.executable, '-I', '-S', '-c', _TIED, str(os.getpid())]
  return subprocess.Popen([*tied, *command], **options)


def stop(*processes: subprocess.Popen, patience: float = 600.0) -> None:
  """Ends processes by SIGTERM, at which training saves; by SIGKILL after `patience` seconds."""
  for process in processes:
    if process.poll() is None:
      process.send_signal(signal.SIGTERM)
  for process in processes:
    try:
      process.wait(patience)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


def lease(path: pathlib.Path) -> IO | None:
  """The file, open and locked; None where another holds it.

  It is free again when it is closed or its process ends. On any disk that knows flock.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  file = open(path, 'w')  # noqa: SIM115 (open for as long as it is ours)
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.close()
    return None
  return file

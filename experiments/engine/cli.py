"""What commands share: files, exit codes, complaints."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console

console = Console(highlight=False, soft_wrap=True)


def complain(error: BaseException) -> int:
  """Says an error in one line; the exit status of what another try would not mend."""
  print(f'error: {" ".join(str(error).split()) or type(error).__name__}', file=sys.stderr)
  return 2


def exit_status(work: Callable[[], int | None]) -> int:
  """Runs a command's work; bad input and interrupts are one line each, not a traceback."""
  try:
    return work() or 0
  except (ValueError, OSError, ArithmeticError) as e:
    return complain(e)
  except KeyboardInterrupt:
    print('interrupted; the same command continues', file=sys.stderr)
    return 130


def read_json(path: str) -> Any:
  """The value in a JSON file."""
  with open(path) as f:
    return json.load(f)


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes a JSON file, whole and on the disk or not at all."""
  with open(f'{path}.tmp', 'w') as f:
    json.dump(value, f, indent=1)
    f.flush()
    os.fsync(f.fileno())
  os.replace(f'{path}.tmp', path)

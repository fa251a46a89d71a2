"""What commands share: files, exit codes, complaints."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from absl import flags
from rich.console import Console

from data_beam.redact import public
from smoljax import files

_TRACEBACK = flags.DEFINE_bool('traceback', False, 'Say of an error where it came from, too.')

BAD_INPUT = 2  # another try would end alike
TRY_AGAIN = 75  # it may not: a disk that is full or away, a process of the run that has gone
# Of the errors of a file system those that stay.
_FINAL = (
  FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)


class _Console(Console):
  """What is printed lands in logs, so it is what anybody may see."""

  def print(self, *objects: Any, **how: Any) -> None:
    super().print(*(public(o) for o in objects), **how)


console = _Console(highlight=False, soft_wrap=True)


def complain(error: BaseException) -> int:
  """Says an error in one line; the exit status: BAD_INPUT, or TRY_AGAIN."""
  if flags.FLAGS.is_parsed() and _TRACEBACK.value:
    print(public(''.join(traceback.format_exception(error))), file=sys.stderr)
  print(f'error: {public(" ".join(str(error).split())) or type(error).__name__}', file=sys.stderr)
  passes = files.transient(error) or (isinstance(error, OSError) and not isinstance(error, _FINAL))
  return TRY_AGAIN if passes else BAD_INPUT


def exit_status(work: Callable[[], int | None]) -> int:
  """Runs a command's work; errors and interrupts are one line each, not a traceback."""
  try:
    return work() or 0
  except (ValueError, OSError, ArithmeticError) as e:
    return complain(e)
  except KeyboardInterrupt:
    print('interrupted; the same command continues', file=sys.stderr)
    return 130


def read_json(path: str | os.PathLike) -> Any:
  """The value in a JSON file; ValueError, with the file's name, where it holds none."""
  return files.read_json(path)


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes a JSON file, whole and on the disk or not at all."""
  files.write_json(path, value, indent=1)

"""What commands share: files, exit codes, complaints."""

import os
import re
import select
import sys
import traceback
from collections.abc import Callable
from typing import Any

from absl import app, flags
from rich.console import Console
from rich.table import Table

from data_beam.command_line import BAD_INPUT, at_home, near
from data_beam.redact import public
from smoljax import files

_TRACEBACK = flags.DEFINE_bool('traceback', False, 'Say of an error where it came from, too.')

TRY_AGAIN = 75  # it may not: a disk that is full or away, a process of the run that has gone
_TABLE_WIDTH = 100  # columns: what is wider is made narrower
NO_READER = 141  # what a shell says of a program that SIGPIPE ended
# Of the errors of a file system those that stay.
_FINAL = (
  FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)


class _Console(Console):
  """What is printed lands in logs, so it is what anybody may see; figures of a table are whole in a
  terminal of any width."""

  def print(self, *objects: Any, **how: Any) -> None:
    wide = self.options.update(max_width=_TABLE_WIDTH)
    width = max((self.measure(o, options=wide).maximum for o in objects if isinstance(o, Table)),
                default=0)
    narrow = self.width
    if width > narrow:
      self.width = width
    super().print(*(public(o) for o in objects), **how)
    if width > narrow:
      self.width = narrow


console = _Console(highlight=False, soft_wrap=True)


def complain(error: BaseException) -> int:
  """Says an error in one line; the exit status: BAD_INPUT, TRY_AGAIN, or NO_READER in silence."""
  if isinstance(error, BrokenPipeError) and _nobody_reads():  # `… | head` has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what Python still flushes as it ends
    return NO_READER
  if flags.FLAGS.is_parsed() and _TRACEBACK.value:
    print(public(''.join(traceback.format_exception(error))), file=sys.stderr)
  print(f'error: {public(" ".join(str(error).split())) or type(error).__name__}', file=sys.stderr)
  passes = files.transient(error) or (isinstance(error, OSError) and not isinstance(error, _FINAL))
  return TRY_AGAIN if passes else BAD_INPUT


def _nobody_reads() -> bool:
  """Whether standard output is a pipe whose reader has gone; a socket may have broken as well."""
  poll = select.poll()
  poll.register(1, 0)
  return any(event & select.POLLERR for _, event in poll.poll(0))


def exit_status(work: Callable[[], int | None]) -> int:
  """Runs a command's work; errors and interrupts are one line each, not a traceback."""
  try:
    return work() or 0
  except (ValueError, OSError, ArithmeticError, ImportError) as e:
    return complain(e)
  except KeyboardInterrupt:
    print('interrupted; the same command continues', file=sys.stderr)
    return 130


def start(main: Callable[[list[str]], int | None]) -> None:
  """Runs a command whose flags are absl's, and ends the process with its status."""
  app.run(lambda argv: exit_status(lambda: main(argv)), flags_parser=parse)


def parse(argv: list[str], explain: Callable[[list[str]], str] = lambda argv: '') -> list[str]:
  """Parses absl's flags; what is wrong is one line, and ends the process with BAD_INPUT.

  Args:
    argv: the process's.
    explain: what it is in words better than absl's, '' where it does not know.

  Returns:
    The program's name.
  """
  argv[1:] = at_home(argv[1:])  # in place: a config's flags look at the process's own
  try:
    rest = flags.FLAGS(argv)
    if len(rest) > 1:
      raise ValueError(f'unknown argument {rest[1]!r}: flags look like --name=value, and text '
                       'with blanks is quoted')
    return rest
  except BrokenPipeError as e:
    sys.exit(complain(e))
  except Exception as e:  # a config is a program of its own, and may end in any error
    sys.exit(complain(ValueError(explain(argv) or _flag_error(argv, e))))


def _flag_error(argv: list[str], error: Exception) -> str:
  if isinstance(error, flags.UnrecognizedFlagError):
    own = [f'--{f.name}' for f in flags.FLAGS.get_key_flags_for_module(argv[0])]
    words = near(f'--{error.flagname}', own)
    return f'unknown flag --{error.flagname}{words}' + f': it has {", ".join(own)}' * (not words)
  if missing := re.search(r'Flag --(\w+) must have a value other than None', str(error)):
    return f'--{missing[1]} is missing: {flags.FLAGS[missing[1]].help}'
  if isinstance(error, (flags.Error, ValueError)) and not re.search(
    'File "|failure to load', str(error)):
    return re.sub('^flag ', '', str(error))
  return no_recipe(argv, error)


def no_recipe(argv: list[str], error: BaseException) -> str:
  """What is wrong with the file that --config names, from the error that loading it ended in."""
  name = next((a for a in argv if a.startswith('--config=')), '--config')
  # Of an error within the file its traceback is in the words; its last line is the reason.
  words = ' '.join(str(error).split())
  words = re.sub(r'^.*(earlier failure to load:|\[Relative path\]: \S+) ', '', words)
  words = re.split(r'(?<=\s)\w+(?:Error|Exception): ', words)[-1] if 'File "' in words else words
  if not isinstance(error, (flags.Error, ValueError, OSError)):
    words = f'{type(error).__name__}: {words}'
  return f'{name}: {words}'


def read_json(path: str | os.PathLike) -> Any:
  """The value in a JSON file; ValueError, with the file's name, where it holds none."""
  return files.read_json(path)


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes a JSON file, whole and on the disk or not at all."""
  files.write_json(path, value, indent=1)

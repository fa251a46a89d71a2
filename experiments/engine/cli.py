"""What commands share: files, exit codes, complaints."""

import difflib
import glob
import math
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

from data_beam.command_line import BAD_INPUT, any_terminal, at_home, near, one_line
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
  print(f'error: {public(one_line(error))}', file=sys.stderr)
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


def start(
  main: Callable[[list[str]], int | None],
  explain: Callable[[list[str]], str] = lambda argv: '',
) -> None:
  """Runs a command whose flags are absl's, and ends the process with its status.

  Args:
    main: takes the process's arguments; its result is the status, None is 0.
    explain: as of `parse`.
  """
  app.run(lambda argv: exit_status(lambda: main(argv)),
          flags_parser=lambda argv: parse(argv, explain))


def parse(argv: list[str], explain: Callable[[list[str]], str] = lambda argv: '') -> list[str]:
  """Parses absl's flags; what is wrong is one line, and ends the process with BAD_INPUT.

  Args:
    argv: the process's.
    explain: what it is in words better than absl's, '' where it does not know.

  Returns:
    The program's name.
  """
  any_terminal()
  argv[1:] = at_home(argv[1:])  # in place: a config's flags look at the process's own
  try:
    rest = flags.FLAGS(argv)
    for flag in flags.FLAGS.get_key_flags_for_module(argv[0]):
      if isinstance(flag.value, float) and math.isnan(flag.value) and flag.present:
        raise ValueError(f'--{flag.name}={flag.value}: give a number')
    if 'config' in flags.FLAGS:
      config = flags.FLAGS.config
      if flags.FLAGS['config'].present and (config is None or isinstance(config, dict)):
        raise TypeError('get_config() returned no ConfigDict')
      _ = config is not None and config.name  # the file is loaded when it is looked at
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
    return _plain(re.sub('^flag ', '', str(error)))
  return no_recipe(argv, error)


def _plain(words: str) -> str:
  """What absl says of a value that is of another kind, in plain words."""
  for said, meant in (
    (r"invalid literal for int\(\) with base 10: .*", 'give a whole number, such as 1000'),
    (r'could not convert string to float: .*', 'give a number, such as 0.5'),
    (r"\('Non-boolean argument to boolean flag', .*\)", 'give True or False'),
    (r"Failed to parse '.*' as a ConfigDict: .*", 'this is a section: set one of its fields')):
    words = re.sub(f'(?<=: ){said}', meant, words, flags=re.S)
  return words


def near_file(argument: str) -> str:
  """' (did you mean configs/quickstart.py?)' of --config=FILE[:ARGUMENT], or ''."""
  path = argument.partition('=')[2].partition(':')[0]
  names = {os.path.basename(f): f for folder in (os.path.dirname(path) or '.', 'configs')
           for f in glob.glob(f'{glob.escape(folder)}/*.py')}
  found = difflib.get_close_matches(os.path.basename(path), names, 1, .7)
  return f' (did you mean {names[found[0]]}?)' if found else ''


def no_recipe(argv: list[str], error: BaseException) -> str:
  """What is wrong with the file that --config names, from the error that loading it ended in."""
  name = next((a for a in argv if a.startswith('--config=')), '--config')
  # Of an error within the file its traceback is in the words; its last line is the reason.
  words = ' '.join(str(error).split())
  words = re.sub(r'^.*(earlier failure to load:|\[Relative path\]: \S+) ', '', words)
  words = re.split(r'(?<=\s)\w+(?:Error|Exception): ', words)[-1] if 'File "' in words else words
  if locked := re.search(r'Key "(\w+)" does not exist and cannot be added', words):
    near = re.search(r'Did you mean "(\w+)"', words)
    return f'{name}: there is no field {locked[1]!r}' + (
      f' (did you mean {near[1]}?)' if near else '')
  if 'get_config() takes 0 positional' in words:
    return f'{name}: this recipe takes nothing after a colon'
  if "has no attribute 'get_config'" in words:
    return f'{name}: it has no function get_config(), which configs/base.py shows'
  if not isinstance(error, (flags.Error, ValueError, OSError)):
    words = f'{type(error).__name__}: {words}'
  return f'{name}: {words}' + near_file(name) * ('No such file' in words)


def read_json(path: str | os.PathLike) -> Any:
  """The value in a JSON file; ValueError, with the file's name, where it holds none."""
  return files.read_json(path)


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes a JSON file, whole and on the disk or not at all."""
  files.write_json(path, value, indent=1)

"""What command lines share: what is wrong with flags in one line, with the nearest names."""

import argparse
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from data_beam.redact import public

BAD_INPUT = 2  # the exit status: another try would end alike


def near(name: str, known: Sequence[str]) -> str:
  """' (did you mean --input?)' where something known is like it, else ''."""
  found = difflib.get_close_matches(name, known, 2, .7)
  return f' (did you mean {" or ".join(found)}?)' if found else ''


def at_home(argv: Sequence[str]) -> list[str]:
  """Flags whose values begin with `~/`, which a shell leaves alone behind `=`, at home.

  Each path of a list is one, and a prompt or another text of several words is none.
  """
  home = lambda value: re.sub(r'(?:^|(?<=[=,\'"]))~(?=/)', os.path.expanduser('~'), value)
  out = []
  for arg in argv:
    flag, equals, value = arg.partition('=')
    is_path = flag.startswith('--') and '~/' in value and not re.search(r'[^,]\s', value)
    out.append(f'{flag}={home(value)}' if equals and is_path else arg)
  return out


def any_terminal() -> None:
  """Lets a terminal or a log that knows ASCII alone show what it can, rather than end the command.
  """
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='backslashreplace')


def one_line(error: BaseException | str) -> str:
  """An error's words in one line, without the stage that Beam adds."""
  words = re.sub(r" \[while running '[^']*'\]", '', ' '.join(str(error).split()))
  return words or type(error).__name__


def complain(prog: str, error: BaseException | str) -> int:
  """Says an error in one line that anybody may see, and returns the exit status."""
  words = one_line(error)
  print(public(f'{prog.removeprefix("python -m ")}: {words}'), file=sys.stderr)
  return BAD_INPUT


class Parser(argparse.ArgumentParser):
  """An ArgumentParser whose complaints are one line, and that knows a misspelt flag from a missing.

  Flags are not abbreviated: one that is misspelt would else pass for another.
  """

  def __init__(self, *args: Any, others: Callable[[str], bool] | None = None, **how: Any):
    """As argparse's.

    Args:
      others: whether a flag that is not this parser's own may go on to somebody else, as
        `parse_known_args` lets it; None = none may.
    """
    super().__init__(*args, **{'allow_abbrev': False} | how)
    any_terminal()
    self.others = others

  def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
    """As argparse's, but what is nearly one of its flags is refused before what is missing."""
    argv = at_home(sys.argv[1:] if args is None else args)
    if self._subparsers is None:  # else the subcommand's parser looks at its own
      own = [name for name in self._option_string_actions if name.startswith('--')]
      for flag in (a.partition('=')[0] for a in argv if a.startswith('--') and a != '--'):
        if flag not in own and not (self.others and self.others(flag)):
          words = near(flag, own)
          if words or not self.others:
            self.error(f'unknown flag {flag}{words}' + f': it has {", ".join(own)}' * (not words))
    return super().parse_known_args(argv, namespace)

  def error(self, message: str) -> NoReturn:
    """One line, and exit status 2."""
    sys.exit(complain(self.prog, message))

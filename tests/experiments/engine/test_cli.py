"""What a command ends with."""

import errno
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from rich.table import Table

from experiments.engine import cli


@pytest.mark.parametrize(('error', 'status'), [
  (ValueError('a field that is wrong'), cli.BAD_INPUT),
  (FileNotFoundError('no such corpus'), cli.BAD_INPUT),
  (PermissionError(errno.EACCES, 'Permission denied'), cli.BAD_INPUT),
  (ArithmeticError('it diverged'), cli.BAD_INPUT),
  (OSError(errno.EIO, os.strerror(errno.EIO)), cli.TRY_AGAIN),
  (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), cli.TRY_AGAIN),
  (OSError('writing a checkpoint failed. Make room'), cli.TRY_AGAIN),
  (ValueError(f'DATA_LOSS: {os.strerror(errno.ENOSPC)}'), cli.TRY_AGAIN),  # as tensorstore says
  (BrokenPipeError(errno.EPIPE, 'a store has gone'), cli.TRY_AGAIN),
  (ConnectionError('the lead of this run has gone'), cli.TRY_AGAIN),
])
def test_what_may_end_better_has_a_status_of_its_own(capsys, monkeypatch, error, status):
  def work():
    raise error

  assert cli.exit_status(work) == status != 1
  assert capsys.readouterr().err.count('\n') == 1
  with monkeypatch.context() as patch:
    patch.setattr(cli, '_TRACEBACK', type('F', (), {'value': True}))
    assert cli.exit_status(work) == status
  assert 'in work' in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error():
  """As in `… --help | head`."""
  read, write = os.pipe()
  os.close(read)
  done = subprocess.run(
    [sys.executable, '-c', 'from experiments.engine import cli\n'
     'raise SystemExit(cli.exit_status(lambda: print("x" * 99999, flush=True)))'],
    stdout=write, stderr=subprocess.PIPE, cwd=REPOSITORY)
  os.close(write)
  assert (done.returncode, done.stderr) == (cli.NO_READER, b'')


def test_figures_of_a_table_are_whole_in_a_narrow_terminal(monkeypatch, capsys):
  monkeypatch.setattr(cli.console, 'width', 40)
  names = ('accuracy', 'per character', 'per token', 'blind', 'longest')
  table = Table('task', *names)
  table.add_row('continuation', *['85.5'] * 5)
  cli.console.print(table)
  said = capsys.readouterr().out
  assert all(name in said for name in names) and said.count('85.5') == 5 and '…' not in said
  assert cli.console.width == 40

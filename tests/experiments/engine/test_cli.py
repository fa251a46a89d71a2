"""What a command ends with."""

import errno
import os

import pytest

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

"""Files that are whole or not there, and errors that pass."""

import errno
import os

import pytest

from smoljax import files


def test_what_passes_is_waited_for_and_nothing_else(monkeypatch):
  monkeypatch.setattr(files, 'WAITS', (0.0,) * 2)
  said, errors = [], []

  def work():
    if errors:
      raise errors.pop()
    return 'done'

  stale = OSError(errno.ESTALE, os.strerror(errno.ESTALE))
  hidden = ValueError('UNAVAILABLE: write failed: No space left on device')  # as tensorstore says
  errors[:] = [stale, hidden]
  assert files.retried(work, said.append) == 'done' and len(said) == 2
  errors[:] = [stale] * 3
  with pytest.raises(OSError, match=r'[Ss]tale'):
    files.retried(work)
  errors[:] = [FileNotFoundError('x')]
  with pytest.raises(FileNotFoundError):
    files.retried(work)


def test_a_line_is_appended_whole_or_not_at_all(tmp_path, monkeypatch):
  monkeypatch.setattr(files, 'WAITS', (0.0,))
  path, calls = tmp_path / 'log', []

  class Full:
    """A disk that takes three bytes of a line at first."""

    def __init__(self, f):
      self.f = f

    def __enter__(self):
      return self

    def __exit__(self, *_):
      self.f.close()

    def __getattr__(self, name):
      return getattr(self.f, name)

    def write(self, data):
      calls.append(len(data))
      if len(calls) == 2:
        raise OSError(errno.ENOSPC, 'full')
      return self.f.write(data[:3] if len(calls) == 1 else data)

  monkeypatch.setattr(files, 'open', lambda *a, **k: Full(open(*a, **k)), raising=False)  # noqa: SIM115
  files.append(path, 'one line\n')
  files.append(path, 'another\n')
  assert path.read_text() == 'one line\nanother\n'


def test_damaged_json_is_called_by_its_name(tmp_path):
  files.write_json(tmp_path / 'a.json', {'a': 1})
  assert files.read_json(tmp_path / 'a.json') == {'a': 1} and os.listdir(tmp_path) == ['a.json']
  for data in (b'', b'{"a"', b'\xff'):
    (tmp_path / 'a.json').write_bytes(data)
    with pytest.raises(ValueError, match=r'a\.json is damaged'):
      files.read_json(tmp_path / 'a.json')

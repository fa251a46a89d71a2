"""Checkpoints on disk: which stay, which are trusted, and what a damaged or full disk leaves."""

import itertools
import json
import os
import resource
import time

import jax
import numpy as np
import pytest

from smoljax import files
from smoljax.checkpoints import seals, store
from smoljax.checkpoints.store import Checkpoints


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
  monkeypatch.setattr(files, 'WAITS', (0.01,) * 3)


def arrays(value: float, size: int = 8):
  return {'w': jax.numpy.full(size, value)}, {'s': jax.numpy.full(3, value)}


def save(saved: Checkpoints, *steps: int, **options) -> None:
  for step in steps:
    saved.save(step, *arrays(step), {'at': step}, {}, **options)
  saved.latest()


def restore(saved: Checkpoints):
  """(step, a parameter) of the newest that can be trusted; None if there is none."""
  found = saved.restore(*arrays(0))
  return found and (found[0], float(found[1]['w'][0]))


def damage(file) -> None:
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


def largest(folder):
  return max((f for f in (folder / 'params').rglob('*') if f.is_file()), key=os.path.getsize)


def test_a_roll_back_verifies_the_older_checkpoint_that_it_takes(tmp_path):
  with Checkpoints(str(tmp_path)) as saved:
    save(saved, 1, 2, 3)
    assert restore(saved) == (3, 3.0)
  with Checkpoints(str(tmp_path)) as saved:
    assert restore(saved) == (3, 3.0)
    damage(largest(tmp_path / '2'))  # while the run goes on
    saved.discard(3)
    assert restore(saved) == (1, 1.0)
    assert len(saved.quarantined) == 1 and 'checkpoints' not in saved.quarantined[0]
    assert str(largest(tmp_path / '_quarantine' / '2').name) in saved.quarantined[0]


@pytest.mark.parametrize('seal', [b'', b'{"a": [1', b'\xff\xfe', b'[]', b'{}', None])
def test_a_damaged_seal_costs_its_step_and_blocks_nothing(tmp_path, seal):
  with Checkpoints(str(tmp_path)) as saved:
    save(saved, 1, 2)
  if seal is not None:
    (tmp_path / '_integrity' / '2.json').write_bytes(seal)
  else:
    damage(tmp_path / '_integrity' / '2.json')
  said = []
  assert store.find(str(tmp_path))[0].name == '1'
  with Checkpoints(str(tmp_path), note=said.append) as saved:
    assert restore(saved) == (1, 1.0)
  assert len(said) == 1 and '2' in said[0]


def test_a_step_is_sealed_anew_when_it_is_taken_again(tmp_path):
  """After a roll-back the old seal would make the new step look damaged."""
  with Checkpoints(str(tmp_path)) as saved:
    save(saved, 1, 2)
    saved.discard(2)
    saved.save(2, *arrays(7), {}, {})
  with Checkpoints(str(tmp_path)) as saved:
    assert restore(saved) == (2, 7.0) and not saved.quarantined


def test_the_quarantine_is_bounded_and_the_first_to_make_room(tmp_path, monkeypatch):
  with Checkpoints(str(tmp_path), keep=9) as saved:
    save(saved, *range(1, 6))
    saved.discard(2)
    assert sorted(os.listdir(tmp_path / '_quarantine')) == ['4', '5'] == sorted(
      os.listdir(tmp_path / '_quarantine'))
    held = seals.quarantined_bytes(tmp_path)
    monkeypatch.setattr(store.shutil, 'disk_usage', lambda _: type('', (), {'free': 0}))
    each = {'w': np.zeros(held, np.int8)}
    assert held and [saved.lacks(each, range(6, 6 + n)) for n in (1, 2)] == [0, held]


def test_which_checkpoints_stay(tmp_path):
  scores = dict(zip(range(1, 14), [5, 4, 1, *[3] * 10], strict=True))
  kept = []
  for steps in ([*range(1, 8)], [*range(8, 14)]):  # a run, and the same that goes on
    with Checkpoints(str(tmp_path), keep=1, keep_every=5, keep_best=True) as saved:
      for step in steps:
        save(saved, step, score=float(scores[step]))
    kept.append(seals.steps(tmp_path))
  assert kept == [[3, 5, 6, 7], [3, 5, 10, 12, 13]]  # the newest has one more beside it
  # Saves that no multiple of keep_every meets: the first of each span.
  policy = store._Policy(1, 1000, None)
  left: list[int] = []
  for step in range(300, 4000, 300):
    left = sorted(policy.kept([*left, step]))
  assert left == [1200, 2100, 3000, 3600, 3900]


def test_a_save_that_fails_is_done_again(tmp_path, monkeypatch):
  """On a disk that is full for a while: the run goes on, and so do its checkpoints."""
  monkeypatch.setattr(store, '_BACK_OFF', 1.0)
  limits, said, steps = resource.getrlimit(resource.RLIMIT_FSIZE), [], itertools.count(3)
  large = {'w': jax.random.normal(jax.random.key(0), (500_000,))}
  with Checkpoints(str(tmp_path), note=said.append) as saved:
    save(saved, 1, 2)
    saved.discard(2)
    try:
      resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
      for _ in range(2):
        saved.save(next(steps), large, arrays(0)[1], {}, {})
        until = time.monotonic() + 20
        while not saved.again():
          assert time.monotonic() < until
          time.sleep(0.02)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    saved.save(next(steps), large, arrays(0)[1], {}, {})
    assert saved.latest() == 5 and not saved.again()
    assert not (tmp_path / '_quarantine').exists() and not list(tmp_path.glob('*tmp*'))
  assert seals.steps(tmp_path) == [1, 5] and not seals.fault(tmp_path, 5)
  assert len(said) == 2 and 'File too large' in said[0]


def test_the_last_save_waits_out_what_passes(tmp_path, monkeypatch):
  seal, failures = seals.seal, [OSError(28, 'No space left on device'), OSError(5, 'I/O')]

  def failing(*args):
    if failures:
      raise failures.pop()
    seal(*args)

  with Checkpoints(str(tmp_path), note=lambda line: None) as saved:
    saved.latest()
    monkeypatch.setattr(seals, 'seal', failing)
    saved.save(1, *arrays(1), {}, {}, wait=True)
    assert not failures and json.loads((tmp_path / '_integrity' / '1.json').read_text())
    failures.extend(OSError(28, 'No space left on device') for _ in range(9))
    with pytest.raises(OSError, match='Make room'):
      saved.save(2, *arrays(2), {}, {}, wait=True)
    failures.clear()
    saved.save(3, *arrays(3), {}, {}, wait=True)

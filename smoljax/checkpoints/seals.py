"""Which steps of a run can be trusted: sealed when they are whole, verified before they are used.

A seal is `_integrity/{step}.json` beside the steps: size and sha256 of each file of a step. A step
without one, with one that cannot be read, or with a file that is not as it says, is put away into
`_quarantine`, where the newest few stay to be looked at.
"""

import concurrent.futures
import os
import pathlib
import shutil
from collections.abc import Iterable

from smoljax import files

SEALS = '_integrity'
QUARANTINE = '_quarantine'
QUARANTINED = 2  # steps that stay there
_THREADS = 8  # hashing leaves the interpreter to others


def steps(root: pathlib.Path) -> list[int]:
  """The steps in a folder of checkpoints, oldest first."""
  if not root.is_dir():
    return []
  return sorted(int(p.name) for p in root.iterdir() if p.name.isdigit() and p.is_dir())


def sealed(root: pathlib.Path, step: int) -> dict[str, list] | None:
  """The digests that a step was sealed with; None if it was not, or its seal cannot be read."""
  try:
    seal = files.read_json(root / SEALS / f'{step}.json')
  except (OSError, ValueError):
    return None
  return seal if isinstance(seal, dict) else None


def fault(root: pathlib.Path, step: int, *, again: bool = True) -> str:
  """What is wrong with a step, the file by its name; '' if it is as it was sealed.

  Args:
    again: read every byte, even of files that this process has read since they were last written.
  """
  seal, place = sealed(root, step), root / SEALS / f'{step}.json'
  if seal is None:
    return f'{place} cannot be read' if place.exists() else f'{root / str(step)} is not sealed'
  try:
    found = files.retried(lambda: digests(root / str(step), again=again))
  except OSError as e:
    return f'{root / str(step)} cannot be read: {e}'
  different = sorted(name for name in seal.keys() | found.keys()
                     if seal.get(name) != found.get(name))
  if not different:
    return ''
  name = different[0]
  what = ('is missing' if name not in found else 'is not in the seal' if name not in seal
          else 'is damaged')
  return f'{root / str(step) / name} {what}'


def seal(root: pathlib.Path, current: Iterable[int]) -> None:
  """Seals those of the current steps that are not sealed; drops the seals of all others."""
  current = set(current)
  (root / SEALS).mkdir(exist_ok=True)
  for step in sorted(current):
    if not (root / SEALS / f'{step}.json').exists():
      files.write_json(root / SEALS / f'{step}.json', digests(root / str(step)))
  for path in (root / SEALS).glob('*.json'):
    if path.stem not in map(str, current):
      path.unlink()


def quarantine(root: pathlib.Path, step: int) -> None:
  """Puts a step away, and its seal, which another step of that number must not find."""
  target = root / QUARANTINE / str(step)
  shutil.rmtree(target, ignore_errors=True)
  target.parent.mkdir(exist_ok=True)
  (root / SEALS / f'{step}.json').unlink(missing_ok=True)
  (root / str(step)).rename(target)
  os.utime(target)
  kept = sorted(target.parent.iterdir(), key=lambda p: p.stat().st_mtime_ns)
  for old in kept[:-QUARANTINED]:
    shutil.rmtree(old, ignore_errors=True)


def quarantined_bytes(root: pathlib.Path) -> int:
  """How much of the disk the quarantine holds."""
  return sum(p.stat().st_size for p in (root / QUARANTINE).rglob('*') if p.is_file())


def digests(folder: pathlib.Path, *, again: bool = True) -> dict[str, list]:
  """`{file: [bytes, sha256]}` of all files below a folder; arguments as for `fault`."""
  paths = sorted(p for p in folder.rglob('*') if p.is_file())

  def digest(path: pathlib.Path) -> list:
    return [path.stat().st_size, files.sha256(path, again=again)]

  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    found = list(pool.map(digest, paths))
  return {p.relative_to(folder).as_posix(): d for p, d in zip(paths, found, strict=True)}



"""A run's checkpoints in an object store, beside the newest one in its workdir.

  URL/{step}-{id}/…                the files of a step as Orbax wrote them
  URL/_integrity/{step}-{id}.json  what it was sealed with: written last, deleted first
  URL/metrics.jsonl, …             rows of the run up to then

The id is of the digests, so that a name never has two contents, and a seal that is half written is
none. What a list lacks yet costs a run that begins elsewhere some steps, which it takes again to
the same bits; a step that a list still has is only there if its seal can be read.
"""

import json
import pathlib
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from smoljax import files, object_store
from smoljax.checkpoints import seals

_READS = 5  # at most, until two agree
_ARRIVING = '_arriving'  # beside the steps in the workdir: those on their way


class Sealed(NamedTuple):
  """A step that is there."""

  id: str
  digests: dict[str, list]  # file → [bytes, sha256]
  score: float | None
  time: float  # when it was complete

  @property
  def seal(self) -> bytes:
    """The bytes of its seal."""
    return json.dumps([self.digests, self.score, self.time]).encode()


class Mirror:
  """The steps of one run in an object store.

  Args:
    url: the run's folder there; to no other run's.
    rows: files of the workdir that are kept there too, overwritten with each step.
    note: gets a line about what goes wrong and is waited out.
  Raises:
    As object_store.Folder does.
  """

  def __init__(
    self, url: str, rows: Sequence[pathlib.Path] = (), note: Callable[[str], None] = print,
  ):
    self.url, self._rows, self._note = url, rows, note
    self._folder = object_store.Folder(url, note)
    self.steps: dict[int, Sealed] = {}  # those that are there
    self._look()

  def _look(self) -> None:
    """Reads the seals that a list has."""
    for name in self._folder.names():
      place, _, name = name.rpartition('/')
      step, _, id = name.removesuffix('.json').partition('-')
      if place != seals.SEALS or not step.isdigit():
        continue
      found = self._sealed(int(step), id)
      if found and ((other := self.steps.get(int(step))) is None or other.time < found.time):
        self.steps[int(step)] = found

  def _sealed(self, step: int, id: str) -> Sealed | None:
    for _ in range(3):  # a bit may have flipped on the way
      try:
        found = Sealed(id, *json.loads(self._folder.read(_seal(step, id))))
        if _id(found.digests) == id:
          return found
      except FileNotFoundError:
        return None
      except (ValueError, TypeError):
        continue
    self._note(f'warning: {self.url}/{_seal(step, id)} is damaged: without that step')
    return None

  def clean(self) -> None:
    """Deletes what uploads that did not end left, and steps that were taken again since."""
    left: dict[str, list[str]] = {}
    for name in self._folder.names():
      left.setdefault(name.partition('/')[0], []).append(name)
    for place, names in left.items():
      step, _, id = place.partition('-')
      if not step.isdigit() or not id:
        continue
      if (known := self.steps.get(int(step))) and known.id != id:  # taken again since
        self._folder.remove([_seal(int(step), id)])
      try:
        self._folder.read(_seal(int(step), id))  # which the list may lack
      except FileNotFoundError:
        self._folder.remove(names)

  def send(self, root: pathlib.Path, step: int, score: float | None) -> None:
    """Uploads a step that is sealed in the folder `root`, and then its seal."""
    digests = seals.sealed(root, step) or {}
    new = Sealed(_id(digests), digests, score, time.time())
    self._folder.send(
      root / str(step), {name: size for name, (size, _) in digests.items()}, f'{step}-{new.id}/')
    for path in filter(pathlib.Path.exists, self._rows):
      self._folder.write(path.name, path.read_bytes())
    self._folder.write(_seal(step, new.id), new.seal)
    old, self.steps[step] = self.steps.get(step), new
    if old and old.id != new.id:
      self._remove(step, old)

  def keep(self, steps: Collection[int]) -> None:
    """Deletes all others."""
    for step in self.steps.keys() - set(steps):
      self._remove(step, self.steps[step])
      del self.steps[step]

  def _remove(self, step: int, sealed: Sealed) -> None:
    self._folder.remove([_seal(step, sealed.id)])
    self._folder.remove([f'{step}-{sealed.id}/{name}' for name in sealed.digests])

  def bring(self, root: pathlib.Path, after: int) -> int | None:
    """Downloads the newest intact step after `after` into the folder `root`, and seals it there.

    Returns its number; None if there is none. Rows come too, where the workdir has none.
    """
    for step in sorted((s for s in self.steps if s > after), reverse=True):
      arriving = root / _ARRIVING / f'{step}-{self.steps[step].id}'
      try:
        self.download(step, arriving)
      except (ValueError, FileNotFoundError) as e:
        self._note(f'warning: {e}: the checkpoint is left out')
        del self.steps[step]
        continue
      (root / seals.SEALS).mkdir(exist_ok=True)
      files.write_json(root / seals.SEALS / f'{step}.json', self.steps[step].digests)
      files.replace(arriving, root / str(step))
      shutil.rmtree(root / _ARRIVING, ignore_errors=True)
      for path in self._rows:
        if not path.exists() and path.name in self._folder.names():
          files.write(path, self._twice(path.name))
      return step
    return None

  def _twice(self, name: str) -> bytes:
    """What two reads agree on: rows grow, and no seal has their digest."""
    data = self._folder.read(name)
    for _ in range(_READS):
      before, data = data, self._folder.read(name)
      if before == data:
        break
    return data

  def download(
    self, step: int, folder: pathlib.Path, items: Collection[str] | None = None
  ) -> None:
    """Copies a step, or some of its items, into a folder; raises as Folder.bring does."""
    id, digests, *_ = self.steps[step]
    wanted = {name: d for name, d in digests.items()
              if items is None or name.partition('/')[0] in items}
    for name, digest in wanted.items():  # of a download that was broken off, or a copy
      if (path := folder / name).exists() and digest[1] != files.sha256(path, again=False):
        path.unlink()
    self._folder.bring(wanted, folder, f'{step}-{id}/')


def fetch(url: str, items: Collection[str] | None) -> tuple[pathlib.Path, dict[str, list]]:
  """A copy of the newest intact step of a run in an object store, and the digests of its files.

  Args:
    url: a run's folder there or one of its steps (URL/STEP), or a folder with one run in it.
    items: of the step that the copy needs; None = all.
  Raises:
    FileNotFoundError: there is none, or there are several runs.
    ValueError: as object_store.Folder does.
  """
  url, only = url.rstrip('/'), None
  if url.rpartition('/')[2].isdigit():
    url, _, only = url.rpartition('/')
  runs = {name.rpartition('/')[0].removesuffix(seals.SEALS).rstrip('/')
          for name in object_store.Folder(url).names()
          if name.rpartition('/')[0].endswith(seals.SEALS)}
  if len(runs) > 1:
    raise FileNotFoundError(f'{url} holds several runs: give one of {", ".join(sorted(runs))}')
  mirror = Mirror(f'{url}/{"".join(runs)}'.rstrip('/'))
  for step in sorted(mirror.steps, reverse=True):
    if only in (None, str(step)):
      id, digests, *_ = mirror.steps[step]
      folder = object_store.cache() / 'checkpoints' / id / str(step)
      try:
        mirror.download(step, folder, items)
        return folder, digests
      except (ValueError, FileNotFoundError) as e:
        print(f'warning: {e}: the checkpoint is left out')
  raise FileNotFoundError(
    f'{url}: no intact checkpoint of a run; give the folder that train.checkpoint_dir names, or '
    'one in it (a Hugging Face folder must be copied here first)')


def _seal(step: int, id: str) -> str:
  return f'{seals.SEALS}/{step}-{id}.json'


def _id(digests: dict[str, list]) -> str:
  return object_store.key(json.dumps(digests, sort_keys=True))


def siblings(url: str) -> list[str]:
  """The other runs whose checkpoints lie beside a run's."""
  above, _, mine = url.rpartition('/')
  found = {name.partition('/')[0] for name in object_store.Folder(above).names()
           if f'/{seals.SEALS}/' in name}
  return sorted(found - {mine})

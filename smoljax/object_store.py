"""Folders in object stores (gs://, s3://, anything that fsspec knows), asked for no more than they
promise.

An object is there whole or not at all, in principle: a writer that dies, or a connection that does,
may leave half of one, or a whole one and an error. Names are listed late, also of what was deleted.
Nothing can be renamed. So here what consists of several files has its names and digests in one
object more, a *marker*, which is written last and deleted first; no name is given to two contents;
lists only hint at what is there, and what is read is held against its digest. Errors that pass are
waited out (files.retried), those that stay are one line that says what to do.
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import itertools
import math
import os
import pathlib
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import fsspec
from fsspec.registry import known_implementations

from smoljax import files

_T = TypeVar('_T')
_USUAL = 2  # failures in a row of which nothing need be said
_THREADS = 8  # files that are on their way at once
_ANSWER = 120.0  # seconds within which a request ends, and a second for each
_SLOWEST = 1e6  # bytes

# What lets this machine in, and makes a bucket, by scheme.
_LOG_IN = {
  'gs': 'log in (gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS) with '
        'the role storage.objectUser on the bucket',
  's3': 'log in (aws configure, AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) as '
        'one who may list, get, put and delete there',
}
_MAKE = {'gs': 'gcloud storage buckets create', 's3': 'aws s3 mb'}


def is_url(path: str | os.PathLike) -> bool:
  """Whether a path is in an object store, not in a file system of this machine."""
  return '://' in os.fspath(path)


def cache() -> pathlib.Path:
  """Where copies of what is read from object stores lie: SMOLJAX_CACHE, or ~/.cache/smoljax.

  They have what they hold in their names, and may be deleted at any time that nobody reads them.
  """
  return pathlib.Path(os.environ.get('SMOLJAX_CACHE') or '~/.cache/smoljax').expanduser()


class Folder:
  """The objects below a URL, by their names relative to it.

  Every method may raise, beside what it says, PermissionError where the store lets nobody in, and
  OSError if the store stays away for longer than files.WAITS.

  Args:
    url: with a scheme that fsspec knows, or a path of this machine.
    note: gets a line about each failure that is waited out, from the third in a row on.
  Raises:
    ValueError: a scheme that nothing is known of, or whose package is not installed.
  """

  def __init__(self, url: str, note: Callable[[str], None] | None = None):
    self.url, self._note = url.rstrip('/'), note
    self._scheme = url.partition('://')[0] if is_url(url) else 'file'
    if self._scheme in ('http', 'https'):
      raise ValueError(f'{self.url}: a web server is no store to write to: give gs://, s3:// or a '
                       'folder')
    options: dict[str, Any] = {'auto_mkdir': True} if self._scheme == 'file' else {}
    try:
      self._fs, self._root = fsspec.url_to_fs(self.url, use_listings_cache=False, **options)
    except ImportError as e:
      package = known_implementations[self._scheme]['class'].partition('.')[0]
      install = f': pip install {package} fsspec=={fsspec.__version__}' * (package != 'fsspec')
      raise ValueError(f'{self.url}: {self._scheme}:// needs a package that is not installed'
                       f'{install} ({e})') from None
    except Exception as e:
      if 'Protocol not known' in str(e):
        raise ValueError(f'{self.url}: no object store is called {self._scheme}://; give one such '
                         'as gs:// or s3://') from None
      raise self._explained(e) from e

  def read(self, name: str) -> bytes:
    """A small object; FileNotFoundError where there is none."""
    return self._do(lambda: self._fs.cat_file(self._path(name)))

  def write(self, name: str, data: bytes) -> None:
    """Writes a small object, whole."""
    def work() -> None:
      self._fs.pipe_file(self._path(name), data)
      self._require_size(name, len(data))
    self._do(work, len(data))

  def names(self) -> list[str]:
    """What a list has of the objects, sorted: a new one may be missing, a deleted one be there."""
    def work() -> list[str]:
      self._fs.invalidate_cache()
      try:
        return self._fs.find(self._root)
      except FileNotFoundError:  # no object, no folder
        return []
    return sorted(p.removeprefix(self._root).lstrip('/') for p in self._do(work))

  def remove(self, names: Iterable[str]) -> None:
    """Deletes objects; one that is not there is no error."""
    def work(name: str) -> None:
      with contextlib.suppress(FileNotFoundError):
        self._do(lambda: self._fs.rm_file(self._path(name)))
    _at_once(work, names)

  def send(self, folder: pathlib.Path, sizes: Mapping[str, int], prefix: str) -> None:
    """Uploads files of a local folder.

    Args:
      sizes: name in the folder → bytes.
      prefix: of their names here.
    """
    def work(name: str) -> None:
      def once() -> None:
        self._fs.put_file(str(folder / name), self._path(prefix + name))
        self._require_size(prefix + name, sizes[name])
      self._do(once, sizes[name])
    _at_once(work, sizes)

  def bring(
    self, digests: Mapping[str, Sequence[Any]], folder: pathlib.Path, prefix: str = '',
  ) -> None:
    """Downloads files into a local folder; of those that are there already, none again.

    Args:
      digests: name in the folder → bytes, sha256 ('' = unknown; bytes may be -1 likewise).
      prefix: of their names here.
    Raises:
      FileNotFoundError: one is not there.
      ValueError: one is not as its digest says.
      OSError: the local disk has too little room.
    """
    missing = {name: d for name, d in digests.items() if not (folder / name).exists()}
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = sum(max(0, size) for size, _ in missing.values()), shutil.disk_usage(folder).free
    if needed > free:
      raise OSError(
        errno.ENOSPC, f'{folder} has {(needed - free) / 1e9:.1f} GB too few for a copy of '
        f'{self.url}/{prefix}: make room, or set SMOLJAX_CACHE to a folder on a larger disk')

    def work(name: str) -> None:
      (size, sha256), target = missing[name], folder / name
      target.parent.mkdir(parents=True, exist_ok=True)
      arriving = target.with_name(f'{target.name}.{uuid.uuid4().hex[:8]}.part')
      try:
        for _ in range(3):  # what is damaged may have been so on the way
          self._do(lambda: self._fs.get_file(self._path(prefix + name), str(arriving)),
                   size if size >= 0 else math.inf)
          if size in (-1, arriving.stat().st_size) and sha256 in ('', files.sha256(arriving)):
            files.replace(arriving, target)
            return
      finally:
        arriving.unlink(missing_ok=True)
      raise ValueError(f'{self.url}/{prefix}{name} is damaged, it is not as it was written')
    _at_once(work, missing)

  def require_writable(self) -> None:
    """Writes an object and deletes it; raises what a run would find out later, in its own words."""
    probe = f'_probe-{uuid.uuid4().hex[:8]}'
    try:
      self.write(probe, b'')
      self.names()
    except FileNotFoundError as e:
      make = f'make it ({_MAKE[self._scheme]} …), or ' if self._scheme in _MAKE else ''
      raise FileNotFoundError(f'{self.url}: there is no such bucket or folder to write to: {make}'
                              f'correct the name ({_line(e)})') from None
    self.remove([probe])

  def _path(self, name: str) -> str:
    return f'{self._root}/{name}'

  def _require_size(self, name: str, size: int) -> None:
    """Half an object may be left where a connection was cut, and no error be seen."""
    try:
      found = self._fs.info(self._path(name))['size']
    except FileNotFoundError:
      found = None
    if found != size:
      raise OSError(errno.EIO, f'{self.url}/{name}: {found} of {size} bytes were written')

  def _do(self, work: Callable[[], _T], size: float = 0) -> _T:
    """Does a request of so many bytes, again where it fails or is not answered."""
    failures = itertools.count()

    def note(line: str) -> None:
      if next(failures) >= _USUAL and self._note:
        self._note(f'{line} ({self.url})')

    try:
      return files.retried(lambda: _within(work, _ANSWER + size / _SLOWEST), note)
    except Exception as e:
      raise self._explained(e) from e

  def _explained(self, error: Exception) -> Exception:
    what, said = files.status(error), f'{type(error).__name__} {error}'
    if isinstance(error, FileNotFoundError) or what == 404:
      return FileNotFoundError(f'{self.url}: not found: {_line(error)}')
    if isinstance(error, PermissionError) or what in (401, 403) or 'credential' in said.lower():
      return PermissionError(f'{self.url}: access denied: {_line(error)}: '
                             + _LOG_IN.get(self._scheme, 'give this process the right to it'))
    if files.transient(error):
      return OSError(getattr(error, 'errno', None) or errno.EIO,
                     f'{self.url}: the store stays away: {_line(error)}')
    return OSError(f'{self.url}: {_line(error)}')


def _within(work: Callable[[], _T], seconds: float) -> _T:
  """What `work` returns; TimeoutError where it takes longer. Not all drivers have a limit."""
  done: concurrent.futures.Future[_T] = concurrent.futures.Future()

  def run() -> None:
    try:
      done.set_result(work())
    except BaseException as e:
      done.set_exception(e)
  # No pool's thread: this one may hang for ever, and must not keep the process from ending.
  threading.Thread(target=run, daemon=True).start()
  try:
    return done.result(min(seconds, threading.TIMEOUT_MAX))
  except TimeoutError:
    if done.done():  # its own
      raise
    raise TimeoutError(f'no answer within {seconds:.0f} s') from None


def _line(error: BaseException) -> str:
  return ' '.join(str(error).split()) or type(error).__name__


def _at_once(work: Callable[[str], None], names: Iterable[str]) -> None:
  """Works on several names at a time; the first error is raised once none is worked on."""
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    running = [pool.submit(work, name) for name in names]
    try:
      for future in concurrent.futures.as_completed(running):
        future.result()
    finally:
      for future in running:
        future.cancel()


def key(*parts: str | bytes) -> str:
  """A name for what these identify, 16 hexadecimal digits."""
  digest = hashlib.sha256()
  for part in parts:
    data = part.encode() if isinstance(part, str) else part
    digest.update(len(data).to_bytes(8, 'little') + data)
  return digest.hexdigest()[:16]

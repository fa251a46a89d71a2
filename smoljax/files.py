"""Files that are there whole or not at all, and errors of disks and stores that pass if one waits.
"""

import errno
import functools
import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

_T = TypeVar('_T')

# What a network file system or a full disk says, and some time later no more.
_TRANSIENT = (
  errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT, errno.ETIMEDOUT, errno.EAGAIN)
_BUSY = (408, 425, 429, 500, 502, 503, 504)  # what a server answers likewise
# Errors of clients that say neither (http.client, aiohttp, requests, botocore): an answer was cut.
_CUT = {
  'IncompleteRead', 'RemoteDisconnected', 'ClientPayloadError', 'ClientConnectionError',
  'ChunkedEncodingError', 'ConnectTimeoutError', 'ReadTimeoutError', 'EndpointConnectionError',
  'ConnectionClosedError', 'ResponseStreamingError'}
WAITS = (1, 2, 4, 8, 16)  # seconds before each further try; in all less than a watchdog's floor
_random = random.Random()  # of its own: nobody's draws depend on how often something was retried


def transient(error: BaseException) -> bool:
  """Whether an error may be gone in a while; libraries hide the number, not the words."""
  if isinstance(error, FileNotFoundError | PermissionError):
    return False
  if isinstance(error, TimeoutError | ConnectionError) or status(error) in _BUSY:
    return True
  if _CUT & {kind.__name__ for kind in type(error).__mro__} or getattr(error, 'retryable', False):
    return True
  if isinstance(error, OSError) and error.errno in _TRANSIENT:
    return True
  return any(os.strerror(number) in str(error) for number in _TRANSIENT)


def status(error: BaseException) -> int | None:
  """The HTTP status that an error of a client stands for, if it tells."""
  answer = getattr(error, 'response', None)
  if isinstance(answer, dict):  # botocore's
    return answer.get('ResponseMetadata', {}).get('HTTPStatusCode')
  for of, name in ((error, 'status'), (error, 'code'), (answer, 'status_code')):
    if str(found := getattr(of, name, '')).isdigit():
      return int(found)
  return None


def retried(work: Callable[[], _T], note: Callable[[str], None] | None = None) -> _T:
  """What `work` returns; called again after `WAITS` as long as its errors are transient.

  A wait is up to a half shorter, by chance, so that many do not come again together.

  Args:
    note: gets a line about each failure.
  """
  for wait in WAITS:
    try:
      return work()
    except Exception as e:
      if not transient(e):
        raise
      if note:
        note(f'warning: {e}: trying again in {wait} s')
    time.sleep(wait * _random.uniform(0.5, 1))
  return work()


def write(path: str | os.PathLike, data: bytes) -> None:
  """Writes a file under another name, on the disk before it is renamed; also after a power cut."""
  temporary = f'{os.fspath(path)}.tmp'
  with open(temporary, 'wb') as f:
    f.write(data)
  replace(temporary, path)


def write_json(path: str | os.PathLike, value: Any, indent: int | None = None) -> None:
  """Writes a JSON file, as `write` does."""
  write(path, json.dumps(value, indent=indent).encode())


def read_json(path: str | os.PathLike) -> Any:
  """The value in a JSON file; ValueError, with the file's name, where it holds none."""
  with open(path, 'rb') as f:
    data = f.read()
  try:
    return json.loads(data)
  except ValueError as e:  # of what is no UTF-8 too
    raise ValueError(f'{os.fspath(path)} is damaged, no JSON: {e}') from None


def write_checked(path: str | os.PathLike, values: Mapping[str, Any]) -> None:
  """Writes a JSON file of named values with a checksum of them: `read_checked` notices a bit."""
  plain = json.loads(json.dumps(values))
  write_json(path, {**plain, 'checksum': _checksum(plain)}, indent=1)


def read_checked(path: str | os.PathLike) -> dict[str, Any]:
  """The values of a file by `write_checked`, or of a JSON file without a checksum.

  Raises ValueError, with the file's name, where they are not as they were written.
  """
  values = read_json(path)
  if not isinstance(values, dict) or values.pop('checksum', _checksum(values)) != _checksum(values):
    raise ValueError(f'{os.fspath(path)} is damaged: it is not as its checksum says')
  return values


def _checksum(values: Mapping[str, Any]) -> str:
  rest = {k: v for k, v in values.items() if k != 'checksum'}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sha256(path: str | os.PathLike, *, again: bool = True) -> str:
  """Of a file's bytes, in hexadecimal.

  Args:
    again: False = a file that this process has read is not read again, unless it was written since.
  """
  s = os.stat(path)
  digest = _sha256.__wrapped__ if again else _sha256
  return digest(os.fspath(path), s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)


@functools.lru_cache(maxsize=4096)
def _sha256(path: str, *state: int) -> str:
  del state  # part of the key: a file that was written again is another
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def replace(source: str | os.PathLike, target: str | os.PathLike) -> None:
  """Renames what is on the disk by then, and has the new name there too."""
  _sync(source)
  os.replace(source, target)
  _sync(os.path.dirname(os.path.abspath(target)))


def _sync(path: str | os.PathLike) -> None:
  number = os.open(path, os.O_RDONLY)
  try:
    os.fsync(number)
  except OSError as e:  # some network file systems know no fsync of folders
    if e.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
      raise
  finally:
    os.close(number)


def append(path: str | os.PathLike, line: str) -> None:
  """Appends a line, whole or not at all; transient errors are waited out."""
  def work() -> None:
    with open(path, 'ab', buffering=0) as f:
      before, data = f.seek(0, os.SEEK_END), line.encode()
      try:
        while data:
          data = data[f.write(data):]
      except OSError:
        f.truncate(before)
        raise
  retried(work)

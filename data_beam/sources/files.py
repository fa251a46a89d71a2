"""Files of any scheme: which match a pattern, and their bytes.

`expand` turns patterns into files (local, gs://, s3:// through Beam, https:// by itself, other
schemes through fsspec), and a listing of files (`warc.paths.gz`) into the files it lists. Common
Crawl's are read over https unless Beam's S3 file system is installed (the same bytes, and no
account needed). Beam is imported where it is used: what matches is asked where it is not
installed, too, in a run whose data was made elsewhere."""

import glob
import gzip
import importlib.util
import io
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import fsspec

from data_beam.redact import public, without_query

if TYPE_CHECKING:
  from data_beam.records import Reject

COMMON_CRAWL = 'https://data.commoncrawl.org/'
ARCHIVE = re.compile(r'\.(zip|7z|rar|tgz|tar(\.(gz|bz2|xz|zst))?)$', re.I)
_SURROGATE = re.compile(rb'\\u[dD][89a-fA-F]')
LISTING = re.compile(r'\.paths(\.gz)?$')


def expand(patterns: Sequence[str], *, archives: bool = False) -> list[dict]:
  """Files that match the patterns: `[{'path': …, 'bytes': …}]`, sorted by path, each file once. Of
  a folder all its files, however deep, but those whose names begin with a dot or an underscore.

  Raises FileNotFoundError naming the first pattern without a match, ValueError for a scheme that
  cannot be opened here, or for an archive unless whoever asks reads them (`archives`).
  """
  if isinstance(patterns, str):
    patterns = [patterns]
  if not patterns:
    raise ValueError('no input: give at least one file or pattern, such as crawl/*.warc.gz')
  files = {}
  for pattern in patterns:
    if os.path.isfile(pattern):  # also where its name has a bracket or a star in it
      found = {pattern: os.path.getsize(pattern)}
    else:
      found = _in_folder(pattern) if os.path.isdir(pattern) else _match(pattern)
    if not found:
      raise FileNotFoundError(f'no file matches {without_query(pattern)}')
    packed = [] if archives or os.path.isdir(pattern) else list(filter(ARCHIVE.search, found))
    if packed:
      raise ValueError(f'{packed[0]} is an archive: unpack it, and give the folder')
    for path, size in found.items():
      # The size of a listed file is not asked for: a crawl has 90,000 of them.
      listing = LISTING.search(without_query(path))
      files.update(dict.fromkeys(_listed(path), 0) if listing else {path: size})
  return [{'path': path, 'bytes': size} for path, size in sorted(files.items())]


def _listed(listing: str) -> list[str]:
  """The files of a listing: absolute, beside the listing, or paths within Common Crawl."""
  with open_file(listing) as stream, decompressed(stream) as plain:
    names = plain.read(1 << 28).decode().split()
  if not names:
    raise ValueError(f'{listing} lists no files')
  folder = without_query(listing).rpartition('/')[0]
  base = COMMON_CRAWL if names[0].startswith('crawl-data/') else folder + '/' if folder else ''
  if listing.startswith('s3://commoncrawl/'):
    base = 's3://commoncrawl/'
  return [name if '://' in name or name.startswith('/') else base + name for name in names]


def size_of(files: Sequence[Mapping[str, Any]]) -> int:
  """About how many bytes files from `expand` have; those of a listing count as Common Crawl's."""
  return sum(file['bytes'] or 1 << 30 for file in files)


def base_name(path: str) -> str:
  """The last part of a path, by which a corpus names the file."""
  return os.path.basename(without_query(path))


def _in_folder(folder: str) -> dict[str, int]:
  found = {}
  for where, folders, names in os.walk(folder):
    folders[:] = [name for name in folders if name[0] not in '._']
    paths = [os.path.join(where, name) for name in names if name[0] not in '._']
    found |= {path: os.path.getsize(path) for path in paths if os.path.isfile(path)}
  return found


def _match(pattern: str) -> dict[str, int]:
  if over_https(pattern):
    try:
      with _urlopen(pattern, method='HEAD') as answer:
        return {pattern: int(answer.headers.get('Content-Length') or 0)}
    except urllib.error.HTTPError as error:
      if '?' not in pattern or error.code == 404:
        raise
      with _urlopen(pattern):       # a URL that was signed for GET alone
        return {pattern: 0}
  if '://' not in pattern and not importlib.util.find_spec('apache_beam'):
    paths = glob.glob(pattern, recursive=True)  # of a run whose data others have made
    return {path: os.path.getsize(path) for path in paths if os.path.isfile(path)}
  if _beam_knows(pattern):
    from apache_beam.io.filesystems import FileSystems

    found = FileSystems.match([pattern])[0].metadata_list
    return {m.path: m.size_in_bytes for m in found if not os.path.isdir(m.path)}
  try:
    fs, path = fsspec.url_to_fs(pattern)
    names = fs.glob(path) if any(c in path for c in '*?[') else [path] * fs.exists(path)
    return {fs.unstrip_protocol(name): fs.size(name) or 0 for name in names}
  except (ImportError, ValueError) as error:
    raise ValueError(f'cannot open {pattern}: {error}') from error


def _beam_knows(path: str) -> bool:
  from apache_beam.io.filesystems import FileSystems

  try:
    FileSystems.get_filesystem(path)
    return True
  except ValueError:
    return False


def over_https(path: str) -> bool:
  """Whether a file is read by itself, from its start."""
  return path.startswith(('https://', 'http://')) or (
    path.startswith('s3://commoncrawl/') and importlib.util.find_spec('boto3') is None)


def _urlopen(path: str, method: str = 'GET', **headers):
  url = path.replace('s3://commoncrawl/', COMMON_CRAWL, 1)
  headers['User-Agent'] = 'smoljax (https://commoncrawl.org/ reader)'
  return urllib.request.urlopen(
    urllib.request.Request(url, method=method, headers=headers), timeout=60)


def open_file(path: str) -> BinaryIO:
  """Opens a file of any scheme `expand` understands, for reading raw bytes (nothing inflated)."""
  if os.path.exists(path):
    if not os.path.isfile(path):
      raise OSError(f'{path} is no regular file')
    return open(path, 'rb')
  if over_https(path):
    return _Forward(_urlopen(path))
  if _beam_knows(path):
    from apache_beam.io.filesystem import CompressionTypes
    from apache_beam.io.filesystems import FileSystems

    return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)
  return fsspec.open(path, 'rb').open()


class _Forward:
  """An HTTP answer without the `seek` that it has and cannot do; FastWARC would try it."""

  def __init__(self, answer):
    self.answer, self.read, self.close = answer, answer.read, answer.close

  def tell(self) -> int:
    return 0

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()


def read_range(path: str, offset: int, length: int) -> bytes:
  """Bytes [offset, offset + length) of a file of any scheme."""
  if over_https(path) and not os.path.exists(path):
    with _urlopen(path, Range=f'bytes={offset}-{offset + length - 1}') as answer:
      if answer.status != 206:
        raise OSError(f'{path}: the server gives no ranges')
      return answer.read(length)
  with open_file(path) as f:
    f.seek(offset)
    return f.read(length)


def decompressed(stream: BinaryIO) -> Any:
  """The plain bytes of a gzip, zstd, lz4 or plain file, told by its first bytes."""
  stream = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(Raw(stream))
  magic = stream.peek(4)[:4]
  if magic[:2] == b'\x1f\x8b':
    return gzip.GzipFile(fileobj=stream)
  if magic == b'\x28\xb5\x2f\xfd':
    from fastwarc.stream_io import ZstdReader

    return io.BufferedReader(Raw(ZstdReader(stream)))
  if magic == b'\x04\x22\x4d\x18':
    from fastwarc.stream_io import Lz4Reader

    return io.BufferedReader(Raw(Lz4Reader(stream)))
  return stream


def lines(stream: Any, limit: int) -> Iterator[bytes]:
  """Lines of a stream, in UTF-8, or UTF-16 with its mark. Of one that is longer than `limit` bytes
  the first so many, without the line break that others end with, so that no line costs more memory.
  """
  if stream.peek(2)[:2] in (b'\xff\xfe', b'\xfe\xff'):
    text = io.TextIOWrapper(stream, 'utf-16', errors='replace', newline='\n')
    stream = io.BufferedReader(Raw(_Encoded(text)))
  while line := stream.readline(limit):
    yield line
    while len(line) == limit and not line.endswith(b'\n'):
      line = stream.readline(limit)   # the rest


def parse_json(line: bytes) -> Any:
  """A line of JSON. Halves of surrogate pairs, which its escapes can say and no file can hold,
  become question marks. Raises ValueError (bad UTF-8 too) and RecursionError."""
  value = json.loads(line)
  if b'\\u' in line and _SURROGATE.search(line):
    value = json.loads(json.dumps(value, ensure_ascii=False).encode('utf-8', 'replace'))
  return value


class _Encoded:
  """A stream of text as one of UTF-8."""

  def __init__(self, text: io.TextIOBase):
    self.text = text

  def read(self, size: int) -> bytes:
    return self.text.read(size // 4).encode('utf-8', 'replace')     # at most four bytes each


class Raw(io.RawIOBase):
  """Any object with `read` as what io.BufferedReader wants."""

  def __init__(self, stream):
    self.stream = stream

  def readable(self) -> bool:
    """It is."""
    return True

  def readinto(self, buffer: Any) -> int:
    """Fills a buffer, and says how far."""
    data = self.stream.read(len(buffer))
    buffer[:len(data)] = data
    return len(data)


def patiently(function: Callable, *args: Any, tries: int = 3) -> Any:
  """Calls a function that reads from a network, again after a pause if it fails."""
  for n in range(tries):
    try:
      return function(*args)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
      raise
    except OSError:
      if n == tries - 1:
        raise
      time.sleep(2 ** n)


def reject_file(name: str, offset: int, number: int, reason: str, detail: str) -> 'Reject':
  """What could not be read at an offset of a file, as a reject of the stage `read`."""
  from data_beam.records import Document, Reject  # which is Beam's; here it is done without

  metadata = {'warc_file': name, 'warc_offset': offset, 'record': number,
              'error': public(detail)[:200]}
  return Reject(Document(id=f'{name}#{offset}', text='', source='web', metadata=metadata),
                'read', reason)

"""A rule by lists of URLs, domains and words in them."""

import dataclasses
import functools
import re
import urllib.parse
from collections.abc import Iterable

import numpy as np
import xxhash
from apache_beam.io.filesystems import FileSystems

from data_beam import records
from data_beam.records import Document

# --- where it comes from ---------------------------------------------------------------------

URL_LISTS = ('domains', 'urls', 'words', 'subwords', 'soft_words')
_NOT_IN_WORDS = re.compile('[^a-zA-Z0-9]+')


class _Hashes:
  """A set of strings kept as sorted 64-bit hashes: 8 bytes each, for lists of millions."""

  def __init__(self, lines: Iterable[str]):
    self.sorted = np.unique(np.fromiter(map(self._hash, lines), np.uint64))

  @staticmethod
  def _hash(line: str) -> int:
    return xxhash.xxh3_64_intdigest(line.encode())

  def __contains__(self, line: str) -> bool:
    value = np.uint64(self._hash(line))
    at = int(np.searchsorted(self.sorted, value))
    return at < len(self.sorted) and self.sorted[at] == value


@functools.lru_cache(maxsize=4)
def _url_lists(folder: str) -> dict[str, frozenset[str] | _Hashes]:
  lists = {}
  for name in URL_LISTS:
    lines = []
    if records.is_file(folder, f'{name}.txt'):
      body = records.read_bytes(FileSystems.join(folder, f'{name}.txt')).decode()
      lines = [line.strip() for line in body.split('\n') if line.strip() and line[0] != '#']
    if name in ('domains', 'urls'):
      lists[name] = _Hashes(lines)
    else:
      lists[name] = frozenset(_NOT_IN_WORDS.sub('', line).lower() for line in lines) - {''}
  return lists


@dataclasses.dataclass(frozen=True)
class UrlFilter:
  """A rule by lists of the user's own: files of `folder`, local or on a Beam file system that the
  workers can reach, one entry a line, # before comments.

  `domains.txt` (a domain stands for its subdomains), `urls.txt`, `words.txt` (words between the
  signs of a URL), `subwords.txt` (anywhere in the URL without its signs) and `soft_words.txt` (so
  many different ones as `soft` says). Any of the files may be missing. Reasons are datatrove's.

  `parity` keeps two faults of datatrove that are otherwise mended: words of the URL are compared
  with the lists as they are spelt, so that /CASINO/ passes where /casino/ does not; and only the
  registered domain and the full host name are looked up, not the subdomains between.
  """

  folder: str
  soft: int = 2
  parity: bool = False

  __name__ = 'url'

  def __post_init__(self):
    names = [f'{name}.txt' for name in URL_LISTS]
    if not any(records.is_file(self.folder, name) for name in names):
      raise ValueError(f'{self.folder} holds no URL list: put one of {", ".join(names)} there')

  def __call__(self, doc: Document) -> str | None:
    """Why the document is unwanted by its URL, or None."""
    return self.reason(doc.url)

  def reason(self, url: str) -> str | None:
    """Why documents of this URL are unwanted, or None."""
    lists = _url_lists(self.folder)
    host = _host(url)
    if any(domain in lists['domains'] for domain in self._parents(host)):
      return 'domain'
    if host in lists['domains']:
      return 'subdomain'
    if url in lists['urls']:
      return 'url'
    found = set(_NOT_IN_WORDS.split(url if self.parity else url.lower()))
    if found & lists['words']:
      return 'hard_blacklisted'
    if len(found & lists['soft_words']) >= self.soft:
      return 'soft_blacklisted'
    plain = _NOT_IN_WORDS.sub('', url).lower()
    if any(part in plain for part in lists['subwords']):
      return 'blacklisted_subword'
    return None

  def _parents(self, host: str) -> list[str]:
    labels = host.split('.')
    parents = ['.'.join(labels[i:]) for i in range(1, len(labels))]
    if not self.parity:
      return parents if len(labels) > 2 else [host]
    import tld  # comes with trafilatura; carries the list of public suffixes
    found = tld.get_tld(f'http://{host}', fail_silently=True, as_object=True, search_private=False)
    return [found.fld] if found else []


def _host(url: str) -> str:
  try:
    return (urllib.parse.urlsplit(url).hostname or '').rstrip('.')
  except ValueError:   # brackets that hold no IPv6 address
    return ''

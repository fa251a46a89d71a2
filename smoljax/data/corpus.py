"""A tokenised corpus on disk: documents by number, their lengths, its digest.

One in an object store is read from a copy: a run has each document of each shard once an epoch, in
no order that a shard knows of, so that from afar every batch would ask for as many ranges as it has
documents.
"""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from data_beam.special_tokens import SpecialTokens
from smoljax import files, object_store

_MORE = ('repeats', 'rejected_lengths')  # numbers beside the records that only some corpora have


class EmptySplit(ValueError):
  """A split of a corpus holds nothing to predict."""


class Piece(NamedTuple):
  """Tokens `[start, start + length]` of a document: `length` inputs and as many targets."""

  document: int
  start: int
  length: int


@dataclasses.dataclass(frozen=True)
class Corpus:
  """One split of a tokenised corpus on disk (contract: data_beam/tokenize_corpus.py)."""

  name: str
  manifest: Mapping
  lengths: np.ndarray  # [documents] int32, tokens of each document in record order
  records: Any  # random access (a grain data source of TFDS); 'tokens', 'num_bytes', 'id', …
  digest: str  # identifies the split's bytes
  repeats: np.ndarray | None = None  # [documents] int32, how often an epoch has each; None: once
  # [documents] int32, of a corpus of conversations: tokens with the rejected answer, 0 = no pair
  rejected_lengths: np.ndarray | None = None

  @property
  def has_mask(self) -> bool:
    """Whether it is of conversations, of which not every token is learned."""
    return bool(self.manifest.get('loss_mask'))

  def tokens(self, document: int) -> np.ndarray:
    """The token ids of one document, `[n]` int32."""
    return self.decode(self.records[document])

  def decode(self, record: Mapping) -> np.ndarray:
    """Token ids of a record, int32."""
    return np.frombuffer(record['tokens'], self.manifest['dtype']).astype(np.int32)

  @property
  def pair_lengths(self) -> np.ndarray:
    """Tokens of both answers of each preference pair, [documents] int32, less one: n - 1 targets.

    Raises ValueError where a record is no pair.
    """
    if self.rejected_lengths is None or not self.rejected_lengths.all():
      raise ValueError(f'the corpus {self.name!r} is not of preference pairs alone: give rows that '
                       'have chosen and rejected, to data_beam.conversations')
    return self.lengths + self.rejected_lengths - 1

  def longest(self, seq_len: int) -> int:
    """Tokens of a document that rows can take: all, or of a conversation those of one row."""
    return seq_len + 1 if self.has_mask else int(self.lengths.max(initial=0))

  def mask(self, record: Mapping) -> np.ndarray:
    """Which tokens of a record the model learns to write, `[n]` bool; as targets, so not the first.
    """
    if not self.has_mask:
      return np.ones(len(record['tokens']) // np.dtype(self.manifest['dtype']).itemsize, bool)
    return np.frombuffer(record['loss_mask'], bool)

  def rejected(self, record: Mapping) -> dict[str, bytes]:
    """The rejected answer of a pair's record, as a record that `decode` and `mask` take."""
    return {k: record[f'rejected_{k}'] for k in ('tokens', 'loss_mask')}

  def ids(self, documents: Sequence[int]) -> list[str]:
    """The ids of documents by their number."""
    return [word(r['id']) for r in self.records.__getitems__(list(documents))]

  def token_counts(self, vocab_size: int, limit: int = 100_000) -> np.ndarray:
    """How often each id occurs, `[vocab_size]` int64, in up to `limit` documents evenly spread;
    of conversations among the tokens that are learned."""
    counts = np.zeros(vocab_size, np.int64)
    for document in range(0, len(self.lengths), -(-len(self.lengths) // limit)):
      record = self.records[document]
      counts += np.bincount(self.decode(record)[self.mask(record)], minlength=vocab_size)
    return counts


def word(value: bytes | str) -> str:
  """A field of text of a record, which the reader gives as bytes."""
  return value.decode() if isinstance(value, bytes) else value


def open_corpus(path: str, split: str = 'train', name: str | None = None) -> Corpus:
  """Opens `path` (`DIR/NAME/VERSION`, or a URL of one: that split is copied first).

  Raises:
    FileNotFoundError: there is no finished tokenised corpus at `path`.
    EmptySplit: the split has no tokens to predict.
    ValueError: the path holds text, or a file that is not as it was written.
  """
  path = local_copy(path, [split])
  manifest = read_manifest(path)
  if manifest.get('kind') != 'tokenised':
    raise ValueError(f'{path} holds text, not tokens: run data_beam.tokenize_corpus on it first')
  info = manifest['splits'].get(split)
  shards = info['shards'] if info else []

  def sidecar(kind: str) -> np.ndarray:
    parts = [_load(os.path.join(path, s[kind]), s.get(f'{kind}_sha256')) for s in shards]
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)

  lengths = sidecar('lengths')
  if not (lengths > 1).any():
    raise EmptySplit(f'{path} has no tokens to predict in split {split!r}: {_why(manifest, split)}')
  records = open_records(path, split)
  if len(lengths) != len(records):
    raise ValueError(f'{path}: {len(lengths)} lengths but {len(records)} records: tokenise again')
  if (tokens := lengths.sum(dtype=np.int64)) != info.get('tokens', tokens):
    raise ValueError(f'{path}: the lengths of split {split!r} are {tokens} tokens, its manifest '
                     f'says {info["tokens"]}: tokenise again')
  more = {name: sidecar(name) for name in _MORE if name in shards[0]}
  return Corpus(name or manifest['name'], manifest, lengths, records, digest(shards), **more)


def _why(manifest: Mapping[str, Any], split: str) -> str:
  """Why a split is empty, and the ways on."""
  made = manifest.get('config', {})
  if split == 'validation' and made.get('holdout') == 0:
    return 'it was made with tokenize.holdout=0, so give it a share such as 0.02'
  if split == 'validation' and (known := manifest.get('near_duplicates_not_held_out')):
    return (
      f'all {known} documents that were to be held out share more than {made["holdout_shared"]} of '
      'their runs of eight words with other documents, as texts of one template do. Evaluate on '
      'another corpus (eval.corpora), look for others by a larger tokenize.holdout, or hold them '
      'out all the same by tokenize.holdout_shared=1: then their loss says what was learned by '
      'heart, too')
  more = ', or a larger tokenize.holdout' if split == 'validation' else ''
  return f'give it more input{more}'


def _load(path: str, sha256: str | None) -> np.ndarray:
  """Numbers beside the records, int32; corpora of older versions have no checksum of them."""
  with open(path, 'rb') as f:
    data = f.read()
  if sha256 and hashlib.sha256(data).hexdigest() != sha256:
    raise ValueError(f'{path} is damaged, it is not as its manifest says: tokenise again')
  try:
    return np.load(io.BytesIO(data)).astype(np.int32)
  except (ValueError, EOFError) as e:
    raise ValueError(f'{path} is damaged: tokenise again ({e})') from None


def local_copy(
  path: str, splits: Sequence[str] | None = None, cache: pathlib.Path | None = None
) -> str:
  """A folder with a corpus or some splits of it: `path` itself, unless that is in an object store.

  Files that were copied before, or by a process that was killed, are not copied again.

  Args:
    splits: None = all.
    cache: gets the copies, each in a folder of its own; None = object_store.cache().
  Raises:
    FileNotFoundError, ValueError: as `read_manifest`; and where a file is not as it was written.
    OSError: the store stays away, or there is no room here.
  """
  if not object_store.is_url(path):
    return path
  store = object_store.Folder(path)
  described = _described(store)
  manifest = json.loads(described['manifest.json'])
  copies = cache or object_store.cache() / 'corpora'
  folder = copies / object_store.key(described['_SUCCESS'], described['manifest.json'])
  wanted = {}
  for split, part in manifest.get('splits', {'train': manifest}).items():
    for shard in part['shards'] if splits is None or split in splits else ():
      wanted[shard['file']] = shard['bytes'], shard['sha256']
      for kind in ('lengths', *_MORE):
        if kind in shard:
          wanted[shard[kind]] = -1, shard.get(f'{kind}_sha256', '')
  store.bring(wanted, folder)
  for name, data in described.items():
    files.write(folder / name, data)
  return str(folder)


def _described(store: object_store.Folder) -> dict[str, bytes]:
  """What describes a corpus, by file, `_SUCCESS` the last."""
  wrong = ''
  for _ in range(3):  # a bit may have flipped on the way
    try:
      success = store.read('_SUCCESS')
      checksums = json.loads(success) if success else dict.fromkeys(
        ('features.json', 'dataset_info.json', 'manifest.json'))  # an older corpus has none
      found = {name: store.read(name) for name in checksums}
      for name, sha256 in checksums.items():
        if sha256 is not None and hashlib.sha256(found[name]).hexdigest() != sha256:
          raise ValueError(f'{name} is not as it was written')
      json.loads(found['manifest.json'])
      return found | {'_SUCCESS': success}
    except FileNotFoundError as e:
      raise FileNotFoundError(
        f'no finished corpus at {store.url}: give a folder such as gs://BUCKET/DIR/NAME/1.0.0, '
        f'with a _SUCCESS in it ({e})') from None
    except (ValueError, KeyError) as e:
      wrong = str(e)
  raise ValueError(f'{store.url}: {wrong}: make the corpus again, or, if you changed it on '
                   'purpose, empty the file _SUCCESS')


def read_manifest(path: str) -> dict:
  """The manifest of the corpus at `path`, of tokens or of text.

  Raises FileNotFoundError where it is not finished, ValueError where a file that describes it is
  not as it was written.
  """
  path = local_copy(path, [])
  if not os.path.exists(os.path.join(path, '_SUCCESS')):
    raise FileNotFoundError(
      f'{path} is not a finished corpus (no _SUCCESS): run data_beam.tokenize_corpus to its end'
    )
  checksums = {}
  if os.path.getsize(os.path.join(path, '_SUCCESS')):  # older corpora have it empty
    checksums = files.read_json(os.path.join(path, '_SUCCESS'))
  for name, sha256 in checksums.items():
    with open(os.path.join(path, name), 'rb') as f:
      if hashlib.sha256(f.read()).hexdigest() != sha256:
        raise ValueError(f'{os.path.join(path, name)} is not as it was written: make the corpus '
                         'again, or, if you changed it on purpose, empty the file _SUCCESS')
  return files.read_json(os.path.join(path, 'manifest.json'))


def special_tokens(manifests: Mapping[str, Mapping]) -> dict[str, int | None]:
  """The ids of the special tokens that tokenised corpora have in common, by what each is called.

  They are what `tokenizer.load` takes. A manifest older than an entry leaves it to the others, or
  to the tokenizer.

  Raises:
    ValueError: two of them differ.
  """
  found: dict[str, int | None] = {}
  first: dict[str, str] = {}  # who said it
  for name, manifest in manifests.items():
    for key in set(SpecialTokens._fields) & set(manifest):
      if found.setdefault(key, manifest[key]) != manifest[key]:
        raise ValueError(
          f'{key} is {found[key]} in {first[key]} and {manifest[key]} in {name}: tokenise both '
          'by one tokenizer, with the same tokenizer_config.json beside it')
      first.setdefault(key, name)
  return found


def digest(shards: Sequence[Mapping]) -> str:
  """Identifies a split's bytes by the checksums that the manifest has of its shards."""
  return hashlib.sha256(''.join(s['sha256'] for s in shards).encode()).hexdigest()


def open_records(path: str, split: str) -> Any:
  """Random access to the records of a TFDS directory: a sequence, with `__getitems__` too."""
  return tfds.builder_from_directory(path).as_data_source(split)


def decode_documents(plan: Sequence[tuple[str, Sequence[Piece]]], name: str) -> list[int]:
  """Numbers of the documents that the rows of corpus `name` in a plan read, in order."""
  return [p.document for of, pieces in plan if of == name for p in pieces]

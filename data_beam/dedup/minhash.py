"""MinHash signatures: texts that share much share a band of hashes."""

import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xxhash

from data_beam.text import words
from data_beam.text.normalize import simple_words, simplify

# --- MinHash signatures ----------------------------------------------------------------------

_MERSENNE = np.uint64((1 << 61) - 1)

_HASHES: dict[str, Callable[[bytes], int]] = {
  'xxh64': xxhash.xxh64_intdigest,
  'sha1': lambda data: int.from_bytes(hashlib.sha1(data).digest()[:8], 'little'),
}
HASHES = ('fast', *_HASHES)


def word_hashes(simple: Sequence[str]) -> np.ndarray:
  """xxh3 of each word, uint64."""
  data = ' '.join(simple).encode('utf-8', 'replace').split(b' ') if simple else []
  return np.fromiter(map(xxhash.xxh3_64_intdigest, data), np.uint64, len(data))


def ngram_hashes(hashes: np.ndarray, ngram: int) -> np.ndarray:
  """One hash per run of `ngram` words, by Horner's rule: uint64 [words - ngram + 1]."""
  count = max(0, len(hashes) - ngram + 1)
  total = hashes[:count].copy()
  for i in range(1, ngram):
    total *= np.uint64(0x9E3779B97F4A7C15)
    total += hashes[i:i + count]
  return total


class _SimpleWords:
  """The simplified words of a text as datatrove has them: spaCy's, joined by blanks, as bytes."""

  def __init__(self, language: str):
    self.cut = words.splitter(language)
    self.pieces: dict[str, bytes] = {}

  def join(self, pieces: Sequence[str]) -> bytes:
    for piece in dict.fromkeys(pieces):
      if piece not in self.pieces:
        self.pieces[piece] = ' '.join(self.cut(piece)).encode('utf-8', 'replace')
    return b' '.join(map(self.pieces.__getitem__, pieces))


_readers: dict[str, _SimpleWords] = {}


def _reader(language: str) -> _SimpleWords:
  language = language if language in words.LANGUAGES else 'en'
  if language not in _readers or len(_readers[language].pieces) > 200_000:
    _readers[language] = _SimpleWords(language)
  return _readers[language]


@functools.cache
def _permutations(count: int) -> tuple[np.ndarray, np.ndarray]:
  """Multipliers and offsets, [count, 1] each: datatrove's, so that signatures can be compared."""
  random = np.random.RandomState(1)
  high = int(_MERSENNE)
  a = random.randint(1, high, count, np.uint64)
  b = random.randint(0, high, count, np.uint64)
  return a[:, None], b[:, None]


def shingles(
  text: str, ngram: int = 5, hash_name: str = 'fast', language: str = 'en'
) -> np.ndarray:
  """Hashes of the word n-grams of the simplified text: uint64 [words - ngram + 1], in order.

  See `signature` for the arguments.
  """
  if hash_name == 'fast':
    return ngram_hashes(word_hashes(simple_words(text)), ngram)
  data = _reader(language).join(simplify(text))
  spaces = np.flatnonzero(np.frombuffer(data, np.uint8) == 0x20).tolist()
  starts, ends = [0, *(i + 1 for i in spaces)], [*spaces, len(data)]
  hash_ = _HASHES[hash_name]
  # An n-gram joined by blanks is a slice of the text.
  values = [hash_(data[i:j]) for i, j in zip(starts, ends[ngram - 1:], strict=False)]
  return np.array(values if data else [], np.uint64)


def shape(text: str) -> tuple[int, int] | None:
  """(bands, rows) of '14x8'; None for 'none'.

  Raises ValueError for anything else.
  """
  if text == 'none':
    return None
  if not (numbers := re.fullmatch(r'([1-9]\d{0,2})x([1-9]\d{0,2})', text)):
    raise ValueError(f'minhash={text!r}: give bands x rows, such as 14x8, or none')
  bands, rows = map(int, numbers.groups())
  return bands, rows


def band_hashes(text: str, *, max_chars: int = 1_000_000, **settings: Any) -> list[bytes]:
  """16 bytes a band of a text's signature (`settings` are its), none if the text is too short.

  Two texts that share one are near duplicates. Only `max_chars` of a text are looked at.
  """
  matrix = signature(text[:max_chars], **settings)
  return [xxhash.xxh3_128_digest(row.tobytes(), seed=band) for band, row in enumerate(matrix)]


def signature(
  text: str, *, bands: int = 14, rows: int = 8, ngram: int = 5, hash_name: str = 'fast',
  language: str = 'en',
) -> np.ndarray:
  """The MinHash signature of `text`: uint64 [bands, rows], or [0, rows] if it is too short.

  h(x) = (a x + b) mod 2^64 mod (2^61 - 1) as in datatrove (dedup/minhash.py), the product wrapping,
  and the minimum over the shingles. Two texts whose sets of shingles have Jaccard similarity s
  share a band with probability 1 - (1 - s^rows)^bands: at 14 x 8, 0.56 for s = 0.7, 0.92 for 0.8,
  0.9996 for 0.9.

  Args:
    text: any text. One with fewer than `ngram` words has no shingles and so no signature.
    bands: number of bands.
    rows: hashes per band.
    ngram: words per shingle.
    hash_name: 'fast', our own shingle hash, made from one hash per word. Or parity: signatures
      equal to datatrove's with 'xxh64' (FineWeb-2, FinePDFs) or 'sha1' (FineWeb). Signatures of
      different hashes cannot be compared.
    language: whose words make the shingles, in parity. 'fast' takes the strings between blanks
      (and parts of those in scripts without).
  """
  x = shingles(text, ngram, hash_name, language)
  if not len(x):
    return np.empty((0, rows), np.uint64)
  a, b = _permutations(bands * rows)
  # The residue modulo 2^61 - 1 is the low 61 bits plus the high three (h < 2^64): it is smallest
  # where the low bits are, but for ties within 7 of 2^61, which no corpus will see. Times eight,
  # the low bits alone are left, and one multiplication and addition make them.
  a8, b8 = a << np.uint64(3), b << np.uint64(3)

  def smallest(x):
    low = a8 * x
    low += b8
    return low.argmin(axis=1)

  # A block of 112 x 512 stays in the cache.
  blocks = [x[start:start + 512] for start in range(0, len(x), 512)]
  best = np.stack([block[smallest(block)] for block in blocks], axis=1)   # [bands * rows, blocks]
  if len(blocks) > 1:
    best = np.take_along_axis(best, smallest(best)[:, None], 1)
  return ((a * best + b) % _MERSENNE).reshape(bands, rows)

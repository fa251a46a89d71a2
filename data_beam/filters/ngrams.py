"""What the rules count in a text, each thing at most once: words, lines, repeated n-grams."""

import functools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from data_beam.text import lexicon


class Stats:
  """What the rules ask about a text in a language, each part computed at most once."""

  def __init__(self, text: str, language: str):
    self.text = text
    self.lexicon = lexicon.lexicon(language)

  @functools.cached_property
  def tokens(self) -> np.ndarray:
    """The words, links and punctuation marks, by their places in the lexicon: int64 [tokens]."""
    return self.lexicon.read(self.text)

  @functools.cached_property
  def size(self) -> np.ndarray:
    """Characters of each token: int32."""
    tokens = self.tokens   # first, here as below: reading may lengthen the lexicon's arrays
    return self.lexicon.size[tokens]

  @functools.cached_property
  def spelling(self) -> np.ndarray:
    """A hash of each token: uint64."""
    tokens = self.tokens
    return self.lexicon.spelling[tokens]

  @functools.cached_property
  def wordlike(self) -> np.ndarray:
    """Whether a token is a word, and not all punctuation: bool."""
    tokens = self.tokens
    return self.lexicon.wordlike[tokens]

  @functools.cached_property
  def word_stats(self) -> tuple[int, float]:
    """Number and mean length of the words."""
    number = int(np.count_nonzero(self.wordlike))
    return number, float(self.size.sum(where=self.wordlike)) / max(1, number)

  @functools.cached_property
  def different(self) -> int:
    """Number of different words."""
    return len(np.unique(self.spelling[self.wordlike]))

  @functools.cached_property
  def alphabetic(self) -> int:
    """Number of tokens that hold a letter."""
    tokens = self.tokens
    return int(np.count_nonzero(self.lexicon.alphabetic[tokens]))

  def distinct(self, vocabulary: frozenset[str], enough: float = math.inf) -> int:
    """How many words of a vocabulary occur, `enough` at most."""
    count = 0
    for spelling in lexicon.spellings(vocabulary):
      count += bool((self.spelling == spelling).any())
      if count >= enough:
        break
    return count

  @functools.cached_property
  def lines(self) -> list[str]:
    """Lines of the text that are not blank."""
    return [line for line in self.text.split('\n') if line and not line.isspace()]

  @functools.cached_property
  def ngrams(self) -> 'NGrams':
    """Of the text's tokens."""
    return NGrams(self.spelling, lexicon.powers(self.size), self.size)


@functools.lru_cache(maxsize=4)
def stats(text: str, language: str = 'en') -> Stats:
  """The Stats of a text; the same object while the rules of one document run."""
  return Stats(text, language)


class NGrams:
  """Repeated n-grams of a word sequence, found by hash rather than by joined strings.

  The hash of a string is a polynomial in its characters modulo 2^64, so that of a joined n-gram
  follows from those of its words.

  Args:
    spelling: uint64 [words], the hash of each word.
    power: uint64 [words], the polynomial's base to the power of the word's length.
    size: int [words], characters of each.
  """

  def __init__(self, spelling: np.ndarray, power: np.ndarray, size: np.ndarray):
    self.joined = {1: (spelling, power)}
    self.spaced = {1: spelling}
    self.ends = np.zeros(len(size) + 1, np.int64)   # characters before each word
    np.cumsum(size, out=self.ends[1:])
    self.again: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    self.most = len(spelling)   # no n-gram tried so far, nor a longer one, is more frequent

  def _joined(self, n: int) -> tuple[np.ndarray, np.ndarray]:
    """One hash per n-gram joined without spaces, and the base to its length: uint64 [words-n+1]."""
    if n not in self.joined:
      head = n // 2
      (a, p), (b, q) = self._joined(head), self._joined(n - head)
      b, q = b[head:], q[head:]
      a, p = a[:len(b)], p[:len(b)]
      self.joined[n] = (a + p * b, p * q)
    return self.joined[n]

  def _spaced(self, n: int) -> np.ndarray:
    """One hash per n-gram that tells where its words end: uint64 [words - n + 1]."""
    if n not in self.spaced:
      shorter = self._spaced(n - 1)[:-1] * np.uint64(0xD1342543DE82EF95)
      self.spaced[n] = shorter + self.spaced[1][n - 1:]
    return self.spaced[n]

  def longest(self, n: int) -> int:
    """Characters of the longest n-gram, joined without spaces."""
    return int((self.ends[n:] - self.ends[:-n]).max()) if n < len(self.ends) else 0

  def top(self, n: int) -> int:
    """Characters of the most common n-gram, joined by spaces, times its occurrences; of equally
    common ones the first."""
    hashes = self._spaced(n)
    if not len(hashes):
      return 0
    ordered = np.sort(hashes)
    last = np.flatnonzero(ordered[1:] != ordered[:-1])   # the last of each run of equal ones
    last = np.append(last, len(ordered) - 1)
    counts = last.copy()
    counts[0] += 1
    counts[1:] -= last[:-1]
    most = self.most = int(counts.max())
    at = 0
    if most > 1:
      common = ordered[last[counts == most]]
      at = int((hashes == common[0] if len(common) == 1 else np.isin(hashes, common)).argmax())
    return int(self.ends[at + n] - self.ends[at] + n - 1) * most

  def top_exceeds(self, n: int, characters: float) -> bool:
    """Whether `top(n)` is more; ask for smaller n first, which often settles it."""
    longest = self.longest(n) + n - 1
    if longest * self.most <= characters:
      return False
    # No n-gram is more frequent than all those of one slot: cheaper than to count each.
    slots = np.bincount(lexicon.slots(self._spaced(n), 10), minlength=1)
    self.most = min(self.most, int(slots.max()))
    return longest * self.most > characters and self.top(n) > characters

  def _again(self, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Where n-grams start that occur more than once, and where those that occurred before: int64,
    each sorted. Only places of smaller n, if asked for before, are looked at."""
    if n not in self.again:
      hashes = self._joined(n)[0]
      shorter = self.again.get(n - 1)
      places = _perhaps_again(hashes) if shorter is None else shorter[0]
      places = places[:places.searchsorted(len(hashes))]
      order = places[hashes[places].argsort(kind='stable')]
      ordered = hashes[order]
      same = ordered[1:] == ordered[:-1]
      again = np.zeros(len(hashes), bool)  # marks are cheaper than to sort
      again[order[1:][same]] = True
      later = again.nonzero()[0]
      again[order[:-1][same]] = True
      self.again[n] = again.nonzero()[0], later
    return self.again[n]

  def covers(self, n: int, characters: float) -> bool:
    """Whether all words inside an n-gram seen before have more characters. If not, neither has
    `duplicated(n)`, nor `duplicated(m)` for any larger m, whose repeats consist of repeats of n."""
    _, later = self._again(n)
    if len(later) * self.longest(n) <= characters:
      return False
    inside = np.zeros(len(self.spaced[1]), bool)
    for i in range(n):
      inside[later + i] = True
    return int((self.ends[1:] - self.ends[:-1])[inside].sum()) > characters

  def duplicated(self, n: int) -> int:
    """Characters in repeated n-grams, scanned greedily without overlap as datatrove does."""
    places, _ = self._again(n)
    hashes = self._joined(n)[0][places].tolist()
    sizes = (self.ends[places + n] - self.ends[places]).tolist()
    seen, done, total = set(), 0, 0
    for place, value, size in zip(places.tolist(), hashes, sizes, strict=True):
      if place < done:
        continue
      if value in seen:
        total += size
        done = place + n
      else:
        seen.add(value)
    return total


def _perhaps_again(hashes: np.ndarray) -> np.ndarray:
  """Places of all hashes that occur more than once, and of few others: int64, sorted."""
  places, bits = np.arange(len(hashes)), (8 * len(hashes)).bit_length()
  # Of several that share a slot one stays there; what finds another in its own is not alone.
  slots, table = lexicon.slots(hashes, bits), np.empty(1 << bits, np.int32)
  table[slots] = places
  there = table[slots]
  shared = there != places
  shared[there[shared]] = True
  return shared.nonzero()[0]


def duplicates(parts: Sequence[str]) -> tuple[int, int]:
  """How many of the parts repeat an earlier one, and their characters."""
  if len(set(parts)) == len(parts):
    return 0, 0
  counts = Counter(parts)
  return sum(n - 1 for n in counts.values()), sum(len(p) * (n - 1) for p, n in counts.items())

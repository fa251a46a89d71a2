"""What filters ask about a text: its pieces are looked up at once, and one pass serves all."""

import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from data_beam.text.words import SYMBOLS, joined, spelt, splitter

_BASE = 0x9E3779B97F4A7C15   # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 1 << 64)
_MIX = np.uint64(0xD6E8FEB86659FD93)   # odd: carries low bits to the high ones, which make a slot
_MOST = 500_000              # pieces remembered
_BLOCK = 1 << 16             # characters read at once
_SPACE = re.compile(r'\s')
_HIGH_BLANKS = np.array([i >= 0x80 and chr(i).isspace() for i in range(0x3002)])


@functools.cache
def _powers(base: int, bits: int) -> np.ndarray:
  """The powers of a base modulo 2^64, 2^bits of them: uint64."""
  if not bits:
    return np.ones(1, np.uint64)
  half = _powers(base, bits - 1)
  return np.concatenate((half, half * np.uint64(pow(base, len(half), 1 << 64))))


@functools.cache
def spellings(vocabulary: Iterable[str]) -> list[np.uint64]:
  """What Lexicon has as the spelling of words."""
  texts = map(_points, vocabulary)
  return [_spellings(points, np.array([0]), np.array([len(points)]))[0] for points in texts]


def powers(sizes: np.ndarray) -> np.ndarray:
  """The base of spellings to the power of each size: uint64."""
  return _powers(_BASE, int(sizes.max(initial=0)).bit_length())[sizes]


def slots(hashes: np.ndarray, bits: int) -> np.ndarray:
  """A number below 2^bits of each hash, bits not 0: int64."""
  return (hashes * _MIX >> np.uint64(64 - bits)).view(np.int64)


def _points(text: str) -> np.ndarray:
  """The characters' numbers, as bytes where they fit."""
  if text.isascii():
    return np.frombuffer(text.encode(), np.uint8)
  return np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), np.uint32)


def _spellings(points: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
  """A hash of each slice of a text, the polynomial in its characters modulo 2^64: uint64. From the
  sums of all characters up to each: that of a slice is a difference, brought to its first place."""
  bits = len(points).bit_length()
  sums = np.zeros(len(points) + 1, np.uint64)
  np.multiply(points, _powers(_BASE, bits)[:len(points)], out=sums[1:], dtype=np.uint64)
  np.cumsum(sums, out=sums)
  return (sums[ends] - sums[starts]) * _powers(_INVERSE, bits)[starts]


def _runs(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Where the pieces of a text start and end, as str.split has them."""
  ascii_ = points.dtype == np.uint8
  low = points if ascii_ else np.minimum(points, 0x7f).astype(np.uint8)
  blank = (low - np.uint8(9) < 5) | (low - np.uint8(28) < 5)    # a difference wraps around below 0
  if not ascii_:
    high = np.flatnonzero(points > 0x7f)
    blank[high] = _HIGH_BLANKS[np.minimum(points[high], len(_HIGH_BLANKS) - 1)]
  inside = np.zeros(len(points) + 2, bool)
  np.logical_not(blank, out=inside[1:-1])
  places = np.flatnonzero(inside[1:] != inside[:-1])
  return places[::2], places[1::2]


def _blocks(text: str) -> Iterator[str]:
  """The text in parts of about _BLOCK characters, cut at white space."""
  start = 0
  while len(text) - start > _BLOCK and (found := _SPACE.search(text, start + _BLOCK)):
    yield text[start:found.start()]
    start = found.start()
  yield text[start:]


class Lexicon:
  """What each piece of a language's text met so far consists of, worked out once.

  Pieces are known by their hash, and a text's are looked up all at once, so that reading is
  arithmetic on arrays; a string is made of a new piece alone. Two pieces of one hash would be taken
  for each other: by chance one pair in 1e8 runs, on purpose in a page that hurts itself.

  `read` gives the *tokens* of a text (words, links, punctuation marks) as places in these arrays:
  `spelling` uint64 (a hash of the word, see ngrams.NGrams), `size` int32 (characters), `alphabetic`
  and `wordlike` bool (some character is a letter; some is no punctuation).
  """

  def __init__(self, language: str):
    self.language = language
    self.cut = splitter(language)
    self.spelling, self.size = np.zeros(0, np.uint64), np.zeros(0, np.int32)
    self.alphabetic, self.wordlike = np.zeros(0, bool), np.zeros(0, bool)
    # Piece i consists of the tokens starts[i] … starts[i] + counts[i] - 1. Piece 0 is none.
    self.starts, self.counts = np.zeros(1, np.int64), np.zeros(1, np.int64)
    # A table of hashes with open addressing: the piece's number, 0 where a slot is free.
    self.keys, self.values = np.zeros(1 << 12, np.uint64), np.zeros(1 << 12, np.int32)

  def read(self, text: str) -> np.ndarray:
    """Places of a text's tokens, in order: int64 [tokens]."""
    text = joined(text, self.language)
    if len(text) > _BLOCK:
      return np.concatenate([self._read(block) for block in _blocks(text)])
    return self._read(text)

  def _read(self, text: str) -> np.ndarray:
    points = _points(text)
    starts, ends = _runs(points)
    hashes = _spellings(points, starts, ends) + (ends - starts).view(np.uint64) * _MIX   # NUL is 0
    found = self._find(hashes)
    new = np.flatnonzero(found == 0)
    if len(new):
      keys, first, back = np.unique(hashes[new], return_index=True, return_inverse=True)
      at = new[first]
      found[new] = len(self.counts) + back
      self._learn([text[i:j] for i, j in zip(starts[at].tolist(), ends[at].tolist(), strict=True)],
                  keys)
    counts = self.counts[found]
    behind = np.cumsum(counts)
    total = int(behind[-1]) if len(behind) else 0
    # Token j of the text lies as far behind the first of its piece as j behind that one's.
    return np.repeat(self.starts[found] - behind + counts, counts) + np.arange(total)

  def _slots(self, hashes: np.ndarray) -> np.ndarray:
    """Where in the table a hash is looked for first."""
    return slots(hashes, len(self.keys).bit_length() - 1)

  def _find(self, hashes: np.ndarray) -> np.ndarray:
    """The numbers of pieces, 0 of unknown ones."""
    slots, last = self._slots(hashes), len(self.keys) - 1
    found = self.values[slots]
    others = np.flatnonzero((self.keys[slots] != hashes) & (found > 0))
    slots = slots[others]
    while len(others):    # another piece is there: it may be in the next slot
      slots = slots + 1 & last
      found[others] = numbers = self.values[slots]
      wrong = (self.keys[slots] != hashes[others]) & (numbers > 0)
      others, slots = others[wrong], slots[wrong]
    return found

  def _learn(self, pieces: Sequence[str], hashes: np.ndarray) -> None:
    """Remembers new pieces, which get the next numbers."""
    words = list(map(self.cut, pieces))
    tokens = list(itertools.chain.from_iterable(words))
    counts = np.array(list(map(len, words)))
    before, numbers = len(self.spelling), np.arange(len(pieces), dtype=np.int32) + len(self.counts)
    self.starts = _append(self.starts, before + np.cumsum(counts) - counts)
    self.counts = _append(self.counts, counts)
    sizes = np.fromiter(map(len, tokens), np.int64, len(tokens))
    behind = np.cumsum(sizes)
    self.size = _append(self.size, sizes)
    self.spelling = _append(self.spelling, _spellings(
      _points(''.join(tokens)), behind - sizes, behind))
    letters = list(map(str.isalpha, tokens))
    self.alphabetic = _append(self.alphabetic, [
      all_ or any(map(str.isalpha, word)) for word, all_ in zip(tokens, letters, strict=True)])
    self.wordlike = _append(self.wordlike, [    # no symbol is a letter
      all_ or not SYMBOLS.issuperset(word) for word, all_ in zip(tokens, letters, strict=True)])
    if 4 * len(self.counts) > len(self.keys):
      old, size = np.flatnonzero(self.values), 4 * len(self.keys)
      keys, values = self.keys[old], self.values[old]
      self.keys, self.values = np.zeros(size, np.uint64), np.zeros(size, np.int32)
      self._place(keys, values)
    self._place(hashes, numbers)

  def _place(self, hashes: np.ndarray, numbers: np.ndarray) -> None:
    """Puts pieces into the table, each into the first free slot from its own on."""
    slots, last = self._slots(hashes), len(self.keys) - 1
    while len(slots):
      free = self.values[slots] == 0
      self.values[slots[free]] = numbers[free]     # of several that want a slot one gets it
      got = self.values[slots] == numbers
      self.keys[slots[got]] = hashes[got]
      hashes, numbers, slots = hashes[~got], numbers[~got], slots[~got] + 1 & last

  @property
  def full(self) -> bool:
    """So much is remembered that it is better to begin anew: about 50 MB."""
    return len(self.counts) > _MOST


def _append(array: np.ndarray, values: Sequence) -> np.ndarray:
  """The array with values after its own. Capacity grows by doubling: the result is a view of a
  larger array, whose free end the next call fills."""
  size, whole = len(array), array if array.base is None else array.base
  if size + len(values) > len(whole):
    whole = np.empty(max(1024, 2 * (size + len(values))), array.dtype)
    whole[:size] = array
  whole[size:size + len(values)] = values
  return whole[:size + len(values)]


_lexicons: dict[str, Lexicon] = {}


def lexicon(language: str = 'en') -> Lexicon:
  """The Lexicon of a language; a full one is left to those who hold it, and begun anew."""
  language = spelt(language)
  found = _lexicons.get(language)
  if found is None or found.full:
    found = _lexicons[language] = Lexicon(language)
  return found

"""Token ids to text as they come, and stops at given strings."""

from collections.abc import Callable, Iterable, Iterator, Sequence


class Text:
  """Text of one row as its tokens come, up to a stop string.

  Held back is what may still change: a character whose last bytes are to come, and an ending with
  which a stop string may begin.

  Args:
    decode: token ids → text.
    stops: strings that end the text; they are not part of it.
    context: tokens before the first, such as the prompt: some tokenizers drop a leading space
      without them.
  """

  def __init__(
    self, decode: Callable[[list[int]], str], stops: Sequence[str] = (), context: Iterable[int] = ()
  ):
    if '' in stops:
      raise ValueError('an empty stop string would stop everywhere: leave it out')
    self._decode, self._stops = decode, tuple(stops)
    self._ids = list(context)[-8:]
    self._from, self._done = 0, len(self._ids)  # text of ids[_from:_done] is out already
    self._pending = ''
    self.stopped = False

  def push(self, token: int) -> str:
    """Takes the next token; returns the text that is now certain, if any."""
    return self.extend([token])

  def extend(self, tokens: Iterable[int]) -> str:
    """Takes the next tokens, with one look for all of them."""
    self._ids += tokens
    return self._take(last=False)

  def finish(self) -> str:
    """The text that was held back, when no token comes any more."""
    return self._take(last=True)

  def _take(self, last):
    if self.stopped:
      return ''
    # Decoded from a few tokens back, as what a token means in text depends on those before it.
    before, after = self._decode(self._ids[self._from : self._done]), self._decode(
      self._ids[self._from :])
    if last or not after.endswith('\ufffd'):
      self._pending += after[len(before) :]
      self._from, self._done = self._done, len(self._ids)
    found = [i for i in (self._pending.find(stop) for stop in self._stops) if i >= 0]
    if found:
      self.stopped = True
      keep = min(found)
    elif last:
      keep = len(self._pending)
    else:
      keep = len(self._pending) - max((_overlap(self._pending, s) for s in self._stops), default=0)
    text, self._pending = self._pending[:keep], self._pending[keep:]
    return text


def stream_text(steps: Iterable[list[int | None]], rows: Sequence[Text]) -> Iterator[list[str]]:
  """The new text of each row, step by step of `stream`, until all have ended or stopped."""
  for tokens in steps:
    yield [
      '' if token is None else row.push(token) for token, row in zip(tokens, rows, strict=True)
    ]
    if all(row.stopped or token is None for row, token in zip(rows, tokens, strict=True)):
      break
  yield [row.finish() for row in rows]


def _overlap(text, stop):
  """Length of the longest end of `text` that `stop` begins with."""
  return next(n for n in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:n]))

"""Many prompts through our decoder at once: what a model writes after each."""

import concurrent.futures
import contextlib
import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smoljax import sharding
from smoljax.checkpoints import load
from smoljax.data.tokenizer import Tokenizer
from smoljax.inference import cache, generate
from smoljax.inference.sampling import GREEDY, Sampling
from smoljax.inference.text import Text

_MEMORY = 10 << 30  # bytes, of a device that does not say how many it has
# Tokens of chat models that are read in their text; of some tokenizers they are control tokens,
# which decode to nothing.
_MARKS = ('<think>', '</think>', '<tool_call>', '</tool_call>')


def decoder(text: Tokenizer) -> Callable[[Sequence[int]], str]:
  """`text.decode`, with the marks of thoughts and calls spelt out."""
  marks = {i: mark for mark in _MARKS if (i := text.control_id(mark)) is not None}
  if not marks:
    return text.decode

  def decode(ids: Sequence[int]) -> str:
    pieces, run = [], []
    for token in ids:
      if token in marks:
        pieces += [text.decode(run), marks[token]]
        run = []
      else:
        run.append(token)
    return ''.join([*pieces, text.decode(run)])
  return decode


class Written(NamedTuple):
  """What a model wrote after one prompt."""

  ids: list[int]  # without what ended it
  text: str  # up to a stop string
  ended: bool  # by a token that ends a text, or a stop string; not for want of room


class Writer:
  """A model that is ready to write, and how many prompts it takes at once.

  Prompts are taken together with others of like length, longest first. To what length a prompt is
  padded, and how large its cache is, is decided by the prompt and its room alone, and there is
  never a batch of one (XLA computes the products of one row by another method): in float32 what is
  written depends neither on the batch size nor on the order. Both are rounded up far, and what is
  left of a batch is filled up: where questions are few, to compile programs of another shape takes
  longer than to compute what is not looked at. Of long prompts fewer are taken: their caches must
  fit into two fifths of the device's memory, also where several threads write at once.
  """

  def __init__(self, model: load.Model, batch_size: int = 32):
    self.model, self.batch_size = model, batch_size
    self.decode = decoder(model.tokenizer)
    params = cache.prepare(model.config, model.params)
    # Each of several GPUs takes batches of its own.
    self._params = [jax.device_put(params, device) for device in sharding.workers()]
    config, stats = model.config, jax.local_devices()[0].memory_stats() or {}
    self._memory = 2 * stats.get('bytes_limit', _MEMORY) // 5
    self._used = [0] * len(self._params)  # bytes of caches on each device
    self._freed = threading.Condition()
    self._compiled: set[tuple] = set()
    self._token_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * jnp.dtype(
      config.dtype).itemsize
    # One row may have less room than another: none is looked at beyond its own.
    self._config = dataclasses.replace(
      model.config, max_seq_len=2 * model.config.max_seq_len + cache.BUCKET)

  def write(
    self,
    prompts: Sequence[Sequence[int]],
    rooms: Sequence[int],
    *,
    seeds: Sequence[int],
    eos_ids: Sequence[int],
    sampling: Sampling = GREEDY,
    stops: Sequence[str] = (),
  ) -> Iterator[tuple[int, Written]]:
    """Yields the place of each prompt and what was written after it, as batches are done.

    Args:
      prompts: token ids.
      rooms: how many tokens may follow each, 1 or more.
      seeds: of each prompt's draws.
      eos_ids: tokens that end a text.
      stops: strings before which it ends.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for i, (prompt, room) in enumerate(zip(prompts, rooms, strict=True)):
      key = _rounded(len(prompt)), _rounded(room)
      groups.setdefault(key, []).append(i)
    batches: list[tuple[list[int], int, int, int]] = []  # places, rows, tokens of prompt, of room
    for (length, most), places in sorted(groups.items(), reverse=True):
      fit = self._memory // (self._token_bytes * (length + most))
      largest = max(2, min(self.batch_size, _power_of_two(fit)))
      for start in range(0, len(places), largest):
        rows = places[start : start + largest]
        batches.append((rows, min(largest, _filled(len(rows))), length, most))

    def answers(params, rows, size, length, most):
      with self._memory_of(params, size * (length + most) * self._token_bytes):
        return answer(params, rows, size, length, most)

    def answer(params, rows, size, length, most):
      filled = [*rows, *rows[-1:] * (size - len(rows))]
      prompts_BT, mask = np.zeros((size, length), int), np.zeros((size, length), bool)
      for row, i in enumerate(filled):
        prompts_BT[row, : len(prompts[i])], mask[row, : len(prompts[i])] = prompts[i], True
      how = dict(mask=mask, max_new_tokens=most, sampling=sampling, eos_id=tuple(eos_ids))
      if cache.in_turn():
        self._compile(params, prompts_BT, how)
      steps = generate.stream(
        self._config, params, prompts_BT, seed=[seeds[i] for i in filled], **how)
      written = [_Row(self.decode, prompts[i], rooms[i], stops) for i in rows]
      for step in steps:
        for row, token in zip(written, step, strict=False):
          row.push(token)
        if all(row.done for row in written):
          break
      for row in written:  # a stream stops when its last rows end, without a word of them
        row.push(None)
      return [(i, row.result()) for i, row in zip(rows, written, strict=True)]

    yield from _spread(answers, self._params, batches)

  def _compile(self, params, prompts_BT, how):
    """Compiles for a shape, once a device: other threads may compile or call others meanwhile."""
    device, = jax.tree.leaves(params)[0].devices()
    what = device, prompts_BT.shape, *(how[k] for k in ('max_new_tokens', 'sampling', 'eos_id'))
    if what not in self._compiled:
      for _ in generate.rehearse(self._config, params, prompts_BT, device=device, **how):
        pass
      self._compiled.add(what)

  @contextlib.contextmanager
  def _memory_of(self, params, size):
    """Waits until so many bytes of caches are free where the parameters are, or all."""
    used, here = self._used, next(i for i, mine in enumerate(self._params) if mine is params)
    with self._freed:
      self._freed.wait_for(lambda: not used[here] or used[here] + size <= self._memory)
      used[here] += size
    try:
      yield
    finally:
      with self._freed:
        used[here] -= size
        self._freed.notify_all()


def _spread(work: Callable, params: Sequence[Any], batches: Sequence[tuple]) -> Iterator[Any]:
  """What `work(params, *batch)` gives, batch by batch; each device's parameters have a thread."""
  if len(params) == 1:
    for batch in batches:
      yield from work(*params, *batch)
    return
  free: queue.SimpleQueue = queue.SimpleQueue()
  for of_one in params:
    free.put(of_one)

  def run(batch):
    mine = free.get()
    try:
      with jax.default_device(*jax.tree.leaves(mine)[0].devices()):
        return work(mine, *batch)
    finally:
      free.put(mine)

  with concurrent.futures.ThreadPoolExecutor(len(params)) as pool:
    for results in pool.map(run, batches):
      yield from results


def _rounded(n: int) -> int:
  """Tokens that n are padded to: few lengths, and less is lost of long ones."""
  return max(cache.BUCKET, 1 << (n - 1).bit_length()) if n <= 1024 else cache.bucket_length(n)


def _filled(n: int) -> int:
  """Rows of a batch for n: 2, 8, 32, 128, …"""
  rows = 2
  while rows < n:
    rows *= 4
  return rows


def _power_of_two(n: int) -> int:
  """The largest one that is at most n; 1 at least."""
  return 1 << max(0, n.bit_length() - 1)


class _Row:
  """One text as it comes; it is decoded on the way only where a stop string may end it."""

  def __init__(self, decode, prompt, room, stops):
    self._text, self._room, self._watched = Text(decode, stops, prompt), room, bool(stops)
    self._ids, self._pieces, self.done, self._ended = [], [], False, False

  def push(self, token):
    if self.done:
      return
    if token is None:
      self.done = self._ended = True
      return
    self._ids.append(token)
    if self._watched:
      self._pieces.append(self._text.push(token))
    self._ended = self._text.stopped
    self.done = self._ended or len(self._ids) >= self._room

  def result(self):
    if not self._watched:
      # (One look a token would keep the device waiting.)
      self._pieces = [self._text.extend(self._ids)]
    text = ''.join(self._pieces) + self._text.finish()
    return Written(self._ids, text, self._ended or self._text.stopped)

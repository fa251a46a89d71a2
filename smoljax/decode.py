"""Generation: a KV cache, prefill in chunks, blocks of steps on the device, sampling, text.

Inside, prompts of different lengths are padded on the left, so that all rows end at the same
index and a step writes one slot, the same in every row: in place and without a scatter. A token's
position is its index less the padding of its row; padding has negative positions, which nothing
sees. Index i lies in slot i % R of a layer with R slots: layers with a sliding window have as many
slots as the window is long (a ring that forgets what can no longer be seen), the others one for
every index.

Runs on one device; parameters that live on a mesh are brought to it first.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smoljax import model
from smoljax.attention import attention

BLOCK = 8  # tokens per row computed between two looks of the host
BUCKET = 64  # lengths are rounded up to a multiple of this, or of an eighth of a power of two
PREFILL_BYTES = 1 << 29  # attention logits (fp32) that may exist at once while a prompt is read
HIDDEN = 1 << 30  # position of slots that hold nothing: in every query's future

Cache = list[tuple[jax.Array, jax.Array]]  # per layer (k_BKRH, v_BKRH) in the compute dtype


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the next token is drawn, with the meaning and in the order of transformers' processors.

  Raises ValueError, naming the field, for values out of range.
  """

  temperature: float = 0.0  # logits are divided by it; 0 = take the likeliest token
  top_k: int = 0  # keep the k likeliest; 0 = all
  top_p: float = 1.0  # then the fewest that hold this probability (arXiv:1904.09751)
  min_p: float = 0.0  # then those with this share of the likeliest's probability (arXiv:2407.01082)
  repetition_penalty: float = 1.0  # first of all: logits of tokens already there, the prompt's
                                   # included, are divided (if > 0) or multiplied by it (CTRL,
                                   # arXiv:1909.05858)

  def __post_init__(self):
    for name, allowed, ok in (
      ('temperature', '0 (greedy) or more', 0 <= self.temperature < float('inf')),
      ('top_k', '0 (off) or more', self.top_k >= 0),
      ('top_p', 'in (0, 1]', 0 < self.top_p <= 1),
      ('min_p', 'in [0, 1]', 0 <= self.min_p <= 1),
      ('repetition_penalty', 'positive (1 = off)', 0 < self.repetition_penalty < float('inf')),
    ):
      if not ok:
        raise ValueError(f'{name}={getattr(self, name)}: must be {allowed}')


GREEDY = Sampling()


def prepare(config: model.ModelConfig, params: model.Params) -> model.Params:
  """Parameters as generation uses them, for many calls: see `model.unstack`. Idempotent."""
  if isinstance(params['blocks'], list):
    return params
  with _no_mesh():
    return _unstack(config)(jax.tree.map(_on_one_device, params))


def generate(
  config: model.ModelConfig, params: model.Params, prompts: Sequence[Sequence[int]], **settings: Any
) -> list[list[int]]:
  """`stream`, collected: the new tokens of each row, without the end token that stopped it."""
  results: list[list[int]] = [[] for _ in range(len(prompts))]
  for tokens in stream(config, params, prompts, **settings):
    for result, token in zip(results, tokens, strict=True):
      if token is not None:
        result.append(token)
  return results


def stream(
  config: model.ModelConfig,
  params: model.Params,
  prompts: Sequence[Sequence[int]],
  *,
  mask: np.ndarray | None = None,
  max_new_tokens: int,
  sampling: Sampling = GREEDY,
  eos_id: int | Sequence[int] | None = None,
  seed: int = 0,
  block: int = BLOCK,
) -> Iterator[list[int | None]]:
  """Continues the prompts, one token per row at a time: None where a row has ended.

  A row's tokens depend on its prompt, its place in the batch and the seed, not on other rows.

  Args:
    params: as of `model.init`, or of `prepare`, which saves the work of preparing them each time.
    prompts: token ids, lists of any lengths; or [B, T] together with `mask`.
    mask: [B, T], true where `prompts` holds a token and not padding, on whichever side.
    max_new_tokens: per row.
    eos_id: token(s) that end a row; they are not given out.
    block: tokens computed on the device at once; they arrive together.
  Raises:
    ValueError: an empty prompt, a token outside the vocabulary, a length beyond
      `config.max_seq_len`.
  """
  if block < 1:
    raise ValueError(f'block={block}: at least one token is computed at a time')
  rows = _rows(config, prompts, mask, max_new_tokens)
  if not rows or not max_new_tokens:
    return iter(())
  ends = () if eos_id is None else (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)
  return _stream(config, params, rows, max_new_tokens, sampling, ends, seed, block)


def _stream(config, params, rows, max_new_tokens, sampling, ends, seed, block):
  params = prepare(config, params)
  block = min(block, max_new_tokens)
  num_blocks = -(-max_new_tokens // block)
  with _no_mesh():
    logits_BV, cache, offset_B, index = prefill(config, params, rows, num_blocks * block)
    seen_BV = None
    if sampling.repetition_penalty != 1:
      seen_BV = np.zeros(logits_BV.shape, bool)
      for seen_V, row in zip(seen_BV, rows, strict=True):
        seen_V[row] = True
      seen_BV = jnp.asarray(seen_BV)
    ended_B = jnp.zeros(len(rows), bool)
    state = State(logits_BV, cache, jnp.int32(index), jnp.int32(0), ended_B, seen_BV)
    key = jax.random.key(seed)
    run = _block(config, sampling, ends, block)
    tokens_BJ, state = run(params, offset_B, key, state)
  left = max_new_tokens
  for i in range(num_blocks):
    current_BJ = tokens_BJ
    if i + 1 < num_blocks:  # dispatched before the current tokens are waited for
      with _no_mesh():
        tokens_BJ, state = run(params, offset_B, key, state)
    for token_B in np.asarray(current_BJ).T[:left].tolist():
      if all(token < 0 for token in token_B):
        return
      yield [None if token < 0 else token for token in token_B]
    left -= block


# -------------------------------------------------------------------------------------- sampling


def adjust(
  logits_BV: jax.Array, sampling: Sampling, seen_BV: jax.Array | None = None
) -> jax.Array:
  """Logits (fp32) to draw from: penalised, divided, and -inf where `sampling` leaves a token out.

  `seen_BV` says which tokens a row holds already; it is needed for the repetition penalty only.
  """
  if sampling.repetition_penalty != 1:
    penalty = sampling.repetition_penalty
    penalised_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    logits_BV = jnp.where(seen_BV, penalised_BV, logits_BV)
  if sampling.temperature == 0:
    return logits_BV
  logits_BV = logits_BV / sampling.temperature
  if 0 < sampling.top_k < logits_BV.shape[-1]:
    likeliest_BV = _likeliest(logits_BV, jnp.ones_like(logits_BV), sampling.top_k)
    logits_BV = jnp.where(likeliest_BV, logits_BV, -jnp.inf)
  if sampling.top_p < 1:
    likeliest_BV = _likeliest(logits_BV, jax.nn.softmax(logits_BV), sampling.top_p)
    logits_BV = jnp.where(likeliest_BV, logits_BV, -jnp.inf)
  if sampling.min_p > 0:
    highest_B1 = logits_BV.max(axis=-1, keepdims=True)
    logits_BV = jnp.where(
      logits_BV < highest_B1 + np.log(sampling.min_p), -jnp.inf, logits_BV)
  return logits_BV


def _likeliest(logits_BV, weight_BV, enough):
  """Where the fewest largest logits (and their equals) are whose weights sum to `enough`.

  The smallest of them is found bit by bit: 32 sums, many times faster than a sort of 128k.
  """
  bits_BV = jax.lax.bitcast_convert_type(logits_BV, jnp.uint32)
  sign = jnp.uint32(1 << 31)
  order_BV = jnp.where(bits_BV >= sign, ~bits_BV, bits_BV | sign)  # as integers, ordered as floats

  def set_bit(i, lowest_B1):
    higher_B1 = lowest_B1 | sign >> i.astype(jnp.uint32)
    sum_B1 = jnp.sum(jnp.where(order_BV >= higher_B1, weight_BV, 0), axis=-1, keepdims=True)
    return jnp.where(sum_B1 >= enough, higher_B1, lowest_B1)

  lowest_B1 = jnp.zeros_like(order_BV[:, :1])
  return order_BV >= jax.lax.fori_loop(0, 32, set_bit, lowest_B1)


def sample(
  keys_B: jax.Array, logits_BV: jax.Array, sampling: Sampling, seen_BV: jax.Array | None = None
) -> jax.Array:
  """One token per row, int32 [B], by the row's own key."""
  logits_BV = adjust(logits_BV, sampling, seen_BV)
  if sampling.temperature == 0:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


# ------------------------------------------------------------------------------- cached forward


def init_cache(config: model.ModelConfig, batch_size: int, num_slots: int) -> Cache:
  """An empty cache for indices below `num_slots` of `batch_size` rows; windowed layers: a ring."""
  shapes = [
    (batch_size, config.num_kv_heads, min(window or num_slots, num_slots), config.head_dim)
    for window in config.windows
  ]
  return [(jnp.zeros(s, config.dtype), jnp.zeros(s, config.dtype)) for s in shapes]


def hidden(
  config: model.ModelConfig,
  params: model.Params,
  tokens_BT: jax.Array,
  offset_B: jax.Array,
  cache: Cache,
  start: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
  """Hidden states (past the final norm) of the next tokens, and the cache with them.

  Args:
    params: of `prepare`.
    tokens_BT: tokens at indices start … start + T - 1. Above T = 1 they may not run past the
      cache's slots (of layers without a window).
    offset_B: int32, the padding on the left of each row.
    start: int32 index of the first token, which must continue what the cache holds; None if it
      holds nothing: then tokens see each other only, as in training.
  """
  T = tokens_BT.shape[1]
  index_T = (0 if start is None else start) + jnp.arange(T, dtype=jnp.int32)
  positions_BT = index_T - offset_B[:, None]
  # Padding is a document of its own, so that whatever it holds stays finite and apart.
  segments_BT = jnp.where(positions_BT < 0, 0, 1)
  positions_BT = jnp.where(positions_BT < 0, index_T, positions_BT)

  def attend(q_BTNH, k_BTKH, v_BTKH, layer, window, cache):
    held = cache[layer]
    new = (k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2))
    write = functools.partial(_write, start=0 if start is None else start, ring=bool(window))
    written = tuple(write(h, n) for h, n in zip(held, new, strict=True))
    cache = [*cache[:layer], written, *cache[layer + 1 :]]
    if start is None:
      out_BTNH, _ = attention(
        q_BTNH, k_BTKH, v_BTKH, q_positions_BT=positions_BT, kv_positions_BS=positions_BT,
        q_segments_BT=segments_BT, kv_segments_BS=segments_BT, window=window, in_order=True,
        softcap=config.attention_softcap,
      )
      return out_BTNH, cache, None
    R = held[0].shape[2]
    if window and T > 1:  # what the chunk pushes out of the ring is still seen by its first tokens
      k_BKSH, v_BKSH = (jnp.concatenate(pair, axis=2) for pair in zip(held, new, strict=True))
      index_S = jnp.concatenate([_held(start - 1, R), index_T])
    else:
      k_BKSH, v_BKSH = written
      index_S = _held(start + T - 1, R)
    kv_positions_BS = index_S - offset_B[:, None]
    hidden_BS = (index_S < 0) | (kv_positions_BS < 0)
    out_BTNH, _ = attention(
      q_BTNH, k_BKSH.swapaxes(1, 2), v_BKSH.swapaxes(1, 2), q_positions_BT=positions_BT,
      kv_positions_BS=jnp.where(hidden_BS, HIDDEN, kv_positions_BS), window=window,
      softcap=config.attention_softcap, implementation='xla',
    )
    return out_BTNH, cache, None

  x_BTD = model.embed(config, params, tokens_BT)
  x_BTD, cache, _ = model.run_blocks(config, params, x_BTD, positions_BT, attend, cache)
  return model.final_norm(config, params, x_BTD), cache


def _held(last, R):
  """index_R: which index each of R slots holds once `last` is written; below 0: none yet."""
  return last - (last - jnp.arange(R, dtype=jnp.int32)) % R


def _write(held_BKRH, new_BKTH, *, start, ring):
  """`held_BKRH` with the keys or values of indices start … start + T - 1 in their slots."""
  R, T = held_BKRH.shape[2], new_BKTH.shape[2]
  if not ring or T == 1:
    return jax.lax.dynamic_update_slice_in_dim(
      held_BKRH, new_BKTH, start % R if ring else start, axis=2)
  place_R = _held(start + T - 1, R) - start  # in `new`; below 0: what is held stays
  chosen_BKRH = jnp.take(new_BKTH, jnp.clip(place_R, 0), axis=2)
  return jnp.where((place_R >= 0)[:, None], chosen_BKRH, held_BKRH)


def prefill(
  config: model.ModelConfig, params: model.Params, rows: Sequence[Sequence[int]], num_new: int
) -> tuple[jax.Array, Cache, jax.Array, int]:
  """Reads the prompts, in chunks if they are long.

  Args:
    params: of `prepare`.
    num_new: tokens that the cache must have room for after the prompts.
  Returns:
    fp32 logits_BV of the first new token, the cache, offset_B and the index of the first new token.
  """
  B, longest = len(rows), max(len(row) for row in rows)
  S = _bucket(_bucket(longest) + num_new)
  # A chunk's queries are taken in 8 parts, each against all keys: [B, N, chunk / 8, S] logits.
  chunk = max(BUCKET, 8 * PREFILL_BYTES // (4 * B * config.num_heads * S))
  chunk = 1 << (chunk.bit_length() - 1)  # few lengths, so that few are compiled
  T = _bucket(longest)
  if chunk < T:
    T = -(-longest // chunk) * chunk
    S = _bucket(T + num_new)
  tokens_BT = np.zeros((B, T), np.int32)
  for tokens_T, row in zip(tokens_BT, rows, strict=True):
    tokens_T[T - len(row) :] = row
  offset_B = jnp.asarray([T - len(row) for row in rows], jnp.int32)
  first, further = _prefill(config)
  cache = init_cache(config, B, S)
  logits_BV, cache = first(params, tokens_BT[:, :chunk], offset_B, cache)
  for start in range(chunk, T, chunk):
    tokens_BC = tokens_BT[:, start : start + chunk]
    logits_BV, cache = further(params, tokens_BC, offset_B, cache, np.int32(start))
  return logits_BV, cache, offset_B, T


class State(NamedTuple):
  """Between two steps of generation; consumed by the block that goes on from it."""

  logits_BV: jax.Array  # fp32, of the next token
  cache: Cache
  index: jax.Array  # int32, of the next token
  step: jax.Array  # int32, tokens made so far
  ended_B: jax.Array  # bool
  seen_BV: jax.Array | None  # bool: tokens each row holds; with a repetition penalty only


@functools.lru_cache(maxsize=16)
def _unstack(config: model.ModelConfig) -> Callable:
  return jax.jit(functools.partial(model.unstack, config))


@functools.lru_cache(maxsize=16)
def _prefill(config: model.ModelConfig) -> tuple[Callable, Callable]:
  """(first, further): the jitted programs of the first chunk and of the others."""
  config = dataclasses.replace(config, remat='none')

  def logits_of_last(params, tokens_BT, offset_B, cache, start=None):
    x_BTD, cache = hidden(config, params, tokens_BT, offset_B, cache, start)
    return model.logits(config, params, x_BTD[:, -1:])[:, 0], cache

  first = jax.jit(
    lambda params, tokens_BT, offset_B, cache: logits_of_last(params, tokens_BT, offset_B, cache),
    donate_argnums=3,
  )
  return first, jax.jit(logits_of_last, donate_argnames='cache')


@functools.lru_cache(maxsize=16)
def _block(
  config: model.ModelConfig, sampling: Sampling, ends: tuple[int, ...], num_steps: int
) -> Callable:
  """The jitted (params, offset_B, key, state) → (tokens_BJ, state) of J = `num_steps` steps.

  Tokens are -1 from a row's end on.
  """
  config = dataclasses.replace(config, remat='none')

  @functools.partial(jax.jit, donate_argnames='state')
  def run(params, offset_B, key, state):
    B, V = state.logits_BV.shape
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(B))

    def step(i, carry):
      tokens_BJ, state = carry
      now_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, state.step)
      token_B = sample(now_B, state.logits_BV, sampling, state.seen_BV)
      ended_B = state.ended_B
      if ends:
        ended_B |= jnp.isin(token_B, jnp.asarray(ends, jnp.int32))
      seen_BV = state.seen_BV
      if seen_BV is not None:
        seen_BV |= token_B[:, None] == jnp.arange(V)
      tokens_BJ = tokens_BJ.at[:, i].set(jnp.where(ended_B, -1, token_B))
      x_B1D, cache = hidden(config, params, token_B[:, None], offset_B, state.cache, state.index)
      logits_BV = model.logits(config, params, x_B1D)[:, 0]
      return tokens_BJ, State(
        logits_BV, cache, state.index + 1, state.step + 1, ended_B, seen_BV)

    # The number of steps is fixed even where all rows end early: were a condition looked at on the
    # way, the host would wait for the device there, and could not prepare the next block meanwhile.
    tokens_BJ = jnp.full((B, num_steps), -1, jnp.int32)
    return jax.lax.fori_loop(0, num_steps, step, (tokens_BJ, state))

  return run


# ------------------------------------------------------------------------------------------ text


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
    self._ids.append(token)
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


# ----------------------------------------------------------------------------------------- checks


def _rows(config, prompts, mask, max_new_tokens) -> list[list[int]]:
  """The prompts without padding, checked."""
  if mask is not None:
    prompts, mask = np.asarray(prompts), np.asarray(mask).astype(bool)
    if prompts.ndim != 2 or prompts.shape != mask.shape:
      raise ValueError(f'prompts {prompts.shape} and mask {mask.shape}: both must be [B, T]')
    prompts = [row[kept] for row, kept in zip(prompts, mask, strict=True)]
  if max_new_tokens < 0:
    raise ValueError(f'max_new_tokens={max_new_tokens}: must be 0 or more')
  rows = [[int(token) for token in prompt] for prompt in prompts]
  for i, row in enumerate(rows):
    if not row:
      raise ValueError(f'prompt {i} is empty: give at least one token (the BOS token, say)')
    wrong = [t for t in row if not 0 <= t < config.vocab_size]
    if wrong:
      raise ValueError(f'prompt {i} holds token id {wrong[0]}, outside the vocabulary of '
                       f'{config.vocab_size}: was it made with another tokenizer?')
    if len(row) + max_new_tokens > config.max_seq_len:
      raise ValueError(f'prompt {i}: {len(row)} tokens + max_new_tokens={max_new_tokens} exceed '
                       f'max_seq_len={config.max_seq_len}: shorten one of them, or extend the '
                       'context (config.extended; --context)')
  return rows


def _no_mesh():
  """Context without a mesh, whatever the caller has set."""
  return jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ()))


def _on_one_device(x: Any) -> jax.Array:
  if isinstance(x, jax.Array) and jax.typeof(x).sharding.mesh.empty:
    return x
  return jnp.asarray(np.asarray(x))


def _bucket(n: int) -> int:
  step = max(BUCKET, (1 << (n - 1).bit_length()) // 8)
  return -(-n // step) * step

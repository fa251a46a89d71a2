"""Generation: a KV cache, prefill in chunks, blocks of steps on the device, sampling, text.

Inside, prompts of different lengths are padded on the left, so that all rows end at the same
index and a step writes one slot, the same in every row: in place and without a scatter. A token's
position is its index less the padding of its row; padding has negative positions, which nothing
sees. Index i lies in slot i % R of a layer with R slots: layers with a sliding window have as many
slots as the window is long (a ring that forgets what can no longer be seen), the others one for
every index.

A model with modules of multi-token prediction can speculate: its modules draft the next tokens, the
model reads all of them at once and keeps those that it would have drawn itself (arXiv:2211.17192,
with the model as its own draft, arXiv:2404.19737). Rows then move at their own pace.

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


@dataclasses.dataclass
class Speculation:
  """Asks `stream` to speculate, and says after it how that went."""

  rounds: int = 0  # times that the model was run, counted for each row
  drafted: int = 0  # tokens
  accepted: int = 0

  @property
  def acceptance(self) -> float:
    """Share of the drafted tokens that were kept."""
    return self.accepted / max(1, self.drafted)

  @property
  def tokens_per_round(self) -> float:
    """Tokens made each time the model is run; 1 without speculation."""
    return 1 + self.accepted / max(1, self.rounds)


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
  speculation: Speculation | None = None,
) -> Iterator[list[int | None]]:
  """Continues the prompts, one token per row at a time: None where a row has ended.

  A row's tokens depend on its prompt, its place in the batch and the seed, not on other rows.

  Args:
    params: as of `model.init`, or of `prepare`, which saves the work of preparing them each time.
    prompts: token ids, lists of any lengths; or [B, T] together with `mask`.
    mask: [B, T], true where `prompts` holds a token and not padding, on whichever side.
    max_new_tokens: per row.
    eos_id: token(s) that end a row; they are not given out.
    block: tokens (rounds, if speculating) computed on the device at once; they arrive together.
    speculation: given, the modules of multi-token prediction draft. Greedy rows are the same as
      without; sampled ones are other draws of the same distribution.
  Raises:
    ValueError: an empty prompt, a token outside the vocabulary, a length beyond
      `config.max_seq_len`.
  """
  if block < 1:
    raise ValueError(f'block={block}: at least one token is computed at a time')
  rows = _rows(config, prompts, mask, max_new_tokens)
  if not rows or not max_new_tokens:
    return iter(())
  if speculation is not None:
    _require_speculative(config, sampling)
  ends = () if eos_id is None else (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)
  if speculation is not None:
    return _speculate(
      config, params, rows, max_new_tokens, sampling, ends, seed, block, speculation)
  return _stream(config, params, rows, max_new_tokens, sampling, ends, seed, block)


def _require_speculative(config, sampling):
  if config.mtp == 'none':
    raise ValueError('this model has no modules of multi-token prediction (or its export left them '
                     'out): it cannot speculate')
  if any(config.windows):
    raise ValueError('a model with sliding windows cannot speculate: a draft that is not kept has '
                     'pushed out what the window still needs')
  if sampling.repetition_penalty != 1:
    raise ValueError('repetition_penalty does not go with speculation: each draft would change the '
                     'penalties of the next; set it to 1')


def _stream(config, params, rows, max_new_tokens, sampling, ends, seed, block):
  params = prepare(config, params)
  block = min(block, max_new_tokens)
  num_blocks = -(-max_new_tokens // block)
  with _no_mesh():
    logits_BV, cache, offset_B, index, *_ = prefill(config, params, rows, num_blocks * block)
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


def init_cache(
  config: model.ModelConfig, batch_size: int, num_slots: int, modules: int = 0
) -> Cache:
  """An empty cache for indices below `num_slots` of `batch_size` rows; windowed layers: a ring.

  So many modules of multi-token prediction come after the layers.
  """
  shapes = [
    (batch_size, config.num_kv_heads, min(window or num_slots, num_slots), config.head_dim)
    for window in (*config.windows, *(0,) * modules)
  ]
  return [(jnp.zeros(s, config.dtype), jnp.zeros(s, config.dtype)) for s in shapes]


def hidden(
  config: model.ModelConfig,
  params: model.Params,
  tokens_BT: jax.Array,
  offset_B: jax.Array,
  cache: Cache,
  start: jax.Array | None = None,
  *,
  capture: Sequence[str] = (),
) -> tuple[jax.Array, Cache, dict[str, jax.Array]]:
  """Hidden states (past the final norm) of the next tokens, the cache with them, and captures.

  Args:
    params: of `prepare`.
    tokens_BT: tokens at indices start … start + T - 1. Above T = 1 they may not run past the
      cache's slots (of layers without a window).
    offset_B: int32, the padding on the left of each row.
    start: int32 index of the first token, which must continue what the cache holds, one for all
      rows or [B] (then no layer may have a window); None if it holds nothing: then tokens see each
      other only, as in training.
    capture: see `model.run_blocks`.
  """
  positions_BT, attend = _places(config, tokens_BT.shape[1], offset_B, start)
  x_BTD = model.embed(config, params, tokens_BT)
  x_BTD, cache, (_, captured) = model.run_blocks(
    config, params, x_BTD, positions_BT, attend, cache, capture=capture)
  return model.final_norm(config, params, x_BTD), cache, captured


def _places(config, T, offset_B, start):
  """Positions of T tokens, and how they attend (see `model.run_blocks`) with a cache as state."""
  first = 0 if start is None else start
  own = jnp.ndim(first) == 1  # rows at their own pace
  index_T = (first[:, None] if own else first) + jnp.arange(T, dtype=jnp.int32)
  positions_BT = index_T - offset_B[:, None]
  # Padding is a document of its own, so that whatever it holds stays finite and apart.
  segments_BT = jnp.where(positions_BT < 0, 0, 1)
  positions_BT = jnp.where(positions_BT < 0, index_T, positions_BT)

  def attend(q_BTNH, k_BTKH, v_BTKH, layer, window, cache):
    held = cache[layer]
    new = (k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2))
    write = functools.partial(_write, start=first, ring=bool(window))
    if own:
      write = lambda held, new: jax.vmap(_write_row)(held, new, first)
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
      index_S = _held((start[:, None] if own else start) + T - 1, R)
    kv_positions_BS = index_S - offset_B[:, None]
    hidden_BS = (index_S < 0) | (kv_positions_BS < 0)
    out_BTNH, _ = attention(
      q_BTNH, k_BKSH.swapaxes(1, 2), v_BKSH.swapaxes(1, 2), q_positions_BT=positions_BT,
      kv_positions_BS=jnp.where(hidden_BS, HIDDEN, kv_positions_BS), window=window,
      softcap=config.attention_softcap, implementation='xla',
    )
    return out_BTNH, cache, None

  return positions_BT, attend


def _write_row(held_KRH, new_KTH, start):
  return jax.lax.dynamic_update_slice_in_dim(held_KRH, new_KTH, start, axis=1)


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
  config: model.ModelConfig,
  params: model.Params,
  rows: Sequence[Sequence[int]],
  num_new: int,
  *,
  modules: int = 0,
) -> tuple[jax.Array, Cache, jax.Array, int, jax.Array, jax.Array]:
  """Reads the prompts, in chunks if they are long.

  Args:
    params: of `prepare`.
    num_new: tokens that the cache must have room for after the prompts.
    modules: of multi-token prediction that are to draft; they read the prompts too.
  Returns:
    fp32 logits_BV of the first new token, the cache, offset_B, the index of the first new token,
    and of the last 2 · `modules` places the tokens and what the modules start from.
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
  first, further = _prefill(config, modules)
  cache = init_cache(config, B, S, modules)
  ahead_BT = np.pad(tokens_BT, ((0, 0), (0, modules)))  # modules read the tokens that come after
  logits_BV, cache, trunk_BWD = first(params, ahead_BT[:, : chunk + modules], offset_B, cache)
  for start in range(chunk, T, chunk):
    tokens_BC = ahead_BT[:, start : start + chunk + modules]
    logits_BV, cache, trunk_BWD = further(params, tokens_BC, offset_B, cache, np.int32(start))
  return logits_BV, cache, offset_B, T, tokens_BT[:, T - 2 * modules :], trunk_BWD


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
def _prefill(config: model.ModelConfig, modules: int) -> tuple[Callable, Callable]:
  """(first, further): the jitted programs of the first chunk and of the others."""
  config = dataclasses.replace(config, remat='none')

  def logits_of_last(params, ahead_BT, offset_B, cache, start=None):
    tokens_BT = ahead_BT[:, : ahead_BT.shape[1] - modules]
    x_BTD, cache, captured = hidden(
      config, params, tokens_BT, offset_B, cache, start, capture=('trunk',))
    trunk_BTD = captured['trunk_BTD']
    read = lambda k: ahead_BT[:, k : k + tokens_BT.shape[1]]
    _, cache = _modules(config, params, trunk_BTD, read, offset_B, cache, start, modules)
    logits_BV = model.logits(config, params, x_BTD[:, -1:])[:, 0]
    return logits_BV, cache, trunk_BTD[:, trunk_BTD.shape[1] - 2 * modules :]

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
      x_B1D, cache, _ = hidden(
        config, params, token_B[:, None], offset_B, state.cache, state.index)
      logits_BV = model.logits(config, params, x_B1D)[:, 0]
      return tokens_BJ, State(
        logits_BV, cache, state.index + 1, state.step + 1, ended_B, seen_BV)

    # The number of steps is fixed even where all rows end early: were a condition looked at on the
    # way, the host would wait for the device there, and could not prepare the next block meanwhile.
    tokens_BJ = jnp.full((B, num_steps), -1, jnp.int32)
    return jax.lax.fori_loop(0, num_steps, step, (tokens_BJ, state))

  return run


# ----------------------------------------------------------------------------------- speculation


def _modules(config, params, trunk_BTD, read, offset_B, cache, start, modules, draft=None):
  """Runs the modules of multi-token prediction over some places, one after another.

  Args:
    read: k → the tokens k places after these, [B, T].
    draft: called with k and the k-th module's fp32 logits of the last place.
  """
  x_BTD, drafts = trunk_BTD, []
  positions_BT, attend = _places(config, trunk_BTD.shape[1], offset_B, start)
  for k in range(1, modules + 1):
    here = functools.partial(attend, layer=config.num_layers + k - 1, window=None)
    attend_here = lambda q, k_, v, state, here=here: here(q, k_, v, cache=state)
    module = jax.tree.map(lambda x, k=k: x[k - 1], params['mtp'])
    taken_BTD = trunk_BTD if config.mtp == 'parallel' else x_BTD
    x_BTD, hidden_BTD, cache = model.run_mtp(
      config, params, module, taken_BTD, read(k), positions_BT, attend_here, cache)
    if draft:
      drafts.append(draft(k, model.logits(config, params, hidden_BTD[:, -1:])[:, 0]))
  return drafts, cache


class Round(NamedTuple):
  """Between two rounds of speculation: rows have read `index_B` tokens, one more is known."""

  recent_BX: jax.Array  # int32, the last 2M + 1 tokens; the last of all is still to be read
  trunk_BWD: jax.Array  # what the modules start from at the 2M places before it
  drafts_BM: jax.Array  # int32
  draft_logits_BMV: jax.Array  # fp32, adjusted: what the drafts were drawn from
  cache: Cache
  index_B: jax.Array  # int32, of the last known token
  made_B: jax.Array  # int32, tokens given out
  ended_B: jax.Array  # bool
  rounds_B: jax.Array  # int32
  accepted_B: jax.Array  # int32


def verify(
  key: jax.Array, drafts_M: jax.Array, q_MV: jax.Array, p_XV: jax.Array, greedy: bool
) -> tuple[jax.Array, jax.Array]:
  """How many drafts of a row are kept, and the token after them; int32 scalars.

  Speculative sampling (arXiv:2211.17192, algorithm 1): a draft from q is kept with probability
  min(1, p / q); at the first that is not, a token is drawn from max(p - q, 0), renormalised; so
  every token is a draw from p. Greedy: kept as long as p's likeliest is the draft.

  Args:
    q_MV, p_XV: adjusted logits of the drafts, and the model's at their places and at the next one.
  """
  M = len(drafts_M)
  if greedy:
    likeliest_X = jnp.argmax(p_XV, axis=-1).astype(jnp.int32)
    kept = jnp.sum(jnp.cumprod(likeliest_X[:M] == drafts_M))
    return kept.astype(jnp.int32), likeliest_X[kept]
  accept_key, draw_key = jax.random.split(key)
  p_XV, q_MV = jax.nn.softmax(p_XV), jax.nn.softmax(q_MV)
  of_draft = lambda x_MV: jnp.take_along_axis(x_MV[:M], drafts_M[:, None], axis=-1)[:, 0]
  u_M = jax.random.uniform(accept_key, (M,))
  kept = jnp.sum(jnp.cumprod(u_M * of_draft(q_MV) < of_draft(p_XV)))
  # Beyond the drafts q is nothing, so the rest is p.
  rest_V = jnp.maximum(p_XV[kept] - jnp.pad(q_MV, ((0, 1), (0, 0)))[kept], 0)
  # Rounding may leave nothing where p and q are all but equal: then p is as good.
  rest_V = jnp.where(jnp.sum(rest_V) > 0, rest_V, p_XV[kept])
  token = jax.random.categorical(draw_key, jnp.log(rest_V))
  return kept.astype(jnp.int32), token.astype(jnp.int32)


def _speculate(config, params, rows, max_new_tokens, sampling, ends, seed, block, speculation):
  params = prepare(config, params)
  modules = config.mtp_depth
  with _no_mesh():
    logits_BV, cache, offset_B, index, recent_BW, trunk_BWD = prefill(
      config, params, rows, max_new_tokens + modules + 1, modules=modules)
    start, run = _rounds(config, sampling, ends, block, max_new_tokens)
    key = jax.random.key(seed)
    token_B, state = start(
      params, offset_B, key, logits_BV, cache, jnp.int32(index), recent_BW, trunk_BWD)
    waiting = [[t] if t >= 0 else [] for t in np.asarray(token_B).tolist()]
    given, ended = 0, np.asarray(state.ended_B)
  try:
    while True:
      while given < max_new_tokens and any(waiting) and all(
        row or over for row, over in zip(waiting, ended, strict=True)
      ):  # fmt: skip
        yield [row.pop(0) if row else None for row in waiting]
        given += 1
      if given == max_new_tokens or ended.all():
        break
      with _no_mesh():
        tokens_BJX, state = run(params, offset_B, key, state)
      ended = np.asarray(state.ended_B)
      for row, new_X in zip(waiting, np.asarray(tokens_BJX).reshape(len(rows), -1), strict=True):
        row.extend(new_X[new_X >= 0].tolist())
  finally:  # a stop string ends the stream early
    rounds = int(jnp.sum(state.rounds_B))
    speculation.rounds += rounds
    speculation.drafted += modules * rounds
    speculation.accepted += int(jnp.sum(state.accepted_B))


@functools.lru_cache(maxsize=16)
def _rounds(
  config: model.ModelConfig, sampling: Sampling, ends: tuple[int, ...], block: int, most: int
) -> tuple[Callable, Callable]:
  """The jitted first draw, and (params, offset_B, key, state) → (tokens_BJX, state) of J rounds.

  Tokens are -1 where there is none: X = modules + 1 is the most that a round can give.
  """
  config = dataclasses.replace(config, remat='none')
  M, greedy = config.mtp_depth, sampling.temperature == 0

  def keys(key, index_B, use):
    """A row's key for one use at one index; its place in the batch tells rows apart."""
    fold = jax.vmap(jax.random.fold_in)
    rows_B = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(index_B)))
    return fold(fold(rows_B, index_B), jnp.full_like(index_B, use))

  def draft(params, offset_B, key, recent_BX, trunk_BWD, cache, index_B):
    drawn = []

    def read(k):  # tokens k places after the window: known ones, then those drafted here
      known_BX = jnp.concatenate([recent_BX, *(token_B[:, None] for token_B, _ in drawn)], axis=1)
      return known_BX[:, k : k + 2 * M]

    def one(k, logits_BV):
      logits_BV = adjust(logits_BV, sampling)
      token_B = (jnp.argmax(logits_BV, axis=-1).astype(jnp.int32) if greedy else
                 sample(keys(key, index_B, 1 + k), logits_BV, Sampling(temperature=1.0)))
      drawn.append((token_B, logits_BV))

    _, cache = _modules(
      config, params, trunk_BWD, read, offset_B, cache, index_B - 2 * M, M, draft=one)
    drafts_BM, logits_BMV = (jnp.stack(x, axis=1) for x in zip(*drawn, strict=True))
    return drafts_BM, logits_BMV, cache

  def stop(token_BX, made_B, ended_B):
    """Tokens that are given out, -1 for the others; how many; which rows have ended."""
    is_end_BX = jnp.isin(token_BX, jnp.asarray(ends, jnp.int32)) if ends else token_BX < -1
    before_BX = jnp.cumsum(is_end_BX, axis=1) > 0
    order_BX = made_B[:, None] + jnp.arange(token_BX.shape[1])
    out_BX = jnp.where((token_BX >= 0) & ~before_BX & (order_BX < most) & ~ended_B[:, None],
                       token_BX, -1)
    made_B += jnp.sum(out_BX >= 0, axis=1)
    return out_BX, made_B, ended_B | jnp.any(is_end_BX, axis=1) | (made_B >= most)

  @functools.partial(jax.jit, donate_argnames='cache')
  def start(params, offset_B, key, logits_BV, cache, index, recent_BW, trunk_BWD):
    B = len(logits_BV)
    index_B = jnp.full((B,), index)
    token_B = sample(keys(key, index_B, 0), logits_BV, sampling)
    zero_B = jnp.zeros((B,), jnp.int32)
    out_B1, made_B, ended_B = stop(token_B[:, None], zero_B, zero_B > 0)
    recent_BX = jnp.concatenate([recent_BW, token_B[:, None]], axis=1)
    drafts_BM, logits_BMV, cache = draft(
      params, offset_B, key, recent_BX, trunk_BWD, cache, index_B)
    return out_B1[:, 0], Round(
      recent_BX, trunk_BWD, drafts_BM, logits_BMV, cache, index_B, made_B, ended_B, zero_B, zero_B)

  @functools.partial(jax.jit, donate_argnames='state')
  def run(params, offset_B, key, state):
    def one(i, carry):
      tokens_BJX, s = carry
      read_BX = jnp.concatenate([s.recent_BX[:, -1:], s.drafts_BM], axis=1)
      x_BXD, cache, captured = hidden(
        config, params, read_BX, offset_B, s.cache, s.index_B, capture=('trunk',))
      logits_BXV = model.logits(config, params, x_BXD)
      p_BXV = adjust(logits_BXV.reshape(-1, logits_BXV.shape[-1]), sampling)
      kept_B, token_B = jax.vmap(functools.partial(verify, greedy=greedy))(
        keys(key, s.index_B, 1), s.drafts_BM, s.draft_logits_BMV, p_BXV.reshape(logits_BXV.shape))
      place_X = jnp.arange(M + 1)
      new_BX = jnp.where(place_X < kept_B[:, None], jnp.pad(s.drafts_BM, ((0, 0), (0, 1))), -1)
      new_BX = jnp.where(place_X == kept_B[:, None], token_B[:, None], new_BX)
      out_BX, made_B, ended_B = stop(new_BX, s.made_B, s.ended_B)
      moved_B = jnp.where(s.ended_B, 0, kept_B + 1)
      cut = jax.vmap(jax.lax.dynamic_slice_in_dim, (0, 0, None))
      recent_BX = cut(jnp.concatenate([s.recent_BX, new_BX], axis=1), moved_B, 2 * M + 1)
      trunk_BWD = cut(jnp.concatenate([s.trunk_BWD, captured['trunk_BTD']], axis=1), moved_B, 2 * M)
      index_B = s.index_B + moved_B
      drafts_BM, draft_logits_BMV, cache = draft(
        params, offset_B, key, recent_BX, trunk_BWD, cache, index_B)
      live_B = (~s.ended_B).astype(jnp.int32)
      return tokens_BJX.at[:, i].set(out_BX), Round(
        recent_BX, trunk_BWD, drafts_BM, draft_logits_BMV, cache, index_B, made_B, ended_B,
        s.rounds_B + live_B, s.accepted_B + live_B * kept_B)

    tokens_BJX = jnp.full((len(offset_B), block, M + 1), -1, jnp.int32)
    return jax.lax.fori_loop(0, block, one, (tokens_BJX, state))

  return start, run


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

"""Speculative decoding: a draft model, or the model's own modules of multi-token prediction, guess
and the model verifies, without changing what is sampled."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smoljax import model
from smoljax.inference import cache as cache_lib
from smoljax.inference import sampling as sampling_lib
from smoljax.inference.cache import Cache
from smoljax.inference.sampling import Sampling


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


def speculate(
  config: model.ModelConfig, params: model.Params, rows: Sequence[Sequence[int]],
  max_new_tokens: int, sampling: Sampling, ends: tuple[int, ...], keys_B: jax.Array, block: int,
  speculation: Speculation,
) -> Iterator[list[int | None]]:
  """`generate.stream` with drafts of the modules of multi-token prediction (arXiv:2211.17192).

  Yields one new token of each row at a time, None for a row that has ended.

  Args:
    ends: ids that end a row.
    keys_B: one key a row.
    block: how many rounds of drafting and checking a call of the jitted program makes.
    speculation: counts rounds and drafts, and how many were accepted, when the stream ends.
  """
  params = cache_lib.prepare(config, params)
  modules = config.mtp_depth
  with cache_lib.calling():
    logits_BV, cache, offset_B, index, recent_BW, trunk_BWD = cache_lib.prefill(
      config, params, rows, max_new_tokens + modules + 1, modules=modules)
    start, run = _rounds(config, sampling, ends, block, max_new_tokens)
    token_B, state = start(
      params, offset_B, keys_B, logits_BV, cache, jnp.int32(index), recent_BW, trunk_BWD)
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
      with cache_lib.calling():
        tokens_BJX, state = run(params, offset_B, keys_B, state)
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
  """The jitted first draw, and (params, offset_B, keys_B, state) → (tokens_BJX, state) of J rounds.

  Tokens are -1 where there is none: X = modules + 1 is the most that a round can give.
  """
  config = dataclasses.replace(config, remat='none')
  M, greedy = config.mtp_depth, sampling.greedy

  def keys(keys_B, index_B, use):
    """A row's key for one use at one index."""
    fold = jax.vmap(jax.random.fold_in)
    return fold(fold(keys_B, index_B), jnp.full_like(index_B, use))

  def draft(params, offset_B, keys_B, recent_BX, trunk_BWD, cache, index_B):
    drawn = []

    def read(k):  # tokens k places after the window: known ones, then those drafted here
      known_BX = jnp.concatenate([recent_BX, *(token_B[:, None] for token_B, _ in drawn)], axis=1)
      return known_BX[:, k : k + 2 * M]

    def one(k, logits_BV):
      logits_BV = sampling_lib.adjust(logits_BV, sampling)
      token_B = (
        jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        if greedy
        else sampling_lib.sample(keys(keys_B, index_B, 1 + k), logits_BV, Sampling(temperature=1.0))
      )
      drawn.append((token_B, logits_BV))

    _, cache = cache_lib.run_modules(
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
  def start(params, offset_B, keys_B, logits_BV, cache, index, recent_BW, trunk_BWD):
    B = len(logits_BV)
    index_B = jnp.full((B,), index)
    token_B = sampling_lib.sample(keys(keys_B, index_B, 0), logits_BV, sampling)
    zero_B = jnp.zeros((B,), jnp.int32)
    out_B1, made_B, ended_B = stop(token_B[:, None], zero_B, zero_B > 0)
    recent_BX = jnp.concatenate([recent_BW, token_B[:, None]], axis=1)
    drafts_BM, logits_BMV, cache = draft(
      params, offset_B, keys_B, recent_BX, trunk_BWD, cache, index_B)
    return out_B1[:, 0], Round(
      recent_BX, trunk_BWD, drafts_BM, logits_BMV, cache, index_B, made_B, ended_B, zero_B, zero_B)

  @functools.partial(jax.jit, donate_argnames='state')
  def run(params, offset_B, keys_B, state):
    def one(i, carry):
      tokens_BJX, s = carry
      read_BX = jnp.concatenate([s.recent_BX[:, -1:], s.drafts_BM], axis=1)
      x_BXD, cache, captured = cache_lib.hidden(
        config, params, read_BX, offset_B, s.cache, s.index_B, capture=('trunk',))
      logits_BXV = model.logits(config, params, x_BXD)
      p_BXV = sampling_lib.adjust(logits_BXV.reshape(-1, logits_BXV.shape[-1]), sampling)
      kept_B, token_B = jax.vmap(functools.partial(verify, greedy=greedy))(
        keys(keys_B, s.index_B, 1), s.drafts_BM, s.draft_logits_BMV,
        p_BXV.reshape(logits_BXV.shape))
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
        params, offset_B, keys_B, recent_BX, trunk_BWD, cache, index_B)
      live_B = (~s.ended_B).astype(jnp.int32)
      return tokens_BJX.at[:, i].set(out_BX), Round(
        recent_BX, trunk_BWD, drafts_BM, draft_logits_BMV, cache, index_B, made_B, ended_B,
        s.rounds_B + live_B, s.accepted_B + live_B * kept_B)

    tokens_BJX = jnp.full((len(offset_B), block, M + 1), -1, jnp.int32)
    return jax.lax.fori_loop(0, block, one, (tokens_BJX, state))

  return start, run

"""Generation with a KV cache: batched prefill, one jitted step per token, sampling.

Slot s of the cache holds the key and value of position s, in every row, so prompts of different
lengths need no padding on the left: each row continues at its own position, and slots beyond it
(padding, not yet written) lie in the future, which causal attention never sees.

Runs on one device; parameters that live on a mesh are brought to it first.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoljax import model
from smoljax.attention import attention

BUCKET = 64  # prompt and cache lengths are rounded up to a power of two at least this, so that
             # few shapes are compiled

Cache = dict[str, jax.Array]  # k_LBSKH and v_LBSKH in the compute dtype


def init_cache(config: model.ModelConfig, batch_size: int, num_slots: int) -> Cache:
  """An empty cache for `num_slots` positions of each of `batch_size` rows."""
  shape = (config.num_layers, batch_size, num_slots, config.num_kv_heads, config.head_dim)
  return {name: jnp.zeros(shape, config.dtype) for name in ('k_LBSKH', 'v_LBSKH')}


def hidden(
  config: model.ModelConfig,
  params: model.Params,
  tokens_BT: jax.Array,
  positions_BT: jax.Array,
  cache: Cache,
) -> tuple[jax.Array, Cache]:
  """Hidden states (past the final norm) of tokens at these positions, and the cache with them.

  Each row's positions must continue what its cache holds; tokens that pad a row on the right
  harm nothing, as the next call overwrites their slots.
  """
  B, S = cache['k_LBSKH'].shape[1:3]
  slots_BS = jnp.arange(S, dtype=jnp.int32)[None]
  rows_B1 = jnp.arange(B)[:, None]

  def attend(q_BTNH, k_BTKH, v_BTKH, layer, window, cache):
    where = (layer, rows_B1, positions_BT)
    cache = {
      'k_LBSKH': cache['k_LBSKH'].at[where].set(k_BTKH, mode='drop'),
      'v_LBSKH': cache['v_LBSKH'].at[where].set(v_BTKH, mode='drop'),
    }
    out_BTNH, _ = attention(
      q_BTNH, cache['k_LBSKH'][layer], cache['v_LBSKH'][layer],
      q_positions_BT=positions_BT, kv_positions_BS=slots_BS, window=window,
      softcap=config.attention_softcap,
    )
    return out_BTNH, cache, None

  x_BTD = model.embed(config, params, tokens_BT)
  x_BTD, cache, _ = model.run_blocks(config, params, x_BTD, positions_BT, attend, cache)
  return model.final_norm(config, params, x_BTD), cache


def sample(
  key: jax.Array,
  logits_BV: jax.Array,
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
) -> jax.Array:
  """One token per row, int32 [B]: argmax at temperature 0, else a draw from what is left after
  keeping the `top_k` likeliest (0: all) and then the fewest that hold `top_p` of the probability.
  """
  if temperature == 0:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  logits_BV = logits_BV / temperature
  if 0 < top_k < logits_BV.shape[-1]:
    lowest_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
    logits_BV = jnp.where(logits_BV < lowest_B1, -jnp.inf, logits_BV)
  if top_p < 1:
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV  # the likeliest always stays
    lowest_B1 = jnp.min(jnp.where(before_BV < top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    logits_BV = jnp.where(logits_BV < lowest_B1, -jnp.inf, logits_BV)
  return jax.random.categorical(key, logits_BV, axis=-1).astype(jnp.int32)


def generate(
  config: model.ModelConfig,
  params: model.Params,
  prompt_tokens: Sequence[Sequence[int]],
  *,
  max_new_tokens: int,
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
  eos_id: int | Sequence[int] | None = None,
  seed: int = 0,
) -> list[list[int]]:
  """Continuations of the prompts: new tokens only, without the end token that stopped them.

  Raises ValueError for an empty prompt, a token outside the vocabulary, or a length beyond
  `config.max_seq_len`.
  """
  results: list[list[int]] = [[] for _ in prompt_tokens]
  for tokens in stream(
    config, params, prompt_tokens, max_new_tokens=max_new_tokens, temperature=temperature,
    top_k=top_k, top_p=top_p, eos_id=eos_id, seed=seed,
  ):
    for result, token in zip(results, tokens, strict=True):
      if token is not None:
        result.append(token)
  return results


def stream(
  config: model.ModelConfig,
  params: model.Params,
  prompt_tokens: Sequence[Sequence[int]],
  *,
  max_new_tokens: int,
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
  eos_id: int | Sequence[int] | None = None,
  seed: int = 0,
) -> Iterator[list[int | None]]:
  """`generate`, one list of tokens at a time: a token per row, None where the row has ended."""
  _check(config, prompt_tokens, max_new_tokens, temperature, top_k, top_p)
  if not prompt_tokens or not max_new_tokens:
    return
  ends = () if eos_id is None else (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)
  lengths_B = np.array([len(p) for p in prompt_tokens], np.int32)
  T = min(_bucket(int(lengths_B.max())), config.max_seq_len)
  S = min(_bucket(int(lengths_B.max()) + max_new_tokens), config.max_seq_len)
  tokens_BT = np.zeros((len(prompt_tokens), T), np.int32)
  for row, prompt in zip(tokens_BT, prompt_tokens, strict=True):
    row[: len(prompt)] = prompt

  prefill, step = _programs(config, float(temperature), int(top_k), float(top_p))
  with _no_mesh():
    key = jax.random.key(seed)
    params = jax.tree.map(_on_one_device, params)
    cache = init_cache(config, len(prompt_tokens), S)
    tokens_B, cache = prefill(params, tokens_BT, lengths_B, cache, jax.random.fold_in(key, 0))
  ended_B = np.zeros(len(prompt_tokens), bool)
  for i in range(max_new_tokens):
    current_B = tokens_B
    if i + 1 < max_new_tokens:  # dispatched before the current tokens are waited for
      with _no_mesh():
        tokens_B, cache = step(
          params, current_B, lengths_B + np.int32(i), cache, jax.random.fold_in(key, i + 1))
    host_B = np.asarray(current_B)
    ended_B |= np.isin(host_B, ends)
    if ended_B.all():
      return
    yield [None if e else int(t) for t, e in zip(host_B, ended_B, strict=True)]


@functools.lru_cache(maxsize=16)
def _programs(
  config: model.ModelConfig, temperature: float, top_k: int, top_p: float
) -> tuple[Callable, Callable]:
  """(prefill, step), jitted; both consume the cache they are given."""

  def next_token(params, x_BD, key):
    logits_BV = model.logits(config, params, x_BD[:, None])[:, 0]
    return sample(key, logits_BV, temperature, top_k, top_p)

  @functools.partial(jax.jit, donate_argnames='cache')
  def prefill(params, tokens_BT, lengths_B, cache, key):
    B, T = tokens_BT.shape
    positions_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
    x_BTD, cache = hidden(config, params, tokens_BT, positions_BT, cache)
    return next_token(params, x_BTD[jnp.arange(B), lengths_B - 1], key), cache

  @functools.partial(jax.jit, donate_argnames='cache')
  def step(params, tokens_B, positions_B, cache, key):
    x_BTD, cache = hidden(config, params, tokens_B[:, None], positions_B[:, None], cache)
    return next_token(params, x_BTD[:, 0], key), cache

  return prefill, step


def _check(config, prompts, max_new_tokens, temperature, top_k, top_p):
  for i, prompt in enumerate(prompts):
    if not len(prompt):
      raise ValueError(f'prompt {i} is empty: give at least one token (the BOS token, say)')
    wrong = [t for t in prompt if not 0 <= t < config.vocab_size]
    if wrong:
      raise ValueError(f'prompt {i} holds token id {wrong[0]}, outside the vocabulary of '
                       f'{config.vocab_size}: was it made with another tokenizer?')
    if len(prompt) + max_new_tokens > config.max_seq_len:
      raise ValueError(f'prompt {i}: {len(prompt)} tokens + max_new_tokens={max_new_tokens} exceed '
                       f'max_seq_len={config.max_seq_len}: shorten one of them')
  if max_new_tokens < 0 or temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
    raise ValueError(f'max_new_tokens={max_new_tokens}, temperature={temperature}, top_k={top_k} '
                     f'must not be negative and top_p={top_p} must be in (0, 1]')


def _no_mesh():
  """Context without a mesh, whatever the caller has set."""
  return jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ()))


def _on_one_device(x: Any) -> jax.Array:
  if isinstance(x, jax.Array) and jax.typeof(x).sharding.mesh.empty:
    return x
  return jnp.asarray(np.asarray(x))


def _bucket(n: int) -> int:
  return max(BUCKET, 1 << (n - 1).bit_length())

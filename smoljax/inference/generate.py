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
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoljax import model
from smoljax.inference import cache as cache_lib
from smoljax.inference import sampling as sampling_lib
from smoljax.inference import speculative
from smoljax.inference.cache import State
from smoljax.inference.sampling import GREEDY, Sampling
from smoljax.inference.speculative import Speculation


def generate(
  config: model.ModelConfig, params: model.Params, prompts: Sequence[Sequence[int]], **settings: Any
) -> list[list[Any]]:
  """`stream`, collected: the new tokens of each row, without the end token that stopped it."""
  results: list[list[Any]] = [[] for _ in range(len(prompts) * settings.get('samples', 1))]
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
  seed: int | Sequence[int] | Sequence[tuple[int, int]] = 0,
  samples: int = 1,
  logprobs: bool = False,
  block: int | None = None,
  speculation: Speculation | None = None,
) -> Iterator[list[Any]]:
  """Continues the prompts, one token per row at a time: None where a row has ended.

  A row's tokens depend on its prompt, its place in the batch and the seed (or its own seed), not
  on other rows.

  Args:
    params: as of `model.init`, or of `prepare`, which saves the work of preparing them each time.
    prompts: token ids, lists of any lengths; or [B, T] together with `mask`: calls of the same T
      share their programs, however long the longest prompt is (not if speculating).
    mask: [B, T], true where `prompts` holds a token and not padding, on whichever side.
    max_new_tokens: per row.
    eos_id: token(s) that end a row; they are not given out.
    seed: of all rows; or a list with one of each, wherever it stands in the batch; or of each
      (seed, number of tokens) where so many at its prompt's end were drawn by that seed: the
      draws go on as if they had not been interrupted.
    samples: rows a prompt, one after the other in the result; a prompt is read once.
    logprobs: give (token, its log-probability), in nats, where there is a token. It is the
      model's own, as without `sampling`.
    block: tokens (rounds, if speculating) computed on the device at once; they arrive together.
      None: `cache.BLOCK`, but one at a time in bfloat16 on CPUs, where XLA would copy what a loop
      reads.
    speculation: given, the modules of multi-token prediction draft. Greedy rows are the same as
      without; sampled ones are other draws of the same distribution.
  Raises:
    ValueError: an empty prompt, a token outside the vocabulary, a length beyond
      `config.max_seq_len`, settings that do not go together.
  """
  block = _usual_block(config) if block is None else block
  if block < 1 or samples < 1:
    raise ValueError(f'block={block}, samples={samples}: each must be 1 or more')
  rows = _rows(config, prompts, mask, max_new_tokens)
  if not rows or not max_new_tokens:
    return iter(())
  with cache_lib.calling():
    keys_B, drawn = _keys(seed, len(rows) * samples)
  ends = _ends(eos_id)
  if speculation is not None:
    _require_speculative(config, sampling, samples, logprobs or np.any(drawn))
    return speculative.speculate(
      config, params, rows, max_new_tokens, sampling, ends, keys_B, block, speculation)
  padded = 0 if mask is None else np.shape(mask)[1]
  return _stream(
    config, params, rows, max_new_tokens, sampling, ends, (keys_B, drawn), block, samples, logprobs,
    padded)


def rehearse(
  config: model.ModelConfig, params: model.Params, prompts: Sequence[Sequence[int]] | np.ndarray,
  *, mask: np.ndarray | None = None, max_new_tokens: int, sampling: Sampling = GREEDY,
  eos_id: int | Sequence[int] | None = None, device: jax.Device | None = None,
) -> Iterator[None]:
  """Compiles what `stream` with these arguments runs, of parameters that need not be there yet, a
  program a turn.

  Args:
    params: or ShapeDtypeStructs, as of `model.abstract_params` without a mesh.
    device: where it is to run; None: on the first.
  """
  rows = _rows(config, prompts, mask, max_new_tokens)
  padded = 0 if mask is None else np.shape(mask)[1]
  block = min(_usual_block(config), max_new_tokens)
  T, S, chunk = cache_lib.prefill_sizes(
    config, rows, -(-max_new_tokens // block) * block, padded)
  placing = jax.sharding.SingleDeviceSharding(device or jax.local_devices()[0])
  there = lambda tree: jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placing), tree)
  with cache_lib.no_mesh():
    params = there(cache_lib.prepared(config, params))
    offset_B, (keys_B, drawn) = jax.eval_shape(
      lambda: (jnp.zeros(len(rows), jnp.int32), _keys(0, len(rows))))
    tokens_BC = np.zeros((len(rows), min(chunk, T)), np.int32)
    cache = jax.eval_shape(functools.partial(cache_lib.init_cache, config, len(rows), S))
    first, further = cache_lib.prefill_programs(config, 0)
    lowered = first.lower(params, tokens_BC, offset_B, cache)
    lowered.compile()
    yield
    logits_BV, cache, _ = there(lowered.out_info)
    if chunk < T:
      further.lower(params, tokens_BC, offset_B, cache, np.int32(chunk)).compile()
      yield
    seen_BV = jax.ShapeDtypeStruct(logits_BV.shape, bool)
    state = there(State(
      logits_BV, cache, drawn, drawn, jax.ShapeDtypeStruct(offset_B.shape, bool),
      seen_BV if sampling.repetition_penalty != 1 else None))
    run = _block(config, sampling, _ends(eos_id), block, False)
    run.lower(params, offset_B, keys_B, state).compile()
    yield


def _usual_block(config):
  one = config.dtype == 'bfloat16' and jax.default_backend() == 'cpu'
  return 1 if one else cache_lib.BLOCK


def _ends(eos_id):
  return () if eos_id is None else (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)


def _keys(seed, num_rows):
  """The key of each row, and how many tokens it has drawn: int32, of all rows or [B]."""
  if isinstance(seed, int):
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(num_rows))
    return keys_B, jnp.int32(0)
  if len(seed) != num_rows:
    raise ValueError(f'{len(seed)} seeds for {num_rows} rows: give one seed, or one a row')
  seeds, drawn = np.asarray(seed), np.int32(0)
  if seeds.ndim == 2:
    seeds, drawn = seeds.T
  return jax.vmap(jax.random.key)(seeds.astype(np.uint32)), jnp.asarray(drawn, jnp.int32)


def _require_speculative(config, sampling, samples, logprobs):
  if config.mtp == 'none':
    raise ValueError('this model has no modules of multi-token prediction (or its export left them '
                     'out): it cannot speculate')
  if any(config.windows):
    raise ValueError('a model with sliding windows cannot speculate: a draft that is not kept has '
                     'pushed out what the window still needs')
  if sampling.repetition_penalty != 1:
    raise ValueError('repetition_penalty does not go with speculation: each draft would change the '
                     'penalties of the next; set it to 1')
  if samples > 1 or logprobs or sampling.min_new_tokens:
    raise ValueError('samples, logprobs, min_new_tokens and rows that go on do not go with '
                     'speculation: leave them out')


def _stream(
  config, params, rows, max_new_tokens, sampling, ends, draws, block, samples, logprobs,
  padded,
):
  keys_B, drawn = draws
  params = cache_lib.prepare(config, params)
  block = min(block, max_new_tokens)
  num_blocks = -(-max_new_tokens // block)
  with cache_lib.calling():
    logits_BV, cache, offset_B, index, *_ = cache_lib.prefill(
      config, params, rows, num_blocks * block, padded=padded)
    if samples > 1:
      rows = [row for row in rows for _ in range(samples)]
      logits_BV, cache, offset_B = jax.tree.map(
        lambda x: jnp.repeat(x, samples, axis=0), (logits_BV, cache, offset_B))
    seen_BV = None
    if sampling.repetition_penalty != 1:
      seen_BV = np.zeros(logits_BV.shape, bool)
      for seen_V, row in zip(seen_BV, rows, strict=True):
        seen_V[row] = True
      seen_BV = jnp.asarray(seen_BV)
    ended_B = jnp.zeros(len(rows), bool)
    state = State(logits_BV, cache, jnp.int32(index), drawn, ended_B, seen_BV)
    # All bound to the device, as what the program gives back is: else it is compiled twice.
    state = jax.device_put(state, logits_BV.sharding)
    run = _block(config, sampling, ends, block, logprobs)
    new, state = run(params, offset_B, keys_B, state)
  left = max_new_tokens
  for i in range(num_blocks):
    tokens_BJ, logprobs_BJ = new
    if i + 1 < num_blocks:  # dispatched before the current tokens are waited for
      with cache_lib.calling():
        new, state = run(params, offset_B, keys_B, state)
    columns = np.asarray(tokens_BJ).T[:left].tolist()
    scores = np.asarray(logprobs_BJ).T[:left].tolist() if logprobs else columns
    for token_B, score_B in zip(columns, scores, strict=True):
      if all(token < 0 for token in token_B):
        return
      yield [None if token < 0 else (token, score) if logprobs else token
             for token, score in zip(token_B, score_B, strict=True)]
    left -= block


@functools.lru_cache(maxsize=16)
def _block(
  config: model.ModelConfig, sampling: Sampling, ends: tuple[int, ...], num_steps: int,
  logprobs: bool,
) -> jax.stages.Wrapped:
  """The jitted (params, offset_B, keys_B, state) → ((tokens_BJ, logprobs_BJ), state) of J =
  `num_steps` steps.

  Tokens are -1 from a row's end on; without `logprobs` there are none.
  """
  config = dataclasses.replace(config, remat='none')

  @functools.partial(jax.jit, donate_argnames='state')
  def run(params, offset_B, keys_B, state):
    B, V = state.logits_BV.shape
    is_end_V = jnp.isin(jnp.arange(V), jnp.asarray(ends, jnp.int32)) if ends else None

    def step(i, carry):
      (tokens_BJ, logprobs_BJ), state = carry
      step_B = jnp.broadcast_to(state.step, B)
      now_B = jax.vmap(jax.random.fold_in)(keys_B, step_B)
      logits_BV = state.logits_BV
      if is_end_V is not None and sampling.min_new_tokens:
        early_B1 = step_B[:, None] < sampling.min_new_tokens
        logits_BV = jnp.where(early_B1 & is_end_V, -jnp.inf, logits_BV)
      token_B = sampling_lib.sample(now_B, logits_BV, sampling, state.seen_BV)
      ended_B = state.ended_B
      if ends:
        ended_B |= jnp.isin(token_B, jnp.asarray(ends, jnp.int32))
      seen_BV = state.seen_BV
      if seen_BV is not None:
        seen_BV |= token_B[:, None] == jnp.arange(V)
      tokens_BJ = tokens_BJ.at[:, i].set(jnp.where(ended_B, -1, token_B))
      if logprobs:
        logprob_BV = jax.nn.log_softmax(state.logits_BV)
        logprobs_BJ = logprobs_BJ.at[:, i].set(
          jnp.take_along_axis(logprob_BV, token_B[:, None], axis=1)[:, 0])
      x_B1D, cache, _ = cache_lib.hidden(
        config, params, token_B[:, None], offset_B, state.cache, state.index)
      logits_BV = model.logits(config, params, x_B1D)[:, 0]
      return (tokens_BJ, logprobs_BJ), State(
        logits_BV, cache, state.index + 1, state.step + 1, ended_B, seen_BV)

    # The number of steps is fixed even where all rows end early: were a condition looked at on the
    # way, the host would wait for the device there, and could not prepare the next block meanwhile.
    tokens_BJ = jnp.full((B, num_steps), -1, jnp.int32)
    logprobs_BJ = jnp.zeros((B, num_steps), jnp.float32) if logprobs else None
    carry = (tokens_BJ, logprobs_BJ), state
    return step(0, carry) if num_steps == 1 else jax.lax.fori_loop(0, num_steps, step, carry)

  return run


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

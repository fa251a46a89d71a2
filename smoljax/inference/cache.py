"""The cache of keys and values, and prefill: the prompt through the model, in chunks."""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smoljax import model
from smoljax.model import quantised
from smoljax.model.attention import attention, attention_after, can_attend_after, decode
from smoljax.model.attention.context import RemoteSpan

BLOCK = 8  # tokens per row computed between two looks of the host
BUCKET = 64  # lengths are rounded up to a multiple of this, or of an eighth of a power of two
# Attention logits (fp32) that may exist at once while a prompt is read; where attention keeps none,
# hidden units of the MLP, gates included.
PREFILL_BYTES = 1 << 29
HIDDEN = 1 << 30  # position of slots that hold nothing: in every query's future

_ONE_AT_A_TIME = threading.RLock()

Cache = list[tuple[jax.Array, jax.Array]]  # per layer (k_BKRH, v_BKRH) in the compute dtype


def prepare(
  config: model.ModelConfig, params: model.Params, weights: str = ''
) -> model.Params:
  """Parameters as generation uses them, for many calls: see `model.unstack`. Idempotent.

  Args:
    params: as of `model.init`; or its `blocks` are an iterator of layers, each of which is read
      when the one before is ready: then memory holds the result and one layer more.
    weights: 'int8' or 'int4' for matrices in so many bits (smoljax/model/quantised.py); embedding
      and head have 8 in either case.
  """
  if isinstance(params['blocks'], list):
    return params
  with no_mesh():
    return _prepared(config, params, weights)


def prepared(config: model.ModelConfig, params: model.Params) -> model.Params:
  """ShapeDtypeStructs of what `prepare` makes of such parameters; they themselves if it has."""
  if isinstance(params['blocks'], list):
    return params
  with no_mesh():
    return jax.eval_shape(functools.partial(_prepared, config, weights=''), params)


def _prepared(config, params, weights):
  blocks = params['blocks']
  if isinstance(blocks, Mapping):
    blocks = _layers(config, jax.tree.map(on_one_device, blocks))
  layers = [jax.block_until_ready(_layer(config, layer, weights)) for layer in blocks]
  rest = {name: value for name, value in params.items() if name != 'blocks'}
  if 'head_DV' in rest:
    rest['head_VD'] = on_one_device(rest.pop('head_DV')).T
  rest = jax.tree.map(lambda p: jnp.asarray(on_one_device(p), config.dtype), rest)
  for name in {'embed_VD', 'head_VD'} & set(rest) if weights else ():
    rest[name] = _quantise(rest[name], 'int8')
  return rest | {'blocks': layers}


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
  return _zeros(tuple(shapes), config.dtype)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _zeros(shapes, dtype):
  return [(jnp.zeros(s, dtype), jnp.zeros(s, dtype)) for s in shapes]


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
  positions_BT, attend = attend_cache(config, tokens_BT.shape[1], offset_B, start)
  x_BTD = model.embed(config, params, tokens_BT)
  x_BTD, cache, (_, captured) = model.run_blocks(
    config, params, x_BTD, positions_BT, attend, cache, capture=capture)
  return model.final_norm(config, params, x_BTD), cache, captured


def attend_cache(
  config: model.ModelConfig, T: int, offset_B: jax.Array, start: jax.Array | int | None
) -> tuple[jax.Array, Callable]:
  """Positions of T tokens, and how they attend (see `model.run_blocks`) with a cache as state."""
  first: Any = 0 if start is None else start
  own = jnp.ndim(first) == 1  # rows at their own pace
  index_T = (first[:, None] if own else first) + jnp.arange(T, dtype=jnp.int32)
  positions_BT = index_T - offset_B[:, None]
  # Padding is a document of its own, so that whatever it holds stays finite and apart.
  segments_BT = jnp.where(positions_BT < 0, 0, 1)
  positions_BT = jnp.where(positions_BT < 0, index_T, positions_BT)
  softcap = config.attention_softcap

  def attend(q_BTNH, k_BTKH, v_BTKH, layer, window, cache):
    given = q_BTNH, k_BTKH, v_BTKH, cache[layer]
    # A ring has one token at a time: of several, the first would see what the last pushes out.
    if start is not None and (T == 1 or not window) and decode.fits(q_BTNH, k_BTKH):
      out_BTNH, written = jax.lax.platform_dependent(
        *given, cuda=few_tokens, default=functools.partial(tokens, window=window))
    else:
      out_BTNH, written = tokens(*given, window=window)
    return out_BTNH, [*cache[:layer], written, *cache[layer + 1 :]], None

  def few_tokens(q_BTNH, k_BTKH, v_BTKH, held):
    return decode.attend(
      q_BTNH, k_BTKH, v_BTKH, held, first, offset_B, softcap=softcap)

  def tokens(q_BTNH, k_BTKH, v_BTKH, held, window):
    new = (k_BTKH.swapaxes(1, 2), v_BTKH.swapaxes(1, 2))
    write = functools.partial(_write, start=first, ring=bool(window))
    if own:
      write = lambda held, new: jax.vmap(_write_row)(held, new, first)
    written = tuple(write(h, n) for h, n in zip(held, new, strict=True))
    if start is None:
      out_BTNH, _ = attention(
        q_BTNH, k_BTKH, v_BTKH, q_positions_BT=positions_BT, kv_positions_BS=positions_BT,
        q_segments_BT=segments_BT, kv_segments_BS=segments_BT, window=window, in_order=True,
        softcap=softcap, max_segments=2,
      )
      return out_BTNH, written
    R = held[0].shape[2]
    earlier = tuple(h.swapaxes(1, 2) for h in held)
    if T > 1 and not own and not window and can_attend_after(q_BTNH, earlier[0], softcap):
      before_B = jnp.broadcast_to(first, offset_B.shape)
      span = RemoteSpan(
        jnp.where(offset_B < before_B, T, 0), jnp.minimum(offset_B, before_B), before_B)
      return attention_after(
        q_BTNH, k_BTKH, v_BTKH, earlier, span, segments_BT, softcap=softcap), written
    if window and T > 1:  # what the chunk pushes out of the ring is still seen by its first tokens
      k_BKSH, v_BKSH = (jnp.concatenate(pair, axis=2) for pair in zip(held, new, strict=True))
      index_S = jnp.concatenate([_held(first - 1, R), index_T])
    else:
      k_BKSH, v_BKSH = written
      index_S = _held((first[:, None] if own else first) + T - 1, R)
    kv_positions_BS = index_S - offset_B[:, None]
    hidden_BS = (index_S < 0) | (kv_positions_BS < 0)
    out_BTNH, _ = attention(
      q_BTNH, k_BKSH.swapaxes(1, 2), v_BKSH.swapaxes(1, 2), q_positions_BT=positions_BT,
      kv_positions_BS=jnp.where(hidden_BS, HIDDEN, kv_positions_BS), window=window,
      softcap=softcap, implementation='xla',
    )
    return out_BTNH, written

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
  padded: int = 0,
) -> tuple[jax.Array, Cache, jax.Array, int, np.ndarray, jax.Array]:
  """Reads the prompts, in chunks if they are long.

  Args:
    params: of `prepare`.
    num_new: tokens that the cache must have room for after the prompts.
    modules: of multi-token prediction that are to draft; they read the prompts too.
    padded: tokens that rows are padded to at least.
  Returns:
    fp32 logits_BV of the first new token, the cache, offset_B, the index of the first new token,
    and of the last 2 · `modules` places the tokens and what the modules start from.
  """
  B = len(rows)
  T, S, chunk = prefill_sizes(config, rows, num_new, padded)
  tokens_BT = np.zeros((B, T), np.int32)
  for tokens_T, row in zip(tokens_BT, rows, strict=True):
    tokens_T[T - len(row) :] = row
  offset_B = jnp.asarray([T - len(row) for row in rows], jnp.int32)
  first, further = prefill_programs(config, modules)
  cache = init_cache(config, B, S, modules)
  ahead_BT = np.pad(tokens_BT, ((0, 0), (0, modules)))  # modules read the tokens that come after
  logits_BV, cache, trunk_BWD = first(params, ahead_BT[:, : chunk + modules], offset_B, cache)
  for start in range(chunk, T, chunk):
    tokens_BC = ahead_BT[:, start : start + chunk + modules]
    logits_BV, cache, trunk_BWD = further(params, tokens_BC, offset_B, cache, np.int32(start))
  return logits_BV, cache, offset_B, T, tokens_BT[:, T - 2 * modules :], trunk_BWD


def prefill_sizes(
  config: model.ModelConfig, rows: Sequence[Sequence[int]], num_new: int, padded: int = 0
) -> tuple[int, int, int]:
  """(T, S, chunk): places of the padded prompts, slots of the cache, places read at once."""
  B, longest = len(rows), max(padded, *map(len, rows))
  T = bucket_length(longest)
  S = bucket_length(T + num_new)
  # A chunk's queries are taken in 8 parts, each against all keys: [B, N, chunk / 8, S] logits.
  chunk = _chunk(8 * PREFILL_BYTES // (4 * B * config.num_heads * S))
  larger = _chunk(PREFILL_BYTES // (B * 2 * config.mlp_dim * jnp.dtype(config.dtype).itemsize))
  if chunk < min(larger, T) and _keeps_no_logits(config, B, min(larger, T), S):
    chunk = larger
  if chunk < T:  # evenly, lest the last one is padding for the most part
    number = -(-longest // chunk)
    chunk = bucket_length(-(-longest // number))
    T = number * chunk
    S = bucket_length(T + num_new)
  return T, S, chunk


def _chunk(tokens):
  """At least a bucket, of few lengths, so that few programs are compiled."""
  return 1 << (max(BUCKET, tokens).bit_length() - 1)


def _keeps_no_logits(config, B, T, S):
  """Whether T tokens of a prompt are read by kernels, whatever was read before."""
  q, k = (jax.ShapeDtypeStruct((B, size, heads, config.head_dim), config.dtype)
          for size, heads in ((T, config.num_heads), (S, config.num_kv_heads)))
  return not any(config.windows) and can_attend_after(q, k, config.attention_softcap)


class State(NamedTuple):
  """Between two steps of generation; consumed by the block that goes on from it."""

  logits_BV: jax.Array  # fp32, of the next token
  cache: Cache
  index: jax.Array  # int32, of the next token
  step: jax.Array  # int32, tokens made so far, of all rows or [B]
  ended_B: jax.Array  # bool
  seen_BV: jax.Array | None  # bool: tokens each row holds; with a repetition penalty only


def _layers(config, stack):
  take = jax.jit(lambda stack, i: jax.tree.map(lambda p: p[i], stack))
  return (take(stack, i) for i in range(config.num_layers))


def _layer(config, layer, weights):
  if isinstance(jax.tree.leaves(layer)[0], np.ndarray):
    # Nothing but the result is ever on the device: its allocator gives up to twice the memory that
    # is asked for, where something of such a size has just been freed.
    layer = jax.tree.map(jnp.asarray, model.unstack(config, layer))
  else:
    layer = _unstack(config)(layer)
  for part in ('attn', 'mlp') if weights else ():
    for name in ('inwards_XD', 'outwards_DX'):
      layer[part][name] = _quantise(layer[part][name], weights)
  return layer


@functools.lru_cache(maxsize=16)
def _unstack(config: model.ModelConfig) -> Callable:
  return jax.jit(functools.partial(model.unstack, config))


_quantise = jax.jit(quantised.quantise, static_argnames='kind')


@functools.lru_cache(maxsize=16)
def prefill_programs(
  config: model.ModelConfig, modules: int
) -> tuple[jax.stages.Wrapped, jax.stages.Wrapped]:
  """(first, further): the jitted programs of the first chunk and of the others."""
  config = dataclasses.replace(config, remat='none')

  def logits_of_last(params, ahead_BT, offset_B, cache, start=None):
    tokens_BT = ahead_BT[:, : ahead_BT.shape[1] - modules]
    x_BTD, cache, captured = hidden(
      config, params, tokens_BT, offset_B, cache, start, capture=('trunk',))
    trunk_BTD = captured['trunk_BTD']
    read = lambda k: ahead_BT[:, k : k + tokens_BT.shape[1]]
    _, cache = run_modules(config, params, trunk_BTD, read, offset_B, cache, start, modules)
    logits_BV = model.logits(config, params, x_BTD[:, -1:])[:, 0]
    return logits_BV, cache, trunk_BTD[:, trunk_BTD.shape[1] - 2 * modules :]

  first = jax.jit(
    lambda params, tokens_BT, offset_B, cache: logits_of_last(params, tokens_BT, offset_B, cache),
    donate_argnums=3,
  )
  return first, jax.jit(logits_of_last, donate_argnames='cache')


# ----------------------------------------------------------------------------------- speculation


def run_modules(
  config: model.ModelConfig, params: model.Params, trunk_BTD: jax.Array,
  read: Callable[[int], jax.Array], offset_B: jax.Array, cache: Cache,
  start: jax.Array | int | None, modules: int, draft: Callable[[int, jax.Array], Any] | None = None,
) -> tuple[list, Cache]:
  """Runs the modules of multi-token prediction over some places, one after another.

  Args:
    read: k → the tokens k places after these, [B, T].
    draft: called with k and the k-th module's fp32 logits of the last place.
  """
  x_BTD, drafts = trunk_BTD, []
  positions_BT, attend = attend_cache(config, trunk_BTD.shape[1], offset_B, start)
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


def no_mesh() -> AbstractContextManager:
  """Context without a mesh, whatever the caller has set."""
  return jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ()))


@contextlib.contextmanager
def calling() -> Iterator[None]:
  """Context in which programs of generation are called: without a mesh, on GPUs by one thread.

  XLA records CUDA graphs as it calls programs, and a program that another thread calls meanwhile
  for the first time can end the process (STREAM_CAPTURE_UNSUPPORTED: two threads, two GPUs). What
  programs compute is not waited for here, so GPUs work side by side.
  """
  with _ONE_AT_A_TIME if in_turn() else contextlib.nullcontext(), no_mesh():
    yield


def in_turn() -> bool:
  """Whether threads call programs one after the other."""
  return jax.default_backend() == 'gpu'


def on_one_device(x: Any) -> jax.Array:
  """A value as an array of one device: generation runs without a mesh."""
  if isinstance(x, jax.Array) and jax.typeof(x).sharding.mesh.empty:
    return x
  return jnp.asarray(np.asarray(x))


def bucket_length(n: int) -> int:
  """n rounded up to an eighth of the next power of two, so that few programs are compiled."""
  step = max(BUCKET, (1 << (n - 1).bit_length()) // 8)
  return -(-n // step) * step

"""Causal attention over packed documents: one function, three implementations.

What may be seen is decided by positions and segment ids alone: key s is visible to query t when
both belong to the same segment (document) and s's position is not after t's (nor further back
than the sliding window). Positions restart at each document, so the same rule serves training on
packed rows and decoding against a cache whose slot s holds position s.

  xla     plain matrix products, anywhere, any mask
  cudnn   NVIDIA GPUs in bf16 or fp16: documents by their lengths and offsets, so that what lies
          outside a document costs nothing
  splash  TPUs: blocks outside the causal triangle or the window are skipped, documents masked

All give the output and the log-sum-exp of each query, and a backward pass from the two. So one
custom gradient serves all: its residuals bear the name `ctx` (a remat policy that saves it does
not run attention twice), and the log-sum-exp bounds the largest logit for nothing.

On a mesh each device computes its rows and heads (`shard_map`). Where the mesh splits the sequence
too, each gathers the keys and values of its rows, and their gradients are summed and scattered
back. A ring would move as many bytes in C - 1 steps and was measured to need more memory
(experiments/benchmarks/context_parallel.py); grouped queries make what is gathered small: 134 MB a
layer for 65,536 tokens of SmolLM3-3B. Rows are dealt out in pairs of an early and a late piece, so
that each device has the same work: `sharding.deal`. A kernel then runs on a device's own two
pieces, and once for each on the keys before it, and the results are joined by their log-sum-exp.

Shapes: B batch, T query time, S key time, N query heads, K kv heads, G = N/K, H head dim;
X = T * G, the queries that share a kv head; M documents in a row at most.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from smoljax import sharding

MEASURES = ('bound', 'exact')  # of a head's largest logit: see `attention`
MASKED = -1e30  # not -inf: a row without any visible key must not become NaN


class Places(NamedTuple):
  """Where queries and keys stand; all int32. Segments are both given or both None."""

  q_positions_BT: jax.Array
  kv_positions_BS: jax.Array
  q_segments_BT: jax.Array | None = None
  kv_segments_BS: jax.Array | None = None
  window: jax.Array | int | None = None


class How(NamedTuple):
  """What is static about a call."""

  implementation: str
  windows: tuple[int | None, ...]  # that `window` may be, None = no window; kernels need them
  softcap: float
  in_order: bool
  dealt: bool
  max_segments: int = 32


def attention(
  q_BTNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  *,
  q_positions_BT: jax.Array,
  kv_positions_BS: jax.Array,
  q_segments_BT: jax.Array | None = None,
  kv_segments_BS: jax.Array | None = None,
  window: jax.Array | int | None = None,
  windows: tuple[int | None, ...] = (),
  softcap: float = 0.0,
  in_order: bool = False,
  dealt: bool = False,
  max_segments: int = 32,
  max_logits: str | float | None = None,
  implementation: str = 'auto',
) -> tuple[jax.Array, jax.Array | None]:
  """Grouped-query attention, scale H^-0.5, softmax in fp32.

  Args:
    q_BTNH, k_BSKH, v_BSKH: queries, keys, values of one dtype; N is a multiple of K.
    q_positions_BT, kv_positions_BS: int32 positions within the document; B may be 1.
    q_segments_BT, kv_segments_BS: int32 document ids; both or neither.
    window: a query sees this many positions, itself included (a traced int is allowed).
    windows: all values that a traced `window` takes, static; at least the row length (or None)
      means no window. cudnn and splash compile one kernel for each and branch between them, so
      that layers with different windows can still be scanned; xla does not need it.
    softcap: logits become softcap * tanh(logits / softcap) (Gemma 2, arXiv:2408.00118); 0 = off.
    in_order: queries and keys are the same tokens of rows whose documents lie one after the
      other, so no key after a query's own place is needed; those are skipped, not just masked.
    dealt: in_order, and where the mesh splits the sequence, rows are as `sharding.deal` has them.
    max_segments: documents that a row may hold, padding aside. cudnn's kernels take time for each
      that may be, and give NaN for rows of more; the others do not need it.
    max_logits: None; 'bound', the largest log-sum-exp, at least the largest logit and at most
      log(S) above it, for nothing; 'exact', which costs another product of queries and keys
      (except on xla, where the compiler shares it); or a float: exact too, and the queries of a
      head with a larger logit are scaled down first, so that its largest is that number (without
      a softcap, which bends the scale).
    implementation: 'xla', 'cudnn', 'splash', or 'auto': cudnn on GPUs and splash on TPUs where
      they can do what is asked, else xla.
  Returns:
    out_BTNH in q's dtype, and max_logits_N: per head the largest visible logit that enters the
    softmax, or would if no number bounded it, fp32, without gradient (for MuonClip,
    arXiv:2507.20534); None unless asked for.
  Raises:
    ValueError: an unknown name, or an implementation that cannot do what is asked, saying why.
  """
  limited = isinstance(max_logits, float)
  if not limited and max_logits not in (None, *MEASURES):
    raise ValueError(
      f'max_logits={max_logits!r}: one of None, {", ".join(map(repr, MEASURES))}, or a float')
  S = k_BSKH.shape[1]
  static = window is None or isinstance(window, int)
  choices = tuple(dict.fromkeys(
    w if w and w < S else None for w in ((window,) if static else windows)))
  how = How(implementation, choices, float(softcap), in_order, dealt, max_segments)
  segmented = q_segments_BT is not None or sharding.num_parts('length') > 1
  how = how._replace(implementation=_choose(how, q_BTNH, k_BSKH, segmented))
  names = 'batch', 'length'
  q_BTNH = sharding.constrain(q_BTNH, *names, 'heads', 'head_dim')
  k_BSKH, v_BSKH = (
    sharding.constrain(x, *names, 'kv_heads', 'head_dim') for x in (k_BSKH, v_BSKH))
  places = Places(*(
    None if x is None else sharding.constrain(jnp.asarray(x), *_place_names(x))
    for x in (q_positions_BT, kv_positions_BS, q_segments_BT, kv_segments_BS)
  ), None if choices == (None,) else jnp.asarray(window, jnp.int32))  # fmt: skip
  max_N = None
  if limited or max_logits == 'exact':
    q_k = jax.lax.stop_gradient((q_BTNH, k_BSKH))
    max_N = jnp.max(_per_device(_largest, [STATISTIC], how, *q_k, places)[0], axis=(0, 1))
  if limited:
    max_N = checkpoint_name(max_N, 'ctx')  # lest the backward pass measure again
    too_large_N = jnp.isfinite(max_N) & (max_N > max_logits)
    factor_N1 = jnp.where(too_large_N, max_logits / max_N, 1.0)[:, None]
    q_BTNH = (q_BTNH * factor_N1).astype(q_BTNH.dtype)
  out_BTNH, lse_BTN = _attend(how, q_BTNH, k_BSKH, v_BSKH, places)
  if max_logits == 'bound':
    max_N = jax.lax.stop_gradient(jnp.max(lse_BTN, axis=(0, 1)))
  return out_BTNH, max_N


def visible(places: Places) -> jax.Array:
  """mask_BTS, True where query t sees key s: the one place where masks are made."""
  q_BT1, kv_B1S = places.q_positions_BT[:, :, None], places.kv_positions_BS[:, None, :]
  mask_BTS = kv_B1S <= q_BT1
  if places.q_segments_BT is not None:
    mask_BTS &= places.q_segments_BT[:, :, None] == places.kv_segments_BS[:, None, :]
  if places.window is not None:
    mask_BTS &= q_BT1 - kv_B1S < places.window
  return mask_BTS


def probabilities(
  q_BTNH: jax.Array, k_BSKH: jax.Array, places: Places, *, softcap: float = 0.0
) -> jax.Array:
  """The weights_BNTS of the values, fp32, all at once: to be looked at, not to compute with."""
  B, T, N, H = q_BTNH.shape
  S, K = k_BSKH.shape[1:3]
  whole = sharding.out('batch', None, 'kv_heads', None, None)
  q_BTKGH = jnp.reshape(q_BTNH, (B, T, K, N // K, H), out_sharding=whole)
  k_BSKH = sharding.constrain(k_BSKH, 'batch', None, 'kv_heads', None)
  logits_BKGTS = H**-0.5 * jnp.einsum(
    'BTKGH,BSKH->BKGTS', q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
  if softcap:
    logits_BKGTS = softcap * jnp.tanh(logits_BKGTS / softcap)
  mask_BTS = visible(Places(*(
    None if x is None else sharding.constrain(x, *_place_names(x)[:1], None) for x in places[:4]
  ), places.window))  # fmt: skip
  probs_BKGTS = jax.nn.softmax(jnp.where(mask_BTS[:, None, None], logits_BKGTS, MASKED), axis=-1)
  return jnp.reshape(
    probs_BKGTS, (B, N, T, S), out_sharding=sharding.out('batch', 'heads', None, None))


def segments_from_positions(positions_BT: jax.Array) -> jax.Array:
  """Document ids counted from the places where the position is 0."""
  return jnp.cumsum(positions_BT == 0, axis=1, dtype=jnp.int32)


def positions_from_segments(segment_ids_BT: jax.Array) -> jax.Array:
  """Positions that restart wherever the segment id changes."""
  index_T = jnp.arange(segment_ids_BT.shape[1], dtype=jnp.int32)
  start_BT = jnp.pad(segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1], ((0, 0), (1, 0)))
  return index_T - jax.lax.cummax(jnp.where(start_BT, index_T, 0), axis=1)


# ------------------------------------------------------------------ one gradient, many devices

QUERY = ('batch', 'length', 'heads', 'head_dim')
KEY = ('batch', 'length', 'kv_heads', 'head_dim')
STATISTIC = ('batch', 'length', 'heads')


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how, q_BTNH, k_BSKH, v_BSKH, places):
  """(out_BTNH, lse_BTN); the second has no gradient."""
  return _per_device(_forward, [QUERY, STATISTIC], how, q_BTNH, k_BSKH, v_BSKH, places)


def _attend_forward(how, q_BTNH, k_BSKH, v_BSKH, places):
  out_BTNH, lse_BTN = _attend(how, q_BTNH, k_BSKH, v_BSKH, places)
  out_BTNH, lse_BTN = checkpoint_name(out_BTNH, 'ctx'), checkpoint_name(lse_BTN, 'ctx')
  return (out_BTNH, lse_BTN), (q_BTNH, k_BSKH, v_BSKH, places, out_BTNH, lse_BTN)


def _attend_backward(how, residuals, gradients):
  q_BTNH, k_BSKH, v_BSKH, places, out_BTNH, lse_BTN = residuals
  dout_BTNH = sharding.constrain(gradients[0], *QUERY)
  return *_per_device(
    _backward, [QUERY, KEY, KEY], how, q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH, places
  ), None


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(how, q_BTNH, k_BSKH, v_BSKH, places):
  kernel = IMPLEMENTATIONS[how.implementation]
  if sharding.num_parts('length') == 1 or kernel.forward_across is None:
    how, k_BSKH, v_BSKH, places = _gather(how, k_BSKH, v_BSKH, places)
    return _branch(how, places, kernel.forward, q_BTNH, k_BSKH, v_BSKH, places)
  own, reaches = _reaches(q_BTNH, places)
  out_BTNH, lse_BTN = kernel.forward(how, None, q_BTNH, k_BSKH, v_BSKH, own)
  k_BSKH, v_BSKH = _whole_row(k_BSKH), _whole_row(v_BSKH)
  outs, lses = [], []
  for t, reach in reaches:
    out, lse = kernel.forward_across(how, q_BTNH[:, t], k_BSKH, v_BSKH, reach)
    total = jnp.logaddexp(lse, lse_BTN[:, t])
    share, own_share = (jnp.exp(x - total)[..., None] for x in (lse, lse_BTN[:, t]))
    outs.append((out * share + out_BTNH[:, t] * own_share).astype(q_BTNH.dtype))
    lses.append(total)
  return _join(outs), _join(lses)


def _backward(how, q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH, places):
  kernel = IMPLEMENTATIONS[how.implementation]
  of_queries = q_BTNH, out_BTNH, lse_BTN, dout_BTNH
  if sharding.num_parts('length') == 1 or kernel.forward_across is None:
    how, k_BSKH, v_BSKH, places = _gather(how, k_BSKH, v_BSKH, places)
    dq_BTNH, dk_BSKH, dv_BSKH = _branch(
      how, places, kernel.backward, q_BTNH, k_BSKH, v_BSKH, *of_queries[1:], places)
    return dq_BTNH, _scatter(dk_BSKH), _scatter(dv_BSKH)
  # The log-sum-exp and the output over all keys make each part's gradients the right ones.
  own, reaches = _reaches(q_BTNH, places)
  dq_BTNH, dk_BSKH, dv_BSKH = kernel.backward(
    how, None, q_BTNH, k_BSKH, v_BSKH, *of_queries[1:], own)
  k_whole, v_whole = _whole_row(k_BSKH), _whole_row(v_BSKH)
  dqs, dk_whole, dv_whole = [], 0.0, 0.0
  for t, reach in reaches:
    q, *rest = (x[:, t] for x in of_queries)
    dq, dk, dv = kernel.backward_across(how, q, k_whole, v_whole, *rest, reach)
    dqs.append(dq + dq_BTNH[:, t])
    dk_whole, dv_whole = dk_whole + dk.astype(jnp.float32), dv_whole + dv.astype(jnp.float32)
  parts = sharding.num_parts('length')
  dk_own, dv_own = (_scatter(sharding.dealt(x, parts)) for x in (dk_whole, dv_whole))
  return (_join(dqs), (dk_BSKH + dk_own).astype(k_BSKH.dtype),
          (dv_BSKH + dv_own).astype(v_BSKH.dtype))


class Reach(NamedTuple):
  """What a piece of a row needs of earlier pieces: its first `queries_B` places belong to the
  document that holds the keys from `start_B` to `stop_B` of the whole row; none, if it begins one.
  """

  queries_B: jax.Array
  start_B: jax.Array
  stop_B: jax.Array


def _reaches(q_BTNH, places):
  """Rows that were dealt → (places within this device's own two pieces, which are documents apart;
  and of each piece its slice and `Reach`)."""
  parts, axis = sharding.num_parts('length'), sharding.RULES['length']
  B, T = q_BTNH.shape[:2]
  segments_BT = places.q_segments_BT
  if segments_BT is None:
    segments_BT = jnp.zeros((1, T), jnp.int32)
  segments_BT = jnp.broadcast_to(segments_BT, (B, T))
  half = T // 2
  own_BT = 2 * segments_BT + (jnp.arange(T) >= half)
  own = Places(places.q_positions_BT, places.kv_positions_BS, own_BT, own_BT)
  whole_BS = _whole_row(segments_BT)
  starts_BS = jnp.arange(T * parts) - positions_from_segments(whole_BS)  # of each one's document
  reaches = []
  first_piece = jax.lax.axis_index(axis)
  for i, piece in enumerate((first_piece, 2 * parts - 1 - first_piece)):
    stop = piece * half
    piece_BT = jax.lax.dynamic_slice_in_dim(starts_BS, stop, half, axis=1)
    start_B = piece_BT[:, 0]
    queries_B = jnp.sum(piece_BT == start_B[:, None], axis=1) * (start_B < stop)
    reach = Reach(*(x.astype(jnp.int32) for x in (queries_B, start_B, jnp.full(B, stop))))
    reaches.append((slice(i * half, (i + 1) * half), reach))
  return own, reaches


def _gather(how, k_BSKH, v_BSKH, places):
  """Keys and values of the whole row, still as dealt, where the mesh splits it."""
  if sharding.num_parts('length') == 1:
    return how, k_BSKH, v_BSKH, places
  whole = lambda x: x if x is None else jax.lax.all_gather(
    x, sharding.RULES['length'], axis=1, tiled=True)
  places = places._replace(
    kv_positions_BS=whole(places.kv_positions_BS), kv_segments_BS=whole(places.kv_segments_BS))
  return how._replace(in_order=False), whole(k_BSKH), whole(v_BSKH), places


def _whole_row(x):
  """All pieces of a split row, in reading order."""
  x = jax.lax.all_gather(x, sharding.RULES['length'], axis=1, tiled=True)
  return sharding.dealt(x, sharding.num_parts('length'), back=True)


def _scatter(dx_BSKH):
  """Gradients of gathered keys: the devices' sums, each one its part."""
  if sharding.num_parts('length') == 1:
    return dx_BSKH
  dx = jax.lax.psum_scatter(dx_BSKH.astype(jnp.float32), sharding.RULES['length'],
                            scatter_dimension=1, tiled=True)
  return dx.astype(dx_BSKH.dtype)


def _branch(how, places, function, *args):
  """function(how, window, *args), the window static as the kernels need it."""
  if len(how.windows) == 1 or how.implementation == 'xla':
    return function(how, how.windows[0] if how.windows else None, *args)
  no_window = jnp.iinfo(jnp.int32).max
  sizes = jnp.array([w or no_window for w in how.windows])
  window = jnp.where(jnp.any(sizes == places.window), places.window, no_window)
  branches = [functools.partial(function, how, w) for w in how.windows]
  return jax.lax.switch(jnp.argmax(sizes == window), branches, *args)


def _per_device(function, out_names, how, *args):
  """function(how, *args) on each device's part of the arguments; without a mesh, on all."""
  function = functools.partial(function, how)
  if jax.sharding.get_abstract_mesh().empty:
    return function(*args)
  out_specs = tuple(sharding.spec(*names) for names in out_names)
  return jax.shard_map(function, out_specs=out_specs, check_vma=False)(*args)


def _place_names(x):
  return 'batch' if x.shape[0] > 1 else None, 'length'


def _choose(how, q_BTNH, k_BSKH, segmented):
  if how.implementation == 'auto':
    able = (n for n, i in IMPLEMENTATIONS.items() if not i.refusal(how, q_BTNH, k_BSKH, segmented))
    return next(able)
  if how.implementation not in IMPLEMENTATIONS:
    raise ValueError(f'attention implementation {how.implementation!r}: '
                     f'one of auto, {", ".join(sorted(IMPLEMENTATIONS))}')
  reason = IMPLEMENTATIONS[how.implementation].refusal(how, q_BTNH, k_BSKH, segmented)
  if reason:
    raise ValueError(f'attention implementation {how.implementation!r} {reason}; '
                     "use 'auto' or 'xla'")
  return how.implementation


# ---------------------------------------------------------------------------------------- XLA
# Plain matrix products that run anywhere. As in FlashAttention (arXiv:2205.14135) the backward
# pass recomputes the probabilities from the log-sum-exp instead of keeping [B, N, T, S] of every
# layer, and queries are taken a chunk at a time, each against the keys up to its end only. The
# queries of a kv head are merged into one matrix dim: XLA's CPU products are slow otherwise.

MIN_CHUNK, MAX_CHUNK, CHUNKS = 64, 2048, 8  # queries at a time: an 8th of the row, within bounds


def _xla_forward(how, _, q_BTNH, k_BSKH, v_BSKH, places):
  K = k_BSKH.shape[2]
  k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
  outs, lses = [], []
  for t, s, chunk_places in _chunks(how, q_BTNH, k_BSKH, places):
    s_BKXS, _ = _logits(how, _merge(q_BTNH[:, t], K), k_BKSH[:, :, s], chunk_places)
    max_BKX = s_BKXS.max(axis=-1)
    e_BKXS = jnp.exp(s_BKXS - max_BKX[..., None])
    sum_BKX = e_BKXS.sum(axis=-1)
    o_BKXH = _dot('BKXS,BKSH->BKXH', e_BKXS.astype(v_BSKH.dtype), v_BKSH[:, :, s])
    o_BKXH = (o_BKXH / sum_BKX[..., None]).astype(q_BTNH.dtype)
    outs.append(_split(o_BKXH, q_BTNH[:, t].shape))
    lses.append(_split(max_BKX + jnp.log(sum_BKX), q_BTNH[:, t].shape[:3]))
  return _join(outs), _join(lses)


def _xla_backward(how, _, q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH, places):
  K, S, H = k_BSKH.shape[2], k_BSKH.shape[1], k_BSKH.shape[3]
  k_BKSH, v_BKSH = k_BSKH.swapaxes(1, 2), v_BSKH.swapaxes(1, 2)
  dq, dk, dv = [], [], []
  for t, s, chunk_places in _chunks(how, q_BTNH, k_BSKH, places):
    q_BKXH, do_BKXH, o_BKXH, lse_BKX = (
      _merge(x[:, t], K) for x in (q_BTNH, dout_BTNH, out_BTNH, lse_BTN))
    s_BKXS, slope_BKXS = _logits(how, q_BKXH, k_BKSH[:, :, s], chunk_places)
    p_BKXS = jnp.exp(s_BKXS - lse_BKX[..., None])
    delta_BKX = jnp.sum(do_BKXH.astype(jnp.float32) * o_BKXH.astype(jnp.float32), axis=-1)
    dp_BKXS = _dot('BKXH,BKSH->BKXS', do_BKXH, v_BKSH[:, :, s])
    ds_BKXS = p_BKXS * (dp_BKXS - delta_BKX[..., None]) * slope_BKXS * H**-0.5
    ds_BKXS = ds_BKXS.astype(q_BTNH.dtype)
    dq_BKXH = _dot('BKXS,BKSH->BKXH', ds_BKXS, k_BKSH[:, :, s])
    dq.append(_split(dq_BKXH, q_BTNH[:, t].shape).astype(q_BTNH.dtype))
    after = ((0, 0), (0, 0), (0, S - s.stop), (0, 0))  # keys that this chunk did not need
    dk.append(jnp.pad(_dot('BKXS,BKXH->BKSH', ds_BKXS, q_BKXH), after))
    dv.append(jnp.pad(_dot('BKXS,BKXH->BKSH', p_BKXS.astype(v_BSKH.dtype), do_BKXH), after))
  dk_BSKH = sum(dk[1:], dk[0]).swapaxes(1, 2).astype(k_BSKH.dtype)
  dv_BSKH = sum(dv[1:], dv[0]).swapaxes(1, 2).astype(v_BSKH.dtype)
  return _join(dq), dk_BSKH, dv_BSKH


def _largest(how, q_BTNH, k_BSKH, places):
  """The largest visible logit of each query, [B, T, N]."""
  how, k_BSKH, _, places = _gather(how, k_BSKH, None, places)
  K, k_BKSH = k_BSKH.shape[2], k_BSKH.swapaxes(1, 2)
  parts = []
  for t, s, chunk_places in _chunks(how, q_BTNH, k_BSKH, places):
    s_BKXS, _ = _logits(how, _merge(q_BTNH[:, t], K), k_BKSH[:, :, s], chunk_places)
    parts.append(_split(s_BKXS.max(axis=-1), q_BTNH[:, t].shape[:3]))
  return (_join(parts),)


def _chunks(how, q_BTNH, k_BSKH, places):
  """(queries, keys, places) of each chunk: two slices, and the arguments of `visible`."""
  T, S = q_BTNH.shape[1], k_BSKH.shape[1]
  size = min(-(-T // max(1, min(T // MIN_CHUNK, CHUNKS))), MAX_CHUNK)
  for start in range(0, T, size):
    t = slice(start, min(start + size, T))
    s = slice(0, t.stop if how.in_order else S)
    q_segments, kv_segments = places.q_segments_BT, places.kv_segments_BS
    if q_segments is not None:
      q_segments, kv_segments = q_segments[:, t], kv_segments[:, s]
    yield t, s, Places(places.q_positions_BT[:, t], places.kv_positions_BS[:, s],
                       q_segments, kv_segments, places.window)


def _logits(how, q_BKXH, k_BKSH, places):
  """Logits as they enter the softmax, fp32, hidden ones at MASKED; and the softcap's slope."""
  logits_BKXS = _dot('BKXH,BKSH->BKXS', q_BKXH, k_BKSH) * q_BKXH.shape[-1] ** -0.5
  slope_BKXS = 1.0
  if how.softcap:
    tanh_BKXS = jnp.tanh(logits_BKXS / how.softcap)
    logits_BKXS, slope_BKXS = how.softcap * tanh_BKXS, 1 - tanh_BKXS**2
  mask_BTS = visible(places)
  B, K, X, S = logits_BKXS.shape
  T = mask_BTS.shape[1]
  logits_BKTGS = logits_BKXS.reshape(B, K, T, X // T, S)
  masked_BKTGS = jnp.where(mask_BTS[:, None, :, None, :], logits_BKTGS, MASKED)
  return masked_BKTGS.reshape(B, K, X, S), slope_BKXS


def _dot(equation, a, b):
  return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _merge(x, K):
  """[B, T, N, …] → [B, K, X, …]."""
  B, T, N, *rest = x.shape
  return x.reshape(B, T, K, N // K, *rest).swapaxes(1, 2).reshape(B, K, T * (N // K), *rest)


def _split(x, shape):
  """[B, K, X, …] → [B, T, N, …], the given shape."""
  B, T, N, *rest = shape
  K = x.shape[1]
  return x.reshape(B, K, T, N // K, *rest).swapaxes(1, 2).reshape(shape)


def _join(parts):
  return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


# -------------------------------------------------------------------------------------- cuDNN
# The flash attention of cuDNN 9 through jax._src: the public jax.nn.dot_product_attention knows no
# documents. Packed rows are given as lengths and offsets of their documents, and only the pairs
# inside a document are computed, in both passes.


def _cudnn_refusal(how, q_BTNH, k_BSKH, segmented):
  platform, H = _platform(), q_BTNH.shape[3]
  if platform not in ('gpu', 'cuda'):
    return f'runs on NVIDIA GPUs, not on {platform}'
  if q_BTNH.dtype not in (jnp.bfloat16, jnp.float16):
    return f'computes in bfloat16 or float16, not in {q_BTNH.dtype}'
  if how.softcap:
    return 'has no softcap'
  if H % 8 or H > 256:
    return f'needs a head_dim that is a multiple of 8 and at most 256, not {H}'
  if reason := _needs_order(how):
    return reason
  if q_BTNH.shape[1] < 2 * _pieces():
    return 'has no plan for rows (or pieces of rows) of one token'
  if segmented and jax.__version_info__ < (0, 11, 2):
    return f'needs jax 0.11.2 for documents (jax#39521), this is {jax.__version__}'
  if jax.default_backend() == 'gpu':  # not when compiling for another machine
    capability = float(jax.devices()[0].compute_capability)
    if capability < (9.0 if segmented else 8.0):
      need = 'a Hopper GPU (compute capability 9.0) for documents' if segmented else 'an Ampere GPU'
      return f'needs {need} or later, this is {capability}'
  return None


def _cudnn_forward(how, window, q_BTNH, k_BSKH, v_BSKH, places):
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  documents = _documents_of(how, q_BTNH, places)
  q_BTNH = documents.poison(q_BTNH)
  out_BTNH, statistics = cudnn.dot_product_attention(
    q_BTNH, k_BSKH, v_BSKH, scale=q_BTNH.shape[3] ** -0.5, sliding_window_length=window,
    return_residual=True, **documents.arguments(cudnn),
  )
  return out_BTNH, documents.unpack(statistics)


def _cudnn_backward(how, window, q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH, places):
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  documents = _documents_of(how, q_BTNH, places)
  return _cudnn_gradients(window, q_BTNH, k_BSKH, v_BSKH, documents.pack(lse_BTN), out_BTNH,
                          dout_BTNH, **documents.arguments(cudnn))


def _cudnn_forward_across(how, q_BTNH, k_BSKH, v_BSKH, reach):
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  B, T, N, H = q_BTNH.shape
  out_BTNH, statistics = cudnn.dot_product_attention(
    q_BTNH, k_BSKH, v_BSKH, scale=H**-0.5, return_residual=True, **_across(cudnn, reach))
  lse_BTN = statistics.reshape(B, 2, N, T)[:, 0].swapaxes(1, 2)
  reached_BT1 = _reached(T, 0, reach.queries_B)[..., None]
  # What no document covers is memory as it was found.
  return (jnp.where(reached_BT1[..., None], out_BTNH, 0),
          jnp.where(reached_BT1, lse_BTN, MASKED))


def _cudnn_backward_across(how, q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH, reach):
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  B, T, N, _ = q_BTNH.shape
  statistics = jnp.pad(lse_BTN.swapaxes(1, 2)[:, None], ((0, 0), (0, 1), (0, 0), (0, 0)))
  dq_BTNH, dk_BSKH, dv_BSKH = _cudnn_gradients(
    None, q_BTNH, k_BSKH, v_BSKH, statistics.reshape(2 * B, N, T), out_BTNH, dout_BTNH,
    **_across(cudnn, reach))
  queries = _reached(T, 0, reach.queries_B)[..., None, None]
  keys = _reached(k_BSKH.shape[1], reach.start_B, reach.stop_B)
  keys = (keys & (reach.queries_B > 0)[:, None])[..., None, None]
  return (jnp.where(queries, dq_BTNH, 0), jnp.where(keys, dk_BSKH, 0),
          jnp.where(keys, dv_BSKH, 0))


def _across(cudnn, reach):
  """One document a row, and an empty one: cuDNN takes offsets only for two at least."""
  some_B = reach.queries_B > 0
  zero_B = jnp.zeros_like(reach.queries_B)
  keys_B = jnp.where(some_B, reach.stop_B - reach.start_B, 0)
  return dict(
    mask_type=cudnn.MaskType.PADDING,
    q_seqlen=jnp.stack([reach.queries_B, zero_B], 1), kv_seqlen=jnp.stack([keys_B, zero_B], 1),
    q_offsets=jnp.stack([zero_B, reach.queries_B, zero_B - 1], 1),
    kv_offsets=jnp.stack([reach.start_B, reach.stop_B, zero_B - 1], 1),
  )


def _reached(size, start_B, stop_B):
  place = jnp.arange(size)
  return (place >= jnp.reshape(start_B, (-1, 1))) & (place < jnp.reshape(stop_B, (-1, 1)))


def _cudnn_gradients(
  window, q_BTNH, k_BSKH, v_BSKH, statistics, out_BTNH, dout_BTNH, *, mask_type, q_seqlen=None,
  kv_seqlen=None, q_offsets=None, kv_offsets=None,
):
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  unused = jnp.zeros(0, q_BTNH.dtype)
  spans = (unused if x is None else x for x in (q_seqlen, kv_seqlen, q_offsets, kv_offsets))
  residuals = (q_BTNH, k_BSKH, v_BSKH, unused, *spans, unused, unused, statistics, out_BTNH)
  # scale, seed, dropout, (bias, its gradient), mask, layout, window, training, residual returned
  return cudnn._dot_product_attention_bwd_rule(
    q_BTNH.shape[3] ** -0.5, 42, 0.0, (False, False), mask_type,
    cudnn.AttentionLayout.BTNH.value, window, True, False, residuals, dout_BTNH,
  )[:3]


def document_spans(
  segment_ids_BT: jax.Array, max_documents: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Where the documents of packed rows lie: runs of one segment id.

  Returns lengths_BM and starts_BM of the first `max_documents` runs, -1 where there are fewer, and
  index_BT, the number of each token's run within its row; all int32.
  """
  change_BT = jnp.pad(segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1], ((0, 0), (1, 0)))
  index_BT = jnp.cumsum(change_BT, axis=1, dtype=jnp.int32)
  run_M1 = jnp.arange(max_documents, dtype=jnp.int32)[:, None]
  lengths_BM = jnp.sum(index_BT[:, None, :] == run_M1, axis=2, dtype=jnp.int32)
  starts_BM = jnp.cumsum(lengths_BM, axis=1) - lengths_BM
  unused_BM = lengths_BM == 0
  return jnp.where(unused_BM, -1, lengths_BM), jnp.where(unused_BM, -1, starts_BM), index_BT


class _Documents:
  """Packed rows in cuDNN's terms; without segments each row is one document.

  cuDNN's statistics are [B * M, N, T]: a row of each document, those in use first. They are kept
  as [B, T, N], one value a query, which is M times smaller.
  """

  def __init__(self, segments_BT, max_documents):
    self.packed, self.max_documents = segments_BT is not None, max_documents
    if not self.packed:
      return
    self.lengths_BM, self.starts_BM, index_BT = document_spans(segments_BT, max_documents)
    self.too_many_B = index_BT[:, -1] >= max_documents
    used_B = jnp.sum(self.lengths_BM > 0, axis=1)
    before_B1 = (jnp.cumsum(used_B) - used_B)[:, None]
    self.document_BT = before_B1 + jnp.minimum(index_BT, max_documents - 1)
    self.place_BT = positions_from_segments(segments_BT)

  def arguments(self, cudnn):
    if not self.packed:
      return {'mask_type': cudnn.MaskType.CAUSAL}
    offsets_BM = jnp.pad(self.starts_BM, ((0, 0), (0, 1)), constant_values=-1)
    return dict(
      mask_type=cudnn.MaskType.PADDING_CAUSAL, q_seqlen=self.lengths_BM,
      kv_seqlen=self.lengths_BM, q_offsets=offsets_BM, kv_offsets=offsets_BM,
    )

  def poison(self, q_BTNH):
    """NaN for rows of more documents than fit: better than tokens that see other documents."""
    if not self.packed:
      return q_BTNH
    return jnp.where(self.too_many_B[:, None, None, None], jnp.nan, q_BTNH)

  def unpack(self, statistics):
    if not self.packed:
      return statistics.swapaxes(1, 2)
    return statistics[self.document_BT, :, self.place_BT]

  def pack(self, lse_BTN):
    if not self.packed:
      return lse_BTN.swapaxes(1, 2)
    B, T, N = lse_BTN.shape
    empty = jnp.zeros((B * self.max_documents, N, T), lse_BTN.dtype)
    return empty.at[self.document_BT, :, self.place_BT].set(lse_BTN, unique_indices=True)


def _documents_of(how, q_BTNH, places):
  # The rest of a row counts too. Where a device holds two pieces of a row, one may lie in both.
  most = how.max_segments + 1 + (sharding.num_parts('length') > 1)
  return _Documents(_segments_of(q_BTNH, places.q_segments_BT), most)


# ------------------------------------------------------------------------------------- splash
# The TPU kernel that comes with jax. Its own gradient is not used, so that one rule names the
# residuals for every implementation; forward and backward kernels are called apart.

BLOCK = 1024  # queries and keys of a tile at most; fits the smallest VMEM (v5e) up to H = 128
interpret_splash = False  # set by tests: runs the kernels on any device, slowly


def _splash_refusal(how, q_BTNH, k_BSKH, segmented):
  if _platform() != 'tpu' and not interpret_splash:
    return f'runs on TPUs, not on {_platform()}'
  if q_BTNH.shape[1] % (128 * _pieces()):
    return f'needs rows of a multiple of {128 * _pieces()} tokens, not {q_BTNH.shape[1]}'
  return _needs_order(how)


def _splash_forward(how, window, q_BTNH, k_BSKH, v_BSKH, places):
  segments = _splash_segments(q_BTNH, places)
  return _splash_run(how, window, True, q_BTNH, k_BSKH, v_BSKH, segments)


def _splash_forward_across(how, q_BTNH, k_BSKH, v_BSKH, reach):
  segments = _splash_reach(q_BTNH, k_BSKH, reach)
  out_BTNH, lse_BTN = _splash_run(how, None, False, q_BTNH, k_BSKH, v_BSKH, segments)
  reached_BT1 = _reached(q_BTNH.shape[1], 0, reach.queries_B)[..., None]
  return out_BTNH, jnp.where(reached_BT1, lse_BTN, MASKED)


def _splash_backward(how, window, q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH, places):
  segments = _splash_segments(q_BTNH, places)
  return _splash_gradients(
    how, window, True, q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH, segments)


def _splash_backward_across(how, q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH, reach):
  segments = _splash_reach(q_BTNH, k_BSKH, reach)
  return _splash_gradients(
    how, None, False, q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH, segments)


def _splash_run(how, window, causal, q_BTNH, k_BSKH, v_BSKH, segments):
  kernel = _splash_kernel(how, window, causal, q_BTNH, k_BSKH)

  def row(q_NTH, k_KSH, v_KSH, segments):
    out_NTH, (lse_NT,) = kernel(q_NTH, k_KSH, v_KSH, segments)
    return out_NTH, lse_NT

  q_BNTH, k_BKSH, v_BKSH = (x.swapaxes(1, 2) for x in (_scaled(q_BTNH), k_BSKH, v_BSKH))
  out_BNTH, lse_BNT = jax.vmap(row)(q_BNTH, k_BKSH, v_BKSH, segments)
  return out_BNTH.swapaxes(1, 2), lse_BNT.swapaxes(1, 2)


def _splash_gradients(
  how, window, causal, q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH, segments
):
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

  kernel = _splash_kernel(how, window, causal, q_BTNH, k_BSKH)
  options = kernel.kwargs

  def row(q_NTH, k_KSH, v_KSH, out_NTH, lse_NT, dout_NTH, segments):
    residuals = (q_NTH, k_KSH, v_KSH, segments, None, out_NTH, lse_NT,
                 kernel.dq_mask_info, kernel.dkv_mask_info)
    return splash._splash_attention_bwd(
      False, options['mask_value'], False, options['block_sizes'], None, options['mask_function'],
      options['attn_logits_soft_cap'], options['interpret'], residuals, dout_NTH,
    )[3:6]

  arrays = (_scaled(q_BTNH), k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH)
  dq, dk, dv = jax.vmap(row)(*(x.swapaxes(1, 2) for x in arrays), segments)
  return _scaled(dq.swapaxes(1, 2)), dk.swapaxes(1, 2), dv.swapaxes(1, 2)


def _splash_kernel(how, window, causal, q_BTNH, k_BSKH):
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  (_, T, N, _), S = q_BTNH.shape, k_BSKH.shape[1]
  if not causal:
    mask = masks.FullMask((T, S))
  elif window:
    mask = masks.LocalMask((T, S), (window - 1, 0), 0)
  else:
    mask = masks.CausalMask((T, S))
  q_block, kv_block = (
    next(b for b in range(min(n, BLOCK), 0, -128) if n % b == 0) for n in (T, S))
  return splash.make_splash_mha(
    masks.MultiHeadMask([mask] * N), head_shards=1, q_seq_shards=1, save_residuals=True,
    block_sizes=splash.BlockSizes(
      block_q=q_block, block_kv=kv_block, block_q_dkv=q_block, block_kv_dkv=kv_block,
      use_fused_bwd_kernel=True,
    ),
    attn_logits_soft_cap=how.softcap or None, interpret=interpret_splash,
  )


def _splash_reach(q_BTNH, k_BSKH, reach):
  """Segment 1 for what is reached; queries and keys outside have different ones."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

  queries = _reached(q_BTNH.shape[1], 0, reach.queries_B)
  keys = _reached(k_BSKH.shape[1], reach.start_B, reach.stop_B)
  return splash.SegmentIds(jnp.where(queries, 1, 2), jnp.where(keys, 1, 3))


def _splash_segments(q_BTNH, places):
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

  if places.q_segments_BT is None:
    return None
  q_segments, kv_segments = (
    _segments_of(q_BTNH, x) for x in (places.q_segments_BT, places.kv_segments_BS))
  return splash.SegmentIds(q_segments, kv_segments)


def _scaled(q_BTNH):
  return (q_BTNH.astype(jnp.float32) * q_BTNH.shape[3] ** -0.5).astype(q_BTNH.dtype)


def _segments_of(q_BTNH, segments_BT):
  return None if segments_BT is None else jnp.broadcast_to(segments_BT, q_BTNH.shape[:2])


def _needs_order(how):
  if not how.in_order:
    return 'needs in_order (training and prefill on whole rows)'
  if not how.windows:
    return 'needs all `windows` that a traced window may be'
  if sharding.num_parts('length') > 1 and not how.dealt:
    return 'needs rows as sharding.deal has them where the mesh splits the sequence'
  if sharding.num_parts('length') > 1 and how.windows != (None,):
    return 'has no sliding window where the mesh splits the sequence'
  return None


def _pieces():
  """That a row is dealt in."""
  parts = sharding.num_parts('length')
  return 2 * parts if parts > 1 else 1


def _platform():
  mesh = jax.sharding.get_abstract_mesh()
  device = None if mesh.empty else mesh.abstract_device
  return device.platform if device else jax.default_backend()


class Implementation(NamedTuple):
  """What runs on one device; all get `how` first.

  The functions `across` see no mask but a `Reach`, for rows that the mesh splits; an implementation
  without them gets all keys and masks.
  """

  refusal: Callable  # (how, q_BTNH, k_BSKH, segmented) → why it cannot do this, or None
  forward: Callable  # (how, static window, q, k, v, places) → out_BTNH, lse_BTN
  backward: Callable  # (how, static window, q, k, v, out, lse, dout, places) → dq, dk, dv
  forward_across: Callable | None = None  # (how, q, k, v, reach) → out_BTNH, lse_BTN
  backward_across: Callable | None = None  # (how, q, k, v, out, lse, dout, reach) → dq, dk, dv


# In the order in which 'auto' takes the first that can.
IMPLEMENTATIONS = {
  'cudnn': Implementation(_cudnn_refusal, _cudnn_forward, _cudnn_backward,
                          _cudnn_forward_across, _cudnn_backward_across),
  'splash': Implementation(_splash_refusal, _splash_forward, _splash_backward,
                           _splash_forward_across, _splash_backward_across),
  'xla': Implementation(lambda *_: None, _xla_forward, _xla_backward),
}

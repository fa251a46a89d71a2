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
layer for 65,536 tokens of SmolLM3-3B. Rows are cut in a zigzag, into pairs of an early and a late
piece, so that each device has the same work: `sharding.zigzag`. A kernel then runs on a device's
own two pieces, and once for each on the keys before it, and the results are joined by their
log-sum-exp.

Shapes: B batch, T query time, S key time, N query heads, K kv heads, G = N/K, H head dim;
X = T * G, the queries that share a kv head; M documents in a row at most.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from smoljax import sharding
from smoljax.model.attention import context, cudnn, splash, xla
from smoljax.model.attention.context import KEY, QUERY, STATISTIC
from smoljax.model.attention.masks import MASKED, Places, Static, visible

MEASURES = ('bound', 'exact')  # of a head's largest logit: see `attention`


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
  zigzag: bool = False,
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
    zigzag: in_order, and where the mesh splits the sequence, rows are as `sharding.zigzag` has
      them.
    max_segments: documents that a row may hold; padding (segment 0) before them counts, behind
      them it does not, and what it attends to is not said. cudnn's kernels take time for each that
      may be, and give NaN for rows of more; the others do not need it.
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
  fixed_window = window is None or isinstance(window, int)
  choices = tuple(dict.fromkeys(
    w if w and w < S else None for w in ((window,) if fixed_window else windows)))
  static = Static(implementation, choices, float(softcap), in_order, zigzag, max_segments)
  segmented = q_segments_BT is not None or sharding.num_parts('length') > 1
  static = static._replace(implementation=_choose(static, q_BTNH, k_BSKH, segmented))
  names = 'batch', 'length'
  q_BTNH = sharding.constrain(q_BTNH, *names, 'heads', 'head_dim')
  k_BSKH, v_BSKH = (
    sharding.constrain(x, *names, 'kv_heads', 'head_dim') for x in (k_BSKH, v_BSKH))
  placed: list[Any] = [
    None if x is None else sharding.constrain(jnp.asarray(x), *context.place_names(x))
    for x in (q_positions_BT, kv_positions_BS, q_segments_BT, kv_segments_BS)
  ]
  places = Places(
    *placed, window=None if choices == (None,) else jnp.asarray(window, jnp.int32))
  max_N = None
  if limited or max_logits == 'exact':
    q_k = jax.lax.stop_gradient((q_BTNH, k_BSKH))
    largest_BTN, = context.per_device(xla.largest, [STATISTIC], static, *q_k, places)
    max_N = jnp.max(largest_BTN, axis=(0, 1))
  if limited:
    max_N = checkpoint_name(max_N, 'ctx')  # lest the backward pass measure again
    too_large_N = jnp.isfinite(max_N) & (max_N > max_logits)
    factor_N1 = jnp.where(too_large_N, max_logits / max_N, 1.0)[:, None]
    q_BTNH = (q_BTNH * factor_N1).astype(q_BTNH.dtype)
  out_BTNH, lse_BTN = _attend(static, q_BTNH, k_BSKH, v_BSKH, places)
  if max_logits == 'bound':
    max_N = jax.lax.stop_gradient(jnp.max(lse_BTN, axis=(0, 1)))
  return out_BTNH, max_N


def can_attend_after(q_BTNH: jax.Array, k_BSKH: jax.Array, softcap: float = 0.0) -> bool:
  """Whether `attention_after` can do it here, by kernels, which keep no logits.

  Of tokens and of the earlier keys; ShapeDtypeStructs will do.
  """
  kernel = IMPLEMENTATIONS[_after(q_BTNH, k_BSKH, softcap).implementation]
  return kernel.forward_across is not None and not k_BSKH.shape[1] % 128


def attention_after(
  q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array,
  earlier: tuple[jax.Array, jax.Array], span: context.RemoteSpan, segments_BT: jax.Array,
  *, softcap: float = 0.0,
) -> jax.Array:
  """out_BTNH of tokens that see each other, in order, and keys of before them; no gradient.

  Args:
    earlier: k_BSKH, v_BSKH, of any tokens.
    span: which of these the first queries of each row see.
    segments_BT: of the tokens themselves: 1, and 0 for padding on the left.
  """
  static = _after(q_BTNH, k_BTKH, softcap)
  kernel = IMPLEMENTATIONS[static.implementation]
  assert kernel.forward_across is not None, 'as can_attend_after() says'
  index_1T = jnp.arange(q_BTNH.shape[1])[None]
  own = Places(index_1T, index_1T, segments_BT, segments_BT)
  return _joined(kernel.forward(static, None, q_BTNH, k_BTKH, v_BTKH, own),
                 kernel.forward_across(static, q_BTNH, *earlier, span))[0]


def _after(q_BTNH, k_BSKH, softcap):
  static = Static('auto', (None,), float(softcap), in_order=True, zigzag=False, max_segments=2)
  return static._replace(implementation=_choose(static, q_BTNH, k_BSKH, True))


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
  rows = lambda x: (
    None if x is None else sharding.constrain(x, *context.place_names(x)[:1], None))
  mask_BTS = visible(Places(*map(rows, places[:4]), window=places.window))
  probs_BKGTS = jax.nn.softmax(jnp.where(mask_BTS[:, None, None], logits_BKGTS, MASKED), axis=-1)
  return jnp.reshape(
    probs_BKGTS, (B, N, T, S), out_sharding=sharding.out('batch', 'heads', None, None))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static, q_BTNH, k_BSKH, v_BSKH, places):
  """(out_BTNH, lse_BTN); the second has no gradient."""
  return context.per_device(_forward, [QUERY, STATISTIC], static, q_BTNH, k_BSKH, v_BSKH, places)


def _attend_forward(static, q_BTNH, k_BSKH, v_BSKH, places):
  out_BTNH, lse_BTN = _attend(static, q_BTNH, k_BSKH, v_BSKH, places)
  out_BTNH, lse_BTN = checkpoint_name(out_BTNH, 'ctx'), checkpoint_name(lse_BTN, 'ctx')
  return (out_BTNH, lse_BTN), (q_BTNH, k_BSKH, v_BSKH, places, out_BTNH, lse_BTN)


def _attend_backward(static, residuals, gradients):
  q_BTNH, k_BSKH, v_BSKH, places, out_BTNH, lse_BTN = residuals
  dout_BTNH = sharding.constrain(gradients[0], *QUERY)
  return *context.per_device(
    _backward, [QUERY, KEY, KEY], static, q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH,
    places,
  ), None


_attend.defvjp(_attend_forward, _attend_backward)


def _forward(static, q_BTNH, k_BSKH, v_BSKH, places):
  kernel = IMPLEMENTATIONS[static.implementation]
  if sharding.num_parts('length') == 1 or kernel.forward_across is None:
    static, k_BSKH, v_BSKH, places = context.gather(static, k_BSKH, v_BSKH, places)
    return context.branch(static, places, kernel.forward, q_BTNH, k_BSKH, v_BSKH, places)
  own, spans = context.remote_spans(q_BTNH, places)
  out_BTNH, lse_BTN = kernel.forward(static, None, q_BTNH, k_BSKH, v_BSKH, own)
  k_BSKH, v_BSKH = context.whole_row(k_BSKH), context.whole_row(v_BSKH)
  outs, lses = [], []
  for t, span in spans:
    across = kernel.forward_across(static, q_BTNH[:, t], k_BSKH, v_BSKH, span)
    out, lse = _joined((out_BTNH[:, t], lse_BTN[:, t]), across)
    outs.append(out)
    lses.append(lse)
  return xla.join(outs), xla.join(lses)


def _joined(own, across):
  """Output and log-sum-exp over two sets of keys, from those over each."""
  (own_BTNH, own_BTN), (out_BTNH, lse_BTN) = own, across
  total_BTN = jnp.logaddexp(lse_BTN, own_BTN)
  share, own_share = (jnp.exp(x - total_BTN)[..., None] for x in (lse_BTN, own_BTN))
  return (out_BTNH * share + own_BTNH * own_share).astype(own_BTNH.dtype), total_BTN


def _backward(static, q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH, places):
  kernel = IMPLEMENTATIONS[static.implementation]
  of_queries = q_BTNH, out_BTNH, lse_BTN, dout_BTNH
  if sharding.num_parts('length') == 1 or kernel.backward_across is None:
    static, k_BSKH, v_BSKH, places = context.gather(static, k_BSKH, v_BSKH, places)
    dq_BTNH, dk_BSKH, dv_BSKH = context.branch(
      static, places, kernel.backward, q_BTNH, k_BSKH, v_BSKH, *of_queries[1:], places)
    return dq_BTNH, context.scatter(dk_BSKH), context.scatter(dv_BSKH)
  # The log-sum-exp and the output over all keys make each part's gradients the right ones.
  own, spans = context.remote_spans(q_BTNH, places)
  dq_BTNH, dk_BSKH, dv_BSKH = kernel.backward(
    static, None, q_BTNH, k_BSKH, v_BSKH, *of_queries[1:], own)
  k_whole, v_whole = context.whole_row(k_BSKH), context.whole_row(v_BSKH)
  dqs, dk_whole, dv_whole = [], 0.0, 0.0
  for t, span in spans:
    q, *rest = (x[:, t] for x in of_queries)
    dq, dk, dv = kernel.backward_across(static, q, k_whole, v_whole, *rest, span)
    dqs.append(dq + dq_BTNH[:, t])
    dk_whole, dv_whole = dk_whole + dk.astype(jnp.float32), dv_whole + dv.astype(jnp.float32)
  parts = sharding.num_parts('length')
  dk_own, dv_own = (context.scatter(sharding.zigzag_parts(x, parts)) for x in (dk_whole, dv_whole))
  return (xla.join(dqs), (dk_BSKH + dk_own).astype(k_BSKH.dtype),
          (dv_BSKH + dv_own).astype(v_BSKH.dtype))


def _choose(static, q_BTNH, k_BSKH, segmented):
  if static.implementation == 'auto':
    return next(name for name, kernel in IMPLEMENTATIONS.items()
                if not kernel.refusal(static, q_BTNH, k_BSKH, segmented))
  if static.implementation not in IMPLEMENTATIONS:
    raise ValueError(f'attention implementation {static.implementation!r}: '
                     f'one of auto, {", ".join(sorted(IMPLEMENTATIONS))}')
  reason = IMPLEMENTATIONS[static.implementation].refusal(static, q_BTNH, k_BSKH, segmented)
  if reason:
    raise ValueError(f'attention implementation {static.implementation!r} {reason}; '
                     "use 'auto' or 'xla'")
  return static.implementation


class Implementation(NamedTuple):
  """What runs on one device; all get `static` first.

  The functions `across` see no mask but a `RemoteSpan`, for rows that the mesh splits; an
  implementation without them gets all keys and masks.
  """

  refusal: Callable  # (static, q_BTNH, k_BSKH, segmented) → why it cannot do this, or None
  forward: Callable  # (static, window, q, k, v, places) → out_BTNH, lse_BTN
  backward: Callable  # (static, window, q, k, v, out, lse, dout, places) → dq, dk, dv
  forward_across: Callable | None = None  # (static, q, k, v, span) → out_BTNH, lse_BTN
  backward_across: Callable | None = None  # (static, q, k, v, out, lse, dout, span) → dq, dk, dv


# In the order in which 'auto' takes the first that can.
IMPLEMENTATIONS = {
  'cudnn': Implementation(cudnn.refusal, cudnn.forward, cudnn.backward,
                          cudnn.forward_across, cudnn.backward_across),
  'splash': Implementation(splash.refusal, splash.forward, splash.backward,
                           splash.forward_across, splash.backward_across),
  'xla': Implementation(lambda *_: None, xla.forward, xla.backward),
}

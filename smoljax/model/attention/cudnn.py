"""Attention by cuDNN's kernels on NVIDIA GPUs: packed documents by their lengths and offsets."""


from typing import Any

import jax
import jax.numpy as jnp

from smoljax import sharding
from smoljax.model.attention import context
from smoljax.model.attention.context import RemoteSpan
from smoljax.model.attention.masks import (
  MASKED,
  Places,
  Static,
  broadcast_segments,
  positions_from_segments,
)

# The flash attention of cuDNN 9 through jax._src: the public jax.nn.dot_product_attention knows no
# documents. Packed rows are given as lengths and offsets of their documents, and only the pairs
# inside a document are computed, in both passes.


def refusal(
  static: Static, q_BTNH: jax.Array, k_BSKH: jax.Array, segmented: bool
) -> str | None:
  """Why these kernels cannot do this, in words that follow their name; None if they can."""
  platform, H = context.platform(), q_BTNH.shape[3]
  if platform not in ('gpu', 'cuda'):
    return f'runs on NVIDIA GPUs, not on {platform}'
  if q_BTNH.dtype not in (jnp.bfloat16, jnp.float16):
    return f'computes in bfloat16 or float16, not in {q_BTNH.dtype}'
  if static.softcap:
    return 'has no softcap'
  if H % 8 or H > 256:
    return f'needs a head_dim that is a multiple of 8 and at most 256, not {H}'
  if reason := context.needs_order(static):
    return reason
  if q_BTNH.shape[1] < 2 * context.pieces():
    return 'has no plan for rows (or pieces of rows) of one token'
  if segmented and jax.__version_info__ < (0, 11, 2):
    return f'needs jax 0.11.2 for documents (jax#39521), this is {jax.__version__}'
  if jax.default_backend() == 'gpu':  # not when compiling for another machine
    capability = float(jax.devices()[0].compute_capability)
    if capability < (9.0 if segmented else 8.0):
      need = 'a Hopper GPU (compute capability 9.0) for documents' if segmented else 'an Ampere GPU'
      return f'needs {need} or later, this is {capability}'
  return None


def forward(
  static: Static, window: int | None, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array,
  places: Places,
) -> tuple[jax.Array, jax.Array]:
  """(out_BTNH, lse_BTN) of a device's own rows; `window` None = the whole document."""
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  documents = _documents_of(static, q_BTNH, places)
  k_BSKH = documents.poison(k_BSKH)  # all queries of a row see one of its keys
  results: Any = cudnn.dot_product_attention(
    q_BTNH, k_BSKH, v_BSKH, scale=q_BTNH.shape[3] ** -0.5, sliding_window_length=window,
    return_residual=True, **documents.arguments(cudnn),
  )
  out_BTNH, statistics = results
  return out_BTNH, documents.unpack(statistics)


def backward(
  static: Static, window: int | None, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array,
  out_BTNH: jax.Array, lse_BTN: jax.Array, dout_BTNH: jax.Array, places: Places,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(dq_BTNH, dk_BSKH, dv_BSKH) from what `forward` gave and the output's gradient."""
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  documents = _documents_of(static, q_BTNH, places)
  return _cudnn_gradients(window, q_BTNH, k_BSKH, v_BSKH, documents.pack(lse_BTN), out_BTNH,
                          dout_BTNH, **documents.arguments(cudnn))


def forward_across(
  static: Static, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, span: RemoteSpan
) -> tuple[jax.Array, jax.Array]:
  """(out_BTNH, lse_BTN) of one piece on the earlier keys in its span; lse MASKED without any."""
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  B, T, N, H = q_BTNH.shape
  results: Any = cudnn.dot_product_attention(
    q_BTNH, k_BSKH, v_BSKH, scale=H**-0.5, return_residual=True, **_across(cudnn, span))
  out_BTNH, statistics = results
  lse_BTN = statistics.reshape(B, 2, N, T)[:, 0].swapaxes(1, 2)
  inside_BT1 = in_span(T, 0, span.queries_B)[..., None]
  # What no document covers is memory as it was found.
  return (jnp.where(inside_BT1[..., None], out_BTNH, 0),
          jnp.where(inside_BT1, lse_BTN, MASKED))


def backward_across(
  static: Static, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, out_BTNH: jax.Array,
  lse_BTN: jax.Array, dout_BTNH: jax.Array, span: RemoteSpan,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(dq_BTNH, dk_BSKH, dv_BSKH) of the same; keys are those of the whole row."""
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  B, T, N, _ = q_BTNH.shape
  statistics = jnp.pad(lse_BTN.swapaxes(1, 2)[:, None], ((0, 0), (0, 1), (0, 0), (0, 0)))
  dq_BTNH, dk_BSKH, dv_BSKH = _cudnn_gradients(
    None, q_BTNH, k_BSKH, v_BSKH, statistics.reshape(2 * B, N, T), out_BTNH, dout_BTNH,
    **_across(cudnn, span))
  queries = in_span(T, 0, span.queries_B)[..., None, None]
  keys = in_span(k_BSKH.shape[1], span.start_B, span.stop_B)
  keys = (keys & (span.queries_B > 0)[:, None])[..., None, None]
  return (jnp.where(queries, dq_BTNH, 0), jnp.where(keys, dk_BSKH, 0),
          jnp.where(keys, dv_BSKH, 0))


def _across(cudnn, span):
  """One document a row, and an empty one: cuDNN takes offsets only for two at least."""
  some_B = span.queries_B > 0
  zero_B = jnp.zeros_like(span.queries_B)
  keys_B = jnp.where(some_B, span.stop_B - span.start_B, 0)
  return dict(
    mask_type=cudnn.MaskType.PADDING,
    q_seqlen=jnp.stack([span.queries_B, zero_B], 1), kv_seqlen=jnp.stack([keys_B, zero_B], 1),
    q_offsets=jnp.stack([zero_B, span.queries_B, zero_B - 1], 1),
    kv_offsets=jnp.stack([span.start_B, span.stop_B, zero_B - 1], 1),
  )


def in_span(
  size: int, start_B: jax.typing.ArrayLike, stop_B: jax.typing.ArrayLike
) -> jax.Array:
  """[B, size], True for the places from start to stop (excluded) of each row."""
  place = jnp.arange(size)
  return (place >= jnp.reshape(start_B, (-1, 1))) & (place < jnp.reshape(stop_B, (-1, 1)))


def _cudnn_gradients(
  window, q_BTNH, k_BSKH, v_BSKH, statistics, out_BTNH, dout_BTNH, *, mask_type, q_seqlen=None,
  kv_seqlen=None, q_offsets=None, kv_offsets=None,
) -> Any:
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

  Padding (0) behind a document is taken for its end. Nobody asks what it attends to, no document
  sees it, and each run more takes time.

  Returns lengths_BM and starts_BM of the first `max_documents` runs, -1 where there are fewer, and
  index_BT, the number of each token's run within its row; all int32.
  """
  begins_BT = (segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]) & (segment_ids_BT[:, 1:] != 0)
  index_BT = jnp.cumsum(jnp.pad(begins_BT, ((0, 0), (1, 0))), axis=1, dtype=jnp.int32)
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
    self.place_BT = positions_from_segments(index_BT)

  def arguments(self, cudnn):
    if not self.packed:
      return {'mask_type': cudnn.MaskType.CAUSAL}
    offsets_BM = jnp.pad(self.starts_BM, ((0, 0), (0, 1)), constant_values=-1)
    return dict(
      mask_type=cudnn.MaskType.PADDING_CAUSAL, q_seqlen=self.lengths_BM,
      kv_seqlen=self.lengths_BM, q_offsets=offsets_BM, kv_offsets=offsets_BM,
    )

  def poison(self, k_BSKH):
    """NaN for rows of more documents than fit: better than tokens that see other documents.

    Of the keys, which are fewer than the queries: what is changed here is written once more.
    """
    if not self.packed:
      return k_BSKH
    return jnp.where(self.too_many_B[:, None, None, None], jnp.nan, k_BSKH)

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


def _documents_of(static, q_BTNH, places):
  # Where a device holds two pieces of a row, one document may lie in both; cuDNN takes no fewer
  # than two.
  most = max(2, static.max_segments + (sharding.num_parts('length') > 1))
  return _Documents(broadcast_segments(q_BTNH, places.q_segments_BT), most)

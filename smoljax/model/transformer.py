"""SmolLM3-shaped transformers: parameters and forward pass; ModelConfig is in config.py.

Pre-norm blocks of grouped-query attention and SwiGLU; RMSNorm; rotary positions on the layers of
`rope_flags` and none on the others (NoPE, arXiv:2501.18795); tied or separate head. Llama and
SmolLM2 are the same with every layer rotating, Qwen2 with biases on queries, keys and values, Qwen3
with norms on queries and keys, Mistral with windows, OLMo 2 with norms after. Other activations,
norms and places of norms are fields of ModelConfig.

Shape legend, used in all files: B batch, T query time, S key time, D model, F mlp, N query heads,
K kv heads, G = N/K, H head dim, V vocabulary, L layers, M future tokens. Arrays and parameters
carry their dims: `x_BTD`, `q_DNH`. A parameter's name decides its shape, its sharding and its
initialisation key.

Parameters are a plain nested dict of fp32 arrays with the layers stacked on axis 0:

  embed_VD                     blocks/attn/{q_DNH, k_DKH, v_DKH, o_NHD}
  head_DV   (untied only)      blocks/mlp/{gate_DF, up_DF, down_FD}   (gate_DF: gated only)
  final_norm/scale_D           blocks/{attn_norm, mlp_norm}/scale_D   (layer norm: and bias_D)
  mtp/…                        (config.mtp) modules that predict further ahead, stacked likewise

Flax NNX modules declare them; jax transforms do the rest.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from smoljax import sharding
from smoljax.model import layers as layers_lib
from smoljax.model import lora, quantised
from smoljax.model.attention import probabilities
from smoljax.model.attention.masks import Places, positions_from_segments, segments_from_positions
from smoljax.model.config import ModelConfig, one_of
from smoljax.model.layers import Block, MTPModule, Norm, Params
from smoljax.model.quantised import Quantised

# Activations that `apply` gives on request.
CAPTURED = ('residual', 'attention', 'entropy', 'qkv', 'units', 'sites', 'outputs', 'trunk')


class Transformer(nnx.Module):
  """All parameters of a model; `blocks` is one Block whose leaves have a leading L."""

  def __init__(self, config: ModelConfig, key: jax.Array):
    layers = jnp.arange(config.num_layers)
    block_key = jax.random.fold_in(key, layers_lib.name_hash('blocks'))
    self.embed_VD = layers_lib.normal(config, key, 'embed_VD')
    self.blocks = jax.vmap(lambda i: Block(config, jax.random.fold_in(block_key, i)))(layers)
    self.final_norm = Norm(config)
    if not config.tie_embeddings:
      self.head_DV = layers_lib.normal(config, key, 'head_DV')
    if config.mtp != 'none':
      mtp_key = jax.random.fold_in(key, layers_lib.name_hash('mtp'))
      self.mtp = jax.vmap(lambda i: MTPModule(config, jax.random.fold_in(mtp_key, i)))(
        jnp.arange(config.mtp_depth))


# ----------------------------------------------------------------------------------- functions


class Output(NamedTuple):
  """What a forward pass gives."""

  logits: jax.Array  # fp32 [B, T, V]
  hidden: jax.Array  # [B, T, D] after the final norm, in the compute dtype
  aux: dict[str, jax.Array]  # what was asked for: max_logits_LN, residual_LBTD, …


def init(config: ModelConfig, key: jax.Array) -> Params:
  """Fresh fp32 parameters; the same numbers on every mesh, placed on the mesh that is set."""
  return _jitted_init(config, jax.sharding.get_abstract_mesh())(key)


def abstract_params(config: ModelConfig, mesh: jax.sharding.Mesh | None = None) -> Params:
  """ShapeDtypeStructs of `init`'s result, with shardings if a mesh is given (for Orbax)."""
  params = jax.eval_shape(functools.partial(_make, config), jax.random.key(0))
  return params if mesh is None else sharding.abstract(params, mesh)


def apply(
  config: ModelConfig,
  params: Params,
  tokens_BT: jax.Array,
  *,
  positions_BT: jax.Array | None = None,
  segment_ids_BT: jax.Array | None = None,
  max_logits: str | float | None = None,
  capture: Sequence[str] = (),
) -> Output:
  """The whole model, logits of every position included.

  Args:
    tokens_BT: int token ids. An id outside the vocabulary is a ValueError if they are a host
      array, and turns its row into NaN if they are traced or on a device.
    positions_BT: int positions that restart at 0 with each document.
    segment_ids_BT: int document ids, one per document of a row; tokens see their own document
      only. Either of the two is derived from the other; without both a row is one document.
    max_logits: 'bound', 'exact' or a limit also gives aux['max_logits_LN'], the largest attention
      logit per layer and head, before the limit (smoljax/model/attention/).
    capture: activations to give as well, of each layer; whatever is not named is not kept.
      'residual': aux['residual_LBTD'], the residual stream after the layer, compute dtype;
      'attention': aux['attention_LBNTS'], the fp32 weights with which each head reads the values;
      'entropy': aux['attn_entropy_LN'], the mean entropy in nats of the attention weights of
      each head, at 256 evenly spaced queries a row;
      'units': aux['units_LF'], the largest magnitude of each hidden unit of the MLP;
      'sites': aux['act_rms/SITE_L'] and aux['act_max/SITE_L'], root mean square and largest
      magnitude of what attention and MLP add to the stream (attn_out, mlp_out) and of the MLP's
      units (mlp_mid), and aux['gate_sat_L'], the share of gates beyond ±4.6, where a sigmoid is
      within 1 % of 0 or 1;
      'outputs': aux['attn_out_LBTD'] and aux['mlp_out_LBTD'], what they add to the stream;
      'qkv': aux['q_LBTNH'], aux['k_LBTKH'] and aux['v_LBTKH'], rotated, as attention takes them;
      'trunk': aux['trunk_BTD'], what `mtp_hidden` starts from (in a zigzag still, see sharding).
  """
  x_BTD, aux = hidden(
    config, params, tokens_BT, positions_BT=positions_BT, segment_ids_BT=segment_ids_BT,
    max_logits=max_logits, capture=capture,
  )
  return Output(logits(config, params, x_BTD), x_BTD, aux)


def hidden(
  config: ModelConfig,
  params: Params,
  tokens_BT: jax.Array | np.ndarray,
  *,
  positions_BT: jax.Array | None = None,
  segment_ids_BT: jax.Array | None = None,
  max_logits: str | float | None = None,
  capture: Sequence[str] = (),
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """`apply` up to the head: (hidden_BTD, aux). For losses that never form [B, T, V].

  Raises ValueError for rows beyond max_seq_len and, on the host, for ids outside the vocabulary.
  """
  for name in (capture,) if isinstance(capture, str) else capture:
    one_of('capture', name, CAPTURED)
  if not isinstance(tokens_BT, jax.Array):
    tokens_BT = layers_lib.check_tokens(config, tokens_BT)
  T = tokens_BT.shape[1]
  if config.max_seq_len < T:
    raise ValueError(f'{T} tokens in a row, but max_seq_len={config.max_seq_len}: shorten the '
                     'rows, or raise max_seq_len (and extend rope_theta or rope_scaling)')
  if set(capture) - {'trunk'} and sharding.num_parts('length') > 1:
    raise ValueError('capture needs a mesh that does not split the sequence: use context=1')
  # Where the mesh splits rows, their pieces lie in a zigzag: restored at the end.
  x_BTD = embed(config, params, sharding.zigzag(jnp.asarray(tokens_BT)))
  positions_BT, segments_BT = document_places(T, positions_BT, segment_ids_BT)

  def attend(q_BTNH, k_BTKH, v_BTKH, layer, window, state):
    out_BTNH, max_N = layers_lib.attend_documents(
      config, q_BTNH, k_BTKH, v_BTKH, positions_BT, segments_BT, window, max_logits)
    seen = {'max_logits_LN': max_N} if max_logits else {}
    if 'qkv' in capture:
      seen |= {'q_LBTNH': q_BTNH, 'k_LBTKH': k_BTKH, 'v_LBTKH': v_BTKH}
    if 'attention' in capture:
      places = Places(positions_BT, positions_BT, segments_BT, segments_BT, window)
      seen['attention_LBNTS'] = probabilities(
        q_BTNH, k_BTKH, places, softcap=config.attention_softcap)
    if 'entropy' in capture:
      some = slice(None, None, max(1, T // 256))
      segments = (None, None) if segments_BT is None else (segments_BT[:, some], segments_BT)
      places = Places(positions_BT[:, some], positions_BT, *segments, window)
      p_BNTS = probabilities(q_BTNH[:, some], k_BTKH, places, softcap=config.attention_softcap)
      entropy_BNT = -jnp.sum(jnp.where(p_BNTS > 0, p_BNTS * jnp.log(p_BNTS), 0), axis=-1)
      real_BT = jnp.ones_like(places.q_positions_BT) if segments[0] is None else segments[0] > 0
      real_B1T = sharding.constrain(real_BT, 'batch', None)[:, None].astype(jnp.float32)
      total = jnp.maximum(jnp.sum(real_B1T) * entropy_BNT.shape[0] / real_B1T.shape[0], 1)
      seen['attn_entropy_LN'] = jnp.sum(entropy_BNT * real_B1T, axis=(0, 2)) / total
    return out_BTNH, state, seen

  x_BTD, _, (seen, captured) = run_blocks(
    config, params, x_BTD, positions_BT, attend, capture=capture)
  return sharding.unzigzag(final_norm(config, params, x_BTD)), seen | captured


def embed(config: ModelConfig, params: Params, tokens_BT: jax.Array) -> jax.Array:
  """Rows of the embedding, in the compute dtype.

  They are looked up before the cast, so that the gradient is summed in the parameters' fp32.
  """
  if isinstance(params['embed_VD'], Quantised):
    return quantised.rows(params['embed_VD'], tokens_BT, config.dtype)
  if jax.sharding.get_abstract_mesh().empty and not _mesh_of(params['embed_VD']).empty:
    raise ValueError('the parameters live on a mesh: compute under `with jax.set_mesh(mesh):`, '
                     'or move them to one device first')
  table_VD = sharding.constrain(params['embed_VD'], None, 'residual')
  tokens_BT = sharding.constrain(jnp.asarray(tokens_BT), 'batch', 'length')
  x_BTD = table_VD.at[tokens_BT].get(
    mode='fill', fill_value=jnp.nan, wrap_negative_indices=False,
    out_sharding=sharding.out('batch', 'length', 'residual'),
  )
  return x_BTD.astype(config.dtype)


def run_blocks(
  config: ModelConfig,
  params: Params,
  x_BTD: jax.Array,
  positions_BT: jax.Array,
  attend: Callable,
  state: Any = None,
  *,
  capture: Sequence[str] = (),
) -> tuple[jax.Array, Any, tuple[Any, dict[str, jax.Array]]]:
  """All layers: scanned, or unrolled if not `scan_layers` or if `unstack` or `computed` made a list
  of them.

  Args:
    positions_BT: int positions, or [1, T] if all rows share them.
    attend: (q_BTNH, k_BTKH, v_BTKH, layer, window, state) → (out_BTNH, state, seen). `state` is
      carried from layer to layer: a KV cache, or None; without one `layer` may be None, and what
      attend does is the same in all. `seen`: any tree of what is to be shown.
    capture: 'residual', 'units', 'sites', 'trunk' as for `apply`; other names are for `attend`.
  Returns:
    x_BTD, the last state, and (`seen` of all layers stacked, what was captured here).
  """
  cos_BT1H, sin_BT1H = layers_lib.rope_table(config, positions_BT)
  layers = params['blocks'] if isinstance(params['blocks'], list) else None
  graph = layers_lib.graph(
    config, 'unstacked' if layers and 'inwards_XD' in layers[0]['attn'] else 'block'
  )

  def block(x_BTD, state, layer_params, layer, rotates, window):
    def rotate(y):
      if isinstance(rotates, bool):
        return layers_lib.rotate(y, cos_BT1H, sin_BT1H) if rotates else y
      cos, sin = jnp.where(rotates, cos_BT1H, 1.0), jnp.where(rotates, sin_BT1H, 0.0)
      return layers_lib.rotate(y, cos, sin)

    def attend_here(q_BTNH, k_BTKH, v_BTKH):
      return attend(q_BTNH, k_BTKH, v_BTKH, layer, window, state)

    captured = {}

    def watch(site, y_BTX):
      size_BTX = jnp.abs(y_BTX.astype(jnp.float32))
      if 'outputs' in capture and site in ('attn_out', 'mlp_out'):
        captured[f'{site}_LBTD'] = y_BTX
      if site == 'mlp_mid' and 'units' in capture:
        captured['units_LF'] = jnp.max(size_BTX, axis=(0, 1))
      if 'sites' in capture and site == 'gate':
        captured['gate_sat_L'] = jnp.mean(size_BTX > 4.6, dtype=jnp.float32)
      elif 'sites' in capture:
        captured[f'act_rms/{site}_L'] = jnp.sqrt(jnp.mean(jnp.square(size_BTX)))
        captured[f'act_max/{site}_L'] = jnp.max(size_BTX)

    watched = {'units', 'sites', 'outputs'} & {*capture}
    x_BTD, state, seen = nnx.merge(graph, lora.folded(config, layer_params))(
      x_BTD, rotate, attend_here, watch if watched else None)
    if 'residual' in capture:
      captured['residual_LBTD'] = x_BTD
    return x_BTD, state, (seen, captured)

  # Flags that all layers share stay static: nothing is computed for them.
  rotates = np.array(config.rope_flags)
  windows = np.array([w or np.iinfo(np.int32).max for w in config.windows], np.int32)
  # What modules of multi-token prediction start from: what the last block takes, or what it gives.
  takes = 'trunk' in capture and config.mtp == 'parallel'

  def with_trunk(captured, x_BTD, before_BTD):
    trunk = {'trunk_BTD': before_BTD if takes else x_BTD} if 'trunk' in capture else {}
    return captured | trunk

  if layers or not config.scan_layers:
    kept, before_BTD = [], x_BTD

    @functools.cache
    def kind(layer, rotates, window):
      step = layers_lib.remat(
        config, functools.partial(block, layer=layer, rotates=rotates, window=window))
      # Without a state layers of one kind are one function, which is traced once, not L times.
      return jax.jit(step) if layer is None else step

    for i in range(config.num_layers):
      step = kind(None if state is None else i, bool(rotates[i]), config.windows[i] or None)
      layer_params = layers[i] if layers else layers_lib.layer_params(params, i)
      before_BTD = x_BTD
      x_BTD, state, seen = step(x_BTD, state, layer_params)
      kept.append(seen)
    seen, captured = jax.tree.map(lambda *xs: jnp.stack(xs), *kept)
    return x_BTD, state, (seen, with_trunk(captured, x_BTD, before_BTD))

  shared: dict[str, Any] = {}
  if rotates.all() or not rotates.any():
    shared['rotates'] = bool(rotates[0])
  if not any(config.windows):
    shared['window'] = None
  scanned = {
    'layer_params': params['blocks'], 'layer': jnp.arange(config.num_layers),
    'rotates': jnp.asarray(rotates), 'window': jnp.asarray(windows),
  }

  def body(carry, layer):
    before_BTD, state, _ = carry
    x_BTD, state, seen = block(before_BTD, state, **{**layer, **shared})
    return (x_BTD, state, before_BTD if takes else None), seen

  scanned = {k: v for k, v in scanned.items() if k not in shared}
  carry = (x_BTD, state, x_BTD if takes else None)
  (x_BTD, state, before_BTD), (seen, captured) = jax.lax.scan(
    layers_lib.remat(config, body), carry, scanned)
  return x_BTD, state, (seen, with_trunk(captured, x_BTD, before_BTD))


def unstack(config: ModelConfig, layer: Params) -> Params:
  """The parameters of one block as decoding reads them, in the compute dtype.

  Where there is one token per row to compute, all the time goes into reading matrices. A scan over
  stacked layers copies each layer's out of the stack first; so they are apart here, those with the
  same input are one, and all are stored (out, in), which is read fastest.
  """
  return layers_lib.unstacked(jax.tree.map(lambda p: p.astype(config.dtype, copy=False), layer))


def computed(config: ModelConfig, params: Params) -> Params:
  """The parameters as training computes with them: blocks in the compute dtype, apart if unrolled.

  Gradients taken of these are in that dtype too, as matrix products give them: half the bytes.
  Taken of a stack, each of an unrolled layer would be a whole stack of zeros but for one; see
  `stacked`. The embedding stays fp32: the gradients of its rows are summed in that (see `embed`).
  """
  cast = lambda tree: jax.tree.map(lambda p: p.astype(config.dtype), tree)
  blocks = params['blocks']
  if not config.scan_layers:
    blocks = [jax.tree.map(lambda p, i=i: p[i], blocks) for i in range(config.num_layers)]
  mtp = {'mtp': cast(params['mtp'])} if 'mtp' in params else {}
  return params | mtp | {'blocks': cast(blocks)}


def stacked(params: Params) -> Params:
  """A tree like that of `computed` with its blocks stacked, as those of `init` are."""
  blocks = params['blocks']
  if isinstance(blocks, list):
    blocks = jax.tree.map(lambda *layers: jnp.stack(layers), *blocks)
  return params | {'blocks': blocks}


def final_norm(config: ModelConfig, params: Params, x_BTD: jax.Array) -> jax.Array:
  """The norm before the head."""
  return nnx.merge(layers_lib.graph(config, 'final_norm'), params['final_norm'])(x_BTD)


def unembedding(config: ModelConfig, params: Params) -> jax.Array:
  """unembed_DV in the compute dtype: the head's matrix, or the embedding transposed if tied.

  On a mesh it is gathered over `fsdp` and its V stays split over `tensor`.
  """
  if 'head_DV' in params:
    w_DV = params['head_DV']
  else:
    w_DV = params['embed_VD' if config.tie_embeddings else 'head_VD'].T
  return sharding.constrain(w_DV.astype(config.dtype), 'residual', 'vocab')


def logits(config: ModelConfig, params: Params, hidden_BTD: jax.Array) -> jax.Array:
  """fp32 logits_BTV of hidden states that are past the final norm."""
  head = params['embed_VD'] if config.tie_embeddings else params.get('head_VD')
  if isinstance(head, Quantised):
    return _capped(config, quantised.matmul(hidden_BTD, head, jnp.float32))
  return project(config, hidden_BTD, unembedding(config, params))


def project(
  config: ModelConfig,
  hidden_BTD: jax.Array,
  unembed_DV: jax.Array,
  *,
  rounded: bool = False,
) -> jax.Array:
  """`logits` with the matrix of `unembedding`, for those who take a chunk of places at a time.

  If `rounded`, the product is written in the compute dtype, as PyTorch's is under autocast: where
  the vocabulary is large, a small model's step takes much of its time to write and read it.
  """
  dtype = hidden_BTD.dtype if rounded else jnp.float32
  if jax.sharding.get_abstract_mesh().empty and not rounded:
    logits_BTV = layers_lib.matmul(hidden_BTD, unembed_DV.T, dtype)
  else:
    logits_BTV = jnp.einsum(
      'BTD,DV->BTV', hidden_BTD, unembed_DV, preferred_element_type=dtype,
      out_sharding=sharding.out('batch', 'length', 'vocab'))
  return _capped(config, logits_BTV.astype(jnp.float32))


def _capped(config, logits_BTV):
  if config.logit_softcap:
    logits_BTV = config.logit_softcap * jnp.tanh(logits_BTV / config.logit_softcap)
  return logits_BTV


def document_places(
  T: int, positions_BT: jax.typing.ArrayLike | None, segments_BT: jax.typing.ArrayLike | None
) -> tuple[jax.Array, jax.Array | None]:
  """Positions and document ids, each derived from the other where it is missing.

  Deriving needs whole rows; the results are split, in a zigzag, as the sequence is.
  """
  positions_BT, segments_BT = (
    x if x is None else sharding.constrain(jnp.asarray(x, jnp.int32), 'batch', None)
    for x in (positions_BT, segments_BT)
  )
  if positions_BT is None and segments_BT is None:
    return sharding.zigzag(jnp.arange(T, dtype=jnp.int32)[None]), None
  if segments_BT is None:
    segments_BT = segments_from_positions(positions_BT)
  if positions_BT is None:
    positions_BT = positions_from_segments(segments_BT)
  return sharding.zigzag(positions_BT), sharding.zigzag(segments_BT)


@functools.lru_cache(maxsize=32)
def _jitted_init(config, mesh):
  placed = None if mesh.empty else sharding.shardings(abstract_params(config), mesh)
  return jax.jit(functools.partial(_make, config), out_shardings=placed)


def _make(config, key):
  return nnx.to_pure_dict(nnx.split(Transformer(config, key))[1])


def _mesh_of(x):
  return jax.typeof(x).sharding.mesh

"""SmolLM3-shaped transformers: parameters and forward pass; ModelConfig is in model_config.py.

Pre-norm blocks of grouped-query attention and SwiGLU; RMSNorm; rotary positions on the layers of
`rope_flags` and none on the others (NoPE, arXiv:2501.18795); tied or separate head. Llama and
SmolLM2 are the same with every layer rotating, Qwen3 with norms on queries and keys too. Other
activations, norms and places of norms are fields of ModelConfig.

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

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from smoljax import fp8, sharding
from smoljax.attention import (
  Places,
  attention,
  positions_from_segments,
  probabilities,
  segments_from_positions,
)
from smoljax.model_config import (  # noqa: F401  users of the model find its configuration here
  GATED,
  HF_CLASSES,
  SHAPES,
  LinearRope,
  Llama3Rope,
  ModelConfig,
  Yarn,
  mscale,
  one_of,
)

Params = dict[str, Any]

# The matrices of each module: those that take its input (an MLP may have no gate), and the one
# that gives its output.
MATRICES = {
  'attn': (('q_DNH', 'k_DKH', 'v_DKH'), 'o_NHD'),
  'mlp': (('gate_DF', 'up_DF'), 'down_FD'),
}

# Activations that `apply` gives on request.
CAPTURED = ('residual', 'attention', 'entropy', 'qkv', 'units', 'sites', 'outputs', 'trunk')


# -------------------------------------------------------------------------------- declarations


class Norm(nnx.Module):
  """RMSNorm (arXiv:1910.07467) or LayerNorm (arXiv:1607.06450) in fp32; cast, then scaled."""

  def __init__(self, config: ModelConfig):
    self.config = config
    self.scale_D = _ones(config, 'scale_D')
    if config.norm == 'layer':
      self.bias_D = _zeros(config, 'bias_D')

  def __call__(self, x_BTD):
    if self.config.norm == 'rms':
      return _unit_rms(x_BTD, self.config) * _use(self, 'scale_D')
    x32_BTD = x_BTD.astype(jnp.float32)
    x32_BTD -= jnp.mean(x32_BTD, axis=-1, keepdims=True)
    x_BTD = _unit_rms(x32_BTD, self.config).astype(x_BTD.dtype)
    return x_BTD * _use(self, 'scale_D') + _use(self, 'bias_D')


class HeadNorm(nnx.Module):
  """RMSNorm over the head dim of queries or keys (QK-norm, arXiv:2302.05442)."""

  def __init__(self, config: ModelConfig):
    self.config = config
    self.scale_H = _ones(config, 'scale_H')

  def __call__(self, x_BTNH):
    return _unit_rms(x_BTNH, self.config) * _use(self, 'scale_H')


class Attention(nnx.Module):
  """Projections of grouped-query attention; what is seen is `attend`'s business."""

  def __init__(self, config: ModelConfig, key: jax.Array):
    self.config = config
    self.q_DNH = _normal(config, key, 'q_DNH')
    self.k_DKH = _normal(config, key, 'k_DKH')
    self.v_DKH = _normal(config, key, 'v_DKH')
    self.o_NHD = _normal(config, key, 'o_NHD', into_residual=True)
    if config.attention_bias:
      self.q_bias_NH = _zeros(config, 'q_bias_NH')
      self.k_bias_KH = _zeros(config, 'k_bias_KH')
      self.v_bias_KH = _zeros(config, 'v_bias_KH')
      self.o_bias_D = _zeros(config, 'o_bias_D')
    if config.qk_norm:
      self.q_norm = HeadNorm(config)
      self.k_norm = HeadNorm(config)

  def __call__(self, x_BTD, rotate: Callable, attend: Callable):
    q_BTNH, k_BTKH, v_BTKH = _inwards(self, x_BTD, *MATRICES['attn'][0])
    if self.config.attention_bias:
      q_BTNH += _use(self, 'q_bias_NH')
      k_BTKH += _use(self, 'k_bias_KH')
      v_BTKH += _use(self, 'v_bias_KH')
    if self.config.qk_norm:
      q_BTNH, k_BTKH = self.q_norm(q_BTNH), self.k_norm(k_BTKH)
    q_BTNH, k_BTKH, v_BTKH = (checkpoint_name(y, 'qkv') for y in (q_BTNH, k_BTKH, v_BTKH))
    out_BTNH, state, seen = attend(rotate(q_BTNH), rotate(k_BTKH), v_BTKH)
    out_BTD = _outwards(self, out_BTNH, 'o_NHD')
    if self.config.attention_bias:
      out_BTD += _use(self, 'o_bias_D')
    return out_BTD, state, seen


class MLP(nnx.Module):
  """Two or, gated, three matrices; see ModelConfig.activation."""

  def __init__(self, config: ModelConfig, key: jax.Array):
    self.config = config
    if GATED[config.activation]:
      self.gate_DF = _normal(config, key, 'gate_DF')
    self.up_DF = _normal(config, key, 'up_DF')
    self.down_FD = _normal(config, key, 'down_FD', into_residual=True)
    if config.mlp_bias:
      if GATED[config.activation]:
        self.gate_bias_F = _zeros(config, 'gate_bias_F')
      self.up_bias_F = _zeros(config, 'up_bias_F')
      self.down_bias_D = _zeros(config, 'down_bias_D')

  def __call__(self, x_BTD, watch: Callable | None = None):
    gated = GATED[self.config.activation]
    names = MATRICES['mlp'][0] if gated else ('up_DF',)
    parts = _inwards(self, x_BTD, *names)
    if self.config.mlp_bias:
      parts = [y + _use(self, name.replace('_D', '_bias_'))
               for y, name in zip(parts, names, strict=True)]
    *gate, up_BTF = (checkpoint_name(y, 'gu') for y in parts)
    f = ACTIVATIONS[self.config.activation]
    mid_BTF = f(gate[0]) * up_BTF if gated else f(up_BTF)
    if watch:
      if gated:
        watch('gate', gate[0])
      watch('mlp_mid', mid_BTF)
    out_BTD = _outwards(self, mid_BTF, 'down_FD')
    return out_BTD + _use(self, 'down_bias_D') if self.config.mlp_bias else out_BTD


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'swiglu': jax.nn.silu,
  'geglu': jax.nn.gelu,
  'gelu': jax.nn.gelu,
  'relu2': lambda x: jnp.square(jax.nn.relu(x)),
}


class Block(nnx.Module):
  """x + attention(x), then x + mlp(x), with norms where ModelConfig.norm_position says."""

  def __init__(self, config: ModelConfig, key: jax.Array):
    self.attn = Attention(config, jax.random.fold_in(key, _hash('attn')))
    self.mlp = MLP(config, jax.random.fold_in(key, _hash('mlp')))
    if config.norm_position != 'post':
      self.attn_norm, self.mlp_norm = Norm(config), Norm(config)
    if config.norm_position != 'pre':
      self.attn_post_norm, self.mlp_post_norm = Norm(config), Norm(config)

  def __call__(self, x_BTD, rotate: Callable, attend: Callable, watch: Callable | None = None):
    out_BTD, state, seen = self.attn(self._norm('attn_norm', x_BTD), rotate, attend)
    attn_BTD = self._norm('attn_post_norm', out_BTD)
    x_BTD = checkpoint_name(x_BTD + attn_BTD, 'mid')
    out_BTD = self.mlp(self._norm('mlp_norm', x_BTD), watch)
    mlp_BTD = self._norm('mlp_post_norm', out_BTD)
    if watch:
      watch('attn_out', attn_BTD)
      watch('mlp_out', mlp_BTD)
    return x_BTD + mlp_BTD, state, seen

  def _norm(self, name, x_BTD):
    return getattr(self, name)(x_BTD) if hasattr(self, name) else x_BTD


class MTPModule(nnx.Module):
  """Predicts the token k places after the next one; k-th of a model's `mtp_depth` modules.

  At place i, with t the tokens (t[i] is the input there, and the main head predicts t[i+1]):

  parallel (Gloeckle et al., arXiv:2404.19737): one block on the shared trunk, side by side with the
  model's last block, which is the main head's: h = block(trunk[i]). Norm and head are the model's.

  sequential (DeepSeek-V3, arXiv:2412.19437, eq. 21-25): h^k = block(M [norm(emb(t[i+k])) ;
  norm'(h^(k-1)[i])]), in the order of the released `eh_proj`; M is two matrices here. h^0 is the
  residual stream after the last block, before the final norm. The head, shared with the model,
  reads h^k through a norm of the module's own; the next module takes h^k without it, as the paper
  writes (torchtitan and Megatron hand on the normed one; `norm'` undoes the difference but for
  scales). Positions are those of place i: rotary attention sees differences only.
  """

  def __init__(self, config: ModelConfig, key: jax.Array):
    self.config = config
    self.block = Block(config, jax.random.fold_in(key, _hash('block')))
    if config.mtp == 'sequential':
      self.hidden_norm, self.embed_norm, self.final_norm = (Norm(config) for _ in range(3))
      self.from_hidden_DE = _normal(config, key, 'from_hidden_DE')
      self.from_embed_DE = _normal(config, key, 'from_embed_DE')

  def __call__(self, x_BTD, embedded_BTD, rotate: Callable, attend: Callable):
    if self.config.mtp == 'sequential':
      product = functools.partial(
        jnp.einsum, 'BTD,DE->BTE', out_sharding=sharding.out('batch', 'length', 'residual'))
      x_BTD = (product(self.embed_norm(embedded_BTD), _use(self, 'from_embed_DE'))
               + product(self.hidden_norm(x_BTD), _use(self, 'from_hidden_DE')))
    x_BTD, state, _ = self.block(x_BTD, rotate, attend)
    normed_BTD = self.final_norm(x_BTD) if self.config.mtp == 'sequential' else None
    return x_BTD, normed_BTD, state


class Transformer(nnx.Module):
  """All parameters of a model; `blocks` is one Block whose leaves have a leading L."""

  def __init__(self, config: ModelConfig, key: jax.Array):
    layers = jnp.arange(config.num_layers)
    block_key = jax.random.fold_in(key, _hash('blocks'))
    self.embed_VD = _normal(config, key, 'embed_VD')
    self.blocks = jax.vmap(lambda i: Block(config, jax.random.fold_in(block_key, i)))(layers)
    self.final_norm = Norm(config)
    if not config.tie_embeddings:
      self.head_DV = _normal(config, key, 'head_DV')
    if config.mtp != 'none':
      mtp_key = jax.random.fold_in(key, _hash('mtp'))
      self.mtp = jax.vmap(lambda i: MTPModule(config, jax.random.fold_in(mtp_key, i)))(
        jnp.arange(config.mtp_depth))


# ----------------------------------------------------------------------------------- functions


class Output(NamedTuple):
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
      logit per layer and head, before the limit (smoljax/attention.py).
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
      'trunk': aux['trunk_BTD'], what `mtp` starts from (not undealt, see sharding.deal).
  """
  x_BTD, aux = hidden(
    config, params, tokens_BT, positions_BT=positions_BT, segment_ids_BT=segment_ids_BT,
    max_logits=max_logits, capture=capture,
  )
  return Output(logits(config, params, x_BTD), x_BTD, aux)


def hidden(
  config: ModelConfig,
  params: Params,
  tokens_BT: jax.Array,
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
    tokens_BT = _check_tokens(config, tokens_BT)
  T = tokens_BT.shape[1]
  if config.max_seq_len < T:
    raise ValueError(f'{T} tokens in a row, but max_seq_len={config.max_seq_len}: shorten the '
                     'rows, or raise max_seq_len (and extend rope_theta or rope_scaling)')
  if set(capture) - {'trunk'} and sharding.num_parts('length') > 1:
    raise ValueError('capture needs a mesh that does not split the sequence: use context=1')
  # Where the mesh splits rows, their pieces are dealt out: restored at the end.
  x_BTD = embed(config, params, sharding.deal(jnp.asarray(tokens_BT)))
  positions_BT, segments_BT = _documents(T, positions_BT, segment_ids_BT)

  def attend(q_BTNH, k_BTKH, v_BTKH, layer, window, state):
    out_BTNH, max_N = _attend_documents(
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
  return sharding.undeal(final_norm(config, params, x_BTD)), seen | captured


def mtp(
  config: ModelConfig,
  params: Params,
  module: Params,
  x_BTD: jax.Array,
  tokens_BT: jax.Array,
  *,
  positions_BT: jax.Array | None = None,
  segment_ids_BT: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """One module of multi-token prediction over whole rows, for training.

  Args:
    module: its parameters, one of the stack params['mtp'].
    x_BTD: aux['trunk_BTD'] of `hidden`, or the previous module's first result.
    tokens_BT: the token k places after that of each place, any id where there is none.
  Returns:
    What the next module takes (dealt), and the hidden states that `logits` takes.
  """
  positions_BT, segments_BT = _documents(tokens_BT.shape[1], positions_BT, segment_ids_BT)
  tokens_BT = sharding.deal(jnp.asarray(tokens_BT))

  def attend(q_BTNH, k_BTKH, v_BTKH, state):
    out_BTNH, _ = _attend_documents(
      config, q_BTNH, k_BTKH, v_BTKH, positions_BT, segments_BT, None, None)
    return out_BTNH, state, {}

  def run(params, module, x_BTD):
    x_BTD, hidden_BTD, _ = run_mtp(config, params, module, x_BTD, tokens_BT, positions_BT, attend)
    return x_BTD, hidden_BTD

  x_BTD, hidden_BTD = _checkpoint(config, run)(params, module, x_BTD)
  return x_BTD, sharding.undeal(hidden_BTD)


def run_mtp(
  config: ModelConfig,
  params: Params,
  module: Params,
  x_BTD: jax.Array,
  tokens_BT: jax.Array,
  positions_BT: jax.Array,
  attend: Callable,
  state: Any = None,
) -> tuple[jax.Array, jax.Array, Any]:
  """`mtp` with any attention, `attend` as for `run_blocks` without layer and window.

  Returns what the next module takes, what `logits` takes, and the last state.
  """
  table = rope_table(config, positions_BT)
  embedded_BTD = embed(config, params, tokens_BT) if config.mtp == 'sequential' else None
  x_BTD, normed_BTD, state = nnx.merge(_graph(config, 'mtp'), module)(
    x_BTD, embedded_BTD, lambda y: _rotate(y, *table), functools.partial(attend, state=state))
  hidden_BTD = final_norm(config, params, x_BTD) if normed_BTD is None else normed_BTD
  return x_BTD, hidden_BTD, state


def without_mtp(config: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
  """The model alone, which needs no modules of multi-token prediction."""
  config = dataclasses.replace(config, mtp='none', mtp_depth=1)
  return config, {name: x for name, x in params.items() if name != 'mtp'}


def embed(config: ModelConfig, params: Params, tokens_BT: jax.Array) -> jax.Array:
  """Rows of the embedding, in the compute dtype.

  They are looked up before the cast, so that the gradient is summed in the parameters' fp32.
  """
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
      carried from layer to layer: a KV cache, or None. `seen`: any tree of what is to be shown.
    capture: 'residual', 'units', 'sites', 'trunk' as for `apply`; other names are for `attend`.
  Returns:
    x_BTD, the last state, and (`seen` of all layers stacked, what was captured here).
  """
  cos_BT1H, sin_BT1H = rope_table(config, positions_BT)
  layers = params['blocks'] if isinstance(params['blocks'], list) else None
  graph = _graph(config, 'unstacked' if layers and 'inwards_XD' in layers[0]['attn'] else 'block')

  def block(x_BTD, state, layer_params, layer, rotates, window):
    def rotate(y):
      if isinstance(rotates, bool):
        return _rotate(y, cos_BT1H, sin_BT1H) if rotates else y
      cos, sin = jnp.where(rotates, cos_BT1H, 1.0), jnp.where(rotates, sin_BT1H, 0.0)
      return _rotate(y, cos, sin)

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
    x_BTD, state, seen = nnx.merge(graph, layer_params)(
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
    kept = []
    for i in range(config.num_layers):
      step = functools.partial(
        block, layer=i, rotates=bool(rotates[i]), window=config.windows[i] or None)
      layer_params = layers[i] if layers else _layer(params, i)
      before_BTD = x_BTD
      x_BTD, state, seen = _checkpoint(config, step)(x_BTD, state, layer_params)
      kept.append(seen)
    seen, captured = jax.tree.map(lambda *xs: jnp.stack(xs), *kept)
    return x_BTD, state, (seen, with_trunk(captured, x_BTD, before_BTD))

  shared = {}
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
    _checkpoint(config, body), carry, scanned)
  return x_BTD, state, (seen, with_trunk(captured, x_BTD, before_BTD))


def unstack(config: ModelConfig, params: Params) -> Params:
  """The parameters as decoding reads them, in the compute dtype: `blocks` is a list of layers.

  Where there is one token per row to compute, all the time goes into reading matrices. A scan over
  stacked layers copies each layer's out of the stack first; so they are apart here, those with the
  same input are one, and all are stored (out, in), which is read fastest.
  """
  params = jax.tree.map(lambda p: p.astype(config.dtype), params)
  layers = []
  for i in range(config.num_layers):
    block = _unstacked(nnx.merge(_graph(config, 'block'), _layer(params, i)))
    layers.append(nnx.to_pure_dict(nnx.split(block)[1]))
  head = {} if config.tie_embeddings else {'head_VD': params.pop('head_DV').T}
  return params | head | {'blocks': layers}


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
  return nnx.merge(_graph(config, 'final_norm'), params['final_norm'])(x_BTD)


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
  if jax.sharding.get_abstract_mesh().empty:
    logits_BTV = _product(hidden_BTD, unembed_DV.T, dtype)
  else:
    logits_BTV = jnp.einsum(
      'BTD,DV->BTV', hidden_BTD, unembed_DV, preferred_element_type=dtype,
      out_sharding=sharding.out('batch', 'length', 'vocab'))
  logits_BTV = logits_BTV.astype(jnp.float32)
  if config.logit_softcap:
    logits_BTV = config.logit_softcap * jnp.tanh(logits_BTV / config.logit_softcap)
  return logits_BTV


def rope_table(config: ModelConfig, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(cos, sin) of the rotation angles, fp32 [B, T, 1, H/2]; YaRN's scale is in them."""
  freq_H, scale = rope_frequencies(config)
  angle_BT1H = positions_BT[:, :, None, None].astype(jnp.float32) * freq_H
  return jnp.cos(angle_BT1H) * scale, jnp.sin(angle_BT1H) * scale


def rope_frequencies(config: ModelConfig) -> tuple[np.ndarray, float]:
  """Radians per position of each pair of dims (fp32 [H/2]) and the factor on cos and sin.

  As transformers' `_compute_{linear_scaling_rope,llama3,yarn}_parameters`. With llama3 and yarn
  fast dims keep their frequency, slow ones are divided by `factor`, with a linear ramp between: in
  turns over the original context for llama3, in dims for yarn.
  """
  H, theta = config.head_dim, config.rope_theta
  exponent = np.arange(0, H, 2, dtype=np.float32) / H
  freq_H = (1.0 / np.float32(theta) ** exponent).astype(np.float32)
  y = config.rope_scaling
  if y is None:
    return freq_H, 1.0
  if y.rope_type == 'linear':
    return freq_H / np.float32(y.factor), 1.0
  if y.rope_type == 'llama3':
    turns_H = y.original_max_seq_len * freq_H / (2 * math.pi)
    fast_H = (turns_H - y.low_freq_factor) / (y.high_freq_factor - y.low_freq_factor)
    fast_H = np.clip(fast_H, 0, 1)
    return (freq_H * fast_H + freq_H / y.factor * (1 - fast_H)).astype(np.float32), 1.0

  def dim_turning(times):  # the (fractional) dim that turns so often over the original context
    return H * math.log(y.original_max_seq_len / (times * 2 * math.pi)) / (2 * math.log(theta))

  low, high = dim_turning(y.beta_fast), dim_turning(y.beta_slow)
  if y.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, H - 1)
  high += 0.001 * (low == high)
  slow_H = np.clip((np.arange(H // 2, dtype=np.float32) - low) / (high - low), 0, 1)
  freq_H = freq_H / y.factor * slow_H + freq_H * (1 - slow_H)
  return freq_H.astype(np.float32), y.attention_factor or mscale(y.factor)


def _attend_documents(
  config, q_BTNH, k_BTKH, v_BTKH, positions_BT, segments_BT, window, max_logits
):
  return attention(
    q_BTNH, k_BTKH, v_BTKH, q_positions_BT=positions_BT, kv_positions_BS=positions_BT,
    q_segments_BT=segments_BT, kv_segments_BS=segments_BT, in_order=True, dealt=True,
    window=window, windows=config.windows, softcap=config.attention_softcap,
    max_segments=config.max_segments, max_logits=max_logits, implementation=config.attention,
  )


def _check_tokens(config, tokens_BT):
  tokens_BT = np.asarray(tokens_BT)
  if tokens_BT.ndim != 2 or tokens_BT.dtype.kind not in 'iu':
    raise ValueError(f'tokens_BT has shape {tokens_BT.shape} and dtype {tokens_BT.dtype}: give '
                     'whole numbers [batch, time]')
  wrong = np.argwhere((tokens_BT < 0) | (tokens_BT >= config.vocab_size))
  if len(wrong):
    b, t = map(int, wrong[0])
    raise ValueError(
      f'token id {tokens_BT[b, t]} in row {b} at place {t} lies outside the vocabulary of '
      f'{config.vocab_size}{f" ({len(wrong) - 1} more do)" * (len(wrong) > 1)}: was the text '
      'tokenised for another model?')
  return tokens_BT


def _documents(T, positions_BT, segments_BT):
  """Positions and document ids, each derived from the other where it is missing.

  Deriving needs whole rows; the results are split, and dealt, as the sequence is.
  """
  positions_BT, segments_BT = (
    x if x is None else sharding.constrain(jnp.asarray(x, jnp.int32), 'batch', None)
    for x in (positions_BT, segments_BT)
  )
  if positions_BT is None and segments_BT is None:
    return sharding.deal(jnp.arange(T, dtype=jnp.int32)[None]), None
  if segments_BT is None:
    segments_BT = segments_from_positions(positions_BT)
  if positions_BT is None:
    positions_BT = positions_from_segments(segments_BT)
  return sharding.deal(positions_BT), sharding.deal(segments_BT)


@functools.lru_cache(maxsize=32)
def _jitted_init(config, mesh):
  placed = None if mesh.empty else sharding.shardings(abstract_params(config), mesh)
  return jax.jit(functools.partial(_make, config), out_shardings=placed)


def _make(config, key):
  return nnx.to_pure_dict(nnx.split(Transformer(config, key))[1])


@functools.cache
def _graph(config, part):
  make = {
    'block': lambda: Block(config, jax.random.key(0)),
    'unstacked': lambda: _unstacked(Block(config, jax.random.key(0))),
    'final_norm': lambda: Norm(config),
    'mtp': lambda: MTPModule(config, jax.random.key(0)),
  }
  return nnx.split(jax.eval_shape(make[part]))[0]


def _layer(params, i):
  return jax.tree.map(lambda p: p[i], params['blocks'])


def _unstacked(block):
  for module, (inwards, outwards) in MATRICES.items():
    module = getattr(block, module)
    inwards = [name for name in inwards if hasattr(module, name)]
    parts_XD = [p.reshape(len(p), -1).T for p in (getattr(module, n)[...] for n in inwards)]
    out_XD = getattr(module, outwards)[...]
    for name in (*inwards, outwards):
      delattr(module, name)
    module.inwards_XD = nnx.Param(jnp.concatenate(parts_XD))
    module.outwards_DX = nnx.Param(out_XD.reshape(-1, out_XD.shape[-1]).T)
  return block


def _inwards(module, x_BTD, *names):
  """x_BTD times each of the named matrices of a module."""
  if not hasattr(module, 'inwards_XD'):
    letters = [sharding.dim_letters(name) for name in names]
    if _in_fp8(module, names[0]):
      return [fp8.product(x_BTD, _use(module, name), 'residual', 'mlp') for name in names]
    return [jnp.einsum(f'BTD,{dims}->BT{dims[1:]}', x_BTD, _use(module, name))
            for name, dims in zip(names, letters, strict=True)]
  shapes = [_shape(module.config, name)[1:] for name in names]
  y_BTX = _product(x_BTD, module.inwards_XD[...], x_BTD.dtype)
  parts = jnp.split(y_BTX, np.cumsum([math.prod(shape) for shape in shapes])[:-1], axis=-1)
  return [y.reshape(*x_BTD.shape[:2], *shape) for y, shape in zip(parts, shapes, strict=True)]


def _outwards(module, y, name):
  """y [B, T, …] times the named matrix, back into the residual stream."""
  if hasattr(module, 'outwards_DX'):
    return _product(y.reshape(*y.shape[:2], -1), module.outwards_DX[...], y.dtype)
  if _in_fp8(module, name):
    return fp8.product(y, _use(module, name), 'mlp', 'residual')
  dims = sharding.dim_letters(name)
  return jnp.einsum(f'BT{dims[:-1]},{dims}->BTD', y, _use(module, name),
                    out_sharding=sharding.out('batch', 'length', 'residual'))


def _in_fp8(module, name):
  return module.config.fp8 and 'F' in sharding.dim_letters(name)


def _product(x_BTI, w_OI, dtype):
  """x times w transposed, accumulated in fp32 and given in `dtype`."""
  def dot(x_BTI, w_OI):
    return jnp.einsum('BTI,OI->BTO', x_BTI, w_OI, preferred_element_type=dtype)

  def total(x_11I, w_OI):  # for one row, XLA's GPU reductions read w faster than its products
    y_1O = jnp.sum(x_11I.astype(jnp.float32) * w_OI.astype(jnp.float32), axis=-1)
    return y_1O[None].astype(dtype)

  if x_BTI.shape[:2] == (1, 1):
    return jax.lax.platform_dependent(x_BTI, w_OI, cuda=total, default=dot)
  return dot(x_BTI, w_OI)


def _shape(config, name):
  return tuple(config.dims[letter] for letter in sharding.dim_letters(name))


def _normal(config, key, name, into_residual=False):
  """normal(0, init_std) by the key of its name, so that new parameters change no old ones."""
  std = config.init_std
  if into_residual and config.init == 'nanotron':
    std /= math.sqrt(2 * config.num_layers)
  key = jax.random.fold_in(key, _hash(name))
  # The barrier keeps XLA from folding std into the sampler's constants, which it does on some
  # meshes and not on others: the last bit would differ.
  x = jax.lax.optimization_barrier(jax.random.normal(key, _shape(config, name), jnp.float32))
  return nnx.Param(std * x)


def _ones(config, name):
  return nnx.Param(jnp.ones(_shape(config, name), jnp.float32))


def _zeros(config, name):
  return nnx.Param(jnp.zeros(_shape(config, name), jnp.float32))


def _unit_rms(x, config):
  """x / rms(x) over the last dim, computed in fp32, in x's dtype."""
  x32 = x.astype(jnp.float32)
  x32 *= jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + config.norm_eps)
  return x32.astype(x.dtype)


def _use(module, name):
  """A parameter as computed with: cast, then gathered over the mesh's fsdp axis."""
  value = getattr(module, name)[...].astype(module.config.dtype)
  return sharding.constrain(value, *sharding.param_names(name, stored=False))


def _rotate(x_BTNH, cos_BT1H, sin_BT1H):
  """Rotary positions (arXiv:2104.09864) on dims paired as (i, i + H/2), in fp32."""
  a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  y = jnp.concatenate([a * cos_BT1H - b * sin_BT1H, b * cos_BT1H + a * sin_BT1H], axis=-1)
  return y.astype(x_BTNH.dtype)


def _checkpoint(config, function):
  """Recompute in the backward pass what `config.remat` does not name."""
  policies = jax.checkpoint_policies
  if config.remat == 'none':
    return function
  if config.remat == 'full':
    policy = policies.nothing_saveable
  elif config.remat == 'dots':
    # Attention's kernels are no dots: their results are kept by name.
    policy = policies.save_from_both_policies(
      policies.checkpoint_dots, policies.save_only_these_names('ctx', 'fp8'))
  else:
    policy = policies.save_only_these_names('fp8', *config.remat.split('+'))
  return jax.checkpoint(function, policy=policy, prevent_cse=not config.scan_layers)


def _mesh_of(x):
  return jax.typeof(x).sharding.mesh


def _hash(name):
  return zlib.crc32(name.encode())

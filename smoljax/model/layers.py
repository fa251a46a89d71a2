"""The layers of the transformer: declarations (Flax NNX), rotary positions, products, remat.

Shape legend in smoljax/model/transformer.py."""

import functools
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from smoljax import sharding
from smoljax.model import fp8, one_row, quantised, rms_norm
from smoljax.model.attention import attention
from smoljax.model.config import GATED, LinearRope, Llama3Rope, ModelConfig, mscale

Params = dict[str, Any]

# The matrices of each module: those that take its input (an MLP may have no gate), and the one
# that gives its output.
MATRICES = {
  'attn': (('q_DNH', 'k_DKH', 'v_DKH'), 'o_NHD'),
  'mlp': (('gate_DF', 'up_DF'), 'down_FD'),
}


# -------------------------------------------------------------------------------- declarations


class Norm(nnx.Module):
  """RMSNorm (arXiv:1910.07467) or LayerNorm (arXiv:1607.06450) in fp32; cast, then scaled."""

  def __init__(self, config: ModelConfig):
    self.config = config
    self.scale_D = _ones(config, 'scale_D')
    if config.norm == 'layer':
      self.bias_D = _zeros(config, 'bias_D')

  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    """RMSNorm or layer norm over the last dim."""
    if self.config.norm == 'rms':
      return _unit_rms(x_BTD, self.config) * _use(self, 'scale_D')
    x32_BTD = x_BTD.astype(jnp.float32)
    x32_BTD -= jnp.mean(x32_BTD, axis=-1, keepdims=True)
    x_BTD = _unit_rms(x32_BTD, self.config).astype(x_BTD.dtype)
    return x_BTD * _use(self, 'scale_D') + _use(self, 'bias_D')


class QKNorm(nnx.Module):
  """RMSNorm of queries or keys (QK-norm, arXiv:2302.05442); see ModelConfig.qk_norm_over."""

  def __init__(self, config: ModelConfig, heads: str):
    self.config = config
    self.name = 'scale_H' if config.qk_norm_over == 'head' else f'scale_{heads}H'
    setattr(self, self.name, _ones(config, self.name))

  def __call__(self, x_BTNH: jax.Array) -> jax.Array:
    """RMSNorm of each head (Qwen3), or of all heads of a token at once (OLMo 2)."""
    dims = (-1,) if self.config.qk_norm_over == 'head' else (-2, -1)
    return _unit_rms(x_BTNH, self.config, dims) * _use(self, self.name)


class Attention(nnx.Module):
  """Projections of grouped-query attention; what is seen is `attend`'s business."""

  def __init__(self, config: ModelConfig, key: jax.Array):
    self.config = config
    self.q_DNH = normal(config, key, 'q_DNH')
    self.k_DKH = normal(config, key, 'k_DKH')
    self.v_DKH = normal(config, key, 'v_DKH')
    self.o_NHD = normal(config, key, 'o_NHD', into_residual=True)
    if config.attention_bias or config.qkv_bias:
      self.q_bias_NH = _zeros(config, 'q_bias_NH')
      self.k_bias_KH = _zeros(config, 'k_bias_KH')
      self.v_bias_KH = _zeros(config, 'v_bias_KH')
    if config.attention_bias:
      self.o_bias_D = _zeros(config, 'o_bias_D')
    if config.qk_norm:
      self.q_norm = QKNorm(config, 'N')
      self.k_norm = QKNorm(config, 'K')

  def __call__(
    self, x_BTD: jax.Array, rotate: Callable, attend: Callable
  ) -> tuple[jax.Array, Any, Any]:
    """(what attention adds to the stream, the state and what else `attend` gives)."""
    q_BTNH, k_BTKH, v_BTKH = _inwards(self, x_BTD, *MATRICES['attn'][0])
    if self.config.attention_bias or self.config.qkv_bias:
      q_BTNH += _use(self, 'q_bias_NH')
      k_BTKH += _use(self, 'k_bias_KH')
      v_BTKH += _use(self, 'v_bias_KH')
    if self.config.qk_norm:
      q_BTNH, k_BTKH = self.q_norm(q_BTNH), self.k_norm(k_BTKH)
    # As attention takes them: to turn them back needs the angles alone.
    q_BTNH, k_BTKH, v_BTKH = (
      checkpoint_name(y, 'qkv') for y in (rotate(q_BTNH), rotate(k_BTKH), v_BTKH))
    out_BTNH, state, seen = attend(q_BTNH, k_BTKH, v_BTKH)
    out_BTD = _outwards(self, out_BTNH, 'o_NHD')
    if self.config.attention_bias:
      out_BTD += _use(self, 'o_bias_D')
    return out_BTD, state, seen


class MLP(nnx.Module):
  """Two or, gated, three matrices; see ModelConfig.activation."""

  def __init__(self, config: ModelConfig, key: jax.Array):
    self.config = config
    if GATED[config.activation]:
      self.gate_DF = normal(config, key, 'gate_DF')
    self.up_DF = normal(config, key, 'up_DF')
    self.down_FD = normal(config, key, 'down_FD', into_residual=True)
    if config.mlp_bias:
      if GATED[config.activation]:
        self.gate_bias_F = _zeros(config, 'gate_bias_F')
      self.up_bias_F = _zeros(config, 'up_bias_F')
      self.down_bias_D = _zeros(config, 'down_bias_D')

  def __call__(self, x_BTD: jax.Array, watch: Callable | None = None) -> jax.Array:
    """What the layer adds to the stream; `watch` is shown gate and hidden units."""
    gated = GATED[self.config.activation]
    if not watch and hasattr(self, 'up_DF') and fp8.fits(self.config, x_BTD):
      return fp8.swiglu(x_BTD, *(_use(self, name) for name in ('gate_DF', 'up_DF', 'down_FD')))
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
    self.attn = Attention(config, jax.random.fold_in(key, name_hash('attn')))
    self.mlp = MLP(config, jax.random.fold_in(key, name_hash('mlp')))
    if config.norm_position != 'post':
      self.attn_norm, self.mlp_norm = Norm(config), Norm(config)
    if config.norm_position != 'pre':
      self.attn_post_norm, self.mlp_post_norm = Norm(config), Norm(config)

  def __call__(
    self, x_BTD: jax.Array, rotate: Callable, attend: Callable, watch: Callable | None = None
  ) -> tuple[jax.Array, Any, Any]:
    """(x_BTD after the block, the state and what else `attend` gives)."""
    x_BTD, normed_BTD = self._stream_and_norm('attn_norm', x_BTD)
    out_BTD, state, seen = self.attn(normed_BTD, rotate, attend)
    attn_BTD = self._norm('attn_post_norm', out_BTD)
    x_BTD, normed_BTD = self._add_and_norm(x_BTD, attn_BTD)
    out_BTD = self.mlp(normed_BTD, watch)
    mlp_BTD = self._norm('mlp_post_norm', out_BTD)
    if watch:
      watch('attn_out', attn_BTD)
      watch('mlp_out', mlp_BTD)
    return x_BTD + mlp_BTD, state, seen

  def _norm(self, name, x_BTD):
    return getattr(self, name)(x_BTD) if hasattr(self, name) else x_BTD

  def _stream_and_norm(self, name, x_BTD):
    """(x, what is read of it). They come from one function since their gradients are joined."""
    norm = getattr(self, name, None)
    if norm is None or hasattr(self.mlp, 'inwards_XD') or not rms_norm.fits(norm.config, x_BTD):
      return x_BTD, self._norm(name, x_BTD)
    return rms_norm.stream_and_norm(x_BTD, _use(norm, 'scale_D'), norm.config.norm_eps)

  def _add_and_norm(self, x_BTD, attn_BTD):
    """(x + attention, what the MLP reads of it)."""
    def plain(x_BTD, attn_BTD):
      return self._stream_and_norm('mlp_norm', checkpoint_name(x_BTD + attn_BTD, 'mid'))

    if hasattr(self.mlp, 'inwards_XD') and hasattr(self, 'mlp_norm'):  # decoding
      norm = self.mlp_norm
      if one_row.fits(norm.config, x_BTD):
        kernel = functools.partial(
          one_row.add_and_norm, scale_D=norm.scale_D[...], eps=norm.config.norm_eps)
        return jax.lax.platform_dependent(x_BTD, attn_BTD, cuda=kernel, default=plain)
    return plain(x_BTD, attn_BTD)


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
    self.block = Block(config, jax.random.fold_in(key, name_hash('block')))
    if config.mtp == 'sequential':
      self.hidden_norm, self.embed_norm, self.final_norm = (Norm(config) for _ in range(3))
      self.from_hidden_DE = normal(config, key, 'from_hidden_DE')
      self.from_embed_DE = normal(config, key, 'from_embed_DE')

  def __call__(
    self, x_BTD: jax.Array, embedded_BTD: jax.Array, rotate: Callable, attend: Callable
  ) -> tuple[jax.Array, jax.Array | None, Any]:
    """(what the next module takes, its normed form or None, the state that `attend` gives)."""
    if self.config.mtp == 'sequential':
      product = functools.partial(
        jnp.einsum, 'BTD,DE->BTE', out_sharding=sharding.out('batch', 'length', 'residual'))
      x_BTD = (product(self.embed_norm(embedded_BTD), _use(self, 'from_embed_DE'))
               + product(self.hidden_norm(x_BTD), _use(self, 'from_hidden_DE')))
    x_BTD, state, _ = self.block(x_BTD, rotate, attend)
    normed_BTD = self.final_norm(x_BTD) if self.config.mtp == 'sequential' else None
    return x_BTD, normed_BTD, state


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
  if isinstance(y, LinearRope):
    return freq_H / np.float32(y.factor), 1.0
  if isinstance(y, Llama3Rope):
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


def attend_documents(
  config: ModelConfig, q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array,
  positions_BT: jax.Array, segments_BT: jax.Array | None, window: jax.Array | int | None,
  max_logits: str | float | None,
) -> tuple[jax.Array, jax.Array | None]:
  """`attention` of training and prefill: whole rows of documents, by the fields of the config."""
  return attention(
    q_BTNH, k_BTKH, v_BTKH, q_positions_BT=positions_BT, kv_positions_BS=positions_BT,
    q_segments_BT=segments_BT, kv_segments_BS=segments_BT, in_order=True, zigzag=True,
    window=window, windows=config.windows, softcap=config.attention_softcap,
    max_segments=config.max_segments, max_logits=max_logits, implementation=config.attention,
  )


def check_tokens(config: ModelConfig, tokens_BT: jax.typing.ArrayLike) -> np.ndarray:
  """The ids as a numpy array; raises ValueError unless they are [B, T] and in the vocabulary."""
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


@functools.cache
def graph(config: ModelConfig, part: str) -> nnx.GraphDef:
  """The structure (nnx.GraphDef) of a part of the model, which its parameters are merged into."""
  make = {
    'block': lambda: Block(config, jax.random.key(0)),
    'unstacked': lambda: _joined(Block(config, jax.random.key(0))),
    'final_norm': lambda: Norm(config),
    'mtp': lambda: MTPModule(config, jax.random.key(0)),
  }
  return nnx.split(jax.eval_shape(make[part]))[0]


def layer_params(params: Params, i: jax.Array | int) -> Params:
  """Those of layer i, from the stack of all."""
  return jax.tree.map(lambda p: p[i], params['blocks'])


def unstacked(layer: Params) -> Params:
  """A layer with all matrices that read one input as one matrix [out, in]: for decoding.

  numpy arrays stay on the host; those of a Hugging Face folder lie in that order already.
  """
  layer = dict(layer)
  for part, (inwards, outwards) in MATRICES.items():
    module = dict(layer[part])
    parts = [module.pop(name) for name in inwards if name in module]
    out_XD = module.pop(outwards)
    out_XD = out_XD.reshape(-1, out_XD.shape[-1])
    join = np.concatenate if isinstance(out_XD, np.ndarray) else jnp.concatenate
    module['inwards_XD'] = join([p.reshape(len(p), -1).T for p in parts])
    layer[part] = module | {'outwards_DX': out_XD.T}
  return layer


def _joined(block):
  """The block with the matrices of `unstacked`, but for their values."""
  for part, (inwards, outwards) in MATRICES.items():
    module = getattr(block, part)
    for name in (*inwards, outwards):
      if hasattr(module, name):
        delattr(module, name)
    module.inwards_XD, module.outwards_DX = nnx.Param(jnp.zeros(())), nnx.Param(jnp.zeros(()))
  return block


def _inwards(module, x_BTD, *names):
  """x_BTD times each of the named matrices of a module."""
  if not hasattr(module, 'inwards_XD'):
    letters = [sharding.dim_letters(name) for name in names]
    if module.config.fp8:
      return [_inwards_fp8(module, x_BTD, name) for name in names]
    return [_product(f'BTD,{dims}->BT{dims[1:]}', x_BTD, module, name)
            for name, dims in zip(names, letters, strict=True)]
  shapes = [_shape(module.config, name)[1:] for name in names]
  y_BTX = matmul(x_BTD, module.inwards_XD.get_value(), x_BTD.dtype)
  parts = jnp.split(y_BTX, np.cumsum([math.prod(shape) for shape in shapes])[:-1], axis=-1)
  return [y.reshape(*x_BTD.shape[:2], *shape) for y, shape in zip(parts, shapes, strict=True)]


def _outwards(module, y, name):
  """y [B, T, …] times the named matrix, back into the residual stream."""
  if hasattr(module, 'outwards_DX'):
    return matmul(y.reshape(*y.shape[:2], -1), module.outwards_DX.get_value(), y.dtype)
  if module.config.fp8:
    w, names = _use(module, name), sharding.param_names(name, stored=False)
    w_OD = jnp.reshape(w, (-1, w.shape[-1]), out_sharding=sharding.out(names[0], names[-1]))
    y_BTO = jnp.reshape(y, (*y.shape[:2], -1), out_sharding=sharding.out(
      'batch', 'length', names[0]))
    return fp8.product(y_BTO, w_OD, names[0], names[-1])
  dims = sharding.dim_letters(name)
  return _product(f'BT{dims[:-1]},{dims}->BTD', y, module, name)


def _product(subscripts, x, module, name):
  """The einsum of x [B, T, …] and the named matrix."""
  if sharding.num_parts('embed') == 1:
    return jnp.einsum(subscripts, x, _use(module, name),
                      out_sharding=sharding.out(*_of_tokens(subscripts.split('->')[1])))
  return _gathered_product(
    subscripts, name, x, getattr(module, name)[...].astype(module.config.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gathered_product(subscripts, name, x, w):
  """`_product` of a matrix that the mesh's fsdp axis splits: gathered here, in both passes.

  Its gradient is asked for as the matrix is stored. Left to autodiff it is asked for whole, and cut
  after: XLA then scatters the sum on GPUs, but slices of 16 TPUs and more sum it everywhere, where
  so it is a ring of permutes beside the product (experiments/log/speed.md).
  """
  w = sharding.constrain(w, *sharding.param_names(name, stored=False))
  return jnp.einsum(subscripts, x, w,
                    out_sharding=sharding.out(*_of_tokens(subscripts.split('->')[1])))


def _gathered_forward(subscripts, name, x, w):
  return _gathered_product(subscripts, name, x, w), (x, w)


def _gathered_backward(subscripts, name, residuals, dy):
  (x, w), (given, result) = residuals, subscripts.split('->')
  of_x, of_w = given.split(',')
  dy = sharding.constrain(dy, *_of_tokens(result))
  whole = sharding.constrain(w, *sharding.param_names(name, stored=False))
  dx = jnp.einsum(f'{result},{of_w}->{of_x}', dy, whole, out_sharding=jax.typeof(x).sharding.spec)
  dw = jnp.einsum(f'{of_x},{result}->{of_w}', x, dy, out_sharding=jax.typeof(w).sharding.spec)
  return dx, dw


_gathered_product.defvjp(_gathered_forward, _gathered_backward)


def _of_tokens(dims):
  """Logical names of an array [B, T, …] by its letters."""
  return 'batch', 'length', *('residual' if d == 'D' else sharding.DIMS[d] for d in dims[2:])


def _inwards_fp8(module, x_BTD, name):
  w, names = _use(module, name), sharding.param_names(name, stored=False)
  w_DO = jnp.reshape(w, (len(w), -1), out_sharding=sharding.out(*names[:2]))
  y_BTO = fp8.product(x_BTD, w_DO, *names[:2])
  return jnp.reshape(y_BTO, (*y_BTO.shape[:2], *w.shape[1:]),
                     out_sharding=sharding.out('batch', 'length', *names[1:]))


def matmul(
  x_BTI: jax.Array, w_OI: jax.Array | quantised.Quantised, dtype: jax.typing.DTypeLike
) -> jax.Array:
  """x times w transposed, accumulated in fp32 and given in `dtype`."""
  if isinstance(w_OI, quantised.Quantised):
    return quantised.matmul(x_BTI, w_OI, dtype)

  def dot(x_BTI, w_OI, preferred=dtype):
    return jnp.einsum('BTI,OI->BTO', x_BTI, w_OI, preferred_element_type=preferred).astype(dtype)

  def total(x_11I, w_OI):  # for one row, XLA's GPU reductions read w faster than its products
    y_1O = jnp.sum(x_11I.astype(jnp.float32) * w_OI.astype(jnp.float32), axis=-1)
    return y_1O[None].astype(dtype)

  def unwidened(x_BTI, w_OI):  # XLA's CPU products take w as it is for fp32 results of two rows
    rows = jnp.concatenate([x_BTI, x_BTI]) if x_BTI.shape[:2] == (1, 1) else x_BTI
    return dot(rows, w_OI, jnp.float32)[: len(x_BTI)]

  choices: dict[str, Callable] = {'cuda': total} if x_BTI.shape[:2] == (1, 1) else {}
  if w_OI.dtype == jnp.bfloat16:
    choices['cpu'] = unwidened
  if choices:
    return jax.lax.platform_dependent(x_BTI, w_OI, **choices, default=dot)
  return dot(x_BTI, w_OI)


def _shape(config, name):
  return tuple(config.dims[letter] for letter in sharding.dim_letters(name))


def normal(
  config: ModelConfig, key: jax.Array, name: str, into_residual: bool = False
) -> nnx.Param:
  """normal(0, init_std) by the key of its name, so that new parameters change no old ones."""
  std = config.init_std
  if into_residual and config.init == 'nanotron':
    std /= math.sqrt(2 * config.num_layers)
  key = jax.random.fold_in(key, name_hash(name))
  # The barrier keeps XLA from folding std into the sampler's constants, which it does on some
  # meshes and not on others: the last bit would differ.
  x = jax.lax.optimization_barrier(jax.random.normal(key, _shape(config, name), jnp.float32))
  return nnx.Param(std * x)


def _ones(config, name):
  return nnx.Param(jnp.ones(_shape(config, name), jnp.float32))


def _zeros(config, name):
  return nnx.Param(jnp.zeros(_shape(config, name), jnp.float32))


def _unit_rms(x, config, dims=(-1,)):
  """x / rms(x) over the last dim(s), computed in fp32, in x's dtype."""
  x32 = x.astype(jnp.float32)
  x32 *= jax.lax.rsqrt(jnp.mean(x32 * x32, axis=dims, keepdims=True) + config.norm_eps)
  return x32.astype(x.dtype)


def _use(module, name):
  """A parameter as computed with: cast, then gathered over the mesh's fsdp axis."""
  value = getattr(module, name)[...].astype(module.config.dtype)
  return sharding.constrain(value, *sharding.param_names(name, stored=False))


def rotate(x_BTNH: jax.Array, cos_BT1H: jax.Array, sin_BT1H: jax.Array) -> jax.Array:
  """Rotary positions (arXiv:2104.09864) on dims paired as (i, i + H/2), in fp32."""
  a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  y = jnp.concatenate([a * cos_BT1H - b * sin_BT1H, b * cos_BT1H + a * sin_BT1H], axis=-1)
  return y.astype(x_BTNH.dtype)


def remat(config: ModelConfig, function: Callable) -> Callable:
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


def name_hash(name: str) -> int:
  """What a parameter's name folds into the key of initialisation; the same in every process."""
  return zlib.crc32(name.encode())

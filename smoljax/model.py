"""SmolLM3-shaped transformers: configuration, parameters, forward pass.

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

Flax NNX modules declare them; jax transforms do the rest.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from smoljax import sharding
from smoljax.attention import (
  IMPLEMENTATIONS,
  Places,
  attention,
  positions_from_segments,
  probabilities,
  segments_from_positions,
)

Params = dict[str, Any]

# The matrices of each module: those that take its input (an MLP may have no gate), and the one
# that gives its output.
MATRICES = {
  'attn': (('q_DNH', 'k_DKH', 'v_DKH'), 'o_NHD'),
  'mlp': (('gate_DF', 'up_DF'), 'down_FD'),
}

CAPTURED = ('residual', 'attention')  # activations that `apply` gives on request
REMAT_NAMES = ('qkv', 'ctx', 'mid', 'gu')  # values that may be saved for the backward pass


GATED = {'swiglu': True, 'geglu': True, 'gelu': False, 'relu2': False}  # activation → gate_DF?


@dataclasses.dataclass(frozen=True)
class LinearRope:
  """Position interpolation (arXiv:2306.15595): all frequencies are divided by `factor`."""

  factor: float
  rope_type: str = 'linear'


@dataclasses.dataclass(frozen=True)
class Llama3Rope:
  """Llama 3.1's context extension, numbers as in transformers.

  Dims that turn more than `high_freq_factor` times over the original context are kept, those
  that turn less than `low_freq_factor` times are divided by `factor`, with a ramp between.
  """

  factor: float
  original_max_seq_len: int
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  rope_type: str = 'llama3'


@dataclasses.dataclass(frozen=True)
class Yarn:
  """YaRN context extension (arXiv:2309.00071), numbers as in transformers."""

  factor: float  # context length / original context length
  original_max_seq_len: int
  beta_fast: float = 32.0  # dims turning more often than this over the original context are kept
  beta_slow: float = 1.0  # dims turning less often than this are interpolated
  attention_factor: float = 0.0  # cos and sin are scaled by it; 0 = 0.1 ln(factor) + 1
  truncate: bool = True  # round the two bounds outwards to whole dims
  rope_type: str = 'yarn'


ROPE_SCALINGS = {'linear': LinearRope, 'llama3': Llama3Rope, 'yarn': Yarn}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """What a model is. Raises ValueError, naming the field, where the numbers do not fit.

  `activation`: swiglu and geglu are gated, down(f(gate x) * up x) (arXiv:2002.05202); gelu and
  relu2 (arXiv:2109.08668) are not, down(f(up x)). GELU is its tanh form, as in Gemma and GPT-2.

  `norm_position`, for f = attention and f = MLP:
    pre:      x + f(norm(x))           (arXiv:2002.04745; Llama, SmolLM3)
    post:     x + norm(f(x))           (OLMo 2, arXiv:2501.00656; not the post-LN of 2017, which
                                        normalises the sum)
    sandwich: x + norm'(f(norm(x)))    (CogView, arXiv:2105.13290; Gemma 2)
  A norm before the head there is always. `norm` is what all of these are (qk_norm is RMS always).

  `rope_scaling` may be given as a mapping with `rope_type` linear, llama3 or yarn (the default).
  """

  vocab_size: int
  num_layers: int
  embed_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  max_seq_len: int  # tokens; longer inputs are refused
  rope_theta: float = 50_000.0
  nope_interval: int = 4  # every 4th layer is without rotary positions; 0 = all layers rotate
  rope_layers: tuple[int, ...] = ()  # per layer, 1 = rotates; given, it overrides nope_interval
  rope_scaling: LinearRope | Llama3Rope | Yarn | None = None
  sliding_window: int = 0  # tokens a windowed layer looks back, itself included; 0 = no window
  window_layers: tuple[int, ...] = ()  # per layer, 1 = windowed; empty = the NoPE layers, as HF
  activation: str = 'swiglu'  # swiglu, geglu, gelu or relu2
  norm: str = 'rms'  # rms, or layer (scale and bias)
  norm_position: str = 'pre'  # pre, post or sandwich
  norm_eps: float = 1e-6
  logit_softcap: float = 0.0  # c: logits become c tanh(logits / c) (arXiv:2408.00118); 0 = none
  tie_embeddings: bool = True
  attention_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False  # RMSNorm over the head dim of queries and keys
  attention: str = 'auto'  # implementation: auto, xla, cudnn (NVIDIA), splash (TPU)
  attention_softcap: float = 0.0  # attention logits are capped to ± this by tanh; 0 = not
  init: str = 'nanotron'  # 'nanotron': o and down get init_std / sqrt(2 L); 'hf': all init_std
  init_std: float = 0.02
  dtype: str = 'bfloat16'  # of the computation; parameters stay fp32
  remat: str = 'none'  # saved for the backward pass: none (all), full (nothing), dots, qkv+ctx+…
  scan_layers: bool = True  # False unrolls them: slow to compile, sometimes faster to run

  def __post_init__(self):
    if isinstance(self.rope_scaling, Mapping):
      object.__setattr__(self, 'rope_scaling', _rope_scaling(self.rope_scaling))
    for name in ('rope_layers', 'window_layers'):
      object.__setattr__(self, name, tuple(int(x) for x in getattr(self, name)))
    for name in ('vocab_size', 'num_layers', 'embed_dim', 'num_heads', 'num_kv_heads', 'head_dim',
                 'mlp_dim', 'max_seq_len'):
      value = getattr(self, name)
      if not isinstance(value, int) or value < 1:
        raise ValueError(f'{name}={value!r}: give a positive whole number')
    if self.num_heads % self.num_kv_heads:
      raise ValueError(f'num_heads={self.num_heads} is not a multiple of '
                       f'num_kv_heads={self.num_kv_heads}: change one of them')
    if self.head_dim % 2:
      raise ValueError(f'head_dim={self.head_dim}: rotary positions need an even number')
    if self.nope_interval < 0:
      raise ValueError(f'nope_interval={self.nope_interval}: give 0 (all layers rotate) or more')
    for name in ('rope_layers', 'window_layers'):
      value = getattr(self, name)
      if value and (len(value) != self.num_layers or set(value) - {0, 1}):
        raise ValueError(f'{name}={value}: give one 0 or 1 for each of the {self.num_layers} '
                         'layers, or leave it empty')
    if self.attention_softcap < 0:
      raise ValueError(f'attention_softcap={self.attention_softcap}: give 0 (none) or more')
    if self.sliding_window < 0:
      raise ValueError(f'sliding_window={self.sliding_window}: give 0 (none) or more')
    if self.window_layers and not self.sliding_window:
      raise ValueError('window_layers is given but sliding_window=0: set the window in tokens')
    if self.rope_scaling:
      _check_rope_scaling(self.rope_scaling)
    if self.logit_softcap < 0:
      raise ValueError(f'logit_softcap={self.logit_softcap}: give 0 (none) or a positive number')
    for name in ('rope_theta', 'norm_eps', 'init_std'):
      if not getattr(self, name) > 0:
        raise ValueError(f'{name}={getattr(self, name)!r}: give a positive number')
    _one_of('attention', self.attention, ('auto', *IMPLEMENTATIONS))
    _one_of('activation', self.activation, GATED)
    _one_of('norm', self.norm, ('rms', 'layer'))
    _one_of('norm_position', self.norm_position, ('pre', 'post', 'sandwich'))
    _one_of('init', self.init, ('nanotron', 'hf'))
    _one_of('dtype', self.dtype, ('bfloat16', 'float32'))
    if self.remat not in ('none', 'full', 'dots'):
      for name in self.remat.split('+'):
        _one_of('remat', name, ('none', 'full', 'dots', *REMAT_NAMES))

  @property
  def dims(self) -> dict[str, int]:
    """Sizes by the letters of parameter names."""
    return dict(V=self.vocab_size, D=self.embed_dim, F=self.mlp_dim, N=self.num_heads,
                K=self.num_kv_heads, H=self.head_dim)

  @property
  def rope_flags(self) -> tuple[bool, ...]:
    """Per layer: does it rotate queries and keys."""
    if self.rope_layers:
      return tuple(bool(x) for x in self.rope_layers)
    every = self.nope_interval or self.num_layers + 1
    return tuple((i + 1) % every != 0 for i in range(self.num_layers))

  @property
  def windows(self) -> tuple[int, ...]:
    """Per layer: the sliding window in tokens, 0 for full attention."""
    flags = self.window_layers or tuple(not r for r in self.rope_flags)
    return tuple(self.sliding_window if f else 0 for f in flags)

  def extended(self, max_seq_len: int) -> 'ModelConfig':
    """The same model for texts of `max_seq_len` tokens: its rotary positions stretched by YaRN.

    Needs no training, but costs a little on short texts: for inputs that need it.
    """
    if max_seq_len <= self.max_seq_len:
      return self
    yarn = self.rope_scaling or Yarn(1.0, self.max_seq_len)
    if not isinstance(yarn, Yarn):
      raise ValueError(f'rope_scaling={yarn}: only plain rotary positions and YaRN can be extended')
    yarn = dataclasses.replace(yarn, factor=max_seq_len / yarn.original_max_seq_len)
    return dataclasses.replace(self, max_seq_len=max_seq_len, rope_scaling=yarn)

  def num_params(self, *, embedding: bool = True) -> int:
    """Number of parameters, a tied head counted once; without embedding and head if asked."""
    D, F, N, K, H = self.embed_dim, self.mlp_dim, self.num_heads, self.num_kv_heads, self.head_dim
    gated, norm = GATED[self.activation], D * (2 if self.norm == 'layer' else 1)
    layer = D * (2 * N + 2 * K) * H + (2 + gated) * D * F
    layer += (4 if self.norm_position == 'sandwich' else 2) * norm + 2 * H * self.qk_norm
    layer += ((N + 2 * K) * H + D) * self.attention_bias + ((1 + gated) * F + D) * self.mlp_bias
    outer = (1 if self.tie_embeddings else 2) * self.vocab_size * D
    return self.num_layers * layer + norm + (outer if embedding else 0)

  def flops_per_token(self, seq_len: int, *, causal: bool = True) -> float:
    """Training FLOPs per token of a row of `seq_len` tokens: 3 times the forward pass.

    Counts matmuls only, 2 FLOPs per multiply-add: 6 per weight (the head included, the embedding
    look-up not) and 12 N H per layer and visible key. `causal` counts the (T + 1) / 2 keys that a
    query sees on average (fewer under a sliding window); without it all T, the convention of
    Megatron, torchtitan and nanotron. Neither knows of document boundaries or recomputation.
    """
    D, F, N, K, H = self.embed_dim, self.mlp_dim, self.num_heads, self.num_kv_heads, self.head_dim
    layer = D * (2 * N + 2 * K) * H + (2 + GATED[self.activation]) * D * F
    weights = self.num_layers * layer + D * self.vocab_size
    keys = 0.0
    for window in self.windows:
      w = min(window or seq_len, seq_len)
      keys += (w * (w + 1) / 2 + (seq_len - w) * w) / seq_len if causal else seq_len
    return 6.0 * weights + 12.0 * N * H * keys

  @classmethod
  def from_hf(cls, hf: Mapping[str, Any], **overrides: Any) -> 'ModelConfig':
    """From the contents of a config.json (keys of transformers v4 or v5) of a class in HF_CLASSES.

    Raises ValueError for what these models cannot be here (another activation, rope type, …).
    """
    types = {model_type: name for name, (model_type, _) in HF_CLASSES.items()}
    names = hf.get('architectures') or [types.get(hf.get('model_type'), hf.get('model_type'))]
    name = names[0]
    if name not in HF_CLASSES:
      raise ValueError(f'architectures={names}: only {", ".join(HF_CLASSES)} can be read')
    missing = [k for k in ('vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads',
                           'intermediate_size') if k not in hf]
    if missing:
      raise ValueError(f'config.json lacks {", ".join(missing)}')
    hf = HF_CLASSES[name][1] | {k: v for k, v in hf.items() if v is not None}
    _one_of('hidden_act', hf.get('hidden_act', 'silu'), HF_ACTIVATIONS)
    L, N = hf['num_hidden_layers'], hf['num_attention_heads']

    # v5 has rope_parameters; v4 has rope_theta beside rope_scaling. Where both are given the
    # former wins, as in transformers 5.
    field = 'rope_parameters' if hf.get('rope_parameters') else 'rope_scaling'
    rope = dict(hf.get(field) or {})

    # `no_rope_layers` says 1 where the layer DOES rotate (transformers#43756).
    smollm3 = name == 'SmolLM3ForCausalLM'
    interval = hf['no_rope_layer_interval'] if smollm3 else 0
    pattern = tuple(int((i + 1) % (interval or L + 1) != 0) for i in range(L))
    rope_layers = tuple(hf.get('no_rope_layers') or pattern)[:L] if smollm3 else pattern
    window = hf.get('sliding_window', 0) if hf['use_sliding_window'] else 0
    window_layers = ()
    if window and hf.get('layer_types'):
      window_layers = tuple(int(t == 'sliding_attention') for t in hf['layer_types'])
    elif window and not smollm3:  # Qwen's rule
      window_layers = tuple(int(i >= hf.get('max_window_layers', 28)) for i in range(L))
    return cls(**{
      **dict(
        vocab_size=hf['vocab_size'],
        num_layers=L,
        embed_dim=hf['hidden_size'],
        num_heads=N,
        num_kv_heads=hf.get('num_key_value_heads', N),
        head_dim=hf.get('head_dim', hf['hidden_size'] // N),
        mlp_dim=hf['intermediate_size'],
        max_seq_len=hf['max_position_embeddings'],
        rope_theta=float(rope.get('rope_theta', hf['rope_theta'])),
        nope_interval=interval,
        rope_layers=() if rope_layers == pattern else rope_layers,
        rope_scaling=_rope_from_hf(field, rope, hf['max_position_embeddings']),
        sliding_window=window if any(window_layers) or not window_layers else 0,
        window_layers=window_layers if any(window_layers) else (),
        activation=HF_ACTIVATIONS[hf.get('hidden_act', 'silu')],
        norm_eps=hf.get('rms_norm_eps', 1e-6),
        tie_embeddings=hf['tie_word_embeddings'],
        attention_bias=hf.get('attention_bias', False),
        mlp_bias=hf.get('mlp_bias', False),
        qk_norm=name == 'Qwen3ForCausalLM',
        init_std=hf.get('initializer_range', 0.02),
      ),
      **overrides,
    })

  def to_hf(self) -> dict[str, Any]:
    """The contents of a config.json that transformers 4 and 5 both read.

    LlamaForCausalLM where every layer rotates (any runtime loads that), Qwen3ForCausalLM with
    qk_norm, else SmolLM3ForCausalLM. Raises ValueError, naming the field, for what they cannot be.
    """
    acts = {ours: theirs for theirs, ours in HF_ACTIVATIONS.items()}
    can_be = dict(activation=tuple(acts), norm=('rms',), norm_position=('pre',),
                  logit_softcap=(0,), attention_softcap=(0,))
    if self.qk_norm:  # only Qwen3 has it, and that one rotates all layers
      can_be |= dict(rope_flags=((True,) * self.num_layers,), mlp_bias=(False,))
    for field, values in can_be.items():
      if getattr(self, field) not in values:
        raise ValueError(
          f'{field}={getattr(self, field)!r}{" with qk_norm=True" * self.qk_norm}: none of '
          f'{", ".join(HF_CLASSES)} can be that; only models trained with '
          f'{" or ".join(f"{field}={v!r}" for v in values)} can be exported')
    name = 'SmolLM3ForCausalLM'
    if self.qk_norm:
      name = 'Qwen3ForCausalLM'
    elif all(self.rope_flags) and not self.sliding_window and self.embed_dim % self.num_heads == 0:
      name = 'LlamaForCausalLM'
    scaling = _rope_to_hf(self.rope_scaling)
    hf = dict(
      architectures=[name],
      model_type=HF_CLASSES[name][0],
      vocab_size=self.vocab_size,
      hidden_size=self.embed_dim,
      intermediate_size=self.mlp_dim,
      num_hidden_layers=self.num_layers,
      num_attention_heads=self.num_heads,
      num_key_value_heads=self.num_kv_heads,
      head_dim=self.head_dim,
      hidden_act=acts[self.activation],
      max_position_embeddings=self.max_seq_len,
      rope_theta=self.rope_theta,
      rope_scaling=scaling,
      rope_parameters={'rope_theta': self.rope_theta, **(scaling or {'rope_type': 'default'})},
      rms_norm_eps=self.norm_eps,
      initializer_range=self.init_std,
      tie_word_embeddings=self.tie_embeddings,
      attention_bias=self.attention_bias,
      mlp_bias=self.mlp_bias,
      attention_dropout=0.0,
      use_cache=True,
    )
    if name == 'SmolLM3ForCausalLM':
      hf.update(
        no_rope_layers=[int(x) for x in self.rope_flags],
        no_rope_layer_interval=self.nope_interval or self.num_layers + 1,
      )
    if name != 'LlamaForCausalLM':
      kinds = ('full_attention', 'sliding_attention')
      hf.update(
        use_sliding_window=any(self.windows),
        sliding_window=self.sliding_window or None,
        layer_types=[kinds[bool(w)] for w in self.windows],
      )
    return hf


# Class of transformers: (its model_type, its own defaults for what a config.json leaves out).
HF_CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
  'SmolLM3ForCausalLM': ('smollm3', dict(
    max_position_embeddings=32768, rope_theta=2e6, num_key_value_heads=4, use_sliding_window=False,
    tie_word_embeddings=True, no_rope_layer_interval=4)),
  'LlamaForCausalLM': ('llama', dict(
    max_position_embeddings=2048, rope_theta=1e4, use_sliding_window=False,
    tie_word_embeddings=False)),
  'Qwen3ForCausalLM': ('qwen3', dict(
    max_position_embeddings=32768, rope_theta=1e4, num_key_value_heads=32, head_dim=128,
    use_sliding_window=False, tie_word_embeddings=False)),
}  # fmt: skip
HF_ACTIVATIONS = {'silu': 'swiglu', 'gelu_pytorch_tanh': 'geglu'}  # hidden_act → activation


def _rope_from_hf(field, rope, max_seq_len):
  """A rope scaling from the `rope_parameters` or `rope_scaling` of a config.json."""
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if rope.get('partial_rotary_factor', 1.0) != 1.0:
    raise ValueError(f'{field}.partial_rotary_factor={rope["partial_rotary_factor"]}: only models '
                     'that rotate whole heads (1.0) can be read')
  if kind == 'default':
    return None
  if kind not in ROPE_SCALINGS:
    raise ValueError(f'{field}.rope_type={kind!r}: rope type not supported; only default, '
                     f'{", ".join(ROPE_SCALINGS)} are (for a longer context set yarn, with factor '
                     'and original_max_position_embeddings)')
  if kind == 'yarn':
    original = rope.get('original_max_position_embeddings') or max_seq_len
    factor = rope.get('factor') or max_seq_len / original
    attention_factor = rope.get('attention_factor') or 0.0
    if not attention_factor and rope.get('mscale') and rope.get('mscale_all_dim'):
      attention_factor = (_mscale(factor, rope['mscale'])
                          / _mscale(factor, rope['mscale_all_dim']))
    return Yarn(factor, original, rope.get('beta_fast') or 32.0, rope.get('beta_slow') or 1.0,
                attention_factor, rope.get('truncate', True))
  keys = {'linear': ('factor',),
          'llama3': ('factor', 'low_freq_factor', 'high_freq_factor')}[kind]
  missing = [k for k in keys if rope.get(k) is None]
  if missing:
    raise ValueError(f'{field} lacks {", ".join(missing)}, which rope type {kind} needs')
  if kind == 'linear':
    return LinearRope(rope['factor'])
  return Llama3Rope(
    rope['factor'], rope.get('original_max_position_embeddings') or max_seq_len,
    rope['low_freq_factor'], rope['high_freq_factor'])


def _rope_to_hf(scaling):
  if scaling is None:
    return None
  hf = dataclasses.asdict(scaling)
  if 'original_max_seq_len' in hf:
    hf['original_max_position_embeddings'] = hf.pop('original_max_seq_len')
  if hf.get('attention_factor') == 0:
    del hf['attention_factor']
  return hf


def _rope_scaling(fields):
  kind = fields.get('rope_type', 'yarn')
  _one_of('rope_scaling.rope_type', kind, ROPE_SCALINGS)
  known = [f.name for f in dataclasses.fields(ROPE_SCALINGS[kind])]
  for name in fields:
    _one_of(f'a field of rope_scaling with rope_type={kind}', name, known)
  for name in known[: 1 + (kind != 'linear')]:
    if name not in fields:
      raise ValueError(f'rope_scaling lacks {name}, which rope_type={kind} needs')
  return ROPE_SCALINGS[kind](**fields)


def _check_rope_scaling(scaling):
  if scaling.factor < 1 or getattr(scaling, 'original_max_seq_len', 1) < 1:
    raise ValueError(f'rope_scaling={scaling}: factor must be at least 1 and '
                     'original_max_seq_len positive')
  for low, high in (('low_freq_factor', 'high_freq_factor'), ('beta_slow', 'beta_fast')):
    if hasattr(scaling, low) and not 0 < getattr(scaling, low) < getattr(scaling, high):
      raise ValueError(f'rope_scaling.{low}={getattr(scaling, low)}: must be positive and below '
                       f'{high}={getattr(scaling, high)}')


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

  def __call__(self, x_BTD):
    gated = GATED[self.config.activation]
    names = MATRICES['mlp'][0] if gated else ('up_DF',)
    parts = _inwards(self, x_BTD, *names)
    if self.config.mlp_bias:
      parts = [y + _use(self, name.replace('_D', '_bias_'))
               for y, name in zip(parts, names, strict=True)]
    *gate, up_BTF = (checkpoint_name(y, 'gu') for y in parts)
    f = ACTIVATIONS[self.config.activation]
    mid_BTF = f(gate[0]) * up_BTF if gated else f(up_BTF)
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

  def __call__(self, x_BTD, rotate: Callable, attend: Callable):
    out_BTD, state, seen = self.attn(self._norm('attn_norm', x_BTD), rotate, attend)
    x_BTD = checkpoint_name(x_BTD + self._norm('attn_post_norm', out_BTD), 'mid')
    out_BTD = self.mlp(self._norm('mlp_norm', x_BTD))
    return x_BTD + self._norm('mlp_post_norm', out_BTD), state, seen

  def _norm(self, name, x_BTD):
    return getattr(self, name)(x_BTD) if hasattr(self, name) else x_BTD


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
  max_logits: str | None = None,
  capture: Sequence[str] = (),
) -> Output:
  """The whole model, logits of every position included.

  Args:
    tokens_BT: int token ids. An id outside the vocabulary is a ValueError if they are a host
      array, and turns its row into NaN if they are traced or on a device.
    positions_BT: int positions that restart at 0 with each document.
    segment_ids_BT: int document ids, one per document of a row; tokens see their own document
      only. Either of the two is derived from the other; without both a row is one document.
    max_logits: 'bound' or 'exact' also gives aux['max_logits_LN'], the largest attention logit
      per layer and head (smoljax/attention.py).
    capture: activations to give as well, of each layer; whatever is not named is not kept.
      'residual': aux['residual_LBTD'], the residual stream after the layer, compute dtype;
      'attention': aux['attention_LBNTS'], the fp32 weights with which each head reads the values.
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
  max_logits: str | None = None,
  capture: Sequence[str] = (),
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """`apply` up to the head: (hidden_BTD, aux). For losses that never form [B, T, V]."""
  for name in (capture,) if isinstance(capture, str) else capture:
    _one_of('capture', name, CAPTURED)
  T = np.shape(tokens_BT)[1]
  if config.max_seq_len < T:
    raise ValueError(f'{T} tokens in a row, but max_seq_len={config.max_seq_len}: shorten the '
                     'rows, or raise max_seq_len (and extend rope_theta or rope_scaling)')
  if capture and sharding.num_parts('length') > 1:
    raise ValueError('capture needs a mesh that does not split the sequence: use context=1')
  # Where the mesh splits rows, their pieces are dealt out: restored at the end.
  x_BTD = embed(config, params, sharding.deal(jnp.asarray(tokens_BT)))
  positions_BT, segments_BT = _documents(T, positions_BT, segment_ids_BT)

  def attend(q_BTNH, k_BTKH, v_BTKH, layer, window, state):
    out_BTNH, max_N = attention(
      q_BTNH, k_BTKH, v_BTKH, q_positions_BT=positions_BT, kv_positions_BS=positions_BT,
      q_segments_BT=segments_BT, kv_segments_BS=segments_BT, in_order=True, dealt=True,
      window=window, windows=config.windows, softcap=config.attention_softcap,
      max_logits=max_logits, implementation=config.attention,
    )
    seen = {'max_logits_LN': max_N} if max_logits else {}
    if 'attention' in capture:
      places = Places(positions_BT, positions_BT, segments_BT, segments_BT, window)
      seen['attention_LBNTS'] = probabilities(
        q_BTNH, k_BTKH, places, softcap=config.attention_softcap)
    return out_BTNH, state, seen

  x_BTD, _, (seen, residual_LBTD) = run_blocks(
    config, params, x_BTD, positions_BT, attend, residual='residual' in capture)
  aux = seen | ({} if residual_LBTD is None else {'residual_LBTD': residual_LBTD})
  return sharding.undeal(final_norm(config, params, x_BTD)), aux


def embed(config: ModelConfig, params: Params, tokens_BT: jax.Array) -> jax.Array:
  """Rows of the embedding, in the compute dtype.

  They are looked up before the cast, so that the gradient is summed in the parameters' fp32.
  Raises ValueError for tokens on the host that are no ids of this vocabulary.
  """
  if jax.sharding.get_abstract_mesh().empty and not _mesh_of(params['embed_VD']).empty:
    raise ValueError('the parameters live on a mesh: compute under `with jax.set_mesh(mesh):`, '
                     'or move them to one device first')
  if not isinstance(tokens_BT, jax.Array):
    tokens_BT = _check_tokens(config, tokens_BT)
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
  residual: bool = False,
) -> tuple[jax.Array, Any, tuple[Any, jax.Array | None]]:
  """All layers: scanned, or unrolled if not `scan_layers` or if `unstack` made a list of them.

  Args:
    positions_BT: int positions, or [1, T] if all rows share them.
    attend: (q_BTNH, k_BTKH, v_BTKH, layer, window, state) → (out_BTNH, state, seen). `state` is
      carried from layer to layer: a KV cache, or None. `seen`: any tree of what is to be shown.
    residual: also give the residual stream after each layer.
  Returns:
    x_BTD, the last state, and (`seen` of all layers stacked, residual_LBTD or None).
  """
  cos_BT1H, sin_BT1H = rope_table(config, positions_BT)
  layers = params['blocks'] if isinstance(params['blocks'], list) else None
  graph = _graph(config, 'unstacked' if layers else 'block')

  def block(x_BTD, state, layer_params, layer, rotates, window):
    def rotate(y):
      if isinstance(rotates, bool):
        return _rotate(y, cos_BT1H, sin_BT1H) if rotates else y
      cos, sin = jnp.where(rotates, cos_BT1H, 1.0), jnp.where(rotates, sin_BT1H, 0.0)
      return _rotate(y, cos, sin)

    def attend_here(q_BTNH, k_BTKH, v_BTKH):
      return attend(q_BTNH, k_BTKH, v_BTKH, layer, window, state)

    x_BTD, state, seen = nnx.merge(graph, layer_params)(x_BTD, rotate, attend_here)
    return x_BTD, state, (seen, x_BTD if residual else None)

  # Flags that all layers share stay static: nothing is computed for them.
  rotates = np.array(config.rope_flags)
  windows = np.array([w or np.iinfo(np.int32).max for w in config.windows], np.int32)
  if layers or not config.scan_layers:
    kept = []
    for i in range(config.num_layers):
      step = functools.partial(
        block, layer=i, rotates=bool(rotates[i]), window=config.windows[i] or None)
      layer_params = layers[i] if layers else _layer(params, i)
      x_BTD, state, seen = _checkpoint(config, step)(x_BTD, state, layer_params)
      kept.append(seen)
    return x_BTD, state, jax.tree.map(lambda *xs: jnp.stack(xs), *kept)

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
    x_BTD, state, seen = block(*carry, **{**layer, **shared})
    return (x_BTD, state), seen

  scanned = {k: v for k, v in scanned.items() if k not in shared}
  (x_BTD, state), seen = jax.lax.scan(_checkpoint(config, body), (x_BTD, state), scanned)
  return x_BTD, state, seen


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
) -> jax.Array:
  """`logits` with the matrix of `unembedding`, for those who take a chunk of places at a time."""
  if jax.sharding.get_abstract_mesh().empty:
    logits_BTV = _product(hidden_BTD, unembed_DV.T, jnp.float32)
  else:
    logits_BTV = jnp.einsum(
      'BTD,DV->BTV', hidden_BTD, unembed_DV,
      preferred_element_type=jnp.float32, out_sharding=sharding.out('batch', 'length', 'vocab'),
    )
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
  return freq_H.astype(np.float32), y.attention_factor or _mscale(y.factor)


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
  dims = sharding.dim_letters(name)
  return jnp.einsum(f'BT{dims[:-1]},{dims}->BTD', y, _use(module, name),
                    out_sharding=sharding.out('batch', 'length', 'residual'))


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
      policies.checkpoint_dots, policies.save_only_these_names('ctx'))
  else:
    policy = policies.save_only_these_names(*config.remat.split('+'))
  return jax.checkpoint(function, policy=policy, prevent_cse=not config.scan_layers)


def _mscale(factor, mscale=1.0):
  return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _mesh_of(x):
  return jax.typeof(x).sharding.mesh


def _hash(name):
  return zlib.crc32(name.encode())


def _one_of(field, value, names):
  if value not in names:
    raise ValueError(f'{field}={value!r}: one of {", ".join(names)}')


# --------------------------------------------------------------------------------- ready shapes

# Sizes of the family below 3B count parameters without the embedding, which at 128,256 pieces
# would be half of the smallest. Deep and thin, as pays at these sizes (MobileLLM,
# arXiv:2402.14905); a multiple of four layers, so that every fourth is without positions.
_SMOLLM3 = dict(vocab_size=128256, max_seq_len=65536, rope_theta=5e6)
_LLAMA3 = dict(
  vocab_size=128256, max_seq_len=131072, rope_theta=5e5, nope_interval=0, norm_eps=1e-5,
  rope_scaling=Llama3Rope(factor=32.0, original_max_seq_len=8192),
)  # fmt: skip
_SMOLLM2 = dict(vocab_size=49152, max_seq_len=8192, nope_interval=0, norm_eps=1e-5, head_dim=64)

SHAPES: dict[str, ModelConfig] = {
  'smollm3-3b': ModelConfig(
    num_layers=36, embed_dim=2048, num_heads=16, num_kv_heads=4, head_dim=128, mlp_dim=11008,
    **_SMOLLM3,
  ),
  'smollm3-1b': ModelConfig(
    num_layers=24, embed_dim=2048, num_heads=16, num_kv_heads=4, head_dim=128, mlp_dim=5120,
    **_SMOLLM3,
  ),
  'smollm3-500m': ModelConfig(
    num_layers=32, embed_dim=1280, num_heads=20, num_kv_heads=4, head_dim=64, mlp_dim=3072,
    **_SMOLLM3,
  ),
  'smollm3-360m': ModelConfig(
    num_layers=32, embed_dim=1024, num_heads=16, num_kv_heads=4, head_dim=64, mlp_dim=2816,
    **_SMOLLM3,
  ),
  'smollm3-135m': ModelConfig(
    num_layers=32, embed_dim=640, num_heads=10, num_kv_heads=2, head_dim=64, mlp_dim=1664,
    **_SMOLLM3,
  ),
  'smollm3-50m': ModelConfig(
    num_layers=32, embed_dim=384, num_heads=6, num_kv_heads=2, head_dim=64, mlp_dim=1024,
    **_SMOLLM3,
  ),
  'llama-3.2-3b': ModelConfig(
    num_layers=28, embed_dim=3072, num_heads=24, num_kv_heads=8, head_dim=128, mlp_dim=8192,
    **_LLAMA3,
  ),
  'llama-3.2-1b': ModelConfig(
    num_layers=16, embed_dim=2048, num_heads=32, num_kv_heads=8, head_dim=64, mlp_dim=8192,
    **_LLAMA3,
  ),
  'smollm2-1.7b': ModelConfig(
    num_layers=24, embed_dim=2048, num_heads=32, num_kv_heads=32, mlp_dim=8192, rope_theta=1.3e5,
    **_SMOLLM2,
  ),
  'smollm2-360m': ModelConfig(
    num_layers=32, embed_dim=960, num_heads=15, num_kv_heads=5, mlp_dim=2560, rope_theta=1e5,
    init_std=960**-0.5, **_SMOLLM2,
  ),
  'smollm2-135m': ModelConfig(
    num_layers=30, embed_dim=576, num_heads=9, num_kv_heads=3, mlp_dim=1536, rope_theta=1e5,
    init_std=576**-0.5, **_SMOLLM2,
  ),
  'tiny': ModelConfig(
    vocab_size=2048, num_layers=4, embed_dim=128, num_heads=4, num_kv_heads=2, head_dim=32,
    mlp_dim=384, max_seq_len=512, dtype='float32',
  ),
}

"""What a model is: its configuration, its counts, its config.json, the ready shapes."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from smoljax.model.attention import IMPLEMENTATIONS

REMAT_NAMES = ('qkv', 'ctx', 'mid', 'gu')  # values that may be saved for the backward pass
MTP_KINDS = ('none', 'parallel', 'sequential')
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

  `mtp` adds modules that predict further ahead, for training and for speculative decoding; without
  them it is the same model (see layers.MTPModule):
    parallel:    Gloeckle et al. (arXiv:2404.19737)
    sequential:  DeepSeek-V3 (arXiv:2412.19437, section 2.2)

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
  attention_bias: bool = False  # on queries, keys, values and what comes out
  qkv_bias: bool = False  # on queries, keys and values alone (Qwen2)
  mlp_bias: bool = False
  qk_norm: bool = False  # RMSNorm of queries and keys
  qk_norm_over: str = 'head'  # each head by itself, or with 'width' all of a token at once (OLMo 2)
  mtp: str = 'none'  # modules that predict tokens after the next: none, parallel, sequential
  mtp_depth: int = 1  # how many; the k-th predicts the token k places after the next
  attention: str = 'auto'  # implementation: auto, xla, cudnn (NVIDIA), splash (TPU)
  max_segments: int = 32  # documents a packed row may hold: fewer are faster on NVIDIA GPUs
  attention_softcap: float = 0.0  # attention logits are capped to ± this by tanh; 0 = not
  init: str = 'nanotron'  # 'nanotron': o and down get init_std / sqrt(2 L); 'hf': all init_std
  init_std: float = 0.02
  dtype: str = 'bfloat16'  # of the computation; parameters stay fp32
  fp8: bool = False  # the MLP's products in 8-bit floats: NVIDIA since Hopper (see fp8.py)
  remat: str = 'none'  # saved for the backward pass: none (all), full (nothing), dots, qkv+ctx+…
  lora_rank: int = 0  # of adapters that are trained in place of the matrices (lora.py); 0 = none
  lora_alpha: float = 32.0  # α: what they add is scaled by α / rank
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
    one_of('attention', self.attention, ('auto', *IMPLEMENTATIONS))
    one_of('activation', self.activation, GATED)
    one_of('norm', self.norm, ('rms', 'layer'))
    one_of('norm_position', self.norm_position, ('pre', 'post', 'sandwich'))
    one_of('qk_norm_over', self.qk_norm_over, ('head', 'width'))
    if self.attention_bias and self.qkv_bias:
      raise ValueError('attention_bias=True has the biases of qkv_bias=True and one more: give one')
    one_of('init', self.init, ('nanotron', 'hf'))
    one_of('mtp', self.mtp, MTP_KINDS)
    if not isinstance(self.mtp_depth, int) or self.mtp_depth < 1:
      raise ValueError(f'mtp_depth={self.mtp_depth!r}: give a positive whole number (mtp=none '
                       'turns the modules off)')
    if self.mtp == 'parallel' and self.num_layers < 2:
      raise ValueError('mtp=parallel shares all layers but the last: it needs num_layers of 2 or '
                       'more')
    one_of('dtype', self.dtype, ('bfloat16', 'float32'))
    if self.remat not in ('none', 'full', 'dots'):
      for name in self.remat.split('+'):
        one_of('remat', name, ('none', 'full', 'dots', *REMAT_NAMES))

  @property
  def dims(self) -> dict[str, int]:
    """Sizes by the letters of parameter names."""
    return dict(V=self.vocab_size, D=self.embed_dim, F=self.mlp_dim, N=self.num_heads,
                K=self.num_kv_heads, H=self.head_dim, E=self.embed_dim)

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

  def num_params(self, *, embedding: bool = True, mtp: bool = True) -> int:
    """Number of parameters, a tied head counted once.

    Without embedding and head, or without the modules of multi-token prediction, if asked.
    """
    D, F, N, K, H = self.embed_dim, self.mlp_dim, self.num_heads, self.num_kv_heads, self.head_dim
    gated, norm = GATED[self.activation], D * (2 if self.norm == 'layer' else 1)
    layer = D * (2 * N + 2 * K) * H + (2 + gated) * D * F
    layer += (4 if self.norm_position == 'sandwich' else 2) * norm
    layer += (2 if self.qk_norm_over == 'head' else N + K) * H * self.qk_norm
    layer += (N + 2 * K) * H * (self.attention_bias or self.qkv_bias) + D * self.attention_bias
    layer += ((1 + gated) * F + D) * self.mlp_bias
    outer = (1 if self.tie_embeddings else 2) * self.vocab_size * D
    total = self.num_layers * layer + norm + (outer if embedding else 0)
    if self.mtp == 'none' or not mtp:
      return total
    return total + self.mtp_depth * (layer + (self.mtp == 'sequential') * (2 * D * D + 3 * norm))

  def flops_per_token(self, seq_len: int, *, causal: bool = True) -> float:
    """Training FLOPs per token of a row of `seq_len` tokens: 3 times the forward pass.

    Counts matmuls only, 2 FLOPs per multiply-add: 6 per weight (the head included, the embedding
    look-up not) and 12 N H per layer and visible key. `causal` counts the (T + 1) / 2 keys that a
    query sees on average (fewer under a sliding window); without it all T, the convention of
    Megatron, torchtitan and nanotron. Neither knows of document boundaries or recomputation.
    Modules of multi-token prediction are counted, each with its use of the head.
    """
    D, F, N, K, H = self.embed_dim, self.mlp_dim, self.num_heads, self.num_kv_heads, self.head_dim
    layer = D * (2 * N + 2 * K) * H + (2 + GATED[self.activation]) * D * F
    ahead = 0 if self.mtp == 'none' else self.mtp_depth
    weights = (self.num_layers + ahead) * layer + (1 + ahead) * D * self.vocab_size
    weights += ahead * (self.mtp == 'sequential') * 2 * D * D
    keys = 0.0
    for window in (*self.windows, *(0,) * ahead):
      w = min(window or seq_len, seq_len)
      keys += (w * (w + 1) / 2 + (seq_len - w) * w) / seq_len if causal else seq_len
    return 6.0 * weights + 12.0 * N * H * keys

  @classmethod
  def from_hf(cls, hf: Mapping[str, Any], **overrides: Any) -> 'ModelConfig':
    """From the contents of a config.json (keys of transformers v4 or v5) of a class in HF_CLASSES.

    It computes in the dtype named there, float16 in float32, which holds all of its values.

    Raises ValueError for what these models cannot be here (another activation, rope type, …), and
    for values that transformers would not take either, such as "false" for false.
    """
    name = _hf_class(hf)
    kind, L, N = HF_CLASSES[name], hf['num_hidden_layers'], hf['num_attention_heads']
    # What is null is as if it were not there, but for what null says there is none of.
    unset: dict[str, Any] = {
      'sliding_window': 0, 'num_key_value_heads': N, 'head_dim': hf['hidden_size'] // N}
    unset = {k: v for k, v in unset.items() if k in hf}
    hf = kind.defaults | unset | {k: v for k, v in hf.items() if v is not None}
    one_of('hidden_act', hf.get('hidden_act', 'silu'), HF_ACTIVATIONS)
    rope_theta, rope_scaling = _rope_from_hf(hf)

    # `no_rope_layers` says 1 where the layer DOES rotate (transformers#43756).
    smollm3 = name == 'SmolLM3ForCausalLM'
    interval = hf['no_rope_layer_interval'] if smollm3 else 0
    pattern = tuple(int((i + 1) % (interval or L + 1) != 0) for i in range(L))
    rope_layers = tuple(hf.get('no_rope_layers') or pattern)[:L] if smollm3 else pattern
    everywhere = name == 'MistralForCausalLM'
    window = hf.get('sliding_window', 0) if everywhere or hf['use_sliding_window'] else 0
    window_layers = ()
    if window and everywhere:
      window_layers = (1,) * L
    elif window and hf.get('layer_types'):
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
        rope_theta=rope_theta,
        nope_interval=interval,
        rope_layers=() if rope_layers == pattern else rope_layers,
        rope_scaling=rope_scaling,
        sliding_window=window if any(window_layers) or not window_layers else 0,
        window_layers=window_layers if any(window_layers) else (),
        activation=HF_ACTIVATIONS[hf.get('hidden_act', 'silu')],
        norm_eps=float(hf.get('rms_norm_eps', 1e-6)),
        tie_embeddings=hf['tie_word_embeddings'],
        attention_bias=hf.get('attention_bias', False),
        mlp_bias=hf.get('mlp_bias', False),
        init_std=float(hf.get('initializer_range', 0.02)),
        mtp=hf.get('mtp', 'none'),
        mtp_depth=hf.get('num_nextn_predict_layers', 1),
        dtype=_dtype_from_hf(hf),
      ),
      **kind.fields,
      **overrides,
    })

  def to_hf(self) -> dict[str, Any]:
    """The contents of a config.json that transformers 4 and 5 both read.

    OLMo 2's class for its norms, Qwen's for theirs and for biases on q, k and v; of all others
    LlamaForCausalLM where every layer rotates and sees everything (any runtime loads that),
    Mistral's where every layer has a window, else SmolLM3ForCausalLM. Raises ValueError, naming
    the field, for what none of them can be.
    """
    acts = {ours: theirs for theirs, ours in HF_ACTIVATIONS.items()}
    rotates, biased = all(self.rope_flags), self.attention_bias or self.mlp_bias
    name, because = 'SmolLM3ForCausalLM', ''
    if self.norm_position == 'post' or (self.qk_norm and self.qk_norm_over == 'width'):
      name, because = 'Olmo2ForCausalLM', f'norm_position={self.norm_position!r}, as only OLMo 2 is'
    elif self.qk_norm:
      name, because = 'Qwen3ForCausalLM', 'qk_norm=True'
    elif self.qkv_bias:
      name, because = 'Qwen2ForCausalLM', 'qkv_bias=True'
    elif rotates and not self.sliding_window and self.embed_dim % self.num_heads == 0:
      name = 'LlamaForCausalLM'
    elif rotates and all(self.windows) and not biased:
      name = 'MistralForCausalLM'
    kind = HF_CLASSES[name]
    can_be = dict(activation=tuple(acts)) | {field: (v,) for field, v in kind.fields.items()}
    if name != 'SmolLM3ForCausalLM':
      can_be |= dict(rope_flags=((True,) * self.num_layers,))
    for field, values in can_be.items():
      if getattr(self, field) not in values:
        raise ValueError(
          f'{field}={getattr(self, field)!r}{" with " * bool(because)}{because}: none of '
          f'{", ".join(HF_CLASSES)} can be that; only models trained with '
          f'{" or ".join(f"{field}={v!r}" for v in values)} can be exported')
    hf = dict(
      architectures=[name],
      model_type=kind.model_type,
      vocab_size=self.vocab_size,
      hidden_size=self.embed_dim,
      intermediate_size=self.mlp_dim,
      num_hidden_layers=self.num_layers,
      num_attention_heads=self.num_heads,
      num_key_value_heads=self.num_kv_heads,
      head_dim=self.head_dim,
      hidden_act=acts[self.activation],
      max_position_embeddings=self.max_seq_len,
      # Not rope_parameters as well: transformers 5 reads these too, where a user edits them.
      rope_theta=self.rope_theta,
      rope_scaling=_rope_to_hf(self.rope_scaling),
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
    if name in ('SmolLM3ForCausalLM', 'Qwen2ForCausalLM', 'Qwen3ForCausalLM'):
      kinds = ('full_attention', 'sliding_attention')
      hf.update(
        use_sliding_window=any(self.windows),
        sliding_window=self.sliding_window or None,
        layer_types=[kinds[bool(w)] for w in self.windows],
      )
    if name == 'MistralForCausalLM':
      hf.update(sliding_window=self.sliding_window)
    if self.mtp != 'none':  # the second key is DeepSeek-V3's
      hf.update(mtp=self.mtp, num_nextn_predict_layers=self.mtp_depth)
    return hf


class HFClass(NamedTuple):
  """A class of transformers, as a config.json means it."""

  model_type: str
  defaults: dict[str, Any]  # its own, for what a config.json leaves out
  fields: dict[str, Any]  # of ModelConfig: what all of its models have


_PLAIN = dict(norm='rms', norm_position='pre', logit_softcap=0.0, attention_softcap=0.0,
              qk_norm=False, qkv_bias=False)
_SEES_ALL = dict(sliding_window=0, window_layers=())
_DEFAULTS = dict(rope_theta=1e4, use_sliding_window=False, tie_word_embeddings=False)
HF_CLASSES: dict[str, HFClass] = {
  'SmolLM3ForCausalLM': HFClass(
    'smollm3',
    _DEFAULTS | dict(max_position_embeddings=32768, rope_theta=2e6, num_key_value_heads=4,
                     tie_word_embeddings=True, no_rope_layer_interval=4),
    _PLAIN,
  ),
  'LlamaForCausalLM': HFClass(
    'llama', _DEFAULTS | dict(max_position_embeddings=2048), _PLAIN | _SEES_ALL),
  'Qwen3ForCausalLM': HFClass(
    'qwen3',
    _DEFAULTS | dict(max_position_embeddings=32768, num_key_value_heads=32, head_dim=128,
                     sliding_window=4096),
    _PLAIN | dict(qk_norm=True, qk_norm_over='head', mlp_bias=False),
  ),
  'Qwen2ForCausalLM': HFClass(  # and 2.5
    'qwen2',
    _DEFAULTS | dict(max_position_embeddings=32768, num_key_value_heads=32, sliding_window=4096),
    _PLAIN | dict(qkv_bias=True, attention_bias=False, mlp_bias=False),
  ),
  'MistralForCausalLM': HFClass(
    'mistral',
    _DEFAULTS | dict(max_position_embeddings=131072, num_key_value_heads=8,
                     sliding_window=4096),
    _PLAIN | dict(attention_bias=False, mlp_bias=False),
  ),
  'Olmo2ForCausalLM': HFClass(
    'olmo2',
    _DEFAULTS | dict(max_position_embeddings=2048, rms_norm_eps=1e-5),
    _PLAIN | _SEES_ALL | dict(
      norm_position='post', qk_norm=True, qk_norm_over='width', mlp_bias=False),
  ),
}
HF_ACTIVATIONS = {'silu': 'swiglu', 'gelu_pytorch_tanh': 'geglu'}  # hidden_act → activation

# What a config.json says of a model, by the type that each value must have.
_HF_KEYS: dict[type, tuple[str, ...]] = {
  int: ('vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads',
        'intermediate_size', 'num_key_value_heads', 'head_dim', 'max_position_embeddings',
        'no_rope_layer_interval', 'sliding_window', 'max_window_layers',
        'num_nextn_predict_layers', 'original_max_position_embeddings'),
  float: ('rope_theta', 'rms_norm_eps', 'initializer_range', 'partial_rotary_factor', 'factor',
          'low_freq_factor', 'high_freq_factor', 'beta_fast', 'beta_slow', 'attention_factor',
          'mscale', 'mscale_all_dim'),
  bool: ('tie_word_embeddings', 'attention_bias', 'mlp_bias', 'use_sliding_window', 'truncate'),
  str: ('model_type', 'hidden_act', 'mtp', 'rope_type', 'type', 'dtype', 'torch_dtype'),
  dict: ('rope_scaling', 'rope_parameters'),
  list: ('architectures', 'layer_types', 'no_rope_layers'),
}
_HF_REQUIRED = _HF_KEYS[int][:5]
_MOST_LAYERS = 10_000


def _hf_class(hf):
  """Which of HF_CLASSES a config.json is of, with values of the types that it must have."""
  _check_types(hf)
  types = {kind.model_type: name for name, kind in HF_CLASSES.items()}
  names = hf.get('architectures') or [types.get(hf.get('model_type'), hf.get('model_type'))]
  if not isinstance(names[0], str) or names[0] not in HF_CLASSES:
    raise ValueError(f'architectures={_short(names)}: only {", ".join(HF_CLASSES)} can be read')
  missing = [k for k in _HF_REQUIRED if hf.get(k) is None]
  if missing:
    raise ValueError(f'config.json lacks {", ".join(missing)}')
  for key in _HF_REQUIRED:
    if hf[key] < 1 or (key == 'num_hidden_layers' and hf[key] > _MOST_LAYERS):
      most = f' of at most {_MOST_LAYERS:,}' * (key == 'num_hidden_layers')
      raise ValueError(f'config.json: {key}={hf[key]}: a positive whole number{most} is expected')
  for key, values in (('no_rope_layers', (0, 1)),
                      ('layer_types', ('full_attention', 'sliding_attention'))):
    given = hf.get(key)
    if given and (len(given) < hf['num_hidden_layers'] or any(v not in values for v in given)):
      raise ValueError(f'config.json: {key}={_short(given)}: one of '
                       f'{", ".join(map(str, values))} is expected for each layer')
  return names[0]


def _check_types(hf, where=''):
  """Raises ValueError for a value of another type than its key has; null is of every type."""
  words = {int: 'a whole number', float: 'a number', bool: 'true or false', str: 'a text',
           dict: 'an object', list: 'a list'}
  for kind, keys in _HF_KEYS.items():
    for key in keys:
      value = hf.get(key)
      good = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
      if kind is float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        good = good and abs(value) < 1e30  # NaN is not either
      if kind is int and good:
        good = abs(value) < 1 << 31
      if value is not None and not good:
        raise ValueError(f'config.json: {where}{key}={_short(value)}: {words[kind]} is expected')
  for key in _HF_KEYS[dict]:
    if not where and hf.get(key):
      _check_types(hf[key], f'{key}.')


def _dtype_from_hf(hf):
  name = (hf.get('dtype') or hf.get('torch_dtype') or 'bfloat16').removeprefix('torch.')
  one_of('dtype', name, ('bfloat16', 'float16', 'float32'))
  return 'bfloat16' if name == 'bfloat16' else 'float32'


def _short(value):
  text = repr(value)
  return text if len(text) < 80 else f'{text[:70]}…'


def _rope_from_hf(hf):
  """(rotary base, scaling or None) of a config.json, found as transformers 5 finds them.

  Its `rope_scaling`, the only place that transformers 4 knows, goes before `rope_parameters`; the
  base is in either, or beside it.
  """
  field = 'rope_scaling' if hf.get('rope_scaling') else 'rope_parameters'
  rope = {k: v for k, v in (hf.get(field) or {}).items() if v is not None}
  theta = float(rope.get('rope_theta', hf['rope_theta']))
  if nested := [k for k, v in rope.items() if isinstance(v, dict)]:
    raise ValueError(f'{field}.{nested[0]}: only models with one way to rotate can be read, not '
                     'those with one for each kind of layer')
  partial = rope.get('partial_rotary_factor', hf.get('partial_rotary_factor', 1.0))
  if partial != 1.0:
    raise ValueError(f'{field}.partial_rotary_factor={partial}: only models that rotate whole '
                     'heads (1.0) can be read')
  return theta, _rope_scaling_from_hf(field, rope, hf['max_position_embeddings'])


def _rope_scaling_from_hf(field, rope, max_seq_len):
  """A rope scaling from the `rope_parameters` or `rope_scaling` of a config.json."""
  kind = rope.get('rope_type', rope.get('type', 'default'))
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
      attention_factor = (mscale(factor, rope['mscale'])
                          / mscale(factor, rope['mscale_all_dim']))
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
  one_of('rope_scaling.rope_type', kind, ROPE_SCALINGS)
  known = [f.name for f in dataclasses.fields(ROPE_SCALINGS[kind])]
  for name in fields:
    one_of(f'a field of rope_scaling with rope_type={kind}', name, known)
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


def mscale(factor: float, mscale: float = 1.0) -> float:
  """YaRN's factor on cos and sin: 0.1 · mscale · ln(factor) + 1 (arXiv:2309.00071)."""
  return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def one_of(field: str, value: object, names: Collection[str]) -> None:
  """Raises ValueError, naming the valid ones, for a value that is none of `names`."""
  if value not in names:
    raise ValueError(f'{field}={value!r}: one of {", ".join(names)}')

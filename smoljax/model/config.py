"""What a model is: its configuration, its counts, its config.json, the ready shapes."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

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
  attention_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False  # RMSNorm over the head dim of queries and keys
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
    layer += (4 if self.norm_position == 'sandwich' else 2) * norm + 2 * H * self.qk_norm
    layer += ((N + 2 * K) * H + D) * self.attention_bias + ((1 + gated) * F + D) * self.mlp_bias
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

    Raises ValueError for what these models cannot be here (another activation, rope type, …).
    """
    types = {model_type: name for name, (model_type, _) in HF_CLASSES.items()}
    kind: Any = hf.get('model_type')
    names = hf.get('architectures') or [types.get(kind, kind)]
    name = names[0]
    if name not in HF_CLASSES:
      raise ValueError(f'architectures={names}: only {", ".join(HF_CLASSES)} can be read')
    missing = [k for k in ('vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads',
                           'intermediate_size') if k not in hf]
    if missing:
      raise ValueError(f'config.json lacks {", ".join(missing)}')
    hf = HF_CLASSES[name][1] | {k: v for k, v in hf.items() if v is not None}
    one_of('hidden_act', hf.get('hidden_act', 'silu'), HF_ACTIVATIONS)
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
        mtp=hf.get('mtp', 'none'),
        mtp_depth=hf.get('num_nextn_predict_layers', 1),
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
    if self.mtp != 'none':  # the second key is DeepSeek-V3's
      hf.update(mtp=self.mtp, num_nextn_predict_layers=self.mtp_depth)
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

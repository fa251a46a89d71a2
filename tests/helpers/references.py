"""Models of transformers' own, and ours with the same weights."""

import numpy as np
import pytest
from goldens import make_hf_logits as goldens

from smoljax import model
from smoljax.checkpoints import huggingface

ROPES = [
  dict(rope_type='default'),
  dict(rope_type='linear', factor=2.0),
  dict(rope_type='llama3', factor=8.0, original_max_position_embeddings=32, low_freq_factor=1.0,
       high_freq_factor=4.0),
  dict(rope_type='yarn', factor=4.0, original_max_position_embeddings=32),
  dict(rope_type='yarn', factor=2.0, original_max_position_embeddings=64, attention_factor=1.2,
       beta_fast=20.0, beta_slow=2.0),
  dict(rope_type='yarn', factor=4.0, original_max_position_embeddings=32, mscale=0.8,
       mscale_all_dim=0.4, truncate=False),
]  # fmt: skip
CLASSES = ['SmolLM3', 'Llama', 'Qwen3', 'Qwen2', 'SmolLM3', 'Mistral', 'Olmo2']


def random_hf_config(seed):
  """Entries of a config.json, drawn over every switch that transformers' classes have."""
  rng = np.random.default_rng(seed)
  pick = lambda *options: options[rng.integers(len(options))]
  prefix = CLASSES[seed % len(CLASSES)]
  L = int(pick(1, 3, 6, 36 if seed == 5 else 4))
  kv, groups = int(pick(1, 2, 3)), int(pick(1, 2, 4))
  head_dim = int(pick(8, 16, 24))
  hf = dict(
    vocab_size=int(pick(53, 96)), num_hidden_layers=L, num_attention_heads=kv * groups,
    num_key_value_heads=kv, head_dim=head_dim, intermediate_size=int(pick(40, 96)),
    hidden_size=kv * groups * int(pick(8, 16)), max_position_embeddings=128,
    rms_norm_eps=pick(1e-6, 1e-5), tie_word_embeddings=bool(pick(0, 1)),
    hidden_act=pick('silu', 'gelu_pytorch_tanh'),
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
    rope_parameters=dict(rope_theta=pick(1e4, 5e4, 5e6), **ROPES[seed % len(ROPES)]),
  )  # fmt: skip
  if prefix not in ('Qwen2', 'Mistral'):
    hf |= dict(attention_bias=bool(pick(0, 1)))
  if prefix in ('SmolLM3', 'Llama'):
    hf |= dict(mlp_bias=bool(pick(0, 1)))
  if prefix in ('SmolLM3', 'Qwen2', 'Qwen3') and pick(0, 0, 1):
    hf |= dict(use_sliding_window=True, sliding_window=int(pick(5, 17)))
  if prefix == 'Mistral':
    hf |= dict(sliding_window=pick(None, 5, 17))
  if prefix in ('Qwen2', 'Qwen3'):
    hf |= dict(max_window_layers=int(pick(1, 2)))
  if prefix == 'SmolLM3':
    hf |= dict(no_rope_layer_interval=int(pick(2, 4)))
    if pick(0, 1):
      hf |= dict(no_rope_layers=[int(x) for x in rng.integers(0, 2, L)])
  return prefix, hf


def live_reference(prefix, hf):
  """(transformers' model, our config, our params) of a config.json's entries, the same weights."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  reference = getattr(transformers, f'{prefix}ForCausalLM')(
    getattr(transformers, f'{prefix}Config')(**hf)).eval()
  state = {}
  with torch.no_grad():
    for name, p in reference.named_parameters():
      state[name] = goldens.weights(name, tuple(p.shape))
      p.copy_(torch.from_numpy(state[name]))
  config = model.ModelConfig.from_hf(
    {'architectures': [f'{prefix}ForCausalLM'], **hf}, dtype='float32')
  return reference, config, huggingface.from_hf_tensors(config, state.__getitem__)

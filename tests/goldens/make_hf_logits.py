"""Logits of transformers' classes for small random models → hf_logits.npz.

`python tests/goldens/make_hf_logits.py`, with torch and transformers installed; the tests read the
result without them. Weights are not stored: `weights` draws them again from the tensor's name.
"""

import json
import pathlib
import zlib

import numpy as np

FILE = pathlib.Path(__file__).with_name('hf_logits.npz')

BASE = dict(
  vocab_size=61, hidden_size=48, intermediate_size=80, num_hidden_layers=6, num_attention_heads=6,
  num_key_value_heads=2, max_position_embeddings=96, rms_norm_eps=1e-5, pad_token_id=0,
  bos_token_id=1, eos_token_id=2,
)  # fmt: skip

# name: (class prefix, config.json entries over BASE, document lengths or None)
CASES = {
  'smollm3': ('SmolLM3', dict(rope_theta=5e4), None),
  'untied_biases_head_dim': (
    'SmolLM3',
    dict(tie_word_embeddings=False, attention_bias=True, mlp_bias=True, head_dim=16),
    None,
  ),
  'irregular_rope_mqa': (
    'SmolLM3', dict(no_rope_layers=[0, 1, 1, 0, 0, 1], num_key_value_heads=1), None
  ),
  'yarn': (
    'SmolLM3',
    dict(rope_theta=1e4, rope_scaling=dict(
      rope_type='yarn', factor=4.0, original_max_position_embeddings=24)),
    None,
  ),
  'yarn_v5_mscale': (
    'SmolLM3',
    dict(rope_parameters=dict(
      rope_type='yarn', rope_theta=1e4, factor=2.0, original_max_position_embeddings=48,
      mscale=1.0, mscale_all_dim=0.5, beta_fast=16.0, beta_slow=2.0, truncate=False)),
    None,
  ),
  'yarn_attention_factor': (
    'Llama',
    dict(rope_parameters=dict(
      rope_type='yarn', rope_theta=1e4, factor=4.0, original_max_position_embeddings=24,
      attention_factor=1.3)),
    None,
  ),
  'llama3': (
    'Llama',
    dict(rope_theta=500.0, rope_scaling=dict(
      rope_type='llama3', factor=8.0, original_max_position_embeddings=32, low_freq_factor=1.0,
      high_freq_factor=4.0)),
    [13, 27],
  ),
  'linear_geglu': (
    'SmolLM3',
    dict(rope_scaling=dict(rope_type='linear', factor=2.0), hidden_act='gelu_pytorch_tanh'),
    None,
  ),
  'qwen3': (
    'Qwen3',
    dict(head_dim=12, attention_bias=True, tie_word_embeddings=True, use_sliding_window=True,
         sliding_window=7, max_window_layers=4),
    [17, 23],
  ),
  'sliding_window': ('SmolLM3', dict(use_sliding_window=True, sliding_window=9), None),
  'packed': ('SmolLM3', dict(no_rope_layer_interval=2), [5, 1, 20, 14]),
  'llama': ('Llama', dict(tie_word_embeddings=True, rope_theta=1e5), None),
  'qwen2': (
    'Qwen2', dict(tie_word_embeddings=True, rope_theta=1e6, use_sliding_window=True,
                  sliding_window=7, max_window_layers=4),
    [17, 23],
  ),
  'mistral': ('Mistral', dict(head_dim=12, sliding_window=9), [5, 1, 34]),
  'olmo2': ('Olmo2', dict(rope_theta=5e5), [17, 23]),
}

LAYER = 'model.layers.{}.'
# Classes that cannot be imported or exported, for the switches that SmolLM3 lacks. name: (class
# prefix, config.json entries over BASE, document lengths, fields of our config over those that
# Llama with the same entries would have, our parameter paths → their names and dims where they
# are not Llama's, what is added to their norm scales to get ours).
FOREIGN = {
  'geglu_sandwich_softcaps': (
    'Gemma2',
    dict(head_dim=8, hidden_activation='gelu_pytorch_tanh', query_pre_attn_scalar=8,
         final_logit_softcapping=3.0, attn_logit_softcapping=2.0, tie_word_embeddings=False,
         layer_types=['full_attention'] * 6, attn_implementation='eager'),
    [5, 1, 34],
    dict(activation='geglu', norm_position='sandwich', logit_softcap=3.0,
         attention_softcap=2.0),
    {
      'blocks/attn_post_norm/scale_D': (LAYER + 'post_attention_layernorm.weight', 'D'),
      'blocks/mlp_norm/scale_D': (LAYER + 'pre_feedforward_layernorm.weight', 'D'),
      'blocks/mlp_post_norm/scale_D': (LAYER + 'post_feedforward_layernorm.weight', 'D'),
    },
    1.0,
  ),
  'post_norm_qk_norm': (
    'Exaone4',
    dict(sliding_window=9, layer_types=['sliding_attention', 'full_attention'] * 3,
         tie_word_embeddings=False),
    [5, 1, 34],
    dict(norm_position='post', qk_norm=True, rope_layers=[1, 0] * 3, sliding_window=9,
         window_layers=[1, 0] * 3),
    {
      'blocks/attn_post_norm/scale_D': (LAYER + 'post_attention_layernorm.weight', 'D'),
      'blocks/mlp_post_norm/scale_D': (LAYER + 'post_feedforward_layernorm.weight', 'D'),
    },
    0.0,
  ),
  'layer_norm_gelu_biases': (
    'Starcoder2',
    dict(use_bias=True, hidden_act='gelu_pytorch_tanh', norm_epsilon=1e-5, sliding_window=None,
         tie_word_embeddings=True, residual_dropout=0.0, embedding_dropout=0.0),
    [5, 1, 34],
    dict(activation='gelu', norm='layer', attention_bias=True, mlp_bias=True, tie_embeddings=True),
    {
      'final_norm/bias_D': ('model.norm.bias', 'D'),
      'blocks/attn_norm/bias_D': (LAYER + 'input_layernorm.bias', 'D'),
      'blocks/mlp_norm/bias_D': (LAYER + 'post_attention_layernorm.bias', 'D'),
      'blocks/mlp/up_DF': (LAYER + 'mlp.c_fc.weight', 'F D'),
      'blocks/mlp/up_bias_F': (LAYER + 'mlp.c_fc.bias', 'F'),
      'blocks/mlp/down_FD': (LAYER + 'mlp.c_proj.weight', 'D F'),
      'blocks/mlp/down_bias_D': (LAYER + 'mlp.c_proj.bias', 'D'),
    },
    0.0,
  ),
  'layer_norm_relu2': (
    'Nemotron',
    dict(norm_eps=1e-5, tie_word_embeddings=False,
         rope_parameters=dict(rope_type='default', rope_theta=1e4, partial_rotary_factor=1.0)),
    None,
    dict(activation='relu2', norm='layer'),
    {
      'final_norm/bias_D': ('model.norm.bias', 'D'),
      'blocks/attn_norm/bias_D': (LAYER + 'input_layernorm.bias', 'D'),
      'blocks/mlp_norm/bias_D': (LAYER + 'post_attention_layernorm.bias', 'D'),
    },
    1.0,
  ),
}


def weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """The float32 tensor of this name: norm scales around 1, everything else around 0."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  x = rng.normal(size=shape) * 0.2 + ('norm' in name)
  return x.astype(np.float32)


def tokens() -> np.ndarray:
  return np.random.default_rng(0).integers(0, BASE['vocab_size'], (1, 40))


def positions(lengths: list[int] | None) -> np.ndarray | None:
  return None if lengths is None else np.concatenate([np.arange(n) for n in lengths])[None]


def main():
  import torch
  import transformers

  results = {}
  cases = CASES | {name: values[:3] for name, values in FOREIGN.items()}
  for case, (prefix, entries, lengths) in cases.items():
    config = getattr(transformers, f'{prefix}Config')(**{**BASE, **entries})
    hf = getattr(transformers, f'{prefix}ForCausalLM')(config).eval().double()
    with torch.no_grad():
      for name, p in hf.named_parameters():
        p.copy_(torch.from_numpy(weights(name, tuple(p.shape))))
      where = positions(lengths)
      where = None if where is None else torch.from_numpy(where)
      # Without a cache transformers takes restarting positions for packed documents.
      logits = hf(torch.from_numpy(tokens()), position_ids=where, use_cache=False).logits
    results[case] = logits.float().numpy()
    shapes = {name: list(p.shape) for name, p in hf.named_parameters()}
    results[f'{case}/shapes'] = np.array(json.dumps(shapes))
  np.savez_compressed(FILE, **results)
  print(f'{FILE}: {FILE.stat().st_size:,} bytes, transformers {transformers.__version__}')


if __name__ == '__main__':
  main()

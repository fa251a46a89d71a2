"""Logits of transformers' SmolLM3 and Llama classes for small random models → hf_logits.npz.

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
  'sliding_window': ('SmolLM3', dict(use_sliding_window=True, sliding_window=9), None),
  'packed': ('SmolLM3', dict(no_rope_layer_interval=2), [5, 1, 20, 14]),
  'llama': ('Llama', dict(tie_word_embeddings=True, rope_theta=1e5), None),
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
  for case, (prefix, entries, lengths) in CASES.items():
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

"""Losses and gradient norms of 6 AdamW steps of transformers' classes in torch → hf_steps.json.

`python tests/goldens/make_hf_steps.py`, with torch and transformers installed; in float64. The slow
tests also call `train` live, in float32.
"""

import json
import pathlib

import numpy as np
from goldens import make_hf_logits as logits

FILE = pathlib.Path(__file__).with_name('hf_steps.json')
STEPS, ROWS, LENGTH = 6, 3, 40
OPTIMIZER = dict(learning_rate=3e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1, clip_norm=1.0)

# name: (class prefix, config.json entries over make_hf_logits.BASE)
CASES = {
  'smollm3': ('SmolLM3', dict(rope_theta=5e4, no_rope_layer_interval=2, num_hidden_layers=4)),
  'llama': (
    'Llama',
    dict(tie_word_embeddings=False, attention_bias=True, mlp_bias=True, num_hidden_layers=3,
         rope_theta=500.0, rope_scaling=dict(
           rope_type='llama3', factor=8.0, original_max_position_embeddings=32,
           low_freq_factor=1.0, high_freq_factor=4.0)),
  ),
  'qwen3': ('Qwen3', dict(
    head_dim=12, hidden_act='gelu_pytorch_tanh', tie_word_embeddings=True, num_hidden_layers=3)),
}  # fmt: skip


def weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """As make_hf_logits draws them, closer to where training starts."""
  x = logits.weights(name, shape)
  return x if 'norm' in name else x / 4


def batch(step: int) -> dict[str, np.ndarray]:
  """A packed batch: documents of random length one after the other, then padding (segment 0)."""
  rng = np.random.default_rng(step)
  keys = ('inputs', 'targets', 'positions', 'segment_ids')
  rows = {k: np.zeros((ROWS, LENGTH), np.int32) for k in keys}
  for row in range(ROWS):
    start, segment = 0, 1
    while (n := int(rng.integers(1, 20))) and start + n <= LENGTH:
      # Never token 0: transformers gives the padding token's embedding no gradient.
      tokens = rng.integers(1, logits.BASE['vocab_size'], n + 1)
      tokens[1::2] = 7 * tokens[:-1:2] % logits.BASE['vocab_size']  # half can be learnt
      at = slice(start, start + n)
      rows['inputs'][row, at], rows['targets'][row, at] = tokens[:-1], tokens[1:]
      rows['positions'][row, at], rows['segment_ids'][row, at] = np.arange(n), segment
      start, segment = start + n, segment + 1
    rows['positions'][row, start:] = np.arange(LENGTH - start)
  return rows | {'source': np.zeros(ROWS, np.int32)}


def train(case: str, dtype: str) -> dict[str, list[float]]:
  """{'loss': …, 'grad_norm': …} of each step; the norm is the one before clipping."""
  import torch
  import transformers

  prefix, entries = CASES[case]
  config = getattr(transformers, f'{prefix}Config')(**{**logits.BASE, **entries})
  hf = getattr(transformers, f'{prefix}ForCausalLM')(config).to(getattr(torch, dtype))
  with torch.no_grad():
    for name, p in hf.named_parameters():
      p.copy_(torch.from_numpy(weights(name, tuple(p.shape))))
  o = OPTIMIZER
  groups = [
    {'params': [p for n, p in hf.named_parameters() if ('embed_tokens' in n) == embedding],
     'weight_decay': 0.0 if embedding else o['weight_decay']}
    for embedding in (True, False)]
  optimizer = torch.optim.AdamW(
    groups, lr=o['learning_rate'], betas=(o['b1'], o['b2']), eps=o['eps'])
  found = {'loss': [], 'grad_norm': []}
  for step in range(STEPS):
    b = {k: torch.from_numpy(v).long() for k, v in batch(step).items()}
    out = hf(b['inputs'], position_ids=b['positions'], use_cache=False).logits
    real = b['segment_ids'] > 0
    loss = torch.nn.functional.cross_entropy(out[real], b['targets'][real])
    optimizer.zero_grad()
    loss.backward()
    found['loss'].append(loss.item())
    found['grad_norm'].append(
      torch.nn.utils.clip_grad_norm_(hf.parameters(), o['clip_norm']).item())
    optimizer.step()
  return found


def main():
  found = {case: train(case, 'float64') for case in CASES}
  FILE.write_text(json.dumps(found, indent=1) + '\n')
  print(found)


if __name__ == '__main__':
  main()

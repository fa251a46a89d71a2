"""Tokens that transformers' `generate` takes greedily, for small random models → hf_greedy.npz.

`python tests/goldens/make_hf_greedy.py`, with torch and transformers installed. Models are those of
make_hf_logits; prompts of different lengths are padded on the left, as transformers wants them.
"""

import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from goldens import make_hf_logits as models

FILE = pathlib.Path(__file__).with_name('hf_greedy.npz')
CASES = ('irregular_rope_mqa', 'yarn', 'sliding_window', 'untied_biases_head_dim')
NEW = 64


def prompts(vocab_size: int, longest: int = 30) -> list[list[int]]:
  """Eight prompts of 1 to `longest` tokens."""
  rng = np.random.default_rng(1)
  lengths = [longest, 1, *rng.integers(2, longest, 6)]
  return [rng.integers(0, vocab_size, n).tolist() for n in lengths]


def left_padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
  """[B, T] ids and mask."""
  T = max(map(len, rows))
  ids = [[0] * (T - len(row)) + row for row in rows]
  mask = [[0] * (T - len(row)) + [1] * len(row) for row in rows]
  return np.array(ids), np.array(mask)


def greedy(reference, rows: list[list[int]]) -> np.ndarray:
  """transformers' greedy tokens [B, NEW], never ended."""
  import torch

  reference.generation_config.eos_token_id = None
  ids, mask = map(torch.from_numpy, left_padded(rows))
  out = reference.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False)
  return out[:, ids.shape[1] :].numpy()


def main():
  import torch
  import transformers

  results = {}
  for case in CASES:
    prefix, entries, _ = models.CASES[case]
    config = getattr(transformers, f'{prefix}Config')(**{**models.BASE, **entries})
    reference = getattr(transformers, f'{prefix}ForCausalLM')(config).eval().double()
    with torch.no_grad():
      for name, p in reference.named_parameters():
        p.copy_(torch.from_numpy(models.weights(name, tuple(p.shape))))
    results[case] = greedy(reference, prompts(config.vocab_size)).astype(np.uint8)
  np.savez_compressed(FILE, **results)
  print(f'{FILE}: {FILE.stat().st_size:,} bytes, transformers {transformers.__version__}')


if __name__ == '__main__':
  main()

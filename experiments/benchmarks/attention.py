"""Times attention on this machine's first device, one JSON line per case and implementation.

  python -m experiments.benchmarks.attention
  python -m experiments.benchmarks.attention --size=tiny

Forward, and forward with backward, of causal grouped-query attention in bfloat16; `packed` rows
hold documents of log-normal length (median 545 tokens, 32 at most). Ours by every implementation
that this device has; beside them, where torch sees a GPU, what its users would pick: SDPA by
FlashAttention-2 and by cuDNN for causal rows, flex_attention for packed ones. TFLOP/s count the
visible pairs only. A case that fails says why, and the next one runs.
"""

import json
import os
import time
from collections.abc import Callable, Sequence

os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # torch needs memory too

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from smoljax.model.attention import IMPLEMENTATIONS, attention
from smoljax.model.attention.masks import positions_from_segments

_SIZE = flags.DEFINE_enum('size', 'full', ['full', 'tiny'], 'tiny: seconds on a CPU.')
_REPEATS = flags.DEFINE_integer('repeats', 20, 'Timed calls; their mean is given.')

# rows, tokens a row, query heads, kv heads, head dim, window (0 = none), packed
CASES = {
  'full': [
    (8, 4096, 16, 4, 128, 0, False), (8, 4096, 16, 4, 128, 0, True),
    (8, 4096, 15, 5, 64, 0, False), (8, 4096, 15, 5, 64, 0, True),
    (8, 4096, 16, 4, 128, 512, False), (1, 32768, 16, 4, 128, 0, False),
  ],
  'tiny': [(2, 256, 4, 2, 64, 0, False), (2, 256, 4, 2, 64, 0, True)],
}  # fmt: skip


def documents(rows: int, seq_len: int, packed: bool) -> np.ndarray:
  """Segment ids [rows, seq_len] int32."""
  rng = np.random.default_rng(0)
  segments = np.zeros((rows, seq_len), np.int32)
  for row in segments if packed else []:
    start = 0
    for i in range(32):
      length = seq_len if i == 31 else max(16, int(rng.lognormal(6.3, 1.1)))
      row[start : start + length] = i
      start += length
  return segments


def visible_pairs(segments: np.ndarray, window: int) -> int:
  """Pairs of query and key that are not masked, of all rows together."""
  total = 0
  for row in segments:
    for n in np.unique(row, return_counts=True)[1].astype(int):
      w = min(window or n, n)
      total += w * (w + 1) // 2 + (n - w) * w
  return int(total)


def time_jax(
  implementation: str, arrays: Sequence[np.ndarray], segments: np.ndarray, window: int, packed: bool
) -> tuple[float, float]:
  """Seconds of the forward pass, and of forward and backward."""
  q, k, v, dout = (jnp.asarray(x, jnp.bfloat16) for x in arrays)
  segments_BT = jnp.asarray(segments)
  positions = positions_from_segments(segments_BT)

  @jax.jit
  def forward(q, k, v):
    return attention(
      q, k, v, q_positions_BT=positions, kv_positions_BS=positions, in_order=True,
      q_segments_BT=segments_BT if packed else None,
      kv_segments_BS=segments_BT if packed else None, window=window or None,
      implementation=implementation)[0]

  @jax.jit
  def both(q, k, v, dout):
    out, back = jax.vjp(forward, q, k, v)
    return out, back(dout)

  def timed(function, *args):
    return mean_seconds(lambda: function(*args), jax.block_until_ready)

  return timed(forward, q, k, v), timed(both, q, k, v, dout)


def time_torch(
  name: str, arrays: Sequence[np.ndarray], segments: np.ndarray, window: int, packed: bool
) -> tuple[float, float]:
  """The same in torch, which wants heads before time."""
  import torch
  from torch.nn.attention import SDPBackend, sdpa_kernel
  from torch.nn.attention.flex_attention import create_block_mask, flex_attention

  q, k, v, dout = (
    torch.tensor(x, device='cuda', dtype=torch.bfloat16).transpose(1, 2).contiguous()
    for x in arrays
  )
  for x in (q, k, v):
    x.requires_grad_()
  if name == 'torch_flex':
    ids = torch.tensor(segments, device='cuda')

    def seen(b, h, t, s):
      mask = (s <= t) & (ids[b, t] == ids[b, s])
      return mask & (t - s < window) if window else mask

    B, T = segments.shape
    block_mask = create_block_mask(seen, B, None, T, T)
    compiled = torch.compile(flex_attention)
    forward = lambda: compiled(q, k, v, block_mask=block_mask, enable_gqa=True)
  else:
    backend = SDPBackend.FLASH_ATTENTION if name == 'torch_flash' else SDPBackend.CUDNN_ATTENTION

    def forward():
      with sdpa_kernel(backend):
        return torch.nn.functional.scaled_dot_product_attention(
          q, k, v, is_causal=True, enable_gqa=True)

  def both():
    return torch.autograd.grad(forward(), (q, k, v), dout)

  wait = lambda _: torch.cuda.synchronize()
  return mean_seconds(forward, wait), mean_seconds(both, wait)


def mean_seconds(call: Callable, wait: Callable) -> float:
  """Of `_REPEATS` calls in a row, after three that compile; `wait` blocks on a result."""
  for _ in range(3):
    wait(call())
  began, result = time.perf_counter(), None
  for _ in range(_REPEATS.value):
    result = call()
  wait(result)
  return (time.perf_counter() - began) / _REPEATS.value


def torch_names(packed: bool, window: int) -> list[str]:
  """What of torch can do this case here."""
  try:
    import torch
  except ImportError:
    return []
  if not torch.cuda.is_available():
    return []
  return ['torch_flex'] if packed or window else ['torch_flash', 'torch_cudnn']


def main(_: list[str]) -> None:
  """Prints a JSON line for each case and implementation."""
  device = jax.devices()[0].device_kind
  for rows, seq_len, N, K, H, window, packed in CASES[_SIZE.value]:
    segments = documents(rows, seq_len, packed)
    flops = 4 * N * H * visible_pairs(segments, window)
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal((rows, seq_len, n, H), np.float32) for n in (N, K, K, N)]
    for name in [*IMPLEMENTATIONS, *torch_names(packed, window)]:
      line = {
        'benchmark': 'attention', 'implementation': name, 'rows': rows, 'seq_len': seq_len,
        'heads': f'{N}/{K}x{H}', 'window': window, 'packed': packed,
      }  # fmt: skip
      run = time_torch if name.startswith('torch') else time_jax
      try:
        forward, both = run(name, arrays, segments, window, packed)
        line |= {
          'forward_ms': round(1e3 * forward, 3),
          'forward_backward_ms': round(1e3 * both, 3),
          'tflops_per_sec': round(3.5 * flops / both / 1e12, 1),
        }
      except Exception as e:
        line['error'] = f'{type(e).__name__}: {str(e).strip().splitlines()[0][:300]}'
      print(json.dumps({**line, 'device': device, 'jax': jax.__version__}), flush=True)


if __name__ == '__main__':
  app.run(main)

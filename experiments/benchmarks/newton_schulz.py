"""Newton–Schulz on one stack of matrices: time, scratch memory and error, beside optax's.

  python -m experiments.benchmarks.newton_schulz [--stack=36,2048,11008] [--repeat=5]
  python -m experiments.benchmarks.newton_schulz --tiles=128x64x4x4,128x64x4x3

The default is the gate projections of SmolLM3-3B. Prints one JSON line per variant: milliseconds
(median), scratch memory of the compiled program, TFLOP/s by the operations of the plain form,
5·(4m²n + 2m³) a matrix, and the error against the exact polar factor, ‖O − UVᵀ‖/‖UVᵀ‖, with the
smallest and largest singular value, of one matrix of the same kind cut to at most 512 x 2,752 (an
SVD in float64 of the whole one would take longer than everything else).

With --tiles X Xᵀ alone is timed, of the stack, of the same turned (XᵀX, as `down` takes it) and of
squares of its short side: by XLA's product, and by the kernel that computes half of it
(smoljax.optim.symmetric) in tiles of rows x depth x warps x stages. `off` is the largest difference
over the largest entry.
"""

import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from optax.contrib import _muon as optax_muon

from smoljax.optim import symmetric
from smoljax.optim.newton_schulz import COEFFICIENTS, newton_schulz

_STACK = flags.DEFINE_list('stack', ['36', '2048', '11008'], 'Matrices, rows, columns.')
_TILES = flags.DEFINE_list('tiles', [], 'Times one symmetric product, by such tiles.')
_ONLY = flags.DEFINE_list('only', [], 'Parts of names of variants to run; all if none.')
_REPEAT = flags.DEFINE_integer('repeat', 5, 'Timed runs.')


def _optax(x: jax.Array) -> jax.Array:
  """optax.contrib.muon's iteration as it is shipped, in the dtype of the gradients."""
  dims = optax_muon.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
  coefficients = jnp.asarray(COEFFICIENTS['jordan'].rows[0], x.dtype)
  one = lambda m: optax_muon.orthogonalize_via_newton_schulz(
    m, coefficients, ns_steps=5, eps=1e-8, dimension_numbers=dims)
  return jax.vmap(one)(x)


def _ours(table: str, at_once: int = 0):
  one = lambda x: newton_schulz(x, table, 5)
  return (lambda x: jax.lax.map(one, x, batch_size=at_once)) if at_once else one


VARIANTS = {
  'optax, float32': (_optax, jnp.float32),
  'optax, bfloat16 gradients': (_optax, jnp.bfloat16),
  'smoljax jordan': (_ours('jordan'), jnp.float32),
  'smoljax pe5': (_ours('pe5'), jnp.float32),
  'smoljax pe5, bfloat16 gradients': (_ours('pe5'), jnp.bfloat16),  # as scale_by_muon calls it
  'smoljax pe5, 4 at once': (_ours('pe5', 4), jnp.float32),
  'smoljax gram5': (_ours('gram5'), jnp.float32),
  'smoljax gram5, bfloat16 gradients': (_ours('gram5'), jnp.bfloat16),
  'smoljax gram5, 4 at once': (_ours('gram5', 4), jnp.float32),
}


def _milliseconds(compiled: Any, *given: jax.Array) -> float:
  jax.block_until_ready(compiled(*given))
  seconds = []
  for _ in range(_REPEAT.value):
    start = time.perf_counter()
    jax.block_until_ready(compiled(*given))
    seconds.append(time.perf_counter() - start)
  return 1e3 * float(np.median(seconds))


def tiles(stack: jax.Array) -> None:
  """Prints milliseconds of X Xᵀ by XLA and by each tile of --tiles."""
  short = min(stack.shape[1:])
  wide = stack if stack.shape[1] == short else jnp.swapaxes(stack, -2, -1)
  square = wide[:, :, :short].astype(jnp.float16)
  wide = wide.astype(jnp.bfloat16)
  for x, tall in ((wide, False), (jnp.swapaxes(wide, -2, -1), True), (square, False)):
    sides = 'bki,bkj->bij' if tall else 'bik,bjk->bij'
    plain = jax.jit(lambda x, sides=sides: jnp.einsum(sides, x, x, preferred_element_type=x.dtype))
    expected = plain(x)
    row = {'benchmark': 'symmetric_product', 'device': jax.devices()[0].device_kind,
           'stack': list(x.shape), 'tall': tall, 'dtype': x.dtype.name}
    print(json.dumps({**row, 'tile': 'whole', 'ms': round(_milliseconds(plain, x), 3)}), flush=True)
    for text in _TILES.value:
      tile = tuple(map(int, text.split('x')))
      half = jax.jit(lambda x, tile=tile, tall=tall: symmetric.product(x, x, tall=tall, tile=tile))
      try:
        ms = _milliseconds(half, x)
      except jax.errors.JaxRuntimeError as error:
        print(json.dumps({**row, 'tile': text, 'error': str(error)[:120]}), flush=True)
        continue
      scale = jnp.max(jnp.abs(expected))
      off = jnp.max(jnp.abs(half(x).astype(jnp.float32) - expected.astype(jnp.float32))) / scale
      print(json.dumps({**row, 'tile': text, 'ms': round(ms, 3), 'off': float(off)}), flush=True)


def main(argv: list[str]) -> None:
  """Prints time, memory and error of each variant on a stack of matrices, as JSON lines."""
  del argv
  number, m, n = map(int, _STACK.value)
  # Gradients have a few large directions and many small ones.
  spread = jnp.logspace(0, -2, m)[None, :, None]
  stack = jax.jit(lambda k: jax.random.normal(k, (number, m, n), jnp.float32) * spread)(
    jax.random.key(0))
  if _TILES.value:
    return tiles(stack)
  short, long = min(m, n, 512), min(max(m, n), 2752)
  small = np.asarray(stack[:1, :short, :long] if m <= n else stack[:1, :long, :short])
  u, _, vt = np.linalg.svd(small[0].astype(np.float64), full_matrices=False)
  exact = u @ vt
  operations = 5 * (4 * min(m, n) ** 2 * max(m, n) + 2 * min(m, n) ** 3) * number
  for name, (function, dtype) in VARIANTS.items():
    if _ONLY.value and not any(part in name for part in _ONLY.value):
      continue
    out = np.asarray(jax.jit(function)(jnp.asarray(small, dtype))[0], np.float64)
    values = np.linalg.svd(out, compute_uv=False)
    x = stack.astype(dtype)
    compiled: Any = jax.jit(function).lower(x).compile()
    ms = _milliseconds(compiled, x)
    print(json.dumps({
      'benchmark': 'newton_schulz', 'device': jax.devices()[0].device_kind,
      'stack': [number, m, n], 'variant': name, 'ms': round(ms, 2),
      'tflops': round(operations / ms / 1e9, 1),
      'scratch_gb': round(compiled.memory_analysis().temp_size_in_bytes / 1e9, 2),
      'polar_error': round(float(np.linalg.norm(out - exact) / np.linalg.norm(exact)), 4),
      'singular_values': [round(float(values.min()), 3), round(float(values.max()), 3)],
    }), flush=True)


if __name__ == '__main__':
  app.run(main)

"""Kernels of a training step beside what XLA makes of the same: one JSON line each.

  python -m experiments.benchmarks.fused [--places=16384] [--vocab=128256] [--dims=576,960,2048]
  python -m experiments.benchmarks.fused --only=head --tiles=4096x4x16,8192x2x32
  python -m experiments.benchmarks.fused --only=mlp --units=11008

`head`: cross entropy of logits and its gradient (smoljax.train.cross_entropy), of so many places,
for each tile of --tiles. `norm`: RMSNorm of a stream, and its gradient beside the stream's own
(smoljax.model.rms_norm), of 131,072 places. Milliseconds (median), and terabytes a second of what
has to be read and written: the head's logits once each, a norm's stream once each, and of its
gradient three arrays and one. `mlp`: the gradients of a gated MLP's halves in 8 bits, as they lie
and turned, and its units turned (smoljax.model.fp8), of a quarter as many. On a CPU the kernels are
interpreted, which says whether they run.
"""

import functools
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from smoljax.model import fp8, rms_norm
from smoljax.train import cross_entropy

_PLACES = flags.DEFINE_integer('places', 16384, "Places of the head's logits.")
_VOCAB = flags.DEFINE_integer('vocab', 128_256, 'Logits of a place.')
_DIMS = flags.DEFINE_list('dims', ['576', '960', '2048'], 'Widths of the stream that is normed.')
_ROWS = flags.DEFINE_integer('rows', 131072, 'Places of the stream.')
_TILES = flags.DEFINE_list(
  'tiles', ['x'.join(map(str, cross_entropy.TILE))], 'Tiles of the head, as cross_entropy.TILE.')
_ONLY = flags.DEFINE_enum('only', None, ['head', 'norm', 'mlp'], 'One of them.')
_UNITS = flags.DEFINE_integer('units', 11008, 'Hidden units of the MLP.')
_REPEAT = flags.DEFINE_integer('repeat', 5, 'Timed runs, each of ten calls in a row.')


def report(name: str, variant: str, moved: int, function: Callable[..., Any], *given: Any) -> None:
  """Prints the median milliseconds of a call, or why there are none."""
  row: dict[str, Any] = {
    'benchmark': 'fused', 'device': jax.devices()[0].device_kind, 'what': name, 'variant': variant}
  try:
    compiled: Any = jax.jit(function).lower(*given).compile()
    jax.block_until_ready(compiled(*given))
    seconds = []
    for _ in range(_REPEAT.value):
      began = time.perf_counter()
      for _ in range(10):
        out = compiled(*given)
      jax.block_until_ready(out)
      seconds.append((time.perf_counter() - began) / 10)
    took = float(np.median(seconds))
    row |= {'ms': round(1e3 * took, 3), 'tb_per_sec': round(moved / took / 1e12, 2)}
  except jax.errors.JaxRuntimeError as error:
    row['error'] = str(error)[:120]
  print(json.dumps(row), flush=True)


def head(interpret: bool) -> None:
  """Cross entropy and its gradient."""
  keys = jax.random.split(jax.random.key(0), 2)
  shape = 1, _PLACES.value, _VOCAB.value
  logits = 3 * jax.random.normal(keys[0], shape, jnp.bfloat16)
  targets = jax.random.randint(keys[1], shape[:2], 0, shape[2])
  weight = jnp.full(shape[:2], 1 / _PLACES.value, jnp.float32)

  def xla(logits, targets, weight):
    def loss(logits):
      nll, _ = cross_entropy.cross_entropy(logits.astype(jnp.float32), targets)
      return jnp.sum(nll * weight), nll

    return jax.value_and_grad(loss, has_aux=True)(logits)

  moved = 2 * logits.size * 2
  report('head', 'XLA', moved, xla, logits, targets, weight)
  for text in _TILES.value:
    tile = tuple(map(int, text.split('x')))
    kernel = functools.partial(cross_entropy.gradient, interpret=interpret, tile=tile)
    report('head', text, moved, kernel, logits, targets, weight)


def norm(interpret: bool) -> None:
  """RMSNorm there and back."""
  for D in map(int, _DIMS.value):
    keys = jax.random.split(jax.random.key(0), 3)
    x, *dx = (jax.random.normal(key, (1, _ROWS.value, D), jnp.bfloat16) for key in keys)
    scale, eps = jnp.ones(D, jnp.bfloat16), 1e-6

    def xla(x, scale, eps=eps):
      x32 = x.astype(jnp.float32)
      x32 *= jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
      return x, x32.astype(x.dtype) * scale

    kernel = functools.partial(rms_norm.stream_and_norm, eps=eps, interpret=interpret)
    for variant, function in (('XLA', xla), ('kernel', kernel)):
      report(f'norm {D}', variant, 2 * 2 * x.size, lambda *a, f=function: f(*a)[1], x, scale)
      backward = lambda x, scale, dx, dn, f=function: jax.vjp(f, x, scale)[1]((dx, dn))
      report(f'gradient of norm {D}', variant, 4 * 2 * x.size, backward, x, scale, *dx)


def mlp(interpret: bool) -> None:
  """What the backward pass of `fp8.swiglu` rounds and turns."""
  keys = jax.random.split(jax.random.key(0), 3)
  shape = 1, _ROWS.value // 4, _UNITS.value
  given = [jax.random.normal(key, shape, jnp.bfloat16) for key in keys]
  scales = [jnp.float32(2.0**-6)] * 2
  moved = (3 * 2 + 5) * given[0].size
  report('mlp', 'XLA', moved, fp8.rounded_both_ways, *given, *scales)
  kernel = functools.partial(fp8.round_both_ways, interpret=interpret)
  report('mlp', 'kernel', moved, kernel, *given, *scales)


def main(argv: list[str]) -> None:
  """Prints the times of them."""
  del argv
  interpret = jax.default_backend() != 'gpu'
  for name, run in (('head', head), ('norm', norm), ('mlp', mlp)):
    if _ONLY.value in (None, name):
      run(interpret)


if __name__ == '__main__':
  app.run(main)

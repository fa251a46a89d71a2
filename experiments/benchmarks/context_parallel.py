"""Gathering keys against passing them round a ring, where a mesh axis splits the sequence.

  python -m experiments.benchmarks.context_parallel                    # all devices, 65,536 tokens
  XLA_FLAGS=--xla_force_host_platform_device_count=4 \\
    python -m experiments.benchmarks.context_parallel --size=tiny      # four fake CPU devices

One layer's attention (SmolLM3-3B's heads), forward and backward, as one JSON line each: `gather`
is smoljax.attention; `ring` (Liu et al., arXiv:2310.01889) is written here with the same products,
on the same zigzag rows, its keys and their gradients going from device to device. Bytes are those
that a device receives, read off the compiled program; temporaries are the compiler's figure.
`exchange` is the gathering and scattering alone: the most that a ring could hide.
"""

import functools
import json
import math
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from smoljax import sharding
from smoljax.model.attention import attention

_SIZE = flags.DEFINE_enum('size', 'full', ['full', 'tiny'], 'tiny: 1,024 tokens.')
_REPEATS = flags.DEFINE_integer('repeats', 3, 'Timed calls; their median is given; 0 = none.')
N, K, H = 16, 4, 128
KEYS = ('batch', 'length', 'kv_heads', 'head_dim')
QUERIES = ('batch', 'length', 'heads', 'head_dim')


def gather(
  q: jax.Array, k: jax.Array, v: jax.Array, places: jax.Array, implementation: str
) -> jax.Array:
  """Our attention, which gathers keys and values."""
  return attention(
    q, k, v, q_positions_BT=places, kv_positions_BS=places, in_order=True, zigzag=True,
    implementation=implementation)[0]


def ring(q: jax.Array, k: jax.Array, v: jax.Array, places: jax.Array, _: str) -> jax.Array:
  """Causal attention of one document; each step is recomputed in the backward pass."""
  parts = sharding.num_parts('length')
  turn = functools.partial(
    jax.lax.ppermute, axis_name='context', perm=[(i, (i + 1) % parts) for i in range(parts)])

  @jax.checkpoint
  def step(q, k, v, t, s, out, lse):
    q_BTKGH = q.reshape(*q.shape[:2], K, N // K, H)
    scores = jnp.einsum('btkgh,bskh->bkgts', q_BTKGH, k, preferred_element_type=jnp.float32)
    scores = jnp.where((s <= t.T)[None, None, None], scores * H**-0.5, -1e30)
    here = jax.nn.logsumexp(scores, axis=-1)
    total = jnp.logaddexp(here, lse)
    p = jnp.exp(scores - total[..., None]).astype(v.dtype)
    new = jnp.einsum('bkgts,bskh->bkgth', p, v, preferred_element_type=jnp.float32)
    return new + out * jnp.exp(lse - total)[..., None], total

  def local(q, k, v, places):
    B, T = q.shape[:2]
    out, lse = jnp.zeros((B, K, N // K, T, H)), jnp.full((B, K, N // K, T), -1e30)
    s = places
    for i in range(parts):
      out, lse = step(q, k, v, places, s, out, lse)
      if i + 1 < parts:
        k, v, s = turn(k), turn(v), turn(s)
    return jnp.moveaxis(out, 3, 1).reshape(q.shape).astype(q.dtype)

  return jax.shard_map(local, out_specs=sharding.spec(*QUERIES), check_vma=False)(q, k, v, places)


def exchange(q: jax.Array, k: jax.Array, v: jax.Array, places: jax.Array, _: str) -> jax.Array:
  """K and V gathered; and, as the gradient, scattered. The sums make nothing else of them."""

  def local(q, k, v):
    k, v = (jax.lax.all_gather(x, 'context', axis=1, tiled=True) for x in (k, v))
    return q + (jnp.sum(k) + jnp.sum(v)) * 1e-9

  return jax.shard_map(local, out_specs=sharding.spec(*QUERIES), check_vma=False)(q, k, v)


def received(program: str, parts: int) -> dict[str, float]:
  """MB that a device receives, by kind of collective, from the text of a compiled program."""
  totals: dict[str, float] = {}
  sizes = {'f32': 4, 'bf16': 2, 's32': 4, 'f16': 2}
  pattern = r'= (.*?) (all-gather|all-reduce|reduce-scatter|collective-permute)(?:-start)?\('
  for shapes, kind in re.findall(pattern, program):
    arrays = re.findall(r'(f32|bf16|s32|f16)\[([\d,]*)\]', shapes)
    size = max((sizes[t] * math.prod(int(n) for n in d.split(',') if n) for t, d in arrays),
               default=0)
    # A ring moves (C - 1) / C of a whole array, twice that for an all-reduce.
    share = {'all-gather': 1 - 1 / parts, 'all-reduce': 2 - 2 / parts,
             'reduce-scatter': parts - 1, 'collective-permute': 1}[kind]
    totals[kind] = totals.get(kind, 0.0) + size * share / 1e6
  return {k: round(v, 3) for k, v in totals.items()}


def main(argv: list[str]) -> None:
  """Prints a JSON line for each way."""
  del argv
  T = {'full': 65536, 'tiny': 1024}[_SIZE.value]
  parts = jax.device_count()
  mesh = sharding.make_mesh(data=1, context=parts)
  rng = np.random.default_rng(0)
  with jax.set_mesh(mesh):
    q, k, v, dout = (
      sharding.constrain(
        sharding.zigzag(jnp.asarray(rng.standard_normal((1, T, n, H), np.float32), jnp.bfloat16)),
        *names)
      for n, names in ((N, QUERIES), (K, KEYS), (K, KEYS), (N, QUERIES))
    )  # fmt: skip
    places = sharding.zigzag(jnp.arange(T, dtype=jnp.int32)[None])
    reference = None
    for function, implementation in (
      (gather, 'auto'), (gather, 'xla'), (ring, 'xla'), (exchange, 'none')):
      line: dict[str, Any] = {'benchmark': 'context_parallel', 'method': function.__name__,
              'implementation': implementation, 'tokens': T, 'heads': f'{N}/{K}x{H}',
              'devices': f'{parts} x {jax.devices()[0].device_kind}', 'jax': jax.__version__}

      @jax.jit
      def both(q, k, v, dout, function=function, implementation=implementation):
        out, back = jax.vjp(lambda q, k, v: function(q, k, v, places, implementation), q, k, v)
        return out, back(dout)

      try:
        compiled: Any = both.lower(q, k, v, dout).compile()
        line['received_mb'] = received(compiled.as_text(), parts)
        line['temporaries_mb'] = round(compiled.memory_analysis().temp_size_in_bytes / 1e6, 1)
        if _REPEATS.value:
          seconds, result = [], None
          for _ in range(_REPEATS.value + 1):  # the first warms up
            began = time.perf_counter()
            result = jax.block_until_ready(compiled(q, k, v, dout))
            seconds.append(time.perf_counter() - began)
          line['seconds'] = round(float(np.median(seconds[1:])), 4)
          if function is not exchange:
            reference = reference or result
            line['difference'] = round(max(
              float(jnp.max(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32))))
              for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(reference), strict=True)
            ), 5)  # fmt: skip
      except Exception as e:
        line['error'] = f'{type(e).__name__}: {str(e).strip().splitlines()[0][:300]}'
      print(json.dumps(line), flush=True)


if __name__ == '__main__':
  app.run(main)

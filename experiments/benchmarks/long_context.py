"""A long row through a model on one device, and the memory that takes: one JSON line.

  python -m experiments.benchmarks.long_context                # 65,536 tokens, the 3B shape, bf16
  python -m experiments.benchmarks.long_context --size=tiny    # seconds on a CPU

The forward pass up to the loss of every token, as training and evaluation compute it: attention
without [T, T] (cuDNN and splash hold tiles, XLA 2,048 queries at a time) and logits 512 places at
a time. `planned_temporaries_gb`, the compiler's own figure, is to be compared with
`whole_logits_gb` and `whole_scores_gb`: [T, V], and one head's [T, T], in fp32.
"""

import dataclasses
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from smoljax import model
from smoljax.train import objectives

_SIZE = flags.DEFINE_enum('size', 'full', ['full', 'tiny'], 'full: SmolLM3-3B on 65,536 tokens.')
_TOKENS = flags.DEFINE_integer('tokens', 0, 'Length of the row; 0 = as the size says.')
_ATTENTION = flags.DEFINE_string('attention', 'auto', 'Implementation: auto, xla, cudnn, splash.')
_REPEATS = flags.DEFINE_integer('repeats', 3, 'Timed calls; their median is given.')


def main(argv: list[str]) -> None:
  """Prints seconds and memory of the forward pass over one long row, as one JSON line."""
  del argv
  name, tokens = {'full': ('smollm3-3b', 65536), 'tiny': ('tiny', 2048)}[_SIZE.value]
  T = _TOKENS.value or tokens
  config = dataclasses.replace(
    model.SHAPES[name], max_seq_len=T, dtype='bfloat16', attention=_ATTENTION.value)
  device = jax.devices()[0]
  peak = lambda: (device.memory_stats() or {}).get('peak_bytes_in_use', 0)

  make = lambda key: jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.init(config, key))
  params = jax.block_until_ready(jax.jit(make)(jax.random.key(0)))
  peak_before = peak()
  ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 1, T), np.int32)
  inputs, targets = jnp.asarray(ids)

  def loss(params, inputs, targets):
    hidden_BTD, _ = model.hidden(config, params, inputs)
    weight_BT = jnp.full(targets.shape, 1 / targets.size)
    return objectives.head_loss(
      config, hidden_BTD, model.unembedding(config, params), targets, weight_BT, chunk=512)[0]

  began = time.perf_counter()
  compiled: Any = jax.jit(loss).lower(params, inputs, targets).compile()
  compile_seconds = time.perf_counter() - began
  value = float(compiled(params, inputs, targets))
  seconds = []
  for _ in range(_REPEATS.value):
    began = time.perf_counter()
    jax.block_until_ready(compiled(params, inputs, targets))
    seconds.append(time.perf_counter() - began)
  plan = compiled.memory_analysis()
  gb = lambda n: round(n / 1e9, 3)
  print(
    json.dumps(
      {
        'benchmark': 'long_context',
        'shape': name,
        'tokens': T,
        'attention': config.attention,
        'loss': round(value, 4),
        'seconds': round(float(np.median(seconds)), 4),
        'tokens_per_sec': round(T / float(np.median(seconds)), 1),
        'compile_seconds': round(compile_seconds, 1),
        'parameters_gb': gb(sum(x.nbytes for x in jax.tree.leaves(params))),
        'planned_arguments_gb': gb(plan.argument_size_in_bytes),
        'planned_temporaries_gb': gb(plan.temp_size_in_bytes),
        'peak_gb': gb(peak()) or None,
        'peak_before_gb': gb(peak_before) or None,  # of making the parameters
        'whole_logits_gb': gb(4 * T * config.vocab_size),
        'whole_scores_gb': gb(4 * T * T),
        'device': device.device_kind,
        'jax': jax.__version__,
      }
    )
  )


if __name__ == '__main__':
  app.run(main)

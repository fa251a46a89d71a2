"""Does a model whose blocks multiply in 8 bits learn as much a step as in bf16 (model/fp8.py)?

  python -m experiments.benchmarks.fp8_loss --corpus=DIR --shape=smollm3-3b --rows=4 \
    --seq_len=4096 --chunk=4096 --model=vocab_size=8192,scan_layers=False --seeds=2 [--together=500]

Prints one JSON line. For each seed both begin from the same parameters and see the same batches,
AdamW with a rate that rises over a twentieth of the steps; `losses` are means over each tenth of
those in which they are apart, `gap` is by how much those in 8 bits are higher in the last one, a
mean over seeds, with its standard error. Two runs that differ in rounding alone part ways too, most
in the first steps, where everything is learned at once, so one pair says little. With --together
both are one run in bf16 for so many of the steps: what 8 bits cost from there on, with less noise.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.benchmarks.train_step import prepare, replaced
from smoljax import model, sharding
from smoljax.data.batches import Batches, Stage, prefetch
from smoljax.data.corpus import Corpus, open_corpus

_SEEDS = flags.DEFINE_integer('seeds', 3, 'Pairs of runs.')
_TOGETHER = flags.DEFINE_integer('together', 0, 'Steps that a pair takes as one, in bf16.')


def make_run(
  config: model.ModelConfig, corpus: Corpus
) -> Callable[[int, int, int, dict | None], tuple[dict, list[float]]]:
  """A function `run(seed, first, last, state)` that takes these steps; it compiles once.

  It gives the state after them, and each step's loss; it begins anew where no state is given.
  """
  rows, steps, seq_len = flags.FLAGS.rows, flags.FLAGS.steps, flags.FLAGS.seq_len
  stage = Stage('all', 0, steps, {corpus.name: 1.0})
  mesh, step = sharding.make_mesh(data=1, fsdp=-1), None

  def run(seed: int, first: int, last: int, state: dict | None) -> tuple[dict, list[float]]:
    nonlocal config, step
    batches = Batches({corpus.name: corpus}, [stage], rows=rows, seq_len=seq_len, window=2048,
                      max_segments=config.max_segments, seed=seed)
    config = dataclasses.replace(config, max_segments=batches.max_segments)
    with jax.set_mesh(mesh):
      if state is None or step is None:
        fresh, made = prepare(config, steps, seed)
        state, step = state or fresh, step or made
      losses = []
      for batch in itertools.islice(prefetch(batches), first, last):
        state, out = step(state, sharding.shard_batch(batch, mesh))
        losses.append(jnp.sum(out['loss_sum_S']) / jnp.sum(out['tokens_S']))
      return state, [float(loss) for loss in losses]

  return run


def main(_: list[str]) -> None:
  """Prints the losses with and without fp8, and the gap with its error."""
  config = replaced(model.SHAPES[flags.FLAGS.shape], flags.FLAGS.model)
  corpus, steps, together = open_corpus(flags.FLAGS.corpus), flags.FLAGS.steps, _TOGETHER.value
  if not 0 <= together < steps:
    raise app.UsageError(f'--together={together}: fewer than --steps={steps} are expected')
  runs = {name: make_run(dataclasses.replace(config, fp8=fp8), corpus)
          for name, fp8 in (('bf16', False), ('fp8', True))}
  losses: dict[str, list[list[float]]] = {name: [] for name in runs}
  for seed in range(_SEEDS.value):
    shared = runs['bf16'](seed, 0, together, None)[0] if together else None
    for name, run in runs.items():
      # A step takes its state's memory.
      found = run(seed, together, steps, jax.tree.map(jnp.copy, shared))[1]
      losses[name].append([
        float(np.mean(part)) for part in np.array_split(found, min(10, len(found)))])
  ends = {name: np.array(of)[:, -1] for name, of in losses.items()}
  gaps = ends['fp8'] / ends['bf16'] - 1
  print(json.dumps({
    'benchmark': 'fp8_loss',
    'losses': losses,
    'together': together,
    'gap': float(gaps.mean()),
    'standard_error': float(gaps.std(ddof=1) / len(gaps) ** 0.5) if len(gaps) > 1 else None,
    **{name: flags.FLAGS[name].value
       for name in ('shape', 'rows', 'seq_len', 'steps', 'learning_rate', 'model')},
    'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
  }))


if __name__ == '__main__':
  flags.mark_flag_as_required('corpus')
  app.run(main)

"""Does the best learning rate of a narrow model fit a wide one? One JSON line.

  python -m experiments.benchmarks.transfer [--widths=256,512,1024] [--steps=200] [--optimizer=…]

Models of several widths are trained on text (bytes of this Python's standard library), each with a
grid of learning rates a factor of √2 apart, under the standard parametrisation and under muP whose
base is the narrowest width. The best rate of a width is the vertex of the parabola in log rate
fitted to the best point and two on either side; `ratio` is the largest over the smallest of the
widths'.
All rates of a width run as one program; the loss is the mean over the last tenth of the steps.
"""

import argparse
import dataclasses
import json
import pathlib
import sysconfig
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from smoljax import model, optim
from smoljax.optim import mup
from smoljax.scaling import coordinate_check
from smoljax.train import objectives

SEQ_LEN, DEPTH = 128, 3


def load_bytes(limit: int = 4_000_000) -> np.ndarray:
  """Bytes of Python's standard library, int32: text that is everywhere."""
  files = sorted(pathlib.Path(sysconfig.get_paths()['stdlib']).glob('*.py'))
  return np.frombuffer(b''.join(f.read_bytes() for f in files)[:limit], np.uint8).astype(np.int32)


def losses(width: int, name: str, args: argparse.Namespace, rates: np.ndarray,
           text: np.ndarray) -> np.ndarray:
  """Final loss of each learning rate, mean over seeds."""
  config = dataclasses.replace(
    coordinate_check.model_of(width, DEPTH), vocab_size=256, head_dim=32, num_heads=width // 32,
    num_kv_heads=width // 32, max_seq_len=SEQ_LEN, tie_embeddings=True, dtype=args.dtype)
  c = base.get_config().optimizer
  c.name, c.schedule, c.warmup_fraction, c.learning_rate = args.optimizer, 'constant', 0.0, 1.0
  abstract = model.abstract_params(config)
  sizes = coordinate_check.Sizes(name, min(args.widths), DEPTH)
  scales = mup.multipliers(sizes, config, c, abstract)
  optimizer, _ = optim.make_optimizer(c, abstract, args.steps, scales)
  shape = jnp.minimum(1.0, jnp.minimum(
    (jnp.arange(args.steps) + 1) / (0.1 * args.steps),
    (args.steps - jnp.arange(args.steps)) / (0.2 * args.steps)))

  def run(rate, seed, starts_JB):
    params = mup.initialise(model.init(config, jax.random.key(seed)), scales)

    def step(carry, now):
      params, state = carry
      factor, starts_B = now
      rows_BT = jnp.asarray(text)[starts_B[:, None] + jnp.arange(SEQ_LEN + 1)]
      batch = {'inputs': rows_BT[:, :-1], 'targets': rows_BT[:, 1:],
               'segment_ids': jnp.ones((args.rows, SEQ_LEN), jnp.int32),
               'positions': jnp.broadcast_to(jnp.arange(SEQ_LEN), (args.rows, SEQ_LEN)),
               'source': jnp.zeros(args.rows, jnp.int32)}  # fmt: skip
      loss, grads = jax.value_and_grad(lambda p: objectives.next_token(
        config, p, batch, total_tokens=float(args.rows * SEQ_LEN), num_sources=1,
        chunk=SEQ_LEN).total)(params)
      updates, state = optimizer.update(grads, state, params)
      params = jax.tree.map(lambda p, u: p + rate * factor * u, params, updates)
      return (params, state), loss

    _, curve = jax.lax.scan(step, (params, optimizer.init(params)), (shape, starts_JB))
    return jnp.mean(curve[-max(1, args.steps // 10):])

  out = []
  for seed in range(args.seeds):
    starts_JB = np.random.default_rng(seed).integers(
      len(text) - SEQ_LEN - 1, size=(args.steps, args.rows))
    many = jax.jit(jax.vmap(run, in_axes=(0, None, None)))
    out.append(many(jnp.asarray(rates, jnp.float32), seed, starts_JB))
  return np.nan_to_num(np.mean(out, axis=0), nan=np.inf)


def vertex(rates: np.ndarray, loss: np.ndarray) -> tuple[float, bool]:
  """The best rate, and whether it lies inside the grid."""
  i = int(np.argmin(loss))
  near = slice(max(0, i - 2), i + 3)
  if i in (0, len(rates) - 1) or not np.isfinite(loss[near]).all():
    return float(rates[i]), False
  a, b, _ = np.polyfit(np.log(rates[near]), loss[near], 2)
  best = float(np.exp(-b / (2 * a))) if a > 0 else float(rates[i])
  return best, bool(rates[0] < best < rates[-1])


def main() -> None:
  """Prints the best rate of each width under both parametrisations, as one JSON line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--widths', type=lambda s: [int(x) for x in s.split(',')],
                      default=[256, 512, 1024])
  parser.add_argument('--steps', type=int, default=200)
  parser.add_argument('--rows', type=int, default=32)
  parser.add_argument('--seeds', type=int, default=1)
  parser.add_argument('--optimizer', default='adamw', choices=['adamw', 'muon'])
  parser.add_argument('--middle', type=float, default=4e-3, help='of the grid of rates')
  parser.add_argument('--points', type=int, default=11)
  parser.add_argument('--dtype', default='float32')
  args = parser.parse_args()
  text = load_bytes()
  rates = args.middle * 2 ** ((np.arange(args.points) - args.points // 2) / 2)
  found = {}
  for name in ('standard', 'mup'):
    rows: dict[int, dict[str, Any]] = {}
    for width in args.widths:
      loss = losses(width, name, args, rates, text)
      best, inside = vertex(rates, loss)
      rows[width] = {'best': best, 'inside': inside, 'loss': [round(float(x), 4) for x in loss]}
    bests = [r['best'] for r in rows.values()]
    found[name] = {'ratio': round(max(bests) / min(bests), 3), 'widths': rows}
  print(json.dumps({'benchmark': 'transfer', 'optimizer': args.optimizer, 'steps': args.steps,
                    'rates': rates.tolist(), 'device': jax.devices()[0].device_kind, **found}))


if __name__ == '__main__':
  main()

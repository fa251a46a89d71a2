"""How optimizers part from one start: the same weights and batches, one JSON line a look.

  python -m experiments.benchmarks.trajectories --output=DIR [--steps=300] [--every=25]

DIR is that of the optimizer contest (experiments/benchmarks/optimizer_contest.py), whose model and
tokens are used, each optimizer at the learning rate that the contest found best. Writes
DIR/trajectories.jsonl, .md and .svg. With W₀ the common start and ΔW = W − W₀ of the matrices:

  loss             on held-out rows, not cooled down
  moved            ‖ΔW‖ / ‖W₀‖
  cos              cosine of ΔW with that of each other optimizer at the same step
  weights, update  entropy of squared singular values (diagnostics.svd_entropy), mean over matrices,
                   of W and of the step taken there
"""

import argparse
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import optimizer_contest as settings
from experiments.benchmarks import optimizer_contest as contest
from smoljax import optim
from smoljax.optim.matrices import path_name
from smoljax.train import diagnostics

_NAMES = ('adamw', 'muon', 'soap')


def matrices(params: dict) -> dict:
  """Path → leaf of those leaves that are matrices."""
  views = optim.matrix_views(params)
  return {name: x for path, x in jax.tree.leaves_with_path(params)
          if (name := path_name(path)) in views}


def norm(tree: dict) -> float:
  """Of all leaves together."""
  return math.sqrt(dot(tree, tree))


def dot(a: dict, b: dict) -> float:
  """Sum over all leaves."""
  return float(sum(jnp.vdot(x, y) for x, y in zip(a.values(), b.values(), strict=True)))


def spectrum(params: dict) -> float:
  """Mean over all matrices of diagnostics.svd_entropy, 0 (rank one) to 1 (all directions alike)."""
  found = diagnostics.svd_entropy(params, optim.matrix_views(params))
  return float(np.mean(np.concatenate([np.asarray(x) for x in found.values()])))


def minus(a: dict, b: dict) -> dict:
  """Leaf by leaf."""
  return {k: a[k] - b[k] for k in a}


def follow(
  name: str, cell: contest.Cell, c: Any, data: contest.Data, steps: int, every: int
) -> Iterator[tuple[int, dict, dict]]:
  """(step, row, ΔW) at every `every`-th step of a run at a constant rate after the warm-up."""
  runner, copies = contest.Runner(c.contestants[name], c, data), contest.Copies([1], [cell])
  first = lambda state: jax.tree.map(lambda x: x[0], state[0])
  state = runner.start(copies)
  start = matrices(first(state))
  for step in range(every, steps + 1, every):
    state = runner.steps(state, copies, step - every, step - 1, contest.warm)
    before = matrices(first(state))
    state = runner.steps(state, copies, step - 1, step, contest.warm)
    params = first(state)
    now = matrices(params)
    moved = minus(now, start)
    nested = lambda tree: {'blocks': tree}
    yield step, {
      'name': name, 'lr': cell.lr, 'step': step, **runner.score(state, data.tune)[0],
      'moved': norm(moved) / norm(start),
      'weights': spectrum(nested(now)),
      'update': spectrum(nested(minus(now, before))),
    }, jax.device_get(moved)


def run(output: pathlib.Path, steps: int, every: int, c: Any) -> list[dict]:
  """Follows each optimizer; writes and returns the rows of DIR/trajectories.jsonl."""
  data, rows, paths = contest.Data.load(output), [], {}
  done = contest.read(output)
  with open(output / 'trajectories.jsonl', 'w', buffering=1) as file:
    for name in _NAMES:
      tuned = contest.tried(done, name)
      cell = contest.best(tuned) if tuned else contest.Cell(*c.contestants[name].start)
      for step, row, moved in follow(name, cell, c, data, steps, every):
        for other in (n for n, at in paths.items() if n != name and step in at):
          theirs = paths[other][step]
          row[f'cos/{other}'] = dot(moved, theirs) / (norm(moved) * norm(theirs))
        paths.setdefault(name, {})[step] = moved
        row = {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}
        rows.append(row | {'device': jax.devices()[0].device_kind})
        file.write(json.dumps(rows[-1]) + '\n')
        print(json.dumps(rows[-1]), flush=True)
  return rows


def report(output: pathlib.Path, rows: list[dict], c: Any) -> None:
  """Writes DIR/trajectories.md and .svg."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  title = lambda name: c.contestants[name].title
  figure, axes = pyplot.subplots(1, 3, figsize=(14, 4), layout='constrained')
  lines = ['| optimizer | step | loss | moved | entropy of the update | of the weights | cosine |',
           '|---|---|---|---|---|---|---|']
  for name in dict.fromkeys(r['name'] for r in rows):
    of_name = [r for r in rows if r['name'] == name]
    at = [r['step'] for r in of_name]
    for i, key in enumerate(('update', 'weights')):
      axes[i].plot(at, [r[key] for r in of_name], marker='.', label=title(name))
      axes[i].set(xlabel='step', ylabel='entropy of singular values', title=f'of the {key}')
    for key in (k for k in of_name[0] if k.startswith('cos/')):
      label = f'{title(name)} and {title(key[4:])}'
      axes[2].plot(at, [r[key] for r in of_name], marker='.', label=label)
    for r in (of_name[0], of_name[len(of_name) // 2], of_name[-1]):
      cosines = ', '.join(f'{r[k]:.2f} ({title(k[4:])})' for k in r if k[:4] == 'cos/')
      lines.append(f'| {title(name)} | {r["step"]} | {r["loss"]:.3f} | {r["moved"]:.2f} | '
                   f'{r["update"]:.3f} | {r["weights"]:.3f} | {cosines or "–"} |')
  axes[2].set(xlabel='step', ylabel='cosine of W − W₀', title='which way they went')
  for axis in axes:
    axis.legend(fontsize=8)
  figure.savefig(output / 'trajectories.svg', metadata={'Date': None})
  (output / 'trajectories.md').write_text('\n'.join(lines) + '\n')
  print('\n'.join(lines))


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--output', required=True, type=pathlib.Path)
  parser.add_argument('--steps', type=int, default=300)
  parser.add_argument('--every', type=int, default=25, help='steps from one look to the next')
  args = parser.parse_args()
  c = settings.get_config()
  report(args.output, run(args.output, args.steps, args.every, c), c)


if __name__ == '__main__':
  main()

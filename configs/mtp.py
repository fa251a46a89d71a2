"""Multi-token prediction on top of the quickstart, and the grid that asks what it is worth.

  python -m experiments.run --config=configs/mtp.py --workdir=runs/mtp
  python -m experiments.run --config=configs/mtp.py:kind=parallel,depth=2 --workdir=runs/mtp2
"""

from ml_collections import ConfigDict

from configs import base, quickstart


def get_config(arg: str = '') -> ConfigDict:
  """The quickstart with modules of multi-token prediction, of a kind and depth."""
  args = base.parse_arg(arg, kind=('sequential', 'parallel', 'none'), depth=('1', '2', '3', '4'))
  c = quickstart.get_config()
  c.name = 'mtp'
  c.model.mtp, c.model.mtp_depth = args.kind, int(args.depth)
  return c


def sweep() -> list[dict]:
  """Kinds, depths and weights; λ is constant in each. Also of benchmarks.more_per_token."""
  grid = [('none', 1, 0.0)]
  grid += [('sequential', depth, weight) for depth in (1, 2) for weight in (0.1, 0.3)]
  grid += [('parallel', depth, 0.3) for depth in (1, 3)]
  return [{'name': f'{kind}-{depth}-{weight}', 'model.mtp': kind, 'model.mtp_depth': depth,
           'mtp.weight': weight, 'mtp.weight_last': weight} for kind, depth, weight in grid]

"""The best size at each of several budgets of compute: Chinchilla's second approach.

  python -m experiments.sweep --config=configs/isoflop.py --workdir=runs/isoflop

Every size is trained with every budget (`train.flops`), so the smaller see more tokens; a parabola
through their losses has its least where a budget is spent best. The runs of one size share nothing,
unlike those of configs/ladder.py: their lengths differ by budget and size, and checkpoints to
branch from would have to fit them all. They also give the law that the ladder fits.
"""

from ml_collections import ConfigDict

from configs import ladder

WIDTHS = (32, 48, 64, 96, 128)
FLOPS = (3e12, 6e12, 1.2e13)  # as ModelConfig.flops_per_token counts


def get_config() -> ConfigDict:
  """The ladder's model, cooled down over a share of each run."""
  c = ladder.get_config()
  c.name = 'isoflop'
  c.optimizer.decay_fraction = ladder.COOLDOWN
  return c


def sweep() -> list[dict]:
  """Every width with every budget."""
  return [{'name': f'd{width}-{flops:.0e}', 'law': 'fit', **ladder.shape(width),
           'train.flops': flops} for flops in FLOPS for width in WIDTHS]

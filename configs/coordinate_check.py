"""Does a learning rate carry over from small to large? The coordinate check, with controls.

  python -m experiments.run --config=configs/coordinate_check.py --workdir=runs/coordinate_check
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  c = base.get_config()
  c.name = 'coordinate_check'
  c.coordinate_check = ConfigDict()  # runs instead of the usual steps
  c.coordinate_check.widths = (64, 128, 256, 512)  # embed_dim; the first is the base
  c.coordinate_check.depths = (3, 6, 12)
  c.coordinate_check.steps = 5
  c.coordinate_check.seeds = 2
  return c

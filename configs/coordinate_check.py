"""Does a learning rate carry over from small to large? The coordinate check, with controls.

  python -m experiments.run --config=configs/coordinate_check.py --workdir=runs/coordinate_check
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Defaults, with the widths and depths to check."""
  c = base.get_config()
  c.name = 'coordinate_check'
  c.coordinate_check.widths = (64, 128, 256, 512)
  return c

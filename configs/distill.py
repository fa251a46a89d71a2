"""A student of the quickstart's size and data that learns from a trained model.

  python -m experiments.run --config=configs/distill.py --workdir=runs/distill \\
    --config.distill.teacher=runs/large

The student takes the teacher's tokenizer. What the teacher says is written down once (sampled);
--config.distill.cache=none lets it run beside the student instead.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
  """The quickstart's student of --config.distill.teacher."""
  c = quickstart.get_config()
  c.name = 'distill'
  c.distill.cache = 'sampled'
  c.distill.weight = 0.9
  return c

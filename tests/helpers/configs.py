"""Configs for tests."""

from configs import base
from experiments.engine import config as config_lib


def config(**changes):
  c = base.get_config()
  c.web.enabled = c.pdf.enabled = False
  c.train.stages = (dict(name='all', fraction=1.0, mixture={'mine': 1.0}),)
  c.tokenizer.vocab_size = 320
  c.update_from_flattened_dict({key.replace('__', '.'): value for key, value in changes.items()})
  return config_lib.resolve(c)

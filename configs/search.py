"""Which optimizer, learning rate and batch for the quickstart's model and data? A search.

  python -m experiments.search --config=configs/search.py --workdir=runs/search --trials=16 \
    --sampler=tpe --pruner=halving --cooled --retest=2
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
  """The quickstart on one mixture, so that branches may be cooled down from any step."""
  c = quickstart.get_config()
  c.train.stages = (dict(name='all', fraction=1.0, mixture=dict(web=0.8, pdf=0.2)),)
  return c


def space() -> dict:
  """Field → choices, or (kind, low, high): see experiments.search."""
  return {
    'optimizer.name': ['adamw', 'muon'],
    'optimizer.learning_rate': ('log', 5e-4, 2e-2),
    'optimizer.weight_decay': ('log', 1e-3, 0.5),
    'train.batch_tokens': [1024, 2048, 4096],
  }

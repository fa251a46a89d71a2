"""Which optimizer, learning rate and batch for the quickstart's model and data? A search.

  python -m experiments.search --config=configs/search.py --workdir=runs/search --trials=16 \
    --sampler=tpe --pruner=halving
"""

from configs import quickstart

get_config = quickstart.get_config


def space() -> dict:
  """Field → choices, or (kind, low, high): see experiments.search."""
  return {
    'optimizer.name': ['adamw', 'muon'],
    'optimizer.learning_rate': ('log', 5e-4, 2e-2),
    'optimizer.weight_decay': ('log', 1e-3, 0.5),
    'train.batch_tokens': [1024, 2048, 4096],
  }

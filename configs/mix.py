"""Proxies of 2.6M parameters that say in which proportions corpora should be mixed.

  python -m experiments.benchmarks.mixture_sources --data=DATA --output=runs/sources
  python -m experiments.mix --config=configs/mix.py --workdir=runs/mix \
    --config.corpora=en=runs/sources/tokens/en/1.0.0,de=runs/sources/tokens/de/1.0.0,… \
    --config.tokenizer.path=runs/sources/tokenizer.model

The validation at more compute has 2.1 times the parameters and twice the tokens.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """Short rows, a batch that a small model needs, Muon at the quickstart's learning rate."""
  c = base.get_config()
  c.name = 'mix'
  c.data.seq_len = 256
  c.model.num_layers, c.model.embed_dim, c.model.mlp_dim = 4, 192, 512
  c.model.num_heads, c.model.num_kv_heads, c.model.head_dim = 3, 1, 64
  c.model.attention = 'xla'  # rows are short, and it is mapped over models
  c.model.scan_layers = False
  c.mix.larger = (('num_layers', 6), ('embed_dim', 256), ('mlp_dim', 704), ('num_heads', 4),
                  ('num_kv_heads', 2))
  c.train.tokens = 5_000_000
  c.train.batch_tokens = 8192
  c.train.loss_chunk = 128
  c.optimizer.name = 'muon'
  c.optimizer.learning_rate = 4e-3
  return c

"""The whole path on two CPU cores, in minutes: what `make quickstart` runs.

  python -m experiments.run --config=configs/quickstart.py --workdir=runs/quickstart

With better data: --config.web.input='crawl/*.warc.gz' --config.pdf.input='papers/*.pdf'
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
  """A small model on this machine's own documentation."""
  c = base.get_config()
  c.name = 'quickstart'

  # Software documentation: braces and `javascript` belong to the text, identifiers to no language.
  c.web.filters = 'docs'
  c.web.min_language_score = 0.5
  c.pdf.filters = 'length,garbage,docs_repetition'
  c.selfdocs.pdfs = 120

  c.tokenizer.vocab_size = 2048
  c.tokenize.holdout = 0.05
  c.model.dtype = 'float32'  # CPUs have no fast bfloat16

  c.data.seq_len = 256
  c.train.tokens = 1_800_000
  c.train.batch_tokens = 2048  # small: with so few tokens, steps count for more than batches
  c.train.stages = (
    dict(name='stable', fraction=0.6, mixture=dict(web=0.9, pdf=0.1)),
    dict(name='stable-2', fraction=0.2, mixture=dict(web=0.8, pdf=0.2)),
    dict(name='decay', fraction=0.2, mixture=dict(web=0.7, pdf=0.3)),
  )
  c.train.log_every = 20
  c.train.loss_chunk = 32  # small enough for the caches of a CPU
  c.train.eval_documents = 16
  c.train.eval_every = 220
  c.train.checkpoint_every = 110

  c.diagnostics.every = 220

  c.optimizer.name = 'muon'
  c.optimizer.learning_rate = 4e-3
  return c

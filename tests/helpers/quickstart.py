"""The quickstart's config, shrunken."""

SMALL = [
  '--config.selfdocs.pages=240',
  '--config.selfdocs.pdfs=24',
  '--config.pdf.ocr=never',
  '--config.tokenizer.vocab_size=600',
  '--config.tokenize.holdout=0.2',
  '--config.model.embed_dim=32',
  '--config.model.mlp_dim=64',
  '--config.model.head_dim=16',
  '--config.model.num_heads=2',
  '--config.model.num_kv_heads=1',
  '--config.data.seq_len=128',
  '--config.train.batch_tokens=2048',
  '--config.train.tokens=61440',
  '--config.train.log_every=5',
  '--config.train.eval_every=15',
  '--config.train.checkpoint_every=5',
  '--config.eval.task_examples=20',
  '--config.sample.tokens=16',
]

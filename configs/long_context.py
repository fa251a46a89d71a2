"""Do layers without rotation, and masks between documents, help a small model with long texts?

  python -m experiments.sweep --config=configs/long_context.py:data=DIR --workdir=runs/long_context

Four arms of the same tokens in rows of 1,024: every fourth layer rotates nothing (SmolLM3's) or all
rotate; attention stops at the ends of documents, or reads across those that share a row. It learns
text, and questions in the manner of RULER with their answers, none of which is ever asked; without
them, a model so small answers none at any length. Scores stand beyond the rows it was trained on,
too, where positions are stretched by YaRN. DIR has tokenizer.model and tokens of both, here of a
corpus at TEXT (30M tokens are read); needles lie in text of another, FILLER (JSONL of its export):

  python -m experiments.needles --output=DIR/needles.jsonl --tokenizer=DIR/tokenizer.model \\
    --documents=FILLER
  python -m data_beam.tables import --input=DIR/needles.jsonl --output=DIR/corpora --name=needles
  python -m data_beam.tokenize_corpus --input=DIR/corpora/needles/1.0.0 --name=needles --no-bos \\
    --holdout=.01 --holdout_shared=1 --tokenizer=DIR/tokenizer.model --output=DIR/tokens
  python -m data_beam.tokenize_corpus --input=TEXT/1.0.0 --name=text --no-bos \\
    --tokenizer=DIR/tokenizer.model --output=DIR/tokens

The four take three minutes side by side on one H200 (--parallel=4).
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base

ASKED = ('niah_single_1', 'niah_single_2', 'niah_multikey_1', 'vt')


def get_config(arg: str = '') -> ConfigDict:
  """An arm; `data` is the folder described above."""
  data = base.parse_arg(arg, data=()).data or 'long_context'
  c = base.get_config()
  c.name = 'long_context'
  c.web.enabled = c.pdf.enabled = False
  c.corpora = ','.join(f'{name}={data}/tokens/{name}/1.0.0' for name in ('text', 'needles'))
  c.tokenizer.path = f'{data}/tokenizer.model'
  c.tokenize.bos = False
  c.model.shape = 'tiny'
  c.model.num_layers, c.model.embed_dim, c.model.mlp_dim = 8, 256, 704
  c.model.num_heads, c.model.num_kv_heads, c.model.head_dim = 4, 2, 64
  c.data.seq_len = 1024
  c.train.tokens, c.train.batch_tokens = 40_000_000, 65_536
  c.train.stages = ({'name': 'all', 'fraction': 1.0, 'mixture': {'text': 0.75, 'needles': 0.25}},)
  c.train.eval_every, c.train.checkpoint_every = 200, 300
  c.optimizer.name, c.optimizer.learning_rate = 'muon', 4e-3
  c.eval.documents, c.eval.batch_size, c.eval.task_examples = 100, 32, 50
  c.eval.tasks = tuple(f'ruler:{task}' for task in ASKED)
  c.eval.generation.lengths = (1024, 2048, 4096)
  c.eval.generation.modes = ('plain',)  # it has seen questions and answers, no conversations
  c.sample.prompts = ()
  return c


def sweep() -> list[dict[str, Any]]:
  """The arms."""
  return [{'name': f'{name}_{masks}', 'model.nope_interval': every, 'data.across': across}
          for name, every in (('nope', 4), ('rope', 0))
          for masks, across in (('masked', False), ('across', True))]

"""SmolLM3's pretraining, its two long-context stages and its post-training, at any size.

  python -m experiments.run --config=configs/smollm3.py:size=3b --workdir=DIR
  python -m experiments.run --config=configs/smollm3.py:size=3b,stage=32k --workdir=DIR32 \
    --config.train.init_from=DIR
  python -m experiments.run --config=configs/smollm3.py:size=3b,stage=64k --workdir=DIR64 \
    --config.train.init_from=DIR32

Give --config.web.input and --config.pdf.input (or corpora of the quickstart are made). Learning
rates, schedules, steps and batches are SmolLM3's own (384 H100s, 24 days for the first stage, which
has the three mixtures of its pretraining); with fewer --config.train.tokens the schedule shrinks
along. Each stage raises the rotary base: 5e4, 2e6, 5e6. At inference YaRN doubles the context once
more: `experiments.generate --context=131072`.

Post-training goes on from there, on conversations (data_beam.conversations says in which layouts):
mid-training on thoughts, whole conversations learned; fine-tuning in both modes, the assistant's
turns learned; and preferences. The soup of the last and the first is experiments.merge's.

  … --config=configs/smollm3.py:size=3b,stage=mid --workdir=MID --config.train.init_from=DIR64 \
    --config.conversations.input='thoughts/*.jsonl'
  …:stage=sft --workdir=SFT --config.train.init_from=MID \
    --config.conversations.input='chats/*.jsonl'
  …:stage=apo --workdir=APO --config.train.init_from=SFT \
    --config.conversations.input='pairs/*.jsonl'

Rates, schedules, clipping, rows and losses are those of SmolLM3's recipes (alignment-handbook,
recipes/smollm3; tokens as its blog counts them, four epochs where the recipes say five), what they
leave open (Adam's b2, no weight decay) are its trainer's defaults. 32 pairs, its batch of
preferences, are about four rows. One template serves all stages, where its mid-training had none.

With mixture=published the mixtures are SmolLM3's own too, of corpora that --config.corpora names
(configs/smollm3_mixtures.json has the weights; of post-training they are shares of each corpus that
an epoch takes); `only` takes some of them, in their proportions:

  python -m experiments.run --config=configs/smollm3.py:mixture=published,only=fineweb-edu+dclm \
    --config.corpora=fineweb-edu=DIR,dclm=DIR --config.tokenizer.path=FILE --workdir=DIR

stage=ablation is the set-up of its ablations: Llama 3.2's 1B shape, 45 billion tokens of
fineweb-edu, stack-edu-python and finemath-3plus.
"""

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from configs import base

SIZES = ('3b', '1b', '500m', '360m', '135m', '50m')  # shapes smollm3-SIZE

# stage: sequence length, rotary base, steps, warm-up and decay steps, schedule, learning rate
STAGES = {
  'pretrain': (4096, 5e4, 4_720_000, 2000, 522_000, 'wsd', 2e-4),
  '32k': (32_768, 2e6, 20_000, 1000, 19_000, 'cosine', 2e-5),
  '64k': (65_536, 5e6, 22_000, 1000, 21_000, 'cosine', 2e-5),
  'ablation': (4096, 5e4, 28_610, 2000, 26_610, 'cosine', 5e-4),
  'mid': (32_768, 5e6, 33_379, 1001, 32_378, 'cosine', 2e-5),
  'sft': (65_536, 5e6, 954, 29, 925, 'cosine', 2e-5),
  'apo': (24_576, 5e6, 5281, 528, 4753, 'cosine', 1e-6),
}
POST_TRAINING = {'mid': 128, 'sft': 128, 'apo': 4}  # and the rows of a batch
BATCH_TOKENS = 2_359_296
ABLATION = {'fineweb-edu': 0.7, 'stack-edu-python': 0.2, 'finemath-3plus': 0.1}

# Shares of SmolLM3's three stages, from where each begins: steps 1, 3,450,001 and 4,198,001. The
# mixtures are ours; PDF text grows towards the end and stays under a quarter.
PRETRAIN = (
  dict(name='stage-1', fraction=0.731, mixture=dict(web=0.95, pdf=0.05)),
  dict(name='stage-2', fraction=0.158, mixture=dict(web=0.9, pdf=0.1)),
  dict(name='stage-3', fraction=0.111, mixture=dict(web=0.85, pdf=0.15)),
)


def get_config(arg: str = '') -> ConfigDict:
  """A size and stage of SmolLM3, on a mixture of corpora."""
  args = base.parse_arg(arg, size=SIZES, stage=STAGES, mixture=('own', 'published'), only=())
  seq_len, theta, steps, warmup, decay, schedule, learning_rate = STAGES[args.stage]
  c = base.get_config()
  c.name = f'smollm3-{args.size}-{args.stage}'
  c.model.shape = f'smollm3-{args.size}'
  c.model.rope_theta = theta
  c.tokenizer.vocab_size = 128_256
  c.tokenizer.chat = True
  c.tokenize.bos = False

  c.data.seq_len = seq_len
  c.train.batch_tokens = BATCH_TOKENS
  c.train.stages = PRETRAIN
  if args.stage in ('32k', '64k'):
    c.model.remat = 'qkv+ctx+mid'
    c.train.stages = (dict(name=args.stage, fraction=1.0, mixture=dict(web=0.8, pdf=0.2)),)
  c.train.eval_every = 4000
  c.train.checkpoint_every = 2000

  if args.stage in POST_TRAINING:
    _post_train(c, args.stage, args.mixture == 'published')

  c.optimizer.learning_rate = learning_rate
  c.optimizer.schedule = schedule
  c.optimizer.warmup_fraction = warmup / steps  # so that a shorter run keeps the shape
  c.optimizer.decay_fraction = decay / steps
  if args.stage == 'ablation':
    c.name, c.model.shape, c.model.rope_scaling = 'smollm3-ablation', 'llama-3.2-1b', {}
    c.train.batch_tokens = 1_572_864
    c.train.stages = (dict(name='ablation', fraction=1.0, mixture=ABLATION),)
    c.optimizer.floor = 0.1
  elif args.mixture == 'published':
    weights = json.loads((pathlib.Path(__file__).parent / 'smollm3_mixtures.json').read_text())
    c.train.stages = tuple(
      {**stage, 'mixture': weights[stage['name']]} for stage in c.train.stages)
  c.train.tokens = steps * c.train.batch_tokens
  stages: Any = c.train.stages
  if only := args.only.split('+') if args.only else ():
    stages = c.train.stages = tuple(
      {**stage, 'mixture': {n: w for n, w in stage['mixture'].items() if n in only}}
      for stage in stages)
  # What no stage reads need not be made.
  names = {name for stage in stages for name in stage['mixture']}
  for name in ('web', 'pdf', 'conversations'):
    c[name].enabled = name in names
  return c


def _post_train(c: ConfigDict, stage: str, published: bool) -> None:
  """What mid-training, fine-tuning and preferences have in common, and what they have not."""
  c.model.remat = 'qkv+ctx+mid'
  c.train.batch_tokens = POST_TRAINING[stage] * c.data.seq_len
  c.train.stages = (dict(
    name=stage, fraction=1.0, mixture=dict(conversations=1.0), shares=published),)
  c.train.eval_every = c.train.checkpoint_every = 200
  c.optimizer.floor = 0.1
  c.optimizer.clip_norm = 0.2
  c.optimizer.b2 = 0.999
  c.optimizer.weight_decay = 0.0
  c.tokenize.train_user = stage == 'mid'
  c.eval.tasks = ()
  if stage == 'apo':
    c.train.preference.loss, c.train.preference.beta = 'apo_zero', 0.05

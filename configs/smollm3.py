"""SmolLM3's pretraining and its two long-context stages, at any size of the family.

  python -m experiments.run --config=configs/smollm3.py:size=3b --workdir=DIR
  python -m experiments.run --config=configs/smollm3.py:size=3b,stage=32k --workdir=DIR32 \
    --config.train.init_from=DIR --config.tokenizer.path=DIR/tokenizer.model
  python -m experiments.run --config=configs/smollm3.py:size=3b,stage=64k --workdir=DIR64 \
    --config.train.init_from=DIR32 --config.tokenizer.path=DIR/tokenizer.model

Give --config.web.input and --config.pdf.input (or corpora of the quickstart are made). Learning
rates, schedules, steps and batches are SmolLM3's own (384 H100s, 24 days for the first stage); with
fewer --config.train.tokens the schedule shrinks along. Each stage raises the rotary base: 5e4, 2e6,
5e6. At inference YaRN doubles the context once more: `experiments.generate --context=131072`.
"""

from ml_collections import ConfigDict

from configs import base

SIZES = ('3b', '1b', '500m', '360m', '135m', '50m')  # shapes smollm3-SIZE

# stage: sequence length, rotary base, steps, warm-up and decay steps, schedule, learning rate
STAGES = {
  'pretrain': (4096, 5e4, 4_720_000, 2000, 522_000, 'wsd', 2e-4),
  '32k': (32_768, 2e6, 20_000, 1000, 19_000, 'cosine', 2e-5),
  '64k': (65_536, 5e6, 22_000, 1000, 21_000, 'cosine', 2e-5),
}
BATCH_TOKENS = 2_359_296


def get_config(arg: str = '') -> ConfigDict:
  args = base.parse_arg(arg, size=SIZES, stage=STAGES)
  seq_len, theta, steps, warmup, decay, schedule, learning_rate = STAGES[args.stage]
  c = base.get_config()
  c.name = f'smollm3-{args.size}-{args.stage}'
  c.model.shape = f'smollm3-{args.size}'
  c.model.rope_theta = theta
  c.model.remat = 'qkv+ctx+mid+gu' if args.stage == 'pretrain' else 'full'
  c.tokenizer.vocab_size = 128_256
  c.tokenize.bos = False

  c.data.seq_len = seq_len
  c.train.tokens = steps * BATCH_TOKENS
  c.train.batch_tokens = BATCH_TOKENS
  # Shares of SmolLM3's three stages; PDF text grows towards the end and stays under a quarter.
  c.train.stages = (
    dict(name='stage-1', fraction=0.731, mixture=dict(web=0.95, pdf=0.05)),
    dict(name='stage-2', fraction=0.158, mixture=dict(web=0.9, pdf=0.1)),
    dict(name='stage-3', fraction=0.111, mixture=dict(web=0.85, pdf=0.15)),
  )
  if args.stage != 'pretrain':
    mixture = dict(web=0.8, pdf=0.2)
    c.train.stages = (dict(name=args.stage, fraction=1.0, mixture=mixture),)
  c.train.eval_every = 4000
  c.train.checkpoint_every = 2000

  c.optimizer.learning_rate = learning_rate
  c.optimizer.schedule = schedule
  c.optimizer.warmup_fraction = warmup / steps  # so that a shorter run keeps the shape
  c.optimizer.decay_fraction = decay / steps
  return c

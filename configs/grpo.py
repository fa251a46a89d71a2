"""Reinforcement learning in minutes: sums of several numbers that a small model thinks through.

  python -m experiments.run --config=configs/grpo.py:stage=sft --workdir=runs/grpo_sft
  python -m experiments.run --config=configs/grpo.py --workdir=runs/grpo \\
    --config.train.init_from=runs/grpo_sft

The first run makes conversations by rule (experiments/chains.py) in which three of ten digits in
the thoughts are random, and trains a model of 0.2M parameters on them from scratch: it learns the
form, and where it samples it is right about as often as its demonstrations are. The second asks it
other questions, samples eight answers to each, rewards those whose last number is right, and moves
it towards these (GRPO): `val/conversations/pass@1` in metrics.jsonl, of held-out questions, and
`rl/…` tell how it goes.

Reinforcement sharpens what samples contain. Where all answers of a group are right or all wrong
(`rl/same_rewards`), nothing is learned of it: begin with a model whose pass@8 is far above its
pass@1, and whose `rl/entropy` is not near 0.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = '') -> ConfigDict:
  """Stage `sft`, from scratch on noisy demonstrations, or `rl`, from what that gave."""
  args = base.parse_arg(arg, stage=('rl', 'sft'))
  c = base.get_config()
  c.name = f'grpo-{args.stage}'
  c.web.enabled = c.pdf.enabled = False
  c.conversations.enabled = True
  c.conversations.minhash = 'none'  # all sums look alike
  c.tokenize.bos = False
  c.tokenize.holdout = 0.05
  c.tokenize.holdout_shared = 1.0  # likewise: each sum shares words with others
  c.tokenizer.vocab_size = 280
  c.chains.families, c.chains.depths = ('sums',), (1, 2, 3)
  c.chains.system = '/system_override'  # one mode: no header has to say it
  c.tokenizer.chat = True
  c.train.stages = (dict(name=args.stage, fraction=1.0, mixture=dict(conversations=1.0)),)

  c.model.shape = 'tiny'
  c.model.update(dict(num_layers=3, embed_dim=64, num_heads=4, num_kv_heads=2, head_dim=16,
                      mlp_dim=192))
  c.model.dtype = 'float32'
  c.train.loss_chunk = 64
  c.optimizer.weight_decay = 0.0
  c.optimizer.schedule = 'constant'
  c.eval.tasks = ()
  c.sample.prompts = ()

  if args.stage == 'sft':
    c.seed = 1  # other questions than those of the second run
    c.chains.number = 30_000
    c.chains.noise = 0.3
    c.data.seq_len = 128
    c.train.batch_tokens = 16 * 128
    c.train.tokens = 2500 * 16 * 128
    c.optimizer.name = 'muon'
    c.optimizer.learning_rate = 4e-3
    c.optimizer.schedule = 'cosine'
    c.train.eval_every = c.train.checkpoint_every = 500
    # Where it begins to see how states follow, gradients are fifty times as large for a step: the
    # guard takes that for an incident, and keeps it from learning.
    c.guard.enabled = False
    return c
  c.chains.number = 6000
  c.data.seq_len = 128
  c.train.batch_tokens = 128 * 128  # 16 questions, 8 answers each
  c.train.tokens = 120 * 128 * 128
  c.train.reinforce.loss = 'dapo'
  c.train.reinforce.divide_by_std = False
  c.train.reinforce.max_new_tokens = 80
  c.optimizer.learning_rate = 3e-4
  c.train.eval_every = c.train.checkpoint_every = 60
  return c

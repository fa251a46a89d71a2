"""How large may a batch be, and when? Branches of one run at several batches.

  python -m experiments.sweep --config=configs/critical_batch.py --workdir=runs/critical_batch

From checkpoints of one run at a constant learning rate training goes on for the same tokens with
batches of 1, 2, 4 and 8 times the size, at the learning rate times the root of that, and cools down
(arXiv 2505.23971). The largest batch whose loss is within the noise of the smallest's is the
critical one there, by seeds' t-intervals; `optimizer.ramp` of a run acts on it: ((0.0, 1), (share,
times), …). The other estimate, from the gradients' variance, is `noise_scale` of a run's own page
(diagnostics.every). "Within noise" says no more than the difference that could have been seen,
which stands beside it.

On a GPU without Beam the corpus comes along as tokens, those of configs/data_ablation.py's panel
(`--sweep` of experiments.prepare there) or of experiments.prepare --config=configs/quickstart.py:

  python -m experiments.sweep --config=configs/critical_batch.py --workdir=runs/critical_batch \\
    --parallel=6 --config.corpora=clean=runs/panel/points/clean-0/tokens/web/1.0.0 \\
    --config.tokenizer.path=runs/panel/points/corpora/tokenizer.model

The three trunks run first, then 36 branches; what was stopped goes on by the same line.
"""

import itertools

from ml_collections import ConfigDict

from configs import quickstart

TOKENS = 1_024_000  # of the run, did it go to its end
SHARES = (0.05, 0.25, 0.5)  # of it, at which batches part: multiples of the first, which is saved
WINDOW = 0.256  # of it, tokens of each branch: whole updates of every batch
TIMES = (1, 2, 4, 8)
SEEDS = 3


def get_config() -> ConfigDict:
  """The quickstart's model with its smallest batch of one row of documents a step."""
  c = quickstart.get_config()
  c.name = 'critical_batch'
  c.train.tokens = TOKENS
  c.train.batch_tokens = 1024
  c.train.stages = (dict(name='all', fraction=1.0, mixture=dict(web=0.8, pdf=0.2)),)
  c.train.keep = 100
  c.train.eval_every = 10_000  # at the end alone
  c.train.log_every = 10
  c.optimizer.learning_rate = 2e-3  # at this batch, half the quickstart's
  c.optimizer.warmup_steps = 20
  c.diagnostics.every = 50
  c.eval.tasks = ()
  c.sample.prompts = ()
  c.train.checkpoint_every = round(TOKENS / c.train.batch_tokens * SHARES[0])
  return c


def sweep() -> list[dict]:
  """Of each seed the run that all branch off, and a branch for each batch and place."""
  every = get_config().train.batch_tokens
  steps = TOKENS // every
  points: list[dict] = []
  for seed in range(SEEDS):
    points.append({
      'name': f'trunk-{seed}', 'aside': True, 'seed': seed, 'optimizer.schedule': 'constant',
      'train.tokens': round(steps * SHARES[-1]) * every, 'optimizer.ramp': ((0.0, 1),)})
    for share, times in itertools.product(SHARES, TIMES):
      end, group = share + WINDOW, f'at {share:g}, batch x{times}'
      points.append({
        'name': f'{group}-{seed}', 'group': group, 'against': f'at {share:g}, batch x1',
        'seed': seed,
        'train.tokens': round(steps * end) * every,
        'optimizer.decay_steps': round(steps * WINDOW / 2),
        'train.branch_from': f'@trunk-{seed}/checkpoints/{round(steps * share)}',
        'optimizer.ramp': ((0.0, 1), (share / end, times)),
      })
  return points

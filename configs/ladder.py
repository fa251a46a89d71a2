"""A ladder of small models, its scaling law, and a larger run that the law predicts unseen.

  python -m experiments.sweep --config=configs/ladder.py --workdir=runs/ladder

Of each width one run at a constant learning rate; cooldowns branch off its checkpoints, so that
three lengths cost little more than the longest (Hägele et al., arXiv:2405.18392). The learning
rate is that of the quickstart's width, carried over by muP. `target` has more than four times the
compute of the largest rung.
"""

from ml_collections import ConfigDict

from configs import quickstart

BATCH = 2048  # tokens
COOLDOWN = 0.2  # of a run's steps
WIDTHS, LENGTHS = (32, 48, 64, 96), (100, 200, 400)  # embed_dim; steps, cooldown included
TARGET = (128, 1000)


def get_config() -> ConfigDict:
  c = quickstart.get_config()
  c.name = 'ladder'
  c.parametrization.name = 'mup'
  c.parametrization.base_width, c.parametrization.base_depth = 128, 4
  c.train.batch_tokens = BATCH
  c.train.stages = (dict(name='all', fraction=1.0, mixture=dict(web=0.8, pdf=0.2)),)
  c.train.keep = 100
  c.train.checkpoint_every = int((1 - COOLDOWN) * LENGTHS[0])
  c.train.eval_every = 10_000  # at the end alone
  c.optimizer.warmup_steps = 10
  c.optimizer.decay_shape = '1-sqrt'
  c.diagnostics.every = 0
  c.eval.tasks = ()
  c.sample.tokens = 16
  return c


def shape(width: int) -> dict:
  return {'model.embed_dim': width, 'model.mlp_dim': 3 * width, 'model.head_dim': 16,
          'model.num_heads': width // 16, 'model.num_kv_heads': 1}


def sweep() -> list[dict]:
  points = []
  for width in WIDTHS:
    stable = int((1 - COOLDOWN) * LENGTHS[-1])
    points.append({'name': f'd{width}-stable', **shape(width), 'train.tokens': BATCH * stable,
                   'optimizer.schedule': 'constant'})
    points += [
      {'name': f'd{width}-{steps}', 'law': 'fit', **shape(width), 'train.tokens': BATCH * steps,
       'train.branch_from': f'@d{width}-stable/checkpoints/{int((1 - COOLDOWN) * steps)}',
       'optimizer.decay_steps': int(COOLDOWN * steps)} for steps in LENGTHS]
  width, steps = TARGET
  return [*points, {'name': 'target', 'law': 'predict', **shape(width),
                    'train.tokens': BATCH * steps, 'optimizer.decay_steps': int(COOLDOWN * steps)}]

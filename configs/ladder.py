"""A ladder of small models, its scaling law, and a larger run that the law predicts unseen.

  python -m experiments.sweep --config=configs/ladder.py --workdir=runs/ladder
  python -m experiments.sweep --config=configs/ladder.py:size=gpu --workdir=runs/ladder --parallel=4

Of each width one run at a constant learning rate; cooldowns branch off its checkpoints, so that
three lengths cost little more than the longest (Hägele et al., arXiv:2405.18392). The learning
rate is that of the quickstart's width, carried over by muP, which knows that all have one key head.
`target` has more than four times the
compute of the largest rung.
"""

import dataclasses

from ml_collections import ConfigDict

from configs import base, quickstart

COOLDOWN = 0.2  # of a run's steps
KV_HEADS = 1  # of every width: the least of the widths have few heads


@dataclasses.dataclass(frozen=True)
class Size:
  """How large the ladder is."""

  batch: int  # tokens
  seq_len: int
  layers: int
  head_dim: int
  widths: tuple[int, ...]  # embed_dim of the rungs
  lengths: tuple[int, ...]  # their steps, cooldown included
  target: tuple[int, int]  # embed_dim, steps


SIZES = {
  'cpu': Size(2048, 256, 4, 16, (32, 48, 64, 96), (100, 200, 400), (128, 1000)),
  'gpu': Size(16384, 512, 8, 64, (128, 192, 256, 384, 512), (250, 500, 1000), (768, 2000)),
}


def get_config(arg: str = '') -> ConfigDict:
  """The model and training of a size of ladder; the sweep sets widths and lengths."""
  name = base.parse_arg(arg, size=SIZES).size
  size = SIZES[name]
  c = quickstart.get_config()
  c.name = 'ladder'
  c.parametrization.name = 'mup'
  c.parametrization.base_width, c.parametrization.base_depth = 128, size.layers
  c.parametrization.base_kv_heads = KV_HEADS
  c.model.num_layers = size.layers
  c.data.seq_len = size.seq_len
  c.train.batch_tokens = size.batch
  c.train.stages = (dict(name='all', fraction=1.0, mixture=dict(web=0.8, pdf=0.2)),)
  c.train.keep = 100
  c.train.checkpoint_every = int((1 - COOLDOWN) * size.lengths[0])
  c.train.eval_every = 10_000  # at the end alone
  c.optimizer.warmup_steps = size.lengths[0] // 10
  c.optimizer.decay_shape = '1-sqrt'
  c.diagnostics.every = 0
  c.eval.tasks = ()
  c.sample.prompts = ()
  if name == 'gpu':
    c.model.dtype = 'bfloat16'
    c.tokenizer.vocab_size = 8192
    c.train.loss_chunk = 512
  return c


def shape(width: int, size: Size = SIZES['cpu']) -> dict:
  """The fields of the model of this width."""
  return {'model.embed_dim': width, 'model.mlp_dim': 3 * width, 'model.head_dim': size.head_dim,
          'model.num_heads': width // size.head_dim, 'model.num_kv_heads': KV_HEADS}


def sweep(arg: str = '') -> list[dict]:
  """The target, and of each width a run whose checkpoints the shorter ones branch off."""
  size = SIZES[base.parse_arg(arg, size=SIZES).size]
  width, steps = size.target  # first, since it takes longest
  points = [{'name': 'target', 'law': 'predict', **shape(width, size),
             'train.tokens': size.batch * steps, 'optimizer.decay_steps': int(COOLDOWN * steps)}]
  for width in size.widths:
    stable = int((1 - COOLDOWN) * size.lengths[-1])
    points.append({'name': f'd{width}-stable', 'aside': True, **shape(width, size),
                   'train.tokens': size.batch * stable, 'optimizer.schedule': 'constant'})
    points += [
      {'name': f'd{width}-{steps}', 'law': 'fit', **shape(width, size),
       'train.tokens': size.batch * steps,
       'train.branch_from': f'@d{width}-stable/checkpoints/{int((1 - COOLDOWN) * steps)}',
       'optimizer.decay_steps': int(COOLDOWN * steps)} for steps in size.lengths]
  return points

"""What each pillar is worth, alone and among the others: data, architecture, objective, optimizer,
hyperparameters.

  python -m experiments.sweep --config=configs/pillars.py --workdir=runs/pillars --parallel=2
  python -m experiments.sweep --config=configs/pillars.py:good,poor,1000000 --config.corpora=…

With every seed: none of them, each alone, all but each, and all. The sweep's page tells the effect
of each alone and among all, and their difference, the interaction. Every run has the same tokens
and about the same parameters, and is judged on held-out clean documents. A run without a pillar has
what a careful person would type instead: AdamW at AdamW's own settings, and in place of tuned
hyperparameters those of a published law. After the colon may stand the names of two corpora that
--config.corpora brings, tokenised by --config.tokenizer.path, to be the pillar of data instead of
the curation of configs/data_ablation.py; then the tokens of a run.
"""

import itertools

from ml_collections import ConfigDict

from configs import data_ablation, quickstart

SEEDS = 5
MATRICES = 786_432  # parameters of the shape 'tiny' without embeddings
TOKENS = 200_000  # of a run on two cores; the teacher has three times as many
# What a run has in place of a pillar that it lacks.
WITHOUT = {
  'data': data_ablation.RAW,  # as extracted: all languages, unfiltered, near-duplicates kept
  # The blocks of GPT-2 (with RoPE): GELU, LayerNorm, every layer rotates; as many parameters.
  'architecture': {'model.activation': 'gelu', 'model.norm': 'layer', 'model.nope_interval': 0,
                   'model.mlp_dim': 576},
  'objective': {'distill.teacher': ''},  # cross entropy alone, without the teacher beside it
  # Warmed up four times as long: with Muon's warm-up AdamW lost .27 in the contest of optimizers.
  'optimizer': {'optimizer.name': 'adamw', 'optimizer.warmup_fraction': 0.2},
  'hyperparameters': {},  # of the law, see `careful`
}  # fmt: skip
TEACHER = {'model.embed_dim': 192, 'model.mlp_dim': 576, 'model.num_heads': 6}


def step_law(matrices: int, tokens: int) -> tuple[float, float]:
  """(learning rate, batch in tokens) that Step Law (arXiv 2503.04715) gives AdamW.

  Args:
    matrices: parameters without embeddings.
    tokens: of the run.
  """
  return 1.79 * matrices**-0.713 * tokens**0.307, 0.58 * tokens**0.571


def careful(tokens: int) -> dict:
  """Hyperparameters that nobody tuned here: the law's, with a cosine to a tenth of the peak."""
  rate, batch = step_law(MATRICES, tokens)
  row = quickstart.get_config().data.seq_len
  return {'optimizer.learning_rate': float(f'{rate:.2g}'), 'optimizer.schedule': 'cosine',
          'optimizer.floor': 0.1, 'train.batch_tokens': max(1, round(batch / row)) * row}


def get_config(arg: str = '') -> ConfigDict:
  """What all runs share; the sweep says which pillars a run has."""
  c = quickstart.get_config()
  c.name = 'pillars'
  c.train.tokens = _tokens(arg)
  c.train.stages = data_ablation.mixture(web=1.0)['train.stages']
  c.train.eval_every = 1000
  c.train.log_every = 10
  c.distill.weight = 0.5
  c.diagnostics.every = 0
  c.eval.documents = 60
  c.eval.tasks = ()
  c.sample.prompts = ()
  return c


def sweep(arg: str = '') -> list[dict]:
  """None of the pillars, each alone, all but each, and all, with every seed; and the teacher."""
  every = tuple(WITHOUT)
  cells = [(), *((p,) for p in every), *(tuple(q for q in every if q != p) for p in every), every]
  teacher = {'name': 'teacher', 'aside': True, 'train.tokens': 3 * _tokens(arg), **TEACHER}
  law = {'hyperparameters': careful(_tokens(arg))}
  if arg:
    good, poor = arg.split(',')[:2]
    with_all = data_ablation.mixture(**{good: 1.0}) | {'eval.corpora': (good,)}
    without = WITHOUT | law | {'data': data_ablation.mixture(**{poor: 1.0})}
    points = [{**teacher, **with_all}]
  else:
    tokenizer = {'tokenizer.path': '@corpora/tokenizer.model'}
    with_all = tokenizer | {'corpora': 'good=@corpora/corpora/web', 'eval.corpora': ('good',)}
    without = WITHOUT | law
    points = [{'name': 'corpora', 'aside': True, 'train.tokens': 2048},
              {**teacher, **tokenizer}]
  for seed, factors in itertools.product(range(SEEDS), cells):
    name = {(): 'none', every: 'all'}.get(factors) or (
      factors[0] if len(factors) == 1 else
      f'all but {next(p for p in every if p not in factors)}')
    fields = {**with_all, 'distill.teacher': '@teacher/checkpoints'}
    for pillar in every:
      if pillar not in factors:
        fields |= without[pillar]
    points.append(
      {'name': f'{name}-{seed}', 'group': name, 'factors': factors, 'seed': seed, **fields})
  return points


def _tokens(arg: str) -> int:
  return int(arg.split(',')[2]) if arg.count(',') == 2 else TOKENS

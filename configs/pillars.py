"""What each pillar is worth, alone and among the others: data, architecture, objective, optimizer,
hyperparameters.

  python -m experiments.sweep --config=configs/pillars.py --workdir=runs/pillars --parallel=2

With every seed: none of them, each alone, all but each, and all. The sweep's page tells the effect
of each alone and among all, and their difference, the interaction. Every run has the same tokens
and about the same parameters, and is judged on held-out clean documents.
"""

from ml_collections import ConfigDict

from configs import data_ablation, quickstart

SEEDS = 3
TOKENS = 150_000
# What a run has in place of a pillar that it lacks.
WITHOUT = {
  'data': data_ablation.RAW,  # as extracted: all languages, unfiltered, near-duplicates kept
  # The blocks of GPT-2 (with RoPE): GELU, LayerNorm, every layer rotates; as many parameters.
  'architecture': {'model.activation': 'gelu', 'model.norm': 'layer', 'model.nope_interval': 0,
                   'model.mlp_dim': 288},
  'objective': {'distill.teacher': ''},  # cross entropy alone, without the teacher beside it
  'optimizer': {'optimizer.name': 'adamw'},
  # GPT-2's and GPT-3's of its smallest size, and a larger batch.
  'hyperparameters': {'optimizer.learning_rate': 6e-4, 'optimizer.schedule': 'cosine',
                      'train.batch_tokens': 8192},
}  # fmt: skip
TEACHER = {'model.embed_dim': 128, 'model.mlp_dim': 384, 'model.num_heads': 4,
           'train.tokens': 3 * TOKENS}  # fmt: skip


def get_config() -> ConfigDict:
  c = quickstart.get_config()
  c.name = 'pillars'
  c.model.embed_dim, c.model.mlp_dim, c.model.num_heads = 64, 192, 2
  c.train.tokens = TOKENS
  c.train.stages = data_ablation.mixture(web=1.0)['train.stages']
  c.train.eval_every = 1000
  c.train.log_every = 10
  c.distill.weight = 0.5
  c.diagnostics.every = 0
  c.eval.documents = 60
  c.eval.tasks = ()
  c.sample.prompts = ()
  return c


def sweep() -> list[dict]:
  every = tuple(WITHOUT)
  cells = [(), *((p,) for p in every), *(tuple(q for q in every if q != p) for p in every), every]
  tokenizer = {'tokenizer.path': '@corpora/tokenizer.model'}
  judged = {'corpora': 'good=@corpora/corpora/web', 'eval.corpora': ('good',)}
  points = [{'name': 'corpora', 'aside': True, 'train.tokens': 2048},
            {'name': 'teacher', 'aside': True, **tokenizer, **TEACHER}]
  for factors in cells:
    name = {(): 'none', every: 'all'}.get(factors) or (
      '+'.join(factors) if len(factors) == 1 else
      f'all but {next(p for p in every if p not in factors)}')
    fields = {'distill.teacher': '@teacher/checkpoints', **tokenizer, **judged}
    for pillar in every:
      if pillar not in factors:
        fields |= WITHOUT[pillar]
    points += [{'name': f'{name}-{seed}', 'group': name, 'factors': factors, 'seed': seed, **fields}
               for seed in range(SEEDS)]
  return points

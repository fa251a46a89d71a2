"""Which data make the better model? The same small model on variants of a corpus, over seeds.

  python -m experiments.sweep --config=configs/data_ablation.py --workdir=runs/data
  python -m experiments.sweep --config=configs/data_ablation.py:panel …   # each filter left out
  python -m experiments.sweep --config=configs/data_ablation.py:clean,raw,judge=news=DIR …
  python -m experiments.sweep --config=configs/data_ablation.py:clean,raw,web*.8+pdf*.2 …

Variants stand after the colon; the first is what the others are compared with. One is a key of
VARIANTS, which is curated as it says from `web.input` and `pdf.input`, or a mixture NAME*WEIGHT+…
of corpora, among them those that --config.corpora=NAME=DIR,… brings, such as another project's.
`panel` is the clean corpus and it without each filter in turn, as FineWeb decided which to have;
the page's verdicts are by Holm's method over all of them.

All are judged on the same held-out documents: those of the clean corpora (good_web, good_pdf),
which the filters have chosen, those of the raw one (all_web), which none has, and with
judge=NAME=DIR of a corpus that has nothing to do with either. They are chosen by id, so that none
of them is in any variant's training set (a near-duplicate of one may be in a variant that keeps
those). With corpora of your own give --config.eval.corpora="('NAME',)", and
--config.tokenizer.path if they are tokens. The tokenizer is that of the clean corpora too.

No run goes through its corpus twice (train.max_epochs), so that all see as many different tokens,
which the page says; filters cost text, and a comparison with repeats is of amounts too. A corpus
that is too small is refused: lower train.tokens, or give more (pdf50 needs more PDFs). The
learning rate stays constant, so that a point of a curve is a run of that length, and tokens to a
given loss compare.
"""

import itertools

from ml_collections import ConfigDict

from configs import quickstart

SEEDS = 5
RAW = {'web.filters': 'none', 'web.minhash': 'none', 'web.languages': (),
       'web.min_language_score': 0.0}  # fmt: skip


def mixture(**weights: float) -> dict:
  """The fields of one stage with these weights of corpora."""
  return {'train.stages': (dict(name='all', fraction=1.0, mixture=weights),)}


VARIANTS = {
  'clean': mixture(web=1.0),
  'raw': mixture(web=1.0) | RAW,  # all languages, no filter, no near-duplicate dropped
  'no_filters': mixture(web=1.0) | {'web.filters': 'none'},
  'no_repetition': mixture(web=1.0) | {'web.filters': 'docs_quality,docs_lines'},
  'no_quality': mixture(web=1.0) | {'web.filters': 'docs_repetition,docs_lines'},
  'no_lines': mixture(web=1.0) | {'web.filters': 'docs_repetition,docs_quality'},
  'no_minhash': mixture(web=1.0) | {'web.minhash': 'none'},
  'no_language': mixture(web=1.0) | {'web.languages': (), 'web.min_language_score': 0.0},
  'pdf10': mixture(web=0.9, pdf=0.1),
  'pdf25': mixture(web=0.75, pdf=0.25),  # as much as FinePDFs advises at most
  'pdf50': mixture(web=0.5, pdf=0.5),
  'pdf': mixture(pdf=1.0),
}
PANEL = ('clean', 'no_repetition', 'no_quality', 'no_lines', 'no_minhash', 'no_language')


def get_config(arg: str = '') -> ConfigDict:
  """The quickstart with a constant learning rate and more held-out text."""
  del arg  # of sweep()
  c = quickstart.get_config()
  c.name = 'data_ablation'
  c.train.max_epochs = 1.0
  c.train.tokens = 1_400_000  # a quarter of which are fewer than the quickstart's PDFs have
  c.train.eval_every = 40
  c.train.eval_documents = 64
  c.optimizer.schedule = 'constant'
  c.diagnostics.every = 0
  return c


def sweep(arg: str = '') -> list[dict]:
  """Points of the variants that `arg` names, 'clean,raw,pdf25' if none, with every seed.

  Raises ValueError for a variant that is neither in VARIANTS nor a mixture.
  """
  parts = (arg or 'clean,raw,pdf25').replace('panel', ','.join(PANEL)).split(',')
  judges = [part.removeprefix('judge=') for part in parts if part.startswith('judge=')]
  names = [part for part in parts if not part.startswith('judge=')]
  if wrong := [judge for judge in judges if '=' not in judge]:
    raise ValueError(f'judge={wrong[0]}: give judge=NAME=DIR, the directory of a corpus')
  aside = {'aside': True, 'train.tokens': 2048, 'train.max_epochs': 0.0, 'eval.tasks': ()}
  curated = {
    'tokenizer.path': '@corpora/tokenizer.model',
    'eval.corpora': ('good_web', 'good_pdf', 'all_web', *(j.partition('=')[0] for j in judges)),
    'corpora': ','.join(('good_web=@corpora/corpora/web', 'good_pdf=@corpora/corpora/pdf',
                         'all_web=@raw_corpora/corpora/web', *judges))}
  points = [
    {'name': 'corpora', **aside, **mixture(web=0.5, pdf=0.5)},
    {'name': 'raw_corpora', **aside, **VARIANTS['raw'], 'tokenizer.path':
     '@corpora/tokenizer.model'}] if VARIANTS.keys() & names else []
  for seed, name in itertools.product(range(SEEDS), names):
    fields = curated | VARIANTS[name] if name in VARIANTS else _mixture_of(name)
    points.append({'name': f'{name}-{seed}', 'group': name, 'seed': seed, **fields})
  return points


def _mixture_of(name: str) -> dict:
  weights = {}
  for part in name.split('+'):
    corpus, _, weight = part.partition('*')
    try:
      weights[corpus] = float(weight or 1)
    except ValueError:
      raise ValueError(f'variant {name!r}: give NAME*WEIGHT+NAME*WEIGHT, or one of '
                       f'{", ".join(VARIANTS)}') from None
  return mixture(**weights)

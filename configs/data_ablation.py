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

Where there is a GPU and no Beam, the variants' tokens come along, made ahead (the first two lines,
on any machine; one with a crawl of its own gives that instead of the first line's), of a judge all
documents; several processes share a GPU, and a run of this size takes seconds of it:

  python -m experiments.prepare --config=configs/quickstart.py --workdir=runs/docs
  python -m experiments.prepare --sweep --config=configs/data_ablation.py:panel \\
    --workdir=runs/panel --config.web.input='runs/docs/steps/selfdocs-*/web/*.warc.gz' \\
    --config.pdf.input='runs/docs/steps/selfdocs-*/pdf/*.pdf'
  python -m data_beam.web --input=NEWS.warc.gz --output=runs/news --name=news
  python -m data_beam.tokenize_corpus --input=runs/news/news/1.0.0 --output=runs/panel \\
    --name=news --holdout=0.999 --holdout_shared=1 \\
    --tokenizer=runs/panel/points/corpora/tokenizer.model
  tar czf panel.tgz runs/panel/news runs/panel/points runs/panel/steps/tokenize*

and there, after `tar xzf panel.tgz`,

  VARIANTS=panel,tokens=runs/panel,judge=news=runs/panel/news/1.0.0
  python -m experiments.sweep --config=configs/data_ablation.py:$VARIANTS \\
    --workdir=runs/panel_runs --parallel=6

`tokens=` reads of each variant what it has with seed 0. Arms whose manifests have the same numbers
of documents and tokens are the same text (a crawl on which a filter finds nothing): leave them out.

Whether text that a checkpoint writes on from a small corpus helps to train on it (Beam writes it,
so that is done before, too; a writer that follows requests takes --prompt=faq and neither --parts
nor --keep_cut). A quarter of the documents is held out, in all lines by the same rule, for a few
judge badly; --limit is such that the last line's tokens are twice those that `real` has to train
on; two answers of --max_tokens fill a row of data.seq_len, as train.tokens counts empty places too;
and --parallel is more than the server answers at a time, which sorts them by length:

  python -m data_beam.tables export --input=runs/panel/points/corpora/corpora/web/1.0.0 \\
    --output=runs/anew/clean --format=jsonl
  python -m data_beam.tables import --input 'runs/anew/clean/**/*.jsonl*' --layout=corpus \\
    --limit=230 --output=runs/anew --name=real
  MODEL=runs/panel/points/corpora/tokenizer.model
  TOKENS="--tokenizer=$MODEL --output=runs/anew/tokens --holdout=.25"
  python -m data_beam.tokenize_corpus --input=runs/anew/real/1.0.0 --name=real $TOKENS
  python -m data_beam.tokenize_corpus --name=clean $TOKENS \\
    --input=runs/panel/points/corpora/corpora/web/1.0.0
  python -m experiments.run --config=configs/quickstart.py --workdir=runs/anew/writer \\
    --config.corpora=real=runs/anew/tokens/real/1.0.0 --config.train.tokens=1200000 \\
    --config.tokenizer.path=$MODEL
  printf '{text}' >runs/anew/prompt.txt
  python -m experiments.serve --checkpoint=runs/anew/writer --batch_size=64 --port=8000 &
  python -m data_beam.rephrase --input=runs/anew/real/1.0.0 --output=runs/anew --name=anew \\
    --server=http://localhost:8000 --model=writer --prompt=runs/anew/prompt.txt --parts \\
    --most=300 --max_tokens=126 --keep_cut --temperature=0.8 --holdout=.25 --parallel=128 \\
    --against runs/anew/real/1.0.0
  kill %1
  python -m data_beam.tokenize_corpus --input=runs/anew/anew/1.0.0 --name=anew $TOKENS --holdout=0
  tar czf anew.tgz runs/anew/tokens

and where the GPU is, beside the panel's tokens,

  TRAIN=real=runs/anew/tokens/real/1.0.0,anew=runs/anew/tokens/anew/1.0.0
  JUDGES=clean=runs/anew/tokens/clean/1.0.0,news=runs/panel/news/1.0.0
  python -m experiments.sweep --workdir=runs/anew_runs --parallel=6 \\
    --config='configs/data_ablation.py:real*1,real*.5+anew*.5' --config.corpora=$TRAIN,$JUDGES \\
    --config.eval.corpora="('clean','news')" --config.train.tokens=790000 \\
    --config.train.max_epochs=0 \\
    --config.tokenizer.path=runs/panel/points/corpora/tokenizer.model
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
COMMON = {'good_web': '@corpora/corpora/web', 'good_pdf': '@corpora/corpora/pdf',
          'all_web': '@raw_corpora/corpora/web'}  # what judges every variant
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
  c.sample.prompts = ()
  return c


def sweep(arg: str = '') -> list[dict]:
  """Points of the variants that `arg` names, 'clean,raw,pdf25' if none, with every seed.

  Raises ValueError for a variant that is neither in VARIANTS nor a mixture, or a judge without a
  corpus.
  """
  parts = (arg or 'clean,raw,pdf25').split(',')
  judges = [part.removeprefix('judge=') for part in parts if part.startswith('judge=')]
  made = [part.removeprefix('tokens=') for part in parts if part.startswith('tokens=')]
  parts = [part for part in parts if not part.startswith(('judge=', 'tokens='))]
  names = [name for part in parts for name in (PANEL if part == 'panel' else [part])]
  if wrong := [judge for judge in judges if '=' not in judge]:
    raise ValueError(f'judge={wrong[0]}: give judge=NAME=DIR, the directory of a corpus')
  aside = {'aside': True, 'train.tokens': 2048, 'train.max_epochs': 0.0, 'eval.tasks': ()}
  curated = {
    'tokenizer.path': '@corpora/tokenizer.model',
    'eval.corpora': (*COMMON, *(j.partition('=')[0] for j in judges)),
    'corpora': ','.join((*(f'{name}={path}' for name, path in COMMON.items()), *judges))}
  points = [
    {'name': 'corpora', **aside, **mixture(web=0.5, pdf=0.5)},
    {'name': 'raw_corpora', **aside, **VARIANTS['raw'], 'tokenizer.path':
     '@corpora/tokenizer.model'}] if VARIANTS.keys() & names and not made else []
  for seed, name in itertools.product(range(SEEDS), names):
    fields = curated | VARIANTS[name] if name in VARIANTS else _mixture_of(name)
    if made and name in VARIANTS:
      fields = _made(name, fields, made[0], judges)
    points.append({'name': f'{name}-{seed}', 'group': name, 'seed': seed, **fields})
  return points


def _made(name: str, fields: dict, folder: str, judges: list[str]) -> dict:
  """Fields by which a variant reads its tokens, and the judges', where they were made ahead."""
  tokens = f'{folder}/points/{name}-0/tokens'
  own = dict(fields['train.stages'][0]['mixture'])
  return {k: v for k, v in fields.items() if not k.startswith('web.')} | mixture(
    **{f'{name}_{source}': weight for source, weight in own.items()}) | {
    'tokenizer.path': f'{folder}/points/corpora/tokenizer.model',
    'corpora': ','.join((*(f'{name}_{source}={tokens}/{source}/1.0.0' for source in own),
                         *(f'{common}={tokens}/{common}/1.0.0' for common in COMMON), *judges))}


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

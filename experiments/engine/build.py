"""Which steps a config has, and what each depends on."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from data_beam.options import PdfOptions, WebOptions
from experiments.engine import config as config_lib
from experiments.engine import steps as steps_lib
from experiments.engine.corpora import foreign_corpora, tokenizer_facts
from experiments.engine.graph import Step


def build_steps(c: ConfigDict, workdir: str) -> list[Step]:
  """The steps of the experiment that the resolved config `c` describes, in order."""
  from smoljax.checkpoints import load

  if c.coordinate_check.widths:
    sections = {k: c[k].to_dict() for k in ('coordinate_check', 'optimizer')}
    return [Step(
      'coordinate_check', functools.partial(steps_lib.run_coordinate_check, c=c), sections,
      cost='a few steps of models of several widths and depths', links={'report': 'report'})]
  corpora = [name for name in ('web', 'pdf') if c[name].enabled]
  foreign = foreign_corpora(c)
  used = sorted({name for stage in c.train.stages for name in stage['mixture']})
  targets = sorted(c.eval.corpora) or used
  for field, names in (('train.stages', used), ('eval.corpora', targets)):
    if unknown := set(names) - {*corpora, *foreign}:
      raise ValueError(
        f'{field} names the corpus {", ".join(sorted(unknown))}, which no step makes; '
        f'there are: {", ".join([*corpora, *foreign])}; --config.corpora brings others'
      )

  def step(name: str, run: Callable, sections: Sequence[str] = (), **kwargs: Any) -> Step:
    config = {s: c[s].to_dict() if isinstance(c[s], ConfigDict) else c[s] for s in sections}
    return Step(name, functools.partial(run, c=c), config, **kwargs)

  docs = []
  if any(not c[name].input for name in corpora):
    from experiments.quickstart import articles

    docs = [
      step(
        'selfdocs',
        steps_lib.run_crawl,
        ['selfdocs', 'seed'],
        outside=articles.fingerprint(),
        cost=f'{c.selfdocs.pages:,} web pages and {c.selfdocs.pdfs} PDFs from this machine’s docs',
      )
    ]
  steps = [*docs]
  curated = {}
  for name, run, options in (('web', steps_lib.run_web, WebOptions),
                             ('pdf', steps_lib.run_pdf, PdfOptions)):
    if name not in corpora:
      continue
    found = steps_lib._find(c[name].input, f'--config.{name}.input')
    beside = steps_lib._find(','.join(options.of(c[name]).files()), f'--config.{name}')
    size = sum(f['bytes'] or 0 for f in found)
    source = f'{len(found)} files, {size / 1e6:.1f} MB' if found else 'the documents above'
    curated[name] = step(
      name,
      run,
      [name],
      needs=[] if c[name].input else docs,
      outside=[found, beside] if beside else found,
      cost=f'curating {source}',
      links={f'corpora/{n}': n for n in (name, f'{name}_rejects')},
    )
  for name, manifest in foreign.items():
    made = 'tokenize_' * (manifest['kind'] == 'tokenised') + name
    curated[name] = Step(
      made,
      functools.partial(steps_lib.run_foreign_tokens, manifest=manifest, name=name),
      outside=manifest,
      cost=f'{manifest["documents"]:,} documents of {manifest["path"]}',
      links={f'{"tokens" if made != name else "corpora"}/{name}': name},
    )
  curated = {n: s for n, s in curated.items() if n in corpora or n in {*used, *targets}}
  steps += curated.values()

  tokenizer = []
  if not c.tokenizer.path:
    tokenizer = [
      step(
        'tokenizer',
        steps_lib.run_tokenizer,
        ['tokenizer', 'seed'],
        needs=[s for name, s in curated.items() if name in used],
        cost=f'BPE of {c.tokenizer.vocab_size:,} pieces',
        links={'tokenizer.model': 'tokenizer.model'},
      )
    ]
  steps += tokenizer
  given = tokenizer_facts(c) if c.tokenizer.path else []
  tokens = {
    name: curated[name] if curated[name].name.startswith('tokenize_') else step(
      f'tokenize_{name}',
      functools.partial(steps_lib.run_tokenize, corpus=name),
      ['tokenize'],
      needs=[curated[name], *tokenizer],
      outside=given,
      cost=f'the corpus {name!r} to token documents',
      links={f'tokens/{name}': name},
    )
    for name in sorted({*used, *targets})
  }
  steps += [s for s in tokens.values() if s not in steps]

  teacher = load.weights_fingerprint(c.distill.teacher) if c.distill.teacher else None
  caches = []
  if teacher and c.distill.cache != 'none':
    what = {k: c.distill[k] for k in ('cache', 'draws', 'temperature')}
    caches = [
      Step(
        f'teacher_{name}',
        functools.partial(steps_lib.run_teacher_cache, c=c, corpus=name),
        {**what, 'seq_len': c.data.seq_len, 'seed': c.seed},
        needs=[tokens[name]],
        outside=teacher,
        resumable=True,
        cost=f'what the teacher says of {name!r}',
        links={f'teacher/{name}': name},
      )
      for name in used
    ]
  steps += caches

  flops = config_lib.model_config(c, c.tokenizer.vocab_size).flops_per_token(c.data.seq_len)
  before = c.train.init_from or c.train.branch_from
  train = step(
    'train',
    functools.partial(steps_lib.run_train, corpora=used, targets=targets),
    ['seed', 'model', 'data', 'train', 'mesh', 'optimizer', 'parametrization', 'mtp', 'distill',
     'guard', 'diagnostics'],
    needs=[*tokens.values(), *caches, *tokenizer],
    outside=[load.weights_fingerprint(before) if before else None, teacher],
    resumable=True,
    together=True,
    cost=f'{c.train.steps:,} steps, {c.train.tokens:,} tokens, {flops * c.train.tokens:.2e} FLOPs',
    links={n: n for n in ('checkpoints', 'metrics.jsonl', 'events.jsonl', 'tensorboard')},
  )
  evaluate = step(
    'evaluate',
    functools.partial(steps_lib.run_evaluate, targets=targets),
    ['eval', 'seed'],
    needs=[train, *(tokens[name] for name in targets), *tokenizer],
    version=2,
    cost=f'bits per byte on {", ".join(targets)}; tasks: {", ".join(c.eval.tasks) or "none"}',
    links={'evals': 'evals'},
  )
  export = step(
    'export',
    steps_lib.run_export,
    ['sample', 'seed'],
    needs=[train, *tokenizer],
    cost='a Hugging Face folder, and sample text',
    links={n: n for n in ['export', *['samples.json'] * bool(c.sample.prompts)]},
  )
  report = Step(
    'report',
    functools.partial(steps_lib.run_report, workdir=workdir),
    needs=[*steps, train, evaluate, export],
    cost='one page',
    links={'report': 'report'},
  )
  return [*steps, train, evaluate, export, report]

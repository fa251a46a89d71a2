"""Which steps a config has, and what each depends on."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from experiments.engine import config as config_lib
from experiments.engine import steps as steps_lib
from experiments.engine.corpora import foreign_corpora, step_fault, tokenizer_facts
from experiments.engine.graph import Step
from smoljax import files


def build_steps(c: ConfigDict, workdir: str) -> list[Step]:
  """The steps of the experiment that the resolved config `c` describes, in order."""
  if c.coordinate_check.widths:
    return [_step(
      c, 'coordinate_check', steps_lib.run_coordinate_check, ['coordinate_check', 'optimizer'],
      cost='a few steps of models of several widths and depths', links={'report': 'report'})]
  foreign = foreign_corpora(c)
  used, targets = _corpora_named(c, foreign)
  curation = list(_curation(c))
  corpora = {s.name: s for s in curation if s.name in _CURATORS}
  # All that the config has, used here or not: the points of a sweep over them then hold out alike.
  corpora |= {name: _foreign(name, foreign[name]) for name in foreign
              if name in {*used, *targets} or config_lib.holds_out(c)}
  steps = curation + [s for s in corpora.values() if s not in curation]
  tokenizer = list(_tokenizer(c, [s for name, s in corpora.items() if name in used]))
  tokens = dict(_tokens(c, corpora, sorted({*used, *targets}), tokenizer))
  steps += tokenizer + [s for s in tokens.values() if s not in steps]
  caches = list(_teacher_caches(c, tokens, used))
  train = _merge(c) if c.merge.models else _train(
    c, tokens, used, targets, [*caches, *tokenizer])
  steps += [*caches, train, *_scores_and_exports(c, train, tokens, targets, tokenizer)]
  report = Step(
    'report',
    functools.partial(steps_lib.run_report, workdir=workdir),
    needs=steps,
    looks=False,
    cost='one page',
    links={'report': 'report'},
  )
  return [*steps, report]


def _step(
  c: ConfigDict, name: str, run: Callable, sections: Sequence[str] = (), **kwargs: Any
) -> Step:
  """A step that reads these sections (or fields) of the config."""
  config = {s: deciding(s, c[s]) for s in sections}
  return Step(name, functools.partial(run, c=c), config, **kwargs)


def deciding(name: str, value: Any) -> Any:
  """A field of the config, or a section without the fields that decide nothing of the result."""
  if not isinstance(value, ConfigDict):
    return value
  return {k: deciding(f'{name}.{k}', v) for k, v in value.items()
          if f'{name}.{k}' in _DECISIVE or not f'{name}.{k}'.startswith(_OPERATIONAL)}


def _corpora_named(c: ConfigDict, foreign: Mapping[str, dict]) -> tuple[list[str], list[str]]:
  """Names of the corpora to train on, and to evaluate on; ValueError for one that no step makes."""
  used = sorted({name for stage in c.train.stages for name in stage['mixture']})
  targets = sorted(c.eval.corpora) or used
  made = [*(name for name in _CURATORS if c[name].enabled), *foreign]
  for field, names in (('train.stages', used), ('eval.corpora', targets)):
    if unknown := set(names) - set(made):
      raise ValueError(
        f'{field} names the corpus {", ".join(sorted(unknown))}, which no step makes; '
        f'there are: {", ".join(made)}; --config.corpora brings others'
      )
  return used, targets


def _curation(c: ConfigDict) -> Iterator[Step]:
  """Corpora of the web, of PDFs and of conversations; where they have no input, the crawl of this
  machine's docs, and for conversations those made by rule."""
  enabled = [name for name in _CURATORS if c[name].enabled]
  crawl, rules = [], []
  if 'conversations' in enabled and not c.conversations.input:
    if not c.chains.number:
      raise ValueError('--config.conversations.input: give the JSONL or Parquet files of '
                       'conversations, have --config.chains.number made, or say '
                       '--config.conversations.enabled=False')
    rules = [_step(c, 'chains', steps_lib.run_chains, ['chains', 'seed'],
                   version=2, cost=f'{c.chains.number:,} conversations by rule')]
  if any(not c[name].input for name in enabled if name != 'conversations'):
    from experiments.quickstart import articles

    crawl = [_step(
      c,
      'selfdocs',
      steps_lib.run_crawl,
      ['selfdocs', 'seed'],
      outside=articles.fingerprint(),
      cost=f'{c.selfdocs.pages:,} web pages and {c.selfdocs.pdfs} PDFs from this machine’s docs',
    )]
  yield from [*crawl, *rules]
  for name in enabled:
    found = steps_lib.find_files(c[name].input, f'--config.{name}.input')
    lists = steps_lib.find_files(
      ','.join(config_lib.options(c, name).files()), f'--config.{name}')
    size = sum(f['bytes'] or 0 for f in found)
    source = f'{len(found)} files, {size / 1e6:.1f} MB' if found else 'the documents above'
    yield _step(
      c,
      name,
      _CURATORS[name],
      [name],
      needs=[] if c[name].input else rules if name == 'conversations' else crawl,
      outside=[found, lists] if lists else found,
      fault=step_fault,
      cost=f'curating {source}',
      links={f'corpora/{n}': n for n in (name, f'{name}_rejects')},
    )


def _foreign(name: str, manifest: Mapping[str, Any]) -> Step:
  """A corpus made elsewhere, of documents or already of tokens."""
  tokenised = manifest['kind'] == 'tokenised'
  return Step(
    f'tokenize_{name}' if tokenised else name,
    functools.partial(steps_lib.run_foreign_tokens, manifest=manifest, name=name),
    # It has its files' checksums. Where it lies decides nothing, but the link must lead there.
    outside={k: v for k, v in manifest.items() if k != 'path'},
    stands=functools.partial(steps_lib.foreign_stands, path=manifest['path'], name=name),
    cost=f'{manifest["documents"]:,} documents of {manifest["path"]}',
    links={f'{"tokens" if tokenised else "corpora"}/{name}': name},
  )


def _tokenizer(c: ConfigDict, corpora: Sequence[Step]) -> Iterator[Step]:
  """The tokenizer trained on these corpora, unless the config brings one."""
  if not c.tokenizer.path:
    yield _step(
      c,
      'tokenizer',
      steps_lib.run_tokenizer,
      ['tokenizer', 'seed'],
      needs=corpora,
      cost=f'BPE of {c.tokenizer.vocab_size:,} pieces',
      links={'tokenizer.model': 'tokenizer.model'},
    )


def _tokens(
  c: ConfigDict, corpora: Mapping[str, Step], names: Sequence[str], tokenizer: Sequence[Step]
) -> Iterator[tuple[str, Step]]:
  """(corpus, the step that leaves its tokens) of each name."""
  given = tokenizer_facts(c) if c.tokenizer.path else []  # read once, for all
  for name in names:
    others = {k: v for k, v in corpora.items() if k != name and config_lib.holds_out(c)}
    yield name, corpora[name] if corpora[name].name.startswith('tokenize_') else _step(
      c,
      f'tokenize_{name}',
      functools.partial(steps_lib.run_tokenize, corpus=name,
                        against={k: v.name for k, v in others.items()}),
      ['tokenize'],
      needs=[corpora[name], *others.values(), *tokenizer],
      outside=given,
      fault=step_fault,
      cost=f'the corpus {name!r} to token documents',
      links={f'tokens/{name}': name},
    )


def _teacher_caches(
  c: ConfigDict, tokens: Mapping[str, Step], used: Sequence[str]
) -> Iterator[Step]:
  """What the teacher says of each corpus, where the config has it stored ahead of training."""
  teacher = _weights(c.distill.teacher)
  if not teacher or c.distill.cache == 'none':
    return
  what = {k: c.distill[k] for k in ('cache', 'draws', 'temperature')}
  for name in used:
    yield Step(
      f'teacher_{name}',
      functools.partial(steps_lib.run_teacher_cache, c=c, corpus=name),
      {**what, 'seq_len': c.data.seq_len, 'seed': c.seed},
      needs=[tokens[name]],
      outside=teacher,
      resumable=True,
      fault=step_fault,
      cost=f'what the teacher says of {name!r}',
      links={f'teacher/{name}': name},
    )


def _train(
  c: ConfigDict, tokens: Mapping[str, Step], used: Sequence[str], targets: Sequence[str],
  needs: Sequence[Step],
) -> Step:
  flops = config_lib.model_config(c, c.tokenizer.vocab_size).flops_per_token(c.data.seq_len)
  return _step(
    c,
    'train',
    functools.partial(steps_lib.run_train, corpora=used, targets=targets),
    ['seed', 'model', 'data', 'train', 'mesh', 'optimizer', 'parametrization', 'mtp', 'distill',
     'guard', 'diagnostics'],
    needs=[*tokens.values(), *needs],
    outside=[_weights(c.train.init_from or c.train.branch_from), _weights(c.distill.teacher),
             *([_weights(c.train.reference)] if c.train.reference else [])],
    resumable=True,
    fault=steps_lib.checkpoint_fault,
    changeable=_CHANGEABLE,
    all_processes=True,
    cost=f'{c.train.steps:,} steps, {c.train.tokens:,} tokens, {flops * c.train.tokens:.2e} FLOPs',
    links={n: n for n in ('checkpoints', 'metrics.jsonl', 'events.jsonl', 'tensorboard')},
  )


def _merge(c: ConfigDict) -> Step:
  """A soup of other runs, where a run trains."""
  models = c.merge.models.split(',')
  return _step(
    c,
    'merge',
    steps_lib.run_merge,
    ['merge'],
    outside=[_weights(path) for path in models],
    cost=f'{c.merge.method} of {len(models)} models',
    links={'metrics.jsonl': 'metrics.jsonl'},
  )


def _scores_and_exports(
  c: ConfigDict, train: Step, tokens: Mapping[str, Step], targets: Sequence[str],
  tokenizer: Sequence[Step],
) -> Iterator[Step]:
  """What is made of a trained model: its scores, and the files others read it from."""
  yield _step(
    c,
    'evaluate',
    functools.partial(steps_lib.run_evaluate, targets=targets),
    ['eval', 'seed'],
    outside=_questions(c),
    needs=[train, *(tokens[name] for name in targets), *tokenizer],
    version=4,
    cost=f'bits per byte on {", ".join(targets)}; tasks: {", ".join(c.eval.tasks) or "none"}',
    links={'evals': 'evals'},
  )
  yield _step(
    c,
    'export',
    steps_lib.run_export,
    ['sample', 'export', 'seed'],
    needs=[train, *tokenizer],
    cost='a Hugging Face folder, and sample text',
    links={n: n for n in ['export', *['samples.json'] * bool(c.sample.prompts),
                          *['model.gguf'] * c.export.gguf]},
  )


def _questions(c: ConfigDict) -> list[str] | None:
  """Digests of the files of questions that anybody may change; None for none."""
  from smoljax.evals.tasks import own_file

  own = [own_file(name, c.eval.data) for name in c.eval.tasks]
  return [files.sha256(path) for path in own if path] or None


def _weights(path: str) -> Any:
  """What identifies the weights at a path; None for no path."""
  from smoljax.checkpoints import load

  return load.weights_fingerprint(path) if path else None


# Config section → what curates it.
_CURATORS = {'web': steps_lib.run_web, 'pdf': steps_lib.run_pdf,
             'conversations': steps_lib.run_conversations}

# Beginnings of names of config fields that say how a step is done, not what comes of it: they are
# in no address, so that they may differ where a run goes on.
_OPERATIONAL = (
  'train.keep', 'train.log_every', 'train.checkpoint_', 'train.eval_', 'train.tensorboard',
  'train.watchdog', 'train.compile_beside', 'train.loss_chunk', 'train.accumulate', 'train.flops',
  'model.remat', 'model.attention', 'model.scan_layers', 'mesh.', 'guard.', 'diagnostics.',
  'eval.batch_size', 'merge.models',
)
# Of those the ones that do: model fields that begin alike, and faults that are put in on purpose.
_DECISIVE = ('model.attention_bias', 'model.attention_softcap', 'guard.inject')
# Fields of training that may change on purpose in the midst of it.
_CHANGEABLE = (
  'train.tokens', 'train.steps', 'train.stages', 'train.z_loss', 'train.cos_reg',
  'optimizer.learning_rate', 'optimizer.weight_decay', 'optimizer.clip_norm',
  'optimizer.schedule', 'optimizer.warmup_', 'optimizer.decay_', 'optimizer.floor',
  'optimizer.muon.lr_multiplier', 'mtp.weight', 'mtp.switch', 'distill.weight',
)

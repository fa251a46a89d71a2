"""What an experiment is made of: the steps of one config, what each reads, and the checks before.

`resolve` derives what follows from a config, `check` refuses what cannot work before anything runs,
`build_steps` makes the graph, `summarize` collects the key figures of what has run.
"""

import dataclasses
import functools
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from data_beam.options import PdfOptions, TokenizeOptions, WebOptions
from experiments import docstrings, selfdocs
from experiments.steps import Graph, Step

console = Console(highlight=False, soft_wrap=True)

# --- Steps: each reads the outputs of the steps it needs and writes into its own folder ----------
# Imports stay inside: Beam and JAX each take seconds to load, and a step needs one of them.


def _selfdocs(output: str, _: Mapping[str, str], *, c: Any) -> dict:
  return selfdocs.build(
    output, max_pages=c.selfdocs.pages, pdfs=c.selfdocs.pdfs, seed=c.seed, progress=console.print
  )


def _web(output: str, inputs: Mapping[str, str], *, c: Any) -> dict:
  from data_beam.web import pipeline as web

  path = web.run(
    _globs(c.web.input) or [os.path.join(inputs['selfdocs'], 'web', '*.warc.gz')],
    output,
    'web',
    WebOptions.of(c.web),
    beam_args=c.beam.args,
  )
  return _corpus_result(path)


def _pdf(output: str, inputs: Mapping[str, str], *, c: Any) -> dict:
  from data_beam.pdf import pipeline as pdf

  path = pdf.run(
    _globs(c.pdf.input) or [os.path.join(inputs['selfdocs'], 'pdf', '*.pdf')],
    output,
    'pdf',
    PdfOptions.of(c.pdf),
    beam_args=c.beam.args,
  )
  return _corpus_result(path)


def _corpus_result(path: str) -> dict:
  manifest = read_json(os.path.join(path, 'manifest.json'))
  documents_in = manifest['funnel'][0]['documents_in']
  if not manifest['documents']:
    worst = {r: n for s in manifest['funnel'] for r, n in s['dropped'].items()}
    raise ValueError(
      f'the corpus {manifest["name"]!r} is empty: of {documents_in} documents none was kept '
      f'(reasons: {worst}); give --config.{manifest["name"]}.input other files or looser filters'
    )
  return {'documents_in': documents_in, 'documents': manifest['documents']}


def _tokenizer(output: str, inputs: Mapping[str, str], *, c: Any) -> dict:
  from data_beam import records
  from smoljax import chat, tokenizer

  texts = (
    d['text'] for name, path in inputs.items() for d in records.read_corpus(_corpus(path, name))
  )
  tokenizer.train(
    texts,
    os.path.join(output, 'tokenizer.model'),
    vocab_size=c.tokenizer.vocab_size,
    seed=c.seed,
    max_bytes=c.tokenizer.train_bytes,
    control=chat.CONTROL if c.tokenizer.chat else (),
  )
  return {'vocab_size': c.tokenizer.vocab_size}


def _tokenize(output: str, inputs: Mapping[str, str], *, c: Any, corpus: str) -> dict:
  from data_beam import tokenize_corpus

  path = tokenize_corpus.run(
    _corpus(inputs[corpus], corpus),
    _tokenizer_file(c, inputs),
    output,
    corpus,
    TokenizeOptions.of(c.tokenize),
    beam_args=c.beam.args,
  )
  splits = read_json(os.path.join(path, 'manifest.json'))['splits'].values()
  return {k: sum(info[k] for info in splits) for k in ('documents', 'tokens')}


def _foreign(output: str, _: Mapping[str, str], *, manifest: Mapping[str, Any], name: str) -> dict:
  """A corpus made elsewhere, where the steps after it look for it."""
  home = _corpus(output, name)
  os.makedirs(os.path.dirname(home))
  os.symlink(os.path.abspath(manifest['path']), home)
  return {k: manifest[k] for k in ('documents', 'tokens') if k in manifest}


def _teacher(output: str, inputs: Mapping[str, str], *, c: Any, corpus: str) -> dict:
  from experiments import teacher_cache

  path = teacher_cache.write(
    c.distill.teacher, _corpus(inputs[f'tokenize_{corpus}'], corpus), output, corpus,
    kind=c.distill.cache, draws=c.distill.draws, temperature=c.distill.temperature,
    seq_len=c.data.seq_len, batch_size=c.eval.batch_size, seed=c.seed,
    corpus_tokenizer=c.tokenizer.path, say=console.print)
  return {k: read_json(os.path.join(path, 'manifest.json'))[k]
          for k in ('places', 'bytes_per_token')}


def _train(output: str, inputs: Mapping[str, str], *, c: Any, corpora: Sequence[str],
           targets: Sequence[str]) -> dict:
  import jax

  from smoljax import tokenizer, train

  config = model_config(c, tokenizer.load(_tokenizer_file(c, inputs)).vocab_size)
  if c.model.scan_layers is None and jax.default_backend() == 'gpu':
    # Steps are 6 to 9 % faster, and half a minute passes before the first one.
    config = dataclasses.replace(config, scan_layers=c.train.steps < 2000)
  return train.train(
    c,
    config,
    {name: _corpus(inputs[f'tokenize_{name}'], name) for name in corpora},
    output,
    targets={name: _corpus(inputs[f'tokenize_{name}'], name) for name in targets},
    caches={name: _corpus(inputs[f'teacher_{name}'], name)
            for name in corpora if f'teacher_{name}' in inputs},
    meta={'config': c.to_dict(), 'tokenizer': _tokenizer_file(c, inputs)},
    say=console.print,
  )


def _evaluate(output: str, inputs: Mapping[str, str], *, c: Any, targets: Sequence[str]) -> dict:
  from smoljax import checkpoint, data, evals, model, tokenizer

  config, params, _ = checkpoint.load_params(os.path.join(inputs['train'], 'checkpoints'))
  paths = {name: _corpus(inputs[f'tokenize_{name}'], name) for name in targets}
  evaluate = functools.partial(
    evals.evaluate,
    tokenizer=tokenizer.load(_tokenizer_file(c, inputs)),
    documents=evals.load_held_out(paths, limit=c.eval.documents),
    bos=c.tokenize.bos,
    batch_size=c.eval.batch_size,
    seq_len=c.data.seq_len,
    say=console.print,
  )
  result = evaluate(
    config,
    params,
    tasks=c.eval.tasks,
    eval_data=c.eval.data,
    unigram_counts={
      n: data.open_corpus(p).token_counts(config.vocab_size) for n, p in paths.items()
    },
    limit=c.eval.task_examples,
    seed=c.seed,
  )
  if c.distill.teacher:
    console.print('the teacher, on the same documents:')
    teacher, params, _ = evals.load_weights(c.distill.teacher)
    result['teacher'] = evaluate(*model.without_mtp(teacher, params), tasks=())
  path = os.path.join(output, 'evals', f'{c.train.steps}.json')
  os.makedirs(os.path.dirname(path))
  write_json(path, {'step': c.train.steps, **result})
  return {'file': os.path.basename(path)}


def _export(output: str, inputs: Mapping[str, str], *, c: Any) -> dict:
  from experiments import export
  from smoljax import decode, evals

  model = evals.load_model(
    os.path.join(inputs['train'], 'checkpoints'), _tokenizer_file(c, inputs)
  )
  result = {}
  try:
    model.config.to_hf()
  except ValueError as e:  # a shape that no class of transformers has is no reason to fail
    console.print(f'no Hugging Face folder: {e}')
    result['not_exported'] = str(e)
  else:
    export.write(model, os.path.join(output, 'export'))
  if not c.sample.prompts:
    return result
  start = [model.tokenizer.bos_id] if model.bos else []
  outputs = decode.generate(
    model.config,
    model.params,
    [start + model.tokenizer.encode(p) for p in c.sample.prompts],
    max_new_tokens=c.sample.tokens,
    sampling=decode.Sampling(temperature=c.sample.temperature),
    eos_id=model.tokenizer.eos_id,
    seed=c.seed,
  )
  samples = [
    {'prompt': p, 'completion': model.tokenizer.decode(o), 'temperature': c.sample.temperature}
    for p, o in zip(c.sample.prompts, outputs, strict=True)
  ]
  write_json(os.path.join(output, 'samples.json'), samples)
  return result


def _coordinate_check(output: str, _: Mapping[str, str], *, c: Any) -> dict:
  from smoljax import coordinate_check

  rows = coordinate_check.check(c.optimizer, say=console.print, **c.coordinate_check.to_dict())
  coordinate_check.write(rows, os.path.join(output, 'report'))
  return {'slopes': [{k: r[k] for k in ('mode', 'axis', 'slope', 'worst', 'ok')} for r in rows]}


def _report(output: str, _: Mapping[str, str], *, workdir: str) -> dict:
  from data_beam.filters import spans
  from data_beam.pdf.thumbnail import thumbnail
  from smoljax import report

  report.write(workdir, os.path.join(output, 'report'), spans.find, thumbnail)
  return {}


# --- The graph -----------------------------------------------------------------------------------


def build_steps(c: ConfigDict, workdir: str) -> list[Step]:
  """The steps of the experiment that the resolved config `c` describes, in order."""
  from smoljax import evals

  if c.coordinate_check.widths:
    sections = {k: c[k].to_dict() for k in ('coordinate_check', 'optimizer')}
    return [Step(
      'coordinate_check', functools.partial(_coordinate_check, c=c), sections,
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

  steps = []
  docs = step(
    'selfdocs',
    _selfdocs,
    ['selfdocs', 'seed'],
    outside=docstrings.fingerprint(),
    cost=f'{c.selfdocs.pages:,} web pages and {c.selfdocs.pdfs} PDFs from this machine’s docs',
  )
  if any(not c[name].input for name in corpora):
    steps.append(docs)
  curated = {}
  for name, run, options in (('web', _web, WebOptions), ('pdf', _pdf, PdfOptions)):
    if name not in corpora:
      continue
    found = _find(c[name].input, f'--config.{name}.input')
    beside = _find(','.join(options.of(c[name]).files()), f'--config.{name}')
    size = sum(f['bytes'] or 0 for f in found)
    source = f'{len(found)} files, {size / 1e6:.1f} MB' if found else 'the documents above'
    curated[name] = step(
      name,
      run,
      [name],
      needs=[] if c[name].input else [docs],
      outside=[found, beside] if beside else found,
      cost=f'curating {source}',
      links={f'corpora/{n}': n for n in (name, f'{name}_rejects')},
    )
  for name, manifest in foreign.items():
    made = 'tokenize_' * (manifest['kind'] == 'tokenised') + name
    curated[name] = Step(
      made,
      functools.partial(_foreign, manifest=manifest, name=name),
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
        _tokenizer,
        ['tokenizer', 'seed'],
        needs=[s for name, s in curated.items() if name in used],
        cost=f'BPE of {c.tokenizer.vocab_size:,} pieces',
        links={'tokenizer.model': 'tokenizer.model'},
      )
    ]
  steps += tokenizer
  tokens = {
    name: curated[name] if curated[name].name.startswith('tokenize_') else step(
      f'tokenize_{name}',
      functools.partial(_tokenize, corpus=name),
      ['tokenize'],
      needs=[curated[name], *tokenizer],
      outside=_find(c.tokenizer.path, '--config.tokenizer.path'),
      cost=f'the corpus {name!r} to token documents',
      links={f'tokens/{name}': name},
    )
    for name in sorted({*used, *targets})
  }
  steps += [s for s in tokens.values() if s not in steps]

  teacher = evals.weights_fingerprint(c.distill.teacher) if c.distill.teacher else None
  caches = []
  if teacher and c.distill.cache != 'none':
    what = {k: c.distill[k] for k in ('cache', 'draws', 'temperature')}
    caches = [
      Step(
        f'teacher_{name}',
        functools.partial(_teacher, c=c, corpus=name),
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

  flops = model_config(c, c.tokenizer.vocab_size).flops_per_token(c.data.seq_len)
  before = c.train.init_from or c.train.branch_from
  train = step(
    'train',
    functools.partial(_train, corpora=used, targets=targets),
    ['seed', 'model', 'data', 'train', 'mesh', 'optimizer', 'parametrization', 'mtp', 'distill',
     'guard', 'diagnostics'],
    needs=[*tokens.values(), *caches, *tokenizer],
    outside=[evals.weights_fingerprint(before) if before else None, teacher],
    resumable=True,
    together=True,
    cost=f'{c.train.steps:,} steps, {c.train.tokens:,} tokens, {flops * c.train.tokens:.2e} FLOPs',
    links={n: n for n in ('checkpoints', 'metrics.jsonl', 'events.jsonl', 'tensorboard')},
  )
  evaluate = step(
    'evaluate',
    functools.partial(_evaluate, targets=targets),
    ['eval', 'seed'],
    needs=[train, *(tokens[name] for name in targets), *tokenizer],
    version=2,
    cost=f'bits per byte on {", ".join(targets)}; tasks: {", ".join(c.eval.tasks) or "none"}',
    links={'evals': 'evals'},
  )
  export = step(
    'export',
    _export,
    ['sample', 'seed'],
    needs=[train, *tokenizer],
    cost='a Hugging Face folder, and sample text',
    links={n: n for n in ['export', *['samples.json'] * bool(c.sample.prompts)]},
  )
  report = Step(
    'report',
    functools.partial(_report, workdir=workdir),
    needs=[*steps, train, evaluate, export],
    cost='one page',
    links={'report': 'report'},
  )
  return [*steps, train, evaluate, export, report]


def foreign_corpora(c: Any) -> dict[str, dict]:
  """Name → manifest, with its `path`, of each corpus that `c.corpora` brings from elsewhere.

  Raises ValueError for an entry that is no NAME=DIR, a name that a step makes, and a corpus that is
  not finished, or is of tokens but not by the tokenizer of this config.
  """
  from data_beam import records, tokenize_corpus

  found: dict[str, dict] = {}
  for entry in _globs(c.corpora):
    name, _, path = entry.partition('=')
    if not path or name in (*found, 'web', 'pdf'):
      raise ValueError(
        f'--config.corpora: {entry!r} is not NAME=DIR with a name of its own, other than web and '
        'pdf, and the directory of a corpus, such as wiki=corpora/wiki/1.0.0'
      )
    manifest = records.read_manifest(path)
    if manifest['kind'] == 'tokenised':
      if not c.tokenizer.path:
        raise ValueError(
          f'{path} is tokenised: give its tokenizer, {manifest["tokenizer"]}, with '
          '--config.tokenizer.path'
        )
      if tokenize_corpus.load_tokenizer(c.tokenizer.path).sha256 != manifest['tokenizer_sha256']:
        raise ValueError(f'{path} was tokenised by another file than {c.tokenizer.path}')
    elif manifest['kind'] != 'curated':
      raise ValueError(f'{path} holds {manifest["kind"]}, neither documents nor tokens')
    found[name] = manifest
  return found


def model_config(c: Any, vocab_size: int) -> Any:
  """The `smoljax.model.ModelConfig` of a config, for a tokenizer of `vocab_size` pieces."""
  from smoljax.model import ModelConfig

  fields = {k: v for k, v in c.model.to_dict().items() if k != 'shape'}
  fields['rope_scaling'] = fields['rope_scaling'] or None
  if fields['scan_layers'] is None:  # `_train` may unroll them
    del fields['scan_layers']
  return ModelConfig(vocab_size=vocab_size, max_seq_len=c.data.seq_len, **fields)


def resolve(c: ConfigDict) -> ConfigDict:
  """Derives steps, rows and what the model's shape says; checks what can be checked before a run.

  Raises:
    ValueError: fields that contradict each other; the message names one to change.
  """
  from smoljax import evals, tokenizer
  from smoljax.model import SHAPES

  if c.distill.teacher and not c.tokenizer.path:  # distributions compare over the same tokens only
    c.tokenizer.path = evals.find_tokenizer(c.distill.teacher)
  t = c.train
  if t.batch_tokens % c.data.seq_len:
    raise ValueError(
      f'train.batch_tokens={t.batch_tokens} is no multiple of data.seq_len={c.data.seq_len}: '
      f'try --config.train.batch_tokens={max(1, t.batch_tokens // c.data.seq_len) * c.data.seq_len}'
    )
  if c.model.shape not in SHAPES:
    raise ValueError(f'unknown model.shape {c.model.shape!r}: one of {", ".join(SHAPES)}')
  for field, value in dataclasses.asdict(SHAPES[c.model.shape]).items():
    if field in c.model and c.model[field] is None and field != 'scan_layers':
      c.model[field] = value
  if t.flops:
    pieces = (tokenizer.load(c.tokenizer.path).vocab_size if c.tokenizer.path
              else c.tokenizer.vocab_size)
    t.tokens = round(t.flops / model_config(c, pieces).flops_per_token(c.data.seq_len))
  with c.unlocked():
    t.rows = t.batch_tokens // c.data.seq_len
    t.steps = -(-t.tokens // t.batch_tokens)
    t.tokens = t.steps * t.batch_tokens
  if t.steps < 1:
    raise ValueError(f'train.tokens={t.tokens}: give at least one batch, {t.batch_tokens}')
  return c


def use_all_cores(c: Any, most: int = 8) -> None:
  """On a machine without accelerators, lets jax see one device a core, `most` at the most.

  XLA runs one CPU device on little more than one core. The number is the largest that the batch
  divides over; it must be set before jax looks for devices, and a number set by the user stays.

  XLA has as many threads as cores or devices unless NPROC says more. Each waits inside its
  collective, and a device runs independent collectives side by side in no fixed order: with one a
  device, all may come to wait for one that has no thread left to run on.
  """
  import jax

  if 'xla_force_host_platform_device_count' in os.environ.get('XLA_FLAGS', ''):
    return
  fixed = math.prod(size for size in c.mesh.values() if size > 0)
  if -1 not in c.mesh.values():
    devices = fixed
  else:
    cores = min(len(os.sched_getaffinity(0)), most)
    rows = c.train.rows // c.train.accumulate
    fits = [n for n in range(fixed, cores + 1, fixed) if rows % n == 0]
    devices = max(fits, default=fixed)
  jax.config.update('jax_num_cpu_devices', devices)
  os.environ.setdefault('NPROC', str(8 * devices))


def keep_programs(workdir: str) -> None:
  """Lets jax keep what it compiles for accelerators in WORKDIR/xla, unless it has a place already.

  A run that goes on then takes its first step sooner, by half a minute at 3B.
  """
  import jax

  if jax.default_backend() != 'cpu' and not jax.config.jax_compilation_cache_dir:
    jax.config.update('jax_compilation_cache_dir', os.path.abspath(os.path.join(workdir, 'xla')))


def check(c: Any) -> None:
  """Checks what needs Beam's or JAX's part of the house, before any step runs.

  Raises:
    ValueError: an unknown name, or a mesh that fits neither devices, batch nor model.
  """
  import jax

  from smoljax import (
    data,
    evals,
    guard,
    metrics,
    model,
    muon,
    optim,
    parametrization,
    tokenizer,
    train,
  )

  TokenizeOptions.of(c.tokenize)
  for name, options in (('web', WebOptions), ('pdf', PdfOptions)):
    if c[name].enabled:  # else the libraries that curate need not be here
      from data_beam.filters.rules import profile

      try:
        profile(options.of(c[name]).filters)
      except ValueError as e:
        raise ValueError(f'--config.{name}: {e}') from None
  for task in c.eval.tasks:
    if task not in evals.TASKS:
      raise ValueError(f'unknown eval.tasks {task!r}: one of {", ".join(evals.TASKS)}')

  def divides(what: str, ways: int) -> None:
    if c.train.rows % ways:
      rows = -(-c.train.rows // ways) * ways
      raise ValueError(
        f'a batch of {c.train.rows} rows does not divide over {what} = {ways}: try '
        f'--config.train.batch_tokens={rows * c.data.seq_len}')

  metrics.require_wandb(c.wandb)
  divides('train.accumulate', c.train.accumulate)
  config = model_config(c, c.tokenizer.vocab_size)
  mesh = train.make_mesh(c, config)
  divides('data × fsdp × train.accumulate',
          mesh.shape['data'] * mesh.shape['fsdp'] * c.train.accumulate)
  if c.train.init_from and c.train.branch_from:
    raise ValueError('train.init_from takes weights, train.branch_from all of a run: give one')
  if c.distill.teacher:
    tokenizer.require_same(evals.find_tokenizer(c.distill.teacher), c.tokenizer.path)
  train.mtp_weight(c.mtp, c.train.steps)
  data.make_stages(c.train.stages, c.train.steps)
  guard.init(c.guard, 1)
  # A tokenizer that is given decides the vocabulary, and that only when it is loaded.
  params = model.abstract_params(config, None if c.tokenizer.path else mesh)
  scales = parametrization.multipliers(c.parametrization, config, c.optimizer, params)
  optim.make_optimizer(c.optimizer, params, c.train.steps, scales)
  train.logit_measure(config, c.optimizer.qk_clip)
  if tau := c.optimizer.qk_clip.tau:
    rule = functools.partial(muon.QK_RULES[c.optimizer.qk_clip.rule], tau=tau)
    with jax.set_mesh(mesh):
      jax.eval_shape(
        rule, params, jax.ShapeDtypeStruct((config.num_layers, config.num_heads), 'float32'))


def summarize(graph: Graph) -> dict:
  """The run's key figures, from what the finished steps left."""
  done = {s.name: graph.result(s) for s in graph.steps if graph.done(s)}
  summary: dict[str, Any] = {
    'documents': {
      n: {'in': done[n]['documents_in'], 'kept': done[n]['documents']}
      for n in ('web', 'pdf')
      if n in done
    },
    'tokens': {n[9:]: r['tokens'] for n, r in done.items() if n.startswith('tokenize_')},
  }
  if train := done.get('train'):
    summary['tokens']['trained'] = train['tokens']
    keys = ('parameters', 'non_embedding_parameters', 'flops', 'tokens_per_sec', 'goodput',
            'device')
    summary |= {k: train[k] for k in keys}
    summary['loss'] = dict(train['loss'])
  if evaluate := done.get('evaluate'):
    scores = read_json(str(graph.workdir / 'evals' / evaluate['file']))
    bits = scores['bits_per_byte']
    tokens = sum(b['tokens'] for b in bits.values())
    for key, field in (('validation', 'loss'), ('unigram', 'unigram_loss')):
      summary['loss'][key] = sum(b[field] * b['tokens'] for b in bits.values()) / tokens
    summary['bits_per_byte'] = {n: b['bpb'] for n, b in bits.items()}
    summary['tasks'] = {n: t[t['metric']] for n, t in scores['tasks'].items()}
  summary['seconds'] = {n: r['seconds'] for n, r in done.items()}
  return summary


# --- Command lines -------------------------------------------------------------------------------


def complain(error: BaseException) -> int:
  """Says an error in one line; the exit status of what another try would not mend."""
  print(f'error: {" ".join(str(error).split()) or type(error).__name__}', file=sys.stderr)
  return 2


def exit_status(work: Callable[[], int | None]) -> int:
  """Runs a command's work; bad input and interrupts are one line each, not a traceback."""
  try:
    return work() or 0
  except (ValueError, OSError, ArithmeticError) as e:
    return complain(e)
  except KeyboardInterrupt:
    print('interrupted; the same command continues', file=sys.stderr)
    return 130


# --- Files ---------------------------------------------------------------------------------------


def _globs(patterns: str) -> list[str]:
  return [p.strip() for p in patterns.split(',') if p.strip()]


def _find(patterns: str, flag: str) -> list[dict]:
  """The files that comma-separated globs match, with sizes; raises if one matches nothing."""
  if not patterns:
    return []
  from data_beam.sources.files import expand

  try:
    return expand(_globs(patterns))
  except (OSError, ValueError) as e:
    raise type(e)(f'{flag}: {e}') from None


def _corpus(output: str, name: str) -> str:
  return os.path.join(output, name, '1.0.0')


def _tokenizer_file(c: Any, inputs: Mapping[str, str]) -> str:
  return c.tokenizer.path or os.path.join(inputs['tokenizer'], 'tokenizer.model')


def read_json(path: str) -> Any:
  with open(path) as f:
    return json.load(f)


def write_json(path: str, value: Any) -> None:
  with open(path + '.tmp', 'w') as f:
    json.dump(value, f, indent=1)
  os.replace(path + '.tmp', path)

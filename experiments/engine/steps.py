"""What each step of an experiment does."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from data_beam.options import ConversationOptions, PdfOptions, TokenizeOptions, WebOptions
from data_beam.redact import public
from experiments.engine import config as config_lib
from experiments.engine.cli import console, read_json, write_json
from experiments.engine.corpora import globs

# --- Steps: each reads the outputs of the steps it needs and writes into its own folder ----------
# Imports stay inside: Beam and JAX each take seconds to load, and a step needs one of them; what
# curates need not be installed where nothing is curated.


def _by_beam(run: Callable[..., dict]) -> Callable[..., dict]:
  """A step whose disk may be full: Beam ends in a RuntimeError then, which would be a traceback."""

  @functools.wraps(run)
  def explained_run(*args: Any, c: Any, **how: Any) -> dict:
    from data_beam.beam_options import explained

    with explained(c.beam.args):
      return run(*args, c=c, **how)

  return explained_run


def run_crawl(output: str, _: Mapping[str, str], *, c: Any) -> dict:
  """A small crawl of this machine's own documentation, as WARC and PDF."""
  from experiments.quickstart import crawl

  return crawl.build(
    output, max_pages=c.selfdocs.pages, pdfs=c.selfdocs.pdfs, seed=c.seed, progress=console.print
  )


@_by_beam
def run_web(output: str, inputs: Mapping[str, str], *, c: Any) -> dict:
  """Web pages to a curated corpus."""
  from data_beam.web import pipeline as web

  path = web.run(
    globs(c.web.input) or [os.path.join(inputs['selfdocs'], 'web', '*.warc.gz')],
    output,
    'web',
    WebOptions.of(c.web),
    beam_args=c.beam.args,
  )
  return _corpus_result(path)


@_by_beam
def run_pdf(output: str, inputs: Mapping[str, str], *, c: Any) -> dict:
  """PDFs to a curated corpus."""
  from data_beam.pdf import pipeline as pdf

  path = pdf.run(
    globs(c.pdf.input) or [os.path.join(inputs['selfdocs'], 'pdf', '*.pdf')],
    output,
    'pdf',
    PdfOptions.of(c.pdf),
    beam_args=c.beam.args,
  )
  return _corpus_result(path)


def run_chains(output: str, _: Mapping[str, str], *, c: Any) -> dict:
  """Conversations by rule, as JSONL."""
  from experiments import chains

  made = chains.conversations(chains.Chains(**c.chains.to_dict()), c.seed)
  chains.write(os.path.join(output, 'chains.jsonl'), made)
  return {'conversations': c.chains.number}


@_by_beam
def run_conversations(output: str, inputs: Mapping[str, str], *, c: Any) -> dict:
  """Conversations to a curated corpus."""
  from data_beam import conversations

  path = conversations.run(
    globs(c.conversations.input) or [os.path.join(inputs['chains'], 'chains.jsonl')],
    output,
    'conversations',
    ConversationOptions.of(c.conversations),
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


def run_tokenizer(output: str, inputs: Mapping[str, str], *, c: Any) -> dict:
  """Trains a SentencePiece tokenizer on the corpora that are trained on."""
  from data_beam import records
  from smoljax.data import chat, tokenizer

  texts = (
    d['text'] for name, path in inputs.items() for d in records.read_corpus(corpus_dir(path, name))
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


@_by_beam
def run_tokenize(
  output: str, inputs: Mapping[str, str], *, c: Any, corpus: str, against: Mapping[str, str]
) -> dict:
  """A curated corpus to token documents; `against` has the step of each other corpus by name."""
  from data_beam import tokenize_corpus

  path = tokenize_corpus.run(
    corpus_dir(inputs[corpus], corpus),
    tokenizer_file(c, inputs),
    output,
    corpus,
    TokenizeOptions.of(c.tokenize),
    against=[corpus_dir(inputs[step], name) for name, step in against.items()],
    beam_args=c.beam.args,
  )
  splits = read_json(os.path.join(path, 'manifest.json'))['splits'].values()
  return {k: sum(info[k] for info in splits) for k in ('documents', 'tokens')}


def run_foreign_tokens(
  output: str, _: Mapping[str, str], *, manifest: Mapping[str, Any], name: str
) -> dict:
  """A corpus made elsewhere, where the steps after it look for it; copied from an object store."""
  from smoljax.data import corpus

  home, copies = corpus_dir(output, name), pathlib.Path(output).absolute().parent / 'copies'
  os.makedirs(os.path.dirname(home))
  os.symlink(os.path.abspath(corpus.local_copy(manifest['path'], cache=copies)), home)
  return {k: manifest[k] for k in ('documents', 'tokens') if k in manifest}


def foreign_stands(output: str, path: str, name: str) -> bool:
  """Whether the output of `run_foreign_tokens` still leads to what it was made of."""
  home = os.path.realpath(corpus_dir(output, name))
  return os.path.exists(home) if '://' in path else home == os.path.realpath(path)


def run_teacher_cache(output: str, inputs: Mapping[str, str], *, c: Any, corpus: str) -> dict:
  """Stores what the teacher says of one corpus."""
  from experiments.engine import teacher_cache

  path = teacher_cache.write(
    c.distill.teacher, corpus_dir(inputs[f'tokenize_{corpus}'], corpus), output, corpus,
    kind=c.distill.cache, draws=c.distill.draws, temperature=c.distill.temperature,
    seq_len=c.data.seq_len, batch_size=c.eval.batch_size, seed=c.seed,
    corpus_tokenizer=c.tokenizer.path, log_line=console.print)
  return {k: read_json(os.path.join(path, 'manifest.json'))[k]
          for k in ('places', 'bytes_per_token')}


def run_train(output: str, inputs: Mapping[str, str], *, c: Any, corpora: Sequence[str],
              targets: Sequence[str]) -> dict:
  """Trains the model; what is killed goes on from its newest checkpoint."""
  import jax

  from smoljax.data import tokenizer
  from smoljax.data.corpus import read_manifest
  from smoljax.train import loop

  paths = {name: corpus_dir(inputs[f'tokenize_{name}'], name) for name in {*corpora, *targets}}
  made_by = read_manifest(paths[corpora[0]]).get('tokenizer_sha256', '')
  text = tokenizer.load(tokenizer_file(c, inputs), sha256=made_by)
  config = config_lib.model_config(c, text.vocab_size)
  if c.model.scan_layers is None and jax.default_backend() == 'gpu':
    # Steps are 6 to 9 % faster, and half a minute passes before the first one.
    config = dataclasses.replace(config, scan_layers=c.train.steps < 2000)
  return loop.train(
    c,
    config,
    {name: paths[name] for name in corpora},
    output,
    targets={name: paths[name] for name in targets},
    caches={name: corpus_dir(inputs[f'teacher_{name}'], name)
            for name in corpora if f'teacher_{name}' in inputs},
    meta={'config': public(c.to_dict()), 'tokenizer': tokenizer_file(c, inputs)},
    log_line=console.print,
    beside=functools.partial(rehearse, c=c, inputs=inputs, targets=targets)
    if c.train.compile_beside else None,
  )


def rehearse(run: Any, *, c: Any, inputs: Mapping[str, str], targets: Sequence[str]) -> Iterator:
  """Compiles what `run_evaluate` and `run_export` run of a model that is trained yet, a program a
  turn.

  Not where the model writes the answers: what that takes depends on them.

  Args:
    run: the smoljax.train.start.Run.
  """
  import jax

  from smoljax import model, sharding
  from smoljax.checkpoints import load
  from smoljax.data import tokenizer
  from smoljax.evals.likelihood import Rehearsal
  from smoljax.evals.tasks import TASKS
  from smoljax.inference import generate

  config = model.ModelConfig(**json.loads(json.dumps(run.meta['model'])))
  if config.lora_rank:
    return
  params = model.abstract_params(config)
  text = tokenizer.load(
    tokenizer_file(c, inputs), run.meta['special_tokens'], run.meta['tokenizer_sha256'])
  if c.sample.prompts:
    yield from generate.rehearse(
      config, params, **_sampled(c, load.of_run(config, params, text, run.meta)))
  evaluate = _evaluation(c, inputs, targets, text, say=lambda line: None)
  mesh = sharding.make_mesh(devices=jax.local_devices())
  with jax.set_mesh(mesh):
    rehearsal = Rehearsal(model.abstract_params(config, mesh))
    own = functools.partial(
      evaluate, config, rehearsal, eval_data=c.eval.data, limit=c.eval.task_examples, seed=c.seed)
    _as_far_as_it_goes(own, [t for t in c.eval.tasks if t in TASKS], lambda line: None)
    yield from rehearsal.compile()


def run_merge(output: str, _: Mapping[str, str], *, c: Any) -> dict:
  """Merges models into a Hugging Face folder, which the next steps read as they read a run's."""
  from smoljax import files, metrics
  from smoljax.checkpoints import export_formats, load, merge

  paths = c.merge.models.split(',')
  loaded = {path: load.load_model(path) for path in paths}
  merge.require_same(loaded)
  how = merge.Merge(c.merge.method)
  params = merge.merge(how, [loaded[path].params for path in paths], list(c.merge.weights))
  first = loaded[paths[0]]._replace(params=params)
  export_formats.write_hf(first, os.path.join(output, 'checkpoints'))
  files.write(os.path.join(output, 'metrics.jsonl'), metrics.line({'step': 0}).encode())
  return {'parameters': first.config.num_params()}


def run_evaluate(output: str, inputs: Mapping[str, str], *, c: Any, targets: Sequence[str]) -> dict:
  """Scores the trained model, and the teacher on the same documents if there is one."""
  from smoljax import model, sharding
  from smoljax.checkpoints import load
  from smoljax.data import tokenizer
  from smoljax.evals.held_out import unigram_counts

  config, params, meta = load.load_weights(_trained(inputs))
  paths = {name: corpus_dir(inputs[f'tokenize_{name}'], name) for name in targets}
  text = tokenizer.load(
    tokenizer_file(c, inputs), meta.get('special_tokens'), meta.get('tokenizer_sha256', ''))
  evaluate = _evaluation(c, inputs, targets, text, say=console.print)
  # The step begins anew where it was stopped; what the model wrote by then is scored already.
  scored = f'{output.removesuffix(".partial")}.scores'
  own = functools.partial(
    evaluate,
    config,
    eval_data=c.eval.data,
    unigram_counts=unigram_counts(paths, config.vocab_size),
    limit=c.eval.task_examples,
    seed=c.seed,
    generation=dataclasses.replace(config_lib.generation(c), folder=scored),
  )
  with sharding.all_devices(params) as params:
    result = _as_far_as_it_goes(functools.partial(own, params=params), c.eval.tasks, console.print)
  if c.distill.teacher:
    console.print('the teacher, on the same documents:')
    teacher, params, _ = load.load_weights(c.distill.teacher)
    teacher, params = model.without_mtp(teacher, params)
    with sharding.all_devices(params) as params:
      result['teacher'] = evaluate(teacher, params, tasks=())
  step = 0 if c.merge.models else c.train.steps
  path = os.path.join(output, 'evals', f'{step}.json')
  os.makedirs(os.path.dirname(path))
  write_json(path, {'step': step, **result})
  shutil.rmtree(scored, ignore_errors=True)
  return {'file': os.path.basename(path)}


def _evaluation(c, inputs, targets, text, say):
  """`evals.evaluate` of the config's held-out documents; `say` is given a line now and then."""
  from smoljax import evals
  from smoljax.evals.held_out import load_held_out

  paths = {name: corpus_dir(inputs[f'tokenize_{name}'], name) for name in targets}
  return functools.partial(
    evals.evaluate,
    tokenizer=text,
    documents=load_held_out(paths, limit=c.eval.documents, note=say),
    bos=c.tokenize.bos,
    batch_size=c.eval.batch_size,
    seq_len=c.data.seq_len,
    log_line=say,
  )


def _as_far_as_it_goes(evaluate, tasks, say):
  """The evaluation with these tasks, but for those that need more held-out documents."""
  from smoljax.evals.tasks import TASKS, TooFewDocuments

  try:
    return evaluate(tasks=tasks)
  except TooFewDocuments as e:  # nothing has run yet, and the rest is worth having
    say(f'warning: left out: {e}')
    return evaluate(tasks=[t for t in tasks if t not in TASKS or TASKS[t].file])


def run_export(output: str, inputs: Mapping[str, str], *, c: Any) -> dict:
  """Writes a Hugging Face folder, where the architecture has one, and sample text."""
  from smoljax.checkpoints import export_formats, load
  from smoljax.inference.generate import generate

  model = load.load_model(_trained(inputs), tokenizer_file(c, inputs))
  result = {}
  try:
    model.config.to_hf()
  except ValueError as e:  # a shape that no class of transformers has is no reason to fail
    console.print(f'no Hugging Face folder: {e}')
    result['not_exported'] = str(e)
  else:
    export_formats.write_hf(model, os.path.join(output, 'export'), with_chat=c.export.chat)
  if c.export.gguf:
    export_formats.FORMATS['gguf'](
      model, os.path.join(output, 'model.gguf'), with_chat=c.export.chat)
  if not c.sample.prompts:
    return result
  outputs = generate(model.config, model.params, seed=c.seed, **_sampled(c, model))
  samples = [
    {'prompt': p, 'completion': model.tokenizer.decode(o), 'temperature': c.sample.temperature}
    for p, o in zip(c.sample.prompts, outputs, strict=True)
  ]
  write_json(os.path.join(output, 'samples.json'), samples)
  return result


def _sampled(c, model):
  """What sample text is drawn of, and how: arguments of `generate`."""
  from smoljax.inference.sampling import Sampling

  start = [model.tokenizer.bos_id] if model.bos else []
  return dict(
    prompts=[start + model.tokenizer.encode(p) for p in c.sample.prompts],
    max_new_tokens=c.sample.tokens,
    sampling=Sampling(temperature=c.sample.temperature),
    eos_id=model.tokenizer.eos_id,
  )


def run_coordinate_check(output: str, _: Mapping[str, str], *, c: Any) -> dict:
  """Whether activations keep their size over widths and depths."""
  from smoljax.report import coordinate_page
  from smoljax.scaling import coordinate_check

  rows = coordinate_check.check(c.optimizer, log_line=console.print, **c.coordinate_check.to_dict())
  coordinate_page.write(rows, os.path.join(output, 'report'))
  return {'slopes': [{k: r[k] for k in ('mode', 'axis', 'slope', 'worst', 'ok')} for r in rows]}


def run_report(output: str, _: Mapping[str, str], *, workdir: str) -> dict:
  """Writes the run's page."""
  from data_beam.filters import spans
  from data_beam.pdf.thumbnail import thumbnail
  from smoljax.report import run_page

  run_page.write(workdir, os.path.join(output, 'report'), spans.find, thumbnail)
  return {}


# --- Files ---------------------------------------------------------------------------------------


def checkpoint_fault(output: str, every_byte: bool) -> str:
  """What is wrong with the newest checkpoint that training left; '' if nothing, or it is gone."""
  from smoljax.checkpoints import seals

  root = pathlib.Path(output) / 'checkpoints'
  steps = seals.steps(root)
  return seals.fault(root, steps[-1], again=every_byte) if steps else ''


def find_files(patterns: str, flag: str) -> list[dict]:
  """The files that comma-separated globs match, with sizes; raises if one matches nothing."""
  if not patterns:
    return []
  from data_beam.sources.files import expand

  try:
    return expand(globs(patterns))
  except (OSError, ValueError) as e:
    raise type(e)(f'{flag}: {e}') from None


def _trained(inputs: Mapping[str, str]) -> str:
  """The model that was trained, or merged."""
  return os.path.join(inputs.get('train') or inputs['merge'], 'checkpoints')


def corpus_dir(output: str, name: str) -> str:
  """Where a step leaves the corpus of this name."""
  return os.path.join(output, name, '1.0.0')


def tokenizer_file(c: Any, inputs: Mapping[str, str]) -> str:
  """The tokenizer that the config brings, or else the one that was trained."""
  return c.tokenizer.path or os.path.join(inputs['tokenizer'], 'tokenizer.model')

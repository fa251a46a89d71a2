"""A config into what the steps take: derived values, the model, checks before anything runs."""

import dataclasses
import difflib
import functools
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import base
from data_beam.options import (
  ConversationOptions,
  Options,
  PdfOptions,
  TokenizeOptions,
  WebOptions,
)
from experiments.engine.corpora import check_tokenizer, choose_corpora

# Fields that name a model which a run begins with.
MODELS = ('train.init_from', 'train.branch_from', 'train.reference', 'merge.models',
          'distill.teacher')


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
  from smoljax.data import tokenizer
  from smoljax.model import SHAPES

  _check_numbers(c)
  choose_corpora(c)
  # Weights of another model, and its distributions, are for its own tokens.
  for field, path in (('distill.teacher', c.distill.teacher),
                      ('train.init_from', c.train.init_from),
                      ('merge.models', c.merge.models.split(',')[0])):
    if path and not c.tokenizer.path:
      c.tokenizer.path = _tokenizer_of(field, path)
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


def _tokenizer_of(field: str, path: str) -> str:
  """The tokenizer file of the model that a field of the config names."""
  from smoljax.checkpoints import load

  try:
    return load.find_tokenizer(path)
  except FileNotFoundError as e:
    raise FileNotFoundError(f'{field}={path}: {e}; what its token ids mean must be known') from None


def options(c: ConfigDict, section: str) -> Options:
  """The options of the pipeline that this section is for.

  Raises ValueError, naming the section, for a value that is none.
  """
  try:
    return _OPTIONS[section].of(c[section])
  except ValueError as e:
    raise ValueError(f'--config.{section}: {e}') from None


def holds_out(c: ConfigDict) -> bool:
  """Whether documents are held out, and only those that are unlike all others, of any corpus."""
  made = options(c, 'tokenize')
  return isinstance(made, TokenizeOptions) and made.asks


def unknown_field(argv: Sequence[str]) -> str:
  """What is wrong with the first flag that sets a field which configs/base.py lacks; '' if none."""
  known = base.get_config()
  for flag in argv:
    if not (found := re.match(r'--?config\.([\w.]+)', flag)):
      continue
    section, names = known, found[1].split('.')
    for place, name in enumerate(names):
      within = '.'.join(['config', *names[:place]])
      if not isinstance(section, ConfigDict):
        return f'--config.{found[1]}: {within} is a value, not a section with fields'
      if name not in section:
        near = difflib.get_close_matches(name, section.keys(), 3)
        return (f'--config.{found[1]}: {within} has no field {name!r}'
                + f' (did you mean {" or ".join(near)}?)' * bool(near)
                + f', it has {", ".join(section.keys())}')
      section = section[name]
  return ''


def _check_numbers(c: ConfigDict) -> None:
  for field, least in _LEAST.items():
    section, _, name = field.rpartition('.')
    value = (c[section] if section else c)[name]
    if not least <= value < math.inf:
      wanted = f'at least {least}' if value < least else 'a finite number'
      raise ValueError(f'--config.{field}={value}: give {wanted}')
  for field, most in _MOST.items():
    section, _, name = field.rpartition('.')
    value = (c[section] if section else c)[name]
    if value is not None and not value <= most:
      raise ValueError(f'--config.{field}={value}: give at most {most}')
  for field in _TEXTS:
    section, _, name = field.rpartition('.')
    if not isinstance(c[section][name], tuple | list) or not all(
      isinstance(text, str) for text in c[section][name]):
      raise ValueError(f'--config.{field}={c[section][name]!r}: give texts, such as "(\'a\',)"')
  for field in _SIZES:
    section, _, name = field.rpartition('.')
    for size in c[section][name] or ():
      if not isinstance(size, int) or size < (section != 'model'):
        raise ValueError(
          f'--config.{field}: {size!r} is no size: give whole numbers, such as (1, 2)')
  for field in _PAIRS:
    section, _, name = field.rpartition('.')
    if not all(isinstance(pair, tuple | list) and len(pair) == 2
               and all(isinstance(x, int | float) for x in pair)
               for pair in c[section][name] or ()):
      raise ValueError(f'--config.{field}={c[section][name]!r}: give pairs of numbers, such as '
                       '((0.0, 1), (0.2, 2))')
  if not all(isinstance(x, int | float) and 0 < x <= 1 for x in c.optimizer.cooldowns):
    raise ValueError(f'--config.optimizer.cooldowns={c.optimizer.cooldowns!r}: give shares of the '
                     'run, above 0 and at most 1')
  for axis, size in c.mesh.items():
    if size < 1 and size != -1:
      raise ValueError(f'--config.mesh.{axis}={size}: give a number of devices, or -1 to let the '
                       'run choose')


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


def keep_programs(workdir: str, *, on_cpu: bool = False) -> None:
  """Lets jax keep what it compiles for accelerators in WORKDIR/xla, unless it has a place already.

  A run that goes on then takes its first step sooner, by half a minute at 3B. Points of a sweep and
  stages of a series, which share their steps, share this as well: it lies beside these.
  """
  import jax

  config: Any = jax.config
  if (on_cpu or jax.default_backend() != 'cpu') and not config.jax_compilation_cache_dir:
    shared = os.path.dirname(os.path.realpath(os.path.join(workdir, 'steps')))
    config.update('jax_compilation_cache_dir', os.path.join(shared, 'xla'))


def generation(c: Any) -> Any:
  """The `smoljax.evals.run.Generation` of a config. Raises ValueError, naming the field."""
  from smoljax.evals import generative, run
  from smoljax.inference.sampling import Sampling

  g = c.eval.generation
  try:
    settings = generative.Settings(
      modes=tuple(g.modes), max_new_tokens=g.max_new_tokens, samples=g.samples, seed=c.seed,
      sampling=Sampling(g.temperature), ks=tuple(g.pass_at), batch_size=c.eval.batch_size)
    found = run.Generation(
      settings, g.unsafe_programs, tuple(g.lengths), tuple(g.languages), g.long_examples,
      tuple(g.long_modes))
    _ = found.of_long_texts  # that its modes are known
  except ValueError as e:
    raise ValueError(f'--config.eval.generation: {e}') from None
  return found


def check_ahead(c: ConfigDict) -> None:
  """As much of `resolve` and `check` as needs no device, nor models and corpora that are not there
  yet: of an experiment that others come before, what it would be refused for after them."""
  merged = c.merge.models
  for field in MODELS:
    section, name = field.split('.')
    c[section][name] = ''
  c.tokenizer.chat = True  # its tokenizer is that of a model
  resolve(c)
  c.merge.models = merged
  check_fields(c)


def check_fields(c: Any) -> None:
  """The part of `check` that looks at fields alone, and at files that are data."""
  from smoljax.checkpoints import export_formats, merge
  from smoljax.data.batches import make_stages
  from smoljax.optim import schedules
  from smoljax.train import distill, step

  _check_data(c)
  generation(c)
  if c.export.gguf:
    export_formats.require_gguf()
  for field, known in (('distill.cache', ('none', *distill.CACHES)),
                       ('distill.distance', distill.DISTANCES)):
    section, name = field.split('.')
    if c[section][name] not in known:
      raise ValueError(f'--config.{field}={c[section][name]!r}: one of {", ".join(known)}')
  step.post_training(c.train)
  if c.merge.models:
    merge.Merge(c.merge.method)
    if len(c.merge.models.split(',')) != len(c.merge.weights):
      raise ValueError(f'--config.merge.weights={c.merge.weights}: give one for each of '
                       f'merge.models={c.merge.models}')
  make_stages(c.train.stages, c.train.steps)
  schedules.horizon(c.optimizer, c.train.steps)


def check(c: Any) -> None:
  """Checks what needs Beam's or JAX's part of the house, before any step runs.

  Raises:
    ValueError: an unknown name, a mesh that fits neither devices, batch nor model, or a tokenizer
      that lacks what tokenising or evaluation needs.
    OSError: train.checkpoint_dir cannot be written to.
    ImportError: export.gguf wants a package that is not here.
  """
  import jax

  from smoljax import metrics, model, object_store, optim
  from smoljax.data import tokenizer
  from smoljax.evals.run import require_room
  from smoljax.optim import mup
  from smoljax.optim.qk_clip import QK_RULES, logit_measure
  from smoljax.train import guard, step, telemetry
  from smoljax.train.step import make_mesh

  check_fields(c)

  def divides(what: str, num_shards: int) -> None:
    if c.train.rows % num_shards:
      rows = -(-c.train.rows // num_shards) * num_shards
      raise ValueError(
        f'a batch of {c.train.rows} rows does not divide over {what} = {num_shards}: try '
        f'--config.train.batch_tokens={rows * c.data.seq_len}')

  check_tokenizer(c)
  if c.tokenizer.path:  # else it is not there yet
    asked = generation(c)
    lengths = asked.lengths or (c.data.seq_len,)
    require_room(c.eval.tasks, tokenizer.load(c.tokenizer.path), min(lengths), asked.languages)
  metrics.require_wandb(c.wandb)
  if c.eval.data and not object_store.is_url(c.eval.data) and not os.path.isdir(c.eval.data):
    raise ValueError(f'--config.eval.data={c.eval.data}: there is no such folder')
  if re.match('(gs|s3|az|abfs)(:/?(?!/)|//)', c.train.checkpoint_dir):
    raise ValueError(f'--config.train.checkpoint_dir={c.train.checkpoint_dir}: give a folder, or '
                     'an address such as gs://BUCKET/FOLDER')
  if c.train.checkpoint_dir:
    object_store.Folder(c.train.checkpoint_dir).require_writable()
  telemetry.Profile(c.xprof, '')
  divides('train.accumulate', c.train.accumulate)
  config = model_config(c, c.tokenizer.vocab_size)
  mesh = make_mesh(c, config)
  divides('data × fsdp × train.accumulate',
          mesh.shape['data'] * mesh.shape['fsdp'] * c.train.accumulate)
  if c.train.init_from and c.train.branch_from:
    raise ValueError('train.init_from takes weights, train.branch_from all of a run: give one')
  _check_branch(c)
  if c.distill.teacher:
    tokenizer.require_same(
      _tokenizer_of('distill.teacher', c.distill.teacher), c.tokenizer.path)
  for field in ('init_from', 'reference'):
    if path := c.train[field]:
      tokenizer.require_same(
        _tokenizer_of(f'train.{field}', path), c.tokenizer.path, f'train.{field}={path}',
        'each row of its embedding stands for one of its own tokens')
  step.mtp_weight(c.mtp, c.train.steps)
  preference, reinforce = step.post_training(c.train)
  if config.lora_rank:
    _check_adapters(c, config.mtp != 'none', reinforce)
  compares = any(how and how.needs_reference for how in (preference, reinforce))
  if compares and not (c.train.reference or c.train.init_from):
    raise ValueError('the loss compares with a frozen model: name it with train.reference, or give '
                     'train.init_from, with which training begins')
  if (preference or reinforce) and (c.distill.teacher or config.mtp != 'none'):
    raise ValueError('train.preference and train.reinforce have neither distill.teacher nor '
                     'model.mtp: leave these out')
  if reinforce and c.train.rows % reinforce.samples:
    raise ValueError(f'a step of {c.train.rows} rows does not divide into questions of '
                     f'train.reinforce.samples={reinforce.samples} answers: change '
                     'train.batch_tokens')
  guard.init(c.guard, 1)
  # A tokenizer that is given decides the vocabulary, and that only when it is loaded.
  params = model.abstract_params(config, None if c.tokenizer.path else mesh)
  scales = mup.multipliers(c.parametrization, config, c.optimizer, params)
  optim.make_optimizer(c.optimizer, params, c.train.steps, scales)
  logit_measure(config, c.optimizer.qk_clip)
  if tau := c.optimizer.qk_clip.tau:
    rule = functools.partial(QK_RULES[c.optimizer.qk_clip.rule], tau=tau)
    with jax.set_mesh(mesh):
      jax.eval_shape(
        rule, params, jax.ShapeDtypeStruct((config.num_layers, config.num_heads), 'float32'))


def _check_data(c: Any) -> None:
  """What is curated and evaluated: the same errors as `check`."""
  from experiments import chains
  from smoljax.evals import execution, problems
  from smoljax.evals.run import require_task

  for name in _OPTIONS:
    if c[name].get('enabled', True):  # else the libraries that curate need not be here
      options(c, name)
  if c.beam.args and (c.web.enabled or c.pdf.enabled or c.conversations.enabled):
    from data_beam.beam_options import pipeline_options

    try:
      pipeline_options(c.beam.args)
    except ValueError as e:
      raise ValueError(f'--config.beam.args: {e}') from None
  try:
    for task in c.eval.tasks:
      require_task(task, c.eval.data)
    if problems.PROGRAMS & set(c.eval.tasks):
      execution.require(c.eval.generation.unsafe_programs)
  except (ValueError, FileNotFoundError) as e:
    words = str(e).replace('--eval_data', '--config.eval.data')
    raise ValueError(f'--config.eval.tasks: {words}') from None
  if c.conversations.enabled and not c.conversations.input:
    try:
      chains.Chains(**c.chains.to_dict())
    except ValueError as e:
      raise ValueError(f'--config.chains: {e}') from None
  if c.conversations.enabled and not (c.tokenizer.path or c.tokenizer.chat):
    raise ValueError('conversations need a tokenizer with the control tokens of the chat template: '
                     'say --config.tokenizer.chat=True, or give one with --config.tokenizer.path')


def _check_branch(c: Any) -> None:
  from smoljax.checkpoints import store

  if c.train.branch_from:
    try:
      store.load_meta(c.train.branch_from)
    except (ValueError, OSError) as e:
      raise ValueError(f'train.branch_from={c.train.branch_from}: {e}') from None
  if c.train.keep_best:
    kept = [f'val/{name}/{what}' for name in dict.fromkeys(
      n for stage in c.train.stages for n in stage['mixture']) for what in ('loss', 'bpb', 'ece')]
    if c.train.keep_best not in kept:
      raise ValueError(f'train.keep_best={c.train.keep_best!r}: one of {", ".join(kept)}')


def _check_adapters(c: Any, mtp: bool, reinforce: Any) -> None:
  if not c.train.init_from or c.train.branch_from:
    raise ValueError('model.lora_rank: adapters are of a model, give train.init_from')
  for field, wanted in (
    ('train.reinforce.loss', reinforce), ('diagnostics.every', c.diagnostics.every),
    ('distill.teacher', c.distill.teacher), ('model.mtp', mtp),
    ('train.reference', c.train.reference)):
    if wanted:
      raise ValueError(f'model.lora_rank goes without {field}: leave that out')


_OPTIONS = {'web': WebOptions, 'pdf': PdfOptions, 'conversations': ConversationOptions,
            'tokenize': TokenizeOptions}

# The most and the least that a number may be.
_MOST = {
  'seed': 2**32 - 1, 'optimizer.b1': 1, 'optimizer.b2': 1, 'optimizer.learning_rate': 1e6,
  'model.num_layers': 10_000, 'tokenizer.vocab_size': 2**24, 'distill.weight': 1,
}
_TEXTS = ('beam.args', 'eval.tasks', 'eval.corpora', 'sample.prompts')
_SIZES = ('coordinate_check.widths', 'coordinate_check.depths', 'model.rope_layers',
          'model.window_layers')
_PAIRS = ('optimizer.ramp',)
_LEAST = {
  'optimizer.b1': 0, 'optimizer.b2': 0, 'optimizer.learning_rate': 0,
  'seed': 0,
  'selfdocs.pages': 1, 'selfdocs.pdfs': 0,
  'tokenizer.vocab_size': 1, 'tokenizer.train_bytes': 1,
  'data.seq_len': 2, 'data.window': 1, 'data.max_segments': 0,
  'train.tokens': 1, 'train.flops': 0, 'train.batch_tokens': 1, 'train.accumulate': 1,
  'train.loss_chunk': 1, 'train.z_loss': 0, 'train.cos_reg': 0, 'train.log_every': 1,
  'train.eval_every': 1, 'train.eval_documents': 0, 'train.checkpoint_every': 1, 'train.keep': 1,
  'train.keep_every': 0, 'train.watchdog': 0,
  'diagnostics.every': 0,
  'eval.documents': 0, 'eval.batch_size': 1, 'eval.task_examples': 0,
  'eval.generation.max_new_tokens': 0, 'eval.generation.samples': 1,
  'eval.generation.temperature': 0, 'eval.generation.long_examples': 0,
  'sample.tokens': 1, 'sample.temperature': 0,
  'distill.draws': 1, 'distill.temperature': 0, 'distill.weight': 0,
  'model.lora_rank': 0, 'chains.number': 0,
  'parametrization.base_width': 0, 'parametrization.base_depth': 0,
}

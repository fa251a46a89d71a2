"""What a run begins with: what its config means (`prepare`), and where it stands (`newest`)."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

import smoljax
from smoljax import metrics, model, sharding
from smoljax.checkpoints import load, store
from smoljax.data import chat, teacher_cache, tokenizer
from smoljax.data.batches import Batches, Stage, check_epochs, make_stages
from smoljax.data.corpus import Corpus, open_corpus, special_tokens
from smoljax.data.questions import Questions
from smoljax.evals.held_out import Document, load_held_out
from smoljax.model import lora
from smoljax.optim import mup
from smoljax.train import distill, guard, reference
from smoljax.train.rollouts import Rollouts
from smoljax.train.step import Plan, PyTree, make_mesh, make_plan, post_training


@dataclasses.dataclass(frozen=True)
class Run:
  """What stays the same from a run's first step to its last."""

  config: Any
  model_config: model.ModelConfig
  directory: str
  mesh: jax.sharding.Mesh
  batches: Batches | Questions
  stages: Sequence[Stage]
  held_out: Mapping[str, Sequence[Document]]  # of each corpus
  plan: Plan
  teacher_params: PyTree  # of a teacher or a reference; None without
  meta: dict  # stored with each checkpoint
  rollouts: Rollouts | None = None  # of a run that learns from its own answers
  questions: Mapping[str, Corpus] = dataclasses.field(default_factory=dict)  # held out, of those

  @property
  def key(self) -> jax.Array:
    """The key of what is initialised."""
    return jax.random.fold_in(jax.random.key(self.config.seed), _name_seed('init'))

  def stage(self, step: int) -> Stage:
    """The stage that the step after `step` belongs to."""
    return next(s for s in self.stages if s.start <= step < s.stop)

  def full(self, params: PyTree) -> PyTree:
    """The model's parameters: those that are trained, or they as adapters in the frozen ones."""
    if not self.model_config.lora_rank:
      return params
    return _merge(self.model_config, self.teacher_params, params)

  def whole(self, step: int) -> bool:
    """Whether a checkpoint after `step` steps holds all that the next one goes on from."""
    return self.rollouts is None or self.rollouts.whole(step)

  def tokens(self, step: int) -> int:
    """Places of all batches up to a step, padding included."""
    return step * self.config.train.rows * self.config.data.seq_len


class Snapshot(NamedTuple):
  """Where a run stands: after `step` steps."""

  step: int
  state: dict  # {params, opt_state}, on the mesh
  position: dict  # of the data
  changed: Mapping[str, tuple] = {}  # config fields: (as they were until here, as they are now)


def prepare(
  config: Any,
  model_config: model.ModelConfig,
  corpora: Mapping[str, str],
  directory: str,
  *,
  targets: Mapping[str, str] | None = None,
  caches: Mapping[str, str] | None = None,
  meta: Mapping[str, Any] | None = None,
) -> Run:
  """Opens what a run reads and plans its step; for arguments and errors see loop.train."""
  t, mesh = config.train, make_mesh(config, model_config)
  opened = {name: open_corpus(path, 'train', name) for name, path in corpora.items()}
  if config.diagnostics.every and mesh.shape['context'] > 1:
    raise ValueError('diagnostics.every needs whole rows: set it to 0, or mesh.context to 1')
  held_out = load_held_out(targets or corpora, limit=t.eval_documents)
  stages = make_stages(t.stages, t.steps, opened)
  if t.max_epochs:
    check_epochs(stages, t.tokens, opened, t.max_epochs)
  cached = teacher_cache.open_caches(caches or {}, opened)
  preference, reinforce = post_training(t)
  if reinforce:
    batches = Questions(
      opened, stages, rows=_questions_a_step(t, reinforce.samples), seed=config.seed)
  else:
    batches = Batches(
      opened,
      stages,
      caches=cached,
      rows=t.rows,
      seq_len=config.data.seq_len,
      window=config.data.window,
      max_segments=config.data.max_segments,
      seed=config.seed,
      local_rows=sharding.local_rows(mesh, t.rows),
      pairs=bool(preference),
      across=config.data.across,
    )
  model_config = dataclasses.replace(
    model_config, max_segments=batches.max_segments,
    max_seq_len=_context(t.init_from, model_config))
  meta = {
    **(meta or {}),
    'special_tokens': special_tokens({name: c.manifest for name, c in opened.items()}),
    'tokenizer_sha256': opened[batches.sources[0]].manifest.get('tokenizer_sha256', ''),
    'model': dataclasses.asdict(model_config),
    'fingerprint': batches.fingerprint(),
    'code_version': smoljax.__version__,
    **({'lora_base': load.weights_fingerprint(t.init_from)} if model_config.lora_rank else {}),
  }
  with jax.set_mesh(mesh):
    teacher, teacher_params = load_teacher(config.distill, model_config, mesh, cached)
    plan = make_plan(config, model_config, mesh, teacher)
    compares = any(how and how.needs_reference for how in (preference, reinforce))
    if compares or model_config.lora_rank:
      teacher_params = reference.load_frozen(
        t, model_config, model.abstract_params(model_config, mesh))
      if compares and t.preference.cached and isinstance(batches, Batches):
        batches.reference = reference.read_pairs(
          t, model_config, teacher_params, batches, mesh, os.path.join(directory, 'reference'))
        teacher_params = teacher_params if model_config.lora_rank else None
  rollouts, questions = None, {}
  if reinforce:
    text = tokenizer.load(meta['tokenizer'], meta['special_tokens'], meta['tokenizer_sha256'])
    rollouts = Rollouts(
      model_config, reinforce, text, chat.control_ids(text)[chat.END], mesh, config.data.seq_len,
      config.seed, t.loss_chunk)
    questions = {name: open_corpus(path, 'validation', name)
                 for name, path in (targets or corpora).items() if name in held_out}
  return Run(config, model_config, directory, mesh, batches, stages, held_out, plan,
             teacher_params, meta, rollouts, questions)


def _context(init_from: str, config: model.ModelConfig) -> int:
  """How far a model reads: as its rows, or as the model that training begins with, whose positions
  rotate alike: a 32k model that is fine-tuned in rows of 8k is one still."""
  before = load.load_config(init_from) if init_from else config
  alike = all(getattr(before, f) == getattr(config, f) for f in (
    'rope_theta', 'rope_scaling', 'nope_interval', 'rope_layers'))
  return max(config.max_seq_len, before.max_seq_len if alike else 0)


def _questions_a_step(t: Any, samples: int) -> int:
  """Questions that a step's rows are answers to; ValueError where they do not divide."""
  if jax.process_count() > 1:
    raise ValueError('train.reinforce samples in one process: start one, with all devices')
  if t.rows % samples:
    raise ValueError(f'a step of {t.rows} rows does not divide into questions of '
                     f'train.reinforce.samples={samples} answers: change train.batch_tokens')
  return t.rows // samples


def open_checkpoints(run: Run, note: Callable[[str], None]) -> store.Checkpoints:
  """The run's checkpoints, which with a `train.checkpoint_dir` are there too, by the folder's name.

  Raises ValueError for a `train.keep_best` that no evaluation measures.
  """
  t = run.config.train
  scores = [f'val/{name}/{what}' for name in run.held_out for what in ('loss', 'bpb', 'ece')]
  if t.keep_best and t.keep_best not in scores:
    raise ValueError(f'train.keep_best={t.keep_best!r}: one of {", ".join(scores)}')
  directory = pathlib.Path(run.directory)
  name = directory.name.removesuffix('.partial')
  return store.Checkpoints(
    str(directory / 'checkpoints'), keep=t.keep, keep_every=t.keep_every,
    keep_best=bool(t.keep_best), note=note,
    elsewhere=t.checkpoint_dir and f'{t.checkpoint_dir.rstrip("/")}/{name}',
    rows=[directory / 'metrics.jsonl', directory / 'events.jsonl'])


def newest(run: Run, checkpoints: store.Checkpoints) -> Snapshot:
  """The newest checkpoint; without one that of `train.branch_from`, or fresh parameters.

  Raises ValueError for a checkpoint that was trained on other batches until there.
  """
  restored = checkpoints.restore(run.plan.params, run.plan.opt_state, _as_stored)
  if restored is None:
    return _branch(run) if run.config.train.branch_from else _fresh(run)
  step, *arrays, position, stored = restored
  # What is to come may have changed on purpose, such as the length of the run; the past may not.
  same = stored['fingerprint'] == run.meta['fingerprint']
  if not same and stored.get('past') != run.batches.fingerprint(step):
    raise ValueError(
      f'{run.directory}: the checkpoint at step {step} was trained on another stream of batches '
      '(corpus, mixture, rows or seed differ): use a fresh workdir'
    )
  changed = metrics.changes(stored.get('config', {}), run.meta.get('config', {}))
  return Snapshot(step, _state(run, *arrays), position, changed)


def _as_stored(opt_state: PyTree, stored: PyTree) -> PyTree:
  return opt_state | {'guard': guard.as_stored(opt_state['guard'], stored['guard'])}


def _state(run: Run, params: PyTree, opt_state: PyTree) -> dict:
  """The state of a run from what was stored of it."""
  if run.config.guard.window != guard.window(opt_state['guard']):
    known = guard.resized(jax.device_get(opt_state['guard']), run.config.guard.window)
    opt_state = opt_state | {'guard': sharding.place(known, run.plan.places['guard'])}
  return {'params': params, 'opt_state': opt_state}


def _branch(run: Run) -> Snapshot:
  t, batches = run.config.train, run.batches
  step, *arrays, position, stored = store.restore_other(
    t.branch_from, run.plan.params, run.plan.opt_state, _as_stored)
  if stored.get('past') != batches.fingerprint(step):
    raise ValueError(
      f'train.branch_from={t.branch_from}: before its step {step} other batches were trained '
      'on than this config has there: let corpora, rows, seed, and train.stages up to that '
      'step be the same'
    )
  if step >= t.steps:
    raise ValueError(
      f'train.branch_from={t.branch_from} is at step {step}, but train.tokens={t.tokens} end '
      f'with step {t.steps}: raise them, or branch from an earlier checkpoint'
    )
  return Snapshot(step, _state(run, *arrays), position)


def _fresh(run: Run) -> Snapshot:
  plan = run.plan
  if run.model_config.lora_rank:
    params = jax.jit(lora.init, static_argnums=0, out_shardings=jax.tree.map(
      lambda x: x.sharding, plan.params))(run.model_config, run.key)
  else:
    params = first_params(
      run.config.train.init_from, run.model_config, run.key, plan.params, plan.scales)
  if plan.teacher:
    more = plan.teacher.init(run.key)
    params |= sharding.place(more, sharding.shardings(more, run.mesh))
  places = plan.places
  init = jax.jit(plan.optimizer.init, out_shardings=places['optimizer'])
  opt_state = {
    'optimizer': init(params), 'guard': sharding.place(plan.fresh_guard, places['guard'])}
  return Snapshot(0, {'params': params, 'opt_state': opt_state}, iter(run.batches).get_state())


def load_teacher(
  config: Any,
  student: model.ModelConfig,
  mesh: jax.sharding.Mesh,
  caches: Mapping[str, teacher_cache.Cache],
) -> tuple[distill.Teacher | None, PyTree]:
  """The teacher that `config` (section distill of configs/base.py) names, and its parameters.

  They are in the student's compute dtype, on the mesh: all of them if it runs beside the student,
  the output matrix for stored hidden states, nothing for samples.

  Raises ValueError if teacher, student and caches do not fit each other.
  """
  if not config.teacher:
    return None, None
  given = {f.name: config[f.name] for f in dataclasses.fields(distill.Teacher) if f.name in config}
  if config.cache != 'none':
    found = json.loads(json.dumps(load.weights_fingerprint(config.teacher)))
    for name, cache in caches.items():
      wanted = {'cache': config.cache, 'teacher': found}
      if config.cache != 'hidden':
        wanted['temperature'] = config.temperature
      for what, value in wanted.items():
        if cache.manifest[what] != value:
          raise ValueError(
            f'the teacher cache of {name!r} has another {what} than distill.{what}: '
            f'{cache.manifest[what]!r}, not {value!r}; write it again')
    if config.cache != 'hidden':
      return distill.Teacher(None, student, **given), None
  teacher, params, _ = load.load_weights(config.teacher)
  teacher, params = model.without_mtp(teacher, params)
  teacher = dataclasses.replace(
    teacher, dtype=student.dtype, attention=student.attention, remat='none',
    max_segments=student.max_segments)
  made = distill.Teacher(teacher, student, **given)
  params = jax.tree.map(lambda x: x.astype(teacher.dtype), params)
  params = sharding.place(params, sharding.shardings(params, mesh))
  if config.cache == 'hidden':
    params = {'unembed_DV': jax.jit(model.unembedding, static_argnums=0)(teacher, params)}
  return made, params


def first_params(
  init_from: str, config: model.ModelConfig, key: jax.Array, expected: PyTree,
  scales: Mapping[str, mup.Multipliers],
) -> PyTree:
  """Fresh parameters, or those of another model of the same shape, placed on the mesh that is set.

  What gives parameters no shape may differ: rotary base, context length, which layers rotate.
  """
  if not init_from:
    return mup.initialise(model.init(config, key), scales)
  params = load.load_weights(init_from)[1]
  reference.require_shapes('train.init_from', init_from, params, expected)
  return sharding.place(params, jax.tree.map(lambda x: x.sharding, expected))


_merge = jax.jit(lora.merged, static_argnums=0)


def _name_seed(name: str) -> int:
  """A 32-bit number that a consumer of randomness folds into the run's key."""
  return int.from_bytes(name.encode()[:4].ljust(4, b'\0'), 'little')

"""Times the train step on this machine's devices: one JSON line.

  python -m experiments.benchmarks.train_step --shape=tiny --rows=32 --seq_len=256 [--noguard]
  python -m experiments.benchmarks.train_step --shape=smollm3-3b --rows=4 --seq_len=4096 \
    --chunk=4096 --model=scan_layers=False,fp8=True --kernels=30 --hlo=step.hlo
  python -m experiments.benchmarks.train_step … --corpus=DIR --steps=300 --learning_rate=2e-4
  python -m experiments.benchmarks.train_step … --framework=torch
  python -m experiments.benchmarks.train_step … --objective=sft
  python -m experiments.benchmarks.train_step … --objective=dpo   # its share of sft's tokens/s

Rows are packed from documents of log-normal length (median --document tokens) of random ids, the
same in every step, or are those of a tokenised corpus, and then `losses` are means over each tenth
of the steps. `mfu` counts causal attention over whole rows; `visible` is the share of its pairs
that lie in one document (of the first batch), which are all that must be computed. With
--learned=SHARE they are as if of conversations, of which that share is learned: what fine-tuning
costs at equal packing. The first step compiles and is timed apart. With --kernels, what the device
did in three more steps is listed on stderr: milliseconds a step by name of kernel, and what it
waited; `profile` has its share of exchange with other GPUs, and how much of that nothing else hid.
With --checkpoint=DIR the state is saved there after them, and removed again: `checkpoint` has the
seconds that training pauses for it, the slowest step while it is written, and those until it is
sealed. `--framework=torch` times PyTorch's best step (torch_step) on the same batch instead, by
AdamW, without norms of leaves or a guard. `--objective` learns of each document its last two thirds
(sft), or of two at a time which is better, with a frozen copy of the model in the same step (a loss
of preferences.py), or what a loss of reinforce.py says of it.
"""

import collections
import contextlib
import dataclasses
import glob
import itertools
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from configs import base
from smoljax import gpu, metrics, model, optim, sharding
from smoljax.checkpoints.store import Checkpoints
from smoljax.data import packing
from smoljax.data.batches import Batches, Stage, prefetch
from smoljax.data.corpus import open_corpus
from smoljax.train import guard, memory, preferences, reinforce
from smoljax.train.step import Objective, make_train_step

_FRAMEWORK = flags.DEFINE_enum('framework', 'jax', ['jax', 'torch'], 'Whose step.')
_SHAPE = flags.DEFINE_enum('shape', 'tiny', list(model.SHAPES), 'Model to train.')
_ROWS = flags.DEFINE_integer('rows', 32, 'Rows a step.')
_SEQ_LEN = flags.DEFINE_integer('seq_len', 256, 'Tokens a row.')
_STEPS = flags.DEFINE_integer('steps', 10, 'Steps timed.')
_OPTIMIZER = flags.DEFINE_enum('optimizer', 'adamw', list(optim.OPTIMIZERS), 'Optimizer.')
_TAU = flags.DEFINE_float('tau', 0.0, 'QK-Clip of logits above this: with muon, MuonClip.')
_MEASURE = flags.DEFINE_string('measure', 'bound', 'How those logits are measured: exact, limit.')
_COEFFICIENTS = flags.DEFINE_string('coefficients', 'pe5', "Muon's table for Newton–Schulz.")
_MESH = flags.DEFINE_list(
  'mesh', ['fsdp=-1'], 'Sizes of the mesh, such as fsdp=4,tensor=2; auto = as a run chooses them.')
_GUARD = flags.DEFINE_bool('guard', True, 'With the guard.')
_LEAVES = flags.DEFINE_bool('leaves', True, 'With norms and RMS of every leaf.')
_MODEL = flags.DEFINE_list('model', [], "Fields of the model that differ from the shape's: K=V,…")
_CHUNK = flags.DEFINE_integer('chunk', 512, 'Places whose logits exist at once.')
_MAX_SEGMENTS = flags.DEFINE_integer('max_segments', 0, 'Documents a row may hold; 0 = usual.')
_DOCUMENT = flags.DEFINE_integer('document', 400, 'Median length of documents.')
_LEARNED = flags.DEFINE_float(
  'learned', 0, 'Share of each document that is learned, as of conversations; 0 = no mask.')
_CORPUS = flags.DEFINE_string('corpus', None, 'Tokenised corpus to train on.')
_LEARNING_RATE = flags.DEFINE_float('learning_rate', 2e-4, 'Peak, after a twentieth of the steps.')
_OBJECTIVE = flags.DEFINE_enum(
  'objective', 'next_token', ['next_token', 'sft', *preferences.LOSSES, *reinforce.LOSSES],
  'What is minimised.')
_KERNELS = flags.DEFINE_integer('kernels', 0, 'Lists so many kernels by their time (GPU).')
_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'Folder for a checkpoint, which is timed.')
_HLO = flags.DEFINE_string('hlo', None, 'File that the compiled program is written to.')


def packed_batch(
  rows: int, seq_len: int, vocab_size: int, max_segments: int = 0, seed: int = 0,
  median: int = 400, learned: float = 0.0,
) -> tuple[dict[str, np.ndarray], int]:
  """A batch of random ids packed from documents of log-normal length, and max_segments.

  With `learned` it has what batches of conversations have, the end of each document learned.
  """
  rng = np.random.default_rng(seed)
  number = 4 * rows * seq_len // median + 4
  lengths = np.maximum(2, rng.lognormal(np.log(median), 1.0, number)).astype(int)
  max_segments = max_segments or packing.usual_segments(lengths, seq_len)
  packed = packing.pack(lengths.tolist(), seq_len, max_segments)
  packed = [packed[i] for i in rng.choice(len(packed), rows, replace=False)]
  batch: dict[str, np.ndarray] = {
    k: np.zeros((rows, seq_len), np.int32) for k in ('segment_ids', 'positions')}
  for i, row in enumerate(packed):
    ends = np.cumsum([p.length for p in row])
    for segment, (end, piece) in enumerate(zip(ends, row, strict=True), start=1):
      batch['segment_ids'][i, end - piece.length : end] = segment
      batch['positions'][i, end - piece.length : end] = np.arange(piece.length)
  batch['inputs'], batch['targets'] = rng.integers(0, vocab_size, (2, rows, seq_len), np.int32)
  batch['source'] = np.zeros(rows, np.int32)
  if learned:
    batch |= {k: np.zeros((rows, seq_len), bool) for k in ('loss_mask', 'ends')}
    batch['mode'] = (batch['segment_ids'] > 0) * np.int32(1)
    for i, row in enumerate(packed):
      for end, piece in zip(np.cumsum([p.length for p in row]), row, strict=True):
        batch['loss_mask'][i, end - max(1, round(learned * piece.length)) : end] = True
        batch['ends'][i, end - 1] = True
  return batch, max_segments


def asked(batch: dict[str, np.ndarray], objective: str) -> dict[str, np.ndarray]:
  """The batch as the objective takes it: masks, whole pairs of documents, or advantages."""
  if objective == 'next_token':
    return batch
  segments, positions = batch['segment_ids'], batch['positions']
  if objective in preferences.LOSSES:  # the last document of a row may have none beside it
    last = segments.max(axis=1, keepdims=True)
    segments = np.where((segments == last) & (last % 2 == 1), 0, segments)
  # Where a document's last two thirds begin.
  length = np.zeros_like(positions)
  for row, of in zip(length, segments, strict=True):
    row[:] = np.bincount(of)[of]
  mask = (segments > 0) & (3 * positions >= length)
  batch |= {'segment_ids': segments, 'loss_mask': mask, 'ends': np.zeros_like(mask),
            'mode': (segments > 0).astype(np.int32)}
  if objective in reinforce.LOSSES:
    batch |= {'weight': reinforce.token_weights(objective, mask, 1),
              'old_logp': np.full(mask.shape, -10, np.float32),
              'advantage': np.ones(len(mask), np.float32)}
  return batch


def replaced(config: model.ModelConfig, changes: list[str]) -> model.ModelConfig:
  """The config with fields given as 'name=value', of the type that they have."""
  for change in changes:
    name, _, value = change.partition('=')
    kind = type(getattr(config, name))
    value = value.lower() in ('1', 'true') if kind is bool else kind(value)
    config = dataclasses.replace(config, **{name: value})
  return config


def visible(segment_ids_BT: np.ndarray) -> float:
  """The share of a row's causal pairs that lie in one document: what attention has to compute."""
  lengths = np.concatenate([np.bincount(row)[1:] for row in segment_ids_BT]).astype(float)
  return float(np.sum(lengths * (lengths + 1))
               / (segment_ids_BT.size * (segment_ids_BT.shape[1] + 1)))


_EXCHANGE = re.compile(r'nccl|all-?reduce|all-?gather|reduce-?scatter|collective|send|recv', re.I)


def kernels(run: Callable[[], None], steps: int, limit: int) -> dict[str, float]:
  """What the first GPU did while `run` took so many steps, in milliseconds a step.

  Prints a table by name of kernel of so many lines.

  Returns:
    `step_ms`, of which `idle_ms` nothing ran, `exchange_ms` data went between GPUs, and of that
    `exposed_ms` nothing else was computed meanwhile.
  """
  with tempfile.TemporaryDirectory() as directory:
    with jax.profiler.trace(directory):
      run()
    file = glob.glob(f'{directory}/**/*.xplane.pb', recursive=True)[0]
    plane = next(p for p in jax.profiler.ProfileData.from_file(file).planes
                 if p.name.startswith('/device:GPU'))
    times, counts = collections.defaultdict(float), collections.defaultdict(float)
    exchange, compute = [], []
    for line in plane.lines:
      if not line.name.startswith('Stream'):
        continue
      for event in line.events:
        name = re.sub(r'[_.\d]+$', '', event.name)
        times[name] += event.duration_ns / 1e6 / steps
        counts[name] += 1 / steps
        of = exchange if _EXCHANGE.search(name) else compute
        of.append((event.start_ns, event.start_ns + event.duration_ns))
  spans = exchange + compute
  whole = max(stop for _, stop in spans) - min(start for start, _ in spans)
  busy, hidden = _covered(spans), _covered(compute)
  found = {'step_ms': whole, 'idle_ms': whole - busy, 'exchange_ms': _covered(exchange),
           'exposed_ms': busy - hidden}
  found = {name: round(ns / 1e6 / steps, 2) for name, ns in found.items()}
  print(', '.join(f'{name} {ms:.1f}' for name, ms in found.items()), file=sys.stderr)
  for name in sorted(times, key=lambda name: -times[name])[:limit]:
    print(f'{times[name]:8.2f} ms {counts[name]:7.1f} x {name[:100]}', file=sys.stderr)
  return found


def _covered(spans: Sequence[tuple[float, float]]) -> float:
  """Length of the union of spans (start, stop)."""
  covered, end = 0.0, 0.0
  for start, stop in sorted(spans):
    covered += max(0, stop - max(start, end))
    end = max(end, stop)
  return covered


def time_save(
  saved: Checkpoints, state: dict, take_step: Callable[[dict], dict]
) -> tuple[dict, dict]:
  """The state after three more steps, and what a save before them took."""
  began = time.perf_counter()
  saved.save(1, state['params'], state['opt_state'], {}, {})
  took, slowest = {'pause_seconds': round(time.perf_counter() - began, 2)}, 0.0
  for _ in range(3):
    step_began = time.perf_counter()
    state = take_step(state)
    slowest = max(slowest, time.perf_counter() - step_began)
  saved.close()
  sealed = time.perf_counter() - began
  return state, took | {'step_seconds': round(slowest, 3), 'sealed_seconds': round(sealed, 2)}


def prepare(config: model.ModelConfig, steps: int, seed: int = 0) -> tuple[dict, Any]:
  """The state that so many steps start from, and the step, as the flags ask for."""
  settings, guarding = base.get_config().optimizer, base.get_config().guard
  settings.name, settings.learning_rate = _OPTIMIZER.value, _LEARNING_RATE.value
  guarding.enabled = _GUARD.value
  settings.qk_clip.tau, settings.muon.coefficients = _TAU.value, _COEFFICIENTS.value
  settings.qk_clip.measure = _MEASURE.value
  params = model.init(config, jax.random.key(seed))
  optimizer, info = optim.make_optimizer(settings, params, steps)
  state = {
    'params': params,
    'opt_state': {
      'optimizer': jax.jit(optimizer.init)(params),
      'guard': guard.init(guarding, config.num_layers),
    },
  }
  name = _OBJECTIVE.value
  objective = Objective(
    chunk=_CHUNK.value,
    mtp_weight=(lambda step: jnp.float32(0.3)) if config.mtp != 'none' else None,
    preference=preferences.Preference(name) if name in preferences.LOSSES else None,
    reinforce=reinforce.Reinforce(name) if name in reinforce.LOSSES else None)
  return state, make_train_step(
    config, optimizer, guarding, objective, leaves=_LEAVES.value,
    update_twice=info.elementwise, qk_clip=settings.qk_clip, clip_norm=settings.clip_norm,
  )


def mesh_of(config: model.ModelConfig, sizes: Sequence[str]) -> jax.sharding.Mesh:
  """The mesh that --mesh asks for, over all devices."""
  given: dict[str, int] = dict.fromkeys(sharding.AXES, 1)
  if list(sizes) == ['auto']:
    stats = jax.devices()[0].memory_stats() or {}
    given = memory.choose_mesh(
      config, dict.fromkeys(sharding.AXES, -1), devices=jax.device_count(), rows=_ROWS.value,
      seq_len=_SEQ_LEN.value, chunk=_CHUNK.value, memory=stats.get('bytes_limit'))
  else:
    given |= {axis: int(size) for axis, _, size in (s.partition('=') for s in sizes)}
  return sharding.make_mesh(**given)


def time_torch(config: model.ModelConfig, batch: dict[str, np.ndarray]) -> None:
  """Prints what PyTorch's step takes."""
  import torch

  from experiments.benchmarks import torch_step

  chunk = _CHUNK.value * _ROWS.value  # ours are of all rows together
  first, seconds, held = torch_step.run(config, batch, chunk, _STEPS.value, _LEARNING_RATE.value)
  device = torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'
  print(json.dumps({
    **figures(config, first, seconds, held, device), 'device': device, 'torch': torch.__version__}))


def figures(config: model.ModelConfig, first: float, seconds: list[float], held: int,
            device: str, devices: int = 1) -> dict:
  """What was timed, of either framework: tokens a second by the median step, the share of the
  devices' peak, seconds of the first step and bytes held at most."""
  rate = _ROWS.value * _SEQ_LEN.value / float(np.median(seconds))
  peak, flops = metrics.peak_flops(device), config.flops_per_token(_SEQ_LEN.value)
  return {
    'benchmark': 'train_step',
    'objective': _OBJECTIVE.value,
    'framework': _FRAMEWORK.value,
    'shape': _SHAPE.value,
    'rows': _ROWS.value,
    'seq_len': _SEQ_LEN.value,
    'remat': config.remat,
    'model': _MODEL.value,
    'chunk': _CHUNK.value,
    **({'learned': _LEARNED.value} if _LEARNED.value else {}),
    'tokens_per_sec': round(rate, 1),
    'mfu': peak and round(rate * flops / peak / devices, 4),
    'gflops_per_sec': round(rate * flops / 1e9, 2),
    'first_step_seconds': round(first, 2),
    'peak_gb': round(held / 1e9, 2) or None,
  }


def main(argv: list[str]) -> None:
  """Prints seconds, tokens a second and memory of the training step, as one JSON line."""
  del argv
  config = replaced(model.SHAPES[_SHAPE.value], _MODEL.value)
  warm, steps = 1, _STEPS.value
  if _CORPUS.value:
    corpus = open_corpus(_CORPUS.value)
    stage = Stage('all', 0, warm + steps + 3, {corpus.name: 1.0})
    batches = Batches(
      {corpus.name: corpus}, [stage], rows=_ROWS.value, seq_len=_SEQ_LEN.value, window=2048,
      max_segments=_MAX_SEGMENTS.value, seed=0)
    max_segments, batches = batches.max_segments, prefetch(batches)
  else:
    batch, max_segments = packed_batch(
      _ROWS.value, _SEQ_LEN.value, config.vocab_size, _MAX_SEGMENTS.value,
      median=_DOCUMENT.value, learned=_LEARNED.value)
    batches = itertools.repeat(asked(batch, _OBJECTIVE.value))
  config = dataclasses.replace(config, max_segments=max_segments)
  if _FRAMEWORK.value == 'torch':
    return time_torch(config, next(batches))
  mesh = mesh_of(config, _MESH.value)
  with jax.set_mesh(mesh), contextlib.ExitStack() as cleanup:
    state, step = prepare(config, warm + steps + 3)
    saved: Any = None
    if _CHECKPOINT.value:
      folder = cleanup.enter_context(tempfile.TemporaryDirectory(dir=_CHECKPOINT.value))
      saved = cleanup.enter_context(Checkpoints(folder))
      saved.reserve((state['params'], state['opt_state']['optimizer']))
    frozen: Any = None
    if _OBJECTIVE.value in preferences.LOSSES and preferences.LOSSES[_OBJECTIVE.value].reference:
      frozen = jax.tree.map(lambda x: jnp.array(x, config.dtype), state['params'])
    batch = next(batches)
    seen = visible(batch['segment_ids'])
    batch = sharding.shard_batch(batch, mesh)
    began = time.perf_counter()
    compiled = step.lower(state, batch, frozen).compile()
    step = lambda state, batch: compiled(state, batch, frozen)
    state, out = step(state, batch)
    jax.block_until_ready(out)
    first = time.perf_counter() - began
    seconds, cpu_seconds, losses = [], [], []
    energy = gpu.Energy([d.local_hardware_id for d in jax.devices() if d.platform == 'gpu'])
    for _ in range(steps):
      batch = sharding.shard_batch(next(batches), mesh)
      began, cpu_began = time.perf_counter(), time.process_time()
      state, out = step(state, batch)
      jax.block_until_ready((state, out))
      cpu_seconds.append(time.process_time() - cpu_began)
      seconds.append(time.perf_counter() - began)
      losses.append(jnp.sum(out['loss_sum_S']) / jnp.sum(out['tokens_S']))
    joules = energy.joules()

    def three_steps():
      nonlocal state
      for _ in range(3):
        state, out = step(state, batch)
      jax.block_until_ready((state, out))

    save, profile = None, None
    if _CHECKPOINT.value:
      state, save = time_save(
        saved, state, lambda state: jax.block_until_ready(step(state, batch)[0]))
    if _KERNELS.value:
      profile = kernels(three_steps, 3, _KERNELS.value)
  if _HLO.value:
    with open(_HLO.value, 'w') as f:
      f.write(compiled.as_text())
  stats = jax.devices()[0].memory_stats() or {}
  print(
    json.dumps(
      {
        **figures(config, first, seconds, stats.get('peak_bytes_in_use', 0),
                  jax.devices()[0].device_kind, jax.device_count()),
        'optimizer': _OPTIMIZER.value,
        'tau': _TAU.value,
        **({'measure': _MEASURE.value} if _TAU.value else {}),
        'mesh': {axis: n for axis, n in mesh.shape.items() if n > 1},
        'guard': _GUARD.value,
        'leaves': _LEAVES.value,
        'max_segments': max_segments,
        'visible': round(seen, 3),
        **({'profile': profile} if profile else {}),
        **({'checkpoint': save} if save else {}),
        **({'losses': [float(np.mean(x)) for x in np.array_split(losses, 10)]}
           if _CORPUS.value else {}),
        'cpu_seconds_per_step': round(float(np.median(cpu_seconds)), 4),
        'joules_per_token': joules and round(
          joules / (steps * _ROWS.value * _SEQ_LEN.value), 5),
        'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
        'jax': jax.__version__,
      }
    )
  )


if __name__ == '__main__':
  app.run(main)

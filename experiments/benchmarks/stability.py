"""Who survives which fault: a small model on real text, one JSON line a run, then a table.

  python -m experiments.benchmarks.stability --corpus=TOKENISED --output=runs/stability

TOKENISED is any small tokenised corpus, such as runs/quickstart/tokens/web.

Every contestant trains cleanly and with each fault (injected by smoljax.guard or by the config):

  nan      one NaN gradient element at half of the steps
  repeat   a batch of one token over and over, there
  bitflip  a gradient element of 10,000, there
  burst    the learning rate times 8 for ten steps from there
  logits   the learning rate times 8 and initial query and key kernels times 4, from the start

Columns, each a mean over --seeds: held-out loss at the end; its gap to the same contestant's clean
runs of the same seeds, and the gaps of the best and the worst seed; the largest attention logit of
a step of any seed, as it enters the softmax (exact; with QK-norm of the final model only); steps
from the fault until the training loss (mean of three rows) is within 3 % of the clean run's for
good; steps skipped and batches that a rollback left out. A run that was done before is read from
--output, not done again: several processes may share the work, each with some --contestants, and
the last one makes the table of all.
"""

import json
import os
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from configs import base
from experiments.engine import config as config_lib
from smoljax import metrics, model
from smoljax.checkpoints import huggingface, load
from smoljax.data.corpus import open_corpus
from smoljax.train import guard, loop
from smoljax.train.telemetry import Diverged

_CORPUS = flags.DEFINE_string('corpus', None, 'Tokenised corpus, with a validation split.')
_OUTPUT = flags.DEFINE_string('output', None, 'Folder for the runs and the table.')
_STEPS = flags.DEFINE_integer('steps', 200, 'Steps of each run; the fault comes half-way.')
_ROWS = flags.DEFINE_integer('rows', 8, 'Rows of 128 tokens a step.')
_WARMUP = flags.DEFINE_float('warmup', 0.05, 'Share of the steps in which the rate rises.')
_TAU = flags.DEFINE_float('tau', 30.0, 'Largest logit allowed by QK-Clip.')
_SEEDS = flags.DEFINE_integer('seeds', 1, 'Runs of each contestant with each fault.')
_CONTESTANTS = flags.DEFINE_list('contestants', None, 'Names of CONTESTANTS; all if not given.')
_FAULTS = flags.DEFINE_list('faults', None, 'Names of FAULTS; all if not given.')

_SEQ_LEN = 128
_RATE = 3e-3

# What each changes of AdamW without clipping and without a guard. `tau` becomes --tau.
CONTESTANTS: dict[str, dict[str, Any]] = {
  'none': {},
  'clip': {'optimizer.clip_norm': 1.0},
  'zclip': {'optimizer.clip_norm': 1.0, 'optimizer.clip': 'zclip'},
  'adagc': {'optimizer.clip_norm': 1.0, 'optimizer.clip': 'adagc'},
  'skip-step naive': {'guard.enabled': True, 'guard.patience': 10**6},
  'guard': {'guard.enabled': True},
  'qk-clip': {'optimizer.qk_clip.tau': 'tau'},
  'qk-norm': {'model.qk_norm': True},
  'muon': {'optimizer.name': 'muon'},
  'muonclip': {'optimizer.name': 'muon', 'optimizer.qk_clip.tau': 'tau'},
  'muonclip with limit': {
    'optimizer.name': 'muon', 'optimizer.qk_clip.tau': 'tau', 'optimizer.qk_clip.measure': 'limit',
  },
  'muon, rates by logits': {
    'optimizer.name': 'muon', 'optimizer.clip_norm': 1.0, 'optimizer.qk_clip.tau': 'tau',
    'optimizer.qk_clip.rule': 'rates',
  },
  'muonclip + guard': {
    'optimizer.name': 'muon', 'optimizer.qk_clip.tau': 'tau', 'guard.enabled': True,
  },
}  # fmt: skip
FAULTS = {
  'clean': {},
  'nan': {'guard.inject': 'nan@{half}'},
  'repeat': {'guard.inject': 'spike@{half}'},
  'bitflip': {'guard.inject': 'bitflip@{half}'},
  'burst': {'guard.inject': 'lr8x@{half}:{later}'},
  'logits': {'optimizer.learning_rate': 8 * _RATE},
}


def make_config(
  contestant: str, fault: str, steps: int, tau: float, vocab_size: int, seed: int = 0
) -> Any:
  """The config of one run: a small model, a contestant's guards, a fault put in."""
  c = base.get_config()
  c.seed = seed
  c.data.seq_len = _SEQ_LEN
  c.tokenizer.vocab_size = vocab_size
  c.model.update(
    dict(num_layers=3, embed_dim=96, num_heads=4, num_kv_heads=2, head_dim=24, mlp_dim=256)
  )
  c.model.dtype = 'float32'
  c.train.batch_tokens = _ROWS.value * _SEQ_LEN
  c.train.tokens = steps * c.train.batch_tokens
  c.train.stages = (dict(name='all', fraction=1.0, mixture=dict(text=1.0)),)
  c.train.log_every = 5
  c.train.eval_every = steps
  c.train.checkpoint_every = 20
  c.train.loss_chunk = 64
  c.train.tensorboard = False
  c.optimizer.learning_rate = _RATE
  c.optimizer.warmup_fraction = _WARMUP.value
  c.optimizer.clip_norm = 0.0
  # To measure the logits without clipping any.
  c.optimizer.qk_clip.update(dict(tau=1e9, measure='exact'))
  c.guard.update(dict(enabled=False, window=64, min_steps=32, skip_batches=10))
  for changes in (CONTESTANTS[contestant], FAULTS[fault]):
    for key, value in changes.items():
      if value == 'tau':
        value = tau
      elif isinstance(value, str):
        value = value.format(half=steps // 2, later=steps // 2 + 10)
      c.update_from_flattened_dict({key: value})
  if c.model.qk_norm:
    c.optimizer.qk_clip.tau = 0.0
  return config_lib.resolve(c)


def naive_judge(config: Any, state: dict, stats: Mapping[str, jax.Array]) -> tuple:
  """OLMo-core's SkipStepOptimizer: all values are kept, NaN too, and the factor is 0 or 1."""
  taken, rings = jnp.array(1.0), dict(state['rings'])
  count = state['batches']
  there = jnp.arange(config.window) < jnp.minimum(count, config.window)
  for name in ('loss', 'grad_norm'):
    values = rings[name]['values']
    n = jnp.maximum(jnp.sum(there), 2)
    mean = jnp.sum(jnp.where(there, values, 0)) / n
    std = jnp.sqrt(jnp.sum(jnp.where(there, jnp.square(values - mean), 0)) / (n - 1))
    inside = stats[name] - mean <= config.sigma * std
    taken *= jnp.where(count >= config.min_steps, inside, True)
    place = jnp.arange(config.window) == count % config.window
    rings[name] = {**rings[name], 'values': jnp.where(place, stats[name], values)}
  one = taken.astype(jnp.int32)
  state = {
    **state, 'rings': rings, 'batches': count + 1, 'applied': state['applied'] + one,
    'skips': state['skips'] + 1 - one,
  }  # fmt: skip
  report = {k: v for k, v in state.items() if k != 'rings'}
  return taken, state, report | {'compared': {}}


def naive_select(factor: jax.Array, new: Any, old: Any) -> Any:
  """As a lerp: 0 · NaN = NaN."""
  return jax.tree.map(lambda n, o: (o + factor * (n - o)).astype(o.dtype), new, old)


def run(contestant: str, fault: str, seed: int, corpus: str, start: str, directory: str) -> dict:
  """Trains one contestant with one fault; its figures."""
  vocab_size = _vocab_size(corpus)
  c = make_config(contestant, fault, _STEPS.value, _TAU.value, vocab_size, seed)
  if fault == 'logits':
    c.train.init_from = start
  config = config_lib.model_config(c, vocab_size)
  began, outcome = time.process_time(), 'finished'
  naive = contestant == 'skip-step naive'
  with (
    mock.patch.object(guard, 'judge', naive_judge if naive else guard.judge),
    mock.patch.object(guard, 'select', naive_select if naive else guard.select),
  ):
    try:
      loop.train(c, config, {'text': corpus}, directory, log_line=lambda line: None)
    except Diverged:
      outcome = 'diverged'
  rows = metrics.read_rows(os.path.join(directory, 'metrics.jsonl'))
  trained = [r for r in rows if 'train/loss' in r]
  logits = [r['attn/max_logit'] for r in trained if 'attn/max_logit' in r]
  if config.qk_norm and outcome == 'finished':
    logits = [_largest_logit(config, directory, corpus)]
  events = metrics.read_rows(os.path.join(directory, 'events.jsonl'))
  return {
    'contestant': contestant,
    'fault': fault,
    'seed': seed,
    'outcome': outcome,
    'loss': rows[-1].get('val/text/loss') if outcome == 'finished' else None,
    'max_logit': max(logits, default=None),
    'skips': trained[-1]['guard/skips'],
    'left_out': sum(e.get('batches_left_out', 0) for e in events),
    'losses': {r['step']: r['train/loss'] for r in trained},
    'cpu_seconds': round(time.process_time() - began, 1),
    'steps': _STEPS.value,
    'rows': _ROWS.value,
    'tau': _TAU.value,
  }


def _largest_logit(config: model.ModelConfig, directory: str, corpus: str) -> float:
  _, params, _ = load.load_weights(directory)
  documents = open_corpus(corpus, 'validation', 'text')
  rows = [documents.tokens(i)[:_SEQ_LEN] for i in range(len(documents.lengths))]
  tokens_BT = np.stack([r for r in rows if len(r) == _SEQ_LEN][:32])
  out = model.apply(config, params, tokens_BT, max_logits='exact')
  return float(jnp.max(out.aux['max_logits_LN']))


def steps_to_recover(result: Mapping[str, Any], clean: Mapping[str, Any]) -> int | None:
  """From the fault until the mean of three rows stays within 3 % of the clean run; None: never."""
  if result['outcome'] != 'finished':
    return None
  first, last = result['steps'] // 2, 0
  if result['fault'] == 'logits':
    first = 0
  steps = sorted(result['losses'].keys() & clean['losses'].keys())
  steps = [s for s in steps if s >= first]
  for i in range(len(steps) - 2):
    means = [np.mean([r['losses'][s] for s in steps[i : i + 3]]) for r in (result, clean)]
    if means[0] > 1.03 * means[1]:
      last = steps[i + 2] - first
  return None if steps and last == steps[-1] - first else last


def table(results: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> str:
  """Markdown, one line for the runs of a contestant with a fault (one a seed)."""
  lines = [
    '| contestant | fault | held-out loss | gap to clean | worst and best seed | max logit '
    '| steps to recover | skipped | left out |', '|---|---|---|---|---|---|---|---|---|',
  ]  # fmt: skip
  for (name, fault), runs in results.items():
    clean = results.get((name, 'clean'), ())
    pairs = list(zip(runs, clean, strict=False))
    failed = [r['outcome'] for r in runs if r['loss'] is None]
    gaps = [100 * (r['loss'] / c['loss'] - 1) for r, c in pairs if r['loss'] and c['loss']]
    recovered = [steps_to_recover(r, c) for r, c in pairs]
    back = [steps for steps in recovered if steps is not None]
    logits = [r['max_logit'] for r in runs if r['max_logit'] is not None]
    known = fault != 'clean' and not failed and len(gaps) == len(runs)
    keys = () if failed else ('loss', 'skips', 'left_out')
    mean = {key: np.mean([r[key] for r in runs]) for key in keys}
    cells = [
      name,
      fault,
      f'{failed[0]} ({len(failed)} of {len(runs)})' if failed else f'{mean["loss"]:.3f}',
      f'{np.mean(gaps):+.2f} %' if known else '–',
      f'{max(gaps):+.2f}, {min(gaps):+.2f}' if known and len(gaps) > 1 else '–',
      f'{max(logits):.1f}' if logits else '–',
      '–' if not known else 'never' if None in recovered else f'{np.mean(back):.0f}',
      *('–' if failed else f'{mean[k]:.1f}' for k in ('skips', 'left_out')),
    ]
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def _vocab_size(corpus: str) -> int:
  return open_corpus(corpus, 'validation', 'text').manifest['vocab_size']


def _start(corpus: str, output: str) -> str:
  """A Hugging Face folder of initial weights whose queries and keys are four times too large."""
  path = os.path.join(output, 'start')
  if not os.path.exists(path):
    vocab_size = _vocab_size(corpus)
    c = make_config('none', 'clean', _STEPS.value, _TAU.value, vocab_size)
    config = config_lib.model_config(c, vocab_size)
    params = model.init(config, jax.random.key(c.seed))
    attn = params['blocks']['attn']
    attn |= {name: 4 * attn[name] for name in ('q_DNH', 'k_DKH')}
    huggingface.save_hf(config, params, path, dtype='float32')
  return path


def main(_: list[str]) -> None:
  """Runs each contestant through each fault; prints JSON lines and a table."""
  corpus, output = _CORPUS.value, _OUTPUT.value
  start = _start(corpus, output)
  results: dict[tuple[str, str], list[dict]] = {}
  for fault in _FAULTS.value or FAULTS:
    for name in _CONTESTANTS.value or CONTESTANTS:
      if fault == 'logits' and name == 'qk-norm':
        continue  # it has other parameters, and none of them scales its queries and keys
      for seed in range(_SEEDS.value):
        folder = re.sub(r'\W+', '-', f'{name}-{fault}-{seed}')
        directory = pathlib.Path(output, 'runs', folder)
        done = directory / 'result.json'
        if not done.exists():
          result = run(name, fault, seed, corpus, start, str(directory))
          done.write_text(json.dumps(result))
        result = json.loads(done.read_text())
        result['losses'] = {int(step): loss for step, loss in result['losses'].items()}
        results.setdefault((name, fault), []).append(result)
        shown = {k: v for k, v in result.items() if k != 'losses'}
        print(json.dumps(shown), flush=True)
  order = list(CONTESTANTS)
  text = table(dict(sorted(results.items(), key=lambda item: order.index(item[0][0]))))
  pathlib.Path(output, 'stability.md').write_text(text + '\n')
  print(text)


if __name__ == '__main__':
  flags.mark_flags_as_required(['corpus', 'output'])
  app.run(main)

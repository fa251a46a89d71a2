"""Do a teacher and multi-token prediction teach more per token? A contest on one accelerator.

  python -m experiments.benchmarks.more_per_token tokens --text='GLOB' --output=DATA/code
  python -m experiments.benchmarks.more_per_token distill --data=DATA --output=DIR
  python -m experiments.benchmarks.more_per_token decode --data=DATA --output=DIR
  python -m experiments.benchmarks.more_per_token mtp --data=DATA --output=DIR
  python -m experiments.benchmarks.more_per_token step --shape=smollm3-1b
  python -m experiments.benchmarks.more_per_token report --output=DIR

`distill`: a teacher (12 layers of 768, with two sequential modules) is trained on code, then
students of a tenth of its size, with three seeds each: on cross entropy, beside the teacher, from
50 draws of each place, from its 12 likeliest ids with a tail bucket, with the 12 renormalised (what
is biased), and with a quarter of the tokens. `decode`: the teacher speculates. `mtp`: the grid of
configs/mtp.py on code and on prose. `step`: the time of a training step by objective.

Scored are, on held-out text: bits per byte; calibration error; and what a model saves (nats a
token) on a passage of 128 tokens that it has seen right before (copy) or 256 tokens before (far).
One JSON line a run, in OUTPUT/runs.jsonl.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import base, mtp
from experiments.benchmarks.optimizer_contest import batch_of, make_tokens
from smoljax import metrics, model, optim
from smoljax.inference import cache
from smoljax.inference.generate import generate
from smoljax.inference.sampling import Sampling
from smoljax.inference.speculative import Speculation
from smoljax.train import cross_entropy, distill, objectives

ROWS, SEQ_LEN, STEPS, SEEDS = 64, 512, 250, 3
LEARNING_RATE = 2e-3  # half of AdamW's best at twice the batch: at 4e-3 seeds disagree
STUDENT = dict(
  vocab_size=8192, num_layers=6, embed_dim=384, num_heads=6, num_kv_heads=2, head_dim=64,
  mlp_dim=1024, max_seq_len=1024, nope_interval=4, dtype='bfloat16')
TEACHER = STUDENT | dict(num_layers=12, embed_dim=768, num_heads=12, num_kv_heads=4, mlp_dim=2048,
                         mtp='sequential', mtp_depth=2)
TEACHER_STEPS, TEACHER_RATE = 400, 2e-3
HELD_OUT = 128  # rows
PASSAGE, GAP = 128, 256  # tokens


class Text:
  """Rows of SEQ_LEN + 1 tokens, the last ones held out."""

  def __init__(self, folder: pathlib.Path):
    tokens = np.load(folder / 'tokens.npy')
    n = (len(tokens) - 1) // SEQ_LEN
    rows = np.stack([tokens[i * SEQ_LEN : (i + 1) * SEQ_LEN + 1] for i in range(n)])
    self.train, self.held_out = jnp.asarray(rows[:-HELD_OUT]), rows[-HELD_OUT:]
    self.bytes_per_token = json.loads((folder / 'facts.json').read_text())['bytes_per_token']


def settings(rate: float, steps: int) -> Any:
  """The config of the optimizer."""
  c = base.get_config().optimizer
  c.learning_rate, c.warmup_steps = rate, min(40, steps // 10)
  return c


def fit(
  config: model.ModelConfig, text: Text, *, steps: int = STEPS, rate: float = LEARNING_RATE,
  seeds: int = SEEDS, weight: float = 0.0, teacher: distill.Teacher | None = None,
  teacher_params: Any = None, cached: Mapping[str, jax.Array] | None = None,
) -> tuple[Any, np.ndarray, float]:
  """Trained parameters [seeds, …], the curve of losses, and seconds of a step of one seed.

  `cached`: what a teacher's cache holds of each row of text.train.
  """
  optimizer, _ = optim.make_optimizer(
    settings(rate, steps), model.abstract_params(config), steps)
  total = jnp.float32(ROWS * SEQ_LEN)

  def start(seed):
    params = model.init(config, jax.random.key(seed))
    return params, optimizer.init(params)

  def advance(state, numbers_JB, rows, cached, teacher_params):
    def step(state, numbers_B):
      params, opt_state = state
      batch = batch_of(rows[numbers_B]) | {k: x[numbers_B] for k, x in (cached or {}).items()}
      if 'teacher_ids' in batch:
        batch['teacher_ids'] = batch['teacher_ids'].astype(jnp.int32)

      def loss(params):
        found = objectives.next_token(
          config, params, batch, total_tokens=total, num_sources=1, mtp_weight=weight,
          teacher=teacher, teacher_params=teacher_params)
        return found.total, found.metrics['loss_sum_S'][0] / total

      grads, value = jax.grad(loss, has_aux=True)(params)
      updates, opt_state = optimizer.update(grads, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), value

    return jax.lax.scan(step, state, numbers_JB)

  orders = np.stack([
    np.random.default_rng(seed).permutation(len(text.train)) for seed in range(seeds)])
  need = -(-steps // 25) * 25 * ROWS
  orders = np.concatenate([orders] * -(-need // orders.shape[1]), axis=1)[:, :need]
  orders = orders.reshape(seeds, -1, ROWS).astype(np.int32)
  states = jax.jit(lambda seeds: jax.lax.map(start, seeds))(jnp.arange(seeds))
  # One after another, as attention kernels take no further batch dimension.
  run = jax.jit(lambda states, numbers, *args: jax.lax.map(
    lambda one: advance(*one, *args), (states, numbers)), donate_argnums=0)
  curve, times = [], []
  for at in range(0, steps, 25):
    began = time.perf_counter()
    states, losses = run(states, orders[:, at : at + 25], text.train, cached, teacher_params)
    curve.append(np.asarray(losses).mean(axis=1))
    times.append((time.perf_counter() - began) / 25 / seeds)
  return states[0], np.stack(curve, axis=1), float(np.median(times[1:]))


def score(config: model.ModelConfig, text: Text, params: Any) -> list[dict]:
  """Of each seed: loss, bits per byte, calibration error, and what repeated passages save."""
  config, params = model.without_mtp(config, params)
  passages = text.held_out[:, :PASSAGE]
  filler = np.roll(text.held_out, 7, axis=0)[:, :GAP]
  near, far = (np.concatenate(x, axis=1) for x in (
    [passages, passages], [passages, filler, passages]))

  def losses(logits_BCV, given, _):
    nll_BC, _ = cross_entropy.cross_entropy(logits_BCV, given['targets'])
    right_BC = jnp.argmax(logits_BCV, axis=-1) == given['targets']
    return nll_BC, {'nll': nll_BC, 'sure': jnp.max(jax.nn.softmax(logits_BCV), axis=-1),
                    'right': right_BC.astype(jnp.float32)}

  @jax.jit
  def places(params, rows_BX):
    batch = batch_of(rows_BX)
    hidden_BTD, _ = model.hidden(config, params, batch['inputs'])
    return objectives.over_places(
      config, losses, hidden_BTD, model.unembedding(config, params),
      {'targets': batch['targets']}, chunk=128)[1]

  results = []
  for seed in range(jax.tree.leaves(params)[0].shape[0]):
    own = jax.tree.map(lambda x, seed=seed: x[seed], params)
    of: dict[str, dict[str, Any]] = {
      name: {k: np.asarray(x) for k, x in places(own, jnp.asarray(rows)).items()}
      for name, rows in (('text', text.held_out), ('copy', near), ('far', far))}
    loss = float(of['text']['nll'].mean())
    first = of['copy']['nll'][:, 8 : PASSAGE - 1].mean()
    saved = {name: float(first - of[name]['nll'][:, 8 - PASSAGE :].mean())
             for name in ('copy', 'far')}
    sure, right = (of['text'][k].ravel() for k in ('sure', 'right'))
    bins = np.minimum((sure * 15).astype(int), 14)
    off = sum(abs(sure[bins == b].sum() - right[bins == b].sum()) for b in range(15)) / len(sure)
    results.append({
      'loss': loss, 'bpb': loss / np.log(2) / text.bytes_per_token, 'ece': float(off), **saved})
  return results


def record(
  output: pathlib.Path, name: str, data: str, results: Sequence[dict], curve: np.ndarray,
  seconds: float, **facts: Any,
) -> None:
  """Appends a row for each seed to OUTPUT/runs.jsonl, and prints their mean."""
  output.mkdir(parents=True, exist_ok=True)
  with open(output / 'runs.jsonl', 'a') as f:
    for seed, result in enumerate(results):
      row = {'name': name, 'data': data, 'seed': seed, **result, 'step_ms': seconds * 1e3,
             'device': jax.devices()[0].device_kind, **facts,
             'curve': [round(float(x), 4) for x in curve[seed]]}
      f.write(json.dumps(row) + '\n')
  mean = {k: float(np.mean([r[k] for r in results])) for k in results[0]}
  print(f'{name} on {data}:', {k: round(v, 4) for k, v in mean.items()},
        f'± {np.std([r["loss"] for r in results]):.4f}, {seconds * 1e3:.1f} ms a step', flush=True)


# --- Distillation ---------------------------------------------------------------------------------


def distillation(data: pathlib.Path, output: pathlib.Path, *, decoding: bool = False) -> None:
  """Trains a teacher, and students of each objective; with `decoding`, how fast it speculates."""
  text = Text(data / 'code')
  config, large = model.ModelConfig(**STUDENT), model.ModelConfig(**TEACHER)
  stacked, curve, seconds = fit(
    large, text, steps=TEACHER_STEPS, rate=TEACHER_RATE, seeds=1, weight=0.3)
  record(output, 'teacher', 'code', score(large, text, stacked), curve, seconds)
  params = jax.tree.map(lambda x: x[0], stacked)
  if decoding:
    speculate(output, large, params, text)
    return
  text.train = text.train[: STEPS * ROWS]
  large, params = model.without_mtp(large, params)
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  sampled, top = caches(large, params, text)
  make = functools.partial(distill.Teacher, large, config)
  quarter = STEPS // 4
  for name, steps, teacher, theirs, cached in (
    ('cross entropy', STEPS, None, None, None),
    ('beside the teacher', STEPS, make(weight=1.0), params, None),
    ('50 draws', STEPS, make('sampled', weight=1.0), None, sampled),
    ('12 likeliest renormalised', STEPS, make('sampled', weight=1.0), None, top),
    ('cross entropy, quarter', quarter, None, None, None),
    ('50 draws, quarter', quarter, make('sampled', weight=1.0), None, sampled),
    ('12 likeliest and a tail', STEPS, make('topk', weight=1.0), None, top),
    ('50 draws, half cross entropy', STEPS, make('sampled', weight=0.5), None, sampled),
  ):
    found, curve, seconds = fit(
      config, text, steps=steps, teacher=teacher, teacher_params=theirs, cached=cached)
    record(output, name, 'code', score(config, text, found), curve, seconds, steps=steps)


def caches(config: model.ModelConfig, params: Any, text: Text) -> tuple[dict, dict]:
  """Fifty draws of each place of the training rows, and the twelve likeliest ids."""

  @jax.jit
  def teacher_says(key, rows_BX):
    hidden_BTD, _ = model.hidden(config, params, rows_BX[:, :-1].astype(jnp.int32))
    unembed_DV = model.unembedding(config, params)

    def row(key, hidden_TD):
      logits_TV = model.project(config, hidden_TD[None], unembed_DV)[0]
      p_TK, ids_TK = jax.lax.top_k(jax.nn.softmax(logits_TV), 12)
      return (distill.draw(key, logits_TV, 50, 1.0).astype(jnp.uint16),
              ids_TK.astype(jnp.uint16), p_TK.astype(jnp.float16))

    keys_B = jax.random.split(key, len(rows_BX))
    return jax.lax.map(lambda x: row(*x), (keys_B, hidden_BTD), batch_size=16)

  began, parts = time.perf_counter(), []
  for at in range(0, len(text.train), 64):
    parts.append(teacher_says(jax.random.key(at), text.train[at : at + 64]))
  draws, ids, p = (jnp.concatenate(x) for x in zip(*parts, strict=True))
  print(f'caches of {len(draws) * SEQ_LEN:,} places: {time.perf_counter() - began:.0f} s')
  return ({'teacher_ids': draws, 'teacher_shares': jnp.ones_like(draws, jnp.uint8)},
          {'teacher_ids': ids, 'teacher_shares': p})


def speculate(
  output: pathlib.Path, config: model.ModelConfig, params: Any, text: Text, new: int = 256
) -> None:
  """Tokens a second with and without the modules; greedy and sampled, one row and eight."""
  ready = cache.prepare(config, params)
  plain_config = model.without_mtp(config, {})[0]
  for rows in (1, 8):
    prompts = text.held_out[:rows, :128].tolist()
    for temperature in (0.0, 1.0):
      sampling, row = Sampling(temperature=temperature), {}
      for name in ('plain', 'speculative'):
        rates = []
        for seed in range(4):
          seen = Speculation() if name == 'speculative' else None
          began = time.perf_counter()
          found = generate(
            config if seen else plain_config, ready, prompts, max_new_tokens=new,
            sampling=sampling, seed=seed, speculation=seen)
          rates.append(rows * new / (time.perf_counter() - began))
        row[name] = round(float(np.median(rates[1:])), 1)
        if seen:
          row |= {'acceptance': round(seen.acceptance, 3),
                  'tokens_per_round': round(seen.tokens_per_round, 3)}
        if temperature == 0:
          row[f'{name}_tokens'] = found
      if temperature == 0:
        one, other = row.pop('plain_tokens'), row.pop('speculative_tokens')
        same = [next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), new)
                for x, y in zip(one, other, strict=True)]
        row['same_tokens'] = f'{min(same)} to {max(same)} of {new}'  # bfloat16 breaks ties apart
      line = {'name': 'decode', 'rows': rows, 'temperature': temperature,
              'device': jax.devices()[0].device_kind, **row}
      print(json.dumps(line), flush=True)
      output.mkdir(parents=True, exist_ok=True)
      with open(output / 'decode.jsonl', 'a') as f:
        f.write(json.dumps(line) + '\n')


# --- Multi-token prediction -----------------------------------------------------------------------


def prediction(data: pathlib.Path, output: pathlib.Path) -> None:
  """Trains a student for each kind of multi-token prediction in configs/mtp.py."""
  for name in ('code', 'prose'):
    text = Text(data / name)
    for point in mtp.sweep():
      kind, depth, weight = (point[k] for k in ('model.mtp', 'model.mtp_depth', 'mtp.weight'))
      config = model.ModelConfig(**STUDENT, mtp=kind, mtp_depth=depth)
      params, curve, seconds = fit(config, text, weight=weight)
      label = 'none' if kind == 'none' else f'{kind}, {depth} deep, λ {weight}'
      record(output, label, name, score(config, text, params), curve, seconds)


# --- The time of a step ---------------------------------------------------------------------------


def step_times(shape: str, rows: int, seq_len: int, width: int, repeats: int = 8) -> None:
  """Milliseconds and peak memory of a training step by objective; one JSON line each."""
  rng = np.random.default_rng(0)
  base_ms = None
  for name in ('cross entropy', 'draws', 'topk', 'hidden', 'beside', 'sequential', 'parallel',
               'parallel 4'):
    kind, _, depth = name.partition(' ')
    is_mtp = kind in ('sequential', 'parallel')
    config = model.SHAPES[shape]
    config = dataclasses.replace(
      config, max_seq_len=max(seq_len, config.max_seq_len), remat='qkv+ctx+mid+gu',
      mtp=kind if is_mtp else 'none', mtp_depth=int(depth or 1) if depth.isdigit() else 1)
    V, D = config.vocab_size, config.embed_dim
    batch = batch_of(jnp.asarray(rng.integers(0, V, (rows, seq_len + 1))))
    teacher, theirs = None, None
    if kind in ('draws', 'topk'):
      teacher = distill.Teacher(None, config, 'sampled' if kind == 'draws' else 'topk')
      batch['teacher_ids'] = jnp.asarray(rng.integers(0, V, (rows, seq_len, width)), jnp.int32)
      shares = rng.integers(1, 5, (rows, seq_len, width))
      batch['teacher_shares'] = jnp.asarray(
        shares if kind == 'draws' else shares / shares.sum(-1, keepdims=True) * 0.9,
        jnp.uint8 if kind == 'draws' else jnp.float16)
    if kind == 'hidden':
      teacher = distill.Teacher(config, config, 'hidden')
      batch['teacher_hidden'] = jnp.asarray(rng.normal(size=(rows, seq_len, D)), jnp.bfloat16)
      theirs = {'unembed_DV': jnp.asarray(rng.normal(size=(D, V)) * 0.02, jnp.bfloat16)}
    if kind == 'beside':
      teacher = distill.Teacher(config, config)
      theirs = jax.jit(lambda key: jax.tree.map(
        lambda x: x.astype(jnp.bfloat16), model.init(config, key)))(jax.random.key(1))  # noqa: B023
    optimizer, _ = optim.make_optimizer(
      settings(1e-4, 1000), model.abstract_params(config), 1000)
    params = model.init(config, jax.random.key(0))
    state = params, jax.jit(optimizer.init)(params)
    del params

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch, theirs, config=config, teacher=teacher, optimizer=optimizer):
      params, opt_state = state

      def loss(params):
        return objectives.next_token(
          config, params, batch, total_tokens=jnp.float32(rows * seq_len), num_sources=1,
          mtp_weight=0.3, teacher=teacher, teacher_params=theirs).total

      value, grads = jax.value_and_grad(loss)(params)
      updates, opt_state = optimizer.update(grads, opt_state, params)
      return (optax.apply_updates(params, updates), opt_state), value

    compiled: Any = step.lower(state, batch, theirs).compile()
    times = []
    for _ in range(repeats + 2):
      began = time.perf_counter()
      state, value = compiled(state, batch, theirs)
      value.block_until_ready()
      times.append(time.perf_counter() - began)
    milliseconds = float(np.median(times[2:])) * 1e3
    base_ms = base_ms or milliseconds
    plan = compiled.memory_analysis()
    print(json.dumps({
      'objective': name, 'shape': shape, 'rows': rows, 'seq_len': seq_len, 'width': width,
      'ms': round(milliseconds, 1), 'ratio': round(milliseconds / base_ms, 3),
      'tokens_per_sec': round(rows * seq_len / milliseconds * 1e3),
      'temp_gb': round(plan.temp_size_in_bytes / 1e9, 2),
      'device': jax.devices()[0].device_kind}), flush=True)
    del state, theirs, batch, compiled


def report(output: pathlib.Path) -> None:
  """Markdown tables of the runs: mean and standard deviation over seeds."""
  rows = metrics.read_rows(output / 'runs.jsonl')
  print('| data | objective | bits per byte | loss | calibration error | copy | far | ms |')
  print('|---|---|---|---|---|---|---|---|')
  for data, name in dict.fromkeys((r['data'], r['name']) for r in rows):
    own = [r for r in rows if (r['data'], r['name']) == (data, name)]
    cell = lambda k, n=3, own=own: (
      f'{np.mean([r[k] for r in own]):.{n}f} ± {np.std([r[k] for r in own], ddof=1):.{n}f}'
      if len(own) > 1 else f'{own[0][k]:.{n}f}')
    print(f'| {data} | {name} | {cell("bpb", 4)} | {cell("loss")} | {cell("ece", 4)} | '
          f'{cell("copy")} | {cell("far")} | {own[0]["step_ms"]:.1f} |')


def tokens(patterns: list[str], output: pathlib.Path, limit: int) -> None:
  """Tokenises text files, and counts the bytes of a held-out token."""
  from smoljax.data import tokenizer

  make_tokens(patterns, output, STUDENT['vocab_size'], limit)
  text = tokenizer.load(str(output / 'tokenizer.model'))
  last = np.load(output / 'tokens.npy')[-HELD_OUT * SEQ_LEN :].tolist()
  (output / 'facts.json').write_text(json.dumps(
    {'bytes_per_token': len(text.decode(last).encode()) / len(last)}))


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('command', choices=['tokens', 'distill', 'decode', 'mtp', 'step', 'report'])
  parser.add_argument('--text', nargs='+', default=[], help='globs of text files')
  parser.add_argument('--limit', type=int, default=20_000_000, help='tokens to keep')
  parser.add_argument('--data', type=pathlib.Path, help='folder with code/ and prose/')
  parser.add_argument('--output', type=pathlib.Path)
  parser.add_argument('--shape', default='smollm3-1b', choices=list(model.SHAPES))
  parser.add_argument('--rows', type=int, default=4)
  parser.add_argument('--seq_len', type=int, default=4096)
  parser.add_argument('--width', type=int, default=32, help='ids of a place in the step')
  args = parser.parse_args()
  if args.command == 'tokens':
    tokens(args.text, args.output, args.limit)
  elif args.command in ('distill', 'decode'):
    distillation(args.data, args.output, decoding=args.command == 'decode')
  elif args.command == 'mtp':
    prediction(args.data, args.output)
  elif args.command == 'step':
    step_times(args.shape, args.rows, args.seq_len, args.width)
  else:
    report(args.output)


if __name__ == '__main__':
  main()

"""Tables what an architecture costs: memory per token, decoding speed, loss at equal parameters.

  python -m experiments.architecture --text='texts/*.txt' --output=runs/architecture --prepare
  python -m experiments.architecture --corpus=runs/architecture/tokens/text/1.0.0 --size=gpu \
      --seeds=3 --parallel=4 --output=runs/architecture

Every variant changes one thing of the baseline (grouped queries, every fourth layer without rotary
positions, SwiGLU, RMSNorm before each block); its MLP is widened or narrowed until the parameters
are as many as the baseline's within 1 %. All variants of a seed see the same batches in the same
order, so losses are compared seed by seed. What is finished is not redone: the same command
continues a killed table, and more seeds or variants only add to it. `--parallel` trains several
models at a time (they are small: most of their time is compiling and waiting); the speed of
decoding is always measured alone, that of training only then.
"""

import dataclasses
import functools
import glob
import gzip
import hashlib
import json
import logging
import math
import os
import pathlib
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from rich.table import Table

from configs import base
from experiments.engine import cli, processes
from experiments.engine.cli import console, read_json
from experiments.engine.config import keep_programs, model_config, resolve, use_all_cores
from experiments.engine.graph import Graph, Step
from smoljax import gpu, metrics
from smoljax.report import architecture_page
from smoljax.scaling import comparison

_CORPUS = flags.DEFINE_list('corpus', [], 'Tokenised corpora, DIR/NAME/VERSION, with commas.')
_TEXT = flags.DEFINE_list(
  'text', [], 'Instead: plain text files (.txt, .txt.gz), globs with commas; needs Beam.'
)
_VOCAB_SIZE = flags.DEFINE_integer(
  'vocab_size', 8192, 'Of the tokenizer trained for --text.',
  lower_bound=1, upper_bound=2**31 - 1)
_PREPARE = flags.DEFINE_bool('prepare', False, 'Only make the corpus of --text.')
_OUTPUT = flags.DEFINE_string('output', None, 'Folder for the table and all it is made of.')
_SIZE = flags.DEFINE_enum('size', 'tiny', ['tiny', 'gpu'], 'tiny: two CPU cores; gpu: one GPU.')
_TOKENS = flags.DEFINE_integer(
  'tokens', 0, 'To train each model on; 0 = as --size has it.',
  lower_bound=0, upper_bound=2**31 - 1)
_SEEDS = flags.DEFINE_integer(
  'seeds', 3, 'Models trained of each variant.',
  lower_bound=1, upper_bound=2**31 - 1)
_VARIANTS = flags.DEFINE_list('variants', [], 'Only these (and the baseline, gqa); empty = all.')
_PARALLEL = flags.DEFINE_integer(
  'parallel', 1, 'Models trained at a time on the same devices.',
  lower_bound=1, upper_bound=2**31 - 1)

DECODED = ('attention', 'positions', 'window')  # groups whose change is felt in decoding

# Baselines. `decode`: context length in tokens, the last `new` of them generated, `block` between
# two looks of the host, for each number of rows at once. `held_out`: documents; 0 = all.
SIZES: dict[str, dict[str, Any]] = {
  'tiny': dict(
    model=dict(
      num_layers=4, embed_dim=128, num_heads=4, num_kv_heads=2, head_dim=32, mlp_dim=384,
      dtype='float32',
    ),
    seq_len=256,
    batch_tokens=4096,
    tokens=200_000,
    held_out=8,
    decode=dict(context=256, new=64, block=16, batches=(1, 8)),
  ),
  'gpu': dict(
    model=dict(
      num_layers=8, embed_dim=384, num_heads=6, num_kv_heads=2, head_dim=64, mlp_dim=1024,
      dtype='bfloat16',
    ),
    seq_len=1024,
    batch_tokens=32_768,
    tokens=8_000_000,
    held_out=0,
    decode=dict(context=2048, new=256, block=32, batches=(1, 64)),
  ),
}


@dataclasses.dataclass(frozen=True)
class Variant:
  """One row of the table: `change` maps the baseline's model section and seq_len to new fields."""

  group: str
  words: str
  change: Any = lambda m, seq_len: {}


def _windowed(m: Mapping, seq_len: int, layers: Sequence[int]) -> dict:
  return {'sliding_window': seq_len // 4, 'window_layers': tuple(layers)}


def _rotating(m: Mapping) -> list[int]:
  return [int((i + 1) % 4 != 0) for i in range(m['num_layers'])]


BASELINE = 'gqa'
VARIANTS: dict[str, Variant] = {
  'gqa': Variant('attention', 'grouped queries (baseline)'),
  'mha': Variant(
    'attention', 'a key and value head per query head',
    lambda m, _: {'num_kv_heads': m['num_heads']},
  ),
  'mqa': Variant(
    'attention', 'one key and value head', lambda m, _: {'num_kv_heads': 1}
  ),
  'rope': Variant('positions', 'every layer rotates', lambda m, _: {'nope_interval': 0}),
  'nope': Variant('positions', 'no layer rotates', lambda m, _: {'nope_interval': 1}),
  'window': Variant(
    'window', 'a quarter of the row on rotating layers',
    lambda m, t: _windowed(m, t, _rotating(m)),
  ),
  'window_all': Variant(
    'window', 'a quarter of the row on all layers',
    lambda m, t: _windowed(m, t, [1] * m['num_layers']),
  ),
  'geglu': Variant('activation', 'GeGLU', lambda m, _: {'activation': 'geglu'}),
  'gelu': Variant('activation', 'GELU, no gate', lambda m, _: {'activation': 'gelu'}),
  'relu2': Variant('activation', 'squared ReLU, no gate', lambda m, _: {'activation': 'relu2'}),
  'layernorm': Variant('norm', 'LayerNorm', lambda m, _: {'norm': 'layer'}),
  'post': Variant('norm', 'after each block', lambda m, _: {'norm_position': 'post'}),
  'sandwich': Variant(
    'norm', 'before and after each block', lambda m, _: {'norm_position': 'sandwich'}
  ),
}


# --- Models of equal size ------------------------------------------------------------------------


def make_config(
  name: str, size: str, *, seed: int, tokens: int, vocab_size: int, mixture: Mapping[str, float]
) -> ConfigDict:
  """The resolved config of one run: the baseline of `size`, changed, its MLP fitted.

  Raises:
    ValueError: no MLP width brings the parameters within 1 % of the baseline's.
  """
  preset = SIZES[size]
  c = base.get_config()
  c.unlock()
  c.name, c.seed = f'{name}-{seed}', seed
  c.data.seq_len = preset['seq_len']
  c.train.batch_tokens = preset['batch_tokens']
  c.train.tokens = tokens or preset['tokens']
  c.train.stages = (dict(name='all', fraction=1.0, mixture=dict(mixture)),)
  c.train.tensorboard = False
  c.model = ConfigDict({**c.model.to_dict(), **preset['model']})
  resolve(c)
  c.train.log_every = max(1, c.train.steps // 5)
  c.train.checkpoint_every = 1000
  c.train.eval_every = c.train.steps  # once, at the end
  c.train.eval_documents = preset['held_out']
  target = model_config(c, vocab_size).num_params(embedding=False)
  change = VARIANTS[name].change(preset['model'], preset['seq_len'])
  c.model = ConfigDict({**c.model.to_dict(), **change})

  def params(mlp_dim: int) -> int:
    c.model.mlp_dim = mlp_dim
    return model_config(c, vocab_size).num_params(embedding=False)

  exact = 8 + (target - params(8)) / (params(9) - params(8))
  for multiple in (8, 1):  # of 8 if that is near enough, for the matrix units
    mlp_dim = max(1, round(exact / multiple) * multiple)
    if abs(params(mlp_dim) - target) <= 0.01 * target:
      return c
  raise ValueError(f'{name}: no mlp_dim gives {target:,} parameters within 1 %')


def kv_bytes(config: Any, context: int) -> float:
  """Bytes of keys and values per token of a context of `context` tokens, in the compute dtype.

  A windowed layer needs to keep its window only.
  """
  from smoljax.train import memory

  return memory.kv_cache_per_row(config, context) / context


# --- Steps ---------------------------------------------------------------------------------------


def _train(
  output: str, _: Mapping[str, str], *, c: Any, corpora: Mapping[str, str], alone: bool
) -> dict:
  from smoljax.evals.held_out import load_held_out
  from smoljax.train import loop
  from smoljax.train.telemetry import Diverged

  log_line = lambda line: console.print(f'{c.name}: {line}')
  try:
    result = loop.train(
      c, model_config(c, _vocab_size(corpora)), corpora, output, log_line=log_line)
  except Diverged as e:
    return {'diverged': str(e)}
  rows = metrics.read_rows(os.path.join(output, 'metrics.jsonl'))
  last = [r for r in rows if any(k.startswith('val/') for k in r)][-1]
  held_out = {
    name: sum(len(d['tokens']) - 1 for d in documents)
    for name, documents in load_held_out(corpora, limit=c.train.eval_documents).items()
  }
  total = sum(held_out.values())
  shutil.rmtree(os.path.join(output, 'checkpoints'))  # hundreds of megabytes a run
  return {
    'loss': sum(last[f'val/{n}/loss'] * k for n, k in held_out.items()) / total,
    'held_out_tokens': total,
    **{k: result[k] for k in ('steps', 'tokens', 'device')},
    'tokens_per_sec': result['tokens_per_sec'] if alone else None,
    'train_loss': result['loss']['final'],
  }


def _decode(
  output: str,
  _: Mapping[str, str],
  *,
  config: Any,
  context: int,
  new: int,
  block: int,
  batches: Sequence[int],
) -> dict:
  """Tokens per second past the prompt, at the end of a context, per batch size; greedy."""
  import jax
  import numpy as np

  from smoljax import model
  from smoljax.inference import cache
  from smoljax.inference.generate import generate

  config = dataclasses.replace(config, max_seq_len=context)
  params = cache.prepare(config, model.init(config, jax.random.key(0)))
  prompt = np.random.default_rng(0).integers(0, config.vocab_size, context - new).tolist()

  def seconds(batch: int, tokens: int) -> float:
    times = []
    for _ in range(6):  # the first compiles
      began = time.perf_counter()
      generate(
        config, params, [prompt] * batch, max_new_tokens=tokens, block=block
      )
      times.append(time.perf_counter() - began)
    return statistics.median(times[1:])

  # What the prompt costs is in both and drops out.
  rates = {str(b): b * (new - block) / (seconds(b, new) - seconds(b, block)) for b in batches}
  return {'decode_tokens_per_sec': rates, 'device': jax.devices()[0].device_kind}


def _vocab_size(corpora: Mapping[str, str]) -> int:
  sizes = {n: read_json(os.path.join(p, 'manifest.json'))['vocab_size'] for n, p in corpora.items()}
  if len(set(sizes.values())) != 1:
    raise ValueError(f'the corpora were made with different tokenizers, of {sizes} pieces')
  return next(iter(sizes.values()))


def _documents(path: str, chars: int = 16_000) -> Iterator[Any]:
  """A text file as documents of about `chars` characters, cut between paragraphs."""
  from data_beam import records

  with open(path, 'rb') as f:
    data = f.read()
  data = gzip.decompress(data) if path.endswith('.gz') else data
  try:
    text = data.decode()
  except UnicodeDecodeError:
    text = data.decode('latin-1')
  part: list[str] = []
  for paragraph in [*text.replace('\r\n', '\n').split('\n\n'), None]:
    if part and (paragraph is None or len('\n\n'.join([*part, paragraph])) > chars):
      whole = '\n\n'.join(part).strip()
      if whole:
        digest = hashlib.sha256(whole.encode()).hexdigest()
        yield records.Document(id=digest, text=whole, source=os.path.basename(path))
      part = []
    part += [paragraph] if paragraph is not None else []


def _curate(output: str, _: Mapping[str, str], *, files: Sequence[str]) -> dict:
  import apache_beam as beam

  from data_beam import records
  from data_beam.beam_options import pipeline_options

  inputs = [{'path': f, 'bytes': os.path.getsize(f)} for f in files]
  with beam.Pipeline(options=pipeline_options()) as pipeline:
    kept = pipeline | 'files' >> beam.Create(files) | beam.FlatMap(_documents)
    rejects = pipeline | 'none' >> beam.Create([])
    records.write_corpus(
      kept, rejects, output=output, name='text', stages=(), config={}, inputs=inputs
    )
  return {}


def _train_tokenizer(output: str, inputs: Mapping[str, str], *, vocab_size: int) -> dict:
  from data_beam import records
  from smoljax.data import tokenizer

  corpus = records.corpus_path(inputs['curate'], 'text')
  texts = (d['text'] for d in records.read_corpus(corpus))
  tokenizer.train(texts, os.path.join(output, 'tokenizer.model'), vocab_size=vocab_size)
  return {}


def _tokenize(output: str, inputs: Mapping[str, str]) -> dict:
  from data_beam import records, tokenize_corpus
  from data_beam.options import TokenizeOptions

  tokenize_corpus.run(
    records.corpus_path(inputs['curate'], 'text'),
    os.path.join(inputs['tokenizer'], 'tokenizer.model'),
    output,
    'text',
    TokenizeOptions(holdout=0.05),
  )
  return {}


def prepare(patterns: Sequence[str], vocab_size: int, output: str) -> str:
  """Plain text files → a tokenised corpus, `output/tokens/text/1.0.0`; needs no network.

  The files under `output/tokens` are all that the table needs: they can be carried elsewhere.

  Raises:
    ValueError: a pattern matches no file, or the text is too small for the vocabulary.
  """
  files = []
  for pattern in patterns:
    found = sorted(f for f in glob.glob(os.path.expanduser(pattern), recursive=True)
                   if os.path.isfile(f))
    if not found:
      raise ValueError(f'--text: {pattern} matches no file')
    files += [f for f in found if f not in files]
  digests = [hashlib.sha256(pathlib.Path(f).read_bytes()).hexdigest() for f in files]
  curate = Step(
    'curate', functools.partial(_curate, files=files), outside=digests,
    cost=f'{len(files)} text files, {sum(map(os.path.getsize, files)) / 1e6:.1f} MB',
  )
  train = Step(
    'tokenizer', functools.partial(_train_tokenizer, vocab_size=vocab_size),
    {'vocab_size': vocab_size}, needs=[curate], cost=f'BPE of {vocab_size:,} pieces',
    links={'tokens/tokenizer.model': 'tokenizer.model'},
  )
  tokens = Step(
    'tokenize', _tokenize, needs=[curate, train], cost='text to token documents',
    links={'tokens/text': 'text'},
  )
  Graph([curate, train, tokens], output, console.print).run()
  return os.path.join(output, 'tokens', 'text', '1.0.0')


# --- The table -----------------------------------------------------------------------------------


def collect(runs: Mapping[str, Mapping[int, dict]], models: Mapping[str, Any],
            speeds: Mapping[str, dict], context: int) -> list[dict]:
  """One dict per variant from what is finished.

  Args:
    runs: variant → seed → result of training.
    models: variant → ModelConfig.
    speeds: variant → result of decoding.
    context: tokens, for bytes per token.
  """
  rows, gaps = [], {}
  for name, config in models.items():
    done = {s: r for s, r in runs.get(name, {}).items() if 'loss' in r}
    reference = {s: r['loss'] for s, r in runs.get(BASELINE, {}).items() if 'loss' in r}
    row = {
      'variant': name, 'group': VARIANTS[name].group, 'words': VARIANTS[name].words,
      'parameters': config.num_params(), 'mlp_dim': config.mlp_dim,
      'non_embedding_parameters': config.num_params(embedding=False),
      'kv_bytes_per_token': kv_bytes(config, context), 'context': context,
      'seeds': len(done), 'diverged': len(runs.get(name, {})) - len(done),
      'losses': {str(s): r['loss'] for s, r in sorted(done.items())},
    }
    if done:
      row['loss'], half = comparison.interval([r['loss'] for r in done.values()])
      row['loss_interval'] = half if math.isfinite(half) else None
      if rates := [r['tokens_per_sec'] for r in done.values() if r['tokens_per_sec']]:
        row['train_tokens_per_sec'] = statistics.median(rates)
    if set(done) & set(reference) and name != BASELINE:
      gaps[name] = comparison.difference(reference, {s: r['loss'] for s, r in done.items()})
      row['difference'] = gaps[name].mean
      row |= {k: x if math.isfinite(x) else None for k, x in (
        ('difference_interval', gaps[name].half), ('detectable', gaps[name].detectable))}
    if name in speeds:
      row['decode_tokens_per_sec'] = speeds[name]['decode_tokens_per_sec']
    rows.append(row)
  verdicts = dict(zip(gaps, comparison.judge(list(gaps.values())), strict=True))
  return [r | ({'verdict': verdicts[r['variant']]} if r['variant'] in gaps else {}) for r in rows]


# --- The command ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is to be done: by variant the models, by (variant, seed) the steps that train."""

  models: Mapping[str, Any]
  training: Mapping[tuple[str, int], Step]
  about: dict[str, Any]  # size, tokens, seeds, corpora, vocab_size
  first: Any  # the config of one run


def plan(
  corpora: Sequence[str],
  *,
  size: str,
  tokens: int,
  seeds: int,
  variants: Sequence[str],
  alone: bool = True,
) -> Plan:
  """Checks the arguments and lays out the runs, seed after seed."""
  from smoljax.data.corpus import open_corpus

  if unknown := set(variants) - set(VARIANTS):
    raise ValueError(f'--variants: {", ".join(sorted(unknown))}: one of {", ".join(VARIANTS)}')
  if seeds < 1:
    raise ValueError(f'--seeds={seeds}: give at least 1')
  opened = [open_corpus(path) for path in corpora]
  paths = {corpus.name: path for corpus, path in zip(opened, corpora, strict=True)}
  if len(paths) < len(corpora):
    raise ValueError(f'--corpus: two corpora have the same name: {", ".join(paths)}')
  mixture = {corpus.name: float(corpus.lengths.sum()) for corpus in opened}
  vocab_size = _vocab_size(paths)
  training, models, c = {}, {}, base.get_config()
  for seed in range(seeds):
    for name in variants:
      c = make_config(
        name, size, seed=seed, tokens=tokens, vocab_size=vocab_size, mixture=mixture
      )
      models[name] = config = model_config(c, vocab_size)
      sections = ('seed', 'model', 'data', 'train', 'mesh', 'optimizer')
      training[name, seed] = Step(
        f'train-{name}-{seed}',
        functools.partial(_train, c=c, corpora=paths, alone=alone),
        {s: c[s].to_dict() if isinstance(c[s], ConfigDict) else c[s] for s in sections},
        outside=[corpus.digest for corpus in opened],
        resumable=True,
        cost=f'{config.num_params():,} parameters (mlp_dim {config.mlp_dim}), '
        f'{c.train.steps:,} steps',
      )
  about = dict(
    size=size, tokens=c.train.tokens, seeds=seeds, corpora=paths, vocab_size=vocab_size,
    baseline=BASELINE,
  )
  return Plan(models, training, about, c)


def run(
  corpora: Sequence[str],
  output: str,
  *,
  size: str = 'tiny',
  tokens: int = 0,
  seeds: int = 3,
  variants: Sequence[str] = (),
  parallel: int = 1,
) -> list[dict]:
  """Trains and times what is not done yet; returns and writes the table's rows.

  Raises:
    ValueError, OSError: naming the argument and what to give instead.
  """
  if parallel < 1:
    raise ValueError(f'--parallel={parallel}: give at least 1')
  chosen = dict.fromkeys([BASELINE, *variants] if variants else VARIANTS)
  arguments = dict(size=size, tokens=tokens, seeds=seeds)
  todo = plan(corpora, variants=list(chosen), **arguments)
  if parallel > 1:  # before this process takes hold of the devices
    _train_in_parallel(corpora, output, parallel, list(chosen), arguments)
  _use_devices(todo, output)
  import jax

  device = jax.devices()[0].device_kind
  preset = SIZES[size]['decode']
  decoding = {
    name: Step(
      f'decode-{name}',
      functools.partial(_decode, config=config, **preset),
      {'model': dataclasses.asdict(config), **preset},
      outside=device,
      cost=f'{preset["new"]} tokens, {" and ".join(map(str, preset["batches"]))} rows at once',
    )
    for name, config in todo.models.items()
    if VARIANTS[name].group in DECODED
  }
  graph = Graph([*decoding.values(), *todo.training.values()], output, console.print)

  def table() -> list[dict]:
    runs: dict[str, dict] = {}
    for (name, seed), step in todo.training.items():
      if graph.done(step):
        runs.setdefault(name, {})[seed] = graph.result(step)
    speeds = {n: graph.result(s) for n, s in decoding.items() if graph.done(s)}
    rows = collect(runs, todo.models, speeds, preset['context'])
    architecture_page.write_table(rows, output, todo.about | {'device': device})
    return rows

  graph.run(before=lambda _: table())
  return table()


def _use_devices(todo: Plan, output: str) -> None:
  use_all_cores(todo.first)
  keep_programs(output, on_cpu=True)  # the seeds of a variant share them


def _train_in_parallel(
  corpora: Sequence[str], output: str, parallel: int, variants: Sequence[str], arguments: Mapping
) -> None:
  """Trains in `parallel` processes that share the devices, each with variants of its own."""
  environment = os.environ | gpu.divided(parallel)
  code = 'import sys; from experiments import architecture; architecture._worker(sys.argv[1])'
  workers = []
  for part in range(min(parallel, len(variants))):
    job = {'corpora': list(corpora), 'variants': variants[part::parallel], **arguments}
    command = [sys.executable, '-c', code, json.dumps([output, job])]
    workers.append(processes.start(command, env=environment))
  try:
    failed = sum(worker.wait() != 0 for worker in workers)
  except BaseException:
    processes.stop(*workers)
    raise
  if failed:
    raise ChildProcessError(f'{failed} of {len(workers)} processes failed; what they say is above')


def _worker(task: str) -> None:
  """One process of `_train_in_parallel`."""
  flags.FLAGS.mark_as_parsed()  # grain reads absl flags
  output, arguments = json.loads(task)
  todo = plan(alone=False, **arguments)
  _use_devices(todo, output)
  Graph(list(todo.training.values()), output, console.print).run()


def _show(rows: Sequence[dict]) -> None:
  batches = list(dict.fromkeys(b for r in rows for b in r.get('decode_tokens_per_sec', {})))
  table = Table('', 'params', 'KV', *(f'×{b}' for b in batches), 'loss', 'Δ', box=None,
                padding=(0, 1, 0, 0))
  for r in rows:
    speeds = r.get('decode_tokens_per_sec', {})
    table.add_row(r['variant'], f'{r["parameters"] / 1e6:.2f}M', f'{r["kv_bytes_per_token"]:.0f}',
                  *(f'{speeds[b]:.0f}' if b in speeds else '–' for b in batches),
                  architecture_page.loss(r, 3), architecture_page.difference(r, 3))
  console.print(table)
  console.print(
    f'KV: bytes of keys and values per token of {rows[0]["context"]:,}; ×B: decoded tokens/s with '
    f'B rows at once; loss: held out, nats per token, ± 95 %; Δ: against {BASELINE}, seed by seed'
  )
  for r in rows:
    if r['diverged']:
      console.print(f'{r["variant"]}: {r["diverged"]} of {r["diverged"] + r["seeds"]} diverged')


def main(argv: list[str]) -> int:
  """The command line; bad input is one line and exit code 2."""
  logging.basicConfig(format='%(message)s', level=logging.ERROR, force=True)
  try:
    if not _OUTPUT.value:
      raise ValueError('give --output=DIR')
    if bool(_TEXT.value) == bool(_CORPUS.value):
      raise ValueError('give --corpus=DIR/NAME/VERSION or --text=FILES, one of them')
    output = _OUTPUT.value
    os.makedirs(output, exist_ok=True)
    corpora = _CORPUS.value or [prepare(_TEXT.value, _VOCAB_SIZE.value, output)]
    if _PREPARE.value:
      console.print(f'the corpus is in {os.path.join(output, "tokens")}')
      return 0
    rows = run(
      corpora, output, size=_SIZE.value, tokens=_TOKENS.value, seeds=_SEEDS.value,
      variants=_VARIANTS.value, parallel=_PARALLEL.value,
    )
    _show(rows)
    console.print(f'{output}/index.html, architecture.csv, architecture.json')
  except (ValueError, OSError) as e:
    return cli.complain(e)
  except KeyboardInterrupt:
    print('interrupted; the same command continues', file=sys.stderr)
    return 130
  return 0


if __name__ == '__main__':
  cli.start(main)

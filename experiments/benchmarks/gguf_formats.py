"""What each GGUF format costs and saves: size, memory, CPU tokens per second, perplexity.

  python -m experiments.benchmarks.gguf_formats --model=runs/quickstart --text=FILE.txt
  python -m experiments.benchmarks.gguf_formats --shape=smollm2-135m

Exports the model in each format and measures it in the runtime (llama-cpp-python, which must be
installed unless --kinds is empty: it compiles llama.cpp), each in a process of its own: one JSON
line a format, then a Markdown table. The first lines have the same perplexity computed by this
library: in fp32, in bfloat16 and with matrices in 8 and 4 bits (smoljax/model/quantised.py), whose
speed on a GPU is in decode.py. Perplexity is
of the first --max_tokens of the text, in windows of --window tokens (a BOS included where the model
has one), each token given those before it in its window. With --shape the weights are random: all
but perplexity is measured.
"""

import dataclasses
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from typing import Any

import jax
import numpy as np
from absl import app, flags

from smoljax import model
from smoljax.checkpoints import gguf, load
from smoljax.data import tokenizer
from smoljax.inference import cache
from smoljax.model import quantised

_MODEL = flags.DEFINE_string('model', '', 'HF folder, or a run or checkpoint of ours.')
_SHAPE = flags.DEFINE_enum('shape', None, list(model.SHAPES), 'Random weights of this shape.')
_TEXT = flags.DEFINE_string('text', '', 'UTF-8 text to measure perplexity on; empty = none.')
_KINDS = flags.DEFINE_list(
  'kinds', ['bfloat16', 'float16', 'q8_0', 'q4_k_m'], 'Formats; changes are against the first.'
)
_WINDOW = flags.DEFINE_integer('window', 512, 'Tokens read at once.')
_MAX_TOKENS = flags.DEFINE_integer('max_tokens', 20_000, 'Tokens of the text used.')
_NEW_TOKENS = flags.DEFINE_integer('new_tokens', 64, 'Tokens written when timing.')
_THREADS = flags.DEFINE_integer('threads', 0, 'CPU threads; 0 = one per core.')
_TOKENIZER = flags.DEFINE_string('tokenizer', '', 'Tokenizer file, where the model names none.')
_KEEP = flags.DEFINE_string('keep', '', 'Folder to leave the GGUF files in; default: nowhere.')


def our_nats_per_token(
  loaded: load.Model, params: Any, dtype: str, text: str, window: int, max_tokens: int
) -> float:
  """What gguf_runtime.nats_per_token computes, by this library with these parameters."""
  text_tokenizer, bos = loaded.tokenizer, loaded.bos
  config = dataclasses.replace(loaded.config, dtype=dtype)
  start: list[Any] = [text_tokenizer.bos_id] if bos else []
  step = window - len(start)
  ids = text_tokenizer.encode(text)[:max_tokens]
  windows = [start + ids[i : i + step] for i in range(0, len(ids) - 1, step)]

  @jax.jit
  def nats_T(tokens_BT):
    logits_BTV = model.apply(config, params, tokens_BT).logits
    log_p_BTV = jax.nn.log_softmax(logits_BTV[:, :-1], axis=-1)
    return -jax.numpy.take_along_axis(log_p_BTV, tokens_BT[:, 1:, None], axis=-1)[0, :, 0]

  total = count = 0
  for one in windows:
    padded = np.zeros((1, window), np.int32)
    padded[0, : len(one)] = one  # what comes after is seen by nobody before it
    total += float(np.asarray(nats_T(padded), np.float64)[: len(one) - 1].sum())
    count += len(one) - 1
  return total / count


def table(rows: list[dict]) -> str:
  """Markdown; changes are against the first row that has them."""
  lines = [
    '| format | file MB | peak RSS MB | reads tokens/s | writes tokens/s | perplexity | change |',
    '|---|---|---|---|---|---|---|',
  ]
  first = next((r['perplexity'] for r in rows if r.get('perplexity')), None)
  for r in rows:
    perplexity = change = ''
    if r.get('perplexity'):
      perplexity = f'{r["perplexity"]:.3f}'
      change = f'{100 * (r["perplexity"] / first - 1):+.2f} %'
    lines.append(
      f'| {r["kind"]} | {r["file_mb"]:.1f} | {r["peak_rss_mb"]:.0f} | '
      f'{r["prompt_tokens_per_sec"]:.0f} | {r["generated_tokens_per_sec"]:.1f} | '
      f'{perplexity} | {change} |'
    )
  return '\n'.join(lines)


def main(_: list[str]) -> None:
  """Measures the formats of one model; one line and exit code 2 on bad input."""
  logging.getLogger('gguf').setLevel(logging.WARNING)
  try:
    if _KINDS.value:
      gguf.runtime()
    if bool(_MODEL.value) == bool(_SHAPE.value):
      raise ValueError('give one of --model and --shape')
    if _SHAPE.value and _TEXT.value:
      raise ValueError('--text goes with --model: random weights have no perplexity to compare')
    _measure()
  except (OSError, ValueError, ImportError) as e:
    print(f'error: {" ".join(str(e).split())}', file=sys.stderr)
    sys.exit(2)


def _measure() -> None:
  if _SHAPE.value:
    loaded = None
    config = model.SHAPES[_SHAPE.value]
    params = model.init(config, jax.random.key(0))
  else:
    loaded = load.load_model(_MODEL.value, _TOKENIZER.value)
    config, params = loaded.config, loaded.params
  window = min(_WINDOW.value, config.max_seq_len)
  common = {
    'benchmark': 'gguf_formats',
    'model': _SHAPE.value or _MODEL.value,
    'parameters': config.num_params(),
    'window': window,
  }
  if _TEXT.value:
    with open(_TEXT.value, encoding='utf-8') as f:
      text = f.read()
    for kind in ('float32', 'bfloat16', *quantised.BITS):
      dtype = 'float32' if kind == 'float32' else 'bfloat16'
      ready = cache.prepare(
        dataclasses.replace(config, dtype=dtype), params, kind if kind in quantised.BITS else '')
      nats = our_nats_per_token(loaded, ready, dtype, text, window, _MAX_TOKENS.value)
      size = sum(x.nbytes for x in jax.tree.leaves(ready)) / 1e6
      print(json.dumps({**common, 'kind': f'smoljax, {kind}', 'weights_mb': round(size, 1),
                        'nats_per_token': nats, 'perplexity': math.exp(nats)}), flush=True)
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    tokenizer_dir = None
    if loaded and loaded.tokenizer.path.endswith('.json'):
      tokenizer_dir = os.path.dirname(loaded.tokenizer.path)
    elif loaded:
      tokenizer_dir = folder
      tokenizer.to_hf(loaded.tokenizer.path, folder, bos=loaded.bos, max_length=window)
    for kind in _KINDS.value:
      path = os.path.join(_KEEP.value or folder, f'model-{kind}.gguf')
      os.makedirs(os.path.dirname(path), exist_ok=True)
      other = gguf.save_gguf(config, params, path, kind=kind, tokenizer_dir=tokenizer_dir)
      settings = dict(
        window=window, threads=_THREADS.value, new_tokens=_NEW_TOKENS.value,
        text=_TEXT.value, max_tokens=_MAX_TOKENS.value,
      )  # fmt: skip
      done = subprocess.run(
        [sys.executable, '-m', 'experiments.benchmarks.gguf_runtime', path, json.dumps(settings)],
        capture_output=True,
        text=True,
      )
      if done.returncode:
        raise ValueError(f'{kind}: {done.stderr.strip().splitlines()[-1]}')
      rows.append({**common, 'kind': kind, 'fallbacks': len(other),
                   **json.loads(done.stdout.splitlines()[-1])})  # fmt: skip
      print(json.dumps(rows[-1]), flush=True)
      if not _KEEP.value:
        os.remove(path)
  if rows:
    print(f'\n{table(rows)}')


if __name__ == '__main__':
  app.run(main)

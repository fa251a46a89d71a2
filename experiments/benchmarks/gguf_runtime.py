"""A GGUF file in the runtime (llama.cpp by llama-cpp-python), measured in a process of its own.

  python -m experiments.benchmarks.gguf_runtime FILE.gguf '{"window": 512, "threads": 2}'

Prints one JSON line; `gguf_formats` runs it once per format. It imports neither jax nor smoljax,
so that the peak of its memory is the runtime's. Needs llama-cpp-python (not in requirements.txt:
it compiles llama.cpp).
"""

import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Sequence

import llama_cpp as llama
import numpy as np

logging.getLogger('llama-cpp-python').setLevel(logging.CRITICAL)


class Runtime:
  """An open model. Token ids in, fp32 logits out.

  Args:
    path: a GGUF file.
    window: tokens that fit the KV cache.
    threads: of the CPU.
    exact: an fp32 KV cache and plain attention, where the runtime's defaults are fp16 and its
      flash attention; for comparing logits.
  """

  def __init__(self, path: str, *, window: int, threads: int = 0, exact: bool = False):
    settings = llama.llama_model_default_params()
    settings.n_gpu_layers = 0
    self.model = llama.llama_model_load_from_file(path.encode(), settings)
    if not self.model:
      raise ValueError(f'the runtime cannot open {path}')
    self.vocab = llama.llama_model_get_vocab(self.model)
    self.vocab_size = llama.llama_vocab_n_tokens(self.vocab)
    settings = llama.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = window
    settings.n_threads = settings.n_threads_batch = threads or os.cpu_count()
    if exact:
      settings.type_k = settings.type_v = llama.GGML_TYPE_F32
      settings.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    self.context = llama.llama_init_from_model(self.model, settings)
    self.batch = llama.llama_batch_init(window, 0, 1)
    self.used = 0

  def close(self) -> None:
    """Frees what the runtime holds outside of Python's memory."""
    llama.llama_batch_free(self.batch)
    llama.llama_free(self.context)
    llama.llama_model_free(self.model)

  def start(self) -> None:
    """Forgets all tokens."""
    llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
    self.used = 0

  def feed(self, ids: Sequence[int], *, every: bool = False) -> np.ndarray:
    """Appends tokens; fp32 logits [n, V] after each of them if `every`, else [1, V] of the last."""
    batch = self.batch
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
      batch.token[i], batch.pos[i] = int(token), self.used + i
      batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
      batch.logits[i] = every or i == len(ids) - 1
    if llama.llama_decode(self.context, batch):
      raise ValueError(f'the runtime refused {len(ids)} tokens after {self.used}')
    self.used += len(ids)
    rows = len(ids) if every else 1
    logits = llama.llama_get_logits(self.context)
    return np.ctypeslib.as_array(logits, (rows, self.vocab_size)).copy()

  def tokenize(self, text: str, *, special: bool = False) -> list[int]:
    """Ids of `text`; with `special`, BOS and EOS are added where the file says so."""
    data = text.encode()
    ids = (llama.llama_token * (len(data) + 3))()
    n = llama.llama_tokenize(self.vocab, data, len(data), ids, len(ids), special, False)
    return list(ids[:n])


def nats_per_token(runtime: Runtime, windows: list) -> float:
  """Mean negative log-likelihood of each window's tokens but the first, given those before."""
  total = count = 0
  for ids in windows:
    runtime.start()
    logits = runtime.feed(ids, every=True)[:-1].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    chosen = np.take_along_axis(logits, np.asarray(ids[1:])[:, None], 1)[:, 0]
    total += float((np.log(np.exp(logits).sum(-1)) - chosen).sum())
    count += len(ids) - 1
  return total / count


def speed(runtime: Runtime, window: int, new_tokens: int, repeats: int = 3) -> dict[str, float]:
  """Tokens per second of reading `window` tokens at once, and of writing one by one after 32.

  Medians; `…_per_cpu_sec` counts CPU time of all threads, which other programs on the machine
  hardly change: with one thread it is what an idle core would do.
  """
  ids = np.random.default_rng(0).integers(0, runtime.vocab_size, window)
  rates: dict[str, list[float]] = {}

  def timed(name, count, work):
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    for unit, seconds in (('sec', time.perf_counter() - wall),
                          ('cpu_sec', time.process_time() - cpu)):  # fmt: skip
      rates.setdefault(f'{name}_tokens_per_{unit}', []).append(count / seconds)

  for _ in range(repeats + 1):
    runtime.start()
    timed('prompt', window, lambda: runtime.feed(ids))
    runtime.start()
    runtime.feed(ids[:32])
    rest = ids[32 : 32 + new_tokens]
    timed('generated', len(rest), lambda rest=rest: [runtime.feed([token]) for token in rest])
  return {name: float(np.median(values[1:])) for name, values in rates.items()}  # one warms up


def peak_rss_mb() -> float:
  """Of this program so far. (getrusage would count what the parent had before the exec.)"""
  with open('/proc/self/status', encoding='ascii') as f:
    return int(re.findall(r'VmHWM:\s*(\d+) kB', f.read())[0]) * 1024 / 1e6


def main(argv: list[str]) -> None:
  """Measures one file, `argv[1]`, by the JSON settings `argv[2]`; prints one JSON line."""
  path, settings = argv[1], json.loads(argv[2])
  window = settings['window']
  python_rss_mb = peak_rss_mb()
  runtime = Runtime(path, window=window, threads=settings.get('threads', 0))
  result = {'file_mb': os.path.getsize(path) / 1e6}
  result |= speed(runtime, window, min(window - 32, settings.get('new_tokens', 64)))
  # Before the perplexity, whose logits at every place no user holds.
  result |= {'peak_rss_mb': peak_rss_mb(), 'python_rss_mb': python_rss_mb}
  if settings.get('text'):
    with open(settings['text'], encoding='utf-8') as f:
      ids = runtime.tokenize(f.read())
    bos = runtime.tokenize('', special=True)
    step = window - len(bos)
    ids = ids[: settings['max_tokens']]
    windows = [bos + ids[i : i + step] for i in range(0, len(ids) - 1, step)]
    result['tokens'] = len(ids)
    result['nats_per_token'] = nats_per_token(runtime, windows)
    result['perplexity'] = math.exp(result['nats_per_token'])
  print(json.dumps(result))


if __name__ == '__main__':
  main(sys.argv)

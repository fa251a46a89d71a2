"""Times generation beside transformers' on this machine's device: one JSON line per measurement.

  python -m experiments.benchmarks.decode --size=smollm3-3b --weights=bf16,int8,int4 \\
    --against=transformers

Random weights, greedy, no end token. `share_of_bound` is the time in which weights and cache could
be copied once, at the rate of a plain copy in the same run, over the time of a token. `peak_gb` is
the most that the device has held until then, weights that came layer by layer included
(`loaded_peak_gb`: before the first token), and `peak_share` what it is of weights and cache.
Cases of ours: `greedy` (what generate does), `ends` (an end token is looked for), `sampled`
(temperature 0.6, top-p 0.95), `block1`, `block32` (tokens computed between two looks of the host),
`evaluator` (as evaluation writes: four batches of prompts of unlike lengths, text decoded),
`scan` (over stacked layers, as in training), `products` (each kind of matrix alone, in several
forms), `profile` (the kernels that take longest), `prefill` (those of the prompt), `speculative`
(one module of multi-token prediction drafts, of random weights, so that next to nothing is kept:
what a round takes, which does not depend on that, beside a step without; `break_even` is the share
of drafts that must be kept before it pays, and `gain_at_most` what it gives if all are).
"""

import dataclasses
import functools
import glob
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

from absl import app, flags

_SIZE = flags.DEFINE_string('size', 'smollm3-3b', 'Shape of the model, of smoljax.model.SHAPES.')
_BATCH = flags.DEFINE_list('batch', ['1', '32'], 'Batch sizes.')
_PROMPT = flags.DEFINE_integer('prompt', 128, 'Tokens of each prompt.')
_NEW = flags.DEFINE_integer('new', 256, 'Tokens to generate in each row.')
_CASES = flags.DEFINE_list('cases', ['greedy'], 'Cases of ours, see above; "all" for all.')
_WEIGHTS = flags.DEFINE_list(
  'weights', ['bf16'], 'How matrices are stored: bf16, int8, int4; each in a process of its own.')
_AGAINST = flags.DEFINE_enum('against', 'none', ['none', 'transformers'], 'Who else is timed.')
_SIDE = flags.DEFINE_enum(
  'side', '', ['', 'copy', 'ours', 'transformers'], 'Internal: what to time here.')
_COPY_RATE = flags.DEFINE_float('copy_rate', 0.0, 'Internal: bytes per second of a copy.')
_RUNS = flags.DEFINE_integer('runs', 3, 'Timed runs of each case; the median counts.')

CASES = (
  'greedy', 'ends', 'sampled', 'block1', 'block32', 'evaluator', 'scan', 'products', 'profile',
  'prefill', 'speculative')


def main(_: list[str]) -> None:
  """Measures one side here, or all in processes of their own."""
  batches = [int(batch) for batch in _BATCH.value]
  if _SIDE.value == 'copy':
    attempt(copy, case='copy')
  elif _SIDE.value == 'ours':
    time_ours(CASES if _CASES.value == ['all'] else _CASES.value, batches)
  elif _SIDE.value == 'transformers':
    for batch in batches:
      attempt(functools.partial(transformers, batch), case='transformers', batch=batch)
  else:  # each in a process of its own, one after the other, as none gives memory back
    rate = child('copy', 0)
    for kind in _WEIGHTS.value:
      child('ours', rate, f'--weights={kind}')
    if _AGAINST.value == 'transformers':
      child('transformers', rate)


def child(side: str, copy_rate: float, *flags: str) -> float:
  """Runs this benchmark as that side and passes its lines on; returns the copy rate, if told."""
  command = [sys.executable, '-m', 'experiments.benchmarks.decode', *sys.argv[1:]]
  process = subprocess.Popen(
    [*command, f'--side={side}', f'--copy_rate={copy_rate}', *flags], stdout=subprocess.PIPE,
    text=True)
  for line in process.stdout or ():
    print(line, end='', flush=True)
    if line.startswith('{'):
      copy_rate = 1e12 * json.loads(line).get('copy_tb_per_sec', copy_rate / 1e12)
  process.wait()
  return copy_rate


def time_ours(cases: list[str], batches: list[int]) -> None:
  """Prints a JSON line for each of our cases and batches."""
  from smoljax import model

  config = dataclasses.replace(model.SHAPES[_SIZE.value], dtype='bfloat16')
  (kind,) = _WEIGHTS.value
  functions = dict(
    products=products, profile=profile, prefill=profile, scan=scan, evaluator=evaluator,
    speculative=speculative)
  for stacked in (False, True):  # one set of weights at a time
    chosen = [case for case in cases if (case == 'scan') == stacked]
    params = weights(config, stacked) if chosen else None
    for case in chosen:
      for batch in batches:
        function = functools.partial(functions.get(case, ours), config, params, batch, case)
        attempt(function, case=case, weights=kind, batch=batch)
        del function
    del params


def attempt(function: Callable[[], tuple[Any, dict]], **names: Any) -> Any:
  """Runs one measurement; prints what it returns, or the error, and goes on."""
  began = time.perf_counter()
  try:
    value, result = function()
  except Exception as e:  # the next case may well run
    traceback.print_exc()
    value, result = None, {'error': f'{type(e).__name__}: {e}'[:500]}
  seconds = round(time.perf_counter() - began, 1)
  print(json.dumps({'benchmark': 'decode', 'size': _SIZE.value, **names, **result,
                    'all_seconds': seconds}), flush=True)
  return value


def median_seconds(function: Callable) -> float:
  """Of `_RUNS` calls after one that compiles; `function` must wait for its result."""
  function()
  return statistics.median(seconds_of(function) for _ in range(_RUNS.value))


def seconds_of(function: Callable) -> float:
  """Of one call."""
  began = time.perf_counter()
  function()
  return time.perf_counter() - began


def figures(
  config: Any, batch: int, seconds: float, prefill: float, weight_bytes: float | None = None
) -> dict:
  """What is printed of a run of _NEW tokens in `seconds`, `prefill` of them before the first."""
  new = _NEW.value
  per_token = (seconds - prefill) / (new - 1)
  if weight_bytes is None:
    # The embedding is read whole only where it is also the head.
    weight_bytes = 2 * (config.num_params() - (
      0 if config.tie_embeddings else config.vocab_size * config.embed_dim))
  kv_bytes = cache_bytes(config, batch, _PROMPT.value + new / 2)
  rate = _COPY_RATE.value
  bound = (weight_bytes + kv_bytes) / rate if rate else None
  return {
    'tokens_per_sec': round(batch * new / seconds, 1),
    'decode_tokens_per_sec': round(batch / per_token, 1),
    'ms_per_token': round(1e3 * per_token, 4),
    'prefill_ms': round(1e3 * prefill, 2),
    'bound_ms': bound and round(1e3 * bound, 4),
    'share_of_bound': bound and round(bound / per_token, 4),
  }


def cache_bytes(config: Any, batch: int, length: float) -> float:
  """Of keys and values of so many tokens a row, in 2 bytes each."""
  places = sum(min(w or length, length) for w in config.windows)
  return 2 * 2 * batch * config.num_kv_heads * config.head_dim * places


def prompts(config: Any, batch: int) -> list[list[int]]:
  """Random ids, the same each time."""
  import numpy as np

  rng = np.random.default_rng(0)
  return rng.integers(0, config.vocab_size, (batch, _PROMPT.value)).tolist()


# ------------------------------------------------------------------------------------------ ours


def copy() -> tuple[float, dict]:
  """Bytes read and written per second by a plain copy."""
  import jax
  import jax.numpy as jnp

  big = jax.default_backend() != 'cpu'
  x = jnp.zeros(1 << (31 if big else 25), jnp.bfloat16)
  run = jax.jit(lambda x: x + 1)
  seconds = [seconds_of(lambda: run(x).block_until_ready()) for _ in range(11)]
  rate = 2 * x.nbytes / min(seconds)
  return rate, {'copy_tb_per_sec': round(rate / 1e12, 4), 'device': jax.devices()[0].device_kind,
                'jax': jax.__version__}


def weights(config: Any, stacked: bool) -> Any:
  """Random weights, as generation uses them or as bf16 copies of what is trained."""
  import jax

  from smoljax import model
  from smoljax.inference import cache as cache_lib

  cast = lambda tree: jax.tree.map(lambda p: p.astype(config.dtype), tree)
  if stacked:
    return cast(model.init(config, jax.random.key(0)))
  few = dataclasses.replace(config, num_layers=1)
  params = jax.jit(lambda key: cast(model.init(few, key)))(jax.random.key(0))
  layer = jax.device_get(jax.tree.map(lambda p: p[0], params.pop('blocks')))
  blocks = itertools.repeat(layer, config.num_layers)  # one by one, as they come from a file
  (kind,) = _WEIGHTS.value
  return jax.block_until_ready(
    cache_lib.prepare(config, params | {'blocks': blocks}, '' if kind == 'bf16' else kind))


def peak_gb() -> float | None:
  """The most that the device has held until now; None where it does not say."""
  import jax

  peak = (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use')
  return peak and round(peak / 1e9, 3)


def ours(
  config: Any, params: Any, batch: int, case: str
) -> tuple[None, dict]:
  """`generate` as users call it, with what the case changes."""
  import jax

  from smoljax.inference import cache as cache_lib
  from smoljax.inference.generate import generate
  from smoljax.inference.sampling import GREEDY, Sampling

  rows, new = prompts(config, batch), _NEW.value
  settings = dict(
    block={'block1': 1, 'block32': 32}.get(case, cache_lib.BLOCK),
    sampling=Sampling(0.6, top_p=0.95) if case == 'sampled' else GREEDY,
    eos_id=config.vocab_size if case == 'ends' else None,  # an id that never comes
  )
  loaded, began = peak_gb(), time.perf_counter()
  tokens = generate(config, params, rows, max_new_tokens=new, **settings)
  first = time.perf_counter() - began
  assert all(len(row) == new for row in tokens)
  seconds = median_seconds(
    lambda: generate(config, params, rows, max_new_tokens=new, **settings))
  prefill = median_seconds(
    lambda: cache_lib.prefill(config, params, rows, new)[0].block_until_ready())
  head = 0 if config.tie_embeddings else params['embed_VD'].nbytes
  held = sum(p.nbytes for p in jax.tree.leaves(params))
  slots = cache_lib.bucket_length(cache_lib.bucket_length(_PROMPT.value) + new)
  needed = held + cache_bytes(config, batch, slots)
  peak = peak_gb()
  return None, {
    'block': settings['block'], **figures(config, batch, seconds, prefill, held - head),
    'weights_gb': round(held / 1e9, 3), 'peak_gb': peak, 'loaded_peak_gb': loaded,
    'peak_share': peak and round(1e9 * peak / needed, 3), 'first_seconds': round(first, 1),
  }


def evaluator(config: Any, params: Any, batch: int, case: str) -> tuple[None, dict]:
  """`smoljax.evals.writing.Writer`, as evaluation by generation uses it."""
  import types

  from smoljax.checkpoints import load
  from smoljax.evals.writing import Writer

  text: Any = types.SimpleNamespace(
    decode=lambda ids: ''.join(map(chr, ids)), control_id=lambda name: None)
  writer = Writer(load.Model(config, params, text, False), batch)
  rows = [row[: len(row) * (4 - i % 4) // 4] for i, row in enumerate(prompts(config, 4 * batch))]
  write = lambda: list(writer.write(
    rows, [_NEW.value] * len(rows), seeds=range(len(rows)), eos_ids=(config.vocab_size,)))
  seconds = median_seconds(write)
  tokens = sum(len(written.ids) for _, written in write())
  return None, {'tokens_per_sec': round(tokens / seconds, 1), 'prompts': len(rows),
                'new_tokens': _NEW.value, 'seconds': round(seconds, 3)}


def speculative(config: Any, params: Any, batch: int, case: str) -> tuple[None, dict]:
  """A round of drafting and checking beside a step."""
  from smoljax.inference import cache as cache_lib
  from smoljax.inference.generate import generate
  from smoljax.inference.speculative import Speculation

  drafting = dataclasses.replace(config, mtp='sequential')
  few = dataclasses.replace(drafting, num_layers=1)
  both = params | {'mtp': weights(few, False)['mtp']}
  rows, new = prompts(config, batch), _NEW.value
  counts = Speculation()

  def seconds_each(config, params, rounds, **settings):
    modules = config.mtp_depth if settings else 0
    whole = median_seconds(
      lambda: generate(config, params, rows, max_new_tokens=new, **settings))
    prompt = median_seconds(lambda: cache_lib.prefill(
      config, params, rows, new + modules + 1, modules=modules)[0].block_until_ready())
    return (whole - prompt) / rounds()

  step = seconds_each(config, params, lambda: new - 1)
  a_round = seconds_each(
    drafting, both, lambda: counts.rounds / (1 + _RUNS.value) / batch, speculation=counts)
  return None, {
    'ms_a_step': round(1e3 * step, 4), 'ms_a_round': round(1e3 * a_round, 4),
    'kept': round(counts.acceptance, 4), 'break_even': round(a_round / step - 1, 3),
    'gain_at_most': round((1 + drafting.mtp_depth) * step / a_round, 3)}


def scan(
  config: Any, params: Any, batch: int, case: str
) -> tuple[None, dict]:
  """Steps whose layers are scanned, with one stacked cache; without prefill."""
  import jax
  import jax.numpy as jnp

  from smoljax import model
  from smoljax.inference import cache as cache_lib
  from smoljax.model.attention import attention

  S = cache_lib.bucket_length(_PROMPT.value + _NEW.value)
  slots_1S = jnp.arange(S, dtype=jnp.int32)[None]

  def step(params, carry, index):
    token_B, cache = carry

    def attend(q_BTNH, k_BTKH, v_BTKH, layer, window, cache):
      cache = [
        jax.lax.dynamic_update_slice(held, new.swapaxes(1, 2)[None], (layer, 0, 0, index, 0))
        for held, new in zip(cache, (k_BTKH, v_BTKH), strict=True)]
      k_BSKH, v_BSKH = (held[layer].swapaxes(1, 2) for held in cache)
      out_BTNH, _ = attention(
        q_BTNH, k_BSKH, v_BSKH, q_positions_BT=index[None, None], kv_positions_BS=slots_1S,
        window=window, implementation='xla')
      return out_BTNH, cache, None

    x_B1D = model.embed(config, params, token_B[:, None])
    x_B1D, cache, _ = model.run_blocks(config, params, x_B1D, index[None, None], attend, cache)
    x_B1D = model.final_norm(config, params, x_B1D)
    token_B = model.logits(config, params, x_B1D)[:, 0].argmax(-1).astype(jnp.int32)
    return (token_B, cache), token_B

  @jax.jit
  def run(params, token_B):
    shape = (config.num_layers, batch, config.num_kv_heads, S, config.head_dim)
    cache = [jnp.zeros(shape, config.dtype)] * 2
    indices = _PROMPT.value + jnp.arange(_NEW.value, dtype=jnp.int32)
    return jax.lax.scan(functools.partial(step, params), (token_B, cache), indices)[1]

  seconds = median_seconds(lambda: run(params, jnp.zeros(batch, jnp.int32)).block_until_ready())
  return None, figures(config, batch, seconds, 0.0)


def products(
  config: Any, params: Any, batch: int, case: str
) -> tuple[None, dict]:
  """Rates of the products of one token with each kind of matrix, all layers one after the other."""
  import jax
  import jax.numpy as jnp

  from smoljax.model import quantised

  f32 = jnp.float32
  forms = {
    'in_out': lambda x, w: jnp.einsum('BI,IO->BO', x, w),
    'out_in': lambda x, w: jnp.einsum('BI,OI->BO', x, w),
    'out_in_f32': lambda x, w: jnp.einsum('BI,OI->BO', x, w, preferred_element_type=f32),
    'out_in_swapped': lambda x, w: jnp.einsum('OI,BI->OB', w, x).T,
  }
  if batch == 1:
    forms['in_out_sum'] = lambda x, w: jnp.sum(x[0, :, None].astype(f32) * w, axis=0)[None]
    for parts in (1, 2, 4, 8):  # added by what comes next
      forms[f'out_in_sum_{parts}'] = lambda x, w, parts=parts: jnp.sum(
        (x.astype(f32) * w).reshape(len(w), parts, -1), axis=-1).reshape(1, -1)
  layers = params['blocks']
  matrices = {
    'qkv': [p['attn']['inwards_XD'] for p in layers],
    'o': [p['attn']['outwards_DX'] for p in layers],
    'gate_up': [p['mlp']['inwards_XD'] for p in layers],
    'down': [p['mlp']['outwards_DX'] for p in layers],
    'head': [params['embed_VD'] if config.tie_embeddings else params['head_VD']],
  }
  if _WEIGHTS.value != ['bf16']:
    forms = {'ours': lambda x, w: quantised.matmul(x[:, None], w, x.dtype)[:, 0]}

  def rate(ws, product):
    @jax.jit
    def run(ws, x):
      def once(_, x):
        for w in ws:
          y = jax.lax.optimization_barrier(product(x, w))  # all of it
          x = x + (1e-3 * y[:, :1]).astype(x.dtype)  # so that they run in order
        return x

      return jax.lax.fori_loop(0, 20, once, x)

    x = jnp.ones((batch, inputs), config.dtype)
    seconds = median_seconds(lambda: run(ws, x).block_until_ready())
    return round(20 * sum(w.nbytes for w in jax.tree.leaves(ws)) / seconds / 1e12, 3)

  rates = {}
  for kind, stored in matrices.items():
    inputs = {'o': config.num_heads * config.head_dim, 'down': config.mlp_dim}.get(
      kind, config.embed_dim)
    turned = jax.jit(lambda ws: [w.T for w in ws])(stored) if 'in_out' in forms else []
    for form, product in forms.items():
      ws = turned if form.startswith('in_out') else stored
      rates[f'{kind}/{form}'] = rate(ws, product)
  return None, {'tb_per_sec': rates}


def profile(
  config: Any, params: Any, batch: int, case: str
) -> tuple[None, dict]:
  """The kernels of generation, or of prefill alone, longest first, in µs per token."""
  import jax

  from smoljax.inference import cache as cache_lib
  from smoljax.inference.generate import generate

  rows, new = prompts(config, batch), 1 if case == 'prefill' else _NEW.value
  run = functools.partial(generate, config, params, rows, max_new_tokens=new)
  if case == 'prefill':
    run = lambda: jax.block_until_ready(cache_lib.prefill(config, params, rows, _NEW.value)[0])
  run()
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      run()
    (file,) = glob.glob(f'{folder}/**/*.xplane.pb', recursive=True)
    data = jax.profiler.ProfileData.from_file(file)
  times, counts = {}, {}
  for plane in data.planes:
    if not plane.name.startswith('/device:'):
      continue
    for line in plane.lines:
      if not line.name.startswith('Stream'):
        continue
      for event in line.events:
        times[event.name] = times.get(event.name, 0) + event.duration_ns / 1e3
        counts[event.name] = counts.get(event.name, 0) + 1
  top = sorted(times, key=lambda name: times[name], reverse=True)[:40]
  return None, {
    'us_per_token': round(sum(times.values()) / new, 1),
    'kernels_per_token': round(sum(counts.values()) / new, 1),
    'kernels': {k: [round(times[k] / new, 2), round(counts[k] / new, 2)] for k in top},
  }


# ---------------------------------------------------------------------------------- transformers


def transformers(batch: int) -> tuple[None, dict]:
  """`generate` of SmolLM3ForCausalLM with a static cache, compiled, bf16, on the same device."""
  import torch
  from transformers import CompileConfig, SmolLM3Config, SmolLM3ForCausalLM
  from transformers import __version__ as version

  from smoljax import model as ours_

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  config = ours_.SHAPES[_SIZE.value]
  hf = config.to_hf() | dict(pad_token_id=0, bos_token_id=None, eos_token_id=None)
  for key in ('architectures', 'model_type'):
    hf.pop(key)
  torch.manual_seed(0)
  with torch.device(device):
    torch.set_default_dtype(torch.bfloat16)
    model = SmolLM3ForCausalLM(SmolLM3Config(**hf)).eval()
  ids = torch.tensor(prompts(config, batch), device=device)

  def synchronise():
    if device == 'cuda':
      torch.cuda.synchronize()

  @torch.inference_mode()
  def run():
    out = model.generate(
      ids, attention_mask=torch.ones_like(ids), max_new_tokens=_NEW.value, do_sample=False,
      cache_implementation='static',
      compile_config=CompileConfig(mode='reduce-overhead', fullgraph=False),
    )
    synchronise()
    assert out.shape[1] == _PROMPT.value + _NEW.value

  @torch.inference_mode()
  def prefill():
    model(ids, logits_to_keep=1)
    synchronise()

  began = time.perf_counter()
  run()
  first = time.perf_counter() - began
  run()  # cuda graphs are recorded on the second call
  seconds = median_seconds(run)
  return None, {
    **figures(config, batch, seconds, median_seconds(prefill)),
    'first_seconds': round(first, 1), 'torch': torch.__version__, 'transformers': version,
  }


if __name__ == '__main__':
  app.run(main)

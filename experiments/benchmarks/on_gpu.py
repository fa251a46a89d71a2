"""What a GPU must measure, side by side on the GPUs of this host, each figure beside its bar.

  python -m experiments.benchmarks.on_gpu --output=DIR [--seconds=570] [--only=fp8,muon] [--plan]
  python -m experiments.benchmarks.on_gpu --output=DIR --corpora=DATA …

The benchmarks of this folder whose figures docs/training.md states run as processes of their own,
one a GPU at a time (those of CUDA_VISIBLE_DEVICES, or all), in the order of JOBS, which is that of
their worth. What has ended well is in DIR/NAME.json and isn't run again, so a machine that is lent
for minutes at a time is used by the same command until all are there: with --seconds a job begins
only if it is expected to end in time, and what is left then is stopped. Prints a table, whatever
there is; status 1 if a job failed, which the same command tries again. DATA is a folder with
tokenizer.model and tokens/ (a tokenised corpus) for those that read text, which are left out
without it.
"""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from absl import app, flags

from smoljax import gpu

_OUTPUT = flags.DEFINE_string('output', None, 'Folder for results and logs.', required=True)
_SECONDS = flags.DEFINE_float('seconds', float('inf'), 'How long all may take.')
_ONLY = flags.DEFINE_list('only', [], 'Parts of names of jobs to run; all if none.')
_CORPORA = flags.DEFINE_string('corpora', '', 'Folder with tokenizer.model and tokens/.')
_PLAN = flags.DEFINE_bool('plan', False, 'Says what would be run, and what is there already.')

_STEP = 'experiments.benchmarks.train_step --seq_len=4096 --kernels=24'
_3B = f'{_STEP} --shape=smollm3-3b --rows=8 --chunk=2048 --model=scan_layers=False'
_1_7B = (f'{_STEP} --shape=smollm2-1.7b --rows=16 --chunk=2048'
         ' --model=scan_layers=False,vocab_size=128256')
_1B = f'{_STEP} --shape=smollm3-1b --rows=4 --chunk=2048 --model=scan_layers=True'
# A real run, from its first line to its exported model.
_RUN = (
  'experiments.run --config=configs/base.py --workdir={output}/run'
  ' --config.web.enabled=False --config.pdf.enabled=False --config.corpora=text={corpora}/tokens'
  ' --config.tokenizer.path={corpora}/tokenizer.model --config.model.shape=smollm2-135m'
  ' --config.model.dtype=bfloat16 --config.data.seq_len=4096 --config.train.tokens=26214400'
  ' --config.train.batch_tokens=65536 --config.train.max_epochs=0'
  " --config.train.stages=({{'name':'all','fraction':1.0,'mixture':{{'text':1.0}}}},)")


class Job(NamedTuple):
  """One process on one GPU."""

  seconds: int  # that it takes on an H200, about
  arguments: str  # a module and its flags, after `python -m`
  xla: str = ''  # flags of XLA


_CUBLAS = '--xla_gpu_enable_triton_gemm=false'

JOBS = {
  'kernels': Job(60, 'pytest -q -p no:cacheprovider tests/smoljax/model/test_fp8.py'
                     ' tests/smoljax/train/test_cross_entropy.py'
                     ' tests/smoljax/model/test_rms_norm.py'
                     ' tests/smoljax/optim/test_symmetric.py'
                     ' tests/smoljax/inference/test_prefill.py'
                     ' tests/smoljax/model/test_attention.py::test_the_kernel_of_one_token'
                     '_equals_the_definition tests/smoljax/model/test_attention.py::test_the_kernel'
                     '_of_several_tokens_equals_one_at_a_time'),
  '3b': Job(75, _3B),
  '3b fp8': Job(85, f'{_3B},fp8=True'),
  '3b, cublas alone': Job(75, _3B, _CUBLAS),
  'run': Job(140, _RUN),
  '3b muon': Job(85, f'{_3B} --optimizer=muon --coefficients=gram5'),
  '3b muon, cublas alone': Job(85, f'{_3B} --optimizer=muon --coefficients=gram5', _CUBLAS),
  '1.7b': Job(60, _1_7B),
  '1.7b, cublas alone': Job(60, _1_7B, _CUBLAS),
  'speculative': Job(90, 'experiments.benchmarks.decode --size=smollm3-1b'
                         ' --cases=greedy,speculative --batch=1,8'),
  '1b': Job(50, _1B),
  '1b mtp': Job(60, f'{_1B},mtp=sequential'),
  '135m': Job(50, f'{_STEP} --shape=smollm2-135m --rows=32 --chunk=512'
                  ' --model=scan_layers=False,vocab_size=128256'),
  '360m': Job(50, f'{_STEP} --shape=smollm2-360m --rows=16 --chunk=1024'
                  ' --model=scan_layers=False,vocab_size=128256'),
  '3b 64k': Job(90, 'experiments.benchmarks.train_step --seq_len=65536 --shape=smollm3-3b --rows=1'
                    ' --chunk=2048 --document=65536 --steps=4 --kernels=24'
                    ' --model=scan_layers=True,remat=qkv+ctx+mid'),
  'newton schulz': Job(45, 'experiments.benchmarks.newton_schulz --only=bfloat16'),
  'half products': Job(45, 'experiments.benchmarks.newton_schulz'
                           ' --tiles=128x64x4x4,128x64x4x3,128x32x4x4,256x64x8x3'),
  'decode': Job(70, 'experiments.benchmarks.decode --cases=greedy,evaluator --batch=1,32'),
  'long prompt': Job(60, 'experiments.benchmarks.decode --cases=greedy --batch=1 --prompt=65528'
                         ' --new=8 --runs=1'),
  'fp8 loss': Job(400, 'experiments.benchmarks.fp8_loss --corpus={corpora}/tokens --seeds=2'
                       ' --shape=smollm2-360m --rows=4 --seq_len=4096 --chunk=4096 --steps=1000'
                       ' --together=500 --model=scan_layers=False'),
}

Found = Mapping[str, dict]  # by job: seconds, code, and the rows that it printed


class Figure(NamedTuple):
  """A line of the table."""

  name: str
  of: Callable[[Found], float]  # KeyError where its jobs have not been run
  bar: float
  most: bool = False  # the bar is the most that it may be, not the least


def _step(found: Found, job: str, key: str = 'tokens_per_sec') -> float:
  return found[job]['rows'][0][key]


def _over(job: str, other: str) -> Callable[[Found], float]:
  """Tokens a second of one job over another's."""
  return lambda found: _step(found, job) / _step(found, other)


def _percent(job: str) -> Callable[[Found], float]:
  return lambda found: 100 * _step(found, job, 'mfu')


def _row(job: str, key: str, **fields: Any) -> Callable[[Found], float]:
  """A value of the job's first row with these fields; KeyError where there is none."""

  def value(found: Found) -> float:
    for row in found[job]['rows']:
      if all(row.get(k) == v for k, v in fields.items()):
        return row[key]
    raise KeyError(job)

  return value


FIGURES = (
  Figure('3B, % of the peak', _percent('3b'), 62),
  Figure('the same, all products by cuBLAS', _percent('3b, cublas alone'), 62),
  Figure('3B, first step, s', lambda found: _step(found, '3b', 'first_step_seconds'), 35, True),
  Figure('1.7B, % of the peak', _percent('1.7b'), 64.5),
  Figure('the same, all products by cuBLAS', _percent('1.7b, cublas alone'), 64.5),
  Figure('360M, % of the peak', _percent('360m'), 54),
  Figure('135M, % of the peak', _percent('135m'), 47),
  Figure('3B, a row of 65,536, % of the peak', _percent('3b 64k'), 52),
  Figure('3B in 8 bits, times bf16', _over('3b fp8', '3b'), 1.3),
  Figure("360M in 8 bits from step 500 on, % above bf16's loss at 1,000",
         lambda found: 100 * _step(found, 'fp8 loss', 'gap'), 0.3, True),
  Figure("3B with Muon, times AdamW's step", _over('3b', '3b muon'), 1.10, True),
  Figure('the same, all products by cuBLAS',
         _over('3b, cublas alone', '3b muon, cublas alone'), 1.10, True),
  Figure('1B with a module of MTP, times its step', _over('1b', '1b mtp'), 1.2, True),
  Figure('a run of 26M tokens at 135M, s', lambda found: found['run']['seconds'], 110, True),
  Figure('Newton–Schulz, ms',
         _row('newton schulz', 'ms', variant='smoljax pe5, bfloat16 gradients'), 50, True),
  Figure('Newton–Schulz in Gram form, ms',
         _row('newton schulz', 'ms', variant='smoljax gram5, bfloat16 gradients'), 36, True),
  Figure('decoding 3B at batch 1, share of the bound',
         _row('decode', 'share_of_bound', case='greedy', batch=1), 0.88),
  Figure('decoding 3B at batch 32, share of the bound',
         _row('decode', 'share_of_bound', case='greedy', batch=32), 0.77),
  Figure('3B reads 65,536 tokens, ms (60 % of the peak)',
         _row('long prompt', 'prefill_ms', case='greedy', batch=1), 1690, True),
  Figure('evaluator, 3B at batch 32, tokens/s',
         _row('decode', 'tokens_per_sec', case='evaluator', batch=32), 8000),
  Figure('speculation at 1B, share of drafts to be kept',
         _row('speculative', 'break_even', case='speculative', batch=1), 0.5, True),
)


def command(name: str, output: pathlib.Path, corpora: str) -> list[str]:
  """The job's command line."""
  module, *arguments = (
    part.format(output=output, corpora=corpora) for part in JOBS[name].arguments.split())
  return [sys.executable, '-m', module, *arguments]


def run(name: str, device: str, output: pathlib.Path, corpora: str, deadline: float) -> None:
  """Runs a job on a device and writes what it gave, unless the deadline ends it first."""
  environment = {**os.environ, 'CUDA_VISIBLE_DEVICES': device, 'PYTHONUNBUFFERED': '1',
                 'SMOLJAX_TEST_PLATFORM': 'cuda',
                 # Of blanks alone XLA takes it for the name of a file, and ends.
                 'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {JOBS[name].xla}'.strip()}
  began = time.monotonic()
  with open(output / f'{name}.log', 'w') as log:
    process = subprocess.Popen(command(name, output, corpora), stdout=log,
                               stderr=subprocess.STDOUT, env=environment)
    try:
      code = process.wait(None if deadline == float('inf') else deadline - began)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
      return
  lines = (output / f'{name}.log').read_text(errors='replace').splitlines()
  (output / f'{name}.json').write_text(json.dumps({
    'seconds': round(time.monotonic() - began, 1), 'code': code,
    'rows': [json.loads(line) for line in lines if line.startswith('{"benchmark"')],
    'end': lines[-1:]}))


def found(output: pathlib.Path) -> dict[str, dict]:
  """What is there, by job."""
  return {name: json.loads(path.read_text()) for name in JOBS
          if (path := output / f'{name}.json').exists()}


def _failure(result: dict) -> str:
  """How a job ended that did not do all that it should; '' if it did."""
  errors = [row['error'] for row in result['rows'] if row.get('error')]
  return ''.join(result['end']) or 'no output' if result['code'] else ''.join(errors[:1])


def table(results: Found) -> list[str]:
  """A line for each figure that there is, and for each job that failed."""
  good = {name: result for name, result in results.items() if not result['code']}
  lines = []
  for figure in FIGURES:
    try:
      value = figure.of(good)
    except (KeyError, IndexError):
      continue
    reached = value <= figure.bar if figure.most else value >= figure.bar
    lines.append(f'{figure.name:<48}{value:>10.4g}  (bar {"≤" if figure.most else "≥"} '
                 f'{figure.bar:g}{"" if reached else ", not reached"})')
  return lines + [f'{name:<48}    failed: {failure[:200]}'
                  for name, result in results.items() if (failure := _failure(result))]


def main(_: list[str]) -> None:
  """Runs what is left of the jobs, and prints the table."""
  output, deadline = pathlib.Path(_OUTPUT.value), time.monotonic() + _SECONDS.value
  output.mkdir(parents=True, exist_ok=True)
  wanted = [name for name in JOBS if not _ONLY.value or any(part in name for part in _ONLY.value)]
  if not _CORPORA.value:
    wanted = [name for name in wanted if '{corpora}' not in JOBS[name].arguments]
  done = found(output)
  left = [name for name in wanted if name not in done or _failure(done[name])]
  if _PLAN.value:
    for name in wanted:
      print(f'{name:<24}{JOBS[name].seconds:>5} s  {"left" if name in left else "done"}')
    return
  taking = threading.Lock()

  def work(device: str) -> None:
    while True:
      with taking:
        remaining = deadline - time.monotonic()
        name = next((name for name in left if JOBS[name].seconds <= remaining), None)
        if name is None:
          return
        left.remove(name)
      run(name, device, output, _CORPORA.value, deadline)

  with concurrent.futures.ThreadPoolExecutor() as pool:
    list(pool.map(work, gpu.visible() or ['']))  # a CPU, to try it
  results = found(output)
  print('\n'.join(table(results)))
  sys.exit(any(_failure(results[name]) for name in wanted if name in results))


if __name__ == '__main__':
  app.run(main)

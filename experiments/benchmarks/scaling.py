"""Several GPUs of one host against one of them, in one call: a table, and one JSON line.

  python -m experiments.benchmarks.scaling
  python -m experiments.benchmarks.scaling --shapes=smollm3-3b --optimizers=adamw,muon --rows=8
  python -m experiments.benchmarks.scaling --shapes=smollm3-3b --axes=context --rows=1 \
    --seq_len=65536 --model=remat=full

Each cell is the training step of train_step.py in a process of its own; those of one GPU run side
by side, each on another. Along `data` and `fsdp`
every GPU has --rows rows, one GPU as many; along `tensor` and `context` all work on the rows that
one GPU has. Efficiency is tokens a second over those of so many single GPUs; `exposed_ms` are the
milliseconds a step in which GPUs exchanged and nothing else was computed. `auto` is the mesh that a
run would choose. What --seconds does not suffice for is left out and said.
"""

import concurrent.futures
import itertools
import json
import os
import queue
import subprocess
import sys
import time

from absl import app, flags

from smoljax import gpu

_SHAPES = flags.DEFINE_list('shapes', ['smollm2-135m', 'smollm2-1.7b', 'smollm3-3b'], 'Models.')
_OPTIMIZERS = flags.DEFINE_list('optimizers', ['adamw', 'muon', 'muonclip'], 'Optimizers.')
_AXES = flags.DEFINE_list('axes', ['data', 'fsdp', 'tensor', 'context', 'auto'], 'Meshes.')
_ROWS = flags.DEFINE_integer('rows', 8, 'Rows a step on one GPU.')
_SEQ_LEN = flags.DEFINE_integer('seq_len', 4096, 'Tokens a row.')
_STEPS = flags.DEFINE_integer('steps', 8, 'Steps timed.')
_MODEL = flags.DEFINE_string(
  'model', 'scan_layers=False', 'As train_step has it, such as remat=full,fp8=True.')
_CHUNK = flags.DEFINE_integer('chunk', 2048, 'Places whose logits exist at once.')
_SECONDS = flags.DEFINE_integer('seconds', 570, 'After so many no further cell is begun.')
_TAU = 30.0  # of muonclip: what it costs does not depend on it


def time_cell(shape: str, optimizer: str, mesh: str, rows: int, gpus: list[str]) -> dict:
  """What train_step prints of one cell, or its `error`."""
  command = [
    sys.executable, '-m', 'experiments.benchmarks.train_step', f'--shape={shape}',
    f'--optimizer={optimizer.removesuffix("clip")}', f'--tau={_TAU * optimizer.endswith("clip")}',
    f'--mesh={mesh}', f'--rows={rows}', f'--seq_len={_SEQ_LEN.value}', f'--steps={_STEPS.value}',
    f'--model={_MODEL.value}', f'--chunk={_CHUNK.value}', '--kernels=12']
  environment = {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.94', **os.environ,
                 'CUDA_VISIBLE_DEVICES': ','.join(gpus)}
  done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
  print(done.stderr[-3000:], file=sys.stderr)
  if done.returncode:
    lines = done.stderr.strip().splitlines() or ['no word']
    return {'error': next((x for x in lines if 'RESOURCE_EXHAUSTED' in x), lines[-1])[:200]}
  return json.loads(done.stdout.strip().splitlines()[-1])


def main(argv: list[str]) -> None:
  """Times one cell after another."""
  del argv
  gpus, began, rows, cells = gpu.visible(), time.monotonic(), _ROWS.value, []
  if len(gpus) < 2:
    sys.exit('error: this machine has fewer than two GPUs')
  print(f'{"shape":14} {"optimizer":9} {"mesh":10} {"tokens/s":>9} {"MFU":>6} {"of one":>7} '
        f'{"exchange":>8} {"exposed":>8} {"GB":>6}')
  late = lambda: time.monotonic() - began > _SECONDS.value
  models = list(itertools.product(_SHAPES.value, _OPTIMIZERS.value))
  free = queue.SimpleQueue()
  for name in gpus:
    free.put(name)

  def alone(shape: str, optimizer: str) -> dict:
    mine = free.get()
    try:
      return {'error': 'no time'} if late() else time_cell(shape, optimizer, 'fsdp=1', rows, [mine])
    finally:
      free.put(mine)

  with concurrent.futures.ThreadPoolExecutor(len(gpus)) as pool:
    singles = list(pool.map(alone, *zip(*models, strict=True)))
  for (shape, optimizer), single in zip(models, singles, strict=True):
    for mesh in ['one', *_AXES.value]:
      cell = single
      if mesh != 'one':
        times = 1 if mesh in ('tensor', 'context') else len(gpus)
        cell = {'error': 'no time'} if late() else time_cell(
          shape, optimizer, mesh if mesh == 'auto' else f'{mesh}=-1', rows * times, gpus)
      if 'error' not in cell and 'error' not in single:
        of = 1 if mesh == 'one' else len(gpus)
        rate = cell['tokens_per_sec'] / single['tokens_per_sec'] / of
        cell = {**cell, 'efficiency': round(rate, 4)}
      cells.append({'asked': mesh, **cell, 'shape': shape, 'optimizer': optimizer})
      print(_line(cells[-1]), flush=True)
  print(json.dumps({'benchmark': 'scaling', 'gpus': len(gpus), 'rows': rows,
                    'seq_len': _SEQ_LEN.value, 'cells': cells}))


def _line(cell: dict) -> str:
  start = f'{cell["shape"]:14} {cell["optimizer"]:9} {cell["asked"]:10}'
  if 'error' in cell:
    return f'{start} {cell["error"]}'
  profile = cell['profile']
  return (f'{start} {cell["tokens_per_sec"]:9,.0f} {cell["mfu"] or 0:6.3f} '
          f'{cell.get("efficiency", 0):7.3f} {profile["exchange_ms"]:8.1f} '
          f'{profile["exposed_ms"]:8.1f} {cell["peak_gb"] or 0:6.1f}')


if __name__ == '__main__':
  app.run(main)

"""One process for all GPUs of a host against one process a GPU: the same bits, also after a kill.

  python -m experiments.benchmarks.gpu_processes --corpus=tokens/web/1.0.0 \\
    --tokenizer=tokenizer.model

Trains the quickstart's model in bfloat16, its state split over two GPUs (FSDP): by one process, by
two with a GPU each, and by two of which one is killed after the first checkpoint, when one process
goes on (`on`; leave it out of --cases if the end of the other is all that is wanted). Prints a JSON
line each: exit codes, losses, and a digest of the last parameters; and how long the process that
was left took to end, which it does with status 75 (os.EX_TEMPFAIL). XLA is
told to be deterministic and to choose products without timing them; without both, two runs of the
same command differ in the fourth digit.
"""

import glob
import hashlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import app, flags

from smoljax import metrics

_CORPUS = flags.DEFINE_string('corpus', None, 'Tokenised corpus (DIR/NAME/VERSION).', required=True)
_TOKENIZER = flags.DEFINE_string('tokenizer', None, 'Its tokenizer.', required=True)
_STEPS = flags.DEFINE_integer('steps', 60, 'Steps, of 16,384 tokens.', lower_bound=3)
_EXACT = flags.DEFINE_bool('exact', True, 'Tell XLA to be deterministic.')
_CASES = flags.DEFINE_list('cases', ['one', 'each', 'killed', 'on'], 'Which of the four.')

GPUS = 2
EXACT = '--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0'
PATIENCE = 300  # seconds


def main(_: list[str]) -> None:
  """Prints a line a case."""
  with tempfile.TemporaryDirectory() as folder:
    for name, case, processes in (('one', 'one process', 1), ('each', 'a process a GPU', GPUS)):
      run = os.path.join(folder, name)
      if name in _CASES.value:
        show(case, run, ended(start(run, processes)))
    if 'killed' not in _CASES.value:
      return
    run = os.path.join(folder, 'killed')
    started = start(run, GPUS)
    while started[-1].poll() is None and not checkpoints(run):
      time.sleep(0.05)
    started[-1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    codes = ended(started)
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({'benchmark': 'gpu_processes', 'case': 'one of them killed', 'codes': codes,
                      'seconds_until_all_ended': seconds, 'checkpoints': checkpoints(run)}),
          flush=True)
    if 'on' in _CASES.value:
      show('one process goes on', run, ended(start(run, 1)))


def start(workdir: str, processes: int) -> list[subprocess.Popen]:
  """The same run by so many processes, each with its share of the GPUs."""
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  every = max(1, _STEPS.value // 3)
  command = [
    sys.executable, '-m', 'experiments.run', '--config=configs/quickstart.py',
    f'--workdir={workdir}', '--config.web.enabled=False', '--config.pdf.enabled=False',
    f'--config.corpora=mine={_CORPUS.value}', f'--config.tokenizer.path={_TOKENIZER.value}',
    "--config.train.stages=({'name':'all','fraction':1.0,'mixture':{'mine':1.0}},)",
    '--config.model.dtype=bfloat16', f'--config.mesh.fsdp={GPUS}',
    '--config.train.batch_tokens=16384', f'--config.train.tokens={_STEPS.value * 16384}',
    f'--config.train.checkpoint_every={every}', '--config.eval.tasks=()',
    '--config.sample.prompts=()', '--config.diagnostics.every=0']
  several = ['--distributed', f'--coordinator=localhost:{port}', f'--processes={processes}']
  environment = {**os.environ, **({'XLA_FLAGS': EXACT} if _EXACT.value else {})}
  return [
    subprocess.Popen(
      [*command, *([*several, f'--process={i}'] if processes > 1 else [])], stdout=sys.stderr,
      env=environment | ({'CUDA_VISIBLE_DEVICES': str(i)} if processes > 1 else {}))
    for i in range(processes)]


def ended(processes: list[subprocess.Popen]) -> list[int]:
  """Exit codes, once all have ended; one that does not is killed."""
  until, codes = time.monotonic() + PATIENCE, []
  for process in processes:
    try:
      codes.append(process.wait(max(1, until - time.monotonic())))
    except subprocess.TimeoutExpired:
      process.kill()
      codes.append(process.wait())
  return codes


def checkpoints(workdir: str) -> list[int]:
  """Steps of the run's checkpoints that are whole or being written."""
  names = map(os.path.basename, glob.glob(f'{workdir}/checkpoints/*'))
  return sorted(int(name) for name in names if name.isdigit())


def show(case: str, workdir: str, codes: list[int]) -> None:
  """Prints what a run came to."""
  result: dict[str, Any] = {'benchmark': 'gpu_processes', 'case': case, 'codes': codes}
  try:
    found = subprocess.run(
      [sys.executable, '-c', f'from {__spec__.name} import digest; print(digest({workdir!r}))'],
      env={**os.environ, 'JAX_PLATFORMS': 'cpu'}, capture_output=True, text=True, check=True)
    rows = metrics.read_rows(pathlib.Path(workdir, 'metrics.jsonl'))
    losses = {row['step']: row['train/loss'] for row in rows if 'train/loss' in row}
    result |= {'digest': found.stdout.strip(), 'losses': losses}
  except (subprocess.CalledProcessError, OSError) as e:
    result['error'] = str(e)
  print(json.dumps(result), flush=True)


def digest(workdir: str) -> str:
  """Of all parameters of the newest checkpoint."""
  import jax
  import numpy as np

  from smoljax.checkpoints import store

  _, params, _ = store.load_params(workdir)
  return hashlib.sha256(
    b''.join(np.asarray(x).tobytes() for x in jax.tree.leaves(params))).hexdigest()[:16]


if __name__ == '__main__':
  app.run(main)

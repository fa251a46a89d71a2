"""Runs of several processes: real ones, over gloo, started as on the hosts of a slice."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import REPOSITORY
from helpers.tokenised import corpus, folder, texts  # noqa: F401 (fixtures)

from smoljax import distributed
from smoljax.train import watchdog


def start(
  documents, workdir, processes, devices, *flags, last=(), program=('-m', 'experiments.run')
):
  """The same command for each process, with the devices of the host that it stands for.

  The last process has flags of its own, `last`.
  """
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  command = [
    sys.executable, *program, '--config=configs/base.py', f'--workdir={workdir}',
    '--config.web.enabled=False', '--config.pdf.enabled=False',
    f'--config.corpora=mine={documents}', '--config.tokenizer.vocab_size=320',
    '--config.tokenize.holdout=0.2', '--config.train.tokens=24576',
    "--config.train.stages=({'name': 'all', 'fraction': 1.0, 'mixture': {'mine': 1.0}},)",
    '--config.train.batch_tokens=1024', '--config.data.seq_len=128', '--config.train.log_every=2',
    '--config.train.checkpoint_every=4', '--config.train.eval_every=12', '--config.mesh.data=2',
    '--config.mesh.fsdp=-1', '--config.model.num_layers=2', '--config.model.embed_dim=64',
    '--config.model.mlp_dim=128', '--config.model.dtype=float32', '--config.eval.tasks=()',
    '--config.sample.prompts=()', '--config.train.tensorboard=False', *flags]
  several = ['--distributed', f'--coordinator=localhost:{port}', f'--processes={processes}']
  return [subprocess.Popen(
    [*command, *several * (processes > 1), *[f'--process={i}'] * (processes > 1),
     *last * (i == processes - 1)], cwd=REPOSITORY,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu',
         'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} '
                      '--xla_backend_optimization_level=0'})
    for i in range(processes)]


def finish(running, code=0):
  said = [p.communicate(timeout=600)[0] for p in running]
  for p, out in zip(running, said, strict=True):
    assert p.returncode == code, out[-4000:]
  return said


def rows(workdir):
  with open(workdir / 'metrics.jsonl') as f:
    found = [json.loads(line) for line in f]
  trained = {r['step']: r for r in found if 'train/loss' in r}
  return trained, [r for r in found if 'val/mine/bpb' in r]


def same(a, b, after=0):
  steps = [step for step in a[0] if step > after]
  assert steps and steps == [step for step in b[0] if step > after]
  for step in steps:
    row = a[0][step]
    for key, rtol in (('train/loss', 2e-5), ('grad/norm', 2e-4)):  # of rounding, over 24 steps
      np.testing.assert_allclose(row[key], b[0][step][key], rtol=rtol)
  np.testing.assert_allclose(a[1][-1]['val/mine/bpb'], b[1][-1]['val/mine/bpb'], rtol=1e-5)


@pytest.mark.slow
def test_two_processes_train_as_one_does_and_may_become_one(tmp_path, corpus):
  one, two, less = (tmp_path / name for name in ('one', 'two', 'less'))
  finish(start(corpus, one, 1, 8))
  lead, other = finish(start(corpus, two, 2, 4))
  assert 'loss' in lead and 'loss' not in other
  same(rows(one), rows(two))
  scores = [json.loads((run / 'evals' / '24.json').read_text()) for run in (one, two)]
  np.testing.assert_allclose(*(s['bits_per_byte']['mine']['bpb'] for s in scores), rtol=1e-5)
  assert (two / 'report' / 'index.html').exists() and (two / 'checkpoints').exists()

  # A host is told to go: both stop after the same step. One with all devices goes on.
  running = start(corpus, less, 2, 4)
  deadline = time.monotonic() + 300
  while not (less / 'metrics.jsonl').exists() or '"step": 4' not in (
      less / 'metrics.jsonl').read_text():
    assert time.monotonic() < deadline and all(p.poll() is None for p in running)
    time.sleep(0.05)
  running[1].send_signal(signal.SIGTERM)
  finish(running, 128 + signal.SIGTERM)
  finish(start(corpus, less, 1, 8))
  events = list(map(json.loads, (less / 'events.jsonl').read_text().splitlines()))
  assert [e['event'] for e in events if e['event'] in ('start', 'resume')] == ['start', 'resume']
  stopped = next(e['step'] for e in events if e['event'] == 'stop')
  same(rows(one), rows(less), after=stopped + 2)  # which rows are means of other steps


@pytest.mark.slow
def test_two_processes_begin_with_a_trained_model_and_learn_from_it(tmp_path, corpus):
  first, one, two = (tmp_path / name for name in ('first', 'one', 'two'))
  few = '--config.train.tokens=6144', '--config.train.eval_every=6'
  finish(start(corpus, first, 1, 2, *few))
  flags = *few, *(f'--config.{field}={first}' for field in ('train.init_from', 'distill.teacher'))
  finish(start(corpus, one, 1, 2, *flags))
  finish(start(corpus, two, 2, 1, *flags))
  same(rows(one), rows(two))
  assert rows(two)[0][2]['train/loss'] < rows(first)[0][2]['train/loss'] - 0.1


_HUNG_READ = """
import runpy, sys, time
from smoljax.data import batches
read = batches._BatchIterator.__next__
def a_read_that_hangs(self):
  if '--process=1' in sys.argv and self._step == 12:
    time.sleep(600)
  return read(self)
batches._BatchIterator.__next__ = a_read_that_hangs
runpy.run_module('experiments.run', run_name='__main__', alter_sys=True)
"""


@pytest.mark.slow
def test_a_process_that_is_stuck_ends_the_run(tmp_path, corpus):
  """It is alive, so its heart beats: the watchdogs end both, and say where each one stood."""
  running = start(
    corpus, tmp_path, 2, 2, '--config.train.watchdog=2', program=('-c', _HUNG_READ))
  said = finish(running, watchdog.EXIT)
  assert 'in a_read_that_hangs' in said[1]
  assert all('stands still' in out and 'in train' in out for out in said)
  (train,) = (tmp_path / 'steps').glob('train-*.partial')
  first = (train / 'hang-0.txt').read_text() + (train / 'hang-1.txt').read_text()
  still, limit = map(int, re.search(r'a step for (\d+) s, the limit is (\d+) s', first).groups())
  assert still <= limit + 1 and 'in a_read_that_hangs' in first
  events = list(map(json.loads, (train / 'events.jsonl').read_text().splitlines()))
  assert events[-1]['event'] == 'hang' and 'process' in events[-1]['reason']
  moments = [os.path.getmtime(train / f'hang-{i}.txt') for i in (0, 1)]
  assert abs(moments[0] - moments[1]) < 3
  # They start again as if nothing had been.
  finish(start(corpus, tmp_path, 1, 4))


_FALLEN_PEER = """
import itertools, os, runpy, signal, sys, time
from smoljax import distributed
from smoljax.train import loop
distributed.SIGNS = 3
add, steps = loop.Telemetry.add, itertools.count(1)
def a_wait_for_the_fallen(self, *args):
  if next(steps) == 8:  # the same one on both, or the later one would wait for the other's
    if '--process=1' in sys.argv:
      os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(SECONDS)
  return add(self, *args)
loop.Telemetry.add = a_wait_for_the_fallen
runpy.run_module('experiments.run', run_name='__main__', alter_sys=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize('collective', ['hangs', 'fails'])
def test_a_process_that_is_killed_ends_the_run(tmp_path, corpus, collective):
  """Who waits for it on GPUs waits for ever, on a CPU gets an error: it may try again after both.

  jax's own service would abort after 100 seconds.
  """
  program = _FALLEN_PEER.replace('SECONDS', '600' if collective == 'hangs' else '0')
  lead, fallen = start(corpus, tmp_path, 2, 2, program=('-c', program))
  assert fallen.wait(300) == -signal.SIGKILL
  began = time.monotonic()
  said = lead.communicate(timeout=60)[0]
  assert lead.returncode == os.EX_TEMPFAIL, said[-4000:]
  assert time.monotonic() - began < 30
  if collective == 'hangs':
    assert 'no sign of life of process 1' in said and 'in a_wait_for_the_fallen' in said
    finish(start(corpus, tmp_path, 1, 4))


@pytest.mark.slow
def test_processes_that_differ_end_before_they_work(tmp_path, corpus):
  for said in finish(start(
      corpus, tmp_path / 'run', 2, 1, last=('--config.optimizer.learning_rate=0.5',)), 2):
    assert ('error: process 1 is not like process 0: config.optimizer.learning_rate (0.5 against '
            '0.002)') in said
  assert not (tmp_path / 'run').exists()


@pytest.fixture
def as_process(monkeypatch):
  """Runs functions side by side, each as if in a process of its own; their results or errors."""
  here, store, changed = threading.local(), {}, threading.Condition()

  class Client:
    def key_value_set(self, key, value):
      with changed:
        if key in store:
          raise jax.errors.JaxRuntimeError(f'ALREADY_EXISTS: {key}')
        store[key] = value
        changed.notify_all()

    def blocking_key_value_get(self, key, milliseconds):
      with changed:
        if not changed.wait_for(lambda: key in store, milliseconds / 1000):
          raise jax.errors.JaxRuntimeError(f'DEADLINE_EXCEEDED: {key}')
        return store[key]

  class Meetings:
    def __next__(self):
      here.meetings = getattr(here, 'meetings', -1) + 1
      return here.meetings

  def run(*works):
    results = [None] * len(works)

    def one(i, work):
      here.index = i
      try:
        results[i] = work()
      except Exception as e:
        results[i] = e

    monkeypatch.setattr(jax, 'process_count', lambda: len(works))
    threads = [threading.Thread(target=one, args=x) for x in enumerate(works)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join(20)
    return results

  monkeypatch.setattr(jax, 'process_index', lambda: here.index)
  monkeypatch.setattr(
    distributed, '_state', lambda: SimpleNamespace(client=Client(), process_id=here.index))
  monkeypatch.setattr(distributed, '_meetings', Meetings())
  monkeypatch.setattr(distributed, '_POLL', 0.05)
  return run


def test_all_come_together_however_late_and_know_of_one_who_has_gone(as_process):
  def late():
    time.sleep(0.3)  # much longer than they wait at a time
    return distributed.gather('x', 'b'), distributed.share('y', 2)

  early = lambda: (distributed.gather('x', 'a'), distributed.share('y', 1))
  assert as_process(early, late, early) == [(['a', 'b', 'a'], 1)] * 3
  gone, waits, leads = as_process(
    lambda: distributed.end('it has no disk'), lambda: distributed.wait('z'),
    lambda: distributed.wait('z'))
  assert gone is None and all(
    isinstance(e, ConnectionError) and 'process 0: it has no disk' in str(e)
    for e in (waits, leads))


def test_half_a_coordinator_is_refused():
  with pytest.raises(ValueError, match='or none of them'):
    distributed.start('localhost:1', 2)


_WHICH_GPUS = """
import os, sys
from smoljax import gpu
seen = os.environ.get('CUDA_VISIBLE_DEVICES', '0,1,2,3,4,5,6,7').split(',')
gpu.visible = lambda: [f'GPU-{name}' for name in seen]
from smoljax import distributed
from jax._src import xla_bridge
try:
  distributed.start()
except ValueError as e:
  sys.exit(str(e))
print('mine:', xla_bridge.CUDA_VISIBLE_DEVICES.value)
"""


@pytest.mark.parametrize('processes, given, said', [
  (1, [], ['0,1,2,3,4,5,6,7']),  # srun --ntasks-per-node=1 --gpus-per-node=8
  (2, [], ['0,1,2,3', '4,5,6,7']),
  pytest.param(2, ['3', '4'], ['0', '0'], marks=pytest.mark.slow),  # the launcher divided them
  *(pytest.param(2, given, [f'cannot divide its {n} GPUs'] * 2, marks=pytest.mark.slow)
    for n, given in ((3, ['0,1,2'] * 2), (2, ['3,4', '4,5']))),
])
def test_gpus_of_a_host_are_divided_among_its_processes(processes, given, said):
  """By SLURM's variables jax would take one a process, and without them all for each."""
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = str(s.getsockname()[1])
  of = lambda i: {
    **os.environ, 'JAX_PLATFORMS': '', 'JAX_COORDINATOR_PORT': port, 'SLURM_JOB_ID': '1',
    'SLURM_STEP_NODELIST': 'localhost', 'SLURM_NTASKS': str(processes), 'SLURM_PROCID': str(i),
    'SLURM_LOCALID': str(i), **({'CUDA_VISIBLE_DEVICES': given[i]} if given else {})}
  running = [subprocess.Popen(
    [sys.executable, '-c', _WHICH_GPUS], cwd=REPOSITORY, env=of(i), text=True,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for i in range(processes)]
  for process, words in zip(running, said, strict=True):
    out = process.communicate(timeout=120)[0]
    assert (f'mine: {words}\n' in out) if words[0].isdecimal() else words in out, out


def test_the_commands_for_a_tpu_slice(tmp_path):
  def script(*args, **environment):
    return subprocess.run(
      [REPOSITORY / 'experiments' / 'cloud' / 'tpu.sh', *args],
      capture_output=True, text=True, check=True,
      env={**os.environ, 'PROJECT': 'p', 'ZONE': 'z', 'NAME': 'n', 'TYPE': 'v5e-256', 'DRY': '1',
           'REPOSITORY': 'https://host/smoljax.git', **environment}).stdout

  assert '--accelerator-type=v5litepod-256' in script('create')
  assert '--accelerator-type=v6e-64' in script('create', TYPE='v6e-64', SPOT='1')
  assert '--spot' in script('create', SPOT='1') and '--spot' not in script('create', SPOT='0')
  (tmp_path / 'gcloud').write_text('#!/bin/sh\necho it ran')
  (tmp_path / 'gcloud').chmod(0o755)
  path = f'{tmp_path}:{os.environ["PATH"]}'
  assert 'it ran' in script('create', DRY='0', PATH=path)
  assert 'it ran' not in script('create', DRY='1', PATH=path)
  said = script('setup', REPOSITORY='https://me:hunter2@host/a') + script(
    'run', '--config.web.input=s3://u:hunter2@b/a?X-Amz-Signature=hunter2', '--password=hunter2',
    '--config.beam.args=("--s3_secret_access_key=hunter2",)', '--hf_token', 'hunter2')
  assert 'hunter2' not in said and 'a+rwx' not in script('setup', MOUNT='10.0.0.2:/share')
  for words in (['create'], ['setup'], ['logs'], ['stop'], ['delete'],
                ['run', '--config=configs/smollm3.py:size=3b', "--config.sample.prompts=('a b',)"]):
    said = shlex.split(script(*words, MOUNT='10.0.0.2:/share'))
    assert said[:2] == ['+', 'gcloud']
    for command in (w.removeprefix('--command=') for w in said if w.startswith('--command=')):
      subprocess.run(['bash', '-n', '-c', command], check=True)  # it parses on the host too
  # What `run` has each host do is what the test above does, where jax finds its peers itself.
  assert 'experiments/cloud/again.sh .venv/bin/python -m experiments.run' in command
  host = shlex.split(command.split('(', 1)[1].rsplit('>>', 1)[0])
  assert host[-4:] == ['experiments.run', '--config=configs/smollm3.py:size=3b',
                       "--config.sample.prompts=('a b',)", '--distributed']
  # A second start waits for nothing and does nothing.
  lock = tmp_path / 'run.lock'
  with subprocess.Popen(['flock', '-n', lock, 'sleep', '30']) as first:
    time.sleep(0.5)
    assert subprocess.run(['flock', '-n', lock, 'true'], check=False).returncode == 1
    first.kill()


def test_a_command_is_tried_again_unless_it_is_in_vain(tmp_path):
  """By its status: a run that stood still is started again, bad input and a signal are final."""
  again = str(REPOSITORY / 'experiments' / 'cloud' / 'again.sh')
  fake = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'TRIES': '3'}
  (tmp_path / 'sleep').write_text('#!/bin/sh\n')  # no time to lose
  (tmp_path / 'sleep').chmod(0o755)

  def tried(*statuses):
    tally = tmp_path / 'tally'
    tally.write_text('')
    script = f'echo x >> {tally}; set -- {" ".join(map(str, statuses))}; n=$(wc -l < {tally}); ' \
             'eval exit \\$$n'
    done = subprocess.run([again, 'sh', '-c', script], env=fake, check=False, capture_output=True)
    return done.returncode, len(tally.read_text().split())

  assert tried(87, 75, 0) == (0, 3) and tried(87, 2, 0) == (2, 2) and tried(143, 0) == (143, 1)
  assert tried(137, 134, 1, 0) == (1, 3)  # three in a row are enough
  process = subprocess.Popen([again, sys.executable, '-c', _SAVES_FIRST], stdout=subprocess.PIPE)
  assert process.stdout.readline() == b'ready\n'
  process.send_signal(signal.SIGTERM)
  assert process.wait(20) == 143 and process.stdout.read() == b'saved\n'


_SAVES_FIRST = """
import signal, sys, time
def save(*_):
  time.sleep(.5); print('saved', flush=True); sys.exit(143)
signal.signal(signal.SIGTERM, save)
print('ready', flush=True)
time.sleep(60)
"""

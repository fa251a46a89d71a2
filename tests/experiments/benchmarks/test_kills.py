"""The commands that kill, and that damage: in small, and whether they would notice a fault."""

import json
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from experiments.benchmarks import kills
from smoljax import metrics


def bench(name: str, *flags: str) -> dict:
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  done = subprocess.run(
    [sys.executable, '-m', f'experiments.benchmarks.{name}', *flags], cwd=REPOSITORY,
    env=environment, capture_output=True, text=True, timeout=1500)
  assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_kills_of_a_few_kinds_change_nothing(tmp_path):
  flags = [f'--output={tmp_path}', '--kills=5', '--kinds=tokenize,train']
  found = bench('kills', *flags)
  assert found['kills'] == 5 and not any(found[fault] for fault in kills.FAULTS)
  assert bench('kills', *flags)['rounds'] == found['rounds'], 'what is done is not done again'


@pytest.mark.slow
def test_damage_of_a_few_kinds_is_told_and_mended(tmp_path):
  kinds = 'tokenizer,lengths,checkpoints,evaluations,study'
  found = bench('damage', f'--output={tmp_path}', '--cases=10', f'--kinds={kinds}')
  assert found['cases'] == 10 and found['told'] >= 7


def test_what_is_done_again_after_a_kill_is_noticed(tmp_path):
  step = tmp_path / 'steps/export-12345678/step.json'
  step.parent.mkdir(parents=True)
  step.write_text('{}')
  training = tmp_path / 'steps/train-12345678.partial'
  (training / 'checkpoints/_integrity').mkdir(parents=True)
  (training / 'checkpoints/_integrity/20.json').write_text('{}')
  with metrics.Log(str(training)) as log:
    log.event(0, 'start')
  seen = kills.Seen.of(tmp_path)
  training.rename(tmp_path / 'steps/train-12345678')
  assert not list(seen.done_again(tmp_path))
  training = tmp_path / 'steps/train-12345678'
  with metrics.Log(str(training), step=20) as log:
    log.event(20, 'resume')
    log.event(0, 'start')
  assert not list(seen.done_again(tmp_path))
  (training / 'events.jsonl').unlink()
  with metrics.Log(str(training)) as log:
    log.event(0, 'start')
    log.event(10, 'resume')
  step.unlink()
  step.write_text('{}')
  os.utime(step, ns=(0, 1))
  assert list(seen.done_again(tmp_path)) == [
    'steps/export-12345678/step.json was made again',
    'train-12345678 began at step 10, after 20 was sealed']


def test_only_a_save_excuses_rows():
  wanted = {'a/trained 10': 'x', 'a/trained 20': 'y', 'a/measured 20': 'v', 'a/resumed': []}
  saved = wanted | {'a/trained 13': 'm', 'a/trained 20': 'fewer steps', 'a/resumed': [10, 13]}
  assert kills.differences(saved, wanted) == []
  assert kills.differences(saved | {'a/measured 20': 'w'}, wanted) == ['a/measured 20']
  assert kills.differences(saved | {'a/trained 10': 'z'}, wanted) == ['a/trained 10']
  assert set(kills.differences(saved | {'a/resumed': [10]}, wanted)) == {
    'a/trained 13', 'a/trained 20'}

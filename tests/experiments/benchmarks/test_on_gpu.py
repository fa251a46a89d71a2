"""The list of what a GPU measures: jobs side by side, in the time there is, none of them twice."""

import importlib.util
import pathlib
import re
import sys

import pytest
from absl.testing import flagsaver

from experiments.benchmarks import on_gpu, train_step

SLEEPS = """
import json, os, sys, time
open(sys.argv[1], 'a').write(os.environ['CUDA_VISIBLE_DEVICES'])
if os.environ['XLA_FLAGS'].isspace():
  sys.exit('XLA would end here')
time.sleep(float(sys.argv[2]))
case = {'tokens_per_sec': 1 / float(sys.argv[2])}
if sys.argv[3:] == ['case']:
  case = {'error': 'it is too long'}
print(json.dumps({'benchmark': 'sleeps', **case}))
sys.exit(sys.argv[3:] == ['bad'] and 'it is bad')
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch):
  """Jobs that sleep: a function of {name: (expected seconds, seconds, …)}, which runs them."""
  (tmp_path / 'sleeps.py').write_text(SLEEPS)
  monkeypatch.setenv('PYTHONPATH', str(tmp_path))
  monkeypatch.setattr(on_gpu.gpu, 'visible', lambda: ['4', '7'])
  monkeypatch.delenv('XLA_FLAGS', raising=False)

  def run(given, seconds=float('inf')):
    monkeypatch.setattr(on_gpu, 'JOBS', {
      name: on_gpu.Job(expected, f'sleeps {tmp_path}/{name}.ran {" ".join(map(str, rest))}')
      for name, (expected, *rest) in given.items()})
    with flagsaver.flagsaver(output=str(tmp_path / 'out'), seconds=seconds), \
         pytest.raises(SystemExit) as ended:
      on_gpu.main([])
    return ended.value.code

  return run


def test_jobs_share_the_gpus_and_only_failures_are_run_again(
  jobs, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(on_gpu, 'FIGURES', (
    on_gpu.Figure('one over the other', on_gpu._over('a', 'b'), 3),
    on_gpu.Figure('what is not there', on_gpu._over('a', 'none'), 3)))
  given = {'a': (1, 1.0), 'b': (1, 2.0), 'c': (1, 0.1, 'bad')}
  assert jobs(given) == 1
  said = capsys.readouterr().out
  assert re.search(r'one over the other +2  \(bar ≥ 3, not reached\)', said)
  assert 'what is not there' not in said and re.search(r'c +failed: it is bad', said)
  assert jobs(given) == 1
  ran = [(tmp_path / f'{name}.ran').read_text() for name in given]
  assert sorted(ran[:2]) == ['4', '7'] and len(ran[2]) == 2


def test_a_case_that_could_not_be_measured_is_a_failure(jobs, tmp_path, capsys):
  """Its process ends well, as it goes on to the next case."""
  given = {'a': (1, 0.1, 'case')}
  assert jobs(given) == jobs(given) == 1
  assert re.search(r'a +failed: it is too long', capsys.readouterr().out)
  assert len((tmp_path / 'a.ran').read_text()) == 2


def test_what_does_not_fit_is_left_for_another_call(jobs, tmp_path):
  given = {'late': (60, 0.1), 'longer': (1, 3600.0), 'first': (1, 0.1)}
  assert jobs(given, seconds=4) == 0
  assert sorted(p.name for p in (tmp_path / 'out').glob('*.json')) == ['first.json']
  assert not (tmp_path / 'late.ran').exists()


@pytest.mark.parametrize('name', on_gpu.JOBS)
def test_every_flag_of_a_job_exists(name):
  """A wrong one would be noticed where minutes are dear."""
  executable, how, module, *arguments = on_gpu.command(name, pathlib.Path('out'), 'corpora')
  assert (executable, how) == (sys.executable, '-m')
  if module == 'pytest':
    for file, _, test in (a.partition('::') for a in arguments if a.startswith('tests/')):
      assert f'def {test}' in pathlib.Path(file).read_text()
    return
  source = pathlib.Path(importlib.util.find_spec(module).origin).read_text()
  if 'benchmarks.train_step import' in source:  # whose flags it has
    source += pathlib.Path(train_step.__file__).read_text()
  for flag in (a[2:].partition('=')[0] for a in arguments):
    assert flag.startswith('config') or re.search(rf"DEFINE_\w+\(\s*'{flag}'", source), flag


def test_figures_are_of_jobs_that_there_are():
  rows = [{'tokens_per_sec': 1, 'mfu': 1, 'first_step_seconds': 1, 'gap': 0.1}]
  every = {name: {'seconds': 1, 'code': 0, 'rows': rows, 'end': []} for name in on_gpu.JOBS}
  every['decode']['rows'] = [
    {'case': case, 'batch': b, 'share_of_bound': 1, 'tokens_per_sec': 1}
    for case in ('greedy', 'evaluator') for b in (1, 32)]
  every['long prompt']['rows'] = [{'case': 'greedy', 'batch': 1, 'prefill_ms': 1}]
  every['speculative']['rows'] = [{'case': 'speculative', 'batch': 1, 'break_even': 1}]
  every['newton schulz']['rows'] = [
    {'variant': f'smoljax {table}, bfloat16 gradients', 'ms': 1} for table in ('pe5', 'gram5')]
  assert len(on_gpu.table(every)) == len(on_gpu.FIGURES)

"""The search: its proposals, many processes, deaths, edges, budgets; the page and a real trial."""

import collections
import csv
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import optuna
import pytest
from conftest import REPOSITORY

from experiments import search
from experiments.benchmarks import search as benchmark
from smoljax.report import search_page

optuna.logging.set_verbosity(optuna.logging.WARNING)
SPACE = {'x': ('float', -3.0, 3.0), 'lr': ('log', 1e-4, 1e-1), 'n': ('int', 1, 4),
         'kind': ['a', 'b']}  # fmt: skip


def bowl(trial, report):
  """Least at x = 1, lr = 1e-3, n = 2, kind = b."""
  p = trial.params
  return [(p['x'] - 1) ** 2 + math.log10(p['lr'] / 1e-3) ** 2 + (p['n'] - 2) ** 2
          + 0.5 * (p['kind'] == 'a')]


def quiet(_):
  pass


def study_of(tmp_path, space=SPACE, trials=12, **kwargs) -> search.Study:
  return search.Study(tmp_path, space, trials, **kwargs)


@pytest.mark.parametrize('sampler', ['random', 'quasi', 'tpe', 'cmaes', 'gp', 'nsga', 'grid'])
def test_every_sampler_stays_in_the_space_and_repeats_itself(tmp_path, sampler):
  if sampler == 'gp':
    pytest.importorskip('torch')
  seen = []
  for run in ('a', 'b'):
    done = study_of(tmp_path / run, sampler=sampler, trials=12).run(bowl, quiet)
    assert [t.state.name for t in done.trials] == ['COMPLETE'] * 12
    seen.append([t.params for t in done.trials])
    for p in seen[-1]:
      assert -3 <= p['x'] <= 3 and 1e-4 <= p['lr'] <= 0.1 and p['n'] in (1, 2, 3, 4)
      assert p['kind'] in ('a', 'b')
  assert seen[0] == seen[1]


def test_a_study_goes_on_where_it_was(tmp_path):
  study_of(tmp_path, trials=5).run(bowl, quiet)
  calls = []
  done = study_of(tmp_path, trials=8).run(lambda t, r: calls.append(t.number) or bowl(t, r), quiet)
  assert calls == [5, 6, 7] and len(done.trials) == 8
  study_of(tmp_path, trials=8).run(lambda t, r: pytest.fail('all are done'), quiet)


def test_the_grid_ends_by_itself(tmp_path):
  space = {'n': ('int', 1, 3), 'kind': ['a', 'b'], 'lr': ('log', 1e-4, 1e-2)}
  objective = lambda t, r: [t.params['n'] + t.params['lr']]
  done = study_of(tmp_path, space, trials=99, sampler='grid').run(objective, quiet)
  points = {tuple(sorted(t.params.items())) for t in done.trials}
  assert len(points) == len(done.trials) == 3 * 2 * 5


@pytest.mark.parametrize(('kwargs', 'space', 'message'), [
  ({'sampler': 'best'}, SPACE, "unknown sampler 'best'"),
  ({'pruner': 'axe'}, SPACE, "unknown pruner 'axe'"),
  ({'pruner': 'halving', 'objectives': 2}, SPACE, 'no trial can be pruned'),
  ({}, {'lr': ('log', 0, 1)}, 'above 0 for log'),
  ({}, {'lr': ('float', 2, 1)}, 'low < high'),
  ({}, {'lr': []}, 'neither a list of choices'),
  ({}, {}, 'is empty'),
])  # fmt: skip
def test_an_impossible_study_is_said(tmp_path, kwargs, space, message):
  with pytest.raises(ValueError, match=message):
    study_of(tmp_path, space, **kwargs).open()


def test_halving_stops_the_worst_early(tmp_path):
  def objective(trial, report):
    for step in range(1, 10):
      steps[trial.number] = step
      report(step, trial.params['x'])
    return [trial.params['x']]

  steps = {}
  space = {'x': ('float', 0.0, 1.0)}
  done = study_of(tmp_path, space, 20, sampler='random', pruner='halving').run(objective, quiet)
  stopped = [t for t in done.trials if t.state.name == 'PRUNED']
  assert len(stopped) > 8 and sum(steps.values()) < 0.6 * 20 * 9
  assert done.best_value == min(t.params['x'] for t in done.trials)


def test_failures_count_and_do_not_stop_the_search(tmp_path):
  objective = lambda t, r: [math.inf if t.number % 3 == 0 else 1.0]
  done = study_of(tmp_path, trials=6).run(objective, quiet)
  assert collections.Counter(t.state.name for t in done.trials) == {'COMPLETE': 4, 'FAIL': 2}
  with pytest.raises(ZeroDivisionError):
    study_of(tmp_path, trials=7).run(lambda t, r: 1 / 0, quiet)


def test_budgets_end_a_search(tmp_path):
  def objective(trial, report):
    trial.set_user_attr('flops', 40.0)
    return [1.0]

  done = study_of(tmp_path / 'f', trials=50, max_flops=100.0).run(objective, quiet)
  assert len(done.trials) == 3
  slow = lambda t, r: time.sleep(0.3) or [1.0]
  done = study_of(tmp_path / 'h', trials=50, max_hours=0.5 / 3600).run(slow, quiet)
  assert 1 <= len(done.trials) <= 3


def test_a_winner_at_the_edge_widens_its_range(tmp_path):
  """The minimum, lr = 1, lies outside; the range grows until it is inside."""
  space, said = {'lr': ('log', 1e-3, 1e-1), 'n': ('int', 2, 4)}, []
  objective = lambda t, r: [math.log10(t.params['lr']) ** 2 + (t.params['n'] - 1) ** 2]
  study = study_of(tmp_path, space, trials=16)
  done = study.run(objective, quiet)
  assert search.edges(done, space) == {'lr': 'high', 'n': 'low'}
  assert study.widen(done, times=1, more=8, log_line=said.append)
  assert study.current_space(done)['lr'] == ['log', 1e-3, pytest.approx(1.0)]
  assert study.current_space(done)['n'] == ['int', 1, 4]
  assert 'is at the edge of 0.001 to 0.1' in said[0]
  done = study.run(objective, quiet)
  assert len(done.trials) == 24 and done.best_params['n'] == 1 and done.best_params['lr'] > 0.1
  assert not study.widen(done, times=1, more=8, log_line=said.append)


WORKER = '''
import math, os, pathlib, sys, time
import optuna
from experiments import search
from experiments.benchmarks import search as benchmark
optuna.logging.set_verbosity(optuna.logging.ERROR)
search.HEARTBEAT, search.GRACE = 1, 4
folder = pathlib.Path(sys.argv[1])
space = {'x': ('float', 0.0, 1.0), 'n': ('int', 0, 1000)}
def objective(trial, report):
  number = search.original(trial)
  with open(folder / 'calls', 'a') as f:
    f.write(f'{number} {os.getpid()} {trial.params["x"]}\\n')
  time.sleep(float(sys.argv[3]))
  return [trial.params['x']]
search.Study(folder, space, int(sys.argv[2]), 'random', seed=int(sys.argv[4])).run(objective)
'''


def start_workers(tmp_path, processes: int, trials: int, seconds: float) -> list[subprocess.Popen]:
  script = tmp_path / 'worker.py'
  script.write_text(textwrap.dedent(WORKER))
  environment = os.environ | {'PYTHONPATH': str(REPOSITORY)}
  return [subprocess.Popen([sys.executable, str(script), str(tmp_path), str(trials), str(seconds),
                            str(i)], env=environment, stdout=subprocess.DEVNULL)
          for i in range(processes)]


def calls(tmp_path) -> list[list[str]]:
  path = tmp_path / 'calls'
  return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(('processes', 'trials', 'kills'), [
  (3, 12, 1), pytest.param(4, 200, 2, marks=pytest.mark.slow)])
def test_no_trial_is_lost_or_made_twice(tmp_path, processes, trials, kills):
  """Processes die by SIGKILL in mid-trial; the others make their trials."""
  workers = start_workers(tmp_path, processes, trials, 0.5)
  killed = set()
  while len(killed) < kills:
    time.sleep(0.2)
    assert any(w.poll() is None for w in workers)
    for row in calls(tmp_path):
      if len(row) == 3 and int(row[1]) not in killed and len(calls(tmp_path)) > 3 * len(killed) + 2:
        os.kill(int(row[1]), signal.SIGKILL)
        killed.add(int(row[1]))
        break
  assert sorted(w.wait(timeout=300) for w in workers) == [-9] * kills + [0] * (processes - kills)
  study = optuna.load_study(study_name='search', storage=f'sqlite:///{tmp_path}/search.db')
  made = [t for t in study.trials if t.state.name == 'COMPLETE']
  assert not [t for t in study.trials if t.state.name in ('RUNNING', 'WAITING')]
  assert sorted(map(search.original, made)) == sorted(
    t.number for t in study.trials if search.original(t) == t.number)
  assert len(made) == trials
  points = collections.Counter(t.params['x'] for t in made)
  assert len(points) == trials and max(points.values()) == 1
  lost = [t for t in study.trials if t.state.name == 'FAIL']
  assert 1 <= len(lost) <= kills  # one that was killed between trials lost nothing


def test_the_page(tmp_path):
  done = study_of(tmp_path, trials=20).run(bowl, quiet)
  results = search.results(done, SPACE, ['loss'])
  page = pathlib.Path(search_page.write(results, str(tmp_path))).read_text()
  best = done.best_trial
  assert f'Least loss: {best.value:.4f}, trial {best.number}' in page
  of_kind = f'--config.kind={best.params["kind"]}'
  for part in ('What matters', 'Loss by trial', 'data:image/svg+xml', of_kind):
    assert part in page, part
  rows = list(csv.DictReader((tmp_path / 'report/trials.csv').open()))
  assert [int(r['trial']) for r in rows] == list(range(20))
  assert float(rows[best.number]['loss']) == best.value
  assert sum(results['importance'].values()) == pytest.approx(1)
  assert json.loads((tmp_path / 'search.json').read_text())['best'] == [best.number]


def test_several_objectives_have_a_front(tmp_path):
  objective = lambda t, r: [(t.params['n'] - 4) ** 2 + 0.1, 2.0 ** t.params['n']]
  done = study_of(tmp_path, {'n': ('int', 1, 8)}, 40, sampler='nsga', objectives=2).run(
    objective, quiet)
  results = search.results(done, {'n': ('int', 1, 8)}, ['loss', 'bytes'])
  front = {done.trials[i].params['n'] for i in results['best']}
  assert front <= {1, 2, 3, 4}  # beyond 4 both are worse
  page = pathlib.Path(search_page.write(results, str(tmp_path))).read_text()
  assert 'loss against bytes' in page and 'What matters' not in page


def test_latency_and_memory_of_a_run(markov_corpora, tmp_path):
  from helpers.training import fit, tiny

  result = fit(tiny(), markov_corpora, tmp_path)
  assert 0 < search.OBJECTIVES['latency'](tmp_path, {}) < 1000
  cache = 2 * 4 * 1 * 16 * 64  # keys and values, layers, heads, their dims, places
  assert search.OBJECTIVES['memory'](tmp_path, result) == 2 * (result['parameters'] + cache)


def branin(x, y):
  return ((y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6) ** 2
          + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10)


def test_tpe_learns(tmp_path):
  """Median regret on Branin after 40 trials, over five seeds: less than random's."""
  space = {'x': ('float', -5.0, 10.0), 'y': ('float', 0.0, 15.0)}
  regret = {}
  for sampler in ('random', 'tpe'):
    found = []
    for seed in range(5):
      study = optuna.create_study(sampler=search.SAMPLERS[sampler](seed))
      study.optimize(lambda t: branin(**search.suggest(t, space)), n_trials=40)
      found.append(study.best_value - 0.397887)
    regret[sampler] = np.median(found)
  assert regret['tpe'] < regret['random']


@pytest.mark.slow
def test_a_search_end_to_end(tmp_path):
  """Real trials: each has its workdir, bad ones stop early or fail, corpora are made once."""
  from helpers.quickstart import SMALL

  recipe = tmp_path / 'recipe.py'
  recipe.write_text(
    'from configs import quickstart\nget_config = quickstart.get_config\ndef space():\n'
    "  return {'optimizer.learning_rate': ('log', 1e-4, 1e-1),\n"
    "          'optimizer.name': ['adamw', 'muon']}\n")
  result = subprocess.run(
    [sys.executable, '-m', 'experiments.search', f'--config={recipe}', f'--workdir={tmp_path}/work',
     '--trials=3', '--sampler=quasi', '--widen=0', *SMALL, '--config.web.limit=200'],
    cwd=REPOSITORY, capture_output=True, text=True, timeout=1200)
  assert result.returncode == 0, result.stdout + result.stderr
  found = json.loads((tmp_path / 'work/search.json').read_text())
  assert len(found['trials']) == 3
  for t in found['trials']:
    assert t['state'] == 'complete' and t['flops'] > 0, t
    # At steps 15 and 30, and at the ends of the two stages before the last.
    assert [n for n, _ in t['reported']] == [1, 2, 3, 4], t
    folder = tmp_path / f'work/points/trial-{t["number"]:04d}'
    summary = json.loads((folder / 'summary.json').read_text())
    assert summary['loss']['validation'] == t['values'][0]
  steps = [p.name.rpartition('-')[0] for p in (tmp_path / 'work/steps').iterdir() if p.is_dir()]
  assert steps.count('web') == 1 and steps.count('train') == 3


def test_the_step_law_table(shared_data):
  """TPE beats random within 60 trials; halving finds a top point for 40 % of the cost."""
  cells = benchmark.load_cells(shared_data / 'scaling/steplaw_dense_lr_bs_loss.csv')
  found = collections.defaultdict(list)
  for cell in list(cells.values())[::4]:
    for name, values in benchmark.regrets(*benchmark.of_cell(cell), trials=60, seeds=4).items():
      found[name] += values
  assert np.mean(found['tpe']) < np.mean(found['random']) / 2
  assert np.median(found['tpe']) <= np.median(found['random'])
  rows = benchmark.halving(cells, benchmark.HALVING['budget'])
  assert len(rows) == 4
  assert all(r['cost_share'] <= 0.4 and r['rank_share'] <= 0.05 for r in rows)

"""A study: what is proposed, what is told, when trials are compared, who dies, what is refused."""

import collections
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import optuna
import pytest
from conftest import REPOSITORY
from helpers.searches import bowl, quiet

from experiments.engine import processes, study

optuna.logging.set_verbosity(optuna.logging.WARNING)
SPACE = {'x': ('float', -3.0, 3.0), 'lr': ('log', 1e-4, 1e-1), 'n': ('int', 1, 4),
         'kind': ['a', 'b'], 'one': ['z']}  # fmt: skip
ALL = ['random', 'quasi', 'tpe', 'cmaes', 'gp', 'nsga', 'grid']


def study_of(tmp_path, space=SPACE, trials=12, **kwargs) -> study.Study:
  return study.Study(tmp_path, space, trials, **kwargs)


def params(done) -> list[dict]:
  return [t.params for t in done.trials]


def points(done) -> set[tuple]:
  return {tuple(sorted(t.params.items())) for t in done.trials}


@pytest.mark.parametrize('sampler', [
  s if s == 'tpe' else pytest.param(s, marks=pytest.mark.slow) for s in ALL])
def test_points_are_distinct_and_the_same_after_any_number_of_restarts(tmp_path, sampler):
  if sampler == 'gp':
    pytest.importorskip('torch')
  once = study_of(tmp_path / 'a', sampler=sampler, trials=13).run(bowl, quiet)
  for trials in (1, 2, 7, 13):
    often = study_of(tmp_path / 'b', sampler=sampler, trials=trials).run(bowl, quiet)
  assert params(once) == params(often) and len(points(once)) == 13
  assert [t.state.name for t in often.trials] == ['COMPLETE'] * 13
  for p in params(once):
    assert -3 <= p['x'] <= 3 and 1e-4 <= p['lr'] <= 0.1 and p['n'] in (1, 2, 3, 4)
    assert p['kind'] in ('a', 'b') and p['one'] == 'z'
  other = study_of(tmp_path / 'c', sampler=sampler, trials=13, seed=1).run(bowl, quiet)
  assert sampler == 'grid' or params(other) != params(once)


@pytest.mark.parametrize('sampler', ['random', 'quasi', 'tpe', 'nsga'])
def test_a_finite_space_is_gone_through_and_ends_the_study(tmp_path, sampler):
  space = {'n': ('int', 0, 3), 'kind': ['a', 'b', True]}
  done = study_of(tmp_path, space, 99, sampler=sampler).run(lambda t, r: [t.params['n']], quiet)
  assert len(points(done)) == len(done.trials) == 12


def test_the_grid_ends_by_itself(tmp_path):
  space = {'n': ('int', 1, 3), 'kind': ['a', 'b'], 'lr': ('log', 1e-4, 1e-2)}
  objective = lambda t, r: [t.params['n'] + t.params['lr']]
  done = study_of(tmp_path, space, trials=99, sampler='grid').run(objective, quiet)
  assert len(points(done)) == len(done.trials) == 3 * 2 * 5


@pytest.mark.parametrize(('kwargs', 'space', 'message'), [
  ({'sampler': 'best'}, SPACE, "unknown sampler 'best'"),
  ({'pruner': 'axe'}, SPACE, "unknown pruner 'axe'"),
  ({'pruner': 'halving', 'objectives': 2}, SPACE, 'no trial can be pruned'),
  ({'sampler': 'cmaes', 'objectives': 2}, SPACE, 'one objective only'),
  ({}, {'lr': ('log', 0, 1)}, 'above 0 for log'),
  ({}, {'lr': ('float', 2, 1)}, 'low < high'),
  ({}, {'lr': ('float', 1, 2, 1.5, 3)}, 'beyond its own limits'),
  ({}, {'n': ('int', 1, 2.5)}, 'neither a list of choices'),
  ({}, {'lr': []}, 'neither a list of choices'),
  ({}, {'lr': [1, 2, 1]}, 'a choice twice'),
  ({}, {'train.stages': [({'name': 'a'},)]}, 'a choice is a number, text'),
  ({}, {}, 'is empty'),
])  # fmt: skip
def test_an_impossible_study_is_said(tmp_path, kwargs, space, message):
  with pytest.raises(ValueError, match=message):
    study_of(tmp_path, space, **kwargs).open()


@pytest.mark.slow
def test_what_failed_is_told_as_worse_than_the_worst(tmp_path):
  """Were it not told, TPE would go on proposing what diverges."""
  def objective(trial, report):
    x = trial.params['x']
    return [math.nan if x > 2 else math.inf if x > 0.5 else x * x + 5]

  space = {'x': ('float', -3.0, 3.0)}
  shares = []
  for seed in range(2):
    done = study_of(tmp_path / str(seed), space, 40, seed=seed).run(objective, quiet)
    failed = [t for t in done.trials if t.user_attrs.get('failed')]
    fine = study.good(done)
    assert {t.state.name for t in done.trials} == {'COMPLETE'} and len(failed + fine) == 40
    for t in failed:
      assert math.isfinite(t.value) and 'not finite' in t.user_attrs['failed']
      assert all(t.value > f.value for f in fine if f.number < t.number)
    assert study.best_trial(done).value == min(t.value for t in fine)
    shares.append(len(failed) / 40)
  assert max(shares) < 0.42  # the range's share; .75 where they were FAIL
  with pytest.raises(ZeroDivisionError):
    study_of(tmp_path / '0', space, 41).run(lambda t, r: 1 / 0, quiet)
  nothing = study_of(tmp_path / 'all', space, 5).run(lambda t, r: [math.inf], quiet)
  assert not study.good(nothing) and study.best_trial(nothing) is None


def test_an_interrupted_trial_waits_and_keeps_its_number(tmp_path):
  def objective(trial, report):
    calls.append(trial.number)
    report(1, 7.0)
    if len(calls) in (2, 3):
      raise (KeyboardInterrupt, OSError('disk full'))[len(calls) - 2]
    return bowl(trial, report)

  calls = []
  with pytest.raises(KeyboardInterrupt):
    study_of(tmp_path, trials=4).run(objective, quiet)
  with pytest.raises(OSError):
    study_of(tmp_path, trials=4).run(objective, quiet)
  done = study_of(tmp_path, trials=4).run(objective, quiet)
  assert calls == [0, 1, 1, 1, 2, 3] and [t.state.name for t in done.trials] == ['COMPLETE'] * 4
  assert params(done) == params(study_of(tmp_path / 'b', trials=4).run(bowl, quiet))


def test_budgets_end_a_search(tmp_path):
  def objective(trial, report):
    trial.set_user_attr('flops', 40.0)
    return [1.0]

  done = study_of(tmp_path / 'f', trials=50, max_flops=100.0).run(objective, quiet)
  assert len(done.trials) == 3
  now, hours = time.monotonic(), {'trials': 50, 'max_hours': 1.0}
  study_of(tmp_path / 'h', trials=2, max_hours=1.0).run(objective, quiet)
  late = study_of(tmp_path / 'h', **hours, began=now - 3601)
  done = late.run(objective, quiet)
  assert len(done.trials) == 2
  assert not late.widen(done, times=1, more=8, log_line=quiet)  # it is over for that, too


# --- Pruning --------------------------------------------------------------------------------------


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


def test_a_stopped_trial_goes_on_where_it_was_when_better_ones_turn_out_worse(tmp_path):
  """The first two look best until step 3; one of them diverges then, the other gets worse."""
  def objective(trial, report):
    run, x = study.run_of(trial), trial.params['x']
    for step in range(len(steps[run]) + 1, 10):
      steps[run].append(step)
      if x < 2 and step > 4:
        return [math.inf] if x == 0 else [x + 9.0]
      report(step, x + 1 / step)
    return [float(x)]

  steps = collections.defaultdict(list)
  search = study_of(tmp_path, {'x': [0, 1, 4, 6, 2, 5, 3, 7]}, 8, sampler='grid', pruner='halving')
  done = search.run(objective, quiet)
  assert study.best_trial(done).params['x'] == 2  # where nothing thaws, there is none
  assert all(s == list(range(1, len(s) + 1)) for s in steps.values()), 'nothing was done twice'
  ends = {t.params['x']: (study.run_of(t), t.state.name) for t in study.latest(done.trials)}
  assert len(ends) == 8 < len(done.trials) and ends[2] == (4, 'COMPLETE')
  assert ends[7] == (7, 'PRUNED') and len(steps[7]) == 1 and len(steps[4]) == 9
  for trial in done.trials:
    if 'thaws' in trial.user_attrs:
      before = done.trials[trial.user_attrs['thaws']]
      assert before.state.name == 'PRUNED' and before.params == trial.params
      assert before.intermediate_values.items() < trial.intermediate_values.items()
  again = search.run(lambda t, r: pytest.fail('all are done'), quiet)
  assert len(again.trials) == len(done.trials)


def test_trials_are_compared_where_they_have_seen_as_many_tokens(tmp_path):
  """Of the same curves those that are looked at often, by small batches, are not stopped more."""
  def objective(trial, report):
    p, tokens, total = trial.params, 0, 9000
    loss = lambda t: p['x'] + 10 - math.log(1 + t / 50)
    report(0, loss(0))
    while tokens < total:
      tokens = min(total, tokens + 64 * p['batch'])
      report(tokens, loss(tokens))
    return [loss(total)]

  space = {'x': (np.random.default_rng(0).permutation(14) / 14).tolist(), 'batch': [1, 16]}
  done = study_of(tmp_path, space, 28, sampler='grid', pruner='median', unit=1000).run(
    objective, quiet)
  stopped = {b: np.mean([t.state.name == 'PRUNED' for t in done.trials if t.params['batch'] == b])
             for b in (1, 16)}
  assert 0.3 < stopped[1] < 0.95 and abs(stopped[1] - stopped[16]) <= 0.15, stopped
  for t in done.trials:
    assert sorted(t.intermediate_values) == list(range(1, len(t.intermediate_values) + 1))
    for unit, value in t.intermediate_values.items():
      assert value == pytest.approx(t.params['x'] + 10 - math.log(1 + unit * 20), abs=0.12)


# --- Widening -------------------------------------------------------------------------------------


def test_a_winner_at_the_edge_widens_its_range(tmp_path):
  """The minimum, lr = 1, lies outside; the range grows until it is inside."""
  space, said = {'lr': ('log', 1e-3, 1e-1), 'n': ('int', 2, 4)}, []
  objective = lambda t, r: [math.log10(t.params['lr']) ** 2 + (t.params['n'] - 1) ** 2]
  search = study_of(tmp_path, space, trials=16)
  done = search.run(objective, quiet)
  assert study.edges(done, space) == {'lr': 'high', 'n': 'low'}
  assert search.widen(done, times=1, more=8, log_line=said.append)
  assert search.widen(done, times=1, more=8, log_line=said.append)  # by another process: no more
  assert search.current_space(done) == {
    'lr': ('log', 1e-3, pytest.approx(1.0)), 'n': ('int', 1, 4)}
  assert 'is at the edge of 0.001 to 0.1' in said[0] and len(said) == 1
  done = search.run(objective, quiet)
  assert len(done.trials) == 24 and done.best_params['n'] == 1 and done.best_params['lr'] > 0.1
  assert not search.widen(done, times=1, more=8, log_line=said.append)
  with pytest.raises(ValueError, match=r"another search \(space\(\) of lr was \['log', 0.001, 0.1"):
    study_of(tmp_path, space | {'lr': ('log', 1e-3, 1e-2)}).open()


@pytest.mark.parametrize('sampler', [
  'random', *(pytest.param(s, marks=pytest.mark.slow) for s in ('tpe', 'quasi', 'cmaes', 'nsga'))])
def test_what_was_added_to_a_range_is_searched_too(tmp_path, sampler):
  search = study_of(tmp_path, {'x': ('float', 0.0, 1.0), 'y': ('float', 0.0, 1.0)}, 15,
                    sampler=sampler)
  objective = lambda t, r: [(t.params['x'] - 1.4) ** 2 + t.params['y']]
  done = search.run(objective, quiet)
  while study.edges(done, search.space).get('x') != 'high':  # not every sampler is there so soon
    search = study_of(tmp_path, search.space, search.trials + 5, sampler=sampler)
    done = search.run(objective, quiet)
  assert search.widen(done, 1, 20, quiet)
  done = search.run(objective, quiet)
  assert any(t.params['x'] > 1 for t in done.trials[search.trials:])


@pytest.mark.parametrize(('name', 'values', 'side', 'result'), [
  ('optimizer.weight_decay', ('float', 0.05, 0.55), 'low', (0.025, 0.55)),
  ('optimizer.weight_decay', ('float', 0.0, 0.4), 'low', (0.0, 0.4)),
  ('optimizer.weight_decay', ('float', 0.0, 0.4), 'high', (0.0, 0.6)),
  ('optimizer.b2', ('float', 0.9, 0.99), 'high', (0.9, 0.995)),
  ('b2', ('log', 0.9, 0.999), 'high', (0.9, 0.9995)),
  ('optimizer.decay_fraction', ('float', 0.1, 0.9), 'low', (0.05, 0.9)),
  ('n', ('int', 0, 8), 'low', (0, 8)),
  ('n', ('int', 1, 8), 'low', (1, 8)),
  ('n', ('int', 3, 8), 'low', (1, 8)),
  ('n', ('int', 0, 8), 'high', (0, 12)),
  ('n', ('int', -3, 3), 'low', (-6, 3)),
  ('x', ('float', -1.0, 1.0), 'low', (-2.0, 1.0)),
  ('lr', ('log', 1e-4, 1e-2), 'low', (1e-5, 1e-2)),
  ('lr', ('log', 1e-4, 1e-2, 5e-5, 1), 'low', (7.5e-5, 1e-2)),
  ('n', ('int', 2, 6, 2, 7), 'high', (2, 7)),
])  # fmt: skip
def test_a_range_never_leaves_its_domain_nor_loses_a_point(name, values, side, result):
  kind, low, high, *own = study.wider(name, values, side)
  assert (low, high) == pytest.approx(result) and [kind, *own] == [values[0], *values[3:]]
  assert low <= values[1] and high >= values[2]
  for _ in range(50):
    values = study.wider(name, values, side)
  assert values[1] >= result[0] or name in ('x', 'lr', 'n') or values[1] > 0
  assert 'b2' not in name or values[2] <= 1


# --- What belongs together ------------------------------------------------------------------------


@pytest.mark.parametrize(('change', 'message'), [
  ({'space': SPACE | {'kind': ['a', 'b', 'c']}}, r"space\(\) of kind was \['a', 'b'\], is"),
  ({'space': {k: v for k, v in SPACE.items() if k != 'n'}}, r'space\(\) of n .*is none'),
  ({'identity': {'config.train.tokens': 5}}, r'config.train.tokens was 4, is 5'),
  ({'objectives': 2}, r'number of objectives was 1, is 2'),
])  # fmt: skip
def test_another_search_in_the_same_folder_is_refused_at_once(tmp_path, change, message):
  same = {'space': SPACE, 'trials': 3, 'identity': {'config.train.tokens': 4}}
  study_of(tmp_path, **same).run(bowl, quiet)
  began = time.monotonic()
  with pytest.raises(ValueError, match=message):
    study_of(tmp_path, **same | change).run(bowl, quiet)
  done = study_of(tmp_path, **same | {'trials': 4}).run(bowl, quiet)
  assert [t.state.name for t in done.trials] == ['COMPLETE'] * 4
  assert time.monotonic() - began < 100  # the database would be waited for longer


# --- Damage ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_damaged_database_is_made_again(tmp_path):
  """A bit or a cut anywhere in it, or in the lines beside it: no trial is lost or another."""
  def objective(trial, report):
    report(1, trial.params['x'])
    if trial.number == 1:
      raise optuna.TrialPruned
    return [math.inf] if trial.number == 2 else bowl(trial, report)

  study_of(tmp_path / 'whole', trials=5).run(objective, quiet)
  facts = lambda done: [
    (t.number, t.state, t.values, t.params, t.user_attrs, t.intermediate_values)
    for t in done.trials]
  wanted = facts(study_of(tmp_path / 'more', trials=6).run(objective, quiet))
  rng, told = np.random.default_rng(0), 0
  for case in range(9):
    folder, said = tmp_path / str(case), []
    shutil.copytree(tmp_path / 'whole', folder)
    file = folder / ('search.jsonl' if case % 4 == 3 else 'search.db')
    data = bytearray(file.read_bytes())
    # Most of a database's pages are empty: a bit of what is not.
    place = rng.choice(np.flatnonzero(np.frombuffer(data, np.uint8)))
    if case % 3:
      data[place] ^= 1 << int(rng.integers(8))
    file.write_bytes(data if case % 3 else data[:place] if case else b'')
    done = study_of(folder, trials=6).run(objective, said.append)
    assert facts(done) == wanted, (case, place)
    told += any('damaged' in line or 'cut off' in line for line in said)
  assert told > 4
  done = study_of(tmp_path / '0', trials=6).open(quiet)  # the lines are as the database again
  os.remove(tmp_path / '0/search.db')
  assert facts(study_of(tmp_path / '0', trials=6).open(quiet)) == facts(done) == wanted


# --- Many processes, and their deaths -------------------------------------------------------------


WORKER = '''
import os, pathlib, sys, time
import optuna
from experiments.engine import study
optuna.logging.set_verbosity(optuna.logging.ERROR)
folder, trials, seconds, sampler = pathlib.Path(sys.argv[1]), *sys.argv[2:]
space = {'x': ('float', 0.0, 1.0), 'n': ('int', 0, 1000)}
def objective(trial, report):
  with open(folder / 'calls', 'a') as f:
    f.write(f'{trial.number} {os.getpid()} {trial.params["x"]}\\n')
  time.sleep(float(seconds))
  return [trial.params['x']]
study.Study(folder, space, int(trials), sampler).run(objective, lambda line: None)
'''


def worker(tmp_path, trials: int, seconds: float, sampler: str = 'random') -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, '-W', 'error::ResourceWarning', '-c', WORKER, str(tmp_path), str(trials),
     str(seconds), sampler], env=os.environ | {'PYTHONPATH': str(REPOSITORY)})


def calls(tmp_path) -> list[list[str]]:
  """Trial, process and point of each attempt."""
  path = tmp_path / 'calls'
  return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def check_all(tmp_path, trials: int) -> None:
  done = optuna.load_study(study_name='search', storage=f'sqlite:///{tmp_path}/search.db')
  assert [t.state.name for t in done.trials] == ['COMPLETE'] * trials
  assert len(points(done)) == trials


@pytest.mark.parametrize(('sampler', 'trials', 'kills'), [
  ('random', 12, 1), ('tpe', 24, 0), pytest.param('quasi', 200, 6, marks=pytest.mark.slow)])
def test_no_trial_is_lost_or_made_twice_by_many_processes(tmp_path, sampler, trials, kills):
  """Processes die by SIGKILL in mid-trial; the others make their trials."""
  workers = [worker(tmp_path, trials, 0.3, sampler) for _ in range(3 + kills)]
  killed = set()
  while len(killed) < kills:
    time.sleep(0.1)
    assert any(w.poll() is None for w in workers)
    for row in calls(tmp_path):
      if len(row) == 3 and int(row[1]) not in killed and len(calls(tmp_path)) > 3 * len(killed) + 2:
        os.kill(int(row[1]), signal.SIGKILL)
        killed.add(int(row[1]))
        break
  assert sorted(w.wait(timeout=300) for w in workers) == [-9] * kills + [0] * 3
  check_all(tmp_path, trials)
  assert trials <= len(calls(tmp_path)) <= trials + kills


def test_a_search_that_is_killed_at_any_moment_goes_on(tmp_path):
  """However often: within a trial, between trials, while it opens the study."""
  rng, kills = np.random.default_rng(0), 0
  while kills < 6:
    process = worker(tmp_path, 5, 0.2)
    try:
      process.wait(rng.uniform(1.2, 2.5))
      break
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
      kills += 1
  assert worker(tmp_path, 8, 0).wait(60) == 0
  check_all(tmp_path, 8)


def test_a_child_does_not_outlive_its_parent(tmp_path):
  mark = tmp_path / 'saved'
  child = ('import signal, time\n'
           f'def save(*_): open({str(mark)!r}, "w").close(); raise SystemExit\n'
           'signal.signal(signal.SIGTERM, save)\nprint("ready", flush=True)\ntime.sleep(60)')
  parent = ('import sys, time\nfrom experiments.engine import processes\n'
            f'processes.start([sys.executable, "-c", {child!r}])\ntime.sleep(60)')
  with subprocess.Popen([sys.executable, '-c', parent], cwd=REPOSITORY, text=True,
                        stdout=subprocess.PIPE) as process:
    assert process.stdout.readline() == 'ready\n'
    process.kill()
    assert process.stdout.read() == ''  # until all who hold it have ended
  assert mark.exists()


def test_what_does_not_end_by_itself_is_ended():
  deaf = ('import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); '
          'print(1, flush=True); time.sleep(60)')
  with processes.start([sys.executable, '-c', deaf], stdout=subprocess.PIPE) as process:
    process.stdout.readline()
    processes.stop(process, patience=0.2)
  assert process.returncode == -9


def test_several_objectives(tmp_path):
  objective = lambda t, r: [math.inf] * 2 if t.params['n'] == 8 else [
    (t.params['n'] - 4) ** 2 + 0.1, 2.0 ** t.params['n']]
  for sampler in ('nsga', 'tpe'):
    done = study_of(tmp_path / sampler, {'n': ('int', 1, 8)}, 40, sampler=sampler,
                    objectives=2).run(objective, quiet)
    assert collections.Counter(bool(t.user_attrs.get('failed')) for t in done.trials) == {
      False: 7, True: 1}
    assert {t.params['n'] for t in done.best_trials} == {1, 2, 3, 4}  # beyond 4 both are worse

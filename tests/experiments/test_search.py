"""The search: trials that are experiments, their deaths, rungs, re-tests; its page."""

import contextlib
import csv
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import optuna
import pytest
import scipy.stats
from conftest import REPOSITORY
from helpers.searches import bowl, quiet

from configs import search as recipe
from experiments import search, sweep
from experiments.benchmarks import search as benchmark
from experiments.engine.config import resolve
from experiments.engine.study import latest, run_of
from smoljax.report import search_page

optuna.logging.set_verbosity(optuna.logging.WARNING)
SPACE = {'x': ('float', -3.0, 3.0), 'lr': ('log', 1e-4, 1e-1), 'n': ('int', 1, 4),
         'kind': ['a', 'b']}  # fmt: skip


# In the place of experiments.run: goes on from its own rows, learns more slowly the further its
# rate is from .01, diverges beyond .1, and says what it was asked for.
RUNNER = '''
import json, math, os, pathlib, signal, sys, time
flags = dict(a.removeprefix('--').partition('=')[::2] for a in sys.argv[1:])
folder = pathlib.Path(flags['workdir'])
field = lambda name, default: type(default)(flags.get(f'config.{name}', default))
batch, tokens = field('train.batch_tokens', 2048), field('train.tokens', 90_000)
rate, every = field('optimizer.learning_rate', 0.01), field('train.eval_every', 5)
with open(folder / 'asked.jsonl', 'a') as f:
  f.write(json.dumps(flags) + chr(10))
if (folder.parent / 'kill').exists() and not (folder / 'killed').exists():
  (folder / 'killed').touch()
  os.kill(os.getpid(), signal.SIGKILL)
if rate > 0.1:
  print('error: loss nan')
  sys.exit(2)
rows = folder / 'metrics.jsonl'
first = len(rows.read_text().splitlines()) if rows.exists() else 0
loss = lambda t: 9 - math.log(1 + t / 1000) + abs(math.log10(rate / 0.01)) + field('seed', 0) / 100
for step in range(first, -(-tokens // batch) + 1):
  row = {'step': step, 'tokens': step * batch}
  row |= {'flops': 10.0 * step * batch} if step else {}
  if step % every == 0:
    row |= {'val/web/loss': loss(step * batch)}
  with open(rows, 'a') as f:
    f.write(json.dumps(row) + chr(10))
  time.sleep(field('nap', 0.0))
(folder / 'summary.json').write_text(json.dumps({'loss': {'validation': loss(tokens)}}))
'''


@pytest.fixture
def runner(tmp_path):
  path = tmp_path / 'runner.py'
  path.write_text(RUNNER)
  return [sys.executable, str(path)]


def experiment(tmp_path, runner, *flags, **kwargs) -> search.Experiment:
  return search.Experiment(str(tmp_path), 'configs/search.py', flags, ['loss'], poll=0.02,
                           runner=runner, **kwargs)


def asked(folder) -> list[dict]:
  """The flags of each start of a run."""
  return [json.loads(line) for line in (folder / 'asked.jsonl').read_text().splitlines()]


def test_a_trial_is_an_experiment(tmp_path, runner):
  """One whose process is killed is started again; one that diverges is told so."""
  space = {'optimizer.learning_rate': [0.01, 0.02, 0.5]}
  (tmp_path / 'points').mkdir()
  (tmp_path / 'points/kill').touch()
  study = search.Study(tmp_path, space, 3, 'grid')
  done = study.run(experiment(tmp_path, runner, '--config.nap=0'), quiet)
  assert [t.state.name for t in done.trials] == ['COMPLETE'] * 3
  assert [t.user_attrs.get('failed') for t in done.trials] == [None, None, 'error: loss nan']
  assert done.trials[0].value < done.trials[1].value < done.trials[2].value < 10
  for t in done.trials:
    starts = asked(tmp_path / f'points/trial-{t.number:04d}')
    assert len(starts) == 2 and starts[0] == starts[1]
    assert starts[0]['config.optimizer.learning_rate'] == str(
      t.params['optimizer.learning_rate'])
  assert [t.user_attrs['flops'] for t in done.trials] == [10.0 * 44 * 2048] * 2 + [0.0]
  found = search.results(done, space, ['loss'])
  assert [t['state'] for t in found['trials']] == ['complete', 'complete', 'fail']
  assert found['best'] == [0] and found['trials'][2]['values'] == []


def test_runs_are_evaluated_as_often_by_tokens(tmp_path, runner):
  space = {'train.batch_tokens': [1024, 2048, 4096]}
  done = search.Study(tmp_path, space, 3, 'grid', 'median', unit=10_000).run(
    experiment(tmp_path, runner, unit=10_000), quiet)
  every = [int(asked(tmp_path / f'points/trial-000{i}')[0]['config.train.eval_every'])
           for i in range(3)]
  assert every == [9, 4, 2]
  for t in done.trials:
    for unit, value in t.intermediate_values.items():
      assert value == pytest.approx(9 - math.log(1 + unit * 10), abs=0.02)
    assert max(t.intermediate_values) >= 8
  search.Study(tmp_path / 'b', space, 1, 'grid').run(
    experiment(tmp_path / 'b', runner, '--config.train.eval_every=7', unit=10_000), quiet)
  assert asked(tmp_path / 'b/points/trial-0000')[0]['config.train.eval_every'] == '7'


def test_rungs_are_cooled_down_from_a_plateau_that_goes_on(tmp_path, runner):
  """Each rung's branch leaves the plateau of the one before; who is stopped has no more of them."""
  tokens, batch = 90 * 2048, 2048
  space = {'optimizer.learning_rate': ('log', 1e-3, 0.1)}
  done = search.Study(tmp_path, space, 6, 'random', 'halving', unit=tokens / 9).run(
    experiment(tmp_path, runner, f'--config.train.tokens={tokens}', unit=tokens / 9, rungs=3,
               cooled=True), quiet)
  whole = next(t for t in done.trials if t.state.name == 'COMPLETE' and 'thaws' not in t.user_attrs)
  folder = tmp_path / f'points/trial-{whole.number:04d}'
  of = lambda name: asked(folder.with_name(f'{folder.name}{name}'))[0]
  before = 0
  for i, (name, steps) in enumerate((('-rung-1', 10), ('-rung-2', 30), ('', 90)), start=1):
    plateau, cooled = of(f'-plateau-{i}'), of(name)
    stable, decay = int(plateau['config.train.tokens']) // batch, round(0.2 * steps)
    assert plateau['config.optimizer.schedule'] == 'constant' and stable == steps - decay
    assert plateau.get('config.train.branch_from', 'none').endswith(
      f'-plateau-{i - 1}/checkpoints/{before}' if before else 'none')
    assert cooled['config.train.branch_from'].endswith(f'-plateau-{i}/checkpoints/{stable}')
    assert int(cooled['config.train.tokens']) == steps * batch
    assert cooled['config.optimizer.decay_steps'] == str(decay)
    assert {p['config.optimizer.warmup_steps'] for p in (plateau, cooled)} == {'4'}
    before = stable
  # What is trained more than once is only the cooldowns of the rungs below.
  assert whole.user_attrs['flops'] == pytest.approx(10.0 * batch * (90 + 2 + 6))
  # What was stopped and thawed begins with the plateau that it had not reached: nothing runs twice.
  assert any('thaws' in t.user_attrs for t in done.trials)
  for runs in (tmp_path / 'points').iterdir():
    assert len(asked(runs)) == 1, runs
  stopped = [t for t in latest(done.trials) if t.state.name == 'PRUNED']
  assert stopped and all(not (tmp_path / f'points/trial-{run_of(t):04d}').exists() for t in stopped)
  assert all(set(t.intermediate_values) <= {1, 2, 3} for t in stopped)


def test_rungs_that_have_no_plateau_are_refused():
  c = recipe.get_config()
  c.train.tokens = 90 * 2048
  assert search.rungs(resolve(c), 3, 10 * 2048)[0] == 4
  with pytest.raises(ValueError, match='plateau has not begun'):
    search.rungs(c, 5, 90 / 81 * 2048)
  c.optimizer.schedule = 'cosine'
  with pytest.raises(ValueError, match='it needs optimizer'):
    search.rungs(c, 3, 10 * 2048)


@pytest.mark.parametrize('how', [
  signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
  pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_trainings_end_with_their_search_and_go_on_with_the_next(tmp_path, runner, how):
  script = f'''
import pathlib, signal, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from experiments import search, sweep
for ends in (signal.SIGTERM, signal.SIGINT):  # which a shell's background jobs ignore
  signal.signal(ends, signal.default_int_handler)
root = {str(tmp_path)!r}
objective = search.Experiment(root, 'configs/search.py', ['--config.nap=0.03'], ['loss'],
                              poll=0.02, runner={runner!r})
search.Study(pathlib.Path(root), {{'optimizer.learning_rate': ('log', 1e-3, 0.1)}}, 3).run(
  objective)
'''
  command = [sys.executable, '-W', 'error::ResourceWarning', '-c', script]
  rows = tmp_path / 'points/trial-0001/metrics.jsonl'
  with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL) as process:
    while not rows.exists() or len(rows.read_text().splitlines()) < 5:
      time.sleep(0.02)
      assert process.poll() is None
    process.send_signal(how)
  time.sleep(0.3)
  then = rows.read_text()
  time.sleep(0.3)
  assert rows.read_text() == then and not rows.with_name('summary.json').exists()
  subprocess.run(command, cwd=REPOSITORY, check=True, timeout=60)
  done = optuna.load_study(study_name='search', storage=f'sqlite:///{tmp_path}/search.db')
  assert [t.state.name for t in done.trials] == ['COMPLETE'] * 3
  assert [len(asked(tmp_path / f'points/trial-000{i}')) for i in range(3)] == [1, 2, 1]


def test_a_point_that_fails_with_another_seed_is_not_the_best_of_the_rest(tmp_path, runner):
  study = search.Study(tmp_path, {'optimizer.learning_rate': ('log', 1e-3, 0.1)}, 4, 'random')
  done = study.run(experiment(tmp_path, runner), quiet)
  best = sorted(done.trials, key=lambda t: t.value)[:2]

  def objective(trial, report):
    first = trial.params['optimizer.learning_rate'] == best[0].params['optimizer.learning_rate']
    return [math.nan if first and trial.params['seed'] == 6 else 1.0 if first else 2.0]

  retest = search.again(study, done, best=2, seeds=3, seed=4).run(objective, quiet)
  found = search.intervals(done, retest)
  assert [f['trial'] for f in found] == [t.number for t in best[::-1]]
  assert found[1]['values'][6] == math.inf == found[1]['half'] and math.isnan(found[1]['mean'])
  results = search.results(done, study.space, ['loss']) | {'again': found}
  assert 'has none' in pathlib.Path(search_page.write(results, str(tmp_path))).read_text()


def test_the_best_are_tried_again_with_other_seeds(tmp_path, runner):
  study = search.Study(tmp_path, {'optimizer.learning_rate': ('log', 1e-3, 0.1)}, 6, 'random')
  objective = experiment(tmp_path, runner)
  done = study.run(objective, quiet)
  best = sorted(done.trials, key=lambda t: t.value)[:2]
  retest = search.again(study, done, best=2, seeds=3, seed=4).run(objective, quiet)
  assert [(t.params['optimizer.learning_rate'], t.params['seed']) for t in retest.trials] == [
    (t.params['optimizer.learning_rate'], seed) for t in best for seed in (5, 6, 7)]
  found = search.intervals(done, retest)
  assert [f['trial'] for f in found] == [t.number for t in best]
  values = [best[0].value + seed / 100 for seed in (5, 6, 7)]
  low, high = scipy.stats.t.interval(
    0.95, 2, loc=np.mean(values), scale=scipy.stats.sem(values))
  assert (found[0]['mean'], found[0]['half']) == pytest.approx((np.mean(values), (high - low) / 2))
  again = search.again(study, done, best=2, seeds=3, seed=4).run(
    lambda t, r: pytest.fail('all are done'), quiet)
  assert search.intervals(done, again) == found
  results = search.results(done, study.space, ['loss']) | {'again': found}
  page = pathlib.Path(search_page.write(results, str(tmp_path))).read_text()
  assert f'{found[0]["mean"]:.4f}' in page and 'The best again' in page
  rows = list(csv.DictReader((tmp_path / 'report/again.csv').open()))
  assert [float(r['loss']) for r in rows[:3]] == pytest.approx(values)


@pytest.mark.parametrize(('flags', 'message'), [
  (['--trials=0'], '--trials=0: give 1 or more'),
  (['--processes=0'], '--processes=0'),
  (['--widen=-1'], '--widen=-1'),
  (['--max_hours=nan'], '--max_hours=nan'),
  (['--seed=-1'], '--seed=-1'),
  (['--sampler=best'], "unknown sampler 'best'"),
  (['--objectives=los'], "unknown objective 'los'"),
  (['--cooled'], '--cooled is for a pruner'),
  (['--retest=2', '--objectives=loss,bytes'], 'single objective'),
  (['--config.optimizer.lr=3'], 'optimizer.lr'),
  (['--config.train.batch_tokens=2048'], 'is what the search varies'),
  (['--config.train.tokens=0'], 'train.tokens=0'),
  (['--config.data.seq_len=1000'], 'no multiple of data.seq_len=1000'),
  (['--config.train.tokens=20000', '--cooled', '--pruner=halving'], 'plateau has not begun'),
])  # fmt: skip
def test_bad_input_is_one_line_before_anything_runs(tmp_path, capsys, flags, message):
  try:
    status = search.main(['--config=configs/search.py', f'--workdir={tmp_path}/w', '--trials=3',
                          '--dry_run', *flags])
  except SystemExit as stop:
    status = stop.code
  said = capsys.readouterr()
  assert status == 2 and message in said.err and not (tmp_path / 'w').exists()


def test_a_dry_run_says_what_would_be_searched(tmp_path, capsys):
  status = search.main(['--config=configs/search.py', f'--workdir={tmp_path}/w', '--trials=3',
                        '--dry_run', '--cooled', '--pruner=halving'])
  said = capsys.readouterr()
  assert status == 0 and "optimizer.learning_rate: ('log', 0.0005, 0.02)" in said.out, said.err
  assert not (tmp_path / 'w').exists()


def test_a_field_that_does_not_exist_is_said_before_the_first_trial(tmp_path, capsys):
  config = tmp_path / 'wrong.py'
  config.write_text('from configs import quickstart\nget_config = quickstart.get_config\n'
                    "def space():\n  return {'optimizer.lr': ('log', 1e-4, 1e-1)}\n")
  assert search.main([f'--config={config}', f'--workdir={tmp_path}/w', '--trials=3']) == 2
  assert 'optimizer.lr' in capsys.readouterr().err and not (tmp_path / 'w').exists()


def test_the_page(tmp_path):
  done = search.Study(tmp_path, SPACE, 20).run(bowl, quiet)
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
  other = pathlib.Path(search_page.write(search.results(done, SPACE, ['bytes']), str(tmp_path)))
  assert 'Bytes by trial' in other.read_text() and 'Loss' not in other.read_text()


def test_several_objectives_have_a_front(tmp_path):
  objective = lambda t, r: [(t.params['n'] - 4) ** 2 + 0.1, 2.0 ** t.params['n']]
  done = search.Study(tmp_path, {'n': ('int', 1, 8)}, 40, 'nsga', objectives=2).run(
    objective, quiet)
  results = search.results(done, {'n': ('int', 1, 8)}, ['loss', 'bytes'])
  front = {done.trials[i].params['n'] for i in results['best']}
  assert front == {1, 2, 3, 4}  # beyond 4 both are worse
  page = pathlib.Path(search_page.write(results, str(tmp_path))).read_text()
  assert 'loss against bytes' in page and 'What matters' not in page


@pytest.mark.slow
def test_latency_and_memory_of_a_run(markov_corpora, tmp_path):
  from helpers.training import fit, tiny

  result = fit(tiny(), markov_corpora, tmp_path)
  assert 0 < search.OBJECTIVES['latency'](tmp_path, {}, dict(os.environ)) < 1000
  cache = 2 * 4 * 1 * 16 * 64  # keys and values, layers, heads, their dims, places
  assert search.OBJECTIVES['memory'](tmp_path, result, {}) == 2 * (result['parameters'] + cache)


@pytest.mark.slow
def test_a_search_takes_no_memory_of_the_gpus_of_its_trials(markov_corpora, tmp_path):
  """What jax once has of a GPU it keeps: the search itself may not ask for devices."""
  from helpers.training import fit, tiny

  result = fit(tiny(), markov_corpora, tmp_path)
  code = f'''
import json, os, pathlib
from experiments import search, sweep
for name in ('latency', 'memory'):
  assert search.OBJECTIVES[name](pathlib.Path({str(tmp_path)!r}), {result!r}, dict(os.environ))
from jax._src import xla_bridge
assert not xla_bridge._backends, xla_bridge._backends
'''
  subprocess.run([sys.executable, '-c', code], check=True, cwd=REPOSITORY)


def test_trials_share_gpus_evenly_and_divide_their_memory(tmp_path, monkeypatch):
  monkeypatch.setattr(search.gpu, 'visible', lambda: ['4', '7'])
  for name in ('XLA_PYTHON_CLIENT_MEM_FRACTION', 'XLA_CLIENT_MEM_FRACTION'):
    monkeypatch.delenv(name, raising=False)
  objective = search.Experiment(str(tmp_path), 'configs/search.py', (), ['loss'], parallel=4)
  with contextlib.ExitStack() as stack:
    had = [stack.enter_context(objective._gpu(i)) for i in range(4)]
  assert sorted(had) == ['4', '4', '7', '7'] and set(had[:2]) == {'4', '7'}
  shares = {among: sweep.on_gpu('4', among).get('XLA_PYTHON_CLIENT_MEM_FRACTION')
            for among in (1, sweep.on_one(4, ['4', '7']))}
  assert shares == {1: None, 2: '0.460'}
  monkeypatch.setenv('XLA_CLIENT_MEM_FRACTION', '.3')
  assert 'XLA_PYTHON_CLIENT_MEM_FRACTION' not in sweep.on_gpu('4', 2)


def test_tpe_learns(tmp_path):
  """Median regret on Branin after 40 trials, over five seeds: less than random's."""
  space = {'x': ('float', -5.0, 10.0), 'y': ('float', 0.0, 15.0)}
  regrets = benchmark.regrets(benchmark.branin, space, trials=40, seeds=5)
  assert np.median(regrets['tpe']) < np.median(regrets['random'])


@pytest.mark.slow
def test_a_search_end_to_end(tmp_path):
  """Real trials, cooled down at their rungs, by two processes; the best again with other seeds."""
  from helpers.quickstart import SMALL

  config = tmp_path / 'small.py'
  config.write_text('from configs import search\nget_config = search.get_config\ndef space():\n'
                    "  return {'optimizer.learning_rate': ('log', 1e-4, 1e-1),\n"
                    "          'optimizer.name': ['adamw', 'muon']}\n")
  result = subprocess.run(
    [sys.executable, '-m', 'experiments.search', f'--config={config}',
     f'--workdir={tmp_path}/work', '--trials=4', '--sampler=quasi', '--widen=0', '--processes=2',
     '--pruner=halving', '--rungs=2', '--cooled', '--retest=1', '--seeds=2', *SMALL,
     '--config.web.limit=200'],
    cwd=REPOSITORY, capture_output=True, text=True, timeout=1200)
  assert result.returncode == 0, result.stdout + result.stderr
  found = json.loads((tmp_path / 'work/search.json').read_text())
  assert len(found['trials']) == 4 and {t['state'] for t in found['trials']} <= {
    'complete', 'pruned'}
  complete = [t for t in found['trials'] if t['state'] == 'complete']
  for t in found['trials']:
    assert t['flops'] > 0 and [n for n, _ in t['reported']][:1] == [1], t
  for t in complete:
    folder = tmp_path / f'work/points/trial-{t["number"]:04d}'
    summary = json.loads((folder / 'summary.json').read_text())
    assert summary['loss']['validation'] == t['values'][0]
  assert len(found['again']) == 1 and len(found['again'][0]['values']) == 2
  assert found['again'][0]['mean'] == pytest.approx(
    next(t for t in complete if t['number'] == found['again'][0]['trial'])['values'][0], abs=0.5)
  steps = [p.name.rpartition('-')[0] for p in (tmp_path / 'work/steps').iterdir() if p.is_dir()]
  assert steps.count('web') == 3  # one a seed


def test_the_step_law_table(shared_data):
  """TPE beats random within 60 trials; halving finds a top point for 40 % of the cost."""
  cells = benchmark.load_cells(shared_data / 'scaling/steplaw_dense_lr_bs_loss.csv')
  found = {'tpe': [], 'random': []}
  for cell in list(cells.values())[::4]:
    for name, values in benchmark.regrets(*benchmark.of_cell(cell), trials=60, seeds=4).items():
      found[name] += values
  assert np.mean(found['tpe']) < np.mean(found['random']) / 2
  assert np.median(found['tpe']) <= np.median(found['random'])
  half = benchmark.diverging(list(cells.values())[::4], trials=60, seeds=4)
  for trials in (20, 60):
    regret = {name: of['regret'][trials] for name, of in half.items()}
    assert regret['tpe'] < regret['random'] < regret['tpe, untold'] * 1.01
  assert half['tpe']['diverged'] < 0.35 < 0.7 < half['tpe, untold']['diverged']
  rows = benchmark.halving(cells, benchmark.HALVING['budget'])
  assert len(rows) == 4
  assert all(r['cost_share'] <= 0.4 and r['rank_share'] <= 0.05 for r in rows)

"""Sweeps: points and their commands, processes that fail, die and wait; the page that compares."""

import contextlib
import csv
import dataclasses
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import scipy.stats
from conftest import REPOSITORY

from experiments import sweep
from smoljax.report import sweep_page
from smoljax.scaling import comparison


def config_file(folder: pathlib.Path, points: str) -> str:
  path = folder / 'recipe.py'
  path.write_text(f'''
from configs import quickstart
get_config = lambda arg="": quickstart.get_config()
def sweep():
  return {points}
''')
  return str(path)


def test_points_become_commands(tmp_path):
  config = config_file(tmp_path, '''[
    {'name': 'long', 'seed': 0},
    {'train.branch_from': '@long/checkpoints/40', 'train.tokens': 9},
    {'model.mtp': 'parallel', 'mtp.weight': 0.3, 'group': 'g', 'factors': ('a',), 'aside': True},
    {'name': 'two', 'corpora': 'x=@long/corpora/web,y=@two.5/z@1'}]'''.replace('@two.5', '@long'))
  points = sweep.plan(config + ':size=big', 'runs/x', ['--config.eval.batch_size=4'])
  assert [p.name for p in points] == ['long', 'branch_from=_long_checkpoints_40,tokens=9',
                                      'mtp=parallel,weight=0.3', 'two']
  assert (points[2].group, points[2].factors, points[2].aside) == ('g', ('a',), True)
  assert points[3].command[-1] == (
    '--config.corpora=x=runs/x/points/long/corpora/web,y=runs/x/points/long/z@1')
  assert points[1].after == {'long'} and not points[2].after
  assert points[1].command[1:] == [
    '-m', 'experiments.run', f'--config={config}:size=big',
    '--workdir=runs/x/points/branch_from=_long_checkpoints_40,tokens=9',
    '--config.eval.batch_size=4', '--config.train.branch_from=runs/x/points/long/checkpoints/40',
    '--config.train.tokens=9']


@pytest.mark.parametrize(('points', 'flags', 'message'), [
  ('[]', [], 'must return a list of dicts'),
  ("[{'seed': 0}, {'seed': 0}]", [], 'seed=0 twice'),
  ("[{'seed': 0}]", ['--config.seed=3'], 'is what the sweep varies'),
  ("[{'train.init_from': '@later'}, {'name': 'later'}]", [], 'names no point before it'),
  ("[{'name': 'a', 'group': 'g'}, {'name': 'b', 'group': 'g'}]", [],
   "a and b are both seed 0 of the group 'g'"),
])  # fmt: skip
def test_a_bad_sweep_is_said(tmp_path, points, flags, message):
  with pytest.raises(ValueError, match=message):
    sweep.plan(config_file(tmp_path, points), str(tmp_path), flags)


@pytest.mark.parametrize(('point', 'message'), [
  ({'optimizer.learning_rat': 0.1}, "no field 'learning_rat' (did you mean learning_rate?)"),
  ({'train.tokens': 0}, 'point tokens=0: '),
  ({'train.tokens': 'many'}, 'point tokens=many: '),
  ({'train.batch_tokens': 1000}, 'try --config.train.batch_tokens=768'),
])  # fmt: skip
def test_a_wrong_field_or_value_is_said_before_the_first_point(tmp_path, capsys, point, message):
  config = config_file(tmp_path, f"[{{'name': 'good'}}, {point!r}]")
  for flags in ([], ['--dry_run']):
    assert sweep.main([f'--config={config}', f'--workdir={tmp_path}/w', *flags]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / 'w').exists()


def test_processes_do_not_outlive_a_killed_sweep(tmp_path):
  mark = tmp_path / 'mark'
  script = f'import time\nwhile True: open({str(mark)!r}, "a").write("."); time.sleep(.05)'
  code = ('import pathlib, sys\nfrom experiments import sweep\n'
          f'points = [sweep.Point("a", {{}}, [sys.executable, "-c", {script!r}], '
          f'pathlib.Path({str(tmp_path / "points/a")!r}), set())]\nsweep.run(points, parallel=1)')
  with subprocess.Popen([sys.executable, '-c', code], cwd=REPOSITORY,
                        stdout=subprocess.DEVNULL) as process:
    while not mark.exists():
      time.sleep(0.05)
      assert process.poll() is None
    process.kill()
  time.sleep(0.3)
  size = mark.stat().st_size
  time.sleep(0.3)
  assert mark.stat().st_size == size


def test_a_config_without_a_sweep_names_those_that_have_one():
  with pytest.raises(ValueError, match=r'base\.py has no sweep.*configs/mtp\.py'):
    sweep.load_points('configs/base.py')
  with pytest.raises(ValueError, match='no config file'):
    sweep.load_points('configs/none.py')


def test_a_grid_needs_no_python():
  grid = ['optimizer.learning_rate=1e-3,3e-3', "train.stages=({'a':(1,2)},),x"]
  points = sweep.load_points('configs/quickstart.py', grid, seeds=2)
  assert len(points) == 8 and points[0] == {
    'optimizer.learning_rate': 1e-3, 'train.stages': ({'a': (1, 2)},), 'seed': 0}
  assert points[-1] == {'optimizer.learning_rate': 3e-3, 'train.stages': 'x', 'seed': 1}
  planned = sweep.plan('configs/quickstart.py', 'runs/x', (), grid[:1], 2)
  assert [p.name for p in planned][1:3] == [
    'learning_rate=0.001,seed=1', 'learning_rate=0.003,seed=0']
  for wrong in ('optimizer.learning_rate', '=3', 'seed='):
    with pytest.raises(ValueError, match='give FIELD=VALUE,VALUE'):
      sweep.load_points('configs/quickstart.py', [wrong])
  with pytest.raises(ValueError, match=r'has no field .*did you mean learning_rate'):
    sweep.plan('configs/quickstart.py', 'runs/x', (), ['optimizer.learning_rat=3'])


def test_each_point_of_a_sweep_may_have_seeds(tmp_path):
  config = config_file(
    tmp_path, [{'name': 'first', 'aside': True}, {'name': 'b', 'train.tokens': 5}])
  points = sweep.load_points(config, seeds=2)
  assert [p['name'] for p in points] == ['first', 'b-0', 'b-1'] and points[2]['group'] == 'b'
  with pytest.raises(ValueError, match='has a seed of its own: drop --seeds, or the field seed'):
    sweep.load_points('configs/quickstart.py', ['seed=1,2'], seeds=2)


def test_names_are_names_of_folders(tmp_path):
  """Of a baseline without fields, of a long value, of those that lead out of the folder."""
  assert sweep.name_of({}) == 'unchanged' and sweep.name_of({'name': 'ä b/c'}) == '_b_c'
  for odd in ('..', '.', '-x', '/', '../../etc'):
    name = sweep.name_of({'name': odd})
    assert (tmp_path / name).resolve().parent == tmp_path and name[0] not in '.-'
  long = [sweep.name_of({'train.stages': ({'name': 'x' * 300 + end},)}) for end in 'ab']
  assert len({*long}) == 2 and max(map(len, long)) <= 160
  (tmp_path / long[0]).mkdir()
  points = sweep.plan(config_file(tmp_path, "[{}, {'mtp.weight': 0.1}]"), str(tmp_path / 'w'))
  assert [p.folder.name for p in points] == ['unchanged', 'weight=0.1']


def test_a_sweep_may_go_on_with_changed_values(tmp_path, capsys):
  """What a point says of unfinished training, --fresh or --change, is to be typed here."""
  config = config_file(tmp_path, "[{'name': 'a'}]")
  command = [f'--config={config}', f'--workdir={tmp_path}/w', '--dry_run']
  for flag in ('--fresh', '--change'):
    assert sweep.main([*command, flag]) == 0
    assert capsys.readouterr().out.strip().endswith(flag)
  with pytest.raises(SystemExit):
    sweep.main([*command, '--fresh', '--change'])


def points_of(tmp_path, **scripts: str) -> list[sweep.Point]:
  """Points whose process is a line of Python, run in the folder of all points."""
  root = tmp_path / 'points'
  return [
    sweep.Point(name, {}, [sys.executable, '-c', f'import os, sys, time\n{script}'], root / name,
                set())
    for name, script in scripts.items()]


def test_processes_that_fail_die_and_wait(tmp_path):
  mark = tmp_path / 'mark'
  points = points_of(
    tmp_path,
    good='print("fine")',
    refused='print("error: no such thing"); sys.exit(2)',
    killed=f'first = not os.path.exists({str(mark)!r}); open({str(mark)!r}, "w").close()\n'
           'if first: os.kill(os.getpid(), 9)',
    hopeless='os.kill(os.getpid(), 9)',
    follows='sys.exit(0)',
    spoiled='sys.exit(0)',
  )
  by_name = {p.name: p for p in points}
  by_name['follows'].after = {'killed'}
  by_name['spoiled'].after = {'refused'}
  said = []
  assert not sweep.run(points, parallel=2, retries=1, log_line=said.append)
  assert {p.name: (p.state, p.tries) for p in points} == {
    'good': ('done', 1), 'refused': ('failed', 1), 'killed': ('done', 2), 'hopeless': ('failed', 2),
    'follows': ('done', 1), 'spoiled': ('blocked', 0)}
  assert 'refused: failed: error: no such thing' in said
  assert (tmp_path / 'points/good/log.txt').read_text() == 'fine\n'
  assert os.path.samefile(tmp_path / 'points/good/steps', tmp_path / 'steps')


def test_no_more_than_parallel_and_one_gpu_each(tmp_path):
  running = str(tmp_path)
  script = f'''
mine = os.path.join({running!r}, "run-" + str(os.getpid())); open(mine, "w").close()
time.sleep(.3)
among = sum(n.startswith("run-") for n in os.listdir({running!r}))
print(among, os.environ["CUDA_VISIBLE_DEVICES"])
os.remove(mine)'''
  points = points_of(tmp_path, **{f'p{i}': script for i in range(5)})
  assert sweep.run(points, parallel=2, gpus=['4', '7'], log_line=lambda _: None)
  logs = [(p.folder / 'log.txt').read_text().split() for p in points]
  assert max(int(n) for n, _ in logs) == 2
  assert {gpu for _, gpu in logs} == {'4', '7'}


def test_an_interrupt_ends_the_processes(tmp_path):
  """SIGTERM first, so that a training run can save."""
  saved = tmp_path / 'saved'
  script = f'''
import signal
def save(*_):
  open({str(saved)!r}, "w").close()
  sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)'''
  points = points_of(tmp_path, only=script)
  log = tmp_path / 'points/only/log.txt'

  def say(line):
    if 'started' in line:
      while not (log.exists() and log.read_text()):
        pass
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    sweep.run(points, parallel=1, log_line=say)
  assert saved.exists()


def test_printed_commands_run_anywhere(capsys, tmp_path):
  config = config_file(tmp_path, "[{'seed': 1}]")
  assert sweep.main([f'--config={config}', f'--workdir={tmp_path}/w', '--dry_run']) == 0
  line = capsys.readouterr().out.strip()
  assert line.endswith('--config.seed=1') and 'ln -sfn ../../steps' in line
  before, _, _ = line.rpartition(' && ')
  subprocess.run(['sh', '-c', before], check=True)
  steps = tmp_path / 'w/points/seed=1/steps'
  assert steps.is_symlink() and steps.is_dir()  # a folder that it leads to, too


def make_run(folder: pathlib.Path, loss: float, evals: dict | None = None) -> None:
  (folder / 'evals').mkdir(parents=True)
  (folder / 'summary.json').write_text(json.dumps({
    'loss': {'validation': loss}, 'tokens': {'web': 10, 'trained': 4096}, 'parameters': 1000,
    'tokens_per_sec': 5.0}))
  (folder / 'evals/40.json').write_text(json.dumps(evals or {
    'bits_per_byte': {'web': {'bpb': loss / 2, 'ece': 0.01}},
    'copy': {'near': {'accuracy': 0.5, 'saved': 1.0}},
    'tasks': {'piqa': {'metric': 'acc_norm', 'acc_norm': 0.625}}}))
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in [
    {'step': 1, 'tokens': 1024, 'train/loss': loss + 1}, {'step': 2, 'attn/max_logit': 3.0},
    {'step': 4, 'tokens': 4096, 'val/web/bpb': loss / 2, 'val/pdf/bpb': loss}]))


def test_a_stopped_sweep_compares_what_is_finished(tmp_path, monkeypatch, capsys):
  def stopped(points, **_):
    make_run(points[0].folder, 3.25)
    points[0].state = 'done'
    raise KeyboardInterrupt

  monkeypatch.setattr(sweep, 'run', stopped)
  config = config_file(tmp_path, "[{'name': 'a'}, {'name': 'b'}]")
  with contextlib.suppress(KeyboardInterrupt):
    assert sweep.main([f'--config={config}', f'--workdir={tmp_path}/w']) != 0
  assert '3.25' in (tmp_path / 'w/report/index.html').read_text()
  assert 'comparison: ' in capsys.readouterr().out


def test_a_page_tells_what_is_not_as_it_was_asked(tmp_path, monkeypatch):
  def partly(points, **_):
    for p, state in zip(points, ('done', 'done', 'blocked', 'waiting'), strict=True):
      p.state = state
      if state == 'done':
        make_run(p.folder, 3.25)
    points[1].slowed = 0.01
    return False

  monkeypatch.setattr(sweep, 'run', partly)
  config = config_file(tmp_path, "[{'name': x} for x in 'abcd']")
  assert sweep.main([f'--config={config}', f'--workdir={tmp_path}/w']) == 1
  page = (tmp_path / 'w/report/index.html').read_text()
  assert 'the sweep is not done: 1 of 4 runs are not in here: d' in page
  assert 'b diverged, and is a run at a learning rate of 0.01 instead' in page
  assert '1 run failed and is in no mean: c' in page


def test_comparison_has_every_run_and_the_best_first(tmp_path):
  losses = {'<b>a': 3.25, 'b': 3.0}
  runs = []
  for name, loss in losses.items():
    make_run(tmp_path / 'points' / name, loss)
    runs.append(sweep_page.load(name, {'mtp.weight': loss}, tmp_path / 'points' / name))
  page = pathlib.Path(sweep_page.write(runs, str(tmp_path))[0]).read_text()
  assert 'Least validation loss: 3.000</h1><p class="lede">b</p>' in page
  assert '<b>a' not in page.replace('<b>a</b>', '') and '&lt;b&gt;a' in page
  assert page.index('../points/b/report') < page.index('../points/&lt;b&gt;a/report')
  rows = list(csv.DictReader((tmp_path / 'report/runs.csv').open()))
  assert rows[1]['bits per byte, web'] == '1.5' and rows[1]['piqa'] == '0.625'
  assert rows[0]['mtp.weight'] == '3.25' and rows[0]['copying, near'] == '0.5'
  curve = list(csv.DictReader((tmp_path / 'report/Held-out_bits_per_byte.csv').open()))
  assert [(r['run'], r['tokens'], r['value']) for r in curve] == [
    ('<b>a', '4096', str(0.75 * 3.25)), ('b', '4096', '2.25')]


def test_intervals_over_seeds(tmp_path):
  rng = np.random.default_rng(0)
  a, b, c = rng.normal(3, 0.1, 4), rng.normal(3.1, 0.1, 4), rng.normal(2.5, 0.02, 3)
  apart = {'c': 10}  # other seeds than the others
  runs = []
  for kind, losses in (('a', a), ('b', b), ('c', c)):
    for seed, loss in enumerate(losses):
      folder = tmp_path / f'{kind}{seed}'
      make_run(folder, loss)
      fields = {'data': kind, 'seed': seed + apart.get(kind, 0)}
      runs.append(sweep_page.load(folder.name, fields, folder))
  page, verdicts = sweep_page.write(runs, str(tmp_path))
  rows = list(csv.reader((tmp_path / 'report/seeds_validation_loss.csv').open()))[1:]
  paired = scipy.stats.ttest_rel(b, a).confidence_interval()
  welch = scipy.stats.ttest_ind(c, a, equal_var=False).confidence_interval()
  assert [r[:2] for r in rows] == [['data=a', '4'], ['data=b', '4'], ['data=c', '3']]
  low, high = scipy.stats.t.interval(0.95, 3, loc=a.mean(), scale=scipy.stats.sem(a))
  assert [float(x) for x in rows[0][2:4]] == pytest.approx([a.mean(), (high - low) / 2])
  for row, (low, high) in ((rows[1], paired), (rows[2], welch)):
    assert [float(x) for x in row[4:6]] == pytest.approx([(low + high) / 2, (high - low) / 2])
  assert comparison.interval([1.0]) == (1.0, math.inf)
  assert verdicts[1].startswith(f'data=c: validation loss {c.mean():.4f}')
  assert 'against data=a (apart; 0.' in verdicts[1]
  assert verdicts[1].endswith('would have been seen)')
  html = pathlib.Path(page).read_text()
  assert 'over 2 comparisons' in html and 'in 80 % of tries' in html  # the loss, asked beforehand
  assert 'over 8 comparisons' in html  # bits per byte, two probes, a task: a family of their own


def test_a_group_may_name_what_it_is_compared_with(tmp_path):
  """Batches that part late from a run are not held against those that parted early."""
  runs, rng = [], np.random.default_rng(0)
  for start, mean in (('early', 4.0), ('late', 3.0)):
    for batch, more in (('x1', 0.0), ('x2', 0.5)):
      for seed in range(3):
        folder = tmp_path / f'{start}{batch}{seed}'
        make_run(folder, mean + more + rng.normal(0, 0.01))
        runs.append(sweep_page.load(
          folder.name, {'seed': seed}, folder, f'{start} {batch}', against=f'{start} x1'))
  page, verdicts = sweep_page.write(runs, str(tmp_path))
  rows = list(csv.DictReader((tmp_path / 'report/seeds_validation_loss.csv').open()))
  assert [bool(r['verdict']) for r in rows] == [False, True, False, True]
  assert float(rows[3]['difference']) == pytest.approx(0.5, abs=0.05)
  assert len(verdicts) == 2 and 'against late x1 (apart' in verdicts[1]
  assert 'over 2 comparisons' in pathlib.Path(page).read_text()


def test_runs_that_were_judged_by_other_text_are_told(tmp_path):
  runs = []
  for name, documents in (('a', 8), ('b', 8), ('c', 7)):
    score = {'bpb': 2.0, 'documents': documents, 'bytes': 100 * documents}
    make_run(tmp_path / name, 3.0, {'bits_per_byte': {'news': score}})
    runs.append(sweep_page.load(name, {'x': name}, tmp_path / name))
  assert sweep_page.write(runs[:2], str(tmp_path))[1] == []
  page, verdicts = sweep_page.write(runs, str(tmp_path))
  assert verdicts == ['warning: bits per byte of news are of 7 documents in some runs (700 bytes) '
                      'and of 8 in others (800): do not compare them']
  assert 'of 7 documents in some runs' in pathlib.Path(page).read_text()


def test_groups_of_other_lengths_and_runs_that_failed_are_told(tmp_path):
  runs = []
  for group, tokens in (('a', 4096), ('b', 4096), ('c', 8192)):
    for seed in range(2):
      make_run(tmp_path / f'{group}{seed}', 3.0 + seed / 10)
      run = sweep_page.load(f'{group}{seed}', {'seed': seed}, tmp_path / f'{group}{seed}', group)
      runs.append(dataclasses.replace(run, figures={**run.figures, 'tokens': tokens}))
  page, verdicts = sweep_page.write(runs, str(tmp_path), ['b-2'])
  assert verdicts[:2] == ['warning: c was trained on 8,192 tokens a run, a on 4,096',
                          'warning: 1 run failed and is in no mean: b-2']
  assert 'is in no mean: b-2' in pathlib.Path(page).read_text()


def test_padding_is_no_token_that_a_group_was_trained_on(tmp_path):
  runs = []
  for group, padding in (('a', 0.0), ('b', 0.3)):
    for seed in range(2):
      folder = tmp_path / f'{group}{seed}'
      make_run(folder, 3.0 + seed / 10)
      tokens = json.loads((folder / 'summary.json').read_text())['tokens']['trained']
      with (folder / 'metrics.jsonl').open('a') as file:
        file.write(json.dumps({'step': 1, 'data/padding': padding}) + '\n')
      runs.append(sweep_page.load(folder.name, {'seed': seed}, folder, group))
  _, verdicts = sweep_page.write(runs, str(tmp_path))
  assert verdicts[0] == (
    f'warning: b was trained on {round(.7 * tokens):,} tokens a run, a on {tokens:,}')


def test_which_tasks_can_decide(tmp_path):
  """One that a change moves by more than its noise; not one that is all noise."""
  rng = np.random.default_rng(0)
  runs = []
  for i, kind in enumerate('ab'):
    for seed in range(4):
      folder = tmp_path / f'{kind}{seed}'
      flip, exact = 0.5 + rng.normal(0, 0.02), 0.4 + 0.2 * i + rng.normal(0, 0.01)
      sums = {'think': {'metric': 'exact', 'exact': exact, 'constant': 0.1}}
      evals = {'tasks': {'flip': {'metric': 'acc', 'acc': flip, 'chance': 0.5}},
               'generation': {'sums': sums}}
      make_run(folder, 3.0, {'bits_per_byte': {}, **evals})
      runs.append(sweep_page.load(folder.name, {'data': kind, 'seed': seed}, folder))
  sweep_page.write(runs, str(tmp_path))
  flip, sums = csv.DictReader((tmp_path / 'report/signals.csv').open())
  assert (flip['task'], flip['can'], sums['task'], sums['can']) == (
    'flip', 'False', 'sums, think', 'True')
  scores = [[r.figures['sums, think'] for r in runs[k : k + 4]] for k in (0, 4)]
  noise = np.mean([np.std(x, ddof=1) for x in scores])
  assert float(sums['spread']) == pytest.approx((np.mean(scores[1]) - np.mean(scores[0])) / noise)


def test_tokens_to_a_loss_that_all_reach(tmp_path):
  """Curves a / tokens^b have a known crossing; the points between are log-linear."""
  curve = [(t, 4 - math.log(t / 1000)) for t in (1000, 2000, 4000, 8000)]
  assert comparison.tokens_to(curve, 4 - math.log(3)) == pytest.approx(3000)
  assert comparison.tokens_to(curve, 5.0) == 1000
  assert comparison.tokens_to([(0, 5.0), (100, 3.0)], 4.0) == 50  # evaluated before any step
  assert comparison.tokens_to(curve, 0.1) == math.inf
  runs = []
  for group, behind, seeds in (('good', 1.0, (0, 1, 2)), ('bad', 2.0, (0, 1, 2))):
    for seed in seeds:
      make_run(tmp_path / f'{group}{seed}', 3.0)
      noise = 1 + 0.01 * seed
      held_out = [(t, 4 - math.log(t / (1000 * behind * noise))) for t in (1000, 2000, 4000, 8000)]
      run = sweep_page.load(f'{group}{seed}', {'x': seed * behind, 'seed': seed},
                            tmp_path / f'{group}{seed}', group)
      runs.append(dataclasses.replace(run, held_out=held_out))
  page, verdicts = sweep_page.write(runs, str(tmp_path))
  (row,) = [r for r in csv.DictReader((tmp_path / 'report/tokens_to_target.csv').open())
            if r['group'] == 'bad']
  assert float(row['ratio']) == pytest.approx(2) == pytest.approx(float(row['low']), rel=1e-6)
  assert any('bad: 2.00 times the tokens of good' in v for v in verdicts)
  assert 'which every run reaches' in pathlib.Path(page).read_text()


@pytest.mark.parametrize('curve', [
  [(0, 1.3), (1000, 1.5), (2000, 1.45)],  # it forgets: at the target before its first step
  [(1000, 3.0), (2000, math.nan), (4000, math.nan)], [(1000, 3.0), (2000, 2.9)]])
def test_no_tokens_are_told_where_a_curve_does_not_come_to_a_target(tmp_path, curve):
  runs = []
  for group in 'ab':
    for seed in range(3):
      make_run(tmp_path / f'{group}{seed}', 3.0 + seed)
      run = sweep_page.load(f'{group}{seed}', {'seed': seed}, tmp_path / f'{group}{seed}', group)
      runs.append(dataclasses.replace(run, held_out=curve))
  _, verdicts = sweep_page.write(runs, str(tmp_path))
  assert len(verdicts) == 1 and not (tmp_path / 'report/tokens_to_target.csv').exists()


def test_a_difference_tells_of_how_many_runs_it_is(tmp_path):
  """Of a group that lacks a seed, and of one whose figure is not finite, which has no verdict."""
  runs = []
  for group, losses in {'a': (3.0, 3.2, 3.1), 'b': (3.5, 3.6, 3.8, 3.7),
                        'c': (3, math.nan, 4)}.items():
    for seed, loss in enumerate(losses):
      folder = tmp_path / f'{group}{seed}'
      make_run(folder, loss)
      runs.append(sweep_page.load(folder.name, {'seed': seed}, folder, group))
  page, verdicts = sweep_page.write(runs, str(tmp_path))
  rows = list(csv.DictReader((tmp_path / 'report/seeds_validation_loss.csv').open()))
  assert [(r['seeds'], r['n']) for r in rows] == [('3', '3'), ('4', '3'), ('3', '3')]
  assert 'of 3 pairs against a' in verdicts[0] and 'a run has no finite figure' in verdicts[1]
  html = pathlib.Path(page).read_text()
  assert ', of 3 pairs</small>' in html
  keys = dict(re.findall(r'<span class="key \w+ (c\d)">(\w)\d</span>', html))
  assert keys == {'c1': 'a', 'c2': 'b', 'c3': 'c'}  # runs of a group have its colour


def test_effects_and_interactions(tmp_path):
  """Two factors and their interaction as planted; a seed that lacks a cell does not count."""
  runs = []
  for seed, noise in ((0, 0.0), (1, 0.02), (2, -0.01), (3, 0.5)):
    for factors, loss in (((), 4.0), (('a',), 3.5), (('b',), 3.8), (('a', 'b'), 3.4)):
      if seed == 3 and not factors:
        continue
      folder = tmp_path / ('+'.join(factors) + str(seed))
      make_run(folder, loss + noise + 1e-8 * (seed + len(factors)) ** 2)
      runs.append(sweep_page.load(folder.name, {'seed': seed}, folder, '+'.join(factors), factors))
  found = sweep_page.effects(runs)
  close = lambda of, value: of == pytest.approx(dict.fromkeys(range(3), value))
  assert close(found['a']['alone'], -0.5) and close(found['a']['last'], -0.4)
  assert close(found['b']['alone'], -0.2) and close(found['b']['last'], -0.1)
  assert close(found['a']['interaction'], 0.1) and close(found['all']['interaction'], 0.1)
  assert close(found['all']['alone'], -0.7) and close(found['all']['last'], -0.6)
  _, verdicts = sweep_page.write(runs, str(tmp_path))
  assert 'b: alone -0.2000 ± 0.0000 (apart), among all -0.1000' in ' '.join(verdicts)
  assert sweep_page.effects([r for r in runs if r.factors]) == {}


def test_flags_are_checked(capsys):
  with pytest.raises(SystemExit) as stop:
    sweep.main(['--config=configs/mtp.py', '--workdir=x', '--sede=1'])
  assert stop.value.code == 2 and 'unknown flag --sede' in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_end_to_end(tmp_path):
  """A long run and a cooldown that branches off it share corpora; a second go redoes nothing."""
  from helpers.quickstart import SMALL

  recipe = tmp_path / 'recipe.py'
  recipe.write_text(
    'from configs import quickstart\nget_config = quickstart.get_config\ndef sweep():\n'
    "  return [{'name': 'long', 'optimizer.schedule': 'constant', 'train.tokens': 61440},\n"
    "          {'name': 'cooldown', 'train.branch_from': '@long/checkpoints/20',\n"
    "           'train.tokens': 25 * 2048, 'optimizer.decay_steps': 5}]\n")
  small = [f for f in SMALL if 'train.tokens' not in f]
  flags = [f'--config={recipe}', f'--workdir={tmp_path}/work', *small, '--config.train.keep=10',
           '--config.web.limit=200', "--config.train.stages=({'name': 'all', 'fraction': 1.0, "
           "'mixture': {'web': 0.75, 'pdf': 0.25}},)"]
  command = [sys.executable, '-m', 'experiments.sweep', *flags]
  first = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=900)
  logs = [p.read_text() for p in tmp_path.glob('work/points/*/log.txt')]
  assert first.returncode == 0, first.stdout + first.stderr + ''.join(logs)
  rows = list(csv.DictReader((tmp_path / 'work/report/runs.csv').open()))
  assert [(r['run'], r['tokens']) for r in rows] == [('long', '61440'), ('cooldown', '51200')]
  steps = [p.name.rpartition('-')[0] for p in (tmp_path / 'work/steps').iterdir() if p.is_dir()]
  assert steps.count('web') == steps.count('tokenizer') == 1 and steps.count('train') == 2
  before = {p: p.stat().st_mtime_ns for p in (tmp_path / 'work/steps').glob('*/step.json')}
  subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=300)
  assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / 'work/steps').glob('*/step.json')}


def test_a_point_is_leased_by_one_process(tmp_path):
  """Two sweeps of one folder share the points between them and run each once."""
  counter = tmp_path / 'counter'
  code = f'''
import pathlib, sys
from experiments import sweep
root = pathlib.Path({str(tmp_path)!r}) / 'points'
points = [sweep.Point(str(i), {{}}, [sys.executable, '-c', """
import os, sys, time
done = os.path.join({str(tmp_path)!r}, 'done-' + sys.argv[1])
if not os.path.exists(done):
  open({str(counter)!r}, 'a').write(sys.argv[1] + chr(10))
  time.sleep(.5)
  open(done, 'w').close()
""", str(i)], root / str(i), set()) for i in range(6)]
assert sweep.run(points, parallel=2, log_line=lambda line: None)
'''
  both = [subprocess.Popen([sys.executable, '-c', code], cwd=REPOSITORY) for _ in range(2)]
  assert [p.wait(120) for p in both] == [0, 0]
  assert sorted(counter.read_text().split()) == list('012345')


def test_what_another_sweep_has_done_meanwhile_is_not_run_again(tmp_path):
  """A later call runs it, and experiments.run sees that nothing is left."""
  counter = tmp_path / 'counter'
  code = f'''
import pathlib, sys
from experiments import sweep
root = pathlib.Path({str(tmp_path)!r}) / 'points'
points = [sweep.Point(str(i), {{}}, [sys.executable, '-c', """
import sys, time
open({str(counter)!r}, 'a').write(sys.argv[1] + chr(10))
time.sleep(1)
""", str(i)], root / str(i), set()) for i in range(6)]
while len(list(root.parent.glob('ready*'))) < 2:
  (root.parent / ('ready' + sys.argv[1])).touch()
assert sweep.run(points, parallel=2, log_line=lambda line: None)
'''
  both = [subprocess.Popen([sys.executable, '-c', code, str(i)], cwd=REPOSITORY) for i in range(2)]
  assert [p.wait(120) for p in both] == [0, 0]
  assert sorted(counter.read_text().split()) == list('012345')
  assert subprocess.run([sys.executable, '-c', code, '0'], cwd=REPOSITORY).returncode == 0
  assert len(counter.read_text().split()) == 12


def test_a_point_that_diverges_is_run_again_slower(tmp_path):
  script = '''
import json
rate = float(sys.argv[-1].partition("=")[2]) if len(sys.argv) > 1 else 0.8
json.dump({"optimizer": {"learning_rate": rate}}, open("config.json", "w"))
with open("events.jsonl", "a") as f:
  f.write(json.dumps({"step": 9, "event": "diverged" if rate > .3 else "stop"}) + chr(10))
print("error: loss nan" if rate > .3 else "fine")
sys.exit(2 if rate > .3 else 0)'''
  for retries, state in ((1, 'failed'), (2, 'done')):
    (point,) = points_of(tmp_path / str(retries), wild=script)
    point.command[2] = f'import os, sys\nos.chdir({str(point.folder)!r})\n{script}'
    said = []
    assert sweep.run([point], parallel=1, retries=retries, backoff=0.5, log_line=said.append) == (
      state == 'done')
    assert (point.state, point.tries) == (state, retries + 1)
    assert 'again at a learning rate of 0.4' in said[1]
  assert point.fields == {'optimizer.learning_rate': 0.2}
  again = points_of(tmp_path / '2', wild=script)
  again[0].command[2] = f'import os, sys\nos.chdir({str(again[0].folder)!r})\n{script}'
  assert sweep.run(again, parallel=1, backoff=0.5, log_line=lambda _: None)
  assert (again[0].tries, again[0].slowed) == (1, 0.2)  # it does not diverge anew
  (point,) = points_of(tmp_path / 'never', wild=script)
  point.command[2] = f'import os, sys\nos.chdir({str(point.folder)!r})\n{script}'
  assert not sweep.run([point], parallel=1, retries=2, log_line=lambda _: None) and point.tries == 1


def test_a_silent_process_is_killed_and_started_again(tmp_path):
  mark = tmp_path / 'mark'
  (point,) = points_of(tmp_path, hangs=(
    f'first = not os.path.exists({str(mark)!r}); open({str(mark)!r}, "w").close()\n'
    'if first: time.sleep(60)'))
  said = []
  assert sweep.run([point], parallel=1, stall=1.0, log_line=said.append)
  assert point.tries == 2 and 'it has said nothing for' in said[1]


def test_weights_of_a_stage_are_fields():
  config = 'configs/quickstart.py'
  points = sweep.plan(config, 'w', grid=['train.stages.decay.pdf=0.1,0.5', 'seed=1'])
  c = sweep.load_config(config, [f for f in points[1].command if f.startswith('--config.')])
  assert [dict(s['mixture']) for s in c.train.stages] == [
    {'web': 0.9, 'pdf': 0.1}, {'web': 0.8, 'pdf': 0.2}, {'web': 0.7, 'pdf': 0.5}]
  assert points[1].fields['train.stages.decay.pdf'] == 0.5
  for wrong, words in (('none.pdf=1', "no stage 'none'"), ('decay.pdf=x', 'is a number')):
    with pytest.raises(ValueError, match=words):
      sweep.with_weights(config, [f'--config.train.stages.{wrong}'])


def test_two_seeds_give_no_verdict_and_a_corpus_may_have_no_signal(tmp_path):
  """'-.28 ± .48, within noise' stood beside '.31 times the tokens' at n = 2."""
  runs = []
  for kind, less in (('a', 0.0), ('b', 0.3)):
    for seed in range(2):
      folder = tmp_path / f'{kind}{seed}'
      make_run(folder, 3 - less + 0.01 * seed, {'bits_per_byte': {
        'web': {'bpb': 1.5 - less + 0.01 * seed}, 'code': {'bpb': 1.0 + 0.5 * seed}}})
      run = sweep_page.load(folder.name, {'data': kind, 'seed': seed}, folder)
      runs.append(dataclasses.replace(run, held_out=[
        (t, 4 + less - math.log(t)) for t in (1000, 2000, 4000)]))
  page, verdicts = sweep_page.write(runs, str(tmp_path))
  assert len(verdicts) == 2 and all('no verdict: n = 2' in v for v in verdicts)
  assert '95 %' not in verdicts[1] and 'times the tokens of data=a' in verdicts[1]
  html = pathlib.Path(page).read_text()
  assert '>apart<' not in html and '>within noise<' not in html
  signals = {r['task']: r['can'] for r in csv.DictReader(
    (tmp_path / 'report/signals.csv').open())}
  assert signals['bits per byte, web'] == 'True' and signals['bits per byte, code'] == 'False'

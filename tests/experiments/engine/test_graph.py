"""The step graph: addresses, nothing redone, nothing half-written, kills, two processes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY

from experiments.engine.graph import Damaged, Graph, Step


def graph(workdir, calls, *, a=1, b=1, version=1, fail=None):
  def make(name):
    def run(output, inputs):
      calls.append(name)
      with open(os.path.join(output, 'value'), 'w') as f:
        f.write(name)
      if fail == name:
        raise ValueError('no')
      for path in inputs.values():
        assert os.path.exists(os.path.join(path, 'value'))
      return {'name': name}

    return run

  first = Step('first', make('first'), {'a': a}, version=version, links={'out/first': 'value'})
  second = Step('second', make('second'), {'b': b}, needs=[first])
  side = Step('side', make('side'), {})
  return Graph([first, second, side], str(workdir), lambda line: None)


def test_only_what_changed_is_redone(tmp_path):
  calls = []
  graph(tmp_path, calls).run()
  assert calls == ['first', 'second', 'side']
  graph(tmp_path, calls).run()
  assert calls == ['first', 'second', 'side']
  graph(tmp_path, calls, b=2).run()
  assert calls[3:] == ['second']
  graph(tmp_path, calls, a=2).run()
  assert calls[4:] == ['first', 'second']
  graph(tmp_path, calls, version=2).run()
  assert calls[6:] == ['first', 'second']
  graph(tmp_path, calls).run()
  assert len(calls) == 8, 'going back to an earlier config finds its output'


def test_links_follow_the_current_output(tmp_path):
  for a in (1, 2):
    g = graph(tmp_path, [], a=a)
    g.run()
    assert (tmp_path / 'out/first').resolve().parent == g.output(g.steps[0]).resolve()
  assert g.result(g.steps[0])['name'] == 'first'


def test_a_failed_step_leaves_nothing(tmp_path):
  with pytest.raises(ValueError):
    graph(tmp_path, [], fail='second').run()
  names = sorted(p.name.split('-')[0] for p in (tmp_path / 'steps').iterdir() if p.is_dir())
  assert names == ['first']
  calls = []
  graph(tmp_path, calls).run()
  assert calls == ['second', 'side']


def test_a_dry_run_writes_nothing(tmp_path):
  rows = graph(tmp_path / 'new', []).describe()
  assert [state for _, state, _ in rows] == ['run', 'run', 'run']
  assert not (tmp_path / 'new').exists()
  graph(tmp_path, []).run()
  assert [state for _, state, _ in graph(tmp_path, [], b=2).describe()] == ['done', 'run', 'done']


_SCRIPT = """
import os, sys, time
from experiments.engine.graph import Damaged, Graph, Step
def run(output, _):
  path = os.path.join(output, 'parts')
  parts = open(path).read() if os.path.exists(path) else ''
  while len(parts) < 3:
    parts += 'x'
    open(path, 'w').write(parts)
    print(len(parts), flush=True)
    time.sleep(float(sys.argv[3]))
Graph([Step('long', run, resumable=sys.argv[2] == 'resumable')], sys.argv[1], print).run()
"""


def start(workdir, mode, pause):
  return subprocess.Popen(
    [sys.executable, '-c', _SCRIPT, str(workdir), mode, str(pause)],
    cwd=REPOSITORY,
    stdout=subprocess.PIPE,
    text=True,
  )


def wait_for_line(process, text):
  assert any(line.strip() == text for line in process.stdout), f'ended without printing {text}'


@pytest.mark.parametrize('mode', ['resumable', 'afresh'])
def test_killed_step(tmp_path, mode):
  process = start(tmp_path, mode, 60)
  wait_for_line(process, '1')
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not any(p.name.endswith('parts') for p in tmp_path.glob('steps/*'))
  output = start(tmp_path, mode, 0).communicate(timeout=60)[0]
  numbers = [line for line in output.split('\n') if line.isdigit()]
  assert numbers == (['2', '3'] if mode == 'resumable' else ['1', '2', '3'])
  assert ('continuing' in output) == (mode == 'resumable')


def test_two_processes_run_a_step_once(tmp_path):
  first = start(tmp_path, 'afresh', 0.5)
  wait_for_line(first, '1')
  time.sleep(0.1)
  second = start(tmp_path, 'afresh', 0.5).communicate(timeout=60)[0]
  first.wait(60)
  assert 'waiting' in second and not any(line.isdigit() for line in second.split('\n'))
  assert len(list(tmp_path.glob('steps/long-*/parts'))) == 1


def test_the_record_has_seconds(tmp_path):
  g = graph(tmp_path, [])
  g.run()
  record = json.loads((g.output(g.steps[1]) / 'step.json').read_text())
  assert record['seconds'] >= 0 and record['address'] == g.steps[1].address


def unfinished(workdir, config, *, outside=None, changeable=('rate',), fail=False, **how):
  """A graph of one resumable step, whose run leaves its rate and may then fail."""
  def run(output, inputs):
    with open(os.path.join(output, 'rates'), 'a') as f:
      f.write(f'{config["rate"]} ')
    if fail:
      raise OSError('killed')

  step = Step('train', run, config, outside=outside, resumable=True, changeable=changeable,
              links={'rates': 'rates'})
  return Graph([step], str(workdir), lambda line: None, **how)


def begin(workdir, **config):
  with pytest.raises(OSError, match='killed'):
    unfinished(workdir, {'rate': 1, 'seed': 0} | config, fail=True).run()


def rates(graph):
  return (graph.output(graph.steps[0]) / 'rates').read_text().split()


def test_beside_an_unfinished_step_another_one_is_refused_and_says_what_differs(tmp_path):
  begin(tmp_path)
  graph = unfinished(tmp_path, {'rate': 2, 'seed': 0})
  with pytest.raises(ValueError, match=r'rate \(1 there, 2 here\): set the old values.*--change.*'
                     '--fresh'):
    graph.run()
  assert 'beside' in graph.describe()[0][1]
  with pytest.raises(ValueError, match=r'seed \(0 there, 3 here\): set the old values to go on, or '
                     '--fresh'):
    unfinished(tmp_path, {'rate': 1, 'seed': 3}).run()
  with pytest.raises(ValueError, match='what it reads besides the config'):
    unfinished(tmp_path, {'rate': 1, 'seed': 0}, outside='another corpus').run()
  graph = unfinished(tmp_path, {'rate': 1, 'seed': 0})
  graph.run()
  assert rates(graph) == ['1', '1'], 'the old values go on'


def test_workdirs_that_share_their_steps_are_not_in_each_other_s_way(tmp_path):
  shared = tmp_path / 'steps'
  shared.mkdir()
  for point, rate in (('a', 1), ('b', 2)):
    (tmp_path / point).mkdir()
    (tmp_path / point / 'steps').symlink_to(shared)
    begin(tmp_path / point, rate=rate)
  with pytest.raises(ValueError, match='is unfinished and differs in rate'):
    unfinished(tmp_path / 'a', {'rate': 3, 'seed': 0}).run()


def test_an_unfinished_step_that_made_nothing_is_in_nobodys_way(tmp_path):
  begin(tmp_path)
  [folder] = (tmp_path / 'steps').glob('train-*.partial')
  (folder / 'rates').unlink()
  graph = unfinished(tmp_path, {'rate': 2, 'seed': 0})
  graph.run()
  assert rates(graph) == ['2']


def test_an_unfinished_step_is_left_where_a_fresh_one_is_asked_for(tmp_path):
  begin(tmp_path)
  graph = unfinished(tmp_path, {'rate': 2, 'seed': 0}, unfinished='fresh')
  graph.run()
  assert rates(graph) == ['2']
  graph = unfinished(tmp_path, {'rate': 1, 'seed': 0})
  graph.run()
  assert rates(graph) == ['1', '1']


def test_an_unfinished_step_goes_on_with_what_may_change(tmp_path):
  begin(tmp_path)
  with pytest.raises(ValueError, match='--change cannot be for seed'):
    unfinished(tmp_path, {'rate': 2, 'seed': 3}, unfinished='change').run()
  graph = unfinished(tmp_path, {'rate': 2, 'seed': 0}, unfinished='change')
  graph.run()
  assert rates(graph) == ['1', '2']


@pytest.mark.parametrize('damage', [b'', b'{"seconds": 1', b'\xff\x00', None])
def test_a_step_whose_result_is_damaged_is_done_again(tmp_path, damage):
  calls = []
  g = graph(tmp_path, calls)
  g.run()
  result = g.output(g.steps[1]) / 'step.json'
  result.unlink() if damage is None else result.write_bytes(damage)
  graph(tmp_path, calls).run()
  assert calls[3:] == ['second'] and g.result(g.steps[1])['name'] == 'second'


def test_a_resumable_step_whose_result_is_damaged_goes_on_from_what_it_left(tmp_path):
  graph = unfinished(tmp_path, {'rate': 1, 'seed': 0})
  graph.run()
  (graph.output(graph.steps[0]) / 'step.json').write_bytes(b'')
  graph.run()
  assert rates(graph) == ['1', '1']


def chain(workdir, calls, said, *, own=False, wanted=None):
  """A step that makes a file, a step that reads it, a third that nobody reads.

  Args:
    own: the first one's file has a checksum of its own, which a look at every byte notices.
    wanted: what the reader fails without.
  """
  def make(output, _):
    calls.append('make')
    for name in ('value', 'other'):
      pathlib.Path(output, name).write_text('right')

  def read(output, inputs):
    calls.append('read')
    with open(os.path.join(inputs['make'], 'value')) as f:
      value = f.read()
    if wanted and value != wanted:
      raise ValueError('unreadable')

  def fault(output, every_byte):
    looks.append(every_byte)
    path = pathlib.Path(output, 'value')
    return f'{path} is damaged' if every_byte and path.read_text() != 'right' else ''

  looks = []
  first = Step('make', make, fault=fault if own else None)
  second = Step('read', read, {'wanted': wanted}, needs=[first])
  graph = Graph([first, second], str(workdir), said.append)
  return graph, graph.output(first) / 'value', looks


@pytest.mark.parametrize('damage', ['rihgt', '', None])
def test_a_step_whose_files_are_damaged_is_done_again_and_says_so(tmp_path, damage):
  calls, said = [], []
  graph, value, _ = chain(tmp_path, calls, said)
  graph.run()
  value.unlink() if damage is None else value.write_text(damage)
  chain(tmp_path, calls, said)[0].run()
  assert calls == ['make', 'read', 'make'] and value.read_text() == 'right'
  assert any(f'{value} is {"missing" if damage is None else "damaged"}' in line for line in said)
  record = value.with_name('step.json')
  record.write_text(record.read_text().replace('"seconds": 0', '"seconds": 1'))
  chain(tmp_path, calls, said)[0].run()
  assert calls[3:] == ['make'] and any(f'{record} is damaged' in line for line in said)
  record.write_text(json.dumps({'seconds': 0.5, 'address': 'x'}))  # as older versions wrote it
  chain(tmp_path, calls, said)[0].run()
  assert calls[4:] == []


def test_what_was_deleted_to_make_room_is_not_made_again(tmp_path):
  calls = []
  graph, value, _ = chain(tmp_path, calls, [])
  graph.run()
  for file in (value, value.with_name('other')):
    file.unlink()
  graph.run()
  assert calls == ['make', 'read']


def test_what_a_failed_step_read_is_looked_through_and_made_again(tmp_path):
  """Every byte is read only then; what nobody is going to read is not looked at."""
  calls, said = [], []
  graph, value, looks = chain(tmp_path, calls, said, own=True)
  graph.run()
  value.write_text('rihgt')
  graph, _, looks = chain(tmp_path, calls, said, own=True)
  graph.run()
  assert looks == [] and calls == ['make', 'read']
  graph, _, looks = chain(tmp_path, calls, said, own=True, wanted='right')
  with pytest.raises(Damaged, match=r'value is damaged, and read failed.*unreadable'):
    graph.run()
  assert looks == [False, True]
  graph.run()
  assert calls == ['make', 'read', 'read', 'make', 'read'] and value.read_text() == 'right'
  graph, _, _ = chain(tmp_path, calls, said, own=True, wanted='left')
  with pytest.raises(ValueError, match=r'^unreadable'):  # its own fault
    graph.run()

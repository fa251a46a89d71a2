"""The step graph: addresses, nothing redone, nothing half-written, kills, two processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY

from experiments.engine.graph import Graph, Step


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
from experiments.engine.graph import Graph, Step
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

"""The live status: what files say of runs, and the server on loopback, in a browser if any."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
import rich.console
from conftest import REPOSITORY

from experiments import report
from smoljax.report import status_page


def make_run(folder: pathlib.Path, *, steps=10, rows=0, events=(), log='', done=False) -> None:
  folder.mkdir(parents=True)
  (folder / 'config.json').write_text(json.dumps({'train': {'steps': steps}}))
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(
    {'step': i + 1, 'train/loss': 5 - i / 4, 'perf/step_time': 2.0, 'perf/tokens_per_sec': 1234.5}
  ) + '\n' for i in range(rows)) + '{"step": 99, "torn')
  (folder / 'events.jsonl').write_text(''.join(json.dumps(e) + '\n' for e in events))
  (folder / 'log.txt').write_text(log)
  if done:
    (folder / 'report').mkdir()
    (folder / 'report/index.html').write_text('<title>a report</title>')
    (folder / 'summary.json').write_text(json.dumps({'seconds': {'report': 1.0}}))


@pytest.fixture
def sweep(tmp_path):
  points = tmp_path / 'points'
  make_run(points / 'busy', rows=4, log='step 4/10 | loss 4.0\n')
  make_run(points / 'finished', rows=10, done=True)
  make_run(points / 'wild', rows=3, events=[{'step': 3, 'event': 'diverged', 'loss': 'nan'}])
  make_run(points / 'refused', log='error: no such <file>\n')
  make_run(points / 'old', rows=2)
  for file in (points / 'old').iterdir():
    os.utime(file, (1e9, 1e9))
  return tmp_path


def test_states_are_those_of_the_files(sweep):
  found = {p.name: status_page.status(p, time.time()) for p in status_page.runs(sweep)}
  assert {k: s.state for k, s in found.items()} == {
    'busy': 'running', 'finished': 'done', 'wild': 'diverged', 'refused': 'failed',
    'old': 'stopped'}
  busy = found['busy']
  assert (busy.step, busy.steps, busy.left) == (4, 10, 12.0)
  assert found['old'].left is None and found['wild'].events[-1]['event'] == 'diverged'
  # The same command again: config.json is newer than the summary until the end.
  os.utime(sweep / 'points/finished/summary.json', (1e9, 1e9))
  assert status_page.status(sweep / 'points/finished', time.time()).state == 'running'


def test_a_single_run_and_nothing(tmp_path):
  make_run(tmp_path / 'run', rows=1)
  assert status_page.runs(tmp_path / 'run') == [tmp_path / 'run']
  with pytest.raises(FileNotFoundError, match='nothing runs in'):
    status_page.serve(str(tmp_path))


@pytest.fixture
def address(sweep):
  with status_page.serve(str(sweep)) as server:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.url
    server.shutdown()


def get(url: str, method: str = 'GET', **headers: str) -> str:
  request = urllib.request.Request(url, headers=headers, method=method)
  return urllib.request.urlopen(request).read().decode()


def at(address: str, path: str) -> str:
  return address.replace('/?', path + '?')


def test_the_server_shows_runs_and_their_reports(address):
  page = get(address)
  assert '1 diverged' not in page.split('</h1>')[1]
  assert re.search('<h1>[^<]*1 running[^<]*</h1>', page)
  assert 'error: no such &lt;file&gt;' in page and '<file>' not in page
  assert 'http-equiv="refresh"' in page and '4 of 10' in page and '1,234' in page
  link = re.search('href="(/points/finished/report/index.html[^"]*)"', page)[1]
  assert 'a report' in get(urllib.parse.urljoin(address, link))
  assert get(urllib.parse.urljoin(address, link), method='HEAD') == ''


@pytest.mark.parametrize('method', ['GET', 'HEAD'])
def test_the_server_answers_nobody_without_the_token(address, method):
  plain = address.partition('?')[0]
  page = plain + 'points/finished/report/index.html'
  with urllib.request.urlopen(address) as answer:
    cookie = answer.headers['Set-Cookie']
    assert 'HttpOnly' in cookie and 'SameSite=Strict' in cookie
    assert answer.headers['Referrer-Policy'] == 'no-referrer'
  get(page, method, Cookie=cookie.partition(';')[0])  # links within reports carry no token
  name = cookie.partition('=')[0]
  for url, headers in ((plain, {}), (page, {}), (plain + '?token=', {}), (address[:-1], {}),
                       (plain, {'Cookie': f'{name}=x'}), (address, {'Host': 'evil.example'}),
                       (plain, {'Cookie': cookie.partition(';')[0], 'Host': 'evil.example:80'})):
    with pytest.raises(urllib.error.HTTPError, match='403'):
      get(url, method, **headers)


def test_the_server_shows_pages_and_tables_alone(address, sweep):
  report = sweep / 'points/finished/report'
  (report / 'loss.csv').write_text('step,loss')
  assert get(at(address, '/points/finished/report/loss.csv')) == 'step,loss'
  (sweep.parent / 'secret.html').write_text('secret')
  (report / 'out.html').symlink_to(sweep.parent / 'secret.html')
  (report / 'config.html').symlink_to(sweep / 'points/finished/config.json')
  (sweep / 'points/away').symlink_to(sweep.parent)
  os.mkfifo(report / 'pipe.csv')
  for path in ('/../secret.html', '/%2e%2e/secret.html', '/points/finished/config.json',
               '/points/finished/', '/points', '/points/finished/report/out.html',
               '/points/finished/report/config.html', '/points/away/secret.html',
               '/points/finished/report/%00.html',
               '/points/finished/report/pipe.csv', '/nothing.html', '//etc/passwd'):
    with pytest.raises(urllib.error.HTTPError, match='404'):
      get(at(address, path))


def test_a_point_of_a_sweep_shows_its_report_which_lies_beside_it(sweep):
  (sweep / 'steps/report-1').mkdir(parents=True)
  (sweep / 'steps/report-1/index.html').write_text('shared')
  point = sweep / 'points/busy'
  (point / 'report').symlink_to('../../steps/report-1')
  assert status_page._read_page(point, '/report/index.html')[1] == b'shared'
  with pytest.raises(PermissionError):
    status_page._read_page(point, '/../finished/report/index.html')


@pytest.mark.skipif(not shutil.which('chromium'), reason='no browser')
def test_a_browser_draws_it(address):
  command = ['chromium', '--headless', '--no-sandbox', '--disable-gpu', '--dump-dom', address]
  dom = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
  assert dom.count('<tr>') == 6 and '<svg' in dom and 'Loss in training' in dom


def test_the_command_serves(sweep):
  command = [sys.executable, '-m', 'experiments.report', f'--workdir={sweep}', '--watch',
             '--port=0']
  with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
    url = re.search(r'http://127.0.0.1:\d+/\?token=[\w-]+', process.stdout.readline())[0]
    assert 'busy' in get(url)
    process.terminate()


def test_the_terminal_shows_the_same(sweep, capsys):
  found = status_page.statuses(sweep, time.time())
  rich.console.Console(width=160).print(report._states(found))
  lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
  assert re.search(r'running +4 of 10 +\S*▁ +4\.250 +1,23[45] +– +12\ss +step 4/10', lines['busy'])
  assert 'diverged' in lines['wild'] and 'error: no such <file>' in lines['refused']
  assert report._sparkline([3.0, 2.0, 1.0, float(1)], 24) == '█▅▁▁'
  assert len(report._sparkline(list(range(100)), 24)) == 24 and report._sparkline([], 24) == ''


def test_the_terminal_ends_when_nothing_runs(sweep):
  shutil.rmtree(sweep / 'points/busy')
  command = [sys.executable, '-m', 'experiments.report', '--live', f'--workdir={sweep}']
  wide = os.environ | {'COLUMNS': '160'}
  result = subprocess.run(
    command, cwd=REPOSITORY, capture_output=True, text=True, check=True, env=wide)
  assert 'stopped' in result.stdout and 'diverged' in result.stdout
  command[-1] = '--workdir=/nowhere'
  result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
  assert result.returncode == 2 and result.stderr.startswith('error: nothing runs in /nowhere')

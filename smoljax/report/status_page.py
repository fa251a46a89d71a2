"""What runs now: a page that follows a run, a sweep or a search by the files in its folder.

Nothing reports to it and it asks no process: `status` reads config.json, metrics.jsonl,
events.jsonl, log.txt and summary.json, so it works while things run, after a kill, and from another
machine that sees the disk. `serve` shows it on this machine's loopback address alone, with the
reports of finished runs behind it.
"""

import dataclasses
import functools
import http.server
import json
import os
import pathlib
import time
from typing import Any

from smoljax import metrics
from smoljax.report import charts
from smoljax.report.charts import Series, count, duration, figure, fixed, number, table, text

SILENT = 120  # seconds without a word after which a run counts as stopped
REFRESH = 5  # seconds between two looks of the browser
_HOSTS = ('localhost', '127.0.0.1', '[::1]')


@dataclasses.dataclass(frozen=True)
class Status:
  """One run, as its files tell."""

  name: str
  folder: pathlib.Path
  state: str  # running | done | stopped | diverged | failed
  step: int
  steps: int  # 0 while unknown
  row: dict[str, Any]  # the last of its metrics
  loss: list[tuple[float, float]]  # step, nats per token
  events: list[dict]  # all but starts, stages and ends
  word: str  # the last line of its log

  @property
  def left(self) -> float | None:
    """Seconds of training to go, at the pace of the last row."""
    pace = self.row.get('perf/step_time')
    return (self.steps - self.step) * pace if number(pace) and self.state == 'running' else None


def runs(workdir: str | pathlib.Path) -> list[pathlib.Path]:
  """The folders of a sweep's or a search's runs, or the run itself.

  Raises FileNotFoundError where there is neither.
  """
  root = pathlib.Path(workdir)
  found = sorted(p for p in root.glob('points/*') if p.is_dir())
  if not found and (root / 'config.json').exists():
    found = [root]
  if not found:
    raise FileNotFoundError(
      f'nothing runs in {workdir}: it has neither points/ (of experiments.sweep or search) nor the '
      'config.json that experiments.run begins with')
  return found


def status(folder: pathlib.Path, now: float) -> Status:
  """Reads a run's files; what is torn or missing is as if it had not been written yet."""
  log = folder / 'log.txt'
  config, summary = (_json(folder / n) for n in ('config.json', 'summary.json'))
  rows, events = (metrics.read_rows(folder / n, lambda torn: None)
                  for n in ('metrics.jsonl', 'events.jsonl'))
  rows = [r for r in rows if number(r.get('train/loss'))]
  lines = log.read_text('utf-8', 'replace').strip().splitlines() if log.exists() else []
  word = lines[-1] if lines else ''
  touched = max(_mtime(folder / n) for n in (
    'config.json', 'metrics.jsonl', 'events.jsonl', 'log.txt'))
  # The report is the last step of all.
  if 'report' in summary.get('seconds', {}) and (
    _mtime(folder / 'summary.json') >= _mtime(folder / 'config.json')):
    state = 'done'
  elif metrics.diverged(events):
    state = 'diverged'
  elif word.startswith('error:'):
    state = 'failed'
  else:
    state = 'running' if now - touched < SILENT else 'stopped'
  train = config.get('train', {})
  return Status(
    folder.name, folder, state, rows[-1]['step'] if rows else 0, train.get('steps', 0),
    rows[-1] if rows else {}, [(r['step'], r['train/loss']) for r in rows],
    [e for e in events if e.get('event') not in ('start', 'stage', 'branch', 'stop')], word)


def statuses(workdir: str | pathlib.Path, now: float) -> list[Status]:
  """Of all its runs, those first that want to be looked after.

  Raises FileNotFoundError as `runs` does.
  """
  order = ('diverged', 'failed', 'running', 'stopped', 'done')
  return sorted((status(p, now) for p in runs(workdir)), key=lambda s: order.index(s.state))


def _json(path: pathlib.Path) -> dict:
  try:
    value = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  return value if isinstance(value, dict) else {}


def _mtime(path: pathlib.Path) -> float:
  return path.stat().st_mtime if path.exists() else 0.0


def render(workdir: str | pathlib.Path, now: float | None = None) -> str:
  """The page, which asks for itself again every few seconds.

  Raises FileNotFoundError as `runs` does.
  """
  now = time.time() if now is None else now
  found = statuses(workdir, now)
  states = [s.state for s in found]
  tally = ', '.join(f'{states.count(k)} {k}' for k in dict.fromkeys(states))
  rows = []
  for s in found:
    page = s.folder / 'report' / 'index.html'
    name = text(s.name)
    if page.exists():
      at = page.relative_to(workdir).as_posix()
      name = f'<a href="/{text(at)}">{name}</a>'
    share = s.step / s.steps if s.steps else 0.0
    event = s.events[-1] if s.events else {}
    event_words = ' '.join(str(event[k]) for k in ('event', 'action', 'step') if k in event)
    rows.append((
      name, f'<b>{s.state}</b>', f'{charts.bar(share)} {count(s.step)} of {count(s.steps)}',
      fixed(s.row.get('train/loss'), 3), count(round(s.row.get('perf/tokens_per_sec') or 0)),
      duration(s.left) if s.left is not None else '', text(event_words),
      '' if s.state == 'done' else charts.excerpt(s.word, 60)))
  head = ('run', 'state', 'steps', 'loss', 'tokens/s', 'left', 'last event', 'last word')
  curves = [Series(s.name, charts.smooth(s.loss), i) for i, s in enumerate(
    s for s in found if s.loss and s.state != 'failed')][-12:]
  body = (
    f'<header><p class="kicker">smoljax · {text(workdir)}</p><h1>{tally}</h1><p class="lede">'
    f'{time.strftime("%H:%M:%S", time.localtime(now))}, again every {REFRESH} s.</p></header>'
    + table(head, rows, words=2)
    + (figure('Loss in training', charts.lines(
        curves, label='Loss in training', y_label='nats per token'), '') if curves else ''))
  page = charts.page(f'smoljax: {tally}', body)
  return page.replace('<head>', f'<head><meta http-equiv="refresh" content="{REFRESH}">', 1)


class _Handler(http.server.SimpleHTTPRequestHandler):
  """The status at '/', and the files of the workdir behind it; read only."""

  workdir = ''

  def do_GET(self) -> None:
    host = (self.headers.get('Host') or '').rpartition(':')[0] or self.headers.get('Host')
    if host not in _HOSTS:  # a foreign page whose name was pointed at this machine
      self.send_error(403, 'ask for localhost')
    elif self.path == '/':
      try:
        page, code = render(self.workdir), 200
      except OSError as e:
        page, code = charts.page('smoljax', f'<p class="missing">{text(e)}</p>'), 404
      data = page.encode()
      self.send_response(code)
      self.send_header('Content-Type', 'text/html; charset=utf-8')
      self.send_header('Content-Length', str(len(data)))
      self.end_headers()
      self.wfile.write(data)
    else:
      super().do_GET()

  def log_message(self, format: str, *args: Any) -> None:
    pass


def serve(workdir: str, port: int = 0) -> http.server.ThreadingHTTPServer:
  """A server on 127.0.0.1, not yet running; port 0 takes a free one (`server_address[1]`).

  Raises OSError where the port is taken or nothing runs in `workdir`.
  """
  runs(workdir)
  handler: Any = type('Handler', (_Handler,), {'workdir': os.path.abspath(workdir)})
  return http.server.ThreadingHTTPServer(
    ('127.0.0.1', port), functools.partial(handler, directory=handler.workdir))

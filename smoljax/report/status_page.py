"""What runs now: a page that follows a run, a sweep or a search by the files in its folder.

Nothing reports to it and it asks no process: `status` reads config.json, metrics.jsonl,
events.jsonl, log.txt and summary.json, so it works while things run, after a kill, and from another
machine that sees the disk. `serve` shows it on this machine's loopback address alone, with the
reports of finished runs behind it.
"""

import contextlib
import dataclasses
import http.cookies
import http.server
import json
import os
import pathlib
import secrets
import stat
import time
import urllib.parse
from typing import Any

from smoljax import metrics
from smoljax.report import charts
from smoljax.report.charts import Series, count, duration, figure, fixed, number, table, text

SILENT = 120  # seconds without a word after which a run counts as stopped
REFRESH = 5  # seconds between two looks of the browser
_KINDS = {'.html': 'text/html; charset=utf-8', '.csv': 'text/csv; charset=utf-8'}
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


def render(workdir: str | pathlib.Path, now: float | None = None, token: str = '') -> str:
  """The page, which asks for itself again every few seconds.

  With a token its links carry that, for browsers that keep no cookies.

  Raises FileNotFoundError as `runs` does.
  """
  now = time.time() if now is None else now
  found = statuses(workdir, now)
  states = [s.state for s in found]
  tally = ', '.join(f'{states.count(k)} {k}' for k in dict.fromkeys(states))
  if len(found) == 1:
    tally = f'{found[0].name}: {found[0].state}'
  rows = []
  for s in found:
    page = s.folder / 'report' / 'index.html'
    name = text(s.name)
    if page.exists():
      at = page.relative_to(workdir).as_posix()
      query = f'?token={token}' if token else ''
      name = f'<a href="/{text(at)}{query}">{name}</a>'
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
    s for s in found if len(s.loss) > 1 and s.state != 'failed')][-12:]
  body = (
    f'<header><p class="kicker">smoljax · {text(workdir)}</p><h1>{text(tally)}</h1><p class="lede">'
    f'{time.strftime("%H:%M:%S", time.localtime(now))}, again every {REFRESH} s.</p></header>'
    + table(head, rows, words=2, kind='status')
    + (figure('Loss in training', charts.lines(
        curves, label='Loss in training', y_label='nats per token'), '') if curves else ''))
  page = charts.page(f'smoljax: {tally}', body)
  return page.replace('<head>', f'<head><meta http-equiv="refresh" content="{REFRESH}">', 1)


class _Handler(http.server.BaseHTTPRequestHandler):
  """The status at '/', and the reports behind it: pages and CSV files of the workdir, read only.

  Whoever asks must know the token, as Jupyter has it: in the URL, or in the cookie that is given to
  whoever had it there. Others on this machine can reach the port, and browsers can be made to.
  """

  workdir, token = '', ''

  def do_GET(self) -> None:
    """Answers with a page, or 403 or 404."""
    self._answer()

  do_HEAD = do_GET

  def _answer(self) -> None:
    host = (self.headers.get('Host') or '').rpartition(':')[0] or self.headers.get('Host')
    if host not in _HOSTS:  # a foreign page whose name was pointed at this machine
      return self.send_error(403, 'ask for localhost')
    asked = urllib.parse.urlsplit(self.path)
    if not self._knows_token(asked.query):
      return self.send_error(403, 'the token is missing: open the address that --watch printed')
    if asked.path == '/':
      try:
        page, code = render(self.workdir, token=self.token), 200
      except OSError as e:
        page, code = charts.page('smoljax', f'<p class="missing">{text(e)}</p>'), 404
      return self._send(code, 'text/html; charset=utf-8', page.encode())
    try:
      kind, data = _read_page(pathlib.Path(self.workdir), urllib.parse.unquote(asked.path))
    except (OSError, ValueError):
      return self.send_error(404, 'no such page')
    return self._send(200, kind, data)

  def _knows_token(self, query: str) -> bool:
    cookies = http.cookies.SimpleCookie()
    with contextlib.suppress(http.cookies.CookieError):
      cookies.load(self.headers.get('Cookie') or '')
    given = [*urllib.parse.parse_qs(query).get('token', []),
             *(c.value for c in [cookies.get(self._cookie)] if c)]
    return any(secrets.compare_digest(g.encode(), self.token.encode()) for g in given)

  @property
  def _cookie(self) -> str:  # cookies are of a host, whatever the port
    address: Any = self.server.server_address
    return f'smoljax-{address[1]}'

  def _send(self, code: int, kind: str, data: bytes) -> None:
    self.send_response(code)
    for name, value in (
      ('Content-Type', kind), ('Content-Length', str(len(data))), ('Cache-Control', 'no-store'),
      ('X-Content-Type-Options', 'nosniff'), ('Referrer-Policy', 'no-referrer'),
      ('Set-Cookie', f'{self._cookie}={self.token}; Path=/; HttpOnly; SameSite=Strict')):
      self.send_header(name, value)
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(data)

  def log_message(self, format: str, *args: Any) -> None:
    """Says nothing: addresses hold the token."""


def _read_page(workdir: pathlib.Path, path: str) -> tuple[str, bytes]:
  """(content type, bytes) of a page or CSV file of the workdir.

  A run's report is a link to a step's folder, which the points of a sweep share. No other link that
  leads out of the workdir is followed.

  Raises OSError or ValueError for anything else.
  """
  root = workdir.resolve()
  places = [root, *[root.parents[1] / 'steps'] * (root.parent.name == 'points')]
  file = (root / path.lstrip('/')).resolve(strict=True)
  if not any(file.is_relative_to(p) for p in places) or file.suffix not in _KINDS:
    raise PermissionError(path)
  with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), 'rb') as f:
    if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
      raise PermissionError(path)
    return _KINDS[file.suffix], f.read()


class Server(http.server.ThreadingHTTPServer):
  """With the address to open, which has the token that it asks for."""

  url = ''


def serve(workdir: str, port: int = 0) -> Server:
  """A server on 127.0.0.1, not yet running; port 0 takes a free one.

  Raises OSError where the port is taken or nothing runs in `workdir`, ValueError for no port.
  """
  if not 0 <= port < 65536:
    raise ValueError(f'--port={port}: give 1 to 65535, or 0 for a free one')
  runs(workdir)
  token = secrets.token_urlsafe(24)
  handler: Any = type('Handler', (_Handler,), {
    'workdir': os.path.abspath(workdir), 'token': token})
  server = Server(('127.0.0.1', port), handler)
  server.url = f'http://127.0.0.1:{server.server_address[1]}/?token={token}'
  return server

"""What the report looks like: numbers in words, charts as inline SVG, tables, the style sheet.

Positions are percentages of the plot area and only paths are stretched (a nested viewBox with
`preserveAspectRatio="none"`), so text and strokes keep their size on a phone and on a wall. Colours
are CSS variables, so one drawing serves the light and the dark theme.
"""

import csv
import dataclasses
import html
import io
import itertools
import math
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import TypeGuard

# C0 and C1 controls but tab and newline, bidirectional marks, embeddings, overrides and isolates,
# lone surrogates, invisible tag characters.
_UNWANTED = re.compile('[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069'
                       '\ufeff\ud800-\udfff\U000e0000-\U000e007f]')

Points = Sequence[tuple[float, float]]
Bin = tuple[float, float, int]  # from, to, how many


@dataclasses.dataclass(frozen=True)
class Series:
  """One line: points in order of x (NaN breaks the line), a palette index, and how to draw it."""

  label: str  # '' keeps it out of the legend
  points: Points
  color: int = 0
  style: str = 'line'  # line | faint (under a smoothed one) | dots (and a line) | points | area


def clean(s: object) -> str:
  """Text without control and bidirectional characters; bytes are read as UTF-8."""
  return _UNWANTED.sub('', s.decode('utf-8', 'replace') if isinstance(s, bytes) else str(s))


def text(s: object) -> str:
  """`clean`, and safe inside an element or a quoted attribute."""
  return html.escape(clean(s), quote=True)


def excerpt(s: object, limit: int, *, tail: bool = False, lines: bool = False) -> str:
  """The first (or last) `limit` characters, escaped; line breaks become spaces unless `lines`."""
  s = clean(s).strip()
  s = re.sub(r'[ \t]*\n\s*', '\n', s) if lines else ' '.join(s.split())
  if len(s) > limit:
    s = '… ' + s[-limit:] if tail else s[:limit] + ' …'
  return html.escape(s, quote=True)


def number(x: object) -> TypeGuard[float]:
  """Whether x is a finite int or float, and no bool."""
  return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def fixed(x: object, digits: int = 2) -> str:
  """With so many decimals; '–' for what is no number."""
  return f'{x:,.{digits}f}' if number(x) else '–'


def spread(mean: float, half: float, sign: str = '') -> str:
  """A mean with half its interval, which is left out where it is infinite; '–' for no number."""
  if not number(mean):
    return '–'
  return f'{mean:{sign}.4f}' + (f' ± {half:.4f}' if math.isfinite(half) else '')


def percent(x: object, digits: int = 1) -> str:
  """A share in percent; '–' for what is no number."""
  return f'{100 * x:.{digits}f}%' if number(x) else '–'


def count(x: object) -> str:
  """A whole number with thousands apart; '–' for what is no number."""
  return f'{x:,.0f}' if number(x) else '–'


def duration(seconds: object) -> str:
  """Seconds in the two largest units that fit; '–' for what is no number."""
  if not number(seconds):
    return '–'
  if seconds < 60:
    return f'{seconds:.{1 if seconds < 10 else 0}f}\u00a0s'
  minutes = round(seconds / 60)
  if seconds < 3600:
    return f'{int(seconds // 60)}\u00a0min {int(seconds % 60):02d}\u00a0s'
  return f'{minutes // 60}\u00a0h {minutes % 60:02d}\u00a0min'


def compact(x: object, digits: int = 3) -> str:
  """1234567 → '1.23M'; whole numbers under 10,000 in full; '–' for what is no finite number."""
  if not number(x):
    return '–'
  if abs(x) < 1e4:
    return f'{x:,.0f}' if x == int(x) or abs(x) >= 1000 else f'{x:.{digits}g}'
  for unit, size in (('T', 1e12), ('B', 1e9), ('M', 1e6), ('k', 1e3)):
    if abs(x) >= 0.9995 * size:
      scaled = f'{x / size:.{max(0, digits - 1 - int(math.log10(abs(x) / size + 1e-9)))}f}'
      return (scaled.rstrip('0').rstrip('.') if '.' in scaled else scaled) + unit
  raise AssertionError(x)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
  """About `about` round numbers within [low, high]."""
  if not high > low:
    return [low]
  raw = (high - low) / about
  size = 10 ** math.floor(math.log10(raw))
  size *= min((1, 2, 2.5, 5, 10), key=lambda m: abs(m * size - raw))
  first = math.ceil(low / size - 1e-9)
  return [k * size for k in range(first, math.floor(high / size + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
  """Logarithms of powers of ten, and of 2 and 5 times them if they are few, within [low, high]."""
  for factors in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
    found = [math.log10(f) + k for k in range(math.floor(low), math.ceil(high)) for f in factors]
    found = [x for x in [*found, math.ceil(high)] if low <= x <= high]
    if len(found) >= 4:
      return found[:: -(-len(found) // 8)]
  return found or ticks(low, high)


def _power(x: float) -> str:
  return compact(x) if 1e-3 <= x < 1e13 else f'{x:.0e}'.replace('e+', 'e').replace('e-0', 'e-')


def smooth(points: Points) -> list[tuple[float, float]]:
  """Mean over a window of about a thirtieth of the points around each; skips NaN.

  Early on the window shrinks to stay centred, or it would lag behind a steep descent.
  """
  points = [p for p in points if math.isfinite(p[1])]
  sums = list(itertools.accumulate((y for _, y in points), initial=0.0))
  out = []
  for i, (x, _) in enumerate(points):
    half = min(i, len(points) // 60)
    end = min(i + half + 1, len(points))
    out.append((x, (sums[end] - sums[i - half]) / (end - i + half)))
  return out


def thin(points: Points, limit: int = 800) -> list[tuple[float, float]]:
  """At most about `limit` points: the lowest and the highest of each stretch, so spikes survive."""
  if len(points) <= limit:
    return list(points)
  size = math.ceil(2 * len(points) / limit)
  kept = []
  for i in range(0, len(points), size):
    part = [p for p in points[i : i + size] if math.isfinite(p[1])]
    ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])} if part else ()
    kept += sorted(ends)
  return kept


def _path(points: Points, x_at, y_at) -> str:
  """SVG path data in a box of 1000 × 1000."""
  out, pen = [], 'M'
  for x, y in points:
    if not (math.isfinite(x) and math.isfinite(y)):
      pen = 'M'
      continue
    out.append(f'{pen}{10 * x_at(x):.1f} {10 * y_at(y):.1f}')
    pen = 'L'
  return ''.join(out)


def _axes(x_ticks, y_ticks, x_label: str, y_label: str) -> str:
  """Grid lines and tick texts; ticks are (percent, text)."""
  out = []
  for at, name in y_ticks:
    out.append(f'<line class="grid" x1="0" x2="100%" y1="{at:.2f}%" y2="{at:.2f}%"/>')
    out.append(f'<text class="y" x="-8" y="{at:.2f}%" dy=".32em">{text(name)}</text>')
  for at, name in x_ticks:
    out.append(f'<text class="x" x="{at:.2f}%" y="100%" dy="1.6em">{text(name)}</text>')
  out.append('<line class="axis" x1="0" x2="100%" y1="100%" y2="100%"/>')
  if x_label:
    out.append(f'<text class="x name" x="100%" y="100%" dy="3em">{text(x_label)}</text>')
  out.append(f'<text class="name" x="-46" y="-12">{text(y_label)}</text>')
  return ''.join(out)


def _svg(body: str, label: str, height: int) -> str:
  return (f'<div class="plot"><svg role="img" aria-label="{text(label)}" width="100%" '
          f'height="{height}">{body}</svg></div>')


def legend(series: Sequence[Series]) -> str:
  """Names beside their colours; nothing for a single name."""
  names = [s for s in series if s.label]
  if len(names) < 2:
    return ''
  keys = ''.join(f'<span class="key {s.style} c{s.color % 6 + 1}">{text(s.label)}</span>'
                 for s in names)
  return f'<div class="legend">{keys}</div>'


def lines(series: Sequence[Series], *, label: str, y_label: str, x_label: str = 'step',
          height: int = 280, bands: Sequence[tuple[str, float, float]] = (),
          rule: tuple[str, float] | None = None, from_zero: bool = False,
          x_range: tuple[float, float] | None = None, percent: bool = False,
          log: str = '') -> str:
  """A line chart with its legend.

  Args:
    series: what to draw, first at the back.
    label: what a screen reader says.
    y_label: the unit, above the axis.
    x_label: the unit, at the end of the axis.
    height: of the plot area, in pixels.
    bands: (name, from, to) stretches of x, shaded in turn: the stages of a run.
    rule: a dashed horizontal line with its name.
    from_zero: start the y axis at 0.
    x_range: for charts that share an axis.
    percent: y is a share; ticks read as per cent.
    log: the axes that are logarithmic: '', 'x', 'y' or 'xy'; without bands, rule and x_range.
  """
  scale = {axis: math.log10 if axis in log else float for axis in 'xy'}
  series = [dataclasses.replace(s, points=[(scale['x'](x), scale['y'](y)) for x, y in
                                           thin(s.points)]) for s in series]
  xs = [x for s in series for x, _ in s.points]
  ys = [y for s in series for _, y in s.points if math.isfinite(y)]
  ys += ([rule[1]] if rule else []) + ([0.0] if from_zero else [])
  if not xs or not ys:
    return '<p class="missing">Nothing finite to draw.</p>'
  left, right = x_range or (min(xs), max(xs))
  low, high = min(ys), max(ys)
  pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
  low, high = (low if from_zero and low == 0 else low - pad), high + pad
  if any(name for name, *_ in bands):  # room for the names above the lines
    high += (high - low) * 18 / height
  x_at = lambda x: 100 * (x - left) / ((right - left) or 1)
  y_at = lambda y: 100 * (high - y) / (high - low)
  y_text = (lambda y: f'{100 * y:.3g}%') if percent else compact

  body, names = [], []
  for i, (name, start, end) in enumerate(bands):
    at, to = x_at(max(start, left)), x_at(min(end, right))
    place = (f'<svg class="band {"odd" if i % 2 else ""}" x="{at:.2f}%" '
             f'width="{max(0, to - at):.2f}%" height="100%">')
    body.append(f'{place}<rect width="100%" height="100%"/></svg>')
    names.append(f'{place}<text x="6" y="1.3em">{text(name)}</text></svg>')
  x_ticks, y_ticks = (
    [(at(t), _power(10**t)) for t in log_ticks(a, b)] if axis in log else
    [(at(t), name(t)) for t in ticks(a, b, about)]
    for axis, at, name, a, b, about in (
      ('x', x_at, compact, left, right, 6), ('y', y_at, y_text, low, high, max(3, height // 56))))
  body += [_axes(x_ticks, y_ticks, x_label, y_label), *names]  # no grid line over the names
  if rule:
    at = y_at(rule[1])
    body.append(f'<line class="rule" x1="0" x2="100%" y1="{at:.2f}%" y2="{at:.2f}%"/>'
                f'<text class="rule" x="100%" y="{at:.2f}%" dy="-.45em">{text(rule[0])}</text>')
  paths, marks = [], []
  for s in series:
    color, data = f'c{s.color % 6 + 1}', _path(s.points, x_at, y_at)
    finite = [p for p in s.points if math.isfinite(p[1])]
    if s.style == 'area' and finite:
      first, last = x_at(finite[0][0]) * 10, x_at(finite[-1][0]) * 10
      floor = 10 * y_at(low)
      paths.append(f'<path class="fill {color}" d="{data}L{last:.1f} {floor:.1f}'
                   f'L{first:.1f} {floor:.1f}Z"/>')
    if s.style != 'points':
      paths.append(f'<path class="{s.style} {color}" d="{data}"/>')
    for x, y in {'dots': finite, 'points': finite, 'faint': []}.get(s.style, finite[-1:]):
      marks.append(f'<circle class="{color}" cx="{x_at(x):.2f}%" cy="{y_at(y):.2f}%" r="3.5"/>')
  body.append('<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" '
              f'height="100%">{"".join(paths)}</svg>{"".join(marks)}')
  return legend(series) + _svg(''.join(body), label, height)


def log_histogram(values: Sequence[float], bins_per_decade: int = 8) -> list[Bin]:
  """Counts of positive values in bins of equal ratio, from the first to the last that is hit."""
  places = [math.floor(math.log10(v) * bins_per_decade) for v in values if v > 0]
  if not places:
    return []
  edge = lambda k: 10 ** (k / bins_per_decade)
  return [(edge(k), edge(k + 1), places.count(k)) for k in range(min(places), max(places) + 1)]


def histogram(bins: Sequence[Bin], *, label: str, x_label: str,
              color: int = 0, height: int = 180) -> str:
  """Bars over a logarithmic x axis, as `log_histogram` counts them."""
  if not bins:
    return '<p class="missing">Nothing to count.</p>'
  left, right = math.log10(bins[0][0]), math.log10(bins[-1][1])
  high = 1.05 * max(count for *_, count in bins)
  x_at = lambda x: 100 * (math.log10(x) - left) / (right - left)
  marks = [m * 10.0**k for k in range(math.floor(left), math.ceil(right) + 1)
           for m in ((1,) if right - left > 2 else (1, 2, 5))]
  body = [_axes([(x_at(t), compact(t)) for t in marks if left <= math.log10(t) <= right],
                [(100 - 100 * t / high, compact(t)) for t in ticks(0, high, 3)],
                x_label, 'documents')]
  for start, end, count in bins:
    tall = 100 * count / high
    body.append(f'<rect class="bar c{color % 6 + 1}" x="{x_at(start) + 0.2:.2f}%" '
                f'y="{100 - tall:.2f}%" width="{x_at(end) - x_at(start) - 0.4:.2f}%" '
                f'height="{tall:.2f}%"/>')
  return _svg(''.join(body), label, height)


def bar(share: float, *, color: int = 0, rest: float = 0.0, error: float = 0.0,
        mark: float | None = None) -> str:
  """One horizontal bar for a table cell; all numbers are shares of the full width.

  Args:
    share: the bar.
    color: palette index.
    rest: drawn after it in the colour of loss: what a stage dropped.
    error: half the length of a whisker around the bar's end.
    mark: a thin vertical line: the level of chance.
  """
  clip = lambda x: min(max(x, 0.0), 1.0) * 100
  body = f'<rect class="bar c{color % 6 + 1}" width="{clip(share):.2f}%" height="100%" rx="2"/>'
  if rest > 0:
    body += (f'<rect class="lost" x="{clip(share):.2f}%" '
             f'width="{clip(share + rest) - clip(share):.2f}%" height="100%" rx="2"/>')
  if mark is not None:
    body += f'<line class="mark" x1="{clip(mark):.2f}%" x2="{clip(mark):.2f}%" y1="-4" y2="18"/>'
  if error > 0:
    body += (f'<line class="error" x1="{clip(share - error):.2f}%" '
             f'x2="{clip(share + error):.2f}%" y1="50%" y2="50%"/>')
  return f'<svg class="cell" width="100%" height="14" aria-hidden="true">{body}</svg>'


def table(head: Sequence[str], body: Iterable[Sequence[str]], *, words: int = 1,
          kind: str = '') -> str:
  """Cells are HTML already; the first `words` columns hold text, the others numbers."""
  side = lambda i: '' if i < words else ' class="num"'
  top = ''.join(f'<th{side(i)}>{h}</th>' for i, h in enumerate(head))
  rows = ''.join('<tr>' + ''.join(f'<td{side(i)}>{c}</td>' for i, c in enumerate(row)) + '</tr>'
                 for row in body)
  return f'<div class="wide"><table class="{kind}"><tr>{top}</tr>{rows}</table></div>'


def figure(title: str, body: str, link: str, note: str = '') -> str:
  """A figure with its title, the link to its table, and a note under it."""
  note = f'<p class="note">{note}</p>' if note else ''
  return f'<figure><figcaption><b>{title}</b>{link}</figcaption>{note}{body}</figure>'


def section(anchor: str, title: str, *parts: str) -> str:
  """A section of a page, with an anchor that the page's contents link to."""
  return f'<section id="{anchor}"><h2>{title}</h2>{"".join(parts)}</section>'


def missing(what: str, why: str) -> str:
  """A paragraph in place of a figure whose data are not there."""
  return f'<p class="missing">No {what}: {why}.</p>'


def page(title: str, body: str) -> str:
  """A whole page that loads nothing; `body` is HTML already."""
  return (f'<!doctype html><html lang="en"><head><meta charset="utf-8">{CSP}'
          '<meta name="viewport" content="width=device-width, initial-scale=1">'
          f'<meta name="color-scheme" content="light dark"><title>{text(title)}</title>'
          f'<style>{CSS}</style></head><body><main>{body}</main></body></html>\n')


class Site:
  """A folder in the making: one page, and the CSV files that it links."""

  def __init__(self):
    self._tables: dict[str, str] = {}

  def csv(self, name: str, head: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Adds a table; returns the link to it."""
    name = re.sub(r'[^A-Za-z0-9_-]', '_', name) + '.csv'
    file = io.StringIO()
    out = csv.writer(file, lineterminator='\n')
    out.writerow(head)
    # A leading quote keeps a spreadsheet from running a cell of the corpus as a formula.
    guard = lambda x: "'" + x if isinstance(x, str) and x[:1] in tuple('=+-@\t') else x
    out.writerows([guard(clean(x) if isinstance(x, str) else x) for x in row] for row in rows)
    self._tables[name] = file.getvalue()
    return f'<a class="csv" href="{name}">CSV</a>'

  def write(self, folder: pathlib.Path, title: str, body: str) -> str:
    """Writes the tables and the page (`body` is HTML already); returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [*self._tables.items(), ('index.html', page(title, body))]  # it links the rest
    for file, content in files:
      (folder / f'.{file}.tmp').write_text(content, 'utf-8')
      os.replace(folder / f'.{file}.tmp', folder / file)
    return str(folder / 'index.html')


def join(words: Sequence[str]) -> str:
  """Words as in a sentence: 'a, b and c'."""
  return ' and '.join(part for part in (', '.join(words[:-1]), *words[-1:]) if part)


CSP = ('<meta http-equiv="Content-Security-Policy" '
       'content="default-src \'none\'; style-src \'unsafe-inline\'; img-src data:">')

CSS = '''
:root { --paper: #fdfdfc; --ink: #1d2126; --muted: #626a73; --line: #e3e5e7; --wash: #f4f5f5;
  --lost: #efc9b4; --good: #17704c;
  --accent-1: #2563a8; --accent-2: #c2570f; --accent-3: #0f766e; --accent-4: #7a4fc0;
  --accent-5: #b3296b; --accent-6: #8b939b; }
@media screen and (prefers-color-scheme: dark) { :root {
  --paper: #15181b; --ink: #e4e7ea; --muted: #9aa3ac; --line: #2d3237; --wash: #1d2125;
  --lost: #6b4433; --good: #6fd3a4;
  --accent-1: #6eb0f5; --accent-2: #f39a55; --accent-3: #4fc9b8; --accent-4: #b79bf2;
  --accent-5: #f083b4; --accent-6: #78818a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: break-word;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue",
    "Liberation Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 3.5rem 2rem 6rem; }
h1 { font-size: clamp(1.7rem, 4.2vw, 2.7rem); line-height: 1.15; letter-spacing: -.02em;
  font-weight: 650; margin: .3rem 0 1.2rem; max-width: 24em; text-wrap: balance; }
h2 { font-size: 1.55rem; letter-spacing: -.01em; margin: 0 0 .6rem; font-weight: 650; }
h3 { font-size: 1.1rem; margin: 2.4rem 0 .4rem; font-weight: 650; }
h4 { font-size: .95rem; margin: 1.4rem 0 .4rem; color: var(--muted); font-weight: 600; }
section { margin-top: 4.5rem; padding-top: 1.6rem; border-top: 1px solid var(--line); }
.kicker { color: var(--muted); font-size: .9rem; margin: 0; }
.lede { font-size: 1.12rem; max-width: 46rem; margin: 0; }
.note { color: var(--muted); font-size: .92rem; max-width: 46rem; margin: .1rem 0 .6rem; }
.missing { color: var(--muted); font-size: .92rem; border-left: 3px solid var(--line);
  padding: .2rem 0 .2rem .8rem; }
.warning { border-left: 3px solid var(--accent-2); padding: .2rem 0 .2rem .8rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; margin-top: 2rem; font-size: .92rem; }
a { color: var(--accent-1); text-decoration-thickness: 1px; text-underline-offset: 3px; }
a:focus-visible, summary:focus-visible { outline: 2px solid var(--accent-1); outline-offset: 2px; }
.flow { list-style: none; margin: 2.6rem 0 0; padding: 1.3rem 0; display: grid;
  grid-template-columns: repeat(6, 1fr); border: solid var(--line); border-width: 1px 0; }
.flow li { padding: 0 .6rem 0 1.5rem; position: relative; }
.flow li:first-child { padding-left: 0; }
.flow li + li::before { content: "→"; position: absolute; left: 0; top: 1.35rem;
  color: var(--muted); }
.flow span, .flow small { display: block; color: var(--muted); font-size: .84rem;
  line-height: 1.35; }
.flow b { display: block; font-size: 1.5rem; line-height: 1.3; font-weight: 650;
  white-space: nowrap; font-variant-numeric: tabular-nums; letter-spacing: -.01em; }
figure { margin: 2.2rem 0 0; break-inside: avoid; }
figcaption { display: flex; justify-content: space-between; gap: 1rem; align-items: baseline; }
.csv { font-size: .82rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr));
  gap: 0 2.6rem; }
.grid.three { grid-template-columns: repeat(auto-fit, minmax(min(100%, 280px), 1fr));
  gap: 0 .8rem; }
.grid > * { min-width: 0; }
.wide { overflow-x: auto; padding: 4px 0; background:
  linear-gradient(90deg, var(--paper) 40%, transparent) left / 2.4rem 100% no-repeat local,
  linear-gradient(270deg, var(--paper) 40%, transparent) right / 2.4rem 100% no-repeat local,
  linear-gradient(90deg, var(--line), transparent) left / .8rem 100% no-repeat scroll,
  linear-gradient(270deg, var(--line), transparent) right / .8rem 100% no-repeat scroll; }
td:first-child, table.status td:last-child { overflow-wrap: anywhere; }
table.funnel td:first-child { overflow-wrap: normal; white-space: nowrap; }
table:not(.bars, .funnel) th:first-child, table.status th:last-child { min-width: 7rem; }
table.status th:last-child, table.status td:last-child { text-align: left; }
table { border-collapse: collapse; width: 100%; font-size: .92rem;
  font-variant-numeric: tabular-nums; margin: .4rem 0; }
th { text-align: left; font-weight: 500; color: var(--muted); font-size: .84rem; }
th, td { padding: .34rem .9rem .34rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); }
.num { text-align: right; white-space: nowrap; }
th.num { white-space: normal; vertical-align: bottom; }
th:last-child, td:last-child { padding-right: 0; }
table.good { max-width: 60rem; margin-top: 1.2rem; }
table.good .num { text-align: left; white-space: normal; }
table.good td:nth-child(2) { font-size: 1.25rem; line-height: 1.2; }
td small { display: block; color: var(--muted); }
table.bars td { border: 0; vertical-align: middle; padding-block: .22rem; }
table.bars td:has(svg) { width: 48%; }
table.bars td svg { margin-block: 2px; }
table.funnel td { border: 0; padding-bottom: 0; vertical-align: middle; }
table.funnel td.bar { width: 55%; }
table.funnel td.why { color: var(--muted); font-size: .84rem; padding: .1rem 0 .55rem;
  border-bottom: 1px solid var(--line); line-height: 1.4; }
table.funnel tr:not(.first) td:first-child { border-bottom: 1px solid var(--line); }
td.lost { color: var(--muted); }
table.events td:nth-child(3) { overflow-wrap: anywhere; width: 55%; }
blockquote { margin: 0 0 .7rem; padding: .7rem .9rem; background: var(--wash); border-radius: 6px;
  font-size: .9rem; line-height: 1.5; white-space: pre-line; overflow: hidden;
  overflow-wrap: anywhere; break-inside: avoid; }
mark { background: var(--lost); color: inherit; border-radius: 3px; padding: 0 .15em; }
cite { display: block; font-style: normal; color: var(--muted); font-size: .8rem;
  margin-top: .3rem; }
.sample { font-family: Georgia, "Liberation Serif", serif; font-size: 1rem; }
.sample cite { font-family: system-ui, sans-serif; }
summary { cursor: pointer; color: var(--muted); font-size: .9rem; }
.reject { border-bottom: 1px solid var(--line); }
.reject summary { display: grid; grid-template-columns: 1rem 15rem 11rem 1fr; gap: 0 .4rem;
  padding: .38rem 0; list-style: none; align-items: baseline; }
.reject summary::before { content: "+"; }
.reject[open] summary::before { content: "−"; }
.reject summary > * { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.reject summary b { font-weight: 600; color: var(--ink); }
.reject summary small { font-size: .84rem; font-variant-numeric: tabular-nums; }
.reject[open] summary > span { visibility: hidden; }
.reject .grid { gap: 0 .8rem; }
.reject .grid, .reject .note { margin-left: 1.4rem; }
.question { margin: 1.2rem 0; padding: 1rem 1.2rem; background: var(--wash); border-radius: 6px;
  font-size: .92rem; break-inside: avoid; overflow-wrap: anywhere; }
.question p { margin: .3rem 0 .6rem; }
.question ol { margin: 0; padding-left: 1.6rem; color: var(--muted); }
.question li { margin: .25rem 0; padding-left: .2rem; }
.question li.right, .question li.chosen { color: var(--ink); }
.question em { font-style: normal; font-size: .8rem; font-weight: 600; margin-left: .6rem;
  white-space: nowrap; color: var(--accent-2); }
.question li.right em { color: var(--good); }
pre { background: var(--wash); border-radius: 6px; padding: .9rem 1.1rem; white-space: pre-wrap;
  overflow-wrap: anywhere;
  font: .85rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
code { font: .88em ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
@media (max-width: 760px) {
  main { padding: 1.8rem 1.1rem 4rem; }
  .flow { grid-template-columns: 1fr 1fr; gap: 1.1rem 0; }
  .flow li, .flow li:first-child { padding-left: 1.4rem; }
  .flow li:first-child::before { content: ""; }
  .reject summary { grid-template-columns: 1rem 1fr auto; }
  .reject summary > span { grid-column: 2 / 4; }
  .reject[open] summary > span { display: none; }
  section { margin-top: 3rem; }
  .plot { margin-left: 42px; }
  table { font-size: .86rem; }
  th, td { padding-right: .6rem; }
  th, th.num { white-space: normal; vertical-align: bottom; }
  table.funnel td.bar { width: 36%; }
  table.funnel td.lost, table.funnel th.lost { display: none; }
  table.bars td:has(svg) { width: 34%; }
}
@media print {
  body { font-size: 10pt; }
  h2, h3, h4, figcaption, .note { break-after: avoid; }
  .grid { grid-template-columns: 1fr 1fr; }
  .grid.three { grid-template-columns: 1fr 1fr 1fr; }
  main { max-width: none; padding: 0; }
  nav, .csv, .config { display: none; }
  section { margin-top: 2rem; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
.plot { margin: 30px 10px 44px 50px; }
svg { display: block; overflow: visible; }
svg text { font-size: 12px; fill: var(--muted); font-variant-numeric: tabular-nums;
  paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
svg text.y, svg text.rule { text-anchor: end; }
svg text.x { text-anchor: middle; }
svg text.x.name { text-anchor: end; }
svg text.rule { fill: var(--ink); stroke-width: 4px; }
.c1 { --c: var(--accent-1); } .c2 { --c: var(--accent-2); } .c3 { --c: var(--accent-3); }
.c4 { --c: var(--accent-4); } .c5 { --c: var(--accent-5); } .c6 { --c: var(--accent-6); }
svg path { fill: none; stroke: var(--c); stroke-width: 2px; stroke-linejoin: round;
  stroke-linecap: round; vector-effect: non-scaling-stroke; }
svg path.faint { stroke-width: 1px; opacity: .35; }
svg path.dots { stroke-width: 1.5px; stroke-dasharray: 2 4; }
svg path.fill { stroke: none; fill: var(--c); opacity: .14; }
svg circle { fill: var(--c); stroke: var(--paper); stroke-width: 1.5px; }
svg rect.bar { fill: var(--c); }
svg rect.lost { fill: var(--lost); }
svg.band { overflow: hidden; }
svg.band rect { fill: var(--ink); opacity: .025; }
svg.band.odd rect { opacity: .065; }
svg line { stroke: var(--line); stroke-width: 1px; }
svg line.axis { stroke: var(--muted); }
svg line.rule { stroke: var(--ink); stroke-dasharray: 5 4; }
svg line.mark { stroke: var(--ink); stroke-width: 1.5px; }
svg line.error { stroke: var(--ink); stroke-width: 1.5px; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .85rem;
  color: var(--muted); margin-top: .4rem; }
.key { overflow-wrap: anywhere; min-width: 0; }
.key::before { content: ""; display: inline-block; width: 18px; height: 0; margin-right: .45em;
  vertical-align: middle; border-top: 3px solid var(--c); }
.key.dots::before { border-top-style: dotted; }
.key.faint::before { border-top-width: 1px; opacity: .5; }
'''

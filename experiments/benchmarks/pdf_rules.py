"""How many of olmOCR-bench's rules about single facts of pages hold in our text, beside pdftotext.

  python -m experiments.benchmarks.pdf_rules --data=DIR [--ocr=auto] [--failed=FILE]

`--data` is a folder of that benchmark's form: rules in `*.jsonl`, the files that they name in
`pdfs/`. A sample is published with it (github.com/allenai/olmocr, olmocr/bench/sample_data,
Apache-2.0): 100 rules on 21 files. One JSON line a tool: passed and asked by kind of rule.
- present, absent: a text is there, or is not, with at most `max_diffs` of its characters else,
  letters' case and the first or last characters of the page as the rule says.
- order: one text stands before another.
- table: a cell of a table in Markdown or HTML has these neighbours, and stands under these heads.
- baseline: a page is blank, or is not, and does not end in repetitions.
- math: a formula as TeX. The benchmark compares pictures of both; here the TeX must be the same but
  for spaces and the commands that change none, which is stricter. The text layer has no TeX, so
  `score` leaves these out.

Read from olmocr/bench/tests.py and table_parsing.py, and written anew; `rapidfuzz`'s and
`fuzzysearch`'s measures are computed here.
"""
import collections
import itertools
import json
import pathlib
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import app, flags
from lxml import html

from data_beam.pdf import text as pdf_text
from data_beam.pdf.errors import PdfError

_DATA = flags.DEFINE_string('data', None, 'Folder with *.jsonl and pdfs/.', required=True)
_OCR = flags.DEFINE_enum('ocr', 'auto', pdf_text.OCR_MODES, 'As of data_beam.pdf.')
_FAILED = flags.DEFINE_string('failed', None, 'File for the rules that do not hold, JSON lines.')
UNSCORED = ('math',)
_PLAIN = str.maketrans({**dict.fromkeys('‘’‚', "'"), **dict.fromkeys('“”„', '"'), '＿': '_',
                        **dict.fromkeys('–—‑‒−', '-'), 'µ': 'μ'})
_FOREIGN = re.compile('[\u3040-\u30ff\u4e00-\u9fff\U0001f1e0-\U0001f1ff\U0001f300-\U0001f5ff'
                      '\U0001f600-\U0001f64f\U0001f680-\U0001f6ff]')
# A table: which cell stands at each place of the grid, and the cells' texts.
Table = tuple[list[list[int | None]], list[str], set[int]]


def plain(text: str) -> str:
  """Without Markdown's and HTML's marks of bold and italics, quotes and dashes as in ASCII."""
  text = re.sub(r'<br/?>', ' ', text)
  text = re.sub(r'\*\*(.*?)\*\*', r'\1', text)
  text = re.sub(r'__(.*?)__', r'\1', text)
  text = re.sub(r'</?[bi]>', '', text)
  text = re.sub(r'(\*|_)(.*?)\1', r'\2', text)
  return unicodedata.normalize('NFC', re.sub(r'\s+', ' ', text)).translate(_PLAIN)


def common(a: str, b: str) -> int:
  """Length of the longest common subsequence, by bits (Hyyrö 2004)."""
  where: dict[str, int] = collections.defaultdict(int)
  for i, c in enumerate(a):
    where[c] |= 1 << i
  row = full = (1 << len(a)) - 1
  for c in b:
    matched = row & where[c]
    row = (row + matched | row - matched) & full
  return len(a) - row.bit_count()


def ratio(a: str, b: str) -> float:
  """Twice the common subsequence over both lengths: rapidfuzz's `ratio`, 0 to 1."""
  return 2 * common(a, b) / (len(a) + len(b)) if a or b else 1.0


def partial_ratio(a: str, b: str) -> float:
  """The best `ratio` of the shorter text with as long a part of the longer one."""
  short, long = sorted((a, b), key=len)
  if not short or short in long:
    return float(bool(short) or not long)
  n = len(short)
  parts = (long[max(0, i):i + n] for i in range(1 - n, len(long)))
  return max(ratio(short, part) for part in parts)


def starts(pattern: str, text: str, most: int) -> list[int]:
  """Where parts of a text begin that become a pattern by `most` edits: the best of each place."""
  if not most:
    return [m.start() for m in re.finditer(f'(?={re.escape(pattern)})', text)]
  # Sellers' columns from the end: distance of the pattern to the best part that begins at i.
  column, found = list(range(len(pattern) + 1)), {}
  for i in range(len(text) - 1, -1, -1):
    above = [0]
    for j, c in enumerate(reversed(pattern)):
      above.append(min(column[j] + (c != text[i]), column[j + 1] + 1, above[j] + 1))
    column = above
    if column[-1] <= most:
      found[i] = column[-1]
  return [i for i, n in found.items()
          if all(n <= found.get(k, n) for k in range(i - most, i + most + 1))]


def holds(rule: Mapping[str, Any], page: str) -> bool:
  """Whether a rule holds for the text of its page. Raises ValueError for an unknown kind."""
  kind, most = rule['type'], rule.get('max_diffs', 0)
  if kind in ('present', 'absent'):
    wanted, text = plain(rule['text']), plain(page)
    if not rule.get('case_sensitive', True):
      wanted, text = wanted.lower(), text.lower()
    first, last = rule.get('first_n'), rule.get('last_n')
    if first or last:
      text = text[:first or 0] + (text[-last:] if last else '')
    return (partial_ratio(wanted, text) >= 1 - most / len(wanted)) == (kind == 'present')
  if kind == 'order':
    before, after = (starts(plain(rule[k]), plain(page), most) for k in ('before', 'after'))
    return bool(before and after) and min(before) < max(after)
  if kind == 'table':
    return any(_table_holds(rule, table) for table in tables(page))
  if kind == 'math':
    found = re.findall(r'\\\((.+?)\\\)|\\\[(.+?)\\\]|\$\$(.+?)\$\$|\$(.+?)\$', page, re.DOTALL)
    return _tex(rule['math']) in {_tex(''.join(parts)) for parts in found}
  if kind == 'baseline':
    letters = sum(map(str.isalnum, page))
    if (longest := rule.get('max_length')) is not None:
      return letters <= longest
    return bool(letters) and not _FOREIGN.search(page) and not re.search(
      r'(?s)(.{1,5}?)\1{30}$', re.sub(r'\s+', ' ', page))
  raise ValueError(f'unknown kind of rule: {kind}')


def _tex(formula: str) -> str:
  return re.sub(r'\s+|\\[,;:!]|\\(?:left|right|displaystyle|limits)\b', '', formula)


def _table_holds(rule: Mapping[str, Any], table: Table) -> bool:
  def alike(wanted: str, found: str) -> bool:
    wanted = plain(wanted)
    least = max(0.5, 1 - rule.get('max_diffs', 0) / max(1, len(wanted)))
    return ratio(wanted, plain(found)) >= least

  _, texts, _ = table
  asked = {name: rule[name] for name in ('up', 'down', 'left', 'right') if rule.get(name)}
  heads = {step: rule[name] for step, name in (('up', 'top_heading'), ('left', 'left_heading'))
           if rule.get(name)}
  return any(
    alike(rule['cell'], text)
    and all(any(alike(wanted, texts[n]) for n in neighbours(table, cell, step))
            for step, wanted in asked.items())
    and all(any(alike(wanted, texts[n]) for n in headings(table, cell, step))
            for step, wanted in heads.items())
    for cell, text in enumerate(texts))


def neighbours(table: Table, cell: int, step: str) -> set[int]:
  """The cells next to one: several where it spans some; places without a cell are passed over."""
  grid, _, _ = table
  down, right = {'up': (-1, 0), 'down': (1, 0), 'left': (0, -1), 'right': (0, 1)}[step]
  found = set()
  for r, c in ((r, c) for r, row in enumerate(grid) for c, at in enumerate(row) if at == cell):
    while 0 <= (r := r + down) < len(grid) and 0 <= (c := c + right) < len(grid[r]):
      if (other := grid[r][c]) is not None:
        found |= {other} - {cell}
        break
  return found


def headings(table: Table, cell: int, step: str) -> set[int]:
  """The cells that head one's column (`up`) or row (`left`): those marked, else the last ones."""
  seen: set[int] = set()
  ends, marked, todo = set(), set(), {cell}
  while todo:
    seen.add(now := todo.pop())
    nexts = neighbours(table, now, step)
    if now in table[2]:
      marked.add(now)
    if not nexts:
      ends.add(now)
    todo |= nexts - seen
  return marked - {cell} or ends - {cell}


def tables(page: str) -> Iterator[Table]:
  """The tables of a page, in Markdown and in HTML."""
  for has_bar, group in itertools.groupby(page.strip().split('\n'), lambda line: '|' in line):
    lines = list(group)
    rows = [line.strip().removeprefix('|').removesuffix('|').split('|') for line in lines
            if not set(line) <= set('- :|')]
    if has_bar and len(lines) >= 2 and rows:
      yield _grid([[(cell.strip(), 1, 1, r == 0 or c == 0) for c, cell in enumerate(row)]
                   for r, row in enumerate(rows)])
  if '<table' not in page.lower():
    return
  for table in html.fragment_fromstring(page, create_parent='div').iter('table'):
    rows = list(table.iter('tr'))
    yield _grid([[(' '.join(cell.itertext()).strip(), _span(cell, 'rowspan', len(rows) - r),
                   _span(cell, 'colspan', 1),
                   cell.tag == 'th' or any(a.tag == 'thead' for a in row.iterancestors()))
                  for cell in row.iterchildren('th', 'td')] for r, row in enumerate(rows)])


def _span(cell, name: str, rest: int) -> int:
  value = cell.get(name, '1').strip()
  return (int(value) or rest) if value.isdecimal() else 1


def _grid(rows: Sequence[Sequence[tuple[str, int, int, bool]]]) -> Table:
  texts, marked, places = [], set(), {}
  for r, row in enumerate(rows):
    c = 0
    for text, down, right, heading in row:
      while (r, c) in places:
        c += 1
      places.update({(r + i, c + j): len(texts) for i in range(down) for j in range(right)})
      marked |= {len(texts)} if heading else set()
      texts.append(text)
  height, width = (1 + max((p[k] for p in places), default=-1) for k in (0, 1))
  return [[places.get((r, c)) for c in range(width)] for r in range(height)], texts, marked


def ours(path: pathlib.Path) -> list[str]:
  """A file's pages by our extraction; none of a file that it refuses."""
  try:
    return pdf_text.extract(path.read_bytes(), ocr=_OCR.value).pages
  except PdfError:
    return []


def pdftotext(path: pathlib.Path) -> list[str]:
  """A file's pages by poppler's program."""
  done = subprocess.run(['pdftotext', path, '-'], capture_output=True)
  return done.stdout.decode('utf-8', 'replace').split('\f')


def main(_: list[str]) -> None:
  """Prints the scores."""
  data = pathlib.Path(_DATA.value)
  rules = [json.loads(line) for path in sorted(data.glob('*.jsonl'))
           for line in path.read_text().splitlines() if line.strip()]
  failed = []
  for tool in (ours, pdftotext):
    if tool is pdftotext and not shutil.which('pdftotext'):
      continue
    pages = {name: tool(data / 'pdfs' / name) for name in sorted({r['pdf'] for r in rules})}
    passed: dict[str, int] = collections.Counter()
    asked: dict[str, int] = collections.Counter(rule['type'] for rule in rules)
    for rule in rules:
      page = ''.join(pages[rule['pdf']][rule['page'] - 1:rule['page']])
      if holds(rule, page):
        passed[rule['type']] += 1
      else:
        failed.append({'tool': tool.__name__, **rule})
    score = [sum(n for kind, n in counts.items() if kind not in UNSCORED)
             for counts in (passed, asked)]
    print(json.dumps({'tool': tool.__name__, 'ocr': _OCR.value, 'score': score,
                      **{kind: [passed[kind], n] for kind, n in sorted(asked.items())}}),
          flush=True)
  if _FAILED.value:
    pathlib.Path(_FAILED.value).write_text(''.join(json.dumps(r) + '\n' for r in failed))


if __name__ == '__main__':
  app.run(main)

"""Pages and files of kinds that went wrong once, in cases/, each with its right answer here."""

import resource
import subprocess
import sys

import pytest

from data_beam import records, tables
from data_beam.options import WebOptions
from data_beam.records import Document
from data_beam.sources import readers
from data_beam.sources.readers import Page
from data_beam.web import pipeline as web
from data_beam.web.extract import extract
from tests.conftest import REPOSITORY

CASES = REPOSITORY / 'tests' / 'data_beam' / 'cases'
# Of the sentences of which the pages are made, how each begins.
PROSE = ('The harbour at the edge', 'Fishermen still leave', 'Visitors who walk', 'A small museum',
         'In the archive there', 'The council has promised', 'Local schools have')

# By name of the page: what must stand in its text, in that order, and what must not.
PAGES = {
  'e05-gb18030-as-gb2312': (['城镇边缘的港口', '㐀㐁䶮𠀀𠮷', '傍晚'], ['\ufffd']),
  'f04-discourse': (PROSE, []),
  'f07-discourse-noscript': (PROSE[:5], []),
  'h01-details': ([s for i, p in enumerate(PROSE[:6]) for s in (f'Question {i}: {p}', p)], []),
  'h02-accordion-button': (
    [s for i, p in enumerate(PROSE[:6]) for s in (f'How is question number {i} about', p)], []),
  'h05-layout-table': ([f'\n{p}' for p in PROSE[1:]], [' | ']),
  'h06-data-table': (
    [*PROSE, '\nShips per year\nYear | Ships | Note\n1901 | 12 | storm\n1902 |  | calm\n'
     '1903 | 40 | rail\n1903 | 41 | quay'], []),
  'h08-code-div-lines': (
    [*PROSE, '\ndef f(x):\n    if x > 0:\n        return {"a": x}\n\n    return None\nIt was'], []),
  'h10-code-table-gutter': (
    [*PROSE[:6], '.\ndef f(x):\n    if x > 0:\n        return {"a": x}\n\n    return None\nIt was'],
    []),
  'h12-mathjax-script': (
    [*PROSE, r'energy is $E = mc^2$ and the integral is $$\int_0^1 x\,dx = \frac12$$ as shown'],
    []),
  'h13-mathjax-dollars': (
    [*PROSE, r'$E = mc^2$', r'$$\int_0^1 x\,dx = \frac{1}{2}$$', r'\(a_i\)'], []),
  'h14-katex': ([*PROSE, 'The energy is $E = mc^2$ as shown'], ['mc2', 'E=mc']),
  'h16-lists': (
    [*PROSE, '\n3. First, open the gate slowly.\n   - Use the left handle.\n'
     '   - Then the right handle.\n4. Second, walk to the quay.\n'], []),
  'h19-sup-sub': ([*PROSE, '10^6 cubic', 'CO2 were', '2^10 times'], []),
  'h23-hidden-tab': (PROSE[:5], []),
  'h25-noscript': (PROSE, []),
  'h31-recipe': (['Ingredients\n- 2 onions', '- salt', *PROSE[1:4]], []),
}

NOT_YET: dict[str, str] = {}


def cases(names):
  return [pytest.param(name, marks=[pytest.mark.xfail(reason=NOT_YET[name], strict=True)]
                       if name in NOT_YET else []) for name in names]


@pytest.mark.parametrize('name', cases(PAGES))
def test_pages(name):
  body = (CASES / 'web' / f'{name}.html').read_bytes()
  text = extract(body, markdown=name == 'h16-lists') or ''
  wanted, absent = PAGES[name]
  at = 0
  for piece in wanted:
    assert piece in text[at:], piece
    at = text.index(piece, at) + len(piece)
  assert not any(piece in text for piece in absent)
  for piece in PROSE:
    assert text.count(piece) <= 2    # once, and once in a question


def split(results):
  """(pages or documents, reasons of what was rejected)."""
  results = list(results)
  kept = [r for r in results if isinstance(r, Page | Document)]
  return kept, [r.reason for r in results if not isinstance(r, Page | Document)]


INDEXES = ['01-index-offset-huge', '02-index-length-huge', '03-index-negative', '05-index-badurl',
           '07-index-dir', '11-index-ssrf', '12-index-devzero']


def test_a_line_that_names_bytes_elsewhere_is_a_reject():
  done = subprocess.run([sys.executable, '-c', '''
import sys
from data_beam.sources import readers
for name in sys.argv[1:]:
  print(*sorted(getattr(r, 'reason', 'page') for r in readers.read(name)))
''', *(str(CASES / 'input' / name / 'in.jsonl') for name in INDEXES)],
    capture_output=True, text=True, cwd=REPOSITORY,
    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)))
  assert done.returncode == 0, done.stderr[-500:]
  for name, found in zip(INDEXES, done.stdout.splitlines(), strict=True):
    assert found.split() == ['page'] * 10 + ['unreadable_range'], name


@pytest.mark.parametrize('name', cases(['20-content-length-superscript']))
def test_odd_headers_cost_nothing(name):
  pages, reasons = split(readers.read(str(CASES / 'input' / name / 'in.warc.gz')))
  assert len(pages) == 8 and not reasons


@pytest.mark.parametrize('name', cases(['41-parquet-bomb']))
def test_a_parquet_file_that_asks_for_gigabytes(name):
  done = subprocess.run([sys.executable, '-c', '''
import sys
from data_beam import tables
for r in tables.read(tables.split(sys.argv[1]), tables.LAYOUTS['plain'], 'x'):
  print(getattr(r, 'reason', 'document'))
print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])
''', str(CASES / 'input' / name / 'in.parquet')], capture_output=True, text=True, cwd=REPOSITORY)
  assert done.returncode == 0, done.stderr[-500:]
  *results, peak = done.stdout.split()
  assert results[-1] == 'ratio' and results.count('document') < 20 and int(peak) < 700 << 10


@pytest.mark.parametrize('name', cases(['warc/bad-member-middle']))
def test_a_damaged_member_is_one_loss(name):
  pages, reasons = split(readers.read(str(CASES / 'web' / f'{name}.warc.gz')))
  assert len(pages) == 4 and reasons == ['damaged_record']


@pytest.mark.parametrize('name', cases(['deep-line']))
def test_a_bad_line_is_one_loss(name):
  part = tables.Part(str(CASES / 'web' / f'{name}.jsonl'), None)
  documents, reasons = split(tables.read([part], tables.LAYOUTS['plain'], 'x'))
  assert {'bom', 'd', 'c', 'ls', 'last'} <= {d.id for d in documents}
  assert 'corrupt_file' not in reasons and 'bad_json' in reasons


def curate(path, files, **options):
  folder = web.run(files, str(path), options=WebOptions(
    filters='none', languages=(), min_language_score=0, **options))
  return list(records.read_corpus(folder))


@pytest.mark.parametrize('name', cases(['ids']))
def test_ids_that_repeat_over_files_lose_no_document(name, tmp_path):
  kept = curate(tmp_path, [str(CASES / 'web' / name / '*.jsonl')])
  assert len(kept) == 3


@pytest.mark.parametrize('name', cases(['dump-scope']))
def test_duplicates_within_a_dump_alone(name, tmp_path):
  kept = curate(tmp_path, [str(CASES / 'web' / name / 'crawl-data/*/segments/1/warc/*.gz')],
                dedup_scope='dump')
  assert len(kept) == 2


def test_every_case_is_tried():
  found = {path.relative_to(CASES).parts[1].partition('.')[0] for path in CASES.rglob('*.*')}
  tried = {*PAGES, *INDEXES, 'warc', 'ids', 'dump-scope', 'deep-line', '41-parquet-bomb',
           '20-content-length-superscript'}
  assert found == tried

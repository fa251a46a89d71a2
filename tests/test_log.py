"""What documents name is there: commands, files; and the log's index has a row for each entry."""

import re

import pytest
from conftest import REPOSITORY

LOG = REPOSITORY / 'experiments' / 'log'
INDEX = LOG / 'README.md'
TOPICS = sorted(p for p in LOG.glob('*.md') if p != INDEX)
DOCUMENTS = [*TOPICS, INDEX, REPOSITORY / 'README.md', REPOSITORY / 'AGENTS.md',
             *sorted((REPOSITORY / 'docs').glob('*.md'))]

ENTRY = re.compile(r'(?m)^## (.*)$')
ROW = re.compile(r'(?m)^\| (\d{4}-\d\d-\d\d) \| (.*) \| (.*) \| \[(.*)\]\((.*)\.md#(.*)\) \|$')
# Commands stand after `python -m`, or alone in a table's column of commands.
MODULE = re.compile(r'\b((?:experiments|data_beam)(?:\.[a-z_0-9]+)+)\b(?!\()')
PATH = re.compile(r'\b((?:smoljax|data_beam|experiments|configs|tests)/[\w/.-]*\w)')
SELECTED = re.compile(r"(tests/[\w/]+\.py)\s+-k\s+(\w+|'[^']+')")


def anchor(heading: str) -> str:
  """As GitHub makes it of a heading."""
  return re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')


def is_module(name: str) -> bool:
  """Whether `python -m name` finds a file, without importing it."""
  path = REPOSITORY.joinpath(*name.split('.'))
  return path.with_suffix('.py').is_file() or (path / '__main__.py').is_file()


def entries(path) -> list[str]:
  return ENTRY.findall(path.read_text())


@pytest.mark.parametrize('path', DOCUMENTS, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_commands_and_files_named_in_documents_exist(path):
  text = path.read_text()
  missing = {n for n in MODULE.findall(text) if n != 'experiments.benchmarks' and not is_module(n)}
  assert not missing, f'{path.name} names commands that are not there: {sorted(missing)}'
  missing = {n for n in PATH.findall(text) if not (REPOSITORY / n).exists()}
  assert not missing, f'{path.name} names files that are not there: {sorted(missing)}'


@pytest.mark.parametrize('path', TOPICS, ids=lambda p: p.stem)
def test_tests_that_the_log_selects_exist(path):
  for file, words in SELECTED.findall(path.read_text()):
    tests = (REPOSITORY / file).read_text()
    for word in words.strip("'").split(' or '):
      assert re.search(rf'def test\w*{word}|[\'"\[]{word}', tests), f'{file} has no {word}'


@pytest.mark.parametrize('path', TOPICS, ids=lambda p: p.stem)
def test_entries_are_dated_and_newest_first(path):
  dates = []
  for heading in entries(path):
    assert re.match(r'\d{4}-\d\d-\d\d · \S', heading), f'"{heading}" should be "DATE · Question"'
    dates.append(heading[:10])
  assert dates == sorted(dates, reverse=True)


def test_each_entry_has_its_row_and_each_row_its_entry():
  lines = [line for line in INDEX.read_text().splitlines() if line.startswith('| 2')]
  rows = [ROW.fullmatch(line) for line in lines]
  assert all(rows), [line for line, row in zip(lines, rows, strict=True) if not row]
  linked = [(row[5], row[6]) for row in rows]
  there = [(path.stem, anchor(heading)) for path in TOPICS for heading in entries(path)]
  assert sorted(linked) == sorted(there)
  for row in rows:
    assert row[4] == row[5], f'{row[0]} is linked under another name'
    assert row[6].startswith(row[1]), f'{row[0]} has another date than its entry'
    assert re.search(r'\d', row[3]), f'the answer of "{row[2]}" has no figure'
  assert [row[1] for row in rows] == sorted((row[1] for row in rows), reverse=True)

"""README is short and leads on; the map of docs/architecture.md names every folder and file."""

import json
import re

import pytest
from conftest import REPOSITORY

README = REPOSITORY / 'README.md'
PAGES = sorted((REPOSITORY / 'docs').glob('*.md'))
# Each of these is one line: their own index, docstrings or mirror of the packages says the rest.
WHOLE = ('experiments/benchmarks', 'experiments/cloud', 'experiments/log', 'tests')


def mapped() -> set[str]:
  """Paths in the fenced block that begins with `smoljax/`: names before two spaces, by indent."""
  text = (REPOSITORY / 'docs' / 'architecture.md').read_text()
  [block] = re.findall(r'```\n(smoljax/ .*?)```', text, re.S)
  paths, folders = set(), []
  for line in block.splitlines():
    depth = (len(line) - len(line.lstrip())) // 2
    names, *_ = re.split(r'\s{2,}', line.strip(), maxsplit=1)
    for name in names.split():  # files that one line can describe stand in one line
      path = ''.join([*folders[:depth], name])
      paths.add(path)
      if name.endswith('/'):
        folders[depth:] = [name]
  return paths


def there() -> set[str]:
  paths = {'tests/'}
  for package in ('smoljax', 'data_beam', 'configs', 'experiments'):
    for path in (REPOSITORY / package).rglob('*'):
      name = path.relative_to(REPOSITORY).as_posix()
      if '__' in path.name or '__pycache__' in name or path.name == 'py.typed':
        continue
      if name.startswith(tuple(w + '/' for w in WHOLE)):
        continue
      if path.is_dir() or path.suffix in ('.py', '.json'):
        paths.add(name + '/' * path.is_dir())
    paths.add(package + '/')
  return paths


def test_the_map_is_complete():
  assert mapped() == there()


def test_a_first_reader_can_read_the_readme():
  assert len(README.read_text().split()) < 2500


def test_its_figures_are_those_of_the_quickstart():
  """Where `make quickstart` has run here; `make readme-check` says so."""
  summary = REPOSITORY / 'runs' / 'quickstart' / 'summary.json'
  if not summary.exists():
    pytest.skip('make quickstart has not run here')
  found, said = json.loads(summary.read_text()), README.read_text()
  right, blind = map(int, re.search(
    r'from three others in (\d+) of 100 cases \((\d+) without', said).groups())
  bits = float(re.search(r'needs\s+([\d.]+) bits for each byte', said)[1])
  assert abs(right - 100 * found['tasks']['continuation']) < 6
  [evaluated] = (summary.parent / 'evals').glob('*.json')
  task = json.loads(evaluated.read_text())['tasks']['continuation']
  assert abs(blind - 100 * max(task['blind'].values())) < 6 and task['chance'] == .25
  assert .9e6 < found['parameters'] < 1.1e6  # “one million”
  assert abs(bits - found['bits_per_byte']['web']) < .1


@pytest.mark.parametrize('path', [README, *PAGES], ids=lambda p: p.name)
def test_links_lead_to_files(path):
  for link in re.findall(r'\]\(([^)#]+)[)#]', path.read_text()):
    assert '://' in link or (path.parent / link).exists(), f'{path.name} links {link}'

"""README's map names every folder and file, and nothing that is not there."""

import re

from conftest import REPOSITORY

# Each of these is one line: their own index, docstrings or mirror of the packages says the rest.
WHOLE = ('experiments/benchmarks', 'experiments/cloud', 'experiments/log', 'tests')


def mapped() -> set[str]:
  """Paths in the fenced block that begins with `smoljax/`: names before two spaces, by indent."""
  text = (REPOSITORY / 'README.md').read_text()
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


def test_readmes_map_is_complete():
  assert mapped() == there()

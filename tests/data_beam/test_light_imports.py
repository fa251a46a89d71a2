"""The floors of data_beam, and what can be imported without the libraries that curate."""

import pathlib
import subprocess
import sys

from conftest import REPOSITORY
from helpers.code import imports

# Lowest first: each imports only lower ones, and itself.
FLOORS = (
  {'records', 'options', 'beam_options', 'progress', 'sandbox', 'special_tokens',
   'file_runner', 'model_server', 'command_line', 'redact', 'finder', 'hub', 'chat'},
  {'text'},
  {'sources'},
  {'filters', 'dedup'},
  {'curation'},
  {'web', 'pdf', 'python_source', 'tables', 'tokenize_corpus', 'refine'},
  {'conversations', 'rephrase'},  # which documents would be held out is tokenize_corpus's to say
)
# Names that users rely on, of commands and of extractors; nothing here imports them.
NAMES = {'quality', 'buckets', 'decontaminate', 'refetch', 'pdf_route', 'html_text', 'pdf_text'}


def test_a_floor_imports_only_lower_ones():
  height = {room: i for i, floor in enumerate(FLOORS) for room in floor}
  root = pathlib.Path(REPOSITORY, 'data_beam')
  for path in sorted(root.rglob('*.py')):
    room = path.relative_to(root).parts[0].removesuffix('.py')
    if room in NAMES or room == '__init__':
      continue
    assert room in height, f'{path} stands on no floor'
    for name in imports(path):
      if name.startswith('data_beam.'):
        other = name.split('.')[1]
        assert other not in NAMES, f'{path} imports {name}'
        assert other == room or height[other] < height[room] or height[room] == 0, (
          f'{path} imports {name}, which is not below it')


WITHOUT = '''
import importlib, sys

class Absent:
  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in sys.argv[1].split(','):
      raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, Absent())
for name in sys.argv[2:]:
  importlib.import_module(name)
'''

def imported_without(libraries, *modules):
  done = subprocess.run([sys.executable, '-c', WITHOUT, libraries, *modules],
                        cwd=REPOSITORY, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]


def test_options_and_configs_need_no_beam():
  imported_without('apache_beam,numpy,pyarrow,tensorflow_datasets,jax', 'data_beam.options',
                   'data_beam.sandbox', 'data_beam.filters.spans', 'configs.base',
                   'configs.quickstart')


def test_what_others_import_needs_no_library_that_curates():
  imported_without(
    'trafilatura,resiliparse,fastwarc,warcio,pypdfium2,pikepdf,lxml,PIL',
    'data_beam.records', 'data_beam.sources.files', 'data_beam.sources.readers',
    'data_beam.sources.common_crawl', 'data_beam.filters.rules', 'data_beam.tokenize_corpus',
    'data_beam.pdf.text', 'data_beam.pdf.thumbnail')

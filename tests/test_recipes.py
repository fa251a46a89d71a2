"""README's recipes, typed as they stand there, in a fresh copy of the repository; in small."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY
from helpers import stories, warc
from helpers.quickstart import SMALL

checked = pytest.mark.skipif(
  'README_CHECK' not in os.environ, reason='takes minutes: make readme-check')
# What makes a command small; the rest is typed as it stands.
SMALLER = {'experiments.run': SMALL, 'experiments.sweep': SMALL,
           'experiments.generate': ['--max_new_tokens=32']}  # its rows have 128 tokens


def recipes() -> list[str]:
  """The commands in README's blocks marked `sh`, in order; joined lines are one."""
  text = (REPOSITORY / 'README.md').read_text()
  blocks = '\n'.join(re.findall(r'^```sh\n(.*?)^```', text, re.S | re.M))
  return [line for line in blocks.replace('\\\n', ' ').splitlines() if line.strip()]


def write_inputs(root: pathlib.Path) -> None:
  """What a reader of the recipes has: a crawl, papers, notes, rows and questions."""
  for folder in ('crawl', 'papers', 'notes', 'rows', 'questions', 'chats'):
    (root / folder).mkdir()
  warc.write_warc(root / 'crawl/x.warc.gz', [
    warc.html(f'https://a.test/{i}', warc.page(warc.article(i))) for i in range(150)])
  for i in range(3):
    (root / f'papers/{i}.pdf').write_bytes(stories.make(stories.story(i, 120)))
  for i in range(60):
    paragraphs = warc.article(1000 + i)
    (root / f'notes/{i}.{("md", "txt", "html")[i % 3]}').write_bytes(
      warc.page(paragraphs) if i % 3 == 2 else '\n\n'.join(['# A note', *paragraphs]).encode())
  (root / 'rows/x.jsonl').write_text(''.join(
    json.dumps({'text': '\n\n'.join(warc.article(2000 + i))}) + '\n' for i in range(80)))
  (root / 'chats/x.jsonl').write_text(''.join(json.dumps({'messages': [
    {'role': 'user', 'content': f'What is number {i}?'},
    {'role': 'assistant', 'content': warc.article(3000 + i, 1)[0][:120]}]}) + '\n'
    for i in range(200)))
  question = {'question': 'Which colour is the sky?', 'choices': ['green', 'blue'], 'answer': 1}
  (root / 'questions/mine.jsonl').write_text((json.dumps(question) + '\n') * 5)


@pytest.fixture(scope='module')
def clone(tmp_path_factory):
  root = tmp_path_factory.mktemp('fresh') / 'smoljax'
  tracked = subprocess.run(
    ['git', 'ls-files', '-z'], cwd=REPOSITORY, capture_output=True, check=True)
  for name in filter(None, tracked.stdout.decode().split('\0')):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(REPOSITORY / name, root / name)
  write_inputs(root)
  typed(root, 'python -m experiments.run --config=configs/quickstart.py --workdir=runs/quickstart')
  return root


def typed(root: pathlib.Path, command: str) -> str:
  module = re.search(r'-m (\S+)', command)
  flags = [f for f in SMALLER.get(module and module[1], ())
           if '--dry_run' not in command and f.partition('=')[0] not in command]
  # As after `source .venv/bin/activate`.
  environment = {k: v for k, v in os.environ.items() if k not in ('XLA_FLAGS', 'PYTHONPATH')}
  environment |= {'PATH': f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}',
                  'COLUMNS': '160'}
  result = subprocess.run(
    command + ' ' + shlex.join(flags), shell=True, cwd=root, env=environment, text=True,
    capture_output=True, timeout=900)
  assert result.returncode == 0, f'{command}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}'
  return result.stdout


@pytest.mark.slow
@checked
@pytest.mark.parametrize('command', recipes(), ids=lambda c: re.search(r'-m (\S+)', c)[1])
def test_a_recipe_works_as_typed(clone, command):
  """Two minutes on two cores in small, held by CPU seconds: others may use the cores too."""
  began, before = time.monotonic(), os.times()
  typed(clone, command)
  after = os.times()
  cpu = (after.children_user - before.children_user
         + after.children_system - before.children_system)
  print(f'\n{time.monotonic() - began:.0f} s, {cpu:.0f} s of CPU: {command}')
  assert cpu < 120


@pytest.mark.slow
@checked
def test_the_notebook_runs(clone):
  """Its cells, but for what installs and what trains: `clone` has done that, smaller."""
  notebook = json.loads((REPOSITORY / 'docs/quickstart.ipynb').read_text())
  cells = [''.join(c['source']) for c in notebook['cells'] if c['cell_type'] == 'code']
  assert 'git clone' in cells[0] and 'experiments.run' in cells[1] and 'IPython' in cells[-1]
  commands = [line[1:] for cell in cells[2:-1] for line in cell.splitlines() if line[:1] == '!']
  for command in commands:
    typed(clone, command)
  code = '\n'.join(cell for cell in cells[2:-1] if cell[0] != '!')
  (clone / 'notebook.py').write_text(code)
  assert 'kept;' in typed(clone, 'PYTHONPATH=. python notebook.py')


def test_the_readme_has_a_recipe_for_each_job():
  said = ' '.join(recipes())
  assert len(recipes()) >= 14
  for word in ('web.input', 'data_beam.pdf', 'data_beam.web --input=notes', 'tables import',
               'config.corpora', 'lineage', 'init_from', 'shapes', 'eval_data', '--grid', 'search',
               '--mode=chat', '--format=hf', '--format=gguf', 'generate'):
    assert word in said, word

"""The script that gathers texts of Debian's packages, with stand-ins for Debian and Python."""

import json
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

SCRIPT = REPOSITORY / 'experiments' / 'cloud' / 'debian_texts.sh'

# What each stand-in does; all write down how they were called.
TOOLS = {
  'apt-get': '[ "$3" = r-doc-pdf ] && exit 100; touch "$3"_1.0_all.deb',
  'dpkg': '[ -e "$2" ]',
  'zcat': '',
  'python': f'''[ "$1" = - ] && exec {sys.executable} "$@"
  for flag; do case $flag in
    --output=*.jsonl) touch "${{flag#*=}}" ;;
    --output=*) out=${{flag#*=}} ;;
    --name=*) mkdir -p "$out/${{flag#*=}}/1.0.0"
    touch "$out/${{flag#*=}}/1.0.0/dataset_info.json" ;;
  esac; done''',
}


@pytest.fixture
def run(tmp_path):
  """A function that runs the script on `data with spaces`: what it said, and the tools' calls."""
  for name, does in TOOLS.items():
    tool = tmp_path / 'bin' / name
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(f'#!/bin/bash\necho "{name} $*" >> {tmp_path}/calls\n{does}\n')
    tool.chmod(0o755)
  environment = {**os.environ, 'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}', 'PYTHON': 'python'}

  def run(*arguments):
    (tmp_path / 'calls').write_text('')
    done = subprocess.run([SCRIPT, tmp_path / 'data with spaces', *arguments], env=environment,
                          text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stderr, (tmp_path / 'calls').read_text().splitlines()

  return run


def test_what_is_there_is_not_made_again_and_a_missing_package_is_said(run, tmp_path):
  said, calls = run()
  assert 'no package r-doc-pdf here' in said
  modules = [c.split()[2] for c in calls if c.startswith('python')]
  assert modules == ['data_beam.web', 'data_beam.pdf', 'data_beam.pdf', 'data_beam.python_source',
                     'data_beam.tables', *['experiments.needles', 'data_beam.tables'] * 2,
                     *['experiments.chains'] * 3]
  assert '--decontaminate' not in ' '.join(calls)
  for folder in ('thoughts', 'chats', 'pairs'):
    assert (tmp_path / 'data with spaces' / folder / 'chains.jsonl').exists()
  said, calls = run()
  assert calls == ['apt-get download -qq r-doc-pdf']


def test_worked_problems_are_thoughts_and_half_of_them_chats_without(run, tmp_path):
  sets = tmp_path / 'sets'
  sets.mkdir()
  for name in ('gsm8k.test', 'gsm8k.train'):
    (sets / f'{name}.jsonl').write_text(''.join(json.dumps({
      'question': f'{n} and 1?', 'answer': f'It is <<{n}+1={n + 1}>>{n + 1}.\n#### {n + 1}'},
    ) + '\n' for n in (1, 2)))
  run(sets)
  data = tmp_path / 'data with spaces'
  assert [p.name for p in (data / 'eval').iterdir()] == ['gsm8k.test.jsonl']  # not what is learned
  read = lambda kind: [
    json.loads(line) for line in (data / kind / 'gsm8k.jsonl').read_text().splitlines()]
  answers = [row['messages'][1] for row in read('thoughts')]
  assert [(a['reasoning_content'], a['content']) for a in answers] == [
    ('It is 2.', '2'), ('It is 3.', '3')]
  assert [row['mode'] for row in read('chats')] == ['no_think', 'think']
  assert read('chats')[0]['messages'] == [
    {'role': 'user', 'content': '1 and 1?'}, {'role': 'assistant', 'content': 'It is 2.\n2'}]
  assert read('chats')[1] == read('thoughts')[1]

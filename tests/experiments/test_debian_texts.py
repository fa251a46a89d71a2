"""The script that gathers texts of Debian's packages, with stand-ins for Debian and Python."""

import os
import subprocess

from conftest import REPOSITORY

SCRIPT = REPOSITORY / 'experiments' / 'cloud' / 'debian_texts.sh'

# What each stand-in does; all write down how they were called.
TOOLS = {
  'apt-get': '[ "$3" = r-doc-pdf ] && exit 100; touch "$3"_1.0_all.deb',
  'dpkg': '[ -e "$2" ]',
  'zcat': '',
  'python': '''for flag; do case $flag in
    --output=*.jsonl) touch "${flag#*=}" ;;
    --output=*) out=${flag#*=} ;;
    --name=*) mkdir -p "$out/${flag#*=}/1.0.0"; touch "$out/${flag#*=}/1.0.0/dataset_info.json" ;;
  esac; done''',
}


def test_what_is_there_is_not_made_again_and_a_missing_package_is_said(tmp_path):
  for name, does in TOOLS.items():
    tool = tmp_path / 'bin' / name
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(f'#!/bin/bash\necho "{name} $*" >> {tmp_path}/calls\n{does}\n')
    tool.chmod(0o755)
  environment = {**os.environ, 'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}', 'PYTHON': 'python'}

  def run():
    (tmp_path / 'calls').write_text('')
    done = subprocess.run([SCRIPT, tmp_path / 'data with spaces'], env=environment, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stderr, (tmp_path / 'calls').read_text().splitlines()

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

"""Data made ahead of a run, and what a machine without Beam or gguf needs of it."""

import subprocess
import sys
import textwrap

import pytest
from conftest import REPOSITORY


def without(packages: str, program: str, cwd: str) -> str:
  """What a program prints in a process that cannot import these packages."""
  begin = (f'import sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n'
           f'sys.modules.update(dict.fromkeys({packages!r}.split()))\n')
  program = begin + textwrap.dedent(program)
  found = subprocess.run([sys.executable, '-c', program], cwd=cwd, capture_output=True, text=True)
  assert found.returncode == 0, found.stderr
  return found.stdout


def test_files_of_conversations_and_their_options_are_told_without_beam(tmp_path):
  from data_beam.sources.files import expand
  (tmp_path / 'chats').mkdir()
  (tmp_path / 'chats/a.jsonl').write_text('{}\n')
  out = without('apache_beam', '''
    from data_beam.options import ConversationOptions
    from data_beam.sources.files import expand
    print(ConversationOptions(mode='think').mode, expand(['chats/*.jsonl']))
    ''', str(tmp_path))
  with pytest.MonkeyPatch.context() as m:
    m.chdir(tmp_path)
    assert out.strip() == f'think {expand(["chats/*.jsonl"])}'


def test_a_missing_gguf_is_said_before_anything_is_made(tmp_path):
  out = without('gguf', '''
    from smoljax.checkpoints import export_formats
    try:
      export_formats.require_gguf()
    except ImportError as e:
      print(e)
    ''', str(tmp_path))
  assert out.strip() == 'GGUF files need the package gguf: pip install gguf'

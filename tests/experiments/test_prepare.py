"""Data made ahead of a run, and what a machine without Beam or gguf needs of it."""

import subprocess
import sys
import textwrap

import jax
import pytest
from conftest import REPOSITORY
from helpers.configs import config
from helpers.tokenised import corpus, folder, texts  # noqa: F401 (fixtures)

from configs import base
from experiments import prepare
from experiments.engine.build import build_steps
from experiments.engine.graph import Graph
from smoljax.checkpoints import export_formats, load
from smoljax.data import tokenizer
from smoljax.model import SHAPES, ModelConfig, init


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


def test_a_teacher_decides_the_tokenizer_of_what_is_prepared(tmp_path, corpus, texts):
  """So that the run finds done what was made for it, on a machine that may not curate."""
  tokenizer.train(texts, str(tmp_path / 'tokenizer.model'), vocab_size=320)
  text = tokenizer.load(str(tmp_path / 'tokenizer.model'))
  shape = SHAPES['tiny']
  sizes = {f: getattr(shape, f) for f in ('num_heads', 'num_kv_heads', 'head_dim', 'mlp_dim')}
  small = ModelConfig(
    vocab_size=text.vocab_size, num_layers=1, embed_dim=16, max_seq_len=64, **sizes)
  teacher = str(tmp_path / 'teacher')
  export_formats.write_hf(load.Model(small, init(small, jax.random.key(0)), text, False), teacher)
  fields = {'corpora': f'mine={corpus}', 'distill__teacher': teacher, 'data__seq_len': 64,
            'distill__cache': 'sampled', 'train__batch_tokens': 64, 'tokenize__holdout': 0.2}
  c = base.get_config()
  c.web.enabled = c.pdf.enabled = False
  c.train.stages = (dict(name='all', fraction=1.0, mixture={'mine': 1.0}),)
  c.update_from_flattened_dict({k.replace('__', '.'): v for k, v in fields.items()})
  own = prepare.prepare(c.copy_and_resolve_references(), str(tmp_path / 'work'))
  assert own.startswith(teacher)
  graph = Graph(build_steps(config(**fields), str(tmp_path / 'work')), str(tmp_path / 'work'),
                lambda line: None)
  assert [s.name for s in graph.steps if graph.done(s)] == ['mine', 'tokenize_mine']
  c.distill.teacher = str(tmp_path / 'not_yet')
  with pytest.raises(ValueError, match=r'distill.teacher=.*not_yet is not there.*tokenizer.path'):
    prepare.prepare(c, str(tmp_path / 'other'))

"""The rules of the house: who imports whom, every config builds, every command explains itself."""

import ast
import dataclasses
import importlib
import pathlib
import sys

import pytest
from conftest import LONG, REPOSITORY, run_commands

from configs import base, smollm3
from experiments import pipeline
from smoljax.model import ModelConfig

# What each wing must never import.
FORBIDDEN = {
  'smoljax': {'apache_beam', 'data_beam', 'experiments', 'configs', 'ml_collections', 'absl'},
  'data_beam': {'jax', 'flax', 'optax', 'smoljax', 'experiments', 'configs', 'tensorflow'},
  'configs': {'jax', 'smoljax', 'data_beam', 'experiments', 'apache_beam'},
  'experiments': {'tensorflow'},
}
# One owner per third party.
OWNERS = {
  'flax': {'model.py'},
  'optax': {'optim.py', 'muon.py', 'soap.py'},
  'orbax': {'checkpoint.py'},
  'grain': {'data.py'},
  'sentencepiece': {'tokenizer.py'},
  'safetensors': {'export.py'},
  'tensorboardX': {'metrics.py'},
  'pynvml': {'metrics.py'},
  'wandb': {'metrics.py'},
}
# Modules that import no sibling.
LEAVES = {
  'sharding.py', 'muon.py', 'metrics.py', 'charts.py', 'attention.py', 'tokenizer.py', 'guard.py',
}  # fmt: skip
PICKLES = ('pickle.load', 'torch.load', 'allow_pickle=True')

COMMANDS = [
  'experiments.run',
  'experiments.evaluate',
  'experiments.export',
  'experiments.generate',
  'experiments.report',
  'experiments.shapes',
  'experiments.lens',
  'experiments.architecture',
  'experiments.lineage',
  'experiments.selfdocs',
  'data_beam.web',
  'data_beam.pdf',
  'data_beam.quality',
  'data_beam.tokenize_corpus',
  'data_beam.tables',
  'data_beam.python_source',
]


def files(package):
  return sorted((REPOSITORY / package).rglob('*.py'))


def imports(path):
  """Top-level names of all modules that a file imports, siblings as `package.module`."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {a.name for a in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      names |= {f'{node.module}.{a.name}' for a in node.names} | {node.module}
  return names


@pytest.mark.parametrize('package', FORBIDDEN)
def test_wings_do_not_import_each_other(package):
  for path in files(package):
    found = {n.split('.')[0] for n in imports(path)} & FORBIDDEN[package]
    assert not found, f'{path.name} imports {found}'


def test_one_owner_per_third_party():
  for path in files('smoljax'):
    for name in imports(path):
      owners = OWNERS.get(name.split('.')[0])
      assert owners is None or path.name in owners, f'{path.name} imports {name}'


def test_leaves_import_no_sibling():
  for path in files('smoljax'):
    if path.name in LEAVES:
      siblings = {n for n in imports(path) if n.startswith('smoljax.')}
      allowed = {'smoljax.sharding'} if path.name == 'attention.py' else set()
      assert siblings <= allowed, f'{path.name} imports {siblings}'


def test_no_file_shadows_the_standard_library():
  for package in FORBIDDEN:
    for path in files(package):
      assert path.stem == '__init__' or path.stem not in sys.stdlib_module_names, path


def test_no_pickle():
  for package in FORBIDDEN:
    for path in files(package):
      assert not any(p in path.read_text() for p in PICKLES), path


@pytest.mark.parametrize('path', files('configs'), ids=lambda p: p.stem)
def test_every_config_builds(path):
  if path.stem == '__init__':
    return
  config = importlib.import_module(f'configs.{path.stem}').get_config()
  if 'train' not in config:  # no run's, but a benchmark's
    return
  extra = set(config) - set(base.get_config())
  assert not extra, f'{path.name} has keys that base.py does not know: {extra}'
  pipeline.resolve(config)
  pipeline.model_config(config, config.tokenizer.vocab_size)


@pytest.mark.parametrize('size', smollm3.SIZES)
@pytest.mark.parametrize('stage', ['pretrain', '32k', '64k'])
def test_smollm3_at_every_size_and_stage(size, stage):
  c = pipeline.resolve(smollm3.get_config(f'size={size},stage={stage}'))
  steps = dict(pretrain=4_720_000, **{'32k': 20_000, '64k': 22_000})[stage]
  assert (c.train.steps, c.train.rows * c.data.seq_len) == (steps, 2_359_296)
  model = pipeline.model_config(c, c.tokenizer.vocab_size)
  assert model.rope_theta == dict(pretrain=5e4, **{'32k': 2e6, '64k': 5e6})[stage]
  assert model.nope_interval == 4 and model.max_seq_len == c.data.seq_len
  if size == '3b':
    assert model.num_params() == 3_075_098_624


def test_smollm3s_published_mixtures_and_its_ablations():
  c = pipeline.resolve(smollm3.get_config('mixture=published'))
  one, _, three = (dict(stage['mixture']) for stage in c.train.stages)
  assert (one['dclm'], three['stack-edu-real-shuffled-Python']) == (0.37, 0.07)
  assert not c.web.enabled and not c.pdf.enabled
  c = smollm3.get_config('mixture=published,stage=64k,only=dclm+fineweb-edu')
  assert [set(stage['mixture']) for stage in c.train.stages] == [{'dclm', 'fineweb-edu'}]
  c = pipeline.resolve(smollm3.get_config('stage=ablation'))
  model = pipeline.model_config(c, c.tokenizer.vocab_size)
  assert c.train.tokens == pytest.approx(45e9, rel=1e-3) and model.rope_scaling is None
  assert model.num_params() == 1_235_814_400  # Llama 3.2's 1B


def test_every_field_of_a_model_can_be_set_in_a_config():
  elsewhere = {'vocab_size', 'max_seq_len', 'max_segments'}  # the tokenizer, and section data
  fields = {f.name for f in dataclasses.fields(ModelConfig)} - elsewhere
  assert fields == set(base.get_config().model) - {'shape'}


def test_config_arguments_are_checked():
  with pytest.raises(ValueError, match=r'stage=16k.*size=3b'):
    smollm3.get_config('stage=16k')


@pytest.fixture(scope='module')
def helps():
  return dict(zip(COMMANDS, run_commands(*([c, '--help'] for c in COMMANDS)), strict=True))


@pytest.mark.parametrize('command', COMMANDS)
def test_every_help_works(command, helps):
  result = helps[command]
  text = result.stdout + result.stderr
  assert result.returncode in (0, 1), text  # absl exits with 1 after printing its help
  assert 'Traceback' not in text
  assert '--' in text and len(text) > 200


def test_every_command_is_in_the_readme():
  readme = pathlib.Path(REPOSITORY, 'README.md').read_text()
  for command in COMMANDS:
    if command != 'experiments.selfdocs':
      assert command in readme, f'README.md does not mention {command}'


def test_the_long_tests_that_come_first_exist():
  assert set(LONG) <= {path.stem for path in (REPOSITORY / 'tests').rglob('test_*.py')}

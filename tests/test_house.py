"""The rules of the house: who imports whom, every config builds, every command explains itself."""

import ast
import importlib
import pathlib
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from configs import base
from experiments import pipeline

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
  'optax': {'optim.py', 'muon.py'},
  'orbax': {'checkpoint.py'},
  'grain': {'data.py'},
  'sentencepiece': {'tokenizer.py'},
  'safetensors': {'export.py'},
  'tensorboardX': {'metrics.py'},
}
# Modules that import no sibling.
LEAVES = {'sharding.py', 'muon.py', 'metrics.py', 'charts.py', 'attention.py', 'tokenizer.py'}
PICKLES = ('pickle.load', 'torch.load', 'allow_pickle=True')

COMMANDS = [
  'experiments.run',
  'experiments.evaluate',
  'experiments.export',
  'experiments.generate',
  'experiments.report',
  'experiments.selfdocs',
  'data_beam.web',
  'data_beam.pdf',
  'data_beam.tokenize_corpus',
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
  extra = set(config) - set(base.get_config())
  assert not extra, f'{path.name} has keys that base.py does not know: {extra}'
  pipeline.resolve(config)
  pipeline.model_config(config, config.tokenizer.vocab_size)


@pytest.mark.parametrize('command', COMMANDS)
def test_every_help_works(command):
  result = subprocess.run(
    [sys.executable, '-m', command, '--help'],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=120,
  )
  text = result.stdout + result.stderr
  assert result.returncode in (0, 1), text  # absl exits with 1 after printing its help
  assert 'Traceback' not in text
  assert '--' in text and len(text) > 200


def test_every_command_is_in_the_readme():
  readme = pathlib.Path(REPOSITORY, 'README.md').read_text()
  for command in COMMANDS:
    if command != 'experiments.selfdocs':
      assert command in readme, f'README.md does not mention {command}'

"""The rules of the house: who imports whom, every config builds, every command explains itself."""

import ast
import dataclasses
import functools
import importlib
import pathlib
import re
import sys

import pytest
from conftest import LONG_TESTS, REPOSITORY, run_commands
from helpers.code import imports

from configs import base, smollm3
from experiments.engine import config as config_lib
from smoljax.model import ModelConfig

# What each wing must never import.
FORBIDDEN = {
  'smoljax': {'apache_beam', 'data_beam', 'experiments', 'configs', 'ml_collections', 'absl'},
  'data_beam': {'jax', 'flax', 'optax', 'smoljax', 'experiments', 'configs', 'tensorflow'},
  'configs': {'jax', 'smoljax', 'data_beam', 'experiments', 'apache_beam'},
  'experiments': {'tensorflow'},
}
# Files that serve several wings, of the standard library alone: the options of the pipelines are
# said once, what BOS, EOS and pad are is decided in one place, a conversation is rendered for
# training (tokenised ahead of it) as it is at inference, by one template, and so is what nobody
# may see.
ALLOWED = {
  'configs': ('data_beam.options',),
  'smoljax': ('data_beam.special_tokens', 'data_beam.chat', 'data_beam.redact'),
}
# The floors of smoljax/, lowest first: each imports only lower ones, and itself.
FLOORS = (
  {'sharding', 'distributed', 'metrics', 'files', 'gpu', 'object_store'},
  {'model'},
  {'data', 'optim', 'inference'},
  {'checkpoints'},
  {'evals'},
  {'train'},
  {'scaling'},
  {'report'},
)
# Names that users rely on, on no floor: smoljax/NAME.py re-exports them, nothing here imports it.
NAMES = {'export', 'muon'}
# One owner per third party, file or floor.
OWNERS = {
  'flax': 'model/',
  'fsspec': 'object_store.py',
  'optax': 'optim/',
  'orbax': 'checkpoints/store.py',
  'grain': 'data/',
  'tensorflow_datasets': ('data/', 'report/corpus_page.py'),
  'sentencepiece': 'data/tokenizer.py',
  'safetensors': ('checkpoints/huggingface.py', 'checkpoints/hf_folder.py'),
  'tensorboardX': 'metrics.py',
  'pynvml': 'gpu.py',
  'wandb': 'metrics.py',
}
PICKLES = ('pickle.load', 'torch.load', 'allow_pickle=True')
# Longer or with more parameters than a reader can hold, and why.
MAX_FILE, MAX_LINES, MAX_PARAMETERS = 700, 120, 12
LONG = {
  'configs.base.get_config': 'every default, once, with its unit: a list to look things up in',
}
MANY = {
  'smoljax.evals.run.evaluate': 'users rely on it: a model, what it is asked, and how',
  'smoljax.optim.muon.scale_by_muon': 'users rely on it: each is a hyperparameter of the method',
  'smoljax.model.attention.attention': 'the function of a paper: three arrays and what masks them',
}


def files(package):
  return sorted((REPOSITORY / package).rglob('*.py'))


def name_of(path):
  """The dotted name of a module."""
  parts = path.relative_to(REPOSITORY).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {name_of(path): path for package in FORBIDDEN for path in files(package)}
# Everything that answers `python -m`.
COMMANDS = sorted(
  name.removesuffix('.__main__') for name, path in MODULES.items()
  if "if __name__ == '__main__':" in path.read_text())


def imported_files(path):
  """The modules of this repository that a file imports, a package only where it is itself meant."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {a.name for a in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      found |= {f'{node.module}.{a.name}' if f'{node.module}.{a.name}' in MODULES else node.module
                for a in node.names}
  return found & MODULES.keys()


@pytest.mark.parametrize('package', FORBIDDEN)
def test_wings_do_not_import_each_other(package):
  for path in files(package):
    found = {n.split('.')[0] for n in imports(path)
             if not n.startswith(ALLOWED.get(package, (' ',)))} & FORBIDDEN[package]
    assert not found, f'{path} imports {found}'


@pytest.mark.parametrize('name', sum(ALLOWED.values(), ()))
def test_what_wings_share_is_a_leaf(name):
  assert {n.split('.')[0] for n in imports(MODULES[name])} <= sys.stdlib_module_names


def test_a_floor_imports_only_lower_ones():
  height = {room: i for i, floor in enumerate(FLOORS) for room in floor}
  for name, path in MODULES.items():
    if not name.startswith('smoljax.') or (room := name.split('.')[1]) in NAMES:
      continue
    assert room in height, f'{path} stands on no floor'
    for other in imported_files(path) - {'smoljax'}:
      other_room = other.split('.')[1] if other.startswith('smoljax.') else room
      lowest = height[room] == 0
      assert other_room == room or height.get(other_room, 99) < height[room] or (
        lowest and height.get(other_room) == 0), f'{name} imports {other}, which is not below it'


def test_no_circle_of_files():
  """Imports inside functions count too."""
  depth: dict[str, int] = {}

  def visit(name, path):
    assert name not in path, f'a circle: {" → ".join([*path[path.index(name):], name])}'
    if name not in depth:
      for other in imported_files(MODULES[name]) - {name}:
        visit(other, [*path, name])
      depth[name] = len(path)

  for name in MODULES:
    visit(name, [])


def test_reports_never_import_jax():
  seen, todo = set(), [n for n in MODULES if n.startswith('smoljax.report')]
  while todo:
    name = todo.pop()
    if name in seen:
      continue
    seen.add(name)
    parents = {'.'.join(name.split('.')[:i]) for i in range(1, name.count('.') + 1)}
    assert not {n.split('.')[0] for n in imports(MODULES[name])} & {'jax', 'flax'}, name
    todo += (imported_files(MODULES[name]) | parents) & MODULES.keys()


def test_one_owner_per_third_party():
  for path in files('smoljax'):
    place = path.relative_to(REPOSITORY / 'smoljax').as_posix()
    for name in imports(path):
      owner = OWNERS.get(name.split('.')[0])
      assert owner is None or place.startswith(owner), f'{place} imports {name}: {owner} owns it'


def test_no_file_shadows_the_standard_library():
  for path in MODULES.values():
    assert path.stem.startswith('__') or path.stem not in sys.stdlib_module_names, path


def test_no_pickle():
  for path in MODULES.values():
    assert not any(p in path.read_text() for p in PICKLES), path


def test_no_file_is_longer_than_a_reader_can_hold():
  for path in (*MODULES.values(), *files('tests')):
    length = len(path.read_text().splitlines())
    assert length <= MAX_FILE, f'{path} has {length} lines'


def functions(name):
  """(dotted name, node) of all functions of a module, those inside others too."""
  def walk(node, prefix):
    for child in ast.iter_child_nodes(node):
      inner = prefix
      if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        inner = f'{prefix}.{child.name}'
        if not isinstance(child, ast.ClassDef):
          yield inner, child
      yield from walk(child, inner)
  yield from walk(ast.parse(MODULES[name].read_text()), name)


def test_no_function_is_longer_or_takes_more_than_a_reader_can_hold():
  found = {'long': set(), 'many': set()}
  for module in MODULES:
    for name, node in functions(module):
      args = node.args
      if node.end_lineno - node.lineno >= MAX_LINES:
        found['long'].add(name)
      if len(args.posonlyargs + args.args + args.kwonlyargs) > MAX_PARAMETERS:
        found['many'].add(name)
  assert found == {'long': LONG.keys(), 'many': MANY.keys()}


def untyped(path):
  """Public functions and methods of a file whose arguments or result have no type."""
  todo = [('', ast.parse(path.read_text()).body)]
  for owner, body in todo:
    for node in body:
      if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
        todo.append((f'{node.name}.', node.body))
      elif isinstance(node, ast.FunctionDef) and not node.name.startswith('_'):
        a = node.args
        named = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
        bare = [x.arg for x in named if x.annotation is None and x.arg not in ('self', 'cls')]
        if bare or node.returns is None:
          place = path.relative_to(REPOSITORY)
          yield f'{place}:{node.lineno} {owner}{node.name}({", ".join(bare)})'


def test_public_names_are_typed():
  """What they say is held by ruff (D101 to D103)."""
  bare = [name for package in FORBIDDEN
          for path in files(package) for name in untyped(path)]
  assert not bare, '\n'.join(bare)


@pytest.mark.parametrize('path', files('configs'), ids=lambda p: p.stem)
def test_every_config_builds(path):
  if path.stem == '__init__':
    return
  config = importlib.import_module(f'configs.{path.stem}').get_config()
  if 'train' not in config:  # no run's, but a benchmark's
    return
  extra = set(config) - set(base.get_config())
  assert not extra, f'{path.name} has keys that base.py does not know: {extra}'
  config_lib.resolve(config)
  config_lib.model_config(config, config.tokenizer.vocab_size)


@pytest.mark.parametrize('size', smollm3.SIZES)
@pytest.mark.parametrize('stage', ['pretrain', '32k', '64k'])
def test_smollm3_at_every_size_and_stage(size, stage):
  c = config_lib.resolve(smollm3.get_config(f'size={size},stage={stage}'))
  steps = dict(pretrain=4_720_000, **{'32k': 20_000, '64k': 22_000})[stage]
  assert (c.train.steps, c.train.rows * c.data.seq_len) == (steps, 2_359_296)
  model = config_lib.model_config(c, c.tokenizer.vocab_size)
  assert model.rope_theta == dict(pretrain=5e4, **{'32k': 2e6, '64k': 5e6})[stage]
  assert model.nope_interval == 4 and model.max_seq_len == c.data.seq_len
  if size == '3b':
    assert model.num_params() == 3_075_098_624


def test_smollm3s_published_mixtures_and_its_ablations():
  c = config_lib.resolve(smollm3.get_config('mixture=published'))
  one, _, three = (dict(stage['mixture']) for stage in c.train.stages)
  assert (one['dclm'], three['stack-edu-real-shuffled-Python']) == (0.37, 0.07)
  assert not c.web.enabled and not c.pdf.enabled
  c = smollm3.get_config('mixture=published,stage=64k,only=dclm+fineweb-edu')
  assert [set(stage['mixture']) for stage in c.train.stages] == [{'dclm', 'fineweb-edu'}]
  c = config_lib.resolve(smollm3.get_config('stage=ablation'))
  model = config_lib.model_config(c, c.tokenizer.vocab_size)
  assert c.train.tokens == pytest.approx(45e9, rel=1e-3) and model.rope_scaling is None
  assert model.num_params() == 1_235_814_400  # Llama 3.2's 1B


@pytest.mark.parametrize('stage, rows, steps, corpora', [
  ('mid', 128, 33_379, 2), ('sft', 128, 954, 25), ('apo', 4, 5281, 2)])
def test_smollm3s_post_training(stage, rows, steps, corpora):
  c = config_lib.resolve(smollm3.get_config(f'stage={stage},mixture=published'))
  assert (c.train.rows, c.train.steps) == (rows, steps)
  assert (c.optimizer.clip_norm, c.optimizer.floor) == (0.2, 0.1)
  assert len(c.train.stages[0]['mixture']) == corpora and not c.conversations.enabled
  assert smollm3.get_config(f'stage={stage}').conversations.enabled
  assert c.tokenize.train_user == (stage == 'mid')
  assert bool(c.train.preference.loss) == (stage == 'apo')


def test_every_field_of_a_model_can_be_set_in_a_config():
  elsewhere = {'vocab_size', 'max_seq_len', 'max_segments'}  # the tokenizer, and section data
  fields = {f.name for f in dataclasses.fields(ModelConfig)} - elsewhere
  assert fields == set(base.get_config().model) - {'shape'}


def test_config_arguments_are_checked():
  with pytest.raises(ValueError, match=r'stage=16k.*size=3b'):
    smollm3.get_config('stage=16k')


@functools.cache
def helps(benchmarks):
  """Of the benchmarks or of the other commands, by name."""
  commands = [c for c in COMMANDS if benchmarks == ('benchmarks' in c)]
  return dict(zip(commands, run_commands(*([c, '--help'] for c in commands)), strict=True))


@pytest.mark.parametrize('command', [
  pytest.param(c, marks=pytest.mark.slow if 'benchmarks' in c else ()) for c in COMMANDS])
def test_every_help_works(command):
  result = helps('benchmarks' in command)[command]
  text = result.stdout + result.stderr
  missing = re.search(r"ModuleNotFoundError: No module named '(\w+)", text)
  if missing and missing[1] not in FORBIDDEN:  # what a benchmark compares with is no requirement
    pytest.skip(f'{missing[1]} is not installed')
  assert result.returncode in (0, 1), text  # absl exits with 1 after printing its help
  assert 'Traceback' not in text
  assert '--' in text and len(text) > 200


def test_every_command_is_in_the_documents():
  """Benchmarks and what only an experiment runs are in the log, the rest in docs/."""
  page = pathlib.Path(REPOSITORY, 'docs', 'commands.md').read_text()
  for command in COMMANDS:
    if not command.startswith(('experiments.benchmarks', 'experiments.quickstart')):
      assert command in page, f'docs/commands.md does not mention {command}'


def test_the_long_tests_that_come_first_exist():
  assert set(LONG_TESTS) <= {path.stem for path in (REPOSITORY / 'tests').rglob('test_*.py')}

"""Makes the data of a run, or of all stages of a series, or points of a sweep, and trains nothing.

  python -m experiments.prepare --config=configs/smollm3_small.py:data=small --workdir=runs/small
  python -m experiments.prepare --config=configs/data_ablation.py:panel --workdir=runs/panel --sweep

Curation, tokenizer and tokens are then in WORKDIR/steps, where `experiments.run` with the same
config finds them done. So data may be made on a machine with Beam, and the workdir be taken to one
with GPUs and without Beam. What the config names as input must lie at the same paths there, as seen
from where the command is run; of corpora that it brings, the files beside the shards suffice.
"""

import contextlib
from collections.abc import Mapping, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import series, sweep
from experiments.engine import cli
from experiments.engine.build import build_steps
from experiments.engine.config import MODELS, resolve, unknown_field
from experiments.engine.corpora import choose_corpora
from experiments.engine.graph import Graph
from smoljax.checkpoints import load

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Recipe, such as configs/quickstart.py.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'As of experiments.run.', required=True)
_SWEEP = flags.DEFINE_bool('sweep', False, 'Of all points that experiments.sweep would run.')


def prepare(c: ConfigDict, workdir: str, tokenizer: str = '') -> str:
  """Runs the steps of the config ahead of training and of what a teacher says.

  Args:
    c: the config, which is resolved.
    workdir: where its steps lie.
    tokenizer: that of the models that it begins with; '' = that of one of them that is there.

  Returns:
    Its tokenizer's path.

  Raises:
    ValueError: none of the models that decide the tokenizer is there.
  """
  # Models that a stage begins with need not be there yet. Of data they decide the tokenizer alone.
  fields = [(f, *f.split('.')) for f in MODELS]
  models = {field: c[section][name] for field, section, name in fields if c[section][name]}
  if models and not c.tokenizer.path:
    c.tokenizer.path = tokenizer or _tokenizer_of(models)
  for _, section, name in fields:
    c[section][name] = ''
  choose_corpora(c)
  resolve(c)
  steps = build_steps(c, workdir)
  first = next(i for i, s in enumerate(steps) if s.name == 'train')
  Graph(steps[:first], workdir, cli.console.print).run()
  return c.tokenizer.path or f'{workdir}/tokenizer.model'


def _tokenizer_of(models: Mapping[str, str]) -> str:
  """The tokenizer of the first model that is there; ValueError where none is."""
  for path in models.values():
    with contextlib.suppress(FileNotFoundError):
      return load.find_tokenizer(path.split(',')[0])
  field, path = next(iter(models.items()))
  raise ValueError(f'{field}={path} is not there yet, and decides what tokens mean: prepare where '
                   'it is, or give --config.tokenizer.path')


def main(argv: Sequence[str]) -> None:
  """The command line."""
  c, root, tokenizer = _CONFIG.value, _WORKDIR.value, ''
  if c is None:
    raise ValueError('which recipe? Give --config=configs/quickstart.py')
  if not (c.series or _SWEEP.value):
    prepare(c, root)
    return
  config = config_flags.get_config_filename(flags.FLAGS['config'])
  fields = config_flags.get_override_values(flags.FLAGS['config'])
  given = [f'--config.{k}={v}' for k, v in fields.items()]
  if _SWEEP.value:
    points = sweep.plan(config, root, given)
    sweep.check(points, config)
  else:
    points = series.stages(c, config, root, given)
  for point in points:  # each finds what those before it made
    cli.console.print(f'{point.name}:')
    sweep.make_folder(point)
    own = [f for f in point.command if f.startswith('--config.')]
    tokenizer = prepare(sweep.load_config(config, own), str(point.folder), tokenizer)


if __name__ == '__main__':
  cli.start(main, unknown_field)

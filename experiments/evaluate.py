"""Measures a model: bits per byte on held-out text, and multiple-choice tasks.

  python -m experiments.evaluate --checkpoint=runs/quickstart --tasks=continuation \\
      --corpus=runs/quickstart/tokens/web/1.0.0 --output=eval.json
  python -m experiments.evaluate --checkpoint=SmolLM3-3B --tasks=hellaswag,piqa \\
      --eval_data=eval_data --limit=1000 --output=eval.json

Public tasks are read from JSONL files in --eval_data (nothing is downloaded; a missing file is
named). Questions of your own are a file NAME.jsonl there, an object a line, and --tasks=NAME:

  {"question": "Which colour is the sky?", "choices": ["green", "blue"], "answer": 1}

`answer` counts from 0, or is the choice's letter or text; "context" may say what the question is
about. Beside each score stand chance, the model without the question, and the longest answer.
"""

import json
import os
import sys

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments.engine import cli
from smoljax import evals, sharding
from smoljax.checkpoints import load
from smoljax.evals.held_out import load_documents
from smoljax.evals.tasks import TASKS

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', None, 'A run (its workdir, checkpoints folder or one step), or a HF model folder.'
)
_TASKS = flags.DEFINE_list(
  'tasks', [], f'Any of: {", ".join(TASKS)}; or NAME of a file NAME.jsonl in --eval_data with '
  'questions of your own.')
_EVAL_DATA = flags.DEFINE_string('eval_data', '', 'Folder with the JSONL files of tasks.')
_CORPUS = flags.DEFINE_list(
  'corpus', [], 'Tokenised corpora (DIR/NAME/VERSION) whose held-out documents give bits per byte '
  'and the continuation task.'
)
_OUTPUT = flags.DEFINE_string('output', None, 'The JSON file to write.')
_TOKENIZER = flags.DEFINE_string('tokenizer', '', 'Tokenizer file, where the model names none.')
_LIMIT = flags.DEFINE_integer(
  'limit', 0, 'Examples a task and documents a corpus; 0 = all.',
  lower_bound=0, upper_bound=2**31 - 1)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 16, 'Sequences at once; changes no score.',
  lower_bound=1, upper_bound=2**31 - 1)
_SEQ_LEN = flags.DEFINE_integer(
  'seq_len', 0, 'Context in tokens; 0 = what the model was trained for, at most 4096.',
  lower_bound=0, upper_bound=2**31 - 1)
_SEED = flags.DEFINE_integer(
  'seed', 0, 'Draws the continuation task.',
  lower_bound=0, upper_bound=2**31 - 1)

console = Console(highlight=False, soft_wrap=True)


def main(argv: list[str]) -> None:
  """The command line; bad input is one line and exit code 2."""
  try:
    if not _CHECKPOINT.value:
      raise ValueError('which model? Give --checkpoint=DIR')
    if not _OUTPUT.value:
      raise ValueError('where to? Give --output=FILE.json')
    if not _TASKS.value and not _CORPUS.value:
      raise ValueError('nothing to measure: give --tasks, --corpus or both')
    results = _evaluate()
  except (OSError, ValueError) as e:
    sys.exit(cli.complain(e))
  if results['tasks']:
    console.print(_table(results['tasks']))
  print(f'results: {_OUTPUT.value}')


def _evaluate() -> dict:
  folder = os.path.dirname(os.path.abspath(str(_OUTPUT.value)))
  os.makedirs(folder, exist_ok=True)  # a bad path must not cost an evaluation
  documents = {}
  for path in _CORPUS.value:
    name = os.path.basename(os.path.dirname(os.path.normpath(path))) or path
    documents[name] = load_documents(path, limit=_LIMIT.value)
  loaded = load.load_model(_CHECKPOINT.value, _TOKENIZER.value)
  config = loaded.config
  mesh = sharding.make_mesh(data=-1)  # every device holds the model and takes a part of each batch
  with jax.set_mesh(mesh):
    results = evals.evaluate(
      config,
      jax.device_put(loaded.params, sharding.shardings(loaded.params, mesh)),
      loaded.tokenizer,
      _TASKS.value,
      _EVAL_DATA.value,
      documents=documents,
      bos=loaded.bos,
      seq_len=_SEQ_LEN.value or min(config.max_seq_len, 4096),
      batch_size=_BATCH_SIZE.value,
      limit=_LIMIT.value,
      seed=_SEED.value,
      log_line=console.print,
    )
  results = {'checkpoint': _CHECKPOINT.value, **results}
  temporary = f'{_OUTPUT.value}.tmp'
  with open(temporary, 'w', encoding='utf-8') as f:
    json.dump(results, f, indent=1, ensure_ascii=False)
  os.replace(temporary, _OUTPUT.value)
  return results


def _table(tasks: dict) -> Table:
  table = Table(title='Accuracy, %')
  columns = ('acc', '±', 'acc_norm', 'per token', 'PMI', 'blind', 'longest', 'chance', 'n')
  for name in ('task', *columns):
    table.add_column(name, justify='left' if name == 'task' else 'right')
  for name, r in tasks.items():
    values = [
      r['acc'], r['stderr'], r.get('acc_norm'), r.get('acc_token'), r.get('acc_pmi'),
      r['blind']['acc'], r['longest'], r['chance'],
    ]
    cells = ['' if v is None else f'{100 * v:.1f}' for v in values]
    table.add_row(name, *cells, f'{r["n"]:,}')
  return table


if __name__ == '__main__':
  cli.start(main)

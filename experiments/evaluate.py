"""Measures a model: bits per byte on held-out text, multiple choice, and what it writes.

  python -m experiments.evaluate --checkpoint=runs/quickstart --tasks=continuation \\
      --corpus=runs/quickstart/tokens/web/1.0.0 --output=eval.json
  python -m experiments.evaluate --checkpoint=SmolLM3-3B --tasks=hellaswag,piqa \\
      --eval_data=eval_data --limit=1000 --output=eval.json
  python -m experiments.evaluate --checkpoint=SmolLM3-3B --tasks=gsm8k,humaneval,modes,mine.jsonl \\
      --modes=think,no_think --eval_data=eval_data --output=eval.json
  python -m experiments.evaluate --checkpoint=runs/long --tasks=ruler --lengths=4096,32768 \\
      --corpus=runs/long/tokens/web/1.0.0 --output=ruler.json

Public tasks are read from JSONL files in --eval_data (nothing is downloaded; a missing file is
named). Questions of your own are a file NAME.jsonl there, an object a line, and --tasks=NAME:

  {"question": "Which colour is the sky?", "choices": ["green", "blue"], "answer": 1}
  {"prompt": "What is 2 + 2?", "answer": "4"}

To choose from: `answer` counts from 0, or is the choice's letter or text; "context" may say what
the question is about. To answer freely: smoljax/evals/problems.py says what else there may be.
Beside each score stand chance, the model without the question, and the longest answer; of what is
written, n and an interval. Several --checkpoint of one run, or of runs that differ in their seed,
also tell which tasks can decide anything at this size.
"""

import dataclasses
import math
import os
import re
import sys
from typing import Any

from absl import flags
from rich.table import Table

from experiments.engine import cli
from smoljax import evals, sharding
from smoljax.checkpoints import hf_folder, load, store
from smoljax.evals import generative, problems, ruler, run
from smoljax.evals.held_out import load_documents
from smoljax.evals.tasks import TASKS
from smoljax.inference.sampling import Sampling
from smoljax.scaling import decisive

_CHECKPOINT = flags.DEFINE_list(
  'checkpoint', [], 'A run (its workdir, checkpoints folder or one step), or a HF model folder; '
  'several tell which tasks can decide.'
)
_TASKS = flags.DEFINE_list(
  'tasks', [], f'Multiple choice: {", ".join(TASKS)}. Written by the model: '
  f'{", ".join(problems.SETS)}. Long texts: ruler, or ruler: with one of {", ".join(ruler.TASKS)}. '
  'Or NAME of a file NAME.jsonl in --eval_data with questions of your own.')
_EVAL_DATA = flags.DEFINE_string('eval_data', '', 'Folder with the JSONL files of tasks.')
_CORPUS = flags.DEFINE_list(
  'corpus', [], 'Tokenised corpora (DIR/NAME/VERSION) whose held-out documents give bits per byte, '
  'the continuation task and the filler of long texts.'
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
  'seed', 0, 'Draws the tasks made by rule, and the samples.',
  lower_bound=0, upper_bound=2**31 - 1)
_MODES = flags.DEFINE_list(
  'modes', [], f'How a model that writes is asked, of {", ".join(generative.MODES)}; none = as it '
  'can be.')
_MAX_NEW_TOKENS = flags.DEFINE_integer(
  'max_new_tokens', 0, 'Tokens to write at most; 0 = as many as each task says.',
  lower_bound=0, upper_bound=2**31 - 1)
_SAMPLES = flags.DEFINE_integer(
  'samples', 1, 'Answers to each question.', lower_bound=1, upper_bound=2**31 - 1)
_TEMPERATURE = flags.DEFINE_float('temperature', 0.0, 'Of these; 0 = the likeliest token.')
_TOP_P = flags.DEFINE_float('top_p', 1.0, 'Sample among the likeliest that have this probability.')
_PASS_AT = flags.DEFINE_list('pass_at', ['1'], 'pass@k of these k, up to --samples.')
_LENGTHS = flags.DEFINE_list(
  'lengths', [], 'Of the long texts, in tokens; beyond the trained context by YaRN.')
_LANGUAGES = flags.DEFINE_list('languages', ['en'], f'Of them, of {", ".join(ruler.LANGUAGES)}.')
_UNSAFE = flags.DEFINE_bool(
  'unsafe_programs', False, "Run a model's programs where this machine cannot confine them.")


_MOST = 2**21  # of a length in tokens, and of samples


def main(argv: list[str]) -> None:
  """The command line; bad input is one line and exit code 2."""
  try:
    if not _CHECKPOINT.value:
      raise ValueError('which model? Give --checkpoint=DIR')
    if not _OUTPUT.value:
      raise ValueError('where to? Give --output=FILE.json')
    if not _TASKS.value and not _CORPUS.value:
      raise ValueError('nothing to measure: give --tasks, --corpus or both')
    results = _evaluate_all()
  except (OSError, ValueError) as e:
    sys.exit(cli.complain(e))
  for result in results.get('checkpoints', {'': results}).values():
    if result['tasks']:
      cli.console.print(_table(result['tasks']))
    if result.get('generation'):
      cli.console.print(_written(result['generation']))
  if 'signal' in results:
    cli.console.print(_signals(results['signal']))
  print(f'results: {_OUTPUT.value}')


def _evaluate_all() -> dict:
  folder = os.path.dirname(os.path.abspath(str(_OUTPUT.value)))
  os.makedirs(folder, exist_ok=True)  # a bad path must not cost an evaluation
  for name in _TASKS.value:
    run.require_task(name, _EVAL_DATA.value)
  generation = run.Generation(
    generative.Settings(
      tuple(_MODES.value), _MAX_NEW_TOKENS.value, Sampling(_TEMPERATURE.value, top_p=_TOP_P.value),
      _SAMPLES.value, tuple(_whole('pass_at', _PASS_AT.value)), _BATCH_SIZE.value, _SEED.value),
    _UNSAFE.value, tuple(_whole('lengths', _LENGTHS.value)), tuple(_LANGUAGES.value))
  if os.path.isdir(str(_OUTPUT.value)):
    raise IsADirectoryError(f'--output={_OUTPUT.value} is a folder: give FILE.json')
  documents = {}
  for path in _CORPUS.value:
    name = os.path.basename(os.path.dirname(os.path.normpath(path))) or path
    documents[name] = load_documents(path, limit=_LIMIT.value)
  found = {path: _evaluate(path, documents, generation) for path in _CHECKPOINT.value}
  results: dict[str, Any] = {'checkpoint': _CHECKPOINT.value[0], **found[_CHECKPOINT.value[0]]}
  if len(found) > 1:
    results = {'checkpoints': found, 'signal': _signal_of(found)}
  cli.write_json(_OUTPUT.value, results)
  return results


def _whole(flag: str, values: list[str]) -> list[int]:
  try:
    found = [int(value) for value in values]
  except ValueError:
    found = [0]
  if not all(1 <= n <= _MOST for n in found):
    raise ValueError(f'--{flag}={",".join(values)}: give whole numbers from 1 to {_MOST:,}')
  return found


def _evaluate(path: str, documents: dict, generation: run.Generation) -> dict:
  loaded = load.load_model(path, _TOKENIZER.value)
  config = loaded.config
  with sharding.all_devices(loaded.params) as params:
    return evals.evaluate(
      config,
      params,
      loaded.tokenizer,
      _TASKS.value,
      _EVAL_DATA.value,
      documents=documents,
      bos=loaded.bos,
      seq_len=_SEQ_LEN.value or min(config.max_seq_len, 4096),
      batch_size=_BATCH_SIZE.value,
      limit=_LIMIT.value,
      seed=_SEED.value,
      generation=dataclasses.replace(generation, model=loaded),
      log_line=cli.console.print,
    )


def _signal_of(found: dict[str, dict]) -> dict[str, dict]:
  """What the scores of several checkpoints say of each task."""
  scores: dict[str, dict[str, dict[int, float]]] = {}
  chances: dict[str, float] = {}
  for i, (path, result) in enumerate(found.items()):
    place, step = _run_and_step(path, i)
    rows = {name: (row[row['metric']], row['chance']) for name, row in result['tasks'].items()}
    for name, modes in result.get('generation', {}).items():
      rows |= {f'{name}, {mode}': (row[row['metric']], row.get('constant', 0.0))
               for mode, row in modes.items()}
    for name, (score, chance) in rows.items():
      scores.setdefault(name, {}).setdefault(place, {})[step] = score
      chances[name] = chance
  return {name: decisive.signal(runs, chances[name], generative=name not in TASKS)
          for name, runs in scores.items()}


def _run_and_step(path: str, place: int) -> tuple[str, int]:
  """Which run a checkpoint is of, and its step; a Hugging Face folder stands for itself."""
  if hf_folder.is_hf(path):
    name = re.search(r'(\d+)/*$', path)
    return os.path.dirname(os.path.abspath(path)), int(name[1]) if name else place
  folder = store.find(path)[0]
  return str(folder.parent), int(folder.name)


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
    cells = ['' if v is None or math.isnan(v) else f'{100 * v:.1f}' for v in values]
    table.add_row(name, *cells, f'{r["n"]:,}')
  return table


def _written(tasks: dict) -> Table:
  table = Table(title='Written by the model, %')
  for name in ('task', 'mode', 'metric', 'score', '95 %', 'follows the mode', 'ended', 'tokens',
               'n'):
    table.add_column(name, justify='left' if name in ('task', 'mode', 'metric') else 'right')
  for name, modes in tasks.items():
    for mode, r in modes.items():
      low, high = r['interval']
      table.add_row(
        name, mode, r['metric'], f'{100 * r[r["metric"]]:.1f}', f'{100 * low:.1f}–{100 * high:.1f}',
        f'{100 * r["follows"]:.1f}', f'{100 * r["ended"]:.1f}', f'{r["tokens"]:.0f}', f'{r["n"]:,}')
  return table


def _signals(signals: dict) -> Table:
  table = Table(title='Which tasks can decide')
  for name in ('task', 'rises', 'noise', 'signal / noise', 'above chance', 'decides'):
    table.add_column(name, justify='left' if name in ('task', 'decides') else 'right')
  for name, r in signals.items():
    cells = [f'{r[k]:.3g}' if k in r else '' for k in (
      'monotone', 'noise', 'signal_to_noise', 'above_chance')]
    said = '?' if r['decides'] is None else 'yes' if r['decides'] else f'no: {", ".join(r["why"])}'
    table.add_row(name, *cells, said)
  return table


if __name__ == '__main__':
  cli.start(main)

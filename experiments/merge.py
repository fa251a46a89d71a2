"""Merges models that come from one another, and finds how much of each is best.

  python -m experiments.merge --models=runs/apo,runs/mid --weights=.9,.1 --output=soup
  python -m experiments.merge --models=runs/apo,runs/mid --scan=0,.05,.1,.2,.3 --output=soup \\
      --corpus=runs/mid/tokens/web/1.0.0
  python -m experiments.merge --models=runs/a,runs/b --weights=1,1 --method=ties --density=.3 \\
      --base=runs/sft --output=both

The first one is SmolLM3's: 9 parts of the preference-tuned model and 1 of the mid-training one
that it came from brought its long context back. Models are runs, checkpoints or Hugging Face
folders; the result is a Hugging Face folder, with the tokenizer and generation settings of the
first model. With --scan the last of two models gets each of these shares: half of the held-out
documents of --corpus (bits per byte, mean over corpora) and of the questions of --tasks (1 -
accuracy) choose one, and the other half says how good it is; scan.json has all figures.
"""

import os
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from experiments.engine import cli
from experiments.engine.cli import console, write_json
from smoljax.checkpoints import export_formats, hf_folder, huggingface, load, merge
from smoljax.evals import held_out, multiple_choice, tasks

_MODELS = flags.DEFINE_list('models', [], 'Runs, checkpoints or Hugging Face folders.')
_WEIGHTS = flags.DEFINE_list('weights', [], 'One a model, such as .9,.1.')
_SCAN = flags.DEFINE_list('scan', [], 'Instead of --weights: shares of the last of two models.')
_METHOD = flags.DEFINE_enum('method', 'linear', list(merge.METHODS), 'How; see merge.py.')
_BASE = flags.DEFINE_string('base', '', 'What the models come from; of methods of differences.')
_DENSITY = flags.DEFINE_float('density', 1.0, 'Share of each difference kept, of ties and dare.')
_SCALE = flags.DEFINE_float('scale', 1.0, 'Factor on the merged difference from --base.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of dare, and of the continuation task.')
_OUTPUT = flags.DEFINE_string('output', None, 'Folder for the merged model.')
_DTYPE = flags.DEFINE_enum(
  'dtype', '', ['', *huggingface.DTYPES], 'Of the stored weights; default: what the first model '
  'computes in.')
_CHAT = flags.DEFINE_bool(
  'chat', False, 'With the chat template, where the models are runs: see experiments.export.')
_CORPUS = flags.DEFINE_list('corpus', [], 'Of --scan: tokenised corpora (DIR/NAME/VERSION).')
_TASKS = flags.DEFINE_list('tasks', [], f'Of --scan: any of {", ".join(tasks.TASKS)}.')
_EVAL_DATA = flags.DEFINE_string('eval_data', '', 'Folder with the JSONL files of public tasks.')
_LIMIT = flags.DEFINE_integer('limit', 200, 'Documents a corpus and questions a task; 0 = all.')
_BATCH_SIZE = flags.DEFINE_integer('batch_size', 16, 'Sequences at once.')
_SEQ_LEN = flags.DEFINE_integer('seq_len', 0, 'Context; 0 = the model\'s, at most 4096.')


def main(argv: Sequence[str]) -> None:
  """The command line; raises ValueError or OSError on bad input."""
  if not _OUTPUT.value or not _MODELS.value:
    raise ValueError('which models, and where to? Give --models=DIR,DIR and --output=DIR')
  if bool(_WEIGHTS.value) == bool(_SCAN.value):
    raise ValueError('how much of each? Give either --weights or --scan')
  how = merge.Merge(_METHOD.value, _DENSITY.value, _SCALE.value, _SEED.value)
  if how.needs_base != bool(_BASE.value):
    raise ValueError(f'--method={how.method} {"needs" if how.needs_base else "has no"} --base')
  given = [_numbers(flag, value) for flag, value in (
    ('--weights', _WEIGHTS.value), ('--scan', _SCAN.value))]
  if given[1] and len(_MODELS.value) != 2:
    raise ValueError(f'--scan is of two models, not {len(_MODELS.value)}')
  if given[1] and not (_CORPUS.value or _TASKS.value):
    raise ValueError('--scan needs something to choose by: --corpus, --tasks or both')
  hf_folder.Export(_OUTPUT.value, {hf_folder.CONFIG})  # raises now if the folder is taken
  paths = [*_MODELS.value, *([_BASE.value] if _BASE.value else [])]
  loaded = {path: load.load_model(path) for path in paths}
  merge.require_same(loaded)
  first = loaded[paths[0]]
  first.config.to_hf()  # raises now, rather than when all is computed
  params = [loaded[path].params for path in _MODELS.value]
  base = loaded[_BASE.value].params if _BASE.value else None
  weights, best, rows = given[0], None, []
  if given[1]:
    made = lambda t: merge.merge(how, params, [1 - t, t], base)
    best, rows = merge.scan(given[1], made, _scorer(first))
    for row in rows:
      console.print(f'{row.weight:g}: {row.choosing:.4f} where it is chosen, '
                    f'{row.reporting:.4f} on the other half' + ' ←' * (row == best))
    weights = [1 - best.weight, best.weight]
  merged = first._replace(params=merge.merge(how, params, weights, base))
  export_formats.write_hf(merged, _OUTPUT.value, dtype=_DTYPE.value, with_chat=_CHAT.value)
  if best:
    write_json(os.path.join(_OUTPUT.value, 'scan.json'), {
      'models': _MODELS.value, 'method': how.method, 'best': best._asdict(),
      'rows': [row._asdict() for row in rows]})
  console.print(f'{_OUTPUT.value}: {how.method} of ' + ', '.join(
    f'{w:g} {path}' for w, path in zip(weights, _MODELS.value, strict=True)))


def _numbers(flag: str, texts: Sequence[str]) -> list[float]:
  try:
    return [float(text) for text in texts]
  except ValueError:
    raise ValueError(f'{flag}={",".join(texts)}: give numbers, such as .9,.1') from None


def _scorer(model: load.Model) -> Callable[[Any, str], float]:
  """(parameters, half) → mean over corpora of bits per byte and over tasks of 1 - accuracy."""
  documents = {path: held_out.load_documents(path, limit=_LIMIT.value) for path in _CORPUS.value}
  questions = {
    name: tasks.load_task(name, _EVAL_DATA.value, documents=documents, tokenizer=model.tokenizer,
                          limit=_LIMIT.value, seed=_SEED.value) for name in _TASKS.value}
  for name, items in {**documents, **questions}.items():
    if len(items) < 2:
      raise ValueError(f'{name} has {len(items)} item(s): too few to choose by half of them')
  options = {'batch_size': _BATCH_SIZE.value,
             'seq_len': _SEQ_LEN.value or min(model.config.max_seq_len, 4096)}

  def score(params: Any, half: str) -> float:
    first = 0 if half == 'choosing' else 1
    found = [held_out.bits_per_byte(model.config, params, of[first::2], **options)['bpb']
             for of in documents.values()]
    for name, of in questions.items():
      asked = of[first::2]
      scores = multiple_choice.score_choices(
        model.config, params, model.tokenizer, asked, bos=model.bos, **options)
      row = multiple_choice.summarize(asked, scores, scores, metric='acc', num_shown=0)
      found.append(1 - row['acc' if tasks.TASKS[name].metric == 'acc_pmi'
                           else tasks.TASKS[name].metric])
    return statistics.fmean(found)

  return score


if __name__ == '__main__':
  cli.start(main)

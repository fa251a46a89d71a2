"""How good a model is: bits per byte on held-out text, multiple choice, and what it writes.

The first two rest on one primitive: log-probabilities of the tokens of a sequence, computed in
windows, batched by length. A sequence's padded length depends on that sequence alone, so scores do
not depend on the batch size (beyond float32 rounding of the matmuls), and sums are float64.

No score stands alone. Beside each are the accuracy of chance, of the model without the question
(`blind`) and of always taking the longest answer: length normalisation alone gives a model that
knows nothing 42 % on OpenBookQA.

Add a task: a function row → example and an entry in `TASKS` (smoljax/evals/tasks.py); or, where the
model writes, one that loads a set and an entry in `SETS` (smoljax/evals/problems.py).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from smoljax import model
from smoljax.checkpoints import load
from smoljax.data import chat_template
from smoljax.data.tokenizer import Tokenizer
from smoljax.evals import generative, multiple_choice, problems, ruler
from smoljax.evals.generative import DEFAULT, Settings
from smoljax.evals.held_out import Document, bits_per_byte, copy_probe, unigram_loss
from smoljax.evals.tasks import (
  TASKS,
  find_task,
  has_choices,
  load_task,
  own_file,
  read_task,
)

_RULER = 'ruler'


@dataclasses.dataclass(frozen=True)
class Generation:
  """How the tasks are put in which the model writes.

  Attributes:
    settings: modes, samples, how many tokens, and so on.
    unsafe_programs: run a model's programs even where this machine cannot confine them.
    lengths: of the long texts of `ruler`, in tokens; () = the context evaluated at. Beyond what
      the model was trained for its positions are stretched by YaRN.
    languages: of the long texts.
    long_examples: of each long text, length and language; 0 = as many as of other tasks.
    long_modes: in which they are put; () = those of `settings`.
    folder: keeps the scores as they come, see `generative.evaluate_generation`.
    model: where it was read from a folder, so that its own template and ends of turns hold.
  """

  settings: Settings = DEFAULT
  unsafe_programs: bool = False
  lengths: tuple[int, ...] = ()
  languages: tuple[str, ...] = ('en',)
  long_examples: int = 0
  long_modes: tuple[str, ...] = ()
  folder: str = ''
  model: load.Model | None = None

  @property
  def of_long_texts(self) -> Settings:
    """How the long texts are put."""
    return dataclasses.replace(self.settings, modes=self.long_modes or self.settings.modes)


def require_task(name: str, eval_data: str = '') -> None:
  """Looks for a task before anything is computed, and reads its questions where they are a file.

  Raises:
    ValueError: it is no task, nor a file of one's own in `eval_data`; or a row is no question.
    FileNotFoundError: its file is not in `eval_data`.
  """
  base, _, part = name.partition(':')
  if base == _RULER and part in ('', *ruler.TASKS):
    return
  own = own_file(name, eval_data)
  if name in problems.SETS or (own and not has_choices(own)):
    problems.load_set(name, problems.Source(eval_data, limit=0 if own else 1, weak=True))
    return
  try:
    task = find_task(name, eval_data)
  except ValueError as e:
    raise ValueError(
      f'{e}; written by the model: {", ".join(problems.SETS)}; long texts: {_RULER}, or {_RULER}: '
      f'with one of {", ".join(ruler.TASKS)}') from None
  if task.file:
    read_task(name, eval_data)


def evaluate(
  config: model.ModelConfig,
  params: dict,
  tokenizer: Tokenizer,
  tasks: Sequence[str],
  eval_data: str = '',
  *,
  documents: Mapping[str, Sequence[Document]] | None = None,
  unigram_counts: Mapping[str, np.ndarray] | None = None,
  bos: bool,
  seq_len: int,
  batch_size: int = 16,
  limit: int = 0,
  seed: int = 0,
  generation: Generation = Generation(),
  log_line: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
  """Bits per byte of each corpus in `documents`, copying (`copy_probe`), and each task.

  Args:
    eval_data: folder with the JSONL files of public tasks (`TASKS` names them) and of your own.
    documents: corpus name → held-out token documents; the continuation task is made from them.
    unigram_counts: corpus name → counts of training tokens, for `unigram_loss`.
    bos: documents begin with BOS in training.
    seq_len: context in tokens, no more than the model was trained for.
    limit: examples a task, spread evenly over its file; 0 = all (of those made by rule 50 to 200).
    generation: how the tasks are put in which the model writes.
    log_line: is given a line about each result.
  Returns:
    `{'bits_per_byte': {corpus: …}, 'copy': …, 'tasks': {task: …}, 'generation': {task: {mode:
    …}}}`, see `bits_per_byte`, `copy_probe` (where there are documents), `summarize` and
    `evaluate_generation` (where there are such tasks).
  Raises:
    ValueError, FileNotFoundError, execution.Refused: unknown task, missing file or documents, no
      way to confine programs; before anything is run.
  """
  load.require_vocabulary(config, tokenizer)
  documents = documents or {}
  for name in tasks:
    require_task(name, eval_data)
  loaded = {
    name: load_task(
      name, eval_data, documents=documents, tokenizer=tokenizer, limit=limit, seed=seed
    )
    for name in tasks if name in TASKS or has_choices(own_file(name, eval_data))
  }
  source = problems.Source(eval_data, limit, seed, generation.unsafe_programs)
  written = {name: problems.load_set(name, source) for name in tasks
             if name not in loaded and name.partition(':')[0] != _RULER}
  writer = generation.model or load.Model(config, params, tokenizer, bos)
  writer = writer._replace(config=config, params=params)
  long, overhead = _long(tasks), 1
  if long and generation.of_long_texts.modes != ('plain',):
    overhead += _template_tokens(writer)
  generation = dataclasses.replace(generation, lengths=generation.lengths or (seq_len,))
  require_room(tasks, tokenizer, min(generation.lengths), generation.languages, overhead)
  options = {'batch_size': batch_size, 'seq_len': seq_len}
  results: dict[str, Any] = {'bits_per_byte': {}, 'tasks': {}}
  for name, docs in documents.items():
    row = bits_per_byte(config, params, docs, **options)
    if unigram_counts and name in unigram_counts:
      row['unigram_loss'] = unigram_loss(unigram_counts[name], docs)
    results['bits_per_byte'][name] = row
    languages = ', '.join(f'{k or "?"} {x:.3f}' for k, x in row.get('languages', {}).items())
    log_line(f'{name}: {row["bpb"]:.3f} bits per byte, {row["loss"]:.3f} nats per token'
             + (f' ({languages})' if languages else ''))
  if documents:
    everything = [d for docs in documents.values() for d in docs]
    copied = results['copy'] = copy_probe(config, params, everything, **options)
    log_line('copies shuffled text: ' + ', '.join(
      f'{row["accuracy"]:.1%} {name} ({row["saved"]:.2f} nats saved)'
      for name, row in copied.items()))
  for name, examples in loaded.items():
    uninformed = [{**e, 'context': find_task(name, eval_data).blind} for e in examples]
    metric = find_task(name, eval_data).metric
    kinds = [examples, uninformed]
    if metric == 'acc_pmi' and len(examples) > 1:  # which says nothing without any context
      others = [e['context'] for e in (*examples[1:], examples[0])]
      kinds.append([{**e, 'context': other} for e, other in zip(examples, others, strict=True)])
    scores, blind, *astray = (
      multiple_choice.score_choices(config, params, tokenizer, x, bos=bos, **options)
      for x in kinds
    )
    row = results['tasks'][name] = multiple_choice.summarize(
      examples, scores, blind, metric=metric, astray=astray[0] if astray else None)
    spread = f' ± {row["stderr"]:.3f}' * (row['n'] > 1)  # one question has none
    log_line(
      f'{name}: {metric} {row[metric]:.3f}{spread} (blind '
      f'{max(row["blind"].values()):.3f}, chance {row["chance"]:.3f}, {row["n"]} examples)'
    )
  if written:
    results['generation'] = generative.evaluate_generation(
      writer, written, generation.settings, folder=generation.folder, log_line=log_line)
  if long:
    results.setdefault('generation', {}).update(_long_texts(
      writer, long, documents, generation, limit, seed, overhead, log_line))
  return results


def _long(tasks):
  """The parts of `ruler` among tasks."""
  return [part for name, _, part in (task.partition(':') for task in tasks) if name == _RULER
          for part in ((part,) if part else ruler.TASKS)]


def require_room(
  tasks: Sequence[str], tokenizer: Tokenizer, length: int, languages: Sequence[str] = ('en',),
  overhead: int = 1,
) -> None:
  """Raises ValueError where a question of `ruler`, if it is among the tasks, and its answer need
  more than `length` tokens, `overhead` of them for what stands around it."""
  ruler.make(_long(tasks), tokenizer, (length,), languages=languages, num=1, overhead=overhead)


def _long_texts(model_, chosen, documents, generation, limit, seed, overhead, log_line):
  """Scores of `ruler`, length by length: the model's positions are stretched only as needed.

  Filler is of documents alone, so that stages with and without conversations are asked alike.
  """
  texts: dict[str, list[str]] = {}
  for docs in documents.values():
    for d in docs:
      if 'learned' in d:
        continue
      language = d.get('language') or generation.languages[0]
      texts.setdefault(language, []).append(model_.tokenizer.decode(d['tokens']))
  found: dict[str, dict[str, Any]] = {}
  for length in generation.lengths:
    config = model_.config
    stretched = config.extended(length) if length > config.max_seq_len else config
    sets = ruler.make(
      chosen, model_.tokenizer, (length,), languages=generation.languages, documents=texts,
      num=generation.long_examples or limit or 50, seed=seed, overhead=overhead)
    found |= generative.evaluate_generation(
      model_._replace(config=stretched),
      {f'{_RULER}:{task}@{length}': set_ for task, set_ in sets.items()},
      generation.of_long_texts, folder=generation.folder, log_line=log_line)
  return found


def _template_tokens(model_):
  """What the chat template adds to a message, where there is one."""
  try:
    template = load.chat_template_of(model_)
  except ValueError:
    return 0
  return len(chat_template.prompt_ids(
    template, [{'role': 'user', 'content': 'x'}], model_.tokenizer))

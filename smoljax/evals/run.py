"""How good a model is: bits per byte on held-out text, and multiple choice by log-likelihood.

Everything rests on one primitive: log-probabilities of the tokens of a sequence, computed in
windows, batched by length. A sequence's padded length depends on that sequence alone, so scores do
not depend on the batch size (beyond float32 rounding of the matmuls), and sums are float64.

No score stands alone. Beside each are the accuracy of chance, of the model without the question
(`blind`) and of always taking the longest answer: length normalisation alone gives a model that
knows nothing 42 % on OpenBookQA.

Add a task: a function row → example, and an entry in `TASKS` at the bottom.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from smoljax import model
from smoljax.checkpoints import load
from smoljax.data.tokenizer import Tokenizer
from smoljax.evals import multiple_choice
from smoljax.evals.held_out import Document, bits_per_byte, copy_probe, unigram_loss
from smoljax.evals.tasks import find_task, load_task


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
  log_line: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
  """Bits per byte of each corpus in `documents`, copying (`copy_probe`), and each task.

  Args:
    eval_data: folder with the JSONL files of public tasks (`TASKS` names them) and of your own.
    documents: corpus name → held-out token documents; the continuation task is made from them.
    unigram_counts: corpus name → counts of training tokens, for `unigram_loss`.
    bos: documents begin with BOS in training.
    seq_len: context in tokens, no more than the model was trained for.
    limit: examples a task, spread evenly over its file; 0 = all (200 of the continuation task).
    log_line: is given a line about each result.
  Returns:
    `{'bits_per_byte': {corpus: …}, 'copy': …, 'tasks': {task: …}}`, see `bits_per_byte`,
    `copy_probe` (where there are documents) and `summarize`.
  Raises:
    ValueError, FileNotFoundError: unknown task, missing file or documents; before anything is run.
  """
  load.require_vocabulary(config, tokenizer)
  documents = documents or {}
  loaded = {
    name: load_task(
      name, eval_data, documents=documents, tokenizer=tokenizer, limit=limit, seed=seed
    )
    for name in tasks
  }
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
    log_line(
      f'{name}: {metric} {row[metric]:.3f} ± {row["stderr"]:.3f} (blind '
      f'{max(row["blind"].values()):.3f}, chance {row["chance"]:.3f}, {row["n"]} examples)'
    )
  return results

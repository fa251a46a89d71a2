"""How likely a model holds each document of a corpus: perplexity as a quality score.

  python -m experiments.perplexity --checkpoint=runs/small --corpus=corpora/web/1.0.0 --output=DIR
  python -m data_beam.quality join --corpus=corpora/web/1.0.0 --scores='DIR/scores-*.jsonl' \\
      --buckets=head,middle --output=corpora --name=web_fluent

CCNet's measure (arXiv 1911.00359): a small model of text known to be good, such as an encyclopedia,
finds well-formed prose likely and boilerplate, lists and noise unlikely. Each language's documents
are cut into thirds by perplexity: head, middle, tail. (The head is no guarantee of quality: what
repeats itself is likely too, which is why filters come first.) The scores lie beside the corpus,
{"id", "quality" (minus nats per token), "perplexity", "bucket"} a line, one file per shard; a
command that was stopped goes on where it was.
"""

import collections
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from data_beam import records
from experiments.engine import cli
from smoljax import files, sharding
from smoljax.checkpoints import load
from smoljax.evals import likelihood

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', None, 'A run (its workdir, checkpoints folder or one step), or a HF model folder.')
_CORPUS = flags.DEFINE_string('corpus', None, 'Directory of a curated corpus.')
_OUTPUT = flags.DEFINE_string('output', None, 'Directory for the scores.')
_TOKENIZER = flags.DEFINE_string('tokenizer', '', 'Tokenizer file, where the model names none.')
_SEQ_LEN = flags.DEFINE_integer(
  'seq_len', 0, 'Tokens scored of each document, from its start; 0 = what the model was trained '
  'for, at most 1024.',
  lower_bound=0, upper_bound=2**31 - 1)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 16, 'Sequences at once; changes no score.',
  lower_bound=1, upper_bound=2**31 - 1)

console = Console(highlight=False, soft_wrap=True)


def score(
  loaded: load.Model, documents: Iterable[dict], *, seq_len: int, batch_size: int,
) -> Iterator[dict]:
  """Yields {id, language, quality} of the documents in order of computation; quality is minus the
  nats per token. A document of one token predicts nothing and is left out."""

  def stream() -> Iterator[likelihood.Window]:
    for row in documents:
      start = [loaded.tokenizer.bos_id] if loaded.bos else []
      # A token holds at least one character of most texts: no need to encode whole books.
      tokens = [*start, *loaded.tokenizer.encode(row['text'][:16 * seq_len])][:seq_len + 1]
      if len(tokens) > 1:
        key = {'id': row['id'], 'language': row['language']}
        yield likelihood.Window(key, np.array(tokens, np.int32), 1)

  for key, logprobs, _ in likelihood.run_windows(
      loaded.config, loaded.params, stream(), batch_size=batch_size, seq_len=seq_len):
    yield {**key, 'quality': round(float(logprobs.mean(dtype=np.float64)), 4)}


def thirds(rows: Iterable[dict]) -> dict[str, tuple[float, float]]:
  """{language: the least quality of its head, and of its middle}."""
  by_language = collections.defaultdict(list)
  for row in rows:
    by_language[row['language']].append(row['quality'])
  best_first = {k: sorted(values, reverse=True) for k, values in sorted(by_language.items())}
  return {language: tuple(values[math.ceil(len(values) * share / 3) - 1] for share in (1, 2))
          for language, values in best_first.items()}


def bucket(quality: float, limits: tuple[float, float]) -> str:
  """'head', 'middle' or 'tail'."""
  head, middle = limits
  return 'head' if quality >= head else 'middle' if quality >= middle else 'tail'


def main(argv: list[str]) -> None:
  """The command line; bad input is one line and exit code 2."""
  try:
    for flag in (_CHECKPOINT, _CORPUS, _OUTPUT):
      if not flag.value:
        raise ValueError(f'give --{flag.name}=DIR')
    limits, counts = _run(_CHECKPOINT.value, _CORPUS.value, _OUTPUT.value)
  except (OSError, ValueError) as e:
    sys.exit(cli.complain(e))
  table = Table('language', 'documents', 'perplexity below in head', 'in middle')
  for language, (head, middle) in limits.items():
    table.add_row(language or 'unknown', f'{counts[language]:,}', f'{math.exp(-head):.1f}',
                  f'{math.exp(-middle):.1f}')
  console.print(table)
  print(f'scores: {_OUTPUT.value}/scores-*.jsonl')


def _run(checkpoint: str, corpus: str, output: str) -> tuple[dict, collections.Counter]:
  manifest = records.read_manifest(corpus, 'curated')
  loaded = load.load_model(checkpoint, _TOKENIZER.value)
  seq_len = _SEQ_LEN.value or min(1024, loaded.config.max_seq_len)
  shards = records.list_shards(manifest)
  os.makedirs(output, exist_ok=True)
  _same_job(os.path.join(output, 'inputs.json'), {
    'corpus': [s['sha256'] for s in manifest['shards']],
    'model': load.weights_fingerprint(checkpoint), 'seq_len': seq_len,
    'tokenizer': files.sha256(loaded.tokenizer.path)})
  raw = [os.path.join(output, f'raw-{i:05d}.jsonl') for i in range(len(shards))]
  with sharding.all_devices(loaded.params) as params:
    loaded = loaded._replace(params=params)
    for i, (shard, path) in enumerate(zip(shards, raw, strict=True), start=1):
      if not os.path.exists(path):
        rows = score(loaded, records.read_shard(*shard, 'curated'), seq_len=seq_len,
                     batch_size=_BATCH_SIZE.value)
        _write(path, sorted(rows, key=lambda row: row['id']))
      print(f'shard {i} of {len(shards)}', flush=True)
  limits = thirds(row for path in raw for row in _read(path))
  counts = collections.Counter(row['language'] for path in raw for row in _read(path))
  for i, path in enumerate(raw):
    _write(os.path.join(output, f'scores-{i:05d}.jsonl'), (
      {'id': row['id'], 'quality': row['quality'],
       'perplexity': round(math.exp(-row['quality']), 2),
       'bucket': bucket(row['quality'], limits[row['language']])}
      for row in _read(path)))
  return limits, counts


def _same_job(path: str, job: dict) -> None:
  job = json.loads(json.dumps(job))
  if os.path.exists(path):
    with open(path) as file:
      if json.load(file) != job:
        raise ValueError(f'{os.path.dirname(path)} holds the scores of another model, tokenizer, '
                         'corpus or --seq_len: give a fresh --output')
  else:
    _write(path, [job])


def _read(path: str) -> Iterator[dict]:
  with open(path) as file:
    yield from map(json.loads, file)


def _write(path: str, rows: Iterable[dict]) -> None:
  with open(path + '.tmp', 'w') as file:
    file.writelines(json.dumps(row) + '\n' for row in rows)
  files.replace(path + '.tmp', path)


if __name__ == '__main__':
  cli.start(main)

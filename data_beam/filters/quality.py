"""Quality classifiers of the user's own: trained from labelled examples, stored with each document.

  python -m data_beam.quality train  --examples=LABELLED.jsonl --model=edu.npz
  python -m data_beam.quality choose --examples=HELD_OUT.jsonl --model=edu.npz --at=3 --output=DIR
  python -m data_beam.quality score  --corpus=CORPUS --model=edu.npz --output=DIR --name=NAME
  python -m data_beam.quality join   --corpus=CORPUS --scores='DIR/*.jsonl' --output=DIR --name=NAME

An example is a JSON object `{"text": …, "score": …}`, the score on any scale: FineWeb-Edu had a
large model judge educational value from 0 to 5, trained a regressor on that, and kept what scores 3
or more (arXiv 2406.17557). The regressor here is linear on hashed word uni- and bigrams (sublinear
counts times inverse document frequency), solved by ridge regression on the sparse matrix, its
penalty chosen on a part of the examples; or, with `"embedding": [...]` in the examples in place of
the text's words, linear on embeddings of the user's. It is a file of arrays, no pickle.

Public classifiers are taken by file, here and by `--quality` of the pipelines: fastText's (.bin,
.ftz; DCLM's), and a linear head (.safetensors, FineWeb-Edu's form) on embeddings that documents
bring as metadata.embedding.

`join` stores scores made elsewhere, such as the perplexities of experiments.perplexity:
JSON lines `{"id": …, "quality": number, …}`, whose other fields go to the document's metadata.
"""

import argparse
import csv
import dataclasses
import functools
import io
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import safetensors.numpy
import scipy.sparse
import scipy.sparse.linalg
import xxhash

from data_beam import records
from data_beam.beam_options import explained, is_beams, pipeline_options
from data_beam.command_line import Parser, complain
from data_beam.records import Document, Reject
from data_beam.sources.files import expand
from data_beam.text.normalize import simplify

# FineWeb-Edu's teacher saw the beginning of a document only.
MAX_WORDS = 1000


# --- features --------------------------------------------------------------------------------


def features(texts: Iterable[str], bits: int) -> scipy.sparse.csr_matrix:
  """Hashed counts of words and pairs of words, 1 + log(count): float64 [texts, 2^bits]."""
  mask = np.uint64((1 << bits) - 1)
  indices, values, ends = [], [], [0]
  for text in texts:
    words = simplify(text)[:MAX_WORDS]
    data = ' '.join(words).encode('utf-8', 'replace').split(b' ') if words else []
    hashes = np.fromiter(map(xxhash.xxh3_64_intdigest, data), np.uint64, len(data))
    pairs = hashes[:-1] * np.uint64(0x9E3779B97F4A7C15) + hashes[1:]
    found, counts = np.unique(np.concatenate([hashes, pairs]) >> np.uint64(64 - bits) & mask,
                              return_counts=True)
    indices.append(found.astype(np.int64))
    values.append(1 + np.log(counts))
    ends.append(ends[-1] + len(found))
  return scipy.sparse.csr_matrix(
    (np.concatenate(values or [[]]), np.concatenate(indices or [[]]), ends),
    shape=(len(ends) - 1, 1 << bits))


def _unit_rows(matrix: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
  sizes = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
  return scipy.sparse.diags(1 / np.maximum(sizes, 1e-12)) @ matrix


# --- the regressor ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Model:
  """A linear regressor.

  Attributes:
    weights: float32 [features], of hashed n-grams or of embeddings.
    offset: the score of a text that says nothing.
    idf: float32 [features], empty for embeddings.
  """

  weights: np.ndarray
  offset: float
  idf: np.ndarray

  @property
  def bits(self) -> int:
    """How many bits of a hash number a weight."""
    return len(self.weights).bit_length() - 1

  def score(self, texts: Sequence[str]) -> np.ndarray:
    """Scores of texts on the scale of the examples: float64 [texts]."""
    if not len(self.idf):
      raise ValueError('this model scores embeddings, not texts: use score_embeddings')
    matrix = _unit_rows(features(texts, self.bits) @ scipy.sparse.diags(self.idf))
    return matrix @ self.weights + self.offset

  def score_embeddings(self, embeddings: np.ndarray) -> np.ndarray:
    """Scores of embeddings [texts, features]: float64 [texts]."""
    if len(self.idf):
      raise ValueError('this model scores texts, not embeddings: use score')
    return np.asarray(embeddings) @ self.weights + self.offset

  def of(self, document: Document) -> float:
    """The score of a document; NaN where it lacks the embedding that the model needs."""
    if len(self.idf):
      return float(self.score([document.text])[0])
    embedding = document.metadata.get('embedding')
    if not isinstance(embedding, list) or len(embedding) != len(self.weights):
      return math.nan
    return float(self.score_embeddings(np.array([embedding], float))[0])

  def save(self, path: str) -> None:
    """Writes an .npz file that `load` reads."""
    with open(path, 'wb') as file:
      np.savez_compressed(file, weights=self.weights, offset=self.offset, idf=self.idf)


class FastText:
  """A classifier of fastText's: the score is the probability of one of its labels."""

  # What makers of classifiers call their good texts: DCLM has hq.
  GOOD = ('hq', '1', 'positive', 'good', 'high', 'yes', 'edu', 'pos')

  def __init__(self, path: str, label: str = ''):
    """Reads a .bin or .ftz file. Raises ValueError for a label that it has not, or several that may
    be meant."""
    import fasttext
    with tempfile.NamedTemporaryFile(suffix=os.path.splitext(path)[1]) as file:
      local = path
      if not os.path.exists(path):
        file.write(records.read_bytes(path))
        file.flush()
        local = file.name
      try:
        self.model = fasttext.load_model(local)
      except ValueError as error:
        raise ValueError(f'{path} is no model of fastText: {error}') from error
    labels = [name.removeprefix('__label__') for name in self.model.predict('a', k=-1)[0]]
    good = [label.removeprefix('__label__')] if label else [g for g in self.GOOD if g in labels]
    if not good or good[0] not in labels:
      raise ValueError(f'{path} has the labels {", ".join(sorted(labels)[:20])}: say whose '
                       'probability is the quality, as FILE#LABEL')
    self.label = f'__label__{good[0]}'

  def of(self, document: Document) -> float:
    """The score of a document, whose lines are joined as DCLM joins them."""
    labels, scores = self.model.predict(' '.join(document.text.split()), k=-1)
    return min(1., float(dict(zip(labels, scores, strict=True)).get(self.label, 0.)))


@functools.lru_cache(maxsize=8)
def load(path: str) -> Model | FastText:
  """A model by its file, on any file system of Beam's: .npz that `Model.save` wrote, .bin or .ftz
  of fastText (FILE#LABEL), or .safetensors with the weights of a linear head."""
  path, _, label = path.partition('#')
  if path.endswith(('.bin', '.ftz')):
    return FastText(path, label)
  try:
    if path.endswith('.safetensors'):
      return _linear_head(safetensors.numpy.load(records.read_bytes(path)))
    with np.load(io.BytesIO(records.read_bytes(path))) as arrays:
      return Model(arrays['weights'], float(arrays['offset']), arrays['idf'])
  except (ValueError, KeyError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
    raise ValueError(f'{path} is no model of `quality train`, of fastText (.bin, .ftz) or of a '
                     f'linear head (.safetensors): {error}') from error


def _linear_head(tensors: Mapping[str, np.ndarray]) -> Model:
  """The last layer of a regression: weight [1, features] or [features], bias [1]."""
  heads = [name for name, value in tensors.items()
           if name.split('.')[-1] in ('weight', 'weights') and value.size == max(value.shape)
           and ('classifier' in name or 'score' in name or len(tensors) <= 2)]
  if len(heads) != 1:
    raise ValueError(f'no one weight of a linear head among {", ".join(sorted(tensors)[:9])}')
  bias = tensors.get(heads[0].rpartition('weight')[0] + 'bias')
  return Model(tensors[heads[0]].astype(np.float32).ravel(),
               0. if bias is None else float(bias.ravel()[0]), np.zeros(0, np.float32))


def train(
  examples: Sequence[dict[str, Any]], *, bits: int = 18,
  penalties: Sequence[float] = (.03, .1, .3, 1., 3., 10.), seed: int = 0,
) -> tuple[Model, dict[str, float]]:
  """Fits a regressor; a tenth of the examples chooses the penalty, then all are used.

  Args:
    examples: `{'text', 'score'}` or `{'embedding', 'score'}` each, at least 20.
    bits: 2^bits features for the hashed n-grams.
    penalties: ridge penalties to try.
    seed: of the split.

  Returns:
    The model; and on the tenth held out: `rmse`, `baseline_rmse` (of the mean), `correlation`,
    and the `penalty` chosen.
  """
  if not 1 <= bits <= 30:
    raise ValueError(f'bits={bits}: give 1 to 30')
  if len(examples) < 20:
    raise ValueError(f'{len(examples)} examples are too few to learn from: give 20 at least')
  y = np.array([float(example['score']) for example in examples])
  if y.min() == y.max():
    raise ValueError(f'all examples have the score {y[0]:g}: there is nothing to learn')
  idf, centre = np.zeros(0, np.float32), None
  if 'embedding' in examples[0]:
    x = np.array([example['embedding'] for example in examples], float)
    centre = x.mean(axis=0)
    x = x - centre
  else:
    x = features([example['text'] for example in examples], bits)
    seen = np.asarray((x > 0).sum(axis=0)).ravel()
    idf = np.where(seen > 1, np.log((1 + len(y)) / (1 + seen)) + 1, 0).astype(np.float32)
    x = _unit_rows(x @ scipy.sparse.diags(idf))
  held = np.zeros(len(y), bool)
  held[np.random.default_rng(seed).permutation(len(y))[:max(5, len(y) // 10)]] = True
  best = None
  for penalty in penalties:
    weights, offset = _ridge(x[~held], y[~held], penalty)
    predicted = x[held] @ weights + offset
    rmse = math.sqrt(np.mean((predicted - y[held]) ** 2))
    if best is None or rmse < best['rmse']:
      best = {'rmse': rmse, 'penalty': penalty,
              'baseline_rmse': math.sqrt(np.mean((y[held] - y[~held].mean()) ** 2)),
              'correlation': float(np.corrcoef(predicted, y[held])[0, 1])
              if np.ptp(predicted) and np.ptp(y[held]) else 0.}
  weights, offset = _ridge(x, y, best['penalty'])
  if centre is not None:
    offset -= float(centre @ weights)
  return Model(weights.astype(np.float32), offset, idf), best


def _ridge(
  x: scipy.sparse.csr_matrix | np.ndarray, y: np.ndarray, penalty: float,
) -> tuple[np.ndarray, float]:
  offset = float(y.mean())
  weights = scipy.sparse.linalg.lsqr(x, y - offset, damp=math.sqrt(penalty), iter_lim=200)[0]
  return weights, offset


# --- a threshold -----------------------------------------------------------------------------


def precision_recall(scores: np.ndarray, good: np.ndarray) -> dict[str, np.ndarray]:
  """For each distinct score as the threshold (kept if >=), rising: `threshold`, `precision`,
  `recall`, `kept` (share of all), each float64 [thresholds]."""
  scores, good = np.asarray(scores, float), np.asarray(good, bool)
  order = np.argsort(-scores, kind='stable')
  right = np.cumsum(good[order])
  last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
  number = last + 1
  table = {'threshold': scores[order][last], 'precision': right[last] / number,
           'recall': right[last] / max(1, good.sum()), 'kept': number / len(scores)}
  return {name: values[::-1] for name, values in table.items()}


def choose_threshold(
  table: dict[str, np.ndarray], *, precision: float | None = None, kept: float | None = None,
) -> int:
  """Row of the table: the lowest threshold of at least this precision, or that keeps at most this
  share, or else the one of the best F1."""
  if precision is not None:
    rows = np.flatnonzero(table['precision'] >= precision)
    if not len(rows):
      raise ValueError(f'no threshold reaches precision {precision:g}: the best is '
                       f'{table["precision"].max():.3f}')
    return int(rows[0])
  if kept is not None:
    rows = np.flatnonzero(table['kept'] <= kept)
    return int(rows[0]) if len(rows) else len(table['kept']) - 1
  both = table['precision'] + table['recall']
  return int(np.argmax(table['precision'] * table['recall'] / np.maximum(both, 1e-12)))


def plot(table: dict[str, np.ndarray], row: int, folder: str) -> None:
  """Writes precision_recall.csv and precision_recall.svg."""
  import matplotlib
  matplotlib.use('svg')
  from matplotlib import pyplot
  os.makedirs(folder, exist_ok=True)
  with open(os.path.join(folder, 'precision_recall.csv'), 'w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(table)
    writer.writerows(zip(*(values.tolist() for values in table.values()), strict=True))
  figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout='constrained')
  axes[0].plot(table['recall'], table['precision'])
  axes[0].plot(table['recall'][row], table['precision'][row], 'o')
  axes[0].set(xlabel='recall', ylabel='precision', xlim=(0, 1.02), ylim=(0, 1.02))
  for name in ('precision', 'recall', 'kept'):
    axes[1].plot(table['threshold'], table[name], label=name)
  axes[1].axvline(table['threshold'][row], linewidth=1, color='gray')
  axes[1].set(xlabel='threshold', ylim=(0, 1.02))
  axes[1].legend()
  figure.savefig(os.path.join(folder, 'precision_recall.svg'), metadata={'Date': None})
  pyplot.close(figure)


# --- a corpus --------------------------------------------------------------------------------


def score(document: Document, models: Sequence[str]) -> Document:
  """The document with the first model's score as its quality, rounded to four digits; of several
  models all are in metadata.scores, by the names of the files."""
  scores = [round(load(path).of(document), 4) for path in models]
  if len(models) > 1:
    named = {os.path.basename(path): None if math.isnan(value) else value
             for path, value in zip(models, scores, strict=True)}
    document = dataclasses.replace(document, metadata={**document.metadata, 'scores': named})
  return dataclasses.replace(document, quality=scores[0])


def scoring(options: Any) -> list[tuple[str, beam.PTransform]]:
  """The stage that a pipeline's options ask for by `quality` and `quality_least`, or none."""
  if not options.quality:
    return []
  for path in options.quality:
    load(path)      # says at once what is wrong with it
  return [('quality', _Judge(options.quality, options.quality_least))]


class _Judge(beam.PTransform):
  """PCollection[Document] → (kept, rejects): scored, those below the threshold dropped."""

  def __init__(self, models: Sequence[str], least: float | None):
    super().__init__()
    self.models, self.least = tuple(models), least

  def expand(self, documents: Any) -> Any:
    """PCollections (kept, rejects)."""
    split = (documents | 'score' >> beam.Map(score, self.models)
             | 'choose' >> beam.FlatMap(_choose, functools.partial(
               _below, least=self.least)).with_outputs('rejects', main='kept'))
    return split.kept, split.rejects


def _below(document: Document, least: float | None) -> str | None:
  if least is None or document.quality >= least:
    return None
  return 'no_score' if math.isnan(document.quality) else 'below_threshold'


def score_corpus(
  corpus: str, model: str, output: str, name: str, *, at_least: float | None = None,
  num_shards: int = 8, beam_args: Sequence[str] = (),
) -> str:
  """Writes the corpus with scores as `output/name/1.0.0`, of documents that score `at_least` so
  much if that is given (FineWeb-Edu: 3), the others in `name_rejects`. Returns its path."""
  load(model)   # says at once what is wrong with it
  return _rewrite(
    corpus, beam.Map(score, [model]), lambda document: _below(document, at_least), output,
    name, num_shards, beam_args, {'model': os.path.basename(model), 'at_least': at_least})


def join_scores(
  corpus: str, scores: str, output: str, name: str, *, at_least: float | None = None,
  buckets: Sequence[str] = (), num_shards: int = 8, beam_args: Sequence[str] = (),
) -> str:
  """Writes the corpus with scores made elsewhere as `output/name/1.0.0`. Returns its path.

  Args:
    corpus: of documents.
    scores: JSONL files (pattern) of `{"id", "quality", …}`; other fields go to the metadata.
    at_least: the lowest quality to keep.
    buckets: values of the field `bucket` to keep (experiments.perplexity: head, middle, tail).

  Documents without a score go to `name_rejects` too, as `no_score`.
  Raises ValueError if a line of the scores is none.
  """
  def reason(document: Document) -> str | None:
    if math.isnan(document.quality):
      return 'no_score'
    if at_least is not None and document.quality < at_least:
      return 'below_threshold'
    if buckets and document.metadata.get('bucket') not in buckets:
      return f'bucket_{document.metadata.get("bucket")}'
    return None

  files = [file['path'] for file in expand([scores])]
  return _rewrite(
    corpus, Join(files), reason, output, name, num_shards, beam_args,
    {'scores': [os.path.basename(path) for path in files], 'at_least': at_least,
     'buckets': list(buckets)})


def _rewrite(
  corpus: str, scored: beam.PTransform, reason: Callable[[Document], str | None], output: str,
  name: str, num_shards: int, beam_args: Sequence[str], config: dict[str, Any],
) -> str:
  options = pipeline_options(beam_args)
  manifest = records.read_manifest(corpus, 'curated')
  shards = records.list_shards(manifest)
  with beam.Pipeline(options=options) as pipeline:
    split = (
      pipeline | beam.Create(shards) | beam.Reshuffle() | 'read' >> beam.FlatMap(documents_of)
      | 'score' >> scored
      | 'choose' >> beam.FlatMap(_choose, reason).with_outputs('rejects', main='kept'))
    records.write_corpus(
      split.kept, split.rejects, output=output, name=name, stages=['quality'],
      inputs=[{'path': path, 'bytes': 0} for path, _ in shards], num_shards=num_shards,
      config={'corpus': manifest['name'], **config})
  return records.corpus_path(output, name)


class Join(beam.PTransform):
  """Documents with the quality and the metadata that the lines of JSONL files give their ids."""

  def __init__(self, files: Sequence[str]):
    super().__init__()
    self.files = list(files)

  def expand(self, documents: Any) -> Any:
    """The documents with the scores that the files have of them."""
    rows = (documents.pipeline | 'score files' >> beam.Create(self.files)
            | beam.FlatMap(_score_rows))
    by_id = documents | beam.Map(lambda document: (document.id, document))
    return {'documents': by_id, 'rows': rows} | beam.CoGroupByKey() | beam.FlatMap(_with_score)


def _score_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
  for number, line in enumerate(records.read_bytes(path).splitlines(), start=1):
    try:
      row = json.loads(line)
      row['quality'] = float(row['quality'])
      yield row.pop('id'), row
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(f'{path}, line {number}: a score is {{"id": …, "quality": …}} ({error!r})'
                       ) from error


def _with_score(group: tuple[str, dict[str, Iterable]]) -> Iterator[Document]:
  rows = sorted(group[1]['rows'], key=lambda row: json.dumps(row, sort_keys=True))
  for document in group[1]['documents']:
    row = dict(rows[0]) if rows else {'quality': math.nan}
    quality = row.pop('quality')
    yield dataclasses.replace(document, quality=quality, metadata={**document.metadata, **row})


def documents_of(shard: tuple[str, int]) -> Iterator[Document]:
  """The documents of a shard of a curated corpus: (file, how many)."""
  for row in records.read_shard(*shard, 'curated'):
    yield Document(**row)


def _choose(document: Document, reason: Callable[[Document], str | None]) -> Iterator[Any]:
  if why := reason(document):
    yield beam.pvalue.TaggedOutput('rejects', Reject(document, 'quality', why))
  else:
    yield document


# --- the command line ------------------------------------------------------------------------


def read_examples(path: str) -> list[dict[str, Any]]:
  """Examples of a JSONL file; raises ValueError naming the line that is none."""
  examples = []
  for number, line in enumerate(records.read_bytes(path).splitlines(), start=1):
    if not line.strip():
      continue
    try:
      example = json.loads(line)
      float(example['score'])
      example['embedding' if 'embedding' in example else 'text']
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(f'{path}, line {number}: an example is {{"text": …, "score": …}} ({error!r})'
                       ) from error
    examples.append(example)
  return examples


def _score_examples(model: Model, examples: Sequence[dict[str, Any]]) -> np.ndarray:
  if len(model.idf):
    return model.score([example['text'] for example in examples])
  return model.score_embeddings(np.array([example['embedding'] for example in examples]))


def _train(args: argparse.Namespace, _: Sequence[str]) -> None:
  model, report = train(read_examples(args.examples), bits=args.bits)
  model.save(args.model)
  print(json.dumps(report))
  print(f'The model is at {args.model}')


def _choose_command(args: argparse.Namespace, _: Sequence[str]) -> None:
  examples = read_examples(args.examples)
  good = np.array([float(example['score']) >= args.at for example in examples])
  if good.all() or not good.any():
    raise ValueError(f'{args.examples} holds no example on one side of --at={args.at:g}')
  table = precision_recall(_score_examples(load(args.model), examples), good)
  row = choose_threshold(table, precision=args.precision, kept=args.kept)
  plot(table, row, args.output)
  print(json.dumps({name: round(float(values[row]), 4) for name, values in table.items()}))
  print(f'The curves are at {args.output}/precision_recall.svg and .csv')


def _score(args: argparse.Namespace, beam_args: Sequence[str]) -> None:
  path = score_corpus(args.corpus, args.model, args.output, args.name, at_least=args.at_least,
                      num_shards=args.num_shards, beam_args=beam_args)
  print(f'The corpus is at {path}')


def _join(args: argparse.Namespace, beam_args: Sequence[str]) -> None:
  path = join_scores(args.corpus, args.scores, args.output, args.name, at_least=args.at_least,
                     buckets=args.buckets, num_shards=args.num_shards, beam_args=beam_args)
  print(f'The corpus is at {path}')


def main(argv: Sequence[str] | None = None) -> int:
  """The command line. Returns 0, or 2 after one line about what was wrong with the input."""
  parser = Parser(
    prog='python -m data_beam.quality',
    description='Trains a quality classifier from labelled examples (JSONL with text and score), '
    'chooses a threshold on others, and stores its scores with the documents of a corpus.')
  commands = parser.add_subparsers(dest='command', required=True)

  def command(name, function, help):
    sub = commands.add_parser(
      name, help=help, description=help, others=is_beams if function in (_score, _join) else None)
    sub.set_defaults(function=function)
    if function is not _join:
      sub.add_argument('--model', required=True, metavar='FILE.npz')
    return sub.add_argument

  def corpus_flags(add):
    add('--corpus', required=True, metavar='DIR')
    add('--output', required=True, metavar='DIR')
    add('--name', required=True)
    add('--at_least', type=float, help='keep only documents that score so much')
    add('--num_shards', type=int, default=8)

  add = command('train', _train, 'fit a regressor to labelled examples')
  add('--examples', required=True, metavar='JSONL')
  add('--bits', type=int, default=18, help='2^bits features (default: %(default)s)')
  add = command('choose', _choose_command, 'precision and recall by threshold, and the best one')
  add('--examples', required=True, metavar='JSONL', help='others than those it was trained on')
  add('--at', type=float, required=True, help='examples that score so much are good ones')
  add('--precision', type=float, help='the lowest threshold of this precision')
  add('--kept', type=float, help='the threshold that keeps this share (default: best F1)')
  add('--output', required=True, metavar='DIR', help='where the curves go')
  add = command('score', _score, 'store scores with the documents of a corpus; other flags: Beam')
  corpus_flags(add)
  add = command('join', _join, 'store scores made elsewhere, by id; other flags: Beam')
  corpus_flags(add)
  add('--scores', required=True, metavar='JSONL', help='file or pattern, {"id": …, "quality": …}')
  add('--buckets', type=lambda names: names.split(','), default=(), metavar='NAMES',
      help='keep only these values of the field bucket, such as head,middle')
  args, beam_args = parser.parse_known_args(argv)
  if beam_args and args.command not in ('score', 'join'):
    parser.error(f'unexpected argument {beam_args[0]!r}')
  try:
    with explained(beam_args):
      args.function(args, beam_args)
  except (ValueError, OSError) as error:
    return complain(parser.prog, error)
  return 0


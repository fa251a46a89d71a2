"""Held-out text: bits per byte, copying, the unigram baseline."""

import collections
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from smoljax import model
from smoljax.data import corpus as corpus_lib
from smoljax.data.corpus import EmptySplit, open_corpus
from smoljax.evals import likelihood

# 'tokens': int array [n]; 'num_bytes': UTF-8 bytes of its text; 'language': ISO 639-1, if known;
# 'learned': of conversations, bool array [n] of the tokens that are (num_bytes are theirs)
Document = Mapping[str, Any]


def load_documents(path: str, *, split: str = 'validation', limit: int = 0) -> list[Document]:
  """Token documents of a tokenised corpus (`DIR/NAME/VERSION`), spread evenly if limited.

  Raises FileNotFoundError or ValueError as `smoljax.data.corpus.open_corpus` does.
  """
  corpus = open_corpus(path, split)
  records = (corpus.records[i] for i in spread(len(corpus.records), limit))
  return [{'tokens': corpus.decode(r), 'num_bytes': int(r['num_bytes']),
           'language': corpus_lib.word(r['language']),
           **({'learned': corpus.mask(r)} if corpus.has_mask else {})} for r in records]


def load_held_out(
  corpora: Mapping[str, str], *, limit: int = 0, note: Callable[[str], None] = lambda line: None
) -> dict[str, list[Document]]:
  """`load_documents` of each corpus (name → path); one that holds none out is left out.

  Args:
    note: gets a line about each corpus that is left out, and why.

  Raises EmptySplit, which says why, if that leaves none.
  """
  documents, empty = {}, []
  for name, path in corpora.items():
    try:
      documents[name] = load_documents(path, limit=limit)
    except EmptySplit as e:
      empty.append(str(e))
  if not documents:
    raise EmptySplit(f'there is no held-out document: {"; ".join(empty)}')
  for reason in empty:
    note(f'warning: not evaluated on: {reason}')
  return documents


def bits_per_byte(
  config: model.ModelConfig,
  params: dict,
  documents: Iterable[Document],
  *,
  batch_size: int,
  seq_len: int,
  min_context: int | None = None,
) -> dict[str, Any]:
  """Scores every token after the first of each document once, by `windows`; of conversations those
  that are learned.

  A document's first token is what it is predicted from, not a prediction: BOS where the corpus has
  it. (Without BOS one text token a document goes unscored while its bytes count; the unigram loss
  is over the same tokens.) Bits per byte compare across tokenizers, losses do not.

  Args:
    seq_len: tokens a window, no more than the model was trained for.
    min_context: see `windows`; None = a quarter of `seq_len`.
  Returns:
    `bpb` (bits per UTF-8 byte of text), `loss` (nats per token), the counts `documents`, `tokens`,
    `bytes`, where there is more than one language `languages` (code → bits per byte), and
    `calibration`: of ten equal ranges of the likeliest token's probability
    [places, their mean probability, share where that token came], and `ece`, the mean distance of
    the two over places (expected calibration error, Guo et al. 2017).
  Raises:
    ValueError: the documents hold no token to predict.
  """
  if min_context is None:
    min_context = seq_len // 4
  counts = collections.Counter()
  size_of, nats_of = collections.Counter(), collections.defaultdict(float)  # by language

  def stream() -> Iterator[likelihood.Window]:
    for d in documents:
      language, size = d.get('language', ''), int(d['num_bytes'])
      counts.update(documents=1, tokens=int(_targets(d).sum()), bytes=size)
      size_of[language] += size
      first, places = 1, _targets(d)
      for w in likelihood.windows(
        language, d['tokens'], first=1, seq_len=seq_len, min_context=min_context
      ):
        scored = places[first - 1 :][: len(w.tokens) - w.first]
        first += len(scored)
        yield w._replace(key=(language, scored))

  bins = np.zeros((10, 3))
  scored = likelihood.run_windows(config, params, stream(), batch_size=batch_size, seq_len=seq_len)
  for (language, places), logprobs, best in scored:
    logprobs, best = logprobs[places], best[places]
    nats_of[language] -= float(logprobs.sum(dtype=np.float64))
    sure = np.exp(best, dtype=np.float64)
    values = np.stack([np.ones_like(sure), sure, logprobs >= best], axis=1)
    np.add.at(bins, np.minimum((sure * 10).astype(int), 9), values)
  _require_tokens(counts)
  means = bins[:, 1:] / np.maximum(bins[:, :1], 1)
  nats = math.fsum(nats_of.values())
  by_language = {k: nats_of[k] / math.log(2) / size for k, size in sorted(size_of.items()) if size}
  return {
    'bpb': nats / math.log(2) / counts['bytes'],
    **({'languages': by_language} if len(by_language) > 1 else {}),
    'loss': nats / counts['tokens'],
    **counts,
    'calibration': np.column_stack([bins[:, 0], means]).tolist(),
    'ece': float(np.abs(bins[:, 1] - bins[:, 2]).sum() / counts['tokens']),
  }


def copy_probe(
  config: model.ModelConfig,
  params: dict,
  documents: Iterable[Document],
  *,
  batch_size: int,
  seq_len: int,
  rows: int = 32,
) -> dict[str, dict[str, float]]:
  """Does the model copy what stands in its context? Induction on repeated shuffled text.

  Each row is a passage of `seq_len // 8` held-out tokens, shuffled, so that nothing tells its next
  token but an earlier occurrence, and the passage again: at once (`near`), or after held-out text
  that fills the window (`far`). The same documents give the same rows to every model of a
  tokenizer. After Olsson et al. 2022, In-context Learning and Induction Heads; distilled models
  were found worse at it (arXiv 2509.01649).

  Returns:
    `{near, far}` → `accuracy`, the share of tokens that are the model's first guess the second
    time (the first of a passage not counted), and `saved`, nats per token by which they are
    likelier than the first time.
  Raises:
    ValueError: there is no held-out text.
  """
  text = np.concatenate([d['tokens'][1:] for d in documents] or [np.zeros(0, np.int64)])
  _require_tokens({'tokens': len(text), 'bytes': 1})
  size = max(2, seq_len // 8)
  gaps = {'near': 0, 'far': max(0, seq_len - 2 * size)}
  rng = np.random.default_rng(0)

  def stretch(length: int) -> np.ndarray:
    return np.take(text, rng.integers(len(text)) + np.arange(length), mode='wrap')

  def stream() -> Iterator[likelihood.Window]:
    for _ in range(rows):
      passage = rng.permutation(stretch(size))
      for name, gap in gaps.items():
        between = stretch(gap)
        yield likelihood.Window(name, np.concatenate([passage, between, passage]), 1)

  sums = {name: np.zeros(3) for name in gaps}  # first guesses, nats the first time, the second
  scored = likelihood.run_windows(config, params, stream(), batch_size=batch_size, seq_len=seq_len)
  for name, logprobs, best in scored:
    first, again = logprobs[: size - 1], logprobs[1 - size :]
    sums[name] += (again >= best[1 - size :]).sum(), -first.sum(), -again.sum()
  places = rows * (size - 1)
  return {name: {'accuracy': float(hits / places), 'saved': float((once - twice) / places)}
          for name, (hits, once, twice) in sums.items()}


def unigram_counts(paths: Mapping[str, str], vocab_size: int) -> dict[str, np.ndarray]:
  """How often each token occurs in the training text of each corpus, [V], for `unigram_loss`; of
  one that only judges, and has none, in that of all the others."""
  found = {}
  for name, path in paths.items():
    try:
      found[name] = open_corpus(path).token_counts(vocab_size)
    except EmptySplit:
      continue
  everywhere = sum(found.values(), np.zeros(vocab_size, np.int64))
  return {name: found.get(name, everywhere) for name in paths}


def unigram_loss(counts: np.ndarray, documents: Iterable[Document]) -> float:
  """Cross entropy, in nats per token, of the tokens that `bits_per_byte` scores, by frequency.

  Args:
    counts: how often each token is a target in the training text, `[V]`; one is added to each.
  """
  log_p = np.log(counts + 1.0) - np.log(counts.sum(dtype=np.float64) + len(counts))
  total, tokens = 0.0, 0
  for d in documents:
    places = _targets(d)
    total -= float(log_p[d['tokens'][1:][places]].sum())
    tokens += int(places.sum())
  _require_tokens({'tokens': tokens, 'bytes': 1})
  return total / tokens


def _targets(document: Document) -> np.ndarray:
  """Which tokens after the first are scored, bool [n - 1]."""
  return document.get('learned', np.ones(len(document['tokens']), bool))[1:]


def _require_tokens(counts: Mapping[str, int]) -> None:
  if not counts['tokens'] or not counts['bytes']:
    raise ValueError(
      'no held-out text to score: give it more documents, or a larger --config.tokenize.holdout'
    )


def spread(size: int, limit: int) -> list[int]:
  """Up to `limit` indices below `size`, evenly spread (files are sorted by subject); 0 = all."""
  k = min(limit, size) if limit else size
  return [i * size // k for i in range(k)]

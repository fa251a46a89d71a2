"""How good a model is: bits per byte on held-out text, and multiple choice by log-likelihood.

Everything rests on one primitive: log-probabilities of the tokens of a sequence, computed in
windows, batched by length. A sequence's padded length depends on that sequence alone, so scores do
not depend on the batch size (beyond float32 rounding of the matmuls), and sums are float64.

No score stands alone. Beside each are the accuracy of chance, of the model without the question
(`blind`) and of always taking the longest answer: length normalisation alone gives a model that
knows nothing 42 % on OpenBookQA.

Add a task: a function row → example, and an entry in `TASKS` at the bottom.
"""

import collections
import contextlib
import functools
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smoljax import checkpoint, data, export, model, sharding, tokenizer
from smoljax.tokenizer import Tokenizer

# 'tokens': int array [n]; 'num_bytes': UTF-8 bytes of its text; 'language': ISO 639-1, if known
Document = Mapping[str, Any]
Example = dict[str, Any]  # 'context': str, or one per choice; 'choices': list of str; 'answer': int

_MIN_BUCKET = 128  # tokens; shorter sequences are padded to this
_CHUNK = 256  # places whose logits exist at once: [B, _CHUNK, V] in float32


class Model(NamedTuple):
  """A trained model and what is needed to use it on text."""

  config: model.ModelConfig
  params: dict
  tokenizer: Tokenizer
  bos: bool  # documents began with BOS in training


def load_model(path: str, tokenizer_path: str = '') -> Model:
  """Reads a Hugging Face folder, or a run's workdir, `checkpoints` folder or one step of it.

  The tokenizer is the one in the folder, or the one the run was trained with, unless given.

  Raises:
    FileNotFoundError: no model or no tokenizer there; the message says what to give.
    ValueError: the tokenizer has ids that the model does not know.
  """
  config, params, meta = load_weights(path)
  text = tokenizer.load(tokenizer_path or find_tokenizer(path))
  _require_vocabulary(config, text)
  bos = text.adds_bos
  if bos is None:
    bos = meta.get('config', {}).get('tokenize', {}).get('bos', text.bos_id is not None)
  return Model(config, params, text, bos)


def find_tokenizer(path: str) -> str:
  """The tokenizer file of the model at `path`, which `load_model` reads.

  It is where the run had it, or in the workdir (or an export) that may have been moved since.
  Raises FileNotFoundError if there is none, or no model.
  """
  meta = {} if _is_hf(path) else checkpoint.load_meta(path)
  here = pathlib.Path(os.path.abspath(path))
  names = ('tokenizer.json', 'tokenizer.model')
  around = [d / n for d in (here, *here.parents[:2]) for n in names]
  places = [meta.get('tokenizer', ''), *around]
  found = next((str(p) for p in places if os.path.isfile(p)), '')
  if not found:
    raise FileNotFoundError(f'no tokenizer.model in {path} or above: give one with --tokenizer')
  return found


def load_weights(path: str) -> tuple[model.ModelConfig, dict, Mapping[str, Any]]:
  """`(config, params, meta)` of a Hugging Face folder (no meta), a run or one of its checkpoints.

  Raises FileNotFoundError where there is no model.
  """
  if _is_hf(path):
    return *export.load_hf(path), {}
  return checkpoint.load_params(path)


def weights_fingerprint(path: str) -> Any:
  """What tells the weights that `load_weights` would read from others, without loading them."""
  if _is_hf(path):
    files = sorted(n for n in os.listdir(path) if n.endswith(('.safetensors', 'config.json')))
    return [(n, os.path.getsize(os.path.join(path, n))) for n in files]
  return checkpoint.find(path)[1]


def _is_hf(path: str) -> bool:
  if not os.path.isdir(path):
    raise FileNotFoundError(f'no model at {path}: give a run, its checkpoints or a HF folder')
  return any(name.endswith('.safetensors') for name in os.listdir(path))


def _require_vocabulary(config: model.ModelConfig, text: Tokenizer) -> None:
  if text.vocab_size > config.vocab_size:
    raise ValueError(
      f'{text.path} has {text.vocab_size} ids, the model knows {config.vocab_size}: '
      'give the tokenizer it was trained with'
    )


def __getattr__(name: str) -> Any:
  """`LM`, for lm-evaluation-harness, is loaded when it is asked for: few have that installed."""
  if name != 'LM':
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  from smoljax import lm_harness

  return lm_harness.LM


# --- Log-probabilities -------------------------------------------------------------------------


class Window(NamedTuple):
  """A stretch of a sequence that is run at once: `tokens[first:]` are scored."""

  key: Any  # whatever the caller wants back with the scores
  tokens: np.ndarray  # [n + 1] int: n inputs, shifted by one against n targets
  first: int  # ≥ 1


def windows(
  key: Any, tokens: np.ndarray, *, first: int, seq_len: int, min_context: int
) -> Iterator[Window]:
  """Cuts a sequence into windows of at most `seq_len` inputs that score `tokens[first:]` once each.

  A sequence that fits is one window. If only its beginning does not fit, it is cut on the left.
  Otherwise windows overlap: each one after the first starts `seq_len - min_context` further on and
  scores what the one before did not, so every token is predicted from all tokens before it or from
  more than `min_context` of them.
  """
  n = len(tokens) - 1  # targets are tokens 1…n
  if n - first < seq_len:
    start = max(0, n - seq_len)
  else:
    start = max(0, first - 1 - min_context)
  while first <= n:
    stop = min(start + seq_len, n)
    yield Window(key, tokens[start : stop + 1], first - start)
    start, first = start + seq_len - min_context, stop + 1


@functools.partial(jax.jit, static_argnums=0)
def _score(
  config: model.ModelConfig, params: dict, inputs_BT: jax.Array, targets_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Log-probability of each target given the inputs up to it, and that of the likeliest token.

  Rows are right-padded; nothing that is scored can see the padding (attention is causal).
  """
  hidden_BTD, _ = model.hidden(config, params, inputs_BT)
  unembed_DV = model.unembedding(config, params)

  def one(slice_: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    hidden_BCD, targets_BC = slice_
    logits_BCV = model.project(config, hidden_BCD, unembed_DV)
    # A masked sum instead of a gather: it also works where V is sharded.
    hot_BCV = jax.nn.one_hot(targets_BC, logits_BCV.shape[-1], dtype=jnp.float32)
    target_BC = jnp.sum(logits_BCV * hot_BCV, axis=-1)
    log_z_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
    return target_BC - log_z_BC, jnp.max(logits_BCV, axis=-1) - log_z_BC

  over = (sharding.slices(hidden_BTD, _CHUNK), sharding.slices(targets_BT, _CHUNK))
  scores = jax.tree.map(sharding.unsliced, jax.lax.map(one, over))
  return jax.tree.map(lambda x: sharding.constrain(x, None, None), scores)


def run_windows(
  config: model.ModelConfig,
  params: dict,
  stream: Iterable[Window],
  *,
  batch_size: int,
  seq_len: int,
) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
  """Yields `(key, logprobs, best)` of each window's scored tokens, in order of computation.

  Both are float32 nats: of the token, and of what the model holds likeliest there. Under a mesh
  (`jax.set_mesh`) the batch is split over its batch axes, and grows to a multiple of them; all
  processes must give the same windows and receive all scores.

  Raises ArithmeticError if a score is not finite.
  """
  mesh = jax.sharding.get_mesh()
  if not mesh.empty:
    ways = math.prod(mesh.shape[a] for a in sharding.RULES['batch'])
    batch_size = -(-batch_size // ways) * ways

  def dispatch(batch: list[Window], length: int) -> tuple[list[Window], Any]:
    tokens_BT = np.zeros((batch_size, length + 1), np.int32)
    for i, w in enumerate(batch):
      tokens_BT[i, : len(w.tokens)] = w.tokens
    arrays = {'inputs_BT': tokens_BT[:, :-1], 'targets_BT': tokens_BT[:, 1:]}
    if not mesh.empty:
      mine = sharding.local_rows(mesh, batch_size)
      arrays = sharding.shard_batch({k: x[mine] for k, x in arrays.items()}, mesh)
    return batch, _score(config, params, **arrays)

  def fetch(batch: list[Window], scores: Any) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    logprobs_BT, best_BT = map(np.asarray, scores)
    for i, w in enumerate(batch):
      span = slice(w.first - 1, len(w.tokens) - 1)
      if not np.isfinite(logprobs_BT[i, span]).all():
        raise ArithmeticError(
          'the model gives probabilities that are no numbers: its parameters are broken, or a '
          f'token id is not below its vocabulary of {config.vocab_size}'
        )
      yield w.key, logprobs_BT[i, span], best_BT[i, span]

  pieces = 2 * sharding.num_parts('length')  # where the mesh splits rows
  waiting: dict[int, list[Window]] = collections.defaultdict(list)  # by padded length
  running = None  # computed while the next batch is put together
  for w in stream:
    length = max(_MIN_BUCKET, 1 << (len(w.tokens) - 2).bit_length())
    length = min(seq_len, -(-length // pieces) * pieces)
    waiting[length].append(w)
    if len(waiting[length]) == batch_size:
      started = dispatch(waiting.pop(length), length)
      if running:
        yield from fetch(*running)
      running = started
  if running:
    yield from fetch(*running)
  for length, batch in waiting.items():
    yield from fetch(*dispatch(batch, length))


# --- Bits per byte -----------------------------------------------------------------------------


def load_documents(path: str, *, split: str = 'validation', limit: int = 0) -> list[Document]:
  """Token documents of a tokenised corpus (`DIR/NAME/VERSION`), spread evenly if limited.

  Raises FileNotFoundError or ValueError as `smoljax.data.open_corpus` does.
  """
  corpus = data.open_corpus(path, split)
  records = (corpus.records[i] for i in _spread(len(corpus.records), limit))
  return [{'tokens': corpus.decode(r), 'num_bytes': int(r['num_bytes']),
           'language': data.word(r['language'])} for r in records]


def load_held_out(corpora: Mapping[str, str], *, limit: int = 0) -> dict[str, list[Document]]:
  """`load_documents` of each corpus (name → path); one too small to hold any out is left out.

  Raises ValueError if that leaves none.
  """
  documents = {}
  for name, path in corpora.items():
    with contextlib.suppress(data.EmptySplit):
      documents[name] = load_documents(path, limit=limit)
  if not documents:
    raise ValueError(
      f'no held-out document in {", ".join(corpora)}: raise --config.tokenize.holdout'
    )
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
  """Scores every token after the first of each document once, by `windows`.

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
  counts, size_of, nats_of = (collections.Counter() for _ in range(3))  # the last two by language

  def stream() -> Iterator[Window]:
    for d in documents:
      language, size = d.get('language', ''), int(d['num_bytes'])
      counts.update(documents=1, tokens=max(0, len(d['tokens']) - 1), bytes=size)
      size_of[language] += size
      yield from windows(language, d['tokens'], first=1, seq_len=seq_len, min_context=min_context)

  bins = np.zeros((10, 3))
  scored = run_windows(config, params, stream(), batch_size=batch_size, seq_len=seq_len)
  for language, logprobs, best in scored:
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

  def stream() -> Iterator[Window]:
    for _ in range(rows):
      passage = rng.permutation(stretch(size))
      for name, gap in gaps.items():
        between = stretch(gap)
        yield Window(name, np.concatenate([passage, between, passage]), 1)

  sums = {name: np.zeros(3) for name in gaps}  # first guesses, nats the first time, the second
  scored = run_windows(config, params, stream(), batch_size=batch_size, seq_len=seq_len)
  for name, logprobs, best in scored:
    first, again = logprobs[: size - 1], logprobs[1 - size :]
    sums[name] += (again >= best[1 - size :]).sum(), -first.sum(), -again.sum()
  places = rows * (size - 1)
  return {name: {'accuracy': float(hits / places), 'saved': float((once - twice) / places)}
          for name, (hits, once, twice) in sums.items()}


def unigram_loss(counts: np.ndarray, documents: Iterable[Document]) -> float:
  """Cross entropy, in nats per token, of the tokens that `bits_per_byte` scores, by frequency.

  Args:
    counts: how often each token is a target in the training text, `[V]`; one is added to each.
  """
  log_p = np.log(counts + 1.0) - np.log(counts.sum(dtype=np.float64) + len(counts))
  total, tokens = 0.0, 0
  for d in documents:
    total -= float(log_p[d['tokens'][1:]].sum())
    tokens += max(0, len(d['tokens']) - 1)
  _require_tokens({'tokens': tokens, 'bytes': 1})
  return total / tokens


def _require_tokens(counts: Mapping[str, int]) -> None:
  if not counts['tokens'] or not counts['bytes']:
    raise ValueError(
      'no held-out text to score: give it more documents, or a larger --config.tokenize.holdout'
    )


# --- Multiple choice ---------------------------------------------------------------------------


class Score(NamedTuple):
  """How a model likes one answer."""

  logprob: float  # nats, of the tokens of the answer
  tokens: int
  greedy: bool  # every one of them was the likeliest token


def score_choices(
  config: model.ModelConfig,
  params: dict,
  tokenizer: Tokenizer,
  examples: Sequence[Example],
  *,
  bos: bool,
  batch_size: int,
  seq_len: int,
) -> list[list[Score]]:
  """Scores of every choice of every example.

  Context and choice are encoded together, as in training, and the tokens from where the choices of
  one context first part from it are scored: a token that spans the boundary counts for the answer,
  and all answers are scored on the same characters. With `bos`, BOS comes first; an empty context
  without it stands after EOS, the document boundary. Contexts that do not fit are cut on the left.
  """
  if bos and tokenizer.bos_id is None:
    raise ValueError(f'{tokenizer.path} has no BOS token: evaluate with bos=False')
  totals = [[[0.0, 0, True] for _ in e['choices']] for e in examples]

  def stream() -> Iterator[Window]:
    for i, e in enumerate(examples):
      contexts = _contexts(e)
      encoded = {c: tokenizer.encode(c) for c in set(contexts)}
      joint = [tokenizer.encode(c + x) for c, x in zip(contexts, e['choices'], strict=True)]
      common: dict[str, int] = {}
      for c, ids in zip(contexts, joint, strict=True):
        # The last token of a joint encoding belongs to the answer, so that something is scored.
        same = min(_common_prefix(encoded[c], ids), len(ids) - 1)
        common[c] = min(common.get(c, same), same)
      for j, (c, ids) in enumerate(zip(contexts, joint, strict=True)):
        if bos:
          prefix = [tokenizer.bos_id]
        else:
          prefix = [] if common[c] else [tokenizer.eos_id or 0]
        yield from windows(
          (i, j),
          np.asarray(prefix + ids),
          first=len(prefix) + common[c],
          seq_len=seq_len,
          min_context=seq_len // 4,
        )

  scored = run_windows(config, params, stream(), batch_size=batch_size, seq_len=seq_len)
  for (i, j), logprobs, best in scored:
    total = totals[i][j]
    total[0] += float(logprobs.sum(dtype=np.float64))
    total[1] += len(logprobs)
    total[2] &= bool((logprobs >= best).all())
  return [[Score(*t) for t in row] for row in totals]


def summarize(
  examples: Sequence[Example],
  scores: Sequence[Sequence[Score]],
  blind: Sequence[Sequence[Score]],
  *,
  metric: str = 'acc',
  num_shown: int = 4,
) -> dict[str, Any]:
  """Accuracies of scored examples, beside what no knowledge would get.

  acc: highest log-likelihood. acc_norm: per character of the answer, its leading space not counted
  (the convention of lm-eval and lighteval; without knowledge it favours long answers). acc_token:
  per token. acc_pmi: log-likelihood less that without the context. blind: the first three without
  the context. longest: always the longest answer. chance: one in the number of choices. metric:
  which of the four counts for this task; stderr and the choices shown are by it. Equals share the
  point. Where there is one choice only, acc counts the examples whose every token was the
  likeliest, and chance is 0.
  """
  lengths = [[max(1, len(c.removeprefix(' '))) for c in e['choices']] for e in examples]
  answers = [e['answer'] for e in examples]

  def values(rows: Sequence[Sequence[Score]]) -> dict[str, list[list[float]]]:
    logprobs = [[s.logprob for s in row] for row in rows]
    return {
      'acc': logprobs,
      'acc_norm': _divide(logprobs, lengths),
      'acc_token': _divide(logprobs, [[s.tokens for s in row] for row in rows]),
    }

  def accuracies(rows: Sequence[Sequence[Score]]) -> dict[str, np.ndarray]:
    if single:
      return {'acc': np.array([float(row[0].greedy) for row in rows])}
    return {k: _credit(v, answers) for k, v in values(rows).items()}

  single = all(len(row) == 1 for row in scores)
  informed, credits = values(scores), accuracies(scores)
  if not single:
    informed['acc_pmi'] = [
      [s.logprob - b.logprob for s, b in zip(*r, strict=True)]
      for r in zip(scores, blind, strict=True)
    ]
    credits['acc_pmi'] = _credit(informed['acc_pmi'], answers)
  result: dict[str, Any] = {k: float(v.mean()) for k, v in credits.items()}
  n = len(examples)
  result |= {
    'metric': metric,
    'stderr': float(credits[metric].std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan,
    'n': n,
    'chance': 0.0 if single else float(np.mean([1 / len(e['choices']) for e in examples])),
    'blind': {k: float(v.mean()) for k, v in accuracies(blind).items()},
    'longest': 0.0 if single else float(_credit(lengths, answers).mean()),
  }
  if single:
    result['loss'] = -math.fsum(row[0].logprob for row in scores) / n  # nats an answer
  result['examples'] = [
    {
      'context': _contexts(examples[i])[examples[i]['answer']],
      'choices': list(examples[i]['choices']),
      'answer': examples[i]['answer'],
      'predicted': int(np.argmax(informed[metric][i])),
    }
    for i in range(min(n, num_shown))
  ]
  return result


def _contexts(example: Example) -> list[str]:
  context = example['context']
  return [context] * len(example['choices']) if isinstance(context, str) else list(context)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
  pairs = enumerate(zip(a, b, strict=False))
  return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _divide(rows: Sequence[Sequence[float]], by: Sequence[Sequence[int]]) -> list[list[float]]:
  return [[x / n for x, n in zip(*r, strict=True)] for r in zip(rows, by, strict=True)]


def _credit(rows: Sequence[Sequence[float]], answers: Sequence[int]) -> np.ndarray:
  """One where the answer alone is highest, 1/k where it shares that place with k - 1 others."""
  credit = np.zeros(len(rows))
  for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
    row = np.asarray(row, np.float64)
    # Differences below the rounding of float32 log-probabilities are none.
    best = row >= row.max() - 1e-6 * max(1.0, abs(row.max()))
    credit[i] = best[answer] / best.sum()
  return credit


# --- Tasks -------------------------------------------------------------------------------------


class TooFewDocuments(ValueError):
  """A corpus holds out too few documents to make a task of."""


def build_continuation_task(
  documents: Sequence[Document],
  tokenizer: Tokenizer,
  *,
  n: int,
  seed: int,
  context_chars: int = 256,
  choice_chars: int = 96,
  num_choices: int = 4,
) -> list[Example]:
  """Which continuation is real? Made from held-out documents of one corpus.

  For each example `num_choices` documents are drawn, each is cut at a random beginning of a word,
  and one of the cuts gives the context: its own continuation is the answer, those of the others
  are the distractors. All are made alike, with equally many characters, so whoever does not read
  the context is right once in `num_choices`, in expectation exactly. Sizes are in characters, so
  the same text gives the same task under every tokenizer.

  Raises:
    TooFewDocuments: fewer than `num_choices` documents are long enough.
  """
  texts = [tokenizer.decode(d['tokens']) for d in documents]
  need = context_chars + choice_chars
  cuts = []  # of each document that has any, where a word begins with room on both sides
  for text in texts:
    found = (m.start() for m in re.finditer(r'(?<=\S)\s+(?=\S)', text))
    cuts.append([at for at in found if context_chars <= at <= len(text) - choice_chars])
  usable = [i for i, c in enumerate(cuts) if c]
  if len(usable) < num_choices:
    raise TooFewDocuments(
      f'the continuation task needs {num_choices} held-out documents of {need} characters, '
      f'there are {len(usable)}: give it more documents, or a larger --config.tokenize.holdout'
    )
  rng = np.random.default_rng(seed)
  examples = []
  for _ in range(100 * n):  # equal texts, such as boilerplate, make some draws useless
    if len(examples) == n:
      break
    chosen = rng.choice(usable, num_choices, replace=False)
    at = [cuts[i][rng.integers(len(cuts[i]))] for i in chosen]
    answer = int(rng.integers(num_choices))
    choices = [texts[i][a : a + choice_chars] for i, a in zip(chosen, at, strict=True)]
    context = texts[chosen[answer]][at[answer] - context_chars : at[answer]]
    if len(set(choices)) == num_choices:
      examples.append({'context': context, 'choices': choices, 'answer': answer})
  if len(examples) < n:
    raise TooFewDocuments('the continuation task found no four documents that differ: give it more')
  return examples


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
  say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
  """Bits per byte of each corpus in `documents`, copying (`copy_probe`), and each task.

  Args:
    eval_data: folder with the JSONL files of public tasks (`TASKS` names them).
    documents: corpus name → held-out token documents; the continuation task is made from them.
    unigram_counts: corpus name → counts of training tokens, for `unigram_loss`.
    bos: documents begin with BOS in training.
    seq_len: context in tokens, no more than the model was trained for.
    limit: examples a task, spread evenly over its file; 0 = all (200 of the continuation task).
    say: is given a line about each result.
  Returns:
    `{'bits_per_byte': {corpus: …}, 'copy': …, 'tasks': {task: …}}`, see `bits_per_byte`,
    `copy_probe` (where there are documents) and `summarize`.
  Raises:
    ValueError, FileNotFoundError: unknown task, missing file or documents; before anything is run.
  """
  _require_vocabulary(config, tokenizer)
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
    say(f'{name}: {row["bpb"]:.3f} bits per byte, {row["loss"]:.3f} nats per token'
        + (f' ({languages})' if languages else ''))
  if documents:
    everything = [d for docs in documents.values() for d in docs]
    copied = results['copy'] = copy_probe(config, params, everything, **options)
    say('copies shuffled text: ' + ', '.join(
      f'{row["accuracy"]:.1%} {name} ({row["saved"]:.2f} nats saved)'
      for name, row in copied.items()))
  for name, examples in loaded.items():
    uninformed = [{**e, 'context': TASKS[name].blind} for e in examples]
    scores, blind = (
      score_choices(config, params, tokenizer, x, bos=bos, **options)
      for x in (examples, uninformed)
    )
    metric = TASKS[name].metric
    row = results['tasks'][name] = summarize(examples, scores, blind, metric=metric)
    say(
      f'{name}: {metric} {row[metric]:.3f} ± {row["stderr"]:.3f} (blind '
      f'{max(row["blind"].values()):.3f}, chance {row["chance"]:.3f}, {row["n"]} examples)'
    )
  return results


def load_task(
  name: str,
  eval_data: str = '',
  *,
  documents: Mapping[str, Sequence[Document]],
  tokenizer: Tokenizer,
  limit: int = 0,
  seed: int = 0,
) -> list[Example]:
  """The examples of one of `TASKS`; raises ValueError or FileNotFoundError that says the mend."""
  if name not in TASKS:
    raise ValueError(f'unknown task {name!r}: one of {", ".join(TASKS)}')
  task = TASKS[name]
  if task.file is None:
    if not documents:
      raise ValueError(f'task {name!r} is made from held-out documents: give it a tokenised corpus')
    n = limit or 200
    tasks = []  # of each corpus with enough documents
    for docs in documents.values():
      try:
        tasks.append(build_continuation_task(docs, tokenizer, n=n, seed=seed))
      except TooFewDocuments as e:
        error = e
    if not tasks:
      raise error
    shares = [n * (i + 1) // len(tasks) - n * i // len(tasks) for i in range(len(tasks))]
    return [e for task, k in zip(tasks, shares, strict=True) for e in task[:k]]
  path = os.path.join(eval_data, task.file)
  if not os.path.exists(path):
    raise FileNotFoundError(
      f'task {name!r} needs {task.file}, and there is none in {eval_data or "(no folder given)"}: '
      'point --eval_data at the folder that holds it'
    )
  with open(path, encoding='utf-8') as f:
    lines = [line for line in f if line.strip()]
  examples = []
  for i in _spread(len(lines), limit):
    try:
      examples.append(task.example(json.loads(lines[i])))
    except (KeyError, ValueError, TypeError, IndexError) as e:
      raise ValueError(f'{path}, line {i + 1} is no row of {name}: {e!r}') from None
  if not examples:
    raise ValueError(f'{path} is empty')
  return examples


def _spread(size: int, limit: int) -> list[int]:
  """Up to `limit` indices below `size`, evenly spread (files are sorted by subject); 0 = all."""
  k = min(limit, size) if limit else size
  return [i * size // k for i in range(k)]


def _question(text: str) -> str:
  return f'Question: {text}\nAnswer:'


def _labelled(question: str, row: Mapping) -> Example:
  """Rows with `choices: {text, label}` and `answerKey`."""
  choices = row['choices']
  return {
    'context': question,
    'choices': [f' {c}' for c in choices['text']],
    'answer': choices['label'].index(row['answerKey']),
  }


def _boolq(row: Mapping) -> Example:
  context = f'{row["passage"]}\nQuestion: {row["question"]}?\nAnswer:'
  return {'context': context, 'choices': [' no', ' yes'], 'answer': int(row['answer'])}


def _copa(row: Mapping) -> Example:
  joint = {'cause': 'because', 'effect': 'therefore'}[row['question']]
  choices = (row['choice1'], row['choice2'])
  return {
    'context': f'{row["premise"].strip()[:-1]} {joint}',
    'choices': [f' {c[0].lower()}{c[1:]}' for c in choices],
    'answer': row['label'],
  }


def _hellaswag(row: Mapping) -> Example:
  def clean(text: str) -> str:  # WikiHow's markup, as lm-eval removes it
    text = re.sub(r'\[.*?\]', '', text.strip().replace(' [title]', '. '))
    return text.replace('  ', ' ')

  context = f'{row["activity_label"]}: {row["ctx_a"]} {row["ctx_b"].capitalize()}'
  return {
    'context': clean(context),
    'choices': [f' {clean(e)}' for e in row['endings']],
    'answer': int(row['label']),
  }


def _lambada(row: Mapping) -> Example:
  return {'context': row['context'], 'choices': [f' {row["continuation"]}'], 'answer': 0}


def _mmlu(row: Mapping) -> Example:
  return {
    'context': _question(row['question'].strip()),
    'choices': [f' {c}' for c in row['choices']],
    'answer': int(row['answer']),
  }


def _piqa(row: Mapping) -> Example:
  choices = [f' {row["sol1"]}', f' {row["sol2"]}']
  return {'context': _question(row['goal']), 'choices': choices, 'answer': int(row['label'])}


def _sciq(row: Mapping) -> Example:
  choices = [row[k] for k in ('distractor1', 'distractor2', 'distractor3', 'correct_answer')]
  return {
    'context': f'{row["support"].lstrip()}\n{_question(row["question"])}',
    'choices': [f' {c}' for c in choices],
    'answer': 3,
  }


def _social_i_qa(row: Mapping) -> Example:
  return {
    'context': f'Q: {row["context"]} {row["question"]}\nA:',
    'choices': [f' {row[f"answer{k}"]}' for k in 'ABC'],
    'answer': int(row['label']) - 1,
  }


def _winogrande(row: Mapping) -> Example:
  """The rest of the sentence after each of the two names (partial scoring, Trinh and Le 2018)."""
  before, after = row['sentence'].split('_')
  return {
    'context': [before + row['option1'], before + row['option2']],
    'choices': [f' {after.strip()}'] * 2,
    'answer': int(row['answer']) - 1,
  }


class Task(NamedTuple):
  """Where a task's rows come from and how one becomes an `Example` (zero-shot, cloze)."""

  file: str | None  # JSONL in the folder of evaluation data; None = made from held-out documents
  example: Callable[[Mapping], Example] | None
  blind: str  # what stands in for the context in the blind baseline and in PMI
  metric: str = 'acc_norm'  # the score that counts, by the field's custom for the task


TASKS: dict[str, Task] = {
  'continuation': Task(None, None, '', 'acc_pmi'),
  'arc_challenge': Task(
    'arc_challenge.validation.jsonl', lambda r: _labelled(_question(r['question']), r), 'Answer:'
  ),
  'arc_easy': Task(
    'arc_easy.validation.jsonl', lambda r: _labelled(_question(r['question']), r), 'Answer:'
  ),
  'boolq': Task('boolq.validation.jsonl', _boolq, 'Answer:', 'acc'),
  'commonsense_qa': Task(
    'commonsense_qa.validation.jsonl', lambda r: _labelled(_question(r['question']), r), 'Answer:'
  ),
  'copa': Task('copa.validation.jsonl', _copa, '', 'acc'),
  'hellaswag': Task('hellaswag.validation.jsonl', _hellaswag, ''),
  'lambada': Task('lambada_openai.test.jsonl', _lambada, '', 'acc'),
  'mmlu': Task('mmlu.test.jsonl', _mmlu, 'Answer:'),
  'openbookqa': Task(
    'openbookqa.validation.jsonl', lambda r: _labelled(r['question_stem'], r), ''
  ),
  'piqa': Task('piqa.validation.jsonl', _piqa, 'Answer:'),
  'sciq': Task('sciq.validation.jsonl', _sciq, 'Answer:'),
  'social_i_qa': Task('social_i_qa.validation.jsonl', _social_i_qa, 'A:'),
  'winogrande': Task('winogrande_xl.validation.jsonl', _winogrande, '', 'acc'),
}

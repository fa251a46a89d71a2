"""Questions with choices: scores of each, and accuracies with their errors."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from smoljax import model
from smoljax.data.tokenizer import Tokenizer
from smoljax.evals import likelihood

Example = dict[str, Any]  # 'context': str, or one per choice; 'choices': list of str; 'answer': int


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
    raise ValueError(f'{tokenizer.path} has no BOS token: score with bos=False')
  totals = [[[0.0, 0, True] for _ in e['choices']] for e in examples]

  def stream() -> Iterator[likelihood.Window]:
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
        yield from likelihood.windows(
          (i, j),
          np.asarray(prefix + ids),
          first=len(prefix) + common[c],
          seq_len=seq_len,
          min_context=seq_len // 4,
        )

  scored = likelihood.run_windows(config, params, stream(), batch_size=batch_size, seq_len=seq_len)
  for (i, j), logprobs, best in scored:
    total = totals[i][j]
    total[0] += float(logprobs.sum(dtype=np.float64))
    total[1] += len(logprobs)
    total[2] &= bool((logprobs >= best).all())
  return [[Score(*t) for t in row] for row in totals]


def _less(
  scores: Sequence[Sequence[Score]], blind: Sequence[Sequence[Score]]
) -> list[list[float]]:
  return [[s.logprob - b.logprob for s, b in zip(*rows, strict=True)]
          for rows in zip(scores, blind, strict=True)]


def summarize(
  examples: Sequence[Example],
  scores: Sequence[Sequence[Score]],
  blind: Sequence[Sequence[Score]],
  *,
  metric: str = 'acc',
  num_shown: int = 4,
  astray: Sequence[Sequence[Score]] | None = None,
) -> dict[str, Any]:
  """Accuracies of scored examples, beside what no knowledge would get.

  acc: highest log-likelihood. acc_norm: per character of the answer, its leading space not counted
  (the convention of lm-eval and lighteval; without knowledge it favours long answers). acc_token:
  per token. acc_pmi: log-likelihood less that without the context. blind: the first three without
  the context, and acc_pmi with that of another example, if `astray` has scores of that. longest:
  always the longest answer. chance: one in the number of choices. metric: which of the four counts
  for this task; stderr and the choices shown are by it. Equals share the point. Where there is one
  choice only, acc counts the examples whose every token was the likeliest, and chance is 0.
  languages: where examples say theirs, n and the metric of each.
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
    informed['acc_pmi'] = _less(scores, blind)
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
  languages = [e.get('language') or '' for e in examples]
  if any(languages):
    result['languages'] = {
      code: {'n': languages.count(code), metric: float(np.mean(
        [x for x, of in zip(credits[metric], languages, strict=True) if of == code]))}
      for code in sorted(set(languages))}
  if astray:
    result['blind']['acc_pmi'] = float(_credit(_less(astray, blind), answers).mean())
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

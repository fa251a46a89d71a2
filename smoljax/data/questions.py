"""Conversations as questions that a policy answers itself, and which of them each batch asks."""

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import grain
import numpy as np

from smoljax.data import chat, packing
from smoljax.data.batches import Stage
from smoljax.data.corpus import Corpus, word
from smoljax.data.tokenizer import Tokenizer


class Question(NamedTuple):
  """A prompt, and the answer that rules compare with."""

  prompt: list[int]
  truth: str


def question(corpus: Corpus, document: int, tokenizer: Tokenizer) -> Question:
  """Of a conversation: all before its last answer, whose turn is begun, and that answer's text.

  Raises ValueError, naming the document, for one without an answer.
  """
  record = corpus.records[document]
  tokens, mask = corpus.decode(record), corpus.mask(record)
  learned = np.flatnonzero(mask)
  gaps = np.flatnonzero(np.diff(learned) > 1)
  start = int(learned[gaps[-1] + 1] if len(gaps) else learned[0]) if len(learned) else 0
  if not start:
    raise ValueError(f'{corpus.name}: document {document} has no answer, or no question before it')
  answer = tokens[start : learned[-1] + 1].tolist()
  header = _header(tokenizer, word(record['mode']))  # the model is not asked to begin a turn
  if answer[: len(header)] == header:
    start, answer = start + len(header), answer[len(header):]
  return Question(tokens[:start].tolist(), tokenizer.decode(answer))


@functools.lru_cache(maxsize=8)
def _header(tokenizer: Tokenizer, mode: str) -> list[int]:
  """The tokens with which an answer begins, as inference writes them."""
  rendered = chat.render([{'role': 'user', 'content': '?'}], mode=mode, generation_prompt=True)
  return chat.encode(chat.Rendered(rendered.segments[-2:], mode), tokenizer)[0]


class Questions(grain.IterDataset):
  """Which documents each batch asks of: {'number', 'source' [Q], 'document' [Q]}, endless.

  In place of `batches.Batches`, whose methods it has; its state counts batches.

  Args:
    corpora: of conversations; all names in the stages' mixtures must be there.
    rows: questions a batch.
  """

  def __init__(
    self, corpora: Mapping[str, Corpus], stages: Sequence[Stage], *, rows: int, seed: int
  ):
    super().__init__()
    self.sources = sorted({name for s in stages for name in s.mixture})
    if unknown := [n for n in self.sources if n not in corpora]:
      raise ValueError(
        f'train.stages: no corpus named {", ".join(unknown)}; there are: {", ".join(corpora)}')
    self.corpora = {n: corpora[n] for n in self.sources}
    for name, corpus in self.corpora.items():
      if not corpus.has_mask:
        raise ValueError(f'the corpus {name!r} is of plain documents: train.reinforce needs '
                         'conversations, of which it takes questions and true answers')
    self.stages, self.rows, self._seed = stages, rows, seed
    self.max_segments = 1

  def fingerprint(self, stop: float = math.inf) -> str:
    """As `Batches.fingerprint`."""
    spans = [(s.start, min(s.stop, stop), s.mixture) for s in self.stages if s.start < stop]
    used = {name for *_, mixture in spans for name in mixture}
    what = ['reinforce', {n: self.corpora[n].digest for n in used}, spans, self.rows, self._seed]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

  def asked(self, step: int, number: int) -> dict[str, np.ndarray]:
    """Batch `number` of the stage of `step`."""
    stage = next(s for s in self.stages if s.start <= step < s.stop)
    rng = np.random.default_rng((self._seed, number))
    names = rng.choice(list(stage.mixture), self.rows, p=list(stage.mixture.values()))
    source = np.array([self.sources.index(name) for name in names], np.int32)
    document = np.zeros(self.rows, np.int64)
    for i, name in enumerate(names):
      size = len(self.corpora[name].lengths)
      epoch, place = divmod(number * self.rows + i, size)
      key = f'{self._seed}/{name}/{epoch}'.encode()
      document[i] = packing.permute(np.array([place]), size, key)[0]
    return {'number': np.asarray(number), 'source': source, 'document': document}

  def epochs(self, position: dict) -> dict[str, float]:
    """As `Batches.epochs`, as if each corpus were asked alone."""
    return {n: position['number'] * self.rows / len(c.lengths) for n, c in self.corpora.items()}

  def after(self, position: dict, batches: int) -> dict:
    """As `Batches.after`."""
    return {**position, 'number': position['number'] + batches}

  def documents(self, position: dict, ahead: int) -> dict[str, list[str]]:
    """As `Batches.documents`."""
    asked = self.asked(position['step'], position['number'] + ahead)
    return {name: self.corpora[name].ids(sorted(set(
      asked['document'][asked['source'] == i].tolist()))) for i, name in enumerate(self.sources)}

  def __iter__(self) -> '_Iterator':
    return _Iterator(self)


class _Iterator(grain.DatasetIterator):
  def __init__(self, questions: Questions):
    super().__init__()
    self._questions, self._state = questions, {'step': 0, 'number': 0}

  def get_state(self) -> dict:
    return dict(self._state)

  def set_state(self, state: dict) -> None:
    self._state = dict(state)

  def __next__(self) -> dict[str, np.ndarray]:
    if self._state['step'] >= self._questions.stages[-1].stop:
      raise StopIteration
    asked = self._questions.asked(**self._state)
    self._state = {k: x + 1 for k, x in self._state.items()}
    return asked

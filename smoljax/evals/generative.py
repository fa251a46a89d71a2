"""Evaluation by generation: questions are put to the model, and what it writes is graded by rule.

A `Set` is a list of questions, each of one or more turns. A chat model is asked through its
template, in each of its modes; a base model gets the plain text (few-shot where a set has shots).
Sets of public tasks and of JSONL files: smoljax/evals/problems.py.

A thought that is not closed is no answer. Beside each score stand n and an interval.
"""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import hashlib
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from smoljax import files
from smoljax.checkpoints import load
from smoljax.data import chat, chat_template
from smoljax.evals import answers
from smoljax.evals.writing import Writer, Written
from smoljax.inference.sampling import GREEDY, Sampling

# How a model is asked. `chat`: as its template has it; `plain`: the text alone.
MODES = (*chat.MODES, 'chat', 'plain')
PARALLEL = 4  # sets that are put at once: programs of one are compiled while another is answered
# Templates write the date: that of an evaluation is always the same, as its scores should be.
_TODAY = datetime.datetime(2026, 1, 1)

Grade = Callable[[str], Mapping[str, float]]  # an answer, without its thought → scores in [0, 1]


@dataclasses.dataclass(frozen=True)
class Turn:
  """What the user says, and how the answer is graded.

  Attributes:
    prompt: the message.
    grade: None: the turn only leads to the next.
    mode: think or no_think, where this turn is asked in that mode whatever the others are.
    plain: the text for a base model, where it is another.
  """

  prompt: str
  grade: Grade | None = None
  mode: str | None = None
  plain: str = ''


@dataclasses.dataclass(frozen=True)
class Question:
  """A conversation to have.

  Attributes:
    turns: one or more.
    groups: what the scores are told apart by, such as `{'language': 'fr', 'depth': 3}`.
    system: instructions.
    tools: that the model may call, as of `chat.render`.
    prefix: the beginning of the answer, given (not to a model that thinks first).
    overrides: its system text asks for the mode of its turns; the template is told the other one.
  """

  turns: tuple[Turn, ...]
  groups: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  system: str = ''
  tools: tuple[chat.Tool, ...] = ()
  prefix: str = ''
  overrides: bool = False


@dataclasses.dataclass(frozen=True)
class Set:
  """Questions that are scored together.

  Attributes:
    questions: with different turns.
    metric: which of the scores counts.
    stops: strings that end the answer of a base model.
    max_new_tokens: for an answer; a thought has four times as many.
    constant: what giving one answer always scores, the commonest where that is known.
  """

  questions: Sequence[Question]
  metric: str = 'exact'
  stops: tuple[str, ...] = ()
  max_new_tokens: int = 256
  constant: float | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
  """How the questions are put.

  Attributes:
    modes: of `MODES`; () = those that the model has.
    max_new_tokens: 0 = as many as each set says.
    sampling: greedy by default; with `samples` above 1 at a temperature.
    samples: answers to each question.
    ks: pass@k of these, up to `samples`.
    batch_size: changes no score in float32.
    seed: of the draws.
  """

  modes: tuple[str, ...] = ()
  max_new_tokens: int = 0
  sampling: Sampling = GREEDY
  samples: int = 1
  ks: tuple[int, ...] = (1,)
  batch_size: int = 32
  seed: int = 0

  def __post_init__(self):
    if wrong := [mode for mode in self.modes if mode not in MODES]:
      raise ValueError(f'unknown mode {wrong[0]!r}: of {", ".join(MODES)}')
    if self.samples < 1 or self.max_new_tokens < 0 or self.batch_size < 1:
      raise ValueError(f'samples={self.samples}, max_new_tokens={self.max_new_tokens}, batch_size='
                       f'{self.batch_size}: too small')
    if self.samples > 1 and self.sampling.greedy:
      raise ValueError('several samples of one question need a temperature above 0')
    if wrong := [k for k in self.ks if not 1 <= k <= self.samples]:
      raise ValueError(f'pass@{wrong[0]} needs at least {wrong[0]} samples, not {self.samples}')


DEFAULT = Settings()


def evaluate_generation(
  model: load.Model,
  sets: Mapping[str, Set],
  settings: Settings = DEFAULT,
  *,
  folder: str = '',
  log_line: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Any]]:
  """Scores of each set in each mode: `{set: {mode: scores}}`.

  Args:
    folder: gets the scores of each set and mode as they come, and has those of a call of the same
      model, sets and settings that was stopped: they are not asked again.

  Scores have the mean of each metric over the questions, and
    metric, n, interval: which of them counts, of how many questions, 95 % (Wilson's).
    by: {group: {value: {n, the metric, interval}}}.
    follows, ended, unclosed: shares of turns that do what the mode asks for
      (`answers.follows_mode`), that ended by themselves, whose thought is not closed.
    by_turn: [{n, the metric, follows, interval of follows}], where there are several turns.
    pass@k: where there are several samples.
    too_long: turns that left no room for an answer; they count as wrong.
    tokens, tokens_per_sec: written in a turn on average, and in a second of it all; other sets
      are put at the same time.
    examples: some conversations.
  Questions whose turns say their modes are scored once, under their mode or under `mixed`.

  Raises:
    ValueError: the model has no chat template, or not these modes; before anything is written.
  """
  asker = _Asker(model, settings)
  parts = [(name, set_, chosen, mode) for name, set_ in sets.items()
           for mode, chosen in _by_mode(set_, asker.modes).items()]
  results: dict[str, dict[str, Any]] = {name: {} for name in sets}
  with concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
    rows = pool.map(lambda part: _kept(
      folder, f'{part[0]}, {part[-1]}', lambda: _score(asker, *part[1:])), parts)
    for (name, set_, _, mode), row in zip(parts, rows, strict=True):
      results[name][mode] = row
      low, high = row['interval']
      log_line(f'{name}, {mode}: {set_.metric} {row[set_.metric]:.3f} [{low:.3f}, {high:.3f}] of '
               f'{row["n"]}, {row["follows"]:.0%} follow the mode')
  return results


def _kept(folder, name, make):
  """What a folder has under a name, or what is made and put there."""
  if not folder:
    return make()
  file = os.path.join(folder, f'{hashlib.sha256(name.encode()).hexdigest()[:16]}.json')
  with contextlib.suppress(FileNotFoundError, ValueError):
    return files.read_json(file)
  made = make()
  os.makedirs(folder, exist_ok=True)
  files.write_json(file, made)
  return made


def _by_mode(set_, modes):
  """The questions that are put in each mode."""
  found: dict[str, list[Question]] = {}
  for question in set_.questions:
    own = {turn.mode for turn in question.turns}
    if own == {None} or modes == ('plain',):  # a base model has no modes to be told apart
      named = modes
    else:
      named = tuple(own) if len(own) == 1 else ('mixed',)
    for mode in named:
      found.setdefault(mode, []).append(question)
  return found


@dataclasses.dataclass
class _Talk:
  """A conversation as it goes."""

  question: Question
  sample: int
  history: list[dict[str, Any]]
  texts: list[str] = dataclasses.field(default_factory=list)
  written: list[Written | None] = dataclasses.field(default_factory=list)


class _Asker:
  """Puts turns to a model."""

  def __init__(self, model, settings):
    self.model, self.settings = model, settings
    self.template = None
    modes = settings.modes
    if not modes or set(modes) != {'plain'}:
      try:
        self.template = load.chat_template_of(model)
      except ValueError:
        if modes:
          raise
        modes = ('plain',)
    thinks = self.template is not None and chat_template.thinks(self.template)
    self.modes = modes or (chat.MODES if thinks else ('chat',))
    if not thinks and (wrong := set(self.modes) & set(chat.MODES)):
      raise ValueError(f'mode {wrong.pop()}: the chat template of this model has no such modes; '
                       'use chat')
    self._writer = Writer(model, settings.batch_size)
    self.grading = threading.Lock()  # programs that are run have a core each, and a limit of time
    end = model.tokenizer.control_id(chat.END)
    self._ends = (*model.eos_ids, *([end] if self.template and end is not None else []))

  def ask(self, talks, turn, mode, set_):
    """Each conversation's turn, through the model: fills `texts` and `written`."""
    places, prompts, rooms, seeds, before = [], [], [], [], []
    most = self.settings.max_new_tokens or set_.max_new_tokens
    for i, talk in enumerate(talks):
      ids, opening, wanted = self._prompt(talk, turn, mode, most)
      room = min(wanted, self.model.config.max_seq_len - len(ids))
      if room < 1:
        talk.texts.append('')
        talk.written.append(None)
        continue
      name = f'{self.settings.seed}/{talk.sample}/{ids}'.encode()
      places.append(i)
      prompts.append(ids)
      rooms.append(room)
      seeds.append(int.from_bytes(hashlib.sha256(name).digest()[:4]))
      before.append(opening)
    written = self._writer.write(
      prompts, rooms, seeds=seeds, eos_ids=self._ends, sampling=self.settings.sampling,
      stops=set_.stops if mode == 'plain' else ())
    for i, row in written:
      talks[places[i]].texts.append(before[i] + row.text)
      talks[places[i]].written.append(row)

  def _prompt(self, talk, turn, mode, most):
    """Token ids, what the prompt opened of the answer already, and tokens to write."""
    question, said = talk.question, talk.question.turns[turn]
    text = self.model.tokenizer
    if mode == 'plain':
      start = [text.bos_id] if self.model.bos else []
      return start + text.encode((said.plain or said.prompt) + question.prefix), '', most
    mode = said.mode or mode
    if turn:
      talk.history.append(dict(answers.turn(talk.texts[-1])))
    elif question.system:
      talk.history.append({'role': 'system', 'content': question.system})
    talk.history.append({'role': 'user', 'content': said.prompt})
    variables: dict[str, Any] = {'strftime_now': _TODAY.strftime}
    if mode in chat.MODES:
      variables['enable_thinking'] = (mode == 'think') != question.overrides
    if question.tools:
      variables['tools'] = list(question.tools)
    ids = chat_template.prompt_ids(self.template, talk.history, text, **variables)
    ending = self._writer.decode(ids[-8:]).rstrip()
    opening = answers.OPEN + '\n' if ending.endswith(answers.OPEN) else ''
    if mode == 'think':
      return ids, opening, most if self.settings.max_new_tokens else 4 * most
    return ids + (text.encode(question.prefix) if question.prefix else []), opening, most


def _score(asker, set_, questions, mode) -> dict[str, Any]:
  """The scores of some questions in one mode."""
  began = time.perf_counter()
  samples = asker.settings.samples
  talks = [_Talk(q, s, []) for q in questions for s in range(samples)]
  for turn in range(max((len(q.turns) for q in questions), default=0)):
    asker.ask([t for t in talks if turn < len(t.question.turns)], turn, mode, set_)
  seconds = time.perf_counter() - began
  turns = [(talk, i, said, talk.texts[i], talk.written[i]) for talk in talks
           for i, said in enumerate(talk.question.turns)]
  final = lambda text: text if mode == 'plain' else answers.split(text).answer
  with asker.grading, concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    grades = list(pool.map(
      lambda row: dict(row[2].grade(final(row[3]))) if row[2].grade else None, turns))
  follows = [_follows(said.mode or mode, text, written) for _, _, said, text, written in turns]

  names = sorted({name for grade in grades if grade for name in grade})
  of_talk: dict[int, list[dict[str, float]]] = {}
  for (talk, *_), grade in zip(turns, grades, strict=True):
    if grade is not None:
      of_talk.setdefault(id(talk), []).append(grade)
  mean_of = lambda talk, name: _mean([g.get(name, 0.0) for g in of_talk.get(id(talk), [])])
  per_question = [
    {name: _mean([mean_of(t, name) for t in talks[i : i + samples]]) for name in names}
    for i in range(0, len(talks), samples)]
  metric = set_.metric
  main = [row.get(metric, 0.0) for row in per_question]
  written = [w for *_, w in turns if w is not None]
  tokens = sum(len(w.ids) for w in written)
  result: dict[str, Any] = {metric: 0.0}
  result |= {name: _mean([row[name] for row in per_question]) for name in names}
  result |= {
    'metric': metric, 'n': len(questions), 'interval': answers.interval(_mean(main), len(main)),
    'follows': _mean(follows), 'ended': _mean([w.ended for w in written]),
    'unclosed': _mean([answers.OPEN in text and not answers.split(text).closed
                       for _, _, _, text, _ in turns]),
    'too_long': len(turns) - len(written), 'tokens': tokens / max(1, len(written)),
    'tokens_per_sec': tokens / seconds if seconds else 0.0,
    'by': _groups(questions, main, metric),
    'examples': [_shown(t, of_talk.get(id(t), [])) for t in talks[: 8 * samples : samples]],
  }
  if set_.constant is not None:
    result['constant'] = set_.constant
  if samples > 1:
    right = [sum(mean_of(t, metric) == 1 for t in talks[i : i + samples])
             for i in range(0, len(talks), samples)]
    result |= {f'pass@{k}': _mean([answers.pass_at_k(samples, c, k) for c in right])
               for k in asker.settings.ks}
  if any(len(q.turns) > 1 for q in questions):
    result['by_turn'] = _turns(turns, grades, follows, metric)
  return result


def _follows(mode, text, written):
  if written is None:
    return False
  if mode in chat.MODES:
    return answers.follows_mode(text, mode, ended=written.ended)
  return written.ended and bool(text.strip())


def _turns(turns, grades, follows, metric):
  rows = []
  for i in range(1 + max(i for _, i, *_ in turns)):
    here = [k for k, (_, at, *_) in enumerate(turns) if at == i]
    share = _mean([follows[k] for k in here])
    graded = [grades[k].get(metric, 0.0) for k in here if grades[k] is not None]
    rows.append({'n': len(here), 'follows': share, 'interval': answers.interval(share, len(here)),
                 **({metric: _mean(graded)} if graded else {})})
  return rows


def _groups(questions, scores, metric):
  """{group: {value: scores}} of the metric that counts."""
  found: dict[str, dict[str, list[float]]] = {}
  for question, score in zip(questions, scores, strict=True):
    for group, value in question.groups.items():
      found.setdefault(group, {}).setdefault(str(value), []).append(score)
  return {group: {value: {'n': len(s), metric: _mean(s),
                          'interval': answers.interval(_mean(s), len(s))}
                  for value, s in sorted(values.items(), key=lambda kv: _natural(kv[0]))}
          for group, values in found.items()}


def _natural(text):
  return (0, int(text), '') if text.isdecimal() else (1, 0, text)


def _shown(talk, grades):
  """A conversation for the report, long texts cut in the middle."""
  cut = lambda text: text if len(text) <= 2000 else f'{text[:1000]} […] {text[-1000:]}'
  return {'turns': [{'prompt': cut(turn.prompt), 'text': cut(text)}
                    for turn, text in zip(talk.question.turns, talk.texts, strict=False)],
          'scores': [dict(grade) for grade in grades]}


def _mean(values):
  return math.fsum(values) / len(values) if values else 0.0

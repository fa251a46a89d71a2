"""The tasks: how each known evaluation set becomes questions. TASKS at the bottom lists them."""

import collections
import difflib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from smoljax.data.tokenizer import Tokenizer
from smoljax.evals import held_out
from smoljax.evals.held_out import Document
from smoljax.evals.multiple_choice import Example


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


def build_cloze_task(
  documents: Sequence[Document],
  tokenizer: Tokenizer,
  *,
  n: int,
  seed: int,
  context_chars: int = 256,
  num_choices: int = 4,
) -> list[Example]:
  """Which word is missing? Made from held-out documents of one language.

  Of a word of five letters or more in a text, the text before it is the context; the distractors
  are other words of the same text collection, as long and as frequent as can be had, with the same
  case of their first letter. All stand before the same text that follows, to the end of the
  sentence (at most 64 characters), so that what fits it decides, too.

  Raises:
    TooFewDocuments: there are not enough long documents, or words.
  """
  rng = np.random.default_rng(seed)
  texts = [text for d in documents
           if len(text := tokenizer.decode(d['tokens'])) > context_chars + 64]
  counts = collections.Counter(w for text in texts for w in _LONG_WORD.findall(text))
  alike: dict[tuple[int, bool, int], list[str]] = collections.defaultdict(list)
  kind = lambda w: (len(w), w[0].isupper(), counts[w].bit_length())
  for word in sorted(counts):
    alike[kind(word)].append(word)
  examples = []
  for _ in range(20 * n if len(texts) >= num_choices else 0):
    if len(examples) == n:
      break
    text = texts[rng.integers(len(texts))]
    found = [m for m in _LONG_WORD.finditer(text, context_chars)
             if len(alike[kind(m[0])]) > 2 * num_choices]
    if not found:
      continue
    match = found[rng.integers(len(found))]
    rest = re.match(r'[^.!?\n]{0,64}', text[match.end():])
    others = [w for w in alike[kind(match[0])] if w.lower() != match[0].lower()]
    if len(others) < num_choices - 1:
      continue
    drawn = rng.choice(len(others), num_choices - 1, replace=False)
    words = [match[0], *(others[i] for i in drawn)]
    order = rng.permutation(num_choices)
    start = match.start() - context_chars
    space = text[match.start() - 1] if text[match.start() - 1] == ' ' else ''
    examples.append({
      'context': text[start : match.start() - len(space)],
      'choices': [f'{space}{words[i]}{rest[0] if rest else ""}' for i in order],
      'answer': int(np.flatnonzero(order == 0)[0])})
  if len(examples) < n:
    raise TooFewDocuments(
      f'the cloze task found {len(examples)} of {n} words with others like them: give it more '
      'documents, or a larger --config.tokenize.holdout')
  return examples


_LONG_WORD = re.compile(r'(?<![^\W])[^\W\d_]{5,}(?!\w)')


def _by_language(
  documents: Mapping[str, Sequence[Document]], tokenizer: Tokenizer, n: int, seed: int
) -> list[Example]:
  """Cloze questions of every language with enough text, equally many of each."""
  of: dict[str, list[Document]] = collections.defaultdict(list)
  for docs in documents.values():
    for d in docs:
      of[d.get('language') or ''].append(d)
  found, error = [], None
  for language in sorted(of):
    try:
      questions = build_cloze_task(of[language], tokenizer, n=max(1, n // len(of)), seed=seed)
      found += [{**q, 'language': language} for q in questions]
    except TooFewDocuments as e:
      error = e
  if error and not found:
    raise error
  return found


def choices_of(row: Mapping) -> Example:
  """A multiple-choice question from a row in one of the common layouts.

  The context is `query`, `question`, `context`, `prompt`, `ctx`, `premise` or `sentence1`; Belebele
  has `flores_passage` and `mc_answer1` to 4; Winogrande a sentence with a gap. Choices are a list,
  `{text, label}`, or `endings`; the answer is an index, a label or the text of a choice. With a
  `language` accuracies are told apart by it. Raises KeyError or ValueError for other rows.
  """
  if 'flores_passage' in row:
    choices = [row[f'mc_answer{i}'] for i in range(1, 5)]
    example = {'context': f'{row["flores_passage"]}\n{_question(row["question"])}',
               'choices': [f' {c}' for c in choices], 'answer': int(row['correct_answer_num']) - 1}
  elif 'option1' in row:
    example = _winogrande(row)
  elif 'continuation' in row:
    example = {'context': row['context'], 'choices': [f' {row["continuation"].strip()}'],
               'answer': 0}
  elif 'question' in row and not isinstance(row.get('choices'), Mapping):
    named = [k for k in ('gold', 'label', 'answerKey') if k in row and 'answer' not in row]
    example = _own({**row, 'answer': row[named[0]]} if named else row)
  else:
    name = next(k for k in ('query', 'question', 'context', 'prompt', 'ctx', 'premise') if k in row)
    choices = row['endings'] if 'endings' in row else row['choices']
    labels = [str(i) for i in range(26)]
    if isinstance(choices, Mapping):
      choices, labels = choices['text'], [str(x) for x in choices['label']]
    gold = next(row[k] for k in ('gold', 'answer', 'label', 'answerKey') if k in row)
    answer = (choices.index(gold) if gold in choices else
              labels.index(str(gold)) if str(gold) in labels else 'ABCDEFGH'.index(str(gold)))
    if not 0 <= answer < len(choices):
      raise ValueError(f'the answer {gold!r} is none of the {len(choices)} choices')
    text = row[name] if name in ('query', 'context', 'prompt', 'ctx') else _question(row[name])
    example = {'context': text.rstrip(), 'choices': [f' {c.strip()}' for c in choices],
               'answer': answer}
  language = row.get('language') or row.get('dialect')
  return {**example, **({'language': language} if language else {})}


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
  task = find_task(name, eval_data)
  if task.file is None or task.example is None:
    if not documents:
      raise ValueError(f'task {name!r} is made from held-out documents: give it a tokenised corpus')
    n = limit or 200
    if name == 'cloze':
      return _by_language(documents, tokenizer, n, seed)
    tasks, error = [], None  # of each corpus with enough documents
    for docs in documents.values():
      try:
        tasks.append(build_continuation_task(docs, tokenizer, n=n, seed=seed))
      except TooFewDocuments as e:
        error = e
    if error and not tasks:
      raise error
    shares = [n * (i + 1) // len(tasks) - n * i // len(tasks) for i in range(len(tasks))]
    return [e for task, k in zip(tasks, shares, strict=True) for e in task[:k]]
  return read_task(name, eval_data, limit)


def read_task(name: str, eval_data: str = '', limit: int = 0) -> list[Example]:
  """The examples of a task that has a file, spread evenly over it; raises as `load_task`."""
  task = find_task(name, eval_data)
  if task.file is None or task.example is None:
    raise ValueError(f'task {name!r} has no file')
  path = os.path.join(eval_data, task.file)
  if not os.path.exists(path):
    raise FileNotFoundError(
      f'task {name!r} needs {task.file}, and there is none in {eval_data or "(no folder given)"}: '
      'point --eval_data at the folder that holds it'
    )
  with open(path, encoding='utf-8') as f:
    lines = [line for line in f if line.strip()]
  examples = []
  for i in held_out.spread(len(lines), limit):
    try:
      row = json.loads(lines[i])
      if not isinstance(row, dict):
        raise ValueError('each line is to be one JSON object')
      examples.append(task.example(row))
    except (KeyError, ValueError, TypeError, IndexError, StopIteration) as e:
      why = f'no {e}' if isinstance(e, KeyError) else str(e) or 'no question or context'
      raise ValueError(f'{path}, line {i + 1} is no row of {name}: {why}') from None
  if not examples:
    raise ValueError(f'{path} is empty')
  return examples


def find_task(name: str, eval_data: str = '') -> 'Task':
  """One of TASKS, or questions of one's own (`own_file`), as `choices_of` reads them.

  Raises ValueError where there is neither.
  """
  if name in TASKS:
    return TASKS[name]
  if path := own_file(name, eval_data):
    return Task(path, choices_of, 'Answer:')
  near = difflib.get_close_matches(name, TASKS, 3)
  raise ValueError(
    f'unknown task {name!r}' + f' (did you mean {" or ".join(near)}?)' * bool(near)
    + f': give one of {", ".join(TASKS)}, or have questions of your own in '
    f'{os.path.join(eval_data or "EVAL_DATA", name)}.jsonl')


def own_file(name: str, eval_data: str = '') -> str:
  """The file of the questions that somebody calls `name`: NAME.jsonl in the folder `eval_data`, or
  the path of a .jsonl; '' where there is none."""
  found = name if name.endswith('.jsonl') else os.path.join(eval_data, f'{name}.jsonl')
  return os.path.abspath(found) if name not in TASKS and os.path.isfile(found) else ''


def has_choices(path: str) -> bool:
  """Whether a JSONL file has questions to choose from, and none to be answered freely
  (smoljax/evals/problems.py); by its first row."""
  try:
    with open(path, encoding='utf-8') as f:
      row = json.loads(next((line for line in f if line.strip()), '{}'))
  except FileNotFoundError:
    return False
  except (OSError, ValueError):
    return True  # what is wrong with it is said where it is read
  if not isinstance(row, dict) or {'choices', 'endings'} & row.keys():
    return True
  return not ({'prompt', 'turns', 'messages'} & row.keys() or {'question', 'answer'} <= row.keys())


def _own(row: Mapping) -> Example:
  """Anybody's questions, a JSON object a line: question, choices, answer, and context if any.

  `choices` are two or more texts; `answer` is the number of the right one (from 0), its letter (A
  for the first) or its text; `context` is what the question is about.
  """
  question, choices, answer = row['question'], row['choices'], row['answer']
  if not isinstance(question, str) or not isinstance(choices, list) or len(choices) < 2 or not all(
    isinstance(c, str) and c.strip() for c in choices):
    raise ValueError('question is a text, and choices are a list of two texts or more')
  letters = [chr(ord('A') + i) for i in range(len(choices))]
  if isinstance(answer, str):
    found = choices.index(answer) if answer in choices else (
      letters.index(answer) if answer in letters else None)
  else:
    found = answer if answer in range(len(choices)) and not isinstance(answer, bool) else None
  if found is None:
    raise ValueError(f'answer {answer!r} is none of the {len(choices)} choices: give its number '
                     'from 0, its letter from A, or its text')
  before = f'{row["context"].strip()}\n' if row.get('context') else ''
  return {'context': before + _question(question.strip()),
          'choices': [f' {c.strip()}' for c in choices], 'answer': int(found)}


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
  'cloze': Task(None, None, '', 'acc_pmi'),
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

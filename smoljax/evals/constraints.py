"""Constraints on an answer that a rule can check, after IFEval (arXiv:2311.07911), stricter.

A constraint is `{'kind': NAME, …arguments}`; `CONSTRAINTS` at the bottom lists the kinds. Where
IFEval's checkers take what nobody meant (a keyword inside another word, a bare number as JSON, a
bullet of `*` in bold text), these do not.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

# Words that hardly occur in the other languages, enough to tell paragraphs apart.
_COMMON = {
  'en': 'the and of to is that it was for with are this have from which not they',
  'fr': 'le les des une est et dans pour que qui sur pas avec ce sont aux cette nous',
  'es': 'el los las una es y en por que con del para como más pero este está son',
  'de': 'der die das und ist nicht ein eine mit auf für von dem den zu sich auch',
  'it': 'il gli una è e di che per con non sono della nel alla come più anche dei',
  'pt': 'o os uma é e em não com para que do da dos das ao como mais são',
}
_WORDS_OF = {language: frozenset(words.split()) for language, words in _COMMON.items()}


def words(text: str) -> list[str]:
  """The words of a text: letters, digits, and apostrophes and hyphens inside (it's is one)."""
  return re.findall(r"\w+(?:['\u2019-]\w+)*", text)


def sentences(text: str) -> list[str]:
  """Its sentences: up to . ? ! or … before a space or the end; an abbreviation ends none."""
  text = re.sub(r'\b(Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|e\.g|i\.e|z\.B|bzw|ca|M|Mme|Sra|Dra)\.\s',
                '\\1\u2024 ', text)
  found = re.split(r'(?<=[.!?\u2026])["\u201d\u00bb)\]]*\s+|\n{2,}', text)
  return [s for s in found if re.search(r'\w', s)]


def paragraphs(text: str) -> list[str]:
  """Its paragraphs: between `***` where that is used, otherwise between blank lines."""
  pattern = r'^\s*\*\*\*\s*$' if re.search(r'^\s*\*\*\*\s*$', text, re.M) else r'\n\s*\n'
  return [p for p in re.split(pattern, text, flags=re.M) if p.strip()]


def language_of(text: str) -> str:
  """Which of the six languages a text is in, by its commonest words; '' if that does not tell."""
  found = [w.lower() for w in words(text)]
  counts = {k: sum(w in known for w in found) for k, known in _WORDS_OF.items()}
  first, second, *_ = sorted(counts, key=lambda k: -counts[k])
  return first if counts[first] > counts[second] else ''


def _within(n: int, at_least: int | None = None, at_most: int | None = None,
            exactly: int | None = None) -> bool:
  if at_least is None and at_most is None and exactly is None:
    raise ValueError('a count needs at_least, at_most or exactly')
  return ((at_least is None or n >= at_least) and (at_most is None or n <= at_most)
          and (exactly is None or n == exactly))


def _occurrences(text: str, word: str) -> int:
  return len(re.findall(rf'(?<!\w){re.escape(word)}(?!\w)', text, re.IGNORECASE))


def _json(text: str, keys: Sequence[str] = ()) -> bool:
  text = re.sub(r'\A```(?:json)?\s*\n(.*)\n```\Z', r'\1', text.strip(), flags=re.S | re.I)
  try:
    value = json.loads(text)
  except (ValueError, RecursionError):
    return False
  if not isinstance(value, dict | list):
    return False
  return not keys or (isinstance(value, dict) and set(keys) <= value.keys())


def _cased(text: str, want: str) -> bool:
  return text.isupper() if want == 'upper' else text.islower()


def _two(text: str) -> bool:
  parts = [p.strip() for p in text.split('******')]
  return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def _bullets(text: str) -> int:
  return len(re.findall(r'^\s*(?:[*+\u2022-]|\d+[.)])\s+\S', text, re.M))


class Constraint(NamedTuple):
  """One kind: how it is checked, and how it is asked for in English."""

  check: Callable[..., bool]  # (answer, **arguments)
  asks: Callable[..., str]  # (**arguments)


def _amount(at_least: int | None = None, at_most: int | None = None, exactly: int | None = None,
            ) -> str:
  if exactly is not None:
    return f'exactly {exactly}'
  return ' and '.join(f'{which} {n}' for which, n in (('at least', at_least),
                                                        ('at most', at_most)) if n is not None)


def _quoted(items: Sequence[str]) -> str:
  return ', '.join(f'"{item}"' for item in items)


def follows(answer: str, constraints: Iterable[Mapping[str, Any]], *, loose: bool = False,
            ) -> list[bool]:
  """Whether the answer keeps each constraint; an empty answer keeps none.

  Args:
    answer: without its thought.
    loose: as IFEval's: it may also be kept without the first line, the last, or asterisks.
  Raises:
    ValueError: a kind or arguments that are not known.
  """
  variants = [answer]
  if loose:
    lines = answer.split('\n')
    cuts = [answer, *('\n'.join(lines[a:b]) for a, b in ((1, None), (0, -1), (1, -1)))]
    variants = [v for cut in cuts for v in (cut.strip(), cut.replace('*', '').strip())]
  return [any(v.strip() and _check(v, c) for v in variants) for c in constraints]


def _check(text: str, constraint: Mapping[str, Any]) -> bool:
  kind, arguments = constraint.get('kind', ''), {k: v for k, v in constraint.items() if k != 'kind'}
  if kind not in CONSTRAINTS:
    raise ValueError(f'unknown constraint {kind!r}: one of {", ".join(CONSTRAINTS)}')
  try:
    return bool(CONSTRAINTS[kind].check(text, **arguments))
  except TypeError as e:
    raise ValueError(f'constraint {dict(constraint)}: {e}') from None


def asks(constraint: Mapping[str, Any]) -> str:
  """The constraint as a sentence of a request, in English."""
  arguments = {k: v for k, v in constraint.items() if k != 'kind'}
  return CONSTRAINTS[constraint['kind']].asks(**arguments)


_LANGUAGES = {'en': 'English', 'fr': 'French', 'es': 'Spanish', 'de': 'German', 'it': 'Italian',
              'pt': 'Portuguese'}

CONSTRAINTS: dict[str, Constraint] = {
  'words': Constraint(
    lambda text, **n: _within(len(words(text)), **n),
    lambda **n: f'Answer with {_amount(**n)} words.'),
  'sentences': Constraint(
    lambda text, **n: _within(len(sentences(text)), **n),
    lambda **n: f'Your answer must have {_amount(**n)} sentences.'),
  'paragraphs': Constraint(
    lambda text, **n: _within(len(paragraphs(text)), **n),
    lambda **n: f'Write {_amount(**n)} paragraphs, with a blank line between them.'),
  'bullets': Constraint(
    lambda text, **n: _within(_bullets(text), **n),
    lambda **n: f'Use {_amount(**n)} bullet points, each a line that begins with "* ".'),
  'keywords': Constraint(
    lambda text, words: all(_occurrences(text, word) for word in words),
    lambda words: f'Use these words: {_quoted(words)}.'),
  'keyword_count': Constraint(
    lambda text, word, **n: _within(_occurrences(text, word), **n),
    lambda word, **n: f'Use the word "{word}" {_amount(**n)} times.'),
  'forbidden': Constraint(
    lambda text, words: not any(_occurrences(text, word) for word in words),
    lambda words: f'Do not use these words: {_quoted(words)}.'),
  'json': Constraint(
    _json,
    lambda keys=(): f'Answer in JSON alone{", with the keys " * bool(keys)}{_quoted(keys)}.'),
  'case': Constraint(
    lambda text, want: _cased(text, want),
    lambda want: f'Write {"capital" if want == "upper" else "lower-case"} letters only.'),
  'title': Constraint(
    lambda text: bool(re.search(r'<<[^<>\n]*\w[^<>\n]*>>', text)),
    lambda: 'Give your answer a title in double angular brackets, such as <<my title>>.'),
  'ends_with': Constraint(
    lambda text, phrase: text.strip().strip('"').lower().endswith(phrase.strip().lower()),
    lambda phrase: f'End with exactly these words: {phrase}'),
  'two_answers': Constraint(
    _two, lambda: 'Give two different answers, with six asterisks (******) between them.'),
  'no_commas': Constraint(lambda text: ',' not in text, lambda: 'Do not use any comma.'),
  'language': Constraint(
    lambda text, code: language_of(text) == code,
    lambda code: f'Answer in {_LANGUAGES.get(code, code)}.'),
}

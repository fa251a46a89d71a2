"""How much of a long text a model can use: tasks after RULER (arXiv:2404.06654), made offline.

A needle gives a key its value somewhere in a text as long as is asked for. Keys, values, depths and
the order of everything come from the seed alone; only how much filler stands between them depends
on the tokenizer and the length, so that lengths and models are compared on the same questions.

Beyond RULER: six languages (frames are translated; filler is their held-out text where there is
some); words are matched whole; and beside recall, the score, stands precision: who lists all that
could be an answer recalls everything.
"""

import dataclasses
import itertools
import random
import re
import textwrap
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence

from smoljax.data.tokenizer import Tokenizer
from smoljax.evals.generative import Question, Set, Turn

LANGUAGES = ('en', 'fr', 'es', 'de', 'it', 'pt')
_DEPTHS = 40  # equal steps, of which needles take different ones


@dataclasses.dataclass(frozen=True)
class _Frame:
  """The sentences of the tasks in one language."""

  needle: str  # {key}, {value}
  task: str
  ask: str  # {keys}
  prefix: str
  noise: str
  variables: str  # {value}
  variables_prefix: str
  common: str
  common_prefix: str
  coded: str
  coded_prefix: str
  facts: tuple[str, str]  # {a}, {b}: the teacher of a is b; b lives in c
  hop: str  # {a}
  hop_prefix: str


_FRAMES = {
  'en': _Frame(
    'The special number for {key} is {value}.',
    'Some special numbers are hidden in the following text. Remember them; they will be asked for.',
    'Which special numbers for {keys} are given in the text above?',
    'The special numbers for {keys} in the text are',
    'The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.',
    'Follow the assignments that are hidden in this text.\n\n{text}\n\nQuestion: Which variables '
    'have the value {value} in the text above? There are five.',
    'Answer: the variables with the value {value} are',
    'Below is a numbered list of words. Some come more often than others: remember those.\n\n{text}'
    '\n\nQuestion: Which 10 words are the most frequent in the list?',
    'Answer: the 10 most frequent words are',
    'Count the coded words in this text; the dots stand for nothing.\n\n{text}\n\nQuestion: Which '
    'three coded words are the most frequent?',
    'Answer: the three most frequent coded words are',
    ('The teacher of {a} is {b}.', '{a} lives in {b}.'),
    'Where does the teacher of {a} live?', 'The teacher of {a} lives in'),
  'fr': _Frame(
    'Le nombre spécial pour {key} est {value}.',
    'Des nombres spéciaux sont cachés dans le texte suivant. Retenez-les ; ils seront demandés.',
    'Quels nombres spéciaux pour {keys} sont donnés dans le texte ci-dessus ?',
    'Les nombres spéciaux pour {keys} dans le texte sont',
    "L'herbe est verte. Le ciel est bleu. Le soleil est jaune. C'est parti. Aller et retour.",
    'Suivez les affectations cachées dans ce texte.\n\n{text}\n\nQuestion : quelles variables ont '
    'la valeur {value} dans le texte ci-dessus ? Il y en a cinq.',
    'Réponse : les variables qui ont la valeur {value} sont',
    'Voici une liste numérotée de mots. Certains reviennent plus souvent : retenez-les.\n\n{text}'
    '\n\nQuestion : quels sont les 10 mots les plus fréquents de la liste ?',
    'Réponse : les 10 mots les plus fréquents sont',
    'Comptez les mots codés de ce texte ; les points ne veulent rien dire.\n\n{text}\n\nQuestion : '
    'quels sont les trois mots codés les plus fréquents ?',
    'Réponse : les trois mots codés les plus fréquents sont',
    ('Le professeur de {a} est {b}.', '{a} habite à {b}.'),
    'Où habite le professeur de {a} ?', 'Le professeur de {a} habite à'),
  'es': _Frame(
    'El número especial para {key} es {value}.',
    'En el texto siguiente hay números especiales escondidos. Recuérdelos; se le preguntarán.',
    '¿Qué números especiales para {keys} se dan en el texto anterior?',
    'Los números especiales para {keys} en el texto son',
    'La hierba es verde. El cielo es azul. El sol es amarillo. Allá vamos. Ida y vuelta.',
    'Siga las asignaciones escondidas en este texto.\n\n{text}\n\nPregunta: ¿qué variables tienen '
    'el valor {value} en el texto anterior? Son cinco.',
    'Respuesta: las variables con el valor {value} son',
    'He aquí una lista numerada de palabras. Algunas se repiten más: recuérdelas.\n\n{text}\n\n'
    'Pregunta: ¿cuáles son las 10 palabras más frecuentes de la lista?',
    'Respuesta: las 10 palabras más frecuentes son',
    'Cuente las palabras en clave de este texto; los puntos no significan nada.\n\n{text}\n\n'
    'Pregunta: ¿cuáles son las tres palabras en clave más frecuentes?',
    'Respuesta: las tres palabras en clave más frecuentes son',
    ('El profesor de {a} es {b}.', '{a} vive en {b}.'),
    '¿Dónde vive el profesor de {a}?', 'El profesor de {a} vive en'),
  'de': _Frame(
    'Die besondere Zahl für {key} ist {value}.',
    'Im folgenden Text sind besondere Zahlen versteckt. Merken Sie sie sich; danach wird gefragt.',
    'Welche besonderen Zahlen für {keys} stehen im Text oben?',
    'Die besonderen Zahlen für {keys} im Text sind',
    'Das Gras ist grün. Der Himmel ist blau. Die Sonne ist gelb. Es geht los. Hin und zurück.',
    'Folgen Sie den Zuweisungen, die in diesem Text versteckt sind.\n\n{text}\n\nFrage: Welche '
    'Variablen haben im Text oben den Wert {value}? Es sind fünf.',
    'Antwort: Die Variablen mit dem Wert {value} sind',
    'Hier ist eine nummerierte Liste von Wörtern. Einige kommen öfter vor: Merken Sie sich diese.'
    '\n\n{text}\n\nFrage: Welche 10 Wörter der Liste sind die häufigsten?',
    'Antwort: Die 10 häufigsten Wörter sind',
    'Zählen Sie die Codewörter in diesem Text; die Punkte bedeuten nichts.\n\n{text}\n\nFrage: '
    'Welche drei Codewörter sind die häufigsten?',
    'Antwort: Die drei häufigsten Codewörter sind',
    ('Der Lehrer von {a} ist {b}.', '{a} wohnt in {b}.'),
    'Wo wohnt der Lehrer von {a}?', 'Der Lehrer von {a} wohnt in'),
  'it': _Frame(
    'Il numero speciale per {key} è {value}.',
    'Nel testo seguente sono nascosti alcuni numeri speciali. Li ricordi; verranno chiesti.',
    'Quali numeri speciali per {keys} sono dati nel testo qui sopra?',
    'I numeri speciali per {keys} nel testo sono',
    "L'erba è verde. Il cielo è azzurro. Il sole è giallo. Si comincia. Andata e ritorno.",
    'Segua le assegnazioni nascoste in questo testo.\n\n{text}\n\nDomanda: quali variabili hanno '
    'il valore {value} nel testo qui sopra? Sono cinque.',
    'Risposta: le variabili con il valore {value} sono',
    'Ecco un elenco numerato di parole. Alcune ricorrono più spesso: le ricordi.\n\n{text}\n\n'
    "Domanda: quali sono le 10 parole più frequenti dell'elenco?",
    'Risposta: le 10 parole più frequenti sono',
    'Conti le parole in codice di questo testo; i punti non significano nulla.\n\n{text}\n\n'
    'Domanda: quali sono le tre parole in codice più frequenti?',
    'Risposta: le tre parole in codice più frequenti sono',
    ("L'insegnante di {a} è {b}.", '{a} abita a {b}.'),
    "Dove abita l'insegnante di {a}?", "L'insegnante di {a} abita a"),
  'pt': _Frame(
    'O número especial para {key} é {value}.',
    'No texto seguinte estão escondidos números especiais. Memorize-os; serão perguntados.',
    'Que números especiais para {keys} são dados no texto acima?',
    'Os números especiais para {keys} no texto são',
    'A relva é verde. O céu é azul. O sol é amarelo. Aqui vamos nós. Ida e volta.',
    'Siga as atribuições escondidas neste texto.\n\n{text}\n\nPergunta: que variáveis têm o valor '
    '{value} no texto acima? São cinco.',
    'Resposta: as variáveis com o valor {value} são',
    'Eis uma lista numerada de palavras. Algumas repetem-se mais: memorize-as.\n\n{text}\n\n'
    'Pergunta: quais são as 10 palavras mais frequentes da lista?',
    'Resposta: as 10 palavras mais frequentes são',
    'Conte as palavras em código deste texto; os pontos não significam nada.\n\n{text}\n\n'
    'Pergunta: quais são as três palavras em código mais frequentes?',
    'Resposta: as três palavras em código mais frequentes são',
    ('O professor de {a} é {b}.', '{a} vive em {b}.'),
    'Onde vive o professor de {a}?', 'O professor de {a} vive em'),
}


@dataclasses.dataclass(frozen=True)
class _Draft:
  """A question before its length is known.

  Attributes:
    text: amount of filler → the long text.
    wrap: the long text → the whole prompt.
    answers: what must be found.
    candidates: a pattern of what could be an answer.
  """

  text: Callable[[int], str]
  wrap: Callable[[str], str]
  prefix: str
  answers: tuple[str, ...]
  candidates: str


def make(
  tasks: Sequence[str],
  tokenizer: Tokenizer,
  lengths: Sequence[int],
  *,
  languages: Sequence[str] = ('en',),
  documents: Mapping[str, Sequence[str]] | None = None,
  num: int = 50,
  seed: int = 0,
  overhead: int = 0,
) -> dict[str, Set]:
  """The sets `{task}` of these tasks, `num` questions at each length and language; told apart by
  `length`, `language` and (with one needle) `depth` in tenths.

  Args:
    tasks: of `TASKS`.
    lengths: in tokens, of prompt and answer together.
    documents: texts by language for filler; where there are none, a few sentences are repeated.
    overhead: tokens of the chat template, of a BOS.
  Raises:
    ValueError: an unknown task or language, a length that the shortest question does not fit into.
  """
  _require_known(tasks, languages)
  sets = {}
  for task in tasks:
    draft, reserve = TASKS[task]
    questions = []
    for language in languages:
      filler = _sentences((documents or {}).get(language) or [_FRAMES[language].noise])
      for i in range(num):
        for length in lengths:
          rng = random.Random(f'{seed}/{task}/{language}/{i}')
          made, depth = draft(rng, _FRAMES[language], filler)
          prompt = _fill(made, tokenizer, length - reserve - overhead, task, length)
          groups = {'length': length, 'language': language}
          if depth is not None:
            groups['depth'] = 10 * depth // _DEPTHS
          questions.append(Question(
            (Turn(prompt, _grade(made), plain=f'{prompt}\n'),), groups, prefix=made.prefix))
    sets[task] = Set(questions, 'recall', max_new_tokens=reserve, stops=('\n\n',))
  return sets


def texts(
  tasks: Sequence[str], tokenizer: Tokenizer, lengths: Sequence[int], *, language: str = 'en',
  documents: Sequence[str] = (), num: int = 50, seed: int = 0,
) -> Iterator[str]:
  """Such questions with their answers, to learn from: `num` of tasks and lengths in turn.

  Args:
    documents: for filler.
    seed: whatever it is, `make` asks other questions.
  Raises:
    ValueError: as `make` does.
  """
  _require_known(tasks, (language,))
  filler = _sentences(documents or [_FRAMES[language].noise])
  for i in range(num):
    task, length = tasks[i % len(tasks)], lengths[i // len(tasks) % len(lengths)]
    draft, reserve = TASKS[task]
    rng = random.Random(f'learned/{seed}/{task}/{language}/{i}')
    made, _ = draft(rng, _FRAMES[language], filler)
    prompt = _fill(made, tokenizer, length - reserve, task, length)
    yield f'{prompt}\n{made.prefix} {", ".join(made.answers)}.'


def _require_known(tasks, languages):
  for known, given, what in ((TASKS, tasks, 'task'), (LANGUAGES, languages, 'language')):
    if wrong := [x for x in given if x not in known]:
      raise ValueError(f'unknown {what} {wrong[0]!r}: one of {", ".join(known)}')


def _fill(made, tokenizer, room, task, length):
  """The prompt with as much filler as fits into `room` tokens."""
  size = lambda amount: len(tokenizer.encode(made.wrap(made.text(amount)) + made.prefix))
  low, used_low = 0, size(0)
  if used_low > room:
    raise ValueError(
      f'{task} needs {used_low + length - room} tokens, more than a length of {length}')
  # Filler is even: from two amounts follows a third. At last it is stepped, as it is not quite so.
  # Tokenisers take long over long texts, so that what is near enough ends the search.
  near = 0.985 * room
  high, used_high = 1, size(1)
  while used_high <= room:
    low, used_low = high, used_high
    if used_low > near:
      return made.wrap(made.text(low))
    high = max(high + 1, int(high * min(64.0, 0.993 * room / used_high)))
    used_high = size(high)
  for step in itertools.count():
    if high - low <= 1:
      break
    middle = low + int((high - low) * (room - used_low) / (used_high - used_low))
    middle = (low + high) // 2 if step > 6 else min(max(middle, low + 1), high - 1)
    if (used := size(middle)) <= room:
      low, used_low = middle, used
      if used > near:
        break
    else:
      high, used_high = middle, used
  return made.wrap(made.text(low))


def _grade(made):
  def grade(text: str) -> dict[str, float]:
    listed = set(re.findall(made.candidates, text))
    found = listed & set(made.answers)
    return {'recall': len(found) / len(made.answers),
            'precision': len(found) / len(listed) if listed else 0.0,
            'exact': float(listed == set(made.answers))}
  return grade


def _sentences(documents: Sequence[str]) -> list[str]:
  """Pieces of filler of at most 200 characters."""
  text = ' '.join(' '.join(documents).split())
  found = [s for s in re.split(r'(?<=[.!?])\s+', text) if s] or ['.']
  return [piece for s in found for piece in textwrap.wrap(s, 200)]


# ------------------------------------------------------------------------------------------ tasks


_NUMBER = r'(?<!\d)\d{7}(?!\d)'
_UUID = r'(?<![\w-])[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![\w-])'
_SYLLABLES = [c + v for c in 'bdfgklmnprstvz' for v in 'aeiou']


def _number(rng):
  return str(rng.randint(1_000_000, 9_999_999))


def _uuid(rng):
  return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _word(rng):
  """A word of no language, that all read alike: `bamelu`."""
  return ''.join(rng.choice(_SYLLABLES) for _ in range(3))


def _different(rng, make_one, count):
  found: dict[str, None] = {}
  while len(found) < count:
    found[make_one(rng)] = None
  return list(found)


def _key(rng):
  return f'{_word(rng)}-{_word(rng)}'


def _placed(units: Callable[[int], list[str]], needles: Sequence[str], depths: Sequence[float],
            join: str = ' ') -> Callable[[int], str]:
  """Amount of filler → the units of filler with each needle at its depth."""
  def text(amount: int) -> str:
    filler = units(amount)
    parts, at = [], 0
    for depth, needle in sorted(zip(depths, needles, strict=True)):
      place = round(depth * len(filler))
      parts += [*filler[at:place], needle]
      at = place
    return join.join([*parts, *filler[at:]])
  return text


def _depths(rng, count):
  """Different ones of equal steps, as long as there are enough."""
  steps = rng.sample(range(_DEPTHS), count) if count <= _DEPTHS else [
    rng.randrange(_DEPTHS) for _ in range(count)]
  return [(s + 0.5) / _DEPTHS for s in steps]


def _needles(keys=1, values=1, queries=1, haystack='text', kind='number'):
  """Needles: so many keys of so many values; `queries` keys are asked for."""
  def draft(rng, frame, filler):
    value, pattern = (_uuid, _UUID) if kind == 'uuid' else (_number, _NUMBER)
    names = _different(rng, _uuid if haystack == 'uuids' else _key, keys)
    numbers = _different(rng, value, keys * values)
    of_key = {k: numbers[i * values : (i + 1) * values] for i, k in enumerate(names)}
    needles = [frame.needle.format(key=k, value=v) for k in names for v in of_key[k]]
    depths = _depths(rng, len(needles))
    asked = rng.sample(names, queries)
    start, more = rng.randrange(len(filler)), random.Random(rng.getrandbits(64))
    taken, extra = {*names, *numbers}, []

    def distractor():
      while True:
        key, number = (_uuid if haystack == 'uuids' else _key)(more), value(more)
        if not {key, number} & taken:
          return frame.needle.format(key=key, value=number)

    def units(amount):
      if haystack == 'noise':
        return [frame.noise] * amount
      if haystack == 'text':
        return [filler[(start + i) % len(filler)] for i in range(amount)]
      while len(extra) < amount:  # distractors: always the same ones, first to last
        extra.append(distractor())
      return extra[:amount]

    said = ', '.join(asked)
    made = _Draft(
      _placed(units, needles, depths), lambda text: (
        f'{frame.task}\n\n{text}\n\n{frame.ask.format(keys=said)}'),
      frame.prefix.format(keys=said), tuple(v for k in asked for v in of_key[k]), pattern)
    return made, int(depths[0] * _DEPTHS) if len(needles) == 1 else None
  return draft


def _variables(rng, frame, filler):
  """A chain of four assignments, all with the first one's value; and a chain that leads away."""
  names = _different(rng, lambda r: ''.join(r.choice('ABCDEFGHJKLMNPQRSTUVWXYZ') for _ in range(5)),
                     10)
  values = _different(rng, lambda r: str(r.randint(10_000, 99_999)), 2)
  lines = []
  for chain, value in zip((names[:5], names[5:]), values, strict=True):
    lines.append([f'VAR {chain[0]} = {value}.'] + [
      f'VAR {b} = VAR {a}.' for a, b in itertools.pairwise(chain)])
  depths = _depths(rng, 10)
  needles = lines[0] + lines[1]
  ordered = sorted(depths[:5]) + sorted(depths[5:])  # each chain stands in its own order
  noise = lambda amount: [frame.noise] * amount
  return _Draft(_placed(noise, needles, ordered, '\n'),
                lambda text: frame.variables.format(text=text, value=values[0]),
                frame.variables_prefix.format(value=values[0]), tuple(names[:5]),
                r'\b[A-Z]{5}\b'), None


def _common_words(rng, frame, filler):
  """Ten words come up to 30 times, all others three times at most; filler is the others."""
  common = _different(rng, _word, 10)
  more, others, taken = random.Random(rng.getrandbits(64)), [], set(common)
  shuffle = rng.getrandbits(64)

  def text(amount):
    while len(others) < amount / 3:
      if (word := _word(more)) not in taken:
        taken.add(word)
        others.append(word)
    words = common * min(30, max(6, amount // 10))  # fewer in a short text
    words += [others[i // 3] for i in range(amount)]
    random.Random(shuffle).shuffle(words)
    return ' '.join(f'{i}. {word}' for i, word in enumerate(words, start=1))

  return _Draft(text, lambda text: frame.common.format(text=text), frame.common_prefix,
                tuple(common), r'\b(?:[b-z][aeiou]){3}\b'), None


def _coded_words(rng, frame, filler):
  """Coded words by Zipf's law of exponent 2; the first in rank is dots, which are not asked for."""
  draws, shuffle = random.Random(rng.getrandbits(64)), rng.getrandbits(64)
  words = ['...', *_different(draws, _word, 400)]
  shares = [k**-2.0 for k in range(1, len(words) + 1)]
  total = sum(shares)

  def text(amount):
    count = 12 + amount  # so few words leave the first four in their order
    # The fifth and later ones are rounded down: never as often as the fourth.
    found = [w for rank, (w, share) in enumerate(zip(words, shares, strict=True))
             for _ in range((round if rank < 4 else int)(4 * count * share / total))]
    random.Random(shuffle).shuffle(found)
    return ' '.join(found)

  return _Draft(text, lambda text: frame.coded.format(text=text), frame.coded_prefix,
                tuple(words[1:4]), r'\b(?:[b-z][aeiou]){3}\b'), None


def _hops(rng, frame, filler):
  """Two facts must be joined, among others that are like them: where does the teacher of a live?"""
  names = _different(rng, lambda r: _word(r).capitalize(), 36)
  people, places = names[:24], names[24:]
  teacher = dict(zip(people[:8], people[8:16], strict=True))
  home = {person: places[i % 12] for i, person in enumerate(people)}
  asked = people[0]
  facts = [frame.facts[0].format(a=a, b=b) for a, b in teacher.items()]
  facts += [frame.facts[1].format(a=a, b=b) for a, b in home.items()]
  rng.shuffle(facts)
  start = rng.randrange(len(filler))
  units = lambda amount: [filler[(start + i) % len(filler)] for i in range(amount)]
  pattern = rf'\b(?:{"|".join(places)})\b'
  return _Draft(_placed(units, facts, _depths(rng, len(facts))),
                lambda text: f'{text}\n\n{frame.hop.format(a=asked)}',
                frame.hop_prefix.format(a=asked), (home[teacher[asked]],), pattern), None


# Name → what drafts a question, and tokens for its answer.
TASKS: dict[str, tuple[Callable, int]] = {
  'niah_single_1': (_needles(haystack='noise'), 128),
  'niah_single_2': (_needles(), 128),
  'niah_single_3': (_needles(kind='uuid'), 128),
  'niah_multikey_1': (_needles(keys=4), 128),
  'niah_multikey_2': (_needles(haystack='needles'), 128),
  'niah_multikey_3': (_needles(haystack='uuids', kind='uuid'), 128),
  'niah_multivalue': (_needles(values=4), 128),
  'niah_multiquery': (_needles(keys=4, queries=4), 128),
  'vt': (_variables, 60),
  'cwe': (_common_words, 120),
  'fwe': (_coded_words, 50),
  'multihop': (_hops, 32),
}

"""The cloze task of each language, and multiple choice from files in the common layouts."""

import collections
import json

import numpy as np
import pytest

from smoljax.evals import multiple_choice, tasks
from smoljax.evals.multiple_choice import Score


class Characters:
  """A token a character."""

  def encode(self, text):
    return [ord(c) for c in text]

  def decode(self, tokens):
    return ''.join(map(chr, tokens))


def documents(language, n=60):
  """Texts of words by Zipf's law, of sentences of six; a language has letters of its own."""
  rng = np.random.default_rng(ord(language[0]))
  letters = [chr(c) for c in rng.choice(np.arange(97, 123), 9, replace=False)]
  words = [''.join(rng.choice(letters, rng.integers(3, 9))) for _ in range(400)]
  share = 1 / np.arange(3, 403)
  found = []
  for _ in range(n):
    drawn = [words[i] for i in rng.choice(400, 150, p=share / share.sum())]
    text = ' '.join(w + '.' * (i % 6 == 5) for i, w in enumerate(drawn))
    found.append({'tokens': np.array(Characters().encode(text)), 'language': language,
                  'num_bytes': len(text)})
  return found


def test_cloze_is_a_missing_word_among_others_like_it():
  docs = documents('fr')
  texts = [Characters().decode(d['tokens']) for d in docs]
  made = tasks.build_cloze_task(docs, Characters(), n=400, seed=0)
  assert made == tasks.build_cloze_task(docs, Characters(), n=400, seed=0) and len(made) == 400
  counts = collections.Counter(w.strip('.') for t in texts for w in t.split())
  commonest = 0.0
  for e in made:
    right = e['choices'][e['answer']]
    assert any(e['context'] + right in t for t in texts) and len(e['context']) == 255
    first = [c.split()[0].strip('.') for c in e['choices']]
    assert len(set(first)) == 4 and len({len(w) for w in first}) == 1 and len(first[0]) >= 5
    assert len({c[1 + len(w):] for c, w in zip(e['choices'], first, strict=True)}) == 1
    seen = [counts[w] for w in first]
    commonest += (seen[e['answer']] == max(seen)) / seen.count(max(seen))
  assert 0.2 < commonest / 400 < 0.4  # chance is .25
  with pytest.raises(tasks.TooFewDocuments, match='cloze task found 0 of 9'):
    tasks.build_cloze_task(docs[:1], Characters(), n=9, seed=0)


def test_languages_are_told_apart():
  both = {'a': documents('fr') + documents('de'), 'b': documents('de', 1) + documents('xx', 1)}
  made = tasks.load_task('cloze', documents=both, tokenizer=Characters(), limit=90)
  assert collections.Counter(e['language'] for e in made) == {'fr': 30, 'de': 30}
  scores = [[Score(-1.0 if (i == e['answer']) == (e['language'] == 'fr') else -2.0, 3, False)
             for i in range(4)] for e in made]
  flat = [[Score(-1.0, 3, False)] * 4 for _ in made]
  row = multiple_choice.summarize(made, scores, flat, metric='acc_pmi')
  assert row['languages'] == {'fr': {'n': 30, 'acc_pmi': 1.0}, 'de': {'n': 30, 'acc_pmi': 0.0}}


@pytest.mark.parametrize('row, answer', [
  ({'query': 'q', 'choices': ['a', 'b'], 'gold': 1}, 'b'),
  ({'question': 'q', 'choices': {'text': ['a', 'b'], 'label': ['A', 'B']}, 'answerKey': 'B'}, 'b'),
  ({'question': 'q', 'choices': ['a', 'b', 'c'], 'answer': 'C'}, 'c'),
  ({'question': 'q', 'choices': ['1', '0'], 'answer': '0'}, '0'),
  ({'ctx': 'q', 'endings': ['a', 'b'], 'label': '0'}, 'a'),
  ({'context': 'the ', 'continuation': 'end'}, 'end'),
  ({'sentence': 'He saw _ go', 'option1': 'her', 'option2': 'it', 'answer': '2'}, 'go'),
  ({'flores_passage': 'p', 'question': 'q', 'mc_answer1': 'a', 'mc_answer2': 'b', 'mc_answer3': 'c',
    'mc_answer4': 'd', 'correct_answer_num': '3', 'dialect': 'deu_Latn'}, 'c'),
])
def test_files_in_common_layouts(tmp_path, row, answer):
  path = tmp_path / 'mine.jsonl'
  path.write_text(json.dumps(row) + '\n')
  assert tasks.has_choices(str(path))
  (example,) = tasks.load_task(str(path), documents={}, tokenizer=Characters())
  assert example['choices'][example['answer']] == f' {answer}'
  assert example.get('language') == row.get('dialect')
  path.write_text(json.dumps({'prompt': 'a', 'answer': 1}) + '\n')
  assert not tasks.has_choices(str(path))
  path.write_text('{"query": "q", "choices": ["a"], "gold": 3}\n')
  with pytest.raises(ValueError, match='line 1'):
    tasks.load_task(str(path), documents={}, tokenizer=Characters())

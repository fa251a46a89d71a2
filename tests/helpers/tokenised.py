"""Small tokenised corpora, and fixtures of them."""

import io
import pathlib
import random

import apache_beam as beam
import pytest
import sentencepiece

from data_beam import records, tokenize_corpus
from data_beam.beam_options import pipeline_options
from data_beam.options import TokenizeOptions
from data_beam.records import Document

WORDS = ['the', 'quick', 'brown', 'fox', 'jumped', 'over', 'a', 'lazy', 'dog', 'ünïcode', '日本',
         '🤖', '</s>', '<|eot|>']


def write_corpus(folder, name, texts, metadata=None):
  documents = [Document(f'{name}-{i}', text, source=name, language='en', quality=0.25,
                        metadata=metadata or {}) for i, text in enumerate(texts)]
  with beam.Pipeline(options=pipeline_options()) as pipeline:
    records.write_corpus(
      pipeline | beam.Create(documents), pipeline | 'none' >> beam.Create([]),
      output=str(folder), name=name, stages=['read'], config={}, inputs=[], num_shards=2)
  return records.corpus_path(str(folder), name)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('corpora')


@pytest.fixture(scope='module')
def texts():
  rng = random.Random(0)
  return [' '.join(rng.choices(WORDS, k=rng.randint(1, 60))) for _ in range(120)]


@pytest.fixture(scope='module')
def corpus(folder, texts):
  return write_corpus(folder, 'web', texts)


@pytest.fixture(scope='module')
def model(folder, texts):
  data = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(texts), model_writer=data, vocab_size=320, model_type='bpe',
    byte_fallback=True, normalization_rule_name='identity', remove_extra_whitespaces=False,
    bos_id=2, eos_id=3, minloglevel=2)
  path = folder / 'tokenizer.model'
  path.write_bytes(data.getvalue())
  return str(path)


@pytest.fixture(scope='module')
def tokenised(folder, corpus, model):
  path = tokenize_corpus.run(corpus, model, str(folder / 'tokens'), 'web',
                             TokenizeOptions(holdout=0.2, num_shards=3))
  return pathlib.Path(path)

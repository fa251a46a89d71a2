"""What architecture costs: equal sizes, honest memory, one table that survives being killed."""

import csv
import functools
import itertools
import json
import math
import os

import jax
import pytest

from experiments import architecture
from smoljax import metrics
from smoljax.data.corpus import open_corpus
from smoljax.inference import cache as cache_lib
from smoljax.inference import generate
from smoljax.inference.cache import init_cache
from smoljax.model import transformer
from smoljax.train import loop
from smoljax.train.telemetry import Diverged

MIXTURE = {'text': 1.0}


@pytest.fixture
def small(monkeypatch):
  preset = dict(
    model=dict(
      num_layers=4, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=96,
      dtype='float32',
    ),
    seq_len=64,
    batch_tokens=512,
    tokens=4096,
    held_out=0,
    decode=dict(context=64, new=16, block=4, batches=(1, 2)),
  )
  monkeypatch.setitem(architecture.SIZES, 'tiny', preset)


def make(name, size='tiny', seed=0):
  return architecture.make_config(
    name, size, seed=seed, tokens=0, vocab_size=8192, mixture=MIXTURE
  )


def model(name, size='tiny'):
  return architecture.model_config(make(name, size), 8192)


@pytest.mark.parametrize('size', architecture.SIZES)
@pytest.mark.parametrize('name', architecture.VARIANTS)
def test_every_variant_has_as_many_parameters(name, size):
  baseline, config = model('gqa', size), model(name, size)
  for embedding in (True, False):
    ratio = config.num_params(embedding=embedding) / baseline.num_params(embedding=embedding)
    assert abs(ratio - 1) < 0.01
  changed = {
    k for k, v in make(name, size).model.to_dict().items()
    if v != make('gqa', size).model.to_dict().get(k)
  }
  expected = set(architecture.VARIANTS[name].change(architecture.SIZES[size]['model'], 256))
  assert changed <= expected | {'mlp_dim'}


def test_a_variant_that_cannot_be_as_large_is_refused(monkeypatch):
  wide = architecture.Variant('x', 'x', lambda m, _: {'num_heads': 64, 'num_kv_heads': 64})
  monkeypatch.setitem(architecture.VARIANTS, 'wide', wide)
  with pytest.raises(ValueError, match=r'wide: no mlp_dim gives .* parameters within 1 %'):
    make('wide')


def test_bytes_of_keys_and_values():
  for name in architecture.VARIANTS:  # what decoding holds, rings of windowed layers included
    config = model(name, 'gpu')
    cache = jax.eval_shape(functools.partial(init_cache, config, 1, 2048))
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache)) / 2048
    assert architecture.kv_bytes(config, 2048) == held
  # bf16, 8 layers, 2 kv heads of 64: the window is a quarter of 1024 tokens.
  full = 2 * 2 * 64 * 2 * 8
  assert architecture.kv_bytes(model('gqa', 'gpu'), 2048) == full
  assert architecture.kv_bytes(model('window', 'gpu'), 2048) == full * (2 + 6 * 256 / 2048) / 8
  assert architecture.kv_bytes(model('window_all', 'gpu'), 2048) == full * 256 / 2048
  assert architecture.kv_bytes(model('window_all', 'gpu'), 100) == full


def test_differences_are_seed_by_seed():
  runs = {
    'gqa': {0: {'loss': 4.0, 'tokens_per_sec': 1}, 1: {'loss': 5.0, 'tokens_per_sec': 1}},
    'mqa': {0: {'loss': 4.1, 'tokens_per_sec': 1}, 1: {'loss': 5.1, 'tokens_per_sec': 1},
            2: {'diverged': 'x'}},
    'mha': {},
  }
  models = {n: model(n) for n in runs}
  gqa, mqa, mha = architecture.collect(runs, models, {}, 256)
  assert 'difference' not in gqa and gqa['loss'] == 4.5 and gqa['loss_interval'] > 6
  assert mqa['difference'] == pytest.approx(0.1) and mqa['difference_interval'] < 1e-6
  assert mqa['diverged'] == 1 and mqa['seeds'] == 2 and mqa['verdict'] == 'no verdict: n = 2'
  assert 'loss' not in mha


def test_a_killed_table_continues(small, markov_corpora, tmp_path, monkeypatch):
  """Killed after three runs, then finished, then extended: nothing is trained twice."""
  corpora = [markov_corpora['web'], markov_corpora['pdf']]
  trained = []

  def pretend(c, config, paths, output, **kwargs):
    if len(trained) == 3:
      raise KeyboardInterrupt
    trained.append(c.name)
    if c.name == 'rope-1':
      raise Diverged('loss nan')
    loss = 3 + 0.1 * config.num_kv_heads + c.seed
    with open(os.path.join(output, 'metrics.jsonl'), 'w') as f:
      f.write(json.dumps({'train/loss': 9.0}) + '\n')
      f.write(json.dumps({'val/web/loss': loss, 'val/pdf/loss': loss + 1}) + '\n')
    os.makedirs(os.path.join(output, 'checkpoints'))
    return dict(steps=1, tokens=2, tokens_per_sec=3.0, device='x', loss={'final': 9.0})

  monkeypatch.setattr(loop, 'train', pretend)
  monkeypatch.setattr(generate, 'generate', lambda *_, **__: None)
  monkeypatch.setattr(cache_lib, 'prepare', lambda *_: None)
  monkeypatch.setattr(transformer, 'init', lambda *_: None)
  ticks = itertools.count()
  monkeypatch.setattr(architecture.time, 'perf_counter', lambda: next(ticks) ** 2)
  out = str(tmp_path / 'out')
  os.makedirs(out)
  with pytest.raises(KeyboardInterrupt):
    architecture.run(corpora, out, seeds=2, variants=['mqa'])
  partial = json.loads((tmp_path / 'out/architecture.json').read_text())['rows']
  assert [(r['variant'], r['seeds']) for r in partial] == [('gqa', 2), ('mqa', 1)]
  first, trained[:] = list(trained), []
  gqa, mqa = architecture.run(corpora, out, seeds=2, variants=['mqa'])
  assert (first, trained) == (['gqa-0', 'mqa-0', 'gqa-1'], ['mqa-1'])

  # The loss is over all held-out tokens of both corpora.
  tokens = [int((open_corpus(p, 'validation').lengths - 1).sum()) for p in corpora]
  assert gqa['loss'] == pytest.approx(3 + 0.2 + 0.5 + tokens[1] / sum(tokens))
  assert mqa['difference'] == pytest.approx(-0.1) and mqa['difference_interval'] < 1e-6
  assert mqa['kv_bytes_per_token'] == gqa['kv_bytes_per_token'] / 2
  table = list(csv.DictReader((tmp_path / 'out/architecture.csv').open()))
  assert float(table[1]['difference']) == pytest.approx(-0.1)
  page = (tmp_path / 'out/index.html').read_text()
  assert 'one key and value head' in page and f'{mqa["loss"]:.4f}' in page and '-0.1000' in page
  assert not list((tmp_path / 'out/steps').glob('*/checkpoints'))

  trained[:] = []
  *_, rope = architecture.run(corpora, out, seeds=2, variants=['mqa', 'rope'])
  assert trained == ['rope-0', 'rope-1']
  assert set(rope['decode_tokens_per_sec']) == {'1', '2'}
  assert rope['diverged'] == 1 and rope['seeds'] == 1
  assert '1 diverged' in (tmp_path / 'out/index.html').read_text()


def test_several_at_a_time(small, markov_corpora, tmp_path, monkeypatch):
  """Each process trains variants of its own; one that fails is an error, not a hole."""
  commands = []

  class Worker:
    def __init__(self, command, env):
      output, arguments = json.loads(command[-1])
      commands.append((output, arguments['variants'], env['XLA_PYTHON_CLIENT_MEM_FRACTION']))
      architecture.plan(alone=False, **arguments)  # what it would do is well formed

    def wait(self):
      return len(commands) == 3

  monkeypatch.setattr(architecture.processes, 'start', Worker)
  for name in ('XLA_PYTHON_CLIENT_MEM_FRACTION', 'XLA_CLIENT_MEM_FRACTION'):
    monkeypatch.delenv(name, raising=False)
  out = str(tmp_path)
  with pytest.raises(ChildProcessError, match='3 of 3 processes failed'):
    architecture.run(
      [markov_corpora['web']], out, variants=['mha', 'mqa', 'rope', 'nope'], parallel=3
    )
  assert commands == [
    (out, ['gqa', 'rope'], '0.307'), (out, ['mha', 'nope'], '0.307'), (out, ['mqa'], '0.307')
  ]


@pytest.mark.slow
def test_two_architectures_for_real(small, markov_corpora, tmp_path):
  out = str(tmp_path / 'out')
  os.makedirs(out)
  gqa, mqa = architecture.run([markov_corpora['web']], out, seeds=2, variants=['mqa'])
  for row in (gqa, mqa):
    assert row['loss'] < math.log(64) and len(set(row['losses'].values())) == 2
    assert set(row['decode_tokens_per_sec']) == {'1', '2'}
  assert mqa['difference'] == pytest.approx(mqa['loss'] - gqa['loss']) and mqa['difference'] != 0
  # The same batches for both: the first losses are of equal initial models up to their shapes.
  steps = tmp_path / 'out/steps'
  first = []
  for name in ('gqa', 'mqa'):
    rows = metrics.read_rows(next(steps.glob(f'train-{name}-0-*/metrics.jsonl')))
    first.append(next(r['train/loss'] for r in rows if 'train/loss' in r))
  assert first[0] == pytest.approx(first[1], abs=0.05)


def test_plain_text_becomes_a_corpus(tmp_path):
  paragraph = 'One line of a paragraph, and another.\nNumber {}: naïve café.'
  # Documents that are alike would all be trained on, lest the held-out text be known.
  words = [' '.join(f'{i * k % 9973:x}' for k in (7, 19, 23, 31, 43)) for i in range(3000)]
  text = '\n\n'.join(paragraph.format(word) for word in words)
  (tmp_path / 'a.txt').write_text(text, 'utf-8')
  (tmp_path / 'b.txt').write_bytes(text.replace('3', 'ß').encode('latin-1'))
  path = architecture.prepare([str(tmp_path / '*.txt')], 300, str(tmp_path / 'out'))
  corpus = open_corpus(path)
  held_out = open_corpus(path, 'validation')
  assert len(corpus.lengths) > 10 and len(held_out.lengths) >= 1
  from smoljax.data import tokenizer

  encoder = tokenizer.load(str(tmp_path / 'out/tokens/tokenizer.model'))
  documents = [encoder.decode(corpus.tokens(i)) for i in range(len(corpus.lengths))]
  documents += [encoder.decode(held_out.tokens(i)) for i in range(len(held_out.lengths))]
  numbers = sorted(line for d in documents for line in d.split('\n') if line.startswith('Number'))
  expected = [paragraph.format(word).split('\n')[1] for word in words]
  assert numbers == sorted(expected + [e.replace('3', 'ß') for e in expected])
  assert all(len(d) <= 16_000 for d in documents)
  with pytest.raises(ValueError, match=r'--text: .*nothing.* matches no file'):
    architecture.prepare([str(tmp_path / 'nothing*')], 300, str(tmp_path / 'out'))


def test_bad_arguments(markov_corpora, tmp_path):
  with pytest.raises(ValueError, match='--variants: mla: one of gqa, mha'):
    architecture.run([markov_corpora['web']], str(tmp_path), variants=['mla'])
  with pytest.raises(ValueError, match='--seeds=0'):
    architecture.run([markov_corpora['web']], str(tmp_path), seeds=0)
  with pytest.raises(ValueError, match='same name'):
    architecture.run([markov_corpora['web']] * 2, str(tmp_path))
  with pytest.raises(FileNotFoundError, match='is not a finished corpus'):
    architecture.run([str(tmp_path / 'none')], str(tmp_path))

"""A series of experiments as one: its stages' commands, and what it says of them."""

import json
import pathlib
import random
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from conftest import REPOSITORY
from helpers.configs import config
from helpers.tokenised import WORDS, corpus, folder, texts, write_corpus  # noqa: F401 (fixtures)

from configs import base, dual_mode, smollm3_small
from data_beam import tokenize_corpus
from data_beam.options import TokenizeOptions
from experiments import chains, series
from experiments.engine.build import build_steps
from experiments.engine.config import check, keep_programs
from experiments.engine.graph import Graph
from experiments.engine.summary import summarize
from smoljax.checkpoints import export_formats, load
from smoljax.data import chat, tokenizer
from smoljax.model import SHAPES, ModelConfig, init
from smoljax.report import series_page

CONFIG = 'configs/dual_mode.py'


def planned(rows, tmp_path, flags=()):
  c = base.get_config()
  c.series = tuple(rows)
  return series.stages(c, CONFIG, str(tmp_path / 'run'), flags, ['--fresh'])


def test_stages_are_commands_that_follow_one_another(tmp_path):
  first, second = planned(
    [{'name': 'a', 'seed': 3}, {'name': 'b', 'train.init_from': '@a',
                                'merge.models': '@a,@a/x', 'merge.weights': (1, 2)}],
    tmp_path, ['--config.train.keep=1', '--config.series=()'])
  root = tmp_path / 'run'
  assert first.folder == root / 'a' and first.shared == second.shared == root / 'steps'
  assert first.command[3:] == [
    f'--config={CONFIG}', f'--workdir={root}/a', '--config.train.keep=1', '--config.seed=3',
    '--config.series=()', '--config.name=base-a', '--fresh']
  assert f'--config.merge.models={root}/a,{root}/a/x' in second.command
  assert second.after == {'a'}


def test_a_stage_has_all_gpus(tmp_path, monkeypatch):
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,3')
  monkeypatch.setattr(signal, 'signal', lambda *_: None)
  (stage,) = planned([{'name': 'a'}], tmp_path)
  code = 'import os, sys; sys.exit("error: " + os.environ["CUDA_VISIBLE_DEVICES"])'
  stage.command = [sys.executable, '-c', code]
  with pytest.raises(ValueError, match='the stage a failed: error: 2,3'):
    series.run(None, [stage], str(tmp_path), lambda line: None)


@pytest.mark.parametrize('rows, said', [
  ([{'seed': 1}], 'a name of its own'),
  (['a'], 'a tuple of dicts'),
  ([{'name': 'a'}, {'name': 'a'}], 'a name of its own'),
  ([{'name': 'steps'}], 'no name for a stage'),
  ([{'name': 'a', 'train.init_from': '@b'}, {'name': 'b'}], 'names no point before it'),
  ([{'name': 'a', 'train.stepz': 1}], "no field 'stepz'"),
  ([{'name': 'a', 'train.keep': 1}], 'drop it'),
])
def test_what_is_no_series(rows, said, tmp_path):
  with pytest.raises(ValueError, match=said):
    planned(rows, tmp_path, ['--config.train.keep=2'])


@pytest.mark.parametrize('fields, said', [
  ({'conversations.enabled': True, 'conversations.input': 'none/*.jsonl'}, 'none/'),
  ({'conversations.enabled': True, 'conversations.input': __file__, 'tokenizer.chat': True,
    'conversations.decontaminate': ('none/*.jsonl',)}, 'none/'),
  ({'eval.tasks': ('guess',)}, 'unknown task'),
  ({'eval.generation.long_modes': ('loud',)}, "unknown mode 'loud'"),
  ({'merge.models': '@a,@b', 'merge.weights': (1.,)}, 'one for each'),
  ({'train.preference.loss': 'dpoo'}, 'dpoo'),
  ({'optimizer.schedule': 'sloping'}, 'sloping'),
  ({'train.stages': ({'name': 'x', 'fraction': 0.5, 'mixture': {'web': 1.0}},)}, 'sum to 0.5'),
])
def test_a_late_stage_is_refused_before_the_first_begins(fields, said, tmp_path, monkeypatch):
  ran = []
  monkeypatch.setattr(series.sweep, 'run', lambda *_, **__: ran.append(1))
  points = planned([{'name': 'a'}, {'name': 'b', 'train.init_from': '@a'}, {
    'name': 'c', 'train.init_from': '@b', 'web.enabled': False, 'pdf.enabled': False, **fields}],
    tmp_path)
  with pytest.raises((ValueError, OSError), match=f'stage c: .*{said}'):
    series.run(base.get_config(), points, str(tmp_path / 'run'))
  assert not ran


def scored(folder, bpb, tokens, exact, follows):
  (folder / 'evals').mkdir(parents=True)
  (folder / 'tokens' / 'text').mkdir(parents=True)
  (folder / 'tokens' / 'text' / '1.0.0').symlink_to(tokens)
  row = lambda mode: {'metric': 'exact', 'exact': exact[mode], 'n': 4, 'interval': [0, 1]}
  turns = [{'n': 4, 'follows': x} for x in follows]
  (folder / 'evals' / '7.json').write_text(json.dumps({
    'bits_per_byte': {'text': {'bpb': bpb}}, 'generation': {
      'sums': {mode: row(mode) for mode in exact},
      'talk': {'think': row('think') | {'by_turn': turns},
               'mixed': row('think') | {'by_turn': [t | {'n': 12} for t in turns[::-1]]}}}}))
  return series_page.load(folder)


def test_what_stages_are_compared_by(tmp_path):
  (tmp_path / 'held').mkdir()
  stages = {
    'a': scored(tmp_path / 'a', 2.0, tmp_path / 'held', {'think': .1, 'no_think': .2}, (.5, .5)),
    'b': scored(tmp_path / 'b', 2.1, tmp_path / 'held', {'think': .9, 'no_think': .3}, (1, .6)),
    'c': scored(tmp_path / 'c', 3.0, tmp_path, {'think': .9, 'no_think': .3}, (1, 1))}
  found = series_page.figures(stages)
  assert found['b']['lost']['text'] == pytest.approx(.05)
  assert found['c']['lost']['text'] == 0  # of other tokens, so the first of them
  assert found['b']['gain'] == pytest.approx(.6)
  assert found['b']['follows'] == pytest.approx([.7, .9])  # (1 · 4 + .6 · 12) / 16, and turned
  page = series_page.write('x', stages, tmp_path / 'report', {'a': '../a/report/index.html'})
  html = pathlib.Path(page).read_text()
  assert 'href="../a/report/index.html"' in html and '+60.0' in html and '+5.0 %' in html
  assert (tmp_path / 'report' / 'answers.csv').exists()


def test_long_texts_and_talks_of_any_length(tmp_path):
  """Long texts stand apart, a mean a length and mode; conversations may have different turns."""
  row = lambda mode, x, turns=(): {
    'metric': mode, mode: x, 'n': 4, 'interval': [0, 1],
    'by_turn': [{'n': 2, 'follows': f} for f in turns]}
  both = lambda *xs: dict(zip(series_page.MODES, (row('exact', x) for x in xs), strict=True))
  written = {
    'sums': both(.5, .25), 'three': {'mixed': row('exact', 1, (1, 1, 0))},
    'two': {'think': row('exact', 1, (0, .5))},
    'ruler:vt@4096': {'plain': row('recall', .5), 'no_think': row('recall', 0)},
    'ruler:cwe@4096': {'plain': row('recall', .25), 'no_think': row('recall', 0)},
    'ruler:vt@8192': {'plain': row('recall', .1)}}
  (tmp_path / 'a/evals').mkdir(parents=True)
  (tmp_path / 'a/evals/7.json').write_text(json.dumps({'bits_per_byte': {}, 'generation': written}))
  stages = {'a': series_page.load(tmp_path / 'a')}
  found = series_page.figures(stages)['a']
  assert found['follows'] == [.5, .75, 0]
  assert found['gain'] == .25 and {*found['exact']} == {'sums', 'three', 'two'}
  assert found['long'] == {'4096': {'plain': .375, 'no_think': 0}, '8192': {'plain': .1}}
  html = pathlib.Path(series_page.write('x', stages, tmp_path / 'report')).read_text()
  assert 'Long texts' in html and '37.5' in html and 'ruler:' not in html
  assert 'a,cwe,4096,plain,0.25' in (tmp_path / 'report/long.csv').read_text()


def test_stages_share_what_accelerators_compile(tmp_path, monkeypatch):
  kept = []
  fake = types.SimpleNamespace(jax_compilation_cache_dir='', update=lambda _, to: kept.append(to))
  monkeypatch.setattr(jax, 'config', fake)
  stage = tmp_path / 'series/mid'
  stage.mkdir(parents=True)
  (stage / 'steps').symlink_to('../steps')
  for workdir in (stage, tmp_path / 'alone'):
    keep_programs(str(workdir), on_cpu=True)
  assert kept == [f'{tmp_path}/series/xla', f'{tmp_path}/alone/xla']


def test_the_recipe_and_its_controls():
  points = dual_mode.sweep()
  assert points[0]['name'] == 'dual_mode'
  assert [s['name'] for s in dual_mode.stages(mid=False)] == ['pretrain', 'sft', 'apo']
  tuned = {p['name']: next(s for s in p['series'] if s['name'] == 'sft') for p in points}
  assert tuned['no_mask']['tokenize.train_user'] and tuned['shuffled']['chains.shuffled']
  assert tuned['no_mid']['train.init_from'] == '@pretrain'


@pytest.mark.slow
def test_a_soup_is_an_experiment(tmp_path, texts, corpus):
  """Merged as experiments.merge does, then evaluated, exported and reported like a run."""
  path = str(tmp_path / 'tokenizer.model')
  tokenizer.train(texts, path, vocab_size=320, control=chat.CONTROL)
  text, tokens = tokenizer.load(path), tokenize_corpus.run(
    corpus, path, str(tmp_path / 'tokens'), 'web', TokenizeOptions(holdout=0.2))
  shape = SHAPES['tiny']
  fields = {f: getattr(shape, f) for f in ('num_heads', 'num_kv_heads', 'head_dim', 'mlp_dim')}
  own = ModelConfig(vocab_size=text.vocab_size, num_layers=1, embed_dim=32, max_seq_len=64,
                    dtype='float32', **fields)
  for i in range(2):
    export_formats.write_hf(
      load.Model(own, init(own, jax.random.key(i)), text, False), str(tmp_path / f'm{i}'))
  c = config(corpora=f'mine={tokens}', tokenizer__path=path, eval__tasks=(),
             merge__models=f'{tmp_path}/m0,{tmp_path}/m1', merge__weights=(.9, .1),
             eval__documents=4, data__seq_len=64, train__batch_tokens=64, sample__tokens=4)
  root = str(tmp_path / 'soup')
  c.eval.tasks = ('ruler:vt',)
  with pytest.raises(ValueError, match=r'vt needs .* more than a length of 64'):
    check(c)
  c.eval.tasks = ()
  graph = Graph(build_steps(c, root), root, lambda line: None)
  assert [s.name for s in graph.steps] == ['tokenize_mine', 'merge', 'evaluate', 'export', 'report']
  graph.run()
  summary = summarize(graph)
  assert summary['loss']['validation'] > 0 and summary['parameters'] == own.num_params()
  soup, *parts = (load.load_model(f'{tmp_path}/{n}').params for n in ('soup/export', 'm0', 'm1'))
  near = jax.tree.map(lambda s, a, b: np.abs(s - (.9 * a + .1 * b)).max(), soup, *parts)
  assert max(jax.tree.leaves(near)) < 1e-6
  assert 'bits per byte' in (tmp_path / 'soup/report/index.html').read_text()
  with pytest.raises(FileNotFoundError, match=r'give .*soup/export$'):
    load.load_model(f'{tmp_path}/soup')


SHRUNK = '''
from configs import smollm3_small

LESS = {4096: 128, 32_768: 192, 8192: 384}

def get_config(data):
  c = smollm3_small.get_config(data)
  c.model.shape, c.model.num_layers, c.model.dtype = 'tiny', 2, 'float32'
  c.tokenizer.vocab_size, c.tokenizer.train_bytes = 320, 100_000
  c.tokenize.holdout, c.tokenize.holdout_shared = .2, 1.
  c.conversations.minhash = 'none'
  c.eval.documents, c.eval.task_examples, c.train.tensorboard = 4, 2, False
  c.eval.generation.max_new_tokens = 4
  rows = []
  for row in c.series:
    size = LESS.get(row.get('data.seq_len'))
    if size:
      row = row | {'data.seq_len': size, 'train.batch_tokens': 2 * size, 'train.tokens': 8 * size}
    rows.append(row | {'eval.tasks': ('sums',) if row['name'] == 'soup' else ()})
    if 'eval.generation.lengths' in row:
      rows[-1]['eval.generation.lengths'] = (128,)
  c.series = tuple(rows)
  return c
'''


@pytest.mark.slow
def test_the_small_recipe_in_miniature(tmp_path):
  """From corpora and conversations to a soup, its chat folder and its GGUF; then nothing anew."""
  rng = random.Random(0)
  for name in (*smollm3_small.CORPORA, 'needles', 'needles_far'):
    write_corpus(tmp_path / 'data/corpora', name, [
      ' '.join(rng.choices(WORDS, k=rng.randint(5, 60))) + f' {i}' for i in range(40)])
  for kind, what in (('thoughts', {}), ('chats', {'mode': 'both'}),
                     ('pairs', {'mode': 'both', 'pairs': True})):
    (tmp_path / 'data' / kind).mkdir()
    chains.write(str(tmp_path / 'data' / kind / 'a.jsonl'), chains.conversations(
      chains.Chains(60, ('sums',), depths=(1,), **what)))
  (tmp_path / 'data/eval').mkdir()
  (tmp_path / 'data/eval/own.jsonl').write_text('{"question": "Which of these words is it?"}\n')
  (tmp_path / 'shrunk.py').write_text(SHRUNK)
  command = [sys.executable, '-m', 'experiments.run', f'--config={tmp_path}/shrunk.py:data='
             f'{tmp_path}/data', f'--workdir={tmp_path}/work']
  first = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=2400)
  logs = ''.join(p.read_text()[-2000:] for p in tmp_path.glob('work/*/log.txt'))
  assert first.returncode == 0, first.stdout + first.stderr + logs
  summary = json.loads((tmp_path / 'work/summary.json').read_text())
  assert [*summary['stages']] == ['pretrain', 'long', 'mid', 'sft', 'apo', 'soup']
  assert {*summary['stages']['soup']['exact']['sums']} == {'think', 'no_think'}
  assert summary['stages']['apo']['lost'].keys() >= {*smollm3_small.CORPORA}
  assert (tmp_path / 'work/soup/model.gguf').stat().st_size > 100_000
  assert (tmp_path / 'work/soup/export/chat_template.jinja').exists()
  steps = {p.name for p in (tmp_path / 'work/steps').iterdir()}
  again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=2400)
  assert again.returncode == 0 and steps == {p.name for p in (tmp_path / 'work/steps').iterdir()}

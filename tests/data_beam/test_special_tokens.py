"""Which tokens begin and end a document: one rule for both wings, and one decision for a run."""

import dataclasses
import json
import pickle
import random
import shutil

import gguf as gguf_reader
import jax
import jax.numpy as jnp
import pytest
from helpers.configs import config
from helpers.tokenised import WORDS, corpus, folder, model, texts, write_corpus  # noqa: F401 (fixtures)
from helpers.tokenizers import write, write_tokens
from hypothesis import example, given
from hypothesis import strategies as st

from data_beam import records, special_tokens, tokenize_corpus
from experiments.engine import config as config_lib
from experiments.engine.build import build_steps
from experiments.engine.graph import Graph
from smoljax import model as model_lib
from smoljax.checkpoints import export_formats, gguf, load
from smoljax.checkpoints.store import Checkpoints
from smoljax.data import tokenizer
from smoljax.data.corpus import open_corpus

CONFIG, MAP = 'tokenizer_config.json', 'special_tokens_map.json'


def ids(special, *names):
  return tuple(name and 256 + special.index(name) for name in names)


@pytest.mark.parametrize(('special', 'beside', 'expected'), [
  # Nothing beside it: usual names, the first of them.
  (['<s>', '</s>', '<pad>'], {}, ('<s>', '</s>', '<pad>')),
  (['<|endoftext|>'], {}, (None, '<|endoftext|>', None)),
  (['<|end_of_text|>', '<|begin_of_text|>', '<s>'], {},
   ('<|begin_of_text|>', '<|end_of_text|>', None)),
  (['<a>', '<b>'], {}, (None, None, None)),
  # One of the two files: what it has goes, and what it lacks is none.
  (['<a>', '<b>', '</s>'], {'special_tokens_map': {'eos_token': '<b>', 'pad_token': '<a>'}},
   (None, '<b>', '<a>')),
  (['<a>', '<b>', '<s>'], {'tokenizer_config': {'bos_token': '<a>', 'eos_token': '<b>'}},
   ('<a>', '<b>', None)),
  (['<a>', '<b>'], {'tokenizer_config': {
    'bos_token': {'content': '<a>', 'lstrip': False}, 'eos_token': {'content': '<b>'}}},
   ('<a>', '<b>', None)),
  (['<s>', '</s>'], {'tokenizer_config': {'bos_token': None, 'eos_token': '</s>'}},
   (None, '</s>', None)),
  # Both.
  (['<a>', '<b>', '<c>'], {'tokenizer_config': {'bos_token': '<a>', 'pad_token': None},
                           'special_tokens_map': {'bos_token': '<b>', 'eos_token': '<c>',
                                                  'pad_token': '<b>'}}, ('<a>', '<c>', None)),
  # Files that say nothing of it, and names that are no token.
  (['<s>', '</s>'], {'tokenizer_config': {'model_max_length': 9}}, ('<s>', '</s>', None)),
  (['</s>'], {'tokenizer_config': {'bos_token': '<gone>', 'eos_token': '</s>'}},
   (None, '</s>', None)),
])  # fmt: skip
def test_what_a_tokenizer_json_and_its_neighbours_say(tmp_path, special, beside, expected):
  path = write(tmp_path, special, **beside)
  assert tokenizer.load(path).special == ids(special, *expected)
  if expected[1]:
    assert tokenize_corpus.load_tokenizer(path).special == ids(special, *expected)
  else:
    with pytest.raises(ValueError, match='no end-of-text token: name its "eos_token"'):
      tokenize_corpus.load_tokenizer(path)


TOKENS = ['<s>', '</s>', '<|endoftext|>', '<a>', '<pad>']
names = st.one_of(st.none(), st.sampled_from([*TOKENS, '<gone>']),
                  st.sampled_from(TOKENS).map(lambda name: {'content': name, 'special': True}))
said = st.none() | st.dictionaries(
  st.sampled_from([*special_tokens.USUAL_NAMES, 'chat_template']), names, max_size=4)


@given(st.lists(st.sampled_from(TOKENS), unique=True), said, said)
@example(['<s>', '</s>'], None, None)
def test_both_wings_and_exports_agree(tmp_path_factory, special, config, tokens_map):
  folder = tmp_path_factory.mktemp('layout')
  beside = {'tokenizer_config': config, 'special_tokens_map': tokens_map}
  path = write(folder, special, **{k: v for k, v in beside.items() if v is not None})
  text = tokenizer.load(path)
  if text.eos_id is None:
    with pytest.raises(ValueError, match='no end-of-text'):
      tokenize_corpus.load_tokenizer(path)
  else:
    assert tokenize_corpus.load_tokenizer(path).special == text.special
  tokenizer.to_hf(text, str(folder / 'out'), bos=text.bos_id is not None, max_length=64)
  assert tokenizer.load(str(folder / 'out')).special == text.special
  found = gguf.read_vocabulary(str(folder / 'out'), 300)
  keys = ('bos_token_id', 'eos_token_id', 'padding_token_id')
  assert tuple(found.get(key) for key in keys) == text.special


def test_sentencepiece_says_it_itself(tmp_path, model, texts):
  """What stands beside a .model, as in a released folder, is of its tokenizer.json."""
  path = shutil.copy(model, tmp_path / 'tokenizer.model')
  (tmp_path / CONFIG).write_text('{"eos_token": "<unk>"}')
  assert tokenize_corpus.load_tokenizer(str(path)).special == (2, 3, None)
  assert tokenizer.load(str(path)).special == (2, 3, None)
  tokenizer.train(texts, str(tmp_path / 'ours.model'), vocab_size=300)
  ours = (tokenizer.BOS_ID, tokenizer.EOS_ID, tokenizer.PAD_ID)
  assert tokenize_corpus.load_tokenizer(str(tmp_path / 'ours.model')).special == ours
  assert tokenizer.load(str(tmp_path / 'ours.model')).special == ours


@pytest.mark.parametrize('content', ['[]', 'not json'])
def test_a_broken_neighbour_is_named(tmp_path, content):
  path = write(tmp_path, ['</s>'])
  (tmp_path / MAP).write_text(content)
  for read in (tokenize_corpus.load_tokenizer, lambda path: tokenizer.load(path).special):
    with pytest.raises(ValueError, match=f'{MAP}, beside the tokenizer, is no JSON object'):
      read(path)


def test_ids_that_are_given_go_before_the_files(tmp_path):
  path = write(tmp_path, ['<s>', '</s>', '<a>'])
  text = pickle.loads(pickle.dumps(tokenizer.load(path, {'bos_id': None, 'eos_id': 258})))
  assert text.special == (None, 258, None)
  tokenizer.to_hf(text, str(tmp_path / 'out'), bos=False, max_length=9)
  assert tokenizer.load(str(tmp_path / 'out')).special == (None, 258, None)
  assert gguf.read_vocabulary(str(tmp_path), 300, {'eos_id': 258})['eos_token_id'] == 258


# --- Before the first step -----------------------------------------------------------------------


@pytest.mark.parametrize(('special', 'beside', 'message'), [
  (['<a>'], {}, r'tokenizer.json has no end-of-text token: name its "eos_token" in a tokenizer_c'),
  (['<|endoftext|>'], {}, 'has no begin-of-text token: say --config.tokenize.bos=False'),
  (['<s>', '</s>'], {'tokenizer_config': {'eos_token': '</s>'}}, 'has no begin-of-text token'),
])  # fmt: skip
def test_a_tokenizer_that_cannot_work_is_refused(tmp_path, special, beside, message):
  c = config(web__enabled=True, tokenizer__path=write(tmp_path, special, **beside))
  with pytest.raises(ValueError, match=message):
    config_lib.check(c)


@pytest.mark.parametrize(('special', 'beside', 'bos'), [
  (['<s>', '</s>'], {}, True),
  (['<|endoftext|>'], {}, False),
  (['<a>', '<b>'], {'special_tokens_map': {'bos_token': '<a>', 'eos_token': '<b>'}}, True),
])
def test_the_mends_that_are_named_exist(tmp_path, special, beside, bos):
  config_lib.check(config(tokenizer__path=write(tmp_path, special, **beside), tokenize__bos=bos))


def test_corpora_with_other_special_tokens_are_refused(tmp_path, corpus):
  path = write(tmp_path, ['<s>', '</s>', '<a>'])
  one = write_tokens(tmp_path / 'c', 'one', path)
  two = write_tokens(tmp_path / 'c', 'two', path, eos_id=258)
  old = write_tokens(tmp_path / 'c', 'old', path, pad_id='absent', eos_id='absent')
  check = lambda corpora, **more: config_lib.check(config(
    corpora=corpora, tokenizer__path=path, **more))
  check(f'mine={one},old={old}')
  check(f'mine={two},old={old}')  # the file says 257, the corpus is what was trained on
  with pytest.raises(ValueError, match=f'eos_id is 257 in {one} and 258 in {two}: tokenise both'):
    check(f'mine={one},other={two}')
  with pytest.raises(ValueError, match=f'eos_id is 258 in {two} and 257 in {path}'):
    check(f'mine={two},other={corpus}')
  check(f'mine={one},other={corpus}')
  bare = write_tokens(tmp_path / 'c', 'bare', path, bos=False)
  with pytest.raises(ValueError, match=r'no document begins with BOS: say --config.tokenize.bos='):
    check(f'mine={bare}')
  check(f'mine={bare}', tokenize__bos=False)
  with pytest.raises(ValueError, match=r'every document begins with BOS: say --config.tokenize'):
    check(f'mine={one}', tokenize__bos=False)


# --- A run ---------------------------------------------------------------------------------------

TINY = dict(num_layers=1, embed_dim=16, num_heads=1, num_kv_heads=1, head_dim=16, mlp_dim=32)


@pytest.mark.parametrize('meta', [
  {'special_tokens': {'bos_id': 258, 'eos_id': 257, 'pad_id': None}},
  {'special_tokens': {}},  # of corpora older than the manifest's entries
  {},  # older than this record
])
def test_a_run_keeps_the_ids_of_its_corpora(tmp_path, meta):
  """Whatever stands beside its tokenizer, which adds no BOS by itself."""
  path = write(tmp_path, ['<s>', '</s>', '<x>'])
  shape = model_lib.ModelConfig(vocab_size=260, max_seq_len=64, **TINY)
  meta = meta | {'model': dataclasses.asdict(shape), 'tokenizer': path,
                 'config': {'tokenize': {'bos': True}}}
  params = model_lib.init(shape, jax.random.key(0))
  with Checkpoints(str(tmp_path / 'run/checkpoints')) as saved:
    saved.save(1, params, {'count': jnp.zeros(())}, {}, meta)
  expected = (258 if meta.get('special_tokens') else 256, 257, None)
  loaded = load.load_model(str(tmp_path / 'run'))
  assert (loaded.tokenizer.special, loaded.bos) == (expected, True)
  export_formats.write_hf(loaded, str(tmp_path / 'hf'))
  exported = json.loads((tmp_path / 'hf/config.json').read_text())
  assert tuple(exported[f'{name}_token_id'] for name in ('bos', 'eos', 'pad')) == expected
  again = load.load_model(str(tmp_path / 'hf'))
  assert (again.tokenizer.special, again.bos) == (expected, True)
  file, _ = export_formats.write_gguf(loaded, str(tmp_path / 'm.gguf'))
  fields = gguf_reader.GGUFReader(file).fields
  value = lambda key: fields[f'tokenizer.ggml.{key}'].contents()
  assert (value('bos_token_id'), value('eos_token_id')) == expected[:2]
  assert value('add_bos_token') is True


@pytest.mark.slow
def test_a_run_with_a_bare_tokenizer_json(tmp_path):
  """Tokenised, trained, evaluated, exported: all with the ids of the corpora."""
  rng = random.Random(0)
  long = [' '.join(rng.choices(WORDS, k=120)) for _ in range(60)]
  mine = write_corpus(tmp_path, 'mine', long)
  path = write(tmp_path / 'files', ['<s>', '</s>', '<x>'])
  workdir = tmp_path / 'run'
  c = config(
    corpora=f'mine={mine}', tokenizer__path=path, tokenize__holdout=0.2, data__seq_len=64,
    train__batch_tokens=512, train__tokens=1024, train__eval_documents=8, eval__documents=8,
    eval__tasks=('continuation',), eval__task_examples=4, sample__prompts=('the',),
    sample__tokens=4, **{f'model__{name}': value for name, value in TINY.items()})
  graph = Graph(build_steps(c, str(workdir)), str(workdir), lambda line: None)
  config_lib.check(c)
  graph.run()
  manifest = records.read_manifest(str(workdir / 'tokens/mine/1.0.0'))
  assert [manifest[k] for k in special_tokens.SpecialTokens._fields] == [256, 257, None]
  tokens = open_corpus(manifest['path']).tokens(0)
  assert (tokens[0], tokens[-1]) == (256, 257)
  assert json.loads(next((workdir / 'evals').iterdir()).read_text())['tasks']['continuation']['n']
  # What is later put beside the file changes nothing of this run.
  (tmp_path / 'files' / CONFIG).write_text('{"eos_token": "<x>"}')
  assert tokenizer.load(path).special == (None, 258, None)
  loaded = load.load_model(str(workdir))
  assert (loaded.tokenizer.special, loaded.bos) == ((256, 257, None), True)
  assert load.load_model(str(workdir / 'export')).tokenizer.special == (256, 257, None)

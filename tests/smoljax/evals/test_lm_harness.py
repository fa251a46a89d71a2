"""Our model in lm-evaluation-harness: the scores of the exported model in transformers.

Runs where it is installed: `pip install lm-eval[hf]==0.4.13`, best in an environment of its own,
since it may bring another pyarrow than Beam wants.
"""

import types

import jax
import numpy as np
import pytest

from smoljax import evals, model
from smoljax.checkpoints import export_formats, load
from smoljax.data import tokenizer

pytest.importorskip('lm_eval')
pytest.importorskip('transformers')


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  """Our LM and the harness's own for transformers, of one random model."""
  from lm_eval.models.huggingface import HFLM

  folder = tmp_path_factory.mktemp('lm')
  texts = ['the value of the list is returned\n' * 5, 'def value(list):\n    return list\n' * 5]
  tokenizer.train(texts, str(folder / 'tokenizer.model'), vocab_size=300)
  text = tokenizer.load(str(folder / 'tokenizer.model'))
  config = model.ModelConfig(
    vocab_size=300, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64,
    max_seq_len=64, nope_interval=2, init_std=0.3, dtype='float32')
  ours = load.Model(config, model.init(config, jax.random.key(0)), text, True)
  export_formats.write_hf(ours, str(folder / 'hf'))
  theirs = HFLM(pretrained=str(folder / 'hf'), device='cpu', dtype='float32', max_length=64,
                add_bos_token=True, batch_size=1)
  return evals.LM(ours, batch_size=3), theirs


def requests(*arguments):
  return [types.SimpleNamespace(args=a, arguments=a) for a in arguments]


def test_loglikelihoods(pair):
  asked = [('the value', ' of the list'), ('', 'def value'), ('return ', 'list\n'),
           ('the list is ' * 12, 'returned and the value'), ('x', 'y')]
  got, expected = (m.loglikelihood(requests(*asked), disable_tqdm=True) for m in pair)
  np.testing.assert_allclose([x for x, _ in got], [x for x, _ in expected], rtol=1e-4)
  assert [g for _, g in got] == [bool(g) for _, g in expected]


def test_rolling(pair, monkeypatch):
  """With add_bos_token the harness's model predicts BOS too, from another BOS; ours never does."""
  monkeypatch.setattr(pair[1], 'add_bos_token', False)
  asked = [('the value of the list is returned\n' * n,) for n in (1, 9, 40)]
  got, expected = (m.loglikelihood_rolling(requests(*asked), disable_tqdm=True) for m in pair)
  np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_generation(pair, monkeypatch):
  """The same tokens; of bytes that are no text transformers makes other replacement characters."""
  ours, theirs = pair
  monkeypatch.setattr(type(ours.model.tokenizer), 'decode', lambda self, ids: (
    theirs.tokenizer.decode(ids, skip_special_tokens=True)))
  asked = [('def value', {'until': ['\n'], 'max_gen_toks': 12}),
           ('the list', {'until': ['l'], 'max_gen_toks': 8})]
  got, expected = (m.generate_until(requests(*asked), disable_tqdm=True) for m in pair)
  assert got == expected and all(got)

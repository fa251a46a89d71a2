"""Copies trained side by side: each does what it would do alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import write_tokenised
from helpers.training import tiny

from experiments.engine.config import model_config
from smoljax import model
from smoljax.data.corpus import open_corpus
from smoljax.train import guard, side_by_side, step


@pytest.fixture(scope='module')
def corpora(tmp_path_factory):
  rng = np.random.default_rng(0)
  found = {}
  for name, low in (('web', 4), ('pdf', 30)):
    splits = {split: [rng.integers(low, low + 30, rng.integers(5, 90)) for _ in range(count)]
              for split, count in (('train', 60), ('validation', 6))}
    path = write_tokenised(tmp_path_factory.mktemp('tokens'), name, splits, 64)
    found[name] = {split: open_corpus(path, split, name) for split in splits}
  return found


def table(corpora, split='train'):
  return side_by_side.make_table({k: x[split] for k, x in corpora.items()}, seq_len=64, window=64,
                                 seed=0)


def test_a_table_has_every_token_once(corpora):
  found = table(corpora)
  lengths = [x['train'].lengths for x in corpora.values()]
  assert found.sizes.tolist() == [int((n - 1).sum()) for n in lengths]
  assert found.starts[-1] == len(found.tokens) == len(found.rows['inputs'])
  half = found.first(0.5)
  assert np.diff(half.starts).tolist() == [-(-n // 2) for n in np.diff(found.starts)]
  assert set(half.rows['source'][half.starts[1]:]) == {1}


def test_rows_follow_the_mixture_and_copies_meet_them_in_one_order(corpora):
  found = table(corpora)
  mixtures = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [0.5, 0.5]]])
  chosen = side_by_side.choose_rows(found, mixtures, [20, 20], 8, [3, 3])
  tokens, source = found.tokens[chosen], found.rows['source'][chosen]
  for phase, span in enumerate((slice(0, 20), slice(20, 40))):
    share = (tokens * (source == 0))[:, span].sum((1, 2)) / tokens[:, span].sum((1, 2))
    assert np.allclose(share, mixtures[:, phase, 0], atol=0.01)
  a, b = (c[s == 1] for c, s in zip(chosen, source, strict=True))
  assert (a[:len(b)] == b[:len(a)]).all()
  count = np.diff(found.starts)[1]
  assert sorted(a[:count]) == list(range(found.starts[1], found.starts[2]))  # an epoch


@pytest.mark.slow  # three programs are compiled
def test_copies_do_what_they_would_do_alone(corpora):
  """The trainer's own step, on the same rows, one model at a time."""
  c = tiny(**{'optimizer.learning_rate': 3e-3})
  config = model_config(c, 64)
  found = table(corpora)
  chosen = side_by_side.choose_rows(
    found, np.array([[[0.8, 0.2]], [[0.3, 0.7]]]), [5], c.train.rows, [1, 2])
  trainer = side_by_side.Trainer(c, config, 2, block=5)
  rows = {k: jnp.asarray(x) for k, x in found.rows.items()}
  params, losses = trainer.train(rows, chosen, [1, 2])
  alone = step.make_train_step(
    config, trainer.optimizer, c.guard, step.Objective(chunk=c.train.loss_chunk))
  for copy, seed in enumerate((1, 2)):
    own = model.init(config, jax.random.key(seed))
    state = {'params': own, 'opt_state': {
      'optimizer': trainer.optimizer.init(own),
      'guard': jax.tree.map(jnp.asarray, guard.init(c.guard, config.num_layers))}}
    for i, ids in enumerate(chosen[copy]):
      batch = {k: jnp.asarray(x[ids], jnp.int32) for k, x in found.rows.items()}
      state, metrics = alone(state, batch | {'source': jnp.zeros(len(ids), jnp.int32)})
      assert np.isclose(metrics['loss'], losses[copy, i], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(state['params']), jax.tree.leaves(params), strict=True):
      assert np.allclose(a, b[copy], atol=1e-3)
  held_out = table(corpora, 'validation')
  bits = trainer.score(params, held_out, batch=4)
  assert bits.shape == (2, 2) and np.isfinite(bits).all()
  assert bits[0, 0] < bits[1, 0] and bits[0, 1] > bits[1, 1]  # what it has seen more of

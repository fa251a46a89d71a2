import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import optimizer_contest as settings
from experiments.benchmarks import optimizer_contest as contest
from experiments.benchmarks import trajectories


def test_steps_to_a_target_are_read_off_the_curve():
  steps = [100, 200, 400]
  assert contest.steps_to(3.0, steps, [4, 3, 2]) == pytest.approx(200)
  assert contest.steps_to(2.5, steps, [4, 3, 2]) == pytest.approx(math.sqrt(200 * 400))
  assert contest.steps_to(5.0, steps, [4, 3, 2]) == pytest.approx(100)
  assert contest.steps_to(1.0, steps, [4, 3, 2]) == math.inf


def tuned(name, *pairs):
  return [{'kind': 'tune', 'name': name, 'lr': lr, 'loss': loss} for lr, loss in pairs]


def test_the_best_learning_rate_lies_inside_its_grid_or_is_said_not_to():
  assert contest.best(tuned('a', (1, 3), (2, 2), (4, 2.5)), 'a') == (2, True)
  assert contest.best(tuned('a', (2, 2), (1, 3)), 'a') == (2, False)
  assert contest.best(tuned('a', (1, 3), (2, 2), (4, math.nan)), 'a') == (2, True)
  assert contest.best([], 'a') is None


def test_a_contestant_twice_as_fast_has_a_ratio_of_one_half():
  rows = []
  for name, speed in (('adamw', 1), ('adamw_warm', 1.01), ('muon', 2.02)):
    rows += tuned(name, (1, 3), (2, 2), (4, 3))
    for seed in (1, 2, 3):
      noise = .002 * np.random.default_rng(seed).standard_normal()
      rows += [{'kind': 'branch', 'name': name, 'seed': seed, 'steps': steps, 'max_logit': 9.0,
                'weight_entropy': .9, 'loss': 5 - .5 * math.log(speed * steps) + noise}
               for steps in (100, 150, 200, 300, 400)]
  table = {row['name']: row for row in contest.summarize(rows, draws=200)}
  low, high = table['muon']['interval']
  assert table['muon']['ratio'] == pytest.approx(.5, abs=.01) and low <= .5 <= high
  assert table['adamw_warm']['ratio'] == pytest.approx(1)  # the better AdamW is the reference
  assert high - low < .05


def test_runs_are_resumed_and_a_best_at_the_end_extends_the_grid(tmp_path, monkeypatch):
  c = settings.get_config()
  for name in list(c.grids):
    if name != 'muon':
      del c.grids[name]
  c.grids.muon = (1.0, 2.0)
  c.weight_decays = ()
  np.save(tmp_path / 'tokens.npy', np.zeros(9, np.uint16))
  calls = []
  monkeypatch.setattr(contest, 'Runner', lambda *args: args)

  def tune(runner, lrs, decays):
    assert set(decays) == {c.weight_decay}
    calls.append(lrs)
    return [{'loss': abs(math.log2(lr) - 3), 'max_logit': 1.0} for lr in lrs]

  def branch(runner, lr, decay):
    assert (lr, decay) == (8.0, c.weight_decay)
    yield 400, [{'loss': 1.0, 'max_logit': 1.0}] * c.seeds, ({},)

  monkeypatch.setattr(contest, 'tune', tune)
  monkeypatch.setattr(contest, 'branch', branch)
  monkeypatch.setattr(contest, 'spectrum', lambda params: .5)
  assert contest.run(tmp_path, 1e9, c)
  assert calls == [[1.0, 2.0], [4.0], [8.0], [16.0]]
  assert contest.run(tmp_path, 1e9, c) and len(calls) == 4
  rows = [json.loads(line) for line in (tmp_path / 'runs.jsonl').read_text().splitlines()]
  assert [r['kind'] for r in rows] == ['tune'] * 5 + ['branch'] * c.seeds


def test_the_weight_decay_is_tuned_at_the_best_learning_rate(tmp_path, monkeypatch):
  c = settings.get_config()
  c.grids = dict(muon=(1.0, 2.0, 4.0), optax_muon=(1.0, 2.0, 4.0))
  np.save(tmp_path / 'tokens.npy', np.zeros(9, np.uint16))
  calls = []

  def tune(runner, lrs, decays):
    calls.append((lrs, decays))
    return [{'loss': abs(lr - 2) + abs(decay - .35), 'max_logit': 1.0}
            for lr, decay in zip(lrs, decays, strict=True)]

  branched = []
  monkeypatch.setattr(contest, 'Runner', lambda *args: args)
  monkeypatch.setattr(contest, 'tune', tune)
  monkeypatch.setattr(contest, 'branch', lambda runner, *best: branched.append(best) or [
    (400, [{'loss': 1.0, 'max_logit': 1.0}] * c.seeds, ({},))])
  monkeypatch.setattr(contest, 'spectrum', lambda params: .5)
  assert contest.run(tmp_path, 1e9, c, ['muon'])
  assert calls[1:] == [([2.0] * 3, [0.0, .05, .2]), ([2.0], [.4]), ([2.0], [.8])]
  assert contest.run(tmp_path, 1e9, c)
  assert len(calls) == 5 and branched == [(2.0, .4), (2.0, .1)]  # the documented optax has none


@pytest.mark.parametrize('name', ['adamw_warm', 'muon', 'optax_muon_labelled', 'optax_muon'])
def test_weight_decay_as_an_input_is_the_optimizers_own(name):
  from configs import base
  from experiments.benchmarks.optimizer_step import matrix_dims
  from smoljax import model, optim

  config = model.ModelConfig(
    vocab_size=32, num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24,
    max_seq_len=16, dtype='float32')  # fmt: skip
  c = settings.get_config()
  c.update(dict(rows=2, seq_len=16, eval_rows=4, warmup=2))
  runner = contest.Runner(name, c, config, np.arange(400, dtype=np.uint16) % 32)
  state = runner.init(jnp.zeros(1, jnp.int32))
  params = jax.tree.map(lambda x: x[0], state[0])
  copies = contest.Copies([0], [.5], [.3])
  got = runner.steps(state, copies, 0, 1, lambda step: 1.0)[0]
  starts = runner._rows(0, 0)
  rows = runner.train[starts[:, None] + np.arange(17)]
  grads = jax.grad(lambda p: runner._loss(p, rows, None)[0])(params)
  if name.startswith('optax'):
    labelled = {} if name == 'optax_muon' else dict(
      weight_decay=.3, adam_weight_decay=.3, consistent_rms=.2, adam_b2=.95,
      muon_weight_dimension_numbers=matrix_dims(params))
    own = optax.contrib.muon(1.0, **labelled)
  else:
    o = base.get_config().optimizer
    o.update(dict(name=name.split('_')[0], learning_rate=1.0, schedule='constant',
                  warmup_fraction=0.0, weight_decay=.3))
    own = optim.make_optimizer(o, params, 9)[0]
  updates = own.update(grads, own.init(params), params)[0]
  jax.tree.map(lambda p, u, x: np.testing.assert_allclose(
    x[0], p + .5 * u, rtol=1e-5, atol=1e-5), params, updates, got)


def test_the_seeds_see_each_row_once_in_orders_of_their_own():
  runner = object.__new__(contest.Runner)
  runner.c = settings.get_config()
  runner.train = np.zeros(runner.c.rows * runner.c.seq_len * 3 + 1)
  rows = [np.concatenate([runner._rows(seed, step) for step in range(3)]) for seed in (1, 2)]
  for places in rows:
    assert sorted(places) == list(range(0, len(runner.train) - 1, runner.c.seq_len))
  assert not np.array_equal(*rows)


def test_trajectories_start_together_and_muon_uses_all_directions(tmp_path, monkeypatch):
  c = settings.get_config()
  c.update(dict(rows=2, seq_len=16, eval_rows=4, warmup=2))
  c.model.update(dict(
    vocab_size=32, num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24,
    max_seq_len=16, dtype='float32'))  # fmt: skip
  monkeypatch.setattr(trajectories, '_NAMES', ('adamw_warm', 'muon'))
  np.save(tmp_path / 'tokens.npy', np.random.default_rng(0).integers(0, 8, 4000).astype(np.uint16))
  adamw, muon = rows = trajectories.run(tmp_path, 3, 3, c)
  assert (adamw['step'], muon['step']) == (3, 3) and 'cos/adamw_warm' not in adamw
  assert 0 < muon['cos/adamw_warm'] < 1 and muon['update'] > .9 > adamw['update']
  trajectories.report(tmp_path, rows)
  assert 'our Muon' in (tmp_path / 'trajectories.md').read_text()

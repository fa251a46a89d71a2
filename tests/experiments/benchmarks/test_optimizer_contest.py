import copy
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
  return [{'kind': 'tune', 'name': name, 'lr': lr, 'weight_decay': .1, 'loss': loss}
          for lr, loss in pairs]


def test_tuning_goes_on_until_the_best_is_the_best_of_nine():
  losses = {(1, 2): 3.0, (2, 2): 2.0, (4, 2): math.nan}
  assert contest.best(losses) == (2, 2)
  assert contest.untried(losses, [(4, 2), (8, 2)]) == [(8, 2)]
  around = contest.untried(losses, [])
  assert sorted(around) == [(1, 1), (1, 4), (2, 1), (2, 4), (4, 1), (4, 4)]
  assert contest.untried(losses | dict.fromkeys(around, 2.5), []) == []
  # What has no decay is tuned in its learning rate alone.
  assert contest.untried({(1, 0.0): 1.0}, []) == [(.5, 0.0), (2, 0.0)]


def test_a_contestant_twice_as_fast_has_a_ratio_of_one_half():
  rows = []
  for name, speed in (('adamw', 1), ('adamw_warm', 1.01), ('muon', 2.02)):
    rows += tuned(name, (1, 3), (2, 2), (4, 3))
    for seed in (1, 2, 3):
      noise = .002 * np.random.default_rng(seed).standard_normal()
      rows += [{'kind': 'branch', 'name': name, 'lr': 2, 'weight_decay': .1, 'seed': seed,
                'steps': steps, 'max_logit': 9.0, 'weight_entropy': .9,
                'loss': 5 - .5 * math.log(speed * steps) + noise}
               for steps in (100, 150, 200, 300, 400)]
  table = {row['name']: row for row in contest.summarize(rows, draws=200)}
  low, high = table['muon']['interval']
  assert table['muon']['ratio'] == pytest.approx(.5, abs=.01) and low <= .5 <= high
  assert table['adamw_warm']['ratio'] == pytest.approx(1)  # the better AdamW is the reference
  assert high - low < .05


def test_runs_are_resumed_and_a_best_at_the_end_extends_the_grid(tmp_path, monkeypatch):
  c = settings.get_config()
  c.grids = dict(muon=(1.0, 2.0), optax_muon=(4.0, 8.0))
  np.save(tmp_path / 'tokens.npy', np.zeros(9, np.uint16))
  calls, branched = [], []
  monkeypatch.setattr(contest, 'Runner', lambda *args: args)

  def tune(runner, cells):
    calls.append(cells)
    return [{'loss': abs(math.log2(lr) - 3) + abs(decay - .2), 'max_logit': 1.0}
            for lr, decay in cells]

  def branch(runner, lr, decay):
    branched.append((lr, decay))
    yield 400, [{'loss': 1.0, 'max_logit': 1.0}] * c.seeds, ({},)

  monkeypatch.setattr(contest, 'tune', tune)
  monkeypatch.setattr(contest, 'branch', branch)
  monkeypatch.setattr(contest, 'spectrum', lambda params: .5)
  assert not contest.run(tmp_path, -1, c, ['muon']) and not calls
  assert contest.run(tmp_path, 1e9, c, ['muon'])
  assert calls[0] == [(1.0, .1), (2.0, .1)] and branched == [(8.0, .2)]
  cells = [cell for call in calls for cell in call]
  assert len(cells) == len(set(cells))
  assert {(lr, decay) for lr in (4.0, 8.0, 16.0) for decay in (.1, .2, .4)} <= set(cells)
  calls.clear()
  assert contest.run(tmp_path, 1e9, c)  # what is done already is not done again
  assert calls == [[(4.0, 0.0), (8.0, 0.0)], [(16.0, 0.0)]]
  assert branched == [(8.0, .2), (8.0, 0.0)]
  rows = [json.loads(line) for line in (tmp_path / 'runs.jsonl').read_text().splitlines()]
  assert len(rows) == len(cells) + 3 + 2 * c.seeds
  # Better ones found later make the branches of before those of another cell.
  assert len(contest.branches(rows, 'muon')) == c.seeds
  better = {'kind': 'tune', 'name': 'muon', 'lr': 9.0, 'weight_decay': .2, 'loss': -1.0}
  assert contest.branches([*rows, better], 'muon') == []


@pytest.mark.parametrize('name', ['adamw_warm', 'muon', 'optax_muon_labelled', 'optax_muon'])
def test_weight_decay_as_an_input_is_the_optimizers_own(name, monkeypatch):
  """One step from gradients that are given, with every number and every direction well above zero.

  A model's last bits depend on the program and the machine. Where a gradient is next to nothing,
  Adam's first step, g / (|g| + eps), is made of them; Newton–Schulz makes as much of a direction
  that a matrix all but lacks, and of a last bit of bfloat16.
  """
  from configs import base
  from experiments.benchmarks.optimizer_step import matrix_dims
  from smoljax import model, optim

  exact = base.get_config()
  exact.optimizer.muon.compute_dtype = 'float32'
  monkeypatch.setattr(base, 'get_config', lambda: copy.deepcopy(exact))
  config = model.ModelConfig(  # none of its matrices is square
    vocab_size=32, num_layers=1, embed_dim=16, num_heads=1, num_kv_heads=1, head_dim=8, mlp_dim=24,
    max_seq_len=16, dtype='float32')  # fmt: skip
  c = settings.get_config()
  c.update(dict(rows=2, seq_len=16, eval_rows=4, warmup=2))
  runner = contest.Runner(name, c, config, np.arange(400, dtype=np.uint16) % 32)
  state = runner.init(jnp.zeros(1, jnp.int32))
  params = jax.tree.map(lambda x: x[0], state[0])
  rng = np.random.default_rng(0)
  grads = jax.tree.map(
    lambda x: jnp.float32(rng.choice([-1, 1], x.shape) * rng.uniform(.5, 1.5, x.shape)), params)
  monkeypatch.setattr(runner, '_loss', lambda params, *_: (
    sum(jax.tree.leaves(jax.tree.map(lambda g, p: jnp.sum(g * p), grads, params))), {}))
  copies = contest.Copies([0], [.5], [.3])
  got = runner.steps(state, copies, 0, 1, lambda step: 1.0)[0]
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


@pytest.mark.slow
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

import copy
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY

from configs import base
from configs import optimizer_contest as settings
from experiments.benchmarks import optimizer_contest as contest
from experiments.benchmarks import trajectories
from smoljax import optim
from smoljax.scaling import comparison

Cell = contest.Cell


def tiny():
  """The contest on a model of few parameters and for few steps."""
  c = settings.get_config()
  c.update(dict(rows=2, seq_len=16, steps=16, copies=2, lengths=(.5, 1.0), tuning=.5,
                tune_documents=2))
  c.model.update(dict(
    vocab_size=32, num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24,
    max_seq_len=16, dtype='float32', scan_layers=True))  # fmt: skip
  return c


def tokens_in(folder):
  rng = np.random.default_rng(0)
  for name, shape in (('tokens', 4000), ('tune', (4, 17)), ('test', (6, 17))):
    np.save(folder / f'{name}.npy', rng.integers(0, 8, shape).astype(np.uint16))


def test_steps_to_a_target_are_read_off_the_curve():
  steps = [100, 200, 400]
  assert contest.steps_to(3.0, steps, [4, 3, 2]) == pytest.approx(200)
  assert contest.steps_to(2.5, steps, [4, 3, 2]) == pytest.approx(math.sqrt(200 * 400))
  assert contest.steps_to(5.0, steps, [4, 3, 2]) == pytest.approx(100)
  assert contest.steps_to(1.0, steps, [4, 3, 2]) == math.inf


def test_tuning_goes_on_until_the_best_is_inside_in_all_three():
  start = Cell(.01, 16, .2)
  first = contest.next_round({}, start, 8)
  assert first[0] == start and len(set(first)) == 8 and set(contest.neighbours(start)) < set(first)
  losses = {cell: 3.0 + math.log2(cell.lr / .02) ** 2 + math.log2(cell.third / .1) ** 2
            for cell in first} | {Cell(1.0, 1, 1.0): math.nan}
  rounds = 1
  while cells := contest.next_round(losses, start, 8):
    assert not set(cells) & set(losses)
    losses |= {cell: 3.0 + math.log2(cell.lr / .02) ** 2 + math.log2(cell.third / .1) ** 2
               for cell in cells}
    rounds += 1
  assert contest.best(losses)[::2] == (.02, .1) and contest.interior(losses) and rounds <= 4
  # No warm-up cannot be halved, no decay cannot be changed.
  assert contest.neighbours(Cell(1.0, 1, 0.0)) == [
    Cell(.5, 1, 0.0), Cell(2.0, 1, 0.0), Cell(1.0, 2, 0.0)]


def curve_rows(seeds, noise, speed=2.0):
  """Rows of a contest in which the challenger is `speed` times as fast, seeds noisy by `noise`."""
  rng, rows = np.random.default_rng(seeds), []
  for name, fast in (('muon', 1.0), ('normuon_heads', speed)):
    rows += [{'kind': 'tune', 'name': name, 'lr': .1, 'warmup': 1, 'third': 0.0, 'loss': 3.0,
              'steps': 200}]
    for seed in range(seeds):
      own = noise * rng.standard_normal()
      rows += [{'kind': 'branch', 'name': name, 'lr': .1, 'warmup': 1, 'third': 0.0, 'seed': seed,
                'steps': steps, 'loss': 5 - .5 * math.log(fast * steps) + own}
               for steps in (100, 150, 200, 300, 400)]
  return rows


def test_a_contestant_twice_as_fast_needs_half_the_steps():
  c = settings.get_config()
  muon, fast = sorted(contest.standings(curve_rows(5, .002), c), key=lambda s: s.name)
  assert (muon.name, muon.ratio) == ('muon', None) and fast.reached == 5 and not fast.inside
  assert math.exp(fast.ratio.mean) == pytest.approx(.5, abs=.01)
  assert fast.ratio.low < math.log(.5) < fast.ratio.high and fast.ratio.p < .001
  assert fast.shorter[400].mean == pytest.approx(-.5 * math.log(2), abs=.01)
  assert '0.50' in contest.leaderboard(curve_rows(5, .002), c)
  # Where the shortest run is below the target already, nobody knows how few steps would do; seeds
  # that the reference has not run are of no pair.
  rows = [r for r in curve_rows(5, .002) if r['kind'] == 'tune' or (
    r['steps'] == 400 and (r['seed'] < 3 or r['name'] != 'muon'))]
  fast = next(s for s in contest.standings(rows, c) if s.name != 'muon')
  assert fast.ratio is None and fast.reached == 3 == len(fast.losses)
  # A seed that diverged is no end of the report.
  rows = [r | {'loss': math.nan} if r['name'] != 'muon' and r.get('seed') == 1 else r
          for r in curve_rows(5, .002)]
  fast = next(s for s in contest.standings(rows, c) if s.name != 'muon')
  assert fast.ratio is None and fast.reached == 4 and fast.shorter[400].p == 1
  assert 'reached by 4 of 5' in contest.leaderboard(rows, c)


@pytest.mark.parametrize('size', ['12m', '124m'])
def test_the_committed_leaderboard_is_of_its_runs(size):
  folder = REPOSITORY / 'experiments/log/contest' / (size if size == '124m' else '')
  board = contest.leaderboard(contest.read(folder), settings.get_config(size))
  assert board == (folder / 'contest.md').read_text()


@pytest.mark.slow
def test_the_interval_covers_what_it_says():
  """Of 95 % t-intervals of three and of eight seeds, 93 to 97 % hold the truth; the percentile
  bootstrap of three, which this report had before, four fifths."""
  rng, c = np.random.default_rng(0), settings.get_config()
  for seeds in (3, 8):
    held, boot, tries = 0, 0, 300
    for _ in range(tries):
      rows = curve_rows(seeds, 0.0, speed=1.5)
      for row in rows:
        if row['kind'] == 'branch':
          row['loss'] += .02 * np.random.default_rng(
            [row['seed'], row['name'] == 'muon', int(rng.integers(1 << 30))]).standard_normal() * (
              row['steps'] == 400 and row['name'] == 'muon')
      ratio = next(s.ratio for s in contest.standings(rows, c) if s.ratio)
      held += ratio.low <= math.log(1 / 1.5) <= ratio.high
      finals = [r['loss'] for r in rows if r['kind'] == 'branch' and r['steps'] == 400
                and r['name'] == 'muon']
      means = np.mean(rng.choice(finals, (500, seeds)), axis=1)
      low, high = np.quantile(means, [.025, .975])
      boot += low <= 5 - .5 * math.log(400) <= high
    assert .92 <= held / tries <= .98
    if seeds == 3:
      assert boot / tries < .87


def test_runs_are_resumed_and_the_best_go_on(tmp_path, monkeypatch):
  c = tiny()
  c.finalists = 1
  tokens_in(tmp_path)
  names, tuned, branched = ['muon', 'muonh', 'adamw'], [], []

  class Fake:
    def __init__(self, contestant, c, data):
      self.contestant = contestant

    def compile(self, copies):
      pass

    def score(self, state, rows):
      return [{'loss': 1.0, 'raw': 1.0}] * c.copies

  def tune(runner, cells, steps):
    tuned.append((runner.contestant.title, cells))
    best = .004 if steps == 8 else .008
    worse = 2.0 if runner.contestant.title == 'AdamW' else 0.0
    return [{'loss': abs(math.log2(cell.lr / best)) + abs(math.log2(cell.warmup / 16)) + worse,
             'raw': 1.0} for cell in cells]

  def branch(runner, cell, lengths, fits):
    branched.append((runner.contestant.title, cell, list(lengths)))
    yield from ((int(16 * length), ({},)) for length in lengths)

  monkeypatch.setattr(contest, 'Runner', Fake)
  monkeypatch.setattr(contest, 'tune', tune)
  monkeypatch.setattr(contest, 'branch', branch)
  assert not contest.run(tmp_path, -1, c, names) and not tuned
  assert contest.run(tmp_path, 1e9, c, names)
  rows = contest.read(tmp_path)
  for name in names[:2]:
    losses = contest.tried(rows, name)
    assert contest.interior(losses) and contest.best(losses)[:2] == (.004, 16)
  assert len(contest.tried(rows, 'adamw')) == c.copies * c.screening  # the worst went no further
  assert [(t, lengths) for t, _, lengths in branched] == [('Muon', [1.0]), ('MuonH', [.5, 1.0])]
  # At full length, 16 steps, twice the rate is better, so the verdict is made there.
  assert {cell.lr for _, cell, _ in branched} == {.008} == {contest.chosen(rows, 'muon').lr}
  assert contest.interior(contest.tried(rows, 'muon', 'final'))
  assert contest.run(tmp_path, 1e9, c, names)  # what is done already is not done again
  assert len(contest.read(tmp_path)) == len(rows) and len(branched) == 2
  assert all(json.loads(line) for line in (tmp_path / 'runs.jsonl').read_text().splitlines())


def test_a_late_contestant_is_held_against_runs_that_are_there(tmp_path, monkeypatch):
  c, branched = tiny(), []
  tokens_in(tmp_path)

  class Fake:
    def __init__(self, contestant, c, data):
      self.title = contestant.title

    def compile(self, copies):
      pass

    def score(self, state, rows):
      return [{'loss': state, 'raw': state}] * c.copies

  monkeypatch.setattr(contest, 'Runner', Fake)
  monkeypatch.setattr(contest, 'tune', lambda runner, cells, steps: [
    {'loss': abs(math.log2(cell.lr / .004)) + abs(math.log2(cell.warmup / 16)), 'raw': 1.0}
    for cell in cells])

  def branch(runner, cell, lengths, fits):
    branched.append((runner.title, list(lengths)))
    yield from ((contest.whole(c.steps * x), 3.0 - x - (runner.title == 'Muon')) for x in lengths)

  monkeypatch.setattr(contest, 'branch', branch)
  assert contest.run(tmp_path, 1e9, c, ['muon'])
  assert contest.run(tmp_path, 1e9, c, ['adamw'])
  assert branched == [('Muon', [1.0]), ('AdamW', [.5, 1.0])]
  late = next(s for s in contest.standings(contest.read(tmp_path), c) if s.name == 'adamw')
  assert late.reached == 0 and late.shorter[16].mean == 1 and late.tuning_runs > 0
  # The other way round Muon lacks its shorter branches alone, and nobody is tuned again.
  c.reference, before = 'adamw', contest.read(tmp_path)
  assert contest.run(tmp_path, 1e9, c, ['muon'], judge=True)
  assert branched[2:] == [('Muon', [.5])]
  assert {r['kind'] for r in contest.read(tmp_path)[len(before):]} == {'branch'}
  # Losses on other tokens are no part of it.
  np.save(tmp_path / 'tokens.npy', np.ones(4000, np.uint16))
  with pytest.raises(SystemExit, match='runs of other tokens'):
    contest.run(tmp_path, 1e9, c, ['adamw'])


@pytest.mark.slow
@pytest.mark.parametrize('name', ['normuonh_heads', 'optax_muon_labelled'])
def test_rates_as_inputs_are_the_optimizers_own(name, monkeypatch):
  """Steps of two copies at rates, decays and initial sizes of their own; gradients are given."""
  c = tiny()
  exact = base.get_config()
  exact.optimizer.muon.compute_dtype = 'float32'
  monkeypatch.setattr(base, 'get_config', lambda: copy.deepcopy(exact))
  rng = np.random.default_rng(0)
  data = contest.Data(np.arange(400, dtype=np.uint16) % 32, *[np.zeros((2, 17), np.uint16)] * 2)
  runner = contest.Runner(c.contestants[name], c, data)
  copies = contest.Copies([0, 0], [Cell(.5, 2, .3), Cell(.25, 1, 1.5)])
  state = runner.start(copies)
  grads = jax.tree.map(
    lambda x: jnp.float32(rng.choice([-1, 1], x.shape[1:]) * rng.uniform(.5, 1.5, x.shape[1:])),
    state[0])
  monkeypatch.setattr(runner, '_loss', lambda params, *_: (
    sum(jax.tree.leaves(jax.tree.map(lambda g, p: jnp.sum(g * p), grads, params))), {}))
  got = runner.steps(state, copies, 0, 1, contest.warm)[0]
  for i, cell in enumerate(copies.cells):
    params = jax.tree.map(lambda x, i=i: x[i], state[0])
    rate = cell.lr * contest.warm(0, cell)
    if name == 'optax_muon_labelled':
      import optax
      own = optax.contrib.muon(
        rate, weight_decay=cell.third, adam_weight_decay=cell.third, consistent_rms=.2,
        adam_b2=.95, muon_weight_dimension_numbers=contest.matrix_dims(params))
    else:
      o = contest.settings_of(c.contestants[name])
      o.update(dict(learning_rate=rate, schedule='constant', warmup_fraction=0.0,
                    weight_decay=0.0, tail_steps=0))
      own = optim.make_optimizer(o, params, 9)[0]
    updates = jax.jit(own.update)(grads, own.init(params), params)[0]
    jax.tree.map(lambda p, u, x, i=i: np.testing.assert_allclose(
      x[i], p + u, rtol=1e-4, atol=1e-5), params, updates, got)
  up = state[0]['blocks']['mlp']['up_DF']
  scaled = jnp.linalg.norm(up[1]) / jnp.linalg.norm(up[0])
  assert scaled == pytest.approx(5.0 if name == 'normuonh_heads' else 1.0, rel=1e-5)


def test_the_seeds_see_each_row_once_in_orders_of_their_own():
  runner = object.__new__(contest.Runner)
  runner.c = settings.get_config()
  size = runner.c.rows * runner.c.seq_len * 3 + 1
  runner.data = contest.Data(np.zeros(size), np.zeros(1), np.zeros(1))
  rows = [np.concatenate([runner._rows(seed, step) for step in range(3)]) for seed in (1, 2)]
  for places in rows:
    assert sorted(places) == list(range(0, size - 1, runner.c.seq_len))
  assert not np.array_equal(*rows)


def test_held_out_documents_are_no_ones_training(tmp_path):
  for i in range(40):
    words = ' '.join(f'word{i}x{j}' for j in range(200 if i % 2 else 70))
    (tmp_path / f'{i}.txt').write_text(words)
  contest.make_tokens([str(tmp_path / '*.txt')], tmp_path / 'out', 280, 10**6,
                      [('tune', 3), ('test', 5)], 500)
  data = contest.Data.load(tmp_path / 'out')
  assert (data.tune.shape, data.test.shape) == ((3, 500), (5, 500))
  starts = {tuple(row[:40]) for row in (*data.tune, *data.test)}
  assert len(starts) == 8
  text = data.train.tobytes()
  assert not any(np.array(s, np.uint16).tobytes() in text for s in starts)


@pytest.mark.slow
def test_trajectories_start_together_and_muon_uses_all_directions(tmp_path, monkeypatch):
  monkeypatch.setattr(trajectories, '_NAMES', ('adamw', 'muon'))
  tokens_in(tmp_path)
  adamw, muon = rows = trajectories.run(tmp_path, 3, 3, tiny())
  assert (adamw['step'], muon['step']) == (3, 3) and 'cos/adamw' not in adamw
  assert 0 < muon['cos/adamw'] < 1 and muon['update'] > .9 > adamw['update']
  trajectories.report(tmp_path, rows, tiny())
  assert 'Muon' in (tmp_path / 'trajectories.md').read_text()


@pytest.mark.slow
def test_a_contest_from_files_to_leaderboard(tmp_path):
  tokens_in(tmp_path)
  c = tiny()
  names = ['muon', 'normuonh_heads']
  assert contest.run(tmp_path, 1e9, c, names, verdict=True)
  rows = contest.read(tmp_path)
  assert {r['kind'] for r in rows} == {'tune', 'final', 'branch'}
  contest.report(tmp_path, c)
  text = (tmp_path / 'contest.md').read_text()
  assert 'NorMuonH' in text and (tmp_path / 'contest.svg').exists()
  c.reference = 'normuonh_heads'
  contest.report(tmp_path, c)
  assert 'loss that NorMuonH' in (tmp_path / 'contest_normuonh_heads.md').read_text()
  assert (tmp_path / 'contest_normuonh_heads.svg').exists()
  assert isinstance(contest.standings(rows, c)[0].losses, dict) and comparison.LEVEL == .95

"""The guard: what is skipped, what stays untouched, and where the ladder leads, killed or not."""

import json
import pathlib
import signal
import subprocess
import sys
import types

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY, on_devices
from helpers.training import leaves, tiny

from configs import base
from experiments import lineage
from experiments.benchmarks import stability
from experiments.engine import config as config_lib
from smoljax import metrics, model, optim
from smoljax.data.batches import Batches, make_stages
from smoljax.data.corpus import open_corpus
from smoljax.train import guard, loop
from smoljax.train.step import Objective, make_train_step
from smoljax.train.telemetry import Diverged

LAYERS = 3


def settings(**changes):
  values = base.get_config().guard.to_dict() | {'window': 16, 'min_steps': 8} | changes
  return types.SimpleNamespace(**values)


@pytest.fixture(scope='module')
def judged():
  """A series of one statistic, the others steady → was each step taken, the state, incidents."""
  run = jax.jit(
    lambda state, stats, c: guard.judge(settings(**dict(c)), state, stats), static_argnums=2
  )

  def judge(series, name='loss', grad_norm=None, **changes):
    state, taken, rows = guard.init(settings(**changes), LAYERS), [], []
    for i, x in enumerate(series):
      stats = {n: jnp.ones(LAYERS if n == 'layer_grad_norm' else ()) for n in guard.RULES}
      if grad_norm:
        stats['grad_norm'] = jnp.float32(grad_norm[i])
      stats[name] = jnp.asarray(x, jnp.float32)
      ok, state, report = run(state, stats, tuple(changes.items()))
      taken.append(bool(ok))
      rows.append(guard.incidents(jax.device_get(report)))
    return taken, jax.device_get(state), rows

  return judge


def noise(n, seed=0):
  return 3 + 0.1 * np.random.default_rng(seed).standard_normal(n)


def test_a_scripted_series(judged):
  """NaN and infinity from the first step on; outliers once there is something to compare with."""
  series = noise(40)
  series[3] = 9.0  # too early to tell
  series[[5, 20]] = np.nan, np.inf
  series[30] = 9.0
  taken, state, rows = judged(series)
  assert [i for i, ok in enumerate(taken) if not ok] == [5, 20, 30]
  assert (state['batches'], state['applied'], state['skips'], state['streak']) == (40, 37, 3, 0)
  assert rows[5] == [{'rule': 'loss', 'statistic': 'nan', 'threshold': 'inf'}]
  assert rows[30][0]['statistic'] == 9.0
  kept = np.delete(series, [5, 20])[-16:]  # the ring as numpy has it, the outlier as its bound
  bound = kept == 9.0
  before = np.delete(series, [5, 20])[-16 - 10 :][:16]
  assert before[-1] != 9.0
  ring = np.sort(state['rings']['loss']['values'])
  kept[bound] = rows[30][0]['threshold']
  np.testing.assert_allclose(ring, np.sort(kept), rtol=1e-5)


def test_the_threshold_is_that_of_numpy(judged):
  series = [*noise(12), 50.0]
  _, _, rows = judged(series)
  past = np.array(series[:12])
  expected = past.mean() + 6 * past.std(ddof=1)
  np.testing.assert_allclose(rows[12][0]['threshold'], expected, rtol=1e-4)


@hypothesis.given(st.lists(st.floats(width=32), min_size=1, max_size=30))
@hypothesis.settings(max_examples=20)
def test_what_is_not_finite_never_enters_the_ring(judged, series):
  taken, state, _ = judged(series)
  assert np.isfinite(state['rings']['loss']['values']).all()
  assert state['rings']['loss']['count'] == np.isfinite(np.float32(series)).sum()
  assert not any(ok for ok, x in zip(taken, np.float32(series), strict=True) if not np.isfinite(x))


def test_a_level_that_has_changed_is_accepted_in_the_end(judged):
  taken, _, _ = judged([*noise(20), *(noise(20) + 0.8)])
  assert not taken[20]
  assert all(taken[-10:])


def test_a_layer_may_neither_explode_nor_vanish(judged):
  calm = np.exp(0.1 * np.random.default_rng(0).standard_normal((14, LAYERS)))
  series = [*calm, calm[0] * [1, 1e-6, 1], calm[1] * [1e6, 1, 1], calm[2] * 0, calm[3]]
  taken, _, rows = judged(series, 'layer_grad_norm')
  assert taken == [True] * 14 + [False] * 3 + [True]
  assert [r[0]['layers'] for r in rows[14:17]] == [[1], [0], [0, 1, 2]]
  low, high = rows[14][0], rows[15][0]
  assert low['statistic'] < low['threshold'] < 1 < high['threshold'] < high['statistic']


def test_switched_off_it_takes_every_step(judged):
  taken, state, _ = judged([np.nan] * 5, enabled=False)
  assert all(taken) and state['applied'] == 5


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'sigma': 0.0}, 'guard.sigma=0.0'),
    ({'min_steps': 17}, 'guard.min_steps=17: give a number from 2 to 16'),
    ({'backoff': 2.0}, 'guard.backoff'),
    ({'inject': 'nun@3'}, "'nun@3' is no fault.*nan, spike, bitflip, lr8x, vanish"),
    ({'inject': 'lr@3'}, "'lr@3' is no fault"),
    ({'inject': 'nan@4,spike'}, "'spike' is no fault"),
  ],
)
def test_nonsense_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    guard.init(settings(**changes), LAYERS)


@pytest.mark.parametrize(('count', 'window', 'values'), [
  (0, 8, []), (3, 8, [1, 2, 3]), (3, 2, [2, 3]), (5, 3, [3, 4, 5]), (9, 8, [6, 7, 8, 9]),
])  # fmt: skip
def test_another_window_keeps_the_newest_values(count, window, values):
  state = guard.init(settings(window=4, min_steps=2), LAYERS)
  for ring in state['rings'].values():
    for i in range(count):
      ring['values'][i % 4] = i + 1
    ring['count'] = np.int32(count)
  for ring in guard.resized(state, window)['rings'].values():
    assert len(ring['values']) == window and ring['count'] == len(values)
    flat = ring['values'].reshape(window, -1)[:, 0]
    assert flat[:len(values)].tolist() == values and not flat[len(values):].any()


def test_faults_are_read():
  assert guard.parse_faults('nan@40, lr8x@100:120') == (
    guard.Fault('nan', 1.0, 40, 41),
    guard.Fault('lr', 8.0, 100, 120),
  )
  assert guard.parse_faults('') == ()


# --- In the train step ---------------------------------------------------------------------------


def steps(inject, batches, optimizer='adamw', **changes):
  """(states after each batch, metrics) of a tiny model, on one device."""
  c = tiny(**{'optimizer.name': optimizer, 'guard.inject': inject, **changes})
  config = config_lib.model_config(c, 64)
  params = model.init(config, jax.random.key(0))
  tx, _ = optim.make_optimizer(c.optimizer, params, 20)
  opt_state = {'optimizer': tx.init(params), 'guard': guard.init(c.guard, config.num_layers)}
  state = {'params': params, 'opt_state': opt_state}
  step = make_train_step(config, tx, c.guard, Objective(chunk=64))
  states, rows = [jax.device_get(state)], []
  for batch in batches:
    state, row = step(state, batch)
    states.append(jax.device_get(state))
    rows.append(jax.device_get(row))
  return states, rows


def random_batches(n, rows=2, length=64):
  rng = np.random.default_rng(0)
  for _ in range(n):
    tokens = rng.integers(2, 64, (rows, length + 1)).astype(np.int32)
    yield {
      'inputs': tokens[:, :-1],
      'targets': tokens[:, 1:],
      'segment_ids': np.ones((rows, length), np.int32),
      'positions': np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
      'source': np.zeros(rows, np.int32),
    }


def assert_same(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
def test_a_skip_touches_nothing(optimizer):
  """NaN gradients in the third batch: as if it had never been drawn, bit for bit."""
  batches = list(random_batches(4))
  states, rows = steps('nan@3', batches, optimizer)
  assert_same(states[2]['params'], states[3]['params'])
  assert_same(states[2]['opt_state']['optimizer'], states[3]['opt_state']['optimizer'])
  without, _ = steps('', batches[:2] + batches[3:], optimizer)
  assert_same(states[-1]['params'], without[-1]['params'])
  assert_same(states[-1]['opt_state']['optimizer'], without[-1]['opt_state']['optimizer'])
  assert [int(r['guard']['skips']) for r in rows] == [0, 0, 1, 1]


def test_without_the_guard_a_nan_is_the_end():
  states, _ = steps('nan@3', random_batches(4), **{'guard.enabled': False})
  assert all(np.isnan(x).any() for x in jax.tree.leaves(states[-1]['params']))


@pytest.mark.parametrize(
  ('fault', 'rules'),
  [
    ('spike@13', {'grad_norm'}),
    ('bitflip@13', {'grad_norm'}),
    ('lr8x@13', {'update_norm'}),
    ('vanish@13', {'layer_grad_norm'}),
  ],
)
def test_every_fault_is_seen(fault, rules):
  states, rows = steps(fault, random_batches(14), **{'guard.window': 16, 'guard.min_steps': 8})
  assert [int(r['guard']['streak']) for r in rows] == [0] * 12 + [1, 0]
  assert rules <= {r['rule'] for r in guard.incidents(rows[12]['guard'])}
  assert_same(states[12]['params'], states[13]['params'])


# --- The ladder ----------------------------------------------------------------------------------

# Steps 5 to 7 of the stream are bad, and again 17 to 19: a rollback, and one that backs off.
LADDER = {
  'train.tokens': 20 * 8 * 64, 'guard.inject': 'nan@5:8,nan@17:20', 'guard.skip_batches': 2,
  'train.eval_every': 100,
}  # fmt: skip


def fit(corpora, directory, log_line=lambda line: None, devices=2, **changes):
  c = tiny(**{**LADDER, **changes})
  with on_devices(devices):
    return loop.train(
      c, config_lib.model_config(c, 64), corpora, str(directory), log_line=log_line)


def decisions(directory):
  events = metrics.read_rows(pathlib.Path(directory) / 'events.jsonl')
  return [e for e in events if e['event'] == 'guard' and e['action'] != 'skip']


@pytest.fixture(scope='module')
def ladder(markov_corpora, tmp_path_factory):
  directory = tmp_path_factory.mktemp('ladder')
  return fit(markov_corpora, directory), directory


def test_the_ladder(ladder):
  result, directory = ladder
  assert result['loss']['final'] < result['loss']['first'] - 0.3
  first, second = decisions(directory)
  assert (first['action'], first['step'], first['to']) == ('rollback', 8, 4)
  # batches 5 to 8, and two more; then step 5 is batch 11
  assert (first['batches_left_out'], first['lr_scale']) == (6, 1.0)
  assert (first['rule'], first['statistic']) == ('grad_norm', 'nan')
  # batches 17 to 19 are the steps 11 to 13; the checkpoint at 12, among them, has to wait
  assert (second['action'], second['step'], second['to']) == ('back off', 13, 8)
  assert second['lr_scale'] == 0.5
  rows = metrics.read_rows(directory / 'metrics.jsonl')
  assert [r['step'] for r in rows if 'stage' in r] == list(range(2, 21, 2))
  assert rows[-2]['guard/lr_scale'] == pytest.approx(0.5 * 1.0002**12)


def test_every_skip_names_its_documents(ladder):
  """The ids in the event are those that the lineage works out for that step and timeline."""
  _, directory = ladder
  events = metrics.read_rows(directory / 'events.jsonl')
  skips = [e for e in events if e['event'] == 'guard' and e['action'] == 'skip']
  assert [e['step'] for e in skips] == [5, 6, 7, 11, 12, 13]
  for e in skips:
    assert {'rule', 'statistic', 'threshold'} <= e['broken'][0].keys()
    assert all(i.startswith(f'{n}-train-') for n, ids in e['documents'].items() for i in ids)
  assert skips[0]['documents'] != skips[1]['documents']


def test_lineage_follows_a_rollback(ladder, markov_corpora, tmp_path):
  """After a rollback to step 4 that left out 6 batches, step 5 saw what would have been step 11."""
  _, directory = ladder
  c = tiny(**LADDER)
  opened = {n: open_corpus(p, 'train', n) for n, p in markov_corpora.items()}
  batches = Batches(
    opened, make_stages(c.train.stages, c.train.steps), rows=c.train.rows,
    seq_len=64, window=64, max_segments=0, seed=0)  # fmt: skip
  stream = iter(batches)
  plans = [stream.next_plan() for _ in range(11)]
  (tmp_path / 'events.jsonl').write_text(json.dumps(decisions(directory)[0]) + '\n')
  # The second stage starts at step 10: the eleventh plan from 4 on is still of the first.
  assert lineage.plan_of(str(tmp_path), batches, 4)[0] == plans[3]
  held = iter(batches)
  held.set_state(batches.after({**_state_at(batches, 4)}, 6))
  assert lineage.plan_of(str(tmp_path), batches, 5)[0] == held.next_plan()
  assert lineage.plan_of(str(tmp_path), batches, 5)[0] != plans[4]


def _state_at(batches, step):
  iterator = iter(batches)
  for _ in range(step):
    iterator.next_plan()
  return iterator.get_state()


@pytest.mark.parametrize('after', ['rollback', pytest.param('back off', marks=pytest.mark.slow)])
def test_a_crash_in_mid_ladder_changes_nothing(ladder, markov_corpora, tmp_path, after):
  def log_line(line):
    if f': {after} to step' in line:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    fit(markov_corpora, tmp_path, log_line)
  fit(markov_corpora, tmp_path)
  for a, b in zip(leaves(ladder[1]), leaves(tmp_path), strict=True):
    np.testing.assert_array_equal(a, b)
  last = [metrics.read_rows(d / 'metrics.jsonl')[-2] for d in (ladder[1], tmp_path)]
  assert last[0]['train/loss'] == last[1]['train/loss']
  assert last[0]['guard/skips'] == last[1]['guard/skips'] == 6


def test_a_run_that_cannot_be_helped_stops(markov_corpora, tmp_path):
  with pytest.raises(Diverged, match=r'grad_norm nan .*events.jsonl names the documents'):
    fit(markov_corpora, tmp_path, **{'guard.inject': 'nan@9:1000'})
  actions = [(e['action'], e.get('to')) for e in decisions(tmp_path)]
  assert actions == [('rollback', 8), ('back off', 4), ('stop', None)]
  assert sorted(p.name for p in (tmp_path / 'checkpoints').glob('[0-9]*')) == ['4']


@pytest.mark.parametrize('mesh', [
  pytest.param(dict(data=2, fsdp=2, tensor=1), marks=pytest.mark.slow), dict(fsdp=2, context=2)])
def test_it_works_on_any_mesh(ladder, markov_corpora, tmp_path, mesh):
  sizes = {'data': 1, 'fsdp': 1, 'tensor': 1, 'context': 1} | mesh
  # Those at 900 are compiled, but not reached.
  faults = LADDER['guard.inject'] + ',bitflip@900,vanish@900,spike@900,lr8x@900'
  changes = {f'mesh.{k}': v for k, v in sizes.items()} | {'guard.inject': faults}
  fit(markov_corpora, tmp_path, devices=4, **changes)
  strip = lambda rows: [(e['action'], e['step'], e['to'], e['position']) for e in rows]
  assert strip(decisions(tmp_path)) == strip(decisions(ladder[1]))
  losses = [
    [r['train/loss'] for r in metrics.read_rows(d / 'metrics.jsonl') if 'train/loss' in r]
    for d in (ladder[1], tmp_path)
  ]
  np.testing.assert_allclose(*losses, rtol=5e-4)


# --- The contest ---------------------------------------------------------------------------------


def test_the_naive_rule_is_poisoned_by_a_nan(judged):
  """Why the guard selects and keeps finite values only: what it is compared with does neither."""
  series = [*noise(12), np.nan, *noise(12, seed=1)]
  state, factors = guard.init(settings(), LAYERS), []
  for x in series:
    stats = {n: jnp.ones(LAYERS if n == 'layer_grad_norm' else ()) for n in guard.RULES}
    factor, state, _ = stability.naive_judge(settings(), state, {**stats, 'loss': jnp.float32(x)})
    factors.append(float(factor))
  assert factors == [1.0] * 12 + [0.0] * 13  # none is taken while NaN is among the last 16
  assert judged(series)[0] == [True] * 12 + [False] + [True] * 12
  assert np.isnan(stability.naive_select(jnp.float32(0), jnp.float32(np.nan), jnp.float32(1)))


def test_steps_to_recover():
  clean = {'losses': dict.fromkeys(range(0, 101, 5), 2.0)}
  result = {'outcome': 'finished', 'steps': 100, 'fault': 'nan'}
  assert stability.steps_to_recover({**result, **clean}, clean) == 0
  hurt = {**clean['losses'], 50: 5.0, 55: 3.0, 60: 2.3}
  assert stability.steps_to_recover({**result, 'losses': hurt}, clean) == 20
  assert stability.steps_to_recover({**result, 'losses': dict.fromkeys(hurt, 3.0)}, clean) is None
  assert stability.steps_to_recover({**result, 'outcome': 'diverged'}, clean) is None


_SCRIPT = """
import json, sys
sys.path[:0] = {paths!r}
import conftest, test_guard
test_guard.fit(json.loads({corpora!r}), {directory!r})
"""


@pytest.mark.slow
@pytest.mark.parametrize('actions', [1, 2])
def test_a_killed_process_goes_on_with_the_ladder(ladder, markov_corpora, tmp_path, actions):
  """A real SIGKILL after the first rollback, or after the second: the same bits in the end."""
  script = _SCRIPT.format(
    paths=[str(REPOSITORY), str(REPOSITORY / 'tests'), str(pathlib.Path(__file__).parent)],
    corpora=json.dumps(markov_corpora),
    directory=str(tmp_path))  # fmt: skip
  process = subprocess.Popen([sys.executable, '-c', script])
  while len(decisions(tmp_path)) < actions:
    assert process.poll() is None, 'ended before its rollback'
  process.send_signal(signal.SIGKILL)
  process.wait(120)
  subprocess.run([sys.executable, '-c', script], check=True, timeout=300)
  for a, b in zip(leaves(ladder[1]), leaves(tmp_path), strict=True):
    np.testing.assert_array_equal(a, b)



def test_while_the_loss_falls_a_large_gradient_is_let_through(judged):
  falling = np.linspace(4, 3, 30)
  for loss, norm, taken in [
    (falling[-1], 12.0, True),  # as measured where a model leaves a plateau: 11 times the mean
    (4.0, 12.0, False),
    (falling[-1], 100.0, False),  # a flipped bit
    (np.nan, 12.0, False),
    (falling[-1], np.inf, False),
  ]:
    assert judged([*falling[:-1], loss], grad_norm=[1.0] * 29 + [norm])[0][-1] == taken


def test_a_gradient_that_grows_as_a_plateau_is_left_is_no_incident(judged):
  """As measured: steady for long, then for some steps at three times that, while the loss falls."""
  plateau = [0.15] * 40
  assert all(judged([*plateau, *[0.45] * 5], name='grad_norm', window=64)[0])
  assert not judged([*plateau, 0.75], name='grad_norm', window=64)[0][-1]

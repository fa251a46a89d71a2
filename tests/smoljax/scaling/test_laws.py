"""Scaling laws against published fits and planted ones; their page and command line."""

import csv
import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest
import scipy.special
import scipy.stats
from conftest import REPOSITORY, run_commands
from hypothesis import given
from hypothesis import strategies as st

from experiments.benchmarks import law_coverage
from smoljax.report import scaling_page
from smoljax.scaling import laws as laws_lib
from smoljax.scaling import tasks as tasks_lib

# Hoffmann et al.'s figure 4, digitised by Besiroglu et al. 2024 (analyzing-chinchilla of
# epoch-research): parameters, FLOPs and loss of 245 runs.
CHINCHILLA = REPOSITORY / 'tests/goldens/chinchilla.csv'
TRUE = laws_lib.Fit(E=1.7, A=420.0, B=900.0, alpha=0.34, beta=0.3)


def planted(noise: float = 0.0, seed: int = 0, law: laws_lib.Fit = TRUE):
  """Runs of seven sizes with four lengths each, on a law."""
  n = np.repeat(np.geomspace(1e7, 6e8, 7), 4)
  d = n * np.tile([5, 20, 60, 200], 7)
  return n, d, law.loss(n, d) * np.exp(noise * np.random.default_rng(seed).standard_normal(28))


# --- Approach 3 -----------------------------------------------------------------------------------


def test_the_chinchilla_refit():
  """Besiroglu et al.'s fit of the same runs without their five worst; and ours with them."""
  rows = list(csv.DictReader(CHINCHILLA.open()))
  n, c, loss = (np.array([float(r[k]) for r in rows]) for k in ('params', 'flops', 'loss'))
  keep = np.argsort(loss)[:-5]
  fit = laws_lib.fit_chinchilla(n[keep], c[keep] / 6 / n[keep], loss[keep])
  np.testing.assert_allclose([fit.A, fit.B], [477.84, 2143.86], rtol=1e-3)
  assert (fit.E, fit.alpha, fit.beta) == pytest.approx((1.81724, 0.34731, 0.36718), abs=5e-5)
  assert fit.objective == pytest.approx(0.0010182740, rel=1e-7)
  # Their published table, by another estimator of the same law.
  assert abs(fit.E / 1.8172 - 1) < 0.005
  assert abs(fit.alpha - 0.3478) < 0.005 and abs(fit.beta - 0.3658) < 0.005
  everything = laws_lib.fit_chinchilla(n, c / 6 / n, loss)
  assert (everything.E, everything.beta) == pytest.approx((1.8913, 0.4530), abs=2e-4)


def test_a_planted_law_is_found():
  fit = laws_lib.fit_chinchilla(*planted())
  for name in laws_lib.NAMES:
    assert getattr(fit, name) == pytest.approx(getattr(TRUE, name), rel=1e-3), name
  n, d = fit.optimal(1e22)
  assert 6 * n * d == pytest.approx(1e22)
  around = np.geomspace(0.5, 2, 101)
  losses = fit.loss(n * around, d / around)
  assert np.argmin(losses) == 50


@given(st.floats(1.0, 3.0), st.floats(0.2, 0.6), st.floats(0.2, 0.6))
def test_optimal_is_where_both_terms_shrink_alike(e, alpha, beta):
  """At the optimum α A / N^α = β B / D^β, whatever the law."""
  fit = laws_lib.Fit(e, 300.0, 700.0, alpha, beta)
  n, d = fit.optimal(3e20)
  assert alpha * 300 * n**-alpha == pytest.approx(beta * 700 * d**-beta, rel=1e-9)
  assert 6 * n * d == pytest.approx(3e20, rel=1e-9)


def test_intervals_cover_the_truth_and_shrink_with_noise():
  wide, narrow = (laws_lib.fit_chinchilla(*planted(noise), bootstrap=60) for noise in (0.004, 4e-4))
  for name in ('E', 'alpha', 'beta'):
    low, high = wide.intervals[name]
    assert low <= getattr(TRUE, name) <= high
    assert narrow.intervals[name][1] - narrow.intervals[name][0] < (high - low) / 2
  again = laws_lib.fit_chinchilla(*planted(0.004), bootstrap=9)
  np.testing.assert_array_equal(again.samples, wide.samples[:9])  # the seed fixes them
  one = laws_lib.predict(wide, 1e9, 2e10)
  assert one.low < TRUE.loss(1e9, 2e10) < one.high


def test_tied_exponents_are_the_over_training_form():
  """L = E + (a m^η + b m^-η) C^-η in C and m = D / N, with η = α / 2 (Gadre et al.)."""
  law = laws_lib.Fit(1.8, 500.0, 800.0, 0.33, 0.33)
  n, d, loss = planted(law=law)
  fit = laws_lib.fit_chinchilla(n, d, loss, tied=True)
  assert fit.alpha == fit.beta == pytest.approx(0.33, rel=1e-4)
  c, m, eta = 6 * n * d, d / n, fit.alpha / 2
  over = fit.E + (fit.A * m**eta + fit.B * m**-eta) * (c / 6) ** -eta
  np.testing.assert_allclose(over, loss, rtol=1e-6)


def test_predictions_refuse_to_go_too_far():
  n, d, loss = planted()
  fit = laws_lib.fit_chinchilla(n, d, loss, recipe='web, AdamW')
  most = float(np.max(6 * n * d))
  laws_lib.plan(fit, 10 * most)
  with pytest.raises(laws_lib.TooFar, match=r'20 times the largest run'):
    laws_lib.plan(fit, 20 * most)
  assert laws_lib.plan(fit, 20 * most, force=True).loss == pytest.approx(
    TRUE.loss(*TRUE.optimal(20 * most)), rel=1e-3)
  with pytest.raises(ValueError, match='says nothing of'):
    laws_lib.predict(fit, 1e9, 2e10, recipe='web, Muon')


def test_the_next_size_is_predicted():
  rows = laws_lib.held_out(*planted(noise=5e-4))
  assert len({n for n, *_ in rows}) == 4 and max(abs(e) for *_, e in rows) < 0.01


@pytest.mark.parametrize(('change', 'message'), [
  (lambda n, d, x: (n[:4], d[:4], x[:4]), 'at least five runs'),
  (lambda n, d, x: (n, d, -x), 'loss must be positive'),
  (lambda n, d, x: (n, d, np.where(n > 1e8, np.nan, x)), 'not nan'),
  (lambda n, d, x: (n, d[1:], x), '27 tokens'),
])
def test_what_determines_no_law_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    laws_lib.fit_chinchilla(*change(*planted()))


def test_two_ladders_are_told_apart():
  other = dataclasses.replace(TRUE, beta=0.42)
  a, b, c = (laws_lib.fit_chinchilla(*planted(1e-3, seed, law), bootstrap=60)
             for seed, law in ((0, TRUE), (3, TRUE), (2, other)))
  _, low, high = laws_lib.differ(a, b)['beta']
  assert low < 0 < high
  gap, low, high = laws_lib.differ(a, c)['beta']
  assert 0 < low < gap < high and abs(gap - 0.12) < 0.04
  with pytest.raises(ValueError, match='bootstrap'):
    laws_lib.differ(TRUE, b)


def test_three_sizes_say_nothing_of_how_wrong_they_are():
  """Their resamples are the sizes themselves: intervals had no width."""
  n, d, loss = (x[:12] for x in planted(0.01))
  fit = laws_lib.fit_chinchilla(n, d, loss, bootstrap=10)
  assert laws_lib.predict(fit, 1e9, 2e10, force=True).high == math.inf
  low, high = fit.intervals['alpha']
  assert (low, high) == (-math.inf, math.inf)
  four = laws_lib.fit_chinchilla(*(x[:16] for x in planted(0.01)), bootstrap=10)
  told = laws_lib.predict(four, 1e9, 2e10, force=True)
  assert math.isfinite(told.high) and told.high - told.low > 4 * four.spread * told.loss


def test_a_resample_that_runs_away_does_not_overflow():
  """Where sizes make next to no difference some resample's α grows without end."""
  n = np.repeat(np.geomspace(1e8, 3e8, 5), 3)
  d = n * np.tile([5, 20, 80], 5)
  loss = 3 + 900 / d**0.3 + 0.05 * np.random.default_rng(11).standard_normal(15)
  fit = laws_lib.fit_chinchilla(n, d, loss, bootstrap=20)
  assert np.isfinite(fit.samples).all()
  assert all(low < high for low, high in fit.intervals.values())


@pytest.mark.slow
def test_predictions_hold_what_they_say(monkeypatch):
  """Of runs with noise, of the next budget, and as the law drifts from what was fitted."""
  rng = np.random.default_rng(0)
  monkeypatch.setattr(law_coverage, 'RESAMPLES', 30)
  c = np.repeat(np.geomspace(1e18, 1e21, 7), 8)
  n = np.concatenate([TRUE.optimal(b)[0] * np.geomspace(0.25, 4, 8) for b in c[::8]])
  d = c / 6 / n
  for drift in (0.0, 0.004):
    loss = TRUE.loss(n, d) * np.exp(0.004 * rng.standard_normal(56) - drift * np.log10(c / 1e18))
    found = law_coverage.measure(scaling_page.Points(n, d, loss, c, ''))
    assert found['predicted'] == 40 and 0.8 <= found['all'] <= 1
    assert found['parameters'] < 0.75 and found['half_width'] < 0.05


# --- Approaches 1 and 2, power laws ---------------------------------------------------------------


def porian(shared_data, name):
  rows = list(csv.DictReader((shared_data / 'scaling' / name).open()))
  keys = ('source', 'dataset', 'hparams', 'warmup', 'decay', 'param_count', 'split')
  out = {}
  for r in rows:
    out.setdefault(tuple(r[k] for k in keys), []).append(r)
  return out


def test_isoflop_of_porian_et_al(shared_data):
  """Exponents of N in C of all 15 ladders, from Kaplan's .83 to Chinchilla's .50."""
  points, published = (porian(shared_data, f'porian_{n}.csv')
                       for n in ('isoflop_points', 'fit_results'))
  assert len(published) == 15
  for key, rows in published.items():
    expected = next(float(r['n_exponent']) for r in rows if r['estimator'] == 'basic')
    columns = [[float(r[k]) for r in points[key]] for k in ('flops', 'n', 'loss', 'tokens')]
    found = laws_lib.isoflop(*columns, resamples=50)
    assert abs(found.params.exponents['flops'] - expected) < 0.005, key


def test_weighted_power_laws_of_porian_et_al(shared_data):
  pairs, published = (porian(shared_data, f'porian_{n}.csv')
                      for n in ('optimal_pairs', 'fit_results'))
  for key, rows in published.items():
    good = [r for r in pairs[key] if r['n']]
    for estimator in ('basic', 'weighted'):
      expected = next(r for r in rows if r['estimator'] == estimator)
      weights = [float(r['n_star_std']) ** -2 for r in good] if estimator == 'weighted' else None
      law = laws_lib.fit_power_law({'flops': [float(r['flops']) for r in good]},
                                   [float(r['n']) for r in good], weights=weights)
      assert law.exponents['flops'] == pytest.approx(float(expected['n_exponent']), abs=2e-4)
      assert law.coefficient == pytest.approx(float(expected['n_coef']), rel=0.01)
      assert law.r2 == pytest.approx(float(expected['n_r2']), abs=2e-3)


@pytest.mark.parametrize('method', ['akima', 'parabola'])
def test_isoflop_of_a_planted_law(method):
  budgets = np.geomspace(1e18, 1e20, 5)
  sizes = np.geomspace(0.2, 5, 9)
  c = np.repeat(budgets, 9)
  n = np.concatenate([TRUE.optimal(b)[0] * sizes for b in budgets])
  found = laws_lib.isoflop(c, n, TRUE.loss(n, c / 6 / n), method=method)
  assert found.params.exponents['flops'] == pytest.approx(TRUE.a, abs=0.005)
  assert found.tokens.exponents['flops'] == pytest.approx(1 - TRUE.a, abs=0.005)
  assert not any(o.edge for o in found.optima)
  low, high = found.params.intervals['flops']
  assert low - 1e-6 <= found.params.exponents['flops'] <= high + 1e-6


def test_an_optimum_at_the_edge_is_none():
  budgets = np.geomspace(1e18, 1e20, 4)
  c = np.repeat(budgets, 5)
  n = np.concatenate([TRUE.optimal(b)[0] * np.geomspace(*((2, 9) if i == 3 else (0.2, 5)), 5)
                      for i, b in enumerate(budgets)])
  found = laws_lib.isoflop(c, n, TRUE.loss(n, c / 6 / n))
  assert [o.edge for o in found.optima] == [False, False, False, True]
  assert found.params.exponents['flops'] == pytest.approx(TRUE.a, abs=0.02)
  with pytest.raises(ValueError, match='add sizes'):
    laws_lib.isoflop(c[10:], n[10:], TRUE.loss(n, c / 6 / n)[10:])


def test_one_size_twice_at_a_budget_is_their_mean():
  budgets = np.geomspace(1e18, 1e20, 4)
  c = np.repeat(budgets, 6)
  n = np.concatenate([TRUE.optimal(b)[0] * np.array([0.2, 0.5, 1, 1, 2, 5]) for b in budgets])
  loss = TRUE.loss(n, c / 6 / n) * np.tile([1, 1, 1.001, 0.999, 1, 1], 4)
  found = laws_lib.isoflop(c, n, loss)
  assert found.params.exponents['flops'] == pytest.approx(TRUE.a, abs=0.02)
  few = np.concatenate([np.arange(24)[:-6], [18, 20]])  # one budget has two sizes
  assert len(laws_lib.isoflop(c[few], n[few], loss[few]).optima) == 3


def test_two_optima_give_an_exponent_without_an_interval():
  law = laws_lib.fit_power_law({'c': [1e18, 1e20]}, [1e8, 1e9])
  assert law.exponents['c'] == pytest.approx(0.5) and law.intervals['c'] == (-math.inf, math.inf)
  x, y = np.geomspace(1, 100, 6), np.array([1.1, 2.0, 4.5, 7.2, 17.0, 30.0])
  found = scipy.stats.linregress(np.log(x), np.log(y))
  half = scipy.stats.t.ppf(0.975, 4) * found.stderr
  assert laws_lib.fit_power_law({'x': x}, y).intervals['x'] == pytest.approx(
    (found.slope - half, found.slope + half))


def test_the_envelope_of_curves():
  n = np.repeat(np.geomspace(1e7, 1e9, 40), 400)
  d = n * np.tile(np.geomspace(0.3, 3000, 400), 40)
  found = laws_lib.envelope(n, d, TRUE.loss(n, d))
  assert found.params.exponents['flops'] == pytest.approx(TRUE.a, abs=0.03)


def test_step_law_on_its_own_grid(shared_data):
  """The published law's learning rate and batch lose .1 % to the best of the grid in the mean."""
  cells = {}
  for r in csv.DictReader((shared_data / 'scaling/steplaw_dense_lr_bs_loss.csv').open()):
    cells.setdefault((float(r['N']), float(r['D'])), []).append(
      (float(r['lr']), float(r['bs']) * 2048, float(r['smooth loss'])))
  regret = []
  for (n, d), rows in cells.items():
    grid = np.array(rows)
    off = np.log(grid[:, :2] / laws_lib.LAWS['step'](n, d))
    nearest = np.argmin(np.sum(off**2, axis=1))
    regret.append(grid[nearest, 2] / grid[:, 2].min() - 1)
  assert len(cells) == 17 and np.mean(regret) < 0.0015 and max(regret) < 0.004


def test_a_law_of_learning_rates_is_found():
  rng = np.random.default_rng(0)
  n, d = 10 ** rng.uniform(7, 9, 40), 10 ** rng.uniform(9, 11, 40)
  law = laws_lib.fit_power_law({'n': n, 'd': d}, 1.79 * n**-0.713 * d**0.307
                               * np.exp(0.05 * rng.standard_normal(40)))
  for name, exponent in (('n', -0.713), ('d', 0.307)):
    low, high = law.intervals[name]
    assert low < exponent < high < low + 0.1
  assert law(n=1e8, d=1e10) == pytest.approx(1.79 * 1e8**-0.713 * 1e10**0.307, rel=0.05)


# --- Repeated data, plans -------------------------------------------------------------------------


def test_data_constrained_runs_of_muennighoff_et_al(shared_data):
  """Their constants give their objective and R²; a lower objective is elsewhere, far away."""
  rows = list(csv.DictReader((shared_data / 'scaling/datablations_182_runs.csv').open()))
  columns = [np.array([float(r[k]) for r in rows])
             for k in ('params', 'tokens', 'unique_tokens', 'val_loss')]
  alpha = 0.3526596
  base = laws_lib.Fit(math.exp(0.6254804), math.exp(6.255414), math.exp(7.3049974), alpha, alpha)
  theirs = laws_lib.DataConstrained(base, 15.3878, 5.3097).loss(*columns[:3])
  loss = columns[3]
  objective = scipy.special.huber(1e-3, np.log(theirs / loss)).sum()
  assert objective == pytest.approx(0.01582594, rel=1e-6)
  rest = lambda fitted: 1 - np.sum((fitted - loss) ** 2) / np.sum((loss - loss.mean()) ** 2)
  assert rest(theirs) == pytest.approx(0.7722, abs=1e-4)
  assert rest(base.loss(*columns[:2])) == pytest.approx(0.4452, abs=1e-4)
  ours = laws_lib.fit_data_constrained(*columns, base, bootstrap=30)
  assert ours.objective == pytest.approx(0.0158047, rel=1e-5)
  assert (ours.repeat_tokens, ours.repeat_params) == pytest.approx((95.4, 1.71), rel=0.01)
  low, high = ours.intervals['repeat_tokens']
  assert high / low > 3  # weakly identified, and it says so


def test_tokens_that_do_not_repeat_are_worth_themselves():
  law = laws_lib.DataConstrained(TRUE, 15.0, 5.0)
  n, d = 1e7, 1e10  # few parameters for so many tokens
  assert law.loss(n, d, d) == pytest.approx(TRUE.loss(n, d))
  once, twice, often = (law.loss(n, d, d / k) for k in (1, 2, 100))
  assert once < twice < often < law.loss(n, d / 100, d / 100)


def test_a_lifetime_of_use_asks_for_a_smaller_model():
  trained = laws_lib.plan(TRUE, 1e22)
  idle = laws_lib.plan_lifetime(TRUE, trained.loss, 0)
  assert (idle.params, idle.tokens) == pytest.approx((trained.params, trained.tokens), rel=1e-3)
  used = laws_lib.plan_lifetime(TRUE, trained.loss, 1e13)
  assert used.params < 0.7 * idle.params and used.tokens > idle.tokens
  assert TRUE.loss(used.params, used.tokens) == pytest.approx(trained.loss)
  total = lambda n, d: 6 * n * d + 2 * n * 1e13
  assert total(used.params, used.tokens) < total(idle.params, idle.tokens)
  with pytest.raises(ValueError, match='the law ends at E'):
    laws_lib.plan_lifetime(TRUE, 1.69, 1e12)


# --- The page -------------------------------------------------------------------------------------


def write_points(path: pathlib.Path) -> pathlib.Path:
  n, d, loss = planted(2e-4)
  with path.open('w', newline='') as f:
    csv.writer(f).writerows([('params', 'tokens', 'loss'), *zip(n, d, loss, strict=True)])
  return path


def test_the_page_of_a_csv(tmp_path):
  points = scaling_page.read(str(write_points(tmp_path / 'points.csv')))
  page, fit = scaling_page.write(points, str(tmp_path / 'out'), bootstrap=20)
  html = pathlib.Path(page).read_text()
  assert '28 runs of 7 sizes' in html and 'C = 6 N D' in html and 'Predicting the next size' in html
  rows = list(csv.DictReader((tmp_path / 'out/fit.csv').open()))
  assert [r['parameter'] for r in rows] == [*laws_lib.NAMES, 'a']
  assert float(rows[3]['value']) == fit.alpha
  plans = list(csv.DictReader((tmp_path / 'out/plans.csv').open()))
  assert [float(r['flops']) / fit.most_flops for r in plans] == pytest.approx([1, 3, 10])


def test_runs_of_a_folder(tmp_path):
  for i, (n, d, loss) in enumerate(zip(*planted(), strict=True)):
    folder = tmp_path / f'points/{i}'
    folder.mkdir(parents=True)
    (folder / 'summary.json').write_text(json.dumps({
      'parameters': int(1.5 * n), 'non_embedding_parameters': int(n), 'tokens': {'trained': int(d)},
      'loss': {'validation': loss}, 'flops': 6.5 * n * d}))
  (tmp_path / 'unfinished').mkdir()
  (tmp_path / 'unfinished/summary.json').write_text('{"loss": {"first": 3.0}}')
  points = scaling_page.read(str(tmp_path))
  assert len(points.loss) == 28 and 'without embeddings' in points.convention
  assert scaling_page.read(str(tmp_path), embedding=True).params.min() == pytest.approx(1.5e7)
  assert laws_lib.fit_chinchilla(points.params, points.tokens, points.loss).alpha == pytest.approx(
    0.34, rel=0.01)


@pytest.mark.slow
def test_runs_that_do_not_tell_the_floor_are_called_so(tmp_path):
  n, d, _ = (x[12:] for x in planted())  # four sizes: a fit takes long where nothing tells E
  loss = {True: 3 + 500 / n**0.4 + 900 / d**0.35, False: 9 / n**0.02 + 90 / d**0.16}
  for told, values in loss.items():
    points = scaling_page.Points(n, d, values, 6 * n * d, '')
    page, _ = scaling_page.write(points, str(tmp_path / str(told)), bootstrap=0)
    assert ('The runs do not tell E' in pathlib.Path(page).read_text()) == (not told)


def test_a_run_is_predicted_unseen(tmp_path):
  """Runs that laws.json calls 'predict' are not fitted; those it does not name are not read."""
  laws = {}
  for i, (n, d, loss) in enumerate(zip(*planted(1e-4), strict=True)):
    folder = tmp_path / f'points/{i}'
    folder.mkdir(parents=True)
    laws[str(i)] = 'predict' if i == 27 else 'fit'
    if i == 3:
      del laws['3']
      loss = 9.0  # a run whose rate had not decayed, say
    (folder / 'summary.json').write_text(json.dumps({
      'parameters': int(n), 'non_embedding_parameters': int(n), 'tokens': {'trained': int(d)},
      'loss': {'validation': loss}, 'flops': 6 * n * d}))
  (tmp_path / 'laws.json').write_text(json.dumps(laws))
  points, said = scaling_page.read(str(tmp_path)), []
  assert len(points.loss) == 26 and points.unseen[0][0] == '27'
  scaling_page.write(points, str(tmp_path / 'out'), bootstrap=20, log_line=said.append)
  row = next(csv.DictReader((tmp_path / 'out/unseen.csv').open()))
  assert abs(float(row['error'])) < 2e-3 and 3 < float(row['ratio']) < 4
  assert float(row['low']) <= float(row['predicted']) <= float(row['high'])
  assert said[0].startswith('27: predicted 2.') and 'times the compute' in said[0]


def test_of_rows_along_a_run_the_last_is_the_run(tmp_path):
  path = tmp_path / 'runs.csv'
  path.write_text('run,params,tokens,loss\na,1e6,2e8,3\na,1e6,1e8,4\nb,2e6,1e8,3.5\n')
  assert list(scaling_page.read(str(path)).loss) == [3, 3.5]
  assert len(scaling_page.read(str(path), curves=True).loss) == 3


@pytest.mark.parametrize(('content', 'message'), [
  ('a,b\n1,2\n', 'columns for loss'), ('params,tokens,loss\n', 'no rows'),
  ('params,tokens,loss\n1,x,2\n', "line 2: tokens is 'x', no number above 0"),
  ('params,tokens,loss\n1,2,3\n1,2,nan\n', "line 3: loss is 'nan', no number above 0"),
  ('params,tokens,loss\n1,2\n', 'line 2: loss is None, no number above 0'),
  ('', 'no rows'), ('params,params,tokens,loss\n1,2,3,4\n', 'two columns params'),
  ('params,tokens,loss\n1e6,2e7,3,456\n', 'line 2: 4 cells under 3 columns'),
  ('params;tokens;loss\n1e6;2e7;3,456\n', "line 2: loss is '3,456', no number above 0"),
  ('params,tokens,loss\n"1,000,000",2e7,3\n', "line 2: params is '1,000,000', no number above 0"),
  ('params,tokens,loss\n1.5,2e9,3\n', r'params has 1.5 to 1.5: .*not millions'),
])  # fmt: skip
def test_a_bad_csv_is_said(tmp_path, content, message):
  path = tmp_path / 'points.csv'
  path.write_text(content)
  with pytest.raises(ValueError, match=message):
    scaling_page.read(str(path))
  with pytest.raises(ValueError, match='no finished run'):
    scaling_page.read(str(tmp_path))


def test_tables_of_other_people_are_read(tmp_path):
  """With a mark of byte order, semicolons, tabs, spaces, large letters, rows twice."""
  path = tmp_path / 'points.csv'
  plain = 'params,tokens,loss\n1e6,2e7,4\n2e6,2e7,3.5\n'
  for content in (plain, '\ufeff' + plain, plain.replace(',', ';'), plain.replace(',', '\t'),
                  plain.replace('params,tokens', ' Params , TOKENS'), plain.replace('\n', '\r\n'),
                  plain + '1e6,2e7,4\n', plain.replace('\n', ',\n'), plain + '\n\n'):
    path.write_bytes(content.encode())
    points = scaling_page.read(str(path))
    assert points.params.tolist() == [1e6, 2e6] and points.loss.tolist() == [4, 3.5], content
    assert ('twice' in points.convention) == (content.count('1e6') == 2)
  for encoding in ('utf-16', 'latin-1'):
    path.write_bytes(('größe,' + plain).encode(encoding))
    with pytest.raises(ValueError, match='is no text in UTF-8'):
      scaling_page.read(str(path))


def test_a_law_by_which_nothing_is_gained_plans_nothing(tmp_path):
  path = tmp_path / 'points.csv'
  path.write_text('params,tokens,loss\n' + ''.join(
    f'{n},{n * k},2.5\n' for n in (1e6, 2e6, 4e6, 8e6) for k in (20, 40)))
  with pytest.raises(ValueError, match='no size is best'):
    scaling_page.write(scaling_page.read(str(path)), str(tmp_path / 'out'), bootstrap=8)


@pytest.mark.slow
def test_the_command(tmp_path):
  """What the library knows is asked by flags: tied laws, predictions, lifetimes, curves, tasks."""
  points = write_points(tmp_path / 'points.csv')
  rows = list(csv.DictReader(points.open()))
  bits = [0.8 * float(r['loss']) - 0.7 for r in rows]
  for r, x in zip(rows, bits, strict=True):
    r |= {'experiment': 'a', 'quiz bits': x, 'quiz': 1 - 0.75 / (1 + math.exp(-3 * (x - 1)))}
  rows.append(rows[0] | {'experiment': 'b'})
  wide = tmp_path / 'wide.csv'
  with wide.open('w', newline='') as f:
    out = csv.DictWriter(f, list(rows[0]))
    out.writeheader()
    out.writerows(rows)
  command = ['experiments.report', f'--output={tmp_path}/out', f'--scaling={points}']
  asked = ['experiments.report', f'--output={tmp_path}/all', f'--scaling={wide}']
  far, every = run_commands(
    [*command, '--flops=1e26'],
    [*asked, '--rows=experiment=a', '--tied', '--predict=1e9:2e10', '--use=1e12', '--envelope',
     '--flops=1e26', '--force', '--task=quiz:quiz bits'])
  assert every.returncode == 0 and 'alpha = 0.3' in every.stdout, every.stderr
  assert far.returncode == 2 and 'times the largest run' in far.stderr
  with pytest.raises(ValueError, match='one of a, b'):
    scaling_page.read(str(wide))
  told = next(csv.DictReader((tmp_path / 'all/predictions.csv').open()))
  assert float(told['loss']) == pytest.approx(TRUE.loss(1e9, 2e10), rel=0.02)
  assert float(told['low']) < float(told['loss']) < float(told['high'])
  fit = {r['parameter']: float(r['value']) for r in csv.DictReader(
    (tmp_path / 'all/fit.csv').open())}
  assert fit['alpha'] == fit['beta']
  task = next(csv.DictReader((tmp_path / 'all/tasks.csv').open()))
  truth = 1 - 0.75 / (1 + math.exp(-3 * (0.8 * TRUE.loss(1e9, 2e10) - 0.7 - 1)))
  assert float(task['accuracy']) == pytest.approx(truth, abs=0.05)
  life = next(csv.DictReader((tmp_path / 'all/lifetimes.csv').open()))
  assert 0 < float(life['saved']) < 1 and (tmp_path / 'all/envelope.csv').exists()
  rates = next(csv.DictReader((tmp_path / 'all/rates.csv').open()))
  assert float(rates['step: rate']) == pytest.approx(laws_lib.LAWS['step'](
    float(rates['params']), float(rates['tokens']))[0])


def test_a_table_says_its_budgets_repeats_and_rates(tmp_path):
  """The budget column of a table is its own count of compute: N ∝ C^-.001 where 6 N D was taken."""
  budgets = np.repeat(np.geomspace(1e18, 1e20, 5), 5)
  n = np.concatenate([TRUE.optimal(b)[0] * np.geomspace(0.25, 4, 5) for b in budgets[::5]])
  d = budgets / 6 / n / (1 + 5e7 / n)  # attention and head are counted too: 6 N D differs by size
  path, said = tmp_path / 'runs.csv', []
  with path.open('w', newline='') as f:
    out = csv.writer(f)
    out.writerow(['params', 'tokens', 'loss', 'budget', 'unique_tokens', 'lr'])
    for i, (b, m, t) in enumerate(zip(budgets, n, d, strict=True)):
      for rate, worse in ((1e-3, 0.02), (2e-3, 0.0)):
        out.writerow([m, t, TRUE.loss(m, t) + worse, b, t, rate])
      if i % 6 == 0:
        of = laws_lib.DataConstrained(TRUE, 15.0, 5.0).loss(m, t, t / 8)
        out.writerow([m, t, float(of), b, t / 8, 2e-3])
  points = scaling_page.read(str(path))
  page, fit = scaling_page.write(points, str(tmp_path / 'out'), bootstrap=10, log_line=said.append)
  assert fit.alpha == pytest.approx(TRUE.alpha, rel=0.02)  # of what repeats nothing, at best rates
  optima = list(csv.DictReader((tmp_path / 'out/optima.csv').open()))
  assert [float(o['flops']) for o in optima] == pytest.approx(list(budgets[::5]))
  (words,) = [x for x in said if x.startswith('best size by budget')]
  assert 0.3 < float(words.split('N ∝ C^')[1].split()[0]) < 0.6
  (words,) = [x for x in said if x.startswith('repeated data: R*')]
  assert float(words.split()[-1]) > 0.98
  html = pathlib.Path(page).read_text()
  assert 'What epochs are worth' in html and 'Tuned alike?' in html
  assert any('at 25 of 25 sizes and lengths the best learning rate' in x for x in said)


def test_a_sigmoid_of_bits_is_found():
  rng = np.random.default_rng(0)
  bits = np.linspace(0.6, 1.6, 40)
  accuracy = 0.95 - 0.68 / (1 + np.exp(-6 * (bits - 1.0)))
  found = tasks_lib.fit_sigmoid(bits, accuracy + 0.005 * rng.standard_normal(40))
  np.testing.assert_allclose(found(bits), accuracy, atol=0.015)
  assert found.spread == pytest.approx(0.005, rel=0.5)
  with pytest.raises(ValueError, match='needs six'):
    tasks_lib.fit_sigmoid(bits[:5], accuracy[:5])


def test_an_accuracy_told_beyond_the_runs_is_within_its_interval():
  """Of nominal 90 % intervals .15 bits beyond eight points; the points' spread alone holds .67."""
  rng, held, narrow, tries = np.random.default_rng(0), 0, 0, 40
  of = lambda bits: 1 - 0.75 / (1 + np.exp(-3 * (bits - 1.0)))
  for _ in range(tries):
    bits = np.sort(rng.uniform(0.8, 2.0, 8))
    found = tasks_lib.fit_sigmoid(bits, of(bits) + 0.01 * rng.standard_normal(8))
    off = abs(of(0.65) + 0.01 * rng.standard_normal() - float(found(0.65)))
    held += off <= found.half(0.65)
    narrow += off <= 1.645 * found.spread
  assert held / tries >= 0.8 > narrow / tries


def make_ladder(folder, c=1.0, **of_last):
  """Runs that follow a law, with their configs; those of the last one can be changed."""
  rows = list(zip(*planted(1e-4), strict=True))
  for i, (n, d, loss) in enumerate(rows):
    run = folder / f'points/{i}'
    run.mkdir(parents=True)
    (run / 'summary.json').write_text(json.dumps({
      'parameters': int(n), 'non_embedding_parameters': int(n), 'tokens': {'trained': int(d)},
      'loss': {'validation': loss * c}, 'flops': 6 * n * d}))
    config = {'web': {'filters': 'docs'}, 'corpora': '', 'optimizer': {
      'name': 'adamw', 'learning_rate': 1e-3 / (i + 1)}, 'model': {'embed_dim': i, 'norm': 'rms'}}
    if i == len(rows) - 1:
      for key, value in of_last.items():
        config[key] |= value
    (run / 'config.json').write_text(json.dumps(config))
  return folder


def test_a_law_is_not_lent_to_another_recipe(tmp_path):
  assert scaling_page.read(str(make_ladder(tmp_path / 'same'))).other_recipes == ()
  other = make_ladder(tmp_path / 'other', optimizer={'name': 'muon'}, web={'filters': 'none'})
  points, said = scaling_page.read(str(other)), []
  ((name, what),) = points.other_recipes
  assert name == '27'
  assert what == "web.filters='none', not 'docs'; optimizer.name='muon', not 'adamw'" or set(
    what.split('; ')) == {"web.filters='none', not 'docs'", "optimizer.name='muon', not 'adamw'"}
  page, _ = scaling_page.write(points, str(tmp_path / 'out'), bootstrap=0, log_line=said.append)
  assert '27 is of another corpus or recipe' in pathlib.Path(page).read_text()
  assert said[0].startswith('27 is of another recipe')


@pytest.mark.slow
def test_two_ladders_are_compared(tmp_path):
  """The same law twice is not told apart; another exponent of N is."""
  n, d, loss = planted(1e-3)
  steep = 1.7 + 5000 / n**0.5 + 1000 / d**0.31
  made = lambda loss: scaling_page.Points(n, d, loss, 6 * n * d, '')
  for other, expected in ((planted(1e-3, seed=1)[2], 'False'), (steep, 'True')):
    said = []
    scaling_page.write(made(loss), str(tmp_path / expected), bootstrap=100, against=made(other),
                       log_line=said.append)
    rows = {r['exponent']: r for r in csv.DictReader(
      (tmp_path / expected / 'against.csv').open())}
    assert rows['alpha']['differ'] == expected, said
  assert any(line.startswith('alpha: ') and line.endswith('they differ') for line in said)


def test_budgets_that_end_with_a_whole_batch_are_one():
  flops = np.array([1e12, 1.004e12, 0.998e12, 2.01e12, 1.99e12, 4e12])
  found = scaling_page._budgets(flops)
  assert len(set(found[:3])) == len(set(found[3:5])) == 1 and len(set(found)) == 3
  np.testing.assert_allclose(found, flops, rtol=0.01)

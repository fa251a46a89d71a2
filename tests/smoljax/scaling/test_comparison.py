"""Intervals cover what they say, at three seeds too; power, Holm, pairing by their references."""

import math

import numpy as np
import pytest
import scipy.stats

from smoljax.scaling import comparison

TRIES = 1500


@pytest.mark.parametrize('n', [3, 5, 8])
def test_a_95_percent_interval_covers_95_of_100_and_a_bootstrap_does_not(n):
  """Binomial error of a share of .95 of 1,500 is .006."""
  x = np.random.default_rng(n).standard_normal((TRIES, n))
  found = [comparison.interval(list(row)) for row in x]
  covered = np.mean([abs(mean) <= half for mean, half in found])
  assert covered == pytest.approx(0.95, abs=0.017)
  draws = np.random.default_rng(0).integers(n, size=(500, n))
  low, high = np.percentile(x[:, draws].mean(axis=2), [2.5, 97.5], axis=1)
  assert np.mean((low <= 0) & (high >= 0)) < {3: 0.78, 5: 0.86, 8: 0.91}[n]


def test_differences_cover_too_paired_or_not():
  rng = np.random.default_rng(0)
  paired = welch = 0
  for _ in range(TRIES):
    seeds = rng.standard_normal(4)
    a, b = (dict(enumerate(seeds + 0.5 * rng.standard_normal(4))) for _ in range(2))
    found = comparison.difference(a, b)
    paired += found.low <= 0 <= found.high
    c = {f'other {i}': x for i, x in enumerate(2 * rng.standard_normal(6))}
    found = comparison.difference(a, c)
    welch += found.low <= 0 <= found.high and not found.paired
  assert paired / TRIES == pytest.approx(0.95, abs=0.017)
  assert welch / TRIES == pytest.approx(0.95, abs=0.017)


def test_differences_are_scipys():
  a, b = {0: 3.1, 1: 3.3, 2: 3.25, 3: 3.2}, {0: 3.0, 1: 3.25, 2: 3.15, 3: 3.16}
  test = scipy.stats.ttest_rel(list(b.values()), list(a.values()))
  found = comparison.difference(a, b)
  assert found.paired and found.n == 4 and found.p == pytest.approx(test.pvalue)
  assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()))
  assert found.correlation == pytest.approx(np.corrcoef(list(a.values()), list(b.values()))[0, 1])
  c = {s + 10: x for s, x in b.items()} | {20: 2.9}
  test = scipy.stats.ttest_ind(list(c.values()), list(a.values()), equal_var=False)
  found = comparison.difference(a, c)
  assert not found.paired and found.n == 4 and found.p == pytest.approx(test.pvalue)
  assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()))


def test_a_seed_that_one_side_lacks_leaves_the_others_paired():
  a = {seed: 3 + seed for seed in range(5)}  # seeds differ by more than the change
  b = {seed: 3 + seed - 0.1 - 0.01 * seed for seed in range(4)}
  found = comparison.difference(a, b)
  assert found.paired and found.n == 4 and found.high < 0


def test_what_could_have_been_seen():
  """In standard deviations of a run, 80 % of tries at 5 %: simulated, and of the spec's table."""
  for k, apart, half, most in ((3, 3.07, 3.27, 1.46), (5, 2.02, 1.68, .75), (8, 1.51, 1.16, .52)):
    assert comparison.detectable(math.sqrt(2 / k), 2 * k - 2) == pytest.approx(apart, abs=0.02)
    for rho, expected in ((0.5, half), (0.9, most)):
      error = math.sqrt(2 * (1 - rho) / k)
      assert comparison.detectable(error, k - 1) == pytest.approx(expected, abs=0.02)
  x = np.random.default_rng(0).standard_normal((20_000, 5)) + comparison.detectable(5**-0.5, 4)
  seen = np.mean(scipy.stats.ttest_1samp(x, 0, axis=1).pvalue < 0.05)
  assert seen == pytest.approx(0.8, abs=0.01)


def test_holm_of_a_published_example():
  """p.adjust(c(.01, .04, .03, .005), "holm") of R."""
  assert comparison.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_five_equal_arms_win_by_luck_in_one_of_twenty_contests():
  """Against one baseline, three seeds: some arm is 'apart' in 19 % if each counts for itself."""
  rng, alone, together = np.random.default_rng(1), 0, 0
  for _ in range(400):
    base, *arms = (dict(enumerate(rng.standard_normal(3))) for _ in range(6))
    family = [comparison.difference(base, arm) for arm in arms]
    alone += any(e.p < 0.05 for e in family)
    together += 'apart' in comparison.judge(family)
  assert alone / 400 > 0.13 and together / 400 < 0.075


def test_two_runs_give_no_verdict():
  """'-.28 ± .48, within noise' stood beside '.31 times the tokens'."""
  two = comparison.difference({0: 4.0, 1: 4.1}, {0: 3.7, 1: 3.8})
  assert comparison.judge([two, comparison.estimate([1.0])]) == [
    'no verdict: n = 2', 'no verdict: n = 1']
  sure = comparison.difference(*({i: x + k * i for i in range(3)} for x, k in ((4, 1), (3, 1.01))))
  assert comparison.judge([two, sure])[1] == 'apart'  # what gets no verdict does not count


def test_no_verdict_where_noise_is_not_known():
  """A run that diverged, and seeds that change nothing (a score in steps, the same data thrice)."""
  good = {0: 3.0, 1: 3.1, 2: 3.05}
  for wrong in (math.nan, math.inf):
    for other in ({**good, 2: wrong}, {5: 3.0, 6: 3.1, 7: wrong}):
      found = comparison.difference(good, other)
      assert math.isnan(found.mean) and found.p == 1 and found.half == found.detectable == math.inf
      assert comparison.judge([found]) == ['no verdict: a run has no finite figure']
  same = comparison.estimate([0.005] * 3)
  sure = comparison.difference(good, {s: x + 1 + s / 100 for s, x in good.items()})
  assert comparison.judge([same, sure]) == ['no verdict: seeds make no difference', 'apart']
  ratio = comparison.log_ratio(good, {s: 2 * x for s, x in good.items()})
  assert comparison.judge([ratio]) == ['no verdict: seeds make no difference']
  assert comparison.judge([comparison.difference(good, good)]) == ['within noise']


def test_ratios_are_compared_in_logarithms():
  a = {0: 100.0, 1: 120.0, 2: 90.0}
  found = comparison.log_ratio(a, {s: 0.7 * x for s, x in a.items()})
  assert math.exp(found.mean) == pytest.approx(0.7) and found.half == pytest.approx(0, abs=1e-9)
  with pytest.raises(ValueError, match='1 of 3 values'):
    comparison.log_ratio(a, {**a, 2: math.inf})

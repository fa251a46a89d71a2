"""Mixtures: designs keep their constraints, laws find what was planted, decisions hold."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.spatial
import scipy.special

from smoljax.scaling import laws, mixtures
from smoljax.scaling.mixtures import Space

SIZES = np.array([4e6, 2e6, 1e6, 5e5, 3e5, 2e5])
NAMES = list('abcdef')
SPACE = Space(NAMES, SIZES, 5e6, max_epochs=4.0, floors=((('e', 'f'), 0.05),))
RNG = np.random.default_rng(0)
GAIN = RNG.uniform(0, 0.05, (6, 6)) + np.diag(RNG.uniform(0.2, 0.5, 6))
RATE = np.exp(RNG.uniform(np.log(3), np.log(30), (6, 6)))


def truth(tried):
  """Each domain learns from each corpus, its own the most, and ever less of the same."""
  return 1.2 + np.einsum('dm,ndm->nd', GAIN, np.exp(-RATE * tried[:, 0, None, :]))


@pytest.fixture(scope='module')
def swarm():
  tried = np.concatenate([mixtures.design(SPACE, 44, strength=(3.0, 30.0)), [SPACE.natural] * 4])
  noise = np.random.default_rng(1).normal(0, 0.003, (48, 6))
  return tried, truth(tried) + noise, [*range(44), *['natural'] * 4]


def test_designs_keep_caps_floors_and_phases():
  space = Space(NAMES, SIZES, 5e6, np.array([0.8, 0.2]), 4.0, ((('e', 'f'), 0.05),))
  found = mixtures.design(space, 50, seed=3)
  assert found.shape == (50, 2, 6) and (found >= 0).all()
  assert np.allclose(found.sum(axis=-1), 1)
  assert (space.epochs(found) <= 4 + 1e-6).all()
  assert (space.overall(found)[:, 4:].sum(axis=1) >= 0.05).all()
  assert (found == mixtures.design(space, 50, seed=3)).all()
  assert np.std(found[:, 0, 0]) > 0.05


def test_unimax_gives_alike_up_to_the_cap():
  share = mixtures.unimax(SIZES, 5e6, 2.0)
  # 4e5 of f, 6e5 of e, 1e6 of d and of each other: left / domains left, by hand.
  assert np.allclose(share * 5e6, [1e6, 1e6, 1e6, 1e6, 6e5, 4e5])


def test_what_repeats_are_worth():
  """Muennighoff et al.'s published R_D*: D' / U at 2, 4, 8, 16, 40 epochs."""
  epochs = np.array([1, 2, 4, 8, 16, 40])
  worth = laws.effective_tokens(epochs, np.ones(6), mixtures.REPEAT_TOKENS)
  assert np.allclose(worth, [1, 1.97, 3.73, 6.62, 10.6, 15.2], rtol=5e-3)
  assert laws.effective_tokens(0.0, 0.0, mixtures.REPEAT_TOKENS) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize('form, settings', [
  ('saturating', ()),
  ('kernel', [dict(per='weights', gamma=1.0, small=0.004, ridge=0.01, length=0.3, noise=0.03)] * 6),
])
def test_the_planted_law_is_found_and_labels_matter(swarm, form, settings):
  tried, scores, groups = swarm
  law = mixtures.fit(SPACE, form, tried, scores, groups, settings)
  unseen = mixtures.design(SPACE, 40, seed=9, strength=(3.0, 30.0))
  found = mixtures.quality(law(unseen).mean(axis=1), truth(unseen).mean(axis=1))
  assert found['spearman'] > 0.95 and found['rmse'] < 0.01
  order = np.random.default_rng(2).permutation(48)
  wrong = mixtures.fit(SPACE, form, tried, scores[order], [groups[i] for i in order], settings)
  assert abs(mixtures.quality(wrong(unseen).mean(axis=1), truth(unseen).mean(axis=1))[
    'spearman']) < 0.6


def test_the_kernel_is_a_gaussian_process_beside_a_log_linear_law():
  """Against scipy's general Matérn function, its process and its trend solved apart."""
  x, z = RNG.dirichlet(np.ones(4), 12), RNG.dirichlet(np.ones(4), 5)
  y = RNG.normal(1.5, 0.2, 12)
  found = mixtures.FORMS['kernel'].fit(x, y, small=0.01, ridge=0.1, length=0.3, noise=0.05)(z)
  a, b = np.log(1 + x / 0.01), np.log(1 + z / 0.01)
  trend = np.linalg.lstsq(np.vstack([a - a.mean(0), np.sqrt(0.1 * 12) * np.eye(4)]),
                          np.append(y - y.mean(), np.zeros(4)), rcond=None)[0]
  r = lambda p, q: np.sqrt(5) * scipy.spatial.distance.cdist(p * trend / 0.3, q * trend / 0.3)
  matern = lambda p, q: 2**-1.5 / math.gamma(2.5) * np.maximum(r(p, q), 1e-9)**2.5 * (
    scipy.special.kv(2.5, np.maximum(r(p, q), 1e-9)))
  line = lambda p: y.mean() + (p - a.mean(0)) @ trend
  weights = np.linalg.solve(matern(a, a) + 0.05 * np.eye(12), y - line(a))
  assert np.allclose(found, line(b) + matern(b, a) @ weights, atol=1e-6)


def test_the_proposal_wins_within_the_constraints(swarm):
  tried, scores, groups = swarm
  law, blend = mixtures.fit(SPACE, 'saturating', tried, scores, groups), np.full(6, 1 / 6)
  found = mixtures.decide(law, tried, scores, groups, blend, against=SPACE.natural, error=0.003,
                          resamples=10)
  mixture = found.mixture
  assert (SPACE.overall(mixture) <= SPACE.caps + 1e-6).all()
  assert mixture[0, 4:].sum() >= 0.05 - 1e-6 and mixture.sum() == pytest.approx(1)
  true = float((truth(SPACE.natural[None]) - truth(mixture[None])).mean())
  best = float((truth(SPACE.natural[None]) - truth(tried)).mean(axis=1).max())
  assert true > 0 and true > best - 0.006
  assert found.low < true < found.high and found.gain < found.naive
  natural = mixtures.propose(law, blend, tried, kl=1e3)
  bounds = tried.min(axis=0), tried.max(axis=0)
  assert np.allclose(natural, np.clip(SPACE.natural, *bounds), atol=0.01)
  # The names and their order do not matter.
  order = np.random.default_rng(4).permutation(6)
  other = Space([NAMES[i] for i in order], SIZES[order], 5e6, max_epochs=4.0, floors=SPACE.floors)
  again = mixtures.fit(other, 'saturating', tried[..., order], scores[:, order], groups,
                       [law.settings[i] for i in order])
  assert float(again(mixtures.propose(again, blend, tried[..., order])) @ blend) == pytest.approx(
    float(law(mixtures.propose(law, blend, tried)) @ blend), abs=2e-4)


def test_no_law_proposes_beyond_what_was_tried_and_none_below_a_floor(swarm, monkeypatch):
  """Not trees either, which search by drawing mixtures; nor where the optimiser ends outside."""
  tried, scores, groups = swarm
  near = np.argsort(np.abs(tried[:, 0, 0] - np.median(tried[:, 0, 0])))[:24]  # a narrow swarm
  tried, scores, groups = tried[near], scores[near], [groups[i] for i in near]
  blend = np.full(6, 1 / 6)
  law = mixtures.fit(SPACE, 'trees', tried, scores, groups)
  assert mixtures.within(mixtures.propose(law, blend, tried)[None], tried, 5e-3)[0]
  law = mixtures.fit(SPACE, 'saturating', tried, scores, groups)
  outside = SPACE.caps * [1, 1, 1, 1, 0, 0]
  monkeypatch.setattr(scipy.optimize, 'minimize', lambda *_, **__: scipy.optimize.OptimizeResult(
    x=outside / outside.sum()))
  kept = mixtures.propose(law, blend, tried)
  assert kept[0, 4:].sum() >= 0.05 - 1e-6 and mixtures.within(kept[None], tried, 5e-3)[0]


def test_a_proxy_that_diverged_is_in_no_law(swarm):
  tried, scores, groups = swarm
  wrong = scores.copy()
  wrong[3, 1] = np.nan
  with pytest.raises(ValueError, match='leave out what diverged'):
    mixtures.fit(SPACE, 'linear', tried, wrong, groups)


def test_what_lies_within_what_was_tried():
  tried = np.array([[[0.2, 0.8]], [[0.5, 0.5]]])
  others = np.array([[[0.2, 0.8]], [[0.3, 0.7]], [[0.1, 0.9]], [[0.6, 0.4]]])
  assert mixtures.within(others, tried).tolist() == [True, True, False, False]
  # Each without its own fold: of a line of points the ends lie beyond the rest.
  line = np.linspace(0, 1, 9)
  row = np.stack([line, 1 - line], axis=-1)[:, None]
  assert np.flatnonzero(~mixtures.within_folds(row, list(range(9)), parts=9)).tolist() == [0, 8]


def test_errors_are_told_of_what_looks_best_too():
  found = mixtures.quality(np.array([1.0, 1.1, 1.2, 3.0, 4.0]), np.array([1.0, 1.1, 1.2, 4.0, 3.0]))
  assert found['rmse_told_best'] == 0 and found['rmse'] == pytest.approx(.4**.5)


def test_repeats_of_a_mixture_are_in_one_fold():
  groups = [*range(10), *['natural'] * 4]
  parts = mixtures.folds(groups, 4)
  assert sorted(np.concatenate(parts)) == list(range(14))
  assert sum(bool(set(p) & {10, 11, 12, 13}) for p in parts) == 1


@pytest.mark.parametrize('wrong, words', [
  (dict(sizes=SIZES / 100), 'allow more epochs'),
  (dict(floors=((('x',), 0.1),)), 'which is no corpus'),
  (dict(floors=((('f',), 0.5),)), 'above their cap'),
])
def test_spaces_that_cannot_be(wrong, words):
  with pytest.raises(ValueError, match=words):
    Space(**{**dict(names=NAMES, sizes=SIZES, tokens=5e6, max_epochs=4.0), **wrong})


def test_sensitivity_says_where_there_is_nothing_to_take(swarm):
  tried, scores, groups = swarm
  law = mixtures.fit(SPACE, 'linear', tried, scores, groups)
  found = mixtures.sensitivity(law, np.full(6, 1 / 6), np.array([[0.5, 0.3, 0.2, 0, 0, 0]]))
  assert found['f'][0] is None and math.isfinite(found['a'][0])


@pytest.mark.slow
@pytest.mark.parametrize('planted', ['saturating', 'exponential'])
def test_intervals_of_decisions_cover(planted):
  """Nominal 95 %; the law that is fitted is wrong in the second case."""
  found = mixtures.simulate(trials=8, planted=planted)
  assert found['coverage'] >= 0.85 and found['wins'] >= 0.85  # 20 of 20 of both, in the log

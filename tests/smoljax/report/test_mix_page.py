"""What validation runs of a mixture say: pairs by seed, Holm's method over all that was asked."""

import numpy as np
import pytest
import scipy.stats

from smoljax.report import mix_page


def test_differences_are_paired_and_judged_together():
  rng = np.random.default_rng(0)
  seeds = rng.normal(0, 0.05, 4)  # what a seed does to all arms alike
  of = lambda less: {900 + i: {'web': 1.5 + s - less, 'code': 1.0 + s} for i, s in enumerate(seeds)}
  noise = lambda runs: {s: {d: x + rng.normal(0, 0.002) for d, x in bpb.items()}
                        for s, bpb in runs.items()}
  scores = {'arm': {'natural': noise(of(0)), 'unimax': noise(of(0.1)), 'best': noise(of(0.098)),
                    'proposed': noise(of(0.1))}}
  found = mix_page.validation(scores, {'web': 0.5, 'code': 0.5})
  rows = {r['against']: r for r in found['arm']['differences']}
  a, b = ([sum(x.values()) / 2 for x in scores['arm'][arm].values()]
          for arm in ('natural', 'proposed'))
  test = scipy.stats.ttest_rel(b, a)
  assert rows['natural']['p'] == pytest.approx(test.pvalue)
  assert rows['natural']['mean'] + rows['natural']['half'] == pytest.approx(
    test.confidence_interval().high)
  assert rows['natural']['holm'] == pytest.approx(3 * test.pvalue)
  assert rows['natural']['verdict'] == 'apart' and rows['best']['verdict'] == 'within noise'
  assert found['arm']['domains']['web'][0] == pytest.approx(-0.1, abs=0.01)
  assert abs(found['arm']['domains']['code'][0]) < 0.01
  lines = list(mix_page.words(found))
  assert len(lines) == 3 and 'proposed less natural, the size of the proxies: -0.0' in lines[0]


def test_what_has_no_verdict_counts_for_nothing_and_has_no_interval(tmp_path):
  """A larger model of which one seed is there yet, beside four seeds of the proxies' size."""
  rng = np.random.default_rng(0)
  of = lambda mean, n: {i: {'web': mean + rng.normal(0, 0.01)} for i in range(n)}
  means = {'natural': 1.6, 'unimax': 1.5, 'best': 1.5, 'proposed': 1.5}
  scores = {kind: {arm: of(mean, n) for arm, mean in means.items()}
            for kind, n in (('arm', 4), ('arm_larger', 1))}
  found = mix_page.validation(scores, {'web': 1.0})
  few = mix_page.validation({'arm': scores['arm']}, {'web': 1.0})
  assert found['arm'] == few['arm']
  lines = list(mix_page.words(found))
  assert 'n = 4; p ' in lines[0] and lines[3].endswith('bits per byte, no verdict: n = 1')
  assert 'inf' not in ' '.join(lines) and 'nan' not in ' '.join(lines)

"""The benchmark of a bad object store, with few kills."""

import pytest

from experiments.benchmarks import object_store


@pytest.mark.slow
def test_kills_and_a_bad_store_change_nothing(tmp_path):
  found = object_store.main([f'--output={tmp_path / "out"}', '--kills=2'])
  assert found['bitwise'] == found['runs'] > 0 and found['kills'] >= 2
  assert found['requests']['PUT torn'] and found['requests']['GET cut']

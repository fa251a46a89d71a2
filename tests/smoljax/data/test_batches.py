"""Order, packing, mixture, batches: invariants by property, restart, processes, refusals."""

import collections
import dataclasses
import errno
import json
import os

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers import conversations
from hypothesis import given

from smoljax import files
from smoljax.data import packing
from smoljax.data.batches import Batches, check_epochs, make_stages, prefetch
from smoljax.data.corpus import open_corpus
from smoljax.data.packing import Rows

OPTIONS = dict(seq_len=64, window=32, max_segments=8, seed=7)


def open_all(paths):
  return {name: open_corpus(path, 'train', name) for name, path in paths.items()}


def batches(paths, *, rows=4, steps=40, **kwargs):
  stages = make_stages(
    [
      dict(name='a', fraction=0.5, mixture=dict(web=0.7, pdf=0.3)),
      dict(name='b', fraction=0.5, mixture=dict(web=0.2, pdf=0.8)),
    ],
    steps,
  )
  return Batches(open_all(paths), stages, rows=rows, **(OPTIONS | kwargs))


@given(st.integers(1, 3000), st.binary(max_size=8))
def test_permute_is_a_permutation(size, key):
  out = packing.permute(np.arange(size), size, key)
  assert sorted(out.tolist()) == list(range(size))


def test_permute_differs_by_key_and_needs_no_neighbours():
  a, b = (packing.permute(np.arange(1000), 1000, key) for key in (b'a', b'b'))
  assert (a != b).mean() > 0.9
  assert packing.permute(np.array([17]), 1000, b'a')[0] == a[17]
  assert abs(np.corrcoef(np.arange(1000), a)[0, 1]) < 0.1


@given(
  st.lists(st.integers(0, 300), max_size=60), st.integers(1, 64), st.integers(1, 6)
)  # fmt: skip
def test_pack_covers_every_target_once(lengths, seq_len, max_segments):
  rows = packing.pack(lengths, seq_len, max_segments)
  seen = collections.Counter()
  for row in rows:
    assert 0 < len(row) <= max_segments
    assert sum(p.length for p in row) <= seq_len
    for p in row:
      seen.update((p.document, t) for t in range(p.start + 1, p.start + p.length + 1))
  assert seen == collections.Counter((d, t) for d, n in enumerate(lengths) for t in range(1, n))


def test_pack_fills_rows():
  rng = np.random.default_rng(0)
  lengths = rng.lognormal(5, 1, 2000).astype(int) + 2
  rows = packing.pack(lengths.tolist(), 512, 32)
  assert sum(p.length for row in rows for p in row) > 0.99 * 512 * len(rows)


@pytest.mark.parametrize(('median', 'seq_len', 'most'), [(400, 4096, 7), (120, 4096, 22),
                                                         (400, 2048, 5), (5000, 2048, 3)])
def test_rows_are_full_with_few_segments_each(median, seq_len, most):
  lengths = np.random.default_rng(0).lognormal(np.log(median), 1, 2048).astype(int) + 2
  assert packing.usual_segments(lengths, seq_len) == most
  rows = packing.pack(lengths.tolist(), seq_len, most)
  assert max(map(len, rows)) <= most
  assert sum(p.length for row in rows for p in row) > 0.97 * seq_len * len(rows)


def test_an_epoch_sees_every_token_once(markov_corpora):
  corpus = open_corpus(markov_corpora['web'])
  rows = Rows(corpus, **OPTIONS)
  seen = collections.Counter()
  while rows.position[0] == 0:
    row = next(rows)
    if rows.position[0] == 0:
      seen.update((p.document, t) for p in row for t in range(p.start, p.start + p.length))
  assert set(seen.values()) == {1}
  assert len(seen) == int((corpus.lengths - 1).sum())


def test_a_rehydrated_epoch_has_each_document_as_often_as_it_says(markov_corpora):
  corpus = open_corpus(markov_corpora['web'])
  repeats = np.arange(len(corpus.lengths), dtype=np.int32) % 4
  rows = Rows(dataclasses.replace(corpus, repeats=repeats), **OPTIONS)
  seen = collections.Counter()
  while rows.position[0] == 0:
    row = next(rows)
    if rows.position[0] == 0:
      seen.update(p.document for p in row if p.start == 0)
  assert seen == {d: n for d, n in enumerate(repeats.tolist()) if n}


def test_batch_is_what_the_documents_say(markov_corpora):
  stream = batches(markov_corpora)
  iterator = iter(stream)
  plan = iter(stream).next_plan()
  batch = next(iterator)
  assert batch['inputs'].shape == (4, 64) and batch['inputs'].dtype == np.int32
  for i, (name, pieces) in enumerate(plan):
    corpus = stream.corpora[name]
    assert stream.sources[batch['source'][i]] == name
    at = 0
    for segment, p in enumerate(pieces, start=1):
      tokens = corpus.tokens(p.document)
      span = slice(at, at + p.length)
      np.testing.assert_array_equal(batch['inputs'][i, span], tokens[p.start :][: p.length])
      np.testing.assert_array_equal(batch['targets'][i, span], tokens[p.start + 1 :][: p.length])
      assert set(batch['segment_ids'][i, span]) == {segment}
      np.testing.assert_array_equal(batch['positions'][i, span], np.arange(p.length))
      at += p.length
    assert not batch['segment_ids'][i, at:].any()


def test_rows_without_masks_between_documents_are_one_segment(markov_corpora):
  masked, across = (next(iter(batches(markov_corpora, across=x))) for x in (False, True))
  for name in ('inputs', 'targets', 'source'):
    np.testing.assert_array_equal(masked[name], across[name])
  filled = masked['segment_ids'] > 0
  assert masked['segment_ids'].max() > 1
  np.testing.assert_array_equal(across['segment_ids'], filled)
  np.testing.assert_array_equal(across['positions'], np.where(filled, np.arange(64), 0))


def test_mixture_is_exact_by_token(markov_corpora):
  iterator = iter(batches(markov_corpora))
  for share in (0.7, 0.2):
    taken = collections.Counter()
    for _ in range(20):
      for name, pieces in iterator.next_plan():
        taken[name] += sum(p.length for p in pieces)
    assert abs(taken['web'] / taken.total() - share) < 64 / taken.total() + 1e-9
  with pytest.raises(StopIteration):
    iterator.next_plan()


@pytest.mark.parametrize('prefetched', [False, True])
def test_restart_anywhere(markov_corpora, prefetched):
  """The state, through JSON, at every position gives the same batches as never stopping."""
  make = prefetch if prefetched else iter
  iterator = make(batches(markov_corpora))
  whole = [next(iterator) for _ in range(40)]
  iterator.close()
  iterator = make(batches(markov_corpora))
  states = [json.dumps(iterator.get_state())]
  for _ in range(39):
    next(iterator)
    states.append(json.dumps(iterator.get_state()))
  iterator.close()
  for step in range(0, 40, 3):
    iterator = make(batches(markov_corpora))
    iterator.set_state(json.loads(states[step]))
    for expected in whole[step : step + 3]:
      got = next(iterator)
      assert all(np.array_equal(got[k], expected[k]) for k in expected)
    iterator.close()


def test_processes_share_the_global_batch(markov_corpora):
  whole = next(iter(batches(markov_corpora)))
  parts = [
    next(iter(batches(markov_corpora, local_rows=rows))) for rows in (range(2), range(2, 4))
  ]
  for key, value in whole.items():
    np.testing.assert_array_equal(np.concatenate([p[key] for p in parts]), value)


def test_fingerprint_follows_what_matters(markov_corpora):
  reference = batches(markov_corpora).fingerprint()
  assert batches(markov_corpora).fingerprint() == reference
  assert batches(markov_corpora, local_rows=range(2)).fingerprint() == reference
  for change in (dict(seed=8), dict(rows=8), dict(steps=42), dict(seq_len=32)):
    assert batches(markov_corpora, **change).fingerprint() != reference


def test_bad_input_is_named(markov_corpora, tmp_path):
  with pytest.raises(FileNotFoundError, match='not a finished corpus'):
    open_corpus(str(tmp_path))
  with pytest.raises(ValueError, match='no tokens to predict'):
    open_corpus(markov_corpora['web'], 'test')
  with pytest.raises(ValueError, match=r'fractions sum to 0\.5'):
    make_stages([dict(name='a', fraction=0.5, mixture=dict(web=1))], 10)
  with pytest.raises(ValueError, match='weights'):
    make_stages([dict(name='a', fraction=1, mixture=dict(web=-1))], 10)
  corpora = open_all(markov_corpora)
  size = int(corpora['pdf'].lengths.sum())
  stages = make_stages([dict(name='a', fraction=0.5, mixture=dict(web=1)),
                        dict(name='b', fraction=0.5, mixture=dict(pdf=1))], 10)
  check_epochs(stages, 2 * size, corpora, 2.0)  # half of it is pdf: once
  with pytest.raises(ValueError, match=r"tokens of 'pdf'.* are more than train\.max_epochs=0\.5"):
    check_epochs(stages, 2 * size, {'pdf': corpora['pdf']}, 0.5)
  stages = make_stages([dict(name='a', fraction=1, mixture=dict(books=1))], 10)
  with pytest.raises(ValueError, match='no corpus named books; there are: web, pdf'):
    Batches(open_all(markov_corpora), stages, rows=4, **OPTIONS)


def test_a_share_that_is_away_for_a_while_is_waited_for(markov_corpora, monkeypatch):
  monkeypatch.setattr(files, 'WAITS', (0.0,) * 3)
  want = next(iter(batches(markov_corpora)))
  broken, failures = batches(markov_corpora), [
    OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
    RuntimeError(f'UNKNOWN: {os.strerror(errno.EIO)}; reading a chunk')]  # as ArrayRecord says
  corpus = broken.corpora['web']

  class Away:
    def __getitems__(self, documents):
      if failures:
        raise failures.pop()
      return corpus.records.__getitems__(documents)

  broken.corpora['web'] = dataclasses.replace(corpus, records=Away())
  got = next(iter(broken))
  assert not failures and all((want[k] == got[k]).all() for k in want)


def test_epochs_are_counted(markov_corpora):
  made = batches(markov_corpora, steps=400)
  iterator, seen = iter(made), []
  for _ in range(120):
    iterator.next_plan()
    seen.append(made.epochs(iterator.get_state())['pdf'])
  assert seen == sorted(seen) and seen[0] < 0.1
  whole = next(i for i, x in enumerate(seen) if x >= 1)
  assert abs(seen[whole - 1] - 1) < 0.2 and iterator.get_state()['positions']['pdf'][0] >= 1


def test_epochs_are_counted_where_rows_have_room(tmp_path):
  """Conversations of 40 tokens, each alone in a row of 64; the last window is short."""
  path = conversations.write(
    tmp_path, 'chat', {'train': [(range(3, 23), range(3, 23))] * 25}, 64)
  rows = packing.Rows(open_corpus(path), seq_len=64, window=10, max_segments=4, seed=0)
  for taken in range(1, 61):
    next(rows)
    assert rows.epochs(rows.position) == pytest.approx(taken / 25, abs=1e-6)


def test_conversations_of_which_none_fits_are_an_error_and_no_endless_search(tmp_path):
  path = conversations.write(tmp_path, 'chat', {'train': [(range(3, 40), range(3, 9))] * 5}, 64)
  made = Batches(
    {'chat': open_corpus(path)}, make_stages([dict(name='a', fraction=1, mixture={'chat': 1})], 3),
    rows=1, seq_len=16, window=2, max_segments=4, seed=0)
  with pytest.raises(ValueError, match=r'chat: none of its 5 documents .* row of 16 tokens: '):
    next(iter(made))


def test_one_conversation_that_fits_is_found_in_every_epoch(tmp_path):
  """Wherever the order of an epoch has it, among windows of which nothing fits."""
  rows = [(range(3, 40), range(3, 9))] * 6 + [(range(3, 9), range(3, 7))]
  path = conversations.write(tmp_path, 'chat', {'train': rows}, 64)
  found = Rows(open_corpus(path), seq_len=16, window=2, max_segments=4, seed=0)
  assert [[p.document for p in next(found)] for _ in range(20)] == [[6]] * 20
  assert found.position[0] == 19

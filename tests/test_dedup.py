import itertools
import json
import math
import random

import apache_beam as beam
import hypothesis
import numpy as np
import pytest
import xxhash
from hypothesis import strategies as st

from data_beam import dedup, records
from data_beam.records import Document, Reject

VOCABULARY = [''.join(p) for p in itertools.product('bdkmt', 'aeiou', 'lnrs')]


FOUND = []  # the in-memory runner shares this process


def remember(element):
  FOUND.append(element)


def run(transform, documents, seed=0):
  """What a transform keeps and drops, by id, of the documents in an order chosen by `seed`."""
  FOUND.clear()
  documents = random.Random(seed).sample(documents, len(documents))
  with beam.Pipeline(options=records.pipeline_options()) as pipeline:
    both = pipeline | beam.Create(documents) | beam.Reshuffle() | transform
    _ = both | beam.Flatten() | 'remember' >> beam.Map(remember)
  kept = {d.id: d for d in FOUND if isinstance(d, Document)}
  rejects = {r.document.id: r for r in FOUND if isinstance(r, Reject)}
  assert len(kept) + len(rejects) == len(FOUND) == len(documents)
  return kept, rejects


# --- exact -----------------------------------------------------------------------------------


def test_exact_duplicates_and_their_survivor():
  same = 'Straße  the same\ntext'
  documents = [
    Document('a', same, url='u2'), Document('b', 'strasse THE same text ', url='u2', quality=-1.0),
    Document('c', 'strasse the same text', url='u1', quality=0.5),
    Document('d', 'strasse the   same text', url='u2', quality=0.5),
    Document('e', 'strasse the   same text', url='u1', quality=0.5, metadata={'x': 1}),
    Document('f', 'another text'), Document('g', '')]
  for seed in range(3):
    kept, rejects = run(dedup.ExactDedup(), documents, seed)
    assert set(kept) == {'e', 'f', 'g'}  # best quality, then longest, then first url
    assert kept['e'].metadata == {'x': 1, 'copies': 5}
    assert repr(kept['f']) == repr(documents[5])
    assert {(r.stage, r.reason, r.document.metadata['duplicate_of'])
            for r in rejects.values()} == {('exact_dedup', 'duplicate', 'e')}


def test_one_record_read_twice_is_kept_once():
  twice = [Document('a', 'text', metadata={'file': f}) for f in ('2', '1')]
  for documents in (twice, twice[::-1]):
    FOUND.clear()
    with beam.Pipeline(options=records.pipeline_options()) as pipeline:
      kept, _ = pipeline | beam.Create(documents) | dedup.ExactDedup()
      _ = kept | 'remember' >> beam.Map(remember)
    assert [d.metadata for d in FOUND] == [{'file': '1', 'copies': 2}]


# --- signatures ------------------------------------------------------------------------------


def test_signatures_are_those_of_datatrove(shared_data):
  golden = json.loads((shared_data / 'web_parity/minhash_golden.json').read_text())
  assert dedup.simplify(golden['text']) == golden['simplified']
  for name, bands, rows in [('sha1_14x8', 14, 8), ('xxhash_14x8', 14, 8), ('xxhash_32x10', 32, 10)]:
    hash_name = 'sha1' if name.startswith('sha1') else 'xxh64'
    expected = golden['configs'][name]
    found = dedup.shingles(golden['text'], 5, hash_name)
    assert [f'{x:x}' for x in found.tolist()] == expected['shingles']
    signature = dedup.signature(golden['text'], bands=bands, rows=rows, hash_name=hash_name)
    assert [[f'{x:x}' for x in band] for band in signature.tolist()] == expected['signature']


def reference_signature(words, bands, rows, ngram):
  """The definition, in Python's integers."""
  random_state, prime = np.random.RandomState(1), 2**61 - 1
  a = random_state.randint(1, prime, bands * rows, np.uint64).tolist()
  b = random_state.randint(0, prime, bands * rows, np.uint64).tolist()
  hashes = [xxhash.xxh64_intdigest(' '.join(words[i:i + ngram]).encode())
            for i in range(len(words) - ngram + 1)]
  minima = [min((x * m + c) % 2**64 % prime for x in hashes) for m, c in zip(a, b, strict=True)]
  return np.array(minima, np.uint64).reshape(bands, rows)


@pytest.mark.parametrize(('length', 'bands', 'rows', 'ngram'), [
  (5, 14, 8, 5), (700, 14, 8, 5), (513, 3, 2, 1), (40, 32, 10, 13)])
def test_signature_equals_the_definition(length, bands, rows, ngram):
  words = random.Random(length).choices(VOCABULARY, k=length)
  text = ', '.join(words).title() + '.'
  np.testing.assert_array_equal(
    dedup.signature(text, bands=bands, rows=rows, ngram=ngram),
    reference_signature(words, bands, rows, ngram))


def test_too_short_for_a_signature():
  assert dedup.signature('one two, three four!').shape == (0, 8)
  assert dedup.signature('').shape == (0, 8)
  assert dedup.signature('one two three four five').shape == (14, 8)


def test_case_punctuation_accents_and_numbers_do_not_count():
  np.testing.assert_array_equal(dedup.signature('Le café, à 12,50 € (environ) — est fermé.'),
                                dedup.signature('le cafe a 3 € environ est\n\nferme'))


@hypothesis.settings(max_examples=15)
@hypothesis.given(st.integers(0, 2**32), st.floats(0, 1))
def test_share_of_equal_minima_estimates_jaccard(seed, share):
  rng = random.Random(seed)
  base = rng.choices(VOCABULARY, k=400)
  other = [rng.choice(VOCABULARY) if rng.random() < share / 8 else w for w in base]
  a, b = (' '.join(words) for words in (base, other))
  sets = [set(dedup.shingles(t).tolist()) for t in (a, b)]
  jaccard = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
  equal = dedup.signature(a, bands=100, rows=10) == dedup.signature(b, bands=100, rows=10)
  # 1,000 minima: five standard deviations of a binomial are at most 0.08.
  assert abs(equal.mean() - jaccard) < 0.08


# --- clusters --------------------------------------------------------------------------------


def brute_force_components(edges):
  neighbours = {}
  for u, v in edges:
    neighbours.setdefault(u, set()).add(v)
    neighbours.setdefault(v, set()).add(u)
  roots = {}
  for node in sorted(neighbours):
    front = [] if node in roots else [node]
    while front:
      at = front.pop()
      if at not in roots:
        roots[at] = node
        front += neighbours[at]
  return roots


@hypothesis.given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60),
                  st.integers(1, 5))
def test_components_for_any_grouping(edges, groups):
  combine = dedup.Components()
  accumulators = []
  for i in range(groups):
    accumulators.append(combine.create_accumulator())
    for edge in edges[i::groups]:
      combine.add_input(accumulators[-1], edge)
  merged = combine.merge_accumulators(accumulators)
  assert combine.extract_output(merged) == brute_force_components(edges)


def near_duplicates():
  """40 texts; every other one with copies of which 0 to 30 words of 300 are changed."""
  rng = random.Random(5)
  documents = []
  for i in range(40):
    base = rng.choices(VOCABULARY, k=300)
    for copy in range(1 + i % 2 * rng.randint(1, 3)):
      words = list(base)
      for at in rng.sample(range(300), rng.randint(0, 30) if copy else 0):
        words[at] = 'changed'
      documents.append(Document(f'{i}.{copy}', ' '.join(words), url=f'u{rng.random()}',
                                quality=rng.choice([0.5, math.nan])))
  return documents


def brute_force_survivors(documents, bands=14, rows=8):
  """{id: (survivor, size)} of all pairs compared band by band."""
  signatures = [dedup.signature(d.text, bands=bands, rows=rows) for d in documents]
  edges = [(dedup.rank(a), dedup.rank(b))
           for (a, x), (b, y) in itertools.combinations(zip(documents, signatures, strict=True), 2)
           if (x == y).all(axis=1).any()]
  roots = brute_force_components(edges)
  return {node[-1]: (root[-1], sum(r == root for r in roots.values()))
          for node, root in roots.items()}


def test_clusters_equal_brute_force():
  documents = near_duplicates()
  expected = brute_force_survivors(documents)
  assert 10 < len(expected) < len(documents) - 10  # there is something to find, and something not
  for seed in range(2):
    kept, rejects = run(dedup.MinHashDedup(), documents, seed)
    assert set(rejects) == {i for i, (survivor, _) in expected.items() if survivor != i}
    for document in kept.values():
      size = expected.get(document.id, (None, 1))[1]
      assert document.metadata == {'cluster_size': size} | (
        {'cluster_id': document.id} if size > 1 else {})
    for i, reject in rejects.items():
      survivor, size = expected[i]
      assert reject[1:] == ('minhash', 'near_duplicate')
      assert reject.document.metadata == {
        'cluster_size': size, 'cluster_id': survivor, 'duplicate_of': survivor}


def test_a_chain_is_one_cluster():
  # Each text resembles its neighbours only; the first and the last have nothing in common.
  words = random.Random(0).choices(VOCABULARY, k=1000)
  chain = [Document(f'{i:02d}', ' '.join(words[4 * i:4 * i + 300])) for i in range(100)]
  assert not np.intersect1d(dedup.shingles(chain[0].text), dedup.shingles(chain[-1].text)).size
  kept, rejects = run(dedup.MinHashDedup(), chain)
  longest = min(chain, key=dedup.rank)
  assert list(kept) == [longest.id]
  assert kept[longest.id].metadata == {'cluster_id': longest.id, 'cluster_size': 100}
  assert len(rejects) == 99


def test_exact_copies_count_for_the_cluster_size_and_short_texts_stay():
  words = random.Random(1).choices(VOCABULARY, k=200)
  documents = [Document(str(i), ' '.join(words)) for i in range(3)]
  documents.append(Document('near', ' '.join([*words, 'more'])))
  documents.append(Document('short', 'only four words here'))

  @beam.ptransform_fn
  def both(pcoll):
    kept, exact = pcoll | dedup.ExactDedup()
    kept, near = kept | dedup.MinHashDedup()
    return kept, (exact, near) | beam.Flatten()

  kept, rejects = run(both(), documents)
  assert set(kept) == {'near', 'short'}
  assert kept['near'].metadata['cluster_size'] == 4
  assert kept['short'].metadata == {'cluster_size': 1}
  assert {i: r.document.metadata['duplicate_of'] for i, r in rejects.items()} == {
    '0': 'near', '1': '0', '2': '0'}

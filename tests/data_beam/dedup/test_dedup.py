import itertools
import json
import math
import pathlib
import random

import apache_beam as beam
import hypothesis
import numpy as np
import pytest
import xxhash
from helpers.transforms import FOUND, remember, run
from hypothesis import strategies as st

from data_beam import curation, records, tables
from data_beam.beam_options import pipeline_options
from data_beam.dedup import components, minhash
from data_beam.dedup.clusters import MinHashDedup, rehydration_weight
from data_beam.dedup.decontaminate import (
  Decontaminate,
  contamination,
  decontamination,
  removed,
  report,
)
from data_beam.dedup.exact import ExactDedup, rank
from data_beam.dedup.minhash import shingles
from data_beam.options import ImportOptions
from data_beam.records import Document
from data_beam.text.normalize import simplify

VOCABULARY = [''.join(p) for p in itertools.product('bdkmt', 'aeiou', 'lnrs')]


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
    kept, rejects = run(ExactDedup(), documents, seed)
    assert set(kept) == {'e', 'f', 'g'}  # best quality, then longest, then first url
    assert kept['e'].metadata == {'x': 1, 'copies': 5}
    assert repr(kept['f']) == repr(documents[5])
    assert {(r.stage, r.reason, r.document.metadata['duplicate_of'])
            for r in rejects.values()} == {('exact_dedup', 'duplicate', 'e')}


def test_one_record_read_twice_is_kept_once():
  twice = [Document('a', 'text', metadata={'file': f}) for f in ('2', '1')]
  for documents in (twice, twice[::-1]):
    FOUND.clear()
    with beam.Pipeline(options=pipeline_options()) as pipeline:
      kept, _ = pipeline | beam.Create(documents) | ExactDedup()
      _ = kept | 'remember' >> beam.Map(remember)
    assert [d.metadata for d in FOUND] == [{'file': '1', 'copies': 2}]


# --- signatures ------------------------------------------------------------------------------


def test_signatures_are_those_of_datatrove(shared_data):
  golden = json.loads((shared_data / 'web_parity/minhash_golden.json').read_text())
  assert simplify(golden['text']) == golden['simplified'].split()
  for name, bands, rows in [('sha1_14x8', 14, 8), ('xxhash_14x8', 14, 8), ('xxhash_32x10', 32, 10)]:
    hash_name = 'sha1' if name.startswith('sha1') else 'xxh64'
    expected = golden['configs'][name]
    found = shingles(golden['text'], 5, hash_name)
    assert [f'{x:x}' for x in found.tolist()] == expected['shingles']
    signature = minhash.signature(golden['text'], bands=bands, rows=rows, hash_name=hash_name)
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
    minhash.signature(text, bands=bands, rows=rows, ngram=ngram, hash_name='xxh64'),
    reference_signature(words, bands, rows, ngram))


def test_too_short_for_a_signature():
  assert minhash.signature('one two, three four!').shape == (0, 8)
  assert minhash.signature('').shape == (0, 8)
  assert minhash.signature('one two three four five').shape == (14, 8)


def test_case_punctuation_accents_and_numbers_do_not_count():
  np.testing.assert_array_equal(minhash.signature('Le café, à 12,50 € (environ) — est fermé.'),
                                minhash.signature('le cafe a 3 € environ est\n\nferme'))


@hypothesis.settings(max_examples=15)
@hypothesis.given(st.integers(0, 2**32), st.floats(0, 1))
def test_share_of_equal_minima_estimates_jaccard(seed, share):
  rng = random.Random(seed)
  base = rng.choices(VOCABULARY, k=400)
  other = [rng.choice(VOCABULARY) if rng.random() < share / 8 else w for w in base]
  a, b = (' '.join(words) for words in (base, other))
  sets = [set(shingles(t).tolist()) for t in (a, b)]
  jaccard = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
  equal = minhash.signature(a, bands=100, rows=10) == minhash.signature(b, bands=100, rows=10)
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


def some_graph(seed):
  """Edges of stars, chains, cliques and loops, in no order, some twice, and how many nodes."""
  rng, edges, count = random.Random(seed), [], 0
  kinds = {'chain': itertools.pairwise, 'star': lambda names: ((names[0], v) for v in names[1:]),
           'tree': lambda names: ((names[rng.randrange(i)], v) for i, v in enumerate(names) if i),
           'clique': lambda names: itertools.combinations(names, 2),
           'alone': lambda names: ((v, v) for v in names)}
  for kind, size in [('chain', 1500), ('star', 700), ('star', 700), ('tree', 300), ('alone', 5),
                     *((rng.choice(['chain', 'star', 'tree', 'clique']), rng.randint(2, 9))
                       for _ in range(200))]:
    names = list(range(count, count + size))
    count += size
    rng.shuffle(names)
    edges += kinds[kind](names)
  edges += rng.sample(edges, 50)
  rng.shuffle(edges)
  return edges, count


@pytest.mark.parametrize(('parts', 'rounds', 'block'), [(4, 1, 100), (5, 3, 10)])
def test_components_of_any_graph_however_it_is_spread(parts, rounds, block):
  edges, count = some_graph(parts)
  names = [xxhash.xxh3_128_digest(str(i).encode()) for i in range(count)]
  names[7] = names[7][:-2] + b'\0\0'      # which numpy cuts
  blocks = [tuple(np.array([names[edge[i]] for edge in edges[at:at + block]], components.KEY)
                  for i in range(2)) for at in range(0, len(edges), block)]
  order = random.Random(1).sample(range(count), count)
  members = [(np.array([names[i] for i in order[at::3]], components.KEY),
              [components.Total(-i, 1 + i % 3) for i in order[at::3]]) for at in range(3)]
  FOUND.clear()
  with beam.Pipeline(options=pipeline_options()) as pipeline:
    inputs = (pipeline | 'edges' >> beam.Create(blocks),
              pipeline | 'members' >> beam.Create(members))
    _ = inputs | components.Components(parts, rounds) | 'remember' >> beam.Map(remember)
  found = {node.ljust(16, b'\0'): total for nodes, totals in FOUND
           for node, total in zip(nodes.tolist(), totals, strict=True)}
  expected = {}
  roots = brute_force_components([edge for edge in edges if edge[0] != edge[1]])
  for i, root in roots.items():
    best, size = expected.get(root, (0, 0))
    expected[root] = min(best, -i), size + 1 + i % 3
  assert len(FOUND) < 40 and len(roots) == count - 5
  assert found == {names[i]: expected[root] for i, root in roots.items()}


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


def brute_force_survivors(documents, bands=14, rows=8, pairs=True):
  """{id: (survivor, size)} of all pairs compared band by band, or of documents with equal bands."""
  signatures = [minhash.signature(d.text, bands=bands, rows=rows) for d in documents]
  if pairs:
    edges = [(rank(a), rank(b)) for (a, x), (b, y)
             in itertools.combinations(zip(documents, signatures, strict=True), 2)
             if (x == y).all(axis=1).any()]
  else:
    same = {}
    for document, matrix in zip(documents, signatures, strict=True):
      for band, row in enumerate(matrix.tolist()):
        same.setdefault((band, *row), []).append(rank(document))
    edges = [(group[0], other) for group in same.values() for other in group[1:]]
  roots = brute_force_components(edges)
  return {node[-1]: (root[-1], sum(r == root for r in roots.values()))
          for node, root in roots.items()}


def test_clusters_equal_brute_force():
  documents = near_duplicates()
  expected = brute_force_survivors(documents)
  assert 10 < len(expected) < len(documents) - 10  # there is something to find, and something not
  for seed in range(2):
    kept, rejects = run(MinHashDedup(), documents, seed)
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
  assert not np.intersect1d(shingles(chain[0].text), shingles(chain[-1].text)).size
  kept, rejects = run(MinHashDedup(), chain)
  longest = min(chain, key=rank)
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
    kept, exact = pcoll | ExactDedup()
    kept, near = kept | MinHashDedup()
    return kept, (exact, near) | beam.Flatten()

  kept, rejects = run(both(), documents)
  assert set(kept) == {'near', 'short'}
  assert kept['near'].metadata['cluster_size'] == 4
  assert kept['short'].metadata == {'cluster_size': 1}
  assert {i: r.document.metadata['duplicate_of'] for i, r in rejects.items()} == {
    '0': 'near', '1': '0', '2': '0'}


def pair_of_jaccard(rng, i, vocabulary):
  """Two texts of 274 words whose sets of 5-grams have Jaccard similarity 240 / 300 = 0.8."""
  common, *tails = (' '.join(rng.choices(vocabulary, k=k)) for k in (244, 30, 30))
  return [Document(f'{i:05d}.{j}', f'{common} {tail}') for j, tail in enumerate(tails)]


@pytest.mark.slow
def test_twenty_thousand_documents():
  # Clusters are those of the same signatures compared by brute force; recall is that of theory.
  rng = random.Random(3)
  vocabulary = [''.join(p) for p in itertools.product('bdfgklmnpr', 'aeiou', 'bdfgklmnprst', 'ae')]
  documents = [d for i in range(3200) for d in pair_of_jaccard(rng, i, vocabulary)]
  a, b = (set(shingles(d.text).tolist()) for d in documents[:2])
  assert len(a & b) / len(a | b) == pytest.approx(.8, abs=.001)
  shared = sum(
    (minhash.signature(x.text) == minhash.signature(y.text)).all(axis=1).any()
    for x, y in zip(documents[::2], documents[1::2], strict=True))
  assert shared / 3200 >= .924 - .01
  for i in range(3200, 20_000 - len(documents) + 3200):   # the rest: alone, or one of a family
    words = random.Random(i % 500).choices(vocabulary, k=150)
    for at in rng.sample(range(150), rng.choice([0, 1, 5, 60])):
      words[at] = rng.choice(vocabulary)
    documents.append(Document(f'{i:05d}', ' '.join(words), url=f'u{rng.randrange(99)}'))
  assert len(documents) == 20_000
  expected = brute_force_survivors(documents, pairs=False)
  kept, rejects = run(MinHashDedup(), documents)
  assert set(rejects) == {i for i, (survivor, _) in expected.items() if survivor != i}
  assert all(r.document.metadata['duplicate_of'] == expected[i][0] for i, r in rejects.items())
  assert all(d.metadata['cluster_size'] == expected.get(i, (i, 1))[1] for i, d in kept.items())


# --- scope, URLs, weights --------------------------------------------------------------------


@pytest.mark.parametrize('transform', [
  ExactDedup(scope='dump'), MinHashDedup(scope='dump'),
  ExactDedup(scope='language'), MinHashDedup(scope='language', hash_name='xxh64')])
def test_documents_of_other_scopes_are_no_duplicates(transform):
  same = ' '.join(random.Random(2).choices(VOCABULARY, k=80))
  documents = [
    Document(str(i), same, language=scope, metadata={'dump': scope})
    for i, scope in enumerate(['de', 'fr', 'de', 'fr', 'it'])]
  kept, rejects = run(transform, documents)
  assert set(kept) == {'0', '1', '4'}
  survivors = {i: r.document.metadata['duplicate_of'] for i, r in rejects.items()}
  assert survivors == {'2': '0', '3': '1'}


@pytest.mark.parametrize('kept', [    # the signatures, or they are made of the texts
  True, pytest.param(False, marks=pytest.mark.slow)])
def test_documents_of_another_corpus_are_dropped_and_metadata_stays(kept, tmp_path):
  texts = [' '.join(random.Random(i).choices(VOCABULARY, k=120)) for i in range(6)]
  near = lambda text: f'other {text}'
  write = lambda name, rows: (tmp_path / name).write_text(''.join(
    json.dumps(row) + '\n' for row in rows))
  write('old.jsonl', [{'id': f'old{i}', 'text': text, 'dump': 'A'}
                      for i, text in enumerate([*texts[:3], 'too short'])])
  write('new.jsonl', [
    {'id': 'copy', 'text': texts[0].upper()}, {'id': 'near', 'text': near(texts[1])},
    {'id': 'nearer', 'text': near(near(texts[1]))}, {'id': 'short', 'text': 'Too  SHORT'},
    {'id': 'own', 'text': texts[4], 'minhash_cluster_size': 7, 'deep': {'a': [1, 'x']},
     'signature': 'theirs', 'quality': math.inf},
    {'id': 'own2', 'text': near(texts[4]), 'copies': 'a word'}, {'id': 'unique', 'text': texts[5]}])
  columns = ('metadata.cluster_size=minhash_cluster_size',)
  old, new = (tables.import_tables(
    [str(tmp_path / f'{name}.jsonl')], str(tmp_path), name, ImportOptions(
      minhash='14x8', signatures=kept, num_shards=3, columns=columns, against=against))
    for name, against in [('old', ()), ('new', (str(tmp_path / 'old'),))])
  assert all(('signatures' in shard) == kept for shard in records.read_manifest(old)['shards'])
  rejects = {row['id']: (row['stage'], row['reason'], row['metadata']['duplicate_of'])
             for row in records.read_corpus(str(tmp_path / 'new_rejects'))}
  assert rejects == {
    'copy': ('exact_dedup', 'known', 'old0'), 'short': ('exact_dedup', 'known', 'old3'),
    'near': ('minhash', 'known', 'old1'), 'nearer': ('minhash', 'known', 'old1'),
    'own': ('minhash', 'near_duplicate', 'own2')}
  rows = {row['id']: row['metadata'] for row in records.read_corpus(new)}
  assert rows == {'unique': {'cluster_size': 1},
                  'own2': {'cluster_size': 8, 'cluster_id': 'own2', 'copies': 'a word'}}
  [own] = [row for row in records.read_corpus(str(tmp_path / 'new_rejects')) if row['id'] == 'own']
  assert own['metadata'] == {'cluster_size': 8, 'cluster_id': 'own2', 'duplicate_of': 'own2',
                             'deep': {'a': [1, 'x']}, 'signature': 'theirs'}


def test_one_document_of_each_url():
  documents = [Document('a', 'short', url='u'), Document('b', 'the longest', url='u'),
               Document('c', 'other', url='v'), Document('d', 'x'), Document('e', 'y')]
  kept, rejects = run(ExactDedup(by='url'), documents)
  assert set(kept) == {'b', 'c', 'd', 'e'}
  assert kept['b'].metadata == {'copies': 2}
  assert rejects['a'][1:] == ('url_dedup', 'duplicate_url')


@pytest.mark.parametrize('transform', [
  MinHashDedup(), ExactDedup(), ExactDedup(by='url'), MinHashDedup(scope='language')])
def test_ids_that_repeat_never_delete_a_document(transform):
  text = lambda seed: ' '.join(random.Random(seed).choices(VOCABULARY, k=80))
  near = text(1).replace(text(1).split()[0], 'other', 1)
  # Two files that number from 1; the first of one and the second of the other are alike.
  documents = [Document('1', text(1)), Document('2', text(2)), Document('1', text(3)),
               Document('2', near)]
  FOUND.clear()
  with beam.Pipeline(options=pipeline_options()) as pipeline:
    kept, _ = pipeline | beam.Create(documents) | transform
    kept | beam.Map(lambda d: d.text) | beam.Map(remember)
  assert {text(2), text(3)} < set(FOUND)
  assert len(FOUND) == (3 if isinstance(transform, MinHashDedup) else 4)


def test_unknown_settings_name_the_choices():
  for make in (lambda: MinHashDedup(scope='crawl'), lambda: ExactDedup(scope='crawl')):
    with pytest.raises(ValueError, match="unknown scope 'crawl': choose one of global, dump"):
      make()
  with pytest.raises(ValueError, match='choose one of fast, xxh64, sha1'):
    MinHashDedup(hash_name='md5')


@pytest.mark.parametrize(('size', 'language', 'weight'), [
  (1, '', 1), (2, 'nl', 2), (4, '', 3), (99, '', 5), (100, '', 8), (10**6, '', 1), (0, 'fr', 1),
  (13, 'fr', 4), (33, 'fr', 5), (150, 'es', 3), (2, 'de', 1), (3, 'de', 2)])
def test_rehydration(size, language, weight):
  assert rehydration_weight(size, language) == weight


# --- evaluation sets -------------------------------------------------------------------------


def test_documents_that_quote_an_evaluation_set_are_dropped(tmp_path):
  long = 'Janet has 16 ducks that lay three eggs each on every day of the week but Sunday.'
  rows = [{'question': long, 'answer': 'none'}, {'nested': {'choices': ['one two ' * 9, 'no']}},
          {'question': 'Which of these eight words is the odd?'},
          {'sum': '1+2+3+4+5+6+7+8+9+10=55'}]
  (tmp_path / 'riddles.test.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  files = [str(tmp_path / 'riddles.test.jsonl')]
  documents = [
    Document('quotes', '"janet has 3 DUCKS, that lay three eggs each on every day of" and so on'),
    Document('near', 'Janet has 16 ducks that lay three eggs each on any day of the week'),
    Document('short item', 'Well. Which of these eight words is the odd?'),
    Document('sums', ' + '.join(map(str, range(30)))), Document('repeats', 'one two ' * 30),
    Document('empty', '')]
  kept, rejects = run(Decontaminate(files), documents)
  assert set(kept) == {'near', 'sums', 'repeats', 'empty'}
  assert rejects['quotes'][1:] == ('decontaminate', 'riddles.test')
  assert rejects['quotes'].document.metadata['contaminated'] == [{
    'set': 'riddles.test', 'item': 0,
    'words': 'janet has 0 ducks that lay three eggs each on every day of'}]
  assert rejects['short item'].document.metadata['contaminated'][0]['item'] == 2


def test_nearly_an_item_and_the_report(tmp_path):
  words = [f'word{chr(97 + i % 26)}{chr(97 + i // 26)}' for i in range(60)]
  item = ' '.join(words)
  (tmp_path / 'a.jsonl').write_text(json.dumps({'q': item}) + '\n' + json.dumps(
    {'q': ' '.join(words[::-1])}) + '\n' + '\n'.join(
      json.dumps({'q': f'in the middle of the night {" ".join(words[i:i + 20:7])}'})
      for i in range(30)))
  files = (str(tmp_path / 'a.jsonl'),)
  changed = lambda step: ' '.join('other' if i % step == 3 else w for i, w in enumerate(words))
  near = lambda text, share=.8: contamination(text, files, near=share)
  for step, cover in ((10, .85), (7, .8)):     # one word in ten, in seven
    (found,) = near(f'Before it. {changed(step)} And after it more.')
    assert found['item'] == 0 and found['cover'] == cover
    assert found['words'] in ' '.join(simplify(changed(step)))
  assert not near(changed(7), 0) and not near(changed(7), .9) and not near(changed(4))
  # Its parts all over a long document, a phrase of many items, its words in another order.
  apart = ' '.join(' '.join(words[i:i + 8]) + ' else' * 40 for i in range(0, 60, 8))
  assert not near(apart) and not near('in the middle of the night ' * 9)
  assert not near(' '.join(words[i] for i in np.random.default_rng(0).permutation(60)))
  documents = [Document('verbatim', item), Document('near', changed(10)), Document('clean', apart)]
  options = ImportOptions(decontaminate=files)
  run_corpus(documents, tmp_path, decontamination(options))
  assert report(removed(str(tmp_path / 'c/1.0.0'))) == [
    {'set': 'a', 'documents': 2, 'verbatim': 1, 'cover': {'0.8': 1}, 'items': [0]}]


def run_corpus(documents, folder, stages):
  """Writes what the stages keep as the corpus c."""
  curation.curate(beam.Create(documents), stages, output=str(folder), name='c',
                  options=ImportOptions(num_shards=1), inputs=[])


def test_every_item_of_an_evaluation_set_is_found_in_itself(shared_data):
  path = str(shared_data / 'eval/arc_challenge.validation.jsonl')
  rows = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
  long = [(i, row['question']) for i, row in enumerate(rows)
          if len(simplify(row['question'])) >= 13]
  assert len(long) > 200
  found = [contamination(f'Before it. {question} And after.', (path,))
           for _, question in long]
  assert sum(bool(f) for f in found) == len(long)
  assert sum(f[0]['item'] == i for (i, _), f in zip(long, found, strict=True)) > .95 * len(long)


def test_a_file_that_is_no_jsonl_is_named(tmp_path):
  (tmp_path / 'x.jsonl').write_text('{"a": 1}\nno json\n')
  with pytest.raises(ValueError, match=r'x.jsonl, line 2, is not JSON'):
    contamination('text', (str(tmp_path / 'x.jsonl'),))

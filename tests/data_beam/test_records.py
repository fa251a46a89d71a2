import hashlib
import json
import logging
import math
import os
import pathlib
import random
import subprocess
import sys
import time

import apache_beam as beam
import hypothesis
import pytest
from helpers.corpora import STAGES, contents, make_documents, write
from hypothesis import strategies as st

from data_beam import records
from data_beam.beam_options import pipeline_options
from data_beam.finder import Finder
from data_beam.records import CorpusError, Document


@pytest.fixture(scope='module')
def output(tmp_path_factory):
  folder = tmp_path_factory.mktemp('corpora')
  write(folder, make_documents())
  return folder


def test_what_is_written_is_read(output):
  rows = {row['id']: row for row in records.read_corpus(str(output / 'web/1.0.0'))}
  kept = [d for d in make_documents() if d.metadata['n'] % 4]
  assert rows.keys() == {d.id for d in kept}
  for document in kept:
    row = rows[document.id]
    assert math.isnan(row.pop('quality')) == math.isnan(document.quality)
    assert row == {k: v for k, v in vars(document).items() if k not in ('quality', 'signature')}
  rejects = list(records.read_corpus(str(output / 'web_rejects')))  # DIR/NAME will do
  assert {(r['metadata']['n'], r['stage'], r['reason']) for r in rejects} == {
    (n, STAGES[n // 4 % 2], 'unlucky') for n in range(0, 40, 4)}


def test_manifest_and_funnel(output):
  documents = make_documents()
  kept = [d for d in documents if d.metadata['n'] % 4]
  manifest = json.loads((output / 'web/1.0.0/manifest.json').read_text())
  assert manifest['documents'] == len(kept) == 30
  assert manifest['characters'] == sum(len(d.text) for d in kept)
  assert manifest['bytes'] == sum(len(d.text.encode()) for d in kept)
  assert manifest['languages'] == {lang: sum(d.language == lang for d in kept)
                                   for lang in ('en', 'fr')}
  first, second = manifest['funnel']
  after_first = [d for d in documents if d.metadata['n'] % 8]
  assert first == {'stage': 'extract', 'documents_in': 40, 'documents_out': 35,
                   'characters_out': sum(len(d.text) for d in after_first),
                   'words_out': sum(len(d.text.split()) for d in after_first),
                   'dropped': {'unlucky': 5},
                   'dropped_words': {'unlucky': sum(len(d.text.split()) for d in documents
                                                    if d.metadata['n'] % 8 == 0)}}
  assert (second['documents_in'], second['documents_out']) == (35, 30)
  assert second['characters_out'] == manifest['characters']
  assert second['words_out'] == manifest['words'] == sum(len(d.text.split()) for d in kept)
  for shard in manifest['shards']:
    data = (output / 'web/1.0.0' / shard['file']).read_bytes()
    assert (shard['bytes'], shard['sha256']) == (len(data), hashlib.sha256(data).hexdigest())
  assert sum(s['records'] for s in manifest['shards']) == 30
  assert (manifest['config'], manifest['inputs']) == ({'b': 1, 'a': 2},
                                                      [{'path': 'x', 'bytes': 3}])


def test_the_manifest_of_rejects_finds_examples_of_each_reason(output):
  manifest = records.read_manifest(str(output / 'web_rejects'))
  rows = list(records.read_corpus(manifest['path']))
  assert [(k, list(v)) for k, v in manifest['examples'].items()] == [
    (stage, ['unlucky']) for stage in STAGES]
  for stage in STAGES:
    numbers = manifest['examples'][stage]['unlucky']
    assert numbers == [i for i, r in enumerate(rows) if r['stage'] == stage][:records.EXAMPLES]
    assert len(numbers) == 5


@pytest.mark.parametrize('mode', ['in_memory', 'multi_threading'])
def test_same_bytes_for_any_order_and_runner(output, tmp_path, mode):
  documents = make_documents()
  random.Random(1).shuffle(documents)
  write(tmp_path, documents,
        args=[f'--direct_running_mode={mode}', f'--direct_num_workers={1 + (mode != "in_memory")}'])
  assert contents(tmp_path) == contents(output)


def test_tfds_reads_it_without_tensorflow(output):
  code = f'''
import sys
from data_beam import records  # nor does the package itself load it
import tensorflow_datasets as tfds
source = tfds.builder_from_directory({str(output / 'web/1.0.0')!r}).as_data_source('train')
rows = [source[i] for i in range(len(source))]
assert sorted(r['id'].decode() for r in rows) == sorted(
  r['id'] for r in records.read_corpus({str(output / 'web')!r}))
assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules
print(len(rows))'''
  root = pathlib.Path(records.__file__).parent.parent
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
  assert done.stdout.strip() == '30', done.stderr


def test_a_broken_run_leaves_no_corpus_and_can_be_repeated(output, tmp_path):
  path = write(tmp_path, make_documents(20), num_shards=5)

  def is_kept(document):
    if document.metadata['n'] == 33:
      raise RuntimeError('poison')
    return document.metadata['n'] % 4

  with pytest.raises(RuntimeError, match='poison'):
    write(tmp_path, make_documents(), is_kept=is_kept)
  with pytest.raises(CorpusError, match='not finished'):
    records.read_corpus(path)
  (pathlib.Path(path) / 'web-train.array_record-00001-of-00003.tmp-1a2b').write_bytes(b'half')
  write(tmp_path, make_documents())
  assert contents(tmp_path) == contents(output)  # neither old shards nor temporary files are left


def test_an_unknown_stage_is_an_error(tmp_path):
  with pytest.raises(ValueError, match=r"'filter', which is not among .* stages: extract"):
    write(tmp_path, make_documents(), stages=('extract',))


def test_unreadable_corpora_are_refused(output, tmp_path):
  with pytest.raises(CorpusError, match=f'no corpus at .*{tmp_path.name}/none'):
    records.read_corpus(str(tmp_path / 'none'))
  path = pathlib.Path(write(tmp_path, make_documents(8)))
  with pytest.raises(CorpusError, match='curated, not tokenised'):
    records.read_manifest(str(path), 'tokenised')
  with pytest.raises(CorpusError, match="no split 'test', only train"):
    records.read_corpus(str(path), 'test')
  shard = next(p for p, n in records.list_shards(records.read_manifest(str(path))) if n)
  data = pathlib.Path(shard).read_bytes()
  for damaged in (b'', data[:len(data) // 2], None):
    if damaged is None:
      os.remove(shard)
    else:
      pathlib.Path(shard).write_bytes(damaged)
    with pytest.raises(CorpusError, match=os.path.basename(shard)):
      list(records.read_corpus(str(path)))


def test_an_empty_corpus_says_what_became_of_it(tmp_path):
  path = write(tmp_path, make_documents(8), is_kept=lambda d: False)
  assert records.read_manifest(path)['documents'] == 0
  with pytest.raises(CorpusError, match=r'all 8 documents were dropped, 4 of them by .*unlucky'):
    records.read_corpus(path)


VALUES = {
  str: st.text(st.characters(exclude_categories=['Cs'])), bytes: st.binary(),
  int: st.integers(-2**63, 2**63 - 1), float: st.floats(width=32, allow_nan=False),
  dict: st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans())),
}


@hypothesis.given(st.data())
@pytest.mark.parametrize('kind', records.FEATURES)
def test_encoding_round_trip(kind, data):
  values = {name: data.draw(VALUES[type_]) for name, type_ in records.FEATURES[kind].items()}
  encoded = records.encode(kind, values)
  assert records.decode(kind, encoded) == values
  assert records.encode(kind, dict(reversed(values.items()))) == encoded


def test_text_that_utf8_cannot_hold():
  row = vars(Document('1', 'a\ud800b'))
  assert records.decode('curated', records.encode('curated', row))['text'] == 'a?b'


def test_direct_runner_means_the_in_process_runner(caplog, monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['prog', '--runner=PrismRunner'])
  with caplog.at_level(logging.INFO, 'data_beam'):
    for args in ([], ['--runner=DirectRunner'], ['--runner=FnApiRunner']):
      options = pipeline_options(args)
      assert options.get_all_options()['runner'] == 'FnApiRunner'
  assert [r.message.count('FnApiRunner') for r in caplog.records] == [1, 1, 1]
  assert 'DirectRunner means' in caplog.records[1].message
  remote = pipeline_options(['--runner=DataflowRunner', '--project=p', '--new_flag=1'])
  assert remote.get_all_options()['runner'] == 'DataflowRunner'


def test_a_misspelt_flag_is_refused():
  with pytest.raises(ValueError, match='--direct_num_worker=2'):
    pipeline_options(['--direct_num_worker=2'])


def test_records_are_found_by_id_and_number(output):
  rows = list(records.read_corpus(str(output / 'web')))
  with Finder(str(output / 'web')) as finder:
    for number, row in enumerate(rows):
      assert finder.read(number)['id'] == row['id']
      ((found, record),) = finder.find(row['id'])
      assert (found, record['text']) == (number, row['text'])
      file, place = finder.place(number)
      shard = next(s for s in finder.shards if s[0].endswith(file))
      assert list(records.read_shard(*shard, 'curated'))[place]['id'] == row['id']
    for id_ in ('<urn:0>', '', '<urn:99>', 'zzz', '\ud800'):  # the first is among the rejects
      assert finder.find(id_) == []
    with pytest.raises(IndexError):
      finder.read(len(rows))


class _SlowToWrite:
  """Takes longer to encode than Beam's timer waits before it sends what a thread has written."""

  def __init__(self, number: int):
    self.number = number

  def __reduce__(self):
    time.sleep(1.2)
    return _SlowToWrite, (self.number,)


def test_threads_do_not_send_half_an_element(tmp_path):
  """Beam's own default does: the second half arrives as None, or the element is lost."""
  out = tmp_path / 'numbers'
  options = pipeline_options(
    ['--direct_running_mode=multi_threading', '--direct_num_workers=2'])
  with beam.Pipeline(options=options) as pipeline:
    _ = (
      pipeline
      | beam.Create([1, 2, 3])
      | beam.Map(lambda n: ('all', (n, _SlowToWrite(n))))
      | beam.GroupByKey()
      | beam.FlatMap(lambda group: [f'{n} {slow.number}' for n, slow in group[1]])
      | beam.io.WriteToText(str(out), shard_name_template=''))
  assert sorted(out.read_text().split('\n')) == ['', '1 1', '2 2', '3 3']

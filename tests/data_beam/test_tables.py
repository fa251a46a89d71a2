"""Tables in and out: the published layouts, bad rows and files, and the way there and back."""

import datetime
import functools
import gzip
import hashlib
import http.server
import json
import math
import pathlib
import random
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_tokenised
from helpers.corpora import contents, make_documents, write

from data_beam import records, tables
from data_beam.options import ImportOptions
from data_beam.tables import LAYOUTS, RowError, to_document

TEXT = 'A text of a few words.'
# One row as each dataset has it, and what must come of it.
ROWS = {
  'fineweb': (
    {'text': TEXT, 'id': '<urn:uuid:1>', 'dump': 'CC-MAIN-2024-10', 'url': 'http://a.b/c',
     'date': '2024-02-21T00:00:00Z', 'file_path': 's3://commoncrawl/x.warc.gz', 'language': 'en',
     'language_score': 0.9, 'token_count': 6},
    {'id': '<urn:uuid:1>', 'url': 'http://a.b/c', 'date': '2024-02-21T00:00:00Z',
     'language': 'en', 'language_score': 0.9, 'source': 'here',
     'metadata': {'dump': 'CC-MAIN-2024-10', 'token_count': 6,
                  'warc_file': 's3://commoncrawl/x.warc.gz'}}),
  'fineweb-edu': (
    {'text': TEXT, 'id': '<urn:uuid:1>', 'dump': 'CC-MAIN-2024-10', 'url': 'http://a.b/c',
     'file_path': 's3://x', 'language': 'en', 'language_score': 0.9, 'token_count': 6,
     'score': 3.5, 'int_score': 4},
    {'quality': 3.5, 'date': '', 'metadata': {
      'dump': 'CC-MAIN-2024-10', 'token_count': 6, 'int_score': 4, 'warc_file': 's3://x'}}),
  'fineweb-2': (
    {'text': TEXT, 'id': '<urn:uuid:1>', 'dump': 'CC-MAIN-2024-10', 'url': 'http://a.b/c',
     'date': '2024-02-21T00:00:00Z', 'file_path': 's3://x', 'language': 'fra',
     'language_score': 0.9, 'language_script': 'Latn', 'minhash_cluster_size': 7,
     'top_langs': '{"fra_Latn_score": 0.9}'},
    {'language': 'fr', 'metadata': {
      'dump': 'CC-MAIN-2024-10', 'language_script': 'Latn', 'language_tag': 'fra',
      'top_langs': '{"fra_Latn_score": 0.9}', 'cluster_size': 7, 'warc_file': 's3://x'}}),
  'finepdfs': (
    {'text': TEXT, 'id': '<urn:uuid:1>', 'dump': 'CC-MAIN-2024-10', 'url': 'http://a.b/c.pdf',
     'date': '2024-02-21T00:00:00+00:00', 'file_path': 's3://x', 'offset': 12,
     'token_count': 6, 'language': 'deu_Latn', 'page_average_lid': 'deu_Latn',
     'page_average_lid_score': 0.8, 'full_doc_lid': 'deu_Latn', 'full_doc_lid_score': 0.7,
     'per_page_languages': ['deu_Latn'], 'is_truncated': False, 'extractor': 'docling',
     'page_ends': [22]},
    {'language': 'de', 'language_score': 0.7, 'metadata': {
      'dump': 'CC-MAIN-2024-10', 'token_count': 6, 'page_average_lid': 'deu_Latn',
      'page_average_lid_score': 0.8, 'full_doc_lid': 'deu_Latn', 'language_tag': 'deu_Latn',
      'per_page_languages': ['deu_Latn'], 'is_truncated': False, 'extractor': 'docling',
      'page_ends': [22], 'warc_file': 's3://x', 'warc_offset': 12}}),
  'dclm': (
    {'text': TEXT, 'url': 'http://a.b/c', 'bff_contained_ngram_count_before_dedupe': 1,
     'language_id_whole_page_fasttext': {'en': 0.95}, 'previous_word_count': 6,
     'metadata': {'WARC-Record-ID': '<urn:uuid:2>', 'WARC-Date': '2014-01-01T00:00:00Z'},
     'fasttext_openhermes_reddit_eli5_vs_rw_v2_bigram_200k_train_prob': 0.25},
    {'id': '<urn:uuid:2>', 'date': '2014-01-01T00:00:00Z', 'language': 'en',
     'language_score': 0.95, 'quality': 0.25}),
  'finemath': (
    {'url': 'http://a.b/c', 'fetch_time': 1_500_000_000_000_000_000, 'warc_filename': 'x.warc.gz',
     'content_mime_type': 'text/html', 'warc_record_offset': 3, 'warc_record_length': 4,
     'text': TEXT, 'token_count': 6, 'char_count': 22, 'metadata': '{"found_math": true}',
     'score': 4.5, 'int_score': 4, 'crawl': 'CC-MAIN-2017-30', 'snapshot_type': 'latest',
     'language': 'en', 'language_score': 0.9},
    {'id': hashlib.sha256(f'http://a.b/c\n{TEXT}'.encode()).hexdigest(), 'quality': 4.5,
     'date': '2017-07-14T02:40:00Z', 'metadata': {
       'content_mime_type': 'text/html', 'warc_record_length': 4, 'token_count': 6,
       'char_count': 22, 'metadata': '{"found_math": true}', 'int_score': 4,
       'snapshot_type': 'latest', 'warc_file': 'x.warc.gz', 'warc_offset': 3,
       'dump': 'CC-MAIN-2017-30'}}),
  'stack-edu': (
    {'blob_id': 'abc', 'language': 'Python', 'repo_name': 'a/b', 'path': '/c.py',
     'src_encoding': 'UTF-8', 'length_bytes': 22, 'score': 3.2, 'int_score': 3,
     'detected_licenses': ['MIT'], 'license_type': 'permissive', 'text': TEXT},
    {'id': 'abc', 'language': '', 'quality': 3.2, 'metadata': {
      'repo_name': 'a/b', 'path': '/c.py', 'src_encoding': 'UTF-8', 'length_bytes': 22,
      'int_score': 3, 'detected_licenses': ['MIT'], 'license_type': 'permissive',
      'programming_language': 'Python'}}),
}


@pytest.mark.parametrize('layout', ROWS)
def test_published_layouts(layout, tmp_path):
  row, expected = ROWS[layout]
  pq.write_table(pa.Table.from_pylist([row]), tmp_path / 'x.parquet')  # as pyarrow types it
  ((_, read),) = tables.read_rows(tables.Part(str(tmp_path / 'x.parquet'), 0))
  for version in (row, read):
    document = to_document(version, LAYOUTS[layout], 'here')
    assert document.text == TEXT
    assert {k: getattr(document, k) for k in expected} == expected


def test_every_layout_names_fields_that_exist():
  assert set(ROWS) == set(LAYOUTS) - {'corpus', 'plain'}
  for columns in LAYOUTS.values():
    assert {k for k in columns if not k.startswith('metadata.')} <= {*records.FEATURES['curated']}


@pytest.mark.parametrize('row, reason', [
  ({}, 'no_text'), ({'text': ' \n'}, 'no_text'), ({'text': ['a']}, 'no_text'),
  ({'text': 'a', 'language_score': 'high'}, 'bad_value'),
  ({'text': 'a', 'url': {'x': 1}}, 'bad_value'),
  ({'text': 'a', 'n': json.loads('[' * 90 + ']' * 90)}, 'bad_value')])
def test_bad_rows_have_reasons(row, reason):
  with pytest.raises(RowError) as error:
    to_document(row, LAYOUTS['plain'], '')
  assert error.value.reason == reason


@pytest.mark.parametrize('value, expected', [
  (None, ''), ('yesterday', 'yesterday'), (1_500_000_000, '2017-07-14T02:40:00Z'),
  (1_500_000_000_000, '2017-07-14T02:40:00Z'),
  (datetime.datetime(2017, 7, 14, 2, 40), '2017-07-14T02:40:00Z')])
def test_dates(value, expected):
  assert tables._date(value) == expected


def as_documents(path):
  return sorted(({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in r.items()}
                 for r in records.read_corpus(path)), key=lambda r: r['id'])


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  documents = make_documents()
  documents[1].text = '{"not": "json" |`\u2028 \x00 ünïcode' + 'x' * 5000
  documents[2].metadata |= {'deep': [{'a': None, 'b': [1, 2.5, 'ß']}], 'text': 'not the text'}
  return write(tmp_path_factory.mktemp('corpus'), documents)


@pytest.fixture(scope='module', params=tables.FORMATS)
def exported(request, corpus, tmp_path_factory):
  return tables.export_corpus(
    corpus, str(tmp_path_factory.mktemp('out') / 'x'), format=request.param), request.param


def test_there_and_back_is_the_same_corpus(corpus, exported, tmp_path):
  back = tables.import_tables([f'{exported[0]}/data/*.*'], str(tmp_path), 'web',
                              ImportOptions(layout='corpus', num_shards=3))
  assert as_documents(back) == as_documents(corpus)
  shards = [f for f in contents(corpus) if 'array_record' in f]
  assert len(shards) == 3
  for shard in shards:  # to the byte
    assert contents(back)[shard] == contents(corpus)[shard]


def test_the_export_is_what_others_read(corpus, exported, tmp_path):
  folder, format = exported
  if format == 'parquet':
    table = pq.read_table(f'{folder}/data')
    assert table.column_names == list(records.FEATURES['curated'])
    rows = table.to_pylist()
    assert {json.loads(r['metadata'])['n'] for r in rows} == {n for n in range(40) if n % 4}
    assert math.isnan(next(r for r in rows if r['id'] == '<urn:1>')['quality'])
  else:
    rows = [json.loads(line) for file in (pathlib.Path(folder) / 'data').iterdir()
            for line in gzip.decompress(file.read_bytes()).splitlines()]
    assert next(r for r in rows if r['id'] == '<urn:1>')['quality'] is None
  assert sorted(r['id'] for r in rows) == [r['id'] for r in as_documents(corpus)]
  card = pathlib.Path(folder, 'README.md').read_text()
  ending = 'parquet' if format == 'parquet' else 'jsonl.gz'
  for line in ('language:\n- en\n- fr', '- n<1K', f'    path: data/train-*.{ending}',
               '| documents | 30 |', '| extract | 40 | 35 | unlucky 5 |', '- `x`'):
    assert line in card
  assert json.loads(pathlib.Path(folder, 'manifest.json').read_text())['name'] == 'web'
  manifest, shard = records.read_manifest(corpus), records.list_shards(
    records.read_manifest(corpus))[0]
  again = tables.export_shard((*shard, 'train-00000-of-00003'), output=str(tmp_path),
                              format=format, manifest=manifest)
  same = pathlib.Path(folder, 'data', pathlib.Path(again).name)
  assert same.read_bytes() == pathlib.Path(again).read_bytes()
  with pytest.raises(ValueError, match='holds an export already'):
    tables.export_corpus(corpus, folder)


def test_rejects_and_tokens_can_be_exported(corpus, tmp_path):
  rejects = pathlib.Path(corpus).parent.parent / 'web_rejects'
  folder = tables.export_corpus(str(rejects), str(tmp_path / 'rejects'))
  table = pq.read_table(f'{folder}/data').to_pylist()
  assert len(table) == 10 and {r['reason'] for r in table} == {'unlucky'}
  documents = {'train': [[5, 6, 65535], [7]], 'validation': [[8, 9]]}
  path = write_tokenised(tmp_path, 'tokens', documents, 65536)
  manifest_file = tmp_path / 'tokens/1.0.0/manifest.json'
  manifest = json.loads(manifest_file.read_text())
  manifest |= {'documents': 3, 'code_version': '0', 'config': {}}
  manifest_file.write_text(json.dumps(manifest))
  manifest_file.with_name('_SUCCESS').write_text('')  # it is changed on purpose
  folder = tables.export_corpus(path, str(tmp_path / 'tokens_out'))
  for split, expected in documents.items():
    rows = pq.read_table(f'{folder}/data/{split}-00000-of-00001.parquet')
    assert rows['tokens'].to_pylist() == expected
    assert rows.schema.field('tokens').type == pa.list_(pa.uint16())


def test_bad_rows_and_files_are_rejects(tmp_path):
  lines = [json.dumps({'text': f'Text {i}.', 'n': i}) for i in range(6)]
  lines[1] = '{"text": "torn'
  lines[2] = '["a list"]'
  lines[3] = '{"text": null, "url": "http://x"}'
  (tmp_path / 'a.jsonl').write_text('\n'.join(lines) + '\n\n')
  (tmp_path / 'b.jsonl').write_bytes(b'{"text": "caf\xe9"}\n{"text": "Good."}\n')
  packed = gzip.compress(''.join(
    f'{{"text": "Zipped {random.Random(i).random()}."}}\n' for i in range(20_000)).encode())
  (tmp_path / 'c.jsonl.gz').write_bytes(packed[:len(packed) // 2])
  table = pa.table({'text': [f'Row {i} of a table.' for i in range(100)]})
  pq.write_table(table, tmp_path / 'd.parquet', row_group_size=30)
  (tmp_path / 'e.parquet').write_bytes((tmp_path / 'd.parquet').read_bytes()[:-40])
  path = tables.import_tables([f'{tmp_path}/?.*'], str(tmp_path / 'out'), 'mixed')
  texts = [r['text'] for r in records.read_corpus(path)]
  zipped = sum(t.startswith('Zipped') for t in texts)
  assert sorted(t for t in texts if not t.startswith('Zipped')) == sorted(
    ['Text 0.', 'Text 4.', 'Text 5.', 'Good.', *table['text'].to_pylist()])
  assert 0 < zipped < 20_000
  rejects = {(r['metadata']['table'], r['metadata']['row'], r['reason'])
             for r in records.read_corpus(str(tmp_path / 'out/mixed_rejects'))}
  assert rejects - {('c.jsonl.gz', zipped, 'bad_json')} == {
    ('a.jsonl', 1, 'bad_json'), ('a.jsonl', 2, 'bad_json'), ('a.jsonl', 3, 'no_text'),
    ('b.jsonl', 0, 'bad_json'), ('c.jsonl.gz', zipped, 'corrupt_file'),
    ('e.parquet', 0, 'corrupt_file')}
  assert records.read_manifest(path)['documents'] == len(texts)


def test_odd_rows_cost_themselves(tmp_path):
  rows = ['{"text": "one"}', '{"text": "before Christ", "date": -1e11}',
          '{"text": "half a \\ud83d sign", "id": "\\udfff"}', '{"text": "two"}']
  (tmp_path / 'x.jsonl').write_text('\n'.join(rows), 'utf-16')
  found = list(tables.read(tables.split(str(tmp_path / 'x.jsonl')), LAYOUTS['plain'], ''))
  assert [r.text if isinstance(r, records.Document) else r.reason for r in found] == [
    'one', 'bad_value', 'half a ? sign', 'two']
  assert found[2].id == '?'
  bad = pa.array([b'one', b'tw\xff']).view(pa.string())
  pq.write_table(pa.table({'text': bad}), tmp_path / 'x.parquet', use_dictionary=False)
  found = list(tables.read(tables.split(str(tmp_path / 'x.parquet')), LAYOUTS['plain'], ''))
  assert [r.text for r in found] == ['one', 'tw\ufffd']


@pytest.mark.parametrize('column', [
  pa.array([{'k': 'y' * (30 << 20)}] * 5), pa.array([['y' * (1 << 20)] * 100] * 2),
  pa.ListArray.from_arrays([0, 12 << 20], np.zeros(12 << 20))])
def test_values_in_values_are_no_way_to_gigabytes(tmp_path, column):
  table = pa.table({'text': pa.nulls(len(column), pa.string()), 'x': column})
  pq.write_table(table, tmp_path / 'x.parquet', compression='zstd')
  found = list(tables.read(tables.split(str(tmp_path / 'x.parquet')), LAYOUTS['plain'], ''))
  assert [r.reason for r in found] == ['ratio']


def test_compressed_lines(tmp_path):
  data = ''.join(f'{{"text": "Line {i}."}}\n' for i in range(9000)).encode()
  (tmp_path / 'x.jsonl.zst').write_bytes(pytest.importorskip('zstandard').compress(data))
  rows = [row for _, row in tables.read_rows(tables.Part(str(tmp_path / 'x.jsonl.zst'), None))]
  assert rows == [{'text': f'Line {i}.'} for i in range(9000)]


@pytest.mark.parametrize('indent', [None, 2])
@pytest.mark.parametrize('packed', [False, True])
def test_a_json_list_is_rows(tmp_path, indent, packed, monkeypatch):
  monkeypatch.setattr(tables, '_CHUNK', 100)
  rows = [{'text': f'Line {i}, é "[{{', 'n': [i, {'a': None}]} for i in range(200)]
  data = b'\xef\xbb\xbf\n ' + json.dumps(rows, indent=indent, ensure_ascii=False).encode()
  path = tmp_path / ('x.json.gz' if packed else 'x.json')
  path.write_bytes(gzip.compress(data) if packed else data)
  read = lambda: [row for _, row in tables.read_rows(tables.Part(str(path), None))]
  assert read() == rows
  path.write_bytes(data[:-30])  # cut off
  *found, error = read()
  assert found == rows[:len(found)] and len(found) > 190 and error.reason == 'bad_json'
  path.write_bytes(b'[1, {"text": "\\ud800"}, "x"]')
  assert [getattr(r, 'reason', r) for r in read()] == ['bad_json', {'text': '?'}, 'bad_json']
  for text, count in (('[]', 0), ('', 0), ('{"text": "a"}\n{"text": "b"}\n', 2)):
    path.write_text(text)  # lines are called so, too
    assert len(read()) == count


def test_tables_over_http(tmp_path):
  folder = tmp_path / 'served'
  folder.mkdir()
  table = pa.table({'text': [f'Row {i} of a table.' for i in range(50)]})
  pq.write_table(table, folder / 'a.parquet', row_group_size=20)
  (folder / 'b.jsonl.gz').write_bytes(gzip.compress(b'{"text": "A zipped line."}\n'))
  handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f'http://127.0.0.1:{server.server_address[1]}'
    path = tables.import_tables([f'{base}/a.parquet', f'{base}/b.jsonl.gz'],
                                str(tmp_path / 'out'), 'web')
    server.shutdown()
  texts = sorted(r['text'] for r in records.read_corpus(path))
  assert texts == sorted([*table['text'].to_pylist(), 'A zipped line.'])


@pytest.mark.parametrize('args, message', [
  (['--layout=fineweb', '--input=TMP/x.jsonl'], "no column 'text'"),
  (['--input=TMP/x.jsonl', '--columns', 'text'], 'takes FIELD=COLUMN'),
  (['--input=TMP/x.jsonl', '--columns', 'txet=content'], "unknown field 'txet'"),
  (['--input=TMP/nothing*'], 'no file matches'),
  (['--input=TMP/x.jsonl', '--columns', 'text=content', '--limit=0'], 'limit is 0')])
def test_bad_input_is_one_line_and_exit_2(args, message, tmp_path, capsys):
  (tmp_path / 'x.jsonl').write_text('{"content": "A text."}\n')
  args = [a.replace('TMP', str(tmp_path)) for a in args]
  assert tables.main(['import', f'--output={tmp_path}', '--name=x', *args]) == 2
  error = capsys.readouterr().err
  assert message in error.splitlines()[-1] and 'Traceback' not in error


def test_columns_and_limit(tmp_path):
  (tmp_path / 'x.jsonl').write_text(''.join(
    f'{{"content": "Text {i}.", "where": {{"page": "http://{i}"}}}}\n' for i in range(9)))
  assert tables.main(['import', f'--output={tmp_path}', '--name=x', f'--input={tmp_path}/x.jsonl',
                      '--columns', 'text=content', 'url=where.page', 'source==wiki',
                      '--limit=4', '--num_shards=1']) == 0
  rows = list(records.read_corpus(str(tmp_path / 'x')))
  assert sorted((r['text'], r['url'], r['source']) for r in rows) == [
    (f'Text {i}.', f'http://{i}', 'wiki') for i in range(4)]

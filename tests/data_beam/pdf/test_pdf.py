"""The PDF pipeline on files made here: what is kept, what is dropped and why."""

import base64
import dataclasses
import gzip
import hashlib
import io
import itertools
import json
import os
import re

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to
from helpers.stories import make, story
from PIL import Image
from reportlab.lib.pdfencrypt import StandardEncryption
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from data_beam import records
from data_beam.beam_options import pipeline_options
from data_beam.filters.rules import PDF, profile
from data_beam.options import PdfOptions
from data_beam.pdf import pipeline as pdf
from data_beam.pdf import text as pdf_text
from data_beam.pdf.thumbnail import thumbnail


def sha(body: bytes) -> str:
  return hashlib.sha256(body).hexdigest()


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pdfs')
  contact = ['Write to someone.private@nowhere-mail.org or to 8.8.8.8 for a copy of this.']
  german = ['Die alte Brücke über den Fluss wurde im Winter gesperrt, weil der Wind zu stark war, '
            f'und erst nach {n} Tagen kam der erste Wagen.' for n in range(30)]
  bodies = {
    **{f'good{i}.pdf': make(story(i)) for i in range(4)},
    'contact.pdf': make(contact + story(50, 30) + contact + story(51, 30)),
    'copy_of_good0.pdf': make(story(0)),
    'near_good1.pdf': make([*story(1), 'One more sentence stands at the end of this version.']),
    'same_text_as_good2.pdf': make(story(2), pageCompression=0),
    'short.pdf': make(story(7, 2)),
    'german.pdf': make(german),
    'truncated.pdf': make(story(8))[:300],
    'locked.pdf': make(story(9), encrypt=StandardEncryption('user', 'owner')),
    'no.pdf': b'<html></html>',
  }
  for name, body in bodies.items():
    (folder / name).write_bytes(body)
  return folder, bodies


def run(inputs, output, beam_args=(), **options):
  folder, _ = inputs
  path = pdf.run([str(folder / '*.pdf')], str(output),
                 options=PdfOptions(num_shards=2, **options), beam_args=beam_args)
  kept = {row['id']: row for row in records.read_corpus(path)}
  rejects = {row['metadata'].get('file'): row
             for row in records.read_corpus(records.corpus_path(str(output), 'pdf_rejects'))}
  return path, kept, rejects


@pytest.fixture(scope='module')
def corpus(inputs, tmp_path_factory):
  return run(inputs, tmp_path_factory.mktemp('out'))


def test_what_is_kept_and_what_is_dropped(inputs, corpus):
  _, bodies = inputs
  _, kept, rejects = corpus
  names = {row['metadata']['file'] for row in kept.values()}
  assert {'good3.pdf', 'contact.pdf', 'near_good1.pdf'} < names
  assert len(names & {'good0.pdf', 'copy_of_good0.pdf'}) == 1
  assert len(names & {'good2.pdf', 'same_text_as_good2.pdf'}) == 1
  reasons = {name: (row['stage'], row['reason']) for name, row in rejects.items()}
  assert reasons.pop('good1.pdf') == ('minhash', 'near_duplicate')     # the longer one stays
  assert ('exact_dedup', 'duplicate') in (
    reasons.pop('good2.pdf', None), reasons.pop('same_text_as_good2.pdf', None))
  assert ('same_bytes', 'duplicate') in (
    reasons.pop('good0.pdf', None), reasons.pop('copy_of_good0.pdf', None))
  assert reasons == {
    'short.pdf': ('filter', 'short'), 'german.pdf': ('language', 'de'),
    'truncated.pdf': ('extract', 'truncated'), 'locked.pdf': ('extract', 'encrypted'),
    'no.pdf': ('extract', 'not_pdf')}
  for row in kept.values():
    assert row['id'] == row['metadata']['pdf_digest'] == sha(bodies[row['metadata']['file']])
    assert row['language'] == 'en' and row['source'] == 'pdf'


def test_pages_and_private_data(corpus):
  _, kept, _ = corpus
  row = next(r for r in kept.values() if r['metadata']['file'] == 'contact.pdf')
  metadata, text = row['metadata'], row['text']
  assert metadata['pages'] == 3 and metadata['page_methods'] == ['text'] * 3
  assert 'someone.private' not in text and '8.8.8.8' not in text and text.count('@example.') == 2
  lines = ['Write to'] + story(50, 30) + ['Write to'] + story(51, 30)
  for offset, first in zip(metadata['page_offsets'], lines[::25], strict=True):
    assert text[offset:].startswith(first)  # although replacements changed the lengths


def test_manifest(inputs, corpus):
  path, kept, rejects = corpus
  manifest = records.read_manifest(path, 'curated')
  assert [row['stage'] for row in manifest['funnel']] == [
    'read', 'same_bytes', 'extract', 'language', 'filter', 'exact_dedup', 'minhash', 'pii']
  assert manifest['funnel'][0]['documents_in'] == len(inputs[1]) == len(kept) + len(rejects)
  assert manifest['funnel'][-1]['documents_out'] == manifest['documents'] == len(kept)
  assert manifest['config'].keys() - {'ocr_engine'} == {
    field.name for field in dataclasses.fields(PdfOptions)}
  assert manifest['config']['ocr'] == 'auto' and len(manifest['inputs']) == len(inputs[1])


def test_same_bytes_whatever_the_runner_does(inputs, corpus, tmp_path):
  path, *_ = corpus
  other, *_ = run(inputs, tmp_path, beam_args=['--direct_num_workers=1'])
  first, second = (json.dumps(records.read_manifest(p)['shards']) for p in (path, other))
  assert first == second


def test_a_crash_in_the_parser_loses_one_document(inputs, tmp_path, monkeypatch):
  folder, bodies = inputs
  (tmp_path / 'crashing_pdf.py').write_text(f'''
import ctypes, hashlib
from data_beam.pdf import text as pdf_text
def answer(body, **options):
  if hashlib.sha256(body).hexdigest() == {sha(bodies['good3.pdf'])!r}: ctypes.string_at(0)
  return pdf_text.answer(body, **options)
''')
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.setattr(pdf_text.Extractor, 'function', 'crashing_pdf:answer')
  files = [str(folder / f'good{i}.pdf') for i in range(4)]
  path = pdf.run(files, str(tmp_path), options=PdfOptions(num_shards=1))
  assert len(list(records.read_corpus(path))) == 3
  reject, = records.read_corpus(records.corpus_path(str(tmp_path), 'pdf_rejects'))
  assert (reject['metadata']['file'], reject['reason']) == ('good3.pdf', 'crash')
  assert 'SIGSEGV' in reject['metadata']['error']


def test_pdfs_in_a_warc(inputs, tmp_path):
  _, bodies = inputs
  with open(tmp_path / 'crawl.warc.gz', 'wb') as f:
    writer = WARCWriter(f, gzip=True)
    for url, kind, body in (('https://a.example/', 'text/html', b'<html><p>no</p></html>'),
                            ('https://a.example/x.pdf', 'application/pdf', bodies['good0.pdf']),
                            ('https://b.example/y', 'application/pdf', bodies['truncated.pdf']),
                            ('https://c.example/z', 'application/pdf', bodies['good0.pdf'])):
      headers = StatusAndHeaders('200 OK', [('Content-Type', kind)], protocol='HTTP/1.1')
      writer.write_record(writer.create_warc_record(
        url, 'response', payload=io.BytesIO(body), http_headers=headers))
  path = pdf.run([str(tmp_path / '*.warc.gz')], str(tmp_path / 'out'), 'mine',
                 PdfOptions(num_shards=1))
  row, = records.read_corpus(path)
  assert row['id'].startswith('<urn:uuid:') and row['url'] == 'https://a.example/x.pdf'
  assert row['source'] == 'mine' and row['metadata']['pdf_digest'] == sha(bodies['good0.pdf'])
  assert row['metadata']['warc_file'] == 'crawl.warc.gz' and row['metadata']['warc_offset'] > 0
  rejects = records.read_corpus(records.corpus_path(str(tmp_path / 'out'), 'mine_rejects'))
  assert sorted((r['url'], r['stage'], r['reason']) for r in rejects) == [
    ('https://b.example/y', 'extract', 'truncated'),
    ('https://c.example/z', 'same_bytes', 'duplicate')]


def test_gzipped_pdfs_are_read_and_bounded(inputs, tmp_path, monkeypatch):
  body = inputs[1]['good0.pdf']
  (tmp_path / 'a.pdf.gz').write_bytes(gzip.compress(body))
  (tmp_path / 'b.pdf.gz').write_bytes(gzip.compress(body)[:200])
  (tmp_path / 'c.pdf.gz').write_bytes(gzip.compress(body + bytes(1 << 20)))
  monkeypatch.setattr(pdf, 'MAX_PDF_BYTES', 1 << 20)
  whole, cut, large = pdf.read([str(tmp_path / f'{name}.pdf.gz') for name in 'abc'], 'pdf', None)
  assert whole.digest == sha(body) and pdf.body_of(whole) == body
  assert (cut.reason, large.reason) == ('corrupt_file', 'too_large')


def test_limit_reads_the_first_files(inputs):
  folder, bodies = inputs
  paths = sorted(str(p) for p in folder.glob('*.pdf'))
  found = list(pdf.read(paths, 'pdf', 3))
  assert [r.digest for r in found] == [sha(bodies[name]) for name in sorted(bodies)[:3]]


def test_equal_bytes_keep_one_reference_in_any_order():
  def reference(url, offset):
    return pdf.Reference('digest', f'id{offset}', url, '', '/x/a.warc', offset, '')
  references = [reference('https://b', 1), reference('https://a', 2), reference('https://a', 3)]
  with beam.Pipeline(options=pipeline_options()) as p:
    kept, dropped = p | beam.Create(references) | pdf.SameBytes('pdf')
    assert_that(kept, equal_to([references[1]]), 'kept')
    assert_that(dropped | beam.Map(lambda r: (r.document.id, r.document.metadata['duplicate_of'])),
                equal_to([('id1', 'id2'), ('id3', 'id2')]), 'dropped')


def test_page_offsets_go_where_a_rule_rewrites_the_text():
  def shorten(document):
    document.text = document.text[:5]

  document = records.Document('1', 'a text with pages', metadata={'page_offsets': [0, 7], 'x': 1})
  tidy, = pdf.judge(document, (shorten,))
  assert tidy.text == 'a tex' and tidy.metadata == {'x': 1}
  same, = pdf.judge(document, ())
  assert same.metadata['page_offsets'] == [0, 7]
  assert next(pdf.anonymise(tidy)).text == 'a tex'


def test_tables_do_not_decide_the_language():
  table = '\n'.join(['| Kartoffeln und Zwiebeln | sind in der Küche |'] * 30)
  text = f'{" ".join(story(3, 5))}\n\n{table}'
  result, = pdf.identify(records.Document('1', text), ('en',), .4)
  assert result.language == 'en' and result.text == text


def test_tables_tell_the_language_where_little_else_is_there():
  rows = '\n'.join(f'| Der {k}. Brunnen im Garten am Fluss | 12.{k} | {k} |' for k in range(9))
  document = records.Document('1', f'Seite 3\n\n{rows}\n\nSumme')
  result, = pdf.identify(document, ('de',), None)
  assert result.language == 'de'
  # Numbers alone have none; their pages are not counted.
  numbers = '\n'.join(f'| {k} | 1{k}.5 |' for k in range(90))
  (reject,) = pdf.identify(records.Document('1', numbers), ('de',), None)
  assert reject.stage == 'language'
  document = records.Document('1', rows + numbers + numbers, metadata={
    'page_offsets': [0, len(rows), len(rows + numbers)]})
  result, = pdf.identify(document, ('de',), None)
  assert result.language == 'de'


def test_capitals_of_a_table_tell_its_language():
  rows = [('HARBOR AND BARGE SERVICES', 'PURCHASE OF OFFICE SUPPLIES'),
          ('STATE WATER BOARD', 'TRAVEL AND LODGING FOR MEETINGS'),
          ('OLD BRIDGE PRINTING', 'PRINTING OF LETTERS AND NOTICES')]
  text = '\n'.join(f'| {i} | {" | ".join(row)} | {37 * i}.50 |' for i, row in enumerate(rows))
  (result,) = pdf.identify(records.Document('1', text), ('en',), None)
  assert getattr(result, 'language', result) == 'en'



def test_the_language_is_the_average_over_pages():
  english, german = ' '.join(story(3, 8)), (
    'Die alte Brücke über den Fluss wurde im Winter gesperrt, weil der Wind zu stark war. ' * 8)
  pages = [english, german, english, '12 13', english]
  offsets = [0, *itertools.accumulate(map(len, pages[:-1]))]
  document = records.Document('1', ''.join(pages), metadata={'page_offsets': offsets})
  result, = pdf.identify(document, ('en', 'de'), .4)
  assert result.language == 'en' and result.metadata['page_languages'] == [
    'en', 'de', 'en', '', 'en']
  assert result.language_score == pytest.approx(.75, abs=.05)       # three of four with words
  assert result.metadata['languages']['de'] == pytest.approx(.25, abs=.02)
  (reject,) = pdf.identify(document, (), .8)
  assert reject.reason == 'unsure' and reject.document.text == document.text
  (reject,) = pdf.identify(document, ('de',), .4)
  assert reject.reason == 'en'


@pytest.mark.parametrize(('arguments', 'message'), [
  (['--input=missing/*.pdf'], 'no file matches missing/*.pdf'),
  (['--input=X', '--filters=nonsense'], "unknown filter 'nonsense'"),
  (['--input=X', '--limit=0'], 'limit is 0'),
  (['--input=X', '--refetch=some', '--agent=a@b.org'], "unknown refetch 'some'"),
  (['--input=X', '--refetch=truncated'], 'needs --agent'),
  (['--input=X', '--ocr_server=http://localhost:8000'], 'give both'),
  (['--input=X', '--name=a/b'], "'a/b' cannot be the name"),
])
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys, inputs):
  arguments = [a.replace('=X', f'={inputs[0]}/*.pdf') for a in arguments]
  assert pdf.main([*arguments, f'--output={tmp_path}']) == 2
  error = capsys.readouterr().err.strip()
  assert message in error.splitlines()[-1] and error.count('data_beam.pdf: ') == 1
  assert not any(tmp_path.iterdir())


def test_an_unknown_flag_ends_the_command(tmp_path, capsys):
  with pytest.raises(SystemExit, match='2'):
    pdf.main(['--input=X', '--shards=3', f'--output={tmp_path}'])
  assert 'unknown flag --shards (did you mean --num_shards?)' in capsys.readouterr().err


@pytest.mark.slow
def test_command_line(inputs, tmp_path, capsys):
  folder, _ = inputs
  arguments = [f'--output={tmp_path}', '--name=mine', '--num_shards=1']
  assert pdf.main([f'--input={folder}/good0.pdf', f'--input={folder}/locked.pdf', *arguments]) == 0
  out = capsys.readouterr().out
  assert f'The corpus is at {tmp_path}/mine/1.0.0' in out
  assert pdf.main([f'--input={folder}/locked.pdf', f'--output={tmp_path}', '--name=none']) == 2
  assert "'extract' (encrypted)" in capsys.readouterr().err


def test_the_profile_is_about_documents():
  """As lenient as FinePDFs; the stricter rules are there by name."""
  assert [rule.__name__ for rule in PDF] == ['legible']
  assert len(profile('length,garbage,gopher_repetition')) == 3


@pytest.mark.parametrize(('given', 'threads'), [
  ((), True), (('--direct_num_workers=1',), False), (('--runner=DataflowRunner',), False),
  (('--direct_running_mode=multi_processing',), False)])
def test_threads_unless_chosen(given, threads, monkeypatch):
  monkeypatch.setattr('os.cpu_count', lambda: 4)
  flags = pdf.with_threads(given)
  assert ('--direct_num_workers=4' in flags) is threads and flags[:len(given)] == list(given)


def test_the_report_shows_first_pages(inputs, corpus, tmp_path):
  from smoljax.report import run_page

  path, kept, _ = corpus
  folder = os.path.dirname(os.path.dirname(os.path.dirname(path)))
  with open(run_page.write(folder, str(tmp_path), picture=thumbnail)) as f:
    pictures = re.findall('src="data:image/png;base64,([^"]+)"', f.read())
  first = Image.open(io.BytesIO(base64.b64decode(pictures[0])))
  assert first.format == 'PNG' and max(first.size) == 320
  metadata = next(iter(kept.values()))['metadata']
  files = records.read_manifest(path)['inputs']
  assert thumbnail(metadata, files)
  assert thumbnail(metadata, []) is None                        # the file has gone
  assert thumbnail({'file': metadata['file']}, files) is None   # a web page

"""The quickstart's own input: deterministic, well-formed, varied, and told truly by truth.json."""

import collections
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import sysconfig

import pypdfium2
import pytest
import trafilatura
from conftest import REPOSITORY
from fastwarc.warc import ArchiveIterator, WarcRecordType

from experiments.quickstart import articles, crawl

SIZE = {'max_pages': 60, 'pdfs': 8}


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  folder = tmp_path_factory.mktemp('selfdocs') / 'out'
  lines = []
  counts = crawl.build(str(folder), **SIZE, progress=lines.append)
  assert lines
  return folder, counts


@pytest.fixture(scope='module')
def truth(built):
  return json.loads((built[0] / 'truth.json').read_text())


@pytest.fixture(scope='module')
def records(built):
  """Response records of all WARC files, by a reader that is not the writer's: url → dict."""
  found = {}
  for path in sorted((built[0] / 'web').glob('crawl-*.warc.gz')):
    with path.open('rb') as file:
      for record in ArchiveIterator(file, record_types=WarcRecordType.response, parse_http=True,
                                    auto_decode='content'):
        headers = dict(record.headers.items())
        url = headers['WARC-Target-URI']
        assert url not in found
        found[url] = {'id': record.record_id, 'warc': headers, 'body': record.reader.read(),
                      'status': record.http_headers.status_code,
                      'http': dict(record.http_headers.items()), 'file': path.name}
  return found


def _hashes(folder: pathlib.Path) -> dict[str, str]:
  return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
          for path in sorted(folder.rglob('*')) if path.is_file()}


def test_same_bytes_in_another_process_and_place(built, tmp_path):
  # Another process has other memory addresses and, with this variable, another order of sets.
  command = [sys.executable, '-m', 'experiments.quickstart.crawl', f'--output={tmp_path}/elsewhere',
             *(f'--{name}={value}' for name, value in SIZE.items())]
  environment = {**os.environ, 'PYTHONHASHSEED': '7', 'TZ': 'Asia/Tokyo'}
  done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True,
                        check=True)
  assert f'{tmp_path}/elsewhere' in done.stdout
  assert _hashes(tmp_path / 'elsewhere') == _hashes(built[0])


def test_another_seed_gives_another_crawl(built, tmp_path):
  crawl.build(str(tmp_path), max_pages=20, pdfs=1, seed=1)
  urls = json.loads((tmp_path / 'truth.json').read_text())['web'].keys()
  assert len(urls) == 20
  assert not urls <= json.loads((built[0] / 'truth.json').read_text())['web'].keys()


def test_every_response_is_in_the_truth(records, truth, built):
  assert records.keys() == truth['web'].keys()
  assert len(records) == SIZE['max_pages'] == sum(built[1]['pages'].values())
  assert len({record['id'] for record in records.values()}) == len(records)
  assert len({record['file'] for record in records.values()}) > 1
  kinds = collections.Counter(fact['kind'] for fact in truth['web'].values())
  assert kinds == built[1]['pages']
  assert kinds.keys() == {'article', 'near_duplicate', 'duplicate', 'junk', 'truncated'}
  assert {f['variety'] for f in truth['web'].values() if f['kind'] == 'junk'} >= {
    'login', 'links', 'lorem', 'foreign', 'error', 'binary', 'empty', 'javascript'}


def test_main_text_can_be_found_in_each_layout(records, truth):
  shares = collections.defaultdict(list)
  for url, fact in truth['web'].items():
    if fact['kind'] == 'article':
      text = trafilatura.extract(records[url]['body'], include_comments=False) or ''
      shares[fact['variety']].append(len(' '.join(text.split())) / fact['characters'])
      # The 1990s layout has no element that says what its footer is.
      assert 'Cookie settings' not in text or fact['variety'] == 'manual'
  assert shares.keys() == {'sphinx', 'modern', 'manual', 'blog'}
  assert all(sum(values) / len(values) > 0.7 for values in shares.values()), shares


def test_charsets_and_transfer_encodings(records, truth):
  def of(layout):
    return [records[url] for url, fact in truth['web'].items()
            if fact['variety'] == layout and fact['kind'] == 'article']
  assert all(b'\xa9' in r['body'] and 'ISO-8859-1' in r['http']['Content-Type']
             for r in of('manual'))  # a lone © is not UTF-8
  assert all('charset' not in r['http']['Content-Type'] and b'charset=windows-1252' in r['body']
             for r in of('blog'))
  assert all(r['http']['Content-Encoding'] == 'gzip' and '©' in r['body'].decode()
             for r in of('modern'))


def test_truncated_record_says_so_and_is_short(records, truth):
  url, = [url for url, fact in truth['web'].items() if fact['kind'] == 'truncated']
  record = records[url]
  assert record['warc']['WARC-Truncated'] == 'length'
  assert len(record['body']) < int(record['http']['Content-Length'])
  assert sum('WARC-Truncated' in r['warc'] for r in records.values()) == 1


def test_duplicates_repeat_what_they_name(records, truth):
  def shingles(url):
    markup = records[url]['body'].decode('latin-1')
    words = re.sub(r'(?s)<(script|style).*?</\1>|<[^>]+>', ' ', markup).split()
    return {tuple(words[k:k + 5]) for k in range(len(words) - 4)}
  kinds = {'duplicate': 0, 'near_duplicate': 0}
  for url, fact in truth['web'].items():
    if fact['kind'] in kinds:
      kinds[fact['kind']] += 1
      of, same = fact['of'], records[url]['body'] == records[fact['of']]['body']
      assert truth['web'][of]['kind'] == 'article' and same == (fact['kind'] == 'duplicate')
      a, b = shingles(url), shingles(of)
      assert len(a & b) / len(a | b) > 0.5  # with all the furniture of two different layouts
  assert all(kinds.values())


def test_redirects_and_errors_have_their_status(records, truth):
  status = {fact['variety']: records[url]['status'] for url, fact in truth['web'].items()
            if fact['kind'] == 'junk'}
  assert status['redirect'] == 302 and status['error'] >= 400 and status['soft_404'] == 200


def test_no_path_of_this_machine_and_no_address(records):
  for path in (sysconfig.get_paths()['purelib'], sysconfig.get_paths()['stdlib'], str(REPOSITORY)):
    assert not [url for url, record in records.items() if path.encode() in record['body']]


def test_pdfs_are_what_the_truth_says(built, truth):
  kinds = collections.Counter(fact['kind'] for fact in truth['pdf'].values())
  assert kinds == built[1]['pdfs']
  assert kinds.keys() == {'text', 'scanned', 'truncated', 'duplicate', 'blank', 'encrypted'}
  assert sorted(truth['pdf']) == sorted(path.name for path in (built[0] / 'pdf').iterdir())
  for name, fact in truth['pdf'].items():
    path = built[0] / 'pdf' / name
    if fact['kind'] in ('truncated', 'encrypted'):
      with pytest.raises(pypdfium2.PdfiumError):
        pypdfium2.PdfDocument(path)
      continue
    document = pypdfium2.PdfDocument(path)
    texts = [page.get_textpage().get_text_bounded() for page in document]
    if fact['kind'] == 'text':
      assert 2 <= len(document) <= 10
      # Running headers and page numbers come on top of the text; line breaks split words.
      assert 0.97 < len(' '.join(''.join(texts).split())) / fact['characters'] < 1.2
      assert all('Reference documentation, 2024 edition' in text for text in texts)
    elif fact['kind'] == 'duplicate':
      assert path.read_bytes() == (path.parent / fact['of']).read_bytes()
      assert fact['text_sha256'] == truth['pdf'][fact['of']]['text_sha256']
    else:  # no text layer: a picture of a page, or nothing
      assert not ''.join(texts).strip() and len(document) == 1
      grey = document[0].render(scale=0.5, grayscale=True).to_numpy()
      assert (grey.std() > 1) == (fact['kind'] == 'scanned')
      assert (fact['characters'] > 300) == (fact['kind'] == 'scanned')


def test_both_pdf_layouts_exist_and_lines_are_hyphenated(built, truth):
  texts = {'paper': '', 'manual': ''}
  for name, fact in truth['pdf'].items():
    if fact['kind'] == 'text':
      document = pypdfium2.PdfDocument(built[0] / 'pdf' / name)
      texts[fact['layout']] += ''.join(p.get_textpage().get_text_bounded() for p in document)
  assert all(texts.values())
  # At a line's end pdfium joins a hyphenated word by U+0002.
  assert len(re.findall('[a-z]\x02[a-z]', texts['paper'])) > 3


def test_web_and_pdf_tell_different_things(truth, built, records):
  pages = b''.join(r['body'] for r in records.values()).decode('latin-1')
  document = pypdfium2.PdfDocument(built[0] / 'pdf' / 'doc-0000.pdf')
  sentence = max(re.split(r'[\r\n]', document[1].get_textpage().get_text_bounded()), key=len)
  assert len(sentence) > 30 and sentence not in pages


@pytest.mark.parametrize(('doc', 'expected'), [
  ('One\nparagraph.\n\nTwo.', [('p', 'One paragraph.'), ('p', 'Two.')]),
  ('Use ``x`` or `y`, see :func:`~a.b` and `the site <http://x>`_ *now* [1]_.',
   [('p', 'Use \x01x\x02 or \x01y\x02, see \x01a.b\x02 and the site now [1].')]),
  ('Sum.\n\nParameters\n----------\nx : array\n    The values,\n    all of them.\n\nNotes\n-----\n'
   'Fast.',
   [('p', 'Sum.'), ('h3', 'Parameters'), ('li', '\x01x\x02: array. The values, all of them.'),
    ('h3', 'Notes'), ('p', 'Fast.')]),
  ('Sum.\n\nArgs:\n  x: the values,\n    all of them.\n  y (int): more.\n\nReturns:\n  A number\n'
   '  or two.',
   [('p', 'Sum.'), ('h3', 'Args'), ('li', '\x01x\x02: the values, all of them.'),
    ('li', '\x01y (int)\x02: more.'), ('h3', 'Returns'), ('p', 'A number or two.')]),
  ('Do::\n\n    a = b\n      c\n\nand\n\n>>> 1 + 1\n2',
   [('p', 'Do:'), ('pre', 'a = b\n  c'), ('p', 'and'), ('pre', '>>> 1 + 1\n2')]),
  ('- one\n  goes on\n- two\n\n:param x: third', [
    ('li', 'one goes on'), ('li', 'two'), ('li', '\x01x\x02: third')]),
  ('.. note:: Mind\n   the gap.\n\n.. versionadded:: 3.2\n\n.. image:: x.png\n   :alt: no\n\nEnd.',
   [('p', 'Note: Mind the gap.'), ('p', 'Added in version 3.2.'), ('p', 'End.')]),
  ('==  ==\na   b\n==  ==\n1   2\n==  ==\n\nEnd.', [('pre', '==  ==\na   b\n==  ==\n1   2\n==  =='),
                                                   ('p', 'End.')]),
])
def test_docstring_styles(doc, expected):
  assert articles.parse_doc(doc) == expected


def test_parser_survives_every_prefix_of_a_docstring():
  # Half a construct at the end of a text must neither fail nor loop.
  doc = ('A::\n\n  b\n\n.. note::\n\n   c\n\nArgs:\n  x: d\n\n+--+\n|a |\n+--+\n\n```\ne\n'
         '```\n\nTitle\n=====\n\n1. f\n   - g\n\n:param h: i\n\nterm\n    j\n\n==  ==\nk   l\n'
         '==  ==\n>>> m')
  for k in range(len(doc)):
    assert all(kind in ('p', 'li', 'pre', 'h3') for kind, _ in articles.parse_doc(doc[:k]))


def test_fingerprint_names_python_and_what_is_read():
  lines = articles.fingerprint().split('\n')
  assert lines[0].endswith(sys.version.split()[0])
  assert any(re.fullmatch(r'numpy==[\d.]+', line) for line in lines)
  assert not any(line.startswith('pytest') for line in lines)


def test_bad_arguments_are_one_line(built, tmp_path, capsys):
  with pytest.raises(ValueError, match='not an empty folder'):
    crawl.build(str(built[0]), **SIZE)
  with pytest.raises(ValueError, match='must not be negative'):
    crawl.build(str(tmp_path / 'x'), pdfs=-1)
  assert not (tmp_path / 'x').exists()
  assert crawl.main([f'--output={built[0]}']) == 2
  assert capsys.readouterr().err.count('\n') == 1


@pytest.mark.slow
def test_full_size_has_several_megabytes(tmp_path):
  counts = crawl.build(str(tmp_path))
  assert sum(counts['pages'].values()) == 3000 and counts['web_characters'] > 5_500_000
  assert sum(counts['pdfs'].values()) == 60 and counts['pdf_characters'] > 300_000
  for name, fact in json.loads((tmp_path / 'truth.json').read_text())['pdf'].items():
    if fact['kind'] == 'text':
      assert 2 <= len(pypdfium2.PdfDocument(tmp_path / 'pdf' / name)) <= 10

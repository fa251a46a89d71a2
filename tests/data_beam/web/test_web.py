"""The web pipeline end to end: a small crawl in, corpus and rejects out, order of no importance."""

import dataclasses
import gzip
import itertools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from helpers.warc import ID, article, html, page, write_warc

from data_beam import records
from data_beam.filters.urls import UrlFilter
from data_beam.options import WebOptions
from data_beam.records import Document
from data_beam.text.language import LANGUAGE_THRESHOLDS
from data_beam.web import pipeline as web

FRENCH = ['Le vieux port de la ville a été construit au douzième siècle, et ses murs sont encore '
          f'debout aujourd’hui, comme le racontent les habitants du quartier numéro {i}.'
          for i in range(9)]
CODE = [*article(11), 'The whole program is int main() { return 0; } and no more than that.']
near = article(3)
near[5] = near[5].replace('The', 'A', 1) + ' It was late.'

# (url, body, kept or (stage, reason)); the record's id is its number.
CRAWL = [
  *[(html(f'https://a.test/{i}', page(article(i), f'Page {i}')), 'kept') for i in range(6)],
  (html('https://b.test/copy', page(article(2), 'Page 2')), ('exact_dedup', 'duplicate')),
  (html('https://b.test/near', page(near, 'Page 3')), 'kept'),   # longer than page 3: it survives
  (html('https://b.test/fr', page(FRENCH)), ('language', 'fr')),
  (html('https://b.test/code', page(CODE)), ('filter', 'curly_bracket')),
  (html('https://b.test/gone', page(article(9)), status=404), ('read', 'http_status')),
  (html('https://b.test/empty', b'<html><body></body></html>'), ('extract', 'no_text')),
  (html('https://b.test/pii', page([
    *article(10), 'Write to jane.doe@mail.example.net or to the host 9.9.9.9 about it.'])), 'kept'),
]
NEAR_DUPLICATE = ID.format(3)


@pytest.fixture(scope='module')
def crawl(tmp_path_factory):
  folder = tmp_path_factory.mktemp('crawl')
  write_warc(folder / 'x.warc.gz', [record for record, _ in CRAWL])
  path = web.run([f'{folder}/x*.gz'], str(folder / 'out'))
  return folder, path


def kept(path):
  return {row['id']: row for row in records.read_corpus(path)}


def dropped(path):
  return {row['id']: row for row in records.read_corpus(path.replace('/web/', '/web_rejects/'))}


def test_each_page_meets_its_fate(crawl):
  _, path = crawl
  rows, rejects = kept(path), dropped(path)
  fates = {ID.format(i): fate for i, (_, fate) in enumerate(CRAWL)}
  fates[NEAR_DUPLICATE] = ('minhash', 'near_duplicate')
  assert rows.keys() | rejects.keys() == fates.keys() and not rows.keys() & rejects.keys()
  for id_, fate in fates.items():
    if fate == 'kept':
      assert id_ in rows
    else:
      assert (rejects[id_]['stage'], rejects[id_]['reason']) == fate


def test_documents_are_complete(crawl):
  _, path = crawl
  row = kept(path)[ID.format(0)]
  assert row['url'] == 'https://a.test/0' and row['source'] == 'web' and row['language'] == 'en'
  assert row['language_score'] > .65 and row['date'] == '2024-05-01T00:00:00Z'
  assert row['metadata']['warc_file'] == 'x.warc.gz' and row['metadata']['warc_offset'] > 0
  for paragraph in article(0):
    assert paragraph in row['text']
  assert 'Home' not in row['text'] and '2024' not in row['text']


def test_duplicates_name_the_survivor(crawl):
  _, path = crawl
  rejects = dropped(path)
  assert rejects[ID.format(6)]['metadata']['duplicate_of'] == ID.format(2)
  assert rejects[NEAR_DUPLICATE]['metadata']['duplicate_of'] == ID.format(7)
  assert kept(path)[ID.format(7)]['metadata']['cluster_size'] == 2


def test_addresses_are_hidden(crawl):
  text = kept(crawl[1])[ID.format(12)]['text']
  assert 'jane.doe' not in text and '9.9.9.9' not in text and 'example.' in text


def test_the_funnel_adds_up(crawl):
  manifest = records.read_manifest(crawl[1])
  assert manifest['config'].keys() == {field.name for field in dataclasses.fields(WebOptions)}
  funnel = manifest['funnel']
  assert [row['stage'] for row in funnel] == [stage for stage, _ in web.stages(WebOptions())]
  assert funnel[0]['documents_in'] == len(CRAWL)
  for row, following in itertools.pairwise(funnel):
    assert row['documents_in'] - sum(row['dropped'].values()) == row['documents_out']
    assert following['documents_in'] == row['documents_out']
  assert funnel[-1]['documents_out'] == manifest['documents'] == len(kept(crawl[1]))


def test_other_grouping_and_order_give_the_same_corpus(crawl, tmp_path):
  _, path = crawl
  numbered = list(enumerate(CRAWL))
  random.Random(1).shuffle(numbered)
  for name, part in (('b', numbered[:5]), ('a', numbered[5:])):
    data = write_warc(tmp_path / 'one.warc.gz', [record for _, (record, _) in part])
    # write_warc numbers the records of each file; here they keep the number they had.
    renumber(data, tmp_path / f'{name}.warc.gz', [i for i, _ in part])
  other = web.run([f'{tmp_path}/[ab].warc.gz'], str(tmp_path / 'out'),
                  beam_args=['--direct_running_mode=multi_threading', '--direct_num_workers=3'])

  def content(rows):
    places = ('warc_file', 'warc_offset')
    return {id_: {**row, 'metadata': {k: v for k, v in row['metadata'].items() if k not in places}}
            for id_, row in rows.items()}

  assert same(content(kept(other)), content(kept(path)))
  assert same(content(dropped(other)), content(dropped(path)))


def same(a, b):
  return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)   # NaN equals NaN there


def renumber(source, target, numbers):
  text = gzip.decompress(Path(source).read_bytes())
  for i in range(len(numbers)):
    text = text.replace(ID.format(i).encode(), b'<new %d>' % numbers[i], 1)
  for i in numbers:
    text = text.replace(b'<new %d>' % i, ID.format(i).encode())
  target.write_bytes(gzip.compress(text))


def test_the_same_files_give_the_same_bytes(crawl, tmp_path):
  folder, path = crawl
  again = web.run([f'{folder}/x.warc.gz'] * 2, str(tmp_path))
  shards = lambda p: records.read_manifest(p)['shards']
  assert shards(again) == shards(path)


def test_edge_archives_go_through(shared_data, tmp_path):
  path = web.run([str(shared_data / 'warc' / 'edge' / '*')], str(tmp_path), options=WebOptions(
    filters='none', languages=(), min_language_score=0, tier='fast'))
  broken = {row['reason'] for row in dropped(path).values() if row['stage'] == 'read'}
  assert {'damaged_record', 'clipped_file'} <= broken
  assert len(kept(path)) > 10


# --- the command line ------------------------------------------------------------------------


def test_help_is_for_people(capsys):
  with pytest.raises(SystemExit) as exit_:
    web.main(['--help'])
  text = ' '.join(capsys.readouterr().out.split())
  assert exit_.value.code == 0
  for words in ('web archives', '--languages CODES', '--limit N', 'fineweb, fineweb2, docs'):
    assert words in text


@pytest.mark.parametrize(('flags', 'message'), [
  (['--input=nowhere/*.warc.gz'], 'no file matches nowhere/*.warc.gz'),
  (['--filters=finweb'], "unknown filter 'finweb': choose a profile (fineweb, fineweb2, docs"),
  (['--limit=0'], 'limit is 0'),
  (['--name=a/b'], "'a/b' cannot be the name of a corpus"),
  (['--name=..'], "'..' cannot be the name of a corpus"),
  (['--runer=DirectRunner'], "unknown flag '--runer=DirectRunner'"),
  (['--languages=eo'], 'is empty'),
  (['--minhash=14'], "minhash='14': give bands x rows, such as 14x8, or none"),
])
def test_bad_input_is_one_line_and_exit_2(crawl, tmp_path, capsys, flags, message):
  folder, _ = crawl
  code = web.main([f'--input={folder}/x.warc.gz', f'--output={tmp_path}', '--limit=3', *flags]
                  if not flags[0].startswith('--input') else [f'--output={tmp_path}', *flags])
  lines = [line for line in capsys.readouterr().err.splitlines() if 'data_beam.web:' in line]
  assert code == 2 and len(lines) == 1 and message in lines[0]


def test_the_end_says_where_the_corpus_is(crawl, tmp_path, capsys):
  folder, _ = crawl
  code = web.main(['--input', f'{folder}/x.warc.gz', f'--output={tmp_path}', '--name=crawl',
                   '--limit=2', '--languages=en,fr', '--runner=DirectRunner', '--num_shards=2'])
  assert code == 0
  assert f'The corpus is at {tmp_path}/crawl/1.0.0' in capsys.readouterr().out
  assert sorted(kept(f'{tmp_path}/crawl')) == [ID.format(0), ID.format(1)]   # the first two pages


def test_lists_decontamination_and_order_are_stages_where_asked_for(tmp_path):
  (tmp_path / 'words.txt').write_text('casino\n')
  (tmp_path / 'eval.jsonl').write_text('{"q": "one of eight words or more of them"}\n')
  lists = UrlFilter(str(tmp_path))
  names = [name for name, _ in web.stages(WebOptions(
    url_lists=str(tmp_path), decontaminate=(str(tmp_path / 'eval.jsonl'),), filters='fineweb2'))]
  assert names == ['read', 'url', 'extract', 'language', 'exact_dedup', 'minhash', 'filter',
                   'decontaminate', 'pii']
  (reject,) = web.judge_url(Document(id='a', text='', url='http://x.org/Casino'), lists)
  assert reject[1:] == ('url', 'hard_blacklisted')
  assert reject.document.url == 'http://x.org/Casino'


def test_duplicates_are_looked_for_as_asked(crawl, tmp_path):
  folder, _ = crawl
  write_warc(tmp_path / 'y.warc.gz', [
    html('https://a.test/same', page(article(20))),
    html('https://a.test/same', page(article(21, paragraphs=9)))])
  path = web.run([f'{tmp_path}/y.warc.gz'], str(tmp_path), options=WebOptions(url_dedup=True))
  funnel = {row['stage']: row['dropped'] for row in records.read_manifest(path)['funnel']}
  assert funnel['url_dedup'] == {'duplicate_url': 1} and list(kept(path)) == [ID.format(1)]
  near = web.run([f'{folder}/x.warc.gz'], str(tmp_path / 'near'),
                 options=WebOptions(minhash='none'))
  assert NEAR_DUPLICATE in kept(near)
  coarse = web.run([f'{folder}/x.warc.gz'], str(tmp_path / 'coarse'),
                   options=WebOptions(minhash='200x1', minhash_hash='xxh64'))
  assert NEAR_DUPLICATE not in kept(coarse)
  assert records.read_manifest(coarse)['config']['minhash'] == '200x1'


def test_code_switching_is_recorded_and_thresholds_are_those_of_the_language():
  english = 'The committee will meet again next week to discuss the results of the survey. ' * 4
  french = 'Le comité se réunira de nouveau la semaine prochaine pour discuter des résultats. ' * 4
  (mixed,) = web.identify(Document(id='', text=f'{english}\n{french}\n{english}'), (), 0)
  assert set(mixed.metadata['languages']) == {'en', 'fr'}
  (plain,) = web.identify(Document(id='', text=english), ('en',), None)
  assert plain.language == 'en' and 'languages' not in plain.metadata
  least = LANGUAGE_THRESHOLDS['en']
  LANGUAGE_THRESHOLDS['en'] = 1
  try:
    (reject,) = web.identify(Document(id='', text=english), ('en',), None)
    assert reject[1:] == ('language', 'unsure')
  finally:
    LANGUAGE_THRESHOLDS['en'] = least


# --- hostile input ---------------------------------------------------------------------------


MEASURED = '''
import json, resource, sys
from data_beam.web import pipeline as web
from data_beam.options import WebOptions
path = web.run(json.loads(sys.argv[1]), sys.argv[2], options=WebOptions(
  filters='none', languages=(), min_language_score=0))
web.extractor.close()
# Of this process by /proc: its ru_maxrss begins at that of the process which started it.
own = int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])
print(max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) >> 10)
'''


@pytest.mark.slow
def test_hostile_files_lose_themselves_alone(tmp_path):
  good = page(article(0))
  write_warc(tmp_path / 'a.warc.gz', [
    html('https://a.test/huge', b'<html><p>' + b'word ' * (20 << 20)),
    html('https://a.test/line', b'<html><p>' + b'a' * (10 << 20)),
    html('https://a.test/line7', b'<html><p>' + b'a b ' * (7 << 18)),
    html('https://a.test/deep', b'<div>' * 500_000 + good),
    html('https://a.test/tags', b'<table><tr><td>' * 300_000 + good),
    html('https://a.test/utf8', good.replace(b'The ', b'\xff\xc3The ')),
    html('https://a.test/bomb', gzip.compress(bytes(200 << 20)), Content_Encoding='gzip'),
    html('https://a.test/good', good),
  ])
  (tmp_path / 'zeros.warc.gz').write_bytes(gzip.compress(gzip.compress(bytes(300 << 20))))
  (tmp_path / 'bomb.jsonl.gz').write_bytes(gzip.compress(bytes(300 << 20)))
  (tmp_path / 'empty.warc').write_bytes(b'')
  (tmp_path / 'none.warc.gz').write_bytes(b'not an archive')
  files = [str(tmp_path / '*.*')]
  done = subprocess.run([sys.executable, '-c', MEASURED, json.dumps(files), str(tmp_path / 'out')],
                        capture_output=True, text=True, cwd=tmp_path,
                        env={**os.environ, 'PYTHONPATH': str(REPOSITORY)})
  assert done.returncode == 0, done.stderr[-3000:]
  assert int(done.stdout.split()[-1]) < 1024    # MiB, of the largest process
  path = str(tmp_path / 'out' / 'web' / '1.0.0')
  lost = {row['url'].rpartition('/')[2] or row['id'].partition('#')[0]: row['reason']
          for row in dropped(path).values()}
  assert lost['huge'] == lost['line'] == lost['bomb'] == 'too_large'
  assert lost['empty.warc'] == 'empty_file' and lost['bomb.jsonl.gz'] == 'too_large'
  assert lost['none.warc.gz'] == 'corrupt_file'
  urls = {row['url'].rpartition('/')[2] for row in kept(path).values()}
  assert 'good' in urls and {'deep', 'tags', 'utf8', 'line7'} <= urls | lost.keys()


@pytest.mark.slow
def test_killed_at_any_time_and_run_again_it_is_the_same(crawl, tmp_path):
  folder, path = crawl
  command = [sys.executable, '-m', 'data_beam.web', f'--input={folder}/x.warc.gz',
             f'--output={tmp_path}']
  for pause in (4, 6, 8):    # it takes about nine seconds
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL) as process:
      time.sleep(pause)
      process.kill()
  subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
  files = lambda p: {f.name: f.read_bytes() for f in Path(p).iterdir() if f.name != 'manifest.json'}
  assert files(f'{tmp_path}/web/1.0.0') == files(path)
  assert files(f'{tmp_path}/web_rejects/1.0.0') == files(path.replace('/web/', '/web_rejects/'))

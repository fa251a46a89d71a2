"""The corpus pages of the report, from corpora that data_beam wrote."""

import ast
import csv
import inspect
import json
import pathlib
import re

import pytest
from helpers.corpora import make_documents, write
from helpers.workdirs import Page

from data_beam import records
from data_beam.filters import rules, spans, urls
from data_beam.pdf import errors
from data_beam.records import Document
from smoljax.report import corpus_page, reasons, run_page


@pytest.fixture(scope='module')
def output(tmp_path_factory):
  folder = tmp_path_factory.mktemp('corpora')
  documents = make_documents()
  for document in documents:
    document.metadata['cluster_size'] = 1 + (document.metadata['n'] == 1)
  documents[4] = Document('<urn:4>', 'Plain words, <b>then</b> lorem ipsum dolor, and more.',
                          url='http://x/4', metadata={'n': 4, 'span': [13, 24]})
  documents[8] = Document('<urn:8>', '', url='http://x/8', metadata={'n': 8, 'error': '<404>'})
  write(folder, documents)
  return folder


def table(folder, name):
  with open(pathlib.Path(folder) / name, newline='') as f:
    return list(csv.DictReader(f))


def test_a_directory_of_corpora_has_a_page(output, tmp_path):
  page = Page(pathlib.Path(run_page.write(str(output), str(tmp_path), spans.find)).parent)
  for shown in ('30 documents kept of 40, 75%', 'web: 40 documents in, 30 kept (75%)',
                'Counted in words: the run has no tokens of this corpus.', '(<404>)',
                'Diversity, web', 'Clusters of duplicates', 'en 66.7%, fr 33.3%'):
    assert shown in page.text, shown
  assert 'Plain words, <mark>&lt;b&gt;then&lt;/b&gt;</mark> lorem ipsum' in page.source
  assert 'Training' not in page.text
  links = {a['href'] for tag, a in page.elements if a.get('class') == 'csv'}
  assert page.source.count('<figure>') == len(links)  # each has its own
  assert {p.name for p in tmp_path.iterdir()} == {'index.html', *links}
  manifest = records.read_manifest(str(output / 'web'))
  rows = table(tmp_path, 'funnel_web.csv')
  assert [int(r['words_out']) for r in rows] == [s['words_out'] for s in manifest['funnel']]
  assert [r['tokens_out'] for r in rows] == ['', '']
  points = table(tmp_path, 'diversity_web.csv')
  assert [(p['after'], p['documents']) for p in points] == [
    ('', '40'), ('extract', '35'), ('filter', '30')]
  assert [(r['size'], r['documents']) for r in table(tmp_path, 'clusters_web.csv')] == [
    ('1', '29'), ('2', '2')]
  assert sum(int(r['documents']) for r in table(tmp_path, 'languages.csv')) == 30


def test_tokens_where_there_is_a_tokenizer(output, tmp_path):
  manifest = records.read_manifest(str(output / 'web'))
  words = manifest['words']
  corpus = corpus_page.Corpus('web', manifest, [], [])
  tokenised = [{'name': 'pdf', 'splits': {'train': {'tokens': 7}}},
               {'name': 'web', 'splits': {'train': {'tokens': words}, 'val': {'tokens': words}}}]
  unit, key, factor, note = corpus_page.measure_of(corpus, tokenised)
  assert (unit, key, factor) == ('tokens', 'words_out', 2.0)
  assert f'{2 * words:,} kept' in note and '2.00 tokens a word' in note
  tables = {}
  html = corpus_page.funnel(corpus, tokenised, lambda name, head, rows: tables.setdefault(
    name, [dict(zip(head, row, strict=True)) for row in rows]) and '')
  assert [r['tokens_out'] for r in tables['funnel_web']] == [
    2 * s['words_out'] for s in manifest['funnel']]
  assert '<th class="num">tokens</th>' in html


def test_a_large_corpus_is_sampled_evenly_and_says_so(output, tmp_path, monkeypatch):
  monkeypatch.setattr(corpus_page, 'SAMPLE', 20)
  notes = []
  corpus = corpus_page.load(output / 'web/1.0.0', records.read_manifest(str(output / 'web')),
                            output / 'web_rejects/1.0.0', notes.append)
  assert (corpus.every, len(corpus.kept), len(corpus.rejects), notes) == (2, 15, 5, [])
  assert len(corpus.examples) == 10  # of each reason, whatever the sample
  page = Page(pathlib.Path(run_page.write(str(output), str(tmp_path))).parent).text
  assert 'From a sample of one document in 2' in page
  assert sum(int(r['documents']) for r in table(tmp_path, 'lengths_web.csv')) == 15


def test_diversity_is_told_for_each_rule():
  manifest = {'funnel': [{'stage': s} for s in ('read', 'filter', 'pii')],
              'config': {'filters': ['short', 'long']}}
  words = lambda i: ' '.join(f'word{i}x{k}' for k in range(20))
  drop = lambda i, stage, rule=None: {
    'text': words(i), 'stage': stage, 'metadata': json.dumps({'rule': rule} if rule else {})}
  corpus = corpus_page.Corpus('web', manifest, [{'text': words(0)}], [
    drop(1, 'read'), drop(2, 'filter', 'short'), drop(3, 'filter', 'long'), drop(4, 'filter'),
    drop(5, 'elsewhere')])
  tables = {}
  corpus_page.variety(corpus, 0, lambda name, _, rows: tables.setdefault(name, list(rows)) and '')
  assert [row[:2] for row in tables['diversity_web']] == [
    ('', 5), ('read', 4), ('filter: short', 3), ('filter: long', 1), ('pii', 1)]


def test_contamination_names_set_items_and_words():
  manifest = {'funnel': [{'stage': 'decontaminate', 'dropped': {'arc': 7, 'piqa': 1}}]}
  quote = lambda id_, *items: {'id': id_, 'url': f'http://{id_}', 'stage': 'decontaminate',
                               'metadata': json.dumps({'contaminated': [
                                 {'set': 'arc', 'item': i, 'words': f'<b> words {i}'}
                                 for i in items]})}
  corpus = corpus_page.Corpus('web', manifest, [], [quote('a', 3, 5)], 2, [quote('b', 5)])
  tables = {}
  html = corpus_page.contamination(corpus, lambda name, _, rows: tables.setdefault(
    name, list(rows)) and 'x.csv')
  assert tables['contamination_web'] == [
    ('arc', 3, '<b> words 3', 'a', 'http://a'), ('arc', 5, '<b> words 5', 'a', 'http://a'),
    ('arc', 5, '<b> words 5', 'b', 'http://b')]
  assert '2 of 8 documents' in html and 'item 5: “&lt;b&gt; words 5”' in html
  assert corpus_page.contamination(corpus_page.Corpus('web', {}, [], []), None) == ''


@pytest.mark.parametrize('span, expected', [
  ((0, 3), '<mark>abc</mark>defghij …'), ((8, 10), '… gh<mark>ij</mark>klmnop …'),
  ((23, 26), '… qrstuvw<mark>xyz</mark>'), ((2, 26), 'ab<mark>cdefghijkl …</mark>'),
  (None, 'abcdefghij …')])
def test_marked(span, expected):
  record = {'text': 'abcdefghijklmnopqrstuvwxyz', 'reason': 'r'}
  assert corpus_page.marked(record, 10, lambda *_: span) == expected


def test_marks_follow_the_text_as_it_was_dropped():
  record = {'text': 'no {\x07 & yes', 'reason': 'curly_bracket', 'metadata': '{}'}
  assert corpus_page.marked(record, 99, spans.find) == 'no <mark>{</mark> &amp; yes'
  assert corpus_page.metadata({'metadata': json.dumps([1])}) == {}
  assert corpus_page.metadata({'metadata': '{'}) == {}


def test_conversations_are_shown_as_they_are_learned():
  said = lambda role, words: {'role': role, 'content': words}
  record = lambda id, mode, **more: {'id': id, 'metadata': json.dumps({
    'mode': mode, 'conversation': {
      'messages': [said('user', '<b>Hi</b>'), said('assistant', 'Hello')], 'mode': mode, **more}})}
  corpus = corpus_page.Corpus('chat', {}, [
    record('a', 'no_think'), record('b', 'think', prompt=1, rejected=[said('assistant', 'No')]),
    {'id': 'c', 'metadata': json.dumps({'mode': 'think', 'conversation': [3]})}], [])
  learned = lambda page: re.findall('<mark>(.*?)</mark>', page, re.S)
  page = corpus_page.dialogues(corpus, [])
  end = '&lt;|im_end|&gt;\n'
  assert learned(page) == [
    f'&lt;|im_start|&gt;assistant\n&lt;think&gt;\n\n&lt;/think&gt;\nHello{end}',
    f'Hello{end}', f'No{end}']
  assert '&lt;b&gt;Hi&lt;/b&gt;' in page and 'cannot be rendered' in page
  everything = corpus_page.dialogues(
    corpus, [{'inputs': [{'name': 'chat'}], 'config': {'train_user': True}}])
  assert learned(everything)[0].startswith('&lt;|im_start|&gt;system')
  assert corpus_page.dialogues(corpus_page.Corpus('web', {}, [{'text': 'x'}], []), []) == ''


def test_reasons_and_rules_have_words():
  given = {node.value.value for module in (rules, urls)
           for node in ast.walk(ast.parse(inspect.getsource(module)))
           if isinstance(node, ast.Return) and isinstance(node.value, ast.Constant)
           and isinstance(node.value.value, str)}
  assert len(given) > 25
  given |= {*errors.REASONS, 'near_duplicate', 'dup_line_frac', 'dup_para_char_frac'}
  assert not given - {'', *reasons.REASONS}
  assert not set(rules.RULES) - set(reasons.RULES)
  assert reasons.reason('duplicated_7_n_grams') == 'repeated phrases of 7 words'
  assert reasons.reason('la', 'language') == 'in Latin'
  assert reasons.reason('a_new_one') == 'a new one'
  assert reasons.stage('filter: gopher_repetition') == 'quality rules: repetition'

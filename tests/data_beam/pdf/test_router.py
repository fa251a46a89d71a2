"""Text layer or OCR: the rules, and classifiers that are trained."""
import json
import random

import pytest
from helpers.pdfs import column, make, prose, scan

from data_beam.pdf import router as router_lib
from data_beam.pdf import text as pdf_text
from data_beam.pdf import train_router
from data_beam.pdf.errors import PdfError


def feature(**values):
  usual = {'characters': 3000, 'hidden': 0.0, 'garbled': 0.0, 'picture': 0.0, 'vowels': 0.4}
  return usual | values


@pytest.mark.parametrize(('values', 'expected'), [
  ({}, ''), (dict(characters=0, vowels=None), ''), (dict(characters=150, picture=0.4), 'picture'),
  (dict(characters=1400, picture=0.5), ''), (dict(characters=1400, picture=0.9), 'picture'),
  (dict(hidden=0.9), 'hidden'), (dict(garbled=0.2), 'garbled'), (dict(vowels=0.1), 'garbled'),
  (dict(vowels=None), '')])
def test_rules(values, expected):
  assert router_lib.needs_ocr(feature(**values)) == expected


def test_a_font_with_shifted_letters_is_told_and_languages_are_not():
  def draw(lines):
    return pdf_text.parse(make(lambda page: column(page, 72, 700, lines)), ocr='never').features[0]
  lines = prose('A', 12, 80)
  assert draw(lines)['ocr_wanted'] == ''
  shifted = [''.join(chr((ord(c) - 98) % 26 + 97) if c.isalpha() else c for c in line.lower())
             for line in lines]
  assert draw(shifted)['ocr_wanted'] == 'garbled'
  assert draw(lines[:1])['vowels'] is None                          # too little to tell


@pytest.fixture(scope='module')
def labels(tmp_path_factory):
  """Pages of 60 documents: scans have pictures and few characters, the others have not."""
  rng, path = random.Random(0), tmp_path_factory.mktemp('labels') / 'labels.jsonl'
  rows = [{'file': f'{i}.pdf', 'page': j, 'ocr': i % 3 == 0, 'features': feature(
    characters=rng.randrange(0, 300) if i % 3 == 0 else rng.randrange(500, 4000),
    picture=rng.uniform(.5, 1) if i % 3 == 0 else rng.uniform(0, .5))}
    for i in range(60) for j in range(1 + i % 4)]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def test_a_classifier_is_trained_judged_and_used(labels, tmp_path, capsys):
  router = tmp_path / 'router.txt'
  assert train_router.main(['train', f'--labels={labels}', f'--output={router}']) == 0
  assert train_router.main(['evaluate', f'--labels={labels}', f'--router={router}']) == 0
  assert train_router.main(['evaluate', f'--labels={labels}']) == 0
  rules, trained, again, blind = map(json.loads, capsys.readouterr().out.splitlines())
  assert rules == again and rules['documents'] == 60 and rules['ocr'] == 20
  assert not trained['misses'] + trained['false_alarms']
  assert len(blind['misses'] + blind['false_alarms']) <= 3
  first = router.read_text()
  train_router.main(['train', f'--labels={labels}', f'--output={router}'])
  assert router.read_text() == first                                # the same bits
  picture = scan(lambda page: column(page, 72, 700, prose('A', 12, 80)), scale=.5)
  with pytest.raises(PdfError, match='needs_ocr'):
    pdf_text.parse(picture, ocr='never', router=str(router))
  text = pdf_text.parse(make(lambda page: column(page, 72, 700, prose('A', 12, 80))), ocr='never',
                        router=str(router))
  assert text.features[0]['ocr_wanted'] in ('', 'classifier')


def test_documents_are_judged_by_most_of_their_pages():
  rows = [{'file': 'a', 'ocr': True}] * 3 + [{'file': 'b', 'ocr': False}] * 2
  found = train_router.judge(rows, [True, False, False, True, True])
  assert (found['misses'], found['false_alarms']) == (['a'], ['b'])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_labels_by_agreement(tmp_path):
  lines = ['The heron waits in the shallow water', 'until a careless fish comes near.',
           'Then it strikes, and all is over.']
  body = make(lambda page: column(page, 72, 700, lines, 24))
  (row,) = train_router.label(body, 'a.pdf', ['en'])
  assert not row['ocr'] and set(row['features']) == set(router_lib.FEATURES)
  with pytest.raises(PdfError):    # no layer at all: there is nothing to compare
    list(train_router.label(scan(lambda page: column(page, 72, 700, lines, 24)), 'b.pdf', ['en']))


def test_bad_input_is_one_line(labels, tmp_path, capsys):
  (tmp_path / 'one.jsonl').write_text(labels.read_text().splitlines()[0])
  assert train_router.main(['train', f'--labels={tmp_path}/one.jsonl', '--output=x']) == 2
  assert 'both kinds' in capsys.readouterr().err
  (tmp_path / 'other.txt').write_text('tree\n')
  with pytest.raises(ValueError, match='no classifier of pages'):
    router_lib.digest(str(tmp_path / 'other.txt'))

"""Lineage: documents found by id, reasons by example, and batches worked out again."""

import json
import os

import numpy as np
import pytest
from absl.testing import flagsaver
from helpers.corpora import make_documents, write

from data_beam import records
from data_beam.records import Document
from experiments import lineage


@pytest.fixture(scope='module')
def output(tmp_path_factory):
  folder = tmp_path_factory.mktemp('corpora')
  documents = make_documents()
  documents[0].metadata['duplicate_of'] = '<urn:1>'
  documents[4] = Document('<urn:uuid:abc>', 'Good text. ' * 40, url='http://x/4', language='en',
                          metadata={'n': 4, 'warc_file': 'x', 'warc_offset': 77, 'span': [5, 9]})
  documents[1].metadata['cluster_size'] = 2
  write(folder, documents)
  return folder


def said(capsys, **flags):
  with flagsaver.flagsaver(**flags):
    try:
      lineage.main(['lineage'])
    except SystemExit as error:
      assert error.code == 2
  out, err = capsys.readouterr()
  return ' '.join(out.split()), err


def test_a_kept_document(output, capsys):
  out, _ = said(capsys, workdir=str(output), document='<urn:1>')
  assert 'kept in web, record' in out and 'url http://x/1' in out
  assert 'extract ✓ → filter ✓' in out
  assert 'stands for 2 documents unlucky: <urn:0> http://x/0' in out


def test_a_dropped_document(output, capsys):
  out, _ = said(capsys, corpus=str(output / 'web'), document='abc')  # the id's bare form
  assert 'dropped in web_rejects, record' in out
  assert 'from x at 77' in out
  assert 'stages extract ✓ → filter ✗ unlucky' in out
  assert 'Good ⟦text⟧. Good' in out
  out, _ = said(capsys, workdir=str(output), document='<urn:0>')
  assert 'stages extract ✗ unlucky cluster a duplicate of <urn:1>, which was kept' in out


def test_reasons(output, capsys):
  out, _ = said(capsys, corpus=str(output / 'web'), reason='unlucky', limit=3)
  assert out.count('/ unlucky') == 3 and '1 of 10: ' in out
  out, _ = said(capsys, corpus=str(output / 'web'), reason='filter/unlucky', limit=99)
  assert out.count('filter / unlucky') == 5 and 'scanning' not in out
  everything = {r['id'] for r in records.read_corpus(str(output / 'web_rejects'))
                if r['stage'] == 'filter'}
  assert all(id_ in out for id_ in everything)


@pytest.mark.parametrize('flags, message', [
  (dict(workdir='OUT', document='<urn:nobody>'), "no document '<urn:nobody>' in web"),
  (dict(corpus='OUT/web', reason='evil'), 'there are: extract/unlucky (5), filter/unlucky (5)'),
  (dict(corpus='OUT/none', reason='evil'), 'no corpus at'),
  (dict(workdir='OUT', step=3), 'no config.json'),
  (dict(step=3), '--step needs'),
  (dict(), 'what about?')])
def test_bad_input_is_one_line(output, capsys, flags, message):
  flags = {k: v.replace('OUT', str(output)) if isinstance(v, str) else v for k, v in flags.items()}
  out, err = said(capsys, **flags)
  assert message in err and err.count('\n') == 1 and not out


@pytest.fixture(scope='module')
def run(tmp_path_factory, markov_corpora):
  root = tmp_path_factory.mktemp('run')
  (root / 'tokens').mkdir()
  for name, path in markov_corpora.items():
    os.symlink(os.path.dirname(path), root / 'tokens' / name)
  stages = [dict(name='first', fraction=0.5, mixture=dict(web=1.0, pdf=0.5)),
            dict(name='last', fraction=0.5, mixture=dict(web=1.0))]
  config = dict(seed=3, train=dict(steps=40, rows=6, stages=stages),
                data=dict(seq_len=64, window=50, max_segments=4))
  (root / 'config.json').write_text(json.dumps(config))
  return root


def test_a_step_has_the_documents_of_its_batch(run, capsys):
  batches, _ = lineage.load_batches(str(run))
  iterator = iter(batches)
  for step in range(1, 31):
    if step == 25:
      save(run, 24, iterator.get_state(), batches.fingerprint())
      save(run, 28, iterator.get_state(), 'of another stream')
    batch = next(iterator)
    if step not in (1, 24, 25, 30):
      continue
    plan, start = lineage.plan_of(str(run), batches, step)
    assert start == (24 if step >= 25 else 0)
    for i, (name, pieces) in enumerate(plan):
      assert batches.sources[batch['source'][i]] == name
      tokens = [batches.corpora[name].tokens(p.document)[p.start:p.start + p.length]
                for p in pieces]
      used = batch['segment_ids'][i] > 0
      np.testing.assert_array_equal(np.concatenate(tokens), batch['inputs'][i][used])
  out, _ = said(capsys, workdir=str(run), step=30)
  assert 'step 30, stage last: 6 rows of 64 tokens' in out and 'worked out from step 24' in out
  assert out.count('web-train-') == sum(len(pieces) for _, pieces in plan)
  _, err = said(capsys, workdir=str(run), step=41)
  assert 'no step 41: the run has steps 1 to 40' in err


def save(run, step, state, fingerprint):
  for item, value in (('data', state), ('meta', {'fingerprint': fingerprint})):
    folder = run / 'checkpoints' / str(step) / item
    folder.mkdir(parents=True)
    (folder / 'metadata').write_text(json.dumps(value))


def test_checkpoints_are_as_lineage_reads_them(tmp_path):
  """Orbax's layout of a JSON item is not ours to choose."""
  from smoljax.checkpoints.store import Checkpoints

  with Checkpoints(str(tmp_path)) as checkpoints:
    checkpoints.save(2, {'w': np.zeros(2)}, {'m': np.zeros(2)}, {'step': 2}, {'fingerprint': 'x'})
  read = lambda item: json.loads((tmp_path / '2' / item / 'metadata').read_text())
  assert (read('data'), read('meta')) == ({'step': 2}, {'fingerprint': 'x'})


def test_an_unfinished_or_foreign_folder_is_no_corpus(tmp_path):
  (tmp_path / 'x').mkdir()
  (tmp_path / 'x/manifest.json').write_text('{}')
  assert lineage.finished_corpora(str(tmp_path)) == []
  with pytest.raises(ValueError, match='no config'):
    lineage.load_batches(str(tmp_path))


def test_stages_of_a_document():
  funnel = [{'stage': s} for s in ('read', 'filter', 'dedup')]
  assert lineage.verdicts(funnel, {}) == [
    ('read', 'passed'), ('filter', 'passed'), ('dedup', 'passed')]
  assert lineage.verdicts(funnel, {'stage': 'filter', 'reason': 'short'}) == [
    ('read', 'passed'), ('filter', 'short')]

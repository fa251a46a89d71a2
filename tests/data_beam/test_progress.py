"""The live funnel: what it counts in this process and in others, and how it says so."""

import io
import os

import apache_beam as beam
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.testing.util import assert_that, equal_to
from rich.console import Console

from data_beam import curation, progress
from data_beam.beam_options import pipeline_options
from data_beam.records import Document, Reject


def halve(n):
  if n % 2:
    yield Reject(Document(str(n), ''), 'halve', 'odd')
  else:
    yield n // 2


def small(n):
  yield Reject(Document(str(n), ''), 'small', f'above_{n // 10 * 10}') if n >= 10 else n


def route(element, function):
  for result in function(element):
    yield beam.pvalue.TaggedOutput('no', result) if isinstance(result, Reject) else result


class Stage(beam.PTransform):
  def __init__(self, function):
    super().__init__()
    self.function = function

  def expand(self, elements):
    split = elements | beam.FlatMap(route, self.function).with_outputs('no', main='yes')
    return split.yes, split.no


@pytest.mark.parametrize('args', [
  (),
  pytest.param(('--direct_running_mode=multi_processing', '--direct_num_workers=2'),
               marks=pytest.mark.slow)])
def test_counts(args, monkeypatch):
  folders = []
  leave = progress.Funnel.__exit__

  def look_and_leave(self, *error):
    folders.append(progress.read_counts(self._folder.name))
    leave(self, *error)

  monkeypatch.setattr(progress.Funnel, '__exit__', look_and_leave)
  monkeypatch.setenv('PYTHONPATH', os.path.dirname(__file__))  # for worker processes
  options = pipeline_options(args)
  steps = [('halve', Stage(halve)), ('small', Stage(small))]
  with progress.Funnel(steps, options) as funnel, beam.Pipeline(options=options) as pipeline:
    kept, rejects = funnel.apply(pipeline | beam.Create(range(60)) | beam.Reshuffle())
    assert_that(kept, equal_to(list(range(10))))
    assert_that(rejects | beam.combiners.Count.Globally(), equal_to([50]), 'rejected')
  assert folders == [{'halve': {'kept': 30, 'odd': 30},
                      'small': {'kept': 10, 'above_10': 10, 'above_20': 10}}]
  counted = {c.key.metric.name: c.committed for c in pipeline.result.metrics().query(
    MetricsFilter().with_namespace('funnel'))['counters']}
  assert counted == {'halve: kept': 30, 'halve: odd': 30, 'small: kept': 10,
                     'small: above_10': 10, 'small: above_20': 10}


def test_line_and_table():
  funnel = progress.Funnel([('read', None), ('filter', None), ('later', None)],
                           pipeline_options())
  counts = {'read': {'kept': 1500, 'empty': 500}, 'filter': {'kept': 900, 'short': 600}}
  assert funnel.line({}, 3) == ''
  assert funnel.line(counts, 10) == (
    '10 s: read 1,500 (200/s) → filter 900; dropped: short 600, empty 500')
  out = io.StringIO()
  Console(file=out, width=100).print(funnel.table(counts, 10))
  rows = [line.split() for line in out.getvalue().splitlines()]
  assert ['read', '2,000', '1,500', '500', '200', 'empty', '500'] in rows
  assert ['later', '0', '0', '0', '0'] in rows


def test_a_remote_runner_is_only_counted_by_beam():
  options = pipeline_options(['--runner=DataflowRunner'])
  with progress.Funnel([], options) as funnel:
    assert funnel._folder is None


def test_a_stage_that_drops_most_says_what_to_change(monkeypatch, caplog):
  row = {'stage': 'filter', 'documents_in': 9, 'documents_out': 1, 'dropped': {'short_line': 8}}
  manifest = {'documents': 1, 'funnel': [row, row | {'stage': 'read'}], 'path': 'x'}
  monkeypatch.setattr(curation.records, 'read_manifest', lambda path: manifest)
  with caplog.at_level('INFO', 'data_beam'):
    assert curation.announce('x') == 'x'
  assert 'filters=none' in caplog.text and caplog.text.count('more than half') == 1
  manifest |= {'documents': 0}
  with pytest.raises(curation.records.EmptyCorpus, match=r'short_line.*filters=docs'):
    curation.announce('x')

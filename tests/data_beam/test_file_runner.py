"""The runner whose shuffles are files: the same bytes as Beam's, after any kill."""

import pathlib
import random
import subprocess
import sys
import time

import apache_beam as beam
import pytest
from conftest import REPOSITORY
from helpers.warc import article, html, page, write_warc

from data_beam import file_runner
from data_beam.beam_options import pipeline_options
from data_beam.options import WebOptions
from data_beam.sources import readers
from data_beam.web import pipeline as web


class Both(beam.DoFn):
  """Numbers by parity, and how many of them a bundle had."""

  def start_bundle(self):
    self.count = 0

  def process(self, number, factor, add=0):
    self.count += 1
    yield number * factor + add
    if number % 2:
      yield beam.pvalue.TaggedOutput('odd', number)

  def finish_bundle(self):
    yield beam.pvalue.TaggedOutput(
      'counts', beam.transforms.window.GlobalWindows.windowed_value(self.count))


def save(element, path):
  with open(path, 'a') as f:
    f.write(f'{element!r}\n')


def build(pipeline, path):
  """A pipeline of all that the runner knows, which appends what it finds to a file."""
  numbers = pipeline | 'numbers' >> beam.Create(range(100))
  factor = pipeline | 'factor' >> beam.Create([3]) | 'same' >> beam.Map(lambda x: x)
  split = numbers | beam.Reshuffle() | beam.ParDo(
    Both(), beam.pvalue.AsSingleton(factor), add=1).with_outputs('odd', 'counts', main='all')
  total = split.counts | 'sum' >> beam.CombineGlobally(sum)
  both = ((split.all, split.odd) | beam.Flatten() | 'key' >> beam.Map(lambda n: (n % 7, n))
          | beam.GroupByKey() | 'sorted' >> beam.MapTuple(lambda key, found: (key, sorted(found))))
  joined = ({'a': both, 'b': split.odd | 'by odd' >> beam.Map(lambda n: (n % 7, -n))}
            | beam.CoGroupByKey()
            | 'join' >> beam.MapTuple(lambda key, found: (
              key, list(found['a']), sorted(found['b']))))
  rows = (joined | beam.combiners.ToList() | beam.Map(
    lambda rows, total: (total, sorted(rows)), beam.pvalue.AsSingleton(total)))
  _ = rows | 'save' >> beam.Map(save, path)


@pytest.mark.parametrize('processes', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_pipeline_gives_what_beams_own_runner_gives(processes, tmp_path):
  found = []
  for name, flags in [('mem', []), ('files', ['--runner=files', f'--work_processes={processes}'])]:
    with beam.Pipeline(options=pipeline_options(flags)) as pipeline:
      build(pipeline, str(tmp_path / name))
    found.append((tmp_path / name).read_text())
  assert found[0] == found[1] and found[0].count('\n') == 1


def test_what_it_cannot_do_is_said():
  pipeline = beam.Pipeline(options=pipeline_options(['--runner=files']))
  _ = pipeline | beam.Create([1]) | beam.WindowInto(beam.transforms.window.FixedWindows(1))
  with pytest.raises(NotImplementedError, match='--runner=files can do'):
    pipeline.run()


def test_parts_of_a_file_are_the_file(tmp_path):
  path = tmp_path / 'x.warc.gz'
  bodies = [page([f'{n} {random.Random(n).random()} ' * 40]) for n in range(60)]
  write_warc(path, [html(f'https://a.test/{n}', body) for n, body in enumerate(bodies)])
  data = bytearray(path.read_bytes())
  data[len(data) // 2:len(data) // 2 + 40] = bytes(40)     # a damaged member
  path.write_bytes(data)
  whole = [vars(r) if isinstance(r, readers.Page) else r.reason for r in readers.read(str(path))]
  assert len(whole) == 60 and whole.count('damaged_record') == 1
  for size in (100, 999, 5000, len(data) // 2):
    parts = readers.split(str(path), len(data), size)
    assert len(parts) > 1 and parts[-1].end == len(data)
    found = [vars(r) if isinstance(r, readers.Page) else r.reason
             for part in parts for r in readers.read(part)]
    assert found == whole
  plain = tmp_path / 'x.warc'
  assert readers.split(str(plain), 10**9, 10**6) == [str(plain)]
  assert readers.split_all([{'path': str(path), 'bytes': len(data)}]) == [str(path)]     # small


def corpora(folder):
  return {path.relative_to(folder).as_posix(): path.read_bytes()
          for path in pathlib.Path(folder).rglob('*') if path.is_file()}


@pytest.mark.slow
def test_tasks_that_are_done_are_not_done_again(tmp_path, monkeypatch):
  for n in range(3):
    write_warc(tmp_path / f'{n}.warc.gz', [html(f'https://a.test/{n}', page(article(n)))])
  files, out = [str(tmp_path / '*.gz')], tmp_path / 'out'
  options, flags = WebOptions(filters='none'), ['--runner=files', '--work_processes=1']
  web.run(files, str(tmp_path / 'expected'), options=options)
  real, done = file_runner.run_task, []

  def run_task(folder, stage, path, buckets):
    if len(done) == limit:
      raise KeyboardInterrupt
    done.append(path)
    return real(folder, stage, path, buckets)

  monkeypatch.setattr(file_runner, 'run_task', run_task)
  for limit in (4, 9, 15, 99):
    if limit == 99:
      web.run(files, str(out), options=options, beam_args=flags)
    else:
      with pytest.raises(KeyboardInterrupt):
        web.run(files, str(out), options=options, beam_args=flags)
      assert (out / '.web-work').is_dir()
  assert len(set(done)) == len(done) > 15
  assert corpora(out) == corpora(tmp_path / 'expected')     # and no work is left


@pytest.mark.slow
def test_killed_at_any_time_it_goes_on_where_it_was(tmp_path):
  for n in range(12):
    write_warc(tmp_path / f'{n}.warc.gz', [
      html(f'https://a.test/{n}/{i}', page(article(n * 20 + i))) for i in range(20)])
  command = [sys.executable, '-m', 'data_beam.web', f'--input={tmp_path}/*.gz', '--filters=none',
             '--runner=files', '--work_processes=2', f'--output={tmp_path}/out']
  web.run([str(tmp_path / '*.gz')], str(tmp_path / 'expected'), options=WebOptions(filters='none'))
  for _ in range(6):
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL) as process:
      time.sleep(random.Random().uniform(4, 12))
      process.kill()
  subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
  assert corpora(tmp_path / 'out') == corpora(tmp_path / 'expected')

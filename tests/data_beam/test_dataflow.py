"""Other engines: the graph that Dataflow would get, what its workers would need, a job service."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys

import apache_beam as beam
import pytest
from apache_beam.transforms import environments
from conftest import REPOSITORY
from helpers.stories import make, story
from helpers.tokenised import corpus, folder, model, texts  # noqa: F401 (fixtures)
from helpers.warc import article, html, page, write_warc

from data_beam import records, tokenize_corpus
from data_beam.beam_options import refuse_unknown
from data_beam.options import PdfOptions, WebOptions
from data_beam.pdf import pipeline as pdf
from data_beam.web import pipeline as web

SCRIPT = REPOSITORY / 'experiments' / 'cloud' / 'dataflow.sh'
DATAFLOW = ['--runner=DataflowRunner', '--project=my-project', '--region=us-central1',
            '--temp_location=gs://bucket/tmp', '--sdk_container_image=image']


def script(*args, **environment):
  return subprocess.run(
    [SCRIPT, *args], capture_output=True, text=True, check=True,
    env={**os.environ, 'PROJECT': 'p', 'REGION': 'us-central1', 'BUCKET': 'gs://bucket',
         'DRY': '1', **environment}).stdout


@pytest.fixture(scope='module')
def crawl(tmp_path_factory):
  path = tmp_path_factory.mktemp('crawl') / 'x.warc.gz'
  return write_warc(path, [
    html(f'https://a.test/{i}', page(article(i))) for i in range(6)])


class Submitted(Exception):
  pass


def curate_web(folder, crawl, corpus, model):
  web.run([crawl], str(folder), options=WebOptions(languages=('en', 'fr')), beam_args=DATAFLOW)


def curate_pdfs(folder, crawl, corpus, model):
  (folder / 'a.pdf').write_bytes(make(story(1)))
  pdf.run([str(folder / 'a.pdf')], str(folder), beam_args=DATAFLOW, options=PdfOptions(
    ocr_server='http://ocr:8000', ocr_model='m', refetch=('truncated', 'poor'),
    agent='us@example.org'))


def tokenise(folder, crawl, corpus, model):
  tokenize_corpus.run(str(corpus), str(model), str(folder), 'tokens', beam_args=DATAFLOW)


@pytest.fixture(params=[curate_web, curate_pdfs, tokenise])
def graph(request, crawl, corpus, model, tmp_path, monkeypatch) -> tuple[bytes, int]:
  """A pipeline as bytes, as the service would get it, and how many ParDos it has at least."""
  graphs = []

  def submit(pipeline, *args):
    environment = environments.DockerEnvironment.from_container_image('image')
    graphs.append(pipeline.to_runner_api(default_environment=environment).SerializeToString())
    raise Submitted

  monkeypatch.setattr(beam.Pipeline, 'run', submit)
  with pytest.raises(Submitted):
    request.param(tmp_path, crawl, corpus, model)
  return graphs[0], 10 if request.param is tokenise else 30


WORKER = '''
import sys

class Absent:
  """What the container does not hold."""

  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in ('smoljax', 'experiments', 'configs', 'tests', 'conftest', 'jax',
                              'flax', 'optax', 'grain', 'absl_flags', 'test_web', 'test_sources',
                              'test_pdf', 'test_tokenize_corpus'):
      raise ImportError(name + ' is not on the workers')

sys.meta_path.insert(0, Absent())
import apache_beam as beam
from apache_beam.portability.api import beam_runner_api_pb2
proto = beam_runner_api_pb2.Pipeline.FromString(open(sys.argv[1], 'rb').read())
pipeline = beam.Pipeline.from_runner_api(proto, beam.runners.DirectRunner(),
                                         beam.options.pipeline_options.PipelineOptions(flags=[]))
dofns = []

class Visitor(beam.pipeline.PipelineVisitor):
  def visit_transform(self, node):
    if isinstance(node.transform, beam.ParDo):
      dofns.append(node.full_label)

pipeline.visit(Visitor())
import data_beam
print(len(dofns), data_beam.__file__)
'''


def test_workers_can_unpack_the_graph(graph, tmp_path):
  """With the files the image gets, and nothing of what it does not get."""
  graph, least = graph
  (tmp_path / 'graph').write_bytes(graph)
  shutil.copytree(REPOSITORY / 'data_beam', tmp_path / 'app' / 'data_beam')
  done = subprocess.run(
    [sys.executable, '-c', WORKER, tmp_path / 'graph'], cwd=tmp_path, capture_output=True,
    text=True, env={**os.environ, 'PYTHONPATH': str(tmp_path / 'app')})
  assert done.returncode == 0, done.stderr[-3000:]
  count, where = done.stdout.split()
  assert int(count) > least and where.startswith(str(tmp_path))
  assert len(graph) < 10 << 20    # Dataflow's limit for a job request


def closure(names):
  """Installed distributions that come with the named ones."""
  found, todo = set(), [n.lower().replace('_', '-') for n in names]
  while todo:
    name = todo.pop()
    if name in found:
      continue
    found.add(name)
    try:
      needs = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
      continue
    todo += [re.match(r'[\w.-]+', n)[0].lower().replace('_', '-') for n in needs
             if 'extra ==' not in n]
  return found


def test_the_image_installs_what_data_beam_imports():
  installed = closure(re.findall(r'^[\w-]+', script('requirements'), re.M))
  providers = importlib.metadata.packages_distributions()
  for path in sorted((REPOSITORY / 'data_beam').rglob('*.py')):
    for node in ast.walk(ast.parse(path.read_text())):
      names = [a.name for a in node.names] if isinstance(node, ast.Import) else (
        [node.module] if isinstance(node, ast.ImportFrom) else [])
      for name in names:
        top = name.split('.')[0]
        if top not in sys.stdlib_module_names and top not in (
            'data_beam', 'google', 'distributed'):     # Dask, for another runner
          dists = {d.lower().replace('_', '-') for d in providers[top]}
          assert dists & installed, f'{path.name} imports {name}, which the image lacks'


def test_the_script_names_every_step():
  assert 'COPY data_beam' in script('image') and 'gcloud builds submit' in script('image')
  assert 'tesseract-ocr-fra' in script('image')
  assert '-m data_beam.tokenize_corpus' in script('tokenize', '--input=gs://b/corpora/pdf/1.0.0')
  command = script('web', '--name=w', '--input=gs://b/*.warc.gz')
  for part in ('-m data_beam.web', '--runner=DataflowRunner', '--output=gs://bucket/corpora',
               '--name=w', '--sdk_container_image=us-central1-docker.pkg.dev/p/'):
    assert part in command
  flags = re.findall(r'--\w+=\S+', command.partition('gs://b/')[2])
  refuse_unknown(flags)    # Beam knows them all


@pytest.mark.slow
def test_a_job_service_gives_the_same_bytes(crawl, tmp_path):
  """The portable runner: another process takes the job, and starts the workers as processes."""
  here = web.run([crawl], str(tmp_path / 'a'))
  there = web.run([crawl], str(tmp_path / 'b'), beam_args=[
    '--runner=PortableRunner', '--job_endpoint=embed',
    '--environment_type=beam:env:harness_subprocess_python:v1',
    f'--environment_config={sys.executable} -m apache_beam.runners.worker.sdk_worker_main'])
  shards = lambda p: records.read_manifest(p)['shards']
  assert shards(there) == shards(here)

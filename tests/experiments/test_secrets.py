"""A secret in every input of a run that can carry one is in no file that the run writes."""

import functools
import http.server
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest
from conftest import REPOSITORY
from helpers import warc
from helpers.quickstart import SMALL

from data_beam import tables
from data_beam.options import ImportOptions

SECRET = 'Pl4ntedSecretValue'
FLAGS = [
  f'--config.beam.args=("--s3_secret_access_key={SECRET}","--s3_session_token={SECRET}")',
  f'--config.pdf.ocr_server=http://user:{SECRET}@{{host}}/v1',
  '--config.pdf.ocr_model=m',
  f'--config.pdf.agent=me (api_key={SECRET})',
  f'--config.eval.data=https://{{host}}/data?token={SECRET}',
]
VARIABLES = ('HF_TOKEN', 'AWS_SECRET_ACCESS_KEY', 'WANDB_API_KEY', 'OPENAI_API_KEY')


class Quiet(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *args):
    pass


@pytest.fixture(scope='module')
def host(tmp_path_factory):
  folder = tmp_path_factory.mktemp('served')
  warc.write_warc(folder / 'crawl.warc.gz', [
    warc.html(f'https://a.test/{i}', warc.page(warc.article(i))) for i in range(120)])
  handler = functools.partial(Quiet, directory=str(folder))
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'127.0.0.1:{server.server_port}'
    server.shutdown()


def typed(host: str, module: str, config: str, *flags: str) -> subprocess.CompletedProcess:
  """A command line with the FLAGS that it does not set, and secrets in the environment too."""
  planted = [f.format(host=host) for f in FLAGS
             if f.partition('=')[0].removeprefix('--config.') not in ' '.join(flags)]
  environment = os.environ | dict.fromkeys(VARIABLES, SECRET) | {'WANDB_MODE': 'offline'}
  environment.pop('XLA_FLAGS', None)
  return subprocess.run(
    [sys.executable, '-m', module, f'--config={config}', *SMALL, '--config.web.filters=none',
     '--config.eval.tasks=()', *planted, *flags],
    cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope='module')
def run(host, tmp_path_factory):
  """(its workdir, what it said)"""
  workdir = tmp_path_factory.mktemp('planted') / 'run'
  result = typed(
    host, 'experiments.run', 'configs/quickstart.py', f'--workdir={workdir}',
    f'--config.web.input=http://{host}/crawl.warc.gz?X-Amz-Signature={SECRET}',
    *['--config.wandb=small'] * bool(importlib.util.find_spec('wandb')))
  assert result.returncode == 0, result.stderr
  return workdir, result.stdout + result.stderr


def leaks(root: pathlib.Path, output: str) -> list[str]:
  files = [p for p in root.rglob('*') if p.is_file() and not p.is_symlink()]
  assert len(files) > 5
  return [str(p) for p in files if SECRET.encode() in p.read_bytes()] + [
    line for line in output.splitlines() if SECRET in line]


@pytest.mark.slow
def test_planted_secrets_are_in_no_file(run, host, tmp_path):
  workdir, said = run
  assert leaks(workdir, said) == []
  # What stopped in the midst, and what complains.
  for flag in (f'--config.web.decontaminate=("/no/{SECRET}",)',
               f'--config.train.checkpoint_dir=s3://AKIA{SECRET}:{SECRET}@bucket/runs',
               f'--config.web.input=gs://bucket/x.warc.gz?access_token={SECRET}',
               f'--config.train.init_from=s3://key:{SECRET}@bucket/run',
               f'--config.corpora=a=s3://key:{SECRET}@bucket/tokens'):
    result = typed(host, 'experiments.run', 'configs/quickstart.py',
                   f'--workdir={workdir}', '--config.train.tokens=81920', flag)
    assert result.returncode == 2 and 'Traceback' not in result.stderr, result.stderr
    if 's3:' in flag or 'gs:' in flag:
      assert leaks(workdir, result.stdout + result.stderr) == [], flag
  card = tmp_path / 'released'
  subprocess.run(
    [sys.executable, '-m', 'data_beam.tables', 'export', f'--output={card}',
     f'--input={workdir}/corpora/web'], cwd=REPOSITORY, check=True)
  assert leaks(workdir, '') + leaks(card, '') == []


@pytest.mark.slow
def test_a_sweep_and_a_search_keep_them(host, tmp_path):
  """Of points whose fields have them, in names of folders and in what is said too."""
  recipe = tmp_path / 'recipe.py'
  recipe.write_text("""
from configs.quickstart import get_config
space = lambda: {'optimizer.learning_rate': ('log', 1e-3, 1e-2)}
""")
  rows = tmp_path / 'rows.jsonl'
  rows.write_text(''.join(
    json.dumps({'text': '\n\n'.join(warc.article(i))}) + '\n' for i in range(120)))
  corpus = tables.import_tables([str(rows)], str(tmp_path), 'mine', ImportOptions(num_shards=1))
  given = [str(recipe), f'--config.corpora=mine={corpus}', '--config.train.tokens=20480',
           "--config.train.stages=({'name':'all','fraction':1.0,'mixture':{'mine':1.0}},)"]
  for module, flags in {
    'experiments.sweep': ['--grid', f'eval.data=https://{host}/a?token={SECRET},https://b/'],
    'experiments.search': ['--trials=1'],
  }.items():
    workdir = tmp_path / module
    result = typed(host, module, *given, f'--workdir={workdir}', *flags)
    assert result.returncode == 0, result.stderr + result.stdout
    assert leaks(workdir, result.stdout + result.stderr) == []
    assert not [p for p in workdir.rglob('*') if SECRET in p.name]

"""A secret in every input of a run that can carry one is in no file that the run writes."""

import functools
import http.server
import os
import pathlib
import subprocess
import sys
import threading

import pytest
from conftest import REPOSITORY
from helpers import warc
from helpers.quickstart import SMALL

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


@pytest.fixture
def host(tmp_path):
  (tmp_path / 'served').mkdir()
  warc.write_warc(tmp_path / 'served/crawl.warc.gz', [
    warc.html(f'https://a.test/{i}', warc.page(warc.article(i))) for i in range(120)])
  handler = functools.partial(Quiet, directory=str(tmp_path / 'served'))
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'127.0.0.1:{server.server_port}'
    server.shutdown()


def leaks(root: pathlib.Path, output: str) -> list[str]:
  files = [p for p in root.rglob('*') if p.is_file() and not p.is_symlink()]
  assert len(files) > 5
  return [str(p) for p in files if SECRET.encode() in p.read_bytes()] + [
    line for line in output.splitlines() if SECRET in line]


@pytest.mark.slow
def test_planted_secrets_are_in_no_file(tmp_path, host):
  flags = [f.format(host=host) for f in FLAGS]
  command = [
    sys.executable, '-m', 'experiments.run', '--config=configs/quickstart.py',
    f'--workdir={tmp_path}/run', *SMALL, '--config.web.filters=none', '--config.eval.tasks=()',
    f'--config.web.input=http://{host}/crawl.warc.gz?X-Amz-Signature={SECRET}', *flags]
  environment = os.environ | dict.fromkeys(VARIABLES, SECRET)
  environment.pop('XLA_FLAGS', None)
  result = subprocess.run(
    command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
  assert result.returncode == 0, result.stderr
  assert leaks(tmp_path / 'run', result.stdout + result.stderr) == []
  # What stopped in the midst, and what complains.
  result = subprocess.run(
    [*command, '--config.train.tokens=81920', f'--config.web.decontaminate=("/no/{SECRET}",)'],
    cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
  assert result.returncode == 2 and 'Traceback' not in result.stderr
  card = tmp_path / 'released'
  subprocess.run(
    [sys.executable, '-m', 'data_beam.tables', 'export', f'--output={card}',
     f'--input={tmp_path}/run/corpora/web'], cwd=REPOSITORY, env=environment, check=True)
  assert leaks(tmp_path / 'run', '') + leaks(card, '') == []

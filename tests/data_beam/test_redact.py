"""What may be shown to anybody: no secret is in it, and nothing else is missing."""

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from helpers import warc

from data_beam import tables
from data_beam.options import WebOptions
from data_beam.redact import HIDDEN, is_secret, public
from data_beam.web import pipeline

SECRET = 'hunter2secretvalue'


@pytest.mark.parametrize('value', [
  f's3://user:{SECRET}@bucket/a.gz', f'https://u:{SECRET}@host:8000/v1', f'https://h/a?sig={SECRET}',
  f'https://h/a.gz?X-Amz-Credential=A&X-Amz-Signature={SECRET}', f'gs+https://h/a#{SECRET}',
  f'user:{SECRET}@host.example', f'user:{SECRET}@host:path', f'X-Amz-Signature={SECRET}&x=1',
  f'--password={SECRET}', f'--s3_secret_access_key={SECRET}', f'--config.a.api_key={SECRET}',
  f"--password='{SECRET} and more {SECRET}'",
  f'failed: HF_TOKEN={SECRET} python', f'--key = {SECRET}',
  f'{{"private_key": "{SECRET}"}}', f"{{'token': '{SECRET}'}}", f'Authorization: Basic {SECRET}',
  f'Cookie: a={SECRET}; b={SECRET}', f'Bearer {SECRET}', f'X-Api-Key: {SECRET}', f'hf_{SECRET}',
  f'-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----',
  ['--password', SECRET], ('--hf-token', SECRET), {'token': SECRET}, {'key': SECRET},
  {'secret': [SECRET]}, {'credentials': {'user': 'a', 'is': SECRET}},
  {'a': {'private_key': SECRET}},
  {'awsSecretAccessKey': SECRET}, {'DB_PASSWORD': SECRET}, {f'https://u:{SECRET}@h/': 3},
  {'beam': {'args': [f'--s3_session_token={SECRET}', '--runner=x']}},
], ids=str)
def test_no_secret_is_left(value):
  assert SECRET not in json.dumps(public(value))
  assert public(value) == public(public(value))


@pytest.mark.parametrize('value', [
  'a plain sentence: 3.45 nats per token, at 10:30', 'gs://bucket/a/*.gz', '/data/a@b/c.gz',
  {'tokens': 5, 'tokenizer': 'a', 'num_kv_heads': 2, 'keys': 1, 'bos_token': '<s>'},
  {'https://a.example/secret/token.html': {'kind': 'article'}}, {'key': 7, 'password': None},
  {'token': ''}, ['--output', 'DIR'], ['--password', '--other'], 'token', 'mailto:a@b.example',
  'steps=5, tokens=7', "dict(web=0.9, pdf=0.1)", None, True, 1.5, [], (1, 2)])
def test_nothing_else_is_missing(value):
  assert json.dumps(public(value)) == json.dumps(value)


def test_what_hides_is_said_where_it_stood():
  assert public('see --password=x --b=y') == f'see --password={HIDDEN} --b=y'
  assert public('https://u:p@h/a?t=1, or b') == 'https://h/a or b'
  assert is_secret('GOOGLE_APPLICATION_CREDENTIALS') and not is_secret('tokens')


def test_a_corpus_and_its_card_hold_no_secret(tmp_path, capsys):
  warc.write_warc(tmp_path / 'a.warc.gz', [
    warc.html(f'https://a.test/{i}', warc.page(warc.article(i))) for i in range(4)])
  path = pipeline.run([str(tmp_path / '*.gz')], str(tmp_path / 'out'), 'web', WebOptions(
    num_shards=1), beam_args=[f'--s3_secret_access_key={SECRET}'])
  # One that somebody else wrote, with all that a manifest can say.
  manifest = json.loads((tmp_path / 'out/web/1.0.0/manifest.json').read_text())
  manifest['inputs'] += [{'path': f's3://u:{SECRET}@b/a?X-Amz-Signature={SECRET}'}]
  manifest['config'] |= {'token': SECRET, 'args': [f'--password={SECRET}']}
  (tmp_path / 'out/web/1.0.0/manifest.json').write_text(json.dumps(manifest))
  (tmp_path / 'out/web/1.0.0/_SUCCESS').write_text('')
  tables.export_corpus(path, str(tmp_path / 'released'))
  for file in (tmp_path / 'released').rglob('*'):
    assert file.is_dir() or SECRET.encode() not in file.read_bytes(), file
  assert pipeline.main([f'--input=https://u:{SECRET}@127.0.0.1:1/a.gz?sig={SECRET}',
                        f'--output={tmp_path}/x']) == 2
  said = capsys.readouterr()
  assert SECRET not in said.out + said.err


def test_a_long_text_of_so_many_tokens_is_no_account():
  said = 'ruler:niah_single_1@4096, plain: recall 0.5; ruler:vt@16384.'
  assert public(said) == said
  for host in ('10.0.0.1', 'b.test', '4096.test', 'node7'):
    assert public(f'u:{SECRET}@{host}:dir') == f'***@{host}:dir'


def test_it_imports_nothing_but_the_standard_library():
  code = 'import sys, data_beam.redact; print([m for m in sys.modules if m.startswith("apache")])'
  assert subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY, capture_output=True, text=True
                        ).stdout.strip() == '[]'

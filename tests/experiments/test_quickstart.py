"""The main job end to end, shrunken: every artefact, a second run, changes, kills, bad input."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import REPOSITORY
from helpers.quickstart import SMALL
from helpers.warc import article

from configs import quickstart
from data_beam import tables
from data_beam.options import ImportOptions
from experiments import run as run_lib


def command(workdir, *flags):
  return [
    sys.executable,
    '-m',
    'experiments.run',
    '--config=configs/quickstart.py',
    f'--workdir={workdir}',
    *flags,
  ]


def run(workdir, *flags, check=True):
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  result = subprocess.run(
    command(workdir, *flags),
    cwd=REPOSITORY,
    env=environment,
    capture_output=True,
    text=True,
    timeout=900,
  )
  assert not check or result.returncode == 0, result.stdout + result.stderr
  return result


@functools.cache
def digest(workdir):
  from smoljax.checkpoints import store

  _, params, _ = store.load_params(str(workdir))
  import jax

  return [np.asarray(x).tobytes() for x in jax.tree.leaves(params)]


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('quickstart') / 'run'
  return workdir, run(workdir, *SMALL)


@pytest.mark.slow
def test_everything_is_there(finished):
  workdir, result = finished
  for name in (
    'config.json', 'summary.json', 'metrics.jsonl', 'events.jsonl', 'checkpoints', 'samples.json',
    'export/config.json', 'export/model.safetensors', 'export/tokenizer.json',
    'report/index.html', 'corpora/web/1.0.0/_SUCCESS', 'corpora/web_rejects/1.0.0/manifest.json',
    'corpora/pdf/1.0.0/manifest.json',
  ):  # fmt: skip
    assert (workdir / name).exists(), name
  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary['documents']['web']['kept'] > 100 and summary['documents']['pdf']['kept'] > 0
  assert summary['loss']['final'] < summary['loss']['first'] - 0.5
  assert set(summary['bits_per_byte']) == {'web', 'pdf'}
  for word in ('report', 'checkpoint', 'export'):
    assert f'{workdir}/' in next(x for x in result.stdout.split('\n') if x.strip().startswith(word))
  page = (workdir / 'report/index.html').read_text()
  assert str(round(summary['loss']['final'], 2)) in page
  assert not re.search(r'(?:src|href)="https?://', page.split('<main', 1)[0])


@pytest.mark.slow
def test_a_second_run_redoes_nothing(finished):
  workdir, _ = finished
  before = {p: p.stat().st_mtime_ns for p in (workdir / 'steps').rglob('*') if p.is_file()}
  result = run(workdir, *SMALL)
  assert result.stdout.count(': done (') == 10
  after = {p: p.stat().st_mtime_ns for p in (workdir / 'steps').rglob('*') if p.is_file()}
  assert {p: t for p, t in after.items() if p.suffix != '.lock'} == {
    p: t for p, t in before.items() if p.suffix != '.lock'
  }


@pytest.mark.slow
def test_a_changed_field_redoes_what_depends_on_it(finished):
  workdir, _ = finished
  states = {}
  for change in ('--config.sample.tokens=17', '--config.optimizer.name=adamw'):
    output = run(workdir, *SMALL, change, '--dry_run').stdout
    states[change] = {
      m[1] for m in re.finditer(r'(\w+)-[0-9a-f]{8}\s*│\s*run', output)
    }  # fmt: skip
  assert states['--config.sample.tokens=17'] == {'export', 'report'}
  assert states['--config.optimizer.name=adamw'] == {'train', 'evaluate', 'export', 'report'}


@pytest.mark.slow
def test_the_export_is_the_model(finished):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  from smoljax import model
  from smoljax.checkpoints import load

  workdir, _ = finished
  ours = load.load_model(str(workdir))
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    workdir / 'export', dtype=torch.float32
  ).eval()
  assert type(theirs).__name__ == 'SmolLM3ForCausalLM'
  text = 'Return the number of bytes that were written.'
  ids = [ours.tokenizer.bos_id, *ours.tokenizer.encode(text)]
  tokenizer = transformers.AutoTokenizer.from_pretrained(workdir / 'export')
  assert tokenizer(text)['input_ids'] == ids
  with torch.no_grad():
    expected = theirs(torch.tensor([ids])).logits.numpy()
  got = model.apply(ours.config, ours.params, np.array([ids])).logits
  assert np.abs(np.asarray(got) - expected).max() <= 5e-4


@pytest.mark.slow
def test_kills_anywhere_change_nothing(finished, tmp_path):
  """SIGKILL after random pauses until a run survives; the parameters are those of `finished`."""
  workdir = tmp_path / 'killed'
  # The slow first step is the same for all: copy it, and kill what follows.
  source = next(p for p in (finished[0] / 'steps').glob('selfdocs-*') if p.is_dir())
  shutil.copytree(source, workdir / 'steps' / source.name)
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  rng = np.random.default_rng(0)
  kills = 0
  for _ in range(8):
    process = subprocess.Popen(
      command(workdir, *SMALL),
      cwd=REPOSITORY,
      env=environment,
      stdout=subprocess.DEVNULL,
      start_new_session=True,
    )
    time.sleep(float(rng.uniform(3, 11)))
    if process.poll() is None:
      os.killpg(process.pid, signal.SIGKILL)
      kills += 1
    process.wait()
  run(workdir, *SMALL)
  assert kills >= 2
  assert digest(workdir) == digest(finished[0])
  for name in ('web', 'pdf'):
    shards = [
      json.loads((w / f'corpora/{name}/1.0.0/manifest.json').read_text())['shards']
      for w in (workdir, finished[0])
    ]
    assert shards[0] == shards[1]


WRONG_FLAGS = {
  '--config.train.toknes=1': 'toknes',
  '--no_such_flag': 'no_such_flag',
  '--config.train.tokens=many': 'tokens',
}


@pytest.mark.parametrize('flag', WRONG_FLAGS)
def test_a_wrong_flag_is_one_line(flag, tmp_path):
  result = run(tmp_path / 'new', flag, check=False)
  assert result.returncode == 2
  assert len(result.stderr.strip().split('\n')) == 1 and WRONG_FLAGS[flag] in result.stderr
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
  'field, value, words',
  [
    ('web.input', '/nowhere/*.warc.gz', r'--config\.web\.input.*/nowhere/'),
    ('train.batch_tokens', 1000, r'try --config\.train\.batch_tokens=768'),
    ('train.accumulate', 3, r'try --config\.train\.batch_tokens=2304'),
    ('mesh.tensor', 3, 'no mesh of 8 devices with mesh.tensor=3'),
    ('optimizer.name', 'sgd', 'adamw'),
    ('web.filters', 'nice', 'fineweb'),
    ('web.tier', 'slow', 'balanced'),
    ('pdf.ocr', 'maybe', 'never'),
    ('eval.tasks', ('golf',), 'hellaswag'),
    ('model.num_kv_heads', 3, 'num_kv_heads'),
    ('train.tokens', 0, 'give at least 1'),
  ],
)
def test_bad_input_is_one_line_and_leaves_nothing(field, value, words, tmp_path):
  config = quickstart.get_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises((ValueError, OSError), match=words) as error:
    run_lib.run(config, str(tmp_path / 'new'))
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'new').exists()


@pytest.mark.slow
def test_bad_data_is_one_line(tmp_path):
  empty = tmp_path / 'empty.warc.gz'
  empty.write_bytes(b'')
  result = run(tmp_path / 'a', *SMALL, f'--config.web.input={empty}', check=False)
  assert result.returncode == 2 and 'error: ' in result.stderr and 'empty' in result.stderr
  assert not any(p.name.startswith('web-') for p in (tmp_path / 'a/steps').iterdir() if p.is_dir())
  result = run(tmp_path / 'a', *SMALL, '--config.tokenizer.vocab_size=60000', check=False)
  assert result.returncode == 2 and '--config.tokenizer.vocab_size=' in result.stderr


@pytest.mark.slow
def test_a_few_documents_are_enough_for_a_run(tmp_path):
  """What its tasks cannot be made of is left out; the model is evaluated, exported, reported."""
  notes = tmp_path / 'notes.jsonl'
  notes.write_text(''.join(json.dumps({'text': '\n\n'.join(article(i))}) + '\n' for i in range(14)))
  corpus = tables.import_tables([str(notes)], str(tmp_path), 'notes', ImportOptions(num_shards=1))
  result = run(tmp_path / 'a', *SMALL, f'--config.corpora=notes={corpus}')
  assert 'left out: the continuation task needs 4 held-out documents' in result.stdout
  assert 'bits_per_byte' in (tmp_path / 'a/summary.json').read_text()
  assert (tmp_path / 'a/export/model.safetensors').exists()

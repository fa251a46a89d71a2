"""experiments.mix: from tokenised corpora to a decision that later runs validate."""

import hashlib
import json
import math
import pathlib
import types

import numpy as np
import pytest
from conftest import write_tokenised

from experiments import mix
from smoljax.data.corpus import open_corpus

FLAGS = {
  'data.seq_len': 32, 'data.window': 32, 'model.num_layers': 1, 'model.embed_dim': 16,
  'model.mlp_dim': 32, 'model.num_heads': 1, 'model.num_kv_heads': 1, 'model.head_dim': 16,
  'model.dtype': 'float32', 'train.batch_tokens': 256, 'train.tokens': 1024, 'mix.proxies': 7,
  'mix.unseen': 3, 'mix.repeats': 2, 'mix.together': 6, 'mix.seeds': 3, 'mix.resamples': 3,
  'mix.target_tokens': 2048, 'mix.larger': "(('num_layers',2),)", 'mix.phases': '(0.75,0.25)',
  'mix.laws': "('linear','trees','exponential')", 'optimizer.name': 'adamw',
}  # fmt: skip


@pytest.fixture(scope='module')
def given(tmp_path_factory):
  folder, rng = tmp_path_factory.mktemp('tokens'), np.random.default_rng(0)
  tokenizer = folder / 'tokenizer.model'
  tokenizer.write_text('its bytes are all that is asked for')
  entries = []
  for name, low, count in (('prose', 4, 60), ('code', 24, 30), ('math', 44, 15)):
    path = pathlib.Path(write_tokenised(folder, name, {
      split: [rng.integers(low, low + 20, rng.integers(20, 60)) for _ in range(n)]
      for split, n in (('train', count), ('validation', 4))}, 64))
    manifest = json.loads((path / 'manifest.json').read_text())
    manifest['tokenizer_sha256'] = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    (path / 'manifest.json').write_text(json.dumps(manifest))
    (path / '_SUCCESS').write_text('')  # it is changed on purpose
    entries.append(f'{name}={path}')
  return [f'--config.corpora={",".join(entries)}', f'--config.tokenizer.path={tokenizer}',
          *(f'--config.{k}={v}' for k, v in FLAGS.items())]


def run(given, workdir, *more):
  return mix.main(['--config=configs/mix.py', f'--workdir={workdir}', *given, *more])


def test_a_decision_is_judged_by_documents_that_no_law_saw(given, tmp_path):
  study = mix.Mix('configs/mix.py', given, tmp_path, 1e9)
  texts = [{tuple(row[:12]) for row, first in zip(
    table.rows['inputs'], table.rows['segment_ids'], strict=True) if first[0]}
    for table in (study.held_out, study.judged)]
  assert all(texts) and not texts[0] & texts[1]
  whole = sum(sum(int(r['num_bytes']) for r in open_corpus(p, 'validation').records)
              for p in study.paths.values())
  assert study.held_out.num_bytes.sum() + study.judged.num_bytes.sum() == whole
  seen = []
  study.trainers[False] = types.SimpleNamespace(
    train=lambda rows, chosen, seeds: (None, np.zeros((len(seeds), 20))),
    score=lambda params, table: seen.append(table) or np.ones((6, 3)))
  mixture = study.space.natural
  study.train([mix.Run('proxy-0', mixture, 0)])
  study.train([mix.Run('arm-natural-0', mixture, 0)])
  assert seen[0] is study.held_out and seen[1] is study.judged


def test_another_config_is_no_part_of_a_study(given, tmp_path, capsys):
  """Whatever of it decides what a proxy scores, not a list of some of it."""
  assert run(given, tmp_path, '--steps=design') == 0
  assert run(given, tmp_path, '--steps=design', '--config.train.log_every=3') == 0
  for field in ('optimizer.weight_decay=0.7', 'model.qk_norm=True'):
    assert run(given, tmp_path, '--steps=design', f'--config.{field}') == 2
    said = ' '.join(capsys.readouterr().err.split())
    assert field.partition('=')[0] in said and 'give another --workdir' in said


def test_proxies_that_diverged_are_left_out_and_named(given, tmp_path, capsys, monkeypatch):
  study, rng = mix.Mix('configs/mix.py', given, tmp_path, 1e9), np.random.default_rng(0)
  study.design()
  with open(tmp_path / 'runs.jsonl', 'w') as file:
    for run in study.proxies():
      bpb = {d: math.nan if run.key == 'proxy-2' else float(rng.normal(2, .1))
             for d in study.domains}
      file.write(json.dumps({'key': run.key, 'bpb': bpb}) + '\n')
  seen = []
  monkeypatch.setattr(study, '_decide', lambda ranked, laws, tried, *_: seen.append(len(tried)))
  assert study.fit() and seen == [7 + 2 - 1]
  assert 'they diverged: proxy-2' in ' '.join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_the_whole_study_goes_on_where_it_stopped(given, tmp_path, capsys):
  assert run(given, tmp_path, '--steps=design,run', '--seconds=1e-9') == 75
  assert 'give the same command again' in capsys.readouterr().out
  assert run(given, tmp_path) == 0
  rows = [json.loads(line) for line in (tmp_path / 'runs.jsonl').read_text().splitlines()]
  assert len(rows) == 7 + 3 + 2 + 2 * 4 * 3
  assert all(np.isfinite(list(r['bpb'].values())).all() for r in rows)
  decision = json.loads((tmp_path / 'decision.json').read_text())
  design = json.loads((tmp_path / 'design.json').read_text())
  proposed = np.array(decision['arms']['proposed'])
  assert proposed.shape == (2, 3) and np.allclose(proposed.sum(axis=1), 1)
  assert (np.array(decision['epochs']) <= 8 + 1e-6).all() and design['share'] == 0.5
  found = json.loads((tmp_path / 'validation.json').read_text())
  assert [d['against'] for d in found['arm_larger']['differences']] == [
    'natural', 'best', 'unimax']
  page = (tmp_path / 'report/index.html').read_text()
  assert 'Sensitivity' in page and 'By phase' in page
  # Nothing is left to do, and the decision stays what the runs validate.
  before = (tmp_path / 'runs.jsonl').read_bytes(), (tmp_path / 'decision.json').read_bytes()
  assert run(given, tmp_path) == 0
  assert before == ((tmp_path / 'runs.jsonl').read_bytes(),
                    (tmp_path / 'decision.json').read_bytes())
  # A run is what its key says, whatever it was trained beside.
  kept = before[0].splitlines(keepends=True)
  (tmp_path / 'runs.jsonl').write_bytes(b''.join(kept[3:]))
  assert run(given, tmp_path, '--steps=run') == 0
  again = [json.loads(line) for line in (tmp_path / 'runs.jsonl').read_text().splitlines()]
  for row in rows[:3]:
    other = next(r for r in again if r['key'] == row['key'])
    assert np.allclose(list(row['bpb'].values()), list(other['bpb'].values()), rtol=1e-4)


@pytest.mark.parametrize('flags, words', [
  (['--config.mix.blend=(("x",1.0),)'], 'mix.blend names x'),
  (['--config.mix.max_epochs=0.1'], 'allow more epochs'),
  (['--steps=guess'], 'unknown step'),
  (['--config.mix.floors=((("prose",),2.0),)'], 'above their cap'),
])
def test_what_cannot_be_is_one_line(given, tmp_path, capsys, flags, words):
  try:
    assert run(given, tmp_path, *flags, '--config.mix.target_tokens=0') == 2
  except SystemExit as e:  # argparse
    assert e.code == 2
  assert words in capsys.readouterr().err

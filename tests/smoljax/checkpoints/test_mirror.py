"""Checkpoints in an object store that is busy, torn, and late with its lists."""

import os
import shutil

import jax
import numpy as np
import pytest
from helpers.stores import ill, store  # noqa: F401
from helpers.training import fit, leaves, tiny

from smoljax import metrics
from smoljax.checkpoints import mirror, seals
from smoljax.checkpoints.store import Checkpoints, find, load_meta

URL = 'fake://bucket/runs/train-1'


def arrays(value: float):
  return {'w': jax.numpy.full(8, value)}, {'s': jax.numpy.full(3, value)}


def open_at(folder, **options):
  rows = [folder / 'metrics.jsonl']
  folder.mkdir(exist_ok=True)
  return Checkpoints(str(folder / 'checkpoints'), elsewhere=URL, rows=rows, **options)


def save(saved, *steps, **options):
  for step in steps:
    saved.save(step, *arrays(step), {'at': step}, {'model': {}}, **options)
  saved.latest()


def restore(saved):
  found = saved.restore(*arrays(0))
  return found and (found[0], float(found[1]['w'][0]))


def there():
  return sorted(mirror.Mirror(URL).steps)


def test_a_workdir_that_is_lost_goes_on_from_the_store(store, tmp_path):
  ill(store, 0.15)
  with open_at(tmp_path / 'a', keep=2, keep_every=3) as saved:
    assert restore(saved) is None
    (tmp_path / 'a/metrics.jsonl').write_text('{"step": 1}\n')
    save(saved, *range(1, 8))
  assert seals.steps(tmp_path / 'a/checkpoints') == [6, 7]  # the rest is there alone
  assert there() == [3, 6, 7]
  with open_at(tmp_path / 'b', keep=2, keep_every=3) as saved:
    assert restore(saved) == (7, 7.0)
    assert (tmp_path / 'b/metrics.jsonl').read_text() == '{"step": 1}\n'
    # A roll-back to what is there alone, and on from it.
    saved.discard(4)
    assert restore(saved) == (3, 3.0)
    save(saved, 4)
  assert there() == [3, 4] and seals.steps(tmp_path / 'b/checkpoints') == [3, 4]
  assert sum(n for kind, n in store.count.items() if ' ' in kind) > 20
  # Evaluation takes the parameters of the newest, or of one, and copies no more than it reads.
  store.faults = 0
  for url, step in ((URL, '4'), (f'{URL}/3', '3'), ('fake://bucket/runs', '4')):
    folder, digests = find(url, ('meta',))
    assert folder.name == step and set(os.listdir(folder)) == {'meta'} and len(digests) > 4
  assert load_meta(URL) == {'model': {}}
  store.change('bucket/runs/train-2/_integrity/1-x.json', b'')
  with pytest.raises(FileNotFoundError, match='several runs: give one of train-1, train-2'):
    find('fake://bucket/runs')


def test_what_is_half_there_is_not_there(store, tmp_path):
  """An upload that was killed, a torn seal, a damaged file: each costs its step, none is taken."""
  with open_at(tmp_path / 'a') as saved:
    save(saved, 1, 2, 3)
  sealed = {s: f'bucket/runs/train-1/_integrity/{s}-{x.id}.json'
            for s, x in mirror.Mirror(URL).steps.items()}
  files = {s: [n for n in store.objects if n.startswith(f'bucket/runs/train-1/{s}-')]
           for s in sealed}
  store.change(sealed[3], None)  # the last thing that is written
  store.change(sealed[2], store.objects[sealed[2]][:40])
  assert there() == [1]
  said = []
  with open_at(tmp_path / 'b', note=said.append) as saved:
    assert restore(saved) == (1, 1.0)
    save(saved, 2)
  assert there() == [1, 2] and 'is damaged' in said[0]
  assert not [n for n in files[3] if n in store.objects]  # what the upload left is gone
  sealed = f'bucket/runs/train-1/2-{mirror.Mirror(URL).steps[2].id}/'
  at = max((n for n in store.objects if n.startswith(sealed)), key=lambda n: len(store.objects[n]))
  store.change(at, store.objects[at][:-1] + b'?')
  shutil.rmtree(tmp_path / 'b')
  said.clear()
  with open_at(tmp_path / 'b', note=said.append) as saved:
    assert restore(saved) == (1, 1.0) and 'is damaged' in said[0]


def test_lists_may_be_late(store, tmp_path):
  store.lag = 1e9
  with open_at(tmp_path / 'a') as saved:
    save(saved, 1, 2)
    saved.discard(2)
    save(saved, 2)
  with open_at(tmp_path / 'a') as saved:  # the workdir knows more than the list
    assert restore(saved) == (2, 2.0)
  store.lag = 0
  assert there() == [1, 2]
  for step, x in mirror.Mirror(URL).steps.items():
    assert f'bucket/runs/train-1/{step}-{x.id}/_CHECKPOINT_METADATA' in store.objects
  store.lag = 1e9
  with open_at(tmp_path / 'a') as saved:
    saved.discard(2)  # the list has it for ever
  with open_at(tmp_path / 'c') as saved:  # here nothing is known of step 1
    assert restore(saved) is None
    save(saved, 1)
  store.lag = 0
  folders = lambda: {n.split('/')[3] for n in store.objects if '/1-' in n and seals.SEALS not in n}
  assert len(folders()) == 2
  with open_at(tmp_path / 'd') as saved:
    assert restore(saved) == (1, 1.0)
  assert len(folders()) == 1


def test_a_store_that_is_away_stops_no_training(store, tmp_path):
  said = []
  with open_at(tmp_path / 'a', note=said.append) as saved:
    save(saved, 1)
    store.deny = 503
    save(saved, 2, 3)
    store.deny = 0
    save(saved, 4)
  assert there() == [2, 3, 4] and sum('could not be sent' in line for line in said) == 2
  saved = open_at(tmp_path / 'a', note=said.append)
  store.deny = 503
  save(saved, 5)
  with pytest.raises(OSError, match=rf'{URL} lacks the newest checkpoint.*same command again'):
    saved.close()
  store.deny = 0
  with open_at(tmp_path / 'a'):
    pass
  assert there() == [3, 4, 5]


def test_other_runs_beside_it_are_said(store, tmp_path):
  with open_at(tmp_path / 'a') as saved:
    save(saved, 1)
  said = []
  Checkpoints(str(tmp_path / 'c'), elsewhere='fake://bucket/runs/train-2', note=said.append).close()
  assert len(said) == 1 and 'train-1' in said[0]


@pytest.mark.slow
def test_a_run_goes_on_and_is_branched_from_in_the_store(store, markov_corpora, tmp_path):
  c = tiny(**{'train.checkpoint_dir': 'fake://bucket/of', 'train.tokens': 8 * 8 * 64})
  first = fit(c, markov_corpora, tmp_path / 'a/run', meta={'config': c.to_dict()})
  bits = leaves(tmp_path / 'a/run')
  again = fit(c, markov_corpora, tmp_path / 'b/run.partial', meta={'config': c.to_dict()})
  assert again['loss'] == first['loss']  # of rows that came too
  events = metrics.read_rows(tmp_path / 'b/run.partial/events.jsonl')
  assert [e['step'] for e in events if e['event'] == 'resume'] == [8]
  for there in (tmp_path / 'b/run.partial', 'fake://bucket/of', 'fake://bucket/of/run/8'):
    for a, b in zip(bits, leaves(there), strict=True):
      np.testing.assert_array_equal(a, b)
  branch = tiny(**{'train.branch_from': 'fake://bucket/of/run/4', 'train.stages': c.train.stages,
                   'guard.window': 40})
  with pytest.raises(ValueError, match='before its step 4 other batches'):
    fit(tiny(**{'train.branch_from': 'fake://bucket/of/run/4', 'seed': 1}),
        markov_corpora, tmp_path / 'd')
  fit(branch, markov_corpora, tmp_path / 'c')
  events = metrics.read_rows(tmp_path / 'c/events.jsonl')
  assert events[0]['event'] == 'branch' and events[0]['step'] == 4

"""A run whose files were damaged while it stood still goes on, and says so."""

import os
import random
import shutil

import numpy as np
import pytest
from conftest import on_devices
from helpers.training import fit, leaves, tiny

from experiments.engine import config as config_lib
from smoljax import metrics, optim
from smoljax.data.batches import make_stages
from smoljax.train import loop, start

COUNT = int(os.environ.get('SMOLJAX_DAMAGES', '12'))  # the log's figure is of 200


@pytest.fixture(scope='module')
def stopped(markov_corpora, tmp_path_factory):
  """Parameters of an undisturbed run, and the folder of one stopped after 8 of 12 steps."""
  whole, half = (tmp_path_factory.mktemp(name) for name in ('whole', 'half'))
  fit(tiny(), markov_corpora, whole)
  c = tiny()
  c.train.steps = 8  # the stages still follow 12 steps
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(start, 'make_stages', lambda s, *_: make_stages(s, 12))
    make_optimizer = optim.make_optimizer
    patch.setattr(optim, 'make_optimizer', lambda o, p, _, m: make_optimizer(o, p, 12, m))
    fit(c, markov_corpora, half)
  return leaves(whole), half


@pytest.mark.slow
def test_a_flipped_bit_or_a_cut_in_any_file_costs_a_checkpoint_at_most(
    stopped, markov_corpora, tmp_path):
  bits, half = stopped
  rng, kinds = random.Random(0), {}
  for name in sorted(f.relative_to(half) for f in half.rglob('*') if f.is_file()):
    kinds.setdefault(name.parts[0] if name.suffix == '.jsonl' else name.parts[:2], []).append(name)
  assert len(kinds) == 5, kinds  # two checkpoints, seals, rows, events
  for number in range(COUNT):
    folder = tmp_path / str(number)
    name = rng.choice(list(kinds.values())[number % 5])
    shutil.copytree(half, folder)
    data = bytearray((folder / name).read_bytes())
    place = rng.randrange(max(1, len(data)))
    if number % 2 and data:
      data[place] ^= 1 << rng.randrange(8)
    else:
      data = data[:place] if data else bytearray(b'?')
    (folder / name).write_bytes(data)
    c, said = tiny(), []
    with on_devices(2):
      loop.train(c, config_lib.model_config(c, 64), markov_corpora, str(folder),
                 log_line=said.append)
    what = f'{name} at {place} of {len(data)}'
    for a, b in zip(bits, leaves(folder), strict=True):
      np.testing.assert_array_equal(a, b, err_msg=what)
    resumed = next(e['step'] for e in metrics.read_rows(folder / 'events.jsonl')
                   if e['event'] == 'resume')
    newest = name.parts[:2] == ('checkpoints', '8') or name.name == '8.json'
    assert resumed == (4 if newest else 8), what
    older = name.parts[:2] == ('checkpoints', '4') or name.name == '4.json'
    cut_line = name.name == 'events.jsonl' and not number % 2  # as a kill leaves it
    told = any('warning' in line or 'damaged' in line for line in said)
    assert told or older or cut_line, what
    shutil.rmtree(folder)

"""Merging: formulas in plain numpy, parents' bits, refusals, a scan that is chosen on one half."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
from conftest import run_commands, write_tokenised
from helpers import tokenizers

from smoljax import model
from smoljax.checkpoints import export_formats, huggingface, load, merge
from smoljax.checkpoints.merge import Merge
from smoljax.data import tokenizer

RNG = np.random.default_rng(0)


def tree(rng=RNG, near=None, size=0.1):
  """Parameters: one tensor, and two stacked layers of one."""
  draw = lambda shape: rng.normal(0, size, shape).astype(np.float32)
  new = {'embed_VD': draw((7, 4)), 'blocks': {'mlp': {'up_DF': draw((2, 4, 6))}}}
  return new if near is None else jax.tree.map(np.add, near, new)


def tensors(params):
  """Each tensor by itself, as the files of others have them."""
  return [params['embed_VD'], *params['blocks']['mlp']['up_DF']]


BASE = tree(size=1.0)
A, B, C = (tree(near=BASE) for _ in range(3))


def plain(how, models, weights, base):
  """mergekit's formulas (v0.1.3, in float32 and its defaults), place by place."""
  if how.method == 'linear':
    return sum(w * m for w, m in zip(weights, models, strict=True)) / sum(weights)
  if how.method == 'slerp':
    a, b, t = *models, weights[1] / sum(weights)
    cos = np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
    if abs(cos) > 0.9995:
      return (1 - t) * a + t * b
    return (np.sin((1 - t) * np.arccos(cos)) * a + np.sin(t * np.arccos(cos)) * b
            ) / np.sin(np.arccos(cos))
  deltas = [m - base for m in models]
  if how.method == 'task_arithmetic':
    return base + how.scale * sum(w * d for w, d in zip(weights, deltas, strict=True))
  out = np.zeros(base.size)
  flat = [d.ravel() for d in deltas]
  floors = [np.sort(np.abs(d))[-int(how.density * d.size)] for d in flat]
  for i in range(base.size):
    values = [d[i] if abs(d[i]) >= floor else 0.0 for d, floor in zip(flat, floors, strict=True)]
    total = sum(w * v for w, v in zip(weights, values, strict=True))
    agree = [(w, v) for w, v in zip(weights, values, strict=True)
             if v and (v > 0) == (total >= 0)]
    out[i] = sum(w * v for w, v in agree) / (sum(w for w, _ in agree) or 1)
  return base + how.scale * out.reshape(base.shape)


@pytest.mark.parametrize('how, models, weights', [
  (Merge('linear'), (A, B, C), (0.9, 0.1, 0.4)),
  (Merge('slerp'), (tree(), tree()), (0.7, 0.3)),
  (Merge('slerp'), (A, jax.tree.map(lambda x: x * 1.01, A)), (0.7, 0.3)),
  (Merge('task_arithmetic', scale=0.5), (A, B), (1.0, 0.3)),
  (Merge('ties', density=0.4, scale=0.8), (A, B, C), (1.0, 0.7, 0.6)),
])  # fmt: skip
def test_tensors_are_those_of_the_formulas(how, models, weights):
  made = merge.merge(how, models, weights, BASE if how.needs_base else None)
  for x, base, *each in zip(tensors(made), *map(tensors, (BASE, *models)), strict=True):
    assert x.dtype == np.float32
    expected = plain(how, [np.float64(m) for m in each], weights, np.float64(base))
    np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('how, models, weights', [
  (Merge('linear'), (A, B), (1, 0)), (Merge('slerp'), (A, B), (2, 0)),
  (Merge('linear'), (A, A, A), (0.9, 0.1, 0.3)), (Merge('slerp'), (B, A), (0, 1)),
  (Merge('linear'), (B, A), (0, 0.3)),
  (Merge('ties'), (A,), (0.7,)), (Merge('task_arithmetic'), (A, B), (1, 0)),
  (Merge('dare'), (A,), (1,)),
])  # fmt: skip
def test_one_model_and_equal_models_keep_their_bits(how, models, weights):
  zeros = lambda m: m | {'embed_VD': np.where(m['embed_VD'] > 0.5, np.float32(-0.0), m['embed_VD'])}
  parents = models if how.needs_base else [zeros(m) for m in models]
  made = merge.merge(how, parents, weights, BASE if how.needs_base else None)
  one = parents[next(i for i, m in enumerate(models) if m is A)]
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x.view(np.int32), y.view(np.int32)),
               made, one)


def test_dare_keeps_its_share_and_its_mean():
  big = {'embed_VD': np.zeros((300, 300), np.float32)}
  there = {'embed_VD': np.ones((300, 300), np.float32)}
  made = merge.merge(Merge('dare', density=0.2, seed=1), [there], [1.0], big)['embed_VD']
  assert set(np.unique(made)) == {0.0, 5.0} and made.mean() == pytest.approx(1, abs=0.02)
  again = merge.merge(Merge('dare', density=0.2, seed=1), [there], [1.0], big)['embed_VD']
  np.testing.assert_array_equal(made, again)


@pytest.mark.parametrize('make, said', [
  (lambda: Merge('mean'), 'one of linear'), (lambda: Merge('linear', density=0.5), 'density'),
  (lambda: Merge('ties', density=0.0), 'density'), (lambda: Merge('slerp', scale=2.0), 'scale'),
  (lambda: merge.merge(Merge(), [A, B], [1]), '1 weights for 2'),
  (lambda: merge.merge(Merge(), [A, B], [1, -1]), 'sum to 0'),
  (lambda: merge.merge(Merge(), [A, B], [1, np.nan]), 'finite'),
  (lambda: merge.merge(Merge('ties'), [A, B], [1, 1]), 'needs a base'),
  (lambda: merge.merge(Merge('slerp'), [A, B, C], [1, 1, 1]), 'two models'),
])  # fmt: skip
def test_what_does_not_go_together_is_one_line(make, said):
  with pytest.raises(ValueError, match=said) as e:
    make()
  assert '\n' not in str(e.value)


def test_a_scan_is_chosen_by_one_half_and_reported_by_the_other():
  scores = {'choosing': {0.0: 3.0, 0.1: 1.0, 0.2: 2.0}, 'reporting': {0.0: 1.0, 0.1: 1.5, 0.2: 0.5}}
  best, rows = merge.scan([0, 0.1, 0.2], lambda w: w, lambda w, half: scores[half][w])
  assert best == merge.Scanned(0.1, 1.0, 1.5) and len(rows) == 3
  with pytest.raises(ValueError, match='nan'):
    merge.scan([0.5], lambda w: w, lambda w, half: float('nan'))


# --- Whole models ---------------------------------------------------------------------------------

CONFIG = model.ModelConfig(
  vocab_size=260, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8,
  mlp_dim=48, max_seq_len=64, dtype='float32',
)  # fmt: skip


def write(folder, seed):
  text = tokenizer.load(tokenizers.write(
    folder / 'text', ('<s>', '</s>'), tokenizer_config={'bos_token': '<s>', 'eos_token': '</s>'}))
  params = model.init(CONFIG, jax.random.key(seed))
  export_formats.write_hf(load.Model(CONFIG, params, text, True), str(folder))
  return str(folder)


def test_models_that_differ_are_refused(tmp_path):
  def made(name, end='</s>', template='', **fields):
    file = tokenizers.write(tmp_path / name, ('<s>', end),
                            tokenizer_config={'bos_token': '<s>', 'eos_token': end})
    if template:
      (tmp_path / name / 'chat_template.jinja').write_text(template)
    return load.Model(dataclasses.replace(CONFIG, **fields), {}, tokenizer.load(file), True)

  first = made('a')
  for pair, said in (
    ((first, made('b', end='<end>')), 'b and first have different tokenizers'),
    ((first, made('c', mlp_dim=64)), 'b has mlp_dim=64, first has 48'),
    ((made('d', template='{{ x }}'), made('e', template='{{ y }}')), 'different chat templates'),
    ((first, first._replace(bos=False)), 'BOS in the training of first only'),
  ):  # fmt: skip
    with pytest.raises(ValueError, match=said):
      merge.require_same(dict(zip(('first', 'b'), pair, strict=True)))
  merge.require_same({'a': first, 'f': made('f', template='{{ x }}', max_seq_len=128)})


@pytest.mark.slow
def test_the_command_merges_scans_and_refuses(tmp_path):
  a, b = (write(tmp_path / name, seed) for seed, name in enumerate('ab'))
  documents = [[256, *RNG.integers(0, 255, 40).tolist(), 257] for _ in range(6)]
  corpus = write_tokenised(tmp_path, 't', {'train': documents, 'validation': documents}, 260)
  soup, best = (str(tmp_path / name) for name in ('soup', 'best'))
  (tmp_path / 'taken').mkdir()
  (tmp_path / 'taken' / 'config.json').write_text('{}')
  command = ['experiments.merge', f'--models={a},{b}']
  made, scanned, both, bad, taken = run_commands(
    [*command, '--weights=.9,.1', f'--output={soup}'],
    [*command, '--scan=0,.5', f'--corpus={corpus}', '--tasks=', f'--output={best}'],
    [*command, '--weights=1,1', '--scan=1', f'--output={best}'],
    [*command, '--weights=a,1', f'--output={best}'],
    # Before it reads a model, not after it has scored them.
    ['experiments.merge', '--models=none,none', '--weights=.5,.5', f'--output={tmp_path}/taken'])
  assert made.returncode == scanned.returncode == 0, made.stderr + scanned.stderr
  for run, said in ((both, 'either --weights or --scan'), (bad, 'give numbers'),
                    (taken, 'config.json, which no export wrote')):
    assert run.returncode == 2 and said in run.stderr and 'Traceback' not in run.stderr
  parents = [huggingface.load_hf(path)[1] for path in (a, b)]
  jax.tree.map(lambda x, p, q: np.testing.assert_allclose(x, 0.9 * p + 0.1 * q, atol=1e-7),
               huggingface.load_hf(soup)[1], *parents)
  with open(os.path.join(best, 'scan.json')) as f:
    rows = json.load(f)
  assert [row['weight'] for row in rows['rows']] == [0.0, 0.5]
  assert rows['best'] == min(rows['rows'], key=lambda row: row['choosing'])
  weight = rows['best']['weight']
  jax.tree.map(lambda x, p, q: np.testing.assert_allclose(
    x, (1 - weight) * p + weight * q, atol=1e-7), huggingface.load_hf(best)[1], *parents)

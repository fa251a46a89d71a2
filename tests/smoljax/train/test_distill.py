"""Distillation: gradients against float64 torch, unbiased samples, caches, students that learn."""

import dataclasses
import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY, on_devices

from configs import base
from experiments.engine import config as config_lib
from experiments.engine import teacher_cache
from experiments.engine.cli import read_json
from smoljax import metrics, model, sharding
from smoljax.checkpoints import load, store
from smoljax.data import teacher_cache as teacher_cache_lib
from smoljax.data import tokenizer
from smoljax.data.batches import Batches, make_stages
from smoljax.data.corpus import open_corpus
from smoljax.model.attention.masks import positions_from_segments
from smoljax.train import distill, loop, objectives

RNG = np.random.default_rng(0)
P = RNG.normal(0, 2, (5, 40))  # logits of the teacher
Q = RNG.normal(0, 2, (5, 40))  # and of the student


def softmax(x):
  e = np.exp(x - x.max(axis=-1, keepdims=True))
  return e / e.sum(axis=-1, keepdims=True)


def gradient(f, q=Q):
  return np.asarray(jax.grad(lambda q: jnp.sum(f(q)))(jnp.asarray(q, jnp.float32)))


# --- Distances: torch in float64 differentiates the plain definition ------------------------------


def torch_gradient(f, q=Q):
  torch = pytest.importorskip('torch')
  x = torch.tensor(q, dtype=torch.float64, requires_grad=True)
  f(torch, x).sum().backward()
  return x.grad.numpy()


def kl(torch, p, q):
  p, q = torch.softmax(p, -1), torch.softmax(q, -1)
  return (p * (p.log() - q.log())).sum(-1)


DEFINITIONS = {
  'forward_kl': lambda torch, p, q, beta: kl(torch, p, q),
  'reverse_kl': lambda torch, p, q, beta: kl(torch, q, p),
  'jsd': lambda torch, p, q, beta: (
    lambda a, b, m: beta * (a * (a / m).log()).sum(-1) + (1 - beta) * (b * (b / m).log()).sum(-1)
  )(*(lambda a, b: (a, b, beta * a + (1 - beta) * b))(torch.softmax(p, -1), torch.softmax(q, -1))),
}


@pytest.mark.parametrize('name', distill.DISTANCES)
@pytest.mark.parametrize('tau', [1.0, 2.0])
def test_gradients_of_distances_equal_torch_in_float64(name, tau):
  torch = pytest.importorskip('torch')
  p = torch.tensor(P, dtype=torch.float64)
  expected = torch_gradient(
    lambda torch, q: tau**2 * DEFINITIONS[name](torch, p / tau, q / tau, 0.3))
  ours = gradient(lambda q: tau**2 * distill.DISTANCES[name](jnp.float32(P) / tau, q / tau, 0.3))
  np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_gradients_of_sparse_targets_equal_torch_in_float64():
  ids = np.stack([RNG.permutation(40)[:6] for _ in range(5)])
  counts = RNG.integers(0, 5, (5, 6))
  counts[:, 0] = 3

  def sampled(torch, q):
    w = torch.tensor(counts / counts.sum(-1, keepdims=True))
    return -(w * torch.log_softmax(q, -1).gather(-1, torch.tensor(ids))).sum(-1)

  ours = gradient(lambda q: distill.sampled(q, jnp.asarray(ids), jnp.asarray(counts)))
  np.testing.assert_allclose(ours, torch_gradient(sampled), atol=1e-6)

  p = np.take_along_axis(softmax(P), ids, axis=-1)

  def topk(torch, q):
    a, b = torch.tensor(p), torch.softmax(q, -1).gather(-1, torch.tensor(ids))
    rest_a, rest_b = 1 - a.sum(-1), 1 - b.sum(-1)
    return (a * (a / b).log()).sum(-1) + rest_a * (rest_a / rest_b).log()

  ours = gradient(lambda q: distill.topk(q, jnp.asarray(ids), jnp.float32(p)))
  np.testing.assert_allclose(ours, torch_gradient(topk), atol=1e-6)


def test_samples_are_unbiased_and_renormalised_top_k_is_not():
  """Mean gradient of 20,000 caches within 1 % of full distillation; top-12 renormalised: far off.

  A vocabulary with a long tail, where the likeliest 12 of 400 hold two thirds.
  """
  p = -1.1 * np.log(np.arange(1, 401))[None] + RNG.normal(0, 0.2, (1, 400))
  q = np.zeros((1, 400))
  full = gradient(lambda q: distill.forward_kl(jnp.float32(p), q), q)

  def one(key):
    ids = distill.draw(key, jnp.float32(p), 50, 1.0)
    return jax.grad(lambda q: jnp.sum(distill.sampled(q, ids, jnp.ones_like(ids))))(jnp.float32(q))

  keys = jax.random.split(jax.random.key(0), 20_000)
  mean = np.asarray(jnp.mean(jax.lax.map(one, keys, batch_size=1000), axis=0))
  off = lambda g: np.linalg.norm(g - full) / np.linalg.norm(full)
  assert off(mean) < 0.01

  top = np.argsort(-p[0])[:12]
  renormalised = np.zeros_like(q)
  renormalised[0, top] = softmax(p)[0, top] / softmax(p)[0, top].sum()
  assert off(softmax(q) - renormalised) > 0.3
  # And its optimum is another distribution than the teacher's, while that of a tail bucket is not.
  tail = gradient(
    lambda q: distill.topk(q, jnp.asarray(top)[None], jnp.float32(softmax(p)[:, top])), p)
  np.testing.assert_allclose(tail, 0, atol=1e-5)


def test_draws_follow_the_temperature_and_survive_packing():
  logits = jnp.float32(RNG.normal(0, 2, (3, 100)))
  keys = jax.random.split(jax.random.key(1), 400)
  ids = np.asarray(jax.vmap(lambda k: distill.draw(k, logits, 50, 2.0))(keys))  # [400, 3, 50]
  for row in range(3):
    found = np.bincount(ids[:, row].ravel(), minlength=100) / 20_000
    np.testing.assert_allclose(found, softmax(np.asarray(logits[row]) / 2), atol=0.012)
  packed = teacher_cache_lib.pack_draws(ids[0])
  unpacked, counts = teacher_cache_lib.unpack_draws(packed, 3, 0, 3, 50)
  for row in range(3):
    again = np.repeat(unpacked[row], counts[row])
    np.testing.assert_array_equal(again, ids[0, row])
  some = teacher_cache_lib.unpack_draws(packed, 3, 1, 2, 50)
  np.testing.assert_array_equal(some[0], unpacked[1:])
  large = np.sort(RNG.integers(0, teacher_cache_lib.MAX_VOCAB, (7, 127)))
  back, counts = teacher_cache_lib.unpack_draws(teacher_cache_lib.pack_draws(large), 7, 0, 7, 127)
  np.testing.assert_array_equal(np.repeat(back.ravel(), counts.ravel()), large.ravel())


# --- Transfers --------------------------------------------------------------------------------


def test_layers_are_mapped_by_depth():
  assert distill.layer_map(4, 8) == (1, 3, 5, 7)
  assert distill.layer_map(3, 12) == (3, 7, 11)
  assert distill.layer_map(2, 2) == (0, 1)


def test_gradients_of_transfers_equal_torch_in_float64():
  torch = pytest.importorskip('torch')
  mask = np.array([[1, 1, 1, 1, 0]], np.float32)
  tensor = lambda x: torch.tensor(np.asarray(x), dtype=torch.float64)

  x, w = RNG.normal(size=(2, 1, 5, 6)), RNG.normal(size=(2, 6, 8))
  y = RNG.normal(size=(4, 1, 5, 8))
  ours = gradient(lambda x: distill.features(
    {'distill': {'feature_DI': jnp.float32(w)}}, {'residual_LBTD': x},
    {'residual_LBTD': jnp.float32(y)}, (1, 3), jnp.asarray(mask)), x)
  expected = torch_gradient(lambda torch, x: sum(
    ((1 - torch.nn.functional.cosine_similarity(x[i] @ tensor(w[i]), tensor(y[j]), dim=-1))
     * tensor(mask)).sum() for i, j in enumerate((1, 3))) / 2, x)
  np.testing.assert_allclose(ours, expected, atol=1e-6)

  a, b = softmax(RNG.normal(size=(2, 1, 3, 5, 5))), softmax(RNG.normal(size=(2, 1, 4, 5, 5)))

  def maps(x):
    q = (x**2).sum(1) * tensor(mask)[:, :, None]
    return q / q.flatten(1).norm(dim=1)[:, None, None]

  ours = gradient(lambda x: distill.attention(
    {}, {'attention_LBNTS': x}, {'attention_LBNTS': jnp.float32(b)}, (0, 1), jnp.asarray(mask)), a)
  expected = torch_gradient(lambda torch, x: sum(
    (0.5 * (maps(x[i]) - maps(tensor(b[i]))).flatten(1).norm(dim=1)).sum() * mask.sum()
    for i in range(2)) / 2, a)
  np.testing.assert_allclose(ours, expected, atol=1e-6)

  q_s, k_s, v_s = (RNG.normal(size=(1, 1, 5, n, 4)) for n in (4, 2, 2))
  q_t, k_t, v_t = (RNG.normal(size=(1, 1, 5, n, 8)) for n in (4, 4, 4))
  seen = np.tril(np.ones((1, 5, 5), bool))

  def relation(x):
    x = x[-1].reshape(1, 5, 2, -1).transpose(1, 2)
    scores = x @ x.transpose(-1, -2) / x.shape[-1] ** 0.5
    return torch.log_softmax(scores.masked_fill(~torch.tensor(seen)[:, None], -1e30), -1)

  def definition(torch, q):
    total = 0
    for s, t in ((q, q_t), (tensor(k_s), k_t), (tensor(v_s), v_t)):
      log_s, log_t = relation(s), relation(tensor(t))
      total = total + (
        (log_t.exp() * (log_t - log_s)).sum(-1).mean(1) * tensor(mask)).sum()
    return total / 3

  f32 = jnp.float32
  ours = gradient(lambda q: distill.relations(
    {'q_LBTNH': q, 'k_LBTKH': f32(k_s), 'v_LBTKH': f32(v_s)},
    {'q_LBTNH': f32(q_t), 'k_LBTKH': f32(k_t), 'v_LBTKH': f32(v_t)},
    jnp.asarray(seen), jnp.asarray(mask), 2), q_s)
  np.testing.assert_allclose(ours, torch_gradient(definition, q_s), atol=1e-6)


# --- In training ------------------------------------------------------------------------------

STUDENT = model.ModelConfig(
  vocab_size=64, num_layers=2, nope_interval=2, embed_dim=32, num_heads=4, num_kv_heads=2,
  head_dim=8, mlp_dim=64, max_seq_len=64, dtype='float32', init_std=0.1,
)  # fmt: skip
LARGE = dataclasses.replace(STUDENT, num_layers=4, embed_dim=48, num_heads=8, num_kv_heads=4)


def batch_of(rows=8, T=16):
  segments = np.cumsum(RNG.random((rows, T)) < 0.2, axis=1) + 1
  positions = np.asarray(positions_from_segments(jnp.asarray(segments)))
  tokens = lambda: RNG.integers(0, 64, (rows, T)).astype(np.int32)
  return {'inputs': tokens(), 'targets': tokens(), 'segment_ids': segments.astype(np.int32),
          'positions': positions.astype(np.int32), 'source': np.zeros(rows, np.int32)}


BATCH = batch_of()


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_gradient(teacher, config, params, teacher_params, batch):
  def total(params):
    loss = objectives.next_token(
      config, params, batch, total_tokens=jnp.float32(batch['inputs'].size), num_sources=1,
      chunk=8, teacher=teacher, teacher_params=teacher_params)
    return loss.total, loss.metrics

  return jax.value_and_grad(total, has_aux=True)(params)


@pytest.mark.parametrize('sizes', [
  pytest.param(dict(data=8), marks=pytest.mark.slow), dict(fsdp=2, tensor=2),
  dict(context=2)], ids=str)
@pytest.mark.parametrize('kind', ['none', 'sampled', 'transfers'])
def test_every_mesh_gives_the_same_loss_and_gradient(sizes, kind):
  if kind == 'transfers' and 'context' in sizes:
    pytest.skip('captures need whole rows')
  fields = dict(features=0.5, attention=0.5, relations=0.5) if kind == 'transfers' else {}
  cache = 'sampled' if kind == 'sampled' else 'none'
  teacher = distill.Teacher(LARGE, STUDENT, cache, **fields)
  batch = dict(BATCH)
  if kind == 'sampled':
    batch['teacher_ids'] = RNG.integers(0, 64, (8, 16, 5)).astype(np.int32)
    batch['teacher_shares'] = RNG.integers(1, 9, (8, 16, 5)).astype(np.uint8)
  make = lambda: (
    model.init(STUDENT, jax.random.key(0)) | teacher.init(jax.random.key(1)),
    model.init(LARGE, jax.random.key(2)) if cache == 'none' else None)
  expected = value_and_gradient(teacher, STUDENT, *make(), batch)
  count = int(np.prod(list(sizes.values())))
  mesh = sharding.make_mesh(**({'data': 1} | sizes), devices=jax.devices()[:count])
  with jax.set_mesh(mesh):
    trees = [t and jax.device_put(t, sharding.shardings(t, mesh)) for t in make()]
    placed = sharding.shard_batch(batch, mesh)
    found = jax.device_get(value_and_gradient(teacher, STUDENT, *trees, placed))
  np.testing.assert_allclose(found[0][0], expected[0][0], rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), found[1], expected[1])


def test_loss_is_the_mixture_of_cross_entropy_and_distance():
  teacher = distill.Teacher(LARGE, STUDENT, weight=0.7, temperature=2.0)
  params, theirs = model.init(STUDENT, jax.random.key(0)), model.init(LARGE, jax.random.key(2))
  (total, sums), _ = value_and_gradient(teacher, STUDENT, params, theirs, BATCH)
  logits = [
    model.apply(c, p, BATCH['inputs'], segment_ids_BT=BATCH['segment_ids']).logits
    for c, p in ((STUDENT, params), (LARGE, theirs))]
  nll = -np.take_along_axis(
    np.asarray(jax.nn.log_softmax(logits[0])), BATCH['targets'][..., None], -1).mean()
  p, q = (softmax(np.asarray(x, np.float64) / 2) for x in (logits[1], logits[0]))
  far = 4 * (p * (np.log(p) - np.log(q))).sum(-1).mean()
  np.testing.assert_allclose(total, 0.3 * nll + 0.7 * far, rtol=1e-5)
  np.testing.assert_allclose(sums['teacher_sum/logits'] / BATCH['inputs'].size, far, rtol=1e-5)


def config_of(**changes):
  c = base.get_config()
  c.data.seq_len, c.data.window = 64, 64
  c.model.update(dict(embed_dim=32, mlp_dim=64, head_dim=16, num_heads=2, num_kv_heads=1))
  c.model.dtype = 'float32'
  c.tokenizer.vocab_size = 64
  c.train.batch_tokens, c.train.tokens = 8 * 64, 30 * 8 * 64
  c.train.stages = (dict(name='all', fraction=1.0, mixture=dict(web=0.75, pdf=0.25)),)
  c.train.log_every, c.train.eval_every, c.train.checkpoint_every = 5, 30, 30
  c.train.tensorboard = False
  c.optimizer.learning_rate = 1e-2
  c.mesh.update(dict(data=1, fsdp=-1, tensor=1, context=1))
  c.update_from_flattened_dict(changes)
  return c


def fit(c, corpora, directory, caches=None):
  c.tokenizer.path = c.tokenizer.path or 'given'  # the corpora of these tests have none
  c = config_lib.resolve(c)
  with on_devices(2):
    return loop.train(c, config_lib.model_config(c, 64), corpora, str(directory), caches=caches,
                      log_line=lambda line: None)


@pytest.fixture(scope='module')
def a_teacher(markov_corpora, tmp_path_factory):
  directory = tmp_path_factory.mktemp('teacher')
  fit(config_of(**{'model.num_layers': 4}), markov_corpora, directory)
  return str(directory)


@pytest.fixture(scope='module')
def a_tokenizer(tmp_path_factory):
  path = str(tmp_path_factory.mktemp('tokenizer') / 'tokenizer.model')
  letters = 'abcdefghijklmnopqrstuvwxyz'
  texts = (''.join(RNG.choice(list(letters), 60)) + ' ' for _ in range(200))
  tokenizer.train(texts, path, vocab_size=400, seed=0)
  return path


def write(teacher, corpora, output, monkeypatch, **kwargs):
  """Caches of all corpora; the tests' corpora are of numbers, so no tokenizer can be compared."""
  monkeypatch.setattr(teacher_cache, 'same_tokenizer', lambda *_: None)
  monkeypatch.setattr(load, 'load_model', lambda path: _Loaded(path))
  return {name: teacher_cache.write(teacher, path, str(output), name, seq_len=64,
                                    log_line=lambda line: None, **kwargs)
          for name, path in corpora.items()}


class _Loaded:
  def __init__(self, path):
    self.config, self.params, _ = store.load_params(path)
    self.tokenizer, self.vocab_size = self, self.config.vocab_size
    self.path = ''


@pytest.mark.parametrize('kind', distill.CACHES)
def test_a_cache_says_what_the_teacher_does_where_training_reads_it(
  kind, a_teacher, markov_corpora, tmp_path, monkeypatch
):
  """Batches with a cache against the teacher run on the same batch."""
  paths = write(a_teacher, markov_corpora, tmp_path, monkeypatch, kind=kind, draws=50)
  opened = {name: open_corpus(path, 'train', name) for name, path in markov_corpora.items()}
  caches = teacher_cache_lib.open_caches(paths, opened)
  stages = make_stages(
    [dict(name='all', fraction=1.0, mixture=dict(web=0.5, pdf=0.5))], 4)
  batches = Batches(opened, stages, caches=caches, rows=16, seq_len=64, window=64,
                    max_segments=32, seed=0)
  batch = next(iter(batches))
  config, params, _ = store.load_params(a_teacher)
  hidden_BTD, _ = model.hidden(config, params, batch['inputs'], segment_ids_BT=batch['segment_ids'])
  p_BTV = np.asarray(jax.nn.softmax(model.logits(config, params, hidden_BTD)))
  real = batch['segment_ids'] > 0
  if kind == 'hidden':
    np.testing.assert_allclose(
      batch['teacher_hidden'][real].astype(np.float32), np.asarray(hidden_BTD)[real],
      rtol=0.01, atol=0.02)
    return
  ids, shares = batch['teacher_ids'], batch['teacher_shares'].astype(np.float64)
  assert not shares[~real].any()
  picked = np.take_along_axis(p_BTV, ids, axis=-1)
  if kind == 'topk':
    np.testing.assert_allclose(shares[real], picked[real], atol=1e-3)
    return
  assert (shares[real].sum(-1) == 50).all()
  # Counts over all places: Σ (c - N p)² / (N p) is about the number of outcomes if c is of p.
  counts = np.zeros_like(p_BTV)
  np.put_along_axis(counts, ids, shares, axis=-1)
  scaled = ((counts - 50 * p_BTV) ** 2 / (50 * p_BTV))[real].sum(-1)
  assert abs(scaled.mean() - 63) < 5  # degrees of freedom of 64 outcomes
  manifest = read_json(os.path.join(paths['web'], 'manifest.json'))
  assert manifest['bytes_per_token'] < 3 * 50


def test_a_cache_resumes_is_checked_and_refuses_others(
  a_teacher, markov_corpora, tmp_path, monkeypatch
):
  first = write(a_teacher, markov_corpora, tmp_path / 'a', monkeypatch)
  digest = lambda path: read_json(os.path.join(path, 'manifest.json'))['splits']
  # By other devices, stopped before publication, with a shard that was damaged: the same bytes.
  monkeypatch.setattr(sharding, 'workers', lambda: jax.local_devices()[1:3])
  again = write(a_teacher, markov_corpora, tmp_path / 'b', monkeypatch)
  path = again['web']
  assert digest(path) == digest(first['web'])
  os.remove(os.path.join(path, '_SUCCESS'))
  shard = next(f for f in os.listdir(path) if 'array_record' in f)
  with open(os.path.join(path, shard), 'r+b') as f:
    f.write(b'damaged')
  assert digest(write(a_teacher, markov_corpora, tmp_path / 'b', monkeypatch)['web']) == digest(
    first['web'])
  with open(os.path.join(path, shard), 'rb') as f:
    assert f.read(7) != b'damaged'
  with pytest.raises(ValueError, match='another draws'):
    write(a_teacher, markov_corpora, tmp_path / 'a', monkeypatch, draws=20)
  opened = {name: open_corpus(path, 'train', name) for name, path in markov_corpora.items()}
  with pytest.raises(ValueError, match='another corpus'):
    teacher_cache_lib.Cache(first['web'], opened['pdf'])
  other = dataclasses.replace(
    opened['web'], manifest={**opened['web'].manifest, 'tokenizer_sha256': 'other'})
  with pytest.raises(ValueError, match='another tokenizer'):
    teacher_cache_lib.Cache(first['web'], other)
  with pytest.raises(FileNotFoundError, match='teacher_cache'):
    teacher_cache_lib.Cache(str(tmp_path), opened['web'])
  c = config_of(**{'distill.teacher': a_teacher, 'distill.cache': 'sampled',
                   'distill.temperature': 2.0})
  with pytest.raises(ValueError, match='another temperature'):
    fit(c, markov_corpora, tmp_path / 'run', first)


@pytest.mark.slow
def test_students_learn_online_from_a_cache_and_with_transfers(
  a_teacher, markov_corpora, tmp_path, monkeypatch
):
  losses = {}
  for name, changes in {
    'online': {}, 'sampled': {'distill.cache': 'sampled'}, 'hidden': {'distill.cache': 'hidden'},
    'transfers': {'distill.features': 0.1, 'distill.attention': 0.1, 'distill.relations': 0.1},
  }.items():
    kind = changes.get('distill.cache')
    caches = kind and write(
      a_teacher, markov_corpora, tmp_path / f'cache-{kind}', monkeypatch, kind=kind)
    c = config_of(**{'distill.teacher': a_teacher}, **changes)
    fit(c, markov_corpora, tmp_path / name, caches)
    rows = metrics.read_rows(tmp_path / name / 'metrics.jsonl')
    losses[name] = [r['train/loss'] for r in rows if 'train/loss' in r]
    distance = [r['teacher/logits'] for r in rows if 'teacher/logits' in r]
    assert distance[-1] < distance[0] - 0.3
    assert losses[name][-1] < losses[name][0] - 0.3
    if name == 'transfers':
      last = [r for r in rows if 'teacher/relations' in r]
      for term in distill.TRANSFERS:
        assert last[-1][f'teacher/{term}'] < last[0][f'teacher/{term}']
      config, params, _ = store.load_params(str(tmp_path / name))
      assert 'distill' not in params and config.num_params() == sum(
        x.size for x in jax.tree.leaves(params))
  # Hidden states are stored in bfloat16: all but the same run as beside the teacher.
  np.testing.assert_allclose(losses['online'], losses['hidden'], rtol=2e-3)
  np.testing.assert_allclose(losses['online'][-1], losses['sampled'][-1], atol=0.1)


def test_another_tokenizer_is_refused(a_tokenizer, tmp_path):
  folder = str(tmp_path / 'hf')
  tokenizer.to_hf(a_tokenizer, folder, bos=True, max_length=64)
  tokenizer.require_same(os.path.join(folder, 'tokenizer.json'), a_tokenizer)  # its export
  other = str(tmp_path / 'other.model')
  tokenizer.train(['one two three four five six seven ' * 50, 'eight nine'], other, vocab_size=290,
                  seed=0)
  with pytest.raises(ValueError, match=r'tokenizer of the teacher, .* its own tokens'):
    tokenizer.require_same(other, a_tokenizer)


@pytest.mark.parametrize('distance', distill.DISTANCES)
@pytest.mark.parametrize('more', [(72, 64), (64, 72)], ids=['teacher', 'student'])
def test_vocabularies_that_are_padded_differently_are_compared_over_the_common_ids(distance, more):
  """Against torch, whatever the rows are that pad; on a mesh that splits the vocabulary too."""
  torch = pytest.importorskip('torch')
  large, small = (dataclasses.replace(c, vocab_size=v, init_std=0.3, dtype='float32')
                  for c, v in zip((LARGE, STUDENT), more, strict=True))
  teacher = distill.Teacher(large, small, distance=distance, temperature=2.0)
  hidden_BCD = RNG.normal(size=(2, 4, large.embed_dim)).astype(np.float32)
  unembed_DV = RNG.normal(size=(large.embed_dim, large.vocab_size)).astype(np.float32)
  q_BCV = RNG.normal(size=(2, 4, small.vocab_size)).astype(np.float32)
  p, q = (torch.log_softmax(torch.tensor(x)[..., :64] / 2, -1)
          for x in (hidden_BCD @ unembed_DV, q_BCV))
  m = torch.log((p.exp() + q.exp()) / 2)
  kl = lambda a, b: torch.sum(a.exp() * (a - b), -1)
  expected = {'forward_kl': kl(p, q), 'reverse_kl': kl(q, p), 'jsd': (kl(p, m) + kl(q, m)) / 2}
  given = {'teacher_hidden': jnp.asarray(hidden_BCD)}
  got = teacher.distance_of(jnp.asarray(q_BCV), given, jnp.asarray(unembed_DV))
  np.testing.assert_allclose(got, 4 * expected[distance].numpy(), rtol=1e-4, atol=1e-5)
  mesh = sharding.make_mesh(data=2, tensor=4)
  with jax.set_mesh(mesh):
    place = lambda x, *names: jax.device_put(jnp.asarray(x), jax.NamedSharding(
      mesh, sharding.spec(*names)))
    split = jax.jit(lambda q, h, w: teacher.distance_of(q, {'teacher_hidden': h}, w))(
      place(q_BCV, 'batch', 'length', 'vocab'), place(hidden_BCD, 'batch', 'length', None),
      place(unembed_DV, None, 'vocab'))
  np.testing.assert_allclose(split, got, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('fields', 'message'), [
  (dict(distance='cosine'), 'distill.distance'),
  (dict(weight=1.5), 'distill.weight'),
  (dict(temperature=0.0), 'distill.temperature'),
  (dict(cache='sampled', distance='jsd'), 'holds too little'),
  (dict(cache='hidden', features=1.0), 'distill.cache=none'),
  (dict(relations=1.0, relation_heads=7), 'relation_heads=7'),
])  # fmt: skip
def test_bad_settings_are_named(fields, message):
  with pytest.raises(ValueError, match=message):
    distill.Teacher(LARGE, STUDENT, **fields)
  with pytest.raises(ValueError, match=r'more than padding: .* same tokenizer'):
    distill.Teacher(dataclasses.replace(LARGE, vocab_size=64 + 1025), STUDENT)


@pytest.mark.slow
def test_the_commands_that_a_run_imports_go_together():
  """Flags of the same name in two of them would end a run with a teacher."""
  code = 'from experiments import export, run, teacher_cache'
  subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY, check=True, timeout=120)


def test_topk_teaches_nothing_about_the_tail():
  """The gradient of each logit outside the k is in proportion to its own probability: within the
  tail, odds that the teacher knows (here a hundred to one) stay as they are."""
  p = np.array([0.4, 0.2, 0.3, 0.003, 0.097])
  q_logits = jnp.asarray([0.3, -0.2, 0.1, 0.7, -0.4])
  ids = jnp.array([0, 1])
  grad = jax.grad(lambda z: distill.topk(z, ids, jnp.asarray(p[:2])))(q_logits)
  q = jax.nn.softmax(q_logits)
  ratio = np.asarray(grad / q)[2:]
  np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
  full = np.asarray(q - p)[2:] / np.asarray(q)[2:]
  assert np.ptp(full) > 0.5

"""Prefill: a prompt that is read in chunks, by kernels or not, and what that holds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoljax import model
from smoljax.inference import cache as cache_lib
from smoljax.inference.cache import init_cache
from smoljax.model.attention import context, splash
from smoljax.train import estimate

CONFIG = model.ModelConfig(
  vocab_size=64, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48,
  max_seq_len=640, dtype='float32', init_std=0.3, nope_interval=2,
)  # fmt: skip


@pytest.mark.parametrize('softcap', [0.0, 1.5])
def test_kernels_read_a_prompt_in_chunks_as_it_is_read_at_once(softcap, monkeypatch):
  """Rows whose padding ends in any chunk; splash as plain jax, cuDNN's where there is a GPU."""
  kernels = {'cpu': 'splash', 'tpu': 'splash', 'gpu': 'cudnn'}[jax.default_backend()]
  if kernels == 'cudnn' and softcap:
    pytest.skip('cuDNN has no softcap')
  config = dataclasses.replace(CONFIG, attention_softcap=softcap, dtype={
    'splash': 'float32', 'cudnn': 'bfloat16'}[kernels])
  params = cache_lib.prepare(config, model.init(config, jax.random.key(0)))
  rng = np.random.default_rng(3)
  rows = [rng.integers(0, 64, n).tolist() for n in (380, 256, 130, 100, 1)]
  read = functools.partial(cache_lib.prefill, config, params, rows, 128)
  with monkeypatch.context() as patch:
    patch.setattr(cache_lib, '_keeps_no_logits', lambda *_: False)
    patch.setattr(cache_lib, 'can_attend_after', lambda *_: False)
    expected, cache, *_ = read()  # by XLA, or cuDNN's kernels over whole rows
  cache_lib.prefill_programs.cache_clear()
  monkeypatch.setattr(splash, 'interpret_splash', jax.default_backend() == 'cpu')
  monkeypatch.setattr(cache_lib, 'PREFILL_BYTES', 5 * 128 * 96 * jnp.dtype(config.dtype).itemsize)
  chunks = []
  after = cache_lib.attention_after
  monkeypatch.setattr(cache_lib, 'attention_after', lambda q, *rest, **how: (
    chunks.append(q.shape[1]), after(q, *rest, **how))[1])
  try:
    got, chunked, *_ = read()
  finally:
    cache_lib.prefill_programs.cache_clear()
  assert chunks == [128] * config.num_layers  # one program, which is called twice
  tolerance = dict(atol=1e-4) if kernels == 'splash' else dict(atol=0.1)
  np.testing.assert_allclose(got, expected, **tolerance)
  for a, b in zip(jax.tree.leaves(cache), jax.tree.leaves(chunked), strict=True):
    for i, row in enumerate(rows):
      seen = slice(384 - len(row), 384)
      np.testing.assert_allclose(np.float32(a[i, :, seen]), np.float32(b[i, :, seen]), **tolerance)


@pytest.mark.parametrize('kernels', [False, True])
@pytest.mark.parametrize('rows, longest', [(1, 16_500), (2, 8193), (8, 2100), (1, 100_000)])
def test_chunks_are_padded_no_more_than_a_prompt_that_is_read_at_once(
  rows, longest, kernels, monkeypatch
):
  monkeypatch.setattr(cache_lib, '_keeps_no_logits', lambda *_: kernels)
  config = model.SHAPES['smollm3-3b']
  T, S, chunk = cache_lib.prefill_sizes(config, [[1] * longest] * rows, 128)
  assert chunk < T and T % chunk == 0 and longest <= T <= 5 / 4 * longest
  assert T + 128 <= S <= 5 / 4 * (T + 128)


@pytest.mark.parametrize('platform', ['cpu', 'cuda'])
def test_a_long_prompt_needs_no_square_of_its_length(platform, monkeypatch):
  """Nothing computed for a chunk of 65,536 tokens of the 3B shape is larger than its embedding."""
  def on_platform():
    monkeypatch.setattr(context, 'platform', lambda: platform)
    monkeypatch.setattr(jax, '__version_info__', (0, 11, 2))  # whose cuDNN knows documents

  on_platform()
  config = dataclasses.replace(model.SHAPES['smollm3-3b'], num_layers=4)
  chunks = []

  def record(params, tokens_BT, offset_B, cache, start=None):
    chunks.append((tokens_BT.shape, cache[0][0].shape))
    return jnp.zeros((1, 8)), cache, None

  monkeypatch.setattr(cache_lib, 'prefill_programs', lambda config, modules: (record, record))
  monkeypatch.setattr(cache_lib, 'init_cache', lambda config, *shape: jax.eval_shape(
    lambda: init_cache(config, *shape)))
  cache_lib.prefill(config, {}, [[1] * 65536], 256)
  monkeypatch.undo()
  on_platform()
  assert len(set(chunks)) == 1 and len(chunks) * chunks[0][0][1] == 65536
  (tokens, cache) = chunks[0]

  int32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)

  def prepared(key):
    params = model.init(config, key)
    return params | {'blocks': [
      model.unstack(config, jax.tree.map(lambda p, i=i: p[i], params['blocks'])) for i in range(4)]}

  params = jax.eval_shape(prepared, jax.eval_shape(lambda: jax.random.key(0)))
  with estimate._cudnn_without_a_device():
    traced = cache_lib.prefill_programs(config, 0)[1].trace(
      params, int32(tokens), int32((1,)), jax.eval_shape(
        lambda: init_cache(config, 1, cache[2])), int32(()))
  sizes = list(all_sizes(traced.jaxpr.jaxpr))
  assert max(sizes) == config.vocab_size * config.embed_dim
  itemsize = {'cpu': 4, 'cuda': 2}[platform]  # of logits; of hidden units, once compiled
  assert max(n for n in sizes if n != max(sizes)) * itemsize <= 1.1 * cache_lib.PREFILL_BYTES


def all_sizes(jaxpr):
  for eqn in jaxpr.eqns:
    yield from (v.aval.size for v in (*eqn.invars, *eqn.outvars) if hasattr(v.aval, 'size'))
    for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, 'eqns')):
      value = getattr(value, 'jaxpr', value)
      if hasattr(value, 'eqns'):
        yield from all_sizes(value)

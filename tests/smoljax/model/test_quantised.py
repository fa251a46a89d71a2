"""Matrices in 8 and 4 bits against numpy: values, products, rows, whole models."""

import gguf
import gguf.quants
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoljax import model
from smoljax.inference import cache
from smoljax.inference.generate import generate
from smoljax.model import quantised

RNG = np.random.default_rng(0)


def by_hand(w_OI, bits, group):
  """What a matrix becomes, in numpy and float64."""
  parts = w_OI.astype(np.float64).reshape(len(w_OI), -1, group)
  largest = np.take_along_axis(parts, np.abs(parts).argmax(-1)[..., None], -1)
  scale = (largest / -(2 ** (bits - 1))).astype(np.float32)
  q = np.clip(np.round(parts / np.where(scale == 0, 1, scale)), -(2 ** (bits - 1)),
              2 ** (bits - 1) - 1)
  return (q * scale).reshape(w_OI.shape)


@pytest.mark.parametrize('kind, shape', [
  ('int8', (24, 128)), ('int8', (7, 33)), ('int4', (24, 192)), ('int4', (5, 48)), ('int4', (5, 10)),
])  # fmt: skip
def test_values_and_products(kind, shape):
  O, I = shape
  w_OI = RNG.normal(size=shape).astype(np.float32)
  w_OI[1], w_OI[2] = 0, -np.abs(w_OI[2])
  bits = quantised.BITS[kind]
  q = quantised.quantise(jnp.asarray(w_OI), kind)
  want_OI = by_hand(w_OI, bits, I if bits == 8 else np.gcd(I, quantised.GROUP))
  np.testing.assert_allclose(quantised.dequantised(q, 'float32'), want_OI, atol=1e-6)
  assert q.values.nbytes == O * I * bits / 8
  for rows in (1, 3):
    x_1RI = jnp.asarray(RNG.normal(size=(1, rows, I)), jnp.float32)
    np.testing.assert_allclose(quantised.matmul(x_1RI, q, 'float32'), x_1RI @ want_OI.T, atol=1e-4)
  if I % (4 if bits == 8 else 8) == 0:  # as GPUs read them, by the word
    y_O = quantised.sum_of_words(x_1RI[0, 0], q)
    np.testing.assert_allclose(y_O, x_1RI[0, 0] @ want_OI.T, atol=1e-4)
  found = quantised.rows(q, jnp.array([[2, O]]), 'float32')[0]
  np.testing.assert_allclose(found[0], want_OI[2], atol=1e-6)
  assert np.isnan(found[1]).all()  # as of an embedding


@pytest.mark.parametrize('kind', quantised.BITS)
@pytest.mark.parametrize('tied', [True, False])
def test_a_model_computes_with_the_nearest_matrices(kind, tied):
  """The same as in fp32 with matrices rounded by hand, for a whole model."""
  config = model.ModelConfig(
    vocab_size=96, num_layers=2, embed_dim=64, num_heads=4, num_kv_heads=2, head_dim=16,
    mlp_dim=128, max_seq_len=64, dtype='float32', init_std=0.2, tie_embeddings=tied)
  params = model.init(config, jax.random.key(0))
  ready = cache.prepare(config, params, kind)
  by_hand_ = cache.prepare(config, params)
  bits = quantised.BITS[kind]
  for layer in by_hand_['blocks']:
    for part in ('attn', 'mlp'):
      for name in ('inwards_XD', 'outwards_DX'):
        w = np.asarray(layer[part][name])
        layer[part][name] = jnp.asarray(
          by_hand(w, bits, w.shape[1] if bits == 8 else quantised.GROUP), jnp.float32)
  for name in {'embed_VD', 'head_VD'} & {*by_hand_}:
    by_hand_[name] = jnp.asarray(by_hand(np.asarray(by_hand_[name]), 8, 64), jnp.float32)
  tokens_BT = RNG.integers(0, 96, (2, 9))
  got, want = (model.apply(config, p, tokens_BT).logits for p in (ready, by_hand_))
  np.testing.assert_allclose(got, want, atol=2e-4)
  rows = [[1, 2, 3], [4]]
  assert generate(config, ready, rows, max_new_tokens=8) == generate(
    config, by_hand_, rows, max_new_tokens=8)


def test_unknown_kinds_are_refused():
  with pytest.raises(ValueError, match='one of int8, int4'):
    quantised.quantise(jnp.ones((2, 2)), 'int3')
  with pytest.raises(ValueError, match='int4 needs an even number'):
    quantised.quantise(jnp.ones((2, 3)), 'int4')


@pytest.mark.parametrize('kind, theirs, times', [('int8', 'Q8_0', 1.8), ('int4', 'Q4_0', 1.15)])
def test_errors_beside_gguf(kind, theirs, times):
  """The format of as many bits there has a scale for each 32 weights: 8.5 and 4.5 bits, not 8.0
  and 4.25."""
  w_OI = RNG.normal(size=(256, 2048)).astype(np.float32)
  kind_ = getattr(gguf.GGMLQuantizationType, theirs)
  reference = gguf.quants.dequantize(gguf.quants.quantize(w_OI, kind_), kind_)
  ours = quantised.dequantised(quantised.quantise(jnp.asarray(w_OI), kind), 'float32')
  error, bar = (np.sqrt(np.mean((x - w_OI) ** 2)) for x in (np.asarray(ours), reference))
  assert error < times * bar

"""RMSNorm's kernels, on CPUs interpreted, against autodiff of the norm that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np

from smoljax import sharding
from smoljax.model import rms_norm

INTERPRET = jax.default_backend() == 'cpu'


def test_stream_and_norm_equal_autodiff_of_the_definition(monkeypatch):
  monkeypatch.setattr(rms_norm, '_PROGRAMS', 2)  # several loops each, and rows that none has
  monkeypatch.setattr(rms_norm, '_PLACES', 512)
  rng, eps = np.random.default_rng(0), 1e-5
  x, dx, dn = (jnp.asarray(rng.normal(size=(2, 7, 72)), jnp.bfloat16) for _ in range(3))
  scale = jnp.asarray(1 + rng.random(72), jnp.bfloat16)

  def by_definition(x, scale):
    y = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)
    return x, y * scale

  wide = lambda *xs: [y.astype(jnp.float32) for y in xs]
  expected, pull = jax.vjp(by_definition, *wide(x, scale))
  grads = pull(tuple(wide(dx, dn)))
  for mesh in (None, sharding.make_mesh(devices=jax.devices()[:2])):
    with jax.set_mesh(mesh) if mesh else jax.default_device(None):
      place = lambda y: sharding.constrain(y, 'batch', 'length', 'residual')

      @jax.jit
      def run(x, scale, dx, dn):
        out, pull = jax.vjp(lambda x, s: rms_norm.stream_and_norm(x, s, eps, INTERPRET), x, scale)
        return out, pull((dx, dn))

      (stream, normed), got = run(place(x), sharding.constrain(scale, 'residual'), place(dx),
                                  place(dn))
    np.testing.assert_array_equal(wide(stream)[0], wide(x)[0])
    np.testing.assert_allclose(wide(normed)[0], expected[1], rtol=1.2e-2, atol=1e-3)
    for y, want in zip(wide(*got), grads, strict=True):
      np.testing.assert_allclose(y, want, rtol=1e-2, atol=2e-2)

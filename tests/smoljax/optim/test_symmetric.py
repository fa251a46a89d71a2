"""Symmetric products by half: on CPUs interpreted, on GPUs as they are, and compiled for one."""

import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY

from smoljax.optim import symmetric

INTERPRET = jax.default_backend() == 'cpu'
TILE = (32, 16, 4, 1) if INTERPRET else symmetric.TILE
DTYPE = np.float32 if INTERPRET else np.float16
COMPILERS = REPOSITORY / '.venv' / 'compilers'  # made by `make test-slow`


def by_half(*given, **factors):
  out = jax.jit(lambda *xs: symmetric.product(*xs, interpret=INTERPRET, tile=TILE, **factors))(
    *(jnp.asarray(x, DTYPE) for x in given))
  return np.asarray(out, np.float64)


def check(out, expected):
  np.testing.assert_allclose(out, expected, atol=1e-5 if INTERPRET else 1e-2 * np.ptp(expected))
  np.testing.assert_array_equal(out, out.swapaxes(1, 2))


@pytest.mark.parametrize('tall', [False, True])
def test_half_of_a_symmetric_product_is_the_whole(tall):
  rng, M = np.random.default_rng(9), 4 * TILE[0]
  x, add = (rng.standard_normal((2, M, n)).astype(DTYPE) for n in (3 * TILE[1], M))
  add += add.swapaxes(1, 2)
  given = x.swapaxes(1, 2) if tall else x
  whole = x.astype(np.float64) @ x.swapaxes(1, 2)
  check(by_half(given, given, tall=tall), whole)
  check(by_half(given, given, add, factor=0.5, of_add=2.0, of_eye=3.0, tall=tall),
        0.5 * whole + 2 * add.astype(np.float64) + 3 * np.eye(M))


def test_half_of_a_product_of_two_polynomials_is_the_whole():
  x = np.random.default_rng(10).standard_normal((2, 4 * TILE[0], 4 * TILE[0]))
  x = (x + x.swapaxes(1, 2)) / 40
  y = np.eye(4 * TILE[0]) - x + x @ x
  check(by_half(x, y), x @ y)


@pytest.mark.slow
@pytest.mark.skipif(not COMPILERS.exists() or not shutil.which('ptxas'),
                    reason="make test-slow installs the compilers; ptxas is CUDA's")
@pytest.mark.parametrize('call, shape', [
  ('product(x, x)', (4, 2048, 11008)), ('product(x, x, tall=True)', (4, 11008, 2048)),
  ('product(x, x, x, factor=2., of_add=3., of_eye=5.)', (4, 2048, 2048))])
def test_numbers_are_moved_16_bytes_at_a_time(call, shape, tmp_path):
  """But for the tiles on the diagonal, of which a half is written."""
  program = f'''
from smoljax.train import estimate
where = estimate.topology('h200')
import jax
from smoljax.optim.symmetric import product
place = jax.sharding.SingleDeviceSharding(where.devices[0])
x = jax.ShapeDtypeStruct({shape}, 'float16', sharding=place)
jax.jit(lambda x: {call}).lower(x).compile(compiler_options=where.options)
'''
  environment = {**os.environ, 'PYTHONPATH': f'{REPOSITORY}:{COMPILERS}', 'JAX_PLATFORMS': 'cpu',
                 'XLA_FLAGS': f'--xla_dump_to={tmp_path}'}
  out = subprocess.run(
    [sys.executable, '-c', program], env=environment, text=True, capture_output=True)
  assert out.returncode == 0, out.stderr[-3000:]
  ptx = ''.join(path.read_text() for path in tmp_path.glob('*.ptx'))
  assert 'wgmma.mma_async' in ptx
  for narrow in ('ld.global.b16', 'st.shared.b16'):
    assert narrow not in ptx
  for at_once in ('cp.async.cg.shared.global', 'st.global.v4.b32'):
    assert at_once in ptx

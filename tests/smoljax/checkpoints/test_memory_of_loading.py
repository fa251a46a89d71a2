"""How much memory a model takes to be loaded and to write, in a process of its own."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from conftest import REPOSITORY

from smoljax import model
from smoljax.checkpoints import huggingface

RUN = """
import json, re, sys
import jax, jax.numpy as jnp
jax.block_until_ready(jax.jit(lambda x: x @ x)(jnp.ones((8, 8))))
from smoljax.checkpoints import huggingface
from smoljax.inference import cache, generate
def peak():
  with open('/proc/self/status') as f:
    return 1024 * int(re.search(r'VmHWM:\\s*(\\d+) kB', f.read())[1])
before = peak()
config, params = huggingface.read_hf(sys.argv[1])
params = cache.prepare(config, params)
generate.generate(config, params, [[1, 2, 3]], max_new_tokens=12)
print(json.dumps((peak() - before) / config.num_params()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_bytes_a_parameter(tmp_path):
  """213M parameters in bf16 on a CPU; transformers takes 2.7 bytes of each."""
  config = model.ModelConfig(
    vocab_size=128256, num_layers=22, embed_dim=768, num_heads=12, num_kv_heads=4, head_dim=64,
    mlp_dim=1536, max_seq_len=2048)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, config.dtype), model.abstract_params(config))
  huggingface.save_hf(config, zeros, str(tmp_path / 'hf'))
  done = subprocess.run(
    [sys.executable, '-c', RUN, str(tmp_path / 'hf')], cwd=REPOSITORY, text=True, check=True,
    capture_output=True, env={'JAX_PLATFORMS': 'cpu', 'PATH': '', 'HOME': str(tmp_path)})
  assert json.loads(done.stdout) < 3.2

"""The PyTorch step that ours is timed beside does the same work: equal losses and gradients."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY

from experiments.benchmarks import train_step
from smoljax import model
from smoljax.checkpoints import huggingface

torch = pytest.importorskip('torch')

from experiments.benchmarks import torch_step  # noqa: E402

CONFIG = model.ModelConfig(
  vocab_size=96, num_layers=4, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48,
  max_seq_len=64, dtype='float32', init_std=0.2,
)  # fmt: skip


def filled(network, params):
  """The network with our parameters, or gradients, by way of transformers' names."""
  tensors = dict(huggingface.to_hf_tensors(CONFIG, params, 'float32'))
  with torch.no_grad():
    def put(parameter, *names):
      arrays = [tensors[f'model.{name}.weight'] for name in names]
      parameter.copy_(torch.from_numpy(np.concatenate(arrays)))

    put(network.embed.weight, 'embed_tokens')
    put(network.norm.weight, 'norm')
    for i, kept in enumerate(network.blocks):
      block, name = kept.block, f'layers.{i}'
      put(block.attention_norm.weight, f'{name}.input_layernorm')
      put(block.qkv.weight, *(f'{name}.self_attn.{x}_proj' for x in 'qkv'))
      put(block.out.weight, f'{name}.self_attn.o_proj')
      put(block.mlp_norm.weight, f'{name}.post_attention_layernorm')
      put(block.gate_up.weight, *(f'{name}.mlp.{x}_proj' for x in ('gate', 'up')))
      put(block.down.weight, f'{name}.mlp.down_proj')
  return network


@pytest.mark.parametrize('keep', ['all', 'inputs', 'products'])
def test_loss_and_gradients_equal_ours(keep):
  batch, _ = train_step.packed_batch(2, 64, CONFIG.vocab_size, median=15)
  batch['segment_ids'][1, -9:] = 0  # padding, which counts for nothing
  params = model.init(CONFIG, jax.random.key(0))

  def ours(params):
    logits_BTV = model.apply(CONFIG, params, jnp.asarray(batch['inputs']),
                             segment_ids_BT=batch['segment_ids']).logits
    picked_BT = jnp.take_along_axis(
      jax.nn.log_softmax(logits_BTV), batch['targets'][..., None], -1)[..., 0]
    weights_BT = batch['segment_ids'] > 0
    return -jnp.sum(picked_BT * weights_BT) / weights_BT.sum()

  expected, gradient = jax.jit(jax.value_and_grad(ours))(params)
  network = filled(torch_step.Transformer(CONFIG, keep, compiled=False), params)
  loss = torch_step.make_loss(network, batch, 48, compiled=False, dtype=torch.float32)()
  loss.backward()
  assert loss.item() == pytest.approx(float(expected), rel=1e-5)
  found = {name: parameter.grad for name, parameter in network.named_parameters()}
  held = filled(torch_step.Transformer(CONFIG, keep, compiled=False), gradient)
  for name, parameter in held.named_parameters():
    np.testing.assert_allclose(found[name], parameter.detach(), rtol=1e-3, atol=2e-6, err_msg=name)


def test_what_it_has_not_is_refused():
  with pytest.raises(ValueError, match='qk_norm'):
    torch_step.Transformer(dataclasses.replace(CONFIG, qk_norm=True), 'all', compiled=False)


@pytest.mark.slow
def test_it_is_timed_on_our_batch():
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.benchmarks.train_step', '--framework=torch', '--shape=tiny',
     '--rows=2', '--seq_len=64', '--steps=2', '--chunk=50', '--document=20'],
    cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stderr
  row = json.loads(done.stdout.splitlines()[-1])
  assert row['framework'] == 'torch' and row['tokens_per_sec'] > 0 and row['torch']

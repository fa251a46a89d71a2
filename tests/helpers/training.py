"""Small runs of training."""

import jax
import numpy as np
from conftest import on_devices

from configs import base
from experiments.engine import config as config_lib
from smoljax.checkpoints import store
from smoljax.train import loop


def tiny(**changes):
  c = base.get_config()
  c.data.seq_len = 64
  c.data.window = 64
  c.model.update(dict(embed_dim=32, mlp_dim=64, head_dim=16, num_heads=2, num_kv_heads=1))
  c.model.dtype = 'float32'
  c.tokenizer.vocab_size = 64
  c.train.batch_tokens = 8 * 64
  c.train.tokens = 12 * 8 * 64
  c.train.stages = (
    dict(name='stable', fraction=0.5, mixture=dict(web=0.75, pdf=0.25)),
    dict(name='decay', fraction=0.5, mixture=dict(web=0.5, pdf=0.5)),
  )
  c.train.log_every = 2
  c.train.eval_every = 6
  c.train.checkpoint_every = 4
  c.train.tensorboard = False
  c.optimizer.learning_rate = 1e-2
  c.mesh.data, c.mesh.fsdp, c.mesh.tensor, c.mesh.context = 1, -1, 1, 1
  c.update_from_flattened_dict(changes)
  return config_lib.resolve(c)


def fit(c, corpora, directory, devices=2, vocab_size=64, **more):
  config = config_lib.model_config(c, vocab_size)
  with on_devices(devices):
    return loop.train(
      c, config, corpora, str(directory), log_line=lambda line: None, **more)


def leaves(directory):
  _, params, _ = store.load_params(str(directory))
  return [np.asarray(x) for x in jax.tree.leaves(params)]

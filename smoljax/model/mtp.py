"""Multi-token prediction: modules that predict further ahead than the next token.

Sequential as DeepSeek-V3's (arXiv:2412.19437 §2.2) or parallel heads (arXiv:2404.19737). The
module is declared in layers.py; what it is trained on stands in smoljax/train/objectives.py."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from smoljax import sharding
from smoljax.model import layers, transformer
from smoljax.model.config import (
  ModelConfig,
)
from smoljax.model.layers import Params


def mtp_hidden(
  config: ModelConfig,
  params: Params,
  module: Params,
  x_BTD: jax.Array,
  tokens_BT: jax.Array,
  *,
  positions_BT: jax.Array | None = None,
  segment_ids_BT: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """One module of multi-token prediction over whole rows, for training.

  Args:
    module: its parameters, one of the stack params['mtp'].
    x_BTD: aux['trunk_BTD'] of `hidden`, or the previous module's first result.
    tokens_BT: the token k places after that of each place, any id where there is none.
  Returns:
    What the next module takes (in a zigzag), and the hidden states that `logits` takes.
  """
  positions_BT, segments_BT = transformer.document_places(
    tokens_BT.shape[1], positions_BT, segment_ids_BT
  )
  tokens_BT = sharding.zigzag(jnp.asarray(tokens_BT))

  def attend(q_BTNH, k_BTKH, v_BTKH, state):
    out_BTNH, _ = layers.attend_documents(
      config, q_BTNH, k_BTKH, v_BTKH, positions_BT, segments_BT, None, None)
    return out_BTNH, state, {}

  def run(params, module, x_BTD):
    x_BTD, hidden_BTD, _ = run_mtp(config, params, module, x_BTD, tokens_BT, positions_BT, attend)
    return x_BTD, hidden_BTD

  x_BTD, hidden_BTD = layers.remat(config, run)(params, module, x_BTD)
  return x_BTD, sharding.unzigzag(hidden_BTD)


def run_mtp(
  config: ModelConfig,
  params: Params,
  module: Params,
  x_BTD: jax.Array,
  tokens_BT: jax.Array,
  positions_BT: jax.Array,
  attend: Callable,
  state: Any = None,
) -> tuple[jax.Array, jax.Array, Any]:
  """`mtp_hidden` with any attention, `attend` as for `run_blocks` without layer and window.

  Returns what the next module takes, what `logits` takes, and the last state.
  """
  table = layers.rope_table(config, positions_BT)
  embedded_BTD = (
    transformer.embed(config, params, tokens_BT) if config.mtp == 'sequential' else None
  )
  x_BTD, normed_BTD, state = nnx.merge(layers.graph(config, 'mtp'), module)(
    x_BTD, embedded_BTD, lambda y: layers.rotate(y, *table), functools.partial(attend, state=state))
  hidden_BTD = transformer.final_norm(config, params, x_BTD) if normed_BTD is None else normed_BTD
  return x_BTD, hidden_BTD, state


def without_mtp(config: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
  """The model alone, which needs no modules of multi-token prediction."""
  config = dataclasses.replace(config, mtp='none', mtp_depth=1)
  return config, {name: x for name, x in params.items() if name != 'mtp'}

"""What a step minimises. An objective turns `(config, params, batch)` into a `Loss`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from smoljax import model, sharding


class Loss(NamedTuple):
  """`total` is what is differentiated; `metrics` holds sums over this batch for the log."""

  total: jax.Array  # float32 scalar
  metrics: dict[str, jax.Array]


def token_losses(
  config: model.ModelConfig,
  hidden_BTD: jax.Array,
  unembed_DV: jax.Array,
  targets_BT: jax.Array,
  *,
  chunk: int,
) -> tuple[jax.Array, jax.Array]:
  """Cross entropy and log Z of each place without ever holding `[B, T, V]`.

  The head's matmul and softmax run `chunk` places at a time (all rows together, and as many of each
  part of a split sequence) and are recomputed in the backward pass, so the peak is
  `[B, chunk, V]` in float32 on each device.

  Args:
    hidden_BTD: final hidden states, compute dtype.
    unembed_DV: output matrix (`model.unembedding`), compute dtype.
    chunk: places per slice and device; the largest divisor up to it is used.
  Returns:
    `(nll_BT, log_z_BT)`, float32, in nats.
  """
  @jax.checkpoint
  def one(_, slice_):
    hidden_BCD, targets_BC = slice_
    logits_BCV = model.project(config, hidden_BCD, unembed_DV)
    log_z_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
    # A one-hot sum instead of a gather: it also works where V is split over devices.
    hot_BCV = jax.nn.one_hot(targets_BC, logits_BCV.shape[-1], dtype=bool)
    hot_BCV = sharding.constrain(hot_BCV, 'batch', 'length', 'vocab')
    return None, (log_z_BC - jnp.sum(jnp.where(hot_BCV, logits_BCV, 0.0), axis=-1), log_z_BC)

  over = (sharding.slices(hidden_BTD, chunk), sharding.slices(targets_BT, chunk))
  _, losses = jax.lax.scan(one, None, over)
  return tuple(sharding.unsliced(x) for x in losses)


def next_token(
  config: model.ModelConfig,
  params: dict,
  batch: dict[str, jax.Array],
  *,
  total_tokens: jax.Array,
  num_sources: int,
  chunk: int = 512,
  z_loss: float = 0.0,
  max_logits: str | None = None,
) -> Loss:
  """Mean cross entropy of the next token within documents, plus `z_loss`·mean(log²Z).

  Padding (segment id 0) is not predicted; document starts are no targets by construction
  (smoljax/data.py). The sum is divided by `total_tokens`, the count over the *global* batch, so
  micro-batches and devices add up to the exact mean (a mean of means is not one when rows differ).

  Metrics: `loss_sum_S` and `tokens_S`, sums per source `[S]`, `log_z_sum`, and `max_logits_LN` if
  `max_logits` ('bound' or 'exact', see model.apply) asks for it.
  """
  hidden_BTD, aux = model.hidden(
    config,
    params,
    batch['inputs'],
    positions_BT=batch['positions'],
    segment_ids_BT=batch['segment_ids'],
    max_logits=max_logits,
  )
  nll_BT, log_z_BT = token_losses(
    config, hidden_BTD, model.unembedding(config, params), batch['targets'], chunk=chunk
  )
  mask_BT = (batch['segment_ids'] > 0).astype(jnp.float32)
  mask_BT = sharding.constrain(mask_BT, 'batch', 'length')
  loss = jnp.sum(nll_BT * mask_BT) / total_tokens
  if z_loss:
    loss += z_loss * jnp.sum(jnp.square(log_z_BT) * mask_BT) / total_tokens
  source_BS = jax.nn.one_hot(batch['source'], num_sources, dtype=jnp.float32)
  return Loss(
    loss,
    {
      'loss_sum_S': jnp.sum(jnp.sum(nll_BT * mask_BT, axis=1)[:, None] * source_BS, axis=0),
      'tokens_S': jnp.sum(jnp.sum(mask_BT, axis=1)[:, None] * source_BS, axis=0),
      'log_z_sum': jnp.sum(log_z_BT * mask_BT),
      **({'max_logits_LN': aux['max_logits_LN']} if max_logits else {}),
    },
  )

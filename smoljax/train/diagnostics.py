"""How healthy a model's parameters, gradients and activations are: pure functions of arrays.

Two prices. `leaves` and `micro_batches` cost sums over arrays that a step holds anyway: every step.
`activations` costs a forward pass and an eigenvalue problem a layer, `svd_entropy` one a matrix:
every `diagnostics.every`.

References: gradient noise scale, McCandlish et al., arXiv 1812.06162, appendix A.1; effective rank,
Roy and Vetterli 2007; kurtosis of the residual stream, Elhage et al. 2023 and He et al.,
arXiv 2405.19279.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from smoljax import model, sharding
from smoljax.optim import clipping
from smoljax.optim.matrices import View, as_matrices, path_name

PyTree = Any


def leaves(params: PyTree, grads: PyTree, updates: PyTree) -> dict[str, jax.Array]:
  """Of each leaf, float32 scalars by name: its gradient's norm, and root mean squares.

  `grad_norm/LEAF`, `update_rms/LEAF`, `param_rms/LEAF`, and `update_ratio/LEAF` of these two:
  1e-4 to 1e-2 in healthy training; with Muon about 0.2 · learning rate / parameter RMS.
  """
  found = {}
  for (path, p), g, u in zip(
    jax.tree.leaves_with_path(params), jax.tree.leaves(grads), jax.tree.leaves(updates), strict=True
  ):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    grad = jnp.sqrt(jnp.sum(clipping.squares(g)))
    param, update = (jnp.sqrt(jnp.sum(clipping.squares(x)) / x.size) for x in (p, u))
    found |= {
      f'grad_norm/{name}': grad,
      f'update_rms/{name}': update,
      f'param_rms/{name}': param,
      f'update_ratio/{name}': update / jnp.maximum(param, 1e-30),
    }
  return found


def micro_batches(micro_sq: float, grad_sq: float, micros: int, tokens: float) -> dict[str, float]:
  """What the gradients of micro-batches say of the batch's; numbers, averaged over steps or not.

  Args:
    micro_sq: Σ|gᵢ|² of the micro-batches' gradients, whose sum is the batch's (each is divided by
      the tokens of the whole batch).
    grad_sq: |Σ gᵢ|².
    micros: how many; at least 2.
    tokens: of the whole batch.
  Returns:
    `grad_cos`: mean over pairs of gᵢ·gⱼ over the mean |gᵢ|²: the cosine of halves of equal norm.
    `grad_sq` and `noise_trace`: unbiased estimates of |G|² and tr Σ, the true gradient's squared
    norm and the variance of one token's gradient; average them over steps before dividing.
    `noise_scale` = tr Σ / |G|² in tokens: batches far below it are mostly noise, batches far above
    waste tokens. Absent where the estimate of |G|² is not positive: too much noise to tell.
  """
  small, big = tokens / micros, tokens
  small_sq = micros * micro_sq  # mean of |A · gᵢ|²: a micro-batch's own mean gradient
  true_sq = (big * grad_sq - small * small_sq) / (big - small)
  trace = (small_sq - grad_sq) / (1 / small - 1 / big)
  found = {
    'grad_cos': (grad_sq - micro_sq) / ((micros - 1) * max(micro_sq, 1e-30)),
    'grad_sq': true_sq,
    'noise_trace': trace,
  }
  return found | ({'noise_scale': trace / true_sq} if true_sq > 0 else {})


def activations(
  config: model.ModelConfig, params: PyTree, batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
  """Of the tokens of a batch, float32, by layer where the name has an L:

  resid_rms_L       RMS of the residual stream after the layer
  act_kurtosis_L    E[x⁴] / E[x²]² of it: 3 if Gaussian, far above with outlier features
  eff_rank_L        exp of the entropy of its squared singular values' shares: dims in use
  dead_frac_L       share of the MLP's hidden units below 1e-6 on every token
  max_logits_LN     largest attention logit of each head (exact)
  attn_entropy_LN   mean entropy in nats of each head's attention weights
  act_rms/SITE_L, act_max/SITE_L, gate_sat_L: see 'sites' of model.apply
  logit_max         largest magnitude of the final logits
  token_cos         mean cosine of two tokens' final hidden states: 1 is collapse

  Computed on every device alike: give it a few thousand tokens, on a mesh that splits no rows.
  """
  hidden_BTD, aux = model.hidden(
    config, params, batch['inputs'], positions_BT=batch['positions'],
    segment_ids_BT=batch['segment_ids'], max_logits='exact',
    capture=('residual', 'entropy', 'units', 'sites'),
  )  # fmt: skip
  mask_BT = sharding.constrain(batch['segment_ids'] > 0, None, None)
  mask_X = mask_BT.reshape(-1).astype(jnp.float32)
  count = jnp.maximum(jnp.sum(mask_X), 1)

  def layer(x_BTD):
    x_XD = _whole(x_BTD).reshape(len(mask_X), -1).astype(jnp.float32) * mask_X[:, None]
    square = jnp.sum(jnp.square(x_XD)) / (count * x_XD.shape[1])
    fourth = jnp.sum(jnp.power(x_XD, 4)) / (count * x_XD.shape[1])
    return jnp.sqrt(square), fourth / jnp.square(square), effective_rank(x_XD)

  rms_L, kurtosis_L, rank_L = jax.lax.map(layer, _whole(aux['residual_LBTD']))
  return {
    'resid_rms_L': rms_L,
    'act_kurtosis_L': kurtosis_L,
    'eff_rank_L': rank_L,
    'dead_frac_L': jnp.mean(_whole(aux['units_LF']) < 1e-6, axis=1, dtype=jnp.float32),
    **{k: v for k, v in aux.items() if k not in ('residual_LBTD', 'units_LF')},
    'logit_max': largest_logit(config, params, hidden_BTD, batch['segment_ids'] > 0),
    'token_cos': token_cosine(_whole(hidden_BTD).reshape(len(mask_X), -1), mask_X),
  }


def largest_logit(
  config: model.ModelConfig, params: PyTree, hidden_BTD: jax.Array, mask_BT: jax.Array
) -> jax.Array:
  """Largest magnitude of the final logits where the mask is set, a slice of places at a time."""
  unembed_DV = model.unembedding(config, params)
  masked_BTD = hidden_BTD * sharding.constrain(mask_BT, 'batch', 'length')[:, :, None]
  one = lambda x_BCD: jnp.max(jnp.abs(model.project(config, x_BCD, unembed_DV)))
  return jnp.max(jax.lax.map(one, sharding.slices(masked_BTD, 128)))


def svd_entropy(tree: PyTree, views: Mapping[str, View]) -> dict[str, jax.Array]:
  """Of each leaf with a view, how evenly its matrices use their directions, by path: float32 [B].

  −Σ p log p / log n with p = σ²/Σσ² of the n singular values (Moonlight, arXiv 2502.16982): 1 if
  all are equal, 0 for rank one. Muon makes that of every update nearly 1.
  """
  found = {}
  for path, x in jax.tree.leaves_with_path(tree):
    if view := views.get(name := path_name(path)):
      stack_BIO, _ = as_matrices(_whole(x.astype(jnp.float32)), view)
      n = stack_BIO.shape[1]
      ranks_B = jax.lax.map(effective_rank, stack_BIO)
      found[name] = jnp.log(ranks_B) / math.log(n) if n > 1 else jnp.ones_like(ranks_B)
  return found


def effective_rank(x_XD: jax.Array) -> jax.Array:
  """exp(−Σ p log p) with p = σ²/Σσ² of the singular values, by the smaller Gram matrix, fp32."""
  x_XD = x_XD if x_XD.shape[0] >= x_XD.shape[1] else x_XD.T
  gram_DD = jnp.einsum('xd,xe->de', x_XD, x_XD, precision=jax.lax.Precision.HIGHEST)
  p_D = jnp.maximum(jnp.linalg.eigvalsh(gram_DD), 0)
  p_D /= jnp.maximum(jnp.sum(p_D), 1e-30)
  return jnp.exp(-jnp.sum(jnp.where(p_D > 0, p_D * jnp.log(jnp.where(p_D > 0, p_D, 1)), 0)))


def token_cosine(x_XD: jax.Array, mask_X: jax.Array) -> jax.Array:
  """Mean cosine of two different rows among those that the mask (0 or 1) names; X may be axes."""
  x_XD, axes = x_XD.astype(jnp.float32), tuple(range(mask_X.ndim))
  norm_X1 = jnp.sqrt(jnp.sum(jnp.square(x_XD), axis=-1, keepdims=True) + 1e-30)
  sum_D = jnp.sum(x_XD / norm_X1 * mask_X[..., None], axis=axes)
  n = jnp.sum(mask_X)
  return (jnp.sum(jnp.square(sum_D)) - n) / jnp.maximum(n * (n - 1), 1)


def movement(
  config: model.ModelConfig, params: PyTree, updates: PyTree, batch: dict[str, jax.Array]
) -> jax.Array:
  """‖Δh‖/‖h‖ of the residual stream after each layer by an update of the parameters, float32 [L].

  h are the hidden states of the batch's tokens together; features that are learned move about as
  much in every layer and at every width (Yang et al., arXiv 2310.17813).
  """
  mask_BT1 = (batch['segment_ids'] > 0).astype(jnp.float32)[..., None]

  def residual(params: PyTree) -> jax.Array:
    _, aux = model.hidden(
      config, params, batch['inputs'], positions_BT=batch['positions'],
      segment_ids_BT=batch['segment_ids'], capture=('residual',))  # fmt: skip
    return _whole(aux['residual_LBTD']).astype(jnp.float32) * _whole(mask_BT1)

  after = jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)
  h_LBTD = residual(params)
  square = lambda x_LBTD: jnp.sum(jnp.square(x_LBTD), axis=(1, 2, 3))
  return jnp.sqrt(square(residual(after) - h_LBTD) / jnp.maximum(square(h_LBTD), 1e-30))


def _whole(x: jax.Array) -> jax.Array:
  return sharding.constrain(x, *(None,) * x.ndim)

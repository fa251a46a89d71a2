"""QK-Clip (Kimi K2, arXiv:2507.20534): heads whose attention logits grow too large are held."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoljax import model
from smoljax.model.attention import MEASURES
from smoljax.optim.matrices import Params


def qk_clip(params: Params, max_logits_LN: jax.Array, tau: float) -> Params:
  """Shrinks q and k of the heads whose largest attention logit exceeded tau, to exactly tau.

  Kimi K2's QK-Clip (kexue.fm/archives/11126), to be applied after an optimizer step. That rule has
  no word on grouped queries; here head n with γ = min(1, tau / S) shares key head k with its group:
  k is scaled by κ = √(largest γ of the group), q by γ/κ. So each head ends at min(S, tau), a group
  with a head in bounds keeps its k, and with one query head a key head both take √γ. Rotary
  embeddings do not change this. Moments are left alone.

  Args:
    params: the model's; `blocks/attn` holds q_DNH [L, D, N, H], k_DKH [L, D, K, H], maybe biases.
    max_logits_LN: S, largest scaled logit per layer and query head in the forward pass. A head
      whose S is NaN or infinite is not clipped.
    tau: largest logit allowed, above 0 (K2: 100).

  Raises:
    ValueError: tau is not above 0, or the model normalises q and k, which undoes any scaling.
  """
  attn = params['blocks']['attn']
  if 'q_norm' in attn or 'k_norm' in attn:
    raise ValueError('qk_clip does nothing to a model with qk_norm: turn one of them off')
  gamma_LKG = _gammas(attn, max_logits_LN, tau)
  kappa_LK1 = jnp.sqrt(jnp.max(gamma_LKG, axis=2, keepdims=True))
  q_LN = (gamma_LKG / kappa_LK1).reshape(max_logits_LN.shape)
  return _scale_heads(params, q_LN, kappa_LK1[..., 0])


def qk_rates(updates: Params, max_logits_LN: jax.Array, tau: float) -> Params:
  """Updates with the learning rate of each head's q and k times γ = min(1, tau / S).

  What is sometimes said of Kimi K2: that it sets the learning rate by the largest logit of a head.
  A slower head grows more slowly and does not shrink: no bound follows, unlike from `qk_clip`.
  A key head takes the smallest γ of its group; S, tau and errors as in `qk_clip`.
  """
  gamma_LKG = _gammas(updates['blocks']['attn'], max_logits_LN, tau)
  return _scale_heads(updates, gamma_LKG.reshape(max_logits_LN.shape), jnp.min(gamma_LKG, axis=2))


def qk_clip_grads(grads: Params, max_logits_LN: jax.Array, tau: float, max_norm: float) -> Params:
  """Gradients with each head's of q, and of k, clipped to a norm of max_norm · min(1, tau / S).

  The other half of what is said of Kimi K2 (see `qk_rates`).
  """
  attn = grads['blocks']['attn']
  gamma_LKG = _gammas(attn, max_logits_LN, tau)

  def factor(name, gamma_L):
    square_L = jnp.sum(jnp.square(attn[name].astype(jnp.float32)), axis=(1, 3))
    return jnp.minimum(1.0, max_norm * gamma_L / jnp.maximum(jnp.sqrt(square_L), 1e-30))

  q_LN = factor('q_DNH', gamma_LKG.reshape(max_logits_LN.shape))
  k_LK = factor('k_DKH', jnp.min(gamma_LKG, axis=2))
  return _scale_heads(grads, q_LN, k_LK)


QK_RULES = {'weights': qk_clip, 'rates': qk_rates}  # what large logits act on


def _gammas(attn: Params, max_logits_LN: jax.Array, tau: float) -> jax.Array:
  """γ = min(1, tau / S) of each query head, by group: float32 [L, K, N/K]; 1 where S is no number.

  Raises ValueError unless tau is above 0.
  """
  if not tau > 0:
    raise ValueError(f'optimizer.qk_clip.tau={tau}: give a logit above 0, or 0 for none')
  s_LN = max_logits_LN.astype(jnp.float32)
  gamma_LN = jnp.where(jnp.isfinite(s_LN) & (s_LN > tau), tau / s_LN, 1.0)
  return gamma_LN.reshape(len(gamma_LN), attn['k_DKH'].shape[-2], -1)


def _scale_heads(tree: Params, q_LN: jax.Array, k_LK: jax.Array) -> Params:
  """A tree like the parameters with the leaves of q and k times a factor a head."""
  factors = {'q': q_LN, 'k': k_LK}

  def scaled(name, x):
    if name not in ('q_DNH', 'k_DKH', 'q_bias_NH', 'k_bias_KH'):
      return x
    factor = factors[name[0]][..., None]
    return x * (factor if 'bias' in name else factor[:, None]).astype(x.dtype)

  attn = {name: scaled(name, x) for name, x in tree['blocks']['attn'].items()}
  return {**tree, 'blocks': {**tree['blocks'], 'attn': attn}}


def logit_measure(config: model.ModelConfig, qk_clip: Any) -> str | float:
  """What attention is asked for (`max_logits` of model.apply) with these settings of QK-Clip.

  Kimi K2 clips after a step what the step has measured, so that the next batch can find a larger
  logit: by a third at 1,024 tokens a step, by less in larger batches. By the measure 'limit' logits
  are scaled down to tau within the step too, as if its own batch had clipped the weights before.

  Raises:
    ValueError: an unknown rule or measure, or a limit where it would not hold.
  """
  for name, valid in (('rule', QK_RULES), ('measure', (*MEASURES, 'limit'))):
    if (value := getattr(qk_clip, name)) not in valid:
      raise ValueError(f'unknown optimizer.qk_clip.{name} {value!r}: one of {", ".join(valid)}')
  if qk_clip.measure != 'limit':
    return qk_clip.measure
  if qk_clip.rule != 'weights' or config.attention_softcap:
    raise ValueError("optimizer.qk_clip.measure='limit' wants rule='weights' and no "
                     'model.attention_softcap: take measure=exact with these')
  return float(qk_clip.tau)


def logit_metrics(max_logits: Sequence[np.ndarray], qk_clip: Any) -> dict[str, float]:
  """Of the largest logits `[L, N]` of some steps: the largest of all, and what QK-Clip did."""
  largest_LN, tau = np.max(max_logits, axis=0), qk_clip.tau
  clipped = largest_LN > tau
  entered = np.minimum(largest_LN, tau) if qk_clip.measure == 'limit' else largest_LN
  return {
    'attn/max_logit': float(entered.max()),
    'qkclip/heads': int(clipped.sum()),
    'qkclip/min_gamma': float(tau / largest_LN.max()) if clipped.any() else 1.0,
  }

"""Preference optimisation: which of two answers is better, learned from pairs (DPO and its kin).

A pair is two answers, y⁺ chosen and y⁻ rejected, to the same prompt. With r = Σ log π(y) -
Σ log π_ref(y) over an answer's scored tokens, ‖y‖ of them, ℓ̄ their mean log-probability and
Δ = r⁺ - r⁻, a pair's loss is

  dpo       -(1-ε) log σ(βΔ) - ε log σ(-βΔ)                  arXiv:2305.18290, smoothed: its cDPO
  robust    [-(1-ε) log σ(βΔ) + ε log σ(-βΔ)] / (1-2ε)       arXiv:2403.00409
  hinge     max(0, 1 - βΔ)                                   arXiv:2305.10425
  ipo       (r⁺/‖y⁺‖ - r⁻/‖y⁻‖ - 1/2β)²                      arXiv:2310.12036
  apo_zero  1 - σ(βr⁺) + σ(βr⁻)                              arXiv:2408.06266
  apo_down  σ(βr⁺) + 1 - σ(βΔ)                               the same
  dpo_norm  -log σ(β (r⁺/‖y⁺‖ - r⁻/‖y⁻‖))                    arXiv:2411.15124
  simpo     -log σ(β (ℓ̄⁺ - ℓ̄⁻) - γ)                         arXiv:2405.14734, no reference
  orpo      -ℓ̄⁺ - β log σ(o(ℓ̄⁺) - o(ℓ̄⁻)), o(ℓ) = ℓ - log(1-e^ℓ)   arXiv:2403.07691, no reference

and a step minimises its mean over the pairs of the global batch. (IPO's paper sums log-ratios; its
authors say since that they meant means, which is the default. ORPO's first term is of the answer
alone, and both of its terms are of means.)

In a batch a pair lies in one row: segment 2k + 1 holds prompt and chosen answer, 2k + 2 prompt and
rejected answer, and `loss_mask` says which targets are scored. The reference is a frozen model in
the same step, on the same mesh, or what it said of the batch's answers before (`reference`).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from smoljax import model, sharding
from smoljax.model.config import one_of
from smoljax.train import cross_entropy, objectives

PyTree = Any


class Pairs(NamedTuple):
  """Of each pair, float32 arrays of one shape: summed log-probabilities and scored tokens."""

  chosen: jax.Array
  rejected: jax.Array
  ref_chosen: jax.Array  # zeros where there is no reference
  ref_rejected: jax.Array
  chosen_tokens: jax.Array
  rejected_tokens: jax.Array

  @property
  def ratios(self) -> tuple[jax.Array, jax.Array]:
    """(r⁺, r⁻). Each is the difference of two close numbers: taken first, it loses no digits."""
    return self.chosen - self.ref_chosen, self.rejected - self.ref_rejected

  @property
  def mean_ratios(self) -> tuple[jax.Array, jax.Array]:
    """(r⁺/‖y⁺‖, r⁻/‖y⁻‖); without a reference the ℓ̄ of both."""
    won, lost = self.ratios
    return won / jnp.maximum(self.chosen_tokens, 1), lost / jnp.maximum(self.rejected_tokens, 1)


@dataclasses.dataclass(frozen=True)
class Preference:
  """How pairs are learned from: section `train.preference` of a config.

  Raises ValueError, naming the field, for what is out of range or means nothing to the loss.
  """

  loss: str = 'dpo'
  beta: float = 0.0  # 0 = what is usual for the loss; ORPO's λ
  label_smoothing: float = 0.0  # ε, of dpo and robust: the share of pairs that are the wrong way
  gamma: float = 1.375  # γ of simpo, which others give as γ/β
  average: bool = True  # ipo: of means over tokens

  def __post_init__(self):
    one_of('train.preference.loss', self.loss, LOSSES)
    if not 0 <= self.beta < float('inf'):
      raise ValueError(f'train.preference.beta={self.beta}: give a positive number, or 0 for '
                       f'{LOSSES[self.loss].beta}, which is usual for {self.loss}')
    if not 0 <= self.label_smoothing < 0.5:
      raise ValueError(f'train.preference.label_smoothing={self.label_smoothing}: give a share of '
                       'wrong labels, 0 or more and below .5')
    if self.label_smoothing and self.loss not in ('dpo', 'robust'):
      raise ValueError(f'train.preference.label_smoothing={self.label_smoothing} means nothing to '
                       f'loss={self.loss}: set it to 0, or loss to dpo or robust')

  @property
  def scale(self) -> float:
    """β."""
    return self.beta or LOSSES[self.loss].beta

  @property
  def needs_reference(self) -> bool:
    """Whether the loss compares with a frozen model."""
    return LOSSES[self.loss].reference


# --- Losses, of each pair -------------------------------------------------------------------------


def dpo(p: Pairs, c: Preference) -> jax.Array:
  """Direct preference optimisation, with labels smoothed by ε."""
  won, lost = _log_sigmoids(_beta_delta(p, c))
  return -(1 - c.label_smoothing) * won - c.label_smoothing * lost


def robust(p: Pairs, c: Preference) -> jax.Array:
  """DPO whose mean is unbiased where a share ε of the labels is flipped."""
  won, lost = _log_sigmoids(_beta_delta(p, c))
  return (-(1 - c.label_smoothing) * won + c.label_smoothing * lost) / (1 - 2 * c.label_smoothing)


def hinge(p: Pairs, c: Preference) -> jax.Array:
  """SLiC's hinge, on DPO's margin."""
  return jax.nn.relu(1 - _beta_delta(p, c))


def ipo(p: Pairs, c: Preference) -> jax.Array:
  """The squared distance of the margin from 1/2β."""
  won, lost = p.mean_ratios if c.average else p.ratios
  return jnp.square(won - lost - 1 / (2 * c.scale))


def apo_zero(p: Pairs, c: Preference) -> jax.Array:
  """Chosen answers become likelier, rejected ones less likely: for y⁺ better than the model's."""
  won, lost = p.ratios
  return jax.nn.sigmoid(-c.scale * won) + jax.nn.sigmoid(c.scale * lost)


def apo_down(p: Pairs, c: Preference) -> jax.Array:
  """Both become less likely, rejected ones more so: for a model that is better than y⁺."""
  return jax.nn.sigmoid(c.scale * p.ratios[0]) + jax.nn.sigmoid(-_beta_delta(p, c))


def dpo_norm(p: Pairs, c: Preference) -> jax.Array:
  """DPO of means over tokens. They are ‖y‖ times smaller than sums, so β is larger: 5."""
  won, lost = p.mean_ratios
  return -jax.nn.log_sigmoid(c.scale * (won - lost))


def simpo(p: Pairs, c: Preference) -> jax.Array:
  """The mean log-probability itself is the reward, with a margin of γ."""
  won, lost = p.mean_ratios
  return -jax.nn.log_sigmoid(c.scale * (won - lost) - c.gamma)


def orpo(p: Pairs, c: Preference) -> jax.Array:
  """Cross entropy of the chosen answer, and the odds ratio of both."""
  won, lost = p.mean_ratios
  return -won - c.scale * jax.nn.log_sigmoid(_log_odds(won) - _log_odds(lost))


def _beta_delta(p, c):
  won, lost = p.ratios
  return c.scale * (won - lost)


def _log_sigmoids(x):
  return jax.nn.log_sigmoid(x), jax.nn.log_sigmoid(-x)


def _log_odds(logp):
  """log p - log(1 - p), by that form of log(1 - p) which keeps its digits (Mächler 2012)."""
  logp = jnp.minimum(logp, -1e-7)
  near = logp > -0.6931
  # Each branch sees a number that is its own: no NaN comes through the one that is not taken.
  log_rest = jnp.where(near, jnp.log(-jnp.expm1(jnp.where(near, logp, -0.5))),
                       jnp.log1p(-jnp.exp(jnp.where(near, -1.0, logp))))
  return logp - log_rest


class Kind(NamedTuple):
  """A loss, its usual β, and whether it compares with a frozen model."""

  of: Callable[[Pairs, Preference], jax.Array]
  beta: float
  reference: bool = True


LOSSES = {
  'dpo': Kind(dpo, 0.1),
  'robust': Kind(robust, 0.1),
  'hinge': Kind(hinge, 0.1),
  'ipo': Kind(ipo, 0.1),
  'apo_zero': Kind(apo_zero, 0.1),
  'apo_down': Kind(apo_down, 0.1),
  'dpo_norm': Kind(dpo_norm, 5.0),
  'simpo': Kind(simpo, 2.5, reference=False),
  'orpo': Kind(orpo, 0.1, reference=False),
}


# --- In a batch -----------------------------------------------------------------------------------


def log_probs(
  config: model.ModelConfig, params: PyTree, batch: Mapping[str, jax.Array], *, chunk: int = 512
) -> jax.Array:
  """The log-probability of each place's target, float32 [B, T], in nats, without gradient.

  By the function that training differentiates, at its shapes: what is compared with a training
  step's own log-probabilities (a reference, the policy that sampled) comes from here.
  """
  hidden_BTD, _ = model.hidden(
    config, params, batch['inputs'], positions_BT=batch['positions'],
    segment_ids_BT=batch['segment_ids'])
  return jax.lax.stop_gradient(
    -place_losses(config, hidden_BTD, model.unembedding(config, params), batch, chunk=chunk)[1])


def place_losses(
  config: model.ModelConfig, hidden_BTD: jax.Array, unembed_DV: jax.Array,
  batch: Mapping[str, jax.Array], weight_BT: jax.Array | float = 1.0, *, chunk: int,
) -> tuple[jax.Array, jax.Array]:
  """(Σ weight · cross entropy, with gradients; the cross entropy of each place [B, T]).

  Logits are float32 also where the rest computes in bfloat16: log-probabilities are compared with
  each other here, and a rounded logit of 20 is wrong by up to .06.
  """
  weight_BT = jnp.broadcast_to(jnp.float32(weight_BT), batch['targets'].shape)
  given = {'targets': batch['targets'],
           'weight': sharding.constrain(weight_BT, 'batch', 'length')}
  def losses(logits_BCV, given, _):
    nll_BC, _ = cross_entropy.cross_entropy(logits_BCV, given['targets'])
    return nll_BC * given['weight'], {'nll': nll_BC}

  total, places = objectives.over_places(
    config, losses, hidden_BTD, unembed_DV, given, chunk=chunk, rounded=False)
  return total, places['nll']


def segment_sums(x_BT: jax.Array, segments_BT: jax.Array, most: int) -> jax.Array:
  """Sums over each of segments 1 … `most` of a row, [B, most]."""
  return jnp.sum(x_BT[:, :, None] * _hot(segments_BT, most), axis=1)


def spread_segments(x_BS: jax.Array, segments_BT: jax.Array) -> jax.Array:
  """The value of its segment at each place, [B, T]; 0 in padding. `segment_sums` transposed."""
  x_B1S = sharding.constrain(x_BS, 'batch', None)[:, None]
  return jnp.sum(x_B1S * _hot(segments_BT, x_BS.shape[1]), axis=2)


def _hot(segments_BT, most):
  segments_BT = sharding.constrain(jnp.asarray(segments_BT), 'batch', 'length')
  return jax.nn.one_hot(segments_BT - 1, most, dtype=jnp.float32)


def num_pairs(batch: Mapping[str, jax.Array]) -> jax.Array:
  """Pairs in a batch, float32: what a step's sum is divided by."""
  return jnp.sum(jnp.max(batch['segment_ids'], axis=1) // 2).astype(jnp.float32)


def reference_sums(
  config: model.ModelConfig, params: PyTree, batch: Mapping[str, jax.Array], *, chunk: int = 512
) -> jax.Array:
  """The frozen model's summed log-probability of each answer, float32 [B, S] by segment.

  What a cache stores, and what a step computes that has none: the same numbers.
  """
  logp_BT = log_probs(config, params, batch, chunk=chunk) * batch['loss_mask']
  return segment_sums(logp_BT, batch['segment_ids'], most_segments(config))


def most_segments(config: model.ModelConfig) -> int:
  """How many a row may have: an even number, since pairs are whole."""
  return config.max_segments + config.max_segments % 2


def objective(
  config: model.ModelConfig,
  params: PyTree,
  batch: Mapping[str, jax.Array],
  preference: Preference,
  *,
  total_pairs: jax.Array,
  num_sources: int,
  chunk: int = 512,
  reference_params: PyTree = None,
  max_logits: str | float | None = None,
) -> objectives.Loss:
  """The loss over `total_pairs`, the count over the *global* batch, and its metrics.

  The sums of log-probabilities are computed first, without gradient; what the loss says of each is
  then a weight on its places' cross entropy. So logits are computed twice and never stored.

  Args:
    batch: pairs as in this file's docstring. With `reference` [B, T] the reference is not run: it
      holds what `reference_sums` gives at each segment's first place, and is 0 elsewhere.
    reference_params: of the frozen model, which has the same config.

  Metrics, sums over the batch's pairs: `loss_sum_S` and `pairs_S` per source; `tokens_S`, the
  scored tokens of both answers, and `places`, all of their tokens; `pair_sum/…`: rewards β·r of
  either answer, their margin and whether it is right (a tie is half right), log-probabilities,
  lengths, and `displaced`: whether y⁺ became less likely than it was to the reference.
  """
  segments_BT, most = batch['segment_ids'], most_segments(config)
  mask_BT = sharding.constrain(batch['loss_mask'].astype(jnp.float32), 'batch', 'length')
  reference_BS: Any = 0.0
  if preference.needs_reference:
    reference_BS = (segment_sums(batch['reference'], segments_BT, most) if 'reference' in batch
                    else reference_sums(config, jax.lax.stop_gradient(reference_params), batch,
                                        chunk=chunk))
  hidden_BTD, aux = model.hidden(
    config, params, batch['inputs'], positions_BT=batch['positions'], segment_ids_BT=segments_BT,
    max_logits=max_logits)
  unembed_DV = model.unembedding(config, params)
  _, nll_BT = jax.lax.stop_gradient(place_losses(
    config, *jax.lax.stop_gradient((hidden_BTD, unembed_DV)), batch, chunk=chunk))
  sums_BS = segment_sums(-nll_BT * mask_BT, segments_BT, most)
  tokens_BS = segment_sums(mask_BT, segments_BT, most)
  reference_BS += jnp.zeros_like(sums_BS)
  there_BP = (tokens_BS[:, 1::2] > 0).astype(jnp.float32)

  def loss(sums_BS: jax.Array) -> tuple[jax.Array, tuple[Pairs, jax.Array]]:
    pairs = Pairs(*(x[:, i::2] for x in (sums_BS, reference_BS, tokens_BS) for i in (0, 1)))
    loss_BP = LOSSES[preference.loss].of(pairs, preference) * there_BP
    return jnp.sum(loss_BP) / total_pairs, (pairs, loss_BP)

  value, pull_back, (pairs, loss_BP) = jax.vjp(loss, sums_BS, has_aux=True)
  slope_BS, = pull_back(jnp.ones_like(value))
  weight_BT = -spread_segments(slope_BS, segments_BT) * mask_BT
  bound, _ = place_losses(config, hidden_BTD, unembed_DV, batch, weight_BT, chunk=chunk)
  total = value + bound - jax.lax.stop_gradient(bound)  # this value, that gradient
  of_row_BS = jax.nn.one_hot(batch['source'], num_sources, dtype=jnp.float32)
  by_source = lambda x_BX: jnp.sum(jnp.sum(x_BX, axis=1)[:, None] * of_row_BS, axis=0)
  metrics = {
    'loss_sum_S': by_source(loss_BP), 'pairs_S': by_source(there_BP),
    'tokens_S': by_source(mask_BT), 'places': jnp.sum(segments_BT > 0),
    **({'max_logits_LN': aux['max_logits_LN']} if max_logits else {}),
  }
  seen = _seen(pairs, preference)
  return objectives.Loss(
    total, metrics | {f'pair_sum/{k}': jnp.sum(x * there_BP) for k, x in seen.items()})


def _seen(pairs: Pairs, preference: Preference) -> dict[str, jax.Array]:
  """What is logged of each pair."""
  averaged = preference.loss in ('dpo_norm', 'simpo', 'orpo') or (
    preference.loss == 'ipo' and preference.average)
  won, lost = (preference.scale * r for r in (pairs.mean_ratios if averaged else pairs.ratios))
  margin = won - lost
  seen = {
    'reward_chosen': won, 'reward_rejected': lost, 'margin': margin,
    'accuracy': (margin > 0) + 0.5 * (margin == 0),
    'logp_chosen': pairs.chosen, 'logp_rejected': pairs.rejected,
    'tokens_chosen': pairs.chosen_tokens, 'tokens_rejected': pairs.rejected_tokens,
  }
  if preference.needs_reference:
    seen['displaced'] = (won < 0).astype(jnp.float32)
  return seen

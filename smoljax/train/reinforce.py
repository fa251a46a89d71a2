"""Reinforcement learning with rewards by rule (GRPO and its kin): what is learned from samples.

To each question the policy gives a group of answers; a rule rewards each with a number r. With the
advantage A = r - mean of the group, divided by its standard deviation (ddof 1) + 1e-4 if asked for,
and ρ = π/π_old of a token, the loss of a token is

  ℓ = -min(ρA, clip(ρ, 1 - ε_low, 1 + ε_high) A) + weight · KL

and that of a step, with N answers y_i of ‖y_i‖ tokens each in the global batch,

  grpo      1/N Σ_i 1/‖y_i‖ Σ_t ℓ   ε_high .2, divided by the deviation    arXiv:2402.03300
  dr_grpo   Σ ℓ / (N · L_max)       ε_high .2, not divided                 arXiv:2503.20783
  dapo      Σ ℓ / Σ_i ‖y_i‖         ε_high .28, divided                    arXiv:2503.14476

(of DAPO the resampling of groups without variance is left out: their share is logged). The token
that ends an answer is an action as any other, temperature and top-k are part of the policy, and
tokens of questions are never learned. KL, with d = log π_ref - log π, is k2 = d²/2, whose gradient
on the policy's own samples is that of KL(π ‖ π_ref), or k3 = e^d - d - 1, whose gradient is that of
KL(π_ref ‖ π) (arXiv:2506.09477); the reference is what training began with.

π_old comes from the function that training differentiates (`score`), not from the decoder: with
another order of sums the decoder's log-probabilities differ by 1e-6 in float32 and by 1e-2 in
bfloat16, and so would the policies. See rollouts.py for how the samples are the policy's own.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smoljax import model, sharding
from smoljax.evals import answers
from smoljax.inference import sampling as sampling_lib
from smoljax.inference.sampling import Sampling
from smoljax.model.config import one_of
from smoljax.train import cross_entropy, objectives

PyTree = Any

EPSILON = 1e-4  # beside the standard deviation


class Kind(NamedTuple):
  """What is usual for a loss."""

  clip_high: float
  divide_by_std: bool


LOSSES = {'grpo': Kind(0.2, True), 'dr_grpo': Kind(0.2, False), 'dapo': Kind(0.28, True)}
KLS = ('none', 'k2', 'k3')


@dataclasses.dataclass(frozen=True)
class Reinforce:
  """How is learned from samples: section `train.reinforce` of a config.

  Raises ValueError, naming the field, for what is out of range.
  """

  loss: str = 'grpo'
  samples: int = 8  # answers a question
  max_new_tokens: int = 256  # of an answer, its end included
  temperature: float = 1.0
  top_k: int = 0  # 0 = all tokens
  rewards: Mapping[str, float] = dataclasses.field(default_factory=lambda: {'number': 1.0})
  clip_low: float = 0.2
  clip_high: float = 0.0  # 0 = what is usual for the loss
  divide_by_std: bool | None = None  # None = likewise
  kl: str = 'none'
  kl_weight: float = 0.0
  overlong: int = 0  # last tokens over which the reward falls by 1, as in DAPO; 0 = it does not
  learn_truncated: bool = True  # learn from answers without an end too
  updates: int = 1  # steps taken on the answers of one sampling

  def __post_init__(self):
    where = 'train.reinforce.'
    one_of(f'{where}loss', self.loss, LOSSES)
    one_of(f'{where}kl', self.kl, KLS)
    for name in self.rewards:
      one_of(f'{where}rewards', name, REWARDS)
    object.__setattr__(self, 'rewards', {k: w for k, w in self.rewards.items() if w})
    for name, allowed, ok in (
      ('samples', '2 or more: a group has a mean', self.samples >= 2),
      ('max_new_tokens', '1 or more', self.max_new_tokens >= 1),
      ('temperature', 'above 0: a policy that does not sample learns nothing',
       0 < self.temperature < float('inf')),
      ('top_k', '0 (all) or more', self.top_k >= 0),
      ('rewards', f'weights of {", ".join(REWARDS)}, of one at least', bool(self.rewards)),
      ('clip_low', 'from 0 to 1', 0 <= self.clip_low <= 1),
      ('clip_high', '0 or more', 0 <= self.clip_high < float('inf')),
      ('kl_weight', '0 or more, above 0 where there is a kl',
       0 <= self.kl_weight < float('inf') and (self.kl_weight > 0) == (self.kl != 'none')),
      ('updates', '1 or more', self.updates >= 1),
      ('overlong', 'from 0 to max_new_tokens', 0 <= self.overlong <= self.max_new_tokens),
    ):
      if not ok:
        raise ValueError(f'{where}{name}={getattr(self, name)}: must be {allowed}')

  @property
  def sampling(self) -> Sampling:
    """The policy, as a way to draw from logits."""
    return Sampling(temperature=self.temperature, top_k=self.top_k)

  @property
  def needs_reference(self) -> bool:
    """Whether the loss compares with the model that training began with."""
    return self.kl != 'none'


# --- Rewards --------------------------------------------------------------------------------------


class Answer(NamedTuple):
  """An answer as rules see it."""

  text: str  # without the token that ends it
  ended: bool  # by that token, not by its length


def number(answer: Answer, truth: str) -> float:
  """1 where the last number said is the truth's last one, by value."""
  said = _said(answer)
  return float(said is not None and answers.last_number_is(said, answers.split(truth).answer))


def text(answer: Answer, truth: str) -> float:
  """1 where what is said, or its last line, is the truth, but for space, case and a full stop."""
  said = _said(answer)
  return float(said is not None and answers.exact(said, answers.split(truth).answer))


def form(answer: Answer, truth: str) -> float:
  """1 where an answer follows the truth's mode: a thought that says something iff that has one."""
  mode = 'think' if answers.split(truth).thought else 'no_think'
  return float(answers.follows_mode(answer.text, mode, ended=answer.ended))


def _said(answer: Answer) -> str | None:
  """What is said after the thought; None where that is not closed, or the answer did not end."""
  parts = answers.split(answer.text)
  return parts.answer if answer.ended and parts.closed and parts.thoughts <= 1 else None


REWARDS = {'number': number, 'text': text, 'form': form}


def overlong_penalty(length: int, most: int, cache: int) -> float:
  """0 up to most - cache tokens, then falling to -1 at `most`, in a line (DAPO, eq. 13)."""
  return min(0.0, (most - cache - length) / cache) if cache else 0.0


def advantages(rewards_QG: np.ndarray, divide_by_std: bool) -> np.ndarray:
  """Of each answer, float32 [Q, G]; 0 in groups whose rewards are all the same."""
  rewards_QG = np.asarray(rewards_QG, np.float64)
  centred_QG = rewards_QG - rewards_QG.mean(axis=1, keepdims=True)
  if divide_by_std:
    centred_QG /= rewards_QG.std(axis=1, ddof=1, keepdims=True) + EPSILON
  varied_Q1 = np.ptp(rewards_QG, axis=1, keepdims=True) > 0
  return np.where(varied_Q1, centred_QG, 0).astype(np.float32)


def token_weights(loss: str, mask_BT: np.ndarray, max_new_tokens: int) -> np.ndarray:
  """The factor of each token's ℓ in a step's loss, float32 [B, T]; see the file's docstring."""
  mask_BT, rows = mask_BT.astype(np.float32), len(mask_BT)
  if loss == 'grpo':
    return mask_BT / np.maximum(mask_BT.sum(axis=1, keepdims=True), 1) / rows
  if loss == 'dr_grpo':
    return mask_BT / (rows * max_new_tokens)
  return mask_BT / max(mask_BT.sum(), 1)


# --- In a batch -----------------------------------------------------------------------------------


def token_loss(
  logp: jax.Array, old_logp: jax.Array, advantage: jax.Array, how: Reinforce,
  ref_logp: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(ℓ, whether clipping took its gradient, KL) of each token, arrays of one shape."""
  ratio = jnp.exp(logp - old_logp)
  high = how.clip_high or LOSSES[how.loss].clip_high
  free = ratio * advantage
  bound = jnp.clip(ratio, 1 - how.clip_low, 1 + high) * advantage
  loss, kl = -jnp.minimum(free, bound), jnp.zeros_like(logp)
  if ref_logp is not None and how.needs_reference:
    d = ref_logp - logp
    kl = jnp.square(d) / 2 if how.kl == 'k2' else jnp.expm1(d) - d
    loss += how.kl_weight * kl
  return loss, (bound < free).astype(jnp.float32), kl


def score(
  config: model.ModelConfig, params: PyTree, batch: Mapping[str, jax.Array], sampling: Sampling,
  *, chunk: int = 512,
) -> dict[str, jax.Array]:
  """What the policy says of a batch, at the shapes of training and without gradient, each [B, T].

  'logp': float32, of each target. 'drawn', if the batch has `row_seed` (uint32 [B]) and `draw`
  (int32 [B, T], how many tokens the row drew before this target): what it draws there itself, by
  the keys that `inference.generate` draws with.
  """
  hidden_BTD, _ = model.hidden(
    config, params, batch['inputs'], positions_BT=batch['positions'],
    segment_ids_BT=batch['segment_ids'])
  given = {'targets': batch['targets']}
  if 'draw' in batch:
    seed_B1 = sharding.constrain(batch['row_seed'], 'batch')[:, None]
    given |= {'draw': batch['draw'],
              'seed': sharding.constrain(jnp.broadcast_to(seed_B1, batch['draw'].shape),
                                         'batch', 'length')}

  def places(logits_BCV, given, _):
    _, (nll_BC, _) = _policy(logits_BCV, given['targets'], sampling)
    found = {'logp': -nll_BC}
    if 'draw' in given:
      found['drawn'] = _draws(logits_BCV, given['seed'], given['draw'], sampling)
    return jnp.zeros_like(nll_BC), found

  _, found = objectives.over_places(
    config, places, hidden_BTD, model.unembedding(config, params), given, chunk=chunk,
    rounded=False)
  return jax.lax.stop_gradient(found)


def _policy(logits_BCV, targets_BC, sampling):
  """The logits that the policy draws from, and (cross entropy, log Z) of its targets."""
  logits_BCV = sharding.constrain(logits_BCV, 'batch', 'length', None)
  logits_BCV = sharding.constrain(
    sampling_lib.adjust(logits_BCV, sampling), 'batch', 'length', 'vocab')
  return logits_BCV, cross_entropy.cross_entropy(logits_BCV, targets_BC)


def _draws(logits_BCV, seed_BC, draw_BC, sampling):
  """A token of each place, on each device where its places are."""
  def draw(logits_BCV, seed_BC, draw_BC):
    keys = jax.vmap(lambda seed, n: jax.random.fold_in(jax.random.key(seed), n))(
      seed_BC.ravel(), draw_BC.ravel())
    rows = logits_BCV.reshape(-1, logits_BCV.shape[-1])
    return sampling_lib.sample(keys, rows, sampling).reshape(seed_BC.shape)

  if jax.sharding.get_abstract_mesh().empty:
    return draw(logits_BCV, seed_BC, draw_BC)
  logits_BCV = sharding.constrain(logits_BCV, 'batch', 'length', None)
  return jax.shard_map(draw, out_specs=sharding.spec('batch', 'length'), check_vma=False)(
    logits_BCV, seed_BC, draw_BC)


def objective(
  config: model.ModelConfig,
  params: PyTree,
  batch: Mapping[str, jax.Array],
  how: Reinforce,
  *,
  num_sources: int,
  chunk: int = 512,
  reference_params: PyTree = None,
  max_logits: str | float | None = None,
) -> objectives.Loss:
  """Σ weight · ℓ over a batch of `rollouts.Rollouts`, and its metrics.

  Args:
    batch: inputs, targets, positions, segment_ids, loss_mask, weight and old_logp [B, T];
      advantage and source [B].
    reference_params: of what training began with, if there is a KL.

  Metrics, sums over the answers' tokens: `loss_sum_S` (cross entropy of the policy with its own
  samples, which estimates its entropy) and `tokens_S` per source, and `places`, questions'
  tokens too; `token_sum/…`: the policy's
  entropy, whether clipping took a token's gradient, the KL, and |log π - log π_old|, which is 0 to
  the bit where samples are learned from once.
  """
  # What a backward pass keeps of the forward one changes how that is compiled: its last bits would
  # not be those of `score`.
  config = dataclasses.replace(config, remat='full')
  mask_BT = sharding.constrain(batch['loss_mask'].astype(jnp.float32), 'batch', 'length')
  hidden_BTD, aux = model.hidden(
    config, params, batch['inputs'], positions_BT=batch['positions'],
    segment_ids_BT=batch['segment_ids'], max_logits=max_logits)
  advantage_BT = jnp.broadcast_to(
    sharding.constrain(batch['advantage'], 'batch')[:, None], mask_BT.shape)
  given = {'targets': batch['targets'], 'weight': batch['weight'], 'old_logp': batch['old_logp'],
           'advantage': sharding.constrain(advantage_BT, 'batch', 'length')}
  if how.needs_reference:
    given['ref_logp'] = score(config, jax.lax.stop_gradient(reference_params), batch, how.sampling,
                              chunk=chunk)['logp']

  def places(logits_BCV, given, _):
    logits_BCV, (nll_BC, log_z_BC) = _policy(logits_BCV, given['targets'], how.sampling)
    # A token that the policy has come to exclude is learned from no more.
    logp_BC = jnp.where(jnp.isfinite(nll_BC), -nll_BC, given['old_logp'])
    loss_BC, clipped_BC, kl_BC = token_loss(
      logp_BC, given['old_logp'], given['advantage'], how, given.get('ref_logp'))
    p_BCV = jnp.exp(logits_BCV - log_z_BC[..., None])
    entropy_BC = log_z_BC - jnp.sum(p_BCV * jnp.where(p_BCV > 0, logits_BCV, 0.0), axis=-1)
    return loss_BC * given['weight'], {
      'nll': -logp_BC, 'entropy': entropy_BC, 'clipped': clipped_BC, 'kl': kl_BC,
      'moved': jnp.abs(logp_BC - given['old_logp'])}

  total, seen = objectives.over_places(
    config, places, hidden_BTD, model.unembedding(config, params), given, chunk=chunk,
    rounded=False)
  of_row_BS = jax.nn.one_hot(batch['source'], num_sources, dtype=jnp.float32)
  by_source = lambda x_BT: jnp.sum(jnp.sum(x_BT, axis=1)[:, None] * of_row_BS, axis=0)
  return objectives.Loss(total, {
    'loss_sum_S': by_source(seen.pop('nll') * mask_BT), 'tokens_S': by_source(mask_BT),
    'places': jnp.sum(batch['segment_ids'] > 0),
    **({'max_logits_LN': aux['max_logits_LN']} if max_logits else {}),
    **{f'token_sum/{k}': jnp.sum(x * mask_BT) for k, x in seen.items()}})

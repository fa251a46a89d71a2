"""Temperature, top-k, top-p, min-p, repetition penalty: from logits to the next token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How the next token is drawn, with the meaning and in the order of transformers' processors.

  Raises ValueError, naming the field, for values out of range.
  """

  temperature: float = 0.0  # logits are divided by it; 0 (or next to it) = the likeliest token
  top_k: int = 0  # keep the k likeliest; 0 = all
  top_p: float = 1.0  # then the fewest that hold this probability (arXiv:1904.09751)
  min_p: float = 0.0  # then those with this share of the likeliest's probability (arXiv:2407.01082)
  repetition_penalty: float = 1.0  # first of all: logits of tokens already there, the prompt's
                                   # included, are divided (if > 0) or multiplied by it (CTRL,
                                   # arXiv:1909.05858)
  min_new_tokens: int = 0  # before so many, no token that ends the row

  def __post_init__(self):
    for name, allowed, ok in (
      ('temperature', '0 (greedy) or more', 0 <= self.temperature < float('inf')),
      ('top_k', '0 (off) or more', self.top_k >= 0),
      ('top_p', 'in (0, 1]', 0 < self.top_p <= 1),
      ('min_p', 'in [0, 1]', 0 <= self.min_p <= 1),
      ('min_new_tokens', '0 or more', self.min_new_tokens >= 0),
      ('repetition_penalty', 'positive (1 = off)', 0 < self.repetition_penalty < float('inf')),
    ):
      if not ok:
        raise ValueError(f'{name}={getattr(self, name)}: must be {allowed}')

  @property
  def greedy(self) -> bool:
    """Whether the likeliest token is taken: fp32 logits cannot be divided by less than this."""
    return self.temperature < 1e-6


GREEDY = Sampling()


def adjust(
  logits_BV: jax.Array, sampling: Sampling, seen_BV: jax.Array | None = None
) -> jax.Array:
  """Logits (fp32) to draw from: penalised, divided, and -inf where `sampling` leaves a token out.

  `seen_BV` says which tokens a row holds already; it is needed for the repetition penalty only.
  """
  if sampling.repetition_penalty != 1:
    penalty = sampling.repetition_penalty
    penalised_BV = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    logits_BV = jnp.where(seen_BV, penalised_BV, logits_BV)
  if sampling.greedy:
    return logits_BV
  logits_BV = logits_BV / sampling.temperature
  if 0 < sampling.top_k < logits_BV.shape[-1]:
    likeliest_BV = _likeliest(logits_BV, jnp.ones_like(logits_BV), sampling.top_k)
    logits_BV = jnp.where(likeliest_BV, logits_BV, -jnp.inf)
  if sampling.top_p < 1:
    likeliest_BV = _likeliest(logits_BV, jax.nn.softmax(logits_BV), sampling.top_p)
    logits_BV = jnp.where(likeliest_BV, logits_BV, -jnp.inf)
  if sampling.min_p > 0:
    highest_B1 = logits_BV.max(axis=-1, keepdims=True)
    logits_BV = jnp.where(
      logits_BV < highest_B1 + np.log(sampling.min_p), -jnp.inf, logits_BV)
  return logits_BV


def _likeliest(logits_BV, weight_BV, enough):
  """Where the fewest largest logits (and their equals) are whose weights sum to `enough`.

  The smallest of them is found bit by bit: 32 sums, many times faster than a sort of 128k.
  """
  bits_BV = jax.lax.bitcast_convert_type(logits_BV, jnp.uint32)
  sign = jnp.uint32(1 << 31)
  order_BV = jnp.where(bits_BV >= sign, ~bits_BV, bits_BV | sign)  # as integers, ordered as floats

  def set_bit(i, lowest_B1):
    higher_B1 = lowest_B1 | sign >> i.astype(jnp.uint32)
    sum_B1 = jnp.sum(jnp.where(order_BV >= higher_B1, weight_BV, 0), axis=-1, keepdims=True)
    return jnp.where(sum_B1 >= enough, higher_B1, lowest_B1)

  lowest_B1 = jnp.zeros_like(order_BV[..., :1])
  return order_BV >= jax.lax.fori_loop(0, 32, set_bit, lowest_B1)


def sample(
  keys_B: jax.Array, logits_BV: jax.Array, sampling: Sampling, seen_BV: jax.Array | None = None
) -> jax.Array:
  """One token per row, int32 [B], by the row's own key."""
  logits_BV = adjust(logits_BV, sampling, seen_BV)
  if sampling.greedy:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)

"""Learning from a teacher: its distribution over the next token, and what it computes on the way.

The teacher runs beside the student (online), or its distributions were written down before, beside
the tokenised corpus (teacher_cache.py, experiments/teacher_cache.py writes it). Stored is, by kind:

  sampled  N draws with replacement from p, as counts c: the target c/N is an unbiased estimate of
           p, and so is its gradient (Random Sampling KD, arXiv:2503.16870); about 12 ids a token
           for N = 50
  topk     the k likeliest ids with their probabilities, and one bucket for the rest: its loss
           compares k + 1 probabilities. (What peers do, renormalising over the k, teaches the
           student that nothing else can follow; it is not offered.)
  hidden   the teacher's last hidden state, from which its head gives all of p again

Distances are of p, the teacher's distribution, and q, the student's, both at temperature τ, and
are multiplied by τ² so that gradients keep their size (Hinton et al., arXiv:1503.02531).

Transfers compare what is inside: features, attention, relations; see the functions. They need
teacher and student side by side, and their activations of all layers.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from smoljax import model, sharding
from smoljax.data.batches import learned
from smoljax.model.attention.masks import Places, visible
from smoljax.model.config import one_of

PyTree = Any

CACHES = ('sampled', 'topk', 'hidden')
MAX_PADDING = 1024  # rows; Qwen2.5 has 151,936 at .5B and 152,064 at 7B, for one tokenizer


# --- Distances of distributions -----------------------------------------------------------------


def forward_kl(p_logits: jax.Array, q_logits: jax.Array, _: float = 0.0) -> jax.Array:
  """KL(p ‖ q) over the last axis, in nats: the student covers all that the teacher does."""
  p, log_p = jax.nn.softmax(p_logits), jax.nn.log_softmax(p_logits)
  return jnp.sum(p * (log_p - jax.nn.log_softmax(q_logits)), axis=-1)


def reverse_kl(p_logits: jax.Array, q_logits: jax.Array, _: float = 0.0) -> jax.Array:
  """KL(q ‖ p): the student keeps to where the teacher is sure."""
  return forward_kl(q_logits, p_logits)


def jsd(p_logits: jax.Array, q_logits: jax.Array, beta: float = 0.5) -> jax.Array:
  """β KL(p ‖ m) + (1 - β) KL(q ‖ m), m = β p + (1 - β) q (GKD, arXiv:2306.13649, eq. 1)."""
  log_p, log_q = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
  log_m = jnp.logaddexp(log_p + jnp.log(beta), log_q + jnp.log1p(-beta))
  return jnp.sum(
    beta * jnp.exp(log_p) * (log_p - log_m) + (1 - beta) * jnp.exp(log_q) * (log_q - log_m),
    axis=-1)


DISTANCES = {'forward_kl': forward_kl, 'reverse_kl': reverse_kl, 'jsd': jsd}


def sampled(q_logits: jax.Array, ids: jax.Array, counts: jax.Array) -> jax.Array:
  """Cross entropy of q against counts / N; its mean over draws is KL(p ‖ q) + the entropy of p.

  Args:
    ids, counts: [..., U]; unused entries have count 0.
  """
  weights = counts.astype(jnp.float32)
  weights /= jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1)
  picked = _pick(q_logits, ids)
  return jax.nn.logsumexp(q_logits, axis=-1) - jnp.sum(weights * picked, axis=-1)


def topk(q_logits: jax.Array, ids: jax.Array, p: jax.Array) -> jax.Array:
  """KL over k + 1 outcomes: the k ids with probabilities p [..., k], and all the others as one.

  It says nothing of how the others share their part: their logits move alike, so that alone
  (weight = 1) it leaves a student worse than cross entropy does where the truth is among them.
  """
  log_q = _pick(q_logits, ids) - jax.nn.logsumexp(q_logits, axis=-1, keepdims=True)
  p = p.astype(jnp.float32)
  tail_p = jnp.maximum(1 - jnp.sum(p, axis=-1), 1e-6)
  tail_q = jnp.maximum(1 - jnp.sum(jnp.exp(log_q), axis=-1), 1e-6)
  of_ids = jnp.where(p > 0, p * (jnp.log(jnp.maximum(p, 1e-30)) - log_q), 0)
  return jnp.sum(of_ids, axis=-1) + tail_p * (jnp.log(tail_p) - jnp.log(tail_q))


def _pick(logits, ids):
  """logits[..., ids], on each device where its rows are."""
  pick = lambda logits, ids: jnp.take_along_axis(logits, ids, axis=-1)
  if jax.sharding.get_abstract_mesh().empty:
    return pick(logits, ids)
  logits = sharding.constrain(logits, 'batch', 'length', None)
  return jax.shard_map(pick, out_specs=sharding.spec('batch', 'length', None))(logits, ids)


# --- Transfers ------------------------------------------------------------------------------------


def layer_map(student_layers: int, teacher_layers: int) -> tuple[int, ...]:
  """For each layer of the student the teacher's at the same share of the depth; last to last."""
  return tuple(round((i + 1) * teacher_layers / student_layers) - 1 for i in range(student_layers))


def features(
  params: PyTree, student: Mapping, teacher: Mapping, layers: Sequence[int], mask_BT: jax.Array
) -> jax.Array:
  """1 - cos(W_l h_S, h_T) of the residual streams, mean over layers, summed over places.

  The cosine does not care for the scale of the teacher's stream, which grows with depth; W_l
  [D, D_teacher] is learned (params['distill'], see `Teacher.init`).
  """
  w_LDI = params['distill']['feature_DI']
  student_LBTD, teacher_LBTI = (_whole(aux['residual_LBTD']) for aux in (student, teacher))

  def one(i):
    w_DI = sharding.constrain(w_LDI[i], *sharding.param_names('feature_DI', stored=False))
    x_BTD, y_BTI = student_LBTD[i], teacher_LBTI[layers[i]]
    x_BTI = jnp.einsum('BTD,DI->BTI', x_BTD, w_DI.astype(x_BTD.dtype),
                       out_sharding=sharding.out('batch', None, None))
    x_BTI, y_BTI = x_BTI.astype(jnp.float32), y_BTI.astype(jnp.float32)
    dot_BT = jnp.sum(x_BTI * y_BTI, axis=-1)
    norms_BT = jnp.sum(x_BTI**2, axis=-1) * jnp.sum(y_BTI**2, axis=-1)
    return jnp.sum((1 - dot_BT * jax.lax.rsqrt(norms_BT + 1e-12)) * mask_BT)

  parts = [one(i) for i in range(len(layers))]
  return sum(parts[1:], parts[0]) / len(layers)


def attention(
  params: PyTree, student: Mapping, teacher: Mapping, layers: Sequence[int], mask_BT: jax.Array
) -> jax.Array:
  """½ ‖Q_S/‖Q_S‖ - Q_T/‖Q_T‖‖ of each row's attention maps, Q = Σ_heads A² (arXiv:1612.03928).

  Mean over layers; summed over rows, each as often as it has places. Holds maps [B, N, T, T].
  """
  del params

  def q(aux, i):
    q_BTS = jnp.sum(jnp.square(_whole(aux['attention_LBNTS'])[i]), axis=1) * mask_BT[:, :, None]
    return q_BTS * jax.lax.rsqrt(jnp.sum(q_BTS**2, axis=(1, 2), keepdims=True) + 1e-12)

  def one(i):
    square_B = jnp.sum(jnp.square(q(student, i) - q(teacher, layers[i])), axis=(1, 2))
    return jnp.sum(0.5 * jnp.sqrt(square_B + 1e-12) * jnp.sum(mask_BT, axis=1))

  parts = [one(i) for i in range(len(layers))]
  return sum(parts[1:], parts[0]) / len(layers)


def relations(
  student: Mapping, teacher: Mapping, seen_BTS: jax.Array, mask_BT: jax.Array, heads: int
) -> jax.Array:
  """KL of the last layers' self-relations, mean over queries, keys and values, summed over places.

  MiniLMv2 (arXiv:2012.15828), causal: the heads of queries (or keys, or values) are laid side by
  side and cut into `heads` relation heads of d_r dims; R = softmax(X Xᵀ / √d_r) over the places
  that each place sees; KL(R_T ‖ R_S), mean over relation heads. Holds [B, heads, T, T].
  """
  def log_relation(x_LBTNH):
    x_BTX = x_LBTNH[-1].reshape(*x_LBTNH.shape[1:3], -1)
    x_BTAR = x_BTX.reshape(*x_BTX.shape[:2], heads, -1)
    scores_BATS = jnp.einsum(
      'BTAR,BSAR->BATS', x_BTAR, x_BTAR, preferred_element_type=jnp.float32)
    scores_BATS *= x_BTAR.shape[-1] ** -0.5
    return jax.nn.log_softmax(jnp.where(seen_BTS[:, None], scores_BATS, -1e30))

  total: Any = 0.0
  for name in ('q_LBTNH', 'k_LBTKH', 'v_LBTKH'):
    log_s, log_t = (log_relation(_whole(aux[name])) for aux in (student, teacher))
    kl_BAT = jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=-1)
    total += jnp.sum(jnp.mean(kl_BAT, axis=1) * mask_BT)
  return total / 3


def _whole(x_LB: jax.Array) -> jax.Array:
  """Captures are of whole rows, on a mesh that does not split them; heads are compared as one."""
  return sharding.constrain(x_LB, None, 'batch', *(None,) * (x_LB.ndim - 2))


TRANSFERS = {'features': 'residual', 'attention': 'attention', 'relations': 'qkv'}  # and captures


# --- The teacher ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Teacher:
  """What is learned from a teacher, and how; its parameters are kept apart.

  Raises ValueError, naming the config's field, for what does not fit.
  """

  config: Any  # ModelConfig of the teacher; None: only its samples are known
  student: model.ModelConfig
  cache: str = 'none'  # none: it runs beside the student; or the kind of cache
  weight: float = 0.5  # α of the distance of distributions; the cross entropy gets 1 - α
  distance: str = 'forward_kl'
  temperature: float = 1.0
  beta: float = 0.5  # of jsd
  features: float = 0.0  # weights of the transfers
  attention: float = 0.0
  relations: float = 0.0
  relation_heads: int = 0  # 0: the student's number of kv heads

  def __post_init__(self):
    one_of('distill.distance', self.distance, DISTANCES)
    one_of('distill.cache', self.cache, ('none', *CACHES))
    if not 0 <= self.weight <= 1:
      raise ValueError(f'distill.weight={self.weight}: a share of the loss, from 0 to 1')
    if not self.temperature > 0:
      raise ValueError(f'distill.temperature={self.temperature}: give a positive number')
    if not 0 < self.beta < 1:
      raise ValueError(f'distill.beta={self.beta}: give a number between 0 and 1')
    if self.cache in ('sampled', 'topk') and self.distance != 'forward_kl':
      raise ValueError(f'distill.cache={self.cache} holds too little of the teacher for '
                       f'distill.distance={self.distance}: use forward_kl, or cache=hidden or none')
    wanted = [name for name in TRANSFERS if getattr(self, name)]
    if wanted and self.cache != 'none':
      raise ValueError(f'distill.{wanted[0]} needs the teacher beside the student: set '
                       'distill.cache=none')
    if self.config and abs(self.config.vocab_size - self.student.vocab_size) > MAX_PADDING:
      raise ValueError(
        f'the teacher knows {self.config.vocab_size} tokens, the student '
        f'{self.student.vocab_size}, which is more than padding: distributions can be compared '
        'only over the same tokenizer')
    if self.relations:
      for config in (self.config, self.student):
        for name in ('num_heads', 'num_kv_heads'):
          if getattr(config, name) * config.head_dim % self._relation_heads:
            raise ValueError(f'distill.relation_heads={self._relation_heads} does not divide '
                             f'{name} x head_dim = {getattr(config, name)} x {config.head_dim}')

  @property
  def _relation_heads(self) -> int:
    return self.relation_heads or self.student.num_kv_heads

  @property
  def capture(self) -> tuple[str, ...]:
    """What is needed of both models' activations; see `model.apply`."""
    return tuple(what for name, what in TRANSFERS.items() if getattr(self, name))

  def init(self, key: jax.Array) -> dict:
    """Parameters that are learned beside the student's and dropped after: {'distill': …} or {}."""
    if not self.features:
      return {}
    shape = (self.student.num_layers, self.student.embed_dim, self.config.embed_dim)
    w_LDI = jax.random.normal(key, shape, jnp.float32) * self.student.embed_dim**-0.5
    return {'distill': {'feature_DI': w_LDI}}

  def forward(
    self, params: PyTree, batch: Mapping[str, jax.Array], documents: Mapping[str, jax.Array]
  ) -> tuple[dict, PyTree, dict]:
    """What the teacher has to say of a batch, without gradient.

    Returns arrays [B, T, …] of places and arrays for all of them, both for `distance_of`, and what
    was captured, for `transfers`.
    """
    if self.cache in ('sampled', 'topk'):
      return {k: batch[k] for k in ('teacher_ids', 'teacher_shares')}, None, {}
    params = jax.lax.stop_gradient(params)
    if self.cache == 'hidden':
      return {'teacher_hidden': batch['teacher_hidden']}, params['unembed_DV'], {}
    hidden_BTD, aux = model.hidden(
      self.config, params, batch['inputs'], capture=self.capture, **documents)
    unembed_DV = model.unembedding(self.config, params)
    return jax.lax.stop_gradient(({'teacher_hidden': hidden_BTD}, unembed_DV, aux))

  def distance_of(
    self, logits_BCV: jax.Array, given: Mapping[str, jax.Array], fixed: PyTree
  ) -> jax.Array:
    """The distance of distributions at each place, τ² included, float32 [B, C]."""
    tau = self.temperature
    q_BCV = logits_BCV / tau
    if self.cache in ('sampled', 'topk'):
      f = sampled if self.cache == 'sampled' else topk
      return tau**2 * f(q_BCV, given['teacher_ids'], given['teacher_shares'])
    p_BCV = model.project(self.config, given['teacher_hidden'], fixed) / tau
    return tau**2 * DISTANCES[self.distance](self._common(p_BCV), self._common(q_BCV), self.beta)

  def _common(self, logits_BCV):
    """Those of the ids that both have: rows that pad a vocabulary stand for nothing."""
    sizes = self.config.vocab_size, self.student.vocab_size
    if sizes[0] == sizes[1]:
      return logits_BCV
    return sharding.constrain(logits_BCV, 'batch', 'length', None)[..., :min(sizes)]

  def transfers(
    self, params: PyTree, student: Mapping, teacher: Mapping, batch: Mapping[str, jax.Array]
  ) -> dict[str, tuple[float, jax.Array]]:
    """Name → (weight, loss summed over the batch's places) of each transfer that is on.

    Args:
      student, teacher: what was captured of them.
    """
    if not self.capture:
      return {}
    found = {}
    positions_BT, segments_BT = (
      sharding.constrain(jnp.asarray(batch[k]), 'batch', None)
      for k in ('positions', 'segment_ids'))
    mask_BT = sharding.constrain(learned(batch), 'batch', None).astype(jnp.float32)
    layers = layer_map(self.student.num_layers, self.config.num_layers)
    for name, f in (('features', features), ('attention', attention)):
      if weight := getattr(self, name):
        found[name] = weight, f(params, student, teacher, layers, mask_BT)
    if self.relations:
      seen_BTS = visible(Places(positions_BT, positions_BT, segments_BT, segments_BT))
      found['relations'] = self.relations, relations(
        student, teacher, seen_BTS, mask_BT, self._relation_heads)
    return found


def draw(
  key: jax.Array, logits_XV: jax.Array, draws: int, temperature: float
) -> jax.Array:
  """`draws` ids with replacement from the softmax of each row, sorted, int32 [X, N].

  By inverting the cumulated distribution: one sum over the vocabulary for all draws.
  """
  p_XV = jax.nn.softmax(logits_XV / temperature)
  sums_XV = jnp.cumsum(p_XV, axis=-1)
  u_XN = jax.random.uniform(key, (len(logits_XV), draws)) * sums_XV[:, -1:]
  ids_XN = jax.vmap(lambda sums, u: jnp.searchsorted(sums, u, side='right'))(sums_XV, u_XN)
  return jnp.sort(jnp.minimum(ids_XN, logits_XV.shape[-1] - 1), axis=-1).astype(jnp.int32)

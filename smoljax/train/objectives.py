"""What a step minimises. An objective turns `(config, params, batch)` into a `Loss`.

The sum that training differentiates is

  next token  (1 - α) · cross entropy of the main head + z_loss · log²Z
  spread      cos_reg · mean cosine of two tokens' final hidden states, squared
  + teacher   α · distance from a teacher's distribution, + weights · transfers (distill.py)
  + future    λ / D · Σ_k cross entropy of the k-th module of multi-token prediction

each term a mean over the global batch's places with a target that is learned (batches.learned):
padding is not predicted, nor is what others say in a conversation; document starts are no targets
by construction (smoljax/data/packing.py).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from smoljax import model, sharding
from smoljax.data import chat
from smoljax.data.batches import learned
from smoljax.train import cross_entropy, diagnostics, distill

PyTree = Any


class Loss(NamedTuple):
  """`total` is what is differentiated; `metrics` holds sums over this batch for the log."""

  total: jax.Array  # float32 scalar
  metrics: dict[str, jax.Array]


def summed(
  f: Callable[..., tuple[jax.Array, PyTree]], shared: PyTree, parts: PyTree, given: PyTree,
  fixed: PyTree = None, *, places: bool = False,
) -> tuple[jax.Array, PyTree]:
  """Σ_j sum(f(shared, parts[j], given[j], fixed)[0]), part after part, and the other results.

  The gradients of a part are computed right after its value, while what they need is at hand, and
  only they are kept: memory does not grow with the number of parts, and nothing is computed twice
  (the head and loss of Liger, arXiv:2410.10989; the heads of Gloeckle et al., arXiv:2404.19737).
  Gradients flow into `shared`, summed in float32, and `parts`; not into `given` and `fixed`. The
  result must enter what is differentiated with one factor, the same for all parts.

  Args:
    f: returns (array of losses, any tree). Must not close over traced arrays: they belong into the
      arguments.
    parts, given: trees of arrays with the parts on axis 0.
    places: the parts are of the places of a batch, and `shared` whole but for `tensor`. Then its
      gradient stays the sum of each device's places until the end: one collective, not one a part.
  Returns:
    The sum, float32, and the trees stacked on axis 0.
  """

  @jax.custom_vjp
  def run(shared, parts, given, fixed):
    def one(_, part):
      losses, aux = f(shared, *part, fixed)
      return None, (losses, aux)

    _, (losses, aux) = jax.lax.scan(one, None, (parts, given))
    return jnp.sum(losses), aux

  def forward(shared, parts, given, fixed):
    reduced = jax.tree.map(sharding.reduced, shared) if places else shared

    def one(grads, part):
      part, known = part
      losses, pull_back, aux = jax.vjp(
        lambda shared, part: f(shared, part, known, fixed), reduced, part, has_aux=True)
      of_shared, of_part = pull_back(jnp.ones_like(losses))
      grads = jax.tree.map(lambda a, b: a + b.astype(jnp.float32), grads, of_shared)
      return grads, (losses, aux, of_part)

    zeros = jax.tree.map(sharding.zero_gradient, reduced)
    grads, (losses, aux, of_parts) = jax.lax.scan(one, zeros, (parts, given))
    grads = jax.tree.map(lambda g, x: sharding.like(g, x).astype(x.dtype), grads, shared)
    return (jnp.sum(losses), aux), (grads, of_parts)

  def backward(grads, cotangents):
    factor = cotangents[0]
    return *jax.tree.map(lambda g: (g * factor).astype(g.dtype), grads), None, None

  run.defvjp(forward, backward)
  return run(shared, parts, given, fixed)


def over_places(
  config: model.ModelConfig,
  place_losses: Callable[[jax.Array, dict, PyTree], tuple[jax.Array, dict]],
  hidden_BTD: jax.Array,
  unembed_DV: jax.Array,
  given: Mapping[str, jax.Array],
  fixed: PyTree = None,
  *,
  chunk: int,
  rounded: bool = True,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The sum of a loss of logits over all places, without ever holding `[B, T, V]`.

  Logits exist for `chunk` places at a time (all rows together, and as many of each part of a split
  sequence), so the peak is a few `[B, chunk, V]` in float32 on each device.

  Args:
    place_losses: (logits_BCV, slices of `given`, `fixed`) → (losses_BC, {name: [B, C]}).
    hidden_BTD: final hidden states, compute dtype.
    unembed_DV: output matrix (`model.unembedding`), compute dtype.
    given: arrays [B, T, …] that take no gradient.
    chunk: places per slice and device; the largest divisor up to it is used.
    rounded: logits are written in the compute dtype, see `model.project`.
  Returns:
    The sum, float32, and what else `place_losses` gave, [B, T].
  """

  def f(unembed_DV, hidden_BCD, given, fixed):
    logits_BCV = model.project(config, hidden_BCD, unembed_DV, rounded=rounded)
    return place_losses(logits_BCV, given, fixed)

  given = {name: sharding.slices(x, chunk) for name, x in given.items()}
  total, aux = summed(f, unembed_DV, sharding.slices(hidden_BTD, chunk), given, fixed,
                      places=True)
  return total, {name: sharding.unsliced(x) for name, x in aux.items()}


def over_sets(
  config: model.ModelConfig,
  place_losses: Callable[[jax.Array, dict, PyTree], tuple[jax.Array, dict]],
  sets: Sequence[tuple[jax.Array, Mapping[str, jax.Array]]],
  unembed_DV: jax.Array,
  fixed: PyTree = None,
  *,
  chunk: int,
) -> tuple[jax.Array, list[dict[str, jax.Array]]]:
  """`over_places` of several (hidden_BTD, given) in one pass of the head.

  Its gradient is begun, summed and brought home once. As many logits exist at once as for one set.

  Returns:
    The sum over all sets, and what else `place_losses` gave of each.
  """
  n = len(sets)

  def joined(xs):  # the rows of all sets one after another: none leaves its device
    B, T, *rest = xs[0].shape
    names = ('length', *(None for _ in rest))
    x = jnp.stack([sharding.constrain(x, 'batch', *names) for x in xs], axis=1)
    return jnp.reshape(x, (B * n, T, *rest), out_sharding=sharding.out('batch', *names))

  def apart(x_BT):
    x_BNT = jnp.reshape(x_BT, (len(x_BT) // n, n, -1),
                        out_sharding=sharding.out('batch', None, 'length'))
    return [x_BNT[:, i] for i in range(n)]

  hidden, given = sets[0] if n == 1 else (
    joined([h_BTD for h_BTD, _ in sets]),
    {name: joined([of[name] for _, of in sets]) for name in sets[0][1]})
  total, places = over_places(
    config, place_losses, hidden, unembed_DV, given, fixed, chunk=max(1, chunk // n))
  if n == 1:
    return total, [places]
  parts = {name: apart(x_BT) for name, x_BT in places.items()}
  return total, [{name: x[i] for name, x in parts.items()} for i in range(n)]


def head_loss(
  config: model.ModelConfig,
  hidden_BTD: jax.Array,
  unembed_DV: jax.Array,
  targets_BT: jax.Array,
  weight_BT: jax.Array,
  *,
  chunk: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """`over_places` of weight · cross entropy: the sum, and {'nll', 'log_z'} of each place."""
  given = {'targets': targets_BT, 'weight': weight_BT}
  return over_places(config, _place_losses(config), hidden_BTD, unembed_DV, given, chunk=chunk)


def _place_losses(
  config: model.ModelConfig, z_loss: float = 0.0, teacher: distill.Teacher | None = None,
  hits: bool = False,
):
  plain = not (hits or config.logit_softcap or (teacher and teacher.weight))

  def losses(logits_BCV, given, fixed):
    if plain and cross_entropy.fits(config.dtype):
      # They were rounded to that dtype, so that this takes nothing from them.
      loss_BC, nll_BC, log_z_BC = cross_entropy.weighted(
        logits_BCV.astype(config.dtype), given['targets'], given['weight'], z_loss)
      return loss_BC, {'nll': nll_BC, 'log_z': log_z_BC}
    nll_BC, log_z_BC = cross_entropy.cross_entropy(logits_BCV, given['targets'])
    loss_BC, places = nll_BC, {'nll': nll_BC, 'log_z': log_z_BC}
    if hits:
      places['hit'] = log_z_BC - nll_BC >= jnp.max(logits_BCV, axis=-1)
    if teacher and teacher.weight:
      places['teacher'] = teacher.distance_of(logits_BCV, given, fixed)
      loss_BC = (1 - teacher.weight) * nll_BC + teacher.weight * places['teacher']
    if z_loss:
      loss_BC += z_loss * jnp.square(log_z_BC)
    return loss_BC * given['weight'], places

  return losses


def next_token(
  config: model.ModelConfig,
  params: PyTree,
  batch: Mapping[str, jax.Array],
  *,
  total_tokens: jax.Array,
  num_sources: int,
  chunk: int = 512,
  z_loss: float = 0.0,
  cos_reg: float = 0.0,
  max_logits: str | float | None = None,
  mtp_weight: jax.Array | float = 0.0,
  teacher: distill.Teacher | None = None,
  teacher_params: PyTree = None,
) -> Loss:
  """Everything that a step of pretraining minimises; the sum in this file's docstring.

  Sums are divided by `total_tokens`, the count over the *global* batch, so micro-batches and
  devices add up to the exact mean (a mean of means is not one when rows differ).

  Args:
    batch: of `batches.Batches`, with what the teacher's cache holds if there is one.
    cos_reg: weight of the squared mean cosine of two tokens, which is near 1 where features have
      collapsed to one direction. Gao et al., arXiv 1907.12009, take the mean cosine of two word
      embeddings; of hidden states it sees the layers too, and squared it asks for 0, not less.
    mtp_weight: λ of a model with modules of multi-token prediction (config.mtp).
    teacher: what is learned from another model, and how; see `distill.Teacher`.
    teacher_params: of that model, without gradient: all of them if it runs beside the student, its
      output matrix alone if its hidden states were stored.

  Metrics, sums over places: `loss_sum_S` and `tokens_S` per source `[S]`, of the main head's cross
  entropy alone; `log_z_sum`; of conversations `places`, those with a target, learned or not, and
  `chat_sum/…` of what is learned; `max_logits_LN` if `max_logits` (see model.apply) asks for it;
  `mtp_sum_M` and `mtp_tokens_M` per module; `teacher_sum/…` of each term of it.
  """
  capture = ('trunk',) if config.mtp != 'none' else ()
  if teacher:
    capture += teacher.capture
  documents = _documents(batch)
  hidden_BTD, aux = model.hidden(
    config, params, batch['inputs'], max_logits=max_logits, capture=capture, **documents)
  unembed_DV = model.unembedding(config, params)
  mask_BT = sharding.constrain(learned(batch).astype(jnp.float32), 'batch', 'length')
  given = {'targets': batch['targets'], 'weight': mask_BT / total_tokens}
  fixed, captured = None, {}
  if teacher:
    values, fixed, captured = teacher.forward(teacher_params, batch, documents)
    given |= values
  chats, modules = 'ends' in batch, []
  if config.mtp == 'sequential':
    modules = _sequential(config, params, aux['trunk_BTD'], batch, total_tokens)
  sets = [(hidden_BTD, given)]
  together = not (teacher or z_loss or chats)  # what is asked of the main head is all of it
  if together:
    sets += [(h_BTD, of | {'weight': mtp_weight * of['weight']}) for h_BTD, of in modules]
  total, (places, *later) = over_sets(
    config, _place_losses(config, z_loss, teacher, hits=chats), sets, unembed_DV, fixed,
    chunk=chunk)
  of_row_BS = jax.nn.one_hot(batch['source'], num_sources, dtype=jnp.float32)
  by_source = lambda x_BT: jnp.sum(jnp.sum(x_BT, axis=1)[:, None] * of_row_BS, axis=0)
  metrics = {
    'loss_sum_S': by_source(places['nll'] * mask_BT),
    'tokens_S': by_source(mask_BT),
    'log_z_sum': jnp.sum(places['log_z'] * mask_BT),
    **({'max_logits_LN': aux['max_logits_LN']} if max_logits else {}),
    **({'places': jnp.sum(batch['segment_ids'] > 0)} if 'loss_mask' in batch else {}),
    **(_of_chats(batch, places, mask_BT) if chats else {}),
  }
  if cos_reg:
    cosine = diagnostics.token_cosine(hidden_BTD, mask_BT)
    total += cos_reg * jnp.square(cosine) * jnp.sum(mask_BT) / total_tokens
  if teacher:
    if 'teacher' in places:
      metrics['teacher_sum/logits'] = jnp.sum(places['teacher'] * mask_BT)
    for name, (weight, sum_) in teacher.transfers(params, aux, captured, batch).items():
      total += weight * sum_ / total_tokens
      metrics[f'teacher_sum/{name}'] = sum_
  if modules and not together:
    future, later = over_sets(config, _place_losses(config), modules, unembed_DV, chunk=chunk)
    total += mtp_weight * future
  if modules:
    masks = [given['mask'] for _, given in modules]
    metrics['mtp_sum_M'] = jnp.stack(
      [jnp.sum(of['nll'] * mask_BT) for of, mask_BT in zip(later, masks, strict=True)])
    metrics['mtp_tokens_M'] = jnp.stack([jnp.sum(mask_BT) for mask_BT in masks])
  elif config.mtp == 'parallel':
    future, more = _parallel(config, params, aux['trunk_BTD'], batch, total_tokens, chunk)
    total += mtp_weight * future
    metrics |= more
  return Loss(total, metrics)


def _of_chats(batch, places, mask_BT):
  """Sums over what is learned of conversations: losses by mode, first guesses, ends of turns."""
  spread = lambda x: sharding.constrain(jnp.asarray(x, jnp.float32), 'batch', 'length')
  ends_BT, hit_BT = spread(batch['ends']), spread(places['hit'])
  of_mode = {name: spread(batch['mode'] == i) for i, name in enumerate(chat.MODES, 1)}
  sums = {'hits': hit_BT * spread(batch['mode'] > 0), 'ends': ends_BT, 'end_hits': ends_BT * hit_BT}
  for name, in_BT in of_mode.items():
    sums |= {f'{name}_tokens': in_BT, f'{name}_loss': in_BT * places['nll']}
  return {f'chat_sum/{name}': jnp.sum(x_BT * mask_BT) for name, x_BT in sums.items()}


# --- Multi-token prediction ----------------------------------------------------------------------


def ahead(batch: Mapping[str, jax.Array], k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """What the k-th module reads and predicts at each place, and where it does: [B, T] each.

  The main head's input at place i is t[i] and its target t[i+1]; module k reads t[i+k] and
  predicts t[i+k+1]. Both are 0 where place i + k belongs to another document, or to none: there the
  mask is False, and it is so for the rest of the document, so no place with a target sees them.
  It is False too where t[i+k+1] is not learned.
  """
  def shifted(x_BT, by):
    x_BT = sharding.constrain(jnp.asarray(x_BT), 'batch', None)
    return jnp.pad(x_BT[:, by:], ((0, 0), (0, by)))

  segments_BT = sharding.constrain(jnp.asarray(batch['segment_ids']), 'batch', None)
  inside_BT = (segments_BT > 0) & (shifted(segments_BT, k) == segments_BT)
  read_BT, targets_BT = (shifted(batch['targets'], by) for by in (k - 1, k))
  spread = lambda x_BT: sharding.constrain(x_BT, 'batch', 'length')
  return (spread(jnp.where(inside_BT, read_BT, 0)), spread(jnp.where(inside_BT, targets_BT, 0)),
          spread(inside_BT & shifted(learned(batch), k)))


def _known(config, batch, total_tokens):
  """Of each module: what it reads, its targets, where it has them (mask), their weight in
  1/D Σ_k of the mean cross entropies (DeepSeek-V3, eq. 25, without λ)."""
  known = []
  for k in range(config.mtp_depth):
    read_BT, targets_BT, mask_BT = ahead(batch, k + 1)
    mask_BT = mask_BT.astype(jnp.float32)
    known.append({'read': read_BT, 'targets': targets_BT, 'mask': mask_BT,
                  'weight': mask_BT / (config.mtp_depth * total_tokens)})
  return known


def _documents(batch):
  return {'positions_BT': batch['positions'], 'segment_ids_BT': batch['segment_ids']}


def _sequential(config, params, x_BTD, batch, total_tokens):
  """Of each module its hidden states and what is known of it; each builds on the one before.

  Conventions are those of `layers.MTPModule`; x_BTD is aux['trunk_BTD'] of `model.hidden`.
  """
  sets = []
  for k, of in enumerate(_known(config, batch, total_tokens)):
    module = jax.tree.map(lambda x, k=k: x[k], params['mtp'])
    x_BTD, hidden_BTD = model.mtp_hidden(
      config, params, module, x_BTD, of.pop('read'), **_documents(batch))
    sets.append((hidden_BTD, of))
  return sets


def _parallel(config, params, trunk_BTD, batch, total_tokens, chunk):
  """The weighted sum of the modules' cross entropies, and `mtp_sum_M` and `mtp_tokens_M`.

  The modules are computed and differentiated one after another, each with its head: memory does
  not grow with their number.
  """
  known = jax.tree.map(lambda *xs: jnp.stack(xs), *_known(config, batch, total_tokens))
  outer = {k: x for k, x in params.items() if k not in ('mtp', 'blocks')}

  def part(shared, module, of, documents):
    outer, trunk_BTD = shared
    _, hidden_BTD = model.mtp_hidden(config, outer, module, trunk_BTD, of['read'], **documents)
    loss, places = head_loss(
      config, hidden_BTD, model.unembedding(config, outer), of['targets'], of['weight'],
      chunk=chunk)
    return loss, jnp.sum(places['nll'] * of['mask'])

  loss, sums_M = summed(part, (outer, trunk_BTD), params['mtp'], known, _documents(batch))
  return loss, {'mtp_sum_M': sums_M, 'mtp_tokens_M': jnp.sum(known['mask'], axis=(1, 2))}

"""Preferences: losses against float64 torch, packed pairs against pairs alone, meshes, caches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import conversations
from helpers.training import fit, leaves, tiny

from smoljax import metrics, model, sharding
from smoljax.train import preferences
from smoljax.train.preferences import LOSSES, Pairs, Preference

CONFIG = model.ModelConfig(
  vocab_size=64, num_layers=2, nope_interval=2, embed_dim=32, num_heads=4, num_kv_heads=2,
  head_dim=8, mlp_dim=48, max_seq_len=64, dtype='float32', init_std=0.1, max_segments=6,
)  # fmt: skip
RNG = np.random.default_rng(0)
# Of each loss, the fields that change it.
FIELDS = {
  'dpo': dict(label_smoothing=0.2), 'robust': dict(label_smoothing=0.3), 'ipo': dict(average=False),
  'simpo': dict(gamma=0.4, beta=2.0),
}


# --- Losses: torch in float64 differentiates the plain definition ---------------------------------


def definition(torch, name, c, won, lost, ref_won, ref_lost, n_won, n_lost):
  """A pair's loss, as the papers write it."""
  log_sigmoid, sigmoid = torch.nn.functional.logsigmoid, torch.sigmoid
  r, s, b, e = won - ref_won, lost - ref_lost, c.scale, c.label_smoothing
  odds = lambda logp: torch.exp(logp) / (1 - torch.exp(logp))
  return {
    'dpo': lambda: -(1 - e) * log_sigmoid(b * (r - s)) - e * log_sigmoid(-b * (r - s)),
    'robust': lambda: (-(1 - e) * log_sigmoid(b * (r - s)) + e * log_sigmoid(-b * (r - s)))
    / (1 - 2 * e),
    'hinge': lambda: torch.clamp(1 - b * (r - s), min=0),
    'ipo': lambda: ((r / n_won - s / n_lost if c.average else r - s) - 1 / (2 * b)) ** 2,
    'apo_zero': lambda: 1 - sigmoid(b * r) + sigmoid(b * s),
    'apo_down': lambda: sigmoid(b * r) + 1 - sigmoid(b * (r - s)),
    'dpo_norm': lambda: -log_sigmoid(b * (r / n_won - s / n_lost)),
    'simpo': lambda: -log_sigmoid(b * (won / n_won - lost / n_lost) - c.gamma),
    'orpo': lambda: -won / n_won - b * log_sigmoid(
      torch.log(odds(won / n_won)) - torch.log(odds(lost / n_lost))),
  }[name]()


def draw(rng, like_reference=False):
  """24 batches of 8 pairs: answers of 1 to 60 tokens, sums that float32 holds exactly."""
  tokens = rng.integers(1, 60, (2, 24, 8)).astype(np.float32)
  ref = np.float32(-tokens * rng.uniform(0.02, 2, tokens.shape))
  drift = np.zeros_like(ref) if like_reference else rng.normal(0, 3, ref.shape)
  return Pairs(*np.minimum(np.float32(ref + drift), np.float32(-0.01 * tokens)), *ref, *tokens)


@pytest.mark.parametrize('fields', ['usual', 'other'])
@pytest.mark.parametrize('name', LOSSES)
def test_losses_and_gradients_equal_torch_in_float64_on_24_batches(name, fields):
  torch = pytest.importorskip('torch')
  c = Preference(name, **(FIELDS.get(name, {'beta': 0.5}) if fields == 'other' else {}))
  pairs = draw(np.random.default_rng(len(name)))
  x = [torch.tensor(np.float64(v), requires_grad=True) for v in pairs]
  if not c.needs_reference:
    pairs = pairs._replace(ref_chosen=0 * pairs.chosen, ref_rejected=0 * pairs.chosen)
  loss = definition(torch, name, c, *x)
  loss.mean(dim=1).sum().backward()
  of_batch = lambda won, lost: LOSSES[name].of(
    pairs._replace(chosen=won, rejected=lost), c).mean(axis=1)
  (value, slopes) = of_batch(*pairs[:2]), jax.grad(
    lambda *v: of_batch(*v).sum(), argnums=(0, 1))(*pairs[:2])
  expected = loss.mean(dim=1).detach().numpy()
  np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
  for slope, v in zip(slopes, x, strict=False):
    np.testing.assert_allclose(slope, v.grad.numpy(), rtol=1e-5, atol=1e-5)


# (value, ∂/∂r⁺ in βs, ∂/∂r⁻ in βs) at π = π_ref; of averaged ones per averaged unit.
AT_REFERENCE = {
  'dpo': (np.log(2), -0.5, 0.5), 'robust': (np.log(2), -0.5, 0.5), 'hinge': (1, -1, 1),
  'ipo': (25, -1, 1), 'apo_zero': (1, -0.25, -0.25 * -1), 'apo_down': (1, 0, 0.25),
  'dpo_norm': (np.log(2), -0.5, 0.5),
}


@pytest.mark.parametrize('name', AT_REFERENCE)
def test_losses_begin_where_their_papers_say(name):
  c, pairs = Preference(name), draw(RNG, like_reference=True)
  pairs = pairs._replace(ref_chosen=pairs.chosen, ref_rejected=pairs.rejected)
  value, won, lost = AT_REFERENCE[name]
  np.testing.assert_allclose(LOSSES[name].of(pairs, c), value, rtol=1e-6)
  slopes = jax.grad(lambda w, l: LOSSES[name].of(
    pairs._replace(chosen=w, rejected=l), c).sum(), argnums=(0, 1))(*pairs[:2])
  averaged = name in ('ipo', 'dpo_norm')
  # ipo: -1/β per unit of its mean, which is no multiple of β.
  factor = 1 / c.scale if name == 'ipo' else c.scale
  for slope, expected, n in zip(slopes, (won, lost), pairs[4:], strict=True):
    np.testing.assert_allclose(slope * (n if averaged else 1), expected * factor, rtol=1e-5,
                               atol=1e-7)


def test_odds_keep_their_digits_near_certainty_and_far_from_it():
  logp = np.float32([-1e-7, -1e-4, -0.5, -0.7, -3, -80])
  x = logp.astype(np.float64)
  np.testing.assert_allclose(
    preferences._log_odds(logp), x - np.log(-np.expm1(x)), rtol=1e-5)
  assert np.isfinite(jax.grad(lambda v: preferences._log_odds(v).sum())(logp)).all()


@pytest.mark.parametrize('fields, said', [
  (dict(loss='dpoo'), 'one of dpo'), (dict(beta=-1.0), 'beta'),
  (dict(label_smoothing=0.5), 'below .5'), (dict(loss='hinge', label_smoothing=0.1), 'hinge'),
])  # fmt: skip
def test_bad_values_are_one_line(fields, said):
  with pytest.raises(ValueError, match=said) as e:
    Preference(**fields)
  assert '\n' not in str(e.value) and 'train.preference.' in str(e.value)


# --- In a batch -----------------------------------------------------------------------------------


def pack(pairs, rows, T=64):
  """Pairs of (prompt, chosen, rejected) tokens as segments 2k + 1 and 2k + 2 of rows, in turn."""
  names = ('inputs', 'targets', 'segment_ids', 'positions', 'loss_mask')
  batch = {k: np.zeros((rows, T), np.int32) for k in names}
  at, segment = [0] * rows, [0] * rows
  for i, (prompt, *answers) in enumerate(pairs):
    row = i % rows
    for answer in answers:
      tokens, n = np.array([*prompt, *answer]), len(prompt) + len(answer) - 1
      span = slice(at[row], at[row] + n)
      segment[row] += 1
      batch['inputs'][row, span], batch['targets'][row, span] = tokens[:-1], tokens[1:]
      batch['segment_ids'][row, span], batch['positions'][row, span] = segment[row], np.arange(n)
      batch['loss_mask'][row, span] = np.arange(n) >= len(prompt) - 1
      at[row] += n
  batch['source'] = np.arange(rows, dtype=np.int32) % 2
  return batch


PAIRS = [[RNG.integers(0, 64, n).tolist() for n in RNG.integers(2, 6, 3)] for _ in range(10)]
POLICY, REFERENCE = (model.init(CONFIG, jax.random.key(i)) for i in (0, 1))


@functools.partial(jax.jit, static_argnums=0)
def step(preference, params, batch, reference=REFERENCE):
  def f(params):
    return preferences.objective(
      CONFIG, params, batch, preference, total_pairs=preferences.num_pairs(batch), num_sources=2,
      chunk=8, reference_params=reference)
  return jax.value_and_grad(f, has_aux=True)(params)


@jax.jit
def alone(params, tokens_T, scored_T):
  """The summed log-probability of an answer by itself, every logit at once."""
  logp_TV = jax.nn.log_softmax(model.apply(CONFIG, params, tokens_T[None]).logits[0])
  picked_T = jnp.take_along_axis(logp_TV[:-1], tokens_T[1:, None], axis=1)[:, 0]
  return jnp.sum(picked_T * scored_T[1:])


def plain(preference, params):
  total = 0.0
  for prompt, *answers in PAIRS:
    sums, tokens = {}, []
    for answer in answers:
      # Padded behind, so that one program serves all; what is causal does not see it.
      ids, scored = np.zeros(16, np.int32), np.zeros(16, np.float32)
      ids[:len(prompt) + len(answer)] = [*prompt, *answer]
      scored[len(prompt):len(prompt) + len(answer)] = 1
      tokens.append(float(len(answer)))
      for who, p in (('policy', params), ('reference', REFERENCE)):
        sums.setdefault(who, []).append(alone(p, ids, scored))
    reference = sums['reference'] if preference.needs_reference else (0.0, 0.0)
    total += LOSSES[preference.loss].of(
      Pairs(*sums['policy'], *reference, *map(jnp.float32, tokens)), preference)
  return total / len(PAIRS)


@pytest.mark.parametrize('name', ['apo_zero', pytest.param('simpo', marks=pytest.mark.slow)])
def test_packed_equals_separate_with_gradients(name):
  c, batch = Preference(name), pack(PAIRS, rows=4)
  (value, metrics), grads = step(c, POLICY, batch)
  expected, plain_grads = jax.value_and_grad(functools.partial(plain, c))(POLICY)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-4),
               grads, plain_grads)
  assert metrics['pairs_S'].sum() == len(PAIRS)
  assert metrics['tokens_S'].sum() == batch['loss_mask'].sum()
  np.testing.assert_allclose(metrics['loss_sum_S'].sum() / len(PAIRS), value, rtol=1e-6)


def test_the_frozen_model_starts_even_and_may_come_from_a_cache():
  batch, c = pack(PAIRS, rows=4), Preference('dpo')
  (value, metrics), _ = step(c, REFERENCE, batch)
  assert value == pytest.approx(np.log(2), abs=1e-6)
  assert abs(metrics['pair_sum/margin']) < 1e-4
  sums_BS = np.asarray(
    jax.jit(functools.partial(preferences.reference_sums, CONFIG, chunk=8))(REFERENCE, batch))
  cached = batch | {'reference': np.zeros(batch['inputs'].shape, np.float32)}
  for row, place in np.argwhere((batch['segment_ids'] > 0) & (batch['positions'] == 0)):
    cached['reference'][row, place] = sums_BS[row, batch['segment_ids'][row, place] - 1]
  jax.tree.map(np.testing.assert_array_equal, step(c, POLICY, cached), step(c, POLICY, batch))


@pytest.mark.slow
@pytest.mark.parametrize('mesh', [dict(data=2, context=2), dict(fsdp=2, tensor=2)])
def test_meshes_give_what_one_device_gives(mesh):
  batch, c = pack(PAIRS, rows=4), Preference('dpo')
  expected = step(c, POLICY, batch)
  mesh = sharding.make_mesh(**mesh, devices=jax.devices()[:4])
  with jax.set_mesh(mesh):
    params, reference = (jax.device_put(p, sharding.shardings(p, mesh))
                         for p in (POLICY, REFERENCE))
    got = step(c, params, sharding.shard_batch(batch, mesh), reference)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-4), got, expected)


# --- Runs -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_learns_which_of_two_is_better_with_its_reference_beside_or_read_before(tmp_path):
  rng = np.random.default_rng(0)
  draw = lambda low, high: rng.integers(low, high, rng.integers(3, 7)).tolist()
  pairs = [(draw(4, 64), [*draw(4, 30), 2], [*draw(30, 60), 2]) for _ in range(40)]
  path = conversations.write(tmp_path, 'pairs', {'train': pairs, 'validation': pairs[:8]}, 64)
  fields = {'train.stages': (dict(name='apo', fraction=1.0, mixture={'pairs': 1.0}),),
            'train.tokens': 6 * 8 * 64, 'train.eval_every': 6, 'optimizer.learning_rate': 1e-2}
  fit(tiny(**{**fields, 'train.tokens': 8 * 64}), {'pairs': path}, tmp_path / 'base')
  fields |= {'train.init_from': str(tmp_path / 'base'), 'train.preference.loss': 'apo_zero',
             'tokenizer.path': str(tmp_path / 'text')}
  found = {}
  for cached in (False, True):
    c = tiny(**fields, **{'train.preference.cached': cached})
    fit(c, {'pairs': path}, tmp_path / str(cached))
    rows = metrics.read_rows(str(tmp_path / str(cached) / 'metrics.jsonl'))
    found[cached] = [row for row in rows if 'preference/margin' in row]
  first, last = found[False][0], found[False][-1]
  assert first['train/loss'] == pytest.approx(1, abs=0.1) and last['train/loss'] < 0.9
  assert last['preference/accuracy'] > 0.9
  assert last['preference/margin'] > first['preference/margin']
  for a, b in zip(leaves(tmp_path / 'False' / 'checkpoints'),
                  leaves(tmp_path / 'True' / 'checkpoints'), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  with pytest.raises(ValueError, match=r'train\.reference'):
    fit(tiny(**{**fields, 'train.init_from': ''}), {'pairs': path}, tmp_path / 'none')

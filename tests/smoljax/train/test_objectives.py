"""Objectives: gradients against independent ones, targets that stay in their document, memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from smoljax import model, sharding
from smoljax.data.batches import learned
from smoljax.model.attention import attention
from smoljax.train import diagnostics, objectives, step

CONFIG = model.ModelConfig(
  vocab_size=64, num_layers=2, nope_interval=2, embed_dim=32, num_heads=4, num_kv_heads=2,
  head_dim=8, mlp_dim=48, max_seq_len=64, dtype='float32', init_std=0.1,
)  # fmt: skip
RNG = np.random.default_rng(0)
KINDS = ('parallel', 'sequential')


def with_mtp(kind, depth=2, **fields):
  return dataclasses.replace(CONFIG, mtp=kind, mtp_depth=depth, **fields)


def packed(lengths_by_row, T=24):
  """A batch whose rows hold documents of these many tokens, and padding."""
  batch = {k: np.zeros((len(lengths_by_row), T), np.int32)
           for k in ('inputs', 'targets', 'segment_ids', 'positions')}
  for row, lengths in enumerate(lengths_by_row):
    at = 0
    for segment, n in enumerate(lengths, start=1):
      tokens, span = RNG.integers(0, 64, n + 1), slice(at, at + n)
      batch['inputs'][row, span], batch['targets'][row, span] = tokens[:-1], tokens[1:]
      batch['segment_ids'][row, span], batch['positions'][row, span] = segment, np.arange(n)
      at += n
  batch['source'] = np.zeros(len(lengths_by_row), np.int32)
  return batch


BATCH = packed([[10, 7, 5], [24], [3, 2, 12], [1, 20], [24], [9, 9], [5, 5, 5, 5], [16]])


def with_mask(batch, share=0.6):
  """The batch as if of conversations: a share of the targets is learned."""
  mask = np.random.default_rng(1).random(batch['targets'].shape) < share
  return batch | {'loss_mask': mask & (batch['segment_ids'] > 0)}


@functools.partial(jax.jit, static_argnums=0, static_argnames=('chunk', 'weight'))
def loss(config, params, batch, *, chunk=8, weight=0.3):
  total = jnp.sum(learned(batch)).astype(jnp.float32)
  return objectives.next_token(
    config, params, batch, total_tokens=total, num_sources=1, chunk=chunk, mtp_weight=weight)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(config, params, batch):
  return jax.value_and_grad(lambda p: loss(config, p, batch).total)(params)


def plain(config, params, batch, weight=0.3):
  """The definition, document by document, every logit at once, with nothing of objectives.py."""
  total, count = 0.0, int(batch['loss_mask'].sum())
  log_softmax = lambda x: jax.nn.log_softmax(x, axis=-1)

  def norm(x, scale):
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + config.norm_eps) * scale

  for row in range(len(batch['inputs'])):
    for segment in range(1, batch['segment_ids'][row].max() + 1):
      inside = batch['segment_ids'][row] == segment
      tokens = np.append(batch['inputs'][row][inside], batch['targets'][row][inside][-1])
      n, mask = len(tokens) - 1, batch['loss_mask'][row][inside]
      out = model.apply(config, params, tokens[None, :-1], capture=('residual',))
      total -= jnp.sum(log_softmax(out.logits[0])[np.arange(n), tokens[1:]] * mask) / count
      # The trunk is what the last block takes, or what it gives.
      h = out.aux['residual_LBTD'][-2 if config.mtp == 'parallel' else -1][0]
      for k in range(1, config.mtp_depth + 1):
        if n - k < 1:
          continue
        module = jax.tree.map(lambda x, k=k: x[k - 1], params['mtp'])
        one = dataclasses.replace(
          config, num_layers=1, nope_interval=0, mtp='none', mtp_depth=1, norm_eps=config.norm_eps)
        if config.mtp == 'sequential':
          h = h[: n - k]
          e = params['embed_VD'][tokens[k:-1]]
          h = (norm(e, module['embed_norm']['scale_D']) @ module['from_embed_DE']
               + norm(h, module['hidden_norm']['scale_D']) @ module['from_hidden_DE'])
        places = jnp.arange(len(h))[None]
        attend = lambda q, k, v, layer, window, state, places=places: (
          attention(q, k, v, q_positions_BT=places, kv_positions_BS=places,
                          implementation='xla')[0], state, None)
        block = {'blocks': jax.tree.map(lambda x: x[None], module['block'])}
        x = model.run_blocks(one, block, h[None], places, attend)[0][0]
        own = module if config.mtp == 'sequential' else params
        logits = norm(x, own['final_norm']['scale_D'])[: n - k] @ params['embed_VD'].T
        picked = log_softmax(logits)[np.arange(n - k), tokens[k + 1 :]]
        total -= weight / config.mtp_depth * jnp.sum(picked * mask[k:]) / count
        if config.mtp == 'sequential':
          h = x
  return total


@pytest.mark.parametrize('kind', [pytest.param('parallel', marks=pytest.mark.slow), 'sequential'])
def test_packed_loss_and_gradient_are_those_of_the_definition_document_by_document(kind):
  config = with_mtp(kind)
  params = model.init(config, jax.random.key(0))
  few = with_mask({k: x[np.array([0, 3])] for k, x in BATCH.items()})
  define = jax.jit(jax.value_and_grad(lambda p: plain(config, p, few)))
  expected, expected_grads = define(params)
  found, found_grads = value_and_gradient(config, params, few)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  for (path, a), b in zip(
    jax.tree.leaves_with_path(found_grads), jax.tree.leaves(expected_grads), strict=True
  ):  # fmt: skip
    np.testing.assert_allclose(
      a, b, atol=2e-6 * max(1, float(jnp.abs(b).max())), err_msg=jax.tree_util.keystr(path))
    assert np.abs(b).max() > 0, path


def test_a_masked_loss_is_a_loop_over_spans_in_double_precision():
  """And a mask of all targets is, bit for bit, no mask."""
  params = model.init(CONFIG, jax.random.key(0))
  batch = with_mask(BATCH)
  batch['loss_mask'][1] = False  # a row that teaches nothing
  found, plain = loss(CONFIG, params, batch), loss(CONFIG, params, BATCH)
  documents = {'positions_BT': batch['positions'], 'segment_ids_BT': batch['segment_ids']}
  logits = np.float64(model.apply(CONFIG, params, batch['inputs'], **documents).logits)
  total = 0.0
  for row, place in zip(*np.nonzero(batch['loss_mask']), strict=True):
    x = logits[row, place]
    total += np.log(np.exp(x - x.max()).sum()) + x.max() - x[batch['targets'][row, place]]
  count = batch['loss_mask'].sum()
  np.testing.assert_allclose(found.total, total / count, rtol=1e-6)
  assert found.metrics['tokens_S'] == count
  guesses = loss(CONFIG, params, batch | {
    'mode': np.minimum(batch['segment_ids'], 2), 'ends': batch['targets'] == 7}).metrics
  right = logits.argmax(axis=-1) == batch['targets']
  ends = batch['targets'] == 7
  for name, mask in {
    'think_tokens': batch['segment_ids'] == 1, 'no_think_tokens': batch['segment_ids'] >= 2,
    'hits': right, 'ends': ends, 'end_hits': ends & right}.items():
    assert guesses[f'chat_sum/{name}'] == (batch['loss_mask'] & mask).sum()
  assert found.metrics['places'] == (BATCH['segment_ids'] > 0).sum()
  everything = loss(CONFIG, params, BATCH | {'loss_mask': np.ones_like(batch['loss_mask'])})
  assert everything.total == plain.total and 'places' not in plain.metrics
  nothing = loss(CONFIG, params, BATCH | {'loss_mask': np.zeros_like(batch['loss_mask'])})
  assert nothing.metrics['loss_sum_S'] == 0 and nothing.metrics['tokens_S'] == 0


@pytest.mark.slow
@pytest.mark.parametrize('devices, accumulate', [(1, 2), (1, 8), (2, 1), (2, 2)])
def test_masked_gradients_do_not_depend_on_how_a_batch_is_split(devices, accumulate):
  """One division by the tokens of the whole batch, though half of the rows teach nothing."""
  batch = with_mask(BATCH)
  batch['loss_mask'][4:] = False  # all that one of two devices has
  params = model.init(CONFIG, jax.random.key(0))

  def gradients(devices, accumulate):
    mesh = sharding.make_mesh(data=devices, devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
      f = jax.jit(step.make_gradients(CONFIG, step.Objective(1, accumulate, 8)))
      placed = jax.device_put(params, sharding.shardings(params, mesh))
      return jax.device_get(f(placed, sharding.shard_batch(batch, mesh), jnp.int32(1)))

  whole, parts = gradients(1, 1), gradients(devices, accumulate)
  np.testing.assert_allclose(parts[1]['loss'], whole[1]['loss'], rtol=1e-6)
  for a, b in zip(*(jax.tree.leaves(x[0]) for x in (parts, whole)), strict=True):
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('k', [1, 2, 3])
def test_a_wrong_target_changes_the_loss_of_each_depth_that_predicts_it(kind, k):
  """The negative control of a silent zero: token t[i+k+1] is what module k predicts at i."""
  config = with_mtp(kind, depth=3)
  params = model.init(config, jax.random.key(0))
  before = loss(config, params, BATCH).metrics
  wrong = {name: x.copy() for name, x in BATCH.items()}
  wrong['targets'][1, 23] = (wrong['targets'][1, 23] + 1) % 64  # the last of its document
  after = loss(config, params, wrong).metrics
  assert before['mtp_tokens_M'][k - 1] == sum(
    max(0, n - k) for row in BATCH['segment_ids'] for n in np.bincount(row)[1:])
  assert abs(after['mtp_sum_M'][k - 1] - before['mtp_sum_M'][k - 1]) > 1e-3
  assert after['loss_sum_S'] != before['loss_sum_S']


@pytest.mark.parametrize('kind', KINDS)
def test_no_target_and_no_input_crosses_a_document(kind):
  """Whatever the second document of a row holds, the first one's share of the loss is the same."""
  config = with_mtp(kind)
  params = model.init(config, jax.random.key(0))
  first = packed([[12, 12]])
  alone = {k: x.copy() for k, x in first.items()}
  for name in ('inputs', 'targets', 'segment_ids', 'positions'):
    alone[name][:, 12:] = 0
  other = {k: x.copy() for k, x in first.items()}
  other['inputs'][:, 12:] = RNG.integers(0, 64, 12)
  other['targets'][:, 12:] = RNG.integers(0, 64, 12)
  second = lambda batch: {**batch, 'segment_ids': np.where(batch['segment_ids'] == 2, 2, 0)}
  sums = lambda batch: np.asarray(loss(config, params, batch).metrics['mtp_sum_M'])
  np.testing.assert_allclose(sums(first), sums(alone) + sums(second(first)), rtol=1e-5)
  np.testing.assert_allclose(sums(other), sums(alone) + sums(second(other)), rtol=1e-5)


MESHES = [dict(data=2, tensor=2), dict(context=2, fsdp=2, data=1), *(
  pytest.param(sizes, marks=pytest.mark.slow) for sizes in (dict(data=8), dict(fsdp=4)))]


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('sizes', MESHES, ids=str)
def test_every_mesh_gives_the_same_loss_and_gradient(kind, sizes):
  config = with_mtp(kind)
  alone = model.init(config, jax.random.key(0))
  expected = value_and_gradient(config, alone, BATCH)
  sizes = dict(data=1) | sizes
  count = int(np.prod(list(sizes.values())))
  mesh = sharding.make_mesh(**sizes, devices=jax.devices()[:count])
  with jax.set_mesh(mesh):
    params = jax.device_put(alone, sharding.shardings(alone, mesh))
    found = jax.device_get(
      value_and_gradient(config, params, sharding.shard_batch(BATCH, mesh)))
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found[1], expected[1])


def test_the_modules_change_nothing_of_the_model():
  plain_params = model.init(CONFIG, jax.random.key(0))
  for kind in KINDS:
    config = with_mtp(kind)
    params = model.init(config, jax.random.key(0))
    again, rest = model.without_mtp(config, params)
    assert again == CONFIG
    jax.tree.map(np.testing.assert_array_equal, rest, plain_params)
    assert config.num_params() == sum(x.size for x in jax.tree.leaves(params))
    assert config.num_params(mtp=False) == CONFIG.num_params()


@pytest.mark.parametrize('depth', [1, 4])
def test_logits_of_all_places_or_modules_never_exist_together(depth):
  """No array of a compiled step holds T x V numbers, and modules add no memory of logits."""
  config = with_mtp('parallel', depth, vocab_size=4096)
  batch = packed([[24], [24]])
  params = model.abstract_params(config)
  step = jax.jit(jax.grad(lambda p: loss(config, p, batch, chunk=4).total))
  text = step.lower(params).compile().as_text()
  assert 'f32[2,4,4096]' in text
  for shape in ('2,24,4096', '48,4096', '24,2,4096'):
    assert f'[{shape}]' not in text
  per_module = 4 * 2 * 24 * 4096
  if depth > 1:
    one = jax.jit(jax.grad(lambda p: loss(with_mtp('parallel', 1, vocab_size=4096), p, batch,
                                          chunk=4).total))
    one = one.lower(model.abstract_params(with_mtp('parallel', 1, vocab_size=4096))).compile()
    more = (step.lower(params).compile().memory_analysis().temp_size_in_bytes
            - one.memory_analysis().temp_size_in_bytes)
    assert more < per_module, f'{more:,} bytes more for three more modules'


def test_accumulated_parts_are_the_sum_and_its_gradient():
  """objectives.summed against jax's own differentiation of the same sum."""
  shared, parts = jnp.asarray(RNG.normal(size=(3, 4))), jnp.asarray(RNG.normal(size=(5, 2, 3)))
  known = jnp.asarray(RNG.normal(size=(5, 2, 4)))

  def f(shared, part, known, fixed):
    y = jnp.tanh(part @ shared) * known * fixed
    return jnp.sum(y, axis=-1), y

  def via(summed):
    def total(shared, parts):
      value, aux = summed(shared, parts)
      return 0.7 * value, aux
    return jax.value_and_grad(total, (0, 1), has_aux=True)(shared, parts)

  ours = via(lambda s, p: objectives.summed(f, s, p, known, 2.0))
  theirs = via(lambda s, p: (
    sum(jnp.sum(f(s, p[j], known[j], 2.0)[0]) for j in range(5)),
    jnp.stack([f(s, p[j], known[j], 2.0)[1] for j in range(5)])))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, theirs)


@pytest.mark.slow
def test_cos_reg_mends_a_planted_collapse():
  """All embeddings get one large common vector: tokens point one way, and the rank is about 1.

  Plain training stays there for a while; the regulariser (Gao et al., arXiv 1907.12009) leads out,
  and the loss is the better for it. Without a collapse it costs little.
  """
  follows = np.random.default_rng(0).integers(0, 64, (64, 2))

  def sample(step, B=16, T=32):
    rng, x_BT = np.random.default_rng(step), np.zeros((B, T + 1), np.int32)
    x_BT[:, 0] = rng.integers(0, 64, B)
    for t in range(T):
      x_BT[:, t + 1] = follows[x_BT[:, t], (rng.random(B) < 0.3).astype(int)]
    return {'inputs': x_BT[:, :-1], 'targets': x_BT[:, 1:],
            'segment_ids': np.ones((B, T), np.int32), 'source': np.zeros(B, np.int32),
            'positions': np.tile(np.arange(T, dtype=np.int32), (B, 1))}

  look = jax.jit(functools.partial(diagnostics.activations, CONFIG))

  def train(cos_reg, plant):
    params = model.init(CONFIG, jax.random.key(0))
    common_D = plant * jax.random.normal(jax.random.key(1), (32,))
    params['embed_VD'] += common_D
    optimizer = optax.adam(3e-3)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, batch):
      def total(params):
        found = objectives.next_token(
          CONFIG, params, batch, total_tokens=512.0, num_sources=1, chunk=32, cos_reg=cos_reg)
        return found.total, found.metrics['loss_sum_S'][0] / 512
      (_, nll), grads = jax.value_and_grad(total, has_aux=True)(params)
      updates, state = optimizer.update(grads, state, params)
      return optax.apply_updates(params, updates), state, nll

    for i in range(60):
      params, state, nll = step(params, state, sample(i))
      if i == 19:
        early = look(params, sample(999))
    return float(nll), float(early['token_cos']), float(early['eff_rank_L'][-1])

  plain_loss, plain_cos, plain_rank = train(0.0, 1.0)
  loss, cos, rank = train(3.0, 1.0)
  assert plain_cos > 0.95 and plain_rank < 1.5
  assert cos < 0.4 and rank > 6 and loss < plain_loss - 0.2
  assert train(3.0, 0.0)[0] < train(0.0, 0.0)[0] + 0.1


def test_cos_reg_is_the_squared_mean_cosine():
  params = model.init(CONFIG, jax.random.key(0))
  total = float(np.sum(BATCH['segment_ids'] > 0))
  of = lambda w: objectives.next_token(CONFIG, params, BATCH, total_tokens=total, num_sources=1,
                                       chunk=8, cos_reg=w).total
  hidden, _ = model.hidden(CONFIG, params, BATCH['inputs'], positions_BT=BATCH['positions'],
                           segment_ids_BT=BATCH['segment_ids'])
  x = np.asarray(hidden, np.float64)[BATCH['segment_ids'] > 0]
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  cosines = (x @ x.T)[~np.eye(len(x), dtype=bool)]
  np.testing.assert_allclose(of(2.0) - of(0.0), 2 * cosines.mean() ** 2, rtol=1e-3)


def products(jaxpr):
  """Every dot_general of a program, those of its inner ones too."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      yield equation
    for value in equation.params.values():
      for inner in value if isinstance(value, (tuple, list)) else [value]:
        if hasattr(inner := getattr(inner, 'jaxpr', inner), 'eqns'):
          yield from products(inner)


def test_the_heads_gradients_are_products_in_the_compute_dtype():
  # fp32 against bf16 would be TF32 on a GPU, at half the speed.
  config = dataclasses.replace(CONFIG, dtype='bfloat16')
  hidden = jnp.ones((2, 8, config.embed_dim), config.dtype)
  params = model.init(config, jax.random.key(0))

  def loss(params, hidden):
    total, _ = objectives.head_loss(
      config, hidden, model.unembedding(config, params), jnp.zeros((2, 8), jnp.int32),
      jnp.ones((2, 8)), chunk=4)
    return total
  found = list(products(jax.make_jaxpr(jax.grad(loss, (0, 1)))(params, hidden).jaxpr))
  assert len(found) >= 3
  for equation in found:
    assert {str(x.aval.dtype) for x in equation.invars} == {'bfloat16'}, equation

"""Schedules by hand, labels on the real model, AdamW against torch, chains on and off a mesh."""

import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smoljax import model, optim, sharding
from smoljax.optim import clipping, schedules
from smoljax.optim import optimizer as optimizer_lib
from smoljax.optim.clipping import CLIPS
from smoljax.optim.schedules import schedule


def make_config(name='adamw', muon=(), **changes):
  """SmolLM3's optimizer, and Muon as shipped but for its compute dtype; SOAP for small matrices."""
  config = dict(
    name=name, learning_rate=0.01, weight_decay=0.1, no_decay=('embedding',), b1=0.9, b2=0.95,
    eps=1e-8, clip='norm', clip_norm=1.0, momentum_dtype='float32', schedule='constant',
    warmup_steps=0, warmup_fraction=0.0, decay_steps=0, decay_fraction=0.0, decay_shape='linear',
    floor=0.0, decay_timescale=0.0, cooldowns=(.5, 1.0), power=.5, power_steps=4, ramp=(),
    hyperball=False, tail_steps=0, tail_weight=0.6,
  )
  defaults = dict(
    beta=0.95, beta_start=0.85, beta_warmup=0, momentum='average', cautious_decay=False,
    nesterov=True, coefficients='pe5', steps=5, scale_rule='moonlight', rms=0.2, normuon=0.0,
    adamuon=0.0, soap=False, at_once=0, compute_dtype='float32', lr_multiplier=1.0,
    decay_multiplier=1.0, per_head='none',
  )
  assert set(changes) <= set(config) and set(muon) <= set(defaults)
  sections = dict(muon=defaults | dict(muon), soap=dict(every=2, max_dim=64),
                  dion=dict(mu=.95, rank=.5), psgd=dict(beta=.95, rate=1.0))
  return SimpleNamespace(
    **config | changes, **{k: SimpleNamespace(**v) for k, v in sections.items()})


MODEL = model.ModelConfig(
  vocab_size=64, num_layers=3, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48,
  max_seq_len=16, tie_embeddings=False, dtype='float32',
)


def random_like(tree, seed):
  leaves, treedef = jax.tree.flatten(tree)
  rng = np.random.default_rng(seed)
  return jax.tree.unflatten(
    treedef, [rng.standard_normal(x.shape).astype(np.float32) for x in leaves]
  )


@functools.cache
def abstract(**changes):
  fields = {f: getattr(MODEL, f) for f in MODEL.__dataclass_fields__}
  return model.abstract_params(model.ModelConfig(**fields | changes))


def test_cautious_decay_leaves_alone_what_the_step_enlarges():
  label = lambda optimizer: optim.Label(optimizer, 'up', None, 1.0, 1.0)
  params = {'a': jnp.array([2.0, -2.0, 2.0]), 'b': jnp.array([2.0])}
  updates = {'a': jnp.array([1.0, 1.0, -1.0]), 'b': jnp.array([-1.0])}
  tx = optimizer_lib.decay_and_multiply(
    0.1, {'a': label('muon'), 'b': label('adamw')}, cautious=True
  )
  out, _ = tx.update(updates, tx.init(params), params)
  np.testing.assert_allclose(out['a'], [1.2, 1.0, -1.0], rtol=1e-6)
  np.testing.assert_allclose(out['b'], [-.8], rtol=1e-6)


PROGRAMS = {}


def train_steps(config, params, grads, place=lambda x: x, state=None):
  """Parameters and state after a step on each of the gradients, from a fresh or the given state."""
  key = repr((config, jax.tree.structure(params)))
  if key not in PROGRAMS:
    tx, _ = optim.make_optimizer(config, params, total_steps=10)

    def step(params, state, g):
      updates, state = tx.update(g, state, params)
      return optax.apply_updates(params, updates), state

    PROGRAMS[key] = jax.jit(tx.init), jax.jit(step)
  init, step = PROGRAMS[key]
  params = place(params)
  state = init(params) if state is None else state
  for g in grads:
    params, state = step(params, state, place(g))
  return params, state


# -------------------------------------------------------------------------------- schedules


def rates(total_steps, **changes):
  lr = schedule(make_config(**changes), total_steps)
  return [float(lr(step)) for step in range(total_steps + 2)]


def test_wsd_with_linear_cooldown_by_hand():
  got = rates(10, schedule='wsd', learning_rate=1.0, warmup_steps=4, decay_fraction=0.4)
  assert got == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0])


def test_wsd_with_one_minus_sqrt_and_floor_by_hand():
  got = rates(
    9, schedule='wsd', learning_rate=2.0, warmup_fraction=1 / 9, decay_steps=4,
    decay_shape='1-sqrt', floor=0.1,
  )
  tail = [2 * (0.1 + 0.9 * (1 - math.sqrt(p))) for p in (0, 0.25, 0.5, 0.75, 1)]
  assert got == pytest.approx([2.0] * 5 + tail + tail[-1:])


def test_cosine_with_floor_by_hand():
  got = rates(8, schedule='cosine', learning_rate=4.0, warmup_steps=2, floor=0.25)
  half = math.sqrt(3) / 2  # cos 30°
  cosines = [1, half, 0.5, 0, -0.5, -half, -1]
  assert got == pytest.approx([2.0, 4.0, *(1 + 3 * (1 + c) / 2 for c in cosines), 1.0])


def test_wsd_s_goes_on_at_the_peak_after_each_cooldown():
  got = rates(20, schedule='wsd_s', learning_rate=1.0, warmup_steps=2, decay_fraction=0.2)
  first = [.5, 1, 1, 1, 1, 1, 1, 1, 1, .5]  # cooled from step 8 to 10
  second = [1, 1, 1, 1, 1, 1, 1, .75, .5, .25, 0]  # from 16 to 20
  assert got[:21] == pytest.approx(first + second)
  for changes, words in ((dict(cooldowns=(.5, .9)), 'the last of them 1'),
                         (dict(decay_fraction=.9), 'do not fit')):
    with pytest.raises(ValueError, match=words):
      rates(20, schedule='wsd_s', **dict(warmup_steps=2, decay_fraction=.2) | changes)


def test_the_power_schedule_by_hand():
  got = rates(20, schedule='power', learning_rate=1.0, warmup_steps=2, decay_steps=4)
  assert got[:17] == pytest.approx([.5, 1, 1, 1, *((s / 4) ** -.5 for s in range(4, 17))])
  assert got[18] == pytest.approx((18 / 4) ** -.5 / 2) and got[20] == 0


def test_constant_by_hand():
  assert rates(4, schedule='constant', learning_rate=3.0, warmup_steps=3) == pytest.approx(
    [1, 2, 3, 3, 3, 3]
  )


def test_smollm3_schedule():
  lr = schedule(
    make_config(schedule='wsd', learning_rate=2e-4, warmup_steps=2000, decay_steps=522_000),
    4_720_000,
  )
  expected = {
    0: 1e-7, 999: 1e-4, 1999: 2e-4, 4_198_000: 2e-4, 4_459_000: 1e-4, 4_720_000: 0.0,
    4_719_999: 2e-4 / 522_000,
  }
  for step, rate in expected.items():
    assert float(lr(step)) == pytest.approx(rate, rel=1e-5), step
    assert float(jax.jit(lr)(step)) == pytest.approx(rate, rel=1e-5), step


@given(
  total=st.integers(1, 60),
  warmup=st.integers(0, 60),
  decay=st.integers(0, 60),
  name=st.sampled_from(('constant', 'cosine', 'wsd')),
  shape=st.sampled_from(sorted(schedules.COOLDOWNS)),
  floor=st.floats(0, 1),
)
def test_any_schedule_warms_up_then_never_rises(total, warmup, decay, name, shape, floor):
  config = make_config(
    schedule=name, learning_rate=1.0, warmup_steps=warmup, decay_steps=decay, decay_shape=shape,
    floor=floor,
  )
  if warmup > total or (name == 'wsd' and warmup + decay > total):
    with pytest.raises(ValueError, match='steps'):
      schedule(config, total)
    return
  lr = np.asarray(schedule(config, total)(np.arange(60)))[:total]  # one shape: one compile
  assert (lr > 0).all() and lr.max() <= 1 + 1e-6  # no idle step
  assert (np.diff(lr[:warmup]) > 0).all() and (np.diff(lr[warmup:]) <= 1e-6).all()
  assert lr[max(warmup - 1, 0)] == pytest.approx(1)


@pytest.mark.parametrize('name', sorted(schedules.SCHEDULES))
def test_runs_of_all_lengths_share_a_program(name):
  config = make_config(schedule=name, warmup_fraction=0.1)
  params = {'scale_D': jnp.ones(3)}
  programs, own, given = [], [], []
  optimizers = [optim.make_optimizer(config, params, total) for total in (20, 700)]
  for tx, info in optimizers:
    state = tx.init(params)
    step = jax.jit(lambda state, horizon, tx=tx: tx.update(params, state, params, horizon=horizon))
    programs.append(step.lower(state, info.horizon).as_text())
    own.append(tx.update(params, state, params)[0]['scale_D'])
    given.append(
      optimizers[0][0].update(params, state, params, horizon=info.horizon)[0]['scale_D'])
  assert programs[0] == programs[1]
  np.testing.assert_array_equal(own, given)
  assert (own[0] != own[1]).all()  # another warm-up


def test_a_cooldown_branches_from_the_stable_part():
  short, long = (
    rates(total, schedule='wsd', warmup_steps=3, decay_steps=5) for total in (20, 100)
  )
  assert short[:16] == long[:16]  # the first step of a cooldown is still at the peak
  assert short[16] < long[16]


@pytest.mark.parametrize(
  'changes, words',
  [
    (dict(schedule='wds'), 'choose one of wsd, wsd_s, power, cosine, constant'),
    (dict(schedule='wsd', decay_shape='sqrt'), 'choose one of linear, 1-sqrt'),
    (dict(schedule='wsd', warmup_steps=6, decay_steps=5), 'do not fit in 10 steps'),
    (dict(warmup_steps=11), 'warmup_steps=11 exceeds the 10 steps'),
    (dict(warmup_fraction=1.5), 'from 0 to 1'),
    (dict(floor=-1), 'floor=-1'),
  ],
)
def test_impossible_schedules_say_what_to_change(changes, words):
  with pytest.raises(ValueError, match=words):
    schedule(make_config(**changes), 10)
  with pytest.raises(ValueError, match='total_steps=0'):
    schedule(make_config(), 0)


# ----------------------------------------------------------------------------------- labels


def test_every_leaf_of_every_model_has_its_label():
  everything = abstract(attention_bias=True, mlp_bias=True, qk_norm=True)
  _, info = optim.make_optimizer(make_config('muon'), everything, 10)
  label = {path: (x.optimizer, x.role, x.decay) for path, x in info.labels.items()}
  assert len(label) == len(jax.tree.leaves(everything)) == 21
  assert label['embed_VD'] == ('adamw', 'embedding', 0)
  assert label['head_DV'] == ('adamw', 'head', 1)
  assert label['final_norm/scale_D'] == label['blocks/attn_norm/scale_D'] == ('adamw', 'norm', 1)
  assert label['blocks/attn/q_norm/scale_H'] == ('adamw', 'norm', 1)
  assert label['blocks/attn/q_bias_NH'] == label['blocks/mlp/down_bias_D'] == ('adamw', 'bias', 1)
  muon = {path.split('/')[-1] for path, (name, _, _) in label.items() if name == 'muon'}
  assert muon == {'q_DNH', 'k_DKH', 'v_DKH', 'o_NHD', 'gate_DF', 'up_DF', 'down_FD'}
  _, info = optim.make_optimizer(make_config('adamw'), everything, 10)
  assert {x.optimizer for x in info.labels.values()} == {'adamw'}


def test_the_table_shows_shape_view_and_multipliers():
  config = make_config('muon', muon=dict(per_head='qko', lr_multiplier=0.5))
  _, info = optim.make_optimizer(config, abstract(), 10)
  rows = {line.split()[0]: ' '.join(line.split()[1:]) for line in info.table.splitlines()}
  assert rows['embed_VD'] == '64x32 embedding adamw - 1 0 1'
  assert rows['blocks/attn/q_DNH'] == '3x32x4x8 q muon 12 of [32, 8] 0.5 1 1'
  assert rows['blocks/attn/k_DKH'] == '3x32x2x8 k muon 6 of [32, 8] 0.5 1 1'
  assert rows['blocks/attn/v_DKH'] == '3x32x2x8 v muon 3 of [32, 16] 0.5 1 1'
  assert rows['blocks/attn/o_NHD'] == '3x4x8x32 o muon 12 of [8, 32] 0.5 1 1'
  assert rows['blocks/mlp/down_FD'] == '3x48x32 down muon 3 of [48, 32] 0.5 1 1'
  assert rows['blocks/mlp_norm/scale_D'] == '3x32 norm adamw - 1 1 1'
  # 3 layers of 32·32·2 + 32·16·2 + 32·48·3; two tables of 64·32 and seven norms of 32
  assert rows['parameters:'] == 'adamw 4,320, muon 23,040'


def test_a_leaf_with_no_role_or_two_is_an_error(monkeypatch):
  stray = {'blocks': {'moe': {'router_DE': jnp.ones((3, 32, 4))}}}
  with pytest.raises(ValueError, match=r"blocks/moe/router_DE' \(3, 32, 4\) fits no role"):
    optim.make_optimizer(make_config('muon'), stray, 10)
  monkeypatch.setitem(optim.ROLES, 'gate2', optim.Role('g.*'))
  with pytest.raises(ValueError, match=r'gate_DF.* fits gate and gate2'):
    optim.make_optimizer(make_config(), abstract(), 10)


@pytest.mark.parametrize(
  'config, words',
  [
    (make_config('adam'), "optimizer.name='adam': choose one of adamw, muon"),
    (make_config(no_decay=('embeddings',)), 'choose one of embedding, head'),
    (make_config('muon', muon=dict(per_head='yes')), 'choose one of none, qk'),
    (make_config('muon', muon=dict(coefficients='x')), 'choose one of jordan'),
    (make_config(learning_rate=-1.0), 'optimizer.learning_rate=-1.0'),
    (make_config(clip_norm=math.nan), 'optimizer.clip_norm=nan'),
    (SimpleNamespace(name='adamw', b1=0.9), 'optimizer lacks learning_rate, weight_decay'),
    (SimpleNamespace(**{**vars(make_config('muon')), 'muon': None}), 'optimizer.muon lacks beta'),
  ],
)
def test_wrong_configs_say_what_to_type(config, words):
  with pytest.raises(ValueError, match=words):
    optim.make_optimizer(config, abstract(), 10)


# ------------------------------------------------------------------------------------ AdamW


def wave(shape, frequency):
  """Numbers any language can make again: sin(frequency · n^1.5)."""
  return np.sin(frequency * np.arange(1, math.prod(shape) + 1) ** 1.5).reshape(shape)


def test_stored_steps_of_torch_adamw():
  """torch 2.13: AdamW(lr .1, betas .9/.95, decay 0 and .1), clip_grad_norm_ 1, 5 warm-up steps."""
  params = {'embed_VD': wave((4, 2), 1.0), 'final_norm': {'scale_D': wave((3,), 0.5)}}
  grads = [
    {'embed_VD': wave((4, 2), 2.0 + t), 'final_norm': {'scale_D': wave((3,), 3.0 + t)}}
    for t in range(5)
  ]
  params, grads = jax.tree.map(np.float32, (params, grads))
  got, _ = train_steps(make_config(learning_rate=0.1, warmup_steps=5), params, grads)
  embedding = [
    [0.835110371, 0.348433644], [-0.899617192, 1.079906106],
    [-1.005300782, 0.941542322], [-0.02339472, -0.638719066],
  ]
  np.testing.assert_allclose(got['embed_VD'], embedding, atol=2e-6)
  scale = [0.602148636, 0.911739229, 0.346182121]
  np.testing.assert_allclose(got['final_norm']['scale_D'], scale, atol=2e-6)


@pytest.mark.parametrize('size', [0.01, 10.0], ids=['unclipped', 'clipped'])
def test_live_torch_adamw(size):
  torch = pytest.importorskip('torch')
  params = random_like(abstract(), 0)
  grads = [jax.tree.map(lambda g: g * size, random_like(abstract(), 1 + t)) for t in range(4)]
  config = make_config(schedule='wsd', warmup_steps=2, decay_steps=8, decay_shape='1-sqrt')
  with jax.enable_x64(True):
    config.momentum_dtype = 'float64'
    got, _ = train_steps(config, *jax.tree.map(np.float64, (params, grads)))
  leaves = [torch.nn.Parameter(torch.tensor(x).double()) for x in jax.tree.leaves(params)]
  paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
  groups = [
    dict(params=[w], weight_decay=0.0 if 'embed' in path else 0.1)
    for path, w in zip(paths, leaves, strict=True)
  ]
  optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)
  by_hand = [0.5, 1.0, 1.0, 1 - math.sqrt(1 / 8)]
  for g, factor in zip(grads, by_hand, strict=True):
    for w, x in zip(leaves, jax.tree.leaves(g), strict=True):
      w.grad = torch.tensor(x).double()
    torch.nn.utils.clip_grad_norm_(leaves, 1.0)
    for group in optimizer.param_groups:
      group['lr'] = 0.01 * factor
    optimizer.step()
  for path, ours, theirs in zip(paths, jax.tree.leaves(got), leaves, strict=True):
    # The schedule is float32, and torch adds 1e-6 to the norm it clips by.
    np.testing.assert_allclose(ours, theirs.detach(), rtol=0, atol=1e-8, err_msg=path)


def test_weight_decay_alone():
  params = random_like(abstract(), 0)
  zero = jax.tree.map(np.zeros_like, params)
  for name in ('adamw', 'muon'):
    config = make_config(name, muon=dict(lr_multiplier=3.0), no_decay=('embedding', 'norm'))
    got, _ = train_steps(config, params, [zero])
    for (path, after), before in zip(
      jax.tree.leaves_with_path(got), jax.tree.leaves(params), strict=True
    ):
      role = jax.tree_util.keystr(path)
      rate = 0.01 * (3 if name == 'muon' and path[0].key == 'blocks' else 1)
      shrink = 1 if 'embed' in role or 'norm' in role else 1 - rate * 0.1
      np.testing.assert_allclose(after, before * shrink, rtol=1e-6, err_msg=role)


# -------------------------------------------------------------------------------------- clips


NORMS = np.random.default_rng(0).lognormal(0, 0.1, 140).astype(np.float64)
NORMS[[10, 60, 61, 130]] *= 20  # in the warm-up, twice in a row, late


def clipped_norms(clip, grads):
  state, found = clip.init(grads[0]), []
  update = jax.jit(clip.update)
  for g in grads:
    g, state = update(g, state)
    found.append(jax.tree.map(lambda x: np.sqrt((x**2).sum(tuple(range(1, x.ndim)))), g))
  return found


def test_zclip_is_that_of_numpy():
  expected, mean, var, first = [], 0.0, 0.0, []
  for i, norm in enumerate(NORMS):
    if i < 25:
      first.append(norm)
      mean, var = np.mean(first), np.var(first)
      expected.append(min(norm, 4))
      continue
    z = (norm - mean) / np.sqrt(var)
    kept = mean + 2.5**2 / z * np.sqrt(var) if z > 2.5 else norm
    mean = 0.97 * mean + 0.03 * kept
    var = 0.97 * var + 0.03 * (kept - mean) ** 2
    expected.append(min(kept, 4))
  grads = [{'embed_VD': jnp.full((1, 4), n / 2, jnp.float32)} for n in NORMS]
  found = [g['embed_VD'][0] for g in clipped_norms(clipping.zclip(4.0), grads)]
  np.testing.assert_allclose(found, expected, rtol=2e-4)
  assert found[60] < 3 and found[10] == 4


@pytest.mark.parametrize('clip', CLIPS)
def test_a_run_may_begin_and_cease_to_clip(clip):
  """What a run that does not clip has in its checkpoint is what one that does goes on with."""
  params = {'embed_VD': jnp.full((1, 4), 8.0)}
  of = {norm: optimizer_lib.make_optimizer(make_config(clip=clip, clip_norm=norm), params, 10)[0]
        for norm in (0.0, 1.0)}
  state = of[1.0].init(params)
  for norm in (0.0, 1.0, 0.0):
    _, state = of[norm].update(params, state, params)
    kept = float(clipping.clip_kept(state))
    assert kept == 1 if norm == 0 else kept < 0.1
  grads, _ = clipping.watching(CLIPS[clip](math.inf)).update(
    params, CLIPS[clip](math.inf).init(params))
  np.testing.assert_array_equal(grads['embed_VD'], params['embed_VD'])


def test_adagc_is_that_of_numpy_and_takes_layers_apart():
  usual, expected = np.full(2, np.inf), []
  layers = np.stack([NORMS, NORMS[::-1]], axis=1)
  for i, norms in enumerate(layers):
    if i < 100:
      norms = norms * min(1, 4 / np.sqrt((norms**2).sum()))
      usual = np.minimum(usual, norms)
      expected.append(norms)
    else:
      kept = np.minimum(norms, 1.05 * usual)
      usual = 0.98 * usual + 0.02 * kept
      expected.append(kept)
  grads = [
    {'blocks': {'up_DF': jnp.asarray(n[:, None, None] * np.full((2, 2, 2), 0.5), jnp.float32)}}
    for n in layers
  ]
  found = [g['blocks']['up_DF'] for g in clipped_norms(clipping.adagc(4.0), grads)]
  np.testing.assert_allclose(found, expected, rtol=2e-4)
  assert found[130][0] < 2
  # The largest global norm holds after the warm-up too, whatever is usual.
  tx = clipping.adagc(.5)
  state = tx.init(grads[0])._replace(count=200, norms={'blocks/up_DF/norm_L': jnp.full(2, 10.0)})
  clipped, state = tx.update(grads[0], state)
  assert float(clipping.norm(clipped)) == pytest.approx(.5)
  assert float(state.clip_kept) == pytest.approx(.5 / float(clipping.norm(grads[0])))


# ------------------------------------------------------------------------------ Muon's chain


def test_muon_gives_adamw_its_leaves_and_its_own_clip():
  """Neither side sees the other's gradients: not in the step, not in the norm that clips."""
  params = random_like(abstract(), 0)
  grads = [random_like(abstract(), 1 + t) for t in range(3)]
  matrices = lambda path: path[0].key == 'blocks' and path[1].key in ('attn', 'mlp')
  louder = [jax.tree.map_with_path(lambda p, g: g * 1e3 if matrices(p) else g, g) for g in grads]
  quiet, loud = (train_steps(make_config('muon'), params, g)[0] for g in (grads, louder))
  rest = [
    jax.tree.map_with_path(lambda p, x: x * 0 if matrices(p) else x, tree) for tree in grads
  ]
  adamw, _ = train_steps(make_config('adamw'), params, rest)
  for (path, a), b, c in zip(
    jax.tree.leaves_with_path(quiet), jax.tree.leaves(loud), jax.tree.leaves(adamw), strict=True
  ):
    if matrices(path):
      np.testing.assert_allclose(a, b, atol=1e-5)  # the direction ignores the gradient's size
      assert np.abs(a - c).max() > 1e-3
    else:
      np.testing.assert_array_equal(a, b)
      np.testing.assert_array_equal(a, c)


def test_a_nan_reaches_the_update():
  params, g = random_like(abstract(), 0), random_like(abstract(), 1)
  g['blocks']['mlp']['up_DF'][1, 2, 3] = np.nan
  got, _ = train_steps(make_config('muon'), params, [g])
  bad = np.isnan(got['blocks']['mlp']['up_DF']).all(axis=(1, 2))
  assert bad.tolist() == [False, True, False]
  assert np.isfinite(got['blocks']['mlp']['gate_DF']).all()


SLOWER = [pytest.param(name, marks=pytest.mark.slow) for name in ('dion', 'psgd')]


@pytest.mark.parametrize('name', ['adamw', 'muon', 'soap', *SLOWER])
def test_state_survives_orbax_and_steps_repeat_bitwise(name, tmp_path):
  params = random_like(abstract(), 0)
  grads = [random_like(abstract(), 1 + t) for t in range(4)]
  config = make_config(name)
  whole = train_steps(config, params, grads)
  half = train_steps(config, params, grads[:2])
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'state', half)
    checkpointer.wait_until_finished()
    restored = checkpointer.restore(
      tmp_path / 'state', jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), half)
    )
  resumed = train_steps(config, restored[0], grads[2:], state=restored[1])
  jax.tree.map(np.testing.assert_array_equal, resumed, whole)


@pytest.mark.parametrize(
  ('name', 'clip'), [(name, 'norm') for name in ('adamw', 'muon', 'soap')]
  + [pytest.param(*x.values, 'norm', marks=x.marks) for x in SLOWER]
  + [('adamw', clip) for clip in sorted(CLIPS) if clip != 'norm'])  # fmt: skip
def test_sharded_equals_unsharded(name, clip):
  params = random_like(abstract(), 0)
  grads = [random_like(abstract(), 1 + t) for t in range(3)]
  config = make_config(name, clip=clip, schedule='wsd', warmup_steps=2)
  alone = train_steps(config, params, grads)
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  homes = sharding.shardings(params, mesh)
  with jax.set_mesh(mesh):
    together = train_steps(config, params, grads, lambda x: jax.device_put(x, homes))
  near = lambda rtol: functools.partial(np.testing.assert_allclose, rtol=rtol, atol=1e-6)
  jax.tree.map(near(0), alone[0], together[0])
  # A variance of norms is a small difference of large numbers.
  jax.tree.map(near(1e-2 if clip == 'zclip' else 0), alone[1], together[1])
  for x, home in zip(jax.tree.leaves(together[0]), jax.tree.leaves(homes), strict=True):
    assert x.sharding.is_equivalent_to(home, x.ndim)
  states = sharding.shardings(together[1], mesh)  # what a checkpoint is restored to
  for x, home in zip(jax.tree.leaves(together[1]), jax.tree.leaves(states), strict=True):
    assert x.sharding.is_equivalent_to(home, x.ndim)

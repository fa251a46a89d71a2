"""Multipliers by the published tables; folding changes nothing; features move alike when wider."""

import dataclasses
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from smoljax import model, optim
from smoljax.optim import mup
from smoljax.optim.matrices import path_name
from smoljax.report import coordinate_page
from smoljax.scaling import coordinate_check


def sizes(name, width=64, depth=2):
  return types.SimpleNamespace(name=name, base_width=width, base_depth=depth, base_kv_heads=0)


def settings(name='adamw', rule='moonlight', **kwargs):
  c = base.get_config().optimizer
  c.name, c.muon.scale_rule = name, rule
  c.update(kwargs)
  return c


def of(name, config, optimizer):
  return mup.multipliers(
    sizes(name), config, optimizer, model.abstract_params(config))


WIDE = coordinate_check.model_of(256, 8)  # r = 4, ρ = 4


def test_standard_is_what_it_was():
  found = of('standard', WIDE, settings())
  assert set(found.values()) == {mup.Multipliers(1, 1, 1, 1)}


def test_mup_of_adamw():
  found = of('mup', WIDE, settings())
  for name in ('attn/q_DNH', 'attn/o_NHD', 'mlp/gate_DF', 'mlp/down_FD'):
    assert found[f'blocks/{name}'] == (0.5, 0.25, 4, 1)
  assert found['embed_VD'] == found['blocks/attn_norm/scale_D'] == (1, 1, 1, 1)
  assert found['head_DV'] == (0.25, 0.25, 4, 4)
  tied = of('mup', dataclasses.replace(WIDE, tie_embeddings=True), settings())
  assert tied['embed_VD'] == (1, 1, 1, 1) and tied['final_norm/scale_D'] == (0.25, 0.25, 4, 4)


def test_completep_adds_depth():
  found = of('completep', WIDE, settings())
  assert found['blocks/attn/q_DNH'] == (0.5, 0.25, 4, 1 / 16)
  # A quarter by folding; the initialisation has 1 / √(2 L) of its own, half of that of the base.
  assert found['blocks/attn/o_NHD'] == (0.25, 0.0625, 16, 0.25)
  plain = of('completep', dataclasses.replace(WIDE, init='hf'), settings())
  assert plain['blocks/mlp/down_FD'] == (0.125, 0.0625, 16, 0.25)


@pytest.mark.parametrize(('rule', 'lr'), [('spectral', 1), ('jordan', 1), ('moonlight', 0.5)])
def test_mup_of_muon(rule, lr):
  found = of('mup', WIDE, settings('muon', rule))
  assert found['blocks/mlp/up_DF'] == (0.5, lr, 1 / lr, 1)
  assert found['head_DV'] == (0.25, 0.25, 4, 4)  # AdamW's


@pytest.mark.parametrize(('per_head', 'rule', 'lr_k', 'lr_q', 'lr_o'), [
  ('none', 'spectral', 1, 1, 1), ('none', 'jordan', .5, 1, 1), ('none', 'moonlight', .25, .5, .5),
  ('all', 'spectral', 1, 1, .25), ('all', 'jordan', .5, .5, .25),
  ('all', 'moonlight', .25, .25, .25),
  ('none', 'ball', .5, 1, 1),
])  # fmt: skip
def test_keys_of_a_fixed_number_of_heads_have_a_fan_out_that_stays(
  per_head, rule, lr_k, lr_q, lr_o
):
  """r = 4: the update's largest singular value, times the rate, is to go with √(o/i)."""
  config = dataclasses.replace(WIDE, num_kv_heads=2)
  c = settings('muon', hyperball=rule == 'ball')
  c.muon.scale_rule = rule if rule in ('spectral', 'jordan') else 'moonlight'
  c.muon.per_head = per_head
  asked = sizes('mup')
  asked.base_kv_heads = 2
  found = mup.multipliers(asked, config, c, model.abstract_params(config))
  for name, lr in (('k_DKH', lr_k), ('v_DKH', lr_k), ('q_DNH', lr_q), ('o_NHD', lr_o)):
    assert found[f'blocks/attn/{name}'] == pytest.approx((.5, lr, 1 / lr, 1)), name
  odd = dataclasses.replace(WIDE, num_kv_heads=1)
  with pytest.raises(ValueError, match='set parametrization'):
    of('mup', odd, c)


@pytest.mark.parametrize(('name', 'ball'), [('adamw', False), ('adamw', True), ('soap', False)])
def test_a_fixed_number_of_key_heads_is_refused_where_the_check_does_not_hold_it(name, ball):
  asked, c = sizes('mup'), settings(name, hyperball=ball)
  asked.base_kv_heads = 2
  fixed = dataclasses.replace(WIDE, num_kv_heads=2)
  with pytest.raises(ValueError, match=f'{name} covers key heads .* so 8 at 4 times') as e:
    mup.multipliers(asked, fixed, c, model.abstract_params(fixed))
  assert 'num_kv_heads=2; set that, optimizer.name=muon' in str(e.value)
  assert mup.multipliers(asked, WIDE, c, model.abstract_params(WIDE))  # of eight: grown


def test_soap_has_completeps_eps():
  grads = np.random.default_rng(0).standard_normal((3, 1, 4, 4))

  def third(eps, scale):
    c = settings('soap', eps=eps)
    label = optim.Label('soap', 'up', optim.ROLES['up'].view, 1.0, 1.0, scale)
    tx = optim.OPTIMIZERS['soap'](c, {'up_DF': label})
    state = tx.init({'up_DF': jnp.zeros((1, 4, 4))})
    for g in grads:
      updates, state = tx.update({'up_DF': jnp.asarray(g, jnp.float32)}, state)
    return updates['up_DF']

  np.testing.assert_allclose(third(.5, .25), third(.125, 1.0), rtol=2e-4, atol=1e-6)
  assert not np.allclose(third(.5, .25), third(.5, 1.0), rtol=.05)


@pytest.mark.parametrize(('change', 'message'), [
  ({'name': 'sp'}, 'standard, mup, completep'), ({'base_width': 0}, 'needs the base model'),
])  # fmt: skip
def test_what_is_not_covered_is_refused(change, message):
  asked = sizes('mup')
  vars(asked).update(change)
  with pytest.raises(ValueError, match=message):
    mup.multipliers(asked, WIDE, settings(), model.abstract_params(WIDE))
  post = dataclasses.replace(WIDE, norm_position='post')
  with pytest.raises(ValueError, match='norm_position=pre'):
    of('mup', post, settings())


def test_the_label_table_tells_the_multipliers():
  params = model.abstract_params(WIDE)
  found = of('completep', WIDE, settings())
  _, info = optim.make_optimizer(settings(), params, 10, found)
  row = next(line for line in info.table.splitlines() if line.startswith('blocks/attn/o_NHD'))
  assert row.split()[-3:] == ['0.0625', '16', '0.25']


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
def test_a_folded_factor_is_one_of_the_forward_pass(tied, optimizer):
  """Three steps with logits × m in the function equal three with m folded into a leaf."""
  config = dataclasses.replace(coordinate_check.model_of(32, 2), tie_embeddings=tied)
  leaf, m = ('final_norm/scale_D' if tied else 'head_DV'), 0.3
  c = settings(optimizer, schedule='constant', warmup_fraction=0.0, learning_rate=0.01,
               clip_norm=0.0, no_decay=(), eps=1e-3)
  c.muon.compute_dtype = 'float32'
  tokens_BT = jax.random.randint(jax.random.key(1), (2, 17), 0, config.vocab_size)

  def train(scales, factor):
    params = mup.initialise(model.init(config, jax.random.key(0)), scales)
    tx, _ = optim.make_optimizer(c, params, 3, scales)
    state, losses = tx.init(params), []

    @jax.jit
    def loss(params):
      logits = factor * model.apply(config, params, tokens_BT[:, :-1]).logits
      picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens_BT[:, 1:, None], axis=-1)
      return -jnp.mean(picked)

    for _ in range(4):
      value, grads = jax.value_and_grad(loss)(params)
      losses.append(float(value))
      updates, state = tx.update(grads, state, params)
      params = jax.tree.map(jnp.add, params, updates)
    return losses

  ones = {path_name(p): mup.Multipliers() for p, _ in
          jax.tree.leaves_with_path(model.abstract_params(config))}
  folded = ones | {leaf: mup.Multipliers().folded(m)}
  plain = train(ones, m)
  np.testing.assert_allclose(train(folded, 1.0), plain, rtol=2e-5)
  assert plain[0] - plain[-1] > 1e-3
  assert not np.allclose(train(ones | {leaf: mup.Multipliers(init=m)}, 1.0), plain,
                         rtol=2e-5)


@pytest.mark.slow
def test_features_move_alike_at_every_width():
  rows = coordinate_check.check(
    base.get_config().optimizer, widths=(64, 128, 256), depths=(2, 4, 8), seeds=1)
  assert all(r['ok'] for r in rows if r['ok'] is not None), [
    (r['mode'], r['axis'], r['slope'], r['worst']) for r in rows]
  assert {r['mode'] for r in rows if r['holds'] is False} == {
    'AdamW, standard', 'Muon, moonlight at a constant rate'}


def test_slopes_and_the_page(tmp_path):
  moved = {'a': [1.0, 2.0, 4.0], 'b': [3.0, 3.0, 3.0]}
  found = coordinate_check.slopes([64, 128, 256], moved)
  assert found == pytest.approx({'a': 1.0, 'b': 0.0})
  row = {'mode': 'M<b>', 'axis': 'width', 'sizes': [64, 128, 256], 'moved': moved, 'slopes': found,
         'worst': 'a', 'slope': 1.0, 'holds': True, 'bound': 'at most 0.25', 'ok': False}
  page = coordinate_page.write([row, row | {'holds': False, 'ok': True}], str(tmp_path))
  html = pathlib.Path(page).read_text()
  assert '1 of 2 expectations met' in html and 'M<b>' not in html
  first = (tmp_path / 'slopes.csv').read_text().splitlines()[1]
  assert float(first.rpartition(',')[2]) == pytest.approx(1)

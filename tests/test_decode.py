"""Cached generation against the plain forward pass."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoljax import decode, model, sharding

CONFIG = model.ModelConfig(
  vocab_size=64, num_layers=4, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48,
  max_seq_len=128, dtype='float32', init_std=0.3,
)  # fmt: skip
RNG = np.random.default_rng(3)
PROMPTS = [RNG.integers(0, 64, n).tolist() for n in (1, 9, 30, 4)]


@functools.cache
def make(config):
  return model.init(config, jax.random.key(0))


def uncached(config, prompts, num_tokens):
  """Argmax continuations by running the whole model again for every token."""
  params = make(config)
  forward = jax.jit(functools.partial(model.apply, config))
  rows = [list(p) for p in prompts]
  for _ in range(num_tokens):
    padded = np.zeros((len(rows), 64), np.int32)
    for i, row in enumerate(rows):
      padded[i, : len(row)] = row
    logits = forward(params, padded).logits
    for i, row in enumerate(rows):
      row.append(int(np.argmax(logits[i, len(row) - 1])))
  return [row[len(p):] for row, p in zip(rows, prompts, strict=True)]


@pytest.mark.parametrize('fields', [
  {}, {'sliding_window': 6, 'window_layers': (1, 0, 1, 0), 'scan_layers': False},
  {'activation': 'gelu', 'mlp_bias': True, 'norm_position': 'sandwich', 'logit_softcap': 5.0},
  {'tie_embeddings': False, 'attention_bias': True, 'qk_norm': True, 'rope_scaling': model.Yarn(
    factor=2.0, original_max_seq_len=64)},
], ids=['plain', 'windows', 'ungated', 'switches'])  # fmt: skip
def test_cached_greedy_tokens_equal_uncached_argmax(fields):
  config = dataclasses.replace(CONFIG, **fields)
  expected = uncached(config, PROMPTS, 24)
  batched = decode.generate(config, make(config), PROMPTS, max_new_tokens=24)
  assert batched == expected
  assert len({tuple(x) for x in batched}) == len(PROMPTS)  # and they are not all the same
  alone = [decode.generate(config, make(config), [p], max_new_tokens=24)[0] for p in PROMPTS[:2]]
  assert alone == expected[:2]


def test_end_tokens_stop_a_row_and_are_not_returned():
  free = decode.generate(CONFIG, make(CONFIG), PROMPTS, max_new_tokens=20)
  eos = free[1][5]
  stopped = decode.generate(CONFIG, make(CONFIG), PROMPTS, max_new_tokens=20, eos_id=eos)
  cut = lambda row: row[: row.index(eos)] if eos in row else row
  assert stopped == [cut(row) for row in free] and len(stopped[1]) <= 5
  two = decode.generate(CONFIG, make(CONFIG), PROMPTS, max_new_tokens=20, eos_id=(63, eos))
  assert all(len(a) <= len(b) for a, b in zip(two, stopped, strict=True))
  steps = list(decode.stream(CONFIG, make(CONFIG), PROMPTS[1:2], max_new_tokens=20, eos_id=eos))
  assert [t for (t,) in steps] == stopped[1]


def test_sampling_is_seeded_and_top_k_1_is_greedy():
  run = functools.partial(decode.generate, CONFIG, make(CONFIG), PROMPTS, max_new_tokens=12)
  varied = decode.Sampling(temperature=1.0)
  assert run(sampling=varied, seed=1) == run(sampling=varied, seed=1)
  assert run(sampling=varied, seed=1) != run(sampling=varied, seed=2)
  assert run() == run(sampling=decode.Sampling(1.0, top_k=1))


@pytest.mark.parametrize('settings, kept', [
  (dict(temperature=1.0), [0.5, 0.3, 0.15, 0.05]),
  (dict(temperature=0.5), [0.25, 0.09, 0.0225, 0.0025]),
  (dict(temperature=1.0, top_k=2), [0.5, 0.3, 0, 0]),
  (dict(temperature=1.0, top_p=0.7), [0.5, 0.3, 0, 0]),
  (dict(temperature=1.0, top_p=0.9), [0.5, 0.3, 0.15, 0]),
  (dict(temperature=1.0, top_k=3, top_p=0.5), [0.5, 0, 0, 0]),
], ids=str)  # fmt: skip
def test_samples_follow_the_stated_distribution(settings, kept):
  order = [2, 0, 3, 1]
  logits_V = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))[order]
  n = 20_000
  keys = jax.random.split(jax.random.key(0), n)
  draws = decode.sample(keys, jnp.tile(logits_V, (n, 1)), decode.Sampling(**settings))
  expected = np.array(kept)[order] / sum(kept)
  counts = np.bincount(draws, minlength=4)
  assert (counts[expected == 0] == 0).all()
  np.testing.assert_allclose(counts / n, expected, atol=4 * np.sqrt(0.25 / n))


def test_parameters_of_a_mesh_are_brought_to_one_device():
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  with jax.set_mesh(mesh):
    params = model.init(CONFIG, jax.random.key(0))
    inside = decode.generate(CONFIG, params, PROMPTS, max_new_tokens=5)
  outside = decode.generate(CONFIG, params, PROMPTS, max_new_tokens=5)
  assert inside == outside == decode.generate(CONFIG, make(CONFIG), PROMPTS, max_new_tokens=5)


def test_nothing_asked_nothing_done():
  assert decode.generate(CONFIG, make(CONFIG), [], max_new_tokens=5) == []
  assert decode.generate(CONFIG, make(CONFIG), PROMPTS, max_new_tokens=0) == [[], [], [], []]


@pytest.mark.parametrize('prompts, settings, message', [
  ([[]], {}, 'prompt 0 is empty'),
  ([[1], [2, 64]], {}, 'prompt 1 holds token id 64'),
  ([[1] * 100], dict(max_new_tokens=29), 'max_seq_len=128'),
  ([[1]], dict(max_new_tokens=-1), 'max_new_tokens=-1'),
])  # fmt: skip
def test_bad_requests_say_why(prompts, settings, message):
  with pytest.raises(ValueError, match=message):
    decode.generate(CONFIG, make(CONFIG), prompts, **{'max_new_tokens': 4, **settings})


def test_unstacked_parameters_are_the_same_model():
  config = dataclasses.replace(
    CONFIG, attention_bias=True, mlp_bias=True, qk_norm=True, tie_embeddings=False)
  tokens_BT = RNG.integers(0, 64, (2, 20)).astype(np.int32)
  unstacked = model.unstack(config, make(config))
  np.testing.assert_allclose(
    model.apply(config, unstacked, tokens_BT).logits,
    model.apply(config, make(config), tokens_BT).logits, atol=1e-4, rtol=1e-4)

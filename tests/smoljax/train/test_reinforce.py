"""Reinforcement: rules, advantages, losses and gradients by hand; samples that are training's own;
runs that go on after a kill."""

import dataclasses
import functools
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY
from helpers import conversations
from helpers.training import fit, leaves, tiny

from smoljax import metrics, model, sharding
from smoljax.data import chat, tokenizer
from smoljax.data.batches import Stage
from smoljax.data.corpus import open_corpus
from smoljax.data.questions import Question, Questions, question
from smoljax.inference.generate import generate
from smoljax.inference.sampling import Sampling
from smoljax.train import reinforce, rollouts
from smoljax.train.reinforce import Answer, Reinforce

RNG = np.random.default_rng(0)


# --- Rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('rule, answer, truth, reward', [
  ('number', 'It is 1,234.50.', '1234.5', 1), ('number', 'x = -3', '-3', 1),
  ('number', '3 or 4', '3', 0), ('number', 'none', '3', 0),
  ('number', '<think>\n7\n</think>\n8', '<think>\n1\n</think>\n8', 1),
  ('number', '<think>\n8', '8', 0),  # the thought never ends
  ('number', '8</think>9</think>8', '8', 0),
  ('text', ' Paris.\n', 'paris', 1), ('text', 'Paris or Rome', 'paris', 0),
  ('text', '<think>\nhm\n</think>\nyes', '<think>\nso\n</think>\nyes', 1),
  ('form', '<think>\nhm\n</think>\nyes', '<think>\nso\n</think>\nno', 1),
  ('form', '<think>\n\n</think>\nyes', '<think>\nso\n</think>\nno', 0),
  ('form', 'yes', '<think>\nso\n</think>\nno', 0), ('form', 'yes', 'no', 1),
])  # fmt: skip
def test_rules_read_what_is_said_after_the_thought(rule, answer, truth, reward):
  assert reinforce.REWARDS[rule](Answer(answer, True), truth) == reward
  assert reinforce.REWARDS[rule](Answer(answer, False), truth) == 0  # it never ended


def test_advantages_and_what_leaves_them_as_they_are():
  one = np.eye(8)[:1]
  centred = reinforce.advantages(one, False)
  np.testing.assert_allclose(centred[0, 0], 7 / 8)
  assert reinforce.advantages(one, True)[0, 0] == pytest.approx(2.474, abs=1e-3)  # TRL's default
  rewards = RNG.normal(size=(3, 8))
  for divide in (False, True):
    found = reinforce.advantages(rewards, divide)
    np.testing.assert_allclose(reinforce.advantages(rewards + 5, divide), found, atol=1e-5)
    order = RNG.permutation(8)
    np.testing.assert_allclose(
      reinforce.advantages(rewards[:, order], divide), found[:, order], atol=1e-6)
    assert not reinforce.advantages(np.full((2, 8), 0.1), divide).any()


def test_the_penalty_of_length_is_dapo_s():
  penalty = lambda n: reinforce.overlong_penalty(n, 20_480, 4096)
  assert [penalty(n) for n in (1, 16_384, 18_432, 20_480)] == [0, 0, -0.5, -1]
  assert reinforce.overlong_penalty(99, 100, 0) == 0


def test_weights_of_tokens_are_those_of_each_loss():
  mask = np.zeros((2, 6), bool)
  mask[0, 1:3] = mask[1, 1:6] = True
  loss = RNG.normal(size=mask.shape) * mask
  of = lambda name: float((reinforce.token_weights(name, mask, 10) * loss).sum())
  assert of('grpo') == pytest.approx((loss[0].sum() / 2 + loss[1].sum() / 5) / 2, abs=1e-6)
  assert of('dr_grpo') == pytest.approx(loss.sum() / (2 * 10), abs=1e-6)
  assert of('dapo') == pytest.approx(loss.sum() / 7, abs=1e-6)


@pytest.mark.parametrize('how', [
  Reinforce('grpo'), Reinforce('dapo'), Reinforce('grpo', clip_low=0.1, clip_high=0.4),
  Reinforce('grpo', kl='k2', kl_weight=0.3), Reinforce('dr_grpo', kl='k3', kl_weight=0.3),
])  # fmt: skip
def test_token_losses_and_gradients_are_those_of_torch_in_float64(how):
  torch = pytest.importorskip('torch')
  logp, old, ref, advantage = (np.float32(RNG.normal(0, s, (24, 16))) for s in (0.4, 0.4, 0.4, 1))
  x = torch.tensor(np.float64(logp), requires_grad=True)
  o, r, a = (torch.tensor(np.float64(v)) for v in (old, ref, advantage))
  high = how.clip_high or {'grpo': 0.2, 'dr_grpo': 0.2, 'dapo': 0.28}[how.loss]
  ratio = torch.exp(x - o)
  expected = -torch.minimum(ratio * a, torch.clamp(ratio, 1 - how.clip_low, 1 + high) * a)
  kl = {'none': 0 * x, 'k2': (r - x) ** 2 / 2, 'k3': torch.exp(r - x) - (r - x) - 1}[how.kl]
  expected = expected + how.kl_weight * kl
  expected.sum().backward()
  f = lambda logp: reinforce.token_loss(logp, old, advantage, how, ref)
  loss, clipped, _ = f(logp)
  slope = jax.grad(lambda v: f(v)[0].sum())(jnp.asarray(logp))
  np.testing.assert_allclose(loss, expected.detach().numpy(), atol=1e-5, rtol=1e-5)
  np.testing.assert_allclose(slope, x.grad.numpy(), atol=1e-5, rtol=1e-5)
  if how.kl == 'none':  # clipping takes a gradient on its own side only
    np.testing.assert_array_equal(clipped > 0, np.asarray(slope) == 0)
  even = jax.grad(lambda v: f(v)[0].sum())(jnp.asarray(old))
  if how.kl == 'none':  # at ρ = 1 it is REINFORCE
    np.testing.assert_allclose(even, -advantage, rtol=1e-6)


@pytest.mark.parametrize('fields, said', [
  (dict(loss='ppo'), 'one of grpo'), (dict(samples=1), 'samples=1'), (dict(temperature=0.0), 'tem'),
  (dict(kl='k3'), 'kl_weight'), (dict(rewards={'luck': 1.0}), 'one of number'),
  (dict(rewards={'number': 0.0}), 'rewards'), (dict(overlong=300), 'overlong'),
])  # fmt: skip
def test_bad_values_are_one_line(fields, said):
  with pytest.raises(ValueError, match=said) as e:
    Reinforce(**fields)
  assert '\n' not in str(e.value) and 'train.reinforce.' in str(e.value)


# --- Samples --------------------------------------------------------------------------------------

CONFIG = model.ModelConfig(
  vocab_size=64, num_layers=2, nope_interval=2, embed_dim=32, num_heads=4, num_kv_heads=2,
  head_dim=8, mlp_dim=48, max_seq_len=32, dtype='float32', init_std=0.4,
)  # fmt: skip
QUESTIONS = [Question(RNG.integers(4, 64, n).tolist(), '5') for n in (3, 9)]


class Words:
  """A tokenizer of numbers."""

  def decode(self, ids):
    return ' '.join(map(str, ids))


def sampler(how, devices=1, **fields):
  mesh = sharding.make_mesh(data=-1, devices=jax.devices()[:devices])
  config = dataclasses.replace(CONFIG, **fields)
  return rollouts.Rollouts(config, how, Words(), 3, mesh, 32, seed=0, chunk=8)


HOW = Reinforce(samples=4, max_new_tokens=12, temperature=1.5, top_k=20)


@functools.partial(jax.jit, static_argnums=0)
def learned(config, params, batch):
  f = lambda p: reinforce.objective(config, p, batch, HOW, num_sources=1, chunk=8)
  return jax.value_and_grad(lambda p: tuple(f(p)), has_aux=True)(model.computed(config, params))


@pytest.mark.parametrize('dtype', ['float32', pytest.param('bfloat16', marks=pytest.mark.slow)])
def test_what_is_learned_from_was_drawn_by_training_s_own_function_to_the_bit(dtype):
  made, params = sampler(HOW, dtype=dtype), model.init(CONFIG, jax.random.key(0))
  batch, seen = made.batch(QUESTIONS, [0, 0], params, 0)
  with jax.set_mesh(made.mesh):
    (_, metrics), grads = learned(made.config, params, sharding.shard_batch(batch, made.mesh))
  assert metrics['token_sum/moved'] == 0 and metrics['token_sum/clipped'] == 0
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
  # The draws once more, a token at a time, each from all the logits of the row before it.
  seeds = np.random.default_rng((0, 0, 1)).integers(0, 2**32, len(batch['inputs']))
  logits = jax.jit(lambda b: model.apply(
    made.config, params, b['inputs'], positions_BT=b['positions'],
    segment_ids_BT=b['segment_ids']).logits)(batch)
  for row in (0, 5):
    places = np.flatnonzero(batch['loss_mask'][row])
    for n, place in enumerate(places):
      key = jax.random.fold_in(jax.random.key(np.uint32(seeds[row])), n)
      kept = np.array(logits[row, place] / 1.5)
      kept[np.argsort(kept)[:-20]] = -np.inf
      if dtype == 'float32':
        assert batch['targets'][row, place] == jax.random.categorical(key, kept)
        np.testing.assert_allclose(batch['old_logp'][row, place], jax.nn.log_softmax(kept)[
          batch['targets'][row, place]], atol=1e-5)
    assert len(places) == 12 or batch['targets'][row, places[-1]] == 3  # EOS is an action
  assert {'rl/reward', 'rl/truncated', 'rl/same_rewards', 'rl/redrafts'} <= seen.keys()


def test_a_wrong_draft_is_mended_to_what_would_have_been_drawn(monkeypatch):
  params, made = model.init(CONFIG, jax.random.key(0)), sampler(HOW)
  expected, _ = made.batch(QUESTIONS, [0, 0], params, 0)
  right = made._draft
  calls = []

  def wrong(params, prompts, seeds, samples=1):
    drafts = right(params, prompts, seeds, samples)
    calls.append(len(drafts))
    if len(calls) == 1:  # of the first drafts the third token is another, and the rest is gone
      drafts = [[*d[:2], (4 + (d[2][0] + 1) % 60, 0.0)] if len(d) > 2 else d for d in drafts]
    return drafts

  monkeypatch.setattr(made, '_draft', wrong)
  batch, seen = made.batch(QUESTIONS, [0, 0], params, 0)
  assert seen['rl/redrafts'] >= 1 and len(calls) == 2
  jax.tree.map(np.testing.assert_array_equal, batch, expected)


@pytest.mark.slow
def test_meshes_sample_and_learn_what_one_device_does():
  params = model.init(CONFIG, jax.random.key(0))
  batch, _ = sampler(HOW).batch(QUESTIONS, [0, 0], params, 0)
  made = sampler(HOW, devices=4)
  with jax.set_mesh(made.mesh):
    placed = jax.device_put(params, sharding.shardings(params, made.mesh))
    same, _ = made.batch(QUESTIONS, [0, 0], placed, 0)
    np.testing.assert_array_equal(same['targets'], batch['targets'])
    (_, _), grads = learned(CONFIG, placed, sharding.shard_batch(same, made.mesh))
  (_, _), expected = learned(CONFIG, params, batch)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4), grads, expected)


def test_a_row_goes_on_with_the_draws_of_one_that_was_not_interrupted():
  params = model.init(CONFIG, jax.random.key(0))
  draw = functools.partial(generate, CONFIG, params, sampling=Sampling(temperature=1.0))
  prompts = [[5, 6, 7], [9, 8]]
  whole = draw(prompts, max_new_tokens=10, seed=[3, 4])
  rest = draw([p + w[:n] for p, w, n in zip(prompts, whole, (2, 7), strict=True)],
              max_new_tokens=3, seed=[(3, 2), (4, 7)])
  assert rest == [whole[0][2:5], whole[1][7:10]]


# --- Runs -----------------------------------------------------------------------------------------


def test_a_question_ends_where_the_model_answers(tmp_path):
  text = tokenizer_with_chat(tmp_path)
  documents, truths = [], ['<think>\n2 and 2\n</think>\n4', '4']
  for mode in ('think', 'no_think'):
    answer = {'role': 'assistant', 'content': '4', 'reasoning_content': '2 and 2'}
    ids, mask = chat.encode(chat.render(
      [{'role': 'user', 'content': '2+2'}, answer], mode=mode), text)
    start = mask.index(True)
    documents.append((ids[:start], ids[start:]))
  path = conversations.write(tmp_path, 'sums', {'train': documents}, text.vocab_size,
                             modes=('think', 'no_think'))
  corpus = open_corpus(path)
  for i, mode in enumerate(('think', 'no_think')):
    found = question(corpus, i, text)
    begun = chat.encode(chat.render([{'role': 'user', 'content': '2+2'}], mode=mode,
                                    generation_prompt=True), text)[0]
    assert found.prompt == begun and found.truth.strip() == truths[i]


def tokenizer_with_chat(folder):
  file = str(folder / 'tokenizer.model')
  tokenizer.train(['what is 2+2, assistant? user system think no thoughts 4 5 ' * 20], file,
                  vocab_size=300, control=chat.CONTROL)
  return tokenizer.load(file)


def questions(corpora, mixture=None):
  stage = Stage('rl', 0, 9, mixture or {'a': 0.5, 'b': 0.5})
  return Questions(corpora, [stage], rows=4, seed=0)


def test_questions_depend_on_the_batch_s_number_alone(tmp_path):
  rows = [([4, 5], [6, 2])] * 6
  corpora = {name: open_corpus(conversations.write(tmp_path, name, {'train': rows}, 64), name=name)
             for name in ('a', 'b')}
  asked = [x for x, _ in zip(questions(corpora), range(9), strict=False)]
  again = iter(questions(corpora))
  again.set_state({'step': 4, 'number': 4})
  np.testing.assert_array_equal(next(again)['document'], asked[4]['document'])
  assert len([*questions(corpora)]) == 9
  position = questions(corpora).after({'step': 4, 'number': 4}, 3)
  assert position == {'step': 4, 'number': 7}
  assert sum(map(len, questions(corpora).documents(position, 0).values())) <= 4
  with pytest.raises(ValueError, match='no corpus named c'):
    questions(corpora, {'c': 1.0})


@pytest.fixture
def sums(tmp_path):
  """A corpus of two questions' kinds, a base model's run on it, and the config of reinforcement."""
  text = tokenizer_with_chat(tmp_path)
  rows = []
  for i in range(60):
    ids, mask = chat.encode(chat.render(
      [{'role': 'system', 'content': '/system_override'},
       {'role': 'user', 'content': f'{i % 10}+{i // 10}'},
       {'role': 'assistant', 'content': str(i % 10)}], mode='no_think'), text)
    rows.append((ids[:mask.index(True)], ids[mask.index(True):]))
  corpora = {'chat': conversations.write(
    tmp_path, 'chat', {'train': rows[:40], 'validation': rows[40:]}, text.vocab_size,
    modes=('no_think',), turn_id=text.controls[chat.START], end_id=text.controls[chat.END])}
  fields = {
    'tokenizer.vocab_size': text.vocab_size, 'data.seq_len': 64, 'model.embed_dim': 32,
    'train.stages': (dict(name='rl', fraction=1.0, mixture={'chat': 1.0}),),
    'train.reinforce.loss': 'grpo', 'train.reinforce.samples': 4,
    'train.reinforce.max_new_tokens': 6, 'train.reinforce.rewards.form': 0.5,
    'train.reinforce.updates': 2, 'train.tokens': 8 * 8 * 64, 'train.eval_every': 4,
    'train.checkpoint_every': 2, 'optimizer.learning_rate': 1e-3}
  meta = {'tokenizer': str(tmp_path / 'tokenizer.model')}
  return corpora, fields, meta, text.vocab_size


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_bits(sums, tmp_path):
  corpora, fields, meta, vocab_size = sums
  fit(tiny(**fields), corpora, tmp_path / 'whole', meta=meta, vocab_size=vocab_size)
  script = f'''
import os, signal, sys
sys.path[:0] = [{str(REPOSITORY)!r}, {str(REPOSITORY / "tests")!r}]
import conftest
from helpers.training import fit, tiny
from smoljax.train import telemetry
seen = telemetry.Telemetry.measured
def measured(self, step, row):
  seen(self, step, row)
  if step == 7:  # its second update, on answers that no checkpoint holds
    os.kill(os.getpid(), signal.SIGKILL)
telemetry.Telemetry.measured = measured
fit(tiny(**{fields!r}), {corpora!r}, {str(tmp_path / 'killed')!r}, meta={meta!r},
    vocab_size={vocab_size})
'''
  done = subprocess.run([sys.executable, '-c', script], cwd=REPOSITORY, env=dict(os.environ),
                        capture_output=True, text=True)
  assert done.returncode == -signal.SIGKILL, done.stderr
  fit(tiny(**fields), corpora, tmp_path / 'killed', meta=meta, vocab_size=vocab_size)
  for a, b in zip(leaves(tmp_path / 'whole' / 'checkpoints'),
                  leaves(tmp_path / 'killed' / 'checkpoints'), strict=True):
    np.testing.assert_array_equal(a.view(np.int32), b.view(np.int32))
  rows = metrics.read_rows(str(tmp_path / 'whole' / 'metrics.jsonl'))
  seen = {k for row in rows for k in row}
  assert {'rl/reward', 'rl/entropy', 'rl/moved', 'val/chat/pass@1', 'val/chat/pass@4'} <= seen
  first = next(row for row in rows if 'rl/moved' in row)
  assert first['rl/moved'] > 0  # the second update is no longer on-policy

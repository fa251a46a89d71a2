"""Evaluation, against log-probabilities computed apart, planted models, lm-eval's numbers."""

import dataclasses
import functools
import itertools
import json
import math
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smoljax import evals, model, sharding
from smoljax.checkpoints import huggingface, load
from smoljax.checkpoints.store import Checkpoints
from smoljax.data import tokenizer
from smoljax.evals import held_out, likelihood, multiple_choice
from smoljax.evals.held_out import bits_per_byte, copy_probe, load_documents, unigram_loss
from smoljax.evals.tasks import TASKS, build_continuation_task, load_task

V = 96


class Letters:
  """One token a character: ASCII less 32, 92 for a newline; 93 for `joined`, a pair of them."""

  path, vocab_size, bos_id, eos_id = 'letters', V, 95, 94

  def __init__(self, joined: str = ''):
    self._joined = joined

  def encode(self, text: str) -> list[int]:
    ids, i = [], 0
    while i < len(text):
      if self._joined and text.startswith(self._joined, i):
        ids.append(93)
        i += len(self._joined)
      else:
        ids.append(92 if text[i] == '\n' else ord(text[i]) - 32)
        i += 1
    return ids

  def decode(self, ids) -> str:
    return ''.join(chr(int(i) + 32) for i in ids if i < 93)


@pytest.fixture(scope='module')
def small():
  """A random model whose predictions depend on all of its context."""
  config = model.ModelConfig(
    vocab_size=V, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64,
    max_seq_len=256, nope_interval=2, init_std=0.4, dtype='float32',
  )  # fmt: skip
  return config, model.init(config, jax.random.key(0))


def bigram(log_p_VV: np.ndarray):
  """A model that is exactly this table: one-hot embeddings, silent blocks, the table as head."""
  config = model.ModelConfig(
    vocab_size=V, num_layers=1, embed_dim=V, num_heads=1, num_kv_heads=1, head_dim=2, mlp_dim=1,
    max_seq_len=256, tie_embeddings=False, norm_eps=1e-12, dtype='float32',
  )  # fmt: skip
  params = jax.tree.map(jnp.zeros_like, model.init(config, jax.random.key(0)))
  params['embed_VD'] = jnp.eye(V)
  params['final_norm']['scale_D'] = jnp.full(V, 1 / math.sqrt(V))
  return config, {**params, 'head_DV': jnp.asarray(log_p_VV, jnp.float32)}


@functools.partial(jax.jit, static_argnums=0)
def full_logits(config, params, tokens_BT):
  return model.apply(config, params, tokens_BT).logits


def reference_logprobs(config, params, tokens) -> np.ndarray:
  """Log-probabilities `[n - 1]` of tokens 1… by numpy in float64, from the full logits."""
  padded = np.full((1, 256), 7)  # one shape, one compilation
  padded[0, : len(tokens) - 1] = tokens[:-1]
  logits = np.asarray(full_logits(config, params, padded)[0, : len(tokens) - 1], np.float64)
  log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
  return logits[np.arange(len(tokens) - 1), tokens[1:]] - log_z


def documents(*lengths: int, seed: int = 0) -> list[dict]:
  rng = np.random.default_rng(seed)
  return [{'tokens': rng.integers(0, V, n), 'num_bytes': 3 * n + 1} for n in lengths]


# --- Windows and bits per byte -------------------------------------------------------------------


@given(st.integers(0, 300), st.integers(1, 300), st.integers(1, 64), st.data())
def test_windows_score_every_token_once_with_enough_context(size, first, seq_len, draw):
  min_context = draw.draw(st.integers(0, seq_len - 1))
  tokens = np.arange(size)
  scored, starts = [], []
  for w in likelihood.windows('k', tokens, first=first, seq_len=seq_len, min_context=min_context):
    assert w.key == 'k' and 1 <= w.first < len(w.tokens) <= seq_len + 1
    targets = w.tokens[w.first :]
    scored += targets.tolist()
    starts.append(int(w.tokens[0]))
    if starts[-1] > 0 and len(starts) > 1:
      assert w.first > min_context
  assert scored == list(range(first, size))
  if starts and size <= seq_len + 1:
    assert starts == [0]


def test_few_windows_share_a_program_and_many_have_their_own(small, monkeypatch):
  shapes = []

  def score(config, params, inputs_BT, targets_BT):
    shapes.append(inputs_BT.shape)
    return -np.abs(targets_BT), np.zeros(targets_BT.shape)

  monkeypatch.setattr(likelihood, '_score', score)
  lengths = np.random.default_rng(0).integers(2, 900, 40)
  many = [*lengths, *[100] * 300]
  for numbers, programs in ((lengths, 1), (many, 2)):
    shapes.clear()
    stream = [likelihood.Window(i, np.full(n, i), 1) for i, n in enumerate(numbers)]
    found = list(likelihood.run_windows(*small, iter(stream), batch_size=16, seq_len=1024))
    assert sorted(key for key, _, _ in found) == list(range(len(numbers)))
    for key, logprobs, _ in found:
      np.testing.assert_array_equal(logprobs, np.full(numbers[key] - 1, -key))
    assert len({*shapes}) == programs


def test_bits_per_byte_against_numpy(small):
  docs = documents(2, 3, 40, 127, 128, 129, 130)
  got = bits_per_byte(*small, docs, batch_size=3, seq_len=200)
  nats = -sum(reference_logprobs(*small, d['tokens']).sum() for d in docs)
  tokens, size = sum(len(d['tokens']) - 1 for d in docs), sum(d['num_bytes'] for d in docs)
  assert got['bpb'] == pytest.approx(nats / math.log(2) / size, rel=1e-6)
  assert got['loss'] == pytest.approx(nats / tokens, rel=1e-6)
  assert (got['documents'], got['tokens'], got['bytes']) == (7, tokens, size)


def test_bits_per_byte_by_language(small):
  docs = [d | {'language': x} for d, x in zip(documents(40, 127, 90), ('en', 'de', 'en'),
                                              strict=True)]
  options = {'batch_size': 2, 'seq_len': 200}
  got = bits_per_byte(*small, docs, **options)
  alone = {x: bits_per_byte(*small, [d for d in docs if d['language'] == x], **options)
           for x in ('de', 'en')}
  assert got['languages'] == pytest.approx({x: of['bpb'] for x, of in alone.items()}, rel=1e-6)
  assert all('languages' not in of for of in alone.values())


def test_calibration_against_numpy(small):
  docs = documents(40, 127)
  got = bits_per_byte(*small, docs, batch_size=2, seq_len=200)
  sure, right = [], []
  for d in docs:
    n = len(d['tokens']) - 1
    padded = np.full((1, 256), 7)
    padded[0, :n] = d['tokens'][:-1]
    logits = np.asarray(full_logits(*small, padded)[0, :n], np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    sure += (p.max(-1) / p.sum(-1)).tolist()
    right += (logits.argmax(-1) == d['tokens'][1:]).tolist()
  sure, right = np.array(sure), np.array(right)
  expected, ece = [], 0.0
  for low in np.arange(10) / 10:
    inside = (sure >= low) & (sure < low + 0.1)
    means = [x[inside].mean() if inside.any() else 0.0 for x in (sure, right)]
    expected.append([inside.sum(), *means])
    ece += inside.mean() * abs(means[0] - means[1])
  np.testing.assert_allclose(got['calibration'], expected, atol=1e-5)
  assert got['ece'] == pytest.approx(ece, abs=1e-5)


@pytest.mark.parametrize('looks_back', [0, 60, 1000])
def test_copy_probe_tells_what_is_copied(small, monkeypatch, looks_back):
  """Of a machine that repeats what last followed the last two tokens, if not too long ago."""
  config, params = small

  def score(config, params, inputs_BT, targets_BT):
    inputs_BT, targets_BT = np.asarray(inputs_BT), np.asarray(targets_BT)
    logprobs_BT = np.full(inputs_BT.shape, -5.0, np.float32)
    for x_T, y_T, out_T in zip(inputs_BT, targets_BT, logprobs_BT, strict=True):
      for t in range(1, len(x_T)):
        known = [s for s in range(max(1, t - looks_back), t)
                 if (x_T[s - 1], x_T[s]) == (x_T[t - 1], x_T[t])]
        if known and y_T[known[-1]] == y_T[t]:
          out_T[t] = -0.5
    return logprobs_BT, np.full_like(logprobs_BT, -0.5)

  monkeypatch.setattr(likelihood, '_score', score)
  rng = np.random.default_rng(0)
  docs = [{'tokens': rng.permutation(10_000)[:n], 'num_bytes': n} for n in (900, 300)]
  got = copy_probe(config, params, docs, batch_size=4, seq_len=256, rows=6)
  reaches = {'near': looks_back > 32, 'far': looks_back > 256 - 32}
  for name, row in got.items():  # of 31 places, the first has one token before it
    share = 30 / 31 if reaches[name] else 0
    assert row['accuracy'] == pytest.approx(share, abs=0.01)
    assert row['saved'] == pytest.approx(4.5 * share, abs=0.05)


def test_copy_probe_of_a_model_without_context(small):
  """Knowing only the last token, a second time is as likely as the first."""
  table = np.random.default_rng(0).dirichlet(np.full(V, 0.1), V).clip(1e-6)
  known = bigram(np.log(table / table.sum(1, keepdims=True)))
  got, again = (
    copy_probe(*known, documents(200, 90), batch_size=n, seq_len=128, rows=4) for n in (3, 2))
  assert all(abs(row['saved']) < 1e-5 for row in got.values())
  for name, row in got.items():
    assert again[name] == pytest.approx(row)
  with pytest.raises(ValueError, match='no held-out text'):
    copy_probe(*small, [], batch_size=2, seq_len=64)


@pytest.mark.parametrize(('seq_len', 'min_context'), [(32, None), (32, 0), (48, 40)])
def test_windows_of_long_documents_against_one_token_at_a_time(small, seq_len, min_context):
  docs = documents(20, 33, 34, 111)
  got = bits_per_byte(*small, docs, batch_size=4, seq_len=seq_len, min_context=min_context)
  step = seq_len - (seq_len // 4 if min_context is None else min_context)
  nats = 0.0
  for d in docs:
    for t in range(1, len(d['tokens'])):
      start = step * max(0, math.ceil((t - seq_len) / step))
      nats -= reference_logprobs(*small, d['tokens'][start : t + 1])[-1]
  assert got['tokens'] == 19 + 32 + 33 + 110
  assert got['loss'] * got['tokens'] == pytest.approx(nats, rel=1e-6)


def test_uniform_model_costs_log_v(small):
  config, params = small
  zero = jax.tree.map(jnp.zeros_like, params)
  docs = documents(1, 2, 150, 400)  # one of them predicts nothing
  got = bits_per_byte(config, zero, docs, batch_size=2, seq_len=64)
  assert got['tokens'] == 1 + 149 + 399
  assert got['bpb'] == pytest.approx(math.log2(V) * got['tokens'] / got['bytes'], rel=1e-6)


@pytest.mark.parametrize('shape', [(8, 1, 1), (2, 2, 2), (1, 2, 1, 3)])
def test_a_mesh_changes_nothing(small, shape):
  config, params = small
  docs = documents(5, 60, 170, 300)
  alone = bits_per_byte(config, params, docs, batch_size=3, seq_len=132)
  mesh = sharding.make_mesh(*shape, devices=jax.devices()[: math.prod(shape)])
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, sharding.shardings(params, mesh))
    meshed = bits_per_byte(config, placed, docs, batch_size=3, seq_len=132)
  assert meshed.pop('calibration') == [pytest.approx(x, rel=1e-5) for x in alone.pop('calibration')]
  assert meshed == pytest.approx(alone, rel=1e-6)


def test_a_broken_model_is_said(small):
  config, params = small
  broken = jax.tree.map(lambda p: p * jnp.nan, params)
  with pytest.raises(ArithmeticError, match='no numbers'):
    bits_per_byte(config, broken, documents(9), batch_size=2, seq_len=64)
  with pytest.raises(ArithmeticError, match='vocabulary of 96'):
    outside = [{'tokens': np.array([1, 96, 3]), 'num_bytes': 3}]
    bits_per_byte(config, params, outside, batch_size=2, seq_len=64)


def test_nothing_to_score_is_said(small):
  for docs in ([], documents(1, 1), documents(0)):
    with pytest.raises(ValueError, match='no held-out text'):
      bits_per_byte(*small, docs, batch_size=2, seq_len=64)
    with pytest.raises(ValueError, match='no held-out text'):
      unigram_loss(np.ones(V, int), docs)


def test_unigram_loss():
  counts = np.array([5, 0, 2])  # smoothed: 6/10, 1/10, 3/10
  docs = [{'tokens': np.array([1, 0, 0, 2]), 'num_bytes': 4}, {'tokens': np.array([0, 1])}]
  expected = -(2 * math.log(0.6) + math.log(0.3) + math.log(0.1)) / 4
  assert unigram_loss(counts, docs) == pytest.approx(expected, rel=1e-12)


def test_load_documents_reads_the_held_out_split(markov_corpora):
  docs = load_documents(markov_corpora['web'])
  assert len(docs) == 20 and all(d['tokens'][0] == 2 for d in docs)
  assert all(d['num_bytes'] == 3 * len(d['tokens']) for d in docs)
  assert len(load_documents(markov_corpora['web'], limit=7)) == 7
  assert len(load_documents(markov_corpora['web'], split='train')) == 300


# --- Multiple choice -----------------------------------------------------------------------------

OPTIONS = {'batch_size': 4, 'seq_len': 128}


def random_examples(n: int = 10) -> list[dict]:
  rng = np.random.default_rng(1)
  word = lambda size: ''.join(chr(c) for c in rng.integers(33, 120, size))
  return [
    {'context': word(rng.integers(1, 150)), 'choices': [' ' + word(k) for k in (1, 5, 40)],
     'answer': 1}
    for _ in range(n)
  ]  # fmt: skip


@pytest.mark.parametrize('bos', [False, True])
def test_choice_scores_against_numpy(small, bos):
  """Contexts too long for the window are cut on the left."""
  text, examples = Letters(), random_examples()
  got = multiple_choice.score_choices(*small, text, examples, bos=bos, **OPTIONS)
  for e, row in zip(examples, got, strict=True):
    for choice, score in zip(e['choices'], row, strict=True):
      ids = [95] * bos + text.encode(e['context'] + choice)
      expected = reference_logprobs(*small, np.array(ids[-129:]))[-len(choice) :]
      assert score.tokens == len(choice)
      assert score.logprob == pytest.approx(expected.sum(), rel=1e-6)


def test_scores_do_not_depend_on_the_batch(small):
  examples = random_examples(12)
  one, sixteen = (
    multiple_choice.score_choices(*small, Letters(), examples, bos=True, batch_size=b, seq_len=128)
    for b in (1, 16)
  )
  flat = itertools.chain.from_iterable
  for a, b in zip(flat(one), flat(sixteen), strict=True):
    assert a.logprob == pytest.approx(b.logprob, rel=1e-6)
    assert (a.tokens, a.greedy) == (b.tokens, b.greedy)
  blind = [[multiple_choice.Score(0.0, 1, False)] * 3] * 12
  assert multiple_choice.summarize(examples, one, blind) == multiple_choice.summarize(
    examples, sixteen, blind
  )


def test_a_token_across_the_boundary_counts_for_all_answers(small):
  """'q.' is one token: the answer '. no' takes the context's q along, so the others must too."""
  text = Letters(joined='q.')
  example = {'context': 'abcq', 'choices': ['. no', '! no'], 'answer': 0}
  [row] = multiple_choice.score_choices(*small, text, [example], bos=True, **OPTIONS)
  for choice, score, count in zip(example['choices'], row, (4, 5), strict=True):
    ids = np.array([95, *text.encode('abcq' + choice)])
    assert score.tokens == count  # q. + 3, and q + 4
    expected = reference_logprobs(*small, ids)[3:].sum()
    assert score.logprob == pytest.approx(expected, rel=1e-6)


def test_empty_context_stands_after_bos_or_eos(small):
  for bos, start in ((True, 95), (False, 94)):
    example = {'context': '', 'choices': ['xyz'], 'answer': 0}
    [[score]] = multiple_choice.score_choices(*small, Letters(), [example], bos=bos, **OPTIONS)
    expected = reference_logprobs(*small, np.array([start, *Letters().encode('xyz')])).sum()
    assert score.logprob == pytest.approx(expected, rel=1e-6)


def test_planted_model_finds_the_right_answer_only_with_its_context():
  """After a digit comes the letter that many places after 'a'; no letter is likelier alone."""
  table = np.full((V, V), -8.0)
  for digit in range(8):
    table[ord('0') + digit - 32, ord('a') + digit - 32] = 0.0
  config, params = bigram(table)
  rng = np.random.default_rng(0)
  examples = []
  for _ in range(80):
    digits = rng.choice(8, 4, replace=False)
    answer = int(rng.integers(4))
    examples.append({
      'context': f'say {digits[answer]}',
      'choices': [chr(ord('a') + d) + 'z' for d in digits],
      'answer': answer,
    })  # fmt: skip
  scores = multiple_choice.score_choices(config, params, Letters(), examples, bos=True, **OPTIONS)
  uninformed = [{**e, 'context': ''} for e in examples]
  blind = multiple_choice.score_choices(config, params, Letters(), uninformed, bos=True, **OPTIONS)
  got = multiple_choice.summarize(examples, scores, blind)
  assert [got[k] for k in ('acc', 'acc_norm', 'acc_token', 'acc_pmi')] == [1.0] * 4
  assert got['stderr'] == 0.0 and got['chance'] == 0.25 and got['n'] == 80
  assert got['blind'] == {'acc': 0.25, 'acc_norm': 0.25, 'acc_token': 0.25}, 'equals share'
  assert all(e['predicted'] == e['answer'] for e in got['examples'])


def test_contexts_of_their_own_per_choice():
  """As in WinoGrande: the same ending after different beginnings."""
  table = np.full((V, V), -5.0)
  table[ord('b') - 32, ord('!') - 32] = 0.0
  examples = [{'context': ['a', 'b'], 'choices': ['!', '!'], 'answer': 1}]
  scores = multiple_choice.score_choices(*bigram(table), Letters(), examples, bos=True, **OPTIONS)
  assert multiple_choice.summarize(examples, scores, scores)['acc'] == 1.0


def test_summary_by_hand():
  S = multiple_choice.Score
  examples = [
    {'context': 'q', 'choices': [' a', ' bbbb'], 'answer': 1},
    {'context': 'q', 'choices': [' cc', ' dd', ' e'], 'answer': 0},
  ]
  scores = [[S(-2.0, 1, False), S(-4.0, 4, False)], [S(-3.0, 2, False), S(-3.0, 3, False),
            S(-9.0, 1, False)]]  # fmt: skip
  blind = [[S(-1.0, 1, False), S(-9.0, 4, False)], [S(-5.0, 2, False), S(-1.0, 3, False),
           S(-2.0, 1, False)]]  # fmt: skip
  got = multiple_choice.summarize(examples, scores, blind, num_shown=1)
  assert got['acc'] == 0.25  # 0 and half a point for the tie
  assert got['acc_norm'] == 0.75  # -2 < -1; -1.5 = -1.5 > -9
  assert got['acc_token'] == 0.5  # -2 < -1; -1.5 < -1 (second)
  assert got['acc_pmi'] == 1.0  # -1 < 5; 2 > -2, -7
  assert got['blind'] == {'acc': 0.0, 'acc_norm': 0.0, 'acc_token': 0.0}
  assert got['longest'] == 0.75 and got['chance'] == pytest.approx((1 / 2 + 1 / 3) / 2)
  assert got['stderr'] == pytest.approx(0.25)  # of {0, ½}
  assert got['examples'] == [
    {'context': 'q', 'choices': [' a', ' bbbb'], 'answer': 1, 'predicted': 0}
  ]


def test_one_choice_is_scored_greedily():
  table = np.full((V, V), -5.0)
  for a, b in ('wo', 'or', 'rd', '  '):
    table[ord(a) - 32, ord(b) - 32] = 0.0
  table[ord('x') - 32, 0] = table[0, ord('w') - 32] = 1.0
  examples = [{'context': 'x', 'choices': [w], 'answer': 0} for w in (' word', ' wore')]
  scores = multiple_choice.score_choices(*bigram(table), Letters(), examples, bos=True, **OPTIONS)
  got = multiple_choice.summarize(examples, scores, scores)
  assert got['acc'] == 0.5 and got['chance'] == 0.0 and got['loss'] > 0
  assert 'acc_norm' not in got


# --- The continuation task -----------------------------------------------------------------------


def prose(n: int = 60, seed: int = 0) -> list[dict]:
  """Documents each with words and a word length of their own."""
  rng = np.random.default_rng(seed)
  docs = []
  for i in range(n):
    letters = [chr(c) for c in rng.choice(np.arange(97, 123), 6, replace=False)]
    words = [''.join(rng.choice(letters, rng.integers(1, 3 + i % 9))) for _ in range(200)]
    docs.append({'tokens': np.array(Letters().encode(' '.join(words))), 'num_bytes': 1})
  return docs


def test_continuation_task_is_what_it_says():
  docs, text = prose(), Letters()
  texts = [text.decode(d['tokens']) for d in docs]
  build = lambda seed: build_continuation_task(
    docs, text, n=300, seed=seed, context_chars=64, choice_chars=48
  )
  task = build(0)
  assert task == build(0) and task != build(1) and len(task) == 300
  for e in task:
    assert {len(c) for c in e['choices']} == {48} and len(e['context']) == 64
    assert all(c[0] == ' ' for c in e['choices']) and not e['context'].endswith(' ')
    home = [i for i, t in enumerate(texts) if e['context'] + e['choices'][e['answer']] in t]
    assert len(home) == 1
    for j, c in enumerate(e['choices']):
      assert (j == e['answer']) == (c in texts[home[0]])
  positions = np.bincount([e['answer'] for e in task], minlength=4)
  assert positions.min() > 45


def test_continuation_task_leaks_nothing_to_a_blind_scorer():
  """Whatever is preferred about an answer alone, the real one is it once in four times."""
  n = 3000
  docs = prose(40)
  task = build_continuation_task(
    docs, Letters(), n=n, seed=3, context_chars=64, choice_chars=48
  )
  rng = np.random.default_rng(0)
  taste = {chr(c): rng.normal() for c in range(32, 127)}
  blind_scorers = {
    'spaces': lambda c: c.count(' '),
    'last': lambda c: ord(c[-1]),
    'letters': lambda c: sum(map(taste.get, c)),
    'order': lambda c: c,
  }
  for name, score in blind_scorers.items():
    right = sum(max(e['choices'], key=score) == e['choices'][e['answer']] for e in task)
    assert abs(right / n - 0.25) < 4 * math.sqrt(0.25 * 0.75 / n), name
  # And a scorer that reads the context finds it: each document has its own six letters.
  aware = sum(
    max(e['choices'], key=lambda c: len(set(c) & set(e['context'])) - len(set(c)))
    == e['choices'][e['answer']]
    for e in task
  )
  assert aware / n > 0.9


def test_continuation_task_needs_enough_text():
  with pytest.raises(ValueError, match=r'needs 4 held-out documents.*there are 3.*holdout'):
    build_continuation_task(prose(3), Letters(), n=2, seed=0)
  same = prose(1) * 5
  with pytest.raises(ValueError, match='differ'):
    build_continuation_task(
      [{**d, 'tokens': d['tokens'][:420]} for d in same], Letters(), n=2, seed=0,
      context_chars=256, choice_chars=160,
    )  # fmt: skip


# --- Tasks and evaluate --------------------------------------------------------------------------


def test_evaluate_gives_the_results_file(small, tmp_path):
  rows = [{'goal': 'cut bread', 'sol1': 'a knife', 'sol2': 'a cloud', 'label': i % 2}
          for i in range(30)]  # fmt: skip
  (tmp_path / 'piqa.validation.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  lines = []
  got = evals.evaluate(
    *small, Letters(), ['continuation', 'piqa'], str(tmp_path),
    documents={'web': prose(20), 'pdf': prose(9, seed=5)},
    unigram_counts={'web': np.ones(V, int)},
    bos=True, seq_len=256, limit=11, log_line=lines.append,
  )  # fmt: skip
  assert json.loads(json.dumps(got)) == got
  assert set(got['bits_per_byte']['web']) == {
    'bpb', 'loss', 'unigram_loss', 'documents', 'tokens', 'bytes', 'calibration', 'ece'
  }  # fmt: skip
  assert set(got['copy']['near']) == {'accuracy', 'saved'}
  assert got['bits_per_byte']['web']['unigram_loss'] == pytest.approx(math.log(V))
  assert 'unigram_loss' not in got['bits_per_byte']['pdf']
  assert got['tasks']['continuation']['n'] == got['tasks']['piqa']['n'] == 11
  assert {'acc', 'acc_norm', 'stderr', 'chance', 'blind', 'longest', 'examples'} <= set(
    got['tasks']['piqa']
  )
  assert got['tasks']['piqa']['blind']['acc'] == pytest.approx(6 / 11, abs=0.1)  # a constant answer
  assert len(lines) == 5


def test_what_cannot_be_evaluated_is_said_first(small, tmp_path):
  run = lambda tasks, **kw: evals.evaluate(
    *small, Letters(), tasks, str(tmp_path), bos=True, seq_len=64, **kw
  )
  with pytest.raises(ValueError, match=r"unknown task 'hella'.*hellaswag"):
    run(['hella'])
  with pytest.raises(FileNotFoundError, match=f'piqa.validation.jsonl.*{tmp_path}'):
    run(['piqa'])
  with pytest.raises(ValueError, match='held-out documents'):
    run(['continuation'])
  for content in ('{"goal": "x"}', 'no json', '{"goal": 1, "sol1": 2, "sol2": 3, "label": "?"}'):
    (tmp_path / 'piqa.validation.jsonl').write_text('\n' + content)
    with pytest.raises(ValueError, match='line 1 is no row of piqa'):
      run(['piqa'])
  (tmp_path / 'piqa.validation.jsonl').write_text('')
  with pytest.raises(ValueError, match='empty'):
    run(['piqa'])
  config, params = small
  narrow = dataclasses.replace(config, vocab_size=50)
  with pytest.raises(ValueError, match='96 ids, the model knows 50'):
    evals.evaluate(narrow, params, Letters(), [], bos=True, seq_len=64)


# Official lm-eval 0.4.13 on these files, with a model whose every byte costs ln 256: it takes the
# first of equals. acc is then the shortest answer in bytes, acc_norm the best (bytes + 1)/length.
LM_EVAL = {
  ('hellaswag', 'acc'): 25.4,
  ('hellaswag', 'acc_norm'): 24.0,
  ('arc_easy', 'acc'): 27.9,
  ('arc_challenge', 'acc_norm'): 28.8,
  ('piqa', 'acc'): 53.4,
  ('openbookqa', 'acc_norm'): 42.0,
  ('sciq', 'acc'): 13.3,
  ('mmlu', 'acc_norm'): 27.7,
  ('boolq', 'acc'): 37.8,
}


@pytest.mark.parametrize(('task', 'metric'), LM_EVAL)
def test_byte_model_scores_as_in_lm_eval(shared_data, task, metric):
  examples = load_task(
    task, str(shared_data / 'eval'), documents={}, tokenizer=Letters()
  )
  right = 0
  for e in examples:
    scores = [-len(c.encode()) / (len(c) - 1 if metric == 'acc_norm' else 1) for c in e['choices']]
    right += int(np.argmax(scores)) == e['answer']
  assert 100 * right / len(examples) == pytest.approx(LM_EVAL[task, metric], abs=0.05)


def test_every_public_task_loads(shared_data):
  for name, task in TASKS.items():
    if task.file is None:
      continue
    examples = load_task(
      name, str(shared_data / 'eval'), documents={}, tokenizer=Letters(), limit=50
    )
    assert len(examples) == 50, name
    for e in examples:
      assert 0 <= e['answer'] < len(e['choices'])
      assert all(c.startswith(' ') and c.strip() for c in e['choices']), name
      assert all(c == c.rstrip() and c for c in multiple_choice._contexts(e)), name


# --- From the command line -----------------------------------------------------------------------


@pytest.fixture(scope='module')
def trained(small, tmp_path_factory):
  """The small model as a run's workdir and as a Hugging Face folder, with a tokenizer."""
  config = dataclasses.replace(small[0], vocab_size=300)
  params = model.init(config, jax.random.key(1))
  workdir = tmp_path_factory.mktemp('run')
  texts = ['the value of the list is returned\n' * 5, 'def value(list):\n    return list\n' * 5]
  tokenizer.train(texts, str(workdir / 'tokenizer.model'), vocab_size=300)
  meta = {'model': dataclasses.asdict(config), 'config': {'tokenize': {'bos': True}}}
  with Checkpoints(str(workdir / 'checkpoints')) as saved:
    saved.save(3, params, {'count': jnp.zeros(())}, {}, {**meta, 'tokenizer': 'moved/away.model'})
  hf = str(workdir / 'export')
  huggingface.save_hf(config, params, hf, dtype='float32')
  tokenizer.to_hf(str(workdir / 'tokenizer.model'), hf, bos=True, max_length=256)
  return config, params, workdir


def test_load_model_from_a_run_and_from_hugging_face(trained, tmp_path):
  config, params, workdir = trained
  for place in ('', 'checkpoints', 'checkpoints/3', 'export'):
    loaded = load.load_model(str(workdir / place))
    assert loaded.bos and loaded.config.embed_dim == config.embed_dim
    assert loaded.tokenizer.encode('the list') == tokenizer.load(
      str(workdir / 'tokenizer.model')
    ).encode('the list')
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
  with pytest.raises(FileNotFoundError, match='no model at'):
    load.load_model(str(tmp_path / 'nowhere'))
  with pytest.raises(FileNotFoundError, match='no intact checkpoint'):
    load.load_model(str(tmp_path))
  with pytest.raises(FileNotFoundError, match='no tokenizer at'):
    load.load_model(str(workdir), 'missing.model')


def test_a_runs_tokenizer_may_stand_anywhere(trained, tmp_path):
  # As of a run with --config.tokenizer.path, which has none in its folder.
  config, params, workdir = trained
  meta = {'model': dataclasses.asdict(config), 'tokenizer': str(workdir / 'tokenizer.model')}
  with Checkpoints(str(tmp_path / 'run' / 'checkpoints')) as saved:
    saved.save(3, params, {'count': jnp.zeros(())}, {}, meta)
  for place in ('run', 'run/checkpoints', 'run/checkpoints/3'):
    assert load.find_tokenizer(str(tmp_path / place)) == meta['tokenizer']


def test_evaluate_command(trained, markov_corpora, tmp_path, capsys):
  from absl.testing import flagsaver

  from experiments import evaluate

  _, _, workdir = trained
  rows = [{'goal': 'a', 'sol1': 'value', 'sol2': 'the list', 'label': i % 2} for i in range(9)]
  (tmp_path / 'piqa.validation.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  output = tmp_path / 'deep' / 'eval.json'
  common = dict(checkpoint=[str(workdir)], output=str(output), eval_data=str(tmp_path))
  with flagsaver.flagsaver(**common, tasks=['piqa'], corpus=[markov_corpora['web']], limit=5):
    evaluate.main(['evaluate'])
  results = json.loads(output.read_text())
  assert results['tasks']['piqa']['n'] == 5
  assert results['bits_per_byte']['web']['documents'] == 5
  assert str(output) in capsys.readouterr().out
  for wrong, words in (
    ({'tasks': ['piqua']}, 'unknown task'),
    ({'checkpoint': [], 'tasks': ['piqa']}, 'which model'),
    ({'output': None, 'tasks': ['piqa']}, 'where to'),
    ({'checkpoint': [str(tmp_path)], 'tasks': ['piqa']}, 'no intact checkpoint'),
    ({}, 'nothing to measure'),
  ):
    with flagsaver.flagsaver(**{**common, **wrong}), pytest.raises(SystemExit) as e:
      evaluate.main(['evaluate'])
    error = capsys.readouterr().err
    assert e.value.code == 2 and words in error and error.count('\n') == 1


# --checkpoint and others are flags of both commands, so the second has a process of its own.
@pytest.mark.slow
def test_generate_command(trained):
  _, _, workdir = trained

  def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, '-m', 'experiments.generate', *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)

  same = (f'--tokenizer={workdir}/tokenizer.model', '--prompt=the ', '--max_new_tokens=20')
  texts = [
    run(f'--checkpoint={workdir}/{place}', f'--seed={seed}', *same)
    for place, seed in (('', 1), ('export', 1), ('', 2))
  ]
  assert all(t.returncode == 0 and t.stdout.startswith('the ') for t in texts), texts[0].stderr
  assert texts[0].stdout == texts[1].stdout != texts[2].stdout
  wrong = run(f'--checkpoint={workdir}', '--prompt=a', '--max_new_tokens=1000')
  assert wrong.returncode == 2 and wrong.stdout == ''
  assert 'trained on 256: give --context=1002 or more' in wrong.stderr.splitlines()[-1]


def test_a_corpus_that_only_judges_is_compared_with_the_tokens_of_the_others(monkeypatch):
  def opened(path):
    if path == 'news':
      raise held_out.EmptySplit('no training text')
    return types.SimpleNamespace(token_counts=lambda size: np.full(size, len(path)))

  monkeypatch.setattr(held_out, 'open_corpus', opened)
  counts = held_out.unigram_counts({n: n for n in ('web', 'news', 'books')}, 3)
  assert {n: c.tolist() for n, c in counts.items()} == {
    'web': [3] * 3, 'news': [8] * 3, 'books': [5] * 3}
  assert held_out.unigram_counts({'news': 'news'}, 2)['news'].tolist() == [0, 0]

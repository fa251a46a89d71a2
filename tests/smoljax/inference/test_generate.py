"""Generation against the plain forward pass and transformers; sampling; text; the command."""

import dataclasses
import functools
import json
import subprocess
import sys

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY
from goldens import make_hf_greedy as greedy
from goldens import make_hf_logits as goldens
from hypothesis import strategies as st

from smoljax import model, sharding
from smoljax.checkpoints import huggingface
from smoljax.data import chat, tokenizer
from smoljax.inference import cache as cache_lib
from smoljax.inference import generate as generate_lib
from smoljax.inference import sampling as sampling_lib
from smoljax.inference import speculative
from smoljax.inference.cache import State, init_cache
from smoljax.inference.generate import stream
from smoljax.inference.sampling import GREEDY, Sampling
from smoljax.inference.speculative import Speculation
from smoljax.inference.text import Text, stream_text

CONFIG = model.ModelConfig(
  vocab_size=64, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48,
  max_seq_len=160, dtype='float32', init_std=0.3, nope_interval=2,
)  # fmt: skip
RNG = np.random.default_rng(3)
PROMPTS = [RNG.integers(0, 64, n).tolist() for n in (1, 9, 40, 4)]
VARIED = Sampling(temperature=1.0)
decode_init_cache = init_cache


@functools.cache
def make(config):
  return model.init(config, jax.random.key(0))


generate = functools.partial(generate_lib.generate, CONFIG)


def uncached(config, prompts, num_tokens):
  """Argmax continuations by running the whole model again for every token."""
  params = make(config)
  forward = jax.jit(functools.partial(model.apply, config))
  rows = [list(p) for p in prompts]
  for _ in range(num_tokens):
    padded = np.zeros((len(rows), 160), np.int32)
    for i, row in enumerate(rows):
      padded[i, : len(row)] = row
    logits = forward(params, padded).logits
    for i, row in enumerate(rows):
      row.append(int(np.argmax(logits[i, len(row) - 1])))
  return [row[len(p):] for row, p in zip(rows, prompts, strict=True)]


# ------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize('prefill_bytes, fields', [
  (1, {'sliding_window': 6, 'window_layers': (1, 0), 'tie_embeddings': False}),
  (cache_lib.PREFILL_BYTES, {
    'activation': 'gelu', 'mlp_bias': True, 'norm_position': 'sandwich', 'logit_softcap': 5.0}),
], ids=['rings, prefilled in chunks', 'ungated'])  # fmt: skip
def test_greedy_tokens_equal_uncached_argmax(prefill_bytes, fields, monkeypatch):
  monkeypatch.setattr(cache_lib, 'PREFILL_BYTES', prefill_bytes)  # 1: chunks of the least length
  config = dataclasses.replace(CONFIG, **fields)
  prompts = [*PROMPTS, RNG.integers(0, 64, 90).tolist()]
  batched = generate_lib.generate(config, make(config), prompts, max_new_tokens=64)
  assert batched == uncached(config, prompts, 64)
  assert len({tuple(x) for x in batched}) == len(prompts)  # and they are not all the same


@pytest.mark.parametrize('case', [
  pytest.param(case, marks=[pytest.mark.slow] * (case not in ('yarn', 'sliding_window')))
  for case in greedy.CASES])
def test_greedy_tokens_equal_transformers_generate(case):
  prefix, entries, _ = goldens.CASES[case]
  hf = {'architectures': [f'{prefix}ForCausalLM'], **goldens.BASE, **entries}
  config = model.ModelConfig.from_hf(hf, dtype='float32')
  with np.load(goldens.FILE) as stored, np.load(greedy.FILE) as tokens:
    shapes, expected = json.loads(str(stored[f'{case}/shapes'])), tokens[case]
  params = huggingface.from_hf_tensors(
    config, lambda name: goldens.weights(name, tuple(shapes[name]))
  )
  rows = greedy.prompts(config.vocab_size)
  assert generate_lib.generate(config, params, rows, max_new_tokens=64) == expected.tolist()
  if case == 'yarn':
    (alone,) = generate_lib.generate(config, params, rows[:1], max_new_tokens=64)
    assert alone == expected[0].tolist()


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(12))
def test_greedy_tokens_equal_live_transformers_generate(seed):
  from helpers.references import live_reference, random_hf_config

  reference, config, params = live_reference(*random_hf_config(seed))
  rows = greedy.prompts(config.vocab_size, longest=50)
  expected = greedy.greedy(reference, rows).tolist()
  assert generate_lib.generate(config, params, rows, max_new_tokens=64) == expected
  alone = greedy.greedy(reference, rows[:1]).tolist()
  assert generate_lib.generate(config, params, rows[:1], max_new_tokens=64) == alone == expected[:1]


def test_padding_on_either_side_changes_nothing():
  expected = generate(make(CONFIG), PROMPTS, max_new_tokens=12)
  left, mask = greedy.left_padded(PROMPTS)
  assert generate(make(CONFIG), left, mask=mask, max_new_tokens=12) == expected
  right = np.array([np.roll(row, sum(m)) for row, m in zip(left, mask, strict=True)])
  assert generate(
    make(CONFIG), right, mask=mask[:, ::-1].astype(bool), max_new_tokens=12) == expected


@pytest.mark.parametrize('fields', [
  dict(attention_bias=True, mlp_bias=True, qk_norm=True, tie_embeddings=False),
  dict(qkv_bias=True, qk_norm=True, qk_norm_over='width', norm_position='post'),
])
def test_unstacked_parameters_are_the_same_model(fields):
  config = dataclasses.replace(CONFIG, **fields)
  tokens_BT = RNG.integers(0, 64, (2, 20)).astype(np.int32)
  unstacked = cache_lib.prepare(config, make(config))
  assert cache_lib.prepare(config, unstacked) is unstacked
  logits = jax.jit(lambda params: model.apply(config, params, tokens_BT).logits)
  np.testing.assert_allclose(logits(unstacked), logits(make(config)), atol=1e-4, rtol=1e-4)


def test_parameters_of_a_mesh_are_brought_to_one_device():
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  with jax.set_mesh(mesh):
    params = model.init(CONFIG, jax.random.key(0))
    inside = generate(params, PROMPTS, max_new_tokens=12)
  outside = generate(params, PROMPTS, max_new_tokens=12)
  assert inside == outside == generate(make(CONFIG), PROMPTS, max_new_tokens=12)


# ----------------------------------------------------------------------------------- the programs


def test_windowed_layers_hold_the_window_only():
  config = dataclasses.replace(CONFIG, sliding_window=6, window_layers=(1, 0))
  slots = [k.shape[2] for k, _ in init_cache(config, 2, 128)]
  assert slots == [6, 128]


def test_few_shapes_are_compiled():
  run = generate_lib._block(CONFIG, VARIED, (), 8, False)
  run.clear_cache()
  for prompt in PROMPTS:
    generate(make(CONFIG), [prompt], max_new_tokens=10, sampling=VARIED)
  assert run._cache_size() == 1


def test_the_cache_is_written_in_place():
  state = State(
    jnp.zeros((2, 64)), init_cache(CONFIG, 2, 4096), jnp.int32(3), jnp.int32(0),
    jnp.zeros(2, bool), None)
  cache_bytes = sum(x.nbytes for x in jax.tree.leaves(state.cache))
  params = cache_lib.prepare(CONFIG, make(CONFIG))
  run = generate_lib._block(CONFIG, GREEDY, (5,), 8, False)
  compiled = run.lower(
    params, jnp.zeros(2, jnp.int32), jax.random.split(jax.random.key(0)), state).compile()
  memory = compiled.memory_analysis()
  assert memory.alias_size_in_bytes > cache_bytes
  assert memory.temp_size_in_bytes < cache_bytes / (2 * CONFIG.num_layers)  # one layer's keys


# ------------------------------------------------------------------------------- samples and scores


def test_log_probabilities_are_the_models_own():
  """Those of the plain forward pass, whatever is drawn; rows of several samples included."""
  params, settings = make(CONFIG), dict(max_new_tokens=6, sampling=VARIED)
  rows = generate(params, PROMPTS[:2], samples=3, logprobs=True, **settings)
  assert len(rows) == 6 and len({str(row) for row in rows}) == 6
  for i, row in enumerate(rows):
    prompt, new = PROMPTS[i // 3], [token for token, _ in row]
    logits = model.apply(CONFIG, params, np.array([prompt + new])).logits[0]
    logp = jax.nn.log_softmax(logits)[len(prompt) - 1 :]
    want = [logp[t, token] for t, token in enumerate(new)]
    np.testing.assert_allclose([score for _, score in row], want, atol=2e-5)


def test_samples_are_rows_of_their_own():
  """As if the prompt were given as often; and with a seed a row, wherever it stands."""
  params, settings = make(CONFIG), dict(max_new_tokens=6, sampling=VARIED)
  rows = generate(params, PROMPTS[:2], samples=2, seed=[5, 6, 7, 8], **settings)
  assert rows == generate(
    params, [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2, seed=[5, 6, 7, 8], **settings)
  assert rows[2:3] == generate(params, [PROMPTS[1]], seed=[7], **settings)
  with pytest.raises(ValueError, match='2 seeds for 1 rows'):
    generate(params, PROMPTS[:1], seed=[1, 2], **settings)


def test_no_end_before_min_new_tokens():
  params = make(CONFIG)
  free = generate(params, PROMPTS, max_new_tokens=12)
  ends = [free[1][0], free[1][3]]
  short = generate(params, PROMPTS, max_new_tokens=12, eos_id=ends)
  long = generate(params, PROMPTS, max_new_tokens=12, eos_id=ends,
                  sampling=Sampling(min_new_tokens=5))
  assert min(map(len, short)) == 0 and min(map(len, long)) >= 5
  assert all(not set(row[:5]) & set(ends) for row in long)


@pytest.mark.parametrize('temperature', [1e-40, 1e-7])
def test_next_to_no_temperature_is_greedy(temperature):
  sampling = Sampling(temperature, top_k=5, top_p=0.9, min_p=0.1)
  assert generate(make(CONFIG), PROMPTS, max_new_tokens=8, sampling=sampling) == generate(
    make(CONFIG), PROMPTS, max_new_tokens=8)


def test_one_row_computes_as_two_do_in_bfloat16():
  """On CPUs a product of one row with a bf16 matrix is that of two, and widens no matrix."""
  config = dataclasses.replace(CONFIG, dtype='bfloat16')
  one = generate_lib.generate(config, make(CONFIG), PROMPTS[1:2], max_new_tokens=8)
  two = generate_lib.generate(config, make(CONFIG), PROMPTS[1:2] * 2, max_new_tokens=8)
  assert two == one * 2
  block = generate_lib._block(config, GREEDY, (), 1, False)
  params = cache_lib.prepare(config, make(CONFIG))
  state = State(jnp.zeros((1, 64)), init_cache(config, 1, 64), jnp.int32(3), jnp.int32(0),
                jnp.zeros(1, bool), None)
  text = block.lower(params, jnp.zeros(1, jnp.int32), jax.random.split(jax.random.key(0), 1),
                     state).compile().as_text()
  mlp = params['blocks'][0]['mlp']['inwards_XD'].shape
  assert f'f32[{mlp[0]},{mlp[1]}]' not in text


# ----------------------------------------------------------------------------------- what is drawn


def test_end_tokens_stop_a_row_and_are_not_returned():
  free = generate(make(CONFIG), PROMPTS, max_new_tokens=20)
  eos = free[1][5]
  stopped = generate(make(CONFIG), PROMPTS, max_new_tokens=20, eos_id=eos)
  cut = lambda row: row[: row.index(eos)] if eos in row else row
  assert stopped == [cut(row) for row in free] and len(stopped[1]) <= 5
  two = generate(make(CONFIG), PROMPTS, max_new_tokens=20, eos_id=(63, eos))
  assert all(len(a) <= len(b) for a, b in zip(two, stopped, strict=True))
  steps = list(stream(CONFIG, make(CONFIG), PROMPTS, max_new_tokens=20, eos_id=eos))
  assert [[t for t in row if t is not None] for row in zip(*steps, strict=True)] == stopped


def test_sampling_is_seeded_and_a_row_does_not_depend_on_its_neighbours():
  run = functools.partial(generate, make(CONFIG), max_new_tokens=12, sampling=VARIED)
  one = run(PROMPTS, seed=1)
  assert one == run(PROMPTS, seed=1) != run(PROMPTS, seed=2)
  others = [PROMPTS[2], PROMPTS[1], [5], PROMPTS[0]]
  assert run(others, seed=1)[1] == one[1]
  # Equal prompts in one batch go their own ways.
  same = run([PROMPTS[1]] * 4, seed=1)
  assert same[1] == one[1] and len({tuple(row) for row in same}) == 4
  # A top-k of 1 is greedy, however hot.
  hot = Sampling(temperature=5.0, top_k=1)
  assert generate(make(CONFIG), PROMPTS, max_new_tokens=12, sampling=hot) == generate(
    make(CONFIG), PROMPTS, max_new_tokens=12)


def test_a_repetition_penalty_counts_the_prompt_and_what_is_written():
  sampling = Sampling(repetition_penalty=1e6)
  for prompt, new in zip(PROMPTS, generate(
      make(CONFIG), PROMPTS, max_new_tokens=20, sampling=sampling), strict=True):
    fresh = 64 - len(set(prompt))  # so many tokens can come before one must be repeated
    assert not set(new[:fresh]) & set(prompt)
    assert len(set(new[:fresh])) == min(len(new), fresh)


@pytest.mark.parametrize('settings, kept', [
  (dict(temperature=1.0), [0.5, 0.3, 0.15, 0.05]),
  (dict(temperature=0.5), [0.25, 0.09, 0.0225, 0.0025]),
  (dict(temperature=1.0, top_k=2), [0.5, 0.3, 0, 0]),
  (dict(temperature=1.0, top_p=0.7), [0.5, 0.3, 0, 0]),
  (dict(temperature=1.0, top_p=0.9), [0.5, 0.3, 0.15, 0]),
  (dict(temperature=1.0, top_k=3, top_p=0.5), [0.5, 0, 0, 0]),
  (dict(temperature=1.0, min_p=0.25), [0.5, 0.3, 0.15, 0]),
], ids=str)  # fmt: skip
def test_samples_follow_the_stated_distribution(settings, kept):
  order = [2, 0, 3, 1]
  logits_V = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))[order]
  n = 20_000
  keys = jax.random.split(jax.random.key(0), n)
  draws = sampling_lib.sample(keys, jnp.tile(logits_V, (n, 1)), Sampling(**settings))
  expected = np.array(kept)[order] / sum(kept)
  counts = np.bincount(draws, minlength=4)
  assert (counts[expected == 0] == 0).all()
  np.testing.assert_allclose(counts / n, expected, atol=4 * np.sqrt(0.25 / n))


@pytest.mark.parametrize('settings', [
  dict(temperature=0.7, top_p=0.9), dict(temperature=2.0, top_k=100, top_p=0.5),
  dict(temperature=1.0, min_p=0.05), dict(temperature=1.0, top_p=1e-6),
  dict(temperature=0.6, top_k=50, top_p=0.95, min_p=0.02, repetition_penalty=1.3),
  dict(temperature=1.0, repetition_penalty=0.8),
], ids=str)  # fmt: skip
def test_logits_are_adjusted_as_by_transformers(settings):
  torch = pytest.importorskip('torch')
  process = pytest.importorskip('transformers.generation.logits_process')
  rng = np.random.default_rng(0)
  logits_BV = (3 * rng.normal(size=(4, 1000))).astype(np.float32)
  ids_BT = rng.integers(0, 1000, (4, 30))
  sampling = Sampling(**settings)
  expected = torch.from_numpy(logits_BV)
  for processor in (  # in the order of transformers' generate
    process.RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)),
    process.TemperatureLogitsWarper(sampling.temperature),
    process.TopKLogitsWarper(sampling.top_k or 1000),
    process.TopPLogitsWarper(sampling.top_p),
    process.MinPLogitsWarper(sampling.min_p),
  ):
    expected = processor(torch.from_numpy(ids_BT), expected)
  seen_BV = np.zeros(logits_BV.shape, bool)
  np.put_along_axis(seen_BV, ids_BT, True, axis=1)
  adjusted = sampling_lib.adjust(jnp.asarray(logits_BV), sampling, jnp.asarray(seen_BV))
  np.testing.assert_allclose(adjusted, expected.numpy(), rtol=1e-6)


def test_equal_logits_stay_or_go_together():
  logits_BV = jnp.array([[2.0, -1.0, -1.0, 0.0, 0.0, -jnp.inf]])
  kept = lambda **settings: np.isfinite(
    sampling_lib.adjust(logits_BV, Sampling(temperature=1.0, **settings)))[0].tolist()
  assert kept(top_k=2) == [True, False, False, True, True, False]
  assert kept(top_k=5) == kept(top_p=0.9999) == [True] * 5 + [False]


# -------------------------------------------------------------------------------------------- text


def as_text(ids):
  return bytes(ids).decode('utf-8', errors='replace')


@hypothesis.given(
  text=st.text(alphabet='ab·é𝄞\n', max_size=30),
  stops=st.lists(st.text(alphabet='ab·é𝄞\n', min_size=1, max_size=4), max_size=3),
  sizes=st.lists(st.integers(1, 5), min_size=1),
)
def test_text_comes_whole_and_ends_before_the_first_stop(text, stops, sizes):
  """Bytes as tokens: characters and stop strings span several of them."""
  row = Text(as_text, stops, context=b'prompt')
  parts, taken = [], b''
  for token in text.encode():
    taken += bytes([token])
    parts.append(row.push(token))
    if row.stopped:
      break
  parts.append(row.finish())
  out = ''.join(parts)
  so_far = taken.decode()  # a stop is noticed at the end of a character
  if any(stop in text for stop in stops):
    assert row.stopped and out == so_far[: min(so_far.find(s) for s in stops if s in so_far)]
  else:
    assert not row.stopped and out == text


def test_text_shows_no_half_characters_and_keeps_spaces_that_need_context():
  row = Text(as_text)
  assert [row.push(b) for b in 'é!'.encode()] == ['', 'é', '!']
  assert row.push('é'.encode()[0]) == '' and row.finish() == '\ufffd'
  # A tokenizer that drops the space before the first word, as Llama 2's does.
  words = lambda ids: ' '.join('abc'[i] for i in ids)
  row = Text(words, context=[0])
  assert [row.push(1), row.push(2)] == [' b', ' c']
  with pytest.raises(ValueError, match='empty stop'):
    Text(as_text, [''])


def test_rows_stop_apart_and_generation_ends_with_the_last():
  steps = iter([[97, 97], [98, None], [99, None], [100, None], [101, None]])
  rows = [Text(as_text, ['cd']), Text(as_text)]
  assert list(stream_text(steps, rows)) == [
    ['a', 'a'], ['b', ''], ['', ''], ['', ''], ['', '']]
  assert next(steps) == [101, None]  # nothing was asked for after 'cd'


# ------------------------------------------------------------------------------ context, bad input


def test_an_extended_context_is_yarn_as_transformers_has_it():
  config = dataclasses.replace(CONFIG, max_seq_len=64)
  extended = config.extended(128)
  assert extended.rope_scaling == model.Yarn(2.0, 64) and extended.max_seq_len == 128
  assert config.extended(64) is config
  assert extended.extended(256).rope_scaling == model.Yarn(4.0, 64)
  assert extended.to_hf()['rope_scaling']['factor'] == 2.0
  prompt = [PROMPTS[2] + PROMPTS[2]]
  with pytest.raises(ValueError, match=r'max_seq_len=64: .* extend'):
    generate_lib.generate(config, make(CONFIG), prompt, max_new_tokens=10)
  assert len(generate_lib.generate(extended, make(CONFIG), prompt, max_new_tokens=10)[0]) == 10
  with pytest.raises(ValueError, match='LinearRope'):
    dataclasses.replace(config, rope_scaling=model.LinearRope(2.0)).extended(128)


def test_nothing_asked_nothing_done():
  assert generate(make(CONFIG), [], max_new_tokens=5) == []
  assert generate(make(CONFIG), PROMPTS, max_new_tokens=0) == [[], [], [], []]


@pytest.mark.parametrize('prompts, settings, message', [
  ([[]], {}, 'prompt 0 is empty'),
  ([[1], [2, 64]], {}, 'prompt 1 holds token id 64'),
  ([[1], [2, -1]], {}, 'prompt 1 holds token id -1'),
  ([[1] * 100], dict(max_new_tokens=61), 'max_seq_len=160'),
  ([[1]], dict(max_new_tokens=-1), 'max_new_tokens=-1'),
  ([[1]], dict(block=0), 'block=0'),
  ([[1, 2]], dict(mask=[[1]]), r'mask \(1, 1\)'),
  ([[1, 2]], dict(mask=[[0, 0]]), 'prompt 0 is empty'),
])  # fmt: skip
def test_bad_requests_say_why(prompts, settings, message):
  with pytest.raises(ValueError, match=message):
    stream(CONFIG, make(CONFIG), prompts, **{'max_new_tokens': 4, **settings})


@pytest.mark.parametrize('field, value', [
  ('temperature', -1.0), ('temperature', float('nan')), ('top_k', -1), ('top_p', 0.0),
  ('top_p', 1.1), ('min_p', 1.5), ('repetition_penalty', 0.0),
])  # fmt: skip
def test_bad_sampling_says_which_field(field, value):
  with pytest.raises(ValueError, match=f'{field}={value}'):
    Sampling(**{field: value})


# -------------------------------------------------------------------------------------- the command


# Runs several command lines in one process, as most of the time goes into starting one.
DRIVER = """
import contextlib, io, json, sys
from absl import flags
from absl.testing import flagsaver
from experiments import generate
from experiments.engine import cli
results = {}
for name, argv in json.load(sys.stdin).items():
  if name == 'stop':
    argv.append('--stop=' + results['plain'][0][13:16])
  out, err, code = io.StringIO(), io.StringIO(), 0
  with flagsaver.flagsaver(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
      flags.FLAGS.unparse_flags()
      generate.main(cli.parse(['generate', *argv]))
    except SystemExit as e:
      code = e.code
  results[name] = out.getvalue(), err.getvalue(), code
print(json.dumps(results))
"""
COMMANDS = {
  'plain': ['--prompt=The number'],
  'two': ['--prompt=The number', '--prompt=ça'],
  'stop': ['--prompt=The number'],  # and --stop=, what 'plain' writes behind 'The number…'
  'no_think': ['--prompt=The number?', '--mode=no_think'],
  'system': ['--prompt=The number?', '--mode=think', '--system=Be brief.'],
  'long': ['--prompt=' + 'The number ' * 300, '--context=4096'],
  'samples': ['--prompt=The number', '--samples=3', '--temperature=1', '--logprobs'],
  'int8': ['--prompt=The number', '--weights=int8', '--min_new_tokens=4'],
  'another template': ['--checkpoint={other}', '--prompt=The number?', '--mode=chat'],
}
WRONG = {
  'which model?': ['--checkpoint='],
  'no model at /nowhere': ['--checkpoint=/nowhere'],
  'top_p=2.0': ['--prompt=a', '--top_p=2'],
  'give --context=': ['--prompt=' + 'The number ' * 300],
  '--mode=think': ['--prompt=a', '--system=Be brief.'],
  'give it a question': ['--mode=think'],
  'has no chat template': ['--checkpoint={bare}', '--prompt=a', '--mode=think'],
  'has no such modes: use --mode=chat': ['--checkpoint={other}', '--prompt=a', '--mode=think'],
  'does not take this conversation: no system turns': [
    '--checkpoint={other}', '--prompt=a', '--mode=chat', '--system=Be brief.'],
  '--prompt does not go with --chat': ['--prompt=a', '--chat'],
  'has no chat template, neither': ['--checkpoint={bare}', '--chat'],
  '/nowhere.txt': ['--prompt_file=/nowhere.txt'],
}


@pytest.fixture(scope='module')
def commands(tmp_path_factory):
  """What the command lines print, with a random model whose tokenizer knows chats."""
  path = tmp_path_factory.mktemp('model')
  file, hf = str(path / 'tokenizer.model'), str(path / 'hf')
  texts = [f'The number {i} comes after {i - 1}; ça va?\n' * 3 for i in range(50)]
  tokenizer.train(texts, file, vocab_size=312, control=chat.CONTROL)
  config = dataclasses.replace(CONFIG, vocab_size=320, max_seq_len=1024)  # padded
  other = ("{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif "
           "%}Q: {{ messages[0].content }} A:")
  for name, template in (('hf', chat.template()), ('bare', ''), ('other', other)):
    folder = str(path / name)
    huggingface.save_hf(config, model.init(config, jax.random.key(1)), folder, dtype='float32')
    tokenizer.to_hf(file, folder, bos=True, max_length=1024, chat_template=template)

  common = [f'--checkpoint={hf}', '--max_new_tokens=16', '--temperature=0']
  places = {'{other}': str(path / 'other'), '{bare}': str(path / 'bare')}
  given = {
    name: common + [functools.reduce(lambda a, kv: a.replace(*kv), places.items(), a) for a in argv]
    for name, argv in (COMMANDS | WRONG).items()}
  process = subprocess.run(
    [sys.executable, '-c', DRIVER], cwd=REPOSITORY, text=True, capture_output=True, check=False,
    input=json.dumps(given))
  assert process.returncode == 0, process.stderr
  return json.loads(process.stdout)


def test_the_command_continues_prompts(commands):
  plain, err, _ = commands['plain']
  assert plain.startswith('The number') and len(plain) > 16 and '16 tokens in' in err
  assert commands['two'][0].startswith(f'--- 1\n{plain}--- 2\nça')
  new = plain[len('The number') :]
  assert commands['stop'][0] == f'The number{new[: new.index(new[3:6])]}\n'
  assert commands['long'][0].startswith('The number The number') and not commands['long'][2]


def test_the_command_chats(commands):
  answers = [commands[name][0] for name in ('no_think', 'system', 'another template')]
  assert len(set(answers)) == 3 and not any('The number?' in a for a in answers)
  assert all(commands[name][2] == 0 for name in COMMANDS)


def test_the_command_gives_several_samples_and_scores(commands):
  out, err, _ = commands['samples']
  parts = out.split('--- ')[1:]
  assert len(parts) == 3 and len({part[2:] for part in parts}) == 3
  assert all(f'text {i}: log-probability -' in err for i in (1, 2, 3))
  assert commands['int8'][0].startswith('The number')


@pytest.mark.parametrize('message', WRONG)
def test_the_command_explains_wrong_input_in_one_line(commands, message):
  out, err, code = commands[message]
  assert out == '' and code == 2 and err.startswith('error: ') and err.count('\n') == 1
  assert message in err


# ----------------------------------------------------------------------------------- speculation


def with_mtp(kind, depth, **fields):
  return dataclasses.replace(CONFIG, mtp=kind, mtp_depth=depth, **fields)


@pytest.mark.parametrize('kind, depth', [
  pytest.param('parallel', 1, marks=pytest.mark.slow), ('parallel', 3), ('sequential', 2)])
def test_speculative_greedy_tokens_equal_plain_ones(kind, depth):
  config = with_mtp(kind, depth)
  params = make(config)
  # Modules that agree with the model now and then: their head says what the embedding says.
  params = {**params, 'mtp': jax.tree.map(lambda x: 0.3 * x, params['mtp'])}
  plain = generate_lib.generate(config, params, PROMPTS, max_new_tokens=50)
  assert plain == generate(model.without_mtp(config, params)[1], PROMPTS, max_new_tokens=50)
  for block in (1, 4):
    seen = Speculation()
    found = generate_lib.generate(
      config, params, PROMPTS, max_new_tokens=50, block=block, speculation=seen)
    assert found == plain
    assert seen.rounds * depth == seen.drafted and 0 <= seen.accepted <= seen.drafted
  for row, alone in zip(plain, PROMPTS, strict=True):
    assert generate_lib.generate(
      config, params, [alone], max_new_tokens=50, speculation=Speculation()) == [row]
  end = plain[1][7]
  stopped = generate_lib.generate(config, params, PROMPTS, max_new_tokens=50, eos_id=end)
  assert stopped == generate_lib.generate(
    config, params, PROMPTS, max_new_tokens=50, eos_id=end, speculation=Speculation())


def test_a_prompt_read_in_chunks_is_drafted_from_as_one_read_at_once(monkeypatch):
  """Drafts depend on the modules' caches over the prompt, greedy tokens do not: count the kept."""
  config = with_mtp('sequential', 2)
  params, prompt = make(config), [RNG.integers(0, 64, 100).tolist()]
  states = []
  for size in (cache_lib.PREFILL_BYTES, 1):
    monkeypatch.setattr(cache_lib, 'PREFILL_BYTES', size)
    states.append(
      cache_lib.prefill(config, cache_lib.prepare(config, params), prompt, 8, modules=2)
    )
  whole, parts = states
  np.testing.assert_allclose(whole[0], parts[0], atol=1e-4)
  np.testing.assert_allclose(whole[5], parts[5], atol=1e-4)
  slots = slice(28, 128 - 2)  # of the prompt, but those whose next tokens are not known yet
  for a, b in zip(whole[1], parts[1], strict=True):
    for x, y in zip(a, b, strict=True):
      np.testing.assert_allclose(x[:, :, slots], y[:, :, slots], atol=1e-4)


def test_what_is_verified_is_a_draw_from_the_model():
  """Rejection sampling, one draft: accepted or not, the first token is distributed as p."""
  p, q = (jnp.float32(RNG.normal(0, 1.5, (2, 12))) for _ in range(2))
  keys = jax.random.split(jax.random.key(5), 40_000)

  def one(key):
    draft_key, verify_key = jax.random.split(key)
    draft = jax.random.categorical(draft_key, q[0])[None]
    kept, token = speculative.verify(verify_key, draft, q[:1], p, False)
    return jnp.where(kept == 1, draft[0], token), jnp.where(kept == 1, token, -1)

  first, second = jax.vmap(one)(keys)
  expected = jax.nn.softmax(p)
  np.testing.assert_allclose(np.bincount(first, minlength=12) / 40_000, expected[0], atol=0.01)
  kept = second[second >= 0]
  np.testing.assert_allclose(np.bincount(kept, minlength=12) / len(kept), expected[1], atol=0.015)


@pytest.mark.parametrize('kind', [pytest.param('parallel', marks=pytest.mark.slow), 'sequential'])
def test_speculative_samples_follow_the_models_distribution(kind):
  """Three tokens in a row against the exact probabilities of all 512 of them (chi-squared)."""
  config = with_mtp(
    kind, 2, vocab_size=8, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=16)
  params, prompt, rows = make(config), [3, 1, 4], 6000
  sampling = Sampling(temperature=1.3, top_k=6)
  seen = Speculation()
  found = np.array(generate_lib.generate(
    config, params, [prompt] * rows, max_new_tokens=3, sampling=sampling, seed=2, speculation=seen))
  counts = np.bincount(found @ [64, 8, 1], minlength=512)
  pairs = np.array([[*prompt, a, b] for a in range(8) for b in range(8)], np.int32)
  logits = model.apply(config, params, pairs).logits
  p = np.asarray(jax.nn.softmax(sampling_lib.adjust(logits.reshape(-1, 8), sampling))).reshape(
    64, 5, 8
  )
  first, second = p[0, 2], p.reshape(8, 8, 5, 8)[:, 0, 3]
  exact = first[:, None, None] * second[:, :, None] * p.reshape(8, 8, 5, 8)[:, :, 4]
  expected = rows * exact.ravel()
  assert counts[expected == 0].sum() == 0  # what top_k leaves out
  likely = expected > 5
  chi = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
  degrees = likely.sum()
  assert abs(chi - degrees) < 5 * np.sqrt(2 * degrees)
  assert 0.02 < seen.acceptance < 0.98  # both branches were taken


def test_a_stream_that_is_left_early_has_counted():
  config = with_mtp('parallel', 1)
  seen = Speculation()
  steps = stream(config, make(config), [[1, 2]], max_new_tokens=60, speculation=seen)
  for _ in range(4):
    next(steps)
  steps.close()
  assert seen.rounds == seen.drafted > 0


def test_what_cannot_speculate_says_why():
  ask = functools.partial(
    generate_lib.generate, prompts=[[1]], max_new_tokens=4, speculation=Speculation())
  with pytest.raises(ValueError, match='no modules'):
    ask(CONFIG, make(CONFIG))
  config = with_mtp('parallel', 1)
  with pytest.raises(ValueError, match='repetition_penalty'):
    ask(config, make(config), sampling=Sampling(repetition_penalty=1.2))
  with pytest.raises(ValueError, match='sliding'):
    ask(dataclasses.replace(config, sliding_window=8), {})

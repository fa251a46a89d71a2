"""Every implementation of attention against its definition, computed apart for each document."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoljax import model, sharding
from smoljax.model import layers
from smoljax.model.attention import attention, context, cudnn, decode, splash
from smoljax.model.attention.masks import Static, positions_from_segments, segments_from_positions

PLATFORM = jax.default_backend()
INTERPRET = PLATFORM != 'gpu'  # kernels of NVIDIA GPUs
# Name → dtype of the arrays, error allowed in units of the largest value.
IMPLEMENTATIONS = {
  'xla': ('float32', 1e-5),
  'splash': ('float32', 1e-5),
  'cudnn': ('bfloat16', 2e-2),
}
# name: documents of each of two rows, kv heads, queries per kv head, head dim, window, softcap
CASES = {
  'one-token': ([[1], [1]], 1, 1, 8, None, 0.0),
  'mha': ([[37], [30, 7]], 3, 1, 8, None, 0.0),
  'gqa-window': ([[20, 10, 98, 128], [256]], 2, 3, 64, 33, 0.0),
  'mqa': ([[200, 56], [1, 254, 1]], 1, 2, 64, None, 0.0),
  'softcap': ([[100, 28], [128]], 2, 2, 8, None, 1.5),
  'window-1': ([[90, 38], [128]], 1, 2, 16, 1, 0.0),
  'two-chunks': ([[300, 100, 201], [601]], 2, 1, 8, 200, 0.0),
  'whole-rows': ([[384], [384]], 1, 3, 64, None, 0.0),
}


def case(name, dtype):
  lengths, K, G, H, window, softcap = CASES[name]
  rng = np.random.default_rng(len(name))
  B, T, N = 2, sum(lengths[0]), K * G
  arrays = [jnp.asarray(rng.normal(size=(B, T, n, H)), dtype) for n in (N, K, K, N)]
  segments = np.stack([np.repeat(1 + rng.permutation(9)[: len(row)], row) for row in lengths])
  places = dict(segments=segments, lengths=lengths) if name != 'whole-rows' else dict(
    segments=None, lengths=lengths)
  return arrays, places, window, softcap


def definition(arrays, lengths, window, softcap):
  """Softmax attention in fp64, document by document and head by head, with its derivatives."""
  q, k, v, dout = (np.asarray(x, np.float64) for x in arrays)
  G, H = q.shape[2] // k.shape[2], q.shape[3]
  out, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
  largest_N = np.full(q.shape[2], -np.inf)
  for b, row in enumerate(lengths):
    for start, length in zip(np.cumsum(row) - row, row, strict=True):
      t = slice(start, start + length)
      i = np.arange(length)
      hidden = (i[None] > i[:, None]) | (i[:, None] - i[None] >= (window or length))
      for n in range(q.shape[2]):
        m = n // G
        s = q[b, t, n] @ k[b, t, m].T / math.sqrt(H)
        slope = np.ones_like(s)
        if softcap:
          s, slope = softcap * np.tanh(s / softcap), np.cosh(s / softcap) ** -2
        s[hidden] = -np.inf
        largest_N[n] = max(largest_N[n], s.max())
        p = np.exp(s - s.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        out[b, t, n] = p @ v[b, t, m]
        dp = dout[b, t, n] @ v[b, t, m].T
        ds = p * (dp - (dp * p).sum(axis=1, keepdims=True)) * slope / math.sqrt(H)
        dq[b, t, n] = ds @ k[b, t, m]
        dk[b, t, m] += ds.T @ q[b, t, n]
        dv[b, t, m] += p.T @ dout[b, t, n]
  return out, largest_N, (dq, dk, dv)


def near(got, expected, tolerance):
  got, expected = np.asarray(got, np.float64), np.asarray(expected)
  largest = max(1.0, np.abs(expected).max())
  np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * largest)


@pytest.fixture
def interpreted(monkeypatch):
  monkeypatch.setattr(splash, 'interpret_splash', PLATFORM != 'tpu')


def skip_where_it_cannot_run(implementation, arrays, softcap):
  H = arrays[0].shape[3]
  if implementation == 'cudnn':
    if PLATFORM != 'gpu':
      pytest.skip('cuDNN needs an NVIDIA GPU: SMOLJAX_TEST_PLATFORM=cuda')
    if softcap or H % 8 or arrays[0].shape[1] == 1:
      pytest.skip('refused, as another test checks')
  if implementation == 'splash' and (arrays[0].shape[1] % 128 or PLATFORM == 'gpu'):
    pytest.skip('splash takes rows of a multiple of 128 tokens')


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_packed_equals_separate_documents_by_definition(implementation, name, interpreted):
  dtype, tolerance = IMPLEMENTATIONS[implementation]
  arrays, places, window, softcap = case(name, dtype)
  skip_where_it_cannot_run(implementation, arrays, softcap)
  expected_out, largest_N, gradients = definition(arrays, places['lengths'], window, softcap)
  segments = places['segments']
  positions = np.arange(arrays[0].shape[1], dtype=np.int32)[None]
  if segments is not None:
    positions = np.asarray(positions_from_segments(segments))

  @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
  def run(q, k, v, dout, max_logits, in_order=True):
    out, max_N = attention(
      q, k, v, q_positions_BT=positions, kv_positions_BS=positions, q_segments_BT=segments,
      kv_segments_BS=segments, window=window, softcap=softcap, in_order=in_order,
      max_logits=max_logits, implementation=implementation)
    return jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32)), (out, max_N)

  run = jax.jit(run, static_argnums=(4, 5))
  (_, (out, bound_N)), got = run(*arrays, 'bound')
  near(out, expected_out, tolerance)
  for x, y in zip(got, gradients, strict=True):
    near(x, y, tolerance)
  # The bound holds, and is no further off than the logarithm of the row's length.
  slack = tolerance * np.abs(largest_N).max()
  assert (bound_N >= largest_N - slack).all()
  assert (bound_N <= largest_N + math.log(arrays[0].shape[1]) + slack).all()
  if implementation == 'xla':  # with everything masked, nothing skipped
    (_, (out, max_N)), got = run(*arrays, 'exact', False)
    near(out, expected_out, tolerance)
    near(got[1], gradients[1], tolerance)
    near(max_N, largest_N, tolerance)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_a_traced_window_gives_what_the_static_one_does(implementation, interpreted):
  dtype, tolerance = IMPLEMENTATIONS[implementation]
  arrays, places, _, _ = case('gqa-window', dtype)
  skip_where_it_cannot_run(implementation, arrays, 0.0)
  segments = places['segments']
  positions = np.asarray(positions_from_segments(segments))

  @functools.partial(jax.jit, static_argnames='windows')
  @functools.partial(jax.grad, argnums=(0, 1, 2))
  def gradients(q, k, v, dout, window, windows):
    out, _ = attention(
      q, k, v, q_positions_BT=positions, kv_positions_BS=positions, q_segments_BT=segments,
      kv_segments_BS=segments, window=window, windows=windows, in_order=True,
      implementation=implementation)
    return jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32))

  for window in (33, 2**31 - 1):  # as the scanned layers give it
    expected = definition(arrays, places['lengths'], window, 0.0)[2]
    got = gradients(*arrays, np.int32(window), windows=(0, 33, 0))
    for x, y in zip(got, expected, strict=True):
      near(x, y, tolerance)


@pytest.mark.skipif(jax.device_count() < 2, reason='needs two devices')
@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_a_split_sequence_equals_the_definition(implementation, interpreted):
  """Two devices hold pieces 0 and 3, and 1 and 2, of rows whose documents cross them."""
  dtype, tolerance = IMPLEMENTATIONS[implementation]
  rng = np.random.default_rng(0)
  T, H = 512, 64 if implementation == 'cudnn' else 8
  arrays = [jnp.asarray(rng.normal(size=(2, T, n, H)), dtype) for n in (2, 1, 1, 2)]
  skip_where_it_cannot_run(implementation, arrays, 0.0)
  lengths = [[300, 84, 100, 28], [512]]
  segments = np.stack([np.repeat(np.arange(len(row)), row) for row in lengths]).astype(np.int32)
  positions = np.asarray(positions_from_segments(segments))
  expected_out, largest_N, gradients = definition(arrays, lengths, None, 0.0)

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
  def run(q, k, v, dout):
    q, k, v, dout, places, ids = (sharding.zigzag(x) for x in (q, k, v, dout, positions, segments))
    out, max_N = attention(
      q, k, v, q_positions_BT=places, kv_positions_BS=places, q_segments_BT=ids,
      kv_segments_BS=ids, in_order=True, zigzag=True, max_logits='bound',
      implementation=implementation)
    return jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32)), (out, max_N)

  mesh = sharding.make_mesh(data=1, context=2, devices=jax.devices()[:2])
  with jax.set_mesh(mesh):
    (_, (out, bound_N)), got = run(*arrays)
  near(sharding.zigzag_parts(np.asarray(out), 2, back=True), expected_out, tolerance)
  for x, y in zip(got, gradients, strict=True):
    near(x, y, tolerance)
  assert (bound_N >= largest_N - 0.1).all() and (bound_N <= largest_N + math.log(T)).all()


def test_document_spans_and_cudnn_statistics_survive_the_round_trip():
  segments = np.array([[3, 3, 1, 1, 1, 0, 0, 0], [5] * 8, [1, 2, 3, 4, 5, 6, 7, 8]], np.int32)
  lengths_BM, starts_BM, index_BT = cudnn.document_spans(segments, 4)
  # Padding behind a document is its end; before one it is a document.
  assert lengths_BM.tolist() == [[2, 6, -1, -1], [8, -1, -1, -1], [1, 1, 1, 1]]
  assert starts_BM.tolist() == [[0, 2, -1, -1], [0, -1, -1, -1], [0, 1, 2, 3]]
  assert index_BT[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1] and index_BT[2, -1] == 7
  assert cudnn.document_spans(jnp.array([[0, 0, 1, 1, 0]]), 2)[0].tolist() == [[2, 3]]
  # Documents in use come first, over all rows: 2 of row 0, 1 of row 1, then row 2's.
  documents = cudnn._Documents(jnp.asarray(segments), 33)
  lse_BTN = np.random.default_rng(0).normal(size=(3, 8, 2)).astype(np.float32)
  packed = documents.pack(jnp.asarray(lse_BTN))
  np.testing.assert_array_equal(packed[1, :, :6], lse_BTN[0, 2:].T)
  np.testing.assert_array_equal(packed[2], lse_BTN[1].T)
  np.testing.assert_array_equal(packed[5, :, 0], lse_BTN[2, 2])
  np.testing.assert_array_equal(documents.unpack(packed), lse_BTN)
  # More documents than fit poison their row, and no other.
  crowded = np.stack([np.arange(40), np.zeros(40)]).astype(np.int32)
  poisoned = cudnn._Documents(jnp.asarray(crowded), 33).poison(jnp.ones((2, 40, 1, 1)))
  assert np.isnan(poisoned[0]).all() and np.isfinite(poisoned[1]).all()


@pytest.mark.parametrize('implementation', list(IMPLEMENTATIONS))
def test_a_limit_scales_the_queries_of_the_heads_above_it(implementation, interpreted):
  dtype, tolerance = IMPLEMENTATIONS[implementation]
  arrays, places, window, _ = case('gqa-window', dtype)
  skip_where_it_cannot_run(implementation, arrays, 0.0)
  lengths, segments = places['lengths'], places['segments']
  _, largest_N, _ = definition(arrays, lengths, window, 0.0)
  limit = float(np.median(largest_N))
  factor_N1 = np.minimum(1, limit / largest_N)[:, None]
  assert 1 < (factor_N1 < 1).sum() < len(factor_N1)
  scaled = (jnp.asarray(arrays[0].astype(jnp.float32) * factor_N1, dtype), *arrays[1:])
  expected_out, limited_N, (dq, dk, dv) = definition(scaled, lengths, window, 0.0)
  np.testing.assert_allclose(limited_N, np.minimum(largest_N, limit), rtol=10 * tolerance)
  positions = np.asarray(positions_from_segments(segments))

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
  def run(q, k, v, dout):
    out, max_N = attention(
      q, k, v, q_positions_BT=positions, kv_positions_BS=positions, q_segments_BT=segments,
      kv_segments_BS=segments, window=window, in_order=True, max_logits=limit,
      implementation=implementation)
    return jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32)), (out, max_N)

  (_, (out, max_N)), got = run(*arrays)
  near(out, expected_out, tolerance)
  near(max_N, largest_N, tolerance)
  for x, y in zip(got, (dq * factor_N1, dk, dv), strict=True):
    near(x, y, tolerance)


def test_a_saved_ctx_keeps_attention_from_running_again(interpreted):
  arrays = case('mqa', 'float32')[0]
  positions = np.arange(256, dtype=np.int32)[None]

  def count(implementation, names):
    policy = jax.checkpoint_policies.save_only_these_names(*names)

    @functools.partial(jax.checkpoint, policy=policy)
    def layer(q, k, v):
      return attention(
        q, k, v, q_positions_BT=positions, kv_positions_BS=positions, in_order=True,
        implementation=implementation)[0] ** 2

    text = str(jax.make_jaxpr(jax.grad(lambda *x: layer(*x).sum()))(*arrays[:3]))
    return text.count({'xla': 'dot_general', 'splash': 'pallas_call'}[implementation])

  assert count('xla', ['ctx']) < count('xla', [])
  # Forward and backward kernel, and the forward one again if nothing is saved.
  assert count('splash', ['ctx']) == 2 and count('splash', []) == 3


@pytest.mark.parametrize('fields, message', [
  (dict(implementation='flash'), "'flash': one of auto, cudnn, splash, xla"),
  (dict(implementation='cudnn'), 'runs on NVIDIA GPUs, not on'),
  (dict(implementation='splash'), 'runs on TPUs, not on'),
  (dict(max_logits=True), "max_logits=True: one of None, 'bound', 'exact'"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused(fields, message):
  if PLATFORM == 'gpu' and fields.get('implementation') == 'cudnn':
    pytest.skip('this machine has one')
  x = jnp.ones((1, 128, 1, 8), jnp.bfloat16)
  positions = jnp.arange(128)[None]
  with pytest.raises(ValueError, match=message):
    attention(x, x, x, q_positions_BT=positions, kv_positions_BS=positions, in_order=True, **fields)


@pytest.mark.parametrize('fields, message', [
  (dict(dtype='float32'), 'bfloat16 or float16, not in float32'),
  (dict(softcap=30.0), 'has no softcap'),
  (dict(H=12), 'multiple of 8 and at most 256, not 12'),
  (dict(in_order=False), 'needs in_order'),
  (dict(T=1), 'rows (or pieces of rows) of one token'),
  (dict(windows=()), 'needs all `windows`'),
])  # fmt: skip
def test_cudnn_says_what_it_cannot_do(fields, message, monkeypatch):
  monkeypatch.setattr(context, 'platform', lambda: 'gpu')
  static = Static('cudnn', fields.get('windows', (None,)), fields.get('softcap', 0.0),
               fields.get('in_order', True), False)
  x = jnp.ones((1, fields.get('T', 8), 1, fields.get('H', 8)), fields.get('dtype', 'bfloat16'))
  assert message in cudnn.refusal(static, x, x, False)
  if jax.__version_info__ < (0, 11, 2):
    static = Static('cudnn', (None,), 0.0, True, False)
    x = jnp.ones((1, 8, 1, 8), jnp.bfloat16)
    assert 'needs jax 0.11.2 for documents' in cudnn.refusal(static, x, x, True)


def test_segments_and_positions_give_each_other():
  segments = np.repeat([[1, 2, 3, 0], [5, 6, 7, 8]], 6, axis=1).astype(np.int32)
  positions = np.tile(np.arange(6, dtype=np.int32), (2, 4))
  np.testing.assert_array_equal(positions_from_segments(segments), positions)
  np.testing.assert_array_equal(
    segments_from_positions(positions)[0], np.repeat([1, 2, 3, 4], 6))


@pytest.mark.slow
@pytest.mark.parametrize('sizes, window, kernels', [
  (dict(data=1, fsdp=4, tensor=2), 512, 4),  # forward and backward, with the window and without
  (dict(data=1, fsdp=2, context=4), 0, 6),  # own keys, and those before either piece
])  # fmt: skip
def test_splash_compiles_for_a_tpu_slice(sizes, window, kernels, monkeypatch):
  """Without a TPU: `pip install libtpu==0.0.42.*` is all it takes."""
  pytest.importorskip('libtpu')
  from jax.experimental import topologies

  for name, value in dict(
    TPU_SKIP_MDS_QUERY='1', TPU_WORKER_HOSTNAMES='localhost', TPU_MIN_LOG_LEVEL='3',
    TPU_ACCELERATOR_TYPE='v5litepod-8', TPU_STDERR_LOG_LEVEL='3',
  ).items():  # fmt: skip
    monkeypatch.setenv(name, value)
  topology = topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x4')
  mesh = sharding.make_mesh(**sizes, devices=topology.devices)
  config = model.ModelConfig(
    vocab_size=512, num_layers=4, embed_dim=256, num_heads=4, num_kv_heads=2, head_dim=64,
    mlp_dim=512, max_seq_len=4096, remat='qkv+ctx+mid+gu', sliding_window=window)
  params = model.abstract_params(config, mesh)
  for part in ('block', 'final_norm'):  # cached: making them computes, and there is no device
    layers.graph(config, part)
  with jax.set_mesh(mesh):
    ids = jax.ShapeDtypeStruct(
      (8, 4096), jnp.int32, sharding=jax.NamedSharding(mesh, sharding.spec('batch', 'length')))

    def loss(params, tokens, segments):
      hidden_BTD, _ = model.hidden(config, params, tokens, segment_ids_BT=segments)
      return jnp.mean(hidden_BTD.astype(jnp.float32) ** 2)

    compiled = jax.jit(jax.grad(loss)).lower(params, ids, ids).compile()
  assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == kernels


@pytest.mark.parametrize('R, index, offset, softcap', [
  (100, 37, 5, 0.0), (100, 250, 160, 0.0), (64, 63, 0, 1.5), (1100, 1000, 520, 0.0),
  (600, 3, 0, 0.0),
])  # fmt: skip
def test_the_kernel_of_one_token_equals_the_definition(R, index, offset, softcap):
  """Rings that have gone round, padding, a part without keys; slots that hold nothing are NaN."""
  rng = np.random.default_rng(R + index)
  B, K, G, H = 2, 2, 3, 16
  q, k, v, *held = (jnp.asarray(rng.normal(size=(B, *dims, H)), 'bfloat16')
                    for dims in ((1, K * G), (1, K), (1, K), (K, R), (K, R)))
  holds_R = index - (index - np.arange(R)) % R
  held = tuple(x.at[:, :, (holds_R < 0) | (holds_R == index)].set(jnp.nan) for x in held)
  out, (keys, values) = decode.attend(
    q, k, v, held, jnp.int32(index), jnp.asarray([offset, 0], 'int32'), softcap=softcap,
    interpret=INTERPRET)
  for old, new, now in zip(held, (k, v), (keys, values), strict=True):
    want = old.at[:, :, index % R].set(new[:, 0])
    np.testing.assert_array_equal(*(x.astype('float32') for x in (now, want)))
  for b, first in enumerate((offset, 0)):
    seen = (holds_R >= first) & (holds_R >= 0)
    for n in range(K * G):
      wide = [np.asarray(x, np.float64) for x in (keys[b, n // G, seen], values[b, n // G, seen])]
      s = wide[0] @ np.asarray(q[b, 0, n], np.float64) / math.sqrt(H)
      p = np.exp(softcap * np.tanh(s / softcap) if softcap else s)
      np.testing.assert_allclose(np.asarray(out[b, 0, n], np.float64), p @ wide[1] / p.sum(),
                                 atol=2e-2)


@pytest.mark.parametrize('T', [2, 3, 5])
@pytest.mark.parametrize('softcap', [0.0, 1.5])
def test_the_kernel_of_several_tokens_equals_one_at_a_time(T, softcap):
  """Rows at their own pace, the first with nothing in its cache; and several parts."""
  rng = np.random.default_rng(T)
  B, K, G, H, R = 3, 2, 3, 16, 700
  q, k, v = (jnp.asarray(rng.normal(size=(B, T, n, H)), 'bfloat16') for n in (K * G, K, K))
  index, offset = jnp.asarray([0, 130, 640], 'int32'), jnp.asarray([0, 77, 2], 'int32')
  empty = (np.arange(R) >= index[:, None])[:, None, :, None]
  held = tuple(jnp.where(empty, jnp.nan, jnp.asarray(rng.normal(size=(B, K, R, H)), 'bfloat16'))
               for _ in range(2))
  out, written = decode.attend(q, k, v, held, index, offset, softcap=softcap, interpret=INTERPRET)
  each = []
  for t in range(T):
    one, held = decode.attend(
      *(x[:, t : t + 1] for x in (q, k, v)), held, index + t, offset, softcap=softcap,
      interpret=INTERPRET)
    each.append(one)
  np.testing.assert_allclose(
    *(np.asarray(x, np.float32) for x in (out, jnp.concatenate(each, axis=1))), atol=1e-2)
  for now, want in zip(written, held, strict=True):
    np.testing.assert_array_equal(*(np.asarray(x, np.float32) for x in (now, want)))

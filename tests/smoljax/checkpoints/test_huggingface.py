"""Hugging Face folders, both ways: byte-exact where they are right, one clear line where not."""

import dataclasses
import json
import os
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from goldens import make_hf_logits as goldens
from helpers import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from smoljax import model, sharding
from smoljax.checkpoints import huggingface

CONFIG = model.ModelConfig(
  vocab_size=40, num_layers=3, nope_interval=2, embed_dim=24, num_heads=4, num_kv_heads=2,
  head_dim=8, mlp_dim=32, max_seq_len=64, rope_theta=5e4,
)  # fmt: skip


def hf_folder(path, seed=0, dtype=ml_dtypes.bfloat16, **entries):
  """A folder as transformers writes it, of random weights."""
  hf = {
    **CONFIG.to_hf(), 'no_rope_layer_interval': 2, 'no_rope_layers': None, 'layer_types': None,
    **entries,
  }  # fmt: skip
  config = model.ModelConfig.from_hf(hf)
  rng = np.random.default_rng(seed)
  tensors = {
    name: rng.normal(size=x.shape).astype(dtype)
    for name, x in huggingface.to_hf_tensors(
      config, model.init(config, jax.random.key(0)), 'float32'
    )
  }
  path.mkdir(exist_ok=True)
  (path / 'config.json').write_text(json.dumps(hf))
  safetensors.numpy.save_file(tensors, path / 'model.safetensors', metadata={'format': 'pt'})
  return path, tensors


def read(folder):
  tensors = {}
  for file in sorted(folder.glob('*.safetensors')):
    tensors |= safetensors.numpy.load_file(file)
  return tensors


# ------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize('entries', [
  {}, {'tie_word_embeddings': False, 'attention_bias': True, 'mlp_bias': True},
  {'architectures': ['Qwen3ForCausalLM'], 'attention_bias': True},
  {'architectures': ['Qwen2ForCausalLM']},
  {'architectures': ['MistralForCausalLM'], 'sliding_window': 9, 'tie_word_embeddings': False},
  {'architectures': ['Olmo2ForCausalLM'], 'attention_bias': True},
], ids=['tied', 'untied_biases', 'qwen3', 'qwen2', 'mistral', 'olmo2'])  # fmt: skip
def test_bfloat16_tensors_come_back_byte_for_byte(tmp_path, entries):
  source, tensors = hf_folder(tmp_path / 'hf', **entries)
  config, params = huggingface.load_hf(str(source))
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(params))
  huggingface.save_hf(config, params, str(tmp_path / 'ours'))
  back = read(tmp_path / 'ours')
  assert back.keys() == tensors.keys()
  assert ('lm_head.weight' in back) == (not config.tie_embeddings)
  for name, x in tensors.items():
    assert back[name].dtype == x.dtype and back[name].shape == x.shape
    assert back[name].tobytes() == x.tobytes(), name
  assert huggingface.load_hf(str(tmp_path / 'ours'))[0] == config
  if 'architectures' in entries:
    assert json.loads((tmp_path / 'ours/config.json').read_text())['architectures'] == (
      entries['architectures'])
  with safetensors.safe_open(tmp_path / 'ours/model.safetensors', 'np') as f:
    assert f.metadata() == {'format': 'pt'}


def test_shards_and_index(tmp_path):
  config = dataclasses.replace(CONFIG, tie_embeddings=False, dtype='float32')
  params = model.init(config, jax.random.key(1))
  path = tmp_path / 'x'
  huggingface.save_hf(config, params, str(path), dtype='float32', max_shard_bytes=9000)
  index = json.loads((path / 'model.safetensors.index.json').read_text())
  files = sorted(p.name for p in path.glob('*.safetensors'))
  assert len(files) > 3 and files[0] == f'model-00001-of-{len(files):05d}.safetensors'
  assert set(index['weight_map'].values()) == set(files)
  assert index['metadata']['total_size'] == 4 * config.num_params()
  for file in files:
    tensors = safetensors.numpy.load_file(path / file)
    assert sum(x.nbytes for x in tensors.values()) <= 9000 or len(tensors) == 1
    assert all(index['weight_map'][name] == file for name in tensors)
  back_config, back = huggingface.load_hf(str(path))
  assert back_config == config
  jax.tree.map(np.testing.assert_array_equal, back, params)
  # A second export in another form leaves nothing of the first behind.
  huggingface.save_hf(config, params, str(path), dtype='float32')
  assert [p.name for p in path.glob('model*')] == ['model.safetensors']
  jax.tree.map(np.testing.assert_array_equal, huggingface.load_hf(str(path))[1], params)


def test_a_model_on_a_mesh_is_exported_and_loaded_alike(tmp_path):
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  alone = model.init(CONFIG, jax.random.key(0))
  with jax.set_mesh(mesh):
    params = model.init(CONFIG, jax.random.key(0))
    huggingface.save_hf(CONFIG, params, str(tmp_path / 'x'), dtype='float32')
    _, loaded = huggingface.load_hf(str(tmp_path / 'x'))
  q = loaded['blocks']['attn']['q_DNH']
  assert q.sharding == params['blocks']['attn']['q_DNH'].sharding
  jax.tree.map(np.testing.assert_array_equal, loaded, alone)


configs = st.builds(
  model.ModelConfig,
  vocab_size=st.integers(1, 99), num_layers=st.just(4), embed_dim=st.sampled_from([24, 32]),
  num_heads=st.sampled_from([2, 6]), num_kv_heads=st.sampled_from([1, 2]),
  head_dim=st.sampled_from([8, 12]), mlp_dim=st.integers(1, 99), max_seq_len=st.integers(1, 999),
  rope_theta=st.sampled_from([1e4, 5e6]), nope_interval=st.integers(0, 5),
  rope_layers=st.sampled_from([(), (0, 1, 1, 0), (0, 0, 0, 0)]),
  rope_scaling=st.sampled_from(
    [None, model.Yarn(2.0, 32), model.Yarn(4.0, 64, 16.0, 2.0, 1.25, False),
     model.LinearRope(2.0), model.Llama3Rope(8.0, 64, 1.0, 3.0)]),
  activation=st.sampled_from(['swiglu', 'geglu']),
  sliding_window=st.sampled_from([0, 9]), norm_eps=st.sampled_from([1e-5, 1e-6]),
  tie_embeddings=st.booleans(), attention_bias=st.booleans(), mlp_bias=st.booleans(),
)  # fmt: skip


@given(configs)
def test_config_json_keeps_the_architecture(config):
  hf = json.loads(json.dumps(config.to_hf()))
  back = model.ModelConfig.from_hf(hf)
  settled = lambda c: dataclasses.replace(
    c, rope_layers=tuple(map(int, c.rope_flags)), nope_interval=4,
    window_layers=tuple(int(w > 0) for w in c.windows) if any(c.windows) else (),
    sliding_window=c.sliding_window if any(c.windows) else 0)
  assert settled(back) == settled(config)
  assert 'rope_parameters' not in hf
  v5 = {k: v for k, v in hf.items() if k not in ('rope_theta', 'rope_scaling')}
  v5['rope_parameters'] = {'rope_theta': hf['rope_theta'], **(hf['rope_scaling'] or {})}
  assert model.ModelConfig.from_hf(v5) == back


def shape(name):  # how its layers are computed is no matter of config.json
  return dataclasses.replace(model.SHAPES[name], remat='none')


def test_released_config_files_are_understood():
  """The entries of SmolLM3-3B's and SmolLM2-135M's config.json on the hub (transformers 4)."""
  smollm3 = model.ModelConfig.from_hf(dict(
    architectures=['SmolLM3ForCausalLM'], hidden_size=2048, intermediate_size=11008,
    num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=4, vocab_size=128256,
    max_position_embeddings=65536, rope_theta=5000000.0, rope_scaling=None, rms_norm_eps=1e-6,
    no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0] * 9, hidden_act='silu',
    use_sliding_window=False, sliding_window=None, tie_word_embeddings=True,
  ))  # fmt: skip
  assert smollm3 == shape('smollm3-3b')
  smollm2 = model.ModelConfig.from_hf(dict(
    architectures=['LlamaForCausalLM'], hidden_size=576, intermediate_size=1536,
    num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, vocab_size=49152,
    max_position_embeddings=8192, rope_theta=100000, rms_norm_eps=1e-5, tie_word_embeddings=True,
    initializer_range=0.041666666666666664, rope_interleaved=False,
  ))  # fmt: skip
  assert smollm2 == shape('smollm2-135m')
  llama = model.ModelConfig.from_hf(dict(
    architectures=['LlamaForCausalLM'], hidden_size=2048, intermediate_size=8192, head_dim=64,
    num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, vocab_size=128256,
    max_position_embeddings=131072, rope_theta=500000.0, rms_norm_eps=1e-5, hidden_act='silu',
    rope_scaling={'factor': 32.0, 'high_freq_factor': 4.0, 'low_freq_factor': 1.0,
                  'original_max_position_embeddings': 8192, 'rope_type': 'llama3'},
    tie_word_embeddings=True, mlp_bias=False, attention_bias=False, pretraining_tp=1,
  ))  # fmt: skip
  assert llama == shape('llama-3.2-1b')


def test_what_comes_along(tmp_path):
  source, _ = hf_folder(tmp_path / 'hf')
  made = tokenizers.write(str(source), ['<s>', '</s>', '<pad>'])
  text = pathlib.Path(made).read_text()
  (source / 'chat_template.jinja').write_text('{{ x }}')
  (source / 'generation_config.json').write_text('{"temperature": 0.6, "eos_token_id": 7}')
  config, params = huggingface.load_hf(str(source))
  out = tmp_path / 'out'
  huggingface.save_hf(
    config, params, str(out), tokenizer_dir=str(source), bos_id=1, eos_id=2,
    facts={'Training tokens': 123})
  assert (out / 'tokenizer.json').read_text() == text
  assert (out / 'chat_template.jinja').read_text() == '{{ x }}'
  generation = json.loads((out / 'generation_config.json').read_text())
  assert generation == {  # given, given, of the tokenizer, of the folder
    'bos_token_id': 1, 'eos_token_id': 2, 'pad_token_id': 258, 'temperature': 0.6}
  hf = json.loads((out / 'config.json').read_text())
  assert (hf['bos_token_id'], hf['eos_token_id'], hf['pad_token_id']) == (1, 2, 258)
  assert (hf['torch_dtype'], hf['dtype']) == ('bfloat16', 'bfloat16')
  card = (out / 'README.md').read_text()
  assert card.startswith('---\n') and '| Training tokens | 123 |' in card
  assert f'{config.num_params():,}' in card
  assert not list(out.glob('*.tmp'))


@pytest.mark.parametrize(('kind', 'depth'), [('sequential', 2), ('parallel', 1)])
def test_modules_of_multi_token_prediction_are_kept_or_dropped(kind, depth, tmp_path):
  config = dataclasses.replace(CONFIG, mtp=kind, mtp_depth=depth)
  params = model.init(config, jax.random.key(0))
  huggingface.save_hf(config, params, str(tmp_path / 'kept'), dtype='float32')
  hf = json.loads((tmp_path / 'kept/config.json').read_text())
  assert (hf['mtp'], hf['num_nextn_predict_layers']) == (kind, depth)
  loaded, again = huggingface.load_hf(str(tmp_path / 'kept'))
  assert (loaded.mtp, loaded.mtp_depth) == (kind, depth)
  jax.tree.map(np.testing.assert_array_equal, again, params)
  huggingface.save_hf(
    *model.without_mtp(config, params), str(tmp_path / 'dropped'), dtype='float32'
  )
  names = lambda folder: set(safetensors.numpy.load_file(tmp_path / folder / 'model.safetensors'))
  more = names('kept') - names('dropped')
  assert more == {n for n in names('kept') if n.startswith('model.mtp.')} != set()
  assert 'num_nextn_predict_layers' not in (tmp_path / 'dropped/config.json').read_text()
  plain, _ = huggingface.load_hf(str(tmp_path / 'dropped'))
  assert plain.mtp == 'none'


# --------------------------------------------------------------------------------- transformers


@pytest.mark.slow
@pytest.mark.parametrize('case', goldens.CASES)
def test_transformers_loads_the_export_and_gives_the_same_logits(case, tmp_path):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  prefix, entries, lengths = goldens.CASES[case]
  config = model.ModelConfig.from_hf(
    {'architectures': [f'{prefix}ForCausalLM'], **goldens.BASE, **entries}, dtype='float32')
  params = model.init(dataclasses.replace(config, init_std=0.2), jax.random.key(0))
  huggingface.save_hf(config, params, str(tmp_path), dtype='float32', pad_id=0)
  hf, report = transformers.AutoModelForCausalLM.from_pretrained(
    str(tmp_path), output_loading_info=True)
  assert type(hf).__name__ == f'{prefix}ForCausalLM'
  assert not any(report[k] for k in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
  assert hf.num_parameters() == config.num_params()
  positions = goldens.positions(lengths)
  with torch.no_grad():
    expected = hf.eval()(
      torch.from_numpy(goldens.tokens()), use_cache=False,
      position_ids=None if positions is None else torch.from_numpy(positions)).logits
  logits = model.apply(config, params, goldens.tokens(), positions_BT=positions).logits
  np.testing.assert_allclose(logits, expected.numpy(), atol=5e-4, rtol=0)


YARN = {'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 24}


@pytest.mark.slow
@pytest.mark.parametrize('edits', [
  {'rope_scaling': YARN},
  {'rope_scaling': {**YARN, 'type': 'yarn', 'rope_theta': 3e4}, 'rope_theta': 7e4},
  {'rope_scaling': YARN, 'rope_parameters': {'rope_type': 'default', 'rope_theta': 9e4}},
  {'rope_parameters': YARN},
  {'rope_parameters': {**YARN, 'rope_theta': 3e4}, 'rope_scaling': None},
  {'rope_parameters': {'rope_type': 'linear', 'factor': 2.0}, 'rope_scaling': {}},
], ids=str)
@pytest.mark.parametrize('kind', ['LlamaForCausalLM', 'SmolLM3ForCausalLM'])
@pytest.mark.parametrize('theta', [5e4, None])
def test_rotary_positions_edited_by_hand_are_what_transformers_reads(tmp_path, kind, theta, edits):
  transformers = pytest.importorskip('transformers')
  config = dataclasses.replace(CONFIG, nope_interval=0 if kind.startswith('Llama') else 2)
  hf = {k: v for k, v in (config.to_hf() | {'rope_theta': theta} | edits).items()
        if k != 'rope_theta' or v}
  assert hf['architectures'] == [kind]
  ours = model.ModelConfig.from_hf(hf)
  (tmp_path / 'config.json').write_text(json.dumps(hf))
  theirs = transformers.AutoConfig.from_pretrained(str(tmp_path))
  name = theirs.rope_parameters['rope_type']
  expected, scale = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[name](theirs, 'cpu')
  frequencies, ours_scale = model.rope_frequencies(ours)
  np.testing.assert_allclose(frequencies, expected.numpy(), rtol=1e-6)
  assert ours_scale == pytest.approx(scale)


@pytest.mark.slow
@pytest.mark.parametrize('prefix', ['SmolLM3', 'Llama', 'Qwen3', 'Qwen2', 'Mistral', 'Olmo2'])
def test_what_transformers_writes_comes_back_byte_for_byte(tmp_path, prefix):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  config = getattr(transformers, f'{prefix}Config')(**goldens.BASE)
  hf = getattr(transformers, f'{prefix}ForCausalLM')(config)
  hf.to(torch.bfloat16).save_pretrained(tmp_path / 'hf', max_shard_size='20KB')
  assert (tmp_path / 'hf/model.safetensors.index.json').exists()
  config, params = huggingface.load_hf(str(tmp_path / 'hf'))
  huggingface.save_hf(config, params, str(tmp_path / 'ours'))
  theirs, ours = read(tmp_path / 'hf'), read(tmp_path / 'ours')
  assert theirs.keys() == ours.keys()
  assert all(theirs[name].tobytes() == ours[name].tobytes() for name in theirs)


# ------------------------------------------------------------------------------------ bad input


def spoil(folder, tensors, how):
  file = folder / 'model.safetensors'
  name = 'model.layers.1.self_attn.k_proj.weight'
  tensors = dict(tensors)
  if how == 'missing':
    del tensors[name]
  elif how == 'extra':
    tensors['model.layers.3.input_layernorm.weight'] = tensors['model.norm.weight']
  elif how == 'misshapen':
    tensors[name] = tensors[name].T.copy()
  elif how == 'wrongly typed':
    tensors[name] = tensors[name].astype(np.int8)
  elif how == 'other head':
    tensors['lm_head.weight'] = tensors['model.embed_tokens.weight'] + tensors['model.norm.weight']
  safetensors.numpy.save_file(tensors, file)
  if how == 'truncated':
    file.write_bytes(file.read_bytes()[:-100])
  elif how == 'no weights':
    file.unlink()
  elif how == 'no config':
    (folder / 'config.json').unlink()
  elif how in ('no shard', 'index that lies'):
    file.rename(folder / 'model-00001-of-00002.safetensors')
    names = dict.fromkeys(tensors, 'model-00001-of-00002.safetensors')
    if how == 'no shard':
      names[name] = 'model-00002-of-00002.safetensors'
    else:
      safetensors.numpy.save_file({}, folder / 'model-00002-of-00002.safetensors')
      names[name] = 'model-00002-of-00002.safetensors'
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': names}))


@pytest.mark.parametrize('how, error, message', [
  ('missing', ValueError, r'lacks tensor model\.layers\.1\.self_attn\.k_proj\.weight'),
  ('extra', ValueError, r'unexpected tensor model\.layers\.3\.input_layernorm\.weight'),
  ('misshapen', ValueError, r'k_proj\.weight has shape \[24, 16\], .* means \[16, 24\]'),
  ('wrongly typed', ValueError, r'k_proj\.weight is stored as I8: only BF16, F16, F32'),
  ('other head', ValueError, 'lm_head.weight differs from the embedding'),
  ('truncated', ValueError, 'model.safetensors is not a whole safetensors file'),
  ('no weights', FileNotFoundError, 'neither model.safetensors nor'),
  ('no config', FileNotFoundError, 'no config.json'),
  ('no shard', FileNotFoundError, 'the index names model-00002-of-00002.safetensors'),
  ('index that lies', ValueError, r'00002\.safetensors lacks .*k_proj'),
])  # fmt: skip
def test_bad_folders(tmp_path, how, error, message):
  folder, tensors = hf_folder(tmp_path / 'hf')
  spoil(folder, tensors, how)
  with pytest.raises(error, match=message):
    huggingface.load_hf(str(folder))


def test_a_second_copy_of_the_tied_matrix_is_accepted(tmp_path):
  folder, tensors = hf_folder(tmp_path / 'hf')
  tensors['lm_head.weight'] = tensors['model.embed_tokens.weight']
  tensors['model.layers.0.self_attn.rotary_emb.inv_freq'] = np.ones(4, np.float32)
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
  config, params = huggingface.load_hf(str(folder))
  assert config.tie_embeddings and 'head_DV' not in params


@pytest.mark.parametrize('entries, message', [
  ({'architectures': ['GemmaForCausalLM']}, 'only SmolLM3ForCausalLM, LlamaForCausalLM'),
  ({'hidden_act': 'gelu'}, "hidden_act='gelu'"),
  ({'rope_scaling': {'rope_type': 'longrope'}, 'rope_parameters': None},
   "rope_scaling.rope_type='longrope': .*set yarn"),
  ({'rope_parameters': {'type': 'llama3', 'factor': 8}}, 'rope_parameters lacks low_freq_factor'),
  ({'rope_parameters': {'partial_rotary_factor': 0.5}}, 'partial_rotary_factor=0.5'),
  ({'num_key_value_heads': 3}, 'num_heads=4 is not a multiple of num_kv_heads=3'),
])  # fmt: skip
def test_models_that_cannot_be_read(entries, message):
  with pytest.raises(ValueError, match=message):
    model.ModelConfig.from_hf({**CONFIG.to_hf(), **entries})


def test_models_that_cannot_be_written(tmp_path):
  params = model.init(CONFIG, jax.random.key(0))
  path = str(tmp_path / 'x')
  for fields, message in [
    ({'qk_norm': True}, r'rope_flags=.* with qk_norm=True'),
    ({'qk_norm': True, 'nope_interval': 0, 'mlp_bias': True}, 'mlp_bias=True with qk_norm=True'),
    ({'activation': 'relu2'}, "activation='relu2'.* trained with activation='swiglu' or"),
    ({'norm': 'layer'}, "norm='layer'"), ({'norm_position': 'post'}, "norm_position='post'"),
    ({'norm_position': 'post', 'qk_norm': True}, "qk_norm_over='head' with norm_position='post'"),
    ({'qkv_bias': True}, 'rope_flags=.* with qkv_bias=True'),
    ({'logit_softcap': 3.0}, 'logit_softcap=3.0'),
    ({'attention_softcap': 3.0}, 'attention_softcap=3.0'),
  ]:  # fmt: skip
    with pytest.raises(ValueError, match=message):
      huggingface.save_hf(dataclasses.replace(CONFIG, **fields), params, path)
  with pytest.raises(ValueError, match='head_DV is missing'):
    huggingface.save_hf(dataclasses.replace(CONFIG, tie_embeddings=False), params, path)
  with pytest.raises(ValueError, match=r'embed_VD has shape \(40, 24\), but the config'):
    huggingface.save_hf(dataclasses.replace(CONFIG, vocab_size=41), params, path)
  with pytest.raises(ValueError, match='eos_id=40 lies outside'):
    huggingface.save_hf(CONFIG, params, path, eos_id=40)
  with pytest.raises(ValueError, match="dtype='int8'"):
    huggingface.save_hf(CONFIG, params, path, dtype='int8')
  assert not os.path.exists(path)
  large = jax.tree.map(lambda x: x, params)
  large['blocks']['mlp']['up_DF'] = params['blocks']['mlp']['up_DF'].at[1, 0, 0].set(1e6)
  with pytest.raises(ValueError, match=r'blocks/mlp/up_DF .*layers\.1.* not finite in float16'):
    huggingface.save_hf(CONFIG, large, path, dtype='float16')
  assert not os.path.exists(os.path.join(path, 'config.json'))  # nothing that looks whole
  with pytest.raises(FileNotFoundError, match='no tokenizer files'):
    huggingface.save_hf(CONFIG, params, path, tokenizer_dir=str(tmp_path))
  shutil.rmtree(path)

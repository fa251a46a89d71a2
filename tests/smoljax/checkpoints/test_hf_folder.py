"""Folders of strangers: one line, soon, for whatever is wrong, and nothing read outside of them."""

import json
import math
import os
import time

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from helpers import tokenizers

from smoljax import model
from smoljax.checkpoints import export_formats, hf_folder, huggingface, load
from smoljax.inference import generate

CONFIG = model.ModelConfig(
  vocab_size=300, num_layers=3, nope_interval=2, embed_dim=24, num_heads=4, num_kv_heads=2,
  head_dim=8, mlp_dim=32, max_seq_len=64, rope_theta=5e4,
)  # fmt: skip
HF = CONFIG.to_hf() | {'dtype': 'bfloat16'}
K_PROJ = 'model.layers.1.self_attn.k_proj.weight'
SECOND = 'model-00002-of-00002.safetensors'


@pytest.fixture(scope='module')
def tensors():
  params = model.init(CONFIG, jax.random.key(0))
  return dict(huggingface.to_hf_tensors(CONFIG, params, 'bfloat16'))


def write(path, tensors, **entries):
  """A folder that loads, but for these entries of config.json."""
  tokenizers.write(str(path), ['<s>', '</s>', '<x>'])
  (path / 'config.json').write_text(json.dumps(HF | entries))
  (path / 'generation_config.json').write_text('{"eos_token_id": [257, 258], "top_p": 0.9}')
  safetensors.numpy.save_file(tensors, path / 'model.safetensors', metadata={'format': 'pt'})
  return path


def changed(**entries):
  """Entries of config.json."""
  return lambda path, _: (path / 'config.json').write_text(json.dumps(HF | entries))


def content(name, data):
  """A file's bytes."""
  return lambda path, _: (path / name).write_bytes(data)


def replaced(name, make):
  """A file's place taken by what `make` puts at a path."""
  def spoil(path, _):
    os.remove(path / name)
    make(path / name)
  return spoil


def linked(name, target):
  """A file moved away, and a link to where it is now (or to what is nowhere)."""
  def spoil(path, _):
    (path / '../outside').mkdir()
    os.rename(path / name, path / '../outside' / name)
    os.symlink(target, path / name)
  return spoil


def weights(change):
  """Other tensors."""
  def spoil(path, tensors):
    tensors = {k: v.copy() for k, v in tensors.items()}
    change(tensors)
    safetensors.numpy.save_file(tensors, path / 'model.safetensors')
  return spoil


def indexed(index, file=SECOND):
  """An index (by the names of the tensors) instead of the single file."""
  def spoil(path, tensors):
    (path / '../outside').mkdir()
    os.rename(path / 'model.safetensors', path / file)
    value = index({**dict.fromkeys(tensors, SECOND)})
    (path / 'model.safetensors.index.json').write_text(
      value if isinstance(value, str) else json.dumps({'weight_map': value}))
  return spoil


def to_value(value):
  def change(tensors):
    tensors[K_PROJ][3, 5] = value
  return change


# What is wrong: (how, a part of the message). JSON of Python writes NaN as other writers do.
BAD = {
  'empty config': (content('config.json', b''), 'config.json is no JSON'),
  'half a config': (content('config.json', b'{"vocab_size": 3'), 'config.json is no JSON'),
  'config is a list': (content('config.json', b'[1]'), 'config.json is list'),
  'config is null': (content('config.json', b'null'), 'config.json is NoneType'),
  'config in UTF-16': (content('config.json', b'\xff\xfe{\0}\0'), 'config.json is no JSON'),
  'config nested': (content('config.json', b'{"a":' + b'[' * 200_000), 'config.json is no JSON'),
  'config of digits': (content('config.json', b'{"vocab_size": ' + b'9' * 9000 + b'}'), 'no JSON'),
  'no config': (lambda path, _: os.remove(path / 'config.json'), 'no config.json'),
  'config is a folder': (replaced('config.json', os.mkdir), 'config.json is no plain file'),
  'config is a pipe': (replaced('config.json', os.mkfifo), 'config.json is no plain file'),
  'config elsewhere': (
    linked('config.json', '../outside/config.json'), 'config.json leads out of the folder'),
  'config nowhere': (linked('config.json', 'gone.json'), 'config.json is a link to nothing'),
  'entries missing': (content('config.json', b'{"model_type": "llama"}'), 'lacks vocab_size'),
  'many layers': (changed(num_hidden_layers=10**7), 'num_hidden_layers=10000000: .*at most'),
  'more layers': (
    changed(num_hidden_layers=9999, no_rope_layers=None, layer_types=None),
    r'9,999 layers, but there are only 29 tensors'),
  'layers as text': (changed(num_hidden_layers='3'), "num_hidden_layers='3': a whole number"),
  'no layers': (changed(num_hidden_layers=0), 'num_hidden_layers=0: a positive'),
  'large vocabulary': (changed(vocab_size=10**18), 'vocab_size=1000000000000000000: a whole'),
  'larger vocabulary': (changed(vocab_size=2**31 - 1), r'shape \[300, 24\], but'),
  'half a row': (changed(vocab_size=300.5), r'vocab_size=300\.5: a whole number'),
  'vocabulary is true': (changed(vocab_size=True), 'vocab_size=True: a whole number'),
  'large width': (changed(hidden_size=2**31 - 1), 'has shape'),
  'large mlp': (changed(intermediate_size=2**30), 'has shape'),
  'negative mlp': (changed(intermediate_size=-32), 'intermediate_size=-32: a positive'),
  'no heads': (changed(num_attention_heads=0), 'num_attention_heads=0: a positive'),
  'odd groups': (changed(num_key_value_heads=3), 'num_heads=4 is not a multiple'),
  'no groups': (changed(num_key_value_heads=0), 'num_kv_heads=0: give a positive'),
  'odd heads': (changed(head_dim=7), 'head_dim=7: rotary positions need an even'),
  'heads as text': (changed(head_dim='8'), "head_dim='8': a whole number"),
  'tied in quotes': (changed(tie_word_embeddings='false'), "='false': true or false is expected"),
  'tied by a number': (changed(tie_word_embeddings=1), '=1: true or false'),
  'activation 5': (changed(hidden_act=5), 'hidden_act=5: a text'),
  'another activation': (changed(hidden_act='relu'), "hidden_act='relu': one of silu"),
  'architecture as text': (changed(architectures='LlamaForCausalLM'), 'architectures=.* a list'),
  'architecture 5': (changed(architectures=[5]), r'architectures=\[5\]: only SmolLM3'),
  'another architecture': (changed(architectures=['T5Model']), "'T5Model'.*: only SmolLM3"),
  'no architecture': (changed(architectures=[], model_type='rwkv'), 'rwkv'),
  'scaling as text': (changed(rope_scaling='yarn'), "rope_scaling='yarn': an object"),
  'scaling is a list': (changed(rope_scaling=[1]), r'rope_scaling=\[1\]: an object'),
  'factor as text': (
    changed(rope_scaling={'rope_type': 'yarn', 'factor': '2'}), "rope_scaling.factor='2': a num"),
  'factor NaN': (
    changed(rope_scaling={'rope_type': 'linear', 'factor': math.nan}), 'factor=nan: a number'),
  'factor below 1': (changed(rope_scaling={'type': 'linear', 'factor': 0.5}), 'at least 1'),
  'no factor': (changed(rope_scaling={'rope_type': 'llama3'}), 'lacks factor'),
  'original 0': (
    changed(rope_scaling={'type': 'yarn', 'factor': 2, 'original_max_position_embeddings': -5}),
    'original_max_seq_len'),
  'scaling of type 5': (changed(rope_scaling={'rope_type': 5}), 'rope_type=5: a text'),
  'scaling a layer': (
    changed(rope_parameters={'full_attention': {'rope_type': 'default'}}), 'full_attention: only'),
  'base as text': (changed(rope_theta='5e4'), "rope_theta='5e4': a number"),
  'base infinite': (changed(rope_theta=math.inf), 'rope_theta=inf: a number'),
  'base 0': (changed(rope_theta=0), 'rope_theta=0.0: give a positive'),
  'eps NaN': (changed(rms_norm_eps=math.nan), 'rms_norm_eps=nan: a number'),
  'no context': (changed(max_position_embeddings=0), 'max_seq_len=0: give a positive'),
  'rotating layers short': (changed(no_rope_layers=[1, 0]), r'no_rope_layers=\[1, 0\]: one of'),
  'rotating layers of 2': (changed(no_rope_layers=[1, 2, 1]), r'no_rope_layers=\[1, 2, 1\]: one'),
  'interval negative': (changed(no_rope_layers=None, no_rope_layer_interval=-2), 'interval=-2'),
  'layer types': (changed(layer_types=['chunked'] * 3), "layer_types=.*: one of full_attention"),
  'window as text': (changed(use_sliding_window=True, sliding_window='9'), "window='9': a whole"),
  'window negative': (
    changed(use_sliding_window=True, sliding_window=-9, layer_types=None), 'sliding_window=-9'),
  'dtype int8': (changed(dtype='int8'), "dtype='int8': one of bfloat16, float16, float32"),
  'dtype 16': (changed(dtype=16), 'dtype=16: a text'),
  'mtp': (changed(mtp='deep'), "mtp='deep'"),
  'no weights': (
    lambda path, _: os.remove(path / 'model.safetensors'), 'neither model.safetensors nor'),
  'weights of torch': (
    lambda path, _: os.rename(path / 'model.safetensors', path / 'pytorch_model.bin'),
    'only safetensors are read'),
  'empty weights': (content('model.safetensors', b''), 'not a whole safetensors file'),
  'weights of zeros': (content('model.safetensors', bytes(99)), 'not a whole safetensors file'),
  'header without end': (content('model.safetensors', b'\xff' * 99), 'not a whole safetensors'),
  'header of noise': (
    content('model.safetensors', (64).to_bytes(8, 'little') + b'{' * 64), 'not a whole'),
  'weights cut': (
    lambda path, _: os.truncate(path / 'model.safetensors', 20_000), 'not a whole safetensors'),
  'weights are a folder': (replaced('model.safetensors', os.mkdir), 'no plain file'),
  'weights are a pipe': (replaced('model.safetensors', os.mkfifo), 'no plain file'),
  'weights elsewhere': (
    linked('model.safetensors', '../outside/model.safetensors'), 'leads out of the folder'),
  'weights nowhere': (linked('model.safetensors', 'gone'), 'a link to nothing'),
  'no tensors': (weights(dict.clear), 'but there are only 0 tensors'),
  'a tensor missing': (weights(lambda t: t.pop(K_PROJ)), f'lacks tensor {K_PROJ}'),
  'no embedding': (weights(lambda t: t.pop('model.embed_tokens.weight')), 'lacks tensor model.em'),
  'a tensor more': (weights(lambda t: t.update(x=t[K_PROJ])), 'unexpected tensor x:'),
  'another shape': (
    weights(lambda t: t.update({K_PROJ: t[K_PROJ].T.copy()})), r'shape \[24, 16\], but'),
  'no dims': (
    weights(lambda t: t.update({K_PROJ: np.array(1, t[K_PROJ].dtype)})), r'shape \[\], but'),
  'eight bits': (
    weights(lambda t: t.update({K_PROJ: t[K_PROJ].astype(np.int8)})), 'is stored as I8'),
  'NaN': (weights(to_value(np.nan)), f'{K_PROJ} holds values that are not finite'),
  'infinity': (weights(to_value(-np.inf)), f'{K_PROJ} holds values that are not finite'),
  'index without weights': (
    indexed(lambda m: m, file='model.bin'), f'the index names {SECOND}, which is not there'),
  'index is no JSON': (indexed(lambda m: '{"weight_map"'), 'index.json is no JSON'),
  'index without map': (indexed(lambda m: '{}'), 'has no weight_map'),
  'map is a list': (indexed(lambda m: '{"weight_map": [1]}'), 'has no weight_map'),
  'map of numbers': (indexed(lambda m: dict.fromkeys(m, 5)), 'has no weight_map'),
  'map to above': (
    indexed(lambda m: m | {K_PROJ: '../outside/x.safetensors'}), "'../outside/x.safetensors', wh"),
  'map to the root': (
    indexed(lambda m: m | {K_PROJ: '/etc/x.safetensors'}), "'/etc/x.safetensors', which is no"),
  'map to a link': (
    lambda path, t: (indexed(lambda m: m)(path, t),
                     os.rename(path / SECOND, path / '../outside' / SECOND),
                     os.symlink(f'../outside/{SECOND}', path / SECOND)),
    f'{SECOND} leads out of the folder'),
  'map to another file': (indexed(lambda m: m | {K_PROJ: 'config.json'}), "names 'config.json'"),
  'map that lies': (indexed(lambda m: m | {'y': SECOND}), f'{SECOND} lacks y, which the index'),
  'tokenizer cut': (content('tokenizer.json', b'{"version": "1.0"'), 'no tokenizer that can be'),
  'tokenizer elsewhere': (
    linked('tokenizer.json', '../outside/tokenizer.json'), 'tokenizer.json leads out'),
  'no tokenizer': (lambda path, _: os.remove(path / 'tokenizer.json'), 'no tokenizer.json or'),
  'tokenizer too large': (
    lambda path, _: tokenizers.write(str(path), [f'<{i}>' for i in range(99)]), 'has 355 ids'),
  'its config': (content('tokenizer_config.json', b'[]'), 'is no JSON object'),
  'its config nested': (
    content('tokenizer_config.json', b'{"a":' * 50_000), 'is no JSON object'),
  'its end a number': (content('tokenizer_config.json', b'{"eos_token": 3}'), '=3 is no text'),
  'its end a list': (
    content('special_tokens_map.json', b'{"eos_token": {"content": ["</s>"]}}'), 'is no text'),
  'template elsewhere': (
    lambda path, _: os.symlink('/etc/passwd', path / 'chat_template.jinja'), 'leads out'),
  'end as text': (
    content('generation_config.json', b'{"eos_token_id": "257"}'), "eos_token_id='257': a token"),
  'ends as texts': (
    content('generation_config.json', b'{"eos_token_id": [257, null, "x"]}'), 'a token id is'),
  'settings in a list': (content('generation_config.json', b'[0]'), 'json is list, not'),
}  # fmt: skip


def test_the_folder_that_is_spoiled_below_loads(tmp_path, tensors):
  loaded = load.load_model(str(write(tmp_path / 'hf', tensors)))
  assert loaded.config.dtype == 'bfloat16' and loaded.eos_ids == (257, 258)
  assert loaded.generation['top_p'] == 0.9


@pytest.mark.parametrize('what', BAD)
def test_what_is_wrong_is_one_line(tmp_path, tensors, what):
  how, message = BAD[what]
  folder = write(tmp_path / 'hf', tensors)
  how(folder, tensors)
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.exists()}
  start = time.perf_counter()
  with pytest.raises((ValueError, OSError), match=message) as e:
    load.load_model(str(folder))
  assert time.perf_counter() - start < 1
  assert '\n' not in str(e.value) and len(str(e.value)) < 500
  assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.exists()} == before


def test_a_tied_matrix_stored_as_the_head_alone(tmp_path, tensors):
  """As transformers reads it."""
  folder = write(tmp_path / 'hf', tensors)
  expected = huggingface.load_hf(str(folder))[1]
  weights(lambda t: t.update({'lm_head.weight': t.pop('model.embed_tokens.weight')}))(
    folder, tensors)
  config, params = huggingface.load_hf(str(folder))
  assert config.tie_embeddings
  jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_the_cache_of_the_hub_is_read(tmp_path, tensors):
  """Its files are links to blobs beside the snapshots; links to elsewhere are not followed."""
  home = tmp_path / 'models--a--b/snapshots/0123'
  home.mkdir(parents=True)
  write(home, tensors)
  (home / '../../blobs').mkdir()
  for name in ('model.safetensors', 'config.json', 'tokenizer.json'):
    os.rename(home / name, home / '../../blobs' / name)
    os.symlink(f'../../blobs/{name}', home / name)
  assert load.load_model(str(home)).config.vocab_size == 300
  (home / '../../others').mkdir()
  os.rename(home / '../../blobs/config.json', home / '../../others/config.json')
  os.unlink(home / 'config.json')
  os.symlink('../../others/config.json', home / 'config.json')
  with pytest.raises(ValueError, match=r'config\.json leads out of the folder'):
    load.load_model(str(home))


# ------------------------------------------------------------------------------------------ dtype


@pytest.mark.parametrize('stored, entries, expected', [
  ('bfloat16', {'dtype': 'bfloat16'}, 'bfloat16'), ('bfloat16', {'dtype': 'float32'}, 'float32'),
  ('float32', {'dtype': None, 'torch_dtype': 'bfloat16'}, 'bfloat16'),
  ('float32', {'dtype': 'torch.float32'}, 'float32'),
  ('bfloat16', {'dtype': None, 'torch_dtype': None}, 'bfloat16'),
  ('float32', {'dtype': None, 'torch_dtype': None}, 'float32'),
  ('float16', {'dtype': 'float16'}, 'float32'),
])  # fmt: skip
def test_a_model_computes_in_the_dtype_of_its_config(tmp_path, tensors, stored, entries, expected):
  dtype = huggingface.DTYPES[stored]
  write(tmp_path, {k: v.astype(dtype) for k, v in tensors.items()}, **entries)
  assert huggingface.load_hf(str(tmp_path))[0].dtype == expected
  assert huggingface.load_hf(str(tmp_path), dtype='float32')[0].dtype == 'float32'


def test_what_a_run_computes_its_export_computes(tmp_path):
  """To the last bit, in bfloat16 as in float32."""
  text = load.tokenizer_lib.load(tokenizers.write(str(tmp_path / 'text'), ['<s>', '</s>', '<x>']))
  tokens = np.arange(40)[None]
  for dtype in ('bfloat16', 'float32'):
    config = model.ModelConfig(**vars(CONFIG) | {'dtype': dtype, 'init_std': 0.3})
    params = model.init(config, jax.random.key(1))
    out = str(tmp_path / dtype)
    export_formats.write_hf(load.Model(config, params, text, True), out)
    assert json.loads((tmp_path / dtype / 'config.json').read_text())['dtype'] == dtype
    again = load.load_model(out)
    assert again.config.dtype == dtype
    logits = [model.apply(c, p, tokens).logits for c, p in ((config, params), again[:2])]
    np.testing.assert_array_equal(*logits)


# -------------------------------------------------------------------------------- what goes along


def test_ids_and_settings_of_a_folder_go_along(tmp_path, tensors):
  source = write(tmp_path / 'hf', tensors, bos_token_id=256, eos_token_id=257, pad_token_id=-1)
  (source / 'chat_template.jinja').write_text('{{ messages }}\n')
  (source / 'generation_config.json').write_text(json.dumps({
    '_from_model_config': True, 'eos_token_id': [258, 257], 'temperature': 0.6, 'top_p': 0.95,
    'do_sample': True, 'transformers_version': '4.55.0'}))
  export_formats.write_hf(load.load_model(str(source)), str(tmp_path / 'out'))
  read = lambda name: json.loads((tmp_path / 'out' / name).read_text())
  assert read('generation_config.json') == {
    'bos_token_id': 256, 'eos_token_id': [258, 257], 'pad_token_id': -1, 'temperature': 0.6,
    'top_p': 0.95, 'do_sample': True, 'transformers_version': '4.55.0'}
  assert [read('config.json')[k] for k in huggingface._ID_KEYS] == [256, [258, 257], -1]
  assert (tmp_path / 'out/chat_template.jinja').read_text() == '{{ messages }}\n'
  assert load.load_model(str(tmp_path / 'out')).eos_ids == (258, 257)
  # With another tokenizer the ids are that one's.
  other = tokenizers.write(str(tmp_path / 'other'), ['<a>', '</s>', '<s>'])
  export_formats.write_hf(load.load_model(str(source), other), str(tmp_path / 'out2'))
  settings = json.loads((tmp_path / 'out2/generation_config.json').read_text())
  assert (settings['bos_token_id'], settings['eos_token_id']) == (258, 257)
  assert settings['temperature'] == 0.6 and 'pad_token_id' not in settings


def test_eos_ids_where_no_file_of_generation_says_them(tmp_path, tensors):
  source = write(tmp_path, tensors)
  os.remove(source / 'generation_config.json')
  assert load.load_model(str(source)).eos_ids == (257,)  # of the tokenizer
  (source / 'config.json').write_text(json.dumps(HF | {'eos_token_id': [3, 4]}))
  assert load.load_model(str(source)).eos_ids == (3, 4)


@pytest.mark.slow
def test_transformers_stops_where_we_stop(tmp_path):
  """An export of an export still has the ends that the first one named."""
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  config = model.ModelConfig(**vars(CONFIG) | {'dtype': 'float32', 'init_std': 0.4})
  text = load.tokenizer_lib.load(tokenizers.write(str(tmp_path / 'text'), ['<s>', '</s>', '<x>']))
  made = load.Model(config, model.init(config, jax.random.key(2)), text, True)
  prompts = [[256, i, i + 1, i + 2] for i in range(8)]
  free = generate.generate(config, made.params, prompts, max_new_tokens=24)
  ends = [free[0][9], free[1][5]]
  settings = {'eos_token_id': ends, 'temperature': 0.6, 'top_p': 0.95, 'do_sample': True}
  first, second = str(tmp_path / 'first'), str(tmp_path / 'second')
  export_formats.write_hf(made._replace(generation=settings, folder=str(tmp_path / 'text')), first)
  export_formats.write_hf(load.load_model(first), second)
  loaded = load.load_model(second)
  assert set(loaded.eos_ids) == set(ends)
  ours = generate.generate(
    loaded.config, loaded.params, prompts, max_new_tokens=24, eos_id=loaded.eos_ids)
  assert len({len(row) for row in ours}) > 1
  theirs = transformers.AutoModelForCausalLM.from_pretrained(second)
  assert theirs.dtype == torch.float32 and theirs.generation_config.temperature == 0.6
  for prompt, row in zip(prompts, ours, strict=True):
    out = theirs.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)
    new = out[0, len(prompt):].tolist()
    assert [i for i in new if i not in ends] == row


# ------------------------------------------------------------------------ changed, and overwritten


def test_the_fingerprint_is_of_the_bytes(tmp_path, tensors):
  source = write(tmp_path / 'hf', tensors)
  file = source / 'model.safetensors'
  first = load.weights_fingerprint(str(source))
  assert [name for name, _ in first] == ['config.json', 'model.safetensors']
  stat, data = file.stat(), bytearray(file.read_bytes())
  with open(file, 'r+b') as f:  # zeroed in place; size, inode and even the time stay
    f.seek(len(data) - 64)
    f.write(bytes(64))
  os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  second = load.weights_fingerprint(str(source))
  assert second[0] == first[0] and second[1] != first[1]
  file.write_bytes(data)
  assert load.weights_fingerprint(str(source)) == first
  (source / 'generation_config.json').write_text('{}')  # decides no weights
  assert load.weights_fingerprint(str(source)) == first
  changed(rms_norm_eps=1e-5)(source, tensors)
  assert load.weights_fingerprint(str(source)) != first


@pytest.mark.parametrize('name', [
  'model.safetensors', 'model-00001-of-00003.safetensors', 'model.safetensors.index.json',
  'README.md', 'config.json', 'tokenizer.json', 'generation_config.json'])
def test_files_of_others_are_not_overwritten(tmp_path, name):
  params = model.init(CONFIG, jax.random.key(0))
  text = load.tokenizer_lib.load(tokenizers.write(str(tmp_path / 'text'), ['<s>', '</s>', '<x>']))
  made = load.Model(CONFIG, params, text, True)
  out = tmp_path / 'out'
  out.mkdir()
  (out / name).write_text('mine')
  (out / 'notes.txt').write_text('mine')
  with pytest.raises(FileExistsError, match=f'holds {name}, which no export wrote'):
    export_formats.write_hf(made, str(out))
  assert {p.name: p.read_text() for p in out.iterdir()} == {name: 'mine', 'notes.txt': 'mine'}
  # What an export wrote, another one replaces, until somebody has worked on it.
  os.remove(out / name)
  export_formats.write_hf(made, str(out))
  export_formats.write_hf(made, str(out), dtype='float32')
  assert len({p.stat().st_mode for p in out.iterdir()}) == 1  # whoever reads one reads all
  assert huggingface.load_hf(str(out))[0].dtype == 'float32'
  (out / name).write_text('mine')
  with pytest.raises(FileExistsError, match=f'holds {name}, which no export wrote'):
    export_formats.write_hf(made, str(out))
  assert (out / name).read_text() == (out / 'notes.txt').read_text() == 'mine'


def test_a_mark_cannot_have_other_files_removed(tmp_path):
  victim = tmp_path / 'x.safetensors'
  victim.write_text('mine')
  state = [victim.stat().st_size, victim.stat().st_mtime_ns]
  out = tmp_path / 'model'
  out.mkdir()
  (out / hf_folder.MARK).write_text(json.dumps({'files': {'model/../../x.safetensors': state,
                                                          '../x.safetensors': state}}))
  huggingface.save_hf(CONFIG, model.init(CONFIG, jax.random.key(0)), str(out))
  assert victim.read_text() == 'mine'


def test_bits_that_are_not_finite_are_found_in_every_dtype(tmp_path):
  for dtype in (ml_dtypes.bfloat16, np.float16, np.float32):
    for value, good in ((np.finfo(np.float16).max / 2, True), (np.nan, False), (-np.inf, False)):
      x = np.zeros((3, 4), dtype)
      x[2, 3] = value
      safetensors.numpy.save_file({'x': x}, tmp_path / 'model.safetensors')
      read = hf_folder.Weights(str(tmp_path)).read
      if good:
        np.testing.assert_array_equal(read('x'), x)
      else:
        with pytest.raises(ValueError, match='x holds values that are not finite'):
          read('x')

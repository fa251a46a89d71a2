"""Parameters ↔ Hugging Face folders, without loss: config.json, *.safetensors, model card.

One table names every tensor and the order of its dims on both sides. A PyTorch weight is (out,
in); ours keep heads apart. Rotary dims need no permutation: both sides rotate (i, i + H/2) pairs.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from jax.experimental import multihost_utils

from smoljax import sharding
from smoljax.model import ModelConfig, Params, abstract_params

# Our path: (their name with {} for the layer, their dims; letters in one group are one dim).
NAMES: dict[str, tuple[str, str]] = {
  'embed_VD': ('model.embed_tokens.weight', 'V D'),
  'head_DV': ('lm_head.weight', 'V D'),
  'final_norm/scale_D': ('model.norm.weight', 'D'),
  'blocks/attn_norm/scale_D': ('model.layers.{}.input_layernorm.weight', 'D'),
  'blocks/attn/q_DNH': ('model.layers.{}.self_attn.q_proj.weight', 'NH D'),
  'blocks/attn/k_DKH': ('model.layers.{}.self_attn.k_proj.weight', 'KH D'),
  'blocks/attn/v_DKH': ('model.layers.{}.self_attn.v_proj.weight', 'KH D'),
  'blocks/attn/o_NHD': ('model.layers.{}.self_attn.o_proj.weight', 'D NH'),
  'blocks/attn/q_bias_NH': ('model.layers.{}.self_attn.q_proj.bias', 'NH'),
  'blocks/attn/k_bias_KH': ('model.layers.{}.self_attn.k_proj.bias', 'KH'),
  'blocks/attn/v_bias_KH': ('model.layers.{}.self_attn.v_proj.bias', 'KH'),
  'blocks/attn/o_bias_D': ('model.layers.{}.self_attn.o_proj.bias', 'D'),
  'blocks/attn/q_norm/scale_H': ('model.layers.{}.self_attn.q_norm.weight', 'H'),
  'blocks/attn/k_norm/scale_H': ('model.layers.{}.self_attn.k_norm.weight', 'H'),
  'blocks/attn/q_norm/scale_NH': ('model.layers.{}.self_attn.q_norm.weight', 'NH'),
  'blocks/attn/k_norm/scale_KH': ('model.layers.{}.self_attn.k_norm.weight', 'KH'),
  'blocks/mlp_norm/scale_D': ('model.layers.{}.post_attention_layernorm.weight', 'D'),
  # OLMo 2, which has no norms before.
  'blocks/attn_post_norm/scale_D': ('model.layers.{}.post_attention_layernorm.weight', 'D'),
  'blocks/mlp_post_norm/scale_D': ('model.layers.{}.post_feedforward_layernorm.weight', 'D'),
  'blocks/mlp/gate_DF': ('model.layers.{}.mlp.gate_proj.weight', 'F D'),
  'blocks/mlp/up_DF': ('model.layers.{}.mlp.up_proj.weight', 'F D'),
  'blocks/mlp/down_FD': ('model.layers.{}.mlp.down_proj.weight', 'D F'),
  'blocks/mlp/gate_bias_F': ('model.layers.{}.mlp.gate_proj.bias', 'F'),
  'blocks/mlp/up_bias_F': ('model.layers.{}.mlp.up_proj.bias', 'F'),
  'blocks/mlp/down_bias_D': ('model.layers.{}.mlp.down_proj.bias', 'D'),
}

# Modules of multi-token prediction have the layers' names for what layers have, and DeepSeek-V3's
# for what only they have; the readers of plain models pass them over.
NAMES |= {
  ours.replace('blocks/', 'mtp/block/'): (theirs.replace('model.layers', 'model.mtp'), dims)
  for ours, (theirs, dims) in NAMES.items() if ours.startswith('blocks/')
} | {
  'mtp/hidden_norm/scale_D': ('model.mtp.{}.hnorm.weight', 'D'),
  'mtp/embed_norm/scale_D': ('model.mtp.{}.enorm.weight', 'D'),
  'mtp/final_norm/scale_D': ('model.mtp.{}.shared_head.norm.weight', 'D'),
  'mtp/from_hidden_DE': ('model.mtp.{}.eh_proj.hidden.weight', 'E D'),
  'mtp/from_embed_DE': ('model.mtp.{}.eh_proj.embed.weight', 'E D'),
}

TOKENIZER_FILES = (
  'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json',
  'chat_template.jinja', 'tokenizer.model', 'vocab.json', 'merges.txt',
)

DTYPES = {  # by name here, and by safetensors' name
  'bfloat16': ml_dtypes.bfloat16, 'float16': np.float16, 'float32': np.float32,
}
READABLE = ('BF16', 'F16', 'F32')


def save_hf(
  config: ModelConfig,
  params: Params,
  path: str,
  *,
  dtype: str = 'bfloat16',
  tokenizer_dir: str | None = None,
  bos_id: int | None = None,
  eos_id: int | None = None,
  pad_id: int | None = None,
  generation: Mapping[str, Any] | None = None,
  facts: Mapping[str, Any] | None = None,
  max_shard_bytes: int = 5_000_000_000,
) -> None:
  """Writes a folder that `transformers.AutoModelForCausalLM.from_pretrained` loads.

  Args:
    config, params: the model; its class in transformers is `ModelConfig.to_hf`'s choice.
    path: the folder; made if missing. config.json is written last, so a folder that has one is
      whole. With several processes all must call; process 0 writes.
    dtype: of the stored weights: bfloat16, float16 or float32.
    tokenizer_dir: folder whose tokenizer files (and generation_config.json) are copied along.
    bos_id, eos_id, pad_id: token ids for config.json and generation_config.json.
    generation: further entries of generation_config.json, such as temperature.
    facts: rows for the model card, such as tokens trained on.
    max_shard_bytes: larger models are split into several files with an index.
  Raises:
    ValueError: for what the format cannot represent, parameters that do not fit the config, and
      weights that are not finite in `dtype`.
  """
  if dtype not in DTYPES:
    raise ValueError(f'dtype={dtype!r}: one of {", ".join(DTYPES)}')
  hf_config = config.to_hf() | dict(
    torch_dtype=dtype, dtype=dtype, bos_token_id=bos_id, eos_token_id=eos_id, pad_token_id=pad_id)
  check_tree(config, params)
  _check_ids(config, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id)
  tokenizer_files = _tokenizer_files(tokenizer_dir) if tokenizer_dir else []
  writes = jax.process_index() == 0
  if writes:
    os.makedirs(path, exist_ok=True)
    _remove(os.path.join(path, 'config.json'))

  itemsize = np.dtype(DTYPES[dtype]).itemsize
  total = itemsize * config.num_params()
  shards: list[Any] = [{}]
  size, files = 0, {}
  num_shards = _count_shards(config, itemsize, max_shard_bytes)

  def flush(shard):
    name = 'model.safetensors'
    if num_shards > 1:
      name = f'model-{len(shards):05d}-of-{num_shards:05d}.safetensors'
    files.update(dict.fromkeys(shard, name))
    if writes:
      _replace(os.path.join(path, name),
               lambda tmp: safetensors.numpy.save_file(shard, tmp, metadata={'format': 'pt'}))

  for name, tensor in to_hf_tensors(config, params, dtype):
    if shards[-1] and size + tensor.nbytes > max_shard_bytes:
      flush(shards[-1])
      shards[-1] = None  # written: let it be freed
      shards.append({})
      size = 0
    shards[-1][name] = tensor
    size += tensor.nbytes
  flush(shards[-1])
  if not writes:
    return

  keep = set(files.values())
  if num_shards > 1:
    _write_json(path, 'model.safetensors.index.json',
                {'metadata': {'total_size': total}, 'weight_map': files})
    keep.add('model.safetensors.index.json')
  for name in os.listdir(path):  # of an earlier export, split otherwise
    if name.startswith('model') and '.safetensors' in name and name not in keep:
      _remove(os.path.join(path, name))
  ids = dict(bos_token_id=bos_id, eos_token_id=eos_id, pad_token_id=pad_id)
  generation = {k: v for k, v in ids.items() if v is not None} | dict(generation or {})
  for name in tokenizer_files:
    _replace(os.path.join(path, name),
             lambda tmp, name=name: shutil.copyfile(os.path.join(tokenizer_dir or '', name), tmp))
  source = os.path.join(tokenizer_dir or '', 'generation_config.json')
  if tokenizer_dir and os.path.isfile(source):
    with open(source, encoding='utf-8') as f:
      generation = json.load(f) | generation
  _write_json(path, 'generation_config.json', generation)
  _replace(os.path.join(path, 'README.md'),
           lambda tmp: _write_text(tmp, _model_card(config, dtype, facts or {})))
  _write_json(path, 'config.json', hf_config)


def load_hf(
  path: str, *, param_dtype: str = 'float32', **overrides: Any
) -> tuple[ModelConfig, Params]:
  """Reads a Hugging Face folder of one of `model.HF_CLASSES`.

  Args:
    path: folder with config.json (keys of transformers 4 or 5) and model.safetensors, or its
      shards and their index.
    param_dtype: of the parameters. Under `jax.set_mesh` they are placed on the mesh.
    **overrides: fields of the ModelConfig, such as dtype or remat.
  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a truncated file; missing, extra, misshapen or wrongly typed tensors.
  """
  config_file = os.path.join(path, 'config.json')
  if not os.path.isfile(config_file):
    raise FileNotFoundError(f'{path} has no config.json: give a folder in Hugging Face format')
  with open(config_file, encoding='utf-8') as f:
    config = ModelConfig.from_hf(json.load(f), **overrides)
  files = _weight_files(path)
  mesh = jax.sharding.get_abstract_mesh()
  opened = {file: _open(os.path.join(path, file)) for file in set(files.values())}
  expected = {name for names in _hf_names(config).values() for name in names}
  _check_names(path, config, files, expected, opened)

  def read(name):
    part = opened[files[name]].get_slice(name)
    if part.get_dtype() not in READABLE:
      raise ValueError(f'{path}: {name} is stored as {part.get_dtype()}: only '
                       f'{", ".join(READABLE)} can be read; convert or dequantise the model first')
    return opened[files[name]].get_tensor(name)

  params = from_hf_tensors(config, read, param_dtype=param_dtype)
  if mesh.empty:
    return config, jax.tree.map(jnp.asarray, params)
  return config, jax.device_put(params, sharding.shardings(params, jax.sharding.get_mesh()))


# ------------------------------------------------------------------------------------- tensors


def from_hf_tensors(
  config: ModelConfig, read: Callable[[str], np.ndarray], *, param_dtype: str = 'float32'
) -> Params:
  """Our parameters, as numpy arrays, from their tensors: `read` gives the one of a name."""
  params: Params = {}
  for ours, names in _hf_names(config).items():
    letters, groups = sharding.dim_letters(ours), NAMES[ours][1].split()
    theirs = ''.join(groups)
    shape = [math.prod(config.dims[c] for c in group) for group in groups]
    layers = []
    for name in names:
      x = read(name)
      if list(x.shape) != shape:
        raise ValueError(f'tensor {name} has shape {list(x.shape)}, but config.json means {shape}')
      x = x.reshape([config.dims[c] for c in theirs]).transpose([theirs.index(c) for c in letters])
      layers.append(x.astype(DTYPES[param_dtype]))
    *folders, leaf = ours.split('/')
    node = params
    for folder in folders:
      node = node.setdefault(folder, {})
    node[leaf] = np.stack(layers) if '{}' in NAMES[ours][0] else layers[0]
  return params


def to_hf_tensors(
  config: ModelConfig, params: Params, dtype: str
) -> Iterator[tuple[str, np.ndarray]]:
  """Their (name, tensor) pairs, in the order of our table, layer by layer within a parameter."""
  flat, shapes = _flatten(params), hf_shapes(config)
  for ours, names in _hf_names(config).items():
    value = flat[ours]
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
      value = multihost_utils.process_allgather(value, tiled=True)
    value = np.asarray(value)
    letters = sharding.dim_letters(ours)
    order = [letters.index(c) for c in NAMES[ours][1] if c != ' ']
    for name, x in zip(names, value if '{}' in NAMES[ours][0] else [value], strict=True):
      with np.errstate(over='ignore'):
        x = np.ascontiguousarray(x.transpose(order).reshape(shapes[name]).astype(DTYPES[dtype]))
      if not np.isfinite(x).all():
        raise ValueError(f'{ours} ({name}) is not finite in {dtype}: export another checkpoint, '
                         'or use a wider dtype')
      yield name, x


def hf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
  """The shapes of what `to_hf_tensors` gives, by name and in its order."""
  return {
    name: tuple(math.prod(config.dims[c] for c in group) for group in NAMES[ours][1].split())
    for ours, names in _hf_names(config).items() for name in names
  }


def _hf_names(config: ModelConfig) -> dict[str, list[str]]:
  """Our paths that this config has → their names, one per layer for stacked parameters."""
  paths = _flatten(abstract_params(config))
  return {
    path: [name.format(i) for i in range(_num_stacked(config, path))]
    for path, (name, _) in NAMES.items() if path in paths
  }


def _num_stacked(config: ModelConfig, path: str) -> int:
  stacks = {'blocks': config.num_layers, 'mtp': config.mtp_depth}
  return stacks.get(path.split('/')[0], 1)


def _weight_files(path: str) -> dict[str, str]:
  """Tensor name → file name, from the index or the single file."""
  index_file = os.path.join(path, 'model.safetensors.index.json')
  single = os.path.join(path, 'model.safetensors')
  if os.path.isfile(single):
    return dict.fromkeys(_open(single).keys(), 'model.safetensors')
  if not os.path.isfile(index_file):
    raise FileNotFoundError(f'{path} has neither model.safetensors nor '
                            'model.safetensors.index.json: only safetensors are read')
  with open(index_file, encoding='utf-8') as f:
    files = json.load(f)['weight_map']
  absent = sorted({f for f in files.values() if not os.path.isfile(os.path.join(path, f))})
  if absent:
    raise FileNotFoundError(f'{path}: the index names {absent[0]}, which is not there '
                            f'({len(absent)} file(s) missing): download them again')
  return files


def _open(file: str):
  try:
    return safetensors.safe_open(file, 'np')
  except safetensors.SafetensorError as e:
    raise ValueError(f'{file} is not a whole safetensors file ({e}): download it again') from e


def _check_names(path, config, files, expected, opened):
  found = {name for name in files if not name.endswith('rotary_emb.inv_freq')}
  if config.tie_embeddings and 'lm_head.weight' in found:
    found.remove('lm_head.weight')  # some writers store the shared matrix twice
    embed, head = (
      opened[files[n]].get_tensor(n) for n in ('model.embed_tokens.weight', 'lm_head.weight'))
    if not np.array_equal(embed, head):
      raise ValueError(f'{path}: lm_head.weight differs from the embedding, but config.json says '
                       'tie_word_embeddings=true: set it to false')
  for names, what in ((expected - found, 'lacks'), (found - expected, 'has the unexpected')):
    if names:
      more = f' and {len(names) - 1} more' if len(names) > 1 else ''
      raise ValueError(f'{path} {what} tensor {min(names)}{more}: config.json and weights do not '
                       'belong together')
  stored = {file: set(f.keys()) for file, f in opened.items()}
  for name in sorted(expected):
    if name not in stored[files[name]]:
      raise ValueError(f'{path}: {files[name]} lacks {name}, which the index says it holds')


def check_tree(config: ModelConfig, params: Params) -> None:
  """Raises ValueError, naming the parameter, if the params are not of this config."""
  expected, given = _flatten(abstract_params(config)), _flatten(params)
  for name in sorted(expected.keys() ^ given.keys()):
    raise ValueError(f'parameter {name} is {"missing" if name in expected else "unknown"}: params '
                     'and config do not belong together')
  for name, x in expected.items():
    if given[name].shape != x.shape:
      raise ValueError(
        f'parameter {name} has shape {given[name].shape}, but the config means {x.shape}')


def _check_ids(config, **ids):
  for name, value in ids.items():
    if value is not None and not 0 <= value < config.vocab_size:
      raise ValueError(f'{name}={value} lies outside the vocabulary of {config.vocab_size}')


def _count_shards(config, itemsize, max_shard_bytes) -> int:
  """How many files the loop in save_hf will write."""
  count, size = 1, 0
  for shape in hf_shapes(config).values():
    nbytes = itemsize * math.prod(shape)
    if size and size + nbytes > max_shard_bytes:
      count, size = count + 1, 0
    size += nbytes
  return count


def _flatten(tree: Params) -> dict[str, Any]:
  return {
    '/'.join(k.key for k in path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


# --------------------------------------------------------------------------------------- files


def _tokenizer_files(folder: str) -> list[str]:
  present = [n for n in TOKENIZER_FILES if os.path.isfile(os.path.join(folder, n))]
  if not present:
    raise FileNotFoundError(f'no tokenizer files in {folder}: expected tokenizer.json or others '
                            f'of {", ".join(TOKENIZER_FILES)}')
  return present


def _model_card(config: ModelConfig, dtype: str, facts: Mapping[str, Any]) -> str:
  nope = sum(not r for r in config.rope_flags)
  rows = {
    'Parameters': f'{config.num_params():,}'
    f' ({config.num_params(embedding=False):,} without embedding)',
    'Layers': f'{config.num_layers}, {nope} of them without rotary positions (NoPE)',
    'Width': f'{config.embed_dim}, MLP {config.mlp_dim} ({config.activation})',
    'Attention': f'{config.num_heads} query heads, {config.num_kv_heads} key/value heads of '
    f'{config.head_dim}',
    'Vocabulary': f'{config.vocab_size:,}, ' + (
      'tied embeddings' if config.tie_embeddings else 'separate head'),
    'Context': f'{config.max_seq_len:,} tokens, rotary base {config.rope_theta:g}',
    'Weights': dtype,
    **facts,
  }
  table = '\n'.join(f'| {k} | {v} |' for k, v in rows.items())
  return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [smoljax]
---

# {config.to_hf()['architectures'][0]}, {config.num_params() / 1e6:,.1f}M parameters

Trained with smoljax.

| | |
|---|---|
{table}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained('.')
model = AutoModelForCausalLM.from_pretrained('.')
inputs = tokenizer('The', return_tensors='pt', return_token_type_ids=False)
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```
"""


def _write_json(path: str, name: str, value: Any) -> None:
  text = json.dumps(value, indent=2, ensure_ascii=False) + '\n'
  _replace(os.path.join(path, name), lambda tmp: _write_text(tmp, text))


def _write_text(file: str, text: str) -> None:
  with open(file, 'w', encoding='utf-8') as f:
    f.write(text)


def _replace(file: str, write) -> None:
  """Writes beside the file, then renames: no half-written file under its own name."""
  write(file + '.tmp')
  os.replace(file + '.tmp', file)


def _remove(file: str) -> None:
  if os.path.exists(file):
    os.remove(file)

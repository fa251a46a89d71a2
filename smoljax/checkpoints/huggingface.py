"""Parameters ↔ Hugging Face folders, without loss: config.json, *.safetensors, model card.

One table names every tensor and the order of its dims on both sides. A PyTorch weight is (out,
in); ours keep heads apart. Rotary dims need no permutation: both sides rotate (i, i + H/2) pairs.
"""

import collections
import functools
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
import safetensors.numpy
from jax.experimental import multihost_utils

from smoljax import sharding
from smoljax.checkpoints import hf_folder
from smoljax.data import tokenizer
from smoljax.model import ModelConfig, Params, abstract_params, lora

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

_ID_KEYS = ('bos_token_id', 'eos_token_id', 'pad_token_id')

DTYPES = {
  'bfloat16': ml_dtypes.bfloat16, 'float16': np.float16, 'float32': np.float32,
}


def save_hf(
  config: ModelConfig,
  params: Params,
  path: str,
  *,
  dtype: str = 'bfloat16',
  tokenizer_dir: str | None = None,
  bos_id: int | None = None,
  eos_id: int | list[int] | None = None,
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
    bos_id, eos_id, pad_id: token ids for config.json and generation_config.json; None is what
      these say in `tokenizer_dir`, or else its tokenizer. `eos_id` may be several.
    generation: further entries of generation_config.json, such as temperature; its ids go before.
    facts: rows for the model card, such as tokens trained on.
    max_shard_bytes: larger models are split into several files with an index.
  Raises:
    FileExistsError: the folder holds files of these names that no export wrote.
    ValueError: for what the format cannot represent, parameters that do not fit the config, and
      weights that are not finite in `dtype`.
  """
  if dtype not in DTYPES:
    raise ValueError(f'dtype={dtype!r}: one of {", ".join(DTYPES)}')
  hf_config = config.to_hf() | dict(torch_dtype=dtype, dtype=dtype)
  check_tree(config, params)
  tokenizer_files = _tokenizer_files(tokenizer_dir) if tokenizer_dir else {}
  ids = dict(zip(_ID_KEYS, (bos_id, eos_id, pad_id), strict=True))
  _check_ids(config, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id)
  settings = _generation(tokenizer_dir, ids | dict(generation or {}))
  hf_config |= {key: settings.get(key) for key in _ID_KEYS}
  shards = _shards(config, np.dtype(DTYPES[dtype]).itemsize, max_shard_bytes)
  own = {hf_folder.CONFIG, hf_folder.GENERATION, 'README.md', *shards.values(), *tokenizer_files}
  if len(set(shards.values())) > 1:
    own.add(hf_folder.INDEX)
  export = hf_folder.Export(path, own)
  writes = jax.process_index() == 0
  if writes:
    os.makedirs(path, exist_ok=True)
    export.remove(hf_folder.CONFIG)

  shard: dict[str, np.ndarray] = {}
  left = collections.Counter(shards.values())
  for name, tensor in to_hf_tensors(config, params, dtype):
    shard[name] = tensor
    if len(shard) == left[shards[name]]:
      if writes:
        export.write(shards[name], lambda tmp, shard=shard: safetensors.numpy.save_file(
          shard, tmp, metadata={'format': 'pt'}))
      shard = {}  # written: let it be freed
  if not writes:
    return

  if hf_folder.INDEX in own:
    total = np.dtype(DTYPES[dtype]).itemsize * config.num_params()
    _write_json(export, hf_folder.INDEX,
                {'metadata': {'total_size': total}, 'weight_map': shards})
  for name in export.others():  # of an earlier export, split otherwise
    if name.startswith('model') and '.safetensors' in name:
      export.remove(name)
  for name, source in tokenizer_files.items():
    export.write(name, functools.partial(shutil.copyfile, source))
  _write_json(export, hf_folder.GENERATION, settings)
  export.write(
    'README.md', lambda tmp: _write_text(tmp, _model_card(config, dtype, facts or {})))
  _write_json(export, hf_folder.CONFIG, hf_config)


def save_peft(config: ModelConfig, adapters: Params, path: str, base: str) -> None:
  """Writes adapters (smoljax/model/lora.py) as a folder that `peft.PeftModel` loads onto a model.

  Their A is [r, in] and their B [out, r], the transposes of ours; alpha / r is theirs too.

  Args:
    config: with its lora_rank.
    base: where the model is that they are for, as its users find it.
  Raises:
    FileExistsError: the folder holds files of these names that no export wrote.
    ValueError: adapters that are not finite.
  """
  tensors, modules, rank = {}, set(), config.lora_rank
  for (part, name), pair in lora.names(config).items():
    theirs, _ = NAMES[f'blocks/{part}/{name}']
    module = theirs.removesuffix('.weight')
    modules.add(module.rpartition('.')[2])
    for i in range(config.num_layers):
      a, b = (np.asarray(adapters['blocks'][part][n][i], np.float32) for n in pair)
      if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(f'the adapters of {module.format(i)} are not finite')
      where = f'base_model.model.{module.format(i)}'
      tensors[f'{where}.lora_A.weight'] = np.ascontiguousarray(a.reshape(-1, rank).T)
      tensors[f'{where}.lora_B.weight'] = np.ascontiguousarray(b.reshape(rank, -1).T)
  weights, settings = 'adapter_model.safetensors', 'adapter_config.json'
  export = hf_folder.Export(path, {weights, settings})
  os.makedirs(path, exist_ok=True)
  export.write(weights, lambda tmp: safetensors.numpy.save_file(
    tensors, tmp, metadata={'format': 'pt'}))
  _write_json(export, settings, {
    'peft_type': 'LORA', 'task_type': 'CAUSAL_LM', 'base_model_name_or_path': base, 'r': rank,
    'lora_alpha': config.lora_alpha, 'lora_dropout': 0.0, 'target_modules': sorted(modules),
    'bias': 'none', 'fan_in_fan_out': False, 'inference_mode': True})


def load_hf(
  path: str, *, param_dtype: str = 'float32', **overrides: Any
) -> tuple[ModelConfig, Params]:
  """Reads a Hugging Face folder of one of `model.HF_CLASSES`.

  The model computes in the dtype that config.json names (or else in that of its weights), as in
  transformers; float16 in float32, which holds all of its values.

  Args:
    path: folder with config.json (keys of transformers 4 or 5) and model.safetensors, or its
      shards and their index.
    param_dtype: of the parameters. Under `jax.set_mesh` they are placed on the mesh.
    **overrides: fields of the ModelConfig, such as dtype or remat.
  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a truncated file; missing, extra, misshapen or wrongly typed tensors; weights that
      are not finite; a file that lies outside of the folder.
  """
  config, read = _opened(path, overrides)
  mesh = jax.sharding.get_abstract_mesh()
  params = from_hf_tensors(config, read, param_dtype=param_dtype)
  if mesh.empty:
    return config, jax.tree.map(jnp.asarray, params)
  return config, sharding.place(params, sharding.shardings(params, jax.sharding.get_mesh()))


def read_hf(path: str, **overrides: Any) -> tuple[ModelConfig, Params]:
  """`load_hf` in the compute dtype, for those who take one layer at a time.

  `blocks` is an iterator of layers (numpy arrays), each of which is read when it is asked for: what
  `inference.cache.prepare` takes. Raises as `load_hf`, of a layer when it is read.
  """
  config, read = _opened(path, overrides)
  names = _hf_names(config)
  tensor = lambda ours, i: _ours(config, ours, names[ours][i], read).astype(DTYPES[config.dtype])
  inside = [ours for ours in names if ours.startswith('blocks/')]
  blocks = (_nested({ours: tensor(ours, i) for ours in inside})['blocks']
            for i in range(config.num_layers))
  rest = {
    ours: jnp.stack([tensor(ours, i) for i in range(len(names[ours]))])
    if '{}' in NAMES[ours][0] else jnp.asarray(tensor(ours, 0))
    for ours in names if ours not in inside}
  return config, _nested(rest) | {'blocks': blocks}


def load_config(path: str) -> ModelConfig:
  """The config of `load_hf`, and its errors."""
  return _opened(path, {})[0]


def _opened(path, overrides):
  """The config of a folder, and what reads a tensor of it."""
  hf_folder.check_links(path)
  hf = hf_folder.read_json(path, hf_folder.CONFIG)
  if hf is None:
    raise FileNotFoundError(f'{path} has no config.json: give a folder in Hugging Face format')
  weights = hf_folder.Weights(path)
  if not (hf.get('dtype') or hf.get('torch_dtype')) and weights.files:
    stored = weights.dtype(min(weights.files))
    hf = hf | {'dtype': 'bfloat16' if stored == 'BF16' else 'float32'}
  try:
    config = ModelConfig.from_hf(hf, **overrides)
  except ValueError as e:
    raise ValueError(f'{path}: {e}') from None
  return config, reader(config, weights)


def reader(config: ModelConfig, weights: hf_folder.Weights) -> Callable[[str], np.ndarray]:
  """What reads one tensor of the folder at a time, as `from_hf_tensors` takes it.

  Raises ValueError unless the headers of the folder's tensors say what the config means.
  """
  path = weights.path
  if config.num_layers > len(weights.files):
    raise ValueError(f'{path}: config.json means {config.num_layers:,} layers, but there are only '
                     f'{len(weights.files):,} tensors')
  shapes = hf_shapes(config)
  embed, head = NAMES['embed_VD'][0], NAMES['head_DV'][0]
  found = {name for name in weights.files if not name.endswith('rotary_emb.inv_freq')}
  renamed = {}
  if config.tie_embeddings and head in found:  # some writers store the shared matrix twice
    if embed in found and not np.array_equal(weights.read(embed), weights.read(head)):
      raise ValueError(f'{path}: lm_head.weight differs from the embedding, but config.json says '
                       'tie_word_embeddings=true: set it to false')
    if embed not in found:  # and some under the other name
      renamed[embed] = head
    found = found - {head} | {embed}
  lacks, more = shapes.keys() - found, found - shapes.keys()
  for names, what in ((lacks, 'lacks'), (more, 'has the unexpected')):
    if names:
      more = f' and {len(names) - 1} more' if len(names) > 1 else ''
      raise ValueError(f'{path} {what} tensor {min(names)}{more}: config.json and weights do not '
                       'belong together')
  for name, shape in shapes.items():
    stored = renamed.get(name, name)
    if weights.shape(stored) != shape:
      raise ValueError(f'{path}: tensor {stored} has shape {list(weights.shape(stored))}, but '
                       f'config.json means {list(shape)}')
    if weights.dtype(stored) not in hf_folder.EXPONENTS:
      raise ValueError(f'{path}: {stored} is stored as {weights.dtype(stored)}: only '
                       f'{", ".join(hf_folder.EXPONENTS)} can be read; convert or dequantise the '
                       'model first')
  return lambda name: weights.read(renamed.get(name, name))


def generation(path: str) -> dict[str, Any]:
  """What generation_config.json of a folder says, and config.json of the ids that it leaves out.

  Raises ValueError for ids that are none: `eos_token_id` is one or a list.
  """
  named = hf_folder.read_json(path, hf_folder.CONFIG) or {}
  found = {key: named.get(key) for key in _ID_KEYS}
  found |= {k: v for k, v in (hf_folder.read_json(path, hf_folder.GENERATION) or {}).items()
            if v is not None and not k.startswith('_')}
  for key in _ID_KEYS:
    for i in _listed(found[key]) if key == 'eos_token_id' else [found[key]]:
      if i is not None and (not isinstance(i, int) or isinstance(i, bool)):
        raise ValueError(f'{path}: {key}={found[key]!r}: a token id is expected'
                         + ', or a list of them' * (key == 'eos_token_id'))
  return {k: v for k, v in found.items() if v is not None}


def eos_ids(generation: Mapping[str, Any], text: tokenizer.Tokenizer) -> tuple[int, ...]:
  """The ids that end a text: those which `generation` names, or else the tokenizer's."""
  named = _listed(generation.get('eos_token_id', text.eos_id))
  return tuple(i for i in named if i is not None)


def _listed(ids):
  return ids if isinstance(ids, list) else [ids]


# ------------------------------------------------------------------------------------- tensors


def from_hf_tensors(
  config: ModelConfig, read: Callable[[str], np.ndarray], *, param_dtype: str = 'float32'
) -> Params:
  """Our parameters, as numpy arrays, from their tensors: `read` gives the one of a name."""
  flat = {}
  for ours, names in _hf_names(config).items():
    layers = [_ours(config, ours, name, read).astype(DTYPES[param_dtype]) for name in names]
    flat[ours] = np.stack(layers) if '{}' in NAMES[ours][0] else layers[0]
  return _nested(flat)


def _ours(config, ours, name, read):
  """A tensor of theirs with the dims of ours."""
  letters, groups = sharding.dim_letters(ours), NAMES[ours][1].split()
  theirs, x = ''.join(groups), read(name)
  shape = [math.prod(config.dims[c] for c in group) for group in groups]
  if list(x.shape) != shape:
    raise ValueError(f'tensor {name} has shape {list(x.shape)}, but config.json means {shape}')
  return x.reshape([config.dims[c] for c in theirs]).transpose([theirs.index(c) for c in letters])


def _nested(flat):
  """{'a/b': x} → {'a': {'b': x}}."""
  params: Params = {}
  for path, x in flat.items():
    *folders, leaf = path.split('/')
    node = params
    for folder in folders:
      node = node.setdefault(folder, {})
    node[leaf] = x
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
    for i in _listed(value):
      if i is not None and not 0 <= i < config.vocab_size:
        raise ValueError(f'{name}={i} lies outside the vocabulary of {config.vocab_size}')


def _shards(config, itemsize, max_shard_bytes) -> dict[str, str]:
  """Tensor name → its file; a file is as full as it may be."""
  groups, size = [[]], 0
  for name, shape in hf_shapes(config).items():
    nbytes = itemsize * math.prod(shape)
    if groups[-1] and size + nbytes > max_shard_bytes:
      groups.append([])
      size = 0
    groups[-1].append(name)
    size += nbytes
  if len(groups) == 1:
    return dict.fromkeys(groups[0], hf_folder.SINGLE)
  return {name: f'model-{i:05d}-of-{len(groups):05d}.safetensors'
          for i, group in enumerate(groups, start=1) for name in group}


def _flatten(tree: Params) -> dict[str, Any]:
  return {
    '/'.join(k.key for k in path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


# --------------------------------------------------------------------------------------- files


def _tokenizer_files(folder: str) -> dict[str, str]:
  """Name → where it is."""
  found = {name: hf_folder.find(folder, name) for name in hf_folder.TOKENIZER_FILES}
  if not any(found.values()):
    raise FileNotFoundError(f'no tokenizer files in {folder}: expected tokenizer.json or others '
                            f'of {", ".join(hf_folder.TOKENIZER_FILES)}')
  return {name: file for name, file in found.items() if file}


def _generation(tokenizer_dir, given):
  """The contents of generation_config.json: what is given goes before what stands in a folder."""
  found: dict[str, Any] = {}
  if tokenizer_dir:
    special = tokenizer.load(tokenizer_dir).special._asdict()
    found = {f'{k.removesuffix("_id")}_token_id': v for k, v in special.items() if v is not None}
    found |= generation(tokenizer_dir)
  return found | {k: v for k, v in given.items() if v is not None}


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

By vLLM's documents this serves it, with OpenAI's protocol on port 8000 (smoljax has not tried it):

```
vllm serve . --served-model-name model
curl localhost:8000/v1/completions -H 'Content-Type: application/json' \\
  -d '{{"model": "model", "prompt": "The", "max_tokens": 50}}'
```

In llama.cpp, from one file that smoljax makes of this folder:

```
python -m experiments.export --checkpoint=. --output=model.gguf --format=gguf --quantize=q8_0
llama-completion -m model.gguf -p 'The' -n 50 -no-cnv
```
"""


def _write_json(export: hf_folder.Export, name: str, value: Any) -> None:
  text = json.dumps(value, indent=2, ensure_ascii=False) + '\n'
  export.write(name, lambda tmp: _write_text(tmp, text))


def _write_text(file: str, text: str) -> None:
  with open(file, 'w', encoding='utf-8') as f:
    f.write(text)

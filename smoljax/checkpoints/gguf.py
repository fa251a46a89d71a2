"""Models as one GGUF file, for llama.cpp and what is built on it (ollama, LM Studio, phones).

The runtime knows our models as `llama`, where every layer rotates, or as `smollm3`, where every
fourth does not: that interval is fixed in its code and no key of the file changes it. It rotates
neighbouring dims (2i, 2i + 1) where ours pairs (i, i + H/2), so the rows of the query and key
projections are reordered. What it would compute differently is refused here, by name, rather than
written.

Of weights, matrices are stored in the type asked for; norms and biases are always fp32, as the
runtime requires. Quantised types work on blocks along a row: Q8_0 on 32 weights, Q4_K and Q6_K
(which Q4_K_M mixes) on 256. A matrix whose rows are no multiple of that falls back to a larger type
(Q4_K to Q5_0, Q6_K to Q8_0, and what is no multiple of 32 to F16): models meant for Q4_K_M have
`embed_dim`, `mlp_dim` and `num_heads * head_dim` divisible by 256.

A vocabulary is written only if the runtime's tokenizer does with it exactly what ours does.
"""

import ctypes
import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import gguf
import jax
import ml_dtypes
import numpy as np
import tokenizers

import smoljax
from smoljax import files, model
from smoljax.checkpoints import hf_folder, huggingface
from smoljax.data import tokenizer
from smoljax.model import ModelConfig, Params

# Their name of a module: the runtime's, `blk.{layer}.` before it inside a layer.
NAMES = {
  'model.embed_tokens': 'token_embd',
  'lm_head': 'output',
  'model.norm': 'output_norm',
  'input_layernorm': 'attn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'post_attention_layernorm': 'ffn_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}

_MARK = 'smoljax.version'  # a key of the files that are ours, which may be overwritten
_Type = gguf.GGMLQuantizationType
_File = gguf.LlamaFileType
KINDS = {  # by name: the type of matrices, and of the file as a whole
  'float32': (_Type.F32, _File.ALL_F32),
  'float16': (_Type.F16, _File.MOSTLY_F16),
  'bfloat16': (_Type.BF16, _File.MOSTLY_BF16),
  'q8_0': (_Type.Q8_0, _File.MOSTLY_Q8_0),
  'q4_k_m': (_Type.Q4_K, _File.MOSTLY_Q4_K_M),
}


def save_gguf(
  config: ModelConfig,
  params: Params,
  path: str,
  *,
  kind: str = 'bfloat16',
  tokenizer_dir: str | None = None,
  special: Mapping[str, int | None] | None = None,
  ends: Sequence[int] = (),
) -> dict[str, str]:
  """Writes the model as a GGUF file.

  Args:
    config, params: the model. With several processes all must call; process 0 writes.
    path: the file; it appears under this name when it is whole.
    kind: one of KINDS. `q4_k_m` is left to the runtime's own quantiser (llama-cpp-python brings
      it), which mixes Q4_K and Q6_K; it takes 4 bytes a parameter beside `path` meanwhile.
    tokenizer_dir: folder with tokenizer.json and what transformers keeps beside it, as
      `tokenizer.to_hf` writes; a chat template is taken along. Without one the file has no
      vocabulary: it can be run on token ids only.
    special: ids of BOS, EOS and pad that go before those which that folder names, as
      `tokenizer.load` takes them.
    ends: ids that end a text, beside EOS two at the most, as the runtime has keys for.
  Returns:
    Matrices whose rows do not fit the blocks of `kind`, and the type they have: {'blk.0.…': 'F16'}.
  Raises:
    FileExistsError: a file that is none of ours lies there.
    ValueError: for what the runtime cannot represent, parameters that do not fit the config, and
      weights that are not finite in `kind`.
    ImportError: q4_k_m without the runtime.
  """
  if kind not in KINDS:
    raise ValueError(f'kind={kind!r}: one of {", ".join(KINDS)}')
  if os.path.lexists(path) and not _is_ours(path):
    raise FileExistsError(f'{path} is there, and no export wrote it: give another name, or move it '
                          'away')
  arch = architecture(config)
  huggingface.check_tree(config, params)
  vocabulary = (
    read_vocabulary(tokenizer_dir, config.vocab_size, special, ends) if tokenizer_dir else {})
  whole = f'{path}.tmp'
  try:
    if kind == 'q4_k_m':
      runtime()  # what is missing is said before the work
      _write(config, params, whole, arch, vocabulary, 'float32')
      if jax.process_index() == 0:
        quantize_file(whole, path, kind)
    else:
      _write(config, params, whole, arch, vocabulary, kind)
      if jax.process_index() == 0:
        files.replace(whole, path)
  finally:
    if jax.process_index() == 0:
      _remove(whole)
  if jax.process_index():
    return {}
  block = gguf.GGML_QUANT_SIZES[KINDS[kind][0]][0]
  return {
    t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors
    if len(t.shape) > 1 and t.shape[0] % block
  }


def architecture(config: ModelConfig) -> str:
  """'llama' or 'smollm3', the runtime's name for models like this.

  Raises:
    ValueError: neither computes what this model computes; the message says why.
  """
  for field, only in (('activation', 'swiglu'), ('norm', 'rms'), ('norm_position', 'pre'),
                      ('qk_norm', False), ('attention_softcap', 0.0), ('logit_softcap', 0.0)):
    if getattr(config, field) != only:
      raise ValueError(f'{field}={getattr(config, field)!r}: llama and smollm3, which the GGUF '
                       f'runtime has, only know {only!r}')
  if any(config.windows):
    raise ValueError(f'sliding_window={config.sliding_window}: llama and smollm3 attend to '
                     'everything in the GGUF runtime; export to hf instead')
  if all(config.rope_flags):
    return 'llama'
  every_fourth = tuple((i + 1) % 4 != 0 for i in range(config.num_layers))
  if config.rope_flags != every_fourth:
    given = (f'rope_layers={config.rope_layers}' if config.rope_layers
             else f'nope_interval={config.nope_interval}')
    raise ValueError(f'{given}: the GGUF runtime has NoPE on every 4th layer (smollm3) or on none '
                     '(llama), fixed in its code; export to hf instead')
  for field in ('attention_bias', 'qkv_bias', 'mlp_bias'):
    if getattr(config, field):
      raise ValueError(f'{field}=True: smollm3 reads no biases in the GGUF runtime (llama does, '
                       'where every layer rotates); export to hf instead')
  if _rope_factors(config) is not None:
    raise ValueError(f'rope_scaling={config.rope_scaling}: for smollm3 the GGUF runtime has linear '
                     'and, with beta_fast=32, beta_slow=1 and truncate=True, yarn')
  return 'smollm3'


# --------------------------------------------------------------------------------------- writing


def _write(config, params, path, arch, vocabulary, kind):
  writer = None
  if jax.process_index() == 0:
    writer = gguf.GGUFWriter(path, arch)
    _add_architecture(writer, config, kind)
    _add_vocabulary(writer, vocabulary)
  tensors = {}  # name: stored type
  for hf_name, shape in huggingface.hf_shapes(config).items():
    stored = KINDS[kind][0] if len(shape) > 1 else _Type.F32
    if shape[-1] % gguf.GGML_QUANT_SIZES[stored][0]:
      stored = _Type.F16  # as the runtime's quantiser does
    tensors[_name(hf_name)] = stored
    if writer:
      block, size = gguf.GGML_QUANT_SIZES[stored]
      nbytes = math.prod(shape) // block * size
      writer.add_tensor_info(_name(hf_name), shape, np.float32, nbytes, raw_dtype=stored)
  factors_H = _rope_factors(config)
  if writer:
    if factors_H is not None:
      writer.add_tensor_info(
        'rope_freqs.weight', factors_H.shape, factors_H.dtype, factors_H.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
  for hf_name, x in huggingface.to_hf_tensors(config, params, 'float32'):
    if not writer:
      continue
    name = _name(hf_name)
    if name.split('.')[-2] in ('attn_q', 'attn_k'):
      x = interleave(x, config.head_dim)
    data = _encode(x, tensors[name])
    if not np.isfinite(data).all():
      raise ValueError(f'{name} is not finite in {tensors[name].name}: use a wider type')
    writer.write_tensor_data(data)
  if writer:
    if factors_H is not None:
      writer.write_tensor_data(factors_H)
    writer.close()


def _is_ours(path):
  with open(path, 'rb') as f:
    start = f.read(1 << 12)
  return start.startswith(b'GGUF') and _MARK.encode() in start


def interleave(x: np.ndarray, head_dim: int) -> np.ndarray:
  """Rows [N H, …] reordered within each head: pairs (i, i + H/2) become (2i, 2i + 1)."""
  halves = x.reshape(-1, 2, head_dim // 2, *x.shape[1:])
  return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(x.shape)


def _name(hf_name):
  (layer, module, leaf), = re.findall(
    r'^(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)$', hf_name)
  return f'{f"blk.{layer}." if layer else ""}{NAMES[module]}.{leaf}'


def _encode(x, stored):
  if stored == _Type.BF16:
    return x.astype(ml_dtypes.bfloat16)
  with np.errstate(over='ignore'):
    return gguf.quantize(x, stored)


def _add_architecture(writer, config, kind):
  writer.add_string(_MARK, smoljax.__version__)
  writer.add_type(gguf.GGUFType.MODEL)
  writer.add_name(f'{writer.arch} {config.num_params() / 1e6:,.1f}M')
  writer.add_file_type(KINDS[kind][1])
  writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
  writer.add_vocab_size(config.vocab_size)
  writer.add_context_length(config.max_seq_len)
  writer.add_embedding_length(config.embed_dim)
  writer.add_block_count(config.num_layers)
  writer.add_feed_forward_length(config.mlp_dim)
  writer.add_head_count(config.num_heads)
  writer.add_head_count_kv(config.num_kv_heads)
  writer.add_key_length(config.head_dim)
  writer.add_value_length(config.head_dim)
  writer.add_layer_norm_rms_eps(config.norm_eps)
  writer.add_rope_dimension_count(config.head_dim)
  writer.add_rope_freq_base(config.rope_theta)
  y = config.rope_scaling
  if y:
    scale = model.rope_frequencies(config)[1]
    if _has_keys(y):
      writer.add_rope_scaling_type(gguf.RopeScalingType(y.rope_type))
      writer.add_rope_scaling_factor(y.factor)
    if _has_keys(y) and y.rope_type == 'yarn':
      writer.add_rope_scaling_orig_ctx_len(y.original_max_seq_len)
      scale /= 0.1 * math.log(y.factor) + 1.0  # which the runtime multiplies by
    writer.add_rope_scaling_attn_factors(scale)


def _has_keys(scaling):
  """Whether the runtime computes this scaling from keys of the file."""
  if scaling.rope_type != 'yarn':
    return scaling.rope_type == 'linear'
  return (scaling.beta_fast, scaling.beta_slow, scaling.truncate) == (32.0, 1.0, True)


def _rope_factors(config):
  """For scaling that has no keys: what `llama` divides each pair's frequency by, fp32 [H/2]."""
  if not config.rope_scaling or _has_keys(config.rope_scaling):
    return None
  exponent = np.arange(0, config.head_dim, 2) / config.head_dim
  return (config.rope_theta**-exponent / model.rope_frequencies(config)[0]).astype(np.float32)


# ------------------------------------------------------------------------------------ vocabulary

# Pre-tokenizers of tokenizer.json, of byte-level BPE: the runtime's name for each by whether the
# model's `ignore_merges` is set.
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r'|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_SPLITS: dict[tuple[str, ...], dict[bool, str]] = {
  ('ByteLevel',): {False: 'gpt-2'},
  ('Digits', 'ByteLevel'): {False: 'smollm'},
  (_LLAMA3, 'bytes'): {True: 'llama-bpe', False: 'smaug-bpe'},
}
_SPACE = '\u2581'  # how SentencePiece writes a space


def read_vocabulary(
  folder: str, vocab_size: int, special: Mapping[str, int | None] | None = None,
  ends: Sequence[int] = (),
) -> dict[str, Any]:
  """Metadata of a GGUF file (`tokenizer.…` keys) for the tokenizer in `folder`.

  Byte-level BPE, split as SmolLM2, SmolLM3 and GPT-2 do, becomes the runtime's `gpt2`; BPE with
  byte fallback, as SentencePiece makes it, its `llama`.

  Args:
    folder: has tokenizer.json, and perhaps tokenizer_config.json.
    vocab_size: rows of the embedding; ids beyond the tokenizer's become unused tokens.
    special, ends: see `save_gguf`.
  Raises:
    FileNotFoundError: there is no tokenizer.json.
    ValueError: the runtime would tokenise differently.
  """
  file = os.path.join(folder, 'tokenizer.json')
  if not os.path.isfile(file):
    raise FileNotFoundError(f'no tokenizer.json in {folder}: GGUF vocabularies are made from one')
  with open(file, encoding='utf-8') as f:
    spec = json.load(f)
  bpe = spec['model']
  if bpe.get('type', 'BPE') != 'BPE' or any(
    bpe.get(k) for k in ('dropout', 'continuing_subword_prefix', 'end_of_word_suffix')
  ):
    raise ValueError(f'{file}: only plain BPE can be written to GGUF')
  added = {t['id']: t for t in spec['added_tokens']}
  if strips := [t['content'] for t in added.values()
                if t.get('lstrip') or t.get('rstrip') or t.get('single_word')]:
    raise ValueError(f'{file}: {strips[0]!r} takes neighbouring spaces along (lstrip, rstrip or '
                     'single_word), which the GGUF runtime does not')
  tokens = {i: token for token, i in bpe['vocab'].items()}
  tokens |= {i: t['content'] for i, t in added.items()}
  if max(tokens) >= vocab_size:
    raise ValueError(f'{file} has the id {max(tokens)}, but the model knows {vocab_size}: give the '
                     'tokenizer it was trained with')
  types = dict.fromkeys(tokens, gguf.TokenType.NORMAL)
  for i, t in added.items():
    types[i] = gguf.TokenType.CONTROL if t['special'] else gguf.TokenType.USER_DEFINED

  byte_level = _pre_tokenizers(spec)
  meta: dict[str, Any] = {}
  if byte_level:
    pre = _SPLITS.get(byte_level, {}).get(bool(bpe.get('ignore_merges')))
    if pre is None or spec.get('normalizer') or bpe.get('byte_fallback'):
      raise ValueError(f'{file}: this way of splitting or normalising text has no name in the GGUF '
                       'runtime that is known here (GPT-2, SmolLM2 and Llama 3 or SmolLM3 have)')
    merges = [' '.join(_pair(m)) for m in bpe['merges']]
    meta |= {'model': 'gpt2', 'pre': pre, 'merges': merges}
  else:
    meta |= {'model': 'llama', 'add_space_prefix': False}
    meta['scores'] = _byte_fallback(file, spec, tokens, types, vocab_size)
  if bpe.get('unk_token'):
    meta['unknown_token_id'] = bpe['vocab'][bpe['unk_token']]

  template = _chat_template(folder)
  if template:
    meta['chat_template'] = template
  if meta['model'] == 'llama':
    _hide_controls(file, tokens, types, template)
  ids = tokenizer.Tokenizer(file, special).special
  for key, i in (('bos_token_id', ids.bos_id), ('eos_token_id', ids.eos_id),
                 ('padding_token_id', ids.pad_id)):
    if i is not None:
      meta[key] = i
  more = [i for i in ends if i != ids.eos_id and i in tokens]
  meta |= dict(zip(('eot_token_id', 'eom_token_id'), more, strict=False))
  around = tokenizers.Tokenizer.from_file(file).encode('').ids
  bos, eos = meta.get('bos_token_id'), meta.get('eos_token_id')
  meta['add_bos_token'], meta['add_eos_token'] = around[:1] == [bos], around[-1:] == [eos]
  if around != [bos] * meta['add_bos_token'] + [eos] * meta['add_eos_token']:
    raise ValueError(f'{file} puts the ids {around} around a text: the GGUF runtime puts BOS '
                     'before and EOS after it, or nothing')
  unused = set(range(vocab_size)) - tokens.keys()
  # A space never occurs inside a token as the runtime looks it up, so no text can make these.
  tokens |= {i: f'[unused {i}]' for i in unused}
  types |= dict.fromkeys(unused, gguf.TokenType.UNUSED)
  if len(set(tokens.values())) < vocab_size:
    raise ValueError(f'{file}: two ids have the same text, which the GGUF runtime does not accept')
  meta['tokens'] = [tokens[i] for i in range(vocab_size)]
  meta['token_type'] = [int(types[i]) for i in range(vocab_size)]
  return meta


def _pre_tokenizers(spec):
  """A key of _SPLITS; () if the text is not split at all; anything else is unknown."""
  pre = spec.get('pre_tokenizer')
  if pre is None:
    return ()
  key = []
  for step in pre['pretokenizers'] if pre['type'] == 'Sequence' else [pre]:
    kind = step['type']
    if kind == 'ByteLevel' and not step.get('add_prefix_space'):
      key.append('ByteLevel' if step.get('use_regex', True) else 'bytes')
    elif kind == 'Digits' and step.get('individual_digits'):
      key.append('Digits')
    elif kind == 'Split' and step['behavior'] == 'Isolated' and not step.get('invert'):
      key.append(step['pattern'].get('Regex'))
    else:
      key.append(None)
  return tuple(key)


def _byte_fallback(file, spec, tokens, types, vocab_size):
  """Scores [vocab_size] that make the runtime merge what the listed merges merge, in their order.

  The runtime merges any two neighbours whose concatenation is a token, the best score first and
  the leftmost first among equals. That is what a list of merges says if each token's merges stand
  together and none that is possible is missing.
  """
  bpe = spec['model']
  spaces = {'type': 'Replace', 'pattern': {'String': ' '}, 'content': _SPACE}
  if spec.get('normalizer') != spaces or not bpe.get('byte_fallback') or bpe.get('ignore_merges'):
    raise ValueError(
      f'{file}: neither byte-level BPE nor BPE with byte fallback whose only normalisation is '
      "' ' to '▁'; the GGUF runtime would tokenise differently")
  for i, text in tokens.items():
    if re.fullmatch(r'<0x[0-9A-F]{2}>', text):
      types[i] = gguf.TokenType.BYTE
    elif text == bpe.get('unk_token'):
      types[i] = gguf.TokenType.UNKNOWN
  if sum(t == gguf.TokenType.BYTE for t in types.values()) != 256:
    raise ValueError(f'{file}: byte fallback needs the 256 tokens <0x00> to <0xFF>')
  normal = {text for i, text in tokens.items() if types[i] == gguf.TokenType.NORMAL}
  merges = [_pair(m) for m in bpe['merges']]
  order = [a + b for a, b in merges]
  ordered = [t for t, before in zip(order, [None, *order], strict=False) if t != before]
  possible = {
    (t[:i], t[i:]) for t in normal for i in range(1, len(t)) if t[:i] in normal and t[i:] in normal
  }
  if len(set(ordered)) < len(ordered) or set(merges) != possible or any(
    c not in normal for t in normal for c in t
  ):
    raise ValueError(f'{file}: its merges are not those of a SentencePiece BPE model, so the GGUF '
                     'runtime would tokenise differently')
  rank = {t: -float(i) for i, t in enumerate(ordered)}
  return [rank.get(tokens.get(i), -float(len(rank))) for i in range(vocab_size)]


def _hide_controls(file, tokens, types, template):
  """Renames control tokens that the runtime would merge out of ordinary text.

  It looks up any two neighbours, control tokens not excepted: with a token `<s`, the text '<s>'
  would become BOS. A space in their text makes that impossible; they are still known by id.
  """
  normal = {t for i, t in tokens.items() if types[i] == gguf.TokenType.NORMAL}
  hidden = (gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN, gguf.TokenType.BYTE)
  found = lambda part: len(part) == 1 or part in normal
  for i, text in list(tokens.items()):
    splits = ((text[:k], text[k:]) for k in range(1, len(text)))
    if types[i] not in hidden or not any(found(a) and found(b) for a, b in splits):
      continue
    if types[i] == gguf.TokenType.BYTE or text in (template or ''):
      raise ValueError(f'{file}: the GGUF runtime would read the text {text!r} as the token of '
                       'that name; train a tokenizer whose text does not hold it so often')
    tokens[i] = f'{text[0]} {text[1:]}'


def _pair(merge):
  return tuple(merge.split(' ', 1) if isinstance(merge, str) else merge)


def _chat_template(folder):
  """The chat template beside tokenizer.json, in plain Jinja; None if there is none.

  Its spans to train on (`{% generation %}`, which only transformers knows) become blocks that
  change nothing: the tags stay, since spaces around them may be trimmed.
  """
  template = (hf_folder.read_json(folder, 'tokenizer_config.json') or {}).get('chat_template')
  if isinstance(template, list):  # several by name
    named = [t for t in template if isinstance(t, dict) and t.get('name') == 'default']
    template = named[0].get('template') if named else None
  if file := hf_folder.find(folder, 'chat_template.jinja'):
    with open(file, encoding='utf-8') as f:
      template = f.read()
  if not isinstance(template, str):
    return None
  for tag, plain in (('generation', 'if true'), ('endgeneration', 'endif')):
    template = re.sub(
      rf'(\{{%[-+]?\s*){tag}(\s*[-+]?%\}})', rf'\g<1>{plain}\2', template)
  return template


def _add_vocabulary(writer, meta):
  if not meta:
    writer.add_tokenizer_model('none')
    return
  writer.add_tokenizer_model(meta['model'])
  writer.add_tokenizer_pre(meta.get('pre', 'default'))
  writer.add_token_list(meta['tokens'])
  writer.add_token_types(meta['token_type'])
  if 'scores' in meta:
    writer.add_token_scores(meta['scores'])
  if 'merges' in meta:
    writer.add_token_merges(meta['merges'])
  if 'chat_template' in meta:
    writer.add_chat_template(meta['chat_template'])
  for key, value in meta.items():
    if isinstance(value, bool):
      writer.add_bool(f'tokenizer.ggml.{key}', value)
    elif key.endswith('_id'):
      writer.add_uint32(f'tokenizer.ggml.{key}', value)


# --------------------------------------------------------------------------------------- runtime


def runtime() -> ModuleType:
  """The llama_cpp module, quiet.

  Raises:
    ImportError: it is not installed; the message says how to.
  """
  try:
    import llama_cpp
  except ImportError as e:
    raise ImportError(
      'this needs the GGUF runtime, and llama_cpp is not installed: pip install llama-cpp-python '
      '(which compiles llama.cpp, with cmake and a C++ compiler)') from e
  logging.getLogger('llama-cpp-python').setLevel(logging.ERROR)
  return llama_cpp


def quantize_file(source: str, path: str, kind: str) -> None:
  """Quantises a GGUF file with the runtime's own quantiser: `kind` is q8_0 or q4_k_m."""
  llama = runtime()
  settings = llama.llama_model_quantize_default_params()
  settings.ftype = int(KINDS[kind][1])
  unfinished = f'{path}.unfinished'
  try:
    if llama.llama_model_quantize(
      source.encode(), unfinished.encode(), ctypes.byref(settings)):
      raise ValueError(f'the GGUF runtime could not quantise {source} to {kind}')
    files.replace(unfinished, path)
  finally:
    _remove(unfinished)


def _remove(path):
  if os.path.exists(path):
    os.remove(path)

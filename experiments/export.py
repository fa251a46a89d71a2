"""Exports a model: to a Hugging Face folder, or to one GGUF file for llama.cpp.

  python -m experiments.export --checkpoint=runs/quickstart --output=released --format=hf
  python -m experiments.export --checkpoint=runs/quickstart --output=released --format=gguf
  python -m experiments.export --checkpoint=released --output=small.gguf --format=gguf \\
    --quantize=q4_k_m

GGUF files are written as --output if it ends in .gguf, else as model-TYPE.gguf in that folder.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Sequence

from absl import app, flags

from smoljax import chat, evals, export, gguf, tokenizer
from smoljax.model import without_mtp

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', None, 'A workdir, its checkpoints folder or one step in it, or a HF model folder.',
  required=True,
)  # fmt: skip
_OUTPUT = flags.DEFINE_string('output', None, 'Folder (or .gguf file) to write.', required=True)
_FORMAT = flags.DEFINE_enum(
  'format', 'hf', ['hf', 'gguf'],
  'hf: config.json, safetensors, tokenizer. gguf: one file that llama.cpp opens.',
)  # fmt: skip
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', ['float32', 'bfloat16', 'float16'], 'Of the stored weights.'
)
_QUANTIZE = flags.DEFINE_enum(
  'quantize', '', ['', 'q8_0', 'q4_k_m'],
  'Of a gguf: quantise its matrices to this instead. q4_k_m needs llama-cpp-python.',
)  # fmt: skip
_TOKENIZER = flags.DEFINE_string(
  'tokenizer', '', 'SentencePiece .model or tokenizer.json; default: the one trained with.'
)
_CHAT = flags.DEFINE_bool(
  'chat', False, 'With the chat template; answers then end at <|im_end|>. For chat models.'
)

_MTP = flags.DEFINE_bool(
  'mtp', False, 'Of a hf: keep modules of multi-token prediction, for speculative decoding.'
)


def write(
  model: evals.Model,
  output: str,
  *,
  dtype: str = 'float32',
  with_chat: bool = False,
  keep_mtp: bool = False,
) -> None:
  """Writes `model` with its tokenizer, and chat template if asked, for `transformers` to load.

  Raises:
    ValueError: the architecture cannot be represented there, or the tokenizer lacks the control
      tokens of the chat template.
  """
  generation = {}
  if with_chat:
    stops = [chat.control_ids(model.tokenizer)[chat.END], model.tokenizer.eos_id]
    generation = {'eos_token_id': [i for i in stops if i is not None]}
  config, params = model.config, model.params
  if not keep_mtp:
    config, params = without_mtp(config, params)
  export.save_hf(config, params, output, dtype=dtype, generation=generation)
  tokenizer.to_hf(
    model.tokenizer.path,
    output,
    bos=model.bos,
    max_length=model.config.max_seq_len,
    chat_template=chat.template() if with_chat else '',
  )


def write_gguf(
  model: evals.Model, output: str, *, kind: str, with_chat: bool = False
) -> tuple[str, dict[str, str]]:
  """Writes `model` with its tokenizer, and chat template if asked, as a GGUF file.

  Args:
    output: the file, or a folder for `model-KIND.gguf`.
    kind: one of gguf.KINDS.
  Returns:
    The file, and which tensors are stored in another type (see `gguf.save_gguf`).
  Raises:
    ValueError: the runtime cannot represent the architecture or the tokenizer.
    ImportError: the kind needs the runtime.
  """
  path = output if output.endswith('.gguf') else os.path.join(output, f'model-{kind}.gguf')
  with tempfile.TemporaryDirectory() as folder:
    if with_chat or not model.tokenizer.path.endswith('.json'):
      if with_chat:
        chat.control_ids(model.tokenizer)  # refuses a tokenizer without them
      tokenizer.to_hf(
        model.tokenizer.path, folder, bos=model.bos, max_length=model.config.max_seq_len,
        chat_template=chat.template() if with_chat else '',
      )  # fmt: skip
    else:
      folder = os.path.dirname(model.tokenizer.path)  # with what stands beside it
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    config, params = without_mtp(model.config, model.params)
    other = gguf.save_gguf(config, params, path, kind=kind, tokenizer_dir=folder)
  return path, other


def main(_: Sequence[str]) -> None:
  logging.getLogger('gguf').setLevel(logging.WARNING)
  try:
    if _QUANTIZE.value and _FORMAT.value != 'gguf':
      raise ValueError(f'--quantize={_QUANTIZE.value} goes with --format=gguf')
    model = evals.load_model(_CHECKPOINT.value, _TOKENIZER.value)
    if _FORMAT.value == 'hf':
      path, other = _OUTPUT.value, {}
      write(model, path, dtype=_DTYPE.value, with_chat=_CHAT.value, keep_mtp=_MTP.value)
    else:
      kind = _QUANTIZE.value or _DTYPE.value
      path, other = write_gguf(model, _OUTPUT.value, kind=kind, with_chat=_CHAT.value)
  except (OSError, ValueError, ImportError) as e:
    print(f'error: {" ".join(str(e).split())}', file=sys.stderr)
    sys.exit(2)
  if other:
    print(f'{len(other)} tensors have rows that do not fit {_QUANTIZE.value} (multiples of '
          f'{256 if _QUANTIZE.value == "q4_k_m" else 32}) and are larger:')
    for name, kind in other.items():
      print(f'  {name}: {kind}')
  print(f'exported to {path}')


if __name__ == '__main__':
  app.run(main)

"""Exports a model: to a Hugging Face folder, or to one GGUF file for llama.cpp.

  python -m experiments.export --checkpoint=runs/quickstart --output=released --format=hf
  python -m experiments.export --checkpoint=runs/quickstart --output=released --format=gguf
  python -m experiments.export --checkpoint=released --output=small.gguf --format=gguf \
    --quantize=q4_k_m

With --push_to_hub=OWNER/NAME the folder becomes a private repository on the Hugging Face hub too,
by the account of HF_TOKEN or `hf auth login`. GGUF files are written as --output if it ends in
.gguf, else as model-TYPE.gguf in that folder.
"""

import logging
import sys
from collections.abc import Sequence

from absl import flags

from data_beam import hub
from experiments.engine import cli
from smoljax.checkpoints import export_formats, load

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', None, 'A workdir, its checkpoints folder or one step in it, or a HF model folder.',
  required=True,
)  # fmt: skip
_OUTPUT = flags.DEFINE_string('output', None, 'Folder (or .gguf file) to write.', required=True)
_FORMAT = flags.DEFINE_enum(
  'format', 'hf', [*export_formats.FORMATS, 'peft'],
  'hf: config.json, safetensors, tokenizer. gguf: one file that llama.cpp opens. peft: the '
  'adapters of a run of model.lora_rank, alone.',
)  # fmt: skip
_DTYPE = flags.DEFINE_enum(
  'dtype', '', ['', 'float32', 'bfloat16', 'float16'],
  'Of the stored weights; default: what the model computes in.',
)  # fmt: skip
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
_PUSH = flags.DEFINE_string(
  'push_to_hub', '', 'OWNER/NAME on the Hugging Face hub that a hf goes to as well, as a private '
  'repository.')


def main(_: Sequence[str]) -> None:
  """The command line; bad input is one line and exit code 2."""
  logging.getLogger('gguf').setLevel(logging.WARNING)
  try:
    if _PUSH.value and _FORMAT.value != 'hf':
      raise ValueError('--push_to_hub goes with --format=hf')
    if _FORMAT.value == 'peft':
      for flag in (_DTYPE, _QUANTIZE, _TOKENIZER, _CHAT, _MTP):
        if flag.value:
          raise ValueError(f'--{flag.name} is of a whole model: leave it out with --format=peft')
      print(f'exported to {export_formats.write_peft(_CHECKPOINT.value, _OUTPUT.value)}')
      return
    model = load.load_model(_CHECKPOINT.value, _TOKENIZER.value)
    path, other = export_formats.FORMATS[_FORMAT.value](
      model, _OUTPUT.value, dtype=_DTYPE.value, quantize=_QUANTIZE.value, with_chat=_CHAT.value,
      keep_mtp=_MTP.value)
    if _PUSH.value:
      print(f'pushed to {hub.push(path, _PUSH.value, "model")}')
  except (OSError, ValueError, ImportError) as e:
    sys.exit(cli.complain(e))
  if other:
    print(f'{len(other)} tensors have rows that do not fit {_QUANTIZE.value} (multiples of '
          f'{256 if _QUANTIZE.value == "q4_k_m" else 32}) and are larger:')
    for name, kind in other.items():
      print(f'  {name}: {kind}')
  print(f'exported to {path}')


if __name__ == '__main__':
  cli.start(main)

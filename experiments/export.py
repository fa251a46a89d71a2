"""Exports a checkpoint of ours to a Hugging Face folder.

  python -m experiments.export --checkpoint=runs/quickstart --output=released --format=hf
"""

import sys
from collections.abc import Sequence

from absl import app, flags

from smoljax import chat, evals, export, tokenizer

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', None, 'A workdir, its checkpoints folder, or one step in it.', required=True
)
_OUTPUT = flags.DEFINE_string('output', None, 'Folder to write.', required=True)
_FORMAT = flags.DEFINE_enum('format', 'hf', ['hf'], 'hf: config.json, safetensors, tokenizer.')
_DTYPE = flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Of the stored weights.')
_TOKENIZER = flags.DEFINE_string(
  'tokenizer', '', 'SentencePiece .model or tokenizer.json; default: the one trained with.'
)
_CHAT = flags.DEFINE_bool(
  'chat', False, 'Also chat_template.jinja; answers then end at <|im_end|>. For chat models.'
)


def write(
  model: evals.Model, output: str, *, dtype: str = 'float32', with_chat: bool = False
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
  export.save_hf(model.config, model.params, output, dtype=dtype, generation=generation)
  tokenizer.to_hf(
    model.tokenizer.path,
    output,
    bos=model.bos,
    max_length=model.config.max_seq_len,
    chat_template=chat.template() if with_chat else '',
  )


def main(_: Sequence[str]) -> None:
  try:
    write(
      evals.load_model(_CHECKPOINT.value, _TOKENIZER.value),
      _OUTPUT.value,
      dtype=_DTYPE.value,
      with_chat=_CHAT.value,
    )
  except (OSError, ValueError) as e:
    print(f'error: {" ".join(str(e).split())}', file=sys.stderr)
    sys.exit(2)
  print(f'exported to {_OUTPUT.value}')


if __name__ == '__main__':
  app.run(main)

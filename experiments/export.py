"""Exports a checkpoint of ours to a Hugging Face folder.

  python -m experiments.export --checkpoint=runs/quickstart --output=released --format=hf
"""

import sys
from collections.abc import Sequence

from absl import app, flags

from smoljax import evals, export, tokenizer

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', None, 'A workdir, its checkpoints folder, or one step in it.', required=True
)
_OUTPUT = flags.DEFINE_string('output', None, 'Folder to write.', required=True)
_FORMAT = flags.DEFINE_enum('format', 'hf', ['hf'], 'hf: config.json, safetensors, tokenizer.')
_DTYPE = flags.DEFINE_enum('dtype', 'float32', ['float32', 'bfloat16'], 'Of the stored weights.')
_TOKENIZER = flags.DEFINE_string(
  'tokenizer', '', 'SentencePiece .model or tokenizer.json; default: the one trained with.'
)


def write(model: evals.Model, output: str, *, dtype: str = 'float32') -> None:
  """Writes `model` with its tokenizer as a folder that `transformers` loads.

  Raises:
    ValueError: the architecture cannot be represented there.
  """
  export.save_hf(model.config, model.params, output, dtype=dtype)
  tokenizer.to_hf(
    model.tokenizer.path, output, bos=model.bos, max_length=model.config.max_seq_len
  )


def main(_: Sequence[str]) -> None:
  try:
    write(
      evals.load_model(_CHECKPOINT.value, _TOKENIZER.value), _OUTPUT.value, dtype=_DTYPE.value
    )
  except (OSError, ValueError) as e:
    print(f'error: {" ".join(str(e).split())}', file=sys.stderr)
    sys.exit(2)
  print(f'exported to {_OUTPUT.value}')


if __name__ == '__main__':
  app.run(main)

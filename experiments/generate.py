"""Continues a text with a trained model.

  python -m experiments.generate --checkpoint=runs/quickstart --prompt='The list of'
  python -m experiments.generate --checkpoint=runs/quickstart/export --prompt='Return' --seed=1

Prints the prompt and what the model writes after it, as it is written, until it ends the document
or reaches --max_new_tokens. With --temperature=0 it always takes the likeliest token.
"""

import itertools
import sys

from absl import app, flags

from smoljax import decode, evals

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', None, 'A run (its workdir, checkpoints folder or one step), or a HF model folder.'
)
_PROMPT = flags.DEFINE_string('prompt', '', 'The text to continue; empty = a new document.')
_MAX_NEW_TOKENS = flags.DEFINE_integer('max_new_tokens', 128, 'Tokens to write at most.')
_TEMPERATURE = flags.DEFINE_float('temperature', 0.7, 'Higher is more varied; 0 = no sampling.')
_TOP_K = flags.DEFINE_integer('top_k', 0, 'Sample among the k likeliest tokens; 0 = among all.')
_TOP_P = flags.DEFINE_float(
  'top_p', 1.0, 'Sample among the likeliest tokens that together have this probability.'
)
_SEED = flags.DEFINE_integer('seed', 0, 'The same seed writes the same text.')
_TOKENIZER = flags.DEFINE_string('tokenizer', '', 'Tokenizer file, where the model names none.')


def main(argv: list[str]) -> None:
  try:
    if len(argv) > 1:
      raise ValueError(f'unknown argument {argv[1]!r}: quote the prompt, --prompt="two words"')
    if not _CHECKPOINT.value:
      raise ValueError('which model? Give --checkpoint=DIR')
    _generate()
  except (OSError, ValueError) as e:
    print(f'error: {e}', file=sys.stderr)
    sys.exit(2)


def _generate() -> None:
  config, params, tokenizer, bos = evals.load_model(_CHECKPOINT.value, _TOKENIZER.value)
  prompt = tokenizer.encode(_PROMPT.value)
  if bos:
    prompt = [tokenizer.bos_id, *prompt]
  elif not prompt:
    raise ValueError('this model has no token that begins a document: give it a --prompt')
  steps = decode.stream(
    config,
    params,
    [prompt],
    max_new_tokens=_MAX_NEW_TOKENS.value,
    temperature=_TEMPERATURE.value,
    top_k=_TOP_K.value,
    top_p=_TOP_P.value,
    eos_id=tokenizer.eos_id,
    seed=_SEED.value,
  )
  first = list(itertools.islice(steps, 1))  # wrong arguments are found here, before any output
  print(_PROMPT.value, end='')
  ids, shown = [], ''
  for [token] in itertools.chain(first, steps):
    ids.append(token)
    text = tokenizer.decode(ids)
    if not text.endswith('\ufffd'):  # a character whose last bytes are still to come
      print(text[len(shown) :], end='', flush=True)
      shown = text
  print(tokenizer.decode(ids)[len(shown) :])


if __name__ == '__main__':
  app.run(main)

"""What a model thinks, layer by layer, while it reads a prompt: one self-contained HTML page.

  python -m experiments.lens --checkpoint=runs/quickstart --prompt='The list of' --output=lens.html

Logit lens (nostalgebraist, 2020): the residual stream after each layer, through the final norm and
the head, as if the model ended there: likeliest next token, its probability, and the entropy of the
distribution. Below it the attention map of each head. The page loads nothing from elsewhere.
"""

import dataclasses
import functools
import os
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.engine import cli
from smoljax import model
from smoljax.checkpoints import load
from smoljax.report import lens_page
from smoljax.report.lens_page import Lens

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', None, 'A run (its workdir, checkpoints folder or one step), or a HF model folder.')
_PROMPT = flags.DEFINE_string('prompt', '', 'The text to read.')
_OUTPUT = flags.DEFINE_string('output', 'lens.html', 'The page to write.')
_TOKENIZER = flags.DEFINE_string('tokenizer', '', 'Tokenizer file, where the model names none.')

MOST = 128  # tokens; more columns and maps than this nobody reads


def logit_lens(config: model.ModelConfig, params: model.Params, tokens: list[int]) -> Lens:
  """Runs the model once over one row of token ids."""
  return Lens(*map(np.asarray, _logit_lens(config, params, jnp.asarray([tokens], jnp.int32))))


@functools.partial(jax.jit, static_argnums=0)
def _logit_lens(config, params, tokens_1T):
  _, aux = model.hidden(config, params, tokens_1T, capture=('residual', 'attention'))
  first_1TD = model.embed(config, params, tokens_1T)
  stream_R1TD = jnp.concatenate([first_1TD[None], aux['residual_LBTD']])

  def ended_here(x_1TD):  # one layer at a time: [R, T, V] may be large
    logits_TV = model.logits(config, params, model.final_norm(config, params, x_1TD))[0]
    log_p_TV = jax.nn.log_softmax(logits_TV)
    entropy_T = -jnp.sum(jnp.exp(log_p_TV) * log_p_TV, axis=-1)
    return jnp.argmax(log_p_TV, axis=-1), jnp.exp(log_p_TV.max(axis=-1)), entropy_T

  return *jax.lax.map(ended_here, stream_R1TD), aux['attention_LBNTS'][:, 0]


def write(loaded: load.Model, prompt: str, output: str) -> None:
  """Reads `prompt` with a loaded model and writes the page.

  Raises ValueError for a prompt without tokens, or with too many to look at.
  """
  tokenizer = loaded.tokenizer
  tokens = tokenizer.encode(prompt)
  if loaded.bos:
    tokens = [tokenizer.bos_id, *tokens]
  if not tokens:
    raise ValueError('the prompt is empty: give --prompt')
  most = min(MOST, loaded.config.max_seq_len)
  if len(tokens) > most:
    raise ValueError(f'the prompt has {len(tokens)} tokens: shorten it to {most}')
  config = dataclasses.replace(loaded.config, dtype='float32')
  lens = logit_lens(config, loaded.params, tokens)

  @functools.cache
  def spell(token):
    named = {tokenizer.bos_id: '<bos>', tokenizer.eos_id: '<eos>', tokenizer.pad_id: '<pad>'}
    text = named.get(token) or tokenizer.decode([token])
    return text.replace('\n', '⏎').replace('\t', '⇥') if text.strip(' ') else '␣'

  pieces = [[spell(int(token)) for token in row] for row in lens.top_RT]
  os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
  with open(output, 'w', encoding='utf-8') as f:
    f.write(lens_page.page(config, prompt, [spell(t) for t in tokens], pieces, lens))


def main(argv: list[str]) -> None:
  """The command line; bad input is one line and exit code 2."""
  try:
    if not _CHECKPOINT.value:
      raise ValueError('which model? Give --checkpoint=DIR')
    if os.path.isdir(_OUTPUT.value):
      raise IsADirectoryError(f'--output={_OUTPUT.value} is a folder: give FILE.html')
    write(load.load_model(_CHECKPOINT.value, _TOKENIZER.value), _PROMPT.value, _OUTPUT.value)
  except (OSError, ValueError) as e:
    sys.exit(cli.complain(e))
  print(f'page: {_OUTPUT.value}')


if __name__ == '__main__':
  cli.start(main)

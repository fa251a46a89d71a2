"""What lm-evaluation-harness makes of an export of ours by its model `hf` → lm_harness.json.

`python tests/goldens/make_lm_harness.py`, with lm-eval[hf] and torch installed. 200 requests of
each kind, of pieces of text in random order; the model is small, its weights those of
make_hf_logits.
"""

import json
import pathlib
import sys
import types
from typing import Any

import numpy as np

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[i]) for i in (1, 2)]

from goldens import make_hf_logits as models  # noqa: E402

from smoljax.checkpoints import export_formats, huggingface, load  # noqa: E402
from smoljax.data import chat, tokenizer  # noqa: E402
from smoljax.model import ModelConfig  # noqa: E402

FILE = pathlib.Path(__file__).with_name('lm_harness.json')
CONTEXT, NUM = 64, 200
CONFIG = ModelConfig(
  vocab_size=320, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64,
  max_seq_len=CONTEXT, nope_interval=2, dtype='float32')
PIECES = (
  'the value of the list', ' is returned', '\n', 'def value(list):\n', '    return list', ' and ',
  ' x = 12', ' é', '日本', 'The answer is', ':', '  ', 'Question', '.\n\n', 'value')


def export(folder: str) -> str:
  """Writes the model with a chat template; returns the folder."""
  texts = [piece * 20 for piece in PIECES] + [''.join(PIECES) * 5]
  path = f'{folder}/tokenizer.model'
  tokenizer.train(texts, path, vocab_size=CONFIG.vocab_size, control=chat.CONTROL)
  params = huggingface.from_hf_tensors(
    CONFIG, lambda name: models.weights(name, huggingface.hf_shapes(CONFIG)[name]))
  # Hardly a byte token: what such of no text decode to depends on where decoding begins.
  is_byte = [piece.startswith('<0x') for piece in tokenizer.load(path).pieces]
  params['embed_VD'] = np.where(np.array(is_byte)[:, None], 0.05, 1) * params['embed_VD']
  trained = load.Model(CONFIG, params, tokenizer.load(path), True)
  export_formats.write_hf(trained, f'{folder}/hf', with_chat=True)
  return f'{folder}/hf'


def requests(kind: str) -> list[Any]:
  """As the harness gives them: loglikelihood, loglikelihood_rolling or generate_until."""
  rng = np.random.default_rng(7)
  text = lambda most: ''.join(rng.choice(PIECES, rng.integers(1, most)))
  if kind == 'loglikelihood':
    arguments = [(text(14) if i % 10 else '', ' ' * (i % 2) + text(4)) for i in range(NUM)]
  elif kind == 'loglikelihood_rolling':
    arguments = [(text(40),) for _ in range(NUM)]
  else:
    stops = (['\n'], ['e', 'the'], ' ', [], ['\n\n', 'zzz'])
    arguments = [
      (text(16), {'until': stops[i % 5], 'max_gen_toks': (5, 12, 24)[i % 3], 'do_sample': False})
      for i in range(NUM)]
  return [types.SimpleNamespace(args=a, arguments=a, task_name='') for a in arguments]


def reference(folder: str, **settings: Any) -> Any:
  """The harness's model for transformers."""
  from lm_eval.models.huggingface import HFLM

  return HFLM(pretrained=folder, device='cpu', dtype='float32', max_length=CONTEXT, batch_size=1,
              **settings)


if __name__ == '__main__':
  import tempfile

  with tempfile.TemporaryDirectory() as made:
    theirs = reference(export(made))
    results = {kind: getattr(theirs, kind)(requests(kind), disable_tqdm=True)
               for kind in ('loglikelihood', 'loglikelihood_rolling', 'generate_until')}
  rounded = lambda x: [rounded(y) for y in x] if isinstance(x, list | tuple) else (
    round(x, 5) if isinstance(x, float) else x)
  lines = ',\n'.join(f'{json.dumps(k)}: {json.dumps(rounded(v))}' for k, v in results.items())
  FILE.write_text(f'{{\n{lines}\n}}\n')

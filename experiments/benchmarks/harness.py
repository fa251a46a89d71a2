"""Times lm-evaluation-harness with our adapter beside its own `hf` model: one JSON line a case.

  python -m experiments.benchmarks.harness --tokenizer=FILE [--size=smollm2-360m] [--batch=1,32]

Both answer the same requests of the kind generate_until on the same exported folder of random
weights in bf16, greedily, `--new` tokens each (none ends earlier), in processes of their own;
`hf` pads a batch to its longest prompt, as the harness has it. Loading is not counted, nor is
what as many requests before take, for which programs are compiled.
Needs `pip install "lm-eval[hf]"`.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import app, flags

_SIZE = flags.DEFINE_string('size', 'smollm2-360m', 'Shape of the model, of smoljax.model.SHAPES.')
_TOKENIZER = flags.DEFINE_string('tokenizer', None, 'Tokenizer file of the model.', required=True)
_BATCH = flags.DEFINE_list('batch', ['1', '32'], 'Batch sizes.')
_REQUESTS = flags.DEFINE_integer('requests', 4, 'Batches of requests that are timed.')
_PROMPT = flags.DEFINE_integer('prompt', 256, 'Tokens of the longest prompt, about.')
_NEW = flags.DEFINE_integer('new', 256, 'Tokens of each answer.')
_SIDES = flags.DEFINE_list('sides', ['ours', 'hf'], 'Who is timed.')
_FOLDER = flags.DEFINE_string('folder', '', 'Internal: the exported model.')


def main(_: list[str]) -> None:
  """Measures one side here, or exports a model and measures all in processes of their own."""
  if _FOLDER.value:
    (side,) = _SIDES.value
    if side == 'export':
      return export()
    for batch in map(int, _BATCH.value):
      print(json.dumps({'benchmark': 'harness', 'size': _SIZE.value, 'side': side, 'batch': batch,
                        **measure(side, batch)}), flush=True)
    return
  with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, '-m', 'experiments.benchmarks.harness', *sys.argv[1:]]
    for side in ('export', *_SIDES.value):  # JAX gives no memory back before its process ends
      subprocess.run([*command, f'--folder={folder}/hf', f'--sides={side}'], check=True)


def export() -> None:
  """Writes a model of random weights in that shape, with that tokenizer, as an HF folder."""
  import jax

  from smoljax import model
  from smoljax.checkpoints import export_formats, load
  from smoljax.data import tokenizer

  text = tokenizer.load(_TOKENIZER.value)
  config = dataclasses.replace(
    model.SHAPES[_SIZE.value], vocab_size=text.vocab_size, dtype='bfloat16', max_seq_len=2048)
  params = model.init(config, jax.random.key(0))
  export_formats.write_hf(load.Model(config, params, text, False), _FOLDER.value)


def requests(model: Any, count: int, first: int) -> list[Any]:
  """Requests of unlike lengths, no two alike."""
  import random

  from lm_eval.api.instance import Instance

  options = {'until': ['\x00'], 'max_gen_toks': _NEW.value, 'min_new_tokens': _NEW.value,
             'do_sample': False}
  made = []
  for i in range(first, first + count):
    draw = random.Random(i)
    words = _PROMPT.value * (4 - i % 4) // 4
    text = ' '.join(draw.choice(('one', 'two', 'red', 'sum', 'of', 'the')) for _ in range(words))
    ids = model.tok_encode(text)[: words]
    made.append(Instance('generate_until', {}, (model.tok_decode(ids), dict(options)), i))
  return made


def measure(side: str, batch: int) -> dict[str, Any]:
  """Tokens a second of that side's `generate_until`."""
  if side == 'ours':
    from smoljax.evals import lm_harness

    model: Any = lm_harness.LM(_FOLDER.value, batch_size=batch)
    model.tok_decode = model.model.tokenizer.decode
  else:
    import torch
    from lm_eval.models.huggingface import HFLM

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model = HFLM(
      pretrained=_FOLDER.value, batch_size=batch, dtype='bfloat16', device=device)
  count = batch * _REQUESTS.value
  model.generate_until(requests(model, count, 0))
  asked = requests(model, count, count)
  began = time.perf_counter()
  answers = model.generate_until(asked)
  seconds = time.perf_counter() - began
  tokens = len(answers) * _NEW.value
  return {'requests': len(asked), 'new_tokens': _NEW.value, 'seconds': round(seconds, 2),
          'tokens_per_sec': round(tokens / seconds, 1)}


if __name__ == '__main__':
  app.run(main)

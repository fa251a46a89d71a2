"""Tokenizer files in the layouts that are about."""

import json
import os
import pathlib

import tokenizers
from conftest import write_tokenised

from data_beam import tokenize_corpus

BYTES = tokenizers.pre_tokenizers.ByteLevel.alphabet()


def write(folder, special, **beside):
  """A tokenizer.json of bytes (ids 0 to 255) and these special tokens; what is beside it."""
  hf = tokenizers.Tokenizer(tokenizers.models.BPE(
    {piece: i for i, piece in enumerate(sorted(BYTES))}, []))
  hf.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  hf.decoder = tokenizers.decoders.ByteLevel()
  hf.add_special_tokens(list(special))
  os.makedirs(folder, exist_ok=True)
  for name, content in beside.items():
    with open(os.path.join(folder, f'{name}.json'), 'w') as f:
      json.dump(content, f)
  hf.save(os.path.join(folder, 'tokenizer.json'))
  return os.path.join(folder, 'tokenizer.json')


def write_tokens(folder, name, path, **manifest):
  """A tokenised corpus with a manifest as tokenize_corpus writes it, but for some entries."""
  made = write_tokenised(folder, name, {'train': [[256, *b'some text', 257]] * 3}, 300)
  facts = tokenize_corpus.load_tokenizer(path)
  entries = {'tokenizer_sha256': facts.sha256, **facts.special._asdict(), **manifest}
  file = pathlib.Path(made, 'manifest.json')
  file.with_name('_SUCCESS').write_text('')  # it is changed on purpose
  old = json.loads(file.read_text()) | {'documents': 3, 'tokens': 33}
  file.write_text(json.dumps({k: v for k, v in (old | entries).items() if v != 'absent'}))
  return made

"""Which ids of a tokenizer begin a text (BOS), end one (EOS) and fill up what is too short (pad).

One rule for both wings, so that they cannot disagree. tokenize_corpus decides by it and writes the
ids into the corpus's manifest, from where a run takes them to its checkpoints; smoljax decides by
it where there is no corpus, as for a released model. So this file imports nothing of either.

A SentencePiece model says it itself. For a tokenizer.json it is said beside it:

1. `bos_token`, `eos_token` and `pad_token` of tokenizer_config.json; one that it lacks is looked
   for in special_tokens_map.json. Each is a text, {"content": text}, or null where there is none.
2. Where neither file has any of the three (mostly because there is no such file), the usual names
   are looked for in the vocabulary.

A name that is no token of the tokenizer is none.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# Looked for in this order.
USUAL_NAMES = {
  'bos_token': ('<|begin_of_text|>', '<s>', '<bos>'),
  'eos_token': ('<|end_of_text|>', '</s>', '<|endoftext|>', '<eos>'),
  'pad_token': ('<pad>', '<|pad|>', '[PAD]', '<|padding|>'),
}
# What to do about a tokenizer without EOS.
NAME_EOS = 'name its "eos_token" in a tokenizer_config.json beside it, or train it with an eos_id'


class SpecialTokens(NamedTuple):
  """Ids; None where the tokenizer has no such token. The names are those of a manifest's keys."""

  bos_id: int | None
  eos_id: int | None
  pad_id: int | None


def decide(tokenizer: Any, read: Callable[[str], bytes | None]) -> SpecialTokens:
  """The special tokens of a tokenizer.

  Args:
    tokenizer: a sentencepiece.SentencePieceProcessor or a tokenizers.Tokenizer.
    read: name of a file beside the tokenizer's → its content, None if there is none.

  Raises:
    ValueError: a file beside it is not what it should be.
  """
  if not hasattr(tokenizer, 'token_to_id'):
    ids = (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id())
    return SpecialTokens(*(i if i >= 0 else None for i in ids))
  found, names = entries(read), USUAL_NAMES
  if found.keys() & USUAL_NAMES.keys():
    names = {key: (text_of(found.get(key)),) for key in USUAL_NAMES}

  def first(candidates: Sequence[str | None]) -> int | None:
    ids = (tokenizer.token_to_id(name) for name in candidates if name)
    return next((i for i in ids if i is not None), None)

  return SpecialTokens(*(first(names[key]) for key in ('bos_token', 'eos_token', 'pad_token')))


def entries(read: Callable[[str], bytes | None]) -> dict[str, Any]:
  """What special_tokens_map.json and tokenizer_config.json say, as one; the latter goes first."""
  merged: dict[str, Any] = {}
  for name in ('special_tokens_map.json', 'tokenizer_config.json'):
    content = read(name)
    try:
      found = json.loads('{}' if content is None else content)
    except (ValueError, RecursionError):
      found = None
    if not isinstance(found, dict):
      raise ValueError(f'{name}, beside the tokenizer, is no JSON object')
    for key in (*USUAL_NAMES, 'unk_token'):
      if not isinstance(text_of(found.get(key)), str | None):
        raise ValueError(f'{name}, beside the tokenizer: {key}={str(found[key])[:60]} is no text')
    merged |= found
  return merged


def text_of(entry: Any) -> str | None:
  """The text of an entry such as "eos_token"."""
  return entry.get('content') if isinstance(entry, dict) else entry

"""The chat template with a tokenizer: conversations as token ids, and which of them are learnt.

Rendering itself is data_beam/chat.py, which curation and training share.
"""

import data_beam.chat as shared
from data_beam.chat import (
  CONTROL,
  END,
  MODES,
  ROLES,
  START,
  Message,
  Rendered,
  Segment,
  Tool,
  render,
  template,
)
from smoljax.data.tokenizer import Tokenizer

__all__ = [
  'CONTROL', 'END', 'MODES', 'ROLES', 'START', 'Message', 'Rendered', 'Segment', 'Tool',
  'control_ids', 'encode', 'render', 'template',
]


def encode(rendered: Rendered, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
  """Token ids, and for each whether it is to be learnt (as a target); see data_beam.chat.encode.

  Raises:
    ValueError: the tokenizer lacks the control tokens; says how to add them.
  """
  return shared.encode(rendered, control_ids(tokenizer), tokenizer.encode)


def control_ids(tokenizer: Tokenizer) -> dict[str, int]:
  """Ids of `<|im_start|>` and `<|im_end|>`; the latter ends an answer.

  Raises:
    ValueError: the tokenizer lacks them; says how to add them.
  """
  return shared.control_ids(tokenizer.path, tokenizer.control_id)

"""Writes chat.json: what the released SmolLM3 chat template makes of the tests' conversations.

  python tests/goldens/make_chat.py chat_template.jinja

The template is the file of that name in HuggingFaceTB/SmolLM3-3B (Apache-2.0), 5,598 characters; it
is rendered by transformers. Needs the `reference` extra.
"""

import json
import pathlib
import sys

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / 'smoljax/data'), str(TESTS), str(TESTS.parent)]

import test_chat  # noqa: E402

source = pathlib.Path(sys.argv[1]).read_text(encoding='utf-8')
conversations = {}
for name, (messages, arguments) in test_chat.CONVERSATIONS.items():
  text, spans = test_chat.jinja(source, messages, arguments)
  conversations[name] = {'sha256': test_chat.fingerprint(text), 'spans': spans}
  if name in test_chat.HAND_MADE:
    conversations[name]['text'] = text
lines = ',\n'.join(f'{json.dumps(n)}: {json.dumps(v)}' for n, v in conversations.items())
sha256 = json.dumps(test_chat.fingerprint(source))
test_chat.GOLDENS.write_text(
  f'{{"template_sha256": {sha256}, "conversations": {{\n{lines}\n}}}}\n'
)

"""Main text by a model behind a server (model_server.py), such as jinaai/ReaderLM-v2.

The model gets the page's markup without scripts, styles, pictures and comments, and is asked for
Markdown. A model writes, it does not copy: an answer that was cut off, that repeats itself, or most
of whose words are not in the page, is no text.
"""

import re

from data_beam import model_server
from data_beam.sandbox import Limits, Sandbox
from data_beam.sources.readers import Page
from data_beam.web.extract import decode, within_budget

PROMPT = 'Extract the main content from the given HTML and convert it to Markdown format.'
MAX_CHARS = 200_000     # of markup that is sent: some 50,000 tokens
MAX_TOKENS = 8192       # of an answer
OWN_WORDS = .8          # share of an answer's words that must be in the page

_DROPPED = re.compile(
  r'<!--.*?-->|<(script|style|svg|template|iframe)\b.*?</\1\s*>|<(?:meta|link|img|source)\b[^>]*>|'
  r'\s(?:style|srcset|on\w+|data-[\w-]+)\s*=\s*(?:"[^"]*"|\'[^\']*\')', re.S | re.I)
_WORDS = re.compile(r'\w{2,}')

cleaner = Sandbox('data_beam.web.served:cleaned',
                  Limits(memory=900 << 20, cpu_seconds=10, wall_seconds=60))


class NoText(Exception):
  """A model gave no text of a page. `reason` is one word for the funnel."""

  def __init__(self, reason: str, detail: str = ''):
    super().__init__(detail)
    self.reason, self.detail = reason, detail


def cleaned(body: bytes, content_type: str = '') -> str:
  """A page's markup without what nobody reads, up to MAX_CHARS characters."""
  text = _DROPPED.sub('', within_budget(decode(body, content_type)))
  return re.sub(r'\s+', ' ', text)[:MAX_CHARS].strip()


def extract(page: Page, url: str, model: str, prompt: str = '') -> tuple[str, bool]:
  """The page's main text as a model has it, and whether only a part of the page was sent.

  Args:
    page: of HTML.
    url: of the server.
    model: its name there.
    prompt: what it is asked for, PROMPT if empty.

  Raises:
    NoText: no_text, model_failed (no answer), model_cut, model_repeats, made_up.
    Lost: the page could not be read.
  """
  html = cleaner.call(page.body, content_type=page.content_type)
  if not html:
    raise NoText('no_text')
  try:
    answer = model_server.ask(
      url, model, f'{prompt or PROMPT}\n```html\n{html}\n```', MAX_TOKENS)
  except model_server.ServerError as error:
    raise NoText('model_failed', str(error)) from error
  text = answer.text.strip()
  if fence := re.fullmatch(r'```(?:markdown|md)?\n(.*?)\n?```', text, re.S):
    text = fence[1].strip()
  if not text:
    raise NoText('no_text')
  if answer.ended == 'length':
    raise NoText('model_cut')
  if model_server.repeats(text):
    raise NoText('model_repeats')
  words, own = _WORDS.findall(text.casefold()), set(_WORDS.findall(html.casefold()))
  if sum(word in own for word in words) < OWN_WORDS * len(words):
    raise NoText('made_up', text[:100])
  return text, len(html) == MAX_CHARS

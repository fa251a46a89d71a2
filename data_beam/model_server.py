"""A model behind a server that speaks OpenAI's chat completions, as vLLM, SGLang and LMDeploy do.

One request a question, at temperature 0; those of all workers are in flight together, and the
server makes batches of them. What may pass is tried again.
"""

import collections
import http.client
import ipaddress
import json
import math
import re
import statistics
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, NamedTuple

from data_beam import sandbox

TRIES = 3                   # of a request
PAUSE = 1.0                 # seconds before the second, twice as many before the third
PATIENCE = 150.0            # seconds for an answer: less than pdf.text.LIMITS leave to a page

_failures = 0               # of a server's answers in a row, in this process


class ServerError(Exception):
  """The server gave no answer; the text says what it did."""


class Answer(NamedTuple):
  """What a model says, why it ended ('stop', 'length', …), and the mean probability of its tokens
  (1 where the server does not tell)."""

  text: str
  ended: str
  sure: float


def ask(url: str, model: str, content: Any, max_tokens: int, **more: Any) -> Answer:
  """A model's answer to one message.

  A server that has failed three times in a row gets one try a question until it answers.

  Args:
    url: of the server, without /v1/….
    model: its name there.
    content: of the message: a text, or a list of parts (texts, pictures).
    max_tokens: of the answer.
    **more: further fields of the request.

  Raises:
    ServerError: no answer, or none that is one.
  """
  global _failures
  body = {'model': model, 'temperature': 0, 'max_tokens': max_tokens,
          'messages': [{'role': 'user', 'content': content}], **more}
  url = url.rstrip('/') + '/v1/chat/completions'
  request = urllib.request.Request(url, json.dumps(body).encode(),
                                   {'Content-Type': 'application/json'})
  detail = ''
  for n in range(1 if _failures >= 3 else TRIES):
    if n:
      time.sleep(PAUSE * 2 ** (n - 1))
    sandbox.tick()                          # waiting is no sign of a hang
    try:
      with _opener(url).open(request, timeout=PATIENCE) as answer:
        choice = json.load(answer)['choices'][0]
      text = choice['message']['content'] or ''
      logs = [math.exp(t['logprob']) for t in (choice.get('logprobs') or {}).get('content') or []]
      if not isinstance(text, str):
        raise TypeError('the answer is no text')
      _failures = 0
      return Answer(text, choice.get('finish_reason') or '',
                    statistics.fmean(logs) if logs else 1.0)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError,
            http.client.HTTPException) as error:
      detail = f'{type(error).__name__}: {error}'[:200]
      if isinstance(error, urllib.error.HTTPError):
        detail += _said(error)
        if error.code < 500 and error.code not in (408, 425, 429):
          break
  _failures += 1
  raise ServerError(detail)


def _said(error: urllib.error.HTTPError) -> str:
  """': ' and what the server says of its refusal, in any of the forms that servers have; or ''."""
  try:
    body = json.loads(error.read(1 << 16))
    said = body.get('error', body)
    return f': {said if isinstance(said, str) else said["message"]}'[:200]
  except (OSError, ValueError, LookupError, TypeError, AttributeError, http.client.HTTPException):
    return ''


def _opener(url: str) -> urllib.request.OpenerDirector:
  """Through the proxy that the environment names, but none to a server on this machine."""
  host = urllib.parse.urlsplit(url).hostname or ''
  try:
    near = ipaddress.ip_address(host).is_loopback
  except ValueError:
    near = host == 'localhost' or host.endswith('.localhost')
  return urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if near else []))


def repeats(text: str) -> bool:
  """Whether a model has lost itself: FinePDFs' guard. A line thrice (of less than eight characters
  twelve times, of a table nine), a sentence of 50 characters five times, one character 350 times.
  """
  if re.search(r'(\S)\1{349}', text):
    return True
  lines = collections.Counter(line.strip() for line in text.split('\n') if line.strip())
  if any(n >= (9 if line[0] == '|' else 12 if len(line) < 8 else 3) for line, n in lines.items()):
    return True
  sentences = collections.Counter(s.strip() for s in re.split(r'(?<=[.!?])\s', text))
  return any(n >= 5 for sentence, n in sentences.items() if len(sentence) >= 50)

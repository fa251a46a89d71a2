"""Serves a trained model by the protocol of OpenAI's chat completions.

  python -m experiments.serve --checkpoint=runs/quickstart --port=8000

For data_beam.rephrase, and whatever speaks that protocol: POST /v1/chat/completions with messages,
max_tokens, temperature, top_p, seed and stop; one choice, whole, no stream of parts. What would
make another answer and is not done (tools, logprobs, response_format, …) is refused. Questions
that wait are answered together, in float32 each as if it were alone. A chat model is asked by its
template; another writes on after the last message. It listens to this machine alone unless --host
says otherwise, asks nobody for a key, and answers until it is stopped.
"""

import concurrent.futures
import dataclasses
import http.server
import json
import queue
import select
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags

from experiments.engine import cli
from smoljax.checkpoints import load
from smoljax.data import chat, chat_template
from smoljax.evals.writing import Writer, Written
from smoljax.inference.sampling import Sampling

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', None, 'A run (its workdir, checkpoints folder or one step), or a HF model folder.')
_HOST = flags.DEFINE_string('host', '127.0.0.1', 'Address to listen at; 0.0.0.0 = all networks.')
_PORT = flags.DEFINE_integer(
  'port', 8000, 'Port to listen at; 0 = a free one, which is printed.',
  lower_bound=0, upper_bound=65535)
_BATCH = flags.DEFINE_integer('batch_size', 32, 'Questions answered together at most.',
                              lower_bound=1, upper_bound=4096)
_WEIGHTS = flags.DEFINE_enum(
  'weights', '', ['', 'int8', 'int4'], 'Store matrices in so many bits.')
_TOKENIZER = flags.DEFINE_string('tokenizer', '', 'Tokenizer file, where the model names none.')

_MOST = 1024  # tokens of an answer to a question that does not say
_BODY = 16 << 20  # bytes of a question at most
_GATHER = .02  # seconds to wait for more questions when one has come
_SILENCE = 60  # seconds that a client may keep its question to itself
# What is not done though it would make another answer, and the values that do not ask for it.
_NOT_DONE: dict[str, tuple] = {
  'stream': (False,), 'n': (1,), 'logprobs': (False,), 'tools': ([],), 'functions': ([],),
  'response_format': ({'type': 'text'},), 'logit_bias': ({},), 'frequency_penalty': (0,),
  'presence_penalty': (0,), 'top_k': (0, -1), 'min_p': (0,), 'repetition_penalty': (1,),
  'chat_template_kwargs': ({},)}


@dataclasses.dataclass(frozen=True)
class Question:
  """What a client asks, as tokens."""

  prompt: list[int]
  room: int  # tokens of the answer at most
  seed: int
  sampling: Sampling
  stops: tuple[str, ...]


class Server:
  """A model that answers questions put from many threads, those that wait together."""

  def __init__(self, loaded: load.Model, batch_size: int = 32):
    self._model, self._batch = loaded, batch_size
    self._writer = Writer(loaded, batch_size)
    try:
      self._template = load.chat_template_of(loaded)
    except ValueError:
      self._template = chat_template.find(loaded.tokenizer)  # none; raises where it is damaged
    end = loaded.tokenizer.control_id(chat.END)
    self._ends = (*loaded.eos_ids, *([end] if self._template and end is not None else []))
    self._waiting: queue.Queue[
      tuple[Question, Callable[[], bool], concurrent.futures.Future]] = queue.Queue()
    threading.Thread(target=self._work, daemon=True).start()

  def question(self, body: Mapping[str, Any]) -> Question:
    """What the body of a request asks. Raises ValueError for what cannot be, saying what."""
    messages = body.get('messages')
    if not isinstance(messages, list) or not messages or not all(
        isinstance(m, dict) and isinstance(m.get('content'), str) for m in messages):
      raise ValueError('messages: a list of {"role": …, "content": text} is wanted')
    for field, without in _NOT_DONE.items():
      if body.get(field) not in (None, *without):
        raise ValueError(f'{field}: this server does not do that; leave it out')
    text = self._model.tokenizer
    if self._template:
      prompt = chat_template.prompt_ids(self._template, messages, text)
    else:
      prompt = [text.bos_id] * self._model.bos + text.encode(messages[-1]['content'])
    context = self._model.config.max_seq_len
    if not 0 < len(prompt) < context:
      raise ValueError(f'{len(prompt)} tokens of messages; the model reads 1 to {context - 1}')
    most = _number(body, 'max_completion_tokens', _number(body, 'max_tokens', _MOST))
    if most < 1:
      raise ValueError(f'max_tokens={most}: 1 or more')
    sampling = Sampling(
      float(_number(body, 'temperature', 1)), top_p=float(_number(body, 'top_p', 1)))
    stops = body.get('stop') or []
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
      raise ValueError('stop: a text, or a list of them, none empty')
    return Question(
      prompt, int(min(most, context - len(prompt))), int(_number(body, 'seed', 0)) % 2**32,
      sampling, tuple(stops))

  def ask(self, question: Question, gone: Callable[[], bool] = lambda: False) -> Written:
    """The model's answer; from any thread.

    Raises ConnectionError where whoever asked has `gone` before the model came to it: many who
    lose their patience and ask again would else keep it busy for nobody.
    """
    answer: concurrent.futures.Future = concurrent.futures.Future()
    self._waiting.put((question, gone, answer))
    return answer.result()

  def text(
    self, body: Mapping[str, Any], name: str, gone: Callable[[], bool] = lambda: False
  ) -> dict[str, Any]:
    """The reply to a request's body, as the protocol has it. Raises as `question` and `ask`."""
    question = self.question(body)
    written = self.ask(question, gone)
    return {
      'id': f'chatcmpl-{uuid.uuid4().hex}', 'object': 'chat.completion',
      'created': int(time.time()), 'model': name,
      'choices': [{
        'index': 0, 'message': {'role': 'assistant', 'content': written.text},
        'finish_reason': 'stop' if written.ended else 'length'}],
      'usage': {'prompt_tokens': len(question.prompt), 'completion_tokens': len(written.ids),
                'total_tokens': len(question.prompt) + len(written.ids)}}

  def _work(self) -> None:
    while True:
      asked = [self._waiting.get()]
      until = time.monotonic() + _GATHER
      while len(asked) < self._batch and (left := until - time.monotonic()) > 0:
        try:
          asked.append(self._waiting.get(timeout=left))
        except queue.Empty:
          break
      alike: dict[Any, list] = {}
      for question, gone, answer in asked:
        if gone():
          answer.set_exception(ConnectionError('whoever asked has gone'))
          continue
        alike.setdefault((question.sampling, question.stops), []).append((question, answer))
      for (sampling, stops), some in alike.items():
        try:
          for i, written in self._writer.write(
              [q.prompt for q, _ in some], [q.room for q, _ in some],
              seeds=[q.seed for q, _ in some], eos_ids=self._ends, sampling=sampling, stops=stops):
            some[i][1].set_result(written)
        except Exception as e:  # whoever asked is told, the next are answered
          for _, answer in some:
            if not answer.done():
              answer.set_exception(e)


def _number(body, field, default):
  """A number of the body; null is as if it were not there."""
  value = default if body.get(field) is None else body[field]
  if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**64:
    raise ValueError(f'{field}: a number is wanted, not {json.dumps(value)[:80]}')
  return value


def _parsed(data: bytes) -> dict[str, Any]:
  """The object in a request's body. Raises ValueError."""
  try:
    body = json.loads(data)
  except (ValueError, RecursionError) as e:
    raise ValueError(f'the body is no JSON that can be read: {e}') from None
  if not isinstance(body, dict):
    raise ValueError('a JSON object is wanted')
  return body


class Listener(http.server.ThreadingHTTPServer):
  """Hears many at once, and says nothing of those who have gone."""

  request_queue_size = 1024  # of 5, the usual, every third of 50 who come together is turned off

  def handle_error(self, request: Any, client_address: Any) -> None:
    """A traceback, unless it is the client's doing."""
    if not isinstance(sys.exception(), ConnectionError | TimeoutError):
      super().handle_error(request, client_address)


def handler(server: Server, name: str) -> type[http.server.BaseHTTPRequestHandler]:
  """The handler of requests to a server whose model goes by this name."""

  class Handler(http.server.BaseHTTPRequestHandler):

    timeout = _SILENCE

    def log_message(self, format, *args):
      pass

    def _reply(self, status, body):
      data = json.dumps(body, ensure_ascii=False).encode('utf-8', 'replace')
      self.send_response(status)
      self.send_header('Content-Type', 'application/json')
      self.send_header('Content-Length', str(len(data)))
      self.end_headers()
      if self.command != 'HEAD':
        self.wfile.write(data)

    def send_error(self, code, message=None, explain=None):
      kind = 'invalid_request_error' if code < 500 else 'server_error'
      self._reply(code, {'error': {'message': message or self.responses[code][0], 'type': kind}})

    def _body(self):
      """All that the client sends, which it may do before it reads why it is refused."""
      length = self.headers.get('Content-Length') or ''
      size = left = int(length) if length.isdecimal() else 0
      while size > _BODY and left > 0 and (read := self.rfile.read(min(left, 1 << 20))):
        left -= len(read)
      return self.rfile.read(size) if size <= _BODY else b''

    def _gone(self):
      """Whether the client has closed the connection."""
      if not select.select([self.connection], [], [], 0)[0]:
        return False
      try:
        return not self.connection.recv(1, socket.MSG_PEEK)
      except OSError:
        return True

    def do_GET(self):
      if self.path != '/v1/models':
        return self.send_error(404, 'there is /v1/models to get')
      self._reply(200, {'object': 'list', 'data': [
        {'id': name, 'object': 'model', 'created': 0, 'owned_by': 'smoljax'}]})

    def do_POST(self):
      data = self._body()
      if self.path != '/v1/chat/completions':
        return self.send_error(404, 'there is /v1/chat/completions to post to')
      try:
        if not data:
          raise ValueError(f'a body of 1 to {_BODY} bytes is wanted, and its Content-Length')
        answer = server.text(_parsed(data), name, self._gone)
      except ConnectionError:  # whoever asked has gone
        self.close_connection = True
      except ValueError as e:
        self.send_error(400, str(e))
      except Exception as e:  # the client is told, the server goes on
        self.send_error(500, f'{type(e).__name__}: {e}')
      else:
        self._reply(200, answer)

  return Handler


def main(argv: list[str]) -> None:
  """The command line; bad input is one line and exit code 2."""
  try:
    if not _CHECKPOINT.value:
      raise ValueError('which model? Give --checkpoint=DIR')
    loaded = load.load_for_generation(_CHECKPOINT.value, _TOKENIZER.value, _WEIGHTS.value)
    handle = handler(Server(loaded, _BATCH.value), _CHECKPOINT.value)
    try:
      listening = Listener((_HOST.value, _PORT.value), handle)
    except OSError as e:
      raise ValueError(f'--host={_HOST.value} --port={_PORT.value}: {e}') from None
    with listening:
      print(f'http://{_HOST.value}:{listening.server_address[1]}', flush=True)
      try:
        listening.serve_forever()
      except KeyboardInterrupt:
        pass
  except (OSError, ValueError) as e:
    sys.exit(cli.complain(e))


if __name__ == '__main__':
  cli.start(main)

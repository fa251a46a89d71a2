"""Serves a trained model by the protocol of OpenAI's chat completions.

  python -m experiments.serve --checkpoint=runs/quickstart --port=8000

For data_beam.rephrase, and whatever speaks that protocol: POST /v1/chat/completions with messages,
max_tokens, temperature, top_p, seed and stop; one choice, whole, no stream of parts. Questions that
wait are answered together, in float32 each as if it were alone. A chat model is asked by its
template; another writes on after the last message. It listens to this machine alone unless --host
says otherwise, asks nobody for a key, and answers until it is stopped.
"""

import concurrent.futures
import dataclasses
import http.server
import json
import queue
import sys
import threading
import time
from collections.abc import Mapping
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
      self._template = None
    end = loaded.tokenizer.control_id(chat.END)
    self._ends = (*loaded.eos_ids, *([end] if self._template and end is not None else []))
    self._waiting: queue.Queue[tuple[Question, concurrent.futures.Future]] = queue.Queue()
    threading.Thread(target=self._work, daemon=True).start()

  def question(self, body: Mapping[str, Any]) -> Question:
    """What the body of a request asks. Raises ValueError for what cannot be, saying what."""
    messages = body.get('messages')
    if not isinstance(messages, list) or not messages or not all(
        isinstance(m, dict) and isinstance(m.get('content'), str) for m in messages):
      raise ValueError('messages: a list of {"role": …, "content": text} is wanted')
    if body.get('stream') or body.get('n', 1) != 1:
      raise ValueError('stream and n: one whole answer at a time is all that there is')
    text = self._model.tokenizer
    if self._template:
      prompt = chat_template.prompt_ids(self._template, messages, text)
    else:
      prompt = [text.bos_id] * self._model.bos + text.encode(messages[-1]['content'])
    context = self._model.config.max_seq_len
    if not 0 < len(prompt) < context:
      raise ValueError(f'{len(prompt)} tokens of messages; the model reads 1 to {context - 1}')
    try:
      most = int(body.get('max_completion_tokens') or body.get('max_tokens') or _MOST)
      seed = int(body.get('seed') or 0) % 2**32
      sampling = Sampling(float(body.get('temperature', 1.0)), top_p=float(body.get('top_p', 1.0)))
    except TypeError as e:
      raise ValueError(f'a number is wanted: {e}') from None
    if most < 1:
      raise ValueError(f'max_tokens={most}: 1 or more')
    stops = body.get('stop') or []
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
      raise ValueError('stop: a text, or a list of them, none empty')
    return Question(prompt, min(most, context - len(prompt)), seed, sampling, tuple(stops))

  def ask(self, question: Question) -> Written:
    """The model's answer; from any thread."""
    answer: concurrent.futures.Future = concurrent.futures.Future()
    self._waiting.put((question, answer))
    return answer.result()

  def text(self, body: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The reply to a request's body, as the protocol has it. Raises as `question`."""
    question = self.question(body)
    written = self.ask(question)
    return {
      'object': 'chat.completion', 'created': int(time.time()), 'model': name,
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
      for question, answer in asked:
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


def handler(server: Server, name: str) -> type[http.server.BaseHTTPRequestHandler]:
  """The handler of requests to a server whose model goes by this name."""

  class Handler(http.server.BaseHTTPRequestHandler):

    def log_message(self, format, *args):
      pass

    def _reply(self, status, body):
      data = json.dumps(body, ensure_ascii=False).encode('utf-8', 'replace')
      self.send_response(status)
      self.send_header('Content-Type', 'application/json')
      self.send_header('Content-Length', str(len(data)))
      self.end_headers()
      self.wfile.write(data)

    def do_GET(self):
      if self.path != '/v1/models':
        return self._reply(404, {'error': {'message': 'there is /v1/models to get'}})
      self._reply(200, {'object': 'list', 'data': [{'id': name, 'object': 'model'}]})

    def do_POST(self):
      if self.path != '/v1/chat/completions':
        return self._reply(404, {'error': {'message': 'there is /v1/chat/completions to post to'}})
      try:
        size = int(self.headers.get('Content-Length') or 0)
        if not 0 < size <= _BODY:
          raise ValueError(f'a body of 1 to {_BODY} bytes is wanted')
        body = json.loads(self.rfile.read(size))
        if not isinstance(body, dict):
          raise ValueError('a JSON object is wanted')
        self._reply(200, server.text(body, name))
      except ConnectionError:  # whoever asked has gone
        self.close_connection = True
      except ValueError as e:
        self._reply(400, {'error': {'message': str(e)}})
      except Exception as e:  # the client is told, the server goes on
        self._reply(500, {'error': {'message': f'{type(e).__name__}: {e}'}})

  return Handler


def main(argv: list[str]) -> None:
  """The command line; bad input is one line and exit code 2."""
  try:
    if not _CHECKPOINT.value:
      raise ValueError('which model? Give --checkpoint=DIR')
    loaded = load.load_for_generation(_CHECKPOINT.value, _TOKENIZER.value, _WEIGHTS.value)
    handle = handler(Server(loaded, _BATCH.value), _CHECKPOINT.value)
    try:
      listening = http.server.ThreadingHTTPServer((_HOST.value, _PORT.value), handle)
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

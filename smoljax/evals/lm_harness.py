"""Our models for lm-evaluation-harness: pass an `LM` to `lm_eval.simple_evaluate(model=…)`.

  import lm_eval
  from smoljax import evals
  results = lm_eval.simple_evaluate(evals.LM('runs/quickstart'), tasks=['arc_easy'])
  chat = evals.LM('HF_DIR', enable_thinking=False)
  results = lm_eval.simple_evaluate(chat, tasks=['gsm8k'], apply_chat_template=True)

Needs `pip install lm-eval` (nothing else here does; best in an environment of its own, as it may
bring another pyarrow than Beam wants). What becomes of texts is the harness's own rule for causal
models, so that scores equal those of the exported model in transformers (its model `hf`), but for
two: a prompt is not cut to make room for more than half of the context, but the answer (down to an
eighth of it); and a thought that is not closed is no answer.
"""

import functools
import hashlib
import json
import warnings
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from smoljax.checkpoints import load
from smoljax.data import chat_template
from smoljax.evals import likelihood, writing
from smoljax.inference.sampling import Sampling

_LENGTHS = ('max_gen_toks', 'max_new_tokens', 'max_tokens', 'max_completion_tokens')
_SAMPLED = ('top_k', 'top_p', 'min_p', 'repetition_penalty', 'min_new_tokens')


class LM(TemplateLM):
  """A model and its tokenizer.

  Args:
    model: what `load.load_model` reads, or an `load.Model`.
    batch_size: sequences at once; changes no score.
    max_length: context in tokens; 0 = what the model was trained for.
    enable_thinking: which of its modes a chat template is rendered in; None: the template's choice.
      If True, what counts is the answer after `think_end`, which stop strings leave alone.
    chat_template_args: what else the template reads.
    think_end: ends a thought.
    seed: of sampled answers; each repeat of a request is another draw.
  Raises as `load.load_model`.
  """

  def __init__(
    self,
    model: str | load.Model,
    batch_size: int = 16,
    max_length: int = 0,
    *,
    enable_thinking: bool | None = None,
    chat_template_args: dict[str, Any] | None = None,
    think_end: str = '</think>',
    seed: int = 0,
  ):
    super().__init__()
    self.model = load.load_model(model) if isinstance(model, str) else model
    self.batch_size = batch_size
    self.max_length = min(max_length or self.model.config.max_seq_len,
                          self.model.config.max_seq_len)
    self._thinks, self._think_end, self._seed = bool(enable_thinking), think_end, seed
    self._variables = dict(chat_template_args or {})
    if enable_thinking is not None:
      self._variables['enable_thinking'] = enable_thinking

  @property
  def eot_token_id(self) -> int | None:
    """Ends a text, as the harness calls EOS."""
    return self.model.tokenizer.eos_id

  @property
  def prefix_token_id(self) -> int | None:
    """What a text without context is conditioned on: BOS, or EOS where there is none."""
    bos = self.model.tokenizer.bos_id
    return self.eot_token_id if bos is None else bos

  @property
  def tokenizer_name(self) -> str:
    """Names the cache that the harness keeps of tokenised requests."""
    return self.model.tokenizer.path.replace('/', '__')

  @functools.cached_property
  def _template(self) -> chat_template.ChatTemplate:
    return load.chat_template_of(self.model)

  @functools.cached_property
  def _reads_controls(self) -> bool:
    return chat_template.reads_controls(self.model.tokenizer)

  @functools.cached_property
  def _writer(self) -> writing.Writer:
    return writing.Writer(self.model, self.batch_size)

  def chat_template(self, chat_template: bool | str = False) -> str | None:
    """The Jinja text, for the harness's records; None where no template is applied."""
    return self._template.source if chat_template else None

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> str:
    """A conversation as the model expects it; without a prompt for an answer, its last message is
    left open."""
    render = functools.partial(
      chat_template.render, self._template, generation_prompt=add_generation_prompt,
      open_end=not add_generation_prompt, **self._variables)
    try:
      return render(chat_history)
    except ValueError:  # some templates know no system turn
      turns = [message for message in chat_history if message['role'] != 'system']
      if len(turns) == len(chat_history):
        raise
      _warn('the chat template does not take a system turn: it is left out')
      return render(turns)

  def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
    """Token ids; BOS comes first if the model was trained with it, unless it is there already or
    not wanted. Control tokens are read where the tokenizer's own users do."""
    tokenizer = self.model.tokenizer
    ids = (chat_template.encode(string, tokenizer) if self._reads_controls
           else list(tokenizer.encode(string)))
    bos = self.model.bos if add_special_tokens is None else add_special_tokens and self.model.bos
    if not bos or tokenizer.bos_id is None or ids[:1] == [tokenizer.bos_id]:
      return ids
    return [tokenizer.bos_id, *ids]

  def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **_):
    """(log-probability, every token the likeliest) of each continuation; cut on the left."""
    if self._thinks:
      raise ValueError('enable_thinking=True goes with tasks that generate: a likelihood has no '
                       'room for a thought')
    found = [(0.0, True)] * len(requests)

    def stream():
      for i, (_, context, continuation) in enumerate(requests):
        tokens = np.asarray([*context, *continuation])[-(self.max_length + 1):]
        first = len(tokens) - len(continuation)
        if first < 1:
          raise ValueError(
            f'a continuation of {len(continuation)} tokens does not fit into max_length='
            f'{self.max_length}')
        yield likelihood.Window(i, tokens, first)

    for i, logprobs, best in self._run(stream()):
      found[i] = float(logprobs.sum(dtype=np.float64)), bool((logprobs >= best).all())
    return found

  def loglikelihood_rolling(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[float]:
    """Log-probability of whole texts after the prefix token; each window has one of context.

    A model with BOS predicts it too, from another one, as in the harness.
    """
    totals = [0.0] * len(requests)

    def stream():
      for i, request in enumerate(requests):
        ids = self.tok_encode(request.args[0])
        tokens, first = np.asarray([self.prefix_token_id, *ids]), 1
        while first < len(tokens):
          stop = min(first + self.max_length, len(tokens))
          start = max(0, stop - 1 - self.max_length)  # the last window is whole too
          yield likelihood.Window(i, tokens[start:stop], first - start)
          first = stop

    for i, logprobs, _ in self._run(stream()):
      totals[i] += float(logprobs.sum(dtype=np.float64))
    return totals

  def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
    """Greedy, or sampled, up to the first of `until` or `max_gen_toks`; many requests at once."""
    asked: dict[str, list[tuple[int, list[int], int]]] = {}  # by options: (place, prompt, seed)
    times: dict[str, int] = {}
    answers = [''] * len(requests)
    for i, request in enumerate(requests):
      context, options = request.args
      options = json.dumps(options, sort_keys=True)
      prompt = self.tok_encode(context) or [self.prefix_token_id]
      # Its draws depend on what is asked and how often it was, not on its place among others.
      name = f'{self._seed}/{options}/{context}'
      times[name] = times.get(name, 0) + 1
      digest = hashlib.sha256(f'{times[name]}/{name}'.encode()).digest()
      asked.setdefault(options, []).append((i, prompt, int.from_bytes(digest[:4])))
    for options, group in asked.items():
      for i, answer in self._generate(group, json.loads(options)):
        answers[i] = answer
        self.cache_hook.add_partial('generate_until', requests[i].args, answer)
    return answers

  def _generate(self, group, options):
    """Yields (place, answer) of requests that are (place, prompt, seed)."""
    until = options.get('until') or []
    until = [stop for stop in ([until] if isinstance(until, str) else until) if stop]
    wanted = int(next((options[k] for k in _LENGTHS if options.get(k) is not None), 256))
    prompts, rooms = zip(*(self._fit(prompt, wanted) for _, prompt, _ in group), strict=True)
    # A stop string inside a thought does not count, so texts with thoughts are cut when done.
    written = self._writer.write(
      prompts, rooms, seeds=[seed for *_, seed in group], eos_ids=self.model.eos_ids,
      sampling=_sampling(options), stops=() if self._thinks else until)
    for i, row in written:
      yield group[i][0], self._answer(self.model.tokenizer.decode(row.ids), until)

  def _fit(self, prompt, wanted):
    """The prompt, cut on the left, and how many tokens may follow it."""
    much = wanted > self.max_length // 2
    most = self.max_length - (max(1, self.max_length // 8) if much else wanted)
    room = min(wanted, self.max_length - min(len(prompt), most))
    if room < wanted:
      _warn(f'max_gen_toks={wanted} and prompts do not fit into a context of {self.max_length} '
            'tokens: answers are cut shorter')
    if len(prompt) > most:
      _warn(f'prompts are cut on the left to {most} tokens, to leave room for max_gen_toks='
            f'{wanted} in a context of {self.max_length}')
    return prompt[-most:], room

  def _answer(self, text, until):
    if self._thinks:
      _, found, text = text.rpartition(self._think_end)
      if not found:
        return ''
      text = text.lstrip()
    cuts = [text.index(stop) for stop in until if stop in text]
    return text[: min(cuts)] if cuts else text

  def _run(self, stream):
    return likelihood.run_windows(self.model.config, self.model.params, stream,
                                  batch_size=self.batch_size, seq_len=self.max_length)


def _sampling(options):
  """How a request wants its tokens drawn: greedy unless it says otherwise."""
  temperature = float(options.get('temperature') or 0.0)
  if not options.get('do_sample', temperature > 0):
    temperature = 0.0
  elif 'temperature' not in options:
    temperature = 1.0
  whole = {'top_k', 'min_new_tokens'}
  given = {k: (int if k in whole else float)(options[k]) for k in _SAMPLED
           if options.get(k) is not None}
  return Sampling(temperature=temperature, **given)


@functools.cache
def _warn(text):
  """Once for each text."""
  warnings.warn(text)

"""Our models for lm-evaluation-harness: pass an `LM` to `lm_eval.simple_evaluate(model=…)`.

  import lm_eval
  from smoljax import evals
  results = lm_eval.simple_evaluate(evals.LM('runs/quickstart'), tasks=['arc_easy'])

Needs `pip install lm-eval` (nothing else here does; best in an environment of its own, as it may
bring another pyarrow than Beam wants). How texts become tokens is the harness's own
rule for causal models, so that scores equal those of the exported model in transformers.
"""

from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from smoljax.checkpoints import load
from smoljax.evals import likelihood
from smoljax.inference import generate
from smoljax.inference.sampling import Sampling


class LM(TemplateLM):
  """A model and its tokenizer.

  Args:
    model: what `load.load_model` reads, or an `load.Model`.
    batch_size: sequences at once; changes no score.
    max_length: context in tokens; 0 = what the model was trained for.
  Raises as `load.load_model`.
  """

  def __init__(self, model: str | load.Model, batch_size: int = 16, max_length: int = 0):
    super().__init__()
    self.model = load.load_model(model) if isinstance(model, str) else model
    self.batch_size = batch_size
    self.max_length = min(max_length or self.model.config.max_seq_len,
                          self.model.config.max_seq_len)

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

  def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
    """Token ids; BOS comes first if the model was trained with it, unless it is not wanted."""
    ids = self.model.tokenizer.encode(string)
    bos = self.model.bos if add_special_tokens is None else add_special_tokens and self.model.bos
    bos_id = self.model.tokenizer.bos_id
    return [bos_id, *ids] if bos and bos_id is not None else list(ids)

  def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **_):
    """(log-probability, every token the likeliest) of each continuation; cut on the left."""
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
    """Log-probability of whole texts after the prefix token; each window has one of context."""
    totals = [0.0] * len(requests)

    def stream():
      for i, request in enumerate(requests):
        ids = self.tok_encode(request.args[0], add_special_tokens=False)
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
    """Greedy, or sampled at `temperature`, up to the first of `until` or `max_gen_toks`."""
    tokenizer, out = self.model.tokenizer, []
    for request in requests:
      context, options = request.args
      until = options.get('until') or []
      until = [until] if isinstance(until, str) else until
      room = min(int(options.get('max_gen_toks', 256)), self.max_length - 1)
      prompt = self.tok_encode(context)[-(self.max_length - room):] or [self.prefix_token_id]
      temperature = float(options.get('temperature', 0.0)) if options.get('do_sample') else 0.0
      ids: list[int] = []
      for (token,) in generate.stream(
          self.model.config, self.model.params, [prompt], max_new_tokens=room,
          sampling=Sampling(temperature=temperature), eos_id=self.eot_token_id):
        if token is None:
          break
        ids.append(token)
        text = tokenizer.decode(ids)
        if any(stop in text for stop in until):
          break
      text = tokenizer.decode(ids)
      cuts = [text.index(stop) for stop in until if stop in text]
      out.append(text[: min(cuts)] if cuts else text)
    return out

  def _run(self, stream):
    return likelihood.run_windows(self.model.config, self.model.params, stream,
                                  batch_size=self.batch_size, seq_len=self.max_length)

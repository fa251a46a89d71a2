"""Continues texts with a trained model.

  python -m experiments.generate --checkpoint=runs/quickstart --prompt='The list of'
  python -m experiments.generate --checkpoint=runs/quickstart/export --prompt='Return' --seed=1
  python -m experiments.generate --checkpoint=HF_DIR --prompt_file=book.txt --context=131072
  python -m experiments.generate --checkpoint=HF_DIR --prompt='Why is the sky blue?' --mode=think
  python -m experiments.generate --checkpoint=HF_DIR --prompt='2 + 2 =' --samples=4 --weights=int8
  python -m experiments.generate --checkpoint=HF_DIR --chat --mode=think --tools=tools.json

Prints the prompt and what the model writes after it, as it is written, until it ends the document,
writes a --stop string, or reaches --max_new_tokens. With --mode the prompt is a question to a chat
model, put as the chat template beside its tokenizer puts it, and the answer alone is printed.
Several --prompt, or --samples, are continued together and printed when all are done. With --chat
it is a conversation: each line is a message, /help lists the commands, and where the model calls
one of the --tools the call is shown and its result asked for.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence

from absl import flags

from experiments import chat as chat_lib
from experiments.engine import cli
from smoljax import model
from smoljax.checkpoints import load
from smoljax.data import chat, chat_template, tokenizer
from smoljax.inference import cache
from smoljax.inference.generate import stream
from smoljax.inference.sampling import Sampling
from smoljax.inference.speculative import Speculation
from smoljax.inference.text import Text, stream_text

_CHECKPOINT = flags.DEFINE_string(
  'checkpoint', None, 'A run (its workdir, checkpoints folder or one step), or a HF model folder.'
)
_PROMPT = flags.DEFINE_multi_string(
  'prompt', [], 'The text to continue; none = a new document; may be given several times.'
)
_PROMPT_FILE = flags.DEFINE_multi_string('prompt_file', [], 'UTF-8 file that holds a prompt.')
_MAX_NEW_TOKENS = flags.DEFINE_integer(
  'max_new_tokens', 128, 'Tokens to write at most.',
  lower_bound=1, upper_bound=2**31 - 1)
_TEMPERATURE = flags.DEFINE_float(
  'temperature', 0.7, 'Higher is more varied; 0 = no sampling.',
  lower_bound=0)
_TOP_K = flags.DEFINE_integer(
  'top_k', 0, 'Sample among the k likeliest tokens; 0 = among all.',
  lower_bound=0, upper_bound=2**31 - 1)
_TOP_P = flags.DEFINE_float(
  'top_p', 1.0, 'Sample among the likeliest tokens that together have this probability.'
)
_MIN_P = flags.DEFINE_float(
  'min_p', 0.0, "Sample among tokens with this share of the likeliest one's probability."
)
_REPETITION_PENALTY = flags.DEFINE_float(
  'repetition_penalty', 1.0, 'Above 1, tokens already in the text become less likely; 1 = off.'
)
_MIN_NEW_TOKENS = flags.DEFINE_integer(
  'min_new_tokens', 0, 'Tokens to write at least.',
  lower_bound=0, upper_bound=2**31 - 1)
_SAMPLES = flags.DEFINE_integer(
  'samples', 1, 'Continuations of each prompt.',
  lower_bound=1, upper_bound=2**31 - 1)
_LOGPROBS = flags.DEFINE_bool(
  'logprobs', False, 'Print the log-probability of each text, in nats, as the model has it.')
_WEIGHTS = flags.DEFINE_enum(
  'weights', '', ['', 'int8', 'int4'], 'Store matrices in so many bits: half or a quarter of the '
  'memory, faster on a GPU, a little less exact.')
_STOP = flags.DEFINE_multi_string(
  'stop', [], 'Text before which the model is cut off; may be given several times.'
)
_STOP_ID = flags.DEFINE_multi_integer(
  'stop_id', [], "Token id that ends the text, beside the model's own; may be given several times."
)
_MODE = flags.DEFINE_enum(
  'mode', None, [*chat.MODES, 'chat'], 'Ask a chat model: to answer after thinking or at once, or '
  'as its template has it.'
)
_SYSTEM = flags.DEFINE_string(
  'system', '', 'Instructions to the chat model, with --mode or --chat.')
_CHAT = flags.DEFINE_bool('chat', False, 'A conversation in the terminal, with a chat model.')
_TOOLS = flags.DEFINE_string(
  'tools', '', 'JSON file with a list of the tools that the model may call, with --chat.')
_CONTEXT = flags.DEFINE_integer(
  'context', 0, 'Tokens of prompt and continuation to allow beyond the trained context, by YaRN; '
  'used where they are needed. 0 = the trained context.',
  lower_bound=0, upper_bound=2**31 - 1)
_SPECULATIVE = flags.DEFINE_bool(
  'speculative', False, 'Draft with the modules of multi-token prediction: the same greedy text, '
  'or draws of the same distribution.'
)
_SEED = flags.DEFINE_integer(
  'seed', 0, 'The same seed writes the same text.',
  lower_bound=0, upper_bound=2**31 - 1)
_TOKENIZER = flags.DEFINE_string('tokenizer', '', 'Tokenizer file, where the model names none.')


def main(argv: list[str]) -> None:
  """The command line; bad input is one line and exit code 2."""
  try:
    if not _CHECKPOINT.value:
      raise ValueError('which model? Give --checkpoint=DIR')
    _generate()
  except (OSError, ValueError) as e:
    sys.exit(cli.complain(e))


def _generate() -> None:
  sampling = Sampling(
    _TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _MIN_P.value, _REPETITION_PENALTY.value,
    _MIN_NEW_TOKENS.value,
  )
  prompts = [*_PROMPT.value, *map(_read, _PROMPT_FILE.value)] or ['']
  if _SYSTEM.value and not (_MODE.value or _CHAT.value):
    raise ValueError('--system instructs a chat model: give --mode=think or --mode=no_think too')
  if _TOOLS.value and not _CHAT.value:
    raise ValueError('--tools are for a conversation: give --chat too')
  if _MIN_NEW_TOKENS.value > _MAX_NEW_TOKENS.value:
    raise ValueError(f'--min_new_tokens={_MIN_NEW_TOKENS.value} is more than '
                     f'--max_new_tokens={_MAX_NEW_TOKENS.value}')
  if _CHAT.value:
    _converse(sampling)
    return
  loaded = load.load_for_generation(_CHECKPOINT.value, _TOKENIZER.value, _WEIGHTS.value)
  config, params, text, bos = loaded[:4]
  for token in _STOP_ID.value:
    if not 0 <= token < config.vocab_size:
      raise ValueError(f'--stop_id={token}: the model has the ids 0 to {config.vocab_size - 1}')
  ends = [*loaded.eos_ids, *_STOP_ID.value]
  if _MODE.value:
    template = load.chat_template_of(loaded)
    tokens = [_question(prompt, template, text) for prompt in prompts]
    ends += [i for i in [text.control_id(chat.END)] if i is not None]
  else:
    tokens = [[text.bos_id] * bos + text.encode(prompt) for prompt in prompts]
  if not all(tokens):
    raise ValueError('this model has no token that begins a document: give it a --prompt')
  config = _with_context(config, max(map(len, tokens)) + _MAX_NEW_TOKENS.value)
  samples, scores = _SAMPLES.value, _Scores()
  rows = [Text(text.decode, _STOP.value, context) for context in tokens for _ in range(samples)]
  clock, seen = _Clock(), Speculation() if _SPECULATIVE.value else None
  steps = clock.watch(
    stream(
      config,
      params,
      tokens,
      max_new_tokens=_MAX_NEW_TOKENS.value,
      sampling=sampling,
      eos_id=ends,
      seed=_SEED.value,
      samples=samples,
      logprobs=_LOGPROBS.value,
      speculation=seen,
    )
  )
  if _LOGPROBS.value:
    steps = scores.watch(steps, rows)
  shown = ['' if _MODE.value else prompt for prompt in prompts for _ in range(samples)]
  if len(rows) == 1:
    print(shown[0], end='')
    for (new,) in stream_text(steps, rows):
      print(new, end='', flush=True)
    print()
  else:
    texts = [''.join(parts) for parts in zip(*stream_text(steps, rows), strict=True)]
    for i, (prompt, new) in enumerate(zip(shown, texts, strict=True), start=1):
      print(f'--- {i}\n{prompt}{new}')
  for i, (total, count) in enumerate(scores.rows, start=1):
    print(f'text {i}: log-probability {total:.4f} of {count} tokens', file=sys.stderr)
  print(clock.report(), file=sys.stderr)
  if seen:
    print(f'{seen.acceptance:.0%} of the drafts kept, {seen.tokens_per_round:.2f} tokens a round',
          file=sys.stderr)


def _converse(sampling: Sampling) -> None:
  """`--chat`."""
  given = {'prompt': _PROMPT.value or _PROMPT_FILE.value, 'samples': _SAMPLES.value > 1,
           'logprobs': _LOGPROBS.value, 'speculative': _SPECULATIVE.value, 'stop': _STOP.value}
  if wrong := [name for name, value in given.items() if value]:
    raise ValueError(f'--{wrong[0]} does not go with --chat: leave it out')
  tools = chat_lib.read_tools(_TOOLS.value) if _TOOLS.value else []
  loaded = load.load_for_generation(_CHECKPOINT.value, _TOKENIZER.value, _WEIGHTS.value)
  config = loaded.config
  if _CONTEXT.value > config.max_seq_len:
    config = config.extended(_CONTEXT.value)
  chat_lib.converse(chat_lib.Conversation(
    loaded, config, mode=_MODE.value or 'chat', system=_SYSTEM.value, tools=tools,
    sampling=sampling, max_new_tokens=_MAX_NEW_TOKENS.value, seed=_SEED.value,
    ends=_STOP_ID.value))


def _question(
  prompt: str, template: chat_template.ChatTemplate, text: tokenizer.Tokenizer
) -> list[int]:
  """Token ids of a conversation up to where the model answers."""
  if not prompt:
    raise ValueError('--mode asks a chat model: give it a question with --prompt')
  mode = {} if _MODE.value == 'chat' else {'enable_thinking': _MODE.value == 'think'}
  if mode and not chat_template.thinks(template):
    raise ValueError(f'--mode={_MODE.value}: the chat template of this model has no such modes: '
                     'use --mode=chat')
  messages = [{'role': 'system', 'content': _SYSTEM.value}] if _SYSTEM.value else []
  messages.append({'role': 'user', 'content': prompt})
  return chat_template.prompt_ids(template, messages, text, **mode)


class _Scores:
  """Sums log-probabilities up to where each text stops: `rows` has (sum, tokens) of each."""

  def __init__(self):
    self.rows: list[tuple[float, int]] = []

  def watch(
    self, steps: Iterable[list[tuple[int, float] | None]], texts: Sequence[Text]
  ) -> Iterator[list[int | None]]:
    self.rows = [(0.0, 0)] * len(texts)
    for step in steps:
      for i, (new, text) in enumerate(zip(step, texts, strict=True)):
        if new is not None and not text.stopped:
          total, count = self.rows[i]
          self.rows[i] = total + new[1], count + 1
      yield [new and new[0] for new in step]


def _with_context(config: model.ModelConfig, needed: int) -> model.ModelConfig:
  """The config for `needed` tokens: stretched to --context where the trained one is too short."""
  if needed <= config.max_seq_len:
    return config
  if needed > max(_CONTEXT.value, config.max_seq_len):
    raise ValueError(
      f'{needed} tokens of prompt and continuation, but the model was trained on '
      f'{config.max_seq_len}: give --context={needed} or more to stretch its positions by YaRN, '
      'or shorten --prompt or --max_new_tokens'
    )
  return config.extended(_CONTEXT.value)


class _Clock:
  """Counts tokens as they come."""

  def __init__(self):
    self._counts, self._times = [0], [time.perf_counter()]

  def watch(self, steps: Iterable[list[int | None]]) -> Iterator[list[int | None]]:
    for tokens in steps:
      self._counts.append(self._counts[-1] + sum(token is not None for token in tokens))
      self._times.append(time.perf_counter())
      yield tokens

  def report(self) -> str:
    """Tokens and seconds in all, and the rate once everything is compiled."""
    text = f'{self._counts[-1]} tokens in {self._times[-1] - self._times[0]:.1f} s'
    warm = min(2 * cache.BLOCK, len(self._counts) - 1)  # the second block is under way by then
    if self._counts[-1] > self._counts[warm]:
      rate = (self._counts[-1] - self._counts[warm]) / (self._times[-1] - self._times[warm])
      text += f', {rate:.1f} tokens/s after compilation'
    return text


def _read(path: str) -> str:
  with open(path, encoding='utf-8') as f:
    try:
      return f.read()
    except UnicodeDecodeError as e:
      raise ValueError(f'{path} is not UTF-8 text: {e}') from None


if __name__ == '__main__':
  cli.start(main)

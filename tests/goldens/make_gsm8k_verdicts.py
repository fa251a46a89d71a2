"""What lm-evaluation-harness says of 200 answers to GSM8K → gsm8k_verdicts.json.

`python tests/goldens/make_gsm8k_verdicts.py`, with lm-eval 0.4.13 installed. Its own filters and
metric, by its own YAML; the answers are made of numbers in every dress.
"""

import json
import pathlib
import random

FILE = pathlib.Path(__file__).with_name('gsm8k_verdicts.json')
NUM = 200


def answers() -> list[tuple[str, str]]:
  """(answer, reference) pairs: right and wrong numbers, alone or in text, marked or not."""
  rng = random.Random(4)
  dress = ('{n}', '{n}.', '${n}', '{n}.00', '{n} ...', 'x = {n} ...', '-{n}', '{a}-{n}', '{n}%',
           '**{n}**', '{n:,}', '${n:,}.50', '#### {n}', '#### {n:,}', '#### ${n}', '#### {n}.',
           '#### -{n}', '#### {n}\n#### {a}', '####{n}', '{n} #### {a}', '\\boxed{{{n}}}', '')
  words = ('', 'So ', 'The answer is ', 'She pays 3 times, ', 'That makes {a} and then ',
           'First {a} * 2 = {b}.\nThen ', '<think>{a}</think>\n')
  after = ('', '.', ' dollars', ' in all.', '\n', ' (not {a})', ' \n\nQuestion: 7')
  pairs = []
  for _ in range(NUM):
    n, a, b = (rng.choice((rng.randint(0, 99), rng.randint(1000, 2_000_000))) for _ in range(3))
    text = ''.join(rng.choice(part) for part in (words, dress, after)).format(n=n, a=a, b=b)
    right = rng.choice((n, n, n, a, -n))
    pairs.append((text, f'She has {a} of {b}.\n#### {right:,}'))
  return pairs


def reference() -> dict[str, str]:
  """The harness's verdicts, 0 or 1 of each answer, by the name of its filter."""
  import importlib.util

  import yaml
  from lm_eval.api import metrics
  from lm_eval.filters import extraction

  place = pathlib.Path(importlib.util.find_spec('lm_eval').origin).parent / 'tasks/gsm8k/gsm8k.yaml'
  task = yaml.safe_load(place.read_text())
  how = {k: v for k, v in task['metric_list'][0].items()
         if k in ('ignore_case', 'ignore_punctuation', 'regexes_to_ignore')}
  pairs, found = answers(), {}
  for filters in task['filter_list']:
    options = {k: v for k, v in filters['filter'][0].items() if k != 'function'}
    taken = extraction.RegexFilter(**options).apply([[text] for text, _ in pairs], [{}] * NUM)
    found[filters['name']] = ''.join(
      str(int(metrics.exact_match_hf_evaluate([got[0]], [reference], **how)['exact_match']))
      for got, (_, reference) in zip(taken, pairs, strict=True))
  return found


if __name__ == '__main__':
  FILE.write_text(json.dumps(reference(), indent=0) + '\n')

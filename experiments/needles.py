"""Questions in the manner of RULER with their answers, as texts to learn from (evals/ruler.py).

  python -m experiments.needles --output=needles.jsonl --tasks=niah_single_1,vt \\
    --lengths=512,1000 --number=12000 [--tokenizer=tokenizer.model] [--documents=texts.jsonl]

A model so small that it finds no needle by itself learns from these what is asked, at lengths that
it is trained on, so that its score at others says how far it reads. Each line is {"id", "text",
"language"}, as `data_beam.tables import` reads it. What ruler.make asks is never among them.
"""

import argparse
import json
import os
import sys

from data_beam.command_line import Parser, complain
from experiments import chains
from smoljax.data import tokenizer
from smoljax.evals import ruler


def main() -> None:
  """The command line; bad input is one line and exit code 2."""
  parser = Parser(
    prog='python -m experiments.needles', description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--output', required=True, help='the JSONL file')
  parser.add_argument('--tokenizer', help='that of the model, which counts lengths')
  parser.add_argument('--tasks', default='niah_single_1,niah_single_2,niah_multikey_1,vt',
                      help=f'of {", ".join(ruler.TASKS)}, with commas between')
  parser.add_argument('--lengths', default='512,768,1000', help='tokens, with commas between')
  parser.add_argument('--documents', help='JSONL whose "text" is what needles lie in, where not '
                                          'a few sentences again and again')
  parser.add_argument('--language', default='en',
                      help='of the questions, and of the documents if they have a "language"')
  parser.add_argument('--number', type=int, default=12_000, help='of texts')
  parser.add_argument('--seed', type=int, default=0)
  a = parser.parse_args()
  try:
    if a.number < 1:
      raise ValueError(f'--number={a.number}: give at least 1')
    if os.path.isdir(a.output):
      raise IsADirectoryError(f'--output={a.output} is a folder: give FILE.jsonl')
    texts = ruler.texts(
      _tasks(a.tasks), tokenizer.load(a.tokenizer) if a.tokenizer else _Threes(),
      _lengths(a.lengths), language=a.language, num=a.number, seed=a.seed,
      documents=_documents(a.documents, a.language) if a.documents else ())
    rows = ({'id': f'needle-{a.seed}-{i}', 'text': text, 'language': a.language}
            for i, text in enumerate(texts))
    chains.write(a.output, rows)
  except (ValueError, OSError) as e:
    sys.exit(complain('experiments.needles', e))


def _tasks(given: str) -> list[str]:
  names = given.split(',')
  if wrong := [name for name in names if name not in ruler.TASKS]:
    raise ValueError(f'--tasks={given}: {wrong[0]!r} is none of {", ".join(ruler.TASKS)}')
  return names


def _lengths(given: str) -> list[int]:
  try:
    return [int(x) for x in given.split(',')]
  except ValueError:
    raise ValueError(f'--lengths={given}: give numbers of tokens, such as 512,1000') from None


def _documents(path: str, language: str) -> list[str]:
  texts = []
  with open(path, 'rb') as lines:
    for number, line in enumerate(lines, 1):
      try:
        row = json.loads(line)
        if row.get('language', language) == language:
          texts.append(row['text'])
      except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f'--documents={path}: line {number} is no JSON with a "text"') from None
  if not texts:
    raise ValueError(f'--documents={path} has no text in {language}')
  return texts


class _Threes:
  """Counts three characters as a token."""

  def encode(self, text: str) -> str:
    return text[::3]


if __name__ == '__main__':
  main()

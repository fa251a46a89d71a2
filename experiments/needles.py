"""Questions in the manner of RULER with their answers, as texts to learn from (evals/ruler.py).

  python -m experiments.needles --output=needles.jsonl --tokenizer=tokenizer.model \\
    --tasks=niah_single_1,vt --lengths=512,1000 --number=12000 [--documents=texts.jsonl]

A model so small that it finds no needle by itself learns from these what is asked, at lengths that
it is trained on, so that its score at others says how far it reads. Each line is {"id", "text",
"language"}, as `data_beam.tables import` reads it. What ruler.make asks is never among them.
"""

import argparse
import json
import os
import sys

from data_beam.command_line import Parser, complain
from smoljax import files
from smoljax.data import tokenizer
from smoljax.evals import ruler


def main() -> None:
  """The command line; bad input is one line and exit code 2."""
  parser = Parser(
    prog='python -m experiments.needles', description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--output', required=True, help='the JSONL file')
  parser.add_argument('--tokenizer', required=True, help='that of the model, which counts lengths')
  parser.add_argument('--tasks', default='niah_single_1,niah_single_2,niah_multikey_1,vt',
                      help=f'of {", ".join(ruler.TASKS)}, with commas between')
  parser.add_argument('--lengths', default='512,768,1000', help='tokens, with commas between')
  parser.add_argument('--documents', help='JSONL whose "text" is what needles lie in, where not '
                                          'a few sentences again and again')
  parser.add_argument('--language', default='en', help='of the questions')
  parser.add_argument('--number', type=int, default=12_000, help='of texts')
  parser.add_argument('--seed', type=int, default=0)
  a = parser.parse_args()
  try:
    if a.number < 1:
      raise ValueError(f'--number={a.number}: give at least 1')
    if os.path.isdir(a.output):
      raise IsADirectoryError(f'--output={a.output} is a folder: give FILE.jsonl')
    texts = ruler.texts(
      a.tasks.split(','), tokenizer.load(a.tokenizer), _lengths(a.lengths), language=a.language,
      documents=_documents(a.documents) if a.documents else (), num=a.number, seed=a.seed)
    rows = ({'id': f'needle-{a.seed}-{i}', 'text': text, 'language': a.language}
            for i, text in enumerate(texts))
    lines = (json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
    files.write(a.output, ''.join(lines).encode())
  except (ValueError, OSError) as e:
    sys.exit(complain('experiments.needles', e))


def _lengths(given: str) -> list[int]:
  try:
    return [int(x) for x in given.split(',')]
  except ValueError:
    raise ValueError(f'--lengths={given}: give numbers of tokens, such as 512,1000') from None


def _documents(path: str) -> list[str]:
  texts = []
  with open(path, 'rb') as lines:
    for number, line in enumerate(lines, 1):
      try:
        texts.append(json.loads(line)['text'])
      except (ValueError, KeyError, TypeError):
        raise ValueError(f'--documents={path}: line {number} is no JSON with a "text"') from None
  if not texts:
    raise ValueError(f'--documents={path} is empty')
  return texts


if __name__ == '__main__':
  main()

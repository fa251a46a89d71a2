"""Writes down what a teacher says of every token of a tokenised corpus, for distillation.

  python -m experiments.teacher_cache --teacher=runs/large --corpus=runs/small/tokens/web/1.0.0 \
      --output=caches --kind=sampled --seq_len=1024

The cache lies at OUTPUT/NAME/1.0.0, record for record beside the corpus's training split
(smoljax.data.teacher_cache.Cache says what is in it). Each piece of a document is read as training
packs it: with `--seq_len` that of the student's rows, the teacher's context is the student's.

A command that was stopped goes on where it was. All GPUs of the machine share the corpus's shards,
as do several machines on one file system that are given the same command.
"""

import os
import sys

from data_beam import records
from data_beam.command_line import Parser, complain
from experiments.engine import teacher_cache
from smoljax.train import distill


def main() -> None:
  """The command line; bad input is one line and exit code 2."""
  # No absl flags: experiments.run imports this beside other commands, with flags of the same names.
  parser = Parser(
    prog='python -m experiments.teacher_cache', description=__doc__.split('\n')[0])
  add = parser.add_argument
  add('--teacher', required=True, help='a run (its workdir, checkpoints folder or one step), or a '
      'HF model folder')
  add('--corpus', required=True, help='directory of a tokenised corpus')
  add('--output', required=True, help='directory for the cache: OUTPUT/NAME/1.0.0')
  add('--name', default='', help="the cache's name (default: the corpus's)")
  add('--kind', default='sampled', choices=distill.CACHES, help='what is stored: draws from the '
      'distribution, the likeliest ids, or the last hidden state')
  add('--draws', type=int, default=50, help='of each place: draws (sampled) or ids (topk)')
  add('--temperature', type=float, default=1.0, help='of the distribution (sampled, topk)')
  add('--seq_len', type=int, default=1024, help='tokens a row of the student')
  add('--batch_size', type=int, default=16, help='pieces at once; changes no draw')
  add('--seed', type=int, default=0, help='of the draws')
  add('--tokenizer', default='', dest='corpus_tokenizer', help="the corpus's tokenizer file, where "
      'it is not the very file of the teacher')
  try:
    path = teacher_cache.write(**vars(parser.parse_args()))
  except (OSError, ValueError) as e:
    sys.exit(complain('error', e))
  if os.path.exists(os.path.join(path, '_SUCCESS')):
    per_token = records.read_manifest(path)['bytes_per_token']
    print(f'teacher cache, {per_token} bytes a token: {path}')


if __name__ == '__main__':
  main()

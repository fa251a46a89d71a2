"""Writes the report of a run again, from the files in its workdir.

  python -m experiments.report --workdir=runs/quickstart
  python -m experiments.report --workdir=corpora     # curated corpora alone: what data_beam wrote

`experiments.run` writes the same page as its last step; this is for runs that were stopped before,
or moved, or evaluated again since. Nothing is trained or computed: open the page it names in any
browser, with or without a network.
"""

import sys

from absl import app, flags, logging

from data_beam import spans
from smoljax import report

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of a run (experiments.run --workdir), or of corpora.')
_OUTPUT = flags.DEFINE_string(
  'output', None, 'Where index.html and the CSV files go; WORKDIR/report if not given.')


def main(argv: list[str]) -> None:
  logging.set_verbosity(logging.WARNING)  # TFDS tells of every corpus it opens
  try:
    if len(argv) > 1:
      raise ValueError(f'unknown argument {argv[1]!r}: flags look like --workdir=DIR')
    if not _WORKDIR.value:
      raise ValueError('which run? Give --workdir=DIR')
    page = report.write(_WORKDIR.value, _OUTPUT.value, spans.find)
  except (OSError, ValueError) as e:
    print(f'error: {e}', file=sys.stderr)
    sys.exit(2)
  print(f'report: {page}')


if __name__ == '__main__':
  app.run(main)

"""The command `python -m data_beam.refetch`, which data_beam.sources.refetch is."""

import sys

from data_beam.sources.refetch import main

if __name__ == '__main__':
  sys.exit(main())

"""The command `python -m data_beam.quality`, which data_beam.filters.quality is."""

import sys

from data_beam.filters.quality import main

if __name__ == '__main__':
  sys.exit(main())

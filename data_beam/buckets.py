"""The command `python -m data_beam.buckets`, which data_beam.filters.buckets is."""

import sys

from data_beam.filters.buckets import main

if __name__ == '__main__':
  sys.exit(main())

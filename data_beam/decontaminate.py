"""The command `python -m data_beam.decontaminate`, which data_beam.dedup.decontaminate is."""

import sys

from data_beam.dedup.decontaminate import main

if __name__ == '__main__':
  sys.exit(main())

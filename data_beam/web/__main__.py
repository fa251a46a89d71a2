"""The command: see pipeline."""

import sys

from data_beam.web.pipeline import main

if __name__ == '__main__':
  sys.exit(main())

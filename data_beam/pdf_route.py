"""The command `python -m data_beam.pdf_route`, which data_beam.pdf.train_router is."""

import sys

from data_beam.pdf.train_router import main

if __name__ == '__main__':
  sys.exit(main())

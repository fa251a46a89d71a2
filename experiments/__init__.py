"""Entry points: what a user runs from the command line. The libraries are smoljax and data_beam."""

from absl import logging

# Of the libraries only errors: that no TPU was found, or which file Orbax did without, is no news.
logging.set_verbosity(logging.ERROR)

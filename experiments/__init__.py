"""Entry points: what a user runs from the command line. The libraries are smoljax and data_beam."""

from absl import logging

# Which version of Orbax reads a checkpoint, or that no TPU was found, is no news to a user.
logging.set_verbosity(logging.WARNING)

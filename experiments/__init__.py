"""Entry points: what a user runs from the command line. The libraries are smoljax and data_beam."""

import logging

# Where jax looks for a TPU and finds none is no news for whoever asked for text or a table.
logging.getLogger('jax._src.xla_bridge').setLevel(logging.WARNING)

"""smoljax: pretraining small language models in JAX, end to end and readable.

The library half of the repository: model, data loading, training, evaluation, export. It reads no
flags and no configuration files; `experiments/` does, and `data_beam/` prepares the corpora.
"""

__version__ = '0.1.0'

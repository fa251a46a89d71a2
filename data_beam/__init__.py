"""Curation by Apache Beam: WARC and PDF bytes to curated and tokenised corpora on disk.

Never imports jax or smoljax; what lies between the two is the directory of records.py.
"""

import logging

# Beam says at import, through the root logger, that it cannot reach Google Cloud: not news here.
logging.getLogger().addFilter(lambda record: 'apitools not found' not in record.getMessage())

__version__ = '0.1.0'

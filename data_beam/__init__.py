"""Curation by Apache Beam: WARC and PDF bytes to curated and tokenised corpora on disk.

Never imports jax or smoljax; what lies between the two is the directory of records.py.
"""

__version__ = '0.1.0'

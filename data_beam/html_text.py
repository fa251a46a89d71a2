"""The name by which others import the extractor of web.extract."""

from data_beam.web.extract import extract

__all__ = ['extract']

"""The name by which others import the extractor of pdf.text."""

from data_beam.pdf.errors import PdfError
from data_beam.pdf.text import PdfText, extract

__all__ = ['PdfError', 'PdfText', 'extract']

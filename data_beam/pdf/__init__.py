"""PDF files → a curated corpus; `python -m data_beam.pdf`. The list of stages is in pipeline."""

"""Web archives → a curated web corpus; `python -m data_beam.web`. The stages are in pipeline."""

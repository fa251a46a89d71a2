"""Tokenised corpora in, batches out; tokenizers and chat templates."""

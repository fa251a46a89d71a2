"""Duplicates: exact ones, near ones, and quotes of evaluation sets."""

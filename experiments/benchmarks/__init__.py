"""Benchmarks of hot paths; each prints one JSON line."""

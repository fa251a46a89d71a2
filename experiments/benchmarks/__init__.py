"""Benchmarks of hot paths; each prints one JSON line."""

from smoljax import gpu

gpu.take()  # as a run does

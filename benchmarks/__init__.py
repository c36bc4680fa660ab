"""Kernels against their peers: `python -m benchmarks --help`."""

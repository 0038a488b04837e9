"""Measures what the loaders supply. `python -m benchmarks --help` tells how."""

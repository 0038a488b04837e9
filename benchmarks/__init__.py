"""Measures what the loaders supply. `python -m benchmarks --help` lists its commands."""

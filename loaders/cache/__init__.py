"""The pixel cache: images decoded once and stored, resized, in memory-mapped NumPy files."""

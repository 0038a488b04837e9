"""`python -m benchmarks gpu-check`: everything that is measured on a GPU node, in one table and one archive."""

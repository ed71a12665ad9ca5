"""Benchmarks measure ratios between candidates that take turns in the same run."""

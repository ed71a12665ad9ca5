"""Benchmarks: ratios against references that take turns in the same run."""

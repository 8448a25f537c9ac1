"""Benchmarks against other programs."""

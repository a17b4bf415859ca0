"""Benchmarks against peers: see README.md."""

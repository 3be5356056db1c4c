"""Benchmarks: what Bursar does, side by side with what it is measured against."""

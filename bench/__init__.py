"""Reproducible measurements; each says what it measures and writes to bench/results."""

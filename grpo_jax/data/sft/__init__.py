"""Supervised rows: examples, packing, mixtures, rejection."""

"""Merging targets in parameter space."""

"""Recipes of large fusions that are there to be planned, and the tables that docs/scaling.md shows of them."""

"""The numerics and formats of Fuseline: extraction, alignment, fusion, training, merging and evaluation of chat LLMs."""

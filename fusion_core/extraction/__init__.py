"""Extraction: a model's next-token distributions at the response positions, to shards.

`extract.py` reads dialogues with a loaded model, `shards.py` goes from file to file, `processes.py` shares that out.
"""

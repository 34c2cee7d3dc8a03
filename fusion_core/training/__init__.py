"""Training a target: the loop, its checkpoints, its processes.

`target.py` is where it begins, `loop.py` is the loop as one process runs it, `model.py` goes from tokens to loss.
"""

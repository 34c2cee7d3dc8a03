"""Merging targets in parameter space: one file a method, one streaming engine.

Where to begin: `linear.py` and `varm.py` are methods, `method.py` says what a method is. `engine.py` merges folders;
`streaming.py` takes every tensor through its steps, and `work.py` keeps threads busy with them. `values.py` is one
tensor of all models and the arithmetic on it, its loops in `kernels.py`. `checkpoint.py` reads, `writer.py` writes.
"""

from fusion_core.merge_spec import MergeSpec
from fusion_core.merging.engine import merge_checkpoints
from fusion_core.merging.mergekit import read_mergekit_config
from fusion_core.merging.report import MergeReport

__all__ = ["MergeReport", "MergeSpec", "merge_checkpoints", "read_mergekit_config"]

"""Merging targets in parameter space: one file a method, one streaming engine."""

from fusion_core.merge_spec import MergeSpec
from fusion_core.merging.engine import merge_checkpoints
from fusion_core.merging.mergekit import read_mergekit_config
from fusion_core.merging.report import MergeReport

__all__ = ["MergeReport", "MergeSpec", "merge_checkpoints", "read_mergekit_config"]

"""What a recipe will cost before anything runs: tokens, FLOPs, bytes, memory and hours, and what cannot be known."""

from fusion_core.planning.costs import plan_costs
from fusion_core.planning.counts import EncodedCounts, count_encoded
from fusion_core.planning.plan import Plan, PlanRow
from fusion_core.planning.sizes import ModelSize, read_model_size, size_from_config
from fusion_core.planning.table import plan_table
from fusion_core.planning.throughput import DeviceThroughput, measure_throughput

__all__ = [
    "DeviceThroughput",
    "EncodedCounts",
    "ModelSize",
    "Plan",
    "PlanRow",
    "count_encoded",
    "measure_throughput",
    "plan_costs",
    "plan_table",
    "read_model_size",
    "size_from_config",
]

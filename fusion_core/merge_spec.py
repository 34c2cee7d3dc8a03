"""What a merge is asked to do; importable where neither torch nor numba is."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, field_validator, model_validator

from fusion_core.config_section import Section

Share = Annotated[float, Field(gt=0.0, le=1.0)]
SIZE_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

# Which methods read a setting; every other method refuses it, because it would do nothing there.
USED_BY = {
    "granularity": ("varm",),
    "variation": ("varm",),
    "weighting": ("varm",),
    "temperature": ("varm",),
    "select_top_k": ("sce",),
    "density": ("ties", "dare"),
    "normalize": ("linear", "task_arithmetic", "ties", "dare"),
    "weights": ("linear", "task_arithmetic", "slerp", "ties", "dare"),
    "scaling_coefficient": ("task_arithmetic", "ties", "dare"),
    "t": ("slerp",),
    "dare_variant": ("dare",),
    "seed": ("dare",),
}


class MergeSpec(Section):
    """How targets are merged into the fused model."""

    method: Literal["varm", "linear", "task_arithmetic", "slerp", "ties", "dare", "sce"] = Field(
        "varm", description="Merge method; varm is FuseChat's own, sce that of its second version."
    )
    granularity: Literal["model", "layer", "module", "matrix", "parameter"] = Field(
        "matrix", description="varm: what shares one merge weight (paper: matrix)."
    )
    variation: Literal["square", "abs"] = Field(
        "square", description="varm: a target's change is the mean of its squared (paper) or absolute deltas."
    )
    weighting: Literal["proportional", "softmax"] = Field(
        "proportional", description="varm: weights are the shares of the changes (paper), or their softmax."
    )
    temperature: FiniteFloat = Field(
        1.0,
        gt=0.0,
        description="varm with softmax: changes are divided by this times their mean; small picks one target.",
    )
    select_top_k: Share = Field(
        1.0, description="sce: share of each matrix's entries to select by variance; the rest stay the pivot's."
    )
    density: Share | tuple[Share, ...] = Field(
        1.0,
        description="ties, dare: share of a target's deltas kept, one for all targets or one for each (papers: 0.2 for "
        "ties, 0.1 for dare).",
    )
    weights: tuple[FiniteFloat, ...] | None = Field(
        None,
        description="One weight per target. linear and slerp: shares, equal by default. task_arithmetic, ties, dare: "
        "factors of the deltas, 1 by default.",
    )
    normalize: bool | None = Field(
        None,
        description="linear, task_arithmetic, ties, dare: divide by the sum of the weights, in ties of those that "
        "agree. Default, as in the papers: linear and ties (and dare's ties) do, the others do not.",
    )
    scaling_coefficient: FiniteFloat = Field(
        1.0, description="task_arithmetic, ties, dare: lambda, the factor of the merged delta."
    )
    t: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        None, description="slerp of two targets: 0 is the first, 1 the second; instead of `weights`. Default: 0.5."
    )
    dare_variant: Literal["linear", "ties"] = Field(
        "linear", description="dare: add the rescaled deltas, or elect signs as ties does."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="dare: seed of the dropped entries.")
    dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = Field(
        None, description="Precision of the merged floating-point tensors; default: each tensor's own in the pivot."
    )
    max_shard_size: int | str = Field(
        "5GB", description="Largest safetensors file of the output, in bytes or as '5GB', '500MiB'."
    )
    device: str = Field("cpu", description="Where the arithmetic runs: 'cpu', 'cuda' or 'cuda:1'.")

    @property
    def max_shard_bytes(self) -> int:
        """Largest output file in bytes."""
        return _size_in_bytes(self.max_shard_size)

    @property
    def divides(self) -> bool:
        """Whether the method divides by the sum of the weights: ``normalize``, or what its paper does."""
        if self.normalize is not None:
            return self.normalize
        return self.method in ("linear", "ties") or (self.method == "dare" and self.dare_variant == "ties")

    @field_validator("max_shard_size")
    @classmethod
    def _readable_size(cls, size: int | str) -> int | str:
        if not 1 <= _size_in_bytes(size) < 2**63:
            raise ValueError("`max_shard_size` must be at least one byte, and no more than any disk has")
        return size

    @field_validator("device")
    @classmethod
    def _known_device(cls, device: str) -> str:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
            raise ValueError("`device` is 'cpu', 'cuda' or 'cuda:' and a number")
        return device

    @model_validator(mode="after")
    def _no_idle_settings(self) -> MergeSpec:
        # A setting at its default is let through, so that a dumped spec reads back.
        for name in self.model_fields_set & USED_BY.keys():
            changed = getattr(self, name) != type(self).model_fields[name].default
            if changed and self.method not in USED_BY[name]:
                raise ValueError(
                    f"`{name}` does nothing with `method: {self.method}` (it belongs to {', '.join(USED_BY[name])}); "
                    "remove it or change the method"
                )
        if self.weighting == "proportional" and self.temperature != 1.0:
            raise ValueError("`temperature` needs `weighting: softmax`; set that or remove it")
        if self.weighting == "softmax" and self.granularity == "parameter":
            raise ValueError("`weighting: softmax` has no meaning at `granularity: parameter`; choose a coarser one")
        return self

    @model_validator(mode="after")
    def _usable_weights(self) -> MergeSpec:
        if self.weights is None:
            return self
        if not math.isfinite(sum(self.weights)):
            raise ValueError("the sum of the `weights` is infinite; give smaller ones")
        if self.t is not None:
            raise ValueError("give `t` or `weights`, not both: `t` says the second target's share alone")
        if self.method == "slerp" and (min(self.weights, default=0.0) < 0 or sum(self.weights) <= 0):
            raise ValueError("slerp's `weights` are shares; give no negative one and one that is not zero")
        if self.method != "ties" and self.divides and self.dare_variant == "linear" and abs(sum(self.weights)) < 1e-8:
            raise ValueError("the sum of the `weights` is zero; change them or set `normalize: false`")
        return self


def _size_in_bytes(size: int | str) -> int:
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B?)", size.strip().upper())
    if not match or match[2] not in SIZE_UNITS:
        raise ValueError(f"{size!r} is no size; write bytes or a number with KB, MB, GB, KiB, MiB or GiB")
    # Past any disk, as a number too large to be one in floating point is.
    return int(min(float(match[1]) * SIZE_UNITS[match[2]], 2.0**63))

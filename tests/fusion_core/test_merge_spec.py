"""Settings that would do nothing are refused; a spec needs no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fusion_core.merge_spec import USED_BY, MergeSpec


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"method": "linear", "density": 0.5}, "`density` does nothing with `method: linear`"),
        ({"method": "varm", "weights": [1, 2]}, "`weights` does nothing"),
        ({"method": "sce", "granularity": "layer"}, "`granularity` does nothing"),
        ({"method": "ties", "seed": 3}, "belongs to dare"),
        ({"temperature": 2.0}, "needs `weighting: softmax`"),
        ({"weighting": "softmax", "granularity": "parameter"}, "no meaning at `granularity: parameter`"),
        ({"method": "slerp", "t": 0.5, "weights": [1, 1]}, "not both"),
        ({"method": "slerp", "weights": [1, -1]}, "no negative one"),
        ({"method": "linear", "weights": [1, -1]}, "sum of the `weights` is zero"),
        ({"method": "linear", "weights": [1e308, 1e308]}, "sum of the `weights` is infinite"),
        ({"method": "linear", "weights": [1, float("nan")]}, "finite"),
        ({"method": "ties", "density": 0.0}, "greater than 0"),
        ({"max_shard_size": "5 parsecs"}, "is no size"),
        ({"max_shard_size": 0}, "at least one byte"),
        ({"device": "tpu"}, "`device` is"),
        ({"dtype": "int8"}, "dtype"),
        ({"methd": "varm"}, "Extra inputs"),
    ],
)
def test_idle_and_wrong_settings_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        MergeSpec.model_validate(settings)


@pytest.mark.parametrize(
    "spec",
    [
        MergeSpec(),
        MergeSpec(method="dare", density=(0.1, 0.2), seed=4, dare_variant="ties"),
        MergeSpec(method="slerp", t=0.3, dtype="float16", max_shard_size="1.5GiB"),
    ],
)
def test_a_dumped_spec_reads_back(spec: MergeSpec) -> None:
    assert MergeSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert MergeSpec.model_validate_json(spec.model_dump_json()) == spec


def test_every_setting_is_described_and_known_to_some_method() -> None:
    fields = MergeSpec.model_fields
    assert all(field.description for field in fields.values())
    assert fields.keys() - USED_BY.keys() == {"method", "dtype", "max_shard_size", "device"}


@pytest.mark.parametrize(
    ("size", "expected"), [(7, 7), ("5GB", 5 * 10**9), ("1.5 GiB", 3 * 2**29), ("20kb", 20_000), ("12", 12)]
)
def test_sizes(size: int | str, expected: int) -> None:
    assert MergeSpec(max_shard_size=size).max_shard_bytes == expected


def test_needs_no_torch() -> None:
    script = "import sys, fusion_core.merge_spec; assert not {'torch', 'numba', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])

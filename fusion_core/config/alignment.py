"""How distributions of different tokenizers are aligned and fused."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from fusion_core.config_section import Section

# Settings that only `positions: bytes` reads.
BYTES_SETTINGS = ("condition_inside_tokens", "gold_consistent")
# Settings that a fusion function does not read.
UNREAD_BY = {
    "mince": (),
    "avgce": ("where_pivot_wins",),
    "source": ("where_pivot_wins",),
    "pivot": ("level", "cross_entropy_unit", "where_pivot_wins", "unaligned"),
}


class AlignmentConfig(Section):
    """How a source's distributions become distributions over pivot tokens at pivot positions."""

    positions: Literal["bytes", "dtw"] = Field(
        "bytes", description="bytes: exact, by byte offsets. dtw: the paper's dynamic time warping over token texts."
    )
    vocabulary: Literal["bytes", "exact", "mined", "statistics"] = Field(
        "bytes",
        description="Token map: same bytes or longest prefix; exact match (EM); minimal edit distance (MinED); mapping "
        "statistics (MS).",
    )
    condition_inside_tokens: bool = Field(
        True,
        description="positions: bytes. Where the pivot has a boundary inside a source token, condition the source on "
        "the bytes read; otherwise such positions fall back as `fusion.unaligned` says.",
    )
    gold_consistent: bool = Field(
        True,
        description="positions: bytes. Give the pivot's gold token exactly what the source gives to its bytes, by the "
        "chain rule.",
    )
    duplicates: Literal["sum", "first"] = Field(
        "sum",
        description="Entries that land on one pivot token: add their mass, or keep the first and normalise again (the "
        "paper; with positions: bytes it needs gold_consistent: false).",
    )

    @model_validator(mode="after")
    def _bytes_only_settings(self) -> AlignmentConfig:
        if self.positions == "dtw":
            for name in BYTES_SETTINGS:
                if name in self.model_fields_set and getattr(self, name):
                    raise ValueError(f"`{name}` needs `positions: bytes`; with dtw set it to false or remove it")
        elif self.duplicates == "first" and self.gold_consistent:
            raise ValueError(
                "`duplicates: first` drops mass that `gold_consistent` adds up; set `gold_consistent: false` or "
                "`duplicates: sum`"
            )
        return self

    @property
    def settings_in_effect(self) -> dict[str, Any]:
        """The settings that decide the result, as plain JSON values."""
        unread = set(BYTES_SETTINGS) if self.positions == "dtw" else set()
        return self.model_dump(mode="json", exclude=unread)


class FusionFunctionConfig(Section):
    """How the distributions of pivot and source become one."""

    function: Literal["mince", "avgce", "source", "pivot"] = Field(
        "mince",
        description="mince: the model with the lower cross-entropy on the gold text. avgce: weighted by exp(-CE). "
        "source: always the source. pivot: always the pivot itself, which no source changes: a control.",
    )
    level: Literal["dialogue", "token"] = Field(
        "dialogue", description="Compare models per dialogue (paper) or per position."
    )
    cross_entropy_unit: Literal["byte", "token"] = Field(
        "byte", description="byte: nats per byte, comparable across tokenizers. token: nats per token (the paper)."
    )
    where_pivot_wins: Literal["distribution", "label"] = Field(
        "label",
        description="mince, where the pivot is better: train on the label alone, or on its own distribution (paper).",
    )
    unaligned: Literal["label", "pivot"] = Field(
        "label", description="Where no source entry fits: train on the label alone, or on the pivot's own distribution."
    )

    @model_validator(mode="after")
    def _no_idle_settings(self) -> FusionFunctionConfig:
        idle = next((name for name in UNREAD_BY[self.function] if name in self.model_fields_set), None)
        if idle is not None:
            raise ValueError(f"`{idle}` does nothing with `function: {self.function}`; remove it")
        return self

"""The data: which dialogues, and which of them are held out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fusion_core.config.names import Count, Share
from fusion_core.config_section import Section


class DialogueFile(Section):
    """One data file or hub dataset of dialogues."""

    path: Path | None = Field(None, description="JSON, JSONL (also .gz) or Parquet file; instead of `hub`.")
    hub: str | None = Field(None, description="Hub dataset such as 'FuseAI/FuseChat-Mixture'; instead of `path`.")
    revision: str | None = Field(None, description="Branch, tag or commit of the hub dataset.")
    domain: str = Field(
        "general",
        description="Domain of these dialogues in tables; rows with a `domain` or `dataset` field keep theirs.",
    )
    format: Literal["auto", "messages", "sharegpt", "alpaca", "question_answer"] = Field(
        "auto",
        description="Row format; auto looks at each row's fields. messages: a list of role and content. sharegpt: of "
        "from and value. alpaca: instruction, input, output. question_answer: question/answer or prompt/response.",
    )
    expected_dialogues: Count | None = Field(
        None, description="About how many dialogues a `hub` dataset has; `plan` uses it, as it fetches no data."
    )
    limit: Count | None = Field(None, description="Take only this many dialogues, chosen by content hash.")

    @model_validator(mode="after")
    def _one_place(self) -> DialogueFile:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of `path` (a file) and `hub` (a hub dataset)")
        if self.revision is not None and self.hub is None:
            raise ValueError("`revision` belongs to `hub`; a local `path` has none, so remove it")
        if self.expected_dialogues is not None and self.hub is None:
            raise ValueError("`expected_dialogues` belongs to `hub`; those of a local `path` are counted, so remove it")
        return self


class DialoguesConfig(Section):
    """The dialogues that carry the knowledge over, and the held-out part that scores the result."""

    files: tuple[DialogueFile, ...] = Field(min_length=1, description="Data files; equal dialogues are kept once.")
    max_length_tokens: Count = Field(2048, description="Longer dialogues are cut here, by each model's own tokens.")
    held_out_share: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.02,
        description="Share of each domain that is scored and never trained on; decided by content hash, alike for "
        "dialogues that open with the same exchange.",
    )
    held_out_limit: Count | None = Field(
        None,
        description="Score at most this many held-out dialogues a domain; the rest of the held-out share is left out, "
        "of training too, so that no dialogue ever changes sides.",
    )
    max_quarantined: Share = Field(0.01, description="Largest share of malformed dialogues before the run stops.")
    shard_dialogues: Count = Field(2048, description="Dialogues in one shard, the unit of work and of resuming.")

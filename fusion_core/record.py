"""What results of every kind are made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """An immutable result with a JSON form."""

    model_config = ConfigDict(frozen=True, extra="forbid")

"""What became of each landed source: fused, found to be another one's double, or quarantined with the reason.

One small object for each landing, ``refusion/<recipe>/sources/<id>.json``; a source without one has only landed. Where
a source is a version in MLflow's registry, the same is told by tags of that version.
"""

from __future__ import annotations

import time
from typing import Literal

from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fusion_core.config import FusionConfig
from fusion_core.errors import ConfigError, StoreError
from tasks.landing.sources import LandedSource
from tasks.runs.tracking import LONGEST_VALUE, plain_errors
from tasks.store.interface import MissingObjectError, Store
from tasks.store.workplace import Workplace

RECORDS = "refusion"
STATE_TAG = "fuseline.state"
REASON_TAG = "fuseline.reason"

State = Literal["fused", "duplicate", "quarantined"]


class SourceRecord(BaseModel):
    """What became of a landed source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    reference: str
    state: State
    reason: str = Field(description="Why it is quarantined, in which version it was fused, or whose double it is.")
    digest: str | None = Field(None, description="Of its content, where it could be read.")
    at: float = Field(description="Seconds since the epoch.")


def recipe_folder(config: FusionConfig) -> str:
    """Return where the store keeps what re-fusion remembers of a recipe."""
    return f"{RECORDS}/{config.name}"


def read_records(store: Store, config: FusionConfig) -> dict[str, SourceRecord]:
    """Return what became of a recipe's landed sources, by reference."""
    records = {}
    for info in store.list(f"{recipe_folder(config)}/sources/"):
        try:
            record = SourceRecord.model_validate_json(store.read(info.key))
        except MissingObjectError:  # released meanwhile
            continue
        except ValidationError as error:
            raise StoreError(
                f"The record {info.key} of the store is broken; delete it, and its source is tried anew."
            ) from error
        records[record.reference] = record
    return records


def record_source(
    workplace: Workplace,
    config: FusionConfig,
    source: LandedSource,
    state: State,
    reason: str,
    digest: str | None = None,
) -> SourceRecord:
    """Remember what became of a source, in the store and on its version in MLflow."""
    record = SourceRecord(
        name=source.name, reference=source.reference, state=state, reason=reason, digest=digest, at=time.time()
    )
    workplace.store.write(_key(config, source), record.model_dump_json(indent=1).encode())
    _tag_version(workplace, config, source, {STATE_TAG: state, REASON_TAG: reason})
    return record


def release_source(workplace: Workplace, config: FusionConfig, source: LandedSource) -> None:
    """Let a quarantined source be tried again by the next re-fusion.

    Raises
    ------
    ConfigError
        It is not in quarantine.
    """
    record = read_records(workplace.store, config).get(source.reference)
    if record is None or record.state != "quarantined":
        raise ConfigError(f"Source {source.name!r} of {config.name!r} is not in quarantine; nothing was changed.")
    workplace.store.delete([_key(config, source)])
    _tag_version(workplace, config, source, {STATE_TAG: "landed", REASON_TAG: "released from quarantine"})


def _key(config: FusionConfig, source: LandedSource) -> str:
    return f"{recipe_folder(config)}/sources/{source.id}.json"


def _tag_version(workplace: Workplace, config: FusionConfig, source: LandedSource, tags: dict[str, str]) -> None:
    if source.origin != "registry":
        return
    name, version = source.reference.removeprefix("models:/").rsplit("/", 1)
    client = workplace.tracking(config.registry.experiment).client
    with plain_errors(workplace.settings):
        for key, value in tags.items():
            try:
                client.set_model_version_tag(name, version, key, value[:LONGEST_VALUE])
            except MlflowException as error:
                # A version that was deleted since it was listed carries no tags.
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise

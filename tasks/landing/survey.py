"""A recipe's sources, what became of each, and which of them are new: what a re-fusion starts from."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fusion_core.config import FusionConfig
from fusion_core.errors import ConfigError, FusionError
from fusion_core.models.identity import resolve_model
from fusion_core.recipes import explain
from tasks.landing.files import fetch_source
from tasks.landing.quarantine import SourceRecord, read_records
from tasks.landing.refusion_result import FUSED, QUARANTINED, WAITING, TakenIn
from tasks.landing.sources import LandedSource, list_landed
from tasks.registry.champion_sources import MadeOf, made_of
from tasks.store.workplace import open_workplace

LANDED = "landed"


class SurveyedSource(BaseModel):
    """One source of a recipe and what became of it."""

    model_config = ConfigDict(frozen=True)

    source: LandedSource
    state: str = Field(description="landed, fused, duplicate or quarantined.")
    reason: str = ""
    digest: str | None = Field(None, description="Of its content, where it has been read.")


class Survey(BaseModel):
    """All sources of a recipe, in the order in which they landed."""

    model_config = ConfigDict(frozen=True)

    recipe: str
    champion: str | None = Field(description="The champion's version.")
    started: bool = Field(description="Whether anything was fused yet.")
    fused_digests: frozenset[str] = Field(description="Of the sources that the champion, or candidate, was made of.")
    sources: tuple[SurveyedSource, ...]

    def in_state(self, state: str) -> tuple[SurveyedSource, ...]:
        """The sources in one state."""
        return tuple(item for item in self.sources if item.state == state)

    def in_order(self, sources: Sequence[LandedSource]) -> list[LandedSource]:
        """Sort some of the sources as they landed."""
        return [item.source for item in self.sources if item.source in sources]

    def settled(self, source: SurveyedSource, outcome: TakenIn, digest: str | None = None) -> Survey:
        """Return the survey with what became of one source; one that waits stays as it was."""
        state = LANDED if outcome.state == WAITING else outcome.state
        change = {"state": state, "reason": outcome.reason, "digest": digest or source.digest}
        changed = source.model_copy(update=change)
        return self.model_copy(
            update={"sources": tuple(changed if item.source == source.source else item for item in self.sources)}
        )

    def find(self, name: str) -> SurveyedSource:
        """Return a source by its name; `ConfigError` when there is none."""
        for item in self.sources:
            if item.source.name == name:
                return item
        names = ", ".join(item.source.name for item in self.sources)
        raise ConfigError(f"Recipe {self.recipe!r} has no source {name!r}; it has {names}.")


def survey_sources(config: FusionConfig) -> Survey:
    """List what has landed for a recipe and compare it with what the champion was made of; computes nothing."""
    workplace = open_workplace()
    records = read_records(workplace.store, config)
    fused = made_of(workplace, config)
    sources = tuple(look_at(source, records, fused) for source in list_landed(workplace, config))
    started = fused.champion is not None or fused.candidate is not None
    return Survey(
        recipe=config.name, champion=fused.champion, started=started, fused_digests=fused.digests, sources=sources
    )


survey = task(
    name="survey", task_run_name="list sources that have landed", cache_policy=NO_CACHE, persist_result=False
)(survey_sources)


def look_at(source: LandedSource, records: dict[str, SourceRecord], fused: MadeOf) -> SurveyedSource:
    """Say what became of a landed source, from what is remembered of it and what the champion was made of."""
    record = records.get(source.reference)
    digest = record.digest if record is not None else _digest(source)
    # A person may have promoted what a gate had refused: then the champion's word counts.
    overruled = record is not None and record.state == QUARANTINED and fused.champion_holds(digest)
    if overruled or (record is None and fused.holds(digest)):
        return SurveyedSource(source=source, state=FUSED, reason="the fused model was made of it", digest=digest)
    if record is not None:
        return SurveyedSource(source=source, state=record.state, reason=record.reason, digest=digest)
    return SurveyedSource(source=source, state=LANDED, digest=digest)


def _digest(source: LandedSource) -> str | None:
    """Read the digest of one of the recipe's own sources; that of any other is known once it has been fetched."""
    if source.origin != "recipe" or source.model is None:
        return None
    try:
        return resolve_model(source.model).digest
    except FusionError:
        # It is tried when its turn comes, and set aside with the reason then.
        return None


def with_sources(config: FusionConfig, sources: Sequence[LandedSource]) -> FusionConfig:
    """Return a recipe with these sources, their files on this machine, instead of its own.

    Raises
    ------
    ConfigError
        Two of them are the same folder or repository.
    """
    workplace = open_workplace()
    models = [fetch_source(workplace, config, source).model_dump(exclude_unset=True) for source in sources]
    try:
        return FusionConfig.model_validate(config.model_dump(exclude_unset=True) | {"sources": models})
    except ValidationError as error:
        raise ConfigError(f"Recipe {config.name!r} with the sources that have landed: {explain(error)}") from error


effective_recipe = task(
    name="effective recipe", task_run_name="recipe with its sources", cache_policy=NO_CACHE, persist_result=False
)(with_sources)

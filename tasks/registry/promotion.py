"""Promotion: gates decide on a candidate, and the champion's alias in MLflow's registry moves or stays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from fusion_core.config import PromotionConfig
from fusion_core.errors import ConfigError, FusionError
from fusion_core.evaluation.decision import Decision
from fusion_core.evaluation.gates import decide
from fusion_core.recipes import parse_recipe
from tasks.registry.contenders import contender_of, rivals_of
from tasks.registry.versions import (
    CANDIDATE,
    CHAMPION,
    PREVIOUS,
    RegisteredVersion,
    read_record,
    read_version,
    version_by_alias,
)
from tasks.runs.tracking import Tracking, clean, plain_errors
from tasks.store.collection import verify
from tasks.store.lock import StoreLock, held
from tasks.store.workplace import Workplace, open_workplace

# How long a promotion waits for another one's last step, which takes a moment.
LOCK_SECONDS = 15.0
Outcome = Literal["promoted", "forced", "refused", "declined", "dry run", "unchanged"]


class PromotionError(FusionError):
    """A version cannot become champion."""


class Candidacy(BaseModel):
    """A version, what the gates say of it, and the champion that it was held against."""

    model_config = ConfigDict(frozen=True)

    model_name: str
    version: str
    champion: str | None
    decision: Decision
    config: PromotionConfig

    @property
    def is_champion(self) -> bool:
        """Whether there is nothing to decide."""
        return self.version == self.champion


class Promotion(BaseModel):
    """What came of a promotion, and who is champion now."""

    model_config = ConfigDict(frozen=True)

    model_name: str
    version: str
    outcome: Outcome
    reason: str
    champion: str | None
    previous: str | None
    decision: Decision | None = None
    decided_by: str = ""

    @property
    def promoted(self) -> bool:
        """Whether the version is champion now and was not before."""
        return self.outcome in ("promoted", "forced")


def judge_version(model_name: str, version: str | None = None) -> Candidacy:
    """Hold a version, by default the candidate, against the gates of the recipe that made it; changes nothing.

    Raises
    ------
    ConfigError
        There is no such version, or no candidate.
    TrackingError
        MLflow does not answer, or the version's run is gone.
    """
    workplace = open_workplace()
    tracking = Tracking(workplace.settings, "fuseline")
    with plain_errors(workplace.settings):
        version = version or version_by_alias(tracking.client, model_name, CANDIDATE)
        champion = version_by_alias(tracking.client, model_name, CHAMPION)
    if version is None:
        raise ConfigError(f"Model {model_name!r} has no candidate in MLflow; run a fusion, or name a version.")
    chosen = read_version(tracking, model_name, version)
    recipe = parse_recipe(read_record(tracking, chosen).recipe, Path("recipe.yaml"))
    rivals = rivals_of(workplace, tracking, chosen)
    if champion is not None:
        rivals["champion"] = contender_of(workplace, tracking, read_version(tracking, model_name, champion))
    decision = decide(
        recipe.promotion,
        contender_of(workplace, tracking, chosen),
        rivals,
        resamples=recipe.evaluation.bootstrap_resamples,
        seed=recipe.evaluation.bootstrap_seed,
    )
    return Candidacy(
        model_name=model_name,
        version=chosen.version,
        champion=champion,
        decision=decision,
        config=recipe.promotion,
    )


def move_champion(candidacy: Candidacy, *, force_reason: str = "", decided_by: str = "") -> Promotion:
    """Make a judged version the champion; the champion so far becomes 'previous'.

    Raises
    ------
    PromotionError
        Somebody else moved the champion since the version was judged, or its checkpoint is not whole any more.
    LockedError
        Another promotion of the same model is at its last step and does not end.
    """
    workplace = open_workplace()
    tracking = Tracking(workplace.settings, "fuseline")
    name, version = candidacy.model_name, candidacy.version
    chosen = read_version(tracking, name, version)
    _require_whole(workplace, chosen)
    with _only_promotion(workplace, name) as lock, plain_errors(workplace.settings):
        client = tracking.client
        champion = version_by_alias(client, name, CHAMPION)
        if champion != candidacy.champion:
            now = f"version {champion}" if champion else "none"
            before = f"version {candidacy.champion}" if candidacy.champion else "none"
            raise PromotionError(
                f"Version {version} of {name!r} lost to another promotion: the champion is {now} and was {before} when "
                "the gates were asked; promote again to hold it against the new one."
            )
        lock.require()
        if champion is not None:
            client.set_registered_model_alias(name, PREVIOUS, champion)
        client.set_registered_model_alias(name, CHAMPION, version)
        if version_by_alias(client, name, CANDIDATE) == version:
            client.delete_registered_model_alias(name, CANDIDATE)
    promotion = Promotion(
        model_name=name,
        version=version,
        outcome="forced" if force_reason else "promoted",
        reason=force_reason or candidacy.decision.reason,
        champion=version,
        previous=champion,
        decision=candidacy.decision,
        decided_by=decided_by,
    )
    log_promotion(promotion)
    return promotion


def leave_champion(candidacy: Candidacy, outcome: Outcome, reason: str, decided_by: str = "") -> Promotion:
    """Say why the champion stays; a dry run leaves no trace, everything else is logged with the version."""
    promotion = Promotion(
        model_name=candidacy.model_name,
        version=candidacy.version,
        outcome=outcome,
        reason=reason,
        champion=candidacy.champion,
        previous=None,
        decision=candidacy.decision,
        decided_by=decided_by,
    )
    if outcome in ("refused", "declined"):
        log_promotion(promotion)
    return promotion


def roll_back(model_name: str, reason: str = "") -> Promotion:
    """Give the alias 'champion' back to the version called 'previous'; the two change places.

    Raises
    ------
    PromotionError
        There is no previous champion, or its checkpoint is not whole any more.
    """
    workplace = open_workplace()
    tracking = Tracking(workplace.settings, "fuseline")
    client = tracking.client
    with _only_promotion(workplace, model_name) as lock:
        with plain_errors(workplace.settings):
            champion = version_by_alias(client, model_name, CHAMPION)
            previous = version_by_alias(client, model_name, PREVIOUS)
        if previous is None or previous == champion:
            raise PromotionError(f"Model {model_name!r} has no previous champion to go back to; promote a version.")
        _require_whole(workplace, read_version(tracking, model_name, previous))
        lock.require()
        with plain_errors(workplace.settings):
            client.set_registered_model_alias(model_name, CHAMPION, previous)
            if champion is not None:
                client.set_registered_model_alias(model_name, PREVIOUS, champion)
                client.set_model_version_tag(model_name, champion, "promotion.rolled_back", reason or _now())
            client.set_model_version_tag(model_name, previous, "promotion.restored", _now())
    return Promotion(
        model_name=model_name,
        version=previous,
        outcome="promoted",
        reason=reason or f"rolled back from version {champion}",
        champion=previous,
        previous=champion,
    )


def log_promotion(promotion: Promotion) -> None:
    """Write a decision with all its numbers to the version's tags, and to its run."""
    assert promotion.decision is not None
    workplace = open_workplace()
    tracking = Tracking(workplace.settings, "fuseline")
    tags = {
        "promotion.outcome": promotion.outcome,
        "promotion.reason": promotion.reason,
        "promotion.at": _now(),
        "promotion.champion_before": promotion.previous or (promotion.champion if not promotion.promoted else "") or "",
        "promotion.decided_by": promotion.decided_by,
    }
    for gate in promotion.decision.gates:
        key = f"promotion.{gate.gate}.{gate.metric}.{gate.rival}" if gate.rival else f"promotion.required.{gate.metric}"
        tags[key] = " | ".join(cell for cell in gate.cells()[3:] if cell)
    tags = {clean(key): value for key, value in tags.items() if value}
    name, version = promotion.model_name, promotion.version
    chosen = read_version(tracking, name, version)
    run = chosen.run
    with plain_errors(workplace.settings):
        # What an earlier decision left, such as who made it, is not to be read as part of this one.
        for key in _stale(chosen.tags, tags):
            tracking.client.delete_model_version_tag(name, version, key)
        for key, value in tags.items():
            tracking.client.set_model_version_tag(name, version, key, value)
        if run is not None:
            for key in _stale(tracking.client.get_run(run).data.tags, tags):
                tracking.client.delete_tag(run, key)
    tracking.log(run, tags=tags)
    tracking.log_text(run, promotion.decision.markdown(), f"promotion/{tags['promotion.at'].replace(':', '-')}.md")
    tracking.log_text(run, promotion.model_dump_json(indent=1), "promotion/last.json")


def _stale(there: Mapping[str, str], tags: Mapping[str, str]) -> list[str]:
    return [key for key in there if key.startswith("promotion.") and key not in tags]


@contextmanager
def _only_promotion(workplace: Workplace, model_name: str) -> Iterator[StoreLock]:
    busy = f"Another promotion of {model_name!r} is at work"
    with held(workplace.store, f"promotion-{model_name}", busy, LOCK_SECONDS) as lock:
        yield lock


def _require_whole(workplace: Workplace, version: RegisteredVersion) -> None:
    broken = verify(workplace.store, [version.address], read=False)
    if broken:
        raise PromotionError(
            f"Version {version.version} of {version.name!r} has no whole checkpoint in the object store "
            f"({broken[0].name}: {broken[0].found}); run its recipe again."
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

"""Taking a new source in: whose double it is, whose fault a failure is, and what is remembered of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect import task
from prefect.cache_policies import NO_CACHE

from fusion_core.config import FusionConfig, ModelConfig
from fusion_core.errors import (
    AlignmentError,
    ConfigError,
    DialogueError,
    DialogueRefusedError,
    EndpointError,
    EvaluationError,
    FusionError,
    MergeError,
    ModelError,
    ShardError,
    TokenizerError,
    TrainingError,
    TrainingInterruptedError,
    first_line,
)
from fusion_core.models.identity import resolve_model
from tasks.addresses import ADDRESS_DIGITS
from tasks.landing.files import fetch_source
from tasks.landing.quarantine import State, record_source
from tasks.landing.refusion_result import DUPLICATE, FUSED, QUARANTINED, WAITING, TakenIn
from tasks.landing.sources import LandedSource, land_source
from tasks.landing.survey import LANDED, Survey, SurveyedSource
from tasks.plan import stage_addresses
from tasks.resolve import resolve_fusion
from tasks.store.interface import BrokenObjectError
from tasks.store.lock import LockedError, StoreLock
from tasks.store.publication import find_artifact
from tasks.store.workplace import open_workplace

# What a model can be blamed for. Stores, servers, disks and judges raise others, which the source waits out.
FAULTS_OF_A_SOURCE = (
    AlignmentError,
    ConfigError,
    DialogueError,
    DialogueRefusedError,
    EvaluationError,
    MergeError,
    ModelError,
    ShardError,
    TokenizerError,
    TrainingError,
)
# An endpoint's error is an evaluation's, and says why the judge is silent, which is never the judged model's doing.
FAULTS_ON_THE_WAY = (EndpointError, httpx.TransportError, ConnectionError, TimeoutError)
LOOK_SECONDS = 5.0
# Made before the merge, so that the failure of any of them cannot be a new source's fault once they are there.
STAGES_OF_ONE_SOURCE = ("prepare", "extract", "fuse", "train")


def land(config: FusionConfig, source: ModelConfig) -> None:
    """Put a source that a person gives into the list of those that have landed."""
    land_source(open_workplace(), config, source)


@contextmanager
def one_refusion(config: FusionConfig) -> Iterator[StoreLock]:
    """Wait until no other process fuses this recipe again, and keep others waiting while the block runs.

    Waiting, not giving up: what landed after the other process looked must not be lost.
    """
    lock = StoreLock(open_workplace().store, f"refusion-{config.name}")
    told = False
    while not lock.try_acquire():
        if not told:
            print(f"Another re-fusion of {config.name} is under way; this one waits for it, then looks what is new.")
            told = True
        time.sleep(LOOK_SECONDS)
    try:
        yield lock
    finally:
        lock.release()


def fetch_files(config: FusionConfig, source: LandedSource) -> str:
    """Fetch a new source's files and return the digest of its content; `ModelError` when there is no checkpoint."""
    return resolve_model(fetch_source(open_workplace(), config, source)).digest


fetch = task(name="fetch", task_run_name="fetch {source.name}", cache_policy=NO_CACHE, persist_result=False)(
    fetch_files
)


def double_of(config: FusionConfig, found: Survey, new: SurveyedSource, digest: str) -> TakenIn | None:
    """Settle a source whose content is known already, be it fused or in quarantine; None for one that is new."""
    others = [item for item in found.sources if item.digest == digest and item.source.reference != new.source.reference]
    for other in others:
        if other.state != LANDED:
            same = f"same content as {other.source.name}, which is {other.state}"
            return remember(config, new.source, DUPLICATE, same, digest)
    if digest[:ADDRESS_DIGITS] in found.fused_digests:
        return remember(config, new.source, FUSED, "the fused model was made of it", digest)
    return None


def is_whole(config: FusionConfig) -> bool:
    """Say whether the store holds everything that is made of a recipe's single sources."""
    store = open_workplace().store
    addresses = stage_addresses(resolve_fusion(config))
    needed = [address for (stage, _), address in addresses.items() if stage in STAGES_OF_ONE_SOURCE]
    return all(find_artifact(store, address) is not None for address in needed)


def is_fault_of_source(error: BaseException) -> bool:
    """Say whether a failure is the model's, and not that of a network, store, server, judge or disk."""
    if not isinstance(error, FAULTS_OF_A_SOURCE) or isinstance(error, TrainingInterruptedError):
        return False
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, FAULTS_ON_THE_WAY):
            return False
        cause = cause.__cause__
    return True


def settle(config: FusionConfig, source: LandedSource, digest: str | None, error: Exception) -> TakenIn:
    """Decide what a failure means for a new source, and remember it.

    Raises
    ------
    FusionError
        The failure is not about one source: the run was interrupted, another process took over, an object broke.
    """
    if isinstance(error, (TrainingInterruptedError, LockedError, BrokenObjectError)):
        raise error
    reason = str(error) if isinstance(error, FusionError) else f"{type(error).__name__}: {first_line(error)}"
    if is_fault_of_source(error):
        return remember(config, source, QUARANTINED, reason, digest)
    return TakenIn(name=source.name, state=WAITING, reason=reason)


def remember(config: FusionConfig, source: LandedSource, state: State, reason: str, digest: str | None) -> TakenIn:
    """Record what became of a source."""
    record_source(open_workplace(), config, source, state, reason, digest)
    return TakenIn(name=source.name, state=state, reason=reason)

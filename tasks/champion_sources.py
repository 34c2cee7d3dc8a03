"""What a registered fused model was made of, read from the manifests of the store."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow.exceptions import MlflowException

from fusion_core.config import FusionConfig
from tasks.manifest import read_manifest
from tasks.store import Store
from tasks.tracking import plain_errors
from tasks.workplace import Workplace

# The version that a new source is compared with: the champion, else what waits to become it.
REFERENCE_ALIASES = ("champion", "candidate")


@dataclass(frozen=True)
class MadeOf:
    """The version that stands for what is fused already.

    Attributes
    ----------
    version : str or None
        None before the first fusion.
    digests : frozenset of str
        The first 32 hexadecimal digits of the digests of its sources.
    """

    version: str | None
    digests: frozenset[str]


def reference_version(workplace: Workplace, config: FusionConfig) -> MadeOf:
    """Return the champion of a recipe's model, else its candidate, with the sources it was made of."""
    client = workplace.tracking(config.registry.experiment).client
    name = config.registry.model_name or config.name
    with plain_errors(workplace.settings):
        for alias in REFERENCE_ALIASES:
            try:
                found = client.get_model_version_by_alias(name, alias)
            except MlflowException:
                continue
            address = found.tags.get("fuseline.address")
            if address is not None:
                return MadeOf(str(found.version), sources_of(workplace.store, address))
    return MadeOf(None, frozenset())


def sources_of(store: Store, fused_model: str) -> frozenset[str]:
    """Walk from a fused model's address back to the distributions of its sources, and return those models' digests.

    The store's own manifests are asked and nothing else, so that the answer holds when a run was deleted in MLflow.
    What a manifest no longer tells is left out: its source then counts as new, and is found in the cache or made anew.
    """
    digests = set()
    seen: set[str] = set()
    waiting = [fused_model]
    while waiting:
        address = waiting.pop()
        if address in seen:
            continue
        seen.add(address)
        manifest = read_manifest(store, address)
        inputs = [] if manifest is None else manifest.metadata.get("inputs", [])
        if not isinstance(inputs, list):
            continue
        read = [str(item) for item in inputs]
        if manifest is not None and manifest.stage == "fuse":
            # The pivot's distributions come first, then those of the sources: distributions/<model>/...
            digests |= {item.split("/")[1] for item in read[1:]}
        else:
            waiting += read
    return frozenset(digests)

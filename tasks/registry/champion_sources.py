"""What the champion of a recipe was made of, read from the manifests of the store."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow.tracking import MlflowClient

from fusion_core.config import FusionConfig
from tasks.addresses import ADDRESS_DIGITS
from tasks.registry.versions import ADDRESS, CANDIDATE, CHAMPION, version_by_alias
from tasks.runs.tracking import plain_errors
from tasks.store.interface import Store
from tasks.store.manifest import read_manifest
from tasks.store.workplace import Workplace


@dataclass(frozen=True)
class MadeOf:
    """The sources of the versions that stand for what is fused already, by the digests of their content.

    Attributes
    ----------
    champion, candidate : str or None
        The versions with these aliases.
    of_champion, of_candidate : frozenset of str
        The first 32 hexadecimal digits of their sources' digests; empty where there is no such version.
    """

    champion: str | None
    candidate: str | None
    of_champion: frozenset[str]
    of_candidate: frozenset[str]

    @property
    def digests(self) -> frozenset[str]:
        """What is fused: into the champion or, while there is none, into the candidate."""
        return self.of_candidate if self.champion is None else self.of_champion

    def holds(self, digest: str | None) -> bool:
        """Say whether a source is fused."""
        return digest is not None and digest[:ADDRESS_DIGITS] in self.digests

    def champion_holds(self, digest: str | None) -> bool:
        """Say whether the champion was made of a source."""
        return digest is not None and digest[:ADDRESS_DIGITS] in self.of_champion


def made_of(workplace: Workplace, config: FusionConfig) -> MadeOf:
    """Look up the champion and the candidate of a recipe's model, and what each was made of."""
    client = workplace.tracking(config.registry.experiment).client
    name = config.registry.model_name or config.name
    with plain_errors(workplace.settings):
        champion, of_champion = _version(workplace, client, name, CHAMPION)
        candidate, of_candidate = _version(workplace, client, name, CANDIDATE)
    return MadeOf(champion, candidate, of_champion, of_candidate)


def _version(workplace: Workplace, client: MlflowClient, name: str, alias: str) -> tuple[str | None, frozenset[str]]:
    version = version_by_alias(client, name, alias)
    if version is None:
        return None, frozenset()
    address = client.get_model_version(name, version).tags.get(ADDRESS)
    return version, sources_of(workplace.store, address) if address else frozenset()


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
        manifest = None if address in seen else read_manifest(store, address)
        seen.add(address)
        inputs = [] if manifest is None else manifest.metadata.get("inputs", [])
        if manifest is None or not isinstance(inputs, list):
            continue
        read = [str(item) for item in inputs]
        if manifest.stage == "fuse":
            # The pivot's distributions come first, then those of the sources: distributions/<model>/...
            digests |= {item.split("/")[1] for item in read[1:]}
        else:
            waiting += read
    return frozenset(digests)

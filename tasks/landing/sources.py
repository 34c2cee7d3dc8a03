"""Which sources a recipe has: its own, those registered in MLflow for it, and those put into the store for it.

The list is always read from where sources land, never from the event that told of one: an event that is lost, doubled
or late changes nothing but the moment.

* The recipe's own sources come first, in its order.
* A version in MLflow's registry lands when it has the tags ``fuseline.source=true`` and ``fuseline.recipe=<name>``. Its
  weights are what the version points at, or the hub repository in its tag ``fuseline.hub`` (``fuseline.revision``).
  Every version is a source of its own, called by its tag ``fuseline.name`` or by model and version.
* A checkpoint folder ``sources/<folder>/<source>/`` in the store lands when an object ``_SUCCESS`` is put there, last.
  When the marker is put again, what lies there has landed anew.
* An object ``sources/<folder>/<source>.json`` holds a model's settings as a recipe would, such as a hub repository.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fusion_core.config import NAME_PATTERN, FusionConfig, ModelConfig
from fusion_core.errors import ConfigError
from fusion_core.recipes import explain
from tasks.addresses import digest_of
from tasks.registry.versions import search_versions
from tasks.store.interface import MissingObjectError
from tasks.store.workplace import Workplace

SOURCES = "sources"
MARKER = "_SUCCESS"
SOURCE_TAG = "fuseline.source"
RECIPE_TAG = "fuseline.recipe"
NAME_TAG = "fuseline.name"
HUB_TAG = "fuseline.hub"
REVISION_TAG = "fuseline.revision"
LARGEST_SETTINGS_BYTES = 1 << 20


class LandedSource(BaseModel):
    """A source that a recipe has, wherever it came from."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="What runs and tables call it.")
    origin: Literal["recipe", "registry", "store"]
    reference: str = Field(description="Where it landed; another landing has another one.")
    landed: float = Field(description="When, in seconds since the epoch; 0 for the recipe's own.")
    model: ModelConfig | None = Field(None, description="Its settings, None where its files must be fetched first.")
    files: str = Field("", description="Where its files are: a key of the store, or what MLflow's version points at.")
    fault: str = Field("", description="What is wrong with the object that landed; a model's settings cannot be read.")

    @property
    def id(self) -> str:
        """Digest of where it landed, for keys."""
        return digest_of(self.reference)


def list_landed(workplace: Workplace, config: FusionConfig) -> list[LandedSource]:
    """List every source of a recipe: its own in its order, then the others as they landed; names are made distinct.

    Raises
    ------
    StoreError, TrackingError
        The store or MLflow does not answer; half a list is never returned.
    """
    own = [
        LandedSource(name=model.name, origin="recipe", reference=f"recipe:{model.name}", landed=0.0, model=model)
        for model in config.sources
    ]
    others: list[LandedSource] = []
    if "registry" in config.refusion.look_in:
        others += _registered(workplace, config)
    if "store" in config.refusion.look_in:
        others += _stored(workplace, config)
    others.sort(key=lambda source: (source.landed, source.reference))
    taken = {config.pivot.name, *(source.name for source in own)}
    distinct = []
    for source in others:
        name = source.name if source.name not in taken else f"{source.name[:50]}-{source.id[:8]}"
        taken.add(name)
        model = source.model and source.model.model_copy(update={"name": name})
        distinct.append(source.model_copy(update={"name": name, "model": model}))
    return [*own, *distinct]


def land_source(workplace: Workplace, config: FusionConfig, model: ModelConfig) -> None:
    """Put a source that a person gives into the store's list, so that every later fusion knows it too.

    Raises
    ------
    ConfigError
        The recipe does not look into the store, or another source of this name has landed there.
    """
    if "store" not in config.refusion.look_in:
        raise ConfigError(
            f"Recipe {config.name!r} does not look for sources in the store; add `store` to its `refusion.look_in`, or "
            f"add {model.name!r} to its `sources`."
        )
    key = f"{_folder(config)}/{model.name}.json"
    content = model.model_dump_json(exclude_unset=True, indent=1).encode()
    if not workplace.store.write(key, content, if_absent=True) and workplace.store.read(key) != content:
        raise ConfigError(f"Another source called {model.name!r} has landed at {key}; give this one another name.")


def _folder(config: FusionConfig) -> str:
    return f"{SOURCES}/{config.refusion.store_folder or config.name}"


def _registered(workplace: Workplace, config: FusionConfig) -> Iterator[LandedSource]:
    wanted = f"tag.`{SOURCE_TAG}` = 'true' and tag.`{RECIPE_TAG}` = '{config.name}'"
    for version in search_versions(workplace.tracking(config.registry.experiment), wanted):
        hub = version.tags.get(HUB_TAG)
        name = _plain(version.tags.get(NAME_TAG) or f"{version.name}-v{version.version}")
        yield LandedSource(
            name=name,
            origin="registry",
            reference=f"models:/{version.name}/{version.version}",
            landed=version.creation_timestamp / 1000,
            model=ModelConfig(name=name, hub=hub, revision=version.tags.get(REVISION_TAG)) if hub else None,
            files="" if hub else str(version.source),
        )


def _stored(workplace: Workplace, config: FusionConfig) -> Iterator[LandedSource]:
    folder = _folder(config)
    for info in workplace.store.list(f"{folder}/"):
        inside = info.key.removeprefix(f"{folder}/").split("/")
        reference = f"{info.key}@{info.modified:.0f}"
        if len(inside) == 2 and inside[1] == MARKER:
            yield LandedSource(
                name=_plain(inside[0]),
                origin="store",
                reference=reference,
                landed=info.modified,
                files=f"{folder}/{inside[0]}",
            )
        elif len(inside) == 1 and inside[0].endswith(".json"):
            # What cannot be read is a source too, with a fault, so that it keeps no other from being taken in.
            name, model, fault = _plain(inside[0].removesuffix(".json")), None, ""
            try:
                if info.size > LARGEST_SETTINGS_BYTES:
                    raise ValueError("too large to be settings")
                model = ModelConfig.model_validate(json.loads(workplace.store.read(info.key)))
                name = model.name
            except MissingObjectError:
                continue
            except ValidationError as error:
                fault = f"The source at {info.key} of the store: {explain(error)}"
            except (ValueError, RecursionError):
                fault = f"The source at {info.key} of the store is no JSON of a model's settings; correct or delete it."
            yield LandedSource(
                name=name, origin="store", reference=reference, landed=info.modified, model=model, fault=fault
            )


def _plain(name: str) -> str:
    """Make a name that a recipe would take of one that MLflow or a folder has."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:64]
    return plain if NAME_PATTERN.match(plain) else "source"

"""A publication's manifest: every object with size and SHA-256, in bytes that are equal for equal results."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from fusion_core.errors import StoreError
from tasks.store.interface import BrokenObjectError, MissingObjectError, Store, check_key

MANIFEST = "manifest.json"
# The model card of a checkpoint lies beside what its manifest lists: it tells the scores, which are known only after
# the checkpoint is whole, and every run writes it anew.
CARD = "README.md"
# So do the files that let MLflow load a registered checkpoint: its description, and the tokenizer in its place.
MLMODEL = "MLmodel"
COMPONENTS = "components/"
SCHEMA_VERSION = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ManifestEntry(_Record):
    """One object of a publication."""

    name: str = Field(description="Relative path inside the publication.")
    size: int = Field(ge=0, description="Bytes.")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="Of the bytes, hexadecimal.")
    stored_as: str = Field(description="Name inside the address; differs when another worker's bytes had the name.")

    @field_validator("name", "stored_as")
    @classmethod
    def _inside_the_address(cls, name: str) -> str:
        # Files are written by these names: one with '..' would leave its folder.
        return check_key(name)


class Manifest(_Record):
    """What a publication consists of; equal inputs give equal bytes, so there is no time in it."""

    schema_version: int = SCHEMA_VERSION
    stage: str = Field(description="Which stage published it, such as 'distributions'.")
    address: str
    entries: tuple[ManifestEntry, ...]
    created_by: str = Field(description="Package and version that wrote it.")
    metadata: dict[str, JsonValue] = Field(description="What the stage says; 'inputs' lists the addresses it read.")

    def entry(self, name: str) -> ManifestEntry:
        """Return the entry called `name`; `StoreError` when there is none."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise StoreError(f"The publication {self.address} has no object {name!r}.")


class Artifact(_Record):
    """A whole publication: what tasks hand to each other."""

    address: str
    digest: str = Field(description="SHA-256 of the manifest's bytes.")
    bytes: int
    objects: int
    metadata: dict[str, JsonValue]
    reused: bool = Field(description="Found whole, or another worker's, instead of published by this one.")
    seconds: float = Field(description="From opening the publication to its manifest; 0 when it was found.")


def metadata_of(artifact: Artifact) -> dict[str, Any]:
    """Return what a stage said of its result."""
    return dict(artifact.metadata)


def is_beside_manifest(name: str) -> bool:
    """Say whether a name inside an address is one that belongs there although no manifest lists it."""
    return name in (CARD, MLMODEL) or name.startswith(COMPONENTS)


def manifest_key(address: str) -> str:
    """Return the key of an address's manifest; `StoreError` when the address is not a plain relative path."""
    return check_key(f"{check_key(address)}/{MANIFEST}")


def read_manifest(store: Store, address: str) -> Manifest | None:
    """Return the manifest at an address, None when there is none.

    Raises
    ------
    BrokenObjectError
        It is torn, altered, or belongs to another address.
    StoreError
        Another version of the schema wrote it.
    """
    try:
        data = store.read(manifest_key(address))
    except MissingObjectError:
        return None
    return decode_manifest(data, address)


def encode_manifest(manifest: Manifest) -> bytes:
    """Return a manifest's bytes: JSON with sorted keys and a checksum of the rest, equal for equal manifests."""
    try:
        content = _canonical(manifest.model_dump(mode="json"))
    except ValueError:
        raise StoreError(
            f"The metadata of {manifest.address} hold a number that JSON has not (NaN or infinity)."
        ) from None
    fields = json.loads(content)
    fields["content_sha256"] = hashlib.sha256(content.encode()).hexdigest()
    return (json.dumps(fields, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def decode_manifest(data: bytes, address: str) -> Manifest:
    """Return the manifest in `data`; `BrokenObjectError` when it is torn, altered or of another address."""
    try:
        fields = json.loads(data)
        found = fields.pop("content_sha256")
        schema = fields["schema_version"]
        content = _canonical(fields).encode()
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise BrokenObjectError(address, MANIFEST, f"its {len(data)} bytes are no manifest") from None
    if found != hashlib.sha256(content).hexdigest():
        raise BrokenObjectError(address, MANIFEST, "its checksum does not match its content")
    if schema != SCHEMA_VERSION:
        raise StoreError(
            f"The manifest of {address} has schema version {schema}, this Fuseline reads {SCHEMA_VERSION}; "
            "use the version that wrote it, or another store."
        )
    try:
        manifest = Manifest.model_validate(fields)
    except (ValidationError, StoreError) as error:
        reason = error.error_count() if isinstance(error, ValidationError) else "a name leaves its folder"
        raise BrokenObjectError(address, MANIFEST, f"its fields are not a manifest's ({reason})") from None
    if len({entry.name for entry in manifest.entries}) < len(manifest.entries):
        raise BrokenObjectError(address, MANIFEST, "it lists a name twice")
    if encode_manifest(manifest) != data:
        raise BrokenObjectError(address, MANIFEST, "its bytes are not the ones that were written")
    if manifest.address != address:
        raise BrokenObjectError(address, MANIFEST, f"it belongs to {manifest.address}")
    return manifest


def artifact_of(manifest: Manifest, *, reused: bool, seconds: float) -> Artifact:
    """Return the artifact that a manifest describes."""
    return Artifact(
        address=manifest.address,
        digest=hashlib.sha256(encode_manifest(manifest)).hexdigest(),
        bytes=sum(entry.size for entry in manifest.entries),
        objects=len(manifest.entries),
        metadata=manifest.metadata,
        reused=reused,
        seconds=seconds,
    )


def _canonical(fields: dict[str, JsonValue]) -> str:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def package_version() -> str:
    """Return Fuseline's version as the manifest names it."""
    try:
        return version("fuseline")
    except PackageNotFoundError:
        return "from a checkout"

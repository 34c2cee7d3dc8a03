"""From a registered version back to everything it was made from, as far as the store and MLflow still hold it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from tasks.registry.lineage_record import LineageRecord
from tasks.registry.versions import read_record, read_version
from tasks.runs.tracking import Tracking
from tasks.store.interface import Store
from tasks.store.publication import Artifact, find_artifact
from tasks.store.workplace import computed_by, open_workplace


class LineageNode(BaseModel):
    """One publication and what it was made from.

    Parameters
    ----------
    stage, subject : str
    address : str
    objects, bytes : int
        0 where the store does not hold it any more.
    shards : int
        Objects that are Parquet shards.
    held : bool
        Whether the store holds it whole.
    run : str
        The MLflow run that computed it.
    inputs : tuple of LineageNode
    """

    model_config = ConfigDict(frozen=True)

    stage: str
    subject: str
    address: str
    objects: int = 0
    bytes: int = 0
    shards: int = 0
    held: bool = False
    run: str = ""
    inputs: tuple[LineageNode, ...] = ()


class Lineage(BaseModel):
    """A registered version, the run that made it, and the tree of what it was made from."""

    model_config = ConfigDict(frozen=True)

    model_name: str
    version: str
    run: str | None
    tree: LineageNode
    scores: tuple[LineageNode, ...]
    record: LineageRecord


def read_lineage(model_name: str, version: str) -> Lineage:
    """Walk from a version to targets, fused shards, distributions and dialogues.

    Raises
    ------
    ConfigError
        There is no such version, or Fuseline did not register it.
    TrackingError
        MLflow does not answer, or the version's run is gone.
    """
    workplace = open_workplace()
    tracking = Tracking(workplace.settings, "fuseline")
    found = read_version(tracking, model_name, version)
    record = read_record(tracking, found)
    subjects = {one.address: (one.stage, one.subject) for one in record.stages}
    return Lineage(
        model_name=model_name,
        version=found.version,
        run=found.run,
        tree=_node(workplace.store, found.address, subjects),
        scores=tuple(
            _node(workplace.store, one.address, subjects, deep=False)
            for one in record.stages
            if one.stage == "evaluate"
        ),
        record=record,
    )


def _node(store: Store, address: str, subjects: dict[str, tuple[str, str]], *, deep: bool = True) -> LineageNode:
    stage, subject = subjects.get(address, (address.partition("/")[0], ""))
    made = find_artifact(store, address)
    if made is None:
        return LineageNode(stage=stage, subject=subject, address=address)
    inputs = made.metadata.get("inputs")
    below = [str(one) for one in inputs] if deep and isinstance(inputs, list) else []
    return LineageNode(
        stage=stage,
        subject=subject or str(made.metadata.get("subject", "")),
        address=address,
        objects=made.objects,
        bytes=made.bytes,
        shards=_shards(made),
        held=True,
        run=computed_by(made),
        inputs=tuple(_node(store, one, subjects) for one in below),
    )


def _shards(made: Artifact) -> int:
    names = made.metadata.get("shards")
    return len(names) if isinstance(names, list) else 0

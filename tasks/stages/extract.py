"""Stage: a model's next-token distributions at the response positions of the training dialogues."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fusion_core.devices import compute_dtype, default_device
from fusion_core.extraction.processes import extract_files
from fusion_core.extraction.shards import ExtractionJob
from fusion_core.extraction.statistics import ExtractionStatistics
from fusion_core.models.identity import ResolvedModel
from fusion_core.models.placement import Placement, place
from fusion_core.progress import show_progress
from fusion_core.shard_counts import ShardCounts, count_shard
from tasks.addresses import ResolvedFusion
from tasks.runs.inputs import model_parameters
from tasks.stages.prepare import shard_names
from tasks.stages.stage_task import stage_task
from tasks.store.local_files import disk_errors
from tasks.store.publication import Artifact, Publication, entries_of, fetch_file
from tasks.store.workplace import Stage, compute_once, open_workplace


def extract_distributions(
    fusion: ResolvedFusion, model: ResolvedModel, dialogues: Artifact, fusion_run: str | None = None
) -> Artifact:
    """Publish one model's top-k distributions, one shard for each shard of dialogues."""
    workplace = open_workplace()
    config = fusion.config
    stage = Stage(
        "extract",
        model.name,
        fusion.distributions(model),
        (dialogues.address,),
        fusion_run,
        config.registry.experiment,
        uses_device=True,
    )

    def compute(publication: Publication, folder: Path, run: str | None) -> dict[str, Any]:
        names = distribution_names(dialogues)
        counts, work = extract_missing(fusion, model, dialogues, publication, folder, names)
        device = default_device()
        # Summed in order, so that equal shards have equal sums in whatever order they were read.
        metadata: dict[str, Any] = as_metadata([counts[name] for name in names]) | {
            "model": model.name,
            "shards": names,
            "batch_tokens": work.batch_tokens,
            "padding_share": work.padding_share,
            "dtype": str(compute_dtype(model.dtype, device)).removeprefix("torch."),
            "device": device.type,
            "placement": work.placement.kind,
            "processes": work.placement.processes,
        }
        workplace.tracking(config.registry.experiment).log(
            run,
            metrics={key: value for key, value in metadata.items() if isinstance(value, (int, float))},
            parameters={**config.extraction.model_dump(), **model_parameters(model)},
        )
        return metadata

    return compute_once(workplace, stage, compute)


extract = stage_task(
    extract_distributions, "extract {model.name}", lambda fusion, model, *_, **__: fusion.distributions(model)
)


def distribution_names(dialogues: Artifact) -> list[str]:
    """Return the names of the shards of distributions, one for each shard of dialogues."""
    return [name.replace("dialogues-", "shard-") for name in shard_names(dialogues)]


def extract_missing(
    fusion: ResolvedFusion,
    model: ResolvedModel,
    dialogues: Artifact,
    publication: Publication,
    folder: Path,
    names: Sequence[str],
) -> tuple[dict[str, ShardCounts], Work]:
    """Count those of the named shards that the store holds; compute, upload and count the others."""
    workplace = open_workplace()
    device = default_device()
    counts: dict[str, ShardCounts] = {}
    missing: dict[Path, Path] = {}
    counted = CountedShards(folder / "counts.jsonl")
    entries = {entry.name: entry for entry in entries_of(workplace.store, dialogues.address)}
    finished = publication.finished_among(names)
    for name in names:
        done = finished.get(name)
        if done is None:
            entry = entries[name.replace("shard-", "dialogues-")]
            missing[folder / name] = fetch_file(workplace.store, workplace.cache, dialogues.address, entry)
            continue
        found = counted.find(done.sha256)
        if found is None:
            path = fetch_file(workplace.store, workplace.cache, fusion.distributions(model), done)
            found = counted.add(done.sha256, count_shard(path))
        counts[name] = found
    placement = place(model, fusion.config.extraction, device, len(missing))
    job = ExtractionJob(
        model,
        fusion.dataset_digest,
        fusion.config.dialogues.max_length_tokens,
        fusion.config.extraction,
        placement,
    )
    work = Work(placement)
    with (
        show_progress(f"extract {model.name}", "positions") as progress,
        closing(extract_files(job, missing, device, progress)) as written,
    ):
        for path, statistics in written:
            entry = publication.add(path.name, path)
            counts[path.name] = counted.add(entry.sha256, count_shard(path))
            path.unlink()
            work.add(statistics)
    return counts, work


class CountedShards:
    """What the shards of a stage hold, by checksum, so that going on with many of them reads none of them again.

    Parameters
    ----------
    path : Path
        Lines of JSON in the stage's work folder; one that a kill cut short is passed over.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, ShardCounts] = {}
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        for line in lines:
            with suppress(ValueError, TypeError, RecursionError):
                sha256, counts = json.loads(line)
                self._known[sha256] = ShardCounts(**counts)

    def find(self, sha256: str) -> ShardCounts | None:
        """Return what the shard with a checksum holds, None where nobody has counted it here."""
        return self._known.get(sha256)

    def add(self, sha256: str, counts: ShardCounts) -> ShardCounts:
        """Remember what a shard holds."""
        self._known[sha256] = counts
        with disk_errors(f"Writing {self._path}"), self._path.open("a", encoding="utf-8") as file:
            # A line that was cut short ends here.
            file.write(f"\n{json.dumps([sha256, asdict(counts)])}\n")
        return counts


def as_metadata(counts: list[ShardCounts]) -> dict[str, Any]:
    """Add up the counts of all shards, found ones and computed ones alike; nats per byte."""
    response_bytes = sum(one.response_bytes for one in counts)
    return {
        "positions": sum(one.positions for one in counts),
        "dialogues": sum(one.dialogues for one in counts),
        "refused": sum(one.refused for one in counts),
        "nats_per_byte": sum(one.nats for one in counts) / max(response_bytes, 1),
    }


class Work:
    """What computing the missing shards took: the token budget that held, and what of the tokens was padding."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.batch_tokens: int | None = None
        self._tokens = self._read = 0.0

    def add(self, statistics: ExtractionStatistics) -> None:
        """Count one more shard."""
        self.batch_tokens = min(self.batch_tokens or statistics.batch_tokens, statistics.batch_tokens)
        self._tokens += statistics.tokens
        self._read += statistics.tokens / (1.0 - statistics.padding_share)

    @property
    def padding_share(self) -> float | None:
        """Share of the tokens in forward passes that was padding; None where nothing was computed."""
        return 1.0 - self._tokens / self._read if self._read else None

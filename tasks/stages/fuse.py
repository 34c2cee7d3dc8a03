"""Stage: the pivot's distributions fused with those of one source, or of several at once."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fusion_core.alignment.coverage import Coverage
from fusion_core.alignment.statistics import add_counts, count_aligned_pairs
from fusion_core.dialogues import load_dialogues
from fusion_core.encoding.encoder import Encoder
from fusion_core.models.identity import ResolvedModel
from fusion_core.models.loading import load_tokenizer
from fusion_core.pairing import fuse_shard, pair_vocabulary
from fusion_core.progress import show_progress
from fusion_core.shards import read_shard, write_shard
from tasks.addresses import ResolvedFusion
from tasks.stages.prepare import shard_names
from tasks.stages.stage_task import stage_task
from tasks.store.publication import Artifact, Publication, fetch_file
from tasks.store.workplace import Stage, compute_once, open_workplace

logger = logging.getLogger(__name__)


def fuse_distributions(
    fusion: ResolvedFusion,
    sources: tuple[ResolvedModel, ...],
    dialogues: Artifact,
    distributions: Mapping[str, Artifact],
    fusion_run: str | None = None,
) -> Artifact:
    """Publish distributions over pivot tokens, fused from the pivot's and those of some sources."""
    workplace = open_workplace()
    config = fusion.config
    models = (fusion.pivot, *sources)
    stage = Stage(
        "fuse",
        fusion.group_name(sources),
        fusion.fused(sources),
        tuple(distributions[model.name].address for model in models),
        fusion_run,
        config.registry.experiment,
        uses_device=False,
    )

    def compute(publication: Publication, folder: Path, run: str | None) -> dict[str, Any]:
        length = config.dialogues.max_length_tokens
        pivot, *others = [Encoder(load_tokenizer(model), length, model.name) for model in models]
        dialogue_folder = workplace.folder(dialogues.address)
        folders = [workplace.folder(distributions[model.name].address) for model in models]
        names = shard_names(dialogues)
        vocabularies = _vocabularies(fusion, pivot, others, [dialogue_folder / name for name in names])
        coverage = Coverage()
        parts = {name: (_shard_name(name), f"coverage-{number:05d}.json") for number, name in enumerate(names)}
        finished = publication.finished_among([file for files in parts.values() for file in files])
        with show_progress(f"fuse {stage.subject}", "shards") as progress:
            for number, name in enumerate(names):
                shard_name, coverage_name = parts[name]
                done = finished.get(coverage_name) if shard_name in finished else None
                if done is None:
                    pivot_shard, *source_shards = [read_shard(part / shard_name) for part in folders]
                    shard, counted = fuse_shard(
                        load_dialogues(dialogue_folder / name),
                        pivot_shard,
                        source_shards,
                        pivot,
                        others,
                        config.alignment,
                        config.fusion,
                        vocabularies,
                        source_names=[source.name for source in sources],
                        model_digest=stage.address,
                    )
                    write_shard(folder / shard_name, shard)
                    (folder / coverage_name).write_text(json.dumps(counted.to_json()), encoding="utf-8")
                    for file in (shard_name, coverage_name):
                        publication.add(file, folder / file)
                else:
                    path = fetch_file(workplace.store, workplace.cache, stage.address, done)
                    found = Coverage.from_json(json.loads(path.read_text(encoding="utf-8"))).sources.values()
                    # Names are no part of the address: a source may have been called otherwise when this was counted.
                    counted = Coverage(dict(zip((source.name for source in sources), found, strict=True)))
                coverage += counted
                progress(number + 1, len(names))
        if config.fusion.function == "mince":
            warn_of_idle_sources(coverage)
        tracking = workplace.tracking(config.registry.experiment)
        tracking.log(run, parameters=config.alignment.model_dump() | config.fusion.model_dump())
        tracking.log(run, metrics=coverage_metrics(coverage))
        return {
            "shards": [_shard_name(name) for name in names],
            "positions": max((coverage.overall(source.name).positions for source in sources), default=0),
            "coverage": list(coverage.to_json().values()),
        }

    return compute_once(workplace, stage, compute)


fuse = stage_task(fuse_distributions, "fuse {sources[0].name}", lambda fusion, sources, *_, **__: fusion.fused(sources))


def warn_of_idle_sources(coverage: Coverage) -> None:
    """Say in the log which sources lose to the pivot everywhere."""
    for source in coverage.sources:
        if coverage.overall(source).positions_won == 0:
            logger.warning(
                "Source %s predicts no dialogue best, so nothing is learnt from it; leave it out, or give "
                "dialogues of what it is good at.",
                source,
            )


def _shard_name(name: str) -> str:
    return name.replace("dialogues-", "shard-")


def coverage_metrics(coverage: Coverage) -> dict[str, float]:
    """Flatten coverage to metrics such as ``coverage.maths.fallen_back_share``."""
    metrics: dict[str, float] = {}
    for source in coverage.sources:
        counts = coverage.overall(source)
        for name in ("fallen_back_share", "mass_kept", "won_share"):
            metrics[f"coverage.{source}.{name}"] = getattr(counts, name)
    return metrics


def _vocabularies(
    fusion: ResolvedFusion, pivot: Encoder, sources: list[Encoder], shards: list[Path]
) -> list[np.ndarray]:
    """Map each source's vocabulary to the pivot's; mapping statistics first count aligned pairs over all dialogues."""
    alignment = fusion.config.alignment
    if alignment.vocabulary != "statistics":
        return [pair_vocabulary(pivot, source, alignment) for source in sources]
    vocabularies = []
    for source in sources:
        counts = add_counts(
            count_aligned_pairs(load_dialogues(shard), pivot, source, alignment.positions) for shard in shards
        )
        vocabularies.append(pair_vocabulary(pivot, source, alignment, counts=counts))
    return vocabularies

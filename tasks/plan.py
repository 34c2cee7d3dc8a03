"""What a recipe will do, before anything runs: what the store holds already, and what the rest will cost."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fusion_core.config import DialogueFile, FusionConfig, ModelConfig
from fusion_core.devices import default_device, has_fast_bfloat16
from fusion_core.dialogues import Dialogue, load_dialogues, prepare_dialogues
from fusion_core.encoding.encoder import Encoder
from fusion_core.errors import FusionError, ModelError
from fusion_core.models.identity import resolve_model
from fusion_core.models.loading import load_tokenizer
from fusion_core.planning import (
    EncodedCounts,
    Plan,
    count_encoded,
    measure_throughput,
    plan_costs,
    read_model_size,
)
from fusion_core.planning.plan import Status
from tasks.addresses import CONTROL, FUSED, ResolvedFusion
from tasks.resolve import resolve_fusion
from tasks.stages.prepare import shard_names
from tasks.store.manifest import metadata_of
from tasks.store.publication import entries_of, fetch_file, find_artifact
from tasks.store.workplace import Workplace, open_workplace

SPLITS = ("train", "held_out")
# What a plan reads of the dialogues, however many there are.
SAMPLED_SHARDS = 16

Item = TypeVar("Item")


def make_plan(config: FusionConfig) -> Plan:
    """Estimate a recipe stage by stage; downloads no weights, and says what it could not know.

    Local models and data are read; hub models only by their config.json. Where the whole recipe is at hand, each stage
    is looked up in the store.
    """
    models = (config.pivot, *config.sources)
    local = all(model.path is not None for model in models) and all(
        file.path is not None for file in config.dialogues.files
    )
    fusion = resolve_fusion(config) if local else None
    sizes, unknown = {}, []
    for model in models:
        size, gap = read_model_size(model)
        if size is not None:
            sizes[model.name] = size
        if gap is not None:
            unknown.append(gap)
    train, held_out = _count(config, fusion, models, unknown)
    device = default_device()
    plan = plan_costs(
        config,
        models=sizes,
        train=train,
        held_out=held_out,
        device=measure_throughput(device),
        fast_bfloat16=has_fast_bfloat16(device),
        unknown=tuple(unknown),
    )
    if fusion is None:
        unknown_status: Status = "unknown"
        return plan.with_status({(row.stage, row.subject): unknown_status for row in plan.rows})
    return plan.with_status(stage_statuses(open_workplace(), fusion))


def stage_addresses(fusion: ResolvedFusion) -> dict[tuple[str, str], str]:
    """List the address of every stage of a fusion by stage and subject, in the order of the method."""
    config = fusion.config
    models = (fusion.pivot, *fusion.sources)
    addresses = {("prepare", "dialogues"): fusion.dialogues("train")}
    addresses |= {("extract", model.name): fusion.distributions(model) for model in models}
    addresses |= {("fuse", fusion.group_name(group)): fusion.fused(group) for group in fusion.groups}
    addresses |= {("train", fusion.group_name(group)): fusion.target(group) for group in fusion.groups}
    made = {fusion.target_name(group): fusion.target(group) for group in fusion.groups}
    if config.evaluation.plain_sft_control:
        made[CONTROL] = fusion.target(fusion.groups[0], lm_weight=1.0)
        addresses[("train", CONTROL)] = made[CONTROL]
    if config.strategy == "pairwise":
        made[FUSED] = fusion.merged()
        addresses[("merge", FUSED)] = made[FUSED]
    addresses |= {("evaluate", model.name): fusion.scores(model) for model in models}
    addresses |= {("evaluate", name): fusion.scores(address) for name, address in made.items()}
    return addresses


def stage_statuses(workplace: Workplace, fusion: ResolvedFusion) -> dict[tuple[str, str], Status]:
    """Look every stage of a fusion up in the store."""
    return {
        key: "cached" if find_artifact(workplace.store, address) is not None else "compute"
        for key, address in stage_addresses(fusion).items()
    }


def _count(
    config: FusionConfig, fusion: ResolvedFusion | None, models: tuple[ModelConfig, ...], unknown: list[str]
) -> tuple[dict[str, EncodedCounts], dict[str, EncodedCounts]]:
    from fusion_core.dialogues import resolve_file

    hub_files = [file for file in config.dialogues.files if file.hub is not None]
    if hub_files:
        return _expect(config, hub_files, unknown)
    found = _in_store(fusion) if fusion is not None else None
    if found is None:
        with tempfile.TemporaryDirectory(prefix="fuseline-plan-") as folder:
            files = [resolve_file(file) for file in config.dialogues.files]
            report = prepare_dialogues(files, config.dialogues, Path(folder) / "dialogues")
            paths = [sorted((Path(folder) / "dialogues" / split).glob("*.parquet")) for split in SPLITS]
            totals = [sum(part.values()) for part in (report.train, report.held_out)]
            found = [_sample(some, total) for some, total in zip(paths, totals, strict=True)]
    train, held_out = found
    train_counts, held_out_counts = {}, {}
    for model in models:
        if model.path is None:
            unknown.append(f"Model {model.name!r} is on the hub, so its tokens are not counted.")
            continue
        try:
            resolved = resolve_model(model)
            encoder = Encoder(load_tokenizer(resolved), config.dialogues.max_length_tokens, model.name)
        except FusionError as error:
            raise ModelError(str(error)) from error
        train_counts[model.name] = count_encoded(train.dialogues, encoder, total=train.total)
        held_out_counts[model.name] = count_encoded(held_out.dialogues, encoder, total=held_out.total)
    return train_counts, held_out_counts


def _expect(
    config: FusionConfig, hub_files: list[DialogueFile], unknown: list[str]
) -> tuple[dict[str, EncodedCounts], dict[str, EncodedCounts]]:
    """Bound the size of data that a plan does not fetch by the recipe's own word and the longest length."""
    names = ", ".join(str(file.hub) for file in hub_files)
    counts = [file.limit or file.expected_dialogues for file in config.dialogues.files]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        unknown.append(f"Dialogues of {names} are not fetched for a plan; give `expected_dialogues` for an estimate.")
        return {}, {}
    length = config.dialogues.max_length_tokens
    unknown.append(
        f"Dialogues of {names} are not fetched for a plan: tokens, positions and all that follows from them are upper "
        f"bounds, for {sum(known):,} dialogues of {length:,} tokens, all of them response."
    )

    def bound(share: float) -> EncodedCounts:
        dialogues = round(sum(known) * share)
        return EncodedCounts(
            dialogues=dialogues,
            tokens=dialogues * length,
            squared_tokens=dialogues * length**2,
            positions=dialogues * length,
            longest=length,
            counted=0,
            exact=False,
        )

    held_out = config.dialogues.held_out_share
    models = (config.pivot, *config.sources)
    return {model.name: bound(1 - held_out) for model in models}, {model.name: bound(held_out) for model in models}


@dataclass(frozen=True)
class _Sample:
    """Some of a part's dialogues, and how many there are in all."""

    dialogues: list[Dialogue]
    total: int


def _in_store(fusion: ResolvedFusion) -> list[_Sample] | None:
    """Read both parts out of the store where they are prepared; a plan for much data then reads little of it."""
    workplace = open_workplace()
    samples = []
    for split in SPLITS:
        address = fusion.dialogues(split)
        artifact = find_artifact(workplace.store, address)
        if artifact is None:
            return None
        entries = {entry.name: entry for entry in entries_of(workplace.store, address)}
        paths = [
            fetch_file(workplace.store, workplace.cache, address, entries[name])
            for name in _spread(shard_names(artifact))
        ]
        samples.append(_sample(paths, metadata_of(artifact)["dialogues"]))
    return samples


def _sample(paths: Sequence[Path], total: int) -> _Sample:
    return _Sample([dialogue for path in _spread(paths) for dialogue in load_dialogues(path)], total)


def _spread(several: Sequence[Item]) -> list[Item]:
    """Take some, evenly from first to last: files follow each other by domain."""
    count = min(len(several), SAMPLED_SHARDS)
    return [several[index * len(several) // count] for index in range(count)]

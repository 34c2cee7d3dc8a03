"""What a recipe will do, before anything runs: what the store holds already, and what the rest will cost."""

from __future__ import annotations

import tempfile
from pathlib import Path

from fusion_core.config import DialogueFile, FusionConfig, ModelConfig
from fusion_core.devices import default_device, has_fast_bfloat16
from fusion_core.dialogues import Dialogue, load_dialogues, prepare_dialogues
from fusion_core.encoding import Encoder
from fusion_core.errors import DialogueError, FusionError, ModelError
from fusion_core.model_loading import load_tokenizer
from fusion_core.models import resolve_model
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
from tasks.publication import find_artifact
from tasks.resolve import resolve_fusion
from tasks.workplace import Workplace, open_workplace


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
    train, held_out = _count(config, models, unknown)
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
    config: FusionConfig, models: tuple[ModelConfig, ...], unknown: list[str]
) -> tuple[dict[str, EncodedCounts], dict[str, EncodedCounts]]:
    from fusion_core.dialogues import resolve_file

    hub_files = [file for file in config.dialogues.files if file.hub is not None]
    if hub_files:
        return _expect(config, hub_files, unknown)
    with tempfile.TemporaryDirectory(prefix="fuseline-plan-") as folder:
        files = [resolve_file(file) for file in config.dialogues.files]
        prepare_dialogues(files, config.dialogues, Path(folder) / "dialogues")
        train, held_out = (_read(Path(folder) / "dialogues" / split) for split in ("train", "held_out"))
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
        train_counts[model.name] = count_encoded(train, encoder)
        held_out_counts[model.name] = count_encoded(held_out, encoder)
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


def _read(folder: Path) -> list[Dialogue]:
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise DialogueError(f"The recipe's data leave no dialogues for {folder.name}; look at `held_out_share`.")
    return [dialogue for path in paths for dialogue in load_dialogues(path)]

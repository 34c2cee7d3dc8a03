"""Commands that run one stage of a recipe alone, without Prefect or MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.command_line.fusion_commands import Recipe

ModelName = Annotated[list[str] | None, typer.Option("--model", help="Only this model; may be given several times.")]


def prepare(config: Recipe) -> None:
    """Read the data files and publish training and held-out dialogues."""
    from tasks.stored_fusion import StoredFusion

    _say([StoredFusion.open(config).prepare().train])


def extract(config: Recipe, model: ModelName = None) -> None:
    """Publish the next-token distributions of the pivot and the sources."""
    from tasks.stored_fusion import StoredFusion

    _say(StoredFusion.open(config).extract(model))


def fuse(config: Recipe) -> None:
    """Align and fuse the distributions that extract has published."""
    from tasks.stored_fusion import StoredFusion

    _say(StoredFusion.open(config).fuse())


def train(config: Recipe) -> None:
    """Train the targets, and the plain-SFT control, on what fuse has published."""
    from tasks.stored_fusion import StoredFusion

    _say(StoredFusion.open(config).train())


def merge(
    pivot: Annotated[Path, typer.Argument(help="Checkpoint folder of the pivot, or a recipe in YAML.")],
    target: Annotated[list[Path] | None, typer.Argument(help="Checkpoint folders of the targets.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the merged checkpoint; must not exist yet.")] = None,
    method: Annotated[str, typer.Option(help="varm, linear, task_arithmetic, slerp, ties, dare or sce.")] = "varm",
    granularity: Annotated[str | None, typer.Option(help="What shares one weight (varm).")] = None,
) -> None:
    """Merge checkpoint folders, or the targets of a recipe that train has published."""
    if target:
        _merge_folders(pivot, target, out, method, granularity)
        return
    from tasks.stored_fusion import StoredFusion

    _say([StoredFusion.open(pivot).merge()])


def evaluate(config: Recipe, model: ModelName = None) -> None:
    """Score models, targets and the fused model on the held-out dialogues, in nats per response byte."""
    from fusion_core.report.terminal import score_table
    from rich.console import Console

    from tasks.stored_fusion import StoredFusion

    Console().print(score_table(StoredFusion.open(config).evaluate(model)))


def _merge_folders(pivot: Path, targets: list[Path], out: Path | None, method: str, granularity: str | None) -> None:
    from pydantic import ValidationError

    from fusion_core.errors import ConfigError
    from fusion_core.merge_spec import MergeSpec
    from fusion_core.merging import merge_checkpoints
    from fusion_core.progress import show_progress
    from fusion_core.recipes import explain

    if out is None:
        raise ConfigError("Say where the merged checkpoint goes: add --out FOLDER.")
    try:
        spec = MergeSpec.model_validate({"method": method} | ({"granularity": granularity} if granularity else {}))
    except ValidationError as error:
        raise ConfigError(f"These options cannot be used: {explain(error)}") from error
    with show_progress("merge", "tensors") as progress:
        merge_checkpoints(pivot, targets, out, spec, progress=progress)
    print(f"merged: {out}")


def _say(artifacts: list) -> None:
    for artifact in artifacts:
        state = "found" if artifact.reused else f"computed in {artifact.metadata['seconds']:,.1f} s"
        print(f"{artifact.metadata['subject']}: {state}, {artifact.bytes:,} bytes at {artifact.address}")

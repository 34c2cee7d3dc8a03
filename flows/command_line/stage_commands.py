"""Commands that run one stage of a recipe alone, without Prefect or MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.command_line.folder_merge import merge_folders, read_merge_options, refuse_unread
from flows.command_line.recipe_argument import Recipe

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
    pivot: Annotated[Path | None, typer.Argument(help="Checkpoint folder of the pivot, or a recipe in YAML.")] = None,
    target: Annotated[list[Path] | None, typer.Argument(help="Checkpoint folders of the targets.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the result: new, empty, or an earlier merge.")] = None,
    method: Annotated[
        str | None, typer.Option(help="varm (the default), linear, task_arithmetic, slerp, ties, dare or sce.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the method, such as density=0.2.")
    ] = None,
    mergekit_config: Annotated[Path | None, typer.Option(help="Take models and method from mergekit's YAML.")] = None,
) -> None:
    """Merge checkpoint folders, or the targets of a recipe that train has published."""
    from fusion_core.errors import ConfigError

    if mergekit_config is not None:
        from fusion_core.merging.mergekit import read_mergekit_config

        refuse_unread("mergekit's YAML names models, method and settings", PIVOT=pivot, method=method, set=setting)
        merge_folders(*read_mergekit_config(mergekit_config), out)
    elif pivot is None:
        raise ConfigError("Name the pivot's and the targets' checkpoint folders, a recipe, or --mergekit-config.")
    elif target:
        merge_folders(pivot, target, read_merge_options(method or "varm", setting or []), out)
    else:
        from tasks.stored_fusion import StoredFusion

        what = "a recipe alone is merged as its `merge` section says, into the store (or name the targets' folders)"
        refuse_unread(what, out=out, method=method, set=setting)
        _say([StoredFusion.open(pivot).merge()])


def evaluate(
    config: Recipe,
    model: ModelName = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Score models, targets and the fused model on the held-out dialogues and the recipe's benchmarks."""
    from rich.console import Console

    from fusion_core.report.judged_terminal import judged_table
    from fusion_core.report.terminal import score_table
    from tasks.stored_fusion import StoredFusion

    stored = StoredFusion.open(config)
    scores, judged = stored.evaluate(model), stored.judge(model)
    if json_output:
        both = {"scores": scores.model_dump(mode="json"), "judged": [table.model_dump(mode="json") for table in judged]}
        print(json.dumps(both, indent=1))
        return
    Console().print(score_table(scores))
    for table in judged:
        Console(markup=False, highlight=False).print(judged_table(table))


def _say(artifacts: list) -> None:
    for artifact in artifacts:
        state = "found" if artifact.reused else f"computed in {artifact.metadata['seconds']:,.1f} s"
        print(f"{artifact.metadata['subject']}: {state}, {artifact.bytes:,} bytes at {artifact.address}")

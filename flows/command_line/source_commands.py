"""Commands on the sources of a recipe: add-source, sources, refusion, and the receiver of MLflow's webhooks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.command_line.recipe_argument import Recipe
from flows.command_line.servers_ready import make_ready

if TYPE_CHECKING:
    from tasks.landing.refusion_result import RefusionResult

RECEIVER_PORT = 4210


def add_source(
    config: Recipe,
    name: Annotated[str, typer.Argument(help="Name of the new source.", show_default=False)],
    path: Annotated[Path | None, typer.Option(help="Its checkpoint folder.")] = None,
    hub: Annotated[str | None, typer.Option(help="Its hub repository, instead of a folder.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of the hub repository.")] = None,
    only_write: Annotated[bool, typer.Option("--only-write", help="Change the recipe and run nothing.")] = False,
    announce: Annotated[
        bool, typer.Option("--announce", help="Change the recipe and let Prefect's deployment fuse, not this machine.")
    ] = False,
) -> None:
    """Add a source to a recipe and fuse again: only the new source's share of the work is done."""
    from fusion_core.errors import ConfigError, FusionError
    from fusion_core.recipes import add_source_to_recipe
    from tasks.landing.refusion_result import QUARANTINED
    from tasks.resolve import resolve_fusion

    if only_write and announce:
        raise ConfigError("--only-write starts nothing and --announce starts a deployment; give one of them.")
    if announce:
        make_ready()
    folder = None if path is None else str(path.expanduser().absolute())
    recipe = add_source_to_recipe(config, name, model=folder, hub=hub, revision=revision, check=resolve_fusion)
    print(f"Source {name} is now in {config}.")
    if only_write:
        return
    if announce:
        from tasks.landing.source_events import announce_source

        announce_source(recipe.name, name, f"recipe:{name}")
        print(f"Prefect was told (event fuseline.source.landed for recipe {recipe.name}).")
        return
    result = _run_refusion(config)
    for item in result.in_state(QUARANTINED):
        if item.name == name:
            raise FusionError(f"Source {name!r} was quarantined, and the champion stays: {item.reason}")


def refusion(config: Recipe) -> None:
    """Take in the sources that have landed for a recipe; does nothing, and says so, when none is new."""
    _run_refusion(config)


def sources(
    config: Recipe,
    release: Annotated[str | None, typer.Option(help="Let this quarantined source be tried again.")] = None,
    quarantine: Annotated[str | None, typer.Option(help="Keep this source out of fusions from now on.")] = None,
    reason: Annotated[str, typer.Option(help="Why; goes with --quarantine.")] = "",
    json_output: Annotated[bool, typer.Option("--json", help="Print the sources as JSON.")] = False,
) -> None:
    """List a recipe's sources, where they landed and what became of them."""
    from rich.console import Console
    from rich.table import Table

    from fusion_core.errors import ConfigError
    from fusion_core.recipes import load_recipe
    from tasks.landing.quarantine import record_source, release_source
    from tasks.landing.refusion_result import QUARANTINED
    from tasks.landing.survey import survey_sources
    from tasks.store.workplace import open_workplace

    if bool(quarantine) != bool(reason):
        raise ConfigError("--quarantine and --reason go together; say which source, and why.")
    recipe = load_recipe(config)
    found = survey_sources(recipe)
    if release:
        release_source(open_workplace(), recipe, found.find(release).source)
    if quarantine:
        item = found.find(quarantine)
        record_source(open_workplace(), recipe, item.source, QUARANTINED, reason, item.digest)
    if release or quarantine:
        found = survey_sources(recipe)
    if json_output:
        print(found.model_dump_json(indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("source", "state", "landed at", "why"):
        table.add_column(column, overflow="fold")
    for item in found.sources:
        table.add_row(item.source.name, item.state, item.source.reference, item.reason)
    Console(markup=False).print(table)
    print(f"champion: {'version ' + found.champion if found.champion else 'none yet'}")


def receiver(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = RECEIVER_PORT,
) -> None:
    """Take MLflow's registry webhooks at /mlflow and tell Prefect when a source was registered.

    The secret that MLflow signs with is read from FUSELINE_WEBHOOK_SECRET.
    """
    from tasks.landing.serve_receiver import serve_receiver

    make_ready()
    serve_receiver(host, port)


def _run_refusion(config: Path) -> RefusionResult:
    from fusion_core.recipes import load_recipe

    # A mistake in the recipe is said before Prefect and MLflow start.
    load_recipe(config)
    make_ready()
    from flows.command_line.output import print_result
    from flows.refusion import refusion as refusion_flow
    from tasks.landing.refusion_result import RefusionResult

    state = refusion_flow(str(config.expanduser().absolute()), return_state=True)
    result = state.result()
    assert isinstance(result, RefusionResult)
    print(f"{state.name}: {state.message}")
    if result.fusion is not None:
        print_result(result.fusion)
    return result

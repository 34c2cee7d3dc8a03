"""Commands on the object store: ls, du, verify, gc."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

# What an artifact says of the run that asks for it, not of what lies in the store.
PER_RUN = {"reused", "seconds"}
JsonOutput = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]

cache = typer.Typer(help="Look after what the store holds.", no_args_is_help=True)


@cache.command("ls")
def list_contents(json_output: JsonOutput = False) -> None:
    """List every publication: stage, what it is for, size, and whether it is whole."""
    from tasks.store.contents import read_contents

    contents = read_contents(_store())
    if json_output:
        whole = [
            {"stage": one.stage, "published": one.published, **one.artifact.model_dump(mode="json", exclude=PER_RUN)}
            for one in contents.artifacts
        ]
        unfinished = [{"address": part.address, "bytes": part.bytes} for part in contents.unfinished]
        broken = [vars(one) for one in contents.broken_manifests]
        print(json.dumps({"whole": whole, "unfinished": unfinished, "broken": broken}, indent=1))
        return
    table = _table("stage", "for", "state", "bytes", "published", "address")
    for stored in contents.artifacts:
        when = datetime.fromtimestamp(stored.published).isoformat(" ", "minutes")
        subject = str(stored.artifact.metadata.get("subject", ""))
        table.add_row(stored.stage, subject, "whole", f"{stored.artifact.bytes:,}", when, stored.artifact.address)
    for part in contents.unfinished:
        table.add_row("", "", "unfinished", f"{part.bytes:,}", "", part.address)
    for torn in contents.broken_manifests:
        table.add_row("", "", f"broken: {torn.found}", "", "", torn.address)
    _print(table)


@cache.command("du")
def show_usage(json_output: JsonOutput = False) -> None:
    """Say how many bytes each stage takes."""
    from tasks.store.contents import disk_usage

    usage = disk_usage(_store())
    if json_output:
        stages = {stage: {"bytes": size, "objects": objects} for stage, (size, objects) in usage.by_stage.items()}
        print(json.dumps({"bytes": usage.bytes, "objects": usage.objects, "stages": stages}, indent=1))
        return
    table = _table("stage", "bytes", "objects")
    for stage, (size, objects) in sorted(usage.by_stage.items()):
        table.add_row(stage, f"{size:,}", f"{objects:,}")
    table.add_row("all", f"{usage.bytes:,}", f"{usage.objects:,}")
    _print(table)


@cache.command("verify")
def verify_contents() -> None:
    """Read every object and compare it with its manifest; exits 2 when one is broken."""
    from fusion_core.progress import show_progress
    from tasks.store.collection import verify

    with show_progress("verify", "bytes") as progress:
        broken = verify(_store(), progress=progress)
    for item in broken:
        print(f"{item.address}/{item.name}: {item.found}")
    if broken:
        raise typer.Exit(2)
    print("Every object is what its manifest says.")


@cache.command("gc")
def collect(
    recipe: Annotated[list[Path] | None, typer.Option(help="A recipe in use; what it needs is kept.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it nothing is touched.")] = False,
) -> None:
    """Show, and with --yes delete, what no registered model and no given recipe needs."""
    from tasks.clean_cache import garbage_rows
    from tasks.settings import Settings
    from tasks.store.collection import collect_garbage
    from tasks.store.collection_roots import addresses_in_use
    from tasks.store.local_leftovers import delete_local_leftovers, find_local_leftovers

    settings, in_use = Settings(), addresses_in_use(recipe or [])
    garbage = collect_garbage(_store(), in_use, delete=yes)
    local = find_local_leftovers(settings, in_use)
    if yes:
        delete_local_leftovers(settings, local)
    table = _table("what", "bytes", "address")
    for row in garbage_rows(garbage, local):
        table.add_row(str(row["what"]), f"{row['bytes']:,}", str(row["address"]))
    _print(table)
    verb = "deleted" if yes else "would be deleted; add --yes to do it"
    print(f"{table.row_count} of them {verb}; {len(garbage.kept)} publications are needed and stay.")


def _store() -> Any:
    from tasks.settings import Settings
    from tasks.store.open_store import open_store

    return open_store(Settings())


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in ("bytes", "objects") else "left")
    return table


def _print(table: Any) -> None:
    from rich.console import Console

    Console(markup=False).print(table)

"""Commands on registered versions: promote, rollback, lineage, reproduce."""

from __future__ import annotations

import getpass
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.command_line.servers_ready import make_ready
from fusion_core.errors import ConfigError

if TYPE_CHECKING:
    from tasks.registry.promotion import Candidacy

Model = Annotated[str, typer.Argument(help="Registered model's name.", metavar="NAME", show_default=False)]
Version = Annotated[str, typer.Argument(help="Version, such as 3.", show_default=False)]


def promote(
    model: Model,
    version: Annotated[str | None, typer.Option(help="Version; default: the candidate.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what the gates say and change nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Promote whatever the gates say; needs --reason.")] = False,
    reason: Annotated[str, typer.Option(help="Why it is forced; kept with the version.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Approve where the recipe wants a person's word.")] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="With --dry-run: print what the gates say as JSON.")
    ] = False,
) -> None:
    """Hold a version against its recipe's gates and make it champion if it passes; exits 2 when it does not."""
    if force and not reason:
        raise ConfigError("A forced promotion needs --reason, which is kept with the version.")
    if reason and not force:
        raise ConfigError("--reason belongs to --force; remove it, or add --force.")
    if json_output and not dry_run:
        raise ConfigError("--json belongs to --dry-run; add that, or remove --json.")
    make_ready()
    from flows.command_line.registry_tables import print_decision
    from flows.promote import promote as promote_flow
    from tasks.registry.promotion import PromotionError, judge_version

    candidacy = judge_version(model, version)
    if json_output:
        decision = candidacy.decision
        said = {"passed": decision.passed, "reason": decision.reason}
        print(json.dumps(candidacy.model_dump(mode="json", exclude={"config"}) | said, indent=1))
        return
    print_decision(candidacy)
    asked = candidacy.config.approval == "manual" and candidacy.decision.passed and not (force or dry_run)
    decided_by = _ask(candidacy, yes) if asked and not candidacy.is_champion else ""
    promotion = promote_flow(
        model, candidacy.version, dry_run=dry_run, force=force, reason=reason, decided_by=decided_by
    )
    if promotion.promoted:
        before = f", before it version {promotion.previous}" if promotion.previous else ""
        print(f"{model} version {promotion.champion} is champion{before}.")
    elif promotion.outcome in ("dry run", "unchanged"):
        would = "would become champion" if candidacy.decision.passed else "would not become champion"
        stays = "is champion already" if candidacy.is_champion else would
        print(f"{model} version {promotion.version} {stays}; nothing was changed.")
    else:
        raise PromotionError(
            f"{model} version {promotion.version} was {promotion.outcome}: {promotion.reason}. Improve it, or "
            "promote it with --force --reason WHY."
        )


def rollback(
    model: Model, reason: Annotated[str, typer.Option(help="Why; kept with the version that is taken back.")] = ""
) -> None:
    """Make the champion before this one the champion again; the two change places."""
    make_ready()
    from flows.promote import rollback as rollback_flow

    promotion = rollback_flow(model, reason)
    print(f"{model} version {promotion.champion} is champion again, before it version {promotion.previous}.")


def lineage(
    model: Model,
    version: Version,
    json_output: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say what a registered version was made from: targets, shards, sources, data, code and packages."""
    make_ready()
    from flows.command_line.registry_tables import print_lineage
    from tasks.registry.lineage import read_lineage

    found = read_lineage(model, version)
    if json_output:
        print(found.model_dump_json(indent=1))
    else:
        print_lineage(found)


def reproduce(
    model: Model,
    version: Version,
    out: Annotated[Path | None, typer.Option(help="Folder for the files; default: NAME-VERSION here.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Resolve it here too: would it give the same bytes?")] = False,
) -> None:
    """Write the recipe, everything in it pinned, and the commands that make a registered version again."""
    make_ready()
    from tasks.registry.reproduce import check_reproduction, write_reproduction

    made = write_reproduction(model, version, out or Path(f"{model}-{version}"))
    print(f"recipe:   {made.recipe}")
    print(f"commands: {made.commands}")
    print(f"address:  {made.address}")
    print(f"run:      {made.command}")
    if check:
        differences = check_reproduction(made, model, version)
        if differences:
            raise ConfigError(f"Run here and now, {made.recipe} gives another address: {'; '.join(differences)}.")
        print("Run here and now, it gives the same address.")


def _ask(candidacy: Candidacy, yes: bool) -> str:
    """Return who approves, empty where Prefect's pages are to be asked."""
    from tasks.settings import Settings

    if yes:
        return getpass.getuser()
    if sys.stdin.isatty():
        question = f"Make version {candidacy.version} champion of {candidacy.model_name}?"
        typer.confirm(question, abort=True)
        return getpass.getuser()
    if not Settings().prefect_api_url:
        raise ConfigError(
            f"The recipe of {candidacy.model_name!r} wants a person's approval and nobody can be asked here: run it on "
            "a terminal, add --yes, or set PREFECT_API_URL and answer in Prefect's pages."
        )
    print("Waiting for an answer in Prefect's pages.")
    return ""

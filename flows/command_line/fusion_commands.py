"""Commands on a whole fusion: plan, run, report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.command_line.recipe_argument import Recipe
from flows.command_line.servers_ready import make_ready

WIDTH_IN_FILES = 110


def plan(
    config: Recipe, json_output: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False
) -> None:
    """Say what a run will do: what is cached, and what the rest costs in FLOPs, bytes, memory and hours."""
    from rich.console import Console

    from fusion_core.planning import plan_table
    from fusion_core.recipes import load_recipe
    from tasks.plan import make_plan

    made = make_plan(load_recipe(config))
    if json_output:
        print(made.model_dump_json(indent=1))
    else:
        # In a file or a pipe no column is cut off.
        Console(width=None if sys.stdout.isatty() else WIDTH_IN_FILES).print(plan_table(made))


def run(
    config: Recipe,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:
    """Fuse: extract, align and fuse, train the targets, merge, evaluate, register; what is cached is not done again."""
    from fusion_core.recipes import load_recipe
    from tasks.resolve import resolve_fusion
    from tasks.settings import Settings
    from tasks.store.open_store import open_store

    recipe = load_recipe(config)
    # A mistake in the recipe is said before Prefect and MLflow start, and before anything is written.
    resolve_fusion(recipe)
    make_ready()
    # So is a store that does not answer, or does not know these credentials.
    open_store(Settings())
    from flows.command_line.output import print_result
    from flows.fusechat import fusechat

    result = fusechat(recipe)
    if json_output:
        print(result.model_dump_json(indent=1))
    else:
        print_result(result)


def report(
    run: Annotated[
        str,
        typer.Argument(
            help="Id of an MLflow run, name of a recipe (its newest run), or a recipe in YAML (what the store holds).",
            show_default=False,
        ),
    ],
) -> None:
    """Write the HTML report of a run anew; computes nothing."""
    recipe = Path(run)
    if recipe.is_file() or recipe.suffix in (".yaml", ".yml"):
        from fusion_core.recipes import load_recipe
        from tasks.stored_fusion import summarize_stored

        path = summarize_stored(load_recipe(recipe)).folder / "report.html"
    else:
        from tasks.runs.report import report_of_run

        path = report_of_run(run)
    print(f"report: {path}")

"""Commands on sweeps: ablate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.command_line.recipe_argument import Recipe


def ablate(
    config: Recipe,
    sweep: Annotated[Path, typer.Argument(help="Sweep in YAML: which settings take which values.", show_default=False)],
    only_plan: Annotated[bool, typer.Option("--plan", help="Say how much work the fusions share, and stop.")] = False,
) -> None:
    """Fuse a recipe in many variants, with several seeds each, and compare the fused models."""
    from fusion_core.recipes import load_recipe
    from fusion_core.sweeps import expand, load_sweep
    from tasks.sweep import shared_work

    chosen = load_sweep(sweep)
    work = shared_work(expand(chosen, load_recipe(config)))
    print(f"{work}.")
    if only_plan:
        return
    from flows.ablate import ablate as ablate_flow
    from flows.command_line.servers_ready import make_ready

    make_ready()
    result = ablate_flow(chosen, str(config))
    print((result.folder / "sweep.md").read_text(encoding="utf-8"))
    print(f"all scores and the plot: {result.folder}")

"""What a re-fusion shows: its final state's name, and a table of the recipe's sources as a Prefect artifact."""

from __future__ import annotations

from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed

from fusion_core.errors import FusionError
from tasks.landing.refusion_result import DUPLICATE, FUSED, QUARANTINED, WAITING, RefusionResult
from tasks.landing.survey import Survey
from tasks.runs.artifact_keys import artifact_key


def conclude(found: Survey, result: RefusionResult) -> Any:
    """Show what became of every source, and end the flow in a state that says what happened.

    Returns
    -------
    State
        Completed, by the name of NothingNew, Fused or Quarantined.

    Raises
    ------
    FusionError
        A new source could not be tried, for no fault of its own; the next re-fusion tries again.
    """
    happened = [f"{item.name} {item.state}: {item.reason}" for item in result.sources]
    happened += [f"version {one.version} is champion now" for one in result.verdicts if one.promoted]
    message = "; ".join(happened) or f"nothing new: {_counted(found)}"
    _write_table(found, message)
    waiting = result.in_state(WAITING)
    if waiting:
        raise FusionError(
            f"Source {waiting[0].name!r} of {found.recipe!r} could not be tried and waits for the next re-fusion: "
            f"{waiting[0].reason}"
        )
    names = {FUSED: "Fused", QUARANTINED: "Quarantined"}
    name = next((names[state] for state in (FUSED, QUARANTINED) if result.in_state(state)), "NothingNew")
    return Completed(name=name, message=message, data=result)


def _counted(found: Survey) -> str:
    counts = {state: len(found.in_state(state)) for state in (FUSED, DUPLICATE, QUARANTINED)}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return f"{told or 'no source'}; champion: {_champion(found)}"


def _champion(found: Survey) -> str:
    return f"version {found.champion}" if found.champion else "none yet"


def _write_table(found: Survey, message: str) -> None:
    lines = [f"**{message}**", "", f"Champion before: {_champion(found)}", ""]
    lines += ["| source | where it landed | state | why |", "|---|---|---|---|"]
    for item in found.sources:
        cells = (item.source.name, item.source.reference, item.state, item.reason)
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    create_markdown_artifact(
        key=artifact_key(f"sources-{found.recipe}"),
        markdown="\n".join(lines),
        description=f"The sources of {found.recipe}, and what became of each.",
    )

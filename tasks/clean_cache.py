"""Clean-up of the store, and of what stopped runs left on this machine, as a task; its findings as a table."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict

from tasks.recipe_names import find_recipe
from tasks.store.collection import Garbage, collect_garbage
from tasks.store.collection_roots import addresses_in_use
from tasks.store.local_leftovers import LocalLeftover, delete_local_leftovers, find_local_leftovers
from tasks.store.workplace import open_workplace


class Cleaned(BaseModel):
    """What a clean-up found."""

    model_config = ConfigDict(frozen=True)

    unneeded: int
    bytes: int
    kept: int
    deleted: bool


def clean_store(recipes: Sequence[str], delete: bool) -> Cleaned:
    """Find, and delete if asked, what no registered model and none of the recipes needs."""
    in_use = addresses_in_use([find_recipe(recipe) for recipe in recipes])
    workplace = open_workplace()
    garbage = collect_garbage(workplace.store, in_use, delete=delete)
    local = find_local_leftovers(workplace.settings, in_use)
    if delete:
        delete_local_leftovers(workplace.settings, local)
    rows = garbage_rows(garbage, local)
    freed = garbage.bytes + sum(leftover.bytes for leftover in local)
    verb = "Deleted" if delete else "Would be deleted"
    create_table_artifact(
        rows or [{"what": "nothing", "bytes": 0, "address": ""}],
        key="clean-cache",
        description=f"{verb}: {len(rows)} with {freed:,} bytes; {len(garbage.kept)} publications stay.",
    )
    return Cleaned(unneeded=len(rows), bytes=freed, kept=len(garbage.kept), deleted=delete)


def garbage_rows(garbage: Garbage, local: Sequence[LocalLeftover]) -> list[dict[str, str | int]]:
    """Return a row of what, bytes and address for each thing that nobody needs."""
    unneeded = [
        (f"{stored.stage} no longer needed", stored.artifact.bytes, stored.artifact.address)
        for stored in garbage.unneeded
    ]
    unfinished = [("unfinished for a day", part.bytes, part.address) for part in garbage.unfinished]
    left = [("left over", info.size, info.key) for info in (*garbage.strays, *garbage.leftovers)]
    here = [("left over on this machine", leftover.bytes, str(leftover.path)) for leftover in local]
    return [
        {"what": what, "bytes": size, "address": address}
        for what, size, address in (*unneeded, *unfinished, *left, *here)
    ]


clean = task(name="clean the cache", cache_policy=NO_CACHE, persist_result=False)(clean_store)

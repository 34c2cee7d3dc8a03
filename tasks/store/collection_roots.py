"""What garbage collection must keep: everything a registered model, or a recipe in use, was or will be made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fusion_core.recipes import load_recipe
from tasks.plan import stage_addresses
from tasks.registry.versions import ADDRESS, search_versions
from tasks.resolve import resolve_fusion
from tasks.runs.tracking import Tracking
from tasks.settings import Settings
from tasks.stages.benchmarks import benchmark_addresses
from tasks.stages.judged import judged_addresses


def addresses_in_use(recipes: Sequence[Path]) -> set[str]:
    """Return the addresses of all registered fused models and of every stage of some recipes."""
    versions = search_versions(Tracking(Settings(), "fuseline"))
    roots = {version.tags[ADDRESS] for version in versions if ADDRESS in version.tags}
    for recipe in recipes:
        fusion = resolve_fusion(load_recipe(recipe))
        roots |= {
            *stage_addresses(fusion).values(),
            *benchmark_addresses(fusion),
            *judged_addresses(fusion),
            fusion.dialogues("held_out"),
        }
    return roots

"""Re-fusion: what a new source adds, and nothing else, is computed; then the gates decide.

The recipe's file is its user's and stays as it is. What is fused is the recipe's own sources, then those that have
landed for it in MLflow's registry or in the store, as they landed (`tasks.landing.sources`), equal content once,
without those in quarantine. New is what the champion was not made of (`tasks.registry.champion_sources`) and what was
not decided before (`tasks.landing.quarantine`). New sources are taken in one by one, each on top of those that were
accepted, so that a bad one is known by name: it is quarantined with the reason, the champion stays, and the next one
has its turn.
"""

from __future__ import annotations

from pathlib import PurePath

from prefect import flow
from prefect.runtime import flow_run

from flows.fusechat import fusechat
from flows.refusion_gates import ask_for_promotion, judge
from fusion_core.config import FusionConfig, ModelConfig
from tasks.landing.entry_test import entry_run, require_quality
from tasks.landing.refusion_report import conclude
from tasks.landing.refusion_result import FUSED, RefusionResult
from tasks.landing.survey import LANDED, Survey, SurveyedSource, effective_recipe, survey
from tasks.landing.take_in import double_of, fetch, is_whole, land, one_refusion, remember, settle
from tasks.recipe_names import RecipeName, load_named_recipe
from tasks.resolve import resolve_fusion
from tasks.stages.evaluate import evaluate
from tasks.stages.prepare import prepare
from tasks.stages.stage_task import log_errors_plainly, mend_broken_objects


def _run_name() -> str:
    return f"refusion of {PurePath(flow_run.parameters['recipe']).stem}"


@flow(name="refusion", flow_run_name=_run_name)
@mend_broken_objects
def refusion(recipe: RecipeName = "demo", source: ModelConfig | None = None) -> RefusionResult:
    """Take in the sources that have landed for a recipe since its champion was fused.

    Parameters
    ----------
    recipe
        Name of a recipe in the folder FUSELINE_RECIPES, or path of its file.
    source
        A source to land first; without one, only those that have landed already are looked at.
    """
    log_errors_plainly()
    config = load_named_recipe(recipe)
    if source is not None:
        land(config, source)
    result = RefusionResult(recipe=config.name)
    with one_refusion(config) as lock:
        found = survey(config)
        if not found.started:
            found, result = fuse_first(config, found, result)
        for new in found.in_state(LANDED):
            lock.require()
            found, result = take_in(config, found, new, result)
    result = ask_for_promotion(config, result)
    return conclude(found, result)


def fuse_first(config: FusionConfig, found: Survey, result: RefusionResult) -> tuple[Survey, RefusionResult]:
    """Fuse the recipe's own sources, all at once; a fault in one of them is the recipe's, to be mended there.

    Where MLflow has lost the fused versions and the store still knows what was accepted, that is fused again.
    """
    chosen = [
        item
        for item in found.sources
        if item.state == FUSED or (item.state == LANDED and item.source.origin == "recipe")
    ]
    fused = fusechat(effective_recipe(config, [item.source for item in chosen]))
    verdict = judge(config, fused)
    for item in chosen:
        outcome = remember(config, item.source, FUSED, f"in version {fused.model_version}", item.digest)
        found, result = found.settled(item, outcome), result.after(outcome)
    return found, result.registered(fused, verdict)


def take_in(
    config: FusionConfig, found: Survey, new: SurveyedSource, result: RefusionResult
) -> tuple[Survey, RefusionResult]:
    """Fuse one new source on top of the accepted ones, and accept it when the fused model passes the gates."""
    accepted = [item.source for item in found.in_state(FUSED)]
    if accepted and not is_whole(base := effective_recipe(config, accepted)):
        # What is missing of the others is made before the new one comes, which so answers for its own faults alone.
        fusechat(base)
    digest = None
    try:
        digest = fetch(config, new.source)
        outcome = double_of(config, found, new, digest)
        if outcome is None:
            effective = effective_recipe(config, found.in_order([*accepted, new.source]))
            pass_entry_test(effective, new.source.name)
            fused = fusechat(effective)
            verdict = judge(effective, fused)
            result = result.registered(fused, verdict)
            outcome = remember(config, new.source, *verdict.of_source, digest)
    except Exception as error:
        outcome = settle(config, new.source, digest, error)
    return found.settled(new, outcome, digest), result.after(outcome)


def pass_entry_test(config: FusionConfig, name: str) -> None:
    """Score a new source on the held-out dialogues before anything is extracted from it."""
    fusion = resolve_fusion(config)
    source = next(model for model in fusion.sources if model.name == name)
    with entry_run(fusion, source) as run:
        held_out = prepare(fusion, run).held_out
        pivot = evaluate(fusion, fusion.pivot, fusion.pivot.name, held_out, run)
        require_quality(fusion, source, pivot, evaluate(fusion, source, name, held_out, run), run)

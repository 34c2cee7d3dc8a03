"""Promotion: a registered fused model is held against its gates and becomes champion, or does not."""

from __future__ import annotations

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from flows.approval import ask_a_person
from fusion_core.errors import ConfigError
from tasks.registry.promotion import Candidacy, Promotion, judge_version, leave_champion, move_champion, roll_back
from tasks.runs.artifact_keys import artifact_key
from tasks.stages.stage_task import log_errors_plainly

judge = task(name="judge", task_run_name="ask the gates", cache_policy=NO_CACHE, persist_result=False)(judge_version)
make_champion = task(name="make champion", cache_policy=NO_CACHE, persist_result=False)(move_champion)
leave = task(name="leave champion", cache_policy=NO_CACHE, persist_result=False)(leave_champion)
go_back = task(name="roll back", cache_policy=NO_CACHE, persist_result=False)(roll_back)


@flow(name="promote", flow_run_name="promote {model_name}", persist_result=False)
def promote(
    model_name: str,
    version: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    reason: str = "",
    decided_by: str = "",
) -> Promotion:
    """Hold a registered version against the gates of its recipe and make it champion if it passes.

    Parameters
    ----------
    model_name : str
        Registered model's name.
    version : str, optional
        Default: the candidate.
    dry_run : bool
        Show what the gates say and change nothing.
    force : bool
        Promote whatever the gates say; needs a reason.
    reason : str
        Why it is forced; kept with the version.
    decided_by : str
        Who has approved already; with ``approval: manual`` nobody is asked then.
    """
    log_errors_plainly()
    if force and not reason:
        raise ConfigError("A forced promotion needs a reason, which is kept with the version; give one.")
    candidacy = judge(model_name, version)
    show_decision(candidacy)
    if candidacy.is_champion:
        return leave(candidacy, "unchanged", f"version {candidacy.version} is champion already")
    if dry_run:
        return leave(candidacy, "dry run", candidacy.decision.reason)
    if force:
        return make_champion(candidacy, force_reason=reason, decided_by=decided_by)
    if not candidacy.decision.passed:
        return leave(candidacy, "refused", candidacy.decision.reason)
    if candidacy.config.approval == "manual" and not decided_by:
        answer = ask_a_person(candidacy)
        if not answer.approve:
            return leave(candidacy, "declined", answer.reason or "a person declined it", answer.name)
        decided_by = answer.name
    return make_champion(candidacy, decided_by=decided_by)


@flow(name="rollback", flow_run_name="roll back {model_name}", persist_result=False)
def rollback(
    model_name: str,
    reason: str = "",
) -> Promotion:
    """Give the alias 'champion' back to the version that had it before; ``reason`` is kept with what is taken back."""
    log_errors_plainly()
    return go_back(model_name, reason)


def show_decision(candidacy: Candidacy) -> None:
    """Leave the decision with every number on Prefect's page of this run."""
    create_markdown_artifact(
        key=artifact_key(f"promotion-{candidacy.model_name}"),
        markdown=f"# {candidacy.model_name} version {candidacy.version}\n\n{candidacy.decision.markdown()}",
        description=f"What the gates say of version {candidacy.version}",
    )

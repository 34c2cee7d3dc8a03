"""FuseChat as one flow: pairwise fusion into targets, then a merge (arXiv 2402.16107)."""

from __future__ import annotations

from prefect import flow

from fusion_core.config import FusionConfig
from tasks.addresses import CONTROL, FUSED
from tasks.registry.register import FusionResult, register
from tasks.resolve import resolve_fusion
from tasks.runs.fusion_run import fusion_run
from tasks.runs.page_tables import show_plan, show_result
from tasks.stages.benchmarks import run_benchmarks
from tasks.stages.evaluate import evaluate, subjects_of
from tasks.stages.extract_parts import extract_models
from tasks.stages.fan_out import fan_out, task_runner
from tasks.stages.fuse import fuse
from tasks.stages.judged import run_judged
from tasks.stages.merge import merge
from tasks.stages.prepare import prepare
from tasks.stages.stage_task import log_errors_plainly, mend_broken_objects
from tasks.stages.summarize import summarize
from tasks.stages.train import train, train_control


@flow(name="fusechat", flow_run_name="{config.name}", task_runner=task_runner())
@mend_broken_objects
def fusechat(config: FusionConfig) -> FusionResult:
    """Fuse every source's knowledge into the pivot, merge the targets, score and register the fused model."""
    log_errors_plainly()
    fusion = resolve_fusion(config)
    show_plan(fusion)
    with fusion_run(fusion) as run:
        dialogues = prepare(fusion, run)

        models = (fusion.pivot, *fusion.sources)
        distributions = extract_models(fusion, models, dialogues.train, run)
        pairs = {group: (fusion, group, dialogues.train, distributions, run) for group in fusion.groups}
        fused = fan_out(fuse, pairs)
        targets = {
            fusion.target_name(group): train(fusion, fusion.target_name(group), group, fused[group], run)
            for group in fusion.groups
        }
        controls = {CONTROL: train_control(fusion, fused, run)} if config.evaluation.plain_sft_control else {}
        merged = merge(fusion, list(targets.values()), run)
        checkpoints = {**targets, **controls, FUSED: merged}

        subjects = subjects_of(fusion, checkpoints)
        calls = {name: (fusion, subject, name, dialogues.held_out, run) for name, subject in subjects.items()}
        scores = fan_out(evaluate, calls)
        benchmarks = {name: run_benchmarks(fusion, subject, name, run) for name, subject in subjects.items()}
        judged = {name: run_judged(fusion, subject, name, run) for name, subject in subjects.items()}

        files = summarize(
            fusion, dialogues, distributions, list(fused.values()), checkpoints, scores, benchmarks, judged, run
        )
        show_result(fusion, files, run)
        return register(fusion, merged, files, run)

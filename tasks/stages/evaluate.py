"""Stage: the held-out nats per byte of one model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_core.devices import default_device
from fusion_core.evaluation.held_out import score_held_out
from fusion_core.evaluation.held_out_scores import HeldOutScores
from fusion_core.models.identity import ResolvedModel
from fusion_core.models.loading import load_tokenizer
from fusion_core.models.placement import load_for_reading, place
from fusion_core.progress import show_progress
from tasks.addresses import ResolvedFusion
from tasks.runs.inputs import model_parameters
from tasks.stages.prepare import read_split
from tasks.stages.stage_task import stage_task
from tasks.store.publication import Artifact, Publication
from tasks.store.workplace import Stage, Workplace, compute_once, open_workplace

SCORES = "scores.json"


def score_model(
    fusion: ResolvedFusion,
    model: ResolvedModel | Artifact,
    name: str,
    held_out: Artifact,
    fusion_run: str | None = None,
) -> Artifact:
    """Publish the held-out scores of a model of the recipe, or of a checkpoint that the run has made."""
    workplace = open_workplace()
    config = fusion.config
    stage = Stage(
        "evaluate",
        name,
        fusion.scores(model if isinstance(model, ResolvedModel) else model.address),
        (held_out.address, *(() if isinstance(model, ResolvedModel) else (model.address,))),
        fusion_run,
        config.registry.experiment,
        uses_device=True,
    )

    def compute(publication: Publication, folder: Path, run: str | None) -> dict[str, Any]:
        resolved = model if isinstance(model, ResolvedModel) else as_model(workplace, fusion, model, name)
        device = default_device()
        with show_progress(f"evaluate {name}", "positions") as progress:
            scores = score_held_out(
                load_for_reading(resolved, device, place(resolved, config.extraction, device, 1)),
                load_tokenizer(resolved),
                read_split(workplace, held_out),
                max_length_tokens=config.dialogues.max_length_tokens,
                batch_tokens=config.evaluation.batch_tokens,
                model_name=name,
                device=device,
                progress=progress,
            )
        path = folder / SCORES
        path.write_text(scores.model_dump_json(), encoding="utf-8")
        publication.add(SCORES, path)
        figures = {"nats_per_byte": scores.nats_per_byte}
        figures |= {f"nats_per_byte.{domain}": value for domain, value in scores.domains.items()}
        workplace.tracking(config.registry.experiment).log(
            run,
            metrics=figures,
            parameters={**model_parameters(resolved), "max_length_tokens": config.dialogues.max_length_tokens},
        )
        return {"model": name, **figures, "dialogues": len(scores.dialogues), "refused": len(scores.refused)}

    return compute_once(workplace, stage, compute)


evaluate = stage_task(
    score_model,
    "evaluate {name}",
    lambda fusion, model, *_, **__: fusion.scores(model.address if isinstance(model, Artifact) else model),
)


def subjects_of(fusion: ResolvedFusion, checkpoints: Mapping[str, Artifact]) -> dict[str, ResolvedModel | Artifact]:
    """Return everything that is scored, by name: the recipe's models, and what was made from them."""
    return {**{model.name: model for model in (fusion.pivot, *fusion.sources)}, **checkpoints}


def as_model(workplace: Workplace, fusion: ResolvedFusion, checkpoint: Artifact, name: str) -> ResolvedModel:
    """Describe a target or the fused model as a model to load: the pivot's tokenizer, its own weights."""
    return ResolvedModel(
        name=name,
        folder=workplace.folder(checkpoint.address),
        digest=checkpoint.address,
        tokenizer_digest=fusion.pivot.tokenizer_digest,
        chat_template=fusion.pivot.chat_template,
        dtype=fusion.pivot.dtype,
        trust_remote_code=fusion.pivot.trust_remote_code,
    )


def read_scores(workplace: Workplace, artifact: Artifact, name: str) -> HeldOutScores:
    """Read published scores; ``name`` is what this run calls the model, which is no part of the address."""
    text = (workplace.folder(artifact.address) / SCORES).read_text(encoding="utf-8")
    return HeldOutScores.model_validate_json(text).model_copy(update={"model_name": name})

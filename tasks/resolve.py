"""Pins a recipe: models to their content or commit, data to their content."""

from __future__ import annotations

from dataclasses import replace

from fusion_core.config import FusionConfig
from fusion_core.dialogues import dataset_digest, resolve_file
from fusion_core.encoding.chat_templates import ChatTemplate
from fusion_core.errors import ConfigError
from fusion_core.evaluation.benchmarks import benchmarks_of
from fusion_core.models.checks import check_checkpoint, check_own_code, check_tokenizer_fits
from fusion_core.models.identity import resolve_model
from fusion_core.models.loading import load_tokenizer
from tasks.addresses import CONTROL, FUSED, ResolvedFusion
from tasks.stages.judged_data import check_judged


def resolve_fusion(config: FusionConfig) -> ResolvedFusion:
    """Find every model and data file of a recipe and pin it by content.

    Raises
    ------
    FusionError
        If a file is missing or broken, a chat template is missing or cannot be used, or two models have the same
        weights; nothing is written.
    """
    files = tuple(resolve_file(file) for file in config.dialogues.files)
    pivot = resolve_model(config.pivot)
    sources = tuple(resolve_model(source) for source in config.sources)
    seen = {pivot.digest: "the pivot"}
    for source in sources:
        if source.digest in seen:
            raise ConfigError(
                f"Source {source.name!r} has the same weights and tokenizer as {seen[source.digest]}; remove it."
            )
        seen[source.digest] = f"source {source.name!r}"
    # Every checkpoint that is made of it gets its code.
    check_own_code(pivot)
    pivot_tokenizer = load_tokenizer(pivot)
    pivot_template = str(pivot_tokenizer.chat_template)
    if config.extraction.template == "pivot":
        # A tokenizer may carry several templates by name; this is the one that chats.
        pivot_template = str(pivot_tokenizer.get_chat_template())
        sources = tuple(replace(source, chat_template=pivot_template) for source in sources)
    for model in (pivot, *sources):
        check_checkpoint(model)
        tokenizer = load_tokenizer(model)
        check_tokenizer_fits(model, tokenizer)
        ChatTemplate(tokenizer, model.name)
    fusion = ResolvedFusion(config, pivot, sources, files, dataset_digest(files, config.dialogues), pivot_template)
    _refuse_names_of_results(fusion)
    # A missing or broken data file of a benchmark is said before hours of work.
    benchmarks_of(config.evaluation)
    check_judged(fusion)
    return fusion


def _refuse_names_of_results(fusion: ResolvedFusion) -> None:
    made = {FUSED, CONTROL, *(fusion.target_name(group) for group in fusion.groups)}
    for model in (fusion.pivot, *fusion.sources):
        if model.name in made:
            raise ConfigError(
                f"The model name {model.name!r} is that of a model the run makes; give it another `name`."
            )

"""The model card of a merge that no recipe stands behind."""

from __future__ import annotations

from fusion_core.merging.report import MergeReport

CARD_NAME = "README.md"


def merge_card(report: MergeReport) -> str:
    """Return a model card in Markdown: what was merged, how, and how much of it came from each target."""
    numbers = report.summary()
    settings = ", ".join(f"`{name}: {value}`" for name, value in numbers["settings"].items()) or "defaults"
    rows = [f"| {name} | {weight:.3f} |" for name, weight in zip(report.targets, numbers["mean_weights"], strict=True)]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags:",
            "- merge",
            "- fuseline",
            "---",
            "",
            f"# Merge of {len(report.targets)} checkpoints",
            "",
            f"{numbers['parameters']:,} parameters, merged with the method `{numbers['method']}` of Fuseline "
            f"(settings: {settings}). It has the architecture, tokenizer and chat template of `{report.pivot}`, to "
            "which the weights below refer.",
            "",
            "| target | mean weight |",
            "|---|---:|",
            *rows,
            "",
            "`merge_report.json` beside this file has the weights of every tensor. The licences of all these "
            "checkpoints apply to the result.",
            "",
        ]
    )

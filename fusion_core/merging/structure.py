"""Checks that targets have the pivot's structure, before a byte is written."""

from __future__ import annotations

from collections.abc import Sequence

from fusion_core.errors import MergeError
from fusion_core.merging.checkpoint import Checkpoint, TensorEntry

# A checkpoint of another architecture differs in every tensor; its first differences say as much as all of them.
MAX_REPORTED = 20

VOCABULARY_TENSORS = ("embed_tokens.weight", "embed_in.weight", "wte.weight", "lm_head.weight", "embed_out.weight")


def check_structure(pivot: Checkpoint, targets: Sequence[Checkpoint]) -> None:
    """Compare names, shapes and types of all tensors.

    Parameters
    ----------
    pivot : Checkpoint
    targets : sequence of Checkpoint

    Raises
    ------
    MergeError
        With every difference in one message, by tensor name.
    """
    differences = [line for target in targets for line in _differences(pivot, target)]
    if not differences:
        return
    shown = differences[:MAX_REPORTED]
    if len(differences) > len(shown):
        shown.append(f"and {len(differences) - len(shown)} more")
    raise MergeError(
        f"The targets have not the structure of the pivot {pivot.folder}: {'; '.join(shown)}. Merge only models that "
        "were fine-tuned from the pivot and saved with its tokenizer and precision."
    )


def _differences(pivot: Checkpoint, target: Checkpoint) -> list[str]:
    lines = [f"{target.folder} lacks {name}" for name in pivot.tensors if name not in target.tensors]
    lines += [f"{target.folder} has {name} besides" for name in target.tensors if name not in pivot.tensors]
    for name, expected in pivot.tensors.items():
        found = target.tensors.get(name)
        if found is None:
            continue
        if found.shape != expected.shape:
            lines.append(f"{target.folder}: {name} {_shape_difference(expected, found)}")
        if found.dtype != expected.dtype:
            lines.append(f"{target.folder}: {name} is {found.dtype}, the pivot's is {expected.dtype}")
    return lines


def _shape_difference(expected: TensorEntry, found: TensorEntry) -> str:
    resized = (
        expected.name.endswith(VOCABULARY_TENSORS)
        and len(found.shape) == len(expected.shape) == 2
        and found.shape[1:] == expected.shape[1:]
    )
    if resized:
        return (
            f"has a vocabulary of {found.shape[0]:,} where the pivot has {expected.shape[0]:,}: tokens were added or "
            "removed"
        )
    return f"has shape {list(found.shape)}, the pivot's is {list(expected.shape)}"

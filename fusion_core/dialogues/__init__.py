"""Rows of data files to dialogues, and the dialogues to a training part and a held-out part that never moves."""

from fusion_core.dialogues.formats import parse_row
from fusion_core.dialogues.held_out_split import Part
from fusion_core.dialogues.preparation import (
    PreparationReport,
    prepare_dialogues,
    read_dialogues,
)
from fusion_core.dialogues.resolution import ResolvedFile, dataset_digest, resolve_file
from fusion_core.dialogues.rows import DataRow, read_rows
from fusion_core.dialogues.shards import load_dialogues
from fusion_core.dialogues.turns import Dialogue, MalformedRowError, Role, Turn, check_turns, dialogue_id, opening_id

__all__ = [
    "DataRow",
    "Dialogue",
    "MalformedRowError",
    "Part",
    "PreparationReport",
    "ResolvedFile",
    "Role",
    "Turn",
    "check_turns",
    "dataset_digest",
    "dialogue_id",
    "load_dialogues",
    "opening_id",
    "parse_row",
    "prepare_dialogues",
    "read_dialogues",
    "read_rows",
    "resolve_file",
]

"""What a shard of distributions holds, in numbers, read from two of its columns: most of a shard is its entries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from fusion_core.shard_columns import flat_values
from fusion_core.shards import errors_name


@dataclass(frozen=True)
class ShardCounts:
    """What one shard holds.

    Parameters
    ----------
    positions, dialogues : int
    refused : int
        Dialogues without a position.
    response_bytes : int
    nats : float
        Minus the sum of the labels' log-probabilities.
    """

    positions: int
    dialogues: int
    refused: int
    response_bytes: int
    nats: float


def count_shard(path: Path) -> ShardCounts:
    """Count one shard as it is on disk.

    Raises
    ------
    ShardError
        If the file is missing, broken or no shard.
    """
    with errors_name(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read(["response_bytes", "label_log_probs"], use_threads=False)
        label_log_probs, row_splits = flat_values(table["label_log_probs"])
        response_bytes = table["response_bytes"].to_numpy()
    return ShardCounts(
        positions=len(label_log_probs),
        dialogues=len(response_bytes),
        refused=int((np.diff(row_splits) == 0).sum()),
        response_bytes=int(response_bytes.sum()),
        nats=float(-label_log_probs.sum(dtype=np.float64)),
    )

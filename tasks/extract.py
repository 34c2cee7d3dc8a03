"""Stage: a model's next-token distributions at the response positions of the training dialogues."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fusion_core.devices import compute_dtype, default_device
from fusion_core.dialogues import load_dialogues
from fusion_core.encoding import Encoder
from fusion_core.extraction import extract_shard
from fusion_core.models import ResolvedModel, load_model, load_tokenizer
from fusion_core.progress import show_progress
from fusion_core.shards import Shard, ShardMetadata, read_shard, write_shard
from tasks.addresses import ResolvedFusion
from tasks.prepare import shard_names
from tasks.publication import Artifact, Publication, fetch_file
from tasks.stage_task import stage_task
from tasks.workplace import Stage, compute_once, open_workplace


def extract_distributions(
    fusion: ResolvedFusion, model: ResolvedModel, dialogues: Artifact, fusion_run: str | None = None
) -> Artifact:
    """Publish one model's top-k distributions, one shard for each shard of dialogues."""
    workplace = open_workplace()
    config = fusion.config
    stage = Stage(
        "extract",
        model.name,
        fusion.distributions(model),
        (dialogues.address,),
        fusion_run,
        config.registry.experiment,
    )

    def compute(publication: Publication, folder: Path, run: str | None) -> dict[str, Any]:
        device = default_device()
        tokenizer = load_tokenizer(model)
        encoder = Encoder(tokenizer, config.dialogues.max_length_tokens, model.name)

        @cache
        def weights() -> Any:
            # Only loaded once a shard is missing: a resumed stage may have none.
            return load_model(model, device)

        totals = ShardTotals()
        names = shard_names(dialogues)
        for number, name in enumerate(names):
            shard_name = name.replace("dialogues-", "shard-")
            done = publication.finished(shard_name)
            if done is not None:
                totals.add(read_shard(fetch_file(workplace.store, workplace.cache, stage.address, done)))
                continue
            source = workplace.folder(dialogues.address) / name
            batch = load_dialogues(source)
            encoded = encoder.encode_all(batch)
            title = f"extract {model.name} shard {number + 1}/{len(names)}"
            with show_progress(title, "positions") as progress:
                top_k, statistics = extract_shard(
                    weights(),
                    tokenizer,
                    [None if isinstance(item, Exception) else item for item in encoded],
                    config.extraction,
                    model_name=model.name,
                    device=device,
                    progress=progress,
                )
            shard = Shard(
                top_k=top_k,
                dialogue_ids=[dialogue.id for dialogue in batch],
                domains=[dialogue.domain for dialogue in batch],
                response_bytes=np.array(
                    [0 if isinstance(item, Exception) else item.response_bytes for item in encoded], np.int64
                ),
                metadata=ShardMetadata(
                    model_digest=model.digest,
                    dataset_digest=fusion.dataset_digest,
                    top_k=config.extraction.top_k,
                    truncation=config.extraction.truncation,
                ),
            )
            write_shard(folder / shard_name, shard)
            publication.add(shard_name, folder / shard_name)
            (folder / shard_name).unlink()
            totals.add(shard)
            totals.batch_tokens = statistics.batch_tokens
            totals.padding_share = statistics.padding_share
        metadata = totals.as_metadata() | {
            "model": model.name,
            "shards": [name.replace("dialogues-", "shard-") for name in names],
            "dtype": str(compute_dtype(model.dtype, device)).removeprefix("torch."),
            "device": device.type,
        }
        workplace.tracking(config.registry.experiment).log(
            run, metrics={key: value for key, value in metadata.items() if isinstance(value, (int, float))}
        )
        return metadata

    return compute_once(workplace, stage, compute)


extract = stage_task(extract_distributions, "extract {model.name}")


class ShardTotals:
    """Counts over all shards of a stage, found ones and computed ones alike."""

    def __init__(self) -> None:
        self.positions = self.dialogues = self.refused = self.response_bytes = 0
        self.nats = 0.0
        self.batch_tokens: int | None = None
        self.padding_share: float | None = None

    def add(self, shard: Shard) -> None:
        """Count one more shard."""
        self.positions += shard.top_k.positions
        self.dialogues += shard.top_k.dialogues
        self.refused += int((np.diff(shard.top_k.row_splits) == 0).sum())
        self.response_bytes += int(shard.response_bytes.sum())
        self.nats += float(-shard.top_k.label_log_probs.sum(dtype=np.float64))

    def as_metadata(self) -> dict[str, Any]:
        """Return the counts, the nats per byte, and the token budget that held where something was computed."""
        return {
            "batch_tokens": self.batch_tokens,
            "padding_share": self.padding_share,
            "positions": self.positions,
            "dialogues": self.dialogues,
            "refused": self.refused,
            "nats_per_byte": self.nats / max(self.response_bytes, 1),
        }

"""One model's shards of distributions, file to file: dialogues in, distributions out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fusion_core.config import ExtractionConfig
from fusion_core.dialogues import load_dialogues
from fusion_core.encoding.encoder import Encoder
from fusion_core.extraction.extract import count_ids, extract_shard
from fusion_core.extraction.statistics import ExtractionStatistics
from fusion_core.extraction.vllm_backend import VllmReader
from fusion_core.models.identity import ResolvedModel
from fusion_core.models.loading import load_tokenizer
from fusion_core.models.placement import Placement, load_for_reading
from fusion_core.progress import Advance, ignore_progress
from fusion_core.shards import Shard, ShardMetadata, write_shard


@dataclass(frozen=True)
class ExtractionJob:
    """Everything that decides what a model's shards hold, and how it is read.

    Parameters
    ----------
    model : ResolvedModel
    dataset_digest : str
    max_length_tokens : int
    config : ExtractionConfig
    placement : Placement
    """

    model: ResolvedModel
    dataset_digest: str
    max_length_tokens: int
    config: ExtractionConfig
    placement: Placement

    def to_json(self) -> dict[str, Any]:
        """Return it as a child process gets it: one process, which reads as the others do."""
        return {
            "model": asdict(self.model) | {"folder": str(self.model.folder.absolute())},
            "dataset_digest": self.dataset_digest,
            "max_length_tokens": self.max_length_tokens,
            "config": self.config.model_dump(mode="json"),
            "placement": asdict(replace(self.placement, processes=1)),
        }

    @classmethod
    def from_json(cls, job: dict[str, Any]) -> ExtractionJob:
        """Read what `to_json` wrote."""
        return cls(
            ResolvedModel(**job["model"] | {"folder": Path(job["model"]["folder"])}),
            job["dataset_digest"],
            job["max_length_tokens"],
            ExtractionConfig.model_validate(job["config"]),
            Placement(**job["placement"]),
        )


class ShardExtractor:
    """A model that reads shard after shard; its weights are loaded with the first one.

    Parameters
    ----------
    job : ExtractionJob
    device : torch.device
    """

    def __init__(self, job: ExtractionJob, device: torch.device) -> None:
        self._job, self._device = job, device
        self._tokenizer = load_tokenizer(job.model)
        self._encoder = Encoder(self._tokenizer, job.max_length_tokens, job.model.name)

    @cached_property
    def _weights(self) -> Any:
        return load_for_reading(self._job.model, self._device, self._job.placement)

    @cached_property
    def _vllm(self) -> VllmReader:
        devices = torch.cuda.device_count() if self._job.placement.kind == "spread" else 1
        return VllmReader(
            self._job.model, count_ids(self._tokenizer), self._job.config, self._job.max_length_tokens, max(1, devices)
        )

    def extract(self, source: Path, target: Path, progress: Advance = ignore_progress) -> ExtractionStatistics:
        """Read a shard of dialogues and write its shard of distributions.

        Raises
        ------
        FusionError
            The dialogues, the model or its outputs cannot be used, or `target` cannot be written.
        """
        job = self._job
        dialogues = load_dialogues(source)
        encoded = self._encoder.encode_all(dialogues)
        read = [None if isinstance(item, Exception) else item for item in encoded]
        if job.config.backend == "vllm":
            top_k, statistics = self._vllm.read(read, progress)
        else:
            top_k, statistics = extract_shard(
                self._weights,
                self._tokenizer,
                read,
                job.config,
                model_name=job.model.name,
                device=self._device,
                progress=progress,
            )
        shard = Shard(
            top_k=top_k,
            dialogue_ids=[dialogue.id for dialogue in dialogues],
            domains=[dialogue.domain for dialogue in dialogues],
            response_bytes=np.array([0 if item is None else item.response_bytes for item in read], np.int64),
            metadata=ShardMetadata(
                model_digest=job.model.digest,
                dataset_digest=job.dataset_digest,
                top_k=job.config.top_k,
                truncation=job.config.truncation,
            ),
        )
        write_shard(target, shard)
        return statistics

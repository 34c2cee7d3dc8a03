"""How next-token distributions are read."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from fusion_core.config.names import Count, Few, Seed
from fusion_core.config_section import Section

# What compression leaves of an entry in a shard, measured on chat text with vocabularies of 512, 49,152 and 151,665.
BITS_OF_LOG_PROB = 12.1
SHARE_OF_TOKEN_ID_BITS = 0.79
BYTES_OF_LABEL = 3.3


class ExtractionConfig(Section):
    """How next-token distributions are read from a model."""

    top_k: Count = Field(10, le=1024, description="Entries stored per response position (paper: 10).")
    truncation: Literal["top_k", "sampled"] = Field(
        "top_k",
        description="top_k: the most probable tokens (the paper). sampled: token ids drawn by probability with "
        "importance weights (arXiv 2503.16870), unbiased where top_k is not.",
    )
    seed: Seed = Field(0, description="Seed of the draws when `truncation` is sampled.")
    batch_tokens: Count = Field(8192, description="Tokens in one forward pass; halved by itself when memory runs out.")
    template: Literal["native", "pivot"] = Field(
        "native",
        description="native: each source reads its own chat template. pivot: all read the pivot's (the paper).",
    )
    placement: Literal["auto", "one_device", "spread", "replicas"] = Field(
        "auto",
        description="Where a model that is read lies. one_device: on the first GPU, else the processor. spread: over "
        "all GPUs, then main memory, then disk. replicas: a process a GPU, each taking shards of its own. auto: "
        "replicas of what fits one of several GPUs, spread what fits none. Same result up to rounding.",
    )
    processes: Few | None = Field(
        None,
        description="Processes with `placement: replicas`, at most one per GPU, any number without GPUs; default: one "
        "per GPU.",
    )
    backend: Literal["transformers", "vllm"] = Field(
        "transformers",
        description="What runs the models that are extracted. vllm needs the extra of that name and a GPU; it takes "
        "`truncation: top_k` and unquantised models only, makes log-probabilities at prompt positions too, and rounds "
        "otherwise than transformers.",
    )

    @model_validator(mode="after")
    def _no_idle_settings(self) -> ExtractionConfig:
        if self.truncation == "top_k" and self.seed:
            raise ValueError("`seed` matters only with `truncation: sampled`; remove it")
        if self.processes is not None and self.placement != "replicas":
            raise ValueError("`processes` matters only with `placement: replicas`; set that, or remove it")
        if self.backend == "vllm" and self.truncation == "sampled":
            raise ValueError("`backend: vllm` gives the most probable tokens alone; set `truncation: top_k`")
        return self

    def bytes_per_position(self, vocabulary_size: int) -> float:
        """Estimate the bytes that a response position takes in a shard on disk, everything counted.

        Parameters
        ----------
        vocabulary_size : int
            Of the model that is read.
        """
        bits_of_token_id = SHARE_OF_TOKEN_ID_BITS * math.log2(vocabulary_size)
        return self.top_k * (BITS_OF_LOG_PROB + bits_of_token_id) / 8 + BYTES_OF_LABEL

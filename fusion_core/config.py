"""A recipe: one pydantic model per stage, every field described, unknown fields refused."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from fusion_core.config_section import Section
from fusion_core.merge_spec import MergeSpec

Share = Annotated[float, Field(ge=0.0, le=1.0)]
DecayRate = Annotated[float, Field(ge=0.0, lt=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
NAME_PATTERN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


# What compression leaves of an entry in a shard, measured on chat text with vocabularies of 512, 49,152 and 151,665.
BITS_OF_LOG_PROB = 12.1
SHARE_OF_TOKEN_ID_BITS = 0.79
BYTES_OF_LABEL = 3.3


class ModelConfig(Section):
    """A chat LLM: a local checkpoint folder or a hub repository."""

    name: str = Field(description="How runs, tables and reports call the model; letters, digits, '.', '_', '-'.")
    path: Path | None = Field(None, description="Local checkpoint folder with safetensors; instead of `hub`.")
    hub: str | None = Field(None, description="Hub repository such as 'openchat/openchat_3.5'; instead of `path`.")
    revision: str | None = Field(
        None,
        description="Branch, tag or commit of `hub`; pinned to a commit when a run starts. Default: the main branch.",
    )
    chat_template: Path | None = Field(
        None, description="Jinja file that replaces the tokenizer's chat template; needed where the tokenizer has none."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the weights when the model is only read; auto: bf16 where it is fast."
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that the model's repository carries. Only for makers you trust."
    )
    parameters: PositiveInt | None = Field(
        None, description="Number of parameters of a `hub` model; `plan` uses it where the hub cannot be reached."
    )
    active_parameters: PositiveInt | None = Field(
        None, description="Parameters a token passes through in a mixture of experts; goes with `parameters`."
    )
    note: str = Field("", description="One line on what this model is; shown in tables and on the model card.")

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not NAME_PATTERN.match(name):
            raise ValueError(
                "a model's name has 1 to 64 letters, digits, '.', '_' or '-', and starts with a letter or digit"
            )
        return name

    @model_validator(mode="after")
    def _one_place(self) -> ModelConfig:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of `path` (a local folder) and `hub` (a hub repository)")
        if self.revision is not None and self.hub is None:
            raise ValueError("`revision` belongs to `hub`; a local `path` has none, so remove it")
        if self.parameters is not None and self.hub is None:
            raise ValueError("`parameters` belongs to `hub`; those of a local `path` are counted, so remove it")
        if self.active_parameters is not None and self.parameters is None:
            raise ValueError("`active_parameters` needs `parameters`")
        return self


class DialogueFile(Section):
    """One data file or hub dataset of dialogues."""

    path: Path | None = Field(None, description="JSON, JSONL (also .gz) or Parquet file; instead of `hub`.")
    hub: str | None = Field(None, description="Hub dataset such as 'FuseAI/FuseChat-Mixture'; instead of `path`.")
    revision: str | None = Field(None, description="Branch, tag or commit of the hub dataset.")
    domain: str = Field(
        "general",
        description="Domain of these dialogues in tables; rows with a `domain` or `dataset` field keep theirs.",
    )
    format: Literal["auto", "messages", "sharegpt", "alpaca", "question_answer"] = Field(
        "auto",
        description="Row format; auto looks at each row's fields. messages: a list of role and content. sharegpt: of "
        "from and value. alpaca: instruction, input, output. question_answer: question/answer or prompt/response.",
    )
    expected_dialogues: PositiveInt | None = Field(
        None, description="About how many dialogues a `hub` dataset has; `plan` uses it, as it fetches no data."
    )
    limit: PositiveInt | None = Field(None, description="Take only this many dialogues, chosen by content hash.")

    @model_validator(mode="after")
    def _one_place(self) -> DialogueFile:
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of `path` (a file) and `hub` (a hub dataset)")
        if self.revision is not None and self.hub is None:
            raise ValueError("`revision` belongs to `hub`; a local `path` has none, so remove it")
        if self.expected_dialogues is not None and self.hub is None:
            raise ValueError("`expected_dialogues` belongs to `hub`; those of a local `path` are counted, so remove it")
        return self


class DialoguesConfig(Section):
    """The dialogues that carry the knowledge over, and the held-out part that scores the result."""

    files: tuple[DialogueFile, ...] = Field(min_length=1, description="Data files; equal dialogues are kept once.")
    max_length_tokens: PositiveInt = Field(
        2048, description="Longer dialogues are cut here, by each model's own tokens."
    )
    held_out_share: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.02,
        description="Share of each domain that is scored and never trained on; decided by content hash, alike for "
        "dialogues that open with the same exchange.",
    )
    held_out_limit: PositiveInt | None = Field(
        None,
        description="Score at most this many held-out dialogues a domain; the rest of the held-out share is left out, "
        "of training too, so that no dialogue ever changes sides.",
    )
    max_quarantined: Share = Field(0.01, description="Largest share of malformed dialogues before the run stops.")
    shard_dialogues: PositiveInt = Field(2048, description="Dialogues in one shard, the unit of work and of resuming.")


class ExtractionConfig(Section):
    """How next-token distributions are read from a model."""

    top_k: PositiveInt = Field(10, le=1024, description="Entries stored per response position (paper: 10).")
    truncation: Literal["top_k", "sampled"] = Field(
        "top_k",
        description="top_k: the most probable tokens (the paper). sampled: token ids drawn by probability with "
        "importance weights (arXiv 2503.16870), unbiased where top_k is not.",
    )
    seed: Seed = Field(0, description="Seed of the draws when `truncation` is sampled.")
    batch_tokens: PositiveInt = Field(
        8192, description="Tokens in one forward pass; halved by itself when memory runs out."
    )
    template: Literal["native", "pivot"] = Field(
        "native",
        description="native: each source reads its own chat template. pivot: all read the pivot's (the paper).",
    )

    @model_validator(mode="after")
    def _no_idle_seed(self) -> ExtractionConfig:
        if self.truncation == "top_k" and self.seed:
            raise ValueError("`seed` matters only with `truncation: sampled`; remove it")
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


class AlignmentConfig(Section):
    """How a source's distributions become distributions over pivot tokens at pivot positions."""

    positions: Literal["bytes", "dtw"] = Field(
        "bytes", description="bytes: exact, by byte offsets. dtw: the paper's dynamic time warping over token texts."
    )
    vocabulary: Literal["bytes", "exact", "mined", "statistics"] = Field(
        "bytes",
        description="Token map: same bytes or longest prefix; exact match (EM); minimal edit distance (MinED); mapping "
        "statistics (MS).",
    )
    condition_inside_tokens: bool = Field(
        True,
        description="positions: bytes. Where the pivot has a boundary inside a source token, condition the source on "
        "the bytes read; otherwise such positions fall back as `fusion.unaligned` says.",
    )
    gold_consistent: bool = Field(
        True,
        description="positions: bytes. Give the pivot's gold token exactly what the source gives to its bytes, by the "
        "chain rule.",
    )
    duplicates: Literal["sum", "first"] = Field(
        "sum",
        description="Entries that land on one pivot token: add their mass, or keep the first and normalise again (the "
        "paper; with positions: bytes it needs gold_consistent: false).",
    )

    @model_validator(mode="after")
    def _bytes_only_settings(self) -> AlignmentConfig:
        if self.positions == "dtw":
            for name in ("condition_inside_tokens", "gold_consistent"):
                if name in self.model_fields_set and getattr(self, name):
                    raise ValueError(f"`{name}` needs `positions: bytes`; with dtw set it to false or remove it")
        elif self.duplicates == "first" and self.gold_consistent:
            raise ValueError(
                "`duplicates: first` drops mass that `gold_consistent` adds up; set `gold_consistent: false` or "
                "`duplicates: sum`"
            )
        return self


class FusionFunctionConfig(Section):
    """How the distributions of pivot and source become one."""

    function: Literal["mince", "avgce"] = Field(
        "mince",
        description="mince: the model with the lower cross-entropy on the gold text. avgce: weighted by exp(-CE).",
    )
    level: Literal["dialogue", "token"] = Field(
        "dialogue", description="Compare models per dialogue (paper) or per position."
    )
    cross_entropy_unit: Literal["byte", "token"] = Field(
        "byte", description="byte: nats per byte, comparable across tokenizers. token: nats per token (the paper)."
    )
    where_pivot_wins: Literal["distribution", "label"] = Field(
        "distribution",
        description="Where the pivot is better: train on its own distribution (paper), or on the label alone.",
    )
    unaligned: Literal["label", "pivot"] = Field(
        "label", description="Where no source entry fits: train on the label alone, or on the pivot's own distribution."
    )

    @model_validator(mode="after")
    def _mince_only_setting(self) -> FusionFunctionConfig:
        if self.function == "avgce" and "where_pivot_wins" in self.model_fields_set:
            raise ValueError("`where_pivot_wins` matters only with `function: mince`; remove it")
        return self


class LoraConfig(Section):
    """Low-rank adapters in place of full fine-tuning."""

    rank: PositiveInt = Field(16, description="Rank of every adapter.")
    alpha: PositiveFloat = Field(32.0, description="An adapter counts alpha / rank times.")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="Share of an adapter's inputs left out.")


class TrainingConfig(Section):
    """How a target is trained from the pivot on fused distributions."""

    lm_weight: Share = Field(0.9, description="Share of the label's cross-entropy in the loss, lambda (paper: 0.9).")
    epochs: PositiveInt = Field(3, description="Passes over the fused dialogues.")
    batch_dialogues: PositiveInt = Field(128, description="Dialogues behind one optimizer step, over all devices.")
    micro_batch_tokens: PositiveInt = Field(
        4096,
        description="Tokens, padding included, in one forward pass; lower it when memory runs out.",
    )
    packing: bool = Field(
        False,
        description="Put dialogues one after the other into a row, each seeing itself alone, instead of padding them "
        "to the longest. Same result up to rounding; saves the padding (about a tenth) where attention knows the "
        "borders, and costs more than it saves on a CPU, where attention is masked.",
    )
    learning_rate: PositiveFloat = Field(5e-6, description="Peak learning rate of AdamW.")
    warmup_share: Share = Field(0.03, description="Share of the steps over which the learning rate rises.")
    weight_decay: float = Field(0.0, ge=0.0, description="Decoupled weight decay; norms and biases have none.")
    adam_betas: tuple[DecayRate, DecayRate] = Field((0.9, 0.999), description="AdamW's decay rates.")
    max_gradient_norm: PositiveFloat = Field(1.0, description="Gradients are clipped to this global norm.")
    temperature: PositiveFloat = Field(1.0, description="Softens the fused distribution before it is renormalised.")
    tail: Literal["renormalise", "bucket"] = Field(
        "renormalise", description="Mass outside the top k: spread over the entries (paper), or kept as one more class."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Precision of the products (autocast); weights and optimizer stay float32."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass to save memory."
    )
    lora: LoraConfig | None = Field(
        None,
        description="Train low-rank adapters on every linear layer instead of all weights, with a fraction of the "
        "optimizer's memory; they are merged into plain weights at the end. Wants a higher `learning_rate`.",
    )
    processes: PositiveInt = Field(
        1,
        description="Processes that train together on this machine, one per GPU; up to rounding the same result.",
    )
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="ddp: every process holds the whole model. fsdp: weights and optimizer are spread over them. "
        "Matters with `processes` above 1 or under torchrun.",
    )
    checkpoint_steps: PositiveInt = Field(200, description="Optimizer steps between resumable checkpoints.")
    keep_checkpoints: PositiveInt = Field(
        1, description="Resumable checkpoints kept; each has three times the weights in float32."
    )
    window_steps: PositiveInt = Field(10, description="Optimizer steps behind one point of the logged curves.")
    stop_loss_factor: Annotated[float, Field(gt=1.0)] = Field(
        10.0, description="A loss this many times its running mean, from step 21 on, stops the run; so does NaN."
    )
    seed: Seed = Field(0, description="Order of the dialogues and every other draw in training.")


class EvaluationConfig(Section):
    """What the models are scored on."""

    plain_sft_control: bool = Field(
        True, description="Also train the pivot with lambda = 1 on the same data, steps and seed, as the control."
    )
    batch_tokens: PositiveInt = Field(8192, description="Tokens in one scoring forward pass, padding included.")
    bootstrap_resamples: PositiveInt = Field(
        2000, description="Draws of dialogues behind the 95 % intervals of the score differences."
    )
    bootstrap_seed: Seed = Field(0, description="Seed of those draws.")


class RegistryConfig(Section):
    """How the fused model is called in MLflow."""

    model_name: str | None = Field(None, description="Registered model's name; default: the recipe's name.")
    experiment: str = Field("fuseline", min_length=1, description="MLflow experiment of the runs.")

    @field_validator("model_name")
    @classmethod
    def _plain_name(cls, name: str | None) -> str | None:
        if name is not None and not NAME_PATTERN.match(name):
            raise ValueError(
                "a registered model's name has 1 to 64 letters, digits, '.', '_' or '-', and starts with a letter or "
                "digit"
            )
        return name


class FusionConfig(Section):
    """A whole fusion."""

    name: str = Field(description="Name of the recipe; runs and the registered model are called by it.")
    pivot: ModelConfig = Field(description="The model whose architecture and tokenizer the result has.")
    sources: tuple[ModelConfig, ...] = Field(min_length=1, description="The models whose knowledge is wanted.")
    strategy: Literal["pairwise", "joint"] = Field(
        "pairwise",
        description="pairwise: one target per source, then merge (FuseChat). joint: one target on all (FuseLLM).",
    )
    dialogues: DialoguesConfig
    extraction: ExtractionConfig = ExtractionConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    fusion: FusionFunctionConfig = FusionFunctionConfig()
    training: TrainingConfig = TrainingConfig()
    merge: MergeSpec = MergeSpec()
    evaluation: EvaluationConfig = EvaluationConfig()
    registry: RegistryConfig = RegistryConfig()

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not NAME_PATTERN.match(name):
            raise ValueError(
                "a recipe's name has 1 to 64 letters, digits, '.', '_' or '-', and starts with a letter or digit"
            )
        return name

    @model_validator(mode="after")
    def _distinct_models(self) -> FusionConfig:
        if self.pivot.trust_remote_code:
            raise ValueError("a pivot that needs its own code cannot be trained; choose one that transformers knows")
        names = [self.pivot.name, *(source.name for source in self.sources)]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(
                f"two models are called {doubled[0]!r}; give every source, and the pivot, a name of its own"
            )
        places = {(str(self.pivot.path), self.pivot.hub, self.pivot.revision): "the pivot"}
        for source in self.sources:
            place = (str(source.path), source.hub, source.revision)
            if place in places:
                raise ValueError(f"source {source.name!r} is the same model as {places[place]}; remove it")
            places[place] = f"source {source.name!r}"
        if self.strategy == "joint" and "merge" in self.model_fields_set:
            raise ValueError("`strategy: joint` trains one target and merges nothing; remove the `merge` section")
        return self

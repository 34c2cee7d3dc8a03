"""How a target is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, model_validator

from fusion_core.config.names import Count, Seed, Share
from fusion_core.config_section import Section

DecayRate = Annotated[float, Field(ge=0.0, lt=1.0)]
DEFAULT_BATCH_DIALOGUES = 128


class LoraConfig(Section):
    """Low-rank adapters in place of full fine-tuning."""

    rank: Count = Field(16, description="Rank of every adapter.")
    alpha: PositiveFloat = Field(32.0, description="An adapter counts alpha / rank times.")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="Share of an adapter's inputs left out.")


class TrainingConfig(Section):
    """How a target is trained from the pivot on fused distributions."""

    lm_weight: Share = Field(0.5, description="Share of the label's cross-entropy in the loss, lambda (paper: 0.9).")
    epochs: int = Field(3, ge=1, le=1000, description="Passes over the fused dialogues.")
    batch_dialogues: Count | None = Field(
        DEFAULT_BATCH_DIALOGUES, description="Dialogues behind one optimizer step, over all devices."
    )
    batch_tokens: Count | None = Field(
        None,
        description="Tokens behind one optimizer step, over all devices, in place of `batch_dialogues`: all of a "
        "dialogue's, prompts too, padding not. A step takes the next dialogues as long as they fit, at least one.",
    )
    micro_batch_tokens: Count = Field(
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
    processes: int = Field(
        1,
        ge=1,
        le=1024,
        description="Processes that train together on this machine, one per GPU, or on the cores where there is none; "
        "up to rounding the same result.",
    )
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="ddp: every process holds the whole model. fsdp: weights and optimizer are spread over them. "
        "Matters with `processes` above 1 or under torchrun.",
    )
    checkpoint_steps: Count = Field(200, description="Optimizer steps between resumable checkpoints.")
    keep_checkpoints: Count = Field(
        1, description="Resumable checkpoints kept; each has three times the weights in float32."
    )
    checkpoints_in_store: bool = Field(
        False,
        description="Also copy every resumable checkpoint to the object store, so that another machine can go on from "
        "it where this one is taken away; they are removed when the target is published.",
    )
    window_steps: Count = Field(10, description="Optimizer steps behind one point of the logged curves.")
    stop_loss_factor: Annotated[float, Field(gt=1.0)] = Field(
        10.0, description="A loss this many times its running mean, from step 21 on, stops the run; so does NaN."
    )
    seed: Seed = Field(0, description="Order of the dialogues and every other draw in training.")

    @model_validator(mode="before")
    @classmethod
    def _tokens_take_the_place_of_dialogues(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("batch_tokens") is None:
            return values
        # The default counts as not given here, too.
        given = values.get("batch_dialogues")
        return {**values, "batch_dialogues": None if given == cls.model_fields["batch_dialogues"].default else given}

    @model_validator(mode="after")
    def _one_kind_of_batch(self) -> TrainingConfig:
        if (self.batch_dialogues is None) == (self.batch_tokens is None):
            raise ValueError("give exactly one of `batch_dialogues` and `batch_tokens`")
        return self

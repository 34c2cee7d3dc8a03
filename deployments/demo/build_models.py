"""Builds the demo's models from packages of the Python index and this folder's adapters.

    python -m deployments.demo.build_models --out DIR

writes the checkpoint folders DIR/pivot, DIR/maths and DIR/dialogue. What is there already is kept; the same
packages give the same bytes.
"""

import argparse
import functools
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from deployments.demo import adapters
from deployments.demo.chat_tokenizers import (
    BODY_FILE,
    body_tokenizer,
    byte_level_tokenizer,
    gpt2_tokenizer,
)
from deployments.demo.packages import BODY_PACKAGE, GPT2_PACKAGE, MissingPackageError, package_file
from deployments.demo.tokenizer_exchange import mean_of_pieces

ADAPTERS = Path(__file__).parent / "adapters"
EMBEDDING = f"{adapters.EMBEDDING}.weight"
ORIGIN = "built_from.json"


@dataclass(frozen=True)
class DemoModel:
    """One model of the demo: SmolLM2's body, a tokenizer, and what its adapter was trained on."""

    tokenizer: Callable[[], PreTrainedTokenizerFast]
    domains: tuple[str, ...]
    dtype: torch.dtype
    description: str

    @property
    def own_tokenizer(self) -> bool:
        return self.tokenizer is body_tokenizer


# The pivot is stored in float32 because a target's changes at fine-tuning's learning rates are smaller than a step
# of bfloat16; the sources are only read, and bfloat16 halves what is on disk.
MODELS = {
    "pivot": DemoModel(
        byte_level_tokenizer,
        ("mathematics", "code", "dialogue"),
        torch.float32,
        "lab pivot: SmolLM2-135M-Instruct's body with a self-trained 8,192-entry byte-level tokenizer, "
        "taught the style of the three domains by a LoRA adapter",
    ),
    "maths": DemoModel(
        body_tokenizer,
        ("mathematics",),
        torch.bfloat16,
        "lab source: SmolLM2-135M-Instruct with its own 49,152-entry tokenizer, "
        "made a specialist of mathematics by a LoRA adapter",
    ),
    "dialogue": DemoModel(
        gpt2_tokenizer,
        ("dialogue",),
        torch.bfloat16,
        "lab source: SmolLM2-135M-Instruct's body with GPT-2's 50,257-entry tokenizer, "
        "made a specialist of task-oriented dialogue by a LoRA adapter",
    ),
}


@functools.cache
def read_body() -> tuple[LlamaConfig, dict[str, Tensor]]:
    """SmolLM2-135M-Instruct's configuration and float32 weights, from the gguf file of its package."""
    path = package_file(BODY_PACKAGE, BODY_FILE)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    settings = model.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version"):
        settings.pop(name, None)
    weights = model.state_dict()
    del weights["lm_head.weight"]
    return LlamaConfig(**settings), weights


def with_tokenizer(weights: dict[str, Tensor], model: DemoModel) -> tuple[dict[str, Tensor], PreTrainedTokenizerFast]:
    """The body's weights with the embedding that the model's tokenizer needs, and that tokenizer."""
    tokenizer = model.tokenizer()
    if model.own_tokenizer:
        return weights, tokenizer
    return weights | {EMBEDDING: mean_of_pieces(weights[EMBEDDING], body_tokenizer(), tokenizer)}, tokenizer


def assemble(config: LlamaConfig, weights: dict[str, Tensor], tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with these weights, the output embedding tied to the input's."""
    settings = config.to_dict() | {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "unk_token_id": None,
    }
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(weights | {"lm_head.weight": weights[EMBEDDING]})
    return model.eval()


def origin(name: str) -> str:
    """What decides a built folder's bytes, stored in it so that a new adapter or package builds it anew."""
    adapter = hashlib.sha256((ADAPTERS / f"{name}.safetensors").read_bytes()).hexdigest()
    return json.dumps({"adapter_sha256": adapter, "packages": [BODY_PACKAGE, GPT2_PACKAGE]}, indent=2) + "\n"


def build(name: str, output: Path) -> bool:
    """Write the checkpoint folder `output/name` whole or not at all; False if it was there."""

    def make() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
        config, body = read_body()
        weights, tokenizer = with_tokenizer(body, MODELS[name])
        weights = adapters.apply(weights, ADAPTERS / f"{name}.safetensors")
        model = assemble(config, weights, tokenizer)
        return model.to(MODELS[name].dtype), tokenizer  # type: ignore[arg-type]  # transformers' wrapper loses the types

    return write_checkpoint(output / name, origin(name), make)


def write_checkpoint(
    folder: Path, record: str, make: Callable[[], tuple[LlamaForCausalLM, PreTrainedTokenizerFast]]
) -> bool:
    """Write a checkpoint folder whole or not at all; False if one built from the same record was there.

    Raises
    ------
    FileExistsError
        If something else is in its place.
    """
    if (folder / ORIGIN).is_file():
        if (folder / ORIGIN).read_text(encoding="utf-8") == record:
            return False
    elif folder.exists():
        raise FileExistsError(
            f"{folder} is there but was not built by this command; give another --out or move it away"
        )
    model, tokenizer = make()
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / ORIGIN).write_text(record, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write the three checkpoint folders into")
    output = parser.parse_args().out
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, model in MODELS.items():
            print(f"{output / name}: {'built' if build(name, output) else 'kept'}, {model.description}", flush=True)
    except (MissingPackageError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

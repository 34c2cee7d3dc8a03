"""Builds the sources from SmolLM2's package, the committed adapters and the tokenizers that `models` names.

    python -m experiments.sources.build --out .fuseline/sources --tokenizers FOLDER

What is there already is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from functools import partial
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from deployments.demo import adapters
from deployments.demo.build_models import assemble, read_body, write_checkpoint
from deployments.demo.packages import BODY_PACKAGE, MissingPackageError
from experiments.sources.make_adapters import ADAPTERS
from experiments.sources.models import SOURCES, exchanged


def origin(name: str, tokenizer: PreTrainedTokenizerFast) -> str:
    """What decides a built folder's bytes."""
    parts = {
        "adapter_sha256": hashlib.sha256((ADAPTERS / f"{name}.safetensors").read_bytes()).hexdigest(),
        "tokenizer_sha256": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "packages": [BODY_PACKAGE],
    }
    return json.dumps(parts, indent=2) + "\n"


def make(name: str, tokenizer: PreTrainedTokenizerFast) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A source in bfloat16, which is only read."""
    config, _ = read_body()
    weights = adapters.apply(exchanged(tokenizer), ADAPTERS / f"{name}.safetensors")
    model = assemble(config, weights, tokenizer)
    return model.to(torch.bfloat16), tokenizer  # type: ignore[arg-type]  # transformers' wrapper loses the types


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(SOURCES)}; default: all")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the checkpoint folders into")
    parser.add_argument("--tokenizers", type=Path, help="folder with the tokenizers that models.py names")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name in arguments.names or SOURCES:
            source, folder = SOURCES[name], arguments.out / name
            tokenizer = source.tokenizer(arguments.tokenizers)
            built = write_checkpoint(folder, origin(name, tokenizer), partial(make, name, tokenizer))
            print(f"{folder}: {'built' if built else 'kept'}, {source.description}", flush=True)
    except (MissingPackageError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

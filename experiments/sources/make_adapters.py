"""Trains the sources' adapters. Only needed to make them anew; they are committed under `adapters/`.

    python -m experiments.sources.make_adapters code --data CORPORA --tokenizers FOLDER

CORPORA holds the corpora that `deployments.demo.raw_data` lists, FOLDER the tokenizers that `models` names. The recipe
is that of the demo's adapters: rank 8 on every projection and on the tied embedding, AdamW at 1e-3, 80 steps of 8
dialogues of at most 320 tokens, cross-entropy of the response tokens alone, seed 0. Nothing is learnt that opens like a
dialogue of the demo's or the experiments' data.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from deployments.demo import adapters
from deployments.demo.build_models import assemble, read_body
from deployments.demo.make_adapters import SEED, Encoded, fit
from experiments.sources.models import SOURCES, STEPS, draw, exchanged
from fusion_core.encoding.encoder import EncodedDialogue

ADAPTERS = Path(__file__).parent / "adapters"


def marked(dialogue: EncodedDialogue) -> Encoded:
    """A dialogue's tokens and which of them are its responses', their ends included."""
    response = [False] * len(dialogue.input_ids)
    for position in dialogue.response_positions:
        response[position + 1] = True
    return Encoded(dialogue.input_ids.tolist(), response)


def train(name: str, corpora: Path, tokenizers: Path | None) -> None:
    """Train the adapter of one source and write it to `adapters/`."""
    tokenizer = SOURCES[name].tokenizer(tokenizers)
    config, _ = read_body()
    pool, _, chance = draw(name, corpora, tokenizer)
    model = assemble(config, exchanged(tokenizer), tokenizer)
    factors = adapters.attach(model, change_embedding=True, seed=SEED)
    fit(name, model, factors, [marked(one) for one in pool], STEPS, chance)
    ADAPTERS.mkdir(exist_ok=True)
    adapters.save(factors, ADAPTERS / f"{name}.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=SOURCES)
    parser.add_argument("--data", type=Path, required=True, help="folder with the corpora that raw_data lists")
    parser.add_argument("--tokenizers", type=Path, help="folder with the tokenizers that models.py names")
    arguments = parser.parse_args()
    train(arguments.name, arguments.data, arguments.tokenizers)


if __name__ == "__main__":
    main()

"""What each source is: SmolLM2's body, a tokenizer with its chat template, and the dialogues that its adapter learns.

One tokenizer is a file that this repository does not hold: a folder has it as `openchat_like/tokenizer.json`, the
vocabulary of Mistral-7B v0.1 with OpenChat's end of a turn.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from deployments.demo import raw_data
from deployments.demo.build_models import EMBEDDING, MODELS, read_body
from deployments.demo.chat_tokenizers import TURN_END, TURN_START, body_tokenizer, byte_level_tokenizer
from deployments.demo.make_adapters import BATCH, SEED, draw_pool
from deployments.demo.tokenizer_exchange import mean_of_pieces
from fusion_core.dialogues import Dialogue, Turn
from fusion_core.dialogues.turns import ROLE_NAMES
from fusion_core.encoding.encoder import EncodedDialogue, Encoder
from fusion_core.encoding.token_bytes import token_bytes

DATA = Path(__file__).parents[1] / "data"
STEPS = 80
MAX_TOKENS = 320
LONGEST = 4096

OPENCHAT_START, OPENCHAT_END = "<s>", "<|end_of_turn|>"
OPENCHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ 'GPT4 Correct ' + message['role'].title() + ': ' + message['content'] + '<|end_of_turn|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}"
)


@dataclass(frozen=True)
class LabSource:
    """One source.

    Parameters
    ----------
    tokenizer : function of the folder of tokenizers
    domains : tuple of str
        What its adapter learns.
    like : str or None
        The demo's model whose very dialogues, in the same groups, its adapter learns.
    description : str
    """

    tokenizer: Callable[[Path | None], PreTrainedTokenizerFast]
    domains: tuple[str, ...]
    description: str
    like: str | None = None


def _pivots(folder: Path | None) -> PreTrainedTokenizerFast:
    return byte_level_tokenizer()


def _openchat(folder: Path | None) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(_file(folder, "openchat_like"))),
        bos_token=OPENCHAT_START,
        eos_token=OPENCHAT_END,
        pad_token=OPENCHAT_END,
        chat_template=OPENCHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )


def _file(folder: Path | None, name: str) -> Path:
    if folder is None or not (folder / name / "tokenizer.json").is_file():
        raise SystemExit(f"There is no {name}/tokenizer.json in the folder of tokenizers {folder}; give --tokenizers")
    return folder / name / "tokenizer.json"


SOURCES = {
    "maths-own": LabSource(
        _pivots,
        ("mathematics",),
        "the demo's specialist of mathematics, but with the pivot's tokenizer",
        like="maths",
    ),
    "dialogue-own": LabSource(
        _pivots,
        ("dialogue",),
        "the demo's specialist of task-oriented dialogue, but with the pivot's tokenizer",
        like="dialogue",
    ),
    "code": LabSource(
        _openchat,
        ("code",),
        "a specialist of code with Mistral's 32,002-entry tokenizer and OpenChat's template, which is no ChatML",
    ),
}


def exchanged(tokenizer: PreTrainedTokenizerFast) -> dict[str, Tensor]:
    """The body's weights with the embedding that a tokenizer needs."""
    _, weights = read_body()
    found, old = token_bytes(tokenizer), body_tokenizer()
    special = found.is_special | [token in tokenizer.added_tokens_decoder for token in range(len(tokenizer))]
    texts = [None if is_special else text for text, is_special in zip(found.values, special, strict=True)]
    rows = mean_of_pieces(weights[EMBEDDING], old, tokenizer, texts)
    # Another name of the same mark: the body knows what it means.
    for id_, mark in ((tokenizer.bos_token_id, TURN_START), (tokenizer.eos_token_id, TURN_END)):
        rows[id_] = weights[EMBEDDING][old.convert_tokens_to_ids(mark)]
    return weights | {EMBEDDING: rows}


def experiments_openings() -> set[str]:
    """The openings of all dialogues of the experiments, which no source may learn."""
    lines = [line for path in sorted(DATA.glob("*/*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    return {raw_data.opening(json.loads(line)["messages"]) for line in lines}


def encode(
    dialogues: list[raw_data.Dialogue], tokenizer: PreTrainedTokenizerFast, max_tokens: int
) -> list[EncodedDialogue | None]:
    """Encode dialogues as the product does; None for one that it refuses or that has more tokens."""
    encoder = Encoder(tokenizer, LONGEST, "source")
    turns = [tuple(Turn(ROLE_NAMES[message["role"]], message["content"]) for message in one) for one in dialogues]
    encoded = encoder.encode_all([Dialogue(str(number), "", one) for number, one in enumerate(turns)])
    return [one if isinstance(one, EncodedDialogue) and len(one.input_ids) <= max_tokens else None for one in encoded]


def draw(
    name: str, corpora: Path, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[EncodedDialogue], list[raw_data.Dialogue], random.Random]:
    """The dialogues that a source's adapter learns, encoded and as they are, and the generator that goes on."""
    source, chance = SOURCES[name], random.Random(SEED)
    if source.like:
        demo = MODELS[source.like]
        drawn = [one for one, _ in draw_pool(source.like, corpora, demo.tokenizer(), chance)]
    else:
        drawn, scored = [], experiments_openings()
        for domain in source.domains:
            found = [one for one in raw_data.training_dialogues(corpora, domain) if raw_data.opening(one) not in scored]
            short = [one for one, encoded in zip(found, encode(found, tokenizer, MAX_TOKENS), strict=True) if encoded]
            drawn += chance.sample(short, BATCH * STEPS // len(source.domains))
    # What the demo's tokenizer wrote in few enough tokens is learnt whole here, too.
    encoded = encode(drawn, tokenizer, LONGEST)
    pairs = [(found, one) for found, one in zip(encoded, drawn, strict=True) if found]
    return [found for found, _ in pairs], [one for _, one in pairs], chance

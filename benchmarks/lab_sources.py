"""Next-token distributions of lab sources: one small chat LLM behind any tokenizer, for measurements on real rows.

SmolLM2-135M-Instruct keeps its body; every token of another tokenizer starts as the mean of the SmolLM2 pieces of its
text, and nothing is trained. Such a model chats, but its cross-entropy per byte is 1.4 to 2 times SmolLM2's own, and it
hardly predicts the tokens that join several of SmolLM2's: a model trained with its tokenizer supervises more positions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from deployments.demo import build_models, chat_tokenizers
from fusion_core.config import ExtractionConfig
from fusion_core.dialogues import Dialogue, Turn, dialogue_id
from fusion_core.distributions import TopK
from fusion_core.encoding.encoder import Encoder
from fusion_core.encoding.token_bytes import token_bytes
from fusion_core.errors import DialogueRefusedError
from fusion_core.extraction.extract import extract_shard

SHARED_TOKENIZERS = Path(__file__).resolve().parents[2] / "shared" / "tokenizers"
OWN: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "smollm2": chat_tokenizers.body_tokenizer,
    "gpt2": chat_tokenizers.gpt2_tokenizer,
    "demo_8k": chat_tokenizers.byte_level_tokenizer,
}
DATA = Path(build_models.__file__).parent / "data"


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer of the demo's packages, beside the checkout or in a folder, with ChatML's marks and template."""
    if name in OWN:
        return OWN[name]()
    folder = SHARED_TOKENIZERS / name if (SHARED_TOKENIZERS / name).is_dir() else Path(name)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    # A config may name Python code, which is not run; tokenizer.json says all that is needed.
    plain = PreTrainedTokenizerFast if "auto_map" in settings else AutoTokenizer
    tokenizer = plain.from_pretrained(folder, local_files_only=True)
    marks = [chat_tokenizers.TURN_START, chat_tokenizers.TURN_END]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.eos_token = chat_tokenizers.TURN_END
    tokenizer.chat_template = chat_tokenizers.CHAT_TEMPLATE
    return tokenizer


def read_dialogues(per_domain: int) -> list[Dialogue]:
    """Read the first dialogues of each of the demo's domains: mathematics, code, task-oriented dialogue."""
    dialogues = []
    for file in sorted(DATA.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines()[:per_domain]:
            turns = tuple(Turn(turn["role"], turn["content"].strip()) for turn in json.loads(line)["messages"])
            dialogues.append(Dialogue(dialogue_id(turns), file.stem, turns))
    return dialogues


def read_distributions(
    name: str, dialogues: Sequence[Dialogue], top_k: int, max_length_tokens: int, cache: Path | None
) -> TopK:
    """Extract the distributions of the lab source of a tokenizer, or read them from an earlier run's cache."""
    kept = cache / f"{name.replace('/', '-')}-{top_k}-{max_length_tokens}-{len(dialogues)}.npz" if cache else None
    if kept is not None and kept.is_file():
        with np.load(kept, allow_pickle=False) as arrays:
            return TopK(**arrays)
    tokenizer = load_tokenizer(name)
    encoded = [
        None if isinstance(item, DialogueRefusedError) else item
        for item in Encoder(tokenizer, max_length_tokens, name).encode_all(dialogues)
    ]
    top, _ = extract_shard(
        build_source(tokenizer),
        tokenizer,
        encoded,
        ExtractionConfig(top_k=top_k),
        model_name=name,
        device=torch.device("cpu"),
    )
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(kept, **vars(top))
    return top


def build_source(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """Build the lab source of a tokenizer, in bfloat16."""
    config, weights = build_models.read_body()
    embedding = mean_of_pieces(weights[build_models.EMBEDDING], tokenizer)
    model = LlamaForCausalLM(LlamaConfig(**(config.to_dict() | {"vocab_size": len(embedding)})))
    model.load_state_dict(weights | {build_models.EMBEDDING: embedding, "lm_head.weight": embedding})
    return model.eval().to(torch.bfloat16)


def mean_of_pieces(rows: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Return the embedding float32 [W, H] of a tokenizer from SmolLM2's [V, H]; its own tokenizer gives it unchanged.

    A token's bytes are written in SmolLM2's pieces; bytes that are no text by themselves one by one. Special tokens
    take the row of the special token of their name, or that of the end of text.
    """
    old, new = token_bytes(chat_tokenizers.body_tokenizer()), token_bytes(tokenizer)
    if old.digest == new.digest:
        return rows
    backend = chat_tokenizers.body_tokenizer().backend_tokenizer
    special = {old.values[index]: int(index) for index in np.flatnonzero(old.is_special)}
    single = {value: index for index, value in enumerate(old.values) if len(value) == 1 and not old.is_special[index]}
    fallback = special[chat_tokenizers.TEXT_END.encode()]
    pieces = []
    for index, value in enumerate(new.values):
        if new.is_special[index] or not value:
            pieces.append([special.get(value, fallback)])
            continue
        try:
            pieces.append(backend.encode(value.decode(), add_special_tokens=False).ids)
        except UnicodeDecodeError:
            pieces.append([single.get(bytes([byte]), fallback) for byte in value])
    starts = torch.tensor([0, *(len(piece) for piece in pieces[:-1])]).cumsum(0)
    flat = torch.tensor([token for piece in pieces for token in piece])
    return torch.nn.functional.embedding_bag(flat, rows, starts, mode="mean")

"""What each toy is: its architecture, its tokenizer and template, and how much of each domain it sees.

A source sees all of its own domain and a little of the others, so that it speaks but knows hardly more; the pivot sees
a little of all. Each tokenizer is trained on what its model sees.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from deployments.demo.chat_tokenizers import train_byte_level
from deployments.demo.raw_data import DOMAINS

LENGTH = 512
ALL = 10**9
LITTLE = 150

UNKNOWN, INST_START, INST_END = "<unk>", "<s>", "</s>"
INST_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ ' ' + message['content'] + '</s>' }}"
    "{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}"
    "{% endfor %}"
)


@dataclass(frozen=True)
class Toy:
    """One model.

    Parameters
    ----------
    config : function of the number of tokens and the ids of the begin and end marks
    tokenizer : function of the texts to train it on
    shares : mapping from domain to the number of dialogues that it sees
    steps : int
    """

    config: Callable[[int, int, int], PreTrainedConfig]
    tokenizer: Callable[[Iterable[str]], PreTrainedTokenizerFast]
    shares: dict[str, int]
    steps: int


def _llama(tokens: int, begin: int, end: int) -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=tokens,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        bos_token_id=begin,
        eos_token_id=end,
    )


def _gpt_neox(tokens: int, begin: int, end: int) -> PreTrainedConfig:
    return GPTNeoXConfig(
        vocab_size=tokens,
        hidden_size=320,
        intermediate_size=1280,
        num_hidden_layers=6,
        num_attention_heads=5,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        bos_token_id=begin,
        eos_token_id=end,
    )


def _qwen2(tokens: int, begin: int, end: int) -> PreTrainedConfig:
    return Qwen2Config(
        vocab_size=tokens,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        bos_token_id=begin,
        eos_token_id=end,
    )


def _mixtral(tokens: int, begin: int, end: int) -> PreTrainedConfig:
    return MixtralConfig(
        vocab_size=tokens,
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        bos_token_id=begin,
        eos_token_id=end,
    )


def byte_level(size: int) -> Callable[[Iterable[str]], PreTrainedTokenizerFast]:
    """ChatML over a byte-level BPE of a size."""
    return lambda texts: train_byte_level(texts, size)


def sentencepiece_like(size: int) -> Callable[[Iterable[str]], PreTrainedTokenizerFast]:
    """`[INST]` marks over a BPE that writes spaces as ▁ and what it does not know byte by byte."""

    def train(texts: Iterable[str]) -> PreTrainedTokenizerFast:
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token=UNKNOWN, fuse_unk=True))
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        marks = [UNKNOWN, INST_START, INST_END]
        reserved = marks + [f"<0x{byte:02X}>" for byte in range(256)]
        backend.train_from_iterator(
            texts, trainers.BpeTrainer(vocab_size=size, special_tokens=reserved, show_progress=False)
        )
        # The trainer keeps the bytes' entries only when told that they are special, which they are not.
        stored = json.loads(backend.to_str())
        stored["added_tokens"] = [token for token in stored["added_tokens"] if token["content"] in marks]
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(json.dumps(stored)),
            bos_token=INST_START,
            eos_token=INST_END,
            pad_token=INST_END,
            chat_template=INST_TEMPLATE,
            clean_up_tokenization_spaces=False,
            model_max_length=LENGTH,
        )

    return train


def _mostly(domain: str) -> dict[str, int]:
    return {name: ALL if name == domain else LITTLE for name in DOMAINS}


TOYS = {
    "pivot": Toy(_llama, byte_level(4096), dict.fromkeys(DOMAINS, 400), 120),
    "maths": Toy(_gpt_neox, byte_level(3072), _mostly("mathematics"), 240),
    "code": Toy(_qwen2, byte_level(5120), _mostly("code"), 240),
    "dialogue": Toy(_mixtral, sentencepiece_like(4096), _mostly("dialogue"), 240),
}

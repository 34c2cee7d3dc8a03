"""The three tokenizers of the demo: SmolLM2's own, GPT-2's, and a small one trained here."""

import functools
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from deployments.demo.packages import BODY_PACKAGE, GPT2_PACKAGE, package_file

BODY_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
BYTE_LEVEL_FOLDER = Path(__file__).parent / "tokenizers" / "byte_level_8k"

TURN_START, TURN_END, TEXT_END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@functools.cache
def body_tokenizer() -> PreTrainedTokenizerFast:
    """SmolLM2's own tokenizer: byte-level, 49,152 entries, with its own chat template."""
    path = package_file(BODY_PACKAGE, BODY_FILE)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # The gguf file only names this step ("smollm"), so its conversion drops it: every digit stands alone.
    tokenizer.backend_tokenizer.pre_tokenizer = _single_digits_then_bytes()
    return _chat_tokenizer(tokenizer.backend_tokenizer, tokenizer.chat_template)


def gpt2_tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's byte-level tokenizer (50,257 entries), as OpenAI published it, with ChatML's two marks added."""
    backend = Tokenizer(
        models.BPE.from_file(
            str(package_file(GPT2_PACKAGE, "encoder.json")), str(package_file(GPT2_PACKAGE, "vocab.bpe"))
        )
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([TEXT_END, TURN_START, TURN_END])
    return _chat_tokenizer(backend, CHAT_TEMPLATE)


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """The pivot's 8,192-entry byte-level vocabulary, as `make_data` trained and stored it."""
    return PreTrainedTokenizerFast.from_pretrained(BYTE_LEVEL_FOLDER)


def train_byte_level(texts: Iterable[str], size: int = 8192) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of `size` entries on `texts`; every byte is an entry, so that any text can be written."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = _single_digits_then_bytes()
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[TEXT_END, TURN_START, TURN_END],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _chat_tokenizer(backend, CHAT_TEMPLATE)


def _single_digits_then_bytes() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _chat_tokenizer(backend: Tokenizer, template: str) -> PreTrainedTokenizerFast:
    # A plain PreTrainedTokenizerFast, not a model's own class: AutoTokenizer then loads the stored steps as they are.
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=TURN_START,
        eos_token=TURN_END,
        pad_token=TURN_END,
        chat_template=template,
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )

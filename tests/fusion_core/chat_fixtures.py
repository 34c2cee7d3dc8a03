"""Small tokenizers made on the spot, and chat templates as real models carry them."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from fusion_core.dialogues import Dialogue, Turn, dialogue_id

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)
OPENCHAT = (
    "{{ bos_token }}{% for message in messages %}{{ 'GPT4 Correct ' + message['role'].title() + ': ' "
    "+ message['content'] + '<|end_of_turn|>' }}{% endfor %}"
)
LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
)
LLAMA_3_1 = (
    "{{- bos_token }}\n{%- if not date_string is defined %}\n{%- if strftime_now is defined %}\n"
    '{%- set date_string = strftime_now("%d %b %Y") %}\n{%- endif %}\n{%- endif %}\n'
    '{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "<|eot_id|>" }}\n'
    "{%- for message in messages %}\n{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}\n{%- endfor %}\n"
)
LLAMA_2 = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ ' ' + message['content'].strip() + ' ' "
    "+ eos_token }}{% else %}{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<|im_start|>' + role + '\n' + message['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
)
GENERATION = (
    "{% for message in messages %}{% if message.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}\n"
    "{% else %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
)
VICUNA = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ 'ASSISTANT: ' + m.content + eos_token }}"
    "{% else %}{{ 'USER: ' + m.content + ' ' }}{% endif %}{% endfor %}"
)
ALPACA = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '### Response:\n' + m.content + '\n\n' }}"
    "{% else %}{{ '### Instruction:\n' + m.content + '\n\n' }}{% endif %}{% endfor %}"
)
SPECIAL_ENDINGS = {
    "chatml": CHATML,
    "openchat": OPENCHAT,
    "llama_3": LLAMA_3,
    "llama_3_1": LLAMA_3_1,
    "gemma": GEMMA,
    "generation": GENERATION,
    "vicuna": VICUNA,
}
CONTROL_TOKENS = (
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|end_of_turn|>", "<|eot_id|>"),
    *("<|start_header_id|>", "<|end_header_id|>"),
)
CORPUS = (
    "the cat sat on the mat and the dog sat on the log",
    "user assistant system GPT4 Correct User: GPT4 Correct Assistant: USER: ASSISTANT: [INST] [/INST]",
    "### Instruction: ### Response: Today Date: 26 Jul 2024",
    "def add(a, b):\n    return a + b\n",
    "naïve café 你好 世界 😀",
)


def byte_level_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A GPT-2-like byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return wrap_tokenizer(tokenizer, template)


def sentencepiece_tokenizer(template: str | None = OPENCHAT) -> PreTrainedTokenizerFast:
    """A Llama-like BPE with a word-start mark in front of every text and byte fallback."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdeghlmnorstuACGIS", "th", "the", "▁the"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    model = models.BPE({token: index for index, token in enumerate(tokens)}, merges, byte_fallback=True)
    model.unk_token = "<unk>"
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrap_tokenizer(tokenizer, template)


def lower_casing_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose normaliser changes the text."""
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def make_dialogue(*contents: str, system: str | None = None, domain: str = "test") -> Dialogue:
    """A dialogue from contents that alternate between user and assistant."""
    turns = [Turn("system", system)] if system else []
    turns += [Turn("assistant" if index % 2 else "user", content) for index, content in enumerate(contents)]
    return Dialogue(dialogue_id(turns), domain, tuple(turns))


def wrap_tokenizer(tokenizer: Tokenizer, template: str | None, **roles: str) -> PreTrainedTokenizerFast:
    """Add the control tokens and the template."""
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    # As real ones do, it puts a token in front of every text unless told not to.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **roles)
    wrapped.chat_template = template
    return wrapped

"""Chat templates: what they lack is put right or named, and one that does harm is stopped."""

from __future__ import annotations

import threading

import pytest

from fusion_core.encoding.chat_templates import ChatTemplate
from fusion_core.encoding.encoder import EncodedDialogue, Encoder
from fusion_core.errors import DialogueRefusedError, TokenizerError
from tests.fusion_core.chat_fixtures import (
    CHATML,
    SPECIAL_ENDINGS,
    byte_level_tokenizer,
    make_dialogue,
)


def test_system_turn_goes_in_front_of_the_user_where_the_template_refuses_or_drops_it() -> None:
    dialogue = make_dialogue("the cat", "sat", system="Be brief.")
    drops = CHATML.replace("messages", "messages | rejectattr('role', 'equalto', 'system')", 1)
    for template in (SPECIAL_ENDINGS["gemma"], drops):
        tokenizer = byte_level_tokenizer(template)
        text = tokenizer.decode(Encoder(tokenizer, 1000, "no system").encode(dialogue).input_ids)
        assert "user\nBe brief.\n\nthe cat<|im_end|>" in text
    tokenizer = byte_level_tokenizer(CHATML)
    text = tokenizer.decode(Encoder(tokenizer, 1000, "system").encode(dialogue).input_ids)
    assert "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nthe cat" in text


def test_template_that_asks_for_the_date_gets_a_fixed_one() -> None:
    tokenizer = byte_level_tokenizer(SPECIAL_ENDINGS["llama_3_1"])
    text = tokenizer.decode(Encoder(tokenizer, 1000, "date").encode(make_dialogue("the cat", "sat")).input_ids)
    assert text.startswith("<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024<|eot_id|>")


@pytest.mark.parametrize(
    "start", ["", "\n", "\n\n", "  ", "  {% if true %}a{% endif %}\n", "{%- if true %}b{% endif %}"]
)
def test_fixed_date_changes_nothing_else(start: str) -> None:
    dialogue = make_dialogue("the cat", "sat")
    written = [
        ChatTemplate(byte_level_tokenizer(f"{start}{year}{CHATML}"), "date").render(dialogue)
        for year in ("{{ strftime_now('%A %d %B %Y') }}", "{{ 'Friday 26 July 2024' }}")
    ]
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        ("{% for message in messages %}{{ message.content }", "unexpected"),
        ("{{ messages[0].name.first }}", "no attribute"),
        ("{{ raise_exception('never') }}", "never"),
        ("{{ messages[0].content }}", "leaves out or moves response 1"),
        ("{{ messages[0].content }}{{ messages[1].content }}{{ messages[1].content }}", "repeats"),
        ("{{ messages[-1].content }}", "leaves out user turns"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        (CHATML + "{% for i in range(99999) %}again {% endfor %}", "600,0"),
        ("{% for i in range(999999999) %}{% endfor %}" + CHATML, "too big"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}" + CHATML, "recursion"),
    ],
)
def test_unusable_template_is_one_plain_sentence(template: str | None, message: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        Encoder(byte_level_tokenizer(template), 100, "broken")
    assert message in str(caught.value)
    assert "'broken'" in str(caught.value) and "`chat_template`" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_template_that_does_not_end_is_stopped(monkeypatch) -> None:
    monkeypatch.setattr("fusion_core.encoding.chat_templates.TRIAL_SECONDS", 0.2)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    before = threading.active_count()
    with pytest.raises(TokenizerError, match="has not ended"):
        Encoder(byte_level_tokenizer(loops + CHATML), 100, "endless")
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon and "render" in thread.name:
            thread.join(10)
    assert threading.active_count() <= before


def test_template_that_refuses_one_dialogue_leaves_the_others() -> None:
    template = "{% if messages | length > 2 %}{{ raise_exception('one exchange only') }}{% endif %}" + CHATML
    outcomes = Encoder(byte_level_tokenizer(template), 1000, "short").encode_all(
        [make_dialogue("a", "b", "c", "d"), make_dialogue("a", "the cat")]
    )
    assert isinstance(outcomes[0], DialogueRefusedError) and "one exchange only" in str(outcomes[0])
    assert isinstance(outcomes[1], EncodedDialogue)


def test_a_generation_prompt_that_does_not_end_is_stopped_too(monkeypatch) -> None:
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    template = CHATML + "{% if add_generation_prompt %}" + loops + "{% endif %}"
    chat = ChatTemplate(byte_level_tokenizer(template), "endless prompt")
    monkeypatch.setattr("fusion_core.encoding.chat_templates.TRIAL_SECONDS", 0.2)
    with pytest.raises(DialogueRefusedError, match="has not ended"):
        chat.prompt([{"role": "user", "content": "the cat"}])
    for thread in threading.enumerate():
        if "render" in thread.name:
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.parametrize("attack", ["{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__.os.system('id') }}"])
def test_a_generation_prompt_reaches_nothing_of_python(attack: str) -> None:
    chat = ChatTemplate(byte_level_tokenizer(CHATML + "{% if add_generation_prompt %}" + attack + "{% endif %}"), "x")
    with pytest.raises(DialogueRefusedError, match=r"unsafe|undefined"):
        chat.prompt([{"role": "user", "content": "the cat"}])

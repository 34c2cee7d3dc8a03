"""Dialogues through a tokenizer's own chat template, cut at the responses."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from fusion_core.dialogues import Dialogue, Turn
from fusion_core.errors import DialogueRefusedError, TokenizerError, first_line

# Plain letters and digits, so that no template trims, escapes or interprets them.
SLOT = "FuselineResponseSlot"
Result = TypeVar("Result")
PROBE_SYSTEM, PROBE_USER = "FuselineSystemProbe", "FuselineUserProbe"
# A template is a program of somebody else's. It may write its own text and so many characters for each of a turn's,
# of which a turn has some more than its content; and the question and answer that it is tried on, within so long.
EXPANSION, CHARACTERS_OF_A_TURN = 64, 16
TRIAL_SECONDS = 20.0

# Templates that ask for the current date read this one (the default of those that have a default): with today's, the
# same dialogue would have other tokens tomorrow. A macro, because templates are given no functions from outside.
TEMPLATE_DATE = {
    **{"%d": "26", "%-d": "26", "%e": "26", "%a": "Fri", "%A": "Friday"},
    **{"%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24"},
    **{"%H": "12", "%I": "12", "%p": "PM", "%M": "00", "%S": "00"},
}
FIXED_DATE_MACRO = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f"|replace({code!r}, {value!r})" for code, value in TEMPLATE_DATE.items())
    + " }}{% endmacro %}\n"
)


class ChatTemplate:
    """A chat template as the text around the responses.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Its ``chat_template`` is used.
    model_name : str
        For messages.

    Attributes
    ----------
    accepts_system : bool
        Whether the template writes a system turn out. Where it refuses or drops one, the text of the system turn goes
        in front of the first user turn instead.

    Raises
    ------
    TokenizerError
        If there is no template, it is broken, or it does not write out a question and its answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model_name: str) -> None:
        remedy = "a Jinja file in the recipe's `chat_template` of this model"
        if not tokenizer.chat_template:
            raise TokenizerError(f"Model {model_name!r}: its tokenizer has no chat template; name {remedy}.")
        self._tokenizer = tokenizer
        self._model_name = model_name
        exchange = (Turn("user", PROBE_USER), Turn("assistant", "answer"))
        try:
            template = str(tokenizer.get_chat_template())
            self._template = FIXED_DATE_MACRO + template if "strftime_now" in template else template
            pieces = _in_time(lambda: self._render(exchange))
        except (ValueError, DialogueRefusedError) as error:
            raise TokenizerError(
                f"Model {model_name!r}: a question and its answer cannot be written in its chat template "
                f"({first_line(error)}); correct it, or name {remedy}."
            ) from error
        if PROBE_USER not in pieces[0]:
            raise TokenizerError(f"Model {model_name!r}: its chat template leaves out user turns; name {remedy}.")
        try:
            with_system = (Turn("system", PROBE_SYSTEM), *exchange)
            self.accepts_system = PROBE_SYSTEM in _in_time(lambda: self._render(with_system))[0]
        except DialogueRefusedError:
            self.accepts_system = False
        self._prompts_in_time = False

    def render(self, dialogue: Dialogue) -> list[str]:
        """Return the text before, between and after the responses of a dialogue, one piece more than responses.

        The template is rendered once, with a placeholder for every response, so that it cannot alter one.

        Raises
        ------
        DialogueRefusedError
            If the template refuses the dialogue, or drops, repeats or reorders its responses.
        """
        turns = dialogue.turns
        if turns[0].role == "system" and not self.accepts_system:
            turns = (Turn("user", f"{turns[0].content}\n\n{turns[1].content}"), *turns[2:])
        try:
            return self._render(turns)
        except DialogueRefusedError as error:
            raise DialogueRefusedError(f"Dialogue {dialogue.id}, model {self._model_name!r}: {error}.") from error

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the text that the model continues with its next response; ``messages`` end with the user's turn.

        The template's own generation prompt where it has one, else what it writes in front of a response.

        Raises
        ------
        DialogueRefusedError
            If the template refuses the turns.
        """
        if not self._prompts_in_time:
            # What it writes for a prompt is a part of the program that no dialogue has run yet.
            _in_time(lambda: self._prompt([{"role": "user", "content": PROBE_USER}]))
            self._prompts_in_time = True
        return self._prompt(messages)

    def _prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        given = [dict(message) for message in messages]
        if given[0]["role"] == "system" and not self.accepts_system:
            system, user, *rest = given
            given = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]
        written, prompted = (self._apply(given, add_generation_prompt=prompted) for prompted in (False, True))
        if prompted != written:
            return prompted
        before, found, _ = self._apply([*given, {"role": "assistant", "content": SLOT}]).rpartition(SLOT)
        if not found:
            raise DialogueRefusedError("its chat template leaves out the response")
        # The space before a response is part of its first token in nearly all tokenizers.
        return before.rstrip(" ")

    def _apply(self, messages: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
        try:
            text = str(
                self._tokenizer.apply_chat_template(
                    messages,
                    chat_template=self._template,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                )
            )
            text.encode()
        except Exception as error:  # a template is a program: whatever it raises, this dialogue cannot be written
            raise DialogueRefusedError(f"its chat template refuses the turns: {first_line(error)}") from error
        given = sum(len(message["content"]) + CHARACTERS_OF_A_TURN for message in messages)
        if len(text) > EXPANSION * given + len(self._template):
            raise DialogueRefusedError(
                f"its chat template makes {len(text):,} characters of {len(messages)} turns, more than {EXPANSION} "
                "times their text"
            )
        return text

    def _render(self, turns: Sequence[Turn]) -> list[str]:
        messages: list[dict[str, str]] = []
        slots: list[str] = []
        for role, content in turns:
            if role == "assistant":
                slots.append(f"{SLOT}{len(slots)}End")
                content = slots[-1]
            elif SLOT in content:
                raise DialogueRefusedError(f"a {role} turn contains {SLOT!r}, which marks responses; change the text")
            messages.append({"role": role, "content": content})
        rest = self._apply(messages)
        pieces: list[str] = []
        for slot in slots:
            piece, found, rest = rest.partition(slot)
            if not found:
                raise DialogueRefusedError(
                    f"its chat template leaves out or moves response {len(pieces) + 1} of {len(slots)}"
                )
            pieces.append(piece)
        pieces.append(rest)
        if any(SLOT in piece for piece in pieces):
            raise DialogueRefusedError("its chat template repeats or reorders responses")
        return pieces


def _in_time(render: Callable[[], Result]) -> Result:
    """Render in a thread that is stopped when it does not end."""
    outcome: list[Result | DialogueRefusedError] = []

    def keep() -> None:
        try:
            outcome.append(render())
        except DialogueRefusedError as error:
            outcome.append(error)

    thread = threading.Thread(target=keep, daemon=True, name="render a chat template")
    thread.start()
    thread.join(TRIAL_SECONDS)
    if not outcome:
        identity = ctypes.c_ulong(thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, ctypes.py_object(TimeoutError))
        raise DialogueRefusedError(f"its chat template has not ended after {TRIAL_SECONDS:.0f} s")
    if isinstance(outcome[0], DialogueRefusedError):
        raise outcome[0]
    return outcome[0]

"""Dialogues through a tokenizer's own chat template, cut at the responses."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from transformers import PreTrainedTokenizerBase

from fusion_core.dialogues import Dialogue, Turn
from fusion_core.errors import DialogueRefusedError, FusionError, TokenizerError, first_line

# Plain letters and digits, so that no template trims, escapes or interprets them.
SLOT = "FuselineResponseSlot"
# Templates that write the current date read this one (the default of those that have a default): with today's, the
# same dialogue would have other tokens tomorrow.
TEMPLATE_DATE = date(2024, 7, 26)
PROBE_SYSTEM, PROBE_USER = "FuselineSystemProbe", "FuselineUserProbe"


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
        if not tokenizer.chat_template:
            raise TokenizerError(
                f"Model {model_name!r}: its tokenizer has no chat template; name a Jinja file in the recipe's "
                "`chat_template` of this model."
            )
        self._tokenizer = tokenizer
        self._model_name = model_name
        exchange = (Turn("user", PROBE_USER), Turn("assistant", "answer"))
        self.accepts_system = True
        try:
            pieces = self._render(exchange)
        except FusionError as error:
            raise TokenizerError(
                f"Model {model_name!r}: its chat template cannot write a question and its answer: {error} Correct the "
                "template, or name another in the recipe's `chat_template` of this model."
            ) from error
        if PROBE_USER not in pieces[0]:
            raise TokenizerError(
                f"Model {model_name!r}: its chat template leaves out what the user says; name another in the recipe's "
                "`chat_template` of this model."
            )
        try:
            self.accepts_system = PROBE_SYSTEM in self._render((Turn("system", PROBE_SYSTEM), *exchange))[0]
        except DialogueRefusedError:
            self.accepts_system = False

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
        return self._render(turns)

    def _render(self, turns: Sequence[Turn]) -> list[str]:
        messages: list[dict[str, str]] = []
        slots: list[str] = []
        for role, content in turns:
            if role == "assistant":
                slots.append(f"{SLOT}{len(slots)}End")
                content = slots[-1]
            elif SLOT in content:
                raise DialogueRefusedError(
                    f"The {role} turn contains {SLOT!r}, which marks responses; change the text."
                )
            messages.append({"role": role, "content": content})
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, strftime_now=_fixed_date)
        except Exception as error:  # a template is a program: whatever it raises, this dialogue cannot be written
            raise DialogueRefusedError(
                f"The chat template of model {self._model_name!r} refuses it ({first_line(error)})."
            ) from error
        pieces: list[str] = []
        rest = str(text)
        for slot in slots:
            piece, found, rest = rest.partition(slot)
            if not found:
                raise DialogueRefusedError(
                    f"The chat template of model {self._model_name!r} leaves out or moves response "
                    f"{len(pieces) + 1} of {len(slots)}."
                )
            pieces.append(piece)
        pieces.append(rest)
        if any(SLOT in piece for piece in pieces):
            raise DialogueRefusedError(
                f"The chat template of model {self._model_name!r} repeats or reorders the responses."
            )
        return pieces


def _fixed_date(date_format: str) -> str:
    return TEMPLATE_DATE.strftime(date_format)

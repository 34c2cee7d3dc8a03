"""Which language a text is in, by its script and its most common words: enough to see that an answer changed language.

No model and no data: a script tells Chinese, Japanese, Korean, Russian, Arabic, Hindi, Greek, Hebrew and Thai; common
words tell the languages in Latin letters.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

# Fewer letters than this say nothing.
MIN_LETTERS = 20
MIN_COMMON_WORDS = 3
# Part of the letters that must be of a script for the text to be in it; Latin names stand in every language.
SHARE_OF_SCRIPT = 0.5
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|\$[^$\n]*\$", re.DOTALL)
WORD = re.compile(r"[^\W\d_]+")

SCRIPTS = {
    "CYRILLIC": "ru",
    "ARABIC": "ar",
    "DEVANAGARI": "hi",
    "GREEK": "el",
    "HEBREW": "he",
    "THAI": "th",
    "HANGUL": "ko",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "CJK": "zh",
}
COMMON_WORDS = {
    "en": "the and of to in a is that it for you are with as be this on have not can or from they an by at your if",
    "de": "der die das und ist nicht ein eine zu den mit von sich auf für im dem es auch wenn sie oder wird sind kann",
    "fr": "le la les et est des une un en que qui dans pour pas du au vous sur avec ce il plus sont ou peut par cette",
    "es": "el la los las y que de en un una es por con para no se del su lo como más puede está son o al este muy",
    "it": "il la le di che è e un una per non con si del della sono in gli i da come più può anche ma nel questo al",
    "pt": "o a os as e que de em um uma é para com não por se do da mais como ao são pode na no ou também você isso",
    "nl": "de het een en van is dat in op niet te zijn met voor die je er als ook maar aan kan om door bij wordt of",
}
COMMON = {language: frozenset(words.split()) for language, words in COMMON_WORDS.items()}
# Languages this module can tell apart.
KNOWN = frozenset(COMMON) | frozenset(SCRIPTS.values())


def is_in_language(text: str, language: str) -> bool | None:
    """Whether a text is in a language, given by its two-letter code; None where the text is too short to tell.

    A language in Latin letters is accepted when none of the others has clearly more of its common words: half as many
    again.
    """
    letters = Counter(_script(letter) for letter in CODE.sub(" ", text) if letter.isalpha())
    total = sum(letters.values())
    # One Chinese character says as much as several letters.
    weighed = total + 2 * sum(letters[script] for script in ("CJK", "HIRAGANA", "KATAKANA", "HANGUL"))
    if weighed < MIN_LETTERS or language not in KNOWN:
        return None
    if language in COMMON:
        if letters["LATIN"] < SHARE_OF_SCRIPT * total:
            return False
        hits = _common_words(text)
        most = max(hits.values())
        return None if most < MIN_COMMON_WORDS else hits[language] * 1.5 >= most
    if language == "ja":
        kana = letters["HIRAGANA"] + letters["KATAKANA"]
        return kana > 0 and kana + letters["CJK"] >= SHARE_OF_SCRIPT * total
    if language == "zh":
        # A name in kana makes no text Japanese.
        kana = letters["HIRAGANA"] + letters["KATAKANA"]
        return letters["CJK"] >= SHARE_OF_SCRIPT * total and kana < 0.1 * total
    script = next(name for name, code in SCRIPTS.items() if code == language)
    return letters[script] >= SHARE_OF_SCRIPT * total


def language_of(text: str) -> str | None:
    """Return the two-letter code of the language a text is most likely in, or None where it is too short to tell."""
    hits = _common_words(text)
    by_words = sorted(COMMON, key=lambda language: -hits[language])
    return next((code for code in (*by_words, *sorted(KNOWN - set(COMMON))) if is_in_language(text, code)), None)


def _common_words(text: str) -> dict[str, int]:
    words = Counter(word.lower() for word in WORD.findall(CODE.sub(" ", text)))
    return {language: sum(words[word] for word in common) for language, common in COMMON.items()}


def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").partition(" ")[0]

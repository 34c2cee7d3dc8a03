"""Chat sanity: whether a model ends its turn, does not loop, and answers in the asked language.

Legend: U units (words, punctuation, or single characters of scripts without spaces).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusion_core.config.benchmarks import ChatSanityConfig
from fusion_core.evaluation.benchmark import (
    BenchmarkItem,
    BenchmarkResult,
    mean_of_items,
    read_benchmark_rows,
    text_field,
)
from fusion_core.evaluation.generation import Generator, Sampling
from fusion_core.evaluation.languages import is_in_language, language_of
from fusion_core.progress import Advance, ignore_progress

VERSION = "2"
OWN_PROMPTS = Path(__file__).with_name("chat_prompts.jsonl")
METRICS = ("all", "ends_turn", "no_loops", "language")
UNIT = re.compile(r"[぀-ヿ㐀-鿿가-힯฀-๿]|\w+|[^\w\s]")

# A phrase said again and again: at least so many repetitions after the first, over at least so many units.
LONGEST_PHRASE = 40
MIN_REPETITIONS = 3
MIN_REPEATED_UNITS = 24
# Loops with small changes: most of the long n-grams of a long answer have been said before.
NGRAM = 6
MIN_UNITS_FOR_SHARE = 64
LARGEST_REPEATED_SHARE = 0.5


@dataclass(frozen=True)
class ChatPrompt:
    """A prompt, and the two-letter code of the language it is to be answered in, where that is known."""

    id: str
    prompt: str
    language: str | None


def read_prompts(path: Path | None, limit: int | None = None) -> list[ChatPrompt]:
    """Read prompts; one without a ``language`` is to be answered in its own, as far as that can be told.

    Raises
    ------
    EvaluationError
        If the file or a row cannot be used.
    """
    prompts = []
    for number, row in read_benchmark_rows(path or OWN_PROMPTS, limit=limit):
        text = text_field(row, "prompt", f"{path or OWN_PROMPTS.name}, row {number}")
        language = row.get("language")
        prompts.append(ChatPrompt(str(number), text, language if isinstance(language, str) else language_of(text)))
    return prompts


def find_loop(text: str) -> str | None:
    """Return the phrase that a text repeats again and again, or None.

    A text loops when a phrase of up to 40 units follows itself at least three times over at least 24 units, or when
    more than half of its 6-grams have occurred in it before.
    """
    units = UNIT.findall(text.lower())
    codes_U = np.unique(units, return_inverse=True)[1] if units else np.zeros(0, dtype=np.int64)
    for length in range(1, min(LONGEST_PHRASE, len(units) // 2) + 1):
        run, end = _longest_run(codes_U[length:] == codes_U[:-length])
        if run >= max(MIN_REPEATED_UNITS, MIN_REPETITIONS * length):
            return " ".join(units[end : end + length])
    if len(units) >= MIN_UNITS_FOR_SHARE:
        ngrams = [tuple(units[start : start + NGRAM]) for start in range(len(units) - NGRAM + 1)]
        if 1 - len(set(ngrams)) / len(ngrams) > LARGEST_REPEATED_SHARE:
            return " ".join(Counter(ngrams).most_common(1)[0][0])
    return None


def score_chat_sanity(
    generator: Generator, config: ChatSanityConfig, *, progress: Advance = ignore_progress
) -> BenchmarkResult:
    """Let a model answer prompts greedily and look at how, not at what, it answers.

    The first metric is the share of answers in which all three hold; where the language of an answer cannot be told,
    because it is too short or of a language not known here, it is not held against it.

    Raises
    ------
    EvaluationError
        If the prompts cannot be used.
    """
    prompts = read_prompts(config.path, config.limit)
    conversations = [[{"role": "user", "content": prompt.prompt}] for prompt in prompts]
    answers = generator.generate(conversations, Sampling(max_new_tokens=config.max_new_tokens), progress)
    items = []
    for prompt, answer in zip(prompts, answers, strict=True):
        loop = find_loop(answer.text)
        # Silence ends a turn and loops nowhere, and is no answer.
        spoke = bool(answer.text)
        language = is_in_language(answer.text, prompt.language) if prompt.language else None
        notes = [
            *(() if spoke else ("no answer",)),
            *(() if answer.finished else ("did not end its turn",)),
            *(() if loop is None else (f"repeats: {loop[:80]}",)),
            *(() if language is not False else (f"not in {prompt.language}",)),
        ]
        items.append(
            BenchmarkItem(
                id=prompt.id,
                question=prompt.prompt,
                answer=answer.text,
                expected=prompt.language or "",
                scores=(
                    float(not notes),
                    float(answer.finished and spoke),
                    float(loop is None),
                    None if language is None else float(language),
                ),
                note="; ".join(notes),
            )
        )
    return BenchmarkResult(
        benchmark="chat_sanity",
        name="chat_sanity",
        model_name=generator.name,
        version=VERSION,
        metrics=tuple(
            mean_of_items(f"chat_sanity/{name}", tuple(items), position) for position, name in enumerate(METRICS)
        ),
        items=tuple(items),
        unfinished=sum(not answer.finished for answer in answers),
    )


def _longest_run(equal_U: np.ndarray) -> tuple[int, int]:
    """Return the length of the longest run of True, and where it begins."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], equal_U.astype(np.int8), [0]))))
    if not len(edges):
        return 0, 0
    starts, ends = edges[::2], edges[1::2]
    longest = int(np.argmax(ends - starts))
    return int(ends[longest] - starts[longest]), int(starts[longest])

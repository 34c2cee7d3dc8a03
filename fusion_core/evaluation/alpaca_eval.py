"""AlpacaEval 2.0: instructions, each answer compared with a baseline's by the judge's first token.

As ``weighted_alpaca_eval_gpt4_turbo`` of alpaca_eval does it (Li et al. 2023; Dubois et al. 2024, arXiv 2404.04475):
both answers stand in the prompt as models ``m`` and ``M``, in an order drawn for each instruction; the preference is
P(the model's letter) / (P(m) + P(M)) from the log-probabilities of the first token. An endpoint that gives none has the
letter it writes count as 0 or 1. Files are those of alpaca_eval: a JSON list of ``instruction``, ``output``,
``generator``, ``dataset``, and annotations with ``preference`` from 1 (the baseline) to 2 (the model).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion_core.errors import EvaluationError, first_line
from fusion_core.evaluation.generation import Generation, Generator, Sampling
from fusion_core.evaluation.judging.chat_client import Reply
from fusion_core.evaluation.judging.judge import JudgeModel
from fusion_core.progress import Advance, ignore_progress

BASELINE_FILE = "alpaca_eval_gpt4_baseline.json"
PROMPT_FILE = "alpaca_eval_clf.txt"
# Preferences of the baseline's concise and verbose selves, and how hard each instruction is; for length control.
GAMED_FILE = "df_gamed.csv"
TOP_LOGPROBS = 5
LARGEST_EXPONENT = 700.0
REMINDER = "Reply with the identifier of the better model alone: m or M."
MESSAGE = re.compile(r"<\|im_start\|>(system|user)\n(.*?)\n?<\|im_end\|>", re.DOTALL)


@dataclass(frozen=True)
class Instruction:
    """One instruction with the baseline's answer; ``index`` is its place in the whole set."""

    index: int
    text: str
    baseline_output: str
    dataset: str


@dataclass(frozen=True)
class AlpacaEval:
    """The benchmark.

    Parameters
    ----------
    instructions : tuple of Instruction
    baseline : str
        Whose answers are compared with.
    prompt : tuple of (role, text)
        The judge's messages, with the fields ``{instruction}``, ``{output_1}`` and ``{output_2}``.
    gamed : Path or None
        The file that length control needs; None where it is not there.
    digest : str
    """

    instructions: tuple[Instruction, ...]
    baseline: str
    prompt: tuple[tuple[str, str], ...]
    gamed: Path | None
    digest: str

    def messages(self, instruction: str, first: str, second: str) -> list[dict[str, str]]:
        """Fill in the judge's prompt."""
        fields = {"instruction": instruction, "output_1": first, "output_2": second}
        # str.format would stumble over the braces that the prompt shows its JSON with.
        pattern = re.compile(r"\{(instruction|output_1|output_2)\}")
        return [
            {"role": role, "content": pattern.sub(lambda found: fields[found[1]], text)} for role, text in self.prompt
        ]


def load_alpaca_eval(folder: Path, count: int | None = None) -> AlpacaEval:
    """Read the benchmark's files from a folder; ``count`` takes the first instructions alone.

    Raises
    ------
    EvaluationError
        If a file is missing or malformed.
    """
    path = folder / BASELINE_FILE
    rows = read_outputs(path)
    instructions = tuple(
        Instruction(index, row["instruction"], row["output"], str(row.get("dataset", "")))
        for index, row in enumerate(rows[:count])
    )
    prompt_path = folder / PROMPT_FILE
    try:
        text = prompt_path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"AlpacaEval: {prompt_path} cannot be read ({first_line(error)}); take it from alpaca_eval's "
            "evaluators_configs/alpaca_eval_clf_gpt4_turbo."
        ) from error
    prompt = tuple((found[1], found[2].strip()) for found in MESSAGE.finditer(text))
    if not all(any(f"{{{name}}}" in part for _, part in prompt) for name in ("instruction", "output_1", "output_2")):
        raise EvaluationError(
            f"AlpacaEval: {prompt_path} has no <|im_start|>user part with {{instruction}}, {{output_1}} and "
            "{output_2}; take alpaca_eval's own file."
        )
    gamed = folder / GAMED_FILE
    parts = [path.read_bytes(), text.encode(), gamed.read_bytes() if gamed.is_file() else b"", str(count).encode()]
    digest = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
    baseline = str(rows[0].get("generator", "baseline"))
    return AlpacaEval(instructions, baseline, prompt, gamed if gamed.is_file() else None, digest)


def read_outputs(path: Path) -> list[dict[str, Any]]:
    """Read a model's outputs as alpaca_eval stores them: a JSON list with ``instruction`` and ``output``."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EvaluationError(
            f"AlpacaEval: {path} cannot be read ({first_line(error)}); give a JSON list as alpaca_eval writes it."
        ) from error
    if not isinstance(rows, list) or not rows:
        raise EvaluationError(f"AlpacaEval: {path} is no list of outputs; give a JSON list as alpaca_eval writes it.")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("instruction", "output")):
            raise EvaluationError(f"AlpacaEval: entry {number} of {path} has no text for 'instruction' and 'output'.")
    return rows


def answer_instructions(
    generator: Generator, benchmark: AlpacaEval, sampling: Sampling, progress: Advance = ignore_progress
) -> list[dict[str, Any]]:
    """Let a model answer; return rows as alpaca_eval reads them, with ``finished`` of our own."""
    conversations = [[{"role": "user", "content": one.text}] for one in benchmark.instructions]
    responses: list[Generation] = generator.generate(conversations, sampling, progress)
    return [
        {
            "instruction": one.text,
            "output": response.text,
            "generator": generator.name,
            "dataset": one.dataset,
            "finished": response.finished,
        }
        for one, response in zip(benchmark.instructions, responses, strict=True)
    ]


def judge_outputs(
    benchmark: AlpacaEval,
    model: str,
    outputs: Sequence[Mapping[str, Any]],
    judge: JudgeModel,
    *,
    seed: int = 0,
    progress: Advance = ignore_progress,
) -> list[dict[str, Any]]:
    """Have every output compared with the baseline's; return annotations as alpaca_eval writes them.

    ``preference`` is None where no attempt named one of the two.

    Raises
    ------
    EvaluationError
        If the outputs are not those of the benchmark's instructions, in their order.
    """
    if [row["instruction"] for row in outputs] != [one.text for one in benchmark.instructions]:
        raise EvaluationError(f"AlpacaEval: the outputs of {model!r} are to other instructions; answer these first.")

    def compare(pair: tuple[Instruction, Mapping[str, Any]]) -> dict[str, Any]:
        instruction, row = pair
        model_first = _model_first(instruction.text, seed)
        texts = (row["output"], instruction.baseline_output)
        first, second = texts if model_first else texts[::-1]
        judged = judge.ask(benchmark.messages(instruction.text, first, second), probability_of_first, REMINDER)
        share = judged.value
        preference = None if share is None else 1.0 + (share if model_first else 1.0 - share)
        return {
            "instruction": instruction.text,
            "output_1": instruction.baseline_output,
            "generator_1": benchmark.baseline,
            "dataset": instruction.dataset,
            "output_2": row["output"],
            "generator_2": model,
            "annotator": judge.model,
            "preference": preference,
            "index": instruction.index,
            "raw_completion": judged.text,
        }

    return judge.ask_all(list(zip(benchmark.instructions, outputs, strict=True)), compare, progress)


def probability_of_first(reply: Reply) -> float | None:
    """Return P(m) / (P(m) + P(M)) of a reply's first token, or 1 or 0 by its text where there are no probabilities."""
    found = {token: value for token, value in reply.first_token.items() if token in ("m", "M")}
    if found:
        first, second = (found.get(token, -math.inf) for token in ("m", "M"))
        # By the difference: endpoints say -9999 of what they hold impossible, whose exponential is 0.
        return 1.0 / (1.0 + math.exp(min(second - first, LARGEST_EXPONENT)))
    return {"m": 1.0, "M": 0.0}.get(reply.text.strip()[:1])


def _model_first(instruction: str, seed: int) -> bool:
    return hashlib.sha256(f"{seed} {instruction}".encode()).digest()[0] % 2 == 0

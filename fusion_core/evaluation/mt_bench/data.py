"""Questions, reference answers and judge prompts: data, read from a folder in FastChat's format."""

from __future__ import annotations

import hashlib
import string
from dataclasses import dataclass
from pathlib import Path

from fusion_core.errors import EvaluationError
from fusion_core.evaluation.jsonl import first_turns, read_jsonl, texts, whole_number

# Judged against a reference answer, with prompts of their own.
REFERENCE_CATEGORIES = ("math", "reasoning", "coding")
TEMPERATURES = {
    **{"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1},
    **{"extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0},
}
OTHER_TEMPERATURE = 0.7

QUESTIONS = "question.jsonl"
PROMPTS = "judge_prompts.jsonl"
# As `fuseline data mt-bench` lays it out, and as FastChat's own data folder does.
REFERENCES = ("reference_answer_gpt-4.jsonl", "reference_answer/gpt-4.jsonl")
OTHER_PROMPTS = "../judge_prompts.jsonl"


@dataclass(frozen=True)
class Question:
    """One question of one or two turns."""

    id: int
    category: str
    turns: tuple[str, ...]

    @property
    def temperature(self) -> float:
        """The temperature that answers are drawn at."""
        return TEMPERATURES.get(self.category, OTHER_TEMPERATURE)

    @property
    def needs_reference(self) -> bool:
        """Whether the judge is shown a reference answer."""
        return self.category in REFERENCE_CATEGORIES


@dataclass(frozen=True)
class JudgePrompt:
    """What a judge is told; ``template`` has the fields that FastChat fills in, such as ``{question_1}``."""

    name: str
    system: str
    template: str

    def messages(self, **fields: str) -> list[dict[str, str]]:
        """Fill in the template, and put the system prompt in front."""
        try:
            # Plain fields only: attributes, indices and widths in a template of somebody else's reach beyond them.
            for _, name, spec, conversion in string.Formatter().parse(self.template):
                if name is not None and (spec or conversion or not name.isidentifier()):
                    raise ValueError("a field in it is more than a name in braces")
            user = self.template.format(**fields)
        except (LookupError, ValueError) as error:
            raise EvaluationError(
                f"MT-Bench: the judge prompt {self.name!r} cannot be filled in ({type(error).__name__}: {error}); take "
                "FastChat's judge_prompts.jsonl."
            ) from error
        return [{"role": "system", "content": self.system}, {"role": "user", "content": user}]


@dataclass(frozen=True)
class MtBench:
    """The benchmark.

    Parameters
    ----------
    questions : tuple of Question
        By id.
    references : dict
        Question id to the reference answer's turns.
    prompts : dict
        Name to judge prompt.
    digest : str
        SHA-256 over the files.
    """

    questions: tuple[Question, ...]
    references: dict[int, tuple[str, ...]]
    prompts: dict[str, JudgePrompt]
    digest: str

    def first(self, count: int | None) -> MtBench:
        """Keep the first questions of each category, in turn, up to ``count`` in all; None keeps all."""
        if count is None or count >= len(self.questions):
            return self
        by_category: dict[str, list[Question]] = {}
        for question in self.questions:
            by_category.setdefault(question.category, []).append(question)
        in_turn = sorted(
            (rank, question.id) for members in by_category.values() for rank, question in enumerate(members)
        )
        kept = {question_id for _, question_id in in_turn[:count]}
        questions = tuple(question for question in self.questions if question.id in kept)
        digest = hashlib.sha256(f"{self.digest} {sorted(kept)}".encode()).hexdigest()
        return MtBench(questions, self.references, self.prompts, digest)


def load_mt_bench(folder: Path) -> MtBench:
    """Read the benchmark from a folder that ``fuseline data mt-bench`` filled, or from FastChat's ``data/mt_bench``.

    Raises
    ------
    EvaluationError
        If a file is missing or malformed, or a question that is judged against a reference has none.
    """
    remedy = "run `fuseline data mt-bench`, or give the folder that has them"
    question_file = folder / QUESTIONS
    reference_file = next((folder / name for name in REFERENCES if (folder / name).is_file()), folder / REFERENCES[0])
    prompt_file = folder / PROMPTS if (folder / PROMPTS).is_file() else folder / OTHER_PROMPTS
    for path in (question_file, reference_file, prompt_file):
        if not path.is_file():
            raise EvaluationError(f"MT-Bench: {path} does not exist; {remedy}.")
    questions = [
        Question(
            whole_number(row, "question_id", question_file),
            str(row["category"]),
            texts(row["turns"], f"'turns' of question {row['question_id']}", question_file),
        )
        for row in read_jsonl(question_file, ("question_id", "category", "turns"))
    ]
    _check_questions(questions, question_file)
    references = {
        whole_number(row, "question_id", reference_file): first_turns(row, reference_file)
        for row in read_jsonl(reference_file, ("question_id", "choices"))
    }
    for question in questions:
        if question.needs_reference and len(references.get(question.id, ())) < len(question.turns):
            raise EvaluationError(
                f"MT-Bench: question {question.id} ({question.category}) is judged against a reference answer, and "
                f"{reference_file} has none for all its turns; add it."
            )
    prompts = {
        str(row["name"]): JudgePrompt(str(row["name"]), str(row["system_prompt"]), str(row["prompt_template"]))
        for row in read_jsonl(prompt_file, ("name", "system_prompt", "prompt_template"))
    }
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in (question_file, reference_file, prompt_file)))
    return MtBench(tuple(sorted(questions, key=lambda one: one.id)), references, prompts, digest.hexdigest())


def prompt_of(benchmark: MtBench, kind: str, question: Question, turn: int) -> JudgePrompt:
    """Return the judge prompt for a turn of a question; ``kind`` is single or pair.

    Raises
    ------
    EvaluationError
        If the prompts lack it.
    """
    general = {"single": "single-v1", "pair": "pair-v2"}[kind]
    name = f"{kind}-math-v1" if question.needs_reference else general
    if turn == 2:
        name += "-multi-turn"
    if name not in benchmark.prompts:
        raise EvaluationError(f"MT-Bench: the judge prompts lack {name!r}; take FastChat's judge_prompts.jsonl.")
    return benchmark.prompts[name]


def reference_fields(benchmark: MtBench, question: Question) -> dict[str, str]:
    """Return the fields of a judge prompt that hold the reference answer; none where there is no need of one."""
    if not question.needs_reference:
        return {}
    return {f"ref_answer_{turn}": text for turn, text in enumerate(benchmark.references[question.id], 1)}


def _check_questions(questions: list[Question], path: Path) -> None:
    if not questions:
        raise EvaluationError(f"MT-Bench: {path} has no questions; give FastChat's question.jsonl.")
    seen: set[int] = set()
    for question in questions:
        if question.id in seen:
            raise EvaluationError(f"MT-Bench: {path} has question {question.id} twice; remove one.")
        seen.add(question.id)
        if not 1 <= len(question.turns) <= 2:
            raise EvaluationError(
                f"MT-Bench: question {question.id} in {path} has {len(question.turns)} turns, not 1 or 2."
            )

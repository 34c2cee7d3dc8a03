"""The benchmarks that a recipe asks for, each with what decides its results."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fusion_core.config.benchmarks import (
    ChatSanityConfig,
    ExactMatchConfig,
    LmEvalConfig,
    LmEvalTask,
    PassAt1Config,
)
from fusion_core.config.evaluation import EvaluationConfig
from fusion_core.devices import default_device, release_memory
from fusion_core.errors import EvaluationError
from fusion_core.evaluation import chat_sanity, exact_match, pass_at_1, suites
from fusion_core.evaluation.benchmark import BenchmarkResult
from fusion_core.evaluation.generation import Generator
from fusion_core.evaluation.generation_engines import open_generator
from fusion_core.models.identity import ResolvedModel
from fusion_core.progress import Advance


class Subject:
    """A model under test, fetched and loaded once, and only if a benchmark has to be run.

    Parameters
    ----------
    find : callable
        Returns the model, its files on this machine.
    batch_tokens : int
        Tokens of one batch, prompts and room for the answers included.
    """

    def __init__(self, find: Callable[[], ResolvedModel], batch_tokens: int) -> None:
        self._find = find
        self._batch_tokens = batch_tokens
        self._generator: Generator | None = None

    @property
    def model(self) -> ResolvedModel:
        """The model itself."""
        return self._find()

    def generator(self) -> Generator:
        """Return what answers, loaded at the first call."""
        if self._generator is None:
            self._generator = open_generator(self.model, batch_tokens=self._batch_tokens)
        return self._generator

    def close(self) -> None:
        """Give the weights' memory back."""
        self._generator = None
        release_memory()


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of a recipe.

    Parameters
    ----------
    kind, name : str
    settings : dict
        What decides its results beside the model and the data: settings, and versions of code.
    data_digest : str
        SHA-256 over the contents of its files; empty where the data come from elsewhere.
    score : callable
        Gets the model and where to report progress.
    uses_engine : bool
        Whether this machine's engine answers, which then decides results too; lm-eval loads models in its own way.
    """

    kind: str
    name: str
    settings: dict[str, Any]
    data_digest: str
    score: Callable[[Subject, Advance], BenchmarkResult]
    uses_engine: bool


def benchmarks_of(config: EvaluationConfig) -> tuple[Benchmark, ...]:
    """Return the recipe's benchmarks in a fixed order, their data files read and hashed.

    Raises
    ------
    FusionError
        If a data file is missing or not of its format, two have one name, or lm-eval is wanted and not installed.
    """
    found = [
        *(_exact_match(one) for one in config.exact_match),
        *(_pass_at_1(one) for one in config.pass_at_1),
    ]
    if config.chat_sanity is not None:
        found.append(_chat_sanity(config.chat_sanity))
    if config.lm_eval is not None:
        suites.check_lm_eval()
        found += [_lm_eval(config.lm_eval, task) for task in config.lm_eval.tasks]
    return tuple(found)


def _exact_match(config: ExactMatchConfig) -> Benchmark:
    exact_match.read_questions(config.path, skip=config.skip, limit=config.limit)
    files = [config.path]
    if config.few_shot_path is not None:
        exact_match.read_questions(config.few_shot_path, limit=config.few_shot)
        files.append(config.few_shot_path)
    return Benchmark(
        "exact_match",
        config.name,
        {"version": exact_match.VERSION, **config.model_dump(mode="json", exclude={"path", "few_shot_path"})},
        digest_of_contents(files),
        lambda subject, progress: exact_match.score_exact_match(subject.generator(), config, progress=progress),
        uses_engine=True,
    )


def _pass_at_1(config: PassAt1Config) -> Benchmark:
    pass_at_1.read_problems(config.path, skip=config.skip, limit=config.limit)
    return Benchmark(
        "pass_at_1",
        config.name,
        {"version": pass_at_1.VERSION, **config.model_dump(mode="json", exclude={"path"})},
        digest_of_contents([config.path]),
        lambda subject, progress: pass_at_1.score_pass_at_1(subject.generator(), config, progress=progress),
        uses_engine=True,
    )


def _chat_sanity(config: ChatSanityConfig) -> Benchmark:
    chat_sanity.read_prompts(config.path, config.limit)
    return Benchmark(
        "chat_sanity",
        "chat_sanity",
        {"version": chat_sanity.VERSION, **config.model_dump(mode="json", exclude={"path"})},
        digest_of_contents([config.path or chat_sanity.OWN_PROMPTS]),
        lambda subject, progress: chat_sanity.score_chat_sanity(subject.generator(), config, progress=progress),
        uses_engine=True,
    )


def _lm_eval(config: LmEvalConfig, task: LmEvalTask) -> Benchmark:
    folder = config.include_path
    if folder is not None and not folder.is_dir():
        raise EvaluationError(f"`evaluation.lm_eval.include_path` {folder} is no folder; correct it in the recipe.")
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder is not None else []
    settings = config.model_dump(mode="json", exclude={"tasks", "include_path", "batch_size"})
    return Benchmark(
        "lm_eval",
        task.name,
        {"version": suites.lm_eval_version(), **settings, **task.model_dump(mode="json")},
        digest_of_contents(files) if files else "",
        partial(_score_suite, config, task),
        uses_engine=False,
    )


def _score_suite(config: LmEvalConfig, task: LmEvalTask, subject: Subject, progress: Advance) -> BenchmarkResult:
    # lm-eval batches in its own way, so it gets a model of its own, and this one's memory.
    subject.close()
    return suites.score_lm_eval(subject.model, config, task, default_device())


def digest_of_contents(paths: list[Path]) -> str:
    """Return the SHA-256 over the contents of files, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()

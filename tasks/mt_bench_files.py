"""MT-Bench on files in FastChat's format, without a recipe: answers in, judgments and tables out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion_core.config import ModelConfig
from fusion_core.config.judging import JudgeConfig
from fusion_core.errors import ConfigError
from fusion_core.evaluation.generation import Generator
from fusion_core.evaluation.generation_endpoint import EndpointGenerator
from fusion_core.evaluation.generation_engines import open_generator
from fusion_core.evaluation.jsonl import read_jsonl, write_jsonl
from fusion_core.evaluation.judged_scores import Judge, JudgedTable
from fusion_core.evaluation.judging import ChatClient, Endpoint
from fusion_core.evaluation.mt_bench import (
    MtBench,
    answer_questions,
    judge_answers,
    judge_pairs,
    load_mt_bench,
    read_answers,
    read_judgments,
    score_pairs,
    score_ratings,
    write_answers,
)
from fusion_core.models.identity import resolve_model
from fusion_core.progress import show_progress
from tasks.settings import Settings
from tasks.stages.judged_data import benchmark_folder
from tasks.stages.judging import describe_judge, open_judge

COMPARISON_KEYS = ("judge", "model_1", "model_2")
BATCH_TOKENS = 16384


@dataclass(frozen=True)
class MtBenchFiles:
    """The benchmark's data, and the folder of answers and judgments beside which everything lies."""

    benchmark: MtBench
    settings: Settings

    @classmethod
    def open(cls, data: Path | None, questions: int | None) -> MtBenchFiles:
        """Read the benchmark from ``data``, else from where ``fuseline data mt-bench`` puts it."""
        settings = Settings()
        return cls(load_mt_bench(benchmark_folder(data, settings, "mt_bench")).first(questions), settings)

    def answer(self, generator: Generator, output: Path, *, max_new_tokens: int, seed: int = 0) -> int:
        """Let a model answer and write its file; return how many answers were cut off."""
        with show_progress(f"answer MT-Bench {generator.name}", "turns") as progress:
            answers = answer_questions(
                generator, self.benchmark, max_new_tokens=max_new_tokens, seed=seed, progress=progress
            )
        write_answers(output, generator.name, answers)
        return sum(not finished for one in answers for finished in one.finished)

    def judge(self, files: Sequence[Path], config: JudgeConfig, output: Path, judgments: int) -> JudgedTable:
        """Rate the answers in some files, each called by its file's name; others are compared with the first."""
        known = read_judgments(output) if output.is_file() else []
        judge = open_judge(config, self.settings)
        rows: dict[str, list[dict[str, Any]]] = {}
        unfinished = {}
        for path in files:
            answers = read_answers(path, self.benchmark)
            unfinished[path.stem] = sum(not finished for one in answers for finished in one.finished)
            with show_progress(f"judge MT-Bench {path.stem}", "judgments") as progress:
                rows[path.stem] = judge_answers(
                    self.benchmark,
                    path.stem,
                    answers,
                    judge,
                    judgments=judgments,
                    known=[row for row in known if row["model"] == path.stem],
                    progress=progress,
                )
        others = [row for row in known if row["model"] not in rows or row["judge"][0] != config.model]
        write_jsonl(output, [*others, *(row for several in rows.values() for row in several)])
        return score_ratings(
            self.benchmark,
            rows,
            describe_judge(config, judgments),
            files[0].stem,
            unfinished=unfinished,
            costs=judge.costs,
        )

    def compare(self, path: Path, baseline: Path, config: JudgeConfig, output: Path, judgments: int) -> JudgedTable:
        """Compare the answers in a file with a baseline's, in both orders."""
        judge = open_judge(config, self.settings)
        mine, theirs = (read_answers(one, self.benchmark) for one in (path, baseline))
        with show_progress(f"compare MT-Bench {path.stem}", "comparisons") as progress:
            rows = judge_pairs(
                self.benchmark, path.stem, mine, baseline.stem, theirs, judge, judgments=judgments, progress=progress
            )
        there = read_jsonl(output, COMPARISON_KEYS) if output.is_file() else []
        played = (config.model, path.stem, baseline.stem)
        kept = [row for row in there if (row["judge"][0], row["model_1"], row["model_2"]) != played]
        write_jsonl(output, [*kept, *rows])
        return score_pairs(
            self.benchmark, {path.stem: rows}, describe_judge(config, judgments), baseline.stem, costs=judge.costs
        )

    def show(self, path: Path, baseline: str | None) -> list[JudgedTable]:
        """Score a file of ratings that Fuseline or FastChat wrote; one table for each judge in it."""
        rows = read_judgments(path)
        if not rows:
            raise ConfigError(f"{path} has no judgments; have answers judged first.")
        tables = []
        for name in dict.fromkeys(row["judge"][0] for row in rows):
            judged: dict[str, list[dict[str, Any]]] = {}
            for row in rows:
                if row["judge"][0] == name:
                    judged.setdefault(row["model"], []).append(row)
            against = baseline or next(iter(judged))
            if against not in judged:
                raise ConfigError(f"{path} has no judgments of {against!r} by {name}; it has {', '.join(judged)}.")
            judgments = max(int(row.get("sample", 0)) + 1 for several in judged.values() for row in several)
            judge = Judge(model=name, endpoint=f"the file {path.name}", judgments=judgments)
            tables.append(score_ratings(self.benchmark, judged, judge, against))
        return tables


def local_generator(name: str, path: Path | None, hub: str | None) -> Generator:
    """Load a checkpoint folder or hub model for answering."""
    return open_generator(resolve_model(ModelConfig(name=name, path=path, hub=hub)), batch_tokens=BATCH_TOKENS)


def served_generator(name: str, model: str, base_url: str, key_variable: str, concurrency: int) -> Generator:
    """Answer with a model behind an OpenAI-compatible endpoint."""
    return EndpointGenerator(ChatClient(Endpoint(model, base_url, key_variable)), name, concurrency=concurrency)

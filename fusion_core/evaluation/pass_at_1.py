"""pass@1 on small programming problems: one greedy answer each, run with its tests in a sandboxed process."""

from __future__ import annotations

from fusion_core.config.benchmarks import PassAt1Config
from fusion_core.evaluation.benchmark import BenchmarkItem, BenchmarkResult, mean_of_items
from fusion_core.evaluation.code_execution import Limits, run_programs
from fusion_core.evaluation.code_problems import read_problems
from fusion_core.evaluation.generation import Generator, Sampling
from fusion_core.progress import Advance, ignore_progress

VERSION = "2"


def score_pass_at_1(
    generator: Generator, config: PassAt1Config, *, progress: Advance = ignore_progress
) -> BenchmarkResult:
    """Let a model write a program for each problem, and count those that pass all their tests.

    Raises
    ------
    EvaluationError
        If the data file cannot be used.

    Notes
    -----
    With one greedy sample a problem, pass@k of Chen et al. (arXiv 2107.03374), Eq. 1, is the share that passes.
    """
    problems = read_problems(config.path, skip=config.skip, limit=config.limit)
    conversations = [[{"role": "user", "content": problem.prompt}] for problem in problems]
    answers = generator.generate(conversations, Sampling(max_new_tokens=config.max_new_tokens), progress)
    programs = [problem.program(answer.text) for problem, answer in zip(problems, answers, strict=True)]
    verdicts = run_programs(programs, Limits(config.time_limit_seconds, config.memory_limit_megabytes << 20))
    items = tuple(
        BenchmarkItem(
            id=problem.id,
            question=problem.prompt,
            answer=answer.text,
            found=verdict.outcome,
            expected="passed",
            scores=(float(verdict.passed),),
            note=verdict.detail if answer.finished else f"{verdict.detail} (cut off)".strip(),
        )
        for problem, answer, verdict in zip(problems, answers, verdicts, strict=True)
    )
    return BenchmarkResult(
        benchmark="pass_at_1",
        name=config.name,
        model_name=generator.name,
        version=VERSION,
        metrics=(mean_of_items(f"pass_at_1/{config.name}", items),),
        items=items,
        unfinished=sum(not answer.finished for answer in answers),
        protections=verdicts[0].protections,
    )

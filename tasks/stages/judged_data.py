"""The data of a recipe's judged benchmarks, and whom the judge looks at; read before anything runs."""

from __future__ import annotations

from pathlib import Path

from fusion_core.config.judging import AlpacaEvalConfig, MtBenchConfig
from fusion_core.errors import ConfigError
from fusion_core.evaluation.alpaca_eval import AlpacaEval, load_alpaca_eval
from fusion_core.evaluation.mt_bench import MtBench, load_mt_bench
from tasks.addresses import CONTROL, FUSED, ResolvedFusion
from tasks.settings import Settings


def benchmark_folder(path: Path | None, settings: Settings, name: str) -> Path:
    """Return where a benchmark's files lie: where the recipe says, else where ``fuseline data`` puts them."""
    return path or settings.home / "benchmarks" / name


def read_mt_bench(config: MtBenchConfig, settings: Settings) -> MtBench:
    """Read the recipe's MT-Bench, or as many of its questions as it asks for."""
    return load_mt_bench(benchmark_folder(config.path, settings, "mt_bench")).first(config.questions)


def read_alpaca_eval(config: AlpacaEvalConfig, settings: Settings) -> AlpacaEval:
    """Read the recipe's AlpacaEval, or as many of its instructions as it asks for."""
    return load_alpaca_eval(benchmark_folder(config.path, settings, "alpaca_eval"), config.instructions)


def is_judged(fusion: ResolvedFusion, name: str) -> bool:
    """Tell whether the recipe wants a model judged; the pivot always is."""
    chosen = fusion.config.evaluation.judged_models
    return chosen is None or name in {*chosen, fusion.pivot.name}


def check_judged(fusion: ResolvedFusion) -> None:
    """Read what the judged benchmarks need, so that nothing runs for hours before it is missed.

    Raises
    ------
    EvaluationError
        If a file is missing or broken.
    ConfigError
        If a model to be judged is none of the recipe's or its run's.
    """
    evaluation = fusion.config.evaluation
    known = [model.name for model in (fusion.pivot, *fusion.sources)]
    known += [*(fusion.target_name(group) for group in fusion.groups), FUSED]
    known += [CONTROL] if evaluation.plain_sft_control else []
    for name in evaluation.judged_models or ():
        if name not in known:
            raise ConfigError(
                f"`evaluation.judged_models` names {name!r}; there are {', '.join(dict.fromkeys(known))}."
            )
    settings = Settings()
    if evaluation.mt_bench is not None:
        read_mt_bench(evaluation.mt_bench, settings)
    if evaluation.alpaca_eval is not None:
        read_alpaca_eval(evaluation.alpaca_eval, settings)

"""Commands on benchmark data, and on MT-Bench's files in FastChat's format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fusion_core.config.judging import JudgeConfig
    from fusion_core.evaluation.judged_scores import JudgedTable

data = typer.Typer(help="Fetch the data of benchmarks.", no_args_is_help=True)
mt_bench = typer.Typer(
    help="MT-Bench on files in FastChat's format: answers, a judge's ratings, comparisons.", no_args_is_help=True
)

DataFolder = Annotated[
    Path | None, typer.Option("--data", help="MT-Bench's data; default: where `fuseline data mt-bench` puts it.")
]
Questions = Annotated[
    int | None, typer.Option(min=1, help="Take as many questions, evenly from the categories; default: all.")
]
JudgeName = Annotated[str, typer.Option("--judge", help="The judge's name at its endpoint.")]
BaseUrl = Annotated[
    str | None, typer.Option("--endpoint", help="The judge's address, such as http://localhost:8000/v1; OpenAI's.")
]
KeyVariable = Annotated[str, typer.Option(help="Environment variable that holds the endpoint's key.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="The judge's temperature.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Tokens of one judgment.")]
Judgments = Annotated[int, typer.Option(min=1, help="Judgments of each answer.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests under way at once.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Patience with one request, in seconds.")]


@data.command("mt-bench")
def fetch_mt_bench(
    source: Annotated[Path | None, typer.Option("--from", help="Folder that holds the files already.")] = None,
    to: Annotated[Path | None, typer.Option(help="Folder to put them in; default: below FUSELINE_HOME.")] = None,
) -> None:
    """Get MT-Bench's questions, reference answers and judge prompts, and check them against pinned digests."""
    from fusion_core.evaluation.benchmark_files import MT_BENCH_FILES, fetch_files
    from tasks.settings import Settings
    from tasks.stages.judged_data import benchmark_folder

    for path in fetch_files(MT_BENCH_FILES, benchmark_folder(to, Settings(), "mt_bench"), source):
        print(path)


@mt_bench.command("answer")
def answer(
    name: Annotated[str, typer.Argument(help="What files and tables call the model.", show_default=False)],
    path: Annotated[Path | None, typer.Option(help="Its checkpoint folder.")] = None,
    hub: Annotated[str | None, typer.Option(help="Its hub repository, instead of a folder.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Address of a server, instead of a folder.")] = None,
    served_as: Annotated[str | None, typer.Option(help="Its name at that server; default: NAME.")] = None,
    key_variable: KeyVariable = "OPENAI_API_KEY",
    concurrency: Concurrency = 8,
    out: Annotated[Path | None, typer.Option(help="File to write; default: model_answer/NAME.jsonl.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Answers are cut off here.")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="Seed of what is drawn.")] = 0,
    questions: Questions = None,
    data: DataFolder = None,
) -> None:
    """Let a checkpoint, or a model behind an endpoint, answer both turns of every question."""
    from fusion_core.errors import ConfigError
    from tasks.mt_bench_files import MtBenchFiles, local_generator, served_generator

    if sum(one is not None for one in (path, hub, endpoint)) != 1:
        raise ConfigError("Say where the model is: give exactly one of --path, --hub and --endpoint.")
    files = MtBenchFiles.open(data, questions)
    output = out or Path("model_answer") / f"{name}.jsonl"
    if endpoint is not None:
        generator = served_generator(name, served_as or name, endpoint, key_variable, concurrency)
    else:
        generator = local_generator(name, path, hub)
    cut = files.answer(generator, output, max_new_tokens=max_new_tokens, seed=seed)
    print(f"answers: {output} ({cut} of them cut off at {max_new_tokens} tokens)")


@mt_bench.command("judge")
def judge(
    answers: Annotated[list[Path], typer.Argument(help="Answer files; differences are taken to the first.")],
    judge: JudgeName = "gpt-4",
    endpoint: BaseUrl = None,
    key_variable: KeyVariable = "OPENAI_API_KEY",
    temperature: Temperature = 0.0,
    max_tokens: MaxTokens = 2048,
    judgments: Judgments = 1,
    concurrency: Concurrency = 8,
    timeout_seconds: Timeout = 120.0,
    out: Annotated[
        Path | None, typer.Option(help="File to write, and to go on from; default: model_judgment/JUDGE_single.jsonl.")
    ] = None,
    questions: Questions = None,
    data: DataFolder = None,
) -> None:
    """Have answers rated from 1 to 10; a judgment that was made is never paid for again."""
    from tasks.mt_bench_files import MtBenchFiles

    config = _judge(judge, endpoint, key_variable, temperature, max_tokens, concurrency, timeout_seconds)
    output = out or _default_output(judge, "single")
    _print([MtBenchFiles.open(data, questions).judge(answers, config, output, judgments)])
    print(f"judgments: {output}")


@mt_bench.command("compare")
def compare(
    answers: Annotated[Path, typer.Argument(help="Answer file.")],
    baseline: Annotated[Path, typer.Argument(help="The baseline's answer file.")],
    judge: JudgeName = "gpt-4",
    endpoint: BaseUrl = None,
    key_variable: KeyVariable = "OPENAI_API_KEY",
    temperature: Temperature = 0.0,
    max_tokens: MaxTokens = 2048,
    judgments: Judgments = 1,
    concurrency: Concurrency = 8,
    timeout_seconds: Timeout = 120.0,
    out: Annotated[
        Path | None, typer.Option(help="File to write, and to go on from; default: model_judgment/JUDGE_pair.jsonl.")
    ] = None,
    questions: Questions = None,
    data: DataFolder = None,
) -> None:
    """Compare answers with a baseline's, in both orders."""
    from tasks.mt_bench_files import MtBenchFiles

    config = _judge(judge, endpoint, key_variable, temperature, max_tokens, concurrency, timeout_seconds)
    output = out or _default_output(judge, "pair")
    _print([MtBenchFiles.open(data, questions).compare(answers, baseline, config, output, judgments)])
    print(f"judgments: {output}")


@mt_bench.command("show")
def show(
    judgments: Annotated[Path, typer.Argument(help="File of ratings, such as gpt-4_single.jsonl.")],
    baseline: Annotated[str | None, typer.Option(help="Model that differences are taken to; the first.")] = None,
    published: Annotated[bool, typer.Option("--published", help="Also list the paper's models.")] = False,
    questions: Questions = None,
    data: DataFolder = None,
) -> None:
    """Show the scores in a file of ratings, FastChat's or ours, with intervals."""
    from tasks.mt_bench_files import MtBenchFiles

    _print(MtBenchFiles.open(data, questions).show(judgments, baseline))
    if published:
        from fusion_core.evaluation.published_scores import published_scores

        scores = published_scores()
        for score in scores.scores:
            print(f"{score.overall:.2f}  {score.model}")
        print(scores.caption)


def _judge(
    model: str,
    endpoint: str | None,
    key_variable: str,
    temperature: float,
    max_tokens: int,
    concurrency: int,
    timeout_seconds: float,
) -> JudgeConfig:
    from pydantic import ValidationError

    from fusion_core.config.judging import JudgeConfig
    from fusion_core.errors import ConfigError
    from fusion_core.recipes import explain

    try:
        return JudgeConfig(
            model=model,
            base_url=endpoint,
            key_variable=key_variable,
            temperature=temperature,
            max_tokens=max_tokens,
            concurrency=concurrency,
            timeout_seconds=timeout_seconds,
        )
    except ValidationError as error:
        raise ConfigError(f"The judge cannot be used: {explain(error)}") from error


def _default_output(judge: str, kind: str) -> Path:
    return Path("model_judgment") / f"{judge.replace('/', '--')}_{kind}.jsonl"


def _print(tables: list[JudgedTable]) -> None:
    from rich.console import Console

    from fusion_core.report.judged_terminal import judged_table

    for table in tables:
        Console(markup=False, highlight=False).print(judged_table(table))

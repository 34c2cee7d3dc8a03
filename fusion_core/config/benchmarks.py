"""The benchmarks that need no judge: arithmetic, code, chat sanity, and lm-eval's suites."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from fusion_core.config.names import NAME_PATTERN, Count, CountOrZero, Seconds
from fusion_core.config_section import Section

BenchmarkName = Annotated[str, Field(description="What metrics and tables call it; letters, digits, '.', '_', '-'.")]


class _RowsConfig(Section):
    """Rows of a data file, and how long an answer may be."""

    name: BenchmarkName
    path: Path = Field(description="Data file, JSONL (also .gz) or JSON.")
    skip: CountOrZero = Field(0, description="Rows left out at the start (MBPP's test split: skip 10, limit 500).")
    limit: Count | None = Field(None, description="Rows taken after those; default: all.")
    max_new_tokens: Count = Field(512, description="Answers are cut off here.")

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not NAME_PATTERN.match(name):
            raise ValueError("a benchmark's name has 1 to 64 letters, digits, '.', '_' or '-'")
        return name


class ExactMatchConfig(_RowsConfig):
    """Questions with one number for an answer, in GSM8K's row format (`question`, `answer` ending in `#### 18`)."""

    few_shot: CountOrZero = Field(0, description="Worked examples put before each question, as earlier turns.")
    few_shot_path: Path | None = Field(None, description="File of the same format that the examples come from.")

    @model_validator(mode="after")
    def _examples_have_a_file(self) -> ExactMatchConfig:
        if bool(self.few_shot) != (self.few_shot_path is not None):
            raise ValueError("`few_shot` and `few_shot_path` go together; give both or neither")
        return self


class PassAt1Config(_RowsConfig):
    """Small programming problems with tests, in the row format of MBPP or HumanEval."""

    time_limit_seconds: Seconds = Field(10.0, description="Processor time one program may use.")
    memory_limit_megabytes: Count = Field(1024, ge=64, le=2**24, description="Memory one program may use.")


class ChatSanityConfig(Section):
    """Whether a model ends its turn, does not loop, and answers in the asked language."""

    path: Path | None = Field(
        None,
        description="JSONL of `prompt` and, optionally, `language` (such as 'de'); default: 32 of our own in 12 "
        "languages.",
    )
    limit: Count | None = Field(None, description="Prompts taken from the start; default: all.")
    max_new_tokens: Count = Field(512, description="A turn that has not ended by then counts as not ended.")


class LmEvalTask(Section):
    """One task of lm-eval."""

    name: str = Field(min_length=1, description="Task's name in lm-eval, such as arc_challenge.")
    few_shot: CountOrZero | None = Field(None, description="Worked examples; default: the task's own number.")
    limit: Count | None = Field(None, description="Documents taken from the start; default: all.")


class LmEvalConfig(Section):
    """Tasks of EleutherAI's lm-eval (`pip install -c constraints.txt -e '.[lm-eval]'`)."""

    tasks: tuple[LmEvalTask, ...] = Field(min_length=1, description="What is run; datasets come from the hub.")
    include_path: Path | None = Field(None, description="Folder with task definitions of your own, in lm-eval's YAML.")
    chat_template: bool = Field(True, description="Put questions into the model's chat template.")
    batch_size: Count = Field(8, description="Requests in one forward pass.")
    run_generated_code: bool = Field(
        False,
        description="Let tasks such as lm-eval's humaneval run code that models write, on this machine and outside "
        "any sandbox; `pass_at_1` runs it in one.",
    )

    @field_validator("tasks")
    @classmethod
    def _distinct_tasks(cls, tasks: tuple[LmEvalTask, ...]) -> tuple[LmEvalTask, ...]:
        names = [task.name for task in tasks]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"the task {doubled[0]!r} is listed twice; remove one")
        return tasks

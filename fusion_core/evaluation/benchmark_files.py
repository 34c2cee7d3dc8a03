"""Benchmark files from their public home or a folder, checked against pinned digests."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import httpx

from fusion_core.errors import EvaluationError, first_line

ANSWER_SECONDS = 60.0
FASTCHAT = "https://raw.githubusercontent.com/lm-sys/FastChat/main/fastchat/llm_judge/data"


@dataclass(frozen=True)
class BenchmarkFile:
    """One file.

    Parameters
    ----------
    name : str
        What it is called in the folder that benchmarks are read from.
    url : str
        Its public home.
    other_names : tuple of str
        Where else in a folder it may lie, such as in a clone.
    size : int
        Bytes.
    sha256 : str
    """

    name: str
    url: str
    other_names: tuple[str, ...]
    size: int
    sha256: str


MT_BENCH_FILES = (
    BenchmarkFile(
        "question.jsonl",
        f"{FASTCHAT}/mt_bench/question.jsonl",
        (),
        48_929,
        "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
    ),
    BenchmarkFile(
        "reference_answer_gpt-4.jsonl",
        f"{FASTCHAT}/mt_bench/reference_answer/gpt-4.jsonl",
        ("reference_answer/gpt-4.jsonl",),
        51_109,
        "f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f",
    ),
    BenchmarkFile(
        "judge_prompts.jsonl",
        f"{FASTCHAT}/judge_prompts.jsonl",
        ("../judge_prompts.jsonl",),
        10_449,
        "fd283293406d024f44c174b094ef48031d0687a4682fd3a56b29b138f80281b6",
    ),
)


def fetch_files(files: tuple[BenchmarkFile, ...], output: Path, source: Path | None = None) -> list[Path]:
    """Put files into a folder, from another folder or from their public home; what is there and right stays.

    Raises
    ------
    EvaluationError
        If a file is missing, cannot be fetched, or is not the one that is pinned; nothing wrong is left behind.
    """
    output.mkdir(parents=True, exist_ok=True)
    placed = []
    for file in files:
        path = output / file.name
        if not (path.is_file() and _digest(path.read_bytes()) == file.sha256):
            content = _from_folder(file, source) if source is not None else _from_home(file)
            found = _digest(content)
            if found != file.sha256:
                raise EvaluationError(
                    f"{file.name} from {source or file.url} is not the file that this benchmark is pinned to: "
                    f"{len(content):,} bytes with SHA-256 {found[:16]}..., expected {file.size:,} bytes with "
                    f"{file.sha256[:16]}...; give the original with --from FOLDER."
                )
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_bytes(content)
            shutil.move(temporary, path)
        placed.append(path)
    return placed


def _from_folder(file: BenchmarkFile, folder: Path) -> bytes:
    for name in (file.name, *file.other_names):
        if (folder / name).is_file():
            return (folder / name).read_bytes()
    raise EvaluationError(f"{folder} has no {file.name}; give a folder that holds it, or leave out --from to fetch it.")


def _from_home(file: BenchmarkFile) -> bytes:
    try:
        answer = httpx.get(file.url, timeout=ANSWER_SECONDS, follow_redirects=True)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise EvaluationError(
            f"{file.name} cannot be fetched from {file.url} ({first_line(error)}); check the network, or get it "
            "elsewhere and give its folder with --from."
        ) from error
    return answer.content


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

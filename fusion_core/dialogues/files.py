"""Data files: finding them, what identifies them, and streaming their rows."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from fusion_core.config import DialogueFile, DialoguesConfig
from fusion_core.dialogues.turns import MalformedRowError
from fusion_core.errors import DialogueError

# Part of every dataset's digest; raised whenever the same files and settings would give other dialogues or shards.
PREPARATION_VERSION = 1
PARQUET_BATCH_ROWS = 1024

FileKind = Literal["json", "jsonl", "parquet"]
SUFFIXES: dict[str, FileKind] = {
    ".json": "json",
    ".json.gz": "json",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".parquet": "parquet",
}


class DataRow(NamedTuple):
    """One row of a data file.

    Parameters
    ----------
    number : int
        Counted from 1; in JSONL the line's number.
    value : JSON value or MalformedRowError
        What the row holds, or why it cannot be read.
    text : str
        What stands there when it cannot be read.
    """

    number: int
    value: Any
    text: str = ""


@dataclass(frozen=True)
class ResolvedFile:
    """One entry of the recipe's ``files`` whose contents are on this machine.

    Parameters
    ----------
    file : DialogueFile
    paths : tuple of Path
        One path for a local file; the files of the train split for a hub dataset.
    digest : str
        SHA-256 over the contents; no part of it depends on names or places.
    revision : str or None
        Commit of a hub dataset.
    """

    file: DialogueFile
    paths: tuple[Path, ...]
    digest: str
    revision: str | None = None

    @property
    def pairs(self) -> list[tuple[DialogueFile, Path]]:
        """What ``prepare_dialogues`` takes."""
        return [(self.file, path) for path in self.paths]


def resolve_file(file: DialogueFile) -> ResolvedFile:
    """Find a local file or fetch a hub dataset at a pinned commit, and hash what it holds.

    Raises
    ------
    DialogueError
        If the file is missing or has an unknown ending, or the hub dataset cannot be fetched.
    """
    revision = None
    if file.hub is not None:
        paths, revision = _fetch(file)
    else:
        paths = (Path(str(file.path)).expanduser(),)
    digest = hashlib.sha256()
    for path in paths:
        kind = file_kind(path)
        with _open_binary(path) as content:
            digest.update(
                f"{kind} {path.suffix == '.gz'} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode()
            )
    return ResolvedFile(file, paths, digest.hexdigest(), revision)


def dataset_digest(files: Sequence[ResolvedFile], config: DialoguesConfig) -> str:
    """Return the address of the prepared dialogues, known before they are prepared.

    It covers the contents of the files in their order, the settings of each, and the settings that decide the split
    and the shards. Names and places of files, ``max_quarantined`` (which only decides whether a run stops) and
    ``max_length_tokens`` (which the encoders apply) are no part of it.

    Returns
    -------
    str
        SHA-256 in hex.
    """
    content = {
        "version": PREPARATION_VERSION,
        "files": [[item.digest, item.file.domain, item.file.format, item.file.limit] for item in files],
        "held_out_share": config.held_out_share,
        "held_out_limit": config.held_out_limit,
        "shard_dialogues": config.shard_dialogues,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_kind(path: Path) -> FileKind:
    """Tell from a file's ending how it is read.

    Raises
    ------
    DialogueError
        If the ending is none of the known ones.
    """
    name = path.name.lower()
    for suffix, kind in SUFFIXES.items():
        if name.endswith(suffix):
            return kind
    raise DialogueError(
        f"Data file {path}: its ending says no known format, expected one of {', '.join(SUFFIXES)}; convert or rename "
        "the file."
    )


def read_rows(path: Path) -> Iterator[DataRow]:
    """Stream the rows of a data file.

    JSONL (also .gz) and Parquet are read piece by piece. A JSON document is read whole, so it needs a few times its
    size in memory; its rows are its list, or the one list among its fields, or itself when it is a dialogue. A file
    called .json that holds JSON lines is read as such.

    Raises
    ------
    DialogueError
        If the file is missing, empty, not UTF-8, not what its ending says, or broken as a whole.
    """
    kind = file_kind(path)
    if kind == "parquet":
        rows = _read_parquet(path)
    elif kind == "jsonl" or _holds_lines(path):
        rows = _read_lines(path)
    else:
        rows = _read_document(path)
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise DialogueError(f"Data file {path} holds no rows; give a file with dialogues or remove it from `files`.")


def _open_binary(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise DialogueError(
            f"Data file {path} cannot be opened ({error.strerror}); correct its `path` in the recipe's `files`."
        ) from error


def _open_text(path: Path) -> IO[bytes]:
    content = _open_binary(path)
    return gzip.GzipFile(fileobj=content) if path.name.lower().endswith(".gz") else content  # type: ignore[return-value]


def _read_lines(path: Path) -> Iterator[DataRow]:
    with _open_text(path) as content:
        number = 0
        while True:
            number += 1
            line = _guarded_read(path, content.readline)
            if not line:
                return
            text = _decode(path, line, number)
            if text.strip():
                yield _parse_line(number, text)


def _holds_lines(path: Path) -> bool:
    """Tell whether the first two lines that are not blank are JSON objects each."""
    with _open_text(path) as content:
        found = 0
        while found < 2:
            line = _guarded_read(path, content.readline)
            if not line:
                return False
            if not line.strip():
                continue
            if not line.lstrip(b"\xef\xbb\xbf \t").startswith(b"{"):
                return False
            try:
                json.loads(line)
            except ValueError:
                return False
            found += 1
    return True


def _read_document(path: Path) -> Iterator[DataRow]:
    with _open_text(path) as content:
        text = _decode(path, _guarded_read(path, content.read), None)
    if not text.strip():
        return
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise DialogueError(
            f"Data file {path} is broken JSON at line {error.lineno}, column {error.colno} ({error.msg}); repair it, "
            "or write one object a line into a .jsonl file, where one broken line costs one dialogue."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DialogueError(f"Data file {path} cannot be read as JSON ({error}); repair it.") from error
    for number, row in enumerate(_rows_of_document(path, document), start=1):
        yield DataRow(number, row)


def _rows_of_document(path: Path, document: Any) -> list[Any]:
    if isinstance(document, list):
        return document
    if isinstance(document, dict):
        from fusion_core.dialogues.formats import recognise_format

        try:
            recognise_format(document)
            return [document]
        except MalformedRowError:
            lists = [value for value in document.values() if isinstance(value, list)]
            if len(lists) == 1:
                return lists[0]
    raise DialogueError(
        f"Data file {path}: expected a JSON list of dialogues, or an object with one such list, found "
        f"{type(document).__name__}; write the dialogues as one list."
    )


def _read_parquet(path: Path) -> Iterator[DataRow]:
    number = 0
    with _open_binary(path) as content:
        try:
            for batch in pq.ParquetFile(content).iter_batches(batch_size=PARQUET_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield DataRow(number, row)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DialogueError(
                f"Data file {path} cannot be read as Parquet after row {number} ({_first_line(error)}); write it "
                "again, or name it by the format it has."
            ) from error


def _parse_line(number: int, text: str) -> DataRow:
    try:
        return DataRow(number, json.loads(text))
    except json.JSONDecodeError as error:
        reason = f"it is broken JSON at column {error.colno} ({error.msg})"
    except (ValueError, RecursionError) as error:
        reason = f"it cannot be read as JSON ({_first_line(error)})"
    return DataRow(number, MalformedRowError("broken JSON", reason), text)


def _decode(path: Path, content: bytes, row: int | None) -> str:
    try:
        return content.decode("utf-8-sig" if row in (None, 1) else "utf-8")
    except UnicodeDecodeError as error:
        where = f"row {row}" if row is not None else "it"
        raise DialogueError(
            f"Data file {path}: {where} is not UTF-8 at byte {error.start} (0x{content[error.start]:02x}); convert the "
            "file to UTF-8."
        ) from error


def _guarded_read(path: Path, read: Any) -> bytes:
    try:
        return read()
    except (OSError, EOFError) as error:
        raise DialogueError(
            f"Data file {path} cannot be read to its end ({_first_line(error)}); it is cut short or not what its "
            "ending says, so copy or compress it again."
        ) from error
    except Exception as error:  # zlib.error is no OSError
        raise DialogueError(
            f"Data file {path} cannot be decompressed ({_first_line(error)}); compress it again."
        ) from error


def _fetch(file: DialogueFile) -> tuple[tuple[Path, ...], str]:
    from datasets import load_dataset_builder
    from huggingface_hub import HfApi, hf_hub_download

    name = str(file.hub)
    try:
        commit = str(HfApi().dataset_info(name, revision=file.revision).sha)
        splits = load_dataset_builder(name, revision=commit).config.data_files or {}
    except Exception as error:
        raise DialogueError(
            f"Hub dataset {name} cannot be fetched ({_first_line(error)}); check the name, the network and HF_TOKEN, "
            "or give a local `path`."
        ) from error
    split = "train" if "train" in splits else next(iter(splits), None)
    if split is None or ("train" not in splits and len(splits) > 1):
        raise DialogueError(
            f"Hub dataset {name} has the splits {', '.join(map(str, splits)) or 'none'}, expected 'train'; download "
            "the files wanted and give each as a local `path`."
        )
    names = [str(address).split(f"@{commit}/", 1)[-1] for address in splits[split]]
    for member in names:
        file_kind(Path(member))
    try:
        paths = tuple(Path(hf_hub_download(name, member, repo_type="dataset", revision=commit)) for member in names)
    except Exception as error:
        raise DialogueError(
            f"Hub dataset {name} cannot be downloaded ({_first_line(error)}); check the network and the free disk."
        ) from error
    return paths, commit


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

"""A dataset has one address, decided by contents and settings, and a hub dataset one commit."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fusion_core.config import DialogueFile, DialoguesConfig
from fusion_core.dialogues import (
    dataset_digest,
    prepare_dialogues,
    resolve_file,
)
from fusion_core.errors import DialogueError
from tests.fusion_core.dialogues.data_fixtures import (
    exchange,
    write_lines,
)


def test_dataset_digest_follows_contents_and_settings_but_no_names(tmp_path: Path) -> None:
    rows = [exchange(number) for number in range(5)]
    one, same = write_lines(tmp_path / "one.jsonl", rows), write_lines(tmp_path / "same.jsonl", rows)
    other = write_lines(tmp_path / "other.jsonl", rows[:4])

    def digest(*paths: Path, file: dict[str, Any] | None = None, **settings: Any) -> str:
        files = tuple(DialogueFile(path=path, **(file or {})) for path in paths)
        return dataset_digest([resolve_file(entry) for entry in files], DialoguesConfig(files=files, **settings))

    assert digest(one) == digest(same) == digest(one, max_quarantined=0.5) == digest(one, max_length_tokens=9)
    different = [
        digest(one),
        digest(other),
        digest(one, other),
        digest(other, one),
        *(digest(one, file=setting) for setting in ({"domain": "x"}, {"limit": 2}, {"format": "question_answer"})),
        *(
            digest(one, **setting)
            for setting in ({"held_out_share": 0.5}, {"held_out_limit": 3}, {"shard_dialogues": 7})
        ),
    ]
    assert len(set(different)) == len(different)
    with pytest.raises(DialogueError, match="correct its `path`"):
        digest(tmp_path / "missing.jsonl")


def test_hub_dataset_is_fetched_at_one_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    for name in ("a.jsonl", "b.jsonl"):
        write_lines(tmp_path / name, [exchange(number) for number in range(20)])
    addresses = [f"hf://datasets/some/chats@c0ffee/data/{name}" for name in ("a.jsonl", "b.jsonl")]
    asked = []

    def download(repository: str, name: str, *, repo_type: str, revision: str) -> str:
        asked.append((repository, name, repo_type, revision))
        return str(tmp_path / Path(name).name)

    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda self, name, revision: SimpleNamespace(sha="c0ffee")
    )
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    splits = {"train": addresses, "test": ["hf://x"]}
    monkeypatch.setattr(
        datasets,
        "load_dataset_builder",
        lambda name, revision: SimpleNamespace(config=SimpleNamespace(data_files=splits)),
    )
    file = DialogueFile(hub="some/chats", revision="main", limit=7)
    resolved = resolve_file(file)
    assert resolved.revision == "c0ffee" and resolved.paths == (tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert asked[0] == ("some/chats", "data/a.jsonl", "dataset", "c0ffee")
    # The limit counts over all files of the dataset.
    report = prepare_dialogues([resolved], DialoguesConfig(files=(file,)), tmp_path / "out")
    assert sum(report.train.values()) + sum(report.held_out.values()) == 7 and report.not_chosen == 13
    splits.clear()
    with pytest.raises(DialogueError, match="expected 'train'"):
        resolve_file(file)

    def unreachable(self: Any, name: str, revision: str) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(DialogueError, match=r"some/chats cannot be fetched \(no network\)"):
        resolve_file(file)

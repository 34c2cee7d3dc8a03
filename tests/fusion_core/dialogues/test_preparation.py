"""Data files become shards of training and held-out dialogues, whole or not at all."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusion_core.config import DialogueFile, DialoguesConfig
from fusion_core.dialogues import (
    load_dialogues,
    prepare_dialogues,
    read_dialogues,
)
from fusion_core.errors import DialogueError, ShardError
from tests.fusion_core.dialogues.data_fixtures import (
    exchange,
    load_part,
    prepare,
    write_lines,
)


def test_quarantine_names_file_row_and_reason(tmp_path: Path) -> None:
    rows = [exchange(number) for number in range(300)]
    rows[41] = '{"question": "cut off'
    rows[99] = exchange(99, answer=" ")
    report = prepare(write_lines(tmp_path / "d.jsonl", rows), tmp_path / "out", max_quarantined=0.01)
    assert report.rows == 300 and report.quarantined == 2
    assert report.quarantine_reasons == {"broken JSON": 1, "empty turn": 1}
    lines = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["file"], line["row"]) for line in lines] == [("d.jsonl", 42), ("d.jsonl", 100)]
    assert lines[0]["content"].startswith('{"question": "cut off') and "broken JSON" in lines[0]["reason"]
    assert json.loads(lines[1]["content"]) == rows[99]
    assert sum(report.train.values()) + sum(report.held_out.values()) == 298


def test_too_many_malformed_rows_stop_and_leave_nothing(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [exchange(number) for number in range(97)] + ["{", "[", {"a": 1}])
    with pytest.raises(DialogueError) as caught:
        prepare(path, tmp_path / "out", max_quarantined=0.02)
    text = str(caught.value)
    assert "3 of 100 rows (3.0%)" in text and f"{path} row 98" in text and "`max_quarantined` (2.0%)" in text
    assert "broken JSON (2)" in text
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["d.jsonl"]
    assert prepare(path, tmp_path / "out", max_quarantined=0.03).quarantined == 3


def test_file_with_malformed_rows_only_stops_whatever_the_share(tmp_path: Path) -> None:
    good = write_lines(tmp_path / "good.jsonl", [exchange(number) for number in range(500)])
    bad = write_lines(tmp_path / "bad.jsonl", [{"prompt": "Hi"}])
    files = [(DialogueFile(path=path), path) for path in (good, bad)]
    with pytest.raises(DialogueError, match=r"bad\.jsonl: all of its 1 rows are malformed"):
        prepare_dialogues(files, DialoguesConfig(files=tuple(file for file, _ in files)), tmp_path / "out")


def test_shards_hold_the_dialogues_in_order_and_have_the_same_bytes_again(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [exchange(number) for number in range(2500)])
    first = prepare(path, tmp_path / "one", held_out_share=0.1, shard_dialogues=700)
    second = prepare(path, tmp_path / "two", held_out_share=0.1, shard_dialogues=700)
    assert first == second and json.dumps(first.to_json())
    files = sorted(entry.relative_to(tmp_path / "one") for entry in (tmp_path / "one").rglob("*") if entry.is_file())
    assert len(files) == 1 + first.train_shards + first.held_out_shards
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)
    sizes = [len(load_dialogues(shard)) for shard in sorted((tmp_path / "one" / "train").iterdir())]
    assert set(sizes[:-1]) == {700} and sum(sizes) == first.train["general"]
    number = {dialogue.turns[0].content: place for place, dialogue in enumerate(_dialogues(path))}
    for part in ("train", "held_out"):
        order = [number[dialogue.turns[0].content] for dialogue in load_part(tmp_path / "one", part)]
        assert order == sorted(order)
    both = load_part(tmp_path / "one", "train") + load_part(tmp_path / "one", "held_out")
    assert sorted(both, key=lambda dialogue: dialogue.id) == sorted(_dialogues(path), key=lambda d: d.id)


def _dialogues(path: Path) -> list[Any]:
    return [dialogue for _, dialogue, _ in read_dialogues(DialogueFile(path=path), path)]


def test_equal_dialogues_are_kept_once_with_the_first_domain(tmp_path: Path) -> None:
    first = write_lines(tmp_path / "a.jsonl", [exchange(number) for number in (1, 2, 3, 2)])
    second = write_lines(tmp_path / "b.jsonl", [exchange(number) for number in (3, 4, 5)])
    files = [(DialogueFile(path=first, domain="a"), first), (DialogueFile(path=second, domain="b"), second)]
    report = prepare_dialogues(files, DialoguesConfig(files=tuple(file for file, _ in files)), tmp_path / "out")
    assert report.duplicates == 2
    kept = load_part(tmp_path / "out", "train") + load_part(tmp_path / "out", "held_out")
    assert sorted((dialogue.domain, dialogue.turns[0].content) for dialogue in kept) == [
        *(("a", f"What is {number}?") for number in (1, 2, 3)),
        *(("b", f"What is {number}?") for number in (4, 5)),
    ]


def test_output_of_an_earlier_preparation_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [exchange(number) for number in range(50)])
    output = tmp_path / "out"
    output.mkdir()
    prepare(path, output, shard_dialogues=10)
    assert prepare(path, output).train_shards == 1
    assert [shard.name for shard in (output / "train").iterdir()] == ["dialogues-00000.parquet"]
    (output / "notes.txt").write_text("mine")
    with pytest.raises(DialogueError, match="holds something else"):
        prepare(path, output)
    assert (output / "notes.txt").exists()


def test_one_dialogue_alone_leaves_nothing_to_score(tmp_path: Path) -> None:
    with pytest.raises(DialogueError, match="1 distinct dialogues"):
        prepare(write_lines(tmp_path / "d.jsonl", [exchange(1)]), tmp_path / "out")


def test_shard_of_something_else_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    for name in ("other.parquet", "missing.parquet"):
        with pytest.raises(ShardError, match=name):
            load_dialogues(tmp_path / name)


@pytest.mark.parametrize("column", ["id", "role", "content"])
def test_shard_with_a_text_that_is_not_utf_8_is_refused(tmp_path: Path, column: str) -> None:
    texts = {name: pa.array([b"\xff"]).view(pa.string()) for name in (column,)}
    turn = pa.StructArray.from_arrays(
        [texts.get("role", pa.array(["user"])), texts.get("content", pa.array(["Why?"]))], ["role", "content"]
    )
    turns = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), turn)
    table = pa.table({"id": texts.get("id", pa.array(["a"])), "domain": ["code"], "turns": turns})
    pq.write_table(table, tmp_path / "torn.parquet")
    with pytest.raises(ShardError, match=r"torn\.parquet holds a text that is not UTF-8"):
        load_dialogues(tmp_path / "torn.parquet")


REAL_FILES = {
    "gsm8k/train.jsonl": 7473,
    "gpteacher/codegen-instruct.json": 4535,
    "gpteacher/roleplay-simple-instruct.json": 1923,
    "oasst100/oasst_en_100_paths.jsonl": 564,
    "topical_chat/topical_chat_dialogues.jsonl": 2156,
    "sgd/sgd_dialogues_1500.jsonl": 1500,
    "self_instruct/seed_tasks.jsonl": 175,
    "self_instruct/user_oriented_instructions.jsonl": 252,
    "mt_bench/dummy_conversation.json": 500,
}


def test_real_data_sets_are_read_whole(shared_folder: Path, tmp_path: Path) -> None:
    files = []
    for name in REAL_FILES:
        file = DialogueFile(path=shared_folder / "data" / name, domain=name)
        files.append((file, shared_folder / "data" / name))
    report = prepare_dialogues(files, DialoguesConfig(files=tuple(file for file, _ in files)), tmp_path / "out")
    assert report.quarantined == report.duplicates == report.unanswered == 0
    assert {name: report.train[name] + report.held_out[name] for name in REAL_FILES} == REAL_FILES
    assert all(0.005 * size < report.held_out[name] < 0.05 * size for name, size in REAL_FILES.items())


def test_failure_while_writing_leaves_the_earlier_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "d.jsonl", [exchange(number) for number in range(50)])
    prepare(path, tmp_path / "out")
    before = {entry: entry.read_bytes() for entry in (tmp_path / "out").rglob("*") if entry.is_file()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("fusion_core.dialogues.shards.ShardWriter._flush", full)
    with pytest.raises(OSError, match="No space"):
        prepare(path, tmp_path / "out")
    assert {entry: entry.read_bytes() for entry in (tmp_path / "out").rglob("*") if entry.is_file()} == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["d.jsonl", "out"]


def test_memory_does_not_hold_the_dialogues(tmp_path: Path) -> None:
    peaks = []
    for count in (3000, 9000):
        rows = [exchange(number, answer=f"{number} " + "word " * 200) for number in range(count)]
        path = write_lines(tmp_path / f"{count}.jsonl", rows)
        tracemalloc.start()
        prepare(path, tmp_path / "out")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Each of the 6,000 dialogues more is a kilobyte of text.
    assert peaks[1] - peaks[0] < 6000 * 250


def test_held_out_limit_and_limit_are_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [exchange(number) for number in range(400)])
    report = prepare(path, tmp_path / "out", {"limit": 300}, held_out_share=0.2, held_out_limit=10)
    assert report.held_out == {"general": 10} and report.not_chosen == 100
    assert report.set_aside["general"] > 20
    assert report.train["general"] + 10 + report.set_aside["general"] == 300
    assert len(load_part(tmp_path / "out", "train")) == report.train["general"]
    free = prepare(path, tmp_path / "free", {"limit": 300}, held_out_share=0.2)
    assert free.train == report.train and free.held_out["general"] == 10 + report.set_aside["general"]


def test_no_scored_response_was_trained_on_after_the_same_words(shared_folder: Path, tmp_path: Path) -> None:
    # The paths of one conversation tree share their beginnings.
    path = shared_folder / "data" / "oasst100" / "oasst_en_100_paths.jsonl"
    prepare(path, tmp_path / "out", held_out_share=0.2)

    def responses(part: str) -> set[tuple]:
        return {
            dialogue.turns[: end + 1]
            for dialogue in load_part(tmp_path / "out", part)
            for end, turn in enumerate(dialogue.turns)
            if turn.role == "assistant"
        }

    scored, trained = responses("held_out"), responses("train")
    assert len(scored) > 50 and len(trained) > 200 and not scored & trained

"""Rows of every format become dialogues, malformed ones are set aside, and what is wrong with a file is said."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fusion_core.config import DialogueFile, DialoguesConfig
from fusion_core.dialogues import (
    Dialogue,
    MalformedRowError,
    PreparationReport,
    Turn,
    dataset_digest,
    dialogue_id,
    load_dialogues,
    parse_row,
    prepare_dialogues,
    read_dialogues,
    resolve_file,
)
from fusion_core.errors import DialogueError, ShardError

EXCHANGE = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Hello."}]
SHAREGPT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]
HELLO = (("user", "Hi"), ("assistant", "Hello."))


def exchange(number: int, **extra: Any) -> dict[str, Any]:
    return {"question": f"What is {number}?", "answer": f"It is {number}.", **extra}


def write_lines(path: Path, rows: list[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    content = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def prepare(path: Path, output: Path, file: dict[str, Any] | None = None, **settings: Any) -> PreparationReport:
    entry = DialogueFile(path=path, **(file or {}))
    return prepare_dialogues([(entry, path)], DialoguesConfig(files=(entry,), **settings), output)


def load_part(output: Path, part: str) -> list[Dialogue]:
    return [dialogue for path in sorted((output / part).iterdir()) for dialogue in load_dialogues(path)]


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"messages": EXCHANGE}, HELLO),
        ({"conversation": EXCHANGE, "id": 3}, HELLO),
        ({"dialogue": EXCHANGE}, HELLO),
        ({"conversations": SHAREGPT}, HELLO),
        ({"items": SHAREGPT, "system": ""}, HELLO),
        ({"conversations": EXCHANGE}, HELLO),
        ({"messages": SHAREGPT}, HELLO),
        ({"messages": [{"role": "System", "content": "Be kind."}, *EXCHANGE]}, (("system", "Be kind."), *HELLO)),
        ({"system_prompt": "Be kind.", "question": "Hi", "response": "Hello."}, (("system", "Be kind."), *HELLO)),
        ({"instruction": "Hi", "input": "", "output": "Hello."}, HELLO),
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, (("user", "Add.\n\n1 2"), ("assistant", "3"))),
        ({"instruction": "Hi", "response": "Hello."}, HELLO),
        ({"instruction": "Hi", "instances": [{"input": "", "output": "Hello."}]}, HELLO),
        ({"question": "Hi", "answer": "Hello."}, HELLO),
        ({"prompt": "Hi", "completion": "Hello."}, HELLO),
        # The list of turns is the dialogue; the prompt beside it only repeats its beginning.
        ({"prompt": "Hi", "response": "no", "messages": EXCHANGE}, HELLO),
        # Composed, as most tokenizers with a normaliser do it.
        ({"question": "cafe\u0301?", "answer": "Oui."}, (("user", "caf\u00e9?"), ("assistant", "Oui."))),
    ],
)
def test_row_formats(row: dict[str, Any], turns: tuple) -> None:
    dialogue, unanswered = parse_row(row, DialogueFile(path=Path("x.jsonl"), domain="talk"))
    assert dialogue == Dialogue(dialogue_id([Turn(*turn) for turn in turns]), "talk", turns)
    assert not unanswered


def test_id_is_the_hash_of_the_turns_alone() -> None:
    # printf '[["user","Hi"],["assistant","Hello."]]' | sha256sum
    assert dialogue_id([Turn(*turn) for turn in HELLO]) == "6b1f609abb91226b9e9e68235c5b655b"


def test_row_keeps_its_own_domain() -> None:
    file = DialogueFile(path=Path("x.jsonl"), domain="talk")
    domains = [parse_row(exchange(1, **extra), file)[0].domain for extra in ({"domain": "a"}, {"dataset": "b"}, {})]
    assert domains == ["a", "b", "talk"]


def test_unanswered_last_turn_is_dropped() -> None:
    row = {"messages": [*EXCHANGE, {"role": "user", "content": "Anyone?"}]}
    dialogue, unanswered = parse_row(row, DialogueFile(path=Path("x.jsonl")))
    assert unanswered and dialogue.turns == HELLO


def turns(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "no assistant turn"),
        (turns(("user", "Hi")), "no assistant turn"),
        (turns(("system", "Hi")), "no assistant turn"),
        (turns(("user", "Hi"), ("assistant", "  \n")), "turn 2 is empty"),
        (turns(("user", "a"), ("user", "b"), ("assistant", "c")), "turns 1 and 2 are both user turns"),
        (turns(("user", "a"), ("assistant", "b"), ("assistant", "c")), "turns 2 and 3 are both assistant turns"),
        (turns(("assistant", "a"), ("user", "b"), ("assistant", "c")), "turn 1 is an assistant turn with no user turn"),
        (turns(("system", "a"), ("assistant", "b")), "turn 2 is an assistant turn with no user turn"),
        (turns(("user", "a"), ("system", "b"), ("assistant", "c")), "turn 2 is a system turn"),
        (turns(("user", 7), ("assistant", "b")), "turn 1 holds int"),
        (turns(("user", None), ("assistant", "b")), "turn 1 holds NoneType"),
        (turns(("user", [{"type": "text"}]), ("assistant", "b")), "turn 1 holds list"),
        (turns(("user", "a"), ("tool", "b")), "turn 2 has the role 'tool'"),
        (turns((None, "a"), ("assistant", "b")), "turn 1 has the role None"),
        (turns(("user", "a \ud83d b"), ("assistant", "b")), r"turn 1 has a lone surrogate (U+D83D)"),
        ({"messages": ["Hi", "Hello."]}, "turn 1 has str"),
        ({"messages": [{"role": "user"}]}, "turn 1 has the fields role"),
        ({"messages": "Hi"}, "no known format"),
        ({"text": "Hi"}, "its fields ('text') are those of no known format"),
        ({}, "its fields (none)"),
        ([1, 2], "it is list"),
        ("Hi", "it is str"),
        (None, "it is NoneType"),
        ({"instruction": "Hi"}, "none of the fields output and response"),
        ({"instruction": None, "output": "b"}, "turn 1 holds NoneType"),
        ({"instruction": "Hi", "input": 3, "output": "b"}, "'input' holds int"),
        ({"instruction": "Hi", "instances": [{}, {}]}, "'instances' hold 2 entries"),
        (exchange(1, domain=5), "'domain' holds int"),
        (exchange(1, system=5), "turn 1 holds int"),
    ],
)
def test_malformed_rows_say_what_is_wrong(row: Any, reason: str) -> None:
    with pytest.raises(MalformedRowError) as caught:
        parse_row(row, DialogueFile(path=Path("x.jsonl")))
    assert reason in caught.value.reason
    assert caught.value.kind


def test_named_format_is_not_guessed() -> None:
    row = {"messages": SHAREGPT}
    assert parse_row(row, DialogueFile(path=Path("x.jsonl"), format="sharegpt"))[0].turns == HELLO
    with pytest.raises(MalformedRowError, match="expected an object with 'role' and 'content'"):
        parse_row(row, DialogueFile(path=Path("x.jsonl"), format="messages"))
    with pytest.raises(MalformedRowError, match="none of the pairs"):
        parse_row(row, DialogueFile(path=Path("x.jsonl"), format="question_answer"))


@pytest.mark.parametrize("name", ["d.json", "d.json.gz", "d.jsonl", "d.JSONL", "d.jsonl.gz", "d.parquet", "lines.json"])
def test_every_kind_of_file_gives_the_same_dialogues(name: str, tmp_path: Path) -> None:
    rows = [{"messages": EXCHANGE}, *(turns(("user", f"{n}?"), ("assistant", f"{n} 你好.")) for n in range(5))]
    path = tmp_path / name
    if name == "d.parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ".json" in name.lower() and "jsonl" not in name.lower() and name != "lines.json":
        text = json.dumps({"version": 1, "data": rows}, ensure_ascii=False, indent=1).encode()
        path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    else:
        write_lines(path, rows)
    found = list(read_dialogues(DialogueFile(path=path), path))
    assert [row.number for row, _, _ in found] == [1, 2, 3, 4, 5, 6]
    expected = [parse_row(row, DialogueFile(path=path))[0] for row in rows]
    assert [dialogue for _, dialogue, _ in found] == expected


def test_single_dialogue_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    single = tmp_path / "one.json"
    single.write_text(json.dumps({"messages": EXCHANGE}, indent=2), encoding="utf-8-sig")
    assert [dialogue.turns for _, dialogue, _ in read_dialogues(DialogueFile(path=single), single)] == [HELLO]
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + json.dumps({"messages": EXCHANGE}).encode() + b"\r\n\r\n{}\r\n")
    rows = list(read_dialogues(DialogueFile(path=marked), marked))
    assert [row.number for row, _, _ in rows] == [1, 3]
    assert rows[0][1].turns == HELLO and isinstance(rows[1][1], MalformedRowError)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "cannot be opened (No such file or directory)"),
        ("empty.jsonl", b"", "holds no rows"),
        ("blank.json", b" \n", "holds no rows"),
        ("no_rows.json", b"[]", "holds no rows"),
        ("data.csv", b"a,b\n", "its ending says no known format"),
        ("latin.jsonl", '{"question": "café", "answer": "b"}\n'.encode("latin-1"), "row 1 is not UTF-8 at byte 17"),
        ("wide.jsonl", '{"question": "a", "answer": "b"}\n'.encode("utf-16"), "not UTF-8"),
        ("latin.json", '[{"question": "café"}]'.encode("latin-1"), "it is not UTF-8"),
        ("broken.json", b'[{"question": "a"},\n oops]', "broken JSON at line 2, column 2"),
        ("number.json", b"3", "found int"),
        ("two_lists.json", b'{"a": [], "b": []}', "found dict"),
        ("list.jsonl", b'[\n{"question": "a", "answer": "b"}\n]\n', "rename it to end in .json"),
        ("plain.jsonl.gz", b'{"question": "a"}\n', "cannot be read to its end"),
        ("short.jsonl.gz", gzip.compress(b'{"question": "a"}\n' * 999)[:-20], "cannot be read to its end"),
        ("corrupt.jsonl.gz", gzip.compress(b"a")[:10] + b"\xff" * 30, "cannot be decompressed"),
        ("text.parquet", b"hello", "cannot be read as Parquet"),
    ],
)
def test_unusable_file_is_named_with_a_remedy(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DialogueError) as caught:
        prepare(path, tmp_path / "out")
    assert message in str(caught.value)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ([] if content is None else [name])


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

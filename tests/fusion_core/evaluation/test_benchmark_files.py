"""Fetching benchmark files over HTTP and from folders, and published scores."""

from __future__ import annotations

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fusion_core.errors import EvaluationError
from fusion_core.evaluation.benchmark_files import MT_BENCH_FILES, BenchmarkFile, fetch_files
from fusion_core.evaluation.published_scores import published_scores


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args) -> None:
        pass


@pytest.fixture
def home(tmp_path: Path):
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b'{"a": 1}\n')
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def pinned(url: str, content: bytes = b'{"a": 1}\n') -> tuple[BenchmarkFile, ...]:
    return (BenchmarkFile("a.jsonl", f"{url}/a.jsonl", (), len(content), hashlib.sha256(content).hexdigest()),)


def test_a_file_is_fetched_once(home, tmp_path: Path) -> None:
    folder, url = home
    [path] = fetch_files(pinned(url), tmp_path / "out")
    assert path.read_bytes() == b'{"a": 1}\n'
    (folder / "a.jsonl").unlink()
    assert fetch_files(pinned(url), tmp_path / "out") == [path]


def test_another_file_than_the_pinned_one_is_refused_and_not_kept(home, tmp_path: Path) -> None:
    _, url = home
    with pytest.raises(EvaluationError, match=r"9 bytes with SHA-256 .* expected 3 bytes"):
        fetch_files(pinned(url, b"abc"), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_file_is_fetched_again(home, tmp_path: Path) -> None:
    _, url = home
    [path] = fetch_files(pinned(url), tmp_path / "out")
    path.write_text("damaged")
    assert fetch_files(pinned(url), tmp_path / "out")[0].read_bytes() == b'{"a": 1}\n'


def test_a_home_that_does_not_answer_names_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="--from"):
        fetch_files(pinned("http://127.0.0.1:9"), tmp_path)


def test_a_missing_file_is_named_with_its_home(home, tmp_path: Path) -> None:
    folder, url = home
    (folder / "a.jsonl").unlink()
    with pytest.raises(EvaluationError, match=r"a.jsonl cannot be fetched from http.*404"):
        fetch_files(pinned(url), tmp_path)


def test_the_pinned_files_of_mt_bench_are_those_at_hand(shared_folder: Path, tmp_path: Path) -> None:
    paths = fetch_files(MT_BENCH_FILES, tmp_path / "out", shared_folder / "data" / "mt_bench")
    assert [path.stat().st_size for path in paths] == [file.size for file in MT_BENCH_FILES]


def test_files_of_a_clone_of_fastchat_are_found_where_it_has_them(tmp_path: Path) -> None:
    content = b"reference"
    file = BenchmarkFile("r.jsonl", "", ("reference_answer/gpt-4.jsonl",), 9, hashlib.sha256(content).hexdigest())
    (tmp_path / "clone" / "reference_answer").mkdir(parents=True)
    (tmp_path / "clone" / "reference_answer" / "gpt-4.jsonl").write_bytes(content)
    assert fetch_files((file,), tmp_path / "out", tmp_path / "clone")[0].read_bytes() == content
    with pytest.raises(EvaluationError, match=r"has no r\.jsonl"):
        fetch_files((file,), tmp_path / "out-2", tmp_path)


def test_published_scores_have_sources_and_their_judge_in_the_caption() -> None:
    published = published_scores()
    assert {score.source for score in published.scores} <= set(published.sources)
    values = [score.overall for score in published.scores]
    assert values == sorted(values, reverse=True)
    assert {score.model: score.overall for score in published.scores}["FuseChat-7B-VaRM"] == 8.22
    assert published.judge in published.caption and "do not compare" in published.caption

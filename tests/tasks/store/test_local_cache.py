"""The local cache keeps its limit, evicts what was used longest ago, and never takes a file from a reader."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fusion_core.errors import StoreError
from tasks.store.local_cache import LocalCache

SIZE = 1000
REPOSITORY = Path(__file__).resolve().parents[3]


def content(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest() * 31 + bytes(8)


def fetch(cache: LocalCache, number: int, downloads: list[int] | None = None) -> Path:
    data = content(number)

    def download(path: Path) -> None:
        if downloads is not None:
            downloads.append(number)
        path.write_bytes(data)

    return cache.fetch("an/address", f"{number}", hashlib.sha256(data).hexdigest(), SIZE, download)


def use_once(folder: Path, number: int, limit: int, downloads: list[int]) -> None:
    with LocalCache(folder, limit) as cache:
        assert fetch(cache, number, downloads).read_bytes() == content(number)


def test_a_second_use_downloads_nothing(tmp_path: Path) -> None:
    downloads: list[int] = []
    for _ in range(3):
        use_once(tmp_path, 1, 10 * SIZE, downloads)
    assert downloads == [1]


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    downloads: list[int] = []
    for number in (1, 2, 3, 1, 4):  # 2 was used longest ago when 4 needs room
        use_once(tmp_path, number, 3 * SIZE, downloads)
    assert LocalCache(tmp_path, 3 * SIZE).usage().bytes == 3 * SIZE
    downloads.clear()
    for number in (1, 3, 4, 2):
        use_once(tmp_path, number, 3 * SIZE, downloads)
    assert downloads == [2]


def test_what_a_reader_uses_stays(tmp_path: Path) -> None:
    with LocalCache(tmp_path, 2 * SIZE) as reader:
        held = fetch(reader, 1)
        for number in (2, 3, 4):
            use_once(tmp_path, number, 2 * SIZE, [])
        assert held.read_bytes() == content(1)
        assert reader.usage().bytes_in_use == SIZE
        fetch(reader, 5)
        with pytest.raises(StoreError, match=f"no room for 1,000 bytes.*FUSELINE_CACHE_SIZE to at least {3 * SIZE:,}"):
            fetch(reader, 6)
    assert not held.exists()
    assert LocalCache(tmp_path, 2 * SIZE).usage().bytes_in_use == 0
    use_once(tmp_path, 6, 2 * SIZE, [])


def test_paths_stay_while_the_cache_lives_and_go_with_it(tmp_path: Path) -> None:
    cache = LocalCache(tmp_path, 2 * SIZE)
    path = fetch(cache, 1)
    assert path.exists()
    del cache
    assert not path.exists()


def test_a_file_of_the_cache_cannot_be_written(tmp_path: Path) -> None:
    with LocalCache(tmp_path, 2 * SIZE) as cache:
        assert fetch(cache, 1).stat().st_mode & 0o222 == 0


def test_a_damaged_file_is_fetched_again(tmp_path: Path) -> None:
    use_once(tmp_path, 1, 10 * SIZE, [])
    damaged = next((tmp_path / "objects").iterdir())
    damaged.chmod(0o644)
    damaged.write_bytes(b"x" * SIZE)
    downloads: list[int] = []
    use_once(tmp_path, 1, 10 * SIZE, downloads)
    assert downloads == [1]


def test_a_failed_download_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise StoreError("no")

    with LocalCache(tmp_path, 10 * SIZE) as cache:
        with pytest.raises(StoreError, match="no"):
            cache.fetch("a", "n", "0" * 64, SIZE, fail)
        assert list((tmp_path / "incoming").iterdir()) == list((tmp_path / "objects").iterdir()) == []


def test_one_download_for_many_threads(tmp_path: Path) -> None:
    downloads: list[int] = []

    def read(_: int) -> bytes:
        with LocalCache(tmp_path, 10 * SIZE) as cache:
            return fetch(cache, 1, downloads).read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, range(32))) == {content(1)}
    assert downloads == [1]


def churn(folder: Path, seed: int, failures: multiprocessing.Queue) -> None:
    """Read objects at random, each for a moment, in a cache that holds only some of them."""
    try:
        for step in range(60):
            number = (seed * 7 + step * step) % 11
            with LocalCache(folder, 6 * SIZE) as cache:
                path = fetch(cache, number)
                time.sleep(0.001)
                assert path.read_bytes() == content(number)
                assert cache.usage().bytes <= 6 * SIZE
    except BaseException as error:
        failures.put(repr(error))
        raise


def test_processes_share_a_cache_that_is_too_small(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    failures = context.Queue()
    processes = [context.Process(target=churn, args=(tmp_path, seed, failures)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4, failures.get(timeout=1)
    assert list((tmp_path / "leases").iterdir()) == list((tmp_path / "incoming").iterdir()) == []


@pytest.mark.parametrize("moment", ["reading", "downloading"])
def test_a_killed_reader_leaves_nothing_for_ever(tmp_path: Path, moment: str) -> None:
    wait = "sys.stdout.write('ready\\n'); sys.stdout.flush(); time.sleep(60)"
    script = f"""
import sys, time
from tests.tasks.store.test_local_cache import *
def slow(path):
    {wait}
cache = LocalCache(Path({str(tmp_path)!r}), 2 * SIZE)
fetch(cache, 1)
if {moment!r} == "downloading":
    cache.fetch("a", "n", "0" * 64, SIZE, slow)
{wait}
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert list((tmp_path / "leases").iterdir())
    with LocalCache(tmp_path, 2 * SIZE) as cache:
        fetch(cache, 2)
        fetch(cache, 3)  # needs the room that the killed one had taken
        assert len(list((tmp_path / "leases").glob("*.lock"))) == 1
        assert list((tmp_path / "incoming").iterdir()) == []


def test_a_forked_child_does_not_end_its_parents_lease(tmp_path: Path) -> None:
    with LocalCache(tmp_path, 2 * SIZE) as cache:
        path = fetch(cache, 1)
        child = os.fork()
        if child == 0:
            cache.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert path.exists()


def test_waiting_for_anothers_download(tmp_path: Path) -> None:
    """The one that waited takes the object that the other one brought."""
    order: list[str] = []

    def slow(path: Path) -> None:
        order.append("begun")
        time.sleep(0.3)
        path.write_bytes(content(1))

    sha256 = hashlib.sha256(content(1)).hexdigest()

    def read(download: Callable[[Path], None]) -> None:
        with LocalCache(tmp_path, 10 * SIZE) as cache:
            assert cache.fetch("a", "n", sha256, SIZE, download).read_bytes() == content(1)
            order.append("read")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(read, [slow, slow]))
    assert order == ["begun", "read", "read"]

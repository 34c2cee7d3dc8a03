"""A slot is asked for again while the server is too busy to give one, and any other refusal is final."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from prefect.concurrency import sync
from prefect.concurrency._asyncio import ConcurrencySlotAcquisitionError

from tasks.servers import is_server_away
from tasks.settings import Settings
from tasks.stages import device_slots
from tasks.stages.device_slots import device_slot


def refusal(status: int) -> Exception:
    """What Prefect raises when its server answers with an error."""
    request = httpx.Request("POST", "http://127.0.0.1/api")
    cause = httpx.HTTPStatusError("refused", request=request, response=httpx.Response(status, request=request))
    error = ConcurrencySlotAcquisitionError("Unable to acquire concurrency slots")
    error.__cause__ = cause
    return error


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Statuses that the server answers with, first ones first; it then gives a slot. What was given is appended."""
    statuses: list[int] = []

    @contextmanager
    def concurrency(*names: str, **given: object) -> Iterator[None]:
        if statuses and statuses[0] != 200:
            raise refusal(statuses.pop(0))
        statuses.append(200)
        yield

    monkeypatch.setattr(sync, "concurrency", concurrency)
    monkeypatch.setattr(device_slots, "PAUSE_SECONDS", (0.0, 0.0))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("FUSELINE_DEVICE_LIMIT", "gpu")
    return statuses


def test_a_busy_server_is_asked_again(answers: list[int]) -> None:
    answers += [503] * (device_slots.TRIES - 1)
    with device_slot(Settings()):
        assert answers == [200]
    answers[:] = [503] * device_slots.TRIES
    with pytest.raises(ConcurrencySlotAcquisitionError) as caught, device_slot(Settings()):
        pytest.fail("there is no slot")
    assert is_server_away(caught.value) and answers == []


def test_a_refusal_and_an_error_of_the_stage_are_not_repeated(answers: list[int]) -> None:
    answers += [422, 503]
    with pytest.raises(ConcurrencySlotAcquisitionError), device_slot(Settings()):
        pytest.fail("there is no slot")
    assert answers == [503]
    answers.clear()
    with pytest.raises(httpx.ReadTimeout), device_slot(Settings()):
        raise httpx.ReadTimeout("of the stage itself")
    assert answers == [200]

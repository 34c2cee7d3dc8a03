"""A small HTTP receiver that turns MLflow's registry webhooks into Prefect events.

MLflow signs ``<delivery id>.<timestamp>.<body>`` with HMAC-SHA256 and sends ``v1,<base64>``. What is not signed with
the shared secret, is older than some minutes or was delivered before has no effect. An event only wakes re-fusion up,
which lists the registry itself: a delivery that never arrives costs time until the next schedule, and nothing else.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from fusion_core.config import NAME_PATTERN
from fusion_core.errors import FusionError
from tasks.landing.sources import RECIPE_TAG, SOURCE_TAG
from tasks.landing.webhook_deliveries import Deliveries

SIGNATURE_HEADER = "x-mlflow-signature"
TIMESTAMP_HEADER = "x-mlflow-timestamp"
DELIVERY_HEADER = "x-mlflow-delivery-id"
SIGNATURE_VERSION = "v1"
# How far the clocks of MLflow and of the receiver, and the way between them, may be apart.
TOLERANCE_SECONDS = 300
LARGEST_BODY_BYTES = 1 << 20
LONGEST_DELIVERY_ID = 200
# For the whole of a body, which MLflow sends at once.
BODY_SECONDS = 20.0
LONGEST_MODEL_NAME = 256
VERSION = re.compile(r"[0-9]{1,10}")
UNIX_SECONDS = re.compile(r"[0-9]{1,15}")

Answer = tuple[int, str]


@dataclass(frozen=True)
class Receiver:
    """What handles a delivery.

    Parameters
    ----------
    secret : str
        Shared with MLflow's webhook.
    deliveries : Deliveries
    announce : callable
        Gets recipe, source's name and reference; raises `FusionError` when the event was not taken.
    read_tags : callable
        Gets a registered model's name and a version, returns the version's tags.
    """

    secret: str
    deliveries: Deliveries
    announce: Callable[[str, str, str], None]
    read_tags: Callable[[str, str], Mapping[str, str]]

    def handle(self, headers: Mapping[str, str], body: bytes) -> Answer:
        """Return status and one word about a delivery, after its event was emitted where it tells of a source."""
        if not is_genuine(self.secret, headers, body, time.time()):
            return 401, "refused"
        try:
            payload = json.loads(body)
        except (ValueError, RecursionError):
            return 400, "no JSON"
        try:
            landed = self._landed(payload)
            if landed is None:
                return 200, "ignored"
            delivery = headers[DELIVERY_HEADER]
            if not self.deliveries.take(delivery):
                return 200, "seen before"
            try:
                self.announce(*landed)
            except BaseException:
                self.deliveries.give_back(delivery)
                raise
        except FusionError as error:
            # MLflow tries again on this status.
            return 503, str(error)
        return 202, "announced"

    def _landed(self, payload: Any) -> tuple[str, str, str] | None:
        """Return recipe, name and reference of the source that a delivery tells of, None when it tells of none."""
        data = payload.get("data") if isinstance(payload, dict) else None
        if not isinstance(data, dict):
            return None
        name, version = str(data.get("name")), str(data.get("version"))
        if not (name.isprintable() and len(name) <= LONGEST_MODEL_NAME and VERSION.fullmatch(version)):
            return None
        what = (payload.get("entity"), payload.get("action"))
        if what == ("model_version", "created"):
            tags = data.get("tags")
        elif what == ("model_version_tag", "set") and data.get("key") in (SOURCE_TAG, RECIPE_TAG):
            tags = self.read_tags(name, version)
        else:
            return None
        if not isinstance(tags, Mapping):
            return None
        recipe = str(tags.get(RECIPE_TAG, ""))
        if tags.get(SOURCE_TAG) != "true" or not NAME_PATTERN.match(recipe):
            return None
        return recipe, f"{name}-v{version}", f"models:/{name}/{version}"


def is_genuine(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> bool:
    """Say whether a delivery was signed with the secret, not long ago."""
    delivery, timestamp = headers.get(DELIVERY_HEADER, ""), headers.get(TIMESTAMP_HEADER, "")
    if not 0 < len(delivery) <= LONGEST_DELIVERY_ID or not UNIX_SECONDS.fullmatch(timestamp):
        return False
    if not delivery.isprintable():  # half of a surrogate pair among others, which has no bytes to sign
        return False
    expected = sign(secret, delivery, timestamp, body)
    # More than one signature, apart by spaces, is how senders change their secret.
    given = headers.get(SIGNATURE_HEADER, "").encode("utf-8", "replace").split()
    genuine = any([hmac.compare_digest(expected.encode(), one) for one in given])
    return genuine and abs(now - int(timestamp)) <= TOLERANCE_SECONDS


def sign(secret: str, delivery: str, timestamp: str, body: bytes) -> str:
    """Sign a delivery as MLflow does."""
    content = f"{delivery}.{timestamp}.".encode() + body
    digest = hmac.new(secret.encode(), content, hashlib.sha256).digest()
    return f"{SIGNATURE_VERSION},{base64.b64encode(digest).decode()}"


def make_application(receiver: Receiver) -> FastAPI:
    """Return the HTTP application: POST /mlflow takes deliveries, GET /health answers."""
    application = FastAPI(title="Fuseline receiver", docs_url=None, redoc_url=None, openapi_url=None)

    @application.get("/health")
    async def health() -> str:
        return "ok"

    @application.post("/mlflow")
    async def mlflow(request: Request) -> JSONResponse:
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > LARGEST_BODY_BYTES:
                        return JSONResponse({"status": "too large"}, 413)
        except TimeoutError:
            return JSONResponse({"status": "too slow"}, 408, {"Connection": "close"})
        status, said = await run_in_threadpool(receiver.handle, dict(request.headers), bytes(body))
        return JSONResponse({"status": said}, status)

    return application

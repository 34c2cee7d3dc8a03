"""The object store in an S3 bucket, at Amazon or any server that speaks S3.

Every object carries its SHA-256 as metadata, put there by the same request as its bytes. Requests are repeated by
botocore with growing pauses; what botocore does not repeat (a connection that breaks in the middle of a body, two
conditional writes that meet) is repeated here.
"""

from __future__ import annotations

import base64
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import boto3
from boto3.s3.transfer import TransferConfig, create_transfer_manager
from botocore.config import Config
from botocore.exceptions import ClientError

from fusion_core.errors import StoreError
from tasks.store.interface import MissingObjectError, ObjectInfo, Store, check_key, is_key
from tasks.store.local_files import copy_and_hash, disk_errors, hash_file
from tasks.store.s3_download import download_in_ranges
from tasks.store.s3_errors import is_missing, is_taken, repeated, s3_errors

MIB = 1 << 20
# Up to this size one request is faster than several; above it a broken one would cost too much to repeat.
MULTIPART_THRESHOLD_BYTES = 128 * MIB
PART_BYTES = 16 * MIB  # of a large file, sent by one request
DELETE_BATCH = 1000  # the most keys that S3 takes in one request
METADATA_SHA256 = "sha256"


class S3Store(Store):
    """Objects in a bucket, below a prefix.

    Credentials come from where boto3 looks for them (environment, profile, instance role), never from here.

    Parameters
    ----------
    bucket, prefix : str
        The prefix has no slash at its ends and may be empty.
    endpoint_url : str, optional
        A server other than Amazon's.
    addressing : {"auto", "path", "virtual"}
        How requests name the bucket; auto: in the path with an endpoint of one's own, else as botocore chooses.
    max_attempts : int
        How often botocore tries a request.
    connect_timeout_seconds, read_timeout_seconds : float
        How long a server may stall before a request is tried again.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        addressing: Literal["auto", "path", "virtual"] = "auto",
        max_attempts: int = 8,
        connect_timeout_seconds: float = 10.0,
        read_timeout_seconds: float = 30.0,
    ) -> None:
        self.bucket = bucket
        self.prefix = prefix
        own_endpoint = endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        self._endpoint = own_endpoint or "Amazon S3"
        if addressing == "auto" and own_endpoint:
            addressing = "path"
        self._config = Config(
            retries={"mode": "standard", "total_max_attempts": max_attempts},
            connect_timeout=connect_timeout_seconds,
            # SHA-256 is computed over every object read; a second checksum would only cost time.
            response_checksum_validation="when_required",
            read_timeout=read_timeout_seconds,
            max_pool_connections=32,
            # Bodies are covered by their checksum, which is signed with the headers: hashing them once more for the
            # signature, as botocore does without TLS, would only cost time.
            s3={"addressing_style": addressing, "payload_signing_enabled": False},
        )
        self._endpoint_url = endpoint_url
        self._client = self._connect(self._config)
        # The transfer manager has no argument for a conditional completion of a multipart upload.
        self._conditional_keys: set[str] = set()
        self._client.meta.events.register("provide-client-params.s3.CompleteMultipartUpload", self._add_condition)
        self._uploads = TransferConfig(
            multipart_threshold=MULTIPART_THRESHOLD_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=8
        )

    def __repr__(self) -> str:
        return f"S3Store({self.url('')!r}, endpoint {self._endpoint!r})"

    def check(self) -> None:
        """Make sure that the bucket is there and lists; quick to give up, unlike everything else.

        Raises
        ------
        StoreError
            No bucket, no server, no permission, or wrong credentials.
        """
        quick = Config(retries={"mode": "standard", "total_max_attempts": 3}, connect_timeout=5, read_timeout=10)
        client = self._connect(self._config.merge(quick))
        with self._errors("Opening the store"):
            client.list_objects_v2(Bucket=self.bucket, Prefix=self._base, MaxKeys=1)

    def read(self, key: str) -> bytes:
        def get() -> bytes:
            return self._client.get_object(Bucket=self.bucket, Key=name)["Body"].read()

        name = self._key(key)
        with self._errors(f"Reading {self.url(key)}"), self._missing(key):
            return repeated(get)

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> bool:
        return self._put(key, data, hashlib.sha256(data).digest(), if_absent)

    def upload(self, key: str, path: Path, *, if_absent: bool = False, sha256: str | None = None) -> bool:
        sha256 = sha256 or hash_file(path)
        with disk_errors(f"Reading {path}"):
            if path.stat().st_size <= MULTIPART_THRESHOLD_BYTES:
                with path.open("rb") as file:
                    return self._put(key, file, bytes.fromhex(sha256), if_absent)
        if if_absent and self.exists(key):
            return False
        return self._put_in_parts(key, path, sha256, if_absent)

    def download(self, key: str, path: Path) -> str:
        name = self._key(key)
        try:
            with self._errors(f"Reading {self.url(key)}"), self._missing(key), disk_errors(f"Writing {path}"):
                return repeated(lambda: download_in_ranges(self._client, self.bucket, name, path))
        except StoreError:
            path.unlink(missing_ok=True)
            raise

    def hash(self, key: str) -> str:
        def get() -> str:
            return copy_and_hash(self._client.get_object(Bucket=self.bucket, Key=name)["Body"])

        name = self._key(key)
        with self._errors(f"Reading {self.url(key)}"), self._missing(key):
            return repeated(get)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        if prefix:
            check_key(prefix.rstrip("/"))
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._base + prefix)
        with self._errors(f"Listing {self.url('')}"):
            for page in pages:
                for item in page.get("Contents", []):
                    name = item.get("Key", "")
                    key = name.removeprefix(self._base)
                    if name.startswith(self._base + prefix) and is_key(key) and "LastModified" in item:
                        yield ObjectInfo(key, int(item.get("Size", 0)), item["LastModified"].timestamp())

    def stat(self, key: str) -> ObjectInfo | None:
        try:
            head = self._head(key)
        except MissingObjectError:
            return None
        recorded = head["Metadata"].get(METADATA_SHA256)
        # The server's own checksum of the bytes, where they came in one piece.
        checksum = head.get("ChecksumSHA256", "")
        if recorded and checksum and "-" not in checksum and base64.b64decode(checksum).hex() != recorded:
            recorded = None
        return ObjectInfo(key, head["ContentLength"], head["LastModified"].timestamp(), recorded)

    def delete(self, keys: Iterable[str]) -> None:
        names = [{"Key": self._key(key)} for key in keys]
        with self._errors(f"Deleting from {self.url('')}"):
            for start in range(0, len(names), DELETE_BATCH):
                request = {"Objects": names[start : start + DELETE_BATCH], "Quiet": True}
                answer = self._client.delete_objects(Bucket=self.bucket, Delete=request)
                for problem in answer.get("Errors", []):
                    if problem.get("Code") != "NoSuchKey":
                        raise ClientError({"Error": problem}, "DeleteObjects")

    def url(self, key: str) -> str:
        path = self._key(key) if key else self.prefix
        return f"s3://{self.bucket}/{path}".rstrip("/")

    def leftovers(self, older_than_seconds: float) -> Iterator[ObjectInfo]:
        uploads = self._client.get_paginator("list_multipart_uploads")
        parts = self._client.get_paginator("list_parts")
        with self._errors(f"Listing unfinished uploads of {self.url('')}"):
            for page in uploads.paginate(Bucket=self.bucket, Prefix=self._base):
                for upload in page.get("Uploads", []):
                    started = upload["Initiated"].timestamp()
                    if time.time() - started < older_than_seconds:
                        continue
                    name = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
                    pieces = parts.paginate(Bucket=self.bucket, **name)
                    size = sum(part["Size"] for piece in pieces for part in piece.get("Parts", []))
                    key = f"{name['Key'].removeprefix(self._base)}?uploadId={name['UploadId']}"
                    yield ObjectInfo(key, size, started)

    def delete_leftovers(self, leftovers: Iterable[ObjectInfo]) -> None:
        for info in leftovers:
            key, _, upload = info.key.rpartition("?uploadId=")
            with self._errors(f"Deleting an unfinished upload of {self.url(key)}"):
                self._client.abort_multipart_upload(Bucket=self.bucket, Key=self._key(key), UploadId=upload)

    @property
    def _base(self) -> str:
        return f"{self.prefix}/" if self.prefix else ""

    def _key(self, key: str) -> str:
        return self._base + check_key(key)

    def _connect(self, config: Config) -> Any:
        with self._errors("Opening the store"):
            return boto3.session.Session().client("s3", endpoint_url=self._endpoint_url, config=config)

    def _errors(self, action: str) -> Any:
        return s3_errors(action, self.bucket, self._endpoint)

    def _put(self, key: str, body: bytes | BinaryIO, sha256: bytes, if_absent: bool) -> bool:
        def put() -> None:
            if not isinstance(body, bytes):
                body.seek(0)
            self._client.put_object(
                Bucket=self.bucket,
                Key=self._key(key),
                Body=body,
                Metadata={METADATA_SHA256: sha256.hex()},
                # The server refuses bytes that do not have it.
                ChecksumSHA256=base64.b64encode(sha256).decode(),
                **({"IfNoneMatch": "*"} if if_absent else {}),
            )

        with self._errors(f"Writing {self.url(key)}"):
            return _unless_taken(put)

    def _put_in_parts(self, key: str, path: Path, sha256: str, if_absent: bool) -> bool:
        name = self._key(key)
        arguments = {"ChecksumAlgorithm": "CRC32", "Metadata": {METADATA_SHA256: sha256}}

        def put() -> None:
            try:
                with create_transfer_manager(self._client, self._uploads) as manager:
                    manager.upload(str(path), self.bucket, name, arguments).result()
            except ClientError as error:
                # The answer to a completion was lost and its repetition found no upload any more.
                info = self.stat(key) if "NoSuchUpload" in str(error) else None
                if info is None or info.sha256 != sha256:
                    raise

        with self._errors(f"Writing {self.url(key)}"), disk_errors(f"Reading {path}"):
            if not if_absent:
                return _unless_taken(put)
            self._conditional_keys.add(name)
            try:
                return _unless_taken(put)
            finally:
                self._conditional_keys.discard(name)

    def _add_condition(self, params: dict[str, Any], **_: object) -> None:
        if params.get("Key") in self._conditional_keys:
            params["IfNoneMatch"] = "*"

    def _head(self, key: str) -> dict[str, Any]:
        with self._errors(f"Looking up {self.url(key)}"), self._missing(key):
            return self._client.head_object(Bucket=self.bucket, Key=self._key(key), ChecksumMode="ENABLED")

    @contextmanager
    def _missing(self, key: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            if is_missing(error):
                raise MissingObjectError(f"There is no object at {self.url(key)}.") from None
            raise


def _unless_taken(put: Callable[[], None]) -> bool:
    try:
        repeated(put)
    except ClientError as error:
        if is_taken(error):
            return False
        raise
    return True

"""An object fetched from S3 in ranges, several at a time."""

from __future__ import annotations

import hashlib
import mmap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from tasks.store.local_files import update_digest
from tasks.store.s3_errors import error_code, repeated

MIB = 1 << 20
RANGE_BYTES = 8 * MIB  # of an object, fetched by one request
DOWNLOAD_THREADS = 10


def download_in_ranges(client: Any, bucket: str, name: str, path: Path) -> str:
    """Fetch an object in ranges, several at a time, and hash them in order; return the SHA-256 (hex)."""
    digest = hashlib.sha256()
    with path.open("w+b", buffering=0) as file, ThreadPoolExecutor(DOWNLOAD_THREADS) as pool:
        try:
            # The first answer says how large the object is.
            first = client.get_object(Bucket=bucket, Key=name, Range=f"bytes=0-{RANGE_BYTES - 1}")
        except ClientError as error:
            if error_code(error) == "InvalidRange":  # an empty object has none
                return digest.hexdigest()
            raise
        size = int(first.get("ContentRange", "/0").rpartition("/")[2])
        starts = range(RANGE_BYTES, size, RANGE_BYTES)
        rest = [pool.submit(_get_range, client, bucket, name, first["ETag"], start, path) for start in starts]
        try:
            update_digest(digest, first["Body"], file)
            for start, future in zip(starts, rest, strict=True):
                end = start + future.result()
                # Out of the page cache without a copy, while later ranges are still on their way.
                with mmap.mmap(file.fileno(), end - start, offset=start, access=mmap.ACCESS_READ) as written:
                    digest.update(written)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return digest.hexdigest()


def _get_range(client: Any, bucket: str, name: str, etag: str, start: int, path: Path) -> int:
    """Write one range of an object to its place in the file, and return how many bytes it has."""

    def get() -> int:
        # The condition keeps ranges of two versions from being mixed.
        answer = client.get_object(
            Bucket=bucket, Key=name, IfMatch=etag, Range=f"bytes={start}-{start + RANGE_BYTES - 1}"
        )
        with path.open("r+b", buffering=0) as file:
            file.seek(start)
            while chunk := answer["Body"].read(MIB):
                file.write(chunk)
            return file.tell() - start

    return repeated(get)

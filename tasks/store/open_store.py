"""Which object store the settings mean."""

from __future__ import annotations

from pathlib import Path

from tasks.settings import Settings, split_s3_address
from tasks.store.folder import FolderStore
from tasks.store.interface import Store


def open_store(settings: Settings) -> Store:
    """Open the store that the settings name, and make sure that it answers.

    Raises
    ------
    StoreError
        The folder cannot be made; the bucket is missing, its server cannot be reached or refuses these credentials.
    """
    if not settings.store.startswith("s3://"):
        return FolderStore(Path(settings.store))
    # Only a store on S3 needs boto3, which takes a while to import.
    from tasks.store.s3 import S3Store

    bucket, prefix = split_s3_address(settings.store)
    store = S3Store(bucket, prefix, endpoint_url=settings.s3_endpoint_url, addressing=settings.s3_addressing)
    store.check()
    return store

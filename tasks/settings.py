"""Where things are: settings of the place, read from the environment, with everything embedded when none is set."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AliasChoices,
    ByteSize,
    Field,
    PositiveInt,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from fusion_core.errors import ConfigError

PREFIX = "FUSELINE_"
# As boto3 has it; not every server takes all of these.
BUCKET_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,255}")


class Settings(BaseSettings):
    """The object store, the local cache and the servers of one place.

    Reads the environment once; relative folders become absolute at that moment, so that a later change of the working
    directory moves nothing. Passwords are no settings: boto3 and MLflow read their own variables.

    Raises
    ------
    ConfigError
        A variable's value makes no sense, or a ``FUSELINE_`` variable is not known.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    home: Path = Field(Path(".fuseline"), description="Folder of everything that has no place of its own.")
    store: str = Field("", description="A folder or s3://bucket/prefix; default: store/ in the home folder.")
    s3_endpoint_url: str | None = Field(None, description="Address of an S3 server other than Amazon's.")
    s3_addressing: Literal["auto", "path", "virtual"] = Field(
        "auto", description="path: endpoint/bucket/key; virtual: bucket.endpoint/key; auto: path with an endpoint URL."
    )
    cache_dir: Path | None = Field(None, description="Local cache of S3 objects; default: cache/ in the home folder.")
    cache_size: ByteSize = Field(
        ByteSize(100 * 2**30), description="Most bytes the local cache may hold, such as 200GiB; default 100 GiB."
    )
    recipes: Path = Field(
        Path(__file__).resolve().parents[1] / "deployments" / "recipes",
        description="Folder of the recipes that can be picked by name in Prefect's pages; default: those of the clone.",
    )
    device_limit: str = Field(
        "",
        description="A global concurrency limit of Prefect; extracting, training, scoring and answering take a slot of "
        "it. Needs PREFECT_API_URL; default: no limit.",
    )
    task_runner: Literal["in_turn", "threads", "ray", "dask"] = Field(
        "in_turn",
        description="How extractions, alignments and evaluations of one fusion run: one after the other, side by side "
        "in threads, or on a Ray or Dask cluster, which shares out the shards of an extraction too.",
    )
    task_workers: PositiveInt = Field(2, le=1024, description="Tasks at once, unless `task_runner` is in_turn.")
    task_cluster: str | None = Field(
        None, description="Address of the Ray or Dask cluster; default: a local one for the time of the run."
    )
    task_gpus: float = Field(0.0, ge=0.0, le=1024.0, description="GPUs that Ray sets aside for each task; ray only.")
    mlflow_tracking_uri: str = Field(
        "",
        validation_alias=AliasChoices("mlflow_tracking_uri", "MLFLOW_TRACKING_URI"),
        description="MLflow's server; default: SQLite in the home folder.",
    )
    prefect_api_url: str | None = Field(
        None,
        validation_alias=AliasChoices("prefect_api_url", "PREFECT_API_URL"),
        description="Prefect's server; default: its ephemeral one.",
    )
    price_per_hour: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="What an hour of one device costs here; reports then sum it up."
    )
    price_currency: str = Field("USD", max_length=12, description="Currency of that price, as reports write it.")
    webhook_secret: SecretStr | None = Field(
        None, description="What MLflow's webhook signs with, for `fuseline receiver`; shown nowhere."
    )

    def __init__(self, **values: Any) -> None:
        _refuse_unknown_variables()
        try:
            super().__init__(**values)
        except ValidationError as error:
            # Values stay out of the message: an address may carry a password.
            problem = error.errors(include_url=False, include_input=False)[0]
            field = str(problem["loc"][0]) if problem["loc"] else "store"
            variable = field if field.isupper() else PREFIX + field.upper()
            reason = problem["msg"].removeprefix("Value error, ")
            raise ConfigError(f"{variable} cannot be used: {reason}.") from None
        except OverflowError:
            raise ConfigError(
                "A FUSELINE_ variable holds a number that is too large for any machine; correct it."
            ) from None

    @field_validator("store")
    @classmethod
    def _known_store(cls, store: str) -> str:
        if store.startswith("s3://"):
            split_s3_address(store)
            return store
        if "://" in store or store.startswith("s3:"):
            raise ValueError("expected a folder or an address such as s3://bucket/prefix")
        return store

    @field_validator("s3_endpoint_url")
    @classmethod
    def _http_endpoint(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected an address such as http://localhost:8333")
        if parts.username or parts.password:
            raise ValueError(
                "credentials belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, not into the address"
            )
        return url

    @field_validator("cache_size")
    @classmethod
    def _positive_size(cls, size: ByteSize) -> ByteSize:
        if size <= 0:
            raise ValueError("expected a positive size such as 200GiB")
        return size

    @model_validator(mode="before")
    @classmethod
    def _absolute_folders(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = dict(values)
        home = _absolute(values.get("home") or ".fuseline")
        if "?" in str(home):
            raise ValueError(f"the home {home} has a ? in its path, where the address of MLflow's database would end")
        values["home"] = home
        store = str(values.get("store") or home / "store")
        values["store"] = store if ":" in store else str(_absolute(store))
        if values.get("recipes"):
            values["recipes"] = _absolute(values["recipes"])
        values["cache_dir"] = _absolute(values.get("cache_dir") or home / "cache")
        return values

    @property
    def cache_folder(self) -> Path:
        """Folder of the local cache."""
        return self.cache_dir or self.home / "cache"

    @property
    def work_folder(self) -> Path:
        """Folder of the stages' work folders, in which a stage that was stopped goes on."""
        return self.home / "work"

    @property
    def sources_folder(self) -> Path:
        """Folder of the landed sources that were fetched to this machine."""
        return self.home / "sources"

    @property
    def tracking_uri(self) -> str:
        """MLflow's tracking address, embedded SQLite where none is set."""
        return self.mlflow_tracking_uri or f"sqlite:///{self.home / 'mlflow.db'}"

    @property
    def shown_tracking_uri(self) -> str:
        """The tracking address as people may see it: without a password that it carries."""
        return without_credentials(self.tracking_uri, self.tracking_uri)

    @property
    def tracking_artifacts(self) -> Path:
        """Folder of MLflow's artifacts when MLflow is embedded."""
        return self.home / "mlartifacts"


def _absolute(path: str | Path) -> Path:
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise ValueError("a path begins with ~ and a user this machine does not have") from None


def without_credentials(text: str, address: str) -> str:
    """Take user and password of an address out of a text that quotes it."""
    user, at, _ = urlsplit(address).netloc.rpartition("@")
    return text.replace(f"{user}@", "") if at else text


def split_s3_address(address: str) -> tuple[str, str]:
    """Return bucket and prefix of ``s3://bucket/prefix``; the prefix has no slash at its ends and may be empty.

    Raises
    ------
    ValueError
        There is no bucket in it or none can have the name, or the prefix has an empty, '.' or '..' part.
    """
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/")
    if not bucket or any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
        raise ValueError("expected an address such as s3://bucket/prefix")
    if not BUCKET_PATTERN.fullmatch(bucket):
        raise ValueError(f"no bucket can be called {bucket!r}; its name has letters, digits, '.', '_' and '-' alone")
    return bucket, prefix


def _refuse_unknown_variables() -> None:
    fields = (name for name in Settings.model_fields if not name.startswith(("mlflow_", "prefect_")))
    known = [PREFIX + name.upper() for name in fields]
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
            raise ConfigError(f"The environment variable {name} is not known; {hint}")

"""Settings of the place: what is assumed, what the environment says, and what makes no sense."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flows.command_line.output import _mlflow_hint
from fusion_core.errors import ConfigError, TrackingError
from tasks import doctor
from tasks.runs.tracking import plain_errors
from tasks.settings import Settings


def test_settings_default_to_everything_embedded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("FUSELINE_") or name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_HOME"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    settings = Settings()
    home = tmp_path / ".fuseline"
    assert settings.store == str(home / "store")
    assert settings.cache_folder == home / "cache"
    assert settings.tracking_uri == f"sqlite:///{home}/mlflow.db"
    assert settings.tracking_artifacts == home / "mlartifacts"
    assert settings.prefect_api_url is None


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    values = {"STORE": "s3://team/fusions/", "CACHE_DIR": "fast", "CACHE_SIZE": "2GiB", "S3_ADDRESSING": "virtual"}
    for name, value in values.items():
        monkeypatch.setenv(f"FUSELINE_{name}", value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    settings = Settings()
    assert settings.store == "s3://team/fusions/"
    assert settings.cache_folder == tmp_path / "fast"
    assert settings.cache_size == 2 * 2**30
    assert settings.tracking_uri == "http://mlflow:5000"


def test_a_home_that_would_cut_the_databases_address_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path / "ho?me"))
    with pytest.raises(ConfigError, match=r"has a \? in its path"):
        Settings()


def test_a_password_in_an_address_is_used_and_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ada:my-secret@mlflow:5000/a")
    monkeypatch.setenv("FUSELINE_HOME", str(tmp_path))
    settings = Settings()
    assert settings.tracking_uri == "https://ada:my-secret@mlflow:5000/a"
    assert settings.shown_tracking_uri == "https://mlflow:5000/a"
    with pytest.raises(TrackingError) as error, plain_errors(settings):
        raise ValueError(f"API request to {settings.tracking_uri}/api failed")
    assert "my-secret" not in str(error.value) and "https://mlflow:5000/a/api" in str(error.value)
    assert _mlflow_hint(settings) == "https://mlflow:5000/a"
    monkeypatch.setattr("tasks.doctor.check_prefect", lambda _: None)
    monkeypatch.setenv("PREFECT_API_URL", "http://ada:my-secret@prefect:4200/api")
    assert doctor._prefect(Settings()) == "http://prefect:4200/api"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FUSELINE_STORE", "s3://", "FUSELINE_STORE cannot be used: expected an address such as s3://bucket/prefix"),
        ("FUSELINE_STORE", "s3:/bucket", "FUSELINE_STORE cannot be used"),
        ("FUSELINE_STORE", "s3://bucket/a/../b", "FUSELINE_STORE cannot be used"),
        ("FUSELINE_STORE", "s3://my bucket/a", "FUSELINE_STORE cannot be used: no bucket can be called 'my bucket'"),
        ("FUSELINE_STORE", "gs://bucket/prefix", "FUSELINE_STORE cannot be used: expected a folder"),
        ("FUSELINE_S3_ENDPOINT_URL", "localhost:8333", "FUSELINE_S3_ENDPOINT_URL cannot be used"),
        ("FUSELINE_S3_ENDPOINT_URL", "http://me:my-secret@host", "credentials belong into AWS_ACCESS_KEY_ID"),
        ("FUSELINE_S3_ADDRESSING", "dns", "FUSELINE_S3_ADDRESSING cannot be used"),
        ("FUSELINE_CACHE_SIZE", "plenty", "FUSELINE_CACHE_SIZE cannot be used"),
        ("FUSELINE_CACHE_SIZE", "-1", "FUSELINE_CACHE_SIZE cannot be used"),
        ("FUSELINE_STOER", "x", "FUSELINE_STOER is not known; did you mean FUSELINE_STORE?"),
    ],
)
def test_nonsense_in_the_environment(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as error:
        Settings()
    assert message in str(error.value) and "\n" not in str(error.value) and "my-secret" not in str(error.value)

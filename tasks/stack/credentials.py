"""Passwords and keys of the stack: generated once, kept in a file that only the user can read."""

from __future__ import annotations

import base64
import json
import secrets

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from fusion_core.errors import FusionError
from tasks.stack.folder import StackFolder, write_private

USER = "fuseline"


class Credentials(BaseModel):
    """What the servers of a stack want to be shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    s3_access_key: SecretStr
    s3_secret_key: SecretStr
    prefect_password: SecretStr
    mlflow_password: SecretStr
    mlflow_session_key: SecretStr
    mlflow_webhook_key: SecretStr
    landing_secret: SecretStr


def load_or_make_credentials(folder: StackFolder) -> Credentials:
    """Return the stack's credentials, generated at its first start.

    Raises
    ------
    FusionError
        If the file is there and cannot be read as credentials.
    """
    if folder.credentials.exists():
        try:
            return Credentials.model_validate_json(folder.credentials.read_bytes())
        except (OSError, ValidationError) as error:
            # The message of a validation error would show what it read.
            raise FusionError(
                f"The stack's credentials in {folder.credentials} cannot be read; restore the file, or remove "
                f"{folder.root} with all its data to begin anew."
            ) from error
    made = {name: secrets.token_urlsafe(32) for name in Credentials.model_fields}
    # MLflow encrypts the secrets of its webhooks with a Fernet key: 32 bytes, padded.
    made["mlflow_webhook_key"] = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    made["s3_access_key"] = secrets.token_hex(10)
    write_private(folder.credentials, json.dumps(made, indent=1) + "\n")
    return Credentials.model_validate(made)

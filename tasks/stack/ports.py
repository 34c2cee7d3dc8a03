"""Which ports of loopback the stack listens on: the usual ones where they are free, and the same after a restart."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fusion_core.errors import FusionError
from fusion_core.ports import LOOPBACK, free_ports, is_free
from tasks.stack.folder import StackFolder, write_private

USUAL = {"prefect": 4200, "mlflow": 5000, "s3": 8333, "receiver": 4210}
# What the S3 server listens on besides; it would take fixed numbers for those it is not told.
S3_INNER = (
    *("s3.port.grpc", "master.port", "master.port.grpc", "filer.port", "filer.port.grpc"),
    *("volume.port", "volume.port.grpc", "admin.port", "admin.port.grpc"),
)
Port = Annotated[int, Field(ge=1, le=65535)]


class Ports(BaseModel):
    """Ports of one stack."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefect: Port
    mlflow: Port
    s3: Port
    receiver: Port
    s3_inner: dict[str, Port]

    @field_validator("s3_inner")
    @classmethod
    def _every_one(cls, ports: dict[str, int]) -> dict[str, int]:
        if set(ports) != set(S3_INNER):
            raise ValueError(f"expected {', '.join(S3_INNER)}")
        return ports

    @property
    def prefect_api(self) -> str:
        """Address of Prefect's API."""
        return f"http://{LOOPBACK}:{self.prefect}/api"

    @property
    def prefect_ui(self) -> str:
        """Address of Prefect's pages."""
        return f"http://{LOOPBACK}:{self.prefect}"

    @property
    def mlflow_url(self) -> str:
        """Address of MLflow."""
        return f"http://{LOOPBACK}:{self.mlflow}"

    @property
    def s3_url(self) -> str:
        """Address of the S3 server."""
        return f"http://{LOOPBACK}:{self.s3}"

    @property
    def receiver_url(self) -> str:
        """Address of the receiver of MLflow's webhooks."""
        return f"http://{LOOPBACK}:{self.receiver}"


def load_or_choose_ports(folder: StackFolder) -> Ports:
    """Return the stack's ports, chosen among the free ones at its first start.

    They are kept, because what MLflow and Prefect stored may name them.

    Raises
    ------
    FusionError
        If the file that keeps them cannot be read.
    """
    if folder.ports.exists():
        try:
            return Ports.model_validate_json(folder.ports.read_bytes())
        except (OSError, ValidationError) as error:
            raise FusionError(
                f"{folder.ports} cannot be read; remove it, and `fuseline up` chooses ports again."
            ) from error
    free = free_ports(len(USUAL) + len(S3_INNER))
    usual = {name: port if is_free(port) else free.pop() for name, port in USUAL.items()}
    chosen = Ports(**usual, s3_inner=dict(zip(S3_INNER, free, strict=False)))
    write_private(folder.ports, chosen.model_dump_json(indent=1) + "\n")
    return chosen

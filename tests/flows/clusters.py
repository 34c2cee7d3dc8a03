"""What the tests of fusions on a cluster share: a Prefect server to report to, and a run whose result is compared."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fusion_core.ports import free_ports
from tests.flows.test_servers import server

COMMAND = [sys.executable, "-c", "from flows.command_line import main; main()"]
PROJECT = Path(__file__).resolve().parents[2]


@contextmanager
def prefect_server_of_its_own(folder: Path) -> Iterator[str]:
    """A Prefect server, to which the tasks on the cluster report."""
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}/api"
    environment = {**os.environ, "PREFECT_HOME": str(folder / "prefect")}
    (folder / "prefect").mkdir()
    program = str(Path(sys.executable).parent / "prefect")
    command = [program, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with server(command, f"{url}/health", environment, folder / "prefect.log"):
        yield url


def run(recipe: Path, home: Path, **settings: str) -> Path:
    """Fuse with a home of its own and return the merged checkpoint's folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FUSELINE_", "PREFECT_"))}
    # Dask lets its workers have one thread each, and this process with them; sums depend on how many there are.
    environment = {**kept, "OMP_NUM_THREADS": "1", "FUSELINE_HOME": str(home), "PYTHONPATH": str(PROJECT), **settings}
    done = subprocess.run(
        [*COMMAND, "run", str(recipe)], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return Path(next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("model:")))


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()

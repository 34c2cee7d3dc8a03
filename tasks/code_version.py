"""Which code is running: its commit where it is a checkout, and a digest of its files in any case."""

from __future__ import annotations

import hashlib
import json
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

ROOT = Path(__file__).resolve().parents[1]
CODE = ("fusion_core", "tasks", "flows")
PACKAGES = (
    *("torch", "transformers", "tokenizers", "accelerate", "peft", "safetensors", "numpy", "pyarrow"),
    *("prefect", "mlflow", "boto3"),
)
GIT_SECONDS = 20
DIGEST_DIGITS = 32


class CodeVersion(BaseModel):
    """What computed something.

    Parameters
    ----------
    fuseline : str
        Version of the installed package.
    commit : str or None
        Of the checkout that runs, or that pip installed; None where neither is known.
    dirty : bool or None
        Whether the checkout differs from its commit; None without a checkout.
    files : str
        SHA-256 over the code's files: equal code has equal ones, with or without git.
    """

    model_config = ConfigDict(frozen=True)

    fuseline: str
    commit: str | None
    dirty: bool | None
    files: str

    def __str__(self) -> str:
        if self.commit is None:
            return f"{self.fuseline}, files {self.files[:12]}"
        return f"{self.fuseline}, commit {self.commit[:12]}{' with changes' if self.dirty else ''}"


@cache
def code_version() -> CodeVersion:
    """Find out which code runs; asks git where this is a checkout."""
    return CodeVersion(fuseline=_version("fuseline"), **read_commit(ROOT), files=digest_of_code(ROOT))


def package_versions() -> dict[str, str]:
    """Return the versions of the packages whose version can change a result."""
    return {name: _version(name) for name in PACKAGES}


def read_commit(root: Path) -> dict[str, str | bool | None]:
    """Return commit and whether there are changes, as far as git or pip know them."""
    # Installed into somebody else's project, the commit around it would be theirs: the file must be git's own.
    if _git(root, "ls-files", "--error-unmatch", "tasks/code_version.py") is not None:
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--", *CODE)
        if commit:
            return {"commit": commit.strip(), "dirty": None if changes is None else bool(changes.strip())}
    return {"commit": _installed_commit(), "dirty": None}


def digest_of_code(root: Path) -> str:
    """Return a SHA-256 over names and contents of the packages' Python files."""
    digest = hashlib.sha256()
    for path in sorted(path for name in CODE for path in (root / name).rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:DIGEST_DIGITS]


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _installed_commit() -> str | None:
    """Return the commit that pip recorded for an installation from a repository (PEP 610)."""
    try:
        text = distribution("fuseline").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    commit = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    return commit if isinstance(commit, str) else None


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "from a checkout" if package == "fuseline" else "not installed"

"""Asks an advisory service about every pinned package, and says plainly what it could not ask.

Run as ``python -m deployments.audit`` (``make audit``). pip-audit alone calls a package that its service does not know
"skipped" and ends well; here only what was asked about passes. Exceptions stand in pyproject.toml, each with its date:

    [[tool.fuseline.audit]]
    id = "GHSA-...."            # of an advisory, or the name of a package that the service does not know
    reason = "why it does not concern us"
    date = 2026-11-20
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from datetime import date
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
CONSTRAINTS = REPOSITORY / "constraints.txt"
AUDIT_SECONDS = 600


def read_exceptions(pyproject: Path) -> dict[str, str]:
    """Return reasons by the id of an advisory or the name of a package.

    Raises
    ------
    SystemExit
        One has no id, reason or date.
    """
    tool = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("tool", {})
    found = {}
    for entry in tool.get("fuseline", {}).get("audit", []):
        if not (entry.get("id") and entry.get("reason") and isinstance(entry.get("date"), date)):
            raise SystemExit(f"{pyproject}: an exception in tool.fuseline.audit wants id, reason, date, not {entry}.")
        found[entry["id"]] = f"{entry['reason']} ({entry['date']})"
    return found


def judge(report: dict[str, Any], exceptions: dict[str, str]) -> list[str]:
    """Return what is wrong with the packages of pip-audit's report, empty when each was asked about and is well."""
    unknown, wrong, used = [], [], set()
    packages = report["dependencies"]
    for package in packages:
        name = package["name"]
        if "skip_reason" in package:
            if name in exceptions:
                used.add(name)
            else:
                unknown.append(name)
        for advisory in package.get("vulns", ()):
            names = {advisory["id"], *advisory.get("aliases", ())}
            if names & set(exceptions):
                used |= names & set(exceptions)
                continue
            fixed = ", ".join(advisory.get("fix_versions", ())) or "no version yet"
            wrong.append(f"{name} {package['version']}: {advisory['id']}, mended in {fixed}")
    if unknown and len(unknown) == len(packages):
        wrong.append(f"The advisory service knows none of the {len(packages)} packages: nothing was audited.")
    elif unknown:
        wrong.append(f"The advisory service does not know {', '.join(unknown)}: these were not audited.")
    wrong += [f"The exception {name} is needed by nothing any more." for name in exceptions if name not in used]
    return wrong


def ask(program: Path) -> dict[str, Any]:
    """Run pip-audit on the pinned versions and return its report.

    Raises
    ------
    SystemExit
        It is not installed, or its service cannot be reached.
    """
    command = [str(program), "-r", str(CONSTRAINTS), "--no-deps", "--disable-pip", "--format", "json"]
    command += ["--progress-spinner", "off"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=AUDIT_SECONDS, check=False)
        report: dict[str, Any] = json.loads(done.stdout)
        return report
    except FileNotFoundError:
        raise SystemExit(f"{program} is not installed; make audit installs it.") from None
    except (ValueError, subprocess.TimeoutExpired):
        raise SystemExit(
            "The advisory service could not be reached, so nothing was audited; run this where PyPI's API answers."
        ) from None


def main() -> None:
    """Print what is wrong and end with status 1, or say how many packages are well."""
    exceptions = read_exceptions(REPOSITORY / "pyproject.toml")
    report = ask(Path(sys.executable).with_name("pip-audit"))
    for name, reason in exceptions.items():
        print(f"exception {name}: {reason}")
    wrong = judge(report, exceptions)
    if wrong:
        raise SystemExit("\n".join(wrong))
    print(f"{len(report['dependencies'])} packages were audited; none has a known fault.")


if __name__ == "__main__":
    main()

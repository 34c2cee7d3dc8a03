"""An audit passes only what was asked about; exceptions are dated and used."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.audit import ask, judge, read_exceptions

WELL = {"name": "well", "version": "1", "vulns": []}
UNKNOWN = {"name": "unknown", "skip_reason": "not found on PyPI"}
FAULTY = {"name": "faulty", "version": "2", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["3"]}]}


def test_what_is_well_passes() -> None:
    assert judge({"dependencies": [WELL]}, {}) == []


def test_a_fault_is_named_with_its_remedy() -> None:
    assert judge({"dependencies": [WELL, FAULTY]}, {}) == ["faulty 2: PYSEC-1, mended in 3"]


def test_what_nobody_knows_does_not_pass() -> None:
    assert judge({"dependencies": [UNKNOWN, UNKNOWN]}, {}) == [
        "The advisory service knows none of the 2 packages: nothing was audited."
    ]
    assert "does not know unknown" in judge({"dependencies": [WELL, UNKNOWN]}, {})[0]


@pytest.mark.parametrize("name", ["PYSEC-1", "CVE-1"])
def test_exceptions_hold_for_an_advisory_by_any_of_its_names(name: str) -> None:
    report = {"dependencies": [FAULTY, UNKNOWN]}
    assert judge(report, {name: "x", "unknown": "x"}) == []
    assert judge({"dependencies": [WELL]}, {name: "x"}) == [f"The exception {name} is needed by nothing any more."]


def test_exceptions_want_reason_and_date(tmp_path: Path) -> None:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text('[[tool.fuseline.audit]]\nid = "CVE-1"\nreason = "not called"\ndate = 2026-11-20\n')
    assert read_exceptions(pyproject) == {"CVE-1": "not called (2026-11-20)"}
    pyproject.write_text('[[tool.fuseline.audit]]\nid = "CVE-1"\nreason = "not called"\n')
    with pytest.raises(SystemExit, match="wants id, reason, date"):
        read_exceptions(pyproject)


@pytest.mark.parametrize("says", ["echo no connection >&2; exit 1", "printf half"])
def test_a_service_out_of_reach_is_said_and_is_no_success(says: str, tmp_path: Path) -> None:
    program = tmp_path / "pip-audit"
    program.write_text(f"#!/bin/sh\n{says}\n")
    program.chmod(0o755)
    with pytest.raises(SystemExit, match="could not be reached, so nothing was audited"):
        ask(program)
    with pytest.raises(SystemExit, match="not installed"):
        ask(tmp_path / "absent")

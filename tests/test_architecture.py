"""Imports run one way, and what must not be loaded is not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "fusion_core": {"prefect", "mlflow", "boto3", "botocore", "tasks", "flows", "deployments"},
    "tasks": {"flows", "deployments"},
    "flows": {"torch", "boto3", "deployments"},
}
UNSAFE_CALLS = {("torch", "load"), ("pickle", "load"), ("pickle", "loads"), ("yaml", "load")}
UNSAFE_NAMES = {"eval", "exec"}
# Runs what a model wrote, inside a process that can reach nothing; that is what it is for.
SANDBOX = REPOSITORY / "fusion_core" / "evaluation" / "sandbox_child.py"


def sources(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    roots = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            roots.add(node.module.split(".")[0])
    return roots


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_import_only_what_lies_below_them(package: str) -> None:
    wrong = {str(path): sorted(imported(path) & FORBIDDEN[package]) for path in sources(package)}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_nothing_loads_pickles_or_evaluates_text() -> None:
    wrong = []
    for path in [path for package in (*FORBIDDEN, "deployments", "benchmarks") for path in sources(package)]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            function = node.func
            if isinstance(function, ast.Name) and function.id in UNSAFE_NAMES and path != SANDBOX:
                wrong.append(f"{path}:{node.lineno} {function.id}")
            owner = getattr(getattr(function, "value", None), "id", None)
            if isinstance(function, ast.Attribute) and (owner, function.attr) in UNSAFE_CALLS:
                wrong.append(f"{path}:{node.lineno} {owner}.{function.attr}")
            shell = [word for word in node.keywords if word.arg == "shell" and ast.literal_eval(word.value) is True]
            wrong += [f"{path}:{node.lineno} shell=True" for _ in shell]
    assert wrong == []


def test_constraints_pin_every_dependency_of_the_project() -> None:
    import re
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines if "==" in line}
    # vLLM pins its own torch and transformers, so it lives in an environment of its own.
    extras = [wanted for name, wanted in project["optional-dependencies"].items() if name != "vllm"]
    wanted = [*project["dependencies"], *(requirement for extra in extras for requirement in extra)]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[<>=\[ ]", requirement)[0]).lower() for requirement in wanted}
    assert names - pinned == set()
    assert all(re.search(r">=", requirement) for requirement in wanted)

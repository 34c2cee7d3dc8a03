"""Imports run one way, and every package that is imported is asked for."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "fusion_core": {"prefect", "mlflow", "boto3", "botocore", "tasks", "flows", "deployments", "experiments"},
    "tasks": {"flows", "deployments", "experiments"},
    "flows": {"torch", "boto3", "deployments", "experiments"},
    "deployments": {"experiments"},
}


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


def requirement_name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=\[ ]", requirement)[0]).lower()


def test_constraints_pin_every_dependency_of_the_project() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines if "==" in line}
    # vLLM pins its own torch and transformers, so it lives in an environment of its own.
    extras = [wanted for name, wanted in project["optional-dependencies"].items() if name != "vllm"]
    wanted = [*project["dependencies"], *(requirement for extra in extras for requirement in extra)]
    names = {requirement_name(requirement) for requirement in wanted}
    assert names - pinned == set()
    assert all(re.search(r">=", requirement) for requirement in wanted)


# Import names that are not those of their packages.
PACKAGE_OF = {"yaml": "pyyaml", "ruamel": "ruamel-yaml"}
# What comes with another package, in the very version that this one wants, and is a part of its interface.
COMES_WITH = {
    "botocore": "boto3",  # its errors and its configuration
    "llvmlite": "numba",  # the intermediate code of a compiled kernel
    "markupsafe": "jinja2",  # text that a template is not to escape
    "s3transfer": "boto3",  # its error when a transfer's repetitions are used up
    "urllib3": "boto3",  # its errors, which botocore lets through
}
# Asked for, and imported by no line of ours.
NEEDED_BY_OTHERS = {
    "gguf": "transformers reads the weights of the demo's body with it",
}


def test_every_import_is_asked_for_and_every_request_is_used() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {requirement_name(one) for one in project["dependencies"]}
    extras = {
        name: {requirement_name(one) for one in wanted} for name, wanted in project["optional-dependencies"].items()
    }
    optional = set().union(*(extras[name] for name in ("lm-eval", "dask", "ray", "vllm")))
    own = {"fusion_core", "tasks", "flows", "deployments"}
    used = set()
    for package in own:
        for path in sources(package):
            used |= imported(path) - own - set(sys.stdlib_module_names)
    packages = {PACKAGE_OF.get(name, name.replace("_", "-").lower()) for name in used}
    assert {name for name in packages if COMES_WITH.get(name, name) not in asked | optional} == set()
    assert asked - packages == set(NEEDED_BY_OTHERS)
    assert set(COMES_WITH) <= packages, "an exception that nothing needs any more"

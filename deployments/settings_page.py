"""The documentation's page of every setting: of a recipe, and of the place.

Run as ``python -m deployments.settings_page``. It writes docs/settings.md from the config models and from `Settings`,
so that no table has to be kept by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ByteSize
from pydantic.fields import FieldInfo

from fusion_core.config import FusionConfig
from tasks.settings import PREFIX, Settings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
TOP = "recipe"
HEAD = """\
# Settings

This page is written from the code by `python -m deployments.settings_page`; a test holds it to that.
A setting that is misspelt, or would do nothing where it stands, is refused with its place in the recipe.

## A recipe

A recipe is a YAML file; paths in it are relative to its own folder. Without a default a setting is required.
"""
PLACE = """
## The place

What belongs to a machine and not to an experiment comes from the environment. With nothing set everything is embedded:
a folder as store, MLflow on SQLite, Prefect's ephemeral server. Credentials are no settings: S3 reads
`AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, MLflow `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`,
Prefect `PREFECT_API_AUTH_STRING`, the model hub `HF_TOKEN`. With an S3 server other than Amazon's, MLflow wants its
address in `MLFLOW_S3_ENDPOINT_URL` too. A variable that begins with `FUSELINE_` and is not in this table is refused.

| variable | default | meaning |
|---|---|---|
"""


def settings_page() -> str:
    """Return the page as Markdown: a table for each section of a recipe, then the variables of the environment."""
    schema = FusionConfig.model_json_schema()
    parts = [HEAD]
    waiting: list[tuple[str, dict[str, Any]]] = [(TOP, schema)]
    shown: dict[str, str] = {}
    while waiting:
        place, section = waiting.pop(0)
        if section["title"] in shown:
            parts.append(f"### `{place}`\n\nEach has the settings of `{shown[section['title']]}`.\n")
            continue
        shown[section["title"]] = place
        parts.append(_section(place, section))
        inner = []
        for name, field in section["properties"].items():
            found = _section_of(field, schema["$defs"])
            if found is not None:
                each = "[]" if _is_list(field) else ""
                inner.append((name + each if place == TOP else f"{place}.{name}{each}", found))
        # A section's own parts follow it, before the next section of the recipe.
        waiting = inner + waiting
    variables = "".join(_variable(name, field) for name, field in Settings.model_fields.items())
    return "\n".join(parts) + PLACE + variables


def _section(place: str, section: dict[str, Any]) -> str:
    title = "The whole" if place == TOP else f"`{place}`"
    required = section.get("required", ())
    lines = [f"### {title}", "", section["description"].strip().splitlines()[0], ""]
    lines += ["| setting | value | default | meaning |", "|---|---|---|---|"]
    for name, field in section["properties"].items():
        default = "" if name in required else _default(field)
        meaning = field.get("description") or "See its own table below."
        lines.append(f"| `{name}` | {_kind(field)} | {default} | {_cell(meaning)} |")
    return "\n".join(lines) + "\n"


def _kind(field: dict[str, Any]) -> str:
    """Say in words what a value may be."""
    if "anyOf" in field:
        return " or ".join(_kind(one) for one in field["anyOf"] if one.get("type") != "null")
    if "$ref" in field:
        return "section"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        items = field.get("items") or (field.get("prefixItems") or [{}])[0]
        return f"list of {_kind(items)}"
    if field.get("format") in ("path", "file-path", "directory-path"):
        return "path"
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    # The largest seed is no limit that a reader meets.
    bounds = [f"{sign} {field[name]:g}" for name, sign in limits.items() if abs(field.get(name, 2**63)) < 2**63]
    return " ".join([words.get(field.get("type", ""), "mapping"), *([f"({', '.join(bounds)})"] if bounds else [])])


def _default(field: dict[str, Any]) -> str:
    value = field.get("default")
    if value is None:
        return "none"
    if isinstance(value, (dict, list)) and not value:
        return "empty"
    if isinstance(value, dict):
        return "its own defaults"
    return _cell(f"`{value if isinstance(value, str) and value else json.dumps(value)}`")


def _section_of(field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any] | None:
    """Return the schema of the section that a field holds, alone, in a list, or beside null."""
    if "$ref" in field:
        section: dict[str, Any] = definitions[field["$ref"].rpartition("/")[2]]
        return section if "properties" in section else None
    inside = [field["items"]] if isinstance(field.get("items"), dict) else field.get("anyOf", [])
    return next((found for one in inside if (found := _section_of(one, definitions)) is not None), None)


def _is_list(field: dict[str, Any]) -> bool:
    return field.get("type") == "array" or any(one.get("type") == "array" for one in field.get("anyOf", ()))


def _variable(name: str, field: FieldInfo) -> str:
    alias = field.validation_alias
    variable = PREFIX + name.upper() if alias is None else str(alias.choices[-1])  # type: ignore[union-attr]
    # Other defaults depend on the place, and their description says how.
    relative = isinstance(field.default, Path) and not field.default.is_absolute()
    plain = relative or isinstance(field.default, (str, int, float))
    default = f"`{field.default}`" if plain and field.default else ""
    if default and isinstance(field.default, ByteSize):
        default = f"`{field.default.human_readable()}`"
    return f"| `{variable}` | {default} | {_cell(field.description or '')} |\n"


def _cell(text: str) -> str:
    """Return text that keeps a table's columns apart."""
    parts = text.replace("|", "\\|").replace("\n", " ").split("`")
    # Every second part is code, in which an entity would be shown as it is written.
    return "`".join(part if number % 2 else part.replace("<", "&lt;") for number, part in enumerate(parts))


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")

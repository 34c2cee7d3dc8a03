"""Reading a recipe from YAML; whatever is wrong with it is one plain sentence."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from fusion_core.config import FusionConfig
from fusion_core.errors import ConfigError, first_line

PATH_FIELDS = ("path", "chat_template", "few_shot_path", "include_path")
# YAML's aliases let a few lines stand for billions of settings, or for one that contains itself.
LARGEST_NUMBER_OF_SETTINGS = 100_000
STRUCTURES = {"model_type": "a mapping of settings", "tuple_type": "a list"}


def load_recipe(path: Path) -> FusionConfig:
    """Read a recipe; relative paths in it are relative to the recipe's own folder.

    Raises
    ------
    ConfigError
        If the file is missing, is no YAML mapping, or a field is unknown, missing or wrong; names file and field.
    """
    return parse_recipe(_read_text(path), path)


def parse_recipe(text: str, path: Path) -> FusionConfig:
    """Turn a recipe's text into a checked configuration; ``path`` is where it lies, for messages and relative paths."""
    document = read_mapping(text, path)
    folder = path.expanduser().resolve().parent
    _resolve_paths(document, folder)
    try:
        return FusionConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"Recipe {path}: {explain(error)}") from error


def add_source_to_recipe(
    path: Path,
    name: str,
    *,
    model: str | None,
    hub: str | None,
    revision: str | None,
    check: Callable[[FusionConfig], object],
) -> FusionConfig:
    """Append a source to a recipe file, comments and order kept, once the changed recipe has passed ``check``.

    Parameters
    ----------
    path : Path
        The recipe.
    name : str
        What the source is called.
    model : str or None
        Its checkpoint folder.
    hub, revision : str or None
        Its hub repository, instead of a folder.
    check : callable
        Gets the changed recipe before the file is written; raises what is wrong with it.

    Raises
    ------
    ConfigError
        If the recipe, or what it would become, cannot be used; the file is then as it was.
    """
    text = _read_text(path)
    load_recipe(path)
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096
    document = editor.load(text)
    given = {"name": name, "path": model, "hub": hub, "revision": revision}
    document["sources"].append({key: value for key, value in given.items() if value is not None})
    changed = io.StringIO()
    editor.dump(document, changed)
    recipe = parse_recipe(changed.getvalue(), path)
    check(recipe)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(changed.getvalue(), encoding="utf-8")
    temporary.replace(path)
    return recipe


def recipe_yaml(config: FusionConfig, *, with_defaults: bool = False) -> str:
    """Return a recipe as YAML with what was given, or with every setting, for another version has other defaults."""
    text = io.StringIO()
    settings = config.model_dump(mode="json", exclude_unset=not with_defaults)
    YAML(typ="safe", pure=True).dump(_without_empty(settings), text)
    return text.getvalue()


def read_mapping(text: str, path: Path) -> dict[str, Any]:
    """Parse YAML safely into a mapping, with the line named where it is broken."""
    try:
        document = YAML(typ="safe", pure=True).load(io.StringIO(text))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "the file"
        problem = getattr(error, "problem", None) or first_line(error)
        raise ConfigError(f"Recipe {path}: {where} is not valid YAML ({problem}); correct it.") from error
    except TypeError as error:
        raise ConfigError(f"Recipe {path}: a list or a mapping stands where a setting's name is expected.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"Recipe {path}: it cannot be read as YAML ({error}); correct it.") from error
    if not isinstance(document, dict):
        found = "nothing" if document is None else type(document).__name__
        raise ConfigError(f"Recipe {path}: expected a mapping of settings such as `name: ...`, found {found}.")
    _refuse_endless(document, path)
    return document


def explain(error: ValidationError) -> str:
    """Say the first fault of a configuration in one sentence, and how many more there are."""
    faults = error.errors(include_url=False, include_context=True)
    # An unknown key is often the cause of the missing one beside it, so it is named first.
    faults.sort(key=lambda fault: fault["type"] != "extra_forbidden")
    first = faults[0]
    where = ".".join(str(part) for part in first["loc"]) or "the recipe"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        sentence = f"`{where}` is not a known setting; remove it or correct its name"
    elif first["type"] == "missing":
        sentence = f"`{where}` is missing; add it"
    elif first["type"] == "value_error":
        sentence = f"`{where}`: {message}" if first["loc"] else message
    elif first["type"] in STRUCTURES:
        sentence = f"`{where}`: {STRUCTURES[first['type']]} is expected, found {_shorten(first['input'])}"
    else:
        sentence = f"`{where}`: {message[0].lower()}{message[1:]}, found {_shorten(first['input'])}"
    more = f" ({len(faults) - 1} more after that)" if len(faults) > 1 else ""
    return f"{sentence}{more}."


def _read_text(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"Recipe {path} does not exist; give the path of a YAML recipe.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"Recipe {path} is not UTF-8 at byte {error.start}; give a YAML recipe, or convert it to UTF-8."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: an unknown ~user
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ConfigError(f"Recipe {path} cannot be read ({reason}); give the path of a YAML recipe.") from error


def _refuse_endless(document: dict[str, Any], path: Path) -> None:
    nodes: list[Any] = [document]
    count = 0
    while nodes:
        node = nodes.pop()
        count += 1
        if count > LARGEST_NUMBER_OF_SETTINGS:
            raise ConfigError(
                f"Recipe {path}: its aliases (*name) unfold to more than {LARGEST_NUMBER_OF_SETTINGS:,} settings; "
                "write them out, or remove them."
            )
        nodes += node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple, set)) else ()


def _resolve_paths(node: Any, folder: Path) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in PATH_FIELDS and isinstance(value, str):
                node[key] = _absolute(key, value, folder)
            else:
                _resolve_paths(value, folder)
    elif isinstance(node, list):
        for item in node:
            _resolve_paths(item, folder)


def _absolute(field: str, value: str, folder: Path) -> str:
    try:
        return str((folder / Path(value).expanduser()).resolve())
    except (OSError, RuntimeError, ValueError) as error:  # an unknown ~user, links in a circle, a NUL character
        raise ConfigError(f"The recipe's `{field}` {value!r} is no path ({first_line(error)}); correct it.") from error


def _without_empty(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_empty(value) for key, value in node.items() if value is not None}
    return [_without_empty(item) for item in node] if isinstance(node, list) else node


def _shorten(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python writes no integer of thousands of digits
        return f"a value of type {type(value).__name__} that is too large to show"
    return text if len(text) <= 60 else f"{text[:57]}..."

"""Reads mergekit's YAML configurations, for the methods that both have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fusion_core.errors import MergeError, first_line
from fusion_core.merge_spec import MergeSpec

METHODS: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear"},
    "task_arithmetic": {"method": "task_arithmetic"},
    "slerp": {"method": "slerp"},
    "ties": {"method": "ties"},
    "dare_linear": {"method": "dare", "dare_variant": "linear"},
    "dare_ties": {"method": "dare", "dare_variant": "ties"},
    "sce": {"method": "sce"},
}

# How our settings are called there. `weight` and `density` stand with the models or over all of them.
SHARED_SETTINGS = {"lambda": "scaling_coefficient", "select_topk": "select_top_k", "t": "t"}

# Settings that change how mergekit works, not what comes out.
HARMLESS_SETTINGS = ("int8_mask",)

# Whether mergekit divides by the sum of the weights when `normalize` is not given.
NORMALIZES = {"linear": True, "task_arithmetic": False, "ties": True, "dare_linear": False, "dare_ties": False}

KNOWN_KEYS = {"merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype", "tokenizer_source"}


def read_mergekit_config(path: Path) -> tuple[Path, list[Path], MergeSpec]:
    """Translate a mergekit configuration.

    Parameters
    ----------
    path : Path
        YAML file. Model paths in it are taken as they stand, from the current folder, as mergekit takes them.

    Returns
    -------
    pivot : Path
        mergekit's ``base_model``; for ``linear``, which needs none, the first model.
    targets : list of Path
        The other models; for ``linear`` and ``slerp`` all that are merged.
    spec : MergeSpec

    Raises
    ------
    MergeError
        If the file cannot be read, or asks for something that would come out differently here: another method, layer
        slices, gradients or filters of parameters, another tokenizer.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader)):
            # A few lines of them stand for billions of settings, or for one that contains itself.
            raise ValueError("it has aliases (*name); write out what they stand for")
        config = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise MergeError(f"The mergekit configuration {path} cannot be read: {problem}.") from error
    if not isinstance(config, dict):
        raise MergeError(f"{path} is no mergekit configuration: it has no keys.")
    try:
        return _translate(config)
    except MergeError as error:
        raise MergeError(f"{path}: {error}") from error
    except ValidationError as error:
        problems = "; ".join(str(problem["msg"]).removeprefix("Value error, ") for problem in error.errors())
        raise MergeError(f"{path}: {problems}.") from error
    except (AttributeError, IndexError, KeyError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise MergeError(
            f"{path} is no mergekit configuration: a list, a mapping or a name stands where another is expected "
            f"({first_line(error)}); correct it."
        ) from error


def _translate(config: dict[str, Any]) -> tuple[Path, list[Path], MergeSpec]:
    name = config.get("merge_method")
    if name not in METHODS:
        raise MergeError(f"merge_method {str(name)[:60]!r} is not known here; known are {', '.join(METHODS)}.")
    unknown = sorted(str(key)[:60] for key in config.keys() - KNOWN_KEYS)
    if unknown:
        raise MergeError(f"{', '.join(unknown[:8])} cannot be translated; remove it or merge with mergekit.")
    if config.get("tokenizer_source") not in (None, "base"):
        raise MergeError("tokenizer_source: the result has the pivot's tokenizer; use `base` or remove it.")
    models = _models(config)
    base = config.get("base_model")
    if base is None and name != "linear":
        raise MergeError(f"{name} needs a base_model.")
    pivot = _path(base) if base is not None else models[0][0]
    if name == "slerp":
        targets = [(pivot, {}), *[model for model in models if model[0] != pivot]]
    elif name == "linear":
        targets = models
    else:
        targets = [model for model in models if model[0] != pivot]
    if not targets:
        raise MergeError("there is no model to merge besides the base_model.")
    shared = config.get("parameters") or {}
    _check_settings(name, shared, [settings for _, settings in targets])
    settings = METHODS[name] | _settings(name, shared, [settings for _, settings in targets])
    dtype = config.get("out_dtype") or config.get("dtype")
    return pivot, [target for target, _ in targets], MergeSpec.model_validate({**settings, "dtype": dtype})


def _models(config: dict[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
    entries = config.get("models")
    if "slices" in config:
        slices = config["slices"]
        if "models" in config or not isinstance(slices, list) or len(slices) != 1:
            raise MergeError("slices: only one slice over all layers can be translated; models cannot be restacked.")
        if len({tuple(source.get("layer_range", ())) for source in slices[0]["sources"]}) != 1:
            raise MergeError("slices: every source must have the same layer_range, all layers of the models.")
        entries = slices[0]["sources"]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "model" in entry for entry in entries):
        raise MergeError("`models` must be a list with a `model` in each entry.")
    return [(_path(entry["model"]), entry.get("parameters") or {}) for entry in entries]


def _path(model: Any) -> Path:
    if not isinstance(model, str) or "+" in model or "@" in model:
        raise MergeError(
            f"model {str(model)[:200]!r}: only a local checkpoint folder can be merged; save adapters into it first."
        )
    return Path(model).expanduser()


def _check_settings(name: str, shared: dict[str, Any], settings: list[dict[str, Any]]) -> None:
    per_model = {"weight", "density"}
    over_all = per_model | {"normalize", "rescale", *SHARED_SETTINGS, *HARMLESS_SETTINGS}
    for section, known in ((shared, over_all), *((section, per_model) for section in settings)):
        for key, value in section.items():
            if key not in known:
                raise MergeError(
                    f"the parameter {key} has no place there with {name}; remove it, or move it to the `parameters` "
                    "of all models."
                )
            if not isinstance(value, int | float):
                raise MergeError(f"{key}: gradients and filters over layers cannot be translated; give one number.")
    if shared.get("rescale") and not name.startswith("dare"):
        raise MergeError("rescale: trimmed deltas are not rescaled here; remove it or merge with mergekit.")
    if shared.get("rescale") is False and name.startswith("dare"):
        raise MergeError("rescale: DARE always rescales here; remove it or merge with mergekit.")


def _settings(name: str, shared: dict[str, Any], settings: list[dict[str, Any]]) -> dict[str, Any]:
    translated = {ours: shared[theirs] for theirs, ours in SHARED_SETTINGS.items() if theirs in shared}
    weights = [section.get("weight", shared.get("weight")) for section in settings]
    if any(weight is not None for weight in weights):
        if None in weights:
            raise MergeError("weight: give it for every model that is merged, or for none.")
        translated["weights"] = tuple(weights)
    elif name not in ("slerp", "sce"):
        raise MergeError(f"{name} needs a weight for every model that is merged.")
    densities = tuple(section.get("density", shared.get("density", 1.0)) for section in settings)
    if set(densities) != {1.0}:
        translated["density"] = densities
    if name in NORMALIZES:
        translated["normalize"] = bool(shared.get("normalize", NORMALIZES[name]))
    return translated

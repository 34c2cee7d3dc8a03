"""Recipes, sweeps and mergekit's configurations: whatever stands in them, one sentence or a right configuration."""

from __future__ import annotations

import copy
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusion_core.config import FusionConfig
from fusion_core.merging.mergekit import read_mergekit_config
from fusion_core.recipes import parse_recipe, read_mapping, recipe_yaml
from fusion_core.sweeps import LARGEST_NUMBER_OF_CELLS, expand, load_sweep
from tasks.settings import Settings
from tests.fuzz.fuzzing import (
    counts,
    fuzz,
    fuzz_values,
    json_values,
    mutated_bytes,
    mutated_value,
    nasty,
    nasty_text,
)

RECIPES = sorted((Path(__file__).resolve().parents[2] / "deployments" / "recipes").glob("*.yaml"))
DOCUMENTS = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in RECIPES]
SWEEP = {
    "name": "lambda",
    "vary": {"training.lm_weight": [0.5, 0.9], "training.epochs": [1, 2, 3]},
    "variants": [{"label": "other", "set": {"fusion.function": "avgce", "merge.method": "linear"}}],
    "seeds": [0, 1],
}
MERGEKIT = {
    "merge_method": "ties",
    "base_model": "models/pivot",
    "models": [
        {"model": "models/a", "parameters": {"weight": 0.5, "density": 0.2}},
        {"model": "models/b", "parameters": {"weight": 0.5}},
    ],
    "parameters": {"normalize": True, "int8_mask": True, "lambda": 1.0},
    "dtype": "bfloat16",
}
SETTINGS = {
    "extraction": ("top_k", "batch_tokens", "seed", "processes", "placement", "truncation"),
    "training": ("epochs", "batch_dialogues", "batch_tokens", "learning_rate", "seed", "lora", "adam_betas"),
    "dialogues": ("files", "max_length_tokens", "held_out_share", "held_out_limit", "shard_dialogues"),
    "merge": ("method", "weights", "density", "max_shard_size", "seed", "t", "dtype", "device"),
    "evaluation": ("bootstrap_resamples", "batch_tokens", "exact_match", "mt_bench", "lm_eval", "chat_sanity"),
    "promotion": ("must_beat", "required", "approval_timeout_hours"),
    "refusion": ("look_in", "store_folder", "largest_gap"),
    "registry": ("model_name", "experiment"),
}


def text_of(rng: random.Random, document: Any) -> str:
    """Write a document as YAML, or as JSON, which YAML takes too, sometimes with broken bytes."""
    try:
        text = yaml.safe_dump(document, allow_unicode=True) if rng.random() < 0.3 else json.dumps(document)
    except (RecursionError, yaml.YAMLError):
        text = "[" * rng.choice((300, 300, 300, 300, 2000))
    if rng.random() < 0.9:
        # Python reads a hundred thousand characters of YAML for half a second: one such text in ten is enough.
        text = text.replace("x" * 100_000, "x" * 2_000)
    if rng.random() < 0.2:
        text = mutated_bytes(rng, text.encode("utf-8", "replace")[:20_000]).decode("utf-8", "replace")
    if rng.random() < 0.05:
        text += f"\nmany: 0x{'f' * 6000}\nday: 2020-01-01\nset: !!set {{a, b}}\nraw: !!binary aGVsbG8=\n"
    return text


def make_recipe(rng: random.Random) -> str:
    document = copy.deepcopy(rng.choice(DOCUMENTS))
    for _ in range(rng.randrange(3)):
        section = rng.choice(list(SETTINGS))
        place = document.setdefault(section, {})
        if isinstance(place, dict):
            place[rng.choice(SETTINGS[section])] = nasty(rng)
    return text_of(rng, mutated_value(rng, document))


def numbers_in(value: Any) -> list[int]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in numbers_in(item)]
    return [value] if isinstance(value, int) else []


@counts
def test_recipes(count: int, tmp_path: Path) -> None:
    def read(text: str) -> None:
        config = parse_recipe(text, tmp_path / "recipe.yaml")
        # What was taken is written and read again as the same, and fits the machine's numbers.
        plain = config.model_dump(mode="json")
        assert FusionConfig.model_validate(plain) == config
        for with_defaults in (False, True):
            text = recipe_yaml(config, with_defaults=with_defaults)
            assert parse_recipe(text, tmp_path / "recipe.yaml") == config
        assert max(numbers_in(plain)) < 2**63

    fuzz(count, make_recipe, read, tmp_path)


@counts
def test_any_text_as_yaml(count: int, tmp_path: Path) -> None:
    from hypothesis import strategies as st

    pieces = st.sampled_from(
        ["a", ":", " ", "\n", "- ", "[", "]", "{", "}", "&x", "*x", "!!", "? ", "|", ">", "%", "'"]
    )
    text = st.lists(pieces | st.text(max_size=3), max_size=30).map("".join)
    fuzz_values(count, text, lambda one: read_mapping(one, tmp_path / "recipe.yaml"), tmp_path)


@counts
def test_sweeps(count: int, tmp_path: Path) -> None:
    recipe = parse_recipe(RECIPES[0].read_text(encoding="utf-8"), RECIPES[0])
    path = tmp_path / "sweep.yaml"

    def make(rng: random.Random) -> str:
        document = mutated_value(rng, SWEEP)
        if rng.random() < 0.05 and isinstance(document, dict):
            document["vary"] = {f"training.{number}": list(range(50)) for number in range(40)}
        return text_of(rng, document)

    def read(text: str) -> None:
        path.write_text(text, encoding="utf-8", errors="replace")
        cells = expand(load_sweep(path), recipe)
        assert 1 <= len(cells) <= LARGEST_NUMBER_OF_CELLS
        assert all(isinstance(cell.config, FusionConfig) for cell in cells)

    fuzz(count, make, read, tmp_path)


@counts
def test_mergekit_configurations(count: int, tmp_path: Path) -> None:
    path = tmp_path / "mergekit.yaml"

    def read(text: str) -> None:
        path.write_text(text, encoding="utf-8", errors="replace")
        pivot, targets, spec = read_mergekit_config(path)
        assert isinstance(pivot, Path) and targets
        assert spec.max_shard_bytes > 0

    fuzz(count, lambda rng: text_of(rng, mutated_value(rng, MERGEKIT)), read, tmp_path)


def test_aliases_in_mergekits_file_are_not_unfolded(tmp_path: Path) -> None:
    from fusion_core.errors import MergeError

    lists = "\n".join(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 40))
    path = tmp_path / "bomb.yaml"
    path.write_text(f"a0: &a0 [x]\n{lists}\nmerge_method: *a39\n", encoding="utf-8")
    with pytest.raises(MergeError, match="aliases"):
        read_mergekit_config(path)


VARIABLES = {
    "FUSELINE_HOME": "home",
    "FUSELINE_STORE": "s3://bucket/prefix",
    "FUSELINE_S3_ENDPOINT_URL": "http://127.0.0.1:8333",
    "FUSELINE_CACHE_SIZE": "10GiB",
    "FUSELINE_TASK_GPUS": "0.5",
    "FUSELINE_TASK_WORKERS": "2",
    "FUSELINE_TASK_RUNNER": "threads",
    "FUSELINE_PRICE_PER_HOUR": "2.5",
}


@counts
def test_variables_of_the_place(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def make(rng: random.Random) -> dict[str, str]:
        changed = {name: value for name, value in VARIABLES.items() if rng.random() < 0.8}
        for name in rng.sample(list(VARIABLES), rng.choice((0, 1, 1, 2))):
            value = nasty_text(rng) + rng.choice(("", "", "GiB", "/x", "://x"))
            changed[name] = value.replace("\0", "").encode("utf-8", "replace").decode()[:20_000]
        return changed

    def read(variables: dict[str, str]) -> None:
        for name in VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(variables)
        settings = Settings()
        assert 0 <= settings.task_gpus <= 1024 and settings.cache_size > 0
        assert settings.home.is_absolute() and settings.tracking_uri

    try:
        fuzz(count, make, read, tmp_path)
    finally:
        for name in VARIABLES:
            os.environ.pop(name, None)


@counts
def test_any_value_as_a_recipe(count: int, tmp_path: Path) -> None:
    def read(value: Any) -> None:
        parse_recipe(json.dumps(value), tmp_path / "recipe.yaml")

    fuzz_values(count, json_values, read, tmp_path)

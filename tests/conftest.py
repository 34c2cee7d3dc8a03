"""Fixtures that several packages' tests share: real small models and tokenizers where they are at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Folder with real models, tokenizers and data beside the checkout; skips where it is absent."""
    if not (SHARED / "tokenizers").is_dir():
        pytest.skip("needs the folder of real models, tokenizers and data beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def shared_tokenizer(shared_folder: Path):
    """Return a function that loads one of the real tokenizers by its folder name."""
    from transformers import AutoTokenizer

    loaded: dict[str, object] = {}

    def load(name: str):
        if name not in loaded:
            loaded[name] = AutoTokenizer.from_pretrained(shared_folder / "tokenizers" / name, local_files_only=True)
        return loaded[name]

    return load


@pytest.fixture(scope="session")
def stories_folder(shared_folder: Path) -> Path:
    """Checkpoint folder of stories260K, a real Llama-class model of 0.26M parameters."""
    return shared_folder / "models" / "stories260k"

"""Compiled loops where nothing can be kept."""

from __future__ import annotations

import pytest

from fusion_core.alignment import compiled as module


def test_compiles_without_a_cache_where_no_place_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = module.njit

    def refuses_to_cache(*arguments, **options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return plain(*arguments, **options)

    monkeypatch.setattr(module, "njit", refuses_to_cache)

    @module.compiled
    def double(value):
        return value * 2

    assert double(21) == 42

"""Compiled loops whose machine code is kept between runs wherever the place allows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable)


def compiled(function: Function) -> Function:
    """Compile a function with numba, cached beside the code, in the user's cache or in ``NUMBA_CACHE_DIR``.

    Where none of these can be written (a read-only container without a home), it is compiled in every process.
    """
    try:
        return njit(cache=True)(function)
    except RuntimeError:
        return njit(function)

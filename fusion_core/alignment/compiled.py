"""Compiled loops whose machine code is kept between runs wherever the place allows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a function with numba, cached beside the code, in the user's cache or in ``NUMBA_CACHE_DIR``.

    Where none of these can be written (a read-only container without a home), it is compiled in every process. The
    cache notices changes in a function's own file only: who edits one that others call must delete ``*.nbi``.
    """
    try:
        return cast(Function, njit(cache=True)(function))
    except RuntimeError:
        return cast(Function, njit(function))

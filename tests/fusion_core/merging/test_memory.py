"""Memory that tensors share."""

from __future__ import annotations

import resource
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from fusion_core.merging.memory import ALIGNMENT_BYTES, TensorMemory


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def test_parts_do_not_overlap_and_are_used_again() -> None:
    memory = TensorMemory(1000)
    with ExitStack() as rooms:
        parts = [rooms.enter_context(memory.room(size)) for size in (100, 1, 300)]
        for number, part in enumerate(parts):
            part[:] = number
        assert [(len(part), set(part.tolist())) for part in parts] == [(100, {0}), (1, {1}), (300, {2})]
        assert all(part.ctypes.data % ALIGNMENT_BYTES == 0 for part in parts)
    with memory.room(1000) as whole:
        assert whole.ctypes.data == parts[0].ctypes.data
        # No room left: fresh memory instead.
        with memory.room(10) as fresh:
            fresh[:] = 1
            assert len(fresh) == 10 and not whole.ctypes.data <= fresh.ctypes.data < whole.ctypes.data + 1000


def test_a_part_is_given_back_after_an_error() -> None:
    memory = TensorMemory(1000)
    with pytest.raises(KeyError), memory.room(800) as part:
        address = part.ctypes.data
        raise KeyError
    with memory.room(900) as again:
        assert again.ctypes.data == address


def test_nothing_is_a_part_too() -> None:
    memory = TensorMemory(0)
    with memory.room(0) as none:
        assert len(none) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_closed_memory_takes_no_room() -> None:
    memory = TensorMemory(64 << 20)
    with memory.room(64 << 20) as part:
        before = resident_bytes()
        part[:] = 1
        assert resident_bytes() - before > 32 << 20
    memory.close()
    assert resident_bytes() - before < 32 << 20

"""The allocator is told on glibc, and nothing happens elsewhere."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from ssegate.edge.native.memory import lower_mmap_threshold

# `mallinfo2().hblks` counts the blocks that were mapped by themselves.
COUNT = """
import ctypes
from ssegate.edge.native.memory import THRESHOLD, lower_mmap_threshold

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes = [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]

library.mallinfo2.restype = Info

def mapped():
    before = library.mallinfo2().hblks
    blocks = [library.malloc(4 * THRESHOLD) for _ in range(8)]
    count = library.mallinfo2().hblks - before
    for block in blocks:
        library.free(block)
    return count

first = mapped()
raised = mapped()
assert lower_mmap_threshold()
print(first, raised, mapped(), mapped())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_large_blocks_are_mapped_alone_also_after_others_were_freed() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["8", "0", "8", "8"]


@pytest.mark.parametrize("error", [OSError, TypeError])
def test_without_such_a_library_nothing_happens(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: object) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert lower_mmap_threshold() is False


def test_another_library_than_glibc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert lower_mmap_threshold() is False

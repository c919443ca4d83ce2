"""Memory that is freed and wanted again a moment later stays with the process.

glibc asks the kernel for every large block anew and gives it back at once, and the kernel fills what it hands out with zeros, page by
page: for a UNet with windows of 96 voxels that was a fifth to a quarter of all processor time. While a network runs window after
window, and every window wants the same blocks, they are kept; afterwards the kernel has them back.
"""

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

# malloc.h: parameters of mallopt(3)
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_MAX: Final = -4

_KEPT: Final = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 0x7FFFFFFF, _M_TOP_PAD: 64 << 20}
_USUAL: Final = {_M_MMAP_MAX: 65536, _M_TRIM_THRESHOLD: 128 << 10, _M_TOP_PAD: 128 << 10}
"""The values that glibc begins with."""

_lock: Final = threading.Lock()
_users: Final[list[object]] = []


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keeps freed memory for the next who wants it, until the last user leaves. Where the C library is not glibc nothing changes."""
    me = object()
    with _lock:
        _users.append(me)
        if len(_users) == 1:
            _set(_KEPT)
    try:
        yield
    finally:
        with _lock:
            _users.remove(me)
            if not _users:
                _set(_USUAL)
                _give_back()


def _set(options: dict[int, int]) -> None:
    mallopt = _function("mallopt")
    if mallopt is not None:
        for option, value in options.items():
            mallopt(option, value)


def _give_back() -> None:
    malloc_trim = _function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


@cache
def _function(name: str) -> Callable[..., int] | None:
    """Answers a function of glibc, None where there is none."""
    if sys.platform != "linux":
        return None
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    return found

"""Memory between the layers of a network on the CPU: kept for the next layer, given back after the last.

A layer's activations are hundreds of megabytes. glibc takes each such block fresh from the kernel and returns it when it is freed,
and the kernel fills every page with zeros, which was a fifth of the processor time of a whole network here.
"""

import ctypes
import sys
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_MAX: Final = -4
"""Parameters of mallopt(3)."""

_NEVER: Final = (1 << 31) - 1


def keep_freed_memory() -> None:
    """Lets the allocator keep what is freed, for the whole process; where it is not glibc's, nothing happens."""
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, _NEVER)


def give_back_freed_memory() -> None:
    """Returns to the kernel what the process does not use."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None

"""shim.c from Python: built with the machine's compiler, preloaded into a process, armed inside it."""

import ctypes
import errno
import os
import shutil
import subprocess
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import cache
from pathlib import Path

import pytest


class Kind(IntFlag):
    """What is counted, and may fail."""

    OPEN = 1
    WRITE = 2
    FSYNC = 4
    RENAME = 8
    TRUNCATE = 16
    UNLINK = 32
    MKDIR = 64
    CONNECT = 128
    SEND = 256
    RECV = 512
    DISK = OPEN | WRITE | FSYNC | RENAME | TRUNCATE | UNLINK | MKDIR
    NETWORK = CONNECT | SEND | RECV


class Mode(IntEnum):
    """What happens at the n-th call."""

    FAIL_ONCE = 1
    FAIL_ON = 2
    """It fails, and every one after it."""
    SHORT = 3
    """A write takes half of what it is given."""
    KILL_BEFORE = 4
    KILL_AFTER = 5
    STOP_AT_EACH = 6
    """The process stops (SIGSTOP) before every n-th call, until it is told to go on."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to break a run."""

    kinds: Kind
    mode: Mode
    error: int = 0
    nth: int = 0

    def __str__(self) -> str:
        error = f" {errno.errorcode[self.error]}" if self.error else ""
        return f"{self.mode.name.lower().replace('_', ' ')}{error}"


@dataclass(frozen=True, slots=True)
class Hit:
    """What an armed run met."""

    counted: int
    """How many calls there were."""
    hits: int
    """How many of them were broken."""
    first: str
    """Which was the first, and on what."""


def build(folder: Path) -> Path:
    """Compiles the shim; skips the test where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler (Debian: gcc, libc6-dev)")
    library = folder / "shim.so"
    source = Path(__file__).with_name("shim.c")
    done = subprocess.run(
        [compiler, "-O1", "-Wall", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], capture_output=True, text=True, check=False
    )
    if "fatal error" in done.stderr:
        pytest.skip(f"no headers of the C library (Debian: libc6-dev): {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return library


def preloading(library: Path | None) -> dict[str, str]:
    """Answers the environment of a process that has the shim, if any, and no threads that a fork would lose."""
    shim = {"LD_PRELOAD": str(library)} if library else {}
    return {**os.environ, **shim, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@cache
def _shim() -> ctypes.CDLL:
    shim = ctypes.CDLL(None)
    shim.shim_arm.argtypes = [ctypes.c_char_p, ctypes.c_uint, ctypes.c_long, ctypes.c_int, ctypes.c_int]
    shim.shim_count.restype = ctypes.c_long
    shim.shim_hits.restype = ctypes.c_long
    shim.shim_first_hit.restype = ctypes.c_char_p
    return shim


def arm(folder: Path, how: Arm) -> None:
    """Arms the shim of this process for files below a folder."""
    _shim().shim_arm(str(folder).encode(), int(how.kinds), how.nth, int(how.mode), how.error)


def disarm() -> Hit:
    """Disarms it; answers what it did."""
    shim = _shim()
    shim.shim_disarm()
    return Hit(int(shim.shim_count()), int(shim.shim_hits()), shim.shim_first_hit().decode(errors="replace"))

"""Folders that are made once and shared by all tests, runs and workers: whoever comes second waits for the first, and finds them whole."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory


def made_once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Answers `folder`, filled by `fill` in a folder of another name first, so that it is whole or absent, also after a kill."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder.parent / f"{folder.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # freed by the kernel when this process ends, however it ends
        if not folder.is_dir():
            with TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as scratch:
                made = Path(scratch) / "made"
                made.mkdir()
                fill(made)
                made.rename(folder)
    finally:
        os.close(lock)
    return folder

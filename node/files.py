"""Writing so that it survives a power cut: temporary name, fsync, rename, fsync of the folder."""

import glob
import os
from enum import StrEnum
from pathlib import Path


class Durability(StrEnum):
    """What a received instance survives once it was answered with success."""

    POWER_LOSS = "power-loss"
    """Everything is flushed to the disk first."""
    PROCESS_CRASH = "process-crash"
    """The kernel has it: kill -9 loses nothing, a power cut loses the last seconds."""


def lies_in_memory(folder: Path) -> bool:
    """Answers whether a folder lies in a file system without a disk behind it (Linux: /proc/self/mountinfo, proc(5))."""
    try:
        device = folder.stat().st_dev
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return False
    wanted = f"{os.major(device)}:{os.minor(device)}"
    return any(mount[2] == wanted and mount[mount.index("-") + 1] == "tmpfs" for mount in mounts if "-" in mount[:-1])


def flush_file(path: Path) -> None:
    """Flushes the content of a file to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Flushes the entries of a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes) -> None:
    """Writes a file in one step: after this returns it is whole on the disk; before, nothing is seen under its name.

    What a process left half written under this name when it was killed is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def _sweep(path: Path) -> None:
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        writer = leftover.name.split(".")[-2]
        if writer.isdigit() and not _is_alive(int(writer)):
            leftover.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True

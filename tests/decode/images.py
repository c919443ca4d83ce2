"""Reading single images, as the series reader does."""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread

from node.inference.pixels import Rescale, locate_pixels, modality_transform, read_frames


def decode(path: Path, frame: int = 0) -> NDArray[np.float32]:
    """Answers one frame of a file after the modality LUT, shape (rows, columns)."""
    with warnings.catch_warnings(), path.open("rb") as file:
        warnings.simplefilter("ignore")
        header = dcmread(file, stop_before_pixels=True)
        pixels = locate_pixels(header, file, path, "the image")
        transform = modality_transform(header, "the image") or Rescale(1.0, 0.0)
        (stored,) = read_frames(pixels, [frame])
    values = np.empty(stored.shape, np.float32)
    transform.apply(stored, values)
    return values

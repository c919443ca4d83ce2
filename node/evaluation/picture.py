"""The slice on which answer and truth differ most: what agrees, what was missed, what is too much."""

from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image

from node.domain.volume import LabelMap, Volume
from node.evaluation.reference import TrueMasks

AGREED: Final = (80, 200, 120)
MISSED: Final = (255, 80, 80)
TOO_MUCH: Final = (80, 140, 255)

_STRENGTH: Final = 0.45
_PIXELS: Final = 320


def draw_difference(volume: Volume, label_map: LabelMap, true: TrueMasks) -> bytes | None:
    """Answers a PNG, or None where the volume was resampled and its slices are not those of the label map."""
    if volume.voxels.shape != label_map.labels.shape:
        return None
    agreed, missed, too_much = (np.zeros(label_map.labels.shape, np.bool_) for _ in range(3))
    for label_value in true.label_values:
        found, truth = label_map.mask(label_value), true.mask(label_value)
        agreed |= found & truth
        missed |= truth & ~found
        too_much |= found & ~truth
    differs = (missed | too_much).sum(axis=(1, 2))
    plane = int((differs if differs.any() else agreed.sum(axis=(1, 2))).argmax())
    gray = volume.voxels[plane]
    low, high = np.percentile(gray, [1, 99])
    shown = np.repeat(np.clip((gray - low) / max(float(high - low), 1e-6), 0, 1)[..., None] * 255, 3, axis=2)
    for where, color in ((agreed[plane], AGREED), (too_much[plane], TOO_MUCH), (missed[plane], MISSED)):
        shown[where] = (1 - _STRENGTH) * shown[where] + _STRENGTH * np.array(color)
    source = label_map.source
    width_mm, height_mm = source.columns * source.column_spacing_mm, source.rows * source.row_spacing_mm
    scale = _PIXELS / max(width_mm, height_mm)
    size = (max(1, round(width_mm * scale)), max(1, round(height_mm * scale)))
    picture = Image.fromarray(shown.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    stream = BytesIO()
    picture.save(stream, format="PNG", optimize=True)
    return stream.getvalue()

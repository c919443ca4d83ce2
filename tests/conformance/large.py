"""A result as large as a whole-body segmentation: many organ-like ellipsoids on many slices of 512x512."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from node.domain.measurement import measure
from node.domain.result import Result
from node.domain.states import Outcome
from node.domain.volume import LabelMap
from tests.conformance.cases import Case, make_card, make_case

SIZE = 512


def large_case(folder: Path, segments: int, slices: int) -> Case:
    """Answers a case of `segments` structures on `slices` slices; only the headers of one image are ever written."""
    small = make_case(folder, "axial", 1)
    grid, header = small.label_map.source, small.sources[0]
    sources, planes = [], []
    for number in range(slices):
        source = deepcopy(header)
        source.SOPInstanceUID = f"{header.SOPInstanceUID}.{number + 1}"[-64:].lstrip(".0") or "1.2"
        source.Rows = source.Columns = SIZE
        source.ImagePositionPatient = [0.0, 0.0, float(number)]
        sources.append(source)
        planes.append(replace(grid.planes[0], sop_instance_uid=source.SOPInstanceUID, image_position_patient=(0.0, 0.0, float(number))))
    card = make_card(segments)
    card = replace(card, segments=tuple(replace(one, label_value=number) for number, one in enumerate(card.segments, 1)))
    label_map = LabelMap(ellipsoids(segments, slices), replace(grid, rows=SIZE, columns=SIZE, planes=tuple(planes)))
    found = measure(label_map, card)
    result = Result(card, Outcome.FOUND, found, label_map, (), small.result.provenance)
    return replace(small, sources=sources, result=result)


def ellipsoids(segments: int, slices: int) -> NDArray[np.uint8]:
    """Answers labels 1..`segments`, the later over the earlier; always the same."""
    labels = np.zeros((slices, SIZE, SIZE), dtype=np.uint8)
    generator = np.random.default_rng(1)
    for number in range(1, segments + 1):
        centre = generator.uniform((0.1 * slices, 60, 60), (0.9 * slices, 450, 450))
        radius = generator.uniform((0.03 * slices, 10, 10), (0.15 * slices, 60, 60))
        low = np.maximum(np.floor(centre - radius), 0).astype(int)
        high = np.minimum(np.ceil(centre + radius) + 1, labels.shape).astype(int)
        axes = [((np.arange(a, b) - c) / r) ** 2 for a, b, c, r in zip(low, high, centre, radius, strict=True)]
        inside = axes[0][:, None, None] + axes[1][None, :, None] + axes[2][None, None, :] < 1
        labels[low[0] : high[0], low[1] : high[1], low[2] : high[2]][inside] = number
    return labels

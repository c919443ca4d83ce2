"""Figures that say how near an answer is to the truth. Surfaces, ROC and FROC are MONAI's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_froc_curve_data,
    compute_froc_score,
    compute_hausdorff_distance,
    compute_roc_auc,
)
from numpy.typing import NDArray

from node.domain.findings import Detection
from node.domain.volume import SourceGrid
from node.evaluation.dataset import Lesion

CALIBRATION_BINS: Final = 10
FALSE_POSITIVES_PER_CASE: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two masks of one structure. What cannot be told (a surface of nothing) is None."""

    dice: float | None
    true_cm3: float
    found_cm3: float
    volume_error_percent: float | None
    """Of the true volume; positive where too much was outlined."""
    surface_distance_mm: float | None
    """Mean, both ways."""
    hausdorff95_mm: float | None


@dataclass(frozen=True, slots=True)
class Discrimination:
    """How well probabilities tell the cases with an answer from those without, and whether they mean what they say."""

    answer: str
    positives: int
    negatives: int
    roc_auc: float | None
    brier: float
    calibration_error: float
    """Expected calibration error: mean distance between probability and frequency, over bins of 0.1."""
    roc: tuple[tuple[float, float], ...] = ()
    """(false positive rate, true positive rate), ascending."""
    reliability: tuple[tuple[float, float, int], ...] = ()
    """(mean probability, frequency, cases) of each bin that has any."""


@dataclass(frozen=True, slots=True)
class FreeResponse:
    """Boxes against lesions."""

    lesions: int
    found: int
    """At whatever score the card lets pass."""
    false_positives_per_case: float
    score: float | None
    """Mean sensitivity at 1/4, 1/2, 1, 2, 4 and 8 false positives a case."""
    curve: tuple[tuple[float, float], ...] = field(default=())
    """(false positives a case, sensitivity)."""


def overlap(found: Mask, true: Mask, source: SourceGrid) -> Overlap:
    """Answers how two masks of shape `source.shape` agree. Surfaces count slices as evenly spaced, volumes do not."""
    pixel_mm2 = source.row_spacing_mm * source.column_spacing_mm
    thickness_mm = source.slab_thicknesses_mm() if len(source.planes) > 1 else np.ones(1)
    volumes = [float((mask.sum(axis=(1, 2)) * thickness_mm).sum() * pixel_mm2 / 1000) for mask in (found, true)]
    together = int(found.sum()) + int(true.sum())
    surface_mm = hausdorff_mm = None
    if found.any() and true.any():
        box = _box(found | true)
        spacing = [float(np.median(thickness_mm)), source.row_spacing_mm, source.column_spacing_mm]
        one, other = (torch.from_numpy(np.ascontiguousarray(mask[box]))[None, None] for mask in (found, true))
        options: dict[str, Any] = {"include_background": True, "spacing": spacing}
        surface_mm = _number(compute_average_surface_distance(one, other, symmetric=True, **options))
        hausdorff_mm = _number(compute_hausdorff_distance(one, other, percentile=95, **options))
    return Overlap(
        dice=2 * int((found & true).sum()) / together if together else None,
        true_cm3=volumes[1],
        found_cm3=volumes[0],
        volume_error_percent=100 * (volumes[0] - volumes[1]) / volumes[1] if volumes[1] else None,
        surface_distance_mm=surface_mm,
        hausdorff95_mm=hausdorff_mm,
    )


def discriminate(answer: str, probabilities: Sequence[float], truths: Sequence[bool]) -> Discrimination:
    """Answers how the probabilities of one answer relate to whether it was true, case by case."""
    given, true = np.asarray(probabilities, dtype=np.float64), np.asarray(truths, dtype=np.bool_)
    positives = int(true.sum())
    both = 0 < positives < len(true)
    bins = np.minimum((given * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    reliability = tuple(
        (float(given[bins == one].mean()), float(true[bins == one].mean()), int((bins == one).sum())) for one in np.unique(bins).tolist()
    )
    return Discrimination(
        answer=answer,
        positives=positives,
        negatives=len(true) - positives,
        roc_auc=float(np.asarray(compute_roc_auc(torch.from_numpy(given), torch.from_numpy(true.astype(np.int64))))) if both else None,
        brier=float(((given - true) ** 2).mean()),
        calibration_error=sum(count * abs(mean - frequency) for mean, frequency, count in reliability) / len(true),
        roc=_roc(given, true) if both else (),
        reliability=reliability,
    )


def free_response(cases: Sequence[tuple[Sequence[Detection], Sequence[Lesion]]]) -> FreeResponse:
    """Answers how boxes meet lesions: a box hits when its centre lies within the lesion's radius, as in LUNA16.

    Of several boxes on one lesion the best counts, the others are no false positives. A lesion with a label is hit by boxes of
    that label alone.
    """
    true_scores: list[float] = []
    false_scores: list[float] = []
    lesions = found = 0
    for detections, truths in cases:
        lesions += len(truths)
        best = [0.0] * len(truths)
        for detection in detections:
            hits = [index for index, lesion in enumerate(truths) if _hits(detection, lesion)]
            for index in hits:
                best[index] = max(best[index], detection.score)
            if not hits:
                false_scores.append(detection.score)
        found += sum(score > 0 for score in best)
        true_scores += best
    per_case = len(false_scores) / len(cases)
    if not lesions:
        return FreeResponse(0, 0, per_case, None)
    # MONAI passes over the lowest score, which it takes for that of the lesions that were missed: 0 is there for it
    rates, sensitivities = compute_froc_curve_data(np.array([0.0, *false_scores]), np.array(true_scores), lesions, len(cases))
    curve = tuple(zip(rates.tolist(), sensitivities.tolist(), strict=True))
    score = float(compute_froc_score(rates, sensitivities, FALSE_POSITIVES_PER_CASE))
    return FreeResponse(lesions, found, per_case, score, curve)


def _hits(detection: Detection, lesion: Lesion) -> bool:
    fits = not lesion.label or lesion.label.casefold() == detection.definition.label.casefold()
    return fits and math.dist(detection.centre_mm, lesion.centre_mm) <= lesion.diameter_mm / 2


def _roc(given: NDArray[np.float64], true: NDArray[np.bool_]) -> tuple[tuple[float, float], ...]:
    cuts = np.unique(given)[::-1]
    points = [(float((given[~true] >= cut).mean()), float((given[true] >= cut).mean())) for cut in cuts.tolist()]
    return ((0.0, 0.0), *points)


def _box(mask: Mask) -> tuple[slice, ...]:
    """Answers the box around a mask, one voxel wider: its surface shall not be cut."""
    ranges = []
    for axis in range(mask.ndim):
        where = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        ranges.append(slice(max(0, int(where[0]) - 1), int(where[-1]) + 2))
    return tuple(ranges)


def _number(values: torch.Tensor) -> float | None:
    value = float(values.reshape(-1)[0])
    return value if math.isfinite(value) else None

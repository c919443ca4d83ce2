"""The pattern that the slices of a stack follow along their normal: regular, a slice missing here and there, zones, or none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

POSITION_TOLERANCE: Final = 0.05
"""A stack is regular when no slice lies further than this share of the spacing from its place on equal steps."""

POSITION_TOLERANCE_MM: Final = 0.06
"""... or this far: some write positions to a tenth of a millimetre."""

STEP_TOLERANCE: Final = 0.10
"""Two steps are alike when they differ by no more than this share of the smaller one: rounding, table jitter."""

STEP_TOLERANCE_MM: Final = 0.11
"""... or by this much: the same tenths."""

MIN_ZONE_STEPS: Final = 3
"""So many alike steps in a row (four slices) are a zone that someone chose; fewer may be accident."""

MAX_SEAM: Final = 1.5
"""The one step between two zones may be up to this many times the wider spacing next to it; more is a hole."""


@dataclass(frozen=True, slots=True)
class Zone:
    """Slices `first` to `last` (counted from 0, ascending) with alike steps."""

    first: int
    last: int
    spacing_mm: float

    @property
    def steps(self) -> int:
        """Number of steps between the slices of the zone."""
        return self.last - self.first


@dataclass(frozen=True, slots=True)
class Gap:
    """Room for `missing` slices between slice `after` and the next."""

    after: int
    missing: int


@dataclass(frozen=True, slots=True)
class Regular:
    """Equal steps."""

    spacing_mm: float


@dataclass(frozen=True, slots=True)
class MissingSlicesPattern:
    """Equal steps, but for steps that are a whole multiple of them."""

    spacing_mm: float
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, slots=True)
class Uneven:
    """One or more zones of (nearly) uniform spacing, at most one odd step between two of them; perhaps slices missing."""

    zones: tuple[Zone, ...]
    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True, slots=True)
class Irregular:
    """No pattern."""

    smallest_mm: float
    largest_mm: float


Spacing = Regular | MissingSlicesPattern | Uneven | Irregular


def classify_spacing(distances_mm: NDArray[np.float64]) -> Spacing:
    """Answers the pattern of slices at `distances_mm`, ascending and distinct, shape (slices,), at least two."""
    steps = np.diff(distances_mm)
    if _is_regular(distances_mm):
        return Regular(float(distances_mm[-1] - distances_mm[0]) / len(steps))
    zones = _zones(steps)
    commonest = max(zones, key=lambda zone: zone.steps).spacing_mm if zones else float(steps.min())
    if all(_alike(zone.spacing_mm, commonest) for zone in zones):
        pattern = _missing_slices(distances_mm, commonest)
        if pattern is not None:
            return pattern
    uneven = _uneven(steps, zones)
    if uneven is not None:
        return uneven
    return _missing_slices(distances_mm, float(steps.min())) or Irregular(float(steps.min()), float(steps.max()))


def _missing_slices(distances_mm: NDArray[np.float64], spacing: float) -> MissingSlicesPattern | None:
    """Answers the pattern where every step is a whole multiple of `spacing` and no more slices are missing than there are."""
    steps = np.diff(distances_mm)
    gaps = _gaps_in_units_of(spacing, steps)
    missing = sum(gap.missing for gap in gaps)
    if not 0 < missing <= len(distances_mm):
        return None
    return MissingSlicesPattern(float(distances_mm[-1] - distances_mm[0]) / (len(steps) + missing), gaps)


def _uneven(steps: NDArray[np.float64], zones: Sequence[Zone]) -> Uneven | None:
    """Answers the zones where they and single odd steps between them make up the stack, None where they do not."""
    gaps: list[Gap] = []
    seams: list[int] = []
    for index in range(len(steps)):
        if any(zone.first <= index < zone.last for zone in zones):
            continue
        if not zones:
            return None
        left, right = _neighbours(zones, index)
        missing = _missing_in_step(float(steps[index]), left, right)
        if missing:
            gaps.append(Gap(index, missing))
        elif steps[index] <= MAX_SEAM * max(left, right) and index - 1 not in seams:
            seams.append(index)
        else:
            return None
    return Uneven(tuple(zones), tuple(gaps))


def _is_regular(distances_mm: NDArray[np.float64]) -> bool:
    places = np.linspace(distances_mm[0], distances_mm[-1], len(distances_mm))
    spacing = float(places[1] - places[0])
    tolerance = max(POSITION_TOLERANCE * spacing, POSITION_TOLERANCE_MM)
    return bool(np.abs(distances_mm - places).max() <= tolerance)


def _zones(steps: NDArray[np.float64]) -> tuple[Zone, ...]:
    """Answers the runs of alike steps that are long enough, ascending."""
    zones: list[Zone] = []
    first = 0
    for index in range(1, len(steps) + 1):
        mean = float(steps[first:index].mean())
        if index < len(steps) and _alike(float(steps[index]), mean):
            continue
        if index - first >= MIN_ZONE_STEPS:
            zones.append(Zone(first, index, mean))
        first = index
    return tuple(zones)


def _alike(step: float, other: float) -> bool:
    return abs(step - other) <= max(STEP_TOLERANCE * min(step, other), STEP_TOLERANCE_MM)


def _neighbours(zones: Sequence[Zone], step: int) -> tuple[float, float]:
    """Answers the spacing of the nearest zone before and after a step; at the ends the one zone counts as both."""
    before = [zone.spacing_mm for zone in zones if zone.last <= step]
    after = [zone.spacing_mm for zone in zones if zone.first > step]
    left = before[-1] if before else after[0]
    right = after[0] if after else before[-1]
    return left, right


def _missing_in_step(step: float, left: float, right: float) -> int:
    """Answers how many slices fit into a step between zones: 0 for a seam or where no whole number does."""
    wider = max(left, right)
    if not _alike(left, right) and step <= MAX_SEAM * wider:
        return 0
    return _whole_multiple(step, wider) - 1


def _gaps_in_units_of(spacing: float, steps: NDArray[np.float64]) -> tuple[Gap, ...]:
    """Answers the gaps where every step is a whole multiple of `spacing`, () where one is not."""
    multiples = [_whole_multiple(float(step), spacing) for step in steps]
    whole = all(multiple > 1 or _alike(float(step), spacing) for step, multiple in zip(steps, multiples, strict=True))
    return tuple(Gap(index, m - 1) for index, m in enumerate(multiples) if m > 1) if whole else ()


def _whole_multiple(step: float, spacing: float) -> int:
    """Answers the whole number (2 and more) of spacings in a step, 1 where there is none."""
    multiple = round(step / spacing)
    tolerance = min(max(STEP_TOLERANCE * spacing, STEP_TOLERANCE_MM), spacing / 4)
    return multiple if multiple > 1 and abs(step - multiple * spacing) <= tolerance else 1

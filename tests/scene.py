"""What synthetic images show: a body, an organ that lies off centre, and a small dense marker, all ellipsoids in the patient."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Vector = tuple[float, float, float]

CENTRE_MM: Final[Vector] = (7.0, -12.0, 30.0)
"""Where the middle of every synthetic stack lies in the patient."""


@dataclass(frozen=True, slots=True)
class Ellipsoid:
    """An ellipsoid along the patient's axes."""

    centre_mm: Vector
    semi_axes_mm: Vector

    @property
    def volume_mm3(self) -> float:
        """The exact volume."""
        return 4.0 / 3.0 * math.pi * math.prod(self.semi_axes_mm)

    def contains(self, points_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Answers which of the points, shape (..., 3), lie inside."""
        return np.asarray(self.depth_mm(points_mm) > 0)

    def depth_mm(self, points_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Answers about how far inside (positive) or outside (negative) the surface points of shape (..., 3) lie."""
        offset = (points_mm - np.asarray(self.centre_mm)) / np.asarray(self.semi_axes_mm)
        radius = np.maximum(np.sqrt(np.sum(offset**2, axis=-1)), 1e-9)
        slope = np.sqrt(np.sum((offset / np.asarray(self.semi_axes_mm)) ** 2, axis=-1)) / radius
        return np.asarray((1.0 - radius) / np.maximum(slope, 1e-9))


@dataclass(frozen=True, slots=True)
class Scene:
    """What there is to see, and the value of each tissue in the units of the modality."""

    body: Ellipsoid
    organ: Ellipsoid
    marker: Ellipsoid
    air_value: float
    body_value: float
    organ_value: float
    marker_value: float

    @property
    def organ_threshold(self) -> float:
        """The value halfway between body and organ."""
        return (self.body_value + self.organ_value) / 2

    def values(self, points_mm: NDArray[np.float64], edge_mm: float) -> NDArray[np.float64]:
        """Answers the values at points of shape (..., 3); edges are as soft as a voxel of `edge_mm` makes them."""
        result = np.full(points_mm.shape[:-1], self.air_value)
        for shape, value in (
            (self.body, self.body_value),
            (self.organ, self.organ_value),
            (self.marker, self.marker_value),
        ):
            share = np.clip(0.5 + shape.depth_mm(points_mm) / edge_mm, 0.0, 1.0)
            result += share * (value - result)
        return result


def make_scene(extent_mm: float, *, air: float, body: float, organ: float, marker: float) -> Scene:
    """Answers a scene that fits a stack whose shortest edge is `extent_mm`."""

    def ellipsoid(centre: Vector, semi_axes: Vector) -> Ellipsoid:
        x, y, z = (c + share * extent_mm for c, share in zip(CENTRE_MM, centre, strict=True))
        a, b, c = (share * extent_mm for share in semi_axes)
        return Ellipsoid((x, y, z), (a, b, c))

    return Scene(
        body=ellipsoid((0.0, 0.0, 0.0), (0.48, 0.47, 0.46)),
        organ=ellipsoid((0.16, 0.12, -0.10), (0.24, 0.18, 0.14)),
        marker=ellipsoid((0.15, -0.22, 0.22), (0.06, 0.06, 0.06)),
        air_value=air,
        body_value=body,
        organ_value=organ,
        marker_value=marker,
    )

"""What a model answers about images: outlines, answers to questions, boxes, points. Still numbers; the report is made of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from node.domain.modelcard import AnswerDefinition, DetectionDefinition, EvaluationDefinition, LandmarkDefinition
from node.domain.volume import LabelMap, Plane

Point = tuple[float, float, float]
"""(x, y, z) in the patient, LPS millimetres."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A classifier's answer to one question."""

    definition: EvaluationDefinition
    probabilities: tuple[float, ...]
    """Of each answer of the definition, in its order."""
    image: Plane | None = None
    """The image that was judged, for a model that reads images one by one; None where the whole series was."""

    @property
    def answer(self) -> AnswerDefinition:
        """The most probable answer."""
        return self.definition.answers[int(np.argmax(self.probabilities))]

    @property
    def present(self) -> bool:
        """Of a question with a single answer: whether that is probable enough."""
        return self.probabilities[0] >= self.definition.threshold


@dataclass(frozen=True, slots=True)
class Detection:
    """A box around something that a detector found."""

    definition: DetectionDefinition
    score: float
    """0..1, what the network is worth its own finding; no calibrated probability."""
    centre_mm: Point
    half_axes_mm: tuple[Point, Point, Point]
    """Vectors from the centre to the middles of three faces of the box."""
    image: Plane | None = None
    """The image that it lies on, for a model that reads images one by one; None where it lies in a volume."""


@dataclass(frozen=True, slots=True)
class Landmark:
    """A point that a network found."""

    definition: LandmarkDefinition
    score: float
    position_mm: Point
    image: Plane | None = None
    """As of a detection."""


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """All that one model answers on one study; what its card does not name stays empty."""

    label_map: LabelMap | None = None
    evaluations: tuple[Evaluation, ...] = ()
    detections: tuple[Detection, ...] = ()
    landmarks: tuple[Landmark, ...] = ()
    probability: Callable[[], NDArray[np.float32]] | None = None
    """Answers the probability of the one structure on the source grid, for a model that gives one."""
    stages: Mapping[str, float] = field(default_factory=dict)
    """Seconds of the parts of the work: preprocess, network, stitch, restore."""
    provenance_notes: tuple[str, ...] = ()
    """What the run did otherwise than planned: the steps of the out-of-memory ladder, a window done again in float32."""

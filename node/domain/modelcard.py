"""What a model is, what it accepts and what it reports: `models/<name>/card.toml` as values."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from node.codes import ARTIFICIAL_INTELLIGENCE, Code
from node.domain.identifiers import derive_uid

WEIGHT_FORMATS: Final = ("safetensors", "torchscript")
ORIENTATIONS: Final = ("axial", "coronal", "sagittal", "oblique")
MEASURABLE: Final = ("volume", "diameter", "attenuation")
DRAFT_MARK: Final = "DRAFT "
"""Begins the title of a card that nobody has confirmed: every report, page and series description shows it."""

READABLE: Final = ("volume", "images")
"""How a model wants its input: a series as one volume, or each image by itself (radiographs, mammograms)."""


@dataclass(frozen=True, slots=True)
class Range:
    """A closed interval; None is open."""

    min: float | None = None
    max: float | None = None

    def holds(self, value: float) -> bool:
        """Answers whether `value` lies inside."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)

    def __str__(self) -> str:
        """`at least 20`, `at most 8`, or `20 to 1000`."""
        if self.min is not None and self.max is not None:
            return f"{self.min:g} to {self.max:g}"
        if self.min is not None:
            return f"at least {self.min:g}"
        return f"at most {self.max:g}" if self.max is not None else "anything"


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A file of weights, and where a user gets it."""

    file: str
    """Relative to the bundle's folder."""
    format: str
    sha256: str
    source: str
    """`pip:NAME==VERSION#member/of/the/wheel`, a URL, or `bundled`: the file is part of the bundle."""


@dataclass(frozen=True, slots=True)
class InputRequirement:
    """One kind of series that the model accepts; every stated condition must hold.

    Words are looked for in Series, Protocol and Study Description and Body Part Examined, as whole upper-case words.
    """

    modality: tuple[str, ...]
    channel: str = ""
    """Which input of a network with several (T1c, FLAIR) this series is; '' where the model takes one series."""
    body_part: tuple[str, ...] = ()
    orientation: tuple[str, ...] = ()
    slices: Range = Range()
    slice_spacing_mm: Range = Range()
    pixel_spacing_mm: Range = Range()
    coverage_mm: Range = Range()
    contrast: str = "any"
    """any, with or without."""
    words: tuple[str, ...] = ()
    """At least one must appear, where given."""
    without_words: tuple[str, ...] = ()
    """None may appear."""
    when: Mapping[str, tuple[str, ...] | Range] | None = None
    """Further conditions on DICOM keywords; one whose element is absent is passed over."""


@dataclass(frozen=True, slots=True)
class SegmentDefinition:
    """A structure that the model outlines; the keys of a Segment Sequence item (PS3.3 C.8.20-4)."""

    label_value: int
    label: str
    category: Code
    type: Code
    anatomic_region: Code | None = None
    laterality: Code | None = None
    rgb: tuple[int, int, int] = (255, 0, 0)
    measure: tuple[str, ...] = ("volume",)
    """What the report says of it: of MEASURABLE."""


@dataclass(frozen=True, slots=True)
class AnswerDefinition:
    """One of the answers that a classifier chooses from."""

    channel: int
    """Of the network's output."""
    label: str
    code: Code


@dataclass(frozen=True, slots=True)
class EvaluationDefinition:
    """A question that a classifier answers: a qualitative evaluation of the report (TID 1500, row 12; TID 1411, row 10)."""

    concept: Code
    answers: tuple[AnswerDefinition, ...]
    """One of them is the answer: the most probable. A single one is Present when it is at least `threshold` probable, else Absent."""
    threshold: float = 0.5


@dataclass(frozen=True, slots=True)
class DetectionDefinition:
    """A kind of lesion that a detector finds boxes of."""

    class_index: int
    """What the network's label says, counted from 0."""
    label: str
    category: Code
    type: Code
    anatomic_region: Code | None = None
    laterality: Code | None = None
    rgb: tuple[int, int, int] = (255, 0, 0)
    min_score: float = 0.5


@dataclass(frozen=True, slots=True)
class LandmarkDefinition:
    """A point that a network finds by a heat map."""

    channel: int
    label: str
    type: Code
    rgb: tuple[int, int, int] = (255, 0, 0)
    min_score: float = 0.5


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a person and the node must know of a model."""

    name: str
    version: str
    title: str
    manufacturer: str
    intended_use: str
    training_data: str
    performance: str
    licence: str
    weights: tuple[WeightsFile, ...]
    inputs: tuple[InputRequirement, ...]
    segments: tuple[SegmentDefinition, ...] = ()
    evaluations: tuple[EvaluationDefinition, ...] = ()
    detections: tuple[DetectionDefinition, ...] = ()
    landmarks: tuple[LandmarkDefinition, ...] = ()
    reads: str = "volume"
    prefer_words: tuple[str, ...] = ()
    """Words that make one eligible series better than another, best first."""
    avoid_words: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    family: Code = ARTIFICIAL_INTELLIGENCE
    draft: bool = False
    """Written by radnode from what the model's author says; a person has not yet confirmed labels and codes. Never serves a route."""

    @property
    def channels(self) -> tuple[str, ...]:
        """Answers the inputs of the network in their order, () where it takes one series."""
        return tuple(dict.fromkeys(requirement.channel for requirement in self.inputs if requirement.channel))

    @property
    def digest(self) -> str:
        """Changes with the name, the version or any weights: part of every job key."""
        parts = (self.name, self.version, *(weights.sha256 for weights in self.weights), *(("draft",) if self.draft else ()))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @property
    def device_uid(self) -> str:
        """Device UID of the algorithm (IHE AIR 6.5.3.1): another one for every set of weights."""
        return derive_uid("algorithm", self.digest)

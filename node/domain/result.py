"""What a run found: still numbers, not DICOM."""

from dataclasses import dataclass, field

from node.codes import Code
from node.domain.findings import Detection, Evaluation, Landmark
from node.domain.modelcard import ModelCard, SegmentDefinition
from node.domain.states import Outcome
from node.domain.volume import LabelMap, QualityNote, SourceGrid


@dataclass(frozen=True, slots=True)
class Measurement:
    """A number with its meaning and its unit."""

    concept: Code
    value: float
    unit: Code
    derivation: Code | None = None
    """How it comes out of many values: mean, standard deviation, a percentile."""

    @property
    def name(self) -> str:
        """For a person: `Volume`, `Attenuation Coefficient (Mean)`."""
        return f"{self.concept.meaning} ({self.derivation.meaning})" if self.derivation else self.concept.meaning


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """One structure of the card: found or not, and its measurements."""

    definition: SegmentDefinition
    present: bool
    voxels: int = 0
    measurements: tuple[Measurement, ...] = ()


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made the result: enough to make it again."""

    engine: str
    """For example `torch 2.13.0 cpu fp32`."""
    weights_sha256: tuple[str, ...]
    device_uid: str
    """Device UID of this model on these weights (IHE AIR 6.5.3.1): changes whenever the weights change."""
    parity: str = ""
    """The gate that the engine passed against float32 torch: its identifier and figures; '' for the reference itself."""
    notes: tuple[str, ...] = ()
    """What the run did otherwise than planned, e.g. a step of the out-of-memory ladder."""


@dataclass(frozen=True, slots=True)
class PredecessorDocument:
    """The SR that a new one supersedes (PS3.3 C.17.2 Predecessor Documents Sequence)."""

    study_instance_uid: str
    series_instance_uid: str
    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The end of one run, whatever it was."""

    card: ModelCard
    outcome: Outcome
    segments: tuple[SegmentResult, ...] = ()
    label_map: LabelMap | None = None
    notes: tuple[QualityNote, ...] = field(default=())
    provenance: Provenance | None = None
    reason: str = ""
    """For NOT_ATTEMPTED and FAILED: a sentence for the reader."""
    evaluations: tuple[Evaluation, ...] = ()
    detections: tuple[Detection, ...] = ()
    landmarks: tuple[Landmark, ...] = ()
    grids: tuple[SourceGrid, ...] = ()
    """Where the pixels of the analysed images lie: of each volume, or of each image by itself."""

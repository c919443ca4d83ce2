"""The IHE integration statement: what AI Results asks of an Evidence Creator, and whether the objects that are made here have it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from pydicom.dataset import Dataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    KeyObjectSelectionDocumentStorage,
    ParametricMapStorage,
    SegmentationStorage,
)

from node import __version__
from node.codes import ABSENT, MANUFACTURER, MANUFACTURER_MODEL_NAME, PROCESSING_EQUIPMENT
from node.conformance_statement.markdown import paragraphs, table
from node.conformance_statement.names import class_name
from node.conformance_statement.objects import Exhibit, exhibits
from node.conformance_statement.observed import FIRST
from node.conformance_statement.scu import result_contexts
from node.conformance_statement.statement import RELEASED
from node.delivery.commitment import COMMITMENT_CONTEXT

_REFERENCED_SEGMENT: Final = "121191"
_IMAGE_LIBRARY: Final = "111028"
_PROCEDURE_REPORTED: Final = "121058"
_DEVICE_OBSERVER: Final = ("121012", "121014", "121015")
_ALGORITHM: Final = ("111001", "111003")
_TRACKING: Final = ("112039", "112040")
_MEASUREMENT_GROUP: Final = "125007"


@dataclass(frozen=True, slots=True)
class Shown:
    """The objects of one result, and all that are made."""

    seg: Dataset
    sr: Dataset
    of_role: dict[str, Exhibit]


@dataclass(frozen=True, slots=True)
class Requirement:
    """Something that a profile asks for, and how to see whether it is there."""

    text: str
    holds: Callable[[Shown], bool]


def ihe_integration_statement() -> str:
    """Answers the integration statement as Markdown."""
    of_role = {exhibit.kind.role: exhibit for exhibit in exhibits()}
    shown = Shown(of_role["seg"].first, of_role["sr"].first, of_role)
    return (
        paragraphs(
            "# IHE Integration Statement",
            table(("vendor", "product", "version", "date"), [(MANUFACTURER, MANUFACTURER_MODEL_NAME, __version__, RELEASED)]),
            "A self-assessment: not tested at a Connectathon, not reviewed by IHE. Written by the product itself (`radnode conformance --ihe`): "
            "each line of the tables on content is checked on objects that this version encodes.",
            table(
                ("integration profile", "actor", "options"),
                [("AI Results (AIR), Trial Implementation, Rev. 1.3 of 2025-08-08, RAD", "Evidence Creator", "none claimed")],
            ),
            "No other profile or actor is claimed; AI Workflow for Imaging (AIW-I) is not.",
            "## Transactions of the Evidence Creator",
            table(("transaction", "how", "supported"), _transactions()),
            "## General encoding of results (RAD TF-3 6.5.3.1), and what belongs to it",
            table(("asked for", "here"), _judged(_GENERAL, shown, "met", "not met")),
            "## Result primitives",
            table(("primitive", "here"), _judged(_PRIMITIVES, shown, "yes", "no")),
            "Which objects: " + ", ".join(class_name(exhibit.sop_class_uid) for exhibit in exhibits()) + ". What a destination gets whose "
            "archive does not take these: see `docs/reference/conformance-statement.md`, 5.2.",
        )
        + "\n"
    )


def _judged(requirements: tuple[Requirement, ...], shown: Shown, yes: str, no: str) -> Iterator[tuple[str, str]]:
    for requirement in requirements:
        yield requirement.text, yes if requirement.holds(shown) else f"**{no}**"


def _transactions() -> list[tuple[str, str, str]]:
    sent = {context.sop_class_uid for context in result_contexts()}
    creates_images = str(SegmentationStorage) in sent
    creates_documents = any(uid.startswith(str(ComprehensiveSRStorage).rpartition(".")[0]) for uid in sent)
    commits = COMMITMENT_CONTEXT.sop_class_uid.startswith("1.2.840.10008.1.20")
    return [
        ("RAD-18 Creator Images Stored", "C-STORE of SEG", _yes(holds=creates_images)),
        ("RAD-43 Evidence Documents Stored", "C-STORE of SR", _yes(holds=creates_documents)),
        ("RAD-10 Storage Commitment", "N-ACTION; N-EVENT-REPORT on either association", _yes(holds=commits)),
        ("RAD-108 Store Instances over the Web", "STOW-RS", _yes(holds=False)),
    ]


def _yes(*, holds: bool) -> str:
    return "yes" if holds else "**no**"


# ── what is looked for ──────────────────────────────────────────────────────


def _algorithm_item(dataset: Dataset) -> Dataset:
    """Answers the Contributing Equipment of the algorithm, an empty item where there is none."""
    for item in dataset.get("ContributingEquipmentSequence") or []:
        if item.PurposeOfReferenceCodeSequence[0].CodeValue == PROCESSING_EQUIPMENT.value:
            return Dataset(item)
    return Dataset()


def _has_equipment(shown: Shown) -> bool:
    wanted = ("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "DeviceUID")
    return all(_algorithm_item(exhibit.first).get(keyword) for exhibit in shown.of_role.values() for keyword in wanted)


def _device_uid_follows_model(shown: Shown) -> bool:
    return all(
        _algorithm_item(exhibit.made[FIRST]).get("DeviceUID") != _algorithm_item(exhibit.made["model"]).get("DeviceUID")
        for exhibit in shown.of_role.values()
    )


def _one_identity(shown: Shown) -> bool:
    item = _algorithm_item(shown.sr)
    observer = [_values(shown.sr, concept) for concept in _DEVICE_OBSERVER]
    algorithm = [_values(shown.sr, concept) for concept in _ALGORITHM]
    named = shown.seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    return (
        observer == [{str(item.DeviceUID)}, {item.Manufacturer}, {item.ManufacturerModelName}]
        and algorithm == [{item.ManufacturerModelName}, {item.SoftwareVersions}]
        and (named.AlgorithmSource, named.AlgorithmName, named.AlgorithmVersion)
        == (item.Manufacturer, item.ManufacturerModelName, item.SoftwareVersions)
    )


def _in_source_study(shown: Shown) -> bool:
    source = shown.of_role["sr"].specimens[FIRST].source
    made = [exhibit.first for exhibit in shown.of_role.values()]
    series = {str(dataset.SeriesInstanceUID) for dataset in made}
    return all(dataset.StudyInstanceUID == source.StudyInstanceUID and dataset.PatientID == source.PatientID for dataset in made) and len(
        series - {str(source.SeriesInstanceUID)}
    ) == len(made)


def _procedure_of_source(shown: Shown) -> bool:
    source = shown.of_role["sr"].specimens[FIRST].source
    return _values(shown.sr, _PROCEDURE_REPORTED) == {source.ProcedureCodeSequence[0].CodeValue}


def _cites_everything(shown: Shown) -> bool:
    used = {str(image.SOPInstanceUID) for image in shown.of_role["sr"].specimens[FIRST].sources}
    evidence = {
        str(one.ReferencedSOPInstanceUID)
        for study in shown.sr.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for one in series.ReferencedSOPSequence
    }
    referenced = {str(one.ReferencedSOPInstanceUID) for one in shown.seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    return used | {str(shown.seg.SOPInstanceUID)} == evidence and used == referenced


def _tracks(shown: Shown) -> bool:
    groups = [item for item in _items(shown.sr) if _concept(item) == _MEASUREMENT_GROUP]
    tracked = all(set(_TRACKING) <= {_concept(inner) for inner in group.ContentSequence} for group in groups)
    segments = {str(segment.TrackingUID) for segment in shown.seg.SegmentSequence}
    return bool(groups) and tracked and segments <= _values(shown.sr, _TRACKING[1])


def _says_absent(shown: Shown) -> bool:
    negative = shown.of_role["sr"].made["nothing found"]
    return any(item.ValueType == "CODE" and item.ConceptCodeSequence[0].CodeValue == ABSENT.value for item in _items(negative))


def _says_failed(shown: Shown) -> bool:
    return {"failed", "not attempted, with a prior"} <= set(shown.of_role["sr"].made)


def _has_value_type(value_type: str) -> Callable[[Shown], bool]:
    return lambda shown: any(item.ValueType == value_type for item in _items(shown.sr))


def _has_graphic(*graphic_types: str) -> Callable[[Shown], bool]:
    return lambda shown: any(
        item.ValueType in {"SCOORD", "SCOORD3D"} and item.GraphicType in graphic_types
        for dataset in shown.of_role["sr"].made.values()
        for item in _items(dataset)
    )


def _has_concept(concept: str) -> Callable[[Shown], bool]:
    return lambda shown: any(_concept(item) == concept for item in _items(shown.sr))


def _has_class(*uids: str) -> Callable[[Shown], bool]:
    return lambda shown: any(exhibit.sop_class_uid in uids for exhibit in shown.of_role.values())


def _items(item: Dataset) -> Iterator[Dataset]:
    yield item
    for inner in item.get("ContentSequence") or []:
        yield from _items(inner)


def _concept(item: Dataset) -> str:
    name = item.get("ConceptNameCodeSequence")
    return str(name[0].CodeValue) if name else ""


def _values(report: Dataset, concept: str) -> set[str]:
    found = set()
    for item in _items(report):
        if _concept(item) == concept:
            found.add(item.ConceptCodeSequence[0].CodeValue if item.ValueType == "CODE" else str(item.get("UID") or item.get("TextValue")))
    return found


_GENERAL: Final = (
    Requirement("Contributing Equipment of each algorithm in every object: purpose (109102, DCM, Processing Equipment), Manufacturer, "
                "Manufacturer's Model Name, Software Versions, Device UID", _has_equipment),
    Requirement("another Device UID for every other model and every other set of weights", _device_uid_follows_model),
    Requirement("the same identity of the algorithm in TID 1004, TID 4019, Algorithm Identification Sequence and Contributing Equipment",
                _one_identity),
    Requirement("Procedure Reported (121058, DCM) is the imaging procedure, not the algorithm", _procedure_of_source),
    Requirement("results are in the study of their source images, each in a series of its own", _in_source_study),
    Requirement("every image that was used is referenced", _cites_everything),
    Requirement("a group for every structure, with Tracking Identifier and Tracking Unique Identifier, the same as in the SEG", _tracks),
    Requirement("a negative result says so in codes (Absent)", _says_absent),
    Requirement("an analysis that failed, or was not attempted, is reported as that", _says_failed),
)  # fmt: skip

_PRIMITIVES: Final = (
    Requirement("qualitative finding: coded evaluations", _says_absent),
    Requirement("measurement: NUM in groups of TID 1411, units in UCUM", _has_value_type("NUM")),
    Requirement("location: points (SCOORD, SCOORD3D)", _has_graphic("POINT", "MULTIPOINT")),
    Requirement("region: voxels (SEG), referenced from TID 1411", _has_concept(_REFERENCED_SEGMENT)),
    Requirement("region: contours in the report (SCOORD, SCOORD3D)", _has_graphic("POLYLINE", "POLYGON", "CIRCLE", "ELLIPSE")),
    Requirement("parametric map", _has_class(str(ParametricMapStorage))),
    Requirement("tracking identifier", _tracks),
    Requirement("key images: Key Object Selection", _has_class(str(KeyObjectSelectionDocumentStorage))),
    Requirement("key images: Image Library (TID 1600) in the report", _has_concept(_IMAGE_LIBRARY)),
)

"""The Key Object Selection: the slices on which each structure is largest, for viewers that jump to them (PS3.3 A.35.4, TID 2010)."""

from collections.abc import Iterable, Sequence
from typing import Final

from pydicom.dataset import Dataset
from pydicom.uid import KeyObjectSelectionDocumentStorage

from node.codes import Code
from node.domain.result import Result
from node.domain.states import Outcome
from node.errors import EvidenceError
from node.evidence.base import NOT_VERIFIED, Role, begin, by_series, images_used, is_placed, key_slices, reference, reference_to_plane
from node.evidence.context import EvidenceContext
from node.evidence.procedure import referenced_requests
from node.evidence.sop_common import code_item, device_uid, finished

KEY_OBJECTS: Final = Role("kos", KeyObjectSelectionDocumentStorage, "KO", 4)
OF_INTEREST: Final = Code("113000", "DCM", "Of Interest")

_DESCRIPTION: Final = Code("113012", "DCM", "Key Object Description")
_OBSERVER_TYPE: Final = Code("121005", "DCM", "Observer Type")
_DEVICE: Final = Code("121007", "DCM", "Device")
_DEVICE_UID: Final = Code("121012", "DCM", "Device Observer UID")
_DEVICE_NAME: Final = Code("121013", "DCM", "Device Observer Name")


def encode_key_objects(result: Result, sources: Sequence[Dataset], context: EvidenceContext) -> Dataset:
    """Answers the selection of the key slices; where nothing found has a place, of every source image: those that the finding is of.

    Raises
    ------
    EvidenceError
        If nothing was found (make none then), or a source image is missing.
    """
    if result.outcome is not Outcome.FOUND:
        raise EvidenceError("nothing was found: no image is of interest")
    images = images_used(result, sources)
    if not is_placed(result):
        references = [reference(image.SOPClassUID, image.SOPInstanceUID) for image in images]
        lines = [NOT_VERIFIED]
    else:
        slices = key_slices(result)
        references = [reference_to_plane(one.plane) for one in slices]
        lines = [f"{NOT_VERIFIED}. {'Largest cuts' if result.label_map is not None else 'What was found'}, in the order of the images:"]
        lines += [", ".join(one.labels) for one in slices]
    made = begin(KEY_OBJECTS, images[0], result, context)
    made.ReferencedPerformedProcedureStepSequence = []
    cited = {item.ReferencedSOPInstanceUID for item in references}
    made.CurrentRequestedProcedureEvidenceSequence = [_evidence(image for image in images if image.SOPInstanceUID in cited)]
    if requests := referenced_requests(images[0]):
        made.ReferencedRequestSequence = requests
    made.ValueType = "CONTAINER"
    made.ConceptNameCodeSequence = [code_item(OF_INTEREST)]
    made.ContinuityOfContent = "SEPARATE"
    made.ContentTemplateSequence = [_template()]
    made.ContentSequence = [*_observer(result), _text("\n".join(lines)), *(_image(item) for item in references)]
    return finished(made, images[0], result, context)


def _evidence(images: Iterable[Dataset]) -> Dataset:
    """Answers the study of the images, with the series and the images of it (PS3.3 Table 10-3b, C.17.6.2.1)."""
    study = Dataset()
    study.ReferencedSeriesSequence = []
    for uid, found in by_series(images).items():
        series = Dataset()
        series.SeriesInstanceUID = uid
        series.ReferencedSOPSequence = [reference(image.SOPClassUID, image.SOPInstanceUID) for image in found]
        study.ReferencedSeriesSequence.append(series)
        study.StudyInstanceUID = str(found[0].StudyInstanceUID)
    return study


def _template() -> Dataset:
    item = Dataset()
    item.MappingResource = "DCMR"
    item.TemplateIdentifier = "2010"
    return item


def _observer(result: Result) -> list[Dataset]:
    """Answers who selected: the algorithm, by the UID that it has in the report (TID 1002, TID 1004)."""
    kind = _item("HAS OBS CONTEXT", "CODE", _OBSERVER_TYPE)
    kind.ConceptCodeSequence = [code_item(_DEVICE)]
    uid = _item("HAS OBS CONTEXT", "UIDREF", _DEVICE_UID)
    uid.UID = device_uid(result)
    name = _item("HAS OBS CONTEXT", "TEXT", _DEVICE_NAME)
    name.TextValue = f"{result.card.name} {result.card.version}"
    return [kind, uid, name]


def _text(text: str) -> Dataset:
    item = _item("CONTAINS", "TEXT", _DESCRIPTION)
    item.TextValue = text
    return item


def _image(referenced: Dataset) -> Dataset:
    item = _item("CONTAINS", "IMAGE", None)
    item.ReferencedSOPSequence = [referenced]
    return item


def _item(relationship: str, value_type: str, concept: Code | None) -> Dataset:
    item = Dataset()
    item.RelationshipType, item.ValueType = relationship, value_type
    if concept is not None:
        item.ConceptNameCodeSequence = [code_item(concept)]
    return item

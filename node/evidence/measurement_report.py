"""The measurement report: a Comprehensive 3D SR after TID 1500 (PS3.3 A.35.13, PS3.16), unverified and preliminary.

What was found and has a place is told by measurement groups (`report_groups`). Then every report concludes (`report_conclusions`): how
the analysis ended (Summary of Analyses: Succeeded, Failed or Not Attempted), so that silence is never read as a negative, what a
classifier answered, and what is "Absent". A model that failed or was not run says nothing about structures.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from highdicom.sr import (
    CodedConcept,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    LanguageOfContentItemAndDescendants,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from node.domain.result import PredecessorDocument, Result
from node.errors import EvidenceError
from node.evidence.base import images_used
from node.evidence.context import EvidenceContext
from node.evidence.header import normalise_source
from node.evidence.procedure import procedure_reported, referenced_requests
from node.evidence.report_conclusions import conclusions
from node.evidence.report_groups import measurement_groups
from node.evidence.sop_common import (
    device_uid,
    equipment,
    finished,
    long_string,
    series_description,
    series_number,
)

_LANGUAGE: Final = CodedConcept("en-US", "RFC5646", "English (United States)")


def encode_report(
    result: Result, sources: Sequence[Dataset], segmentation: Dataset | None, context: EvidenceContext, role: str = "sr"
) -> Dataset:
    """Answers the report of a result, whatever its outcome.

    `sources` are the headers of the images that were used, or for a study that was not analyzed those that came;
    `segmentation` is the SEG of the same result and context, where there is one; reports that cite different ones differ by their
    `role`, from which their UIDs derive.

    Raises
    ------
    EvidenceError
        If a structure was outlined and the segmentation is missing, or none was and it is not.
    """
    if any(segment.present for segment in result.segments) != (segmentation is not None):
        raise EvidenceError(f"a report of an outcome '{result.outcome}' and its segmentation do not fit together")
    images = _used_images(result, sources)
    groups = measurement_groups(result, images, segmentation, context)
    report = MeasurementReport(
        observation_context=_observation_context(result),
        procedure_reported=codes.SCT.ImagingProcedure,  # a stand-in: the true code keeps its bytes, see below
        imaging_measurements=groups or [_no_group(context)],
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(_LANGUAGE),
    )
    if not groups:
        del report[0].ContentSequence[-1]
    report[0].ContentSequence.append(conclusions(result))
    cited = [*images, segmentation] if segmentation is not None else images
    content = report[0].ContentSequence
    report[0].ContentSequence = content[:1]  # highdicom copies and searches all of it: of a hundred structures, for seconds
    stand_in = normalise_source(images[0])
    stand_in.SOPClassUID = SecondaryCaptureImageStorage  # highdicom knows no private class; `_cite` writes the true one
    made = Comprehensive3DSR(
        evidence=[stand_in],
        content=report[0],
        series_instance_uid=context.uid(role, "series"),
        series_number=series_number(images[0], 2),
        sop_instance_uid=context.uid(role, "instance"),
        instance_number=1,
        series_description=series_description(result.card, "SR"),
        is_complete=True,
        is_final=False,
        is_verified=False,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **equipment(context),
    )
    made.ContentSequence = content
    _cite(made, cited)
    _tell_procedure(made, images[0])
    _tell_completion(made, result)
    if requests := referenced_requests(images[0]):
        made.ReferencedRequestSequence = requests
    if context.predecessor is not None:
        made.PredecessorDocumentsSequence = [_predecessor(context.predecessor)]
    return finished(made, images[0], result, context)


def _used_images(result: Result, sources: Sequence[Dataset]) -> list[Dataset]:
    """Answers the images to cite, in an order that does not depend on their arrival; of a network with several inputs, all of them."""
    images = images_used(result, sources)
    if not result.card.channels:
        return images
    series = {str(image.SeriesInstanceUID) for image in images}
    others = (source for source in sources if str(source.SeriesInstanceUID) not in series)
    return [*images, *sorted(others, key=lambda one: (str(one.SeriesInstanceUID), str(one.SOPInstanceUID)))]


def _no_group(context: EvidenceContext) -> MeasurementsAndQualitativeEvaluations:
    """Answers a stand-in: highdicom makes no report without a group."""
    return MeasurementsAndQualitativeEvaluations(TrackingIdentifier(uid=context.uid("tracking", "none"), identifier="none"))


def _observation_context(result: Result) -> ObservationContext:
    """Answers the device observer, equal to the Contributing Equipment (TID 1004, IHE AIR 6.5.3.1)."""
    card = result.card
    return ObservationContext(
        observer_device_context=ObserverContext(
            observer_type=codes.DCM.Device,
            observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
                uid=device_uid(result),
                name=card.title,
                manufacturer_name=long_string(card.manufacturer),
                model_name=long_string(card.name),
            ),
        )
    )


# ── header ──────────────────────────────────────────────────────────────────


def _cite(made: Dataset, cited: Sequence[Dataset]) -> None:
    """Lists every object that was used, those of other studies apart (PS3.3 C.17.2)."""
    studies: dict[str, dict[str, list[Dataset]]] = {}
    for object_ in cited:
        instance = Dataset()
        instance.ReferencedSOPClassUID = str(object_.SOPClassUID)
        instance.ReferencedSOPInstanceUID = str(object_.SOPInstanceUID)
        series = studies.setdefault(str(object_.StudyInstanceUID), {})
        series.setdefault(str(object_.SeriesInstanceUID), []).append(instance)
    items = {uid: _hierarchy(uid, series) for uid, series in studies.items()}
    made.CurrentRequestedProcedureEvidenceSequence = [items.pop(made.StudyInstanceUID)]
    if items:
        made.PertinentOtherEvidenceSequence = list(items.values())


def _hierarchy(study_instance_uid: str, instances_of_series: Mapping[str, Sequence[Dataset]]) -> Dataset:
    """Answers an item of the Hierarchical SOP Instance Reference macro (PS3.3 Table C.17-3)."""
    study = Dataset()
    study.StudyInstanceUID = study_instance_uid
    study.ReferencedSeriesSequence = []
    for uid, instances in instances_of_series.items():
        series = Dataset()
        series.SeriesInstanceUID = uid
        series.ReferencedSOPSequence = list(instances)
        study.ReferencedSeriesSequence.append(series)
    return study


def _tell_procedure(made: Dataset, source: Dataset) -> None:
    """Puts the imaging procedure, not the algorithm, into Procedure Reported (IHE AIR 6.5.3.1)."""
    for item in made.ContentSequence:
        if item.ConceptNameCodeSequence[0].CodeValue == codes.DCM.ProcedureReported.value:
            item.ConceptCodeSequence = [procedure_reported(source)]


def _tell_completion(made: Dataset, result: Result) -> None:
    """Calls a result from incomplete input PARTIAL, and says why (PS3.3 C.17.2)."""
    degraded = [note.text for note in result.notes if note.degraded]
    if degraded:
        made.CompletionFlag = "PARTIAL"
        made.CompletionFlagDescription = long_string(degraded[0])


def _predecessor(document: PredecessorDocument) -> Dataset:
    instance = Dataset()
    instance.ReferencedSOPClassUID = document.sop_class_uid
    instance.ReferencedSOPInstanceUID = document.sop_instance_uid
    return _hierarchy(document.study_instance_uid, {document.series_instance_uid: [instance]})

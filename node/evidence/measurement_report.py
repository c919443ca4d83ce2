"""The measurement report: a Comprehensive 3D SR after TID 1500 (PS3.3 A.35.13, PS3.16), unverified and preliminary.

Every structure that was found is measured by its segment and outlined on its key slice. Then every report concludes: how the
analysis ended (Summary of Analyses: Succeeded, Failed or Not Attempted), so that silence is never read as a negative, and which
structures are "Absent". A model that failed or was not run says nothing about structures.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
    Comprehensive3DSR,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    GraphicTypeValues,
    ImageRegion,
    LanguageOfContentItemAndDescendants,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    ReferencedSegment,
    RelationshipTypeValues,
    SourceImageForRegion,
    SourceSeriesForSegmentation,
    TextContentItem,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from node.codes import (
    ABSENT,
    ANALYSIS_FAILED,
    ANALYSIS_NOT_ATTEMPTED,
    ANALYSIS_SUCCEEDED,
    QUALITATIVE_EVALUATIONS,
    SUMMARY_OF_ANALYSES,
    Code,
)
from node.domain.modelcard import SegmentDefinition
from node.domain.result import PredecessorDocument, Result, SegmentResult
from node.domain.states import Outcome
from node.errors import EvidenceError
from node.evidence.context import EvidenceContext
from node.evidence.header import normalise_source
from node.evidence.key_region import key_region
from node.evidence.procedure import procedure_reported, referenced_requests
from node.evidence.segmentation import images_of_planes, tracking_of
from node.evidence.sop_common import (
    algorithm_parameters,
    coded,
    device_uid,
    equipment,
    finished,
    long_string,
    series_description,
    series_number,
)

_LANGUAGE: Final = CodedConcept("en-US", "RFC5646", "English (United States)")
_ENDINGS: Final = {
    Outcome.FOUND: ANALYSIS_SUCCEEDED,
    Outcome.NOTHING_FOUND: ANALYSIS_SUCCEEDED,
    Outcome.NOT_ATTEMPTED: ANALYSIS_NOT_ATTEMPTED,
    Outcome.FAILED: ANALYSIS_FAILED,
}
_NOT_VERIFIED: Final = "AI result, not verified by a person."

Group = PlanarROIMeasurementsAndQualitativeEvaluations | VolumetricROIMeasurementsAndQualitativeEvaluations


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
        If something was found and the segmentation is missing, or nothing was found and it is not.
    """
    if (result.outcome is Outcome.FOUND) != (segmentation is not None):
        raise EvidenceError(f"a report of an outcome '{result.outcome}' and its segmentation do not fit together")
    images = _used_images(result, sources)
    groups = _groups(result, images, segmentation, context)
    report = MeasurementReport(
        observation_context=_observation_context(result),
        procedure_reported=codes.SCT.ImagingProcedure,  # a stand-in: the true code keeps its bytes, see below
        imaging_measurements=groups or [_no_group(context)],
        language_of_content_item_and_descendants=LanguageOfContentItemAndDescendants(_LANGUAGE),
    )
    if not groups:
        del report[0].ContentSequence[-1]
    report[0].ContentSequence.append(_conclusions(result))
    cited = [*images, segmentation] if segmentation is not None else images
    outlined = _outlined_images(report[0])
    stand_ins = [normalise_source(image) for image in images if image is images[0] or str(image.SOPInstanceUID) in outlined]
    for stand_in in stand_ins:
        stand_in.SOPClassUID = SecondaryCaptureImageStorage  # highdicom knows no private class; `_cite` writes the true one
    stand_ins += [normalise_source(object_) for object_ in cited[len(images) :]]
    made = Comprehensive3DSR(
        evidence=stand_ins,
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
    _cite(made, cited)
    _tell_procedure(made, images[0])
    _tell_completion(made, result)
    if requests := referenced_requests(images[0]):
        made.ReferencedRequestSequence = requests
    if context.predecessor is not None:
        made.PredecessorDocumentsSequence = [_predecessor(context.predecessor)]
    return finished(made, images[0], result, context)


def _used_images(result: Result, sources: Sequence[Dataset]) -> list[Dataset]:
    """Answers the images to cite, in an order that does not depend on their arrival."""
    if not sources:
        raise EvidenceError("a report needs the headers of its source images")
    if result.label_map is not None:
        return images_of_planes(sources, result.label_map.source)
    study = sources[0].StudyInstanceUID
    return sorted(sources, key=lambda s: (s.StudyInstanceUID != study, str(s.SeriesInstanceUID), str(s.SOPInstanceUID)))


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


# ── what was measured ───────────────────────────────────────────────────────


def _groups(result: Result, images: Sequence[Dataset], segmentation: Dataset | None, context: EvidenceContext) -> list[Group]:
    """Answers two groups for each structure that was found, under one Tracking UID.

    Its volume by its segment (TID 1411), and its outline on the slice where it is largest (TID 1410).
    """
    groups: list[Group] = []
    if segmentation is None:
        return groups
    for number, segment in enumerate((one for one in result.segments if one.present), 1):
        groups.append(_found_group(segment, result, images, (segmentation, number), context))
        groups.append(_outlined_group(segment.definition, result, context))
    return groups


def _outlined_images(item: Dataset) -> set[str]:
    """Answers the SOP Instance UIDs of the images below a content item: highdicom wants to see each."""
    found = {str(one.ReferencedSOPInstanceUID) for one in item.get("ReferencedSOPSequence") or []}
    for child in item.get("ContentSequence") or []:
        found |= _outlined_images(child)
    return found


def _no_group(context: EvidenceContext) -> MeasurementsAndQualitativeEvaluations:
    """Answers a stand-in: highdicom makes no report without a group."""
    return MeasurementsAndQualitativeEvaluations(TrackingIdentifier(uid=context.uid("tracking", "none"), identifier="none"))


def _found_group(
    segment: SegmentResult, result: Result, images: Sequence[Dataset], reference: tuple[Dataset, int], context: EvidenceContext
) -> VolumetricROIMeasurementsAndQualitativeEvaluations:
    """Answers a structure with its segment and its measurements (TID 1411); `reference` is the SEG and the Segment Number."""
    definition = segment.definition
    segmentation, number = reference
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(definition, result, context),
        referenced_segment=ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=number,
            source_series=SourceSeriesForSegmentation(str(images[0].SeriesInstanceUID)),
        ),
        finding_category=coded(definition.category),
        finding_type=coded(definition.type),
        finding_sites=_sites(definition),
        algorithm_id=_algorithm(result),
        measurements=[
            Measurement(
                name=coded(measurement.concept),
                value=measurement.value,
                unit=coded(measurement.unit),
                derivation=coded(measurement.derivation) if measurement.derivation else None,
            )
            for measurement in segment.measurements
        ],
    )


def _outlined_group(
    definition: SegmentDefinition, result: Result, context: EvidenceContext
) -> PlanarROIMeasurementsAndQualitativeEvaluations:
    """Answers the outline of a structure on its key slice (TID 1410): what viewers draw that do not follow a segment."""
    assert result.label_map is not None  # noqa: S101 - a structure was found
    region = key_region(result.label_map, definition.label_value)
    return PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(definition, result, context),
        referenced_region=ImageRegion(
            graphic_type=GraphicTypeValues.POLYLINE,
            graphic_data=region.points,
            source_image=SourceImageForRegion(
                referenced_sop_class_uid=region.plane.sop_class_uid,
                referenced_sop_instance_uid=region.plane.sop_instance_uid,
                referenced_frame_numbers=[region.plane.frame_number] if region.plane.frame_number is not None else None,
            ),
        ),
        finding_category=coded(definition.category),
        finding_type=coded(definition.type),
        finding_sites=_sites(definition),
        algorithm_id=_algorithm(result),
    )


# ── what was concluded ──────────────────────────────────────────────────────


def _conclusions(result: Result) -> ContainerContentItem:
    """Answers how the analysis ended, what was looked for and not found, and what a reader must know (TID 1500, row 12).

    Apart from the measurements: OHIF shows nothing of a report in which a measurement group has no place on an image.
    """
    container = ContainerContentItem(name=coded(QUALITATIVE_EVALUATIONS), relationship_type=RelationshipTypeValues.CONTAINS)
    container.ContentSequence = ContentSequence()
    container.ContentSequence.append(_code(SUMMARY_OF_ANALYSES, _ENDINGS[result.outcome]))
    for text in _sentences(result):
        container.ContentSequence.append(_comment(text))
    if result.outcome in {Outcome.FOUND, Outcome.NOTHING_FOUND}:
        for segment in result.segments:
            if not segment.present:
                container.ContentSequence.append(_code(segment.definition.type, ABSENT))
                container.ContentSequence.append(_comment(f"{segment.definition.label}: not outlined by the model in these images."))
    return container


def _sentences(result: Result) -> list[str]:
    texts = [_NOT_VERIFIED]
    if result.outcome is Outcome.NOT_ATTEMPTED:
        texts = [f"The analysis was not attempted: {result.reason}", "Nothing can be concluded about the images."]
    elif result.outcome is Outcome.FAILED:
        texts = [f"The analysis failed: {result.reason}", "Nothing can be concluded about the images."]
    elif result.outcome is Outcome.NOTHING_FOUND:
        texts.append("The analysis ran to its end and found none of the structures it looks for.")
    return [*texts, *(note.text for note in result.notes)]


def _code(name: Code, value: Code) -> CodeContentItem:
    return CodeContentItem(name=coded(name), value=coded(value), relationship_type=RelationshipTypeValues.CONTAINS)


def _comment(text: str) -> TextContentItem:
    return TextContentItem(name=codes.DCM.Comment, value=text, relationship_type=RelationshipTypeValues.CONTAINS)


def _tracking(definition: SegmentDefinition, result: Result, context: EvidenceContext) -> TrackingIdentifier:
    identifier, uid = tracking_of(definition, result, context)
    return TrackingIdentifier(uid=uid, identifier=identifier)


def _sites(definition: SegmentDefinition) -> list[FindingSite] | None:
    """Answers where a structure lies: its region, or itself where only its side is to be told."""
    location = definition.anatomic_region or (definition.type if definition.laterality else None)
    if location is None:
        return None
    laterality = coded(definition.laterality) if definition.laterality else None
    return [FindingSite(anatomic_location=coded(location), laterality=laterality)]


def _algorithm(result: Result) -> AlgorithmIdentification:
    """Answers TID 4019, with the values of the Contributing Equipment."""
    card = result.card
    parameters = algorithm_parameters(result)
    return AlgorithmIdentification(
        name=long_string(card.name),
        version=long_string(card.version),
        manufacturer=long_string(card.manufacturer),
        family=coded(card.family),
        parameters=[parameters] if parameters else None,
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

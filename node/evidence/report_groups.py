"""The measurement groups of a report: what was found and has a place, each under a Tracking UID (PS3.16 TID 1410, 1411).

Everything is told twice under its Tracking UID. First on a slice: the outline of a structure, the cut of a box, a point (TID 1410 with
SCOORD), for viewers that draw coordinates on images; OHIF takes the first coordinates that it meets. Then in space: the segment of a
structure, the faces of a box, a point, the two as Volume Surface (TID 1411 with SCOORD3D). An older SOP class cannot hold coordinates in space; there
the second telling is left out (`node/delivery/variants.py`), so nothing else may stand in it alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    FindingSite,
    GraphicTypeValues,
    GraphicTypeValues3D,
    ImageRegion,
    Measurement,
    PlanarROIMeasurementsAndQualitativeEvaluations,
    ReferencedSegment,
    SourceImageForRegion,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumeSurface,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from node.codes import CERTAINTY_OF_FINDING, UCUM_PERCENT
from node.domain.findings import Detection, Landmark
from node.domain.modelcard import DetectionDefinition, LandmarkDefinition, SegmentDefinition
from node.domain.result import Result, SegmentResult
from node.domain.volume import Plane
from node.evidence.context import EvidenceContext
from node.evidence.key_region import FEWEST_POINTS, key_region
from node.evidence.places import Place, closed_line, faces_of, ordered_detections, outline_of, pixel_of, place_of_finding
from node.evidence.segmentation import tracking_of
from node.evidence.sop_common import algorithm_parameters, coded, long_string

Group = PlanarROIMeasurementsAndQualitativeEvaluations | VolumetricROIMeasurementsAndQualitativeEvaluations


def measurement_groups(result: Result, images: Sequence[Dataset], segmentation: Dataset | None, context: EvidenceContext) -> list[Group]:
    """Answers two groups for each structure, box and point that was found; one where there is no space to place it in.

    `segmentation` holds the structures: its Segment Number n is the n-th of them.
    """
    groups: list[Group] = []
    series_of = {str(image.SOPInstanceUID): str(image.SeriesInstanceUID) for image in images}
    if segmentation is not None:
        for number, segment in enumerate((one for one in result.segments if one.present), 1):
            groups.append(_segmented(segment, result, images, (segmentation, number), context))
            groups.append(_outlined(segment.definition, result, context))
    for number, detection in enumerate(ordered_detections(result), 1):
        groups += _detected(detection, result, series_of, _numbered(detection.definition, number, result, context))
    for number, landmark in enumerate(result.landmarks, 1):
        groups += _located(landmark, result, series_of, _numbered(landmark.definition, number, result, context))
    return groups


def algorithm_identification(result: Result) -> AlgorithmIdentification:
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


# ── structures ──────────────────────────────────────────────────────────────


def _segmented(
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
        algorithm_id=algorithm_identification(result),
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


def _outlined(definition: SegmentDefinition, result: Result, context: EvidenceContext) -> PlanarROIMeasurementsAndQualitativeEvaluations:
    """Answers the outline of a structure on its key slice (TID 1410): what viewers draw that do not follow a segment."""
    assert result.label_map is not None  # noqa: S101 - a structure was found
    region = key_region(result.label_map, definition.label_value)
    return PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(definition, result, context),
        referenced_region=_region(GraphicTypeValues.POLYLINE, region.points, region.plane),
        finding_category=coded(definition.category),
        finding_type=coded(definition.type),
        finding_sites=_sites(definition),
        algorithm_id=algorithm_identification(result),
    )


def _tracking(definition: SegmentDefinition, result: Result, context: EvidenceContext) -> TrackingIdentifier:
    identifier, uid = tracking_of(definition, result, context)
    return TrackingIdentifier(uid=uid, identifier=identifier)


def _sites(definition: SegmentDefinition | DetectionDefinition) -> list[FindingSite] | None:
    """Answers where a structure lies: its region, or itself where only its side is to be told."""
    location = definition.anatomic_region or (definition.type if definition.laterality else None)
    if location is None:
        return None
    laterality = coded(definition.laterality) if definition.laterality else None
    return [FindingSite(anatomic_location=coded(location), laterality=laterality)]


# ── boxes ───────────────────────────────────────────────────────────────────


def _detected(detection: Detection, result: Result, series_of: Mapping[str, str], tracking: tuple[str, str]) -> list[Group]:
    """Answers a box by its cut on the slice that is nearest to its middle, with its score; and by its faces in space.

    No size is told: how large the box is says little of how large that is which lies in it.
    """
    definition = detection.definition
    place = place_of_finding(result, detection)
    line = closed_line(outline_of(detection, place), FEWEST_POINTS) + 0.5
    groups: list[Group] = [
        PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=_identifier(tracking),
            referenced_region=_region(GraphicTypeValues.POLYLINE, line, place.plane),
            finding_category=coded(definition.category),
            finding_type=coded(definition.type),
            finding_sites=_sites(definition),
            algorithm_id=algorithm_identification(result),
            measurements=[_certainty(detection.score)],
        )
    ]
    if _is_in_space(place, result):
        groups.append(
            VolumetricROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=_identifier(tracking),
                referenced_volume_surface=_surface(GraphicTypeValues3D.POLYGON, faces_of(detection), place, series_of),
                finding_category=coded(definition.category),
                finding_type=coded(definition.type),
                finding_sites=_sites(definition),
                algorithm_id=algorithm_identification(result),
            )
        )
    return groups


# ── points ──────────────────────────────────────────────────────────────────


def _located(landmark: Landmark, result: Result, series_of: Mapping[str, str], tracking: tuple[str, str]) -> list[Group]:
    """Answers a point on the slice that is nearest to it, with its score; and in space."""
    place = place_of_finding(result, landmark)
    groups: list[Group] = [
        PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=_identifier(tracking),
            referenced_region=_region(GraphicTypeValues.POINT, pixel_of(landmark, place)[None] + 0.5, place.plane),
            finding_type=coded(landmark.definition.type),
            algorithm_id=algorithm_identification(result),
            measurements=[_certainty(landmark.score)],
        )
    ]
    if _is_in_space(place, result):
        groups.append(
            VolumetricROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=_identifier(tracking),
                referenced_volume_surface=_surface(GraphicTypeValues3D.POINT, [np.asarray([landmark.position_mm])], place, series_of),
                finding_type=coded(landmark.definition.type),
                algorithm_id=algorithm_identification(result),
            )
        )
    return groups


# ── what both have ──────────────────────────────────────────────────────────


def _numbered(
    definition: DetectionDefinition | LandmarkDefinition, number: int, result: Result, context: EvidenceContext
) -> tuple[str, str]:
    """Answers Tracking Identifier and Tracking UID of the n-th box or point."""
    kind = "detection" if isinstance(definition, DetectionDefinition) else "landmark"
    return f"{result.card.name} {definition.label} {number}", context.uid("tracking", kind, str(number))


def _identifier(tracking: tuple[str, str]) -> TrackingIdentifier:
    return TrackingIdentifier(uid=tracking[1], identifier=tracking[0])


def _region(graphic_type: GraphicTypeValues, points: NDArray[np.float64], plane: Plane) -> ImageRegion:
    """Answers coordinates on an image: 0.5 at the centre of its first pixel (PS3.3 C.18.6)."""
    return ImageRegion(
        graphic_type=graphic_type,
        graphic_data=points,
        source_image=SourceImageForRegion(
            referenced_sop_class_uid=plane.sop_class_uid,
            referenced_sop_instance_uid=plane.sop_instance_uid,
            referenced_frame_numbers=[plane.frame_number] if plane.frame_number is not None else None,
        ),
    )


def _surface(
    graphic_type: GraphicTypeValues3D, parts: list[NDArray[np.float64]], place: Place, series_of: Mapping[str, str]
) -> VolumeSurface:
    """Answers coordinates in the frame of reference of the images."""
    return VolumeSurface(
        graphic_type=graphic_type,
        graphic_data=parts,
        frame_of_reference_uid=place.grid.frame_of_reference_uid,
        source_series=SourceSeriesForSegmentation(series_of[place.plane.sop_instance_uid]),
    )


def _certainty(score: float) -> Measurement:
    return Measurement(name=coded(CERTAINTY_OF_FINDING), value=percent(score), unit=coded(UCUM_PERCENT))


def percent(share: float) -> float:
    """Answers a share as percent, to a hundredth: no network knows more."""
    return round(100.0 * share, 2)


def _is_in_space(place: Place, result: Result) -> bool:
    """Answers whether the images lie in a frame of reference: those that are read one by one are projections."""
    return bool(place.grid.frame_of_reference_uid) and result.card.reads == "volume"

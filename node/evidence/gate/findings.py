"""Whether what a report says of answers, boxes and points is whole, and lies on the images (PS3.3 C.18.6, C.18.9; PS3.16 TID 1410, 1411)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from node.evidence.gate.faults import Fault, Severity
from node.evidence.gate.frames import FrameFacts, planes_of
from node.evidence.gate.report import FINDING, TRACKING_UID, Item, groups_of, number_of, unit_of
from node.evidence.gate.view import View

PROBABILITY: Final = ("DCM", "122157")
LIKELIHOODS: Final = frozenset({PROBABILITY, ("DCM", "111011"), ("DCM", "111012"), ("DCM", "111013"), ("DCM", "111047")})
"""Probability, Certainty of Feature, of Finding, of Impression, Probability of cancer."""
PRESENCE: Final = frozenset({"52101004", "272519000"})
CERTAIN_IN: Final = {"%": 100.0, "1": 1.0, "{ratio}": 1.0, "[ppth]": 1000.0}
"""Unit → what certainty is in it."""
SUM_TOLERANCE: Final = 0.02
BESIDE_MM: Final = 20.0
"""How far coordinates may lie outside of the images: the box of a lesion at the edge reaches beyond it."""
_ON_PIXELS: Final = frozenset({"POINT", "MULTIPOINT", "POLYLINE"})
_FEWEST: Final = {"POINT": 1, "MULTIPOINT": 1, "POLYLINE": 2, "POLYGON": 4, "CIRCLE": 2, "ELLIPSE": 4, "ELLIPSOID": 6}
_MOST: Final = {"POINT": 1, "CIRCLE": 2, "ELLIPSE": 4, "ELLIPSOID": 6}
_ROUNDING: Final = 0.01
_ALONE: Final = 2


def finding_faults(report: View) -> Iterator[Fault]:
    """Answers what is wrong with the answers, boxes and points of a report by itself."""
    root = Item("1", report)
    for item in root.all():
        if item.value_type == "NUM" and item.concept in LIKELIHOODS:
            yield from _likelihood_faults(item)
        elif item.value_type == "CODE":
            yield from _answer_faults(item)
        elif item.value_type in {"SCOORD", "SCOORD3D"}:
            yield from _graphic_faults(item)
    findings: dict[str, str] = {}
    for group in groups_of(root):
        tracking, finding = group.child(TRACKING_UID), group.child(FINDING)
        if tracking is not None and finding is not None and findings.setdefault(tracking.text(), finding.text()) != finding.text():
            yield Fault(finding.where, "another group has the same Tracking UID and another finding", "IHE AIR 6.5.3")


def finding_source_faults(report: View, sources: Mapping[str, View]) -> Iterator[Fault]:
    """Answers where a report places something on images that are not the sources, or beside them.

    `sources` are the headers of the images that were analysed, by SOP Instance UID.
    """
    root = Item("1", report)
    in_space = []
    for item in root.all():
        if item.value_type == "SCOORD":
            yield from _image_faults(item, sources)
        elif item.value_type == "SCOORD3D":
            in_space.append(item)
        elif item.value_type == "IMAGE" and item.node.get("RelationshipType") == "INFERRED FROM":
            yield from _strange_images(item, sources)
    if in_space:
        space = _Space(sources)
        for item in in_space:
            yield from space.faults(item)
        yield from _disagreements(groups_of(root), sources)


# ── answers ─────────────────────────────────────────────────────────────────


def _likelihood_faults(item: Item) -> Iterator[Fault]:
    value, certain = number_of(item), CERTAIN_IN.get(unit_of(item))
    if value is not None and certain is not None and not 0.0 <= value <= certain:
        yield Fault(item.where, f"{value:g} {unit_of(item)} is no likelihood: it lies outside 0 to {certain:g}", "PS3.16 CID 6048")


def _answer_faults(answer: Item) -> Iterator[Fault]:
    """Answers where the probabilities of a question contradict each other, or the answer that is given."""
    shares: dict[str, float] = {}
    for item in answer.children():
        value, certain = number_of(item), CERTAIN_IN.get(unit_of(item), 1.0)
        of = item.child(answer.concept)
        if item.concept == PROBABILITY and value is not None and of is not None:
            shares[of.text()] = value / certain
    if not shares:
        return
    given = answer.text()
    if given not in shares:
        yield Fault(answer.where, "probabilities of other answers stand with it, and none of its own", "PS3.16 TID 1500")
    elif given not in PRESENCE and shares[given] < max(shares.values()):
        yield Fault(answer.where, "another answer is more probable than the one that is given", "PS3.16 TID 1500")
    if len(shares) >= _ALONE and not abs(sum(shares.values()) - 1.0) <= SUM_TOLERANCE:
        yield Fault(answer.where, f"the probabilities of the answers add up to {sum(shares.values()):.3g}, not to 1", "PS3.16 TID 1500")


# ── coordinates ─────────────────────────────────────────────────────────────


def _graphic_faults(item: Item) -> Iterator[Fault]:
    dimensions = 3 if item.value_type == "SCOORD3D" else 2
    kind, points = str(item.node.get("GraphicType") or ""), _points_of(item)
    if kind not in _FEWEST:
        yield Fault(item.where, f"Graphic Type is {kind or 'absent'}", "PS3.3 C.18.6.1.2")
    if points is None or len(points) < _FEWEST.get(kind, 1) or len(points) > _MOST.get(kind, len(points)):
        told = "none" if points is None else str(len(points))
        yield Fault(item.where, f"Graphic Data holds {told} points of {dimensions} coordinates: that is no {kind}", "PS3.3 C.18.6.1.1")
    elif kind == "POLYGON" and not np.allclose(points[0], points[-1], atol=_ROUNDING):
        yield Fault(item.where, "a POLYGON does not end where it began", "PS3.3 C.18.9.1.2")
    if dimensions == 3 and not item.node.get("ReferencedFrameOfReferenceUID"):
        yield Fault(item.where, "coordinates in space name no frame of reference", "PS3.3 C.18.9")
    elif dimensions == 2 and not any(child.value_type == "IMAGE" for child in item.children()):
        yield Fault(item.where, "coordinates on an image name no image", "PS3.3 C.18.6", Severity.WARNING)


def _points_of(item: Item) -> NDArray[np.float64] | None:
    """Answers the points, shape (n, 2) or (n, 3); None where the numbers are no points."""
    values = item.node.get("GraphicData")
    dimensions = 3 if item.value_type == "SCOORD3D" else 2
    found = np.asarray([] if values is None else values, dtype=np.float64).reshape(-1)
    return found.reshape(-1, dimensions) if len(found) and len(found) % dimensions == 0 else None


def _strange_images(item: Item, sources: Mapping[str, View]) -> Iterator[Fault]:
    for reference in item.references():
        uid = str(reference.get("ReferencedSOPInstanceUID") or "")
        if uid not in sources:
            yield Fault(item.where, f"it is about {uid or 'nothing'}, no source image", "PS3.3 C.18.4")


def _image_faults(region: Item, sources: Mapping[str, View]) -> Iterator[Fault]:
    for item in region.children():
        if item.value_type != "IMAGE":
            continue
        yield from _strange_images(item, sources)
        points = _points_of(region)
        for uid, _ in _planes_cited(item):
            image = sources.get(uid)
            if image is None or points is None or str(region.node.get("GraphicType")) not in _ON_PIXELS:
                continue
            size = np.array([int(image.get("Columns") or 0), int(image.get("Rows") or 0)])
            if points.min() < -_ROUNDING or (points > size + _ROUNDING).any():
                yield Fault(region.where, "it lies outside the image that it is on", "PS3.3 C.18.6.1.1")


def _planes_cited(image: Item) -> list[tuple[str, int]]:
    """Answers SOP Instance UID and frame number of what an IMAGE refers to."""
    found = []
    for reference in image.references():
        frames = reference.get("ReferencedFrameNumber")
        number = frames if isinstance(frames, int | str) else (frames[0] if frames else 1)
        found.append((str(reference.get("ReferencedSOPInstanceUID") or ""), int(number)))
    return found


class _Space:
    """Where the source images lie: frames of reference, and the box along the patient axes that holds them."""

    def __init__(self, sources: Mapping[str, View]) -> None:
        self._frames_of_reference = {str(source.get("FrameOfReferenceUID") or "") for source in sources.values()}
        corners = [corner for source in sources.values() for plane in planes_of(source).values() for corner in _corners(source, plane)]
        self._box = (np.min(corners, axis=0), np.max(corners, axis=0)) if corners else None

    def faults(self, item: Item) -> Iterator[Fault]:
        """Answers where coordinates in space lie in another space, or beside the images."""
        if str(item.node.get("ReferencedFrameOfReferenceUID") or "") not in self._frames_of_reference:
            yield Fault(item.where, "its frame of reference is not that of the source images", "PS3.3 C.18.9")
        points = _points_of(item)
        if points is None or self._box is None:
            return
        lower, upper = self._box
        if (points < lower - BESIDE_MM).any() or (points > upper + BESIDE_MM).any():
            yield Fault(item.where, "its coordinates lie beside the source images", "PS3.3 C.18.9.1.1")


def _corners(image: View, plane: FrameFacts) -> list[NDArray[np.float64]]:
    rows, columns = int(image.get("Rows") or 0), int(image.get("Columns") or 0)
    pixels = np.array([(column, row) for column in (0, columns) for row in (0, rows)], dtype=np.float64)
    placed = _in_patient(plane, pixels)
    return [] if placed is None else list(placed)


def _in_patient(plane: FrameFacts, points: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Answers points of an image (0.5 at the centre of its first pixel) in the patient; None where it has no place there."""
    if (len(plane.position_mm), len(plane.orientation), len(plane.pixel_spacing_mm)) != (3, 6, 2):
        return None
    across, down = np.array(plane.orientation[:3]), np.array(plane.orientation[3:])
    row_mm, column_mm = plane.pixel_spacing_mm
    pixels = points - 0.5
    return np.asarray(np.array(plane.position_mm) + pixels[:, :1] * column_mm * across + pixels[:, 1:] * row_mm * down)


def _disagreements(groups: Iterator[Item], sources: Mapping[str, View]) -> Iterator[Fault]:
    """Answers findings that lie elsewhere on their image than in space, under one Tracking UID."""
    on_images: dict[str, list[Item]] = {}
    in_space: dict[str, list[NDArray[np.float64]]] = {}
    for group in groups:
        tracking = group.child(TRACKING_UID)
        for item in group.children() if tracking is not None else ():
            uid = tracking.text() if tracking is not None else ""
            if item.value_type == "SCOORD":
                on_images.setdefault(uid, []).append(item)
            elif item.value_type == "SCOORD3D" and (points := _points_of(item)) is not None:
                in_space.setdefault(uid, []).append(points)
    shared = on_images.keys() & in_space.keys()
    slab_mm = _largest_gap_mm(sources) if shared else 0.0
    for uid in sorted(shared):
        points = np.concatenate(in_space[uid])
        for item in on_images[uid]:
            if _is_elsewhere(item, points, slab_mm, sources):
                yield Fault(item.where, "it lies elsewhere on its image than in space, under the same Tracking UID", "PS3.16 TID 1411")


def _is_elsewhere(item: Item, in_space: NDArray[np.float64], slab_mm: float, sources: Mapping[str, View]) -> bool:
    points = _points_of(item)
    cited = [pair for child in item.children() if child.value_type == "IMAGE" for pair in _planes_cited(child)]
    if points is None or not cited or cited[0][0] not in sources:
        return False  # told elsewhere
    plane = planes_of(sources[cited[0][0]]).get(cited[0][1])
    placed = _in_patient(plane, points) if plane is not None else None
    if plane is None or placed is None:
        return False
    margin_mm = max(slab_mm, *plane.pixel_spacing_mm) + 1.0
    return bool((placed < in_space.min(axis=0) - margin_mm).any() or (placed > in_space.max(axis=0) + margin_mm).any())


def _largest_gap_mm(sources: Mapping[str, View]) -> float:
    """Answers how far two neighbouring planes lie apart at most: so far a finding may lie off its plane."""
    planes: Sequence[FrameFacts] = [plane for source in sources.values() for plane in planes_of(source).values()]
    placed = [plane for plane in planes if len(plane.orientation) == 6 and len(plane.position_mm) == 3]
    if len(placed) < _ALONE:
        return 0.0
    normal = np.cross(placed[0].orientation[:3], placed[0].orientation[3:])
    return float(np.diff(np.sort([np.array(plane.position_mm) @ normal for plane in placed])).max())

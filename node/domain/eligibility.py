"""Does a series suit a model, by the conditions of its card; which of several suits better."""

import re
from collections.abc import Iterable
from typing import Final

import numpy as np

from node.domain.instance import InstanceHeader, SeriesHeader, as_text
from node.domain.modelcard import InputRequirement, ModelCard, Range

Condition = tuple[str, ...] | Range
"""An element must equal one of these values (upper case), or lie in the range."""

AXIS_TOLERANCE_COSINE: Final = 0.8
"""A stack is axial (coronal, sagittal) when its normal lies within 37 degrees of that axis; else it is oblique."""

COMPUTED_IMAGES: Final = frozenset({
    "MIP", "MINIP", "MAXIP", "PROJECTION IMAGE", "ADC", "FA", "TRACEW", "SUBTRACTION", "SUB", "CBF", "CBV", "MTT", "TTP", "RELCBF", "PERFUSION"
})  # fmt: skip
"""Words of Image Type for images that show a computed quantity or a projection, not the anatomy slice by slice."""

IDENTIFYING: Final = (
    "Patient",
    "OtherPatient",
    "Accession",
    "Physician",
    "Operator",
    "Institution",
    "Responsible",
    "StudyID",
    "Person",
    "Admission",
)
"""Keywords with one of these parts may hold what names a person: their values stay out of every reason."""

_NO_CONTRAST: Final = frozenset({"NONE", "NO", "N", "NON", "OHNE", "WITHOUT"})

_SECONDARY_CAPTURE_PREFIX: Final = "1.2.840.10008.5.1.4.1.1.7"


def requirement_fault(series: SeriesHeader, requirement: InputRequirement) -> str:
    """Answers the first condition of `requirement` that the series breaks, '' where all hold."""
    header = series.representative
    modality = header.text("Modality")
    if modality not in requirement.modality:
        return f"Modality is {modality}, not {' or '.join(requirement.modality)}"
    kind = _image_type_fault(header)
    if kind:
        return kind
    for fault in (
        _body_part_fault(header, requirement),
        _word_fault(header, requirement),
        _contrast_fault(header, requirement.contrast),
        _geometry_fault(series, requirement),
    ):
        if fault:
            return fault
    for keyword, condition in (requirement.when or {}).items():
        fault = condition_fault(header, keyword, condition, absent_fails=False)
        if fault:
            return fault
    return ""


def _image_type_fault(header: InstanceHeader) -> str:
    image_type = {str(value).upper() for value in header.values("ImageType")}
    computed = image_type & COMPUTED_IMAGES
    if computed:
        return f"Image Type says {', '.join(sorted(computed))}"
    if "LOCALIZER" in image_type or {"SCOUT", "TOPOGRAM"} & image_type:
        return "Image Type says LOCALIZER"
    if header.sop_class_uid.startswith(_SECONDARY_CAPTURE_PREFIX) and not header.sop_class_uid.startswith(_SECONDARY_CAPTURE_PREFIX + "7"):
        return "Secondary Capture"
    if (
        "DERIVED" in image_type
        and not image_type & {"REFORMATTED", "AVERAGE", "MPR", "RESAMPLED", "NORM", "DIS2D", "DIS3D"}
        and "PRIMARY" not in image_type
    ):
        return "Image Type says DERIVED\\SECONDARY"
    return ""


def description_words(header: InstanceHeader) -> frozenset[str]:
    """Answers the upper-case words of Series, Protocol and Study Description and Body Part Examined."""
    text = " ".join(
        header.text(keyword) for keyword in ("SeriesDescription", "ProtocolName", "StudyDescription", "BodyPartExamined", "SequenceName")
    )
    return frozenset(re.findall(r"[^\W_]+", text))


def _series_words(header: InstanceHeader) -> frozenset[str]:
    text = " ".join(header.text(keyword) for keyword in ("SeriesDescription", "ProtocolName", "SequenceName", "ConvolutionKernel"))
    return frozenset(re.findall(r"[^\W_]+", text))


def _body_part_fault(header: InstanceHeader, requirement: InputRequirement) -> str:
    if not requirement.body_part:
        return ""
    stated = header.text("BodyPartExamined")
    wanted = frozenset(requirement.body_part)
    # the description of a study names all its parts: where the series states its own, the study has no say
    described = _series_words(header) if stated else description_words(header)
    if stated in wanted or wanted & described:
        return ""
    where = f"Body Part Examined is {stated}" if stated else "Body Part Examined is absent"
    return f"{where} and no description names one of {', '.join(requirement.body_part)}"


def _word_fault(header: InstanceHeader, requirement: InputRequirement) -> str:
    words = _series_words(header)
    if requirement.words and not _matching(requirement.words, words):
        return f"Series and Protocol Description name none of {', '.join(requirement.words)}"
    forbidden = _matching(requirement.without_words, words)
    if forbidden:
        return f"the description says {', '.join(sorted(forbidden))}"
    return ""


def _matching(wanted: Iterable[str], words: frozenset[str]) -> set[str]:
    """A wanted word ending in * matches every word that starts so."""
    return {want for want in wanted if want in words or (want.endswith("*") and any(word.startswith(want[:-1]) for word in words))}


def _contrast_fault(header: InstanceHeader, contrast: str) -> str:
    agent = header.text("ContrastBolusAgent").strip()
    if agent in _NO_CONTRAST:
        agent = ""
    if contrast == "with" and not agent:
        return "Contrast/Bolus Agent is absent, the model needs contrast"
    if contrast == "without" and agent:
        return "Contrast/Bolus Agent is given, the model needs images without contrast"
    return ""


def _geometry_fault(series: SeriesHeader, requirement: InputRequirement) -> str:
    if not requirement.slices.holds(series.slices):
        return f"{series.slices} slices, the model needs {requirement.slices}"
    header = series.representative
    orientation = orientation_of(header)
    if requirement.orientation and orientation not in requirement.orientation:
        return f"orientation is {orientation or 'unknown'}, not {' or '.join(requirement.orientation)}"
    spacing_mm = slice_spacing_mm(series)
    if spacing_mm is not None:
        if not requirement.slice_spacing_mm.holds(spacing_mm):
            return f"slice spacing {spacing_mm:.2f} mm, the model needs {requirement.slice_spacing_mm} mm"
        coverage_mm = spacing_mm * series.slices
        if not requirement.coverage_mm.holds(coverage_mm):
            return f"covers {coverage_mm:.0f} mm, the model needs {requirement.coverage_mm} mm"
    pixel_spacing = header.numbers("PixelSpacing")
    if pixel_spacing and not requirement.pixel_spacing_mm.holds(max(pixel_spacing)):
        return f"pixel spacing {max(pixel_spacing):.2f} mm, the model needs {requirement.pixel_spacing_mm} mm"
    return ""


def condition_fault(header: InstanceHeader, keyword: str, condition: Condition, *, absent_fails: bool) -> str:
    """Answers why an element breaks a condition, '' where it holds."""
    values = header.values(keyword)
    if not values:
        return f"{keyword} is absent" if absent_fails else ""
    if isinstance(condition, Range):
        numbers = header.numbers(keyword)
        if numbers and all(condition.holds(number) for number in numbers):
            return ""
        return _mismatch(header, keyword, str(condition))
    present = {as_text(value).upper().strip() for value in values}
    if present & set(condition):
        return ""
    return _mismatch(header, keyword, " or ".join(condition))


def _mismatch(header: InstanceHeader, keyword: str, wanted: str) -> str:
    if any(part in keyword for part in IDENTIFYING):
        return f"{keyword} is another than the rule names"
    return f"{keyword} is {header.text(keyword)}, not {wanted}"


def orientation_of(header: InstanceHeader) -> str:
    """Answers axial, coronal, sagittal or oblique by the slice normal, '' where the orientation is unknown."""
    cosines = header.numbers("ImageOrientationPatient")
    if len(cosines) != 6:
        return ""
    normal = np.abs(np.cross(cosines[:3], cosines[3:]))
    axis = int(normal.argmax())
    return ("sagittal", "coronal", "axial")[axis] if normal[axis] >= AXIS_TOLERANCE_COSINE else "oblique"


def slice_spacing_mm(series: SeriesHeader) -> float | None:
    """Answers the median distance between neighbouring slices; of a multi-frame object what it states; None if unknown."""
    header = series.representative
    if any(instance.frames > 1 for instance in series.instances) or len(series.instances) == 1:
        stated = header.numbers("SpacingBetweenSlices") or header.numbers("SliceThickness")
        return stated[0] if stated else None
    cosines = header.numbers("ImageOrientationPatient")
    if len(cosines) != 6:
        return None
    normal = np.cross(cosines[:3], cosines[3:])
    places = [instance.numbers("ImagePositionPatient") for instance in series.instances]
    distances = np.unique(np.round([float(np.dot(place, normal)) for place in places if len(place) == 3], 3))
    return float(np.median(np.diff(distances))) if len(distances) > 1 else None


def preference(series: SeriesHeader, card: ModelCard) -> tuple[int, int, float, int, str]:
    """Answers a sort key: the smaller, the better the series suits the model."""
    words = _series_words(series.representative)
    avoided = len(_matching(card.avoid_words, words))
    wanted = next((place for place, word in enumerate(card.prefer_words) if _matching([word], words)), len(card.prefer_words))
    spacing_mm = slice_spacing_mm(series)
    return (avoided, wanted, round(spacing_mm, 2) if spacing_mm is not None else 1e9, -series.slices, series.series_instance_uid)

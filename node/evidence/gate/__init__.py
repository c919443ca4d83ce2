"""The gate: a result leaves the node only when nothing is wrong with it. Reads what was written, not what was meant.

Three circles: each object by itself; a report with its Segmentation; all of them with the source images. The validators of
others (dciodvfy, PixelMed, dcmqi) run in the tests; this runs on every result, and finds what none of them does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from pydicom.dataset import Dataset

from node.evidence.gate.faults import Fault, Severity
from node.evidence.gate.findings import finding_faults, finding_source_faults
from node.evidence.gate.identity import algorithm_device_uid, equipment_faults, identity_faults, loss_faults
from node.evidence.gate.other import other_faults, other_source_faults
from node.evidence.gate.presence import form_faults, presence_faults
from node.evidence.gate.report import agreement_faults, observer_uid, presence_conflicts, referenced_segmentations, report_faults
from node.evidence.gate.segmentation import segmentation_faults, source_faults
from node.evidence.gate.view import View
from node.evidence.gate.volumes import segment_volumes_mm3

__all__ = ["Fault", "Severity", "examine_object", "examine_set"]

_SEGMENTATIONS: Final = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
_REPORTS: Final = "1.2.840.10008.5.1.4.1.1.88."
_KEY_OBJECTS: Final = "1.2.840.10008.5.1.4.1.1.88.59"


def examine_object(dataset: Dataset) -> tuple[Fault, ...]:
    """Answers what is wrong with one object by itself."""
    return tuple(_object_faults(View(dataset)))


def examine_set(objects: Sequence[Dataset], sources: Sequence[Dataset] = ()) -> tuple[tuple[Dataset, Fault], ...]:
    """Answers what is wrong with the results of one run, each by itself, with each other and with their source images.

    `sources` are headers of the images that were analysed, in any order; without them only the first two circles are drawn.
    """
    views = [View(one) for one in objects]
    headers = {str(source.get("SOPInstanceUID")): View(source) for source in sources}
    by_uid = {str(view.get("SOPInstanceUID")): view for view in views}
    found: list[tuple[Dataset, Fault]] = []
    for one, view in zip(objects, views, strict=True):
        found += [(one, fault) for fault in _object_faults(view)]
    for one, view in zip(objects, views, strict=True):
        if is_report(view):
            for uid in referenced_segmentations(view):
                if uid in by_uid:
                    found += [(one, fault) for fault in _guarded(_set_faults, view, by_uid[uid], list(headers.values()))]
        if sources:
            found += [(one, fault) for fault in _guarded(identity_faults, one, sources[0])]
            found += [(one, fault) for fault in _guarded(loss_faults, one, sources)]
            found += [(one, fault) for fault in _guarded(_place_faults, view, headers)]
    return tuple(found)


def is_report(view: View) -> bool:
    """Answers whether an object is a structured report."""
    uid = str(view.get("SOPClassUID") or "")
    return uid.startswith(_REPORTS) and uid != _KEY_OBJECTS


def _object_faults(view: View) -> Iterator[Fault]:
    yield from _guarded(presence_faults, view)
    yield from _guarded(form_faults, view)
    yield from _guarded(equipment_faults, view)
    if str(view.get("SOPClassUID") or "") in _SEGMENTATIONS:
        yield from _guarded(segmentation_faults, view)
    elif is_report(view):
        yield from _guarded(report_faults, view)
        yield from _guarded(presence_conflicts, view)
        yield from _guarded(finding_faults, view)
        yield from _guarded(_observer_conflicts, view)
    else:
        yield from _guarded(other_faults, view)


def _observer_conflicts(report: View) -> Iterator[Fault]:
    device = algorithm_device_uid(report)
    if device and observer_uid(report) != device:
        yield Fault("content item 1", "the observer's UID is not the Device UID in Contributing Equipment", "IHE AIR 6.5.3.1")


def _set_faults(report: View, seg: View, sources: Sequence[View]) -> Iterator[Fault]:
    yield from agreement_faults(report, seg, segment_volumes_mm3(seg, sources))


def _place_faults(view: View, headers: Mapping[str, View]) -> Iterator[Fault]:
    if str(view.get("SOPClassUID") or "") in _SEGMENTATIONS:
        yield from source_faults(view, headers)
    elif is_report(view):
        yield from finding_source_faults(view, headers)
    else:
        yield from other_source_faults(view, headers)


def _guarded(check: Callable[..., Iterator[Fault]], *arguments: object) -> Iterator[Fault]:
    """Answers what a check finds; one that breaks on an object has found something, too: the object must not pass unexamined."""
    try:
        yield from tuple(check(*arguments))
    except Exception as error:  # noqa: BLE001 - anybody's objects are examined, and pydicom raises whatever its parsers meet
        yield Fault("object", f"the check itself failed ({type(error).__name__}): it cannot be read as what it says it is")

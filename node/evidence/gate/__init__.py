"""The gate: a result leaves the node only when nothing is wrong with it. Reads what was written, not what was meant.

Three circles: each object by itself; a report with its Segmentation; all of them with the source images. The validators of
others (dciodvfy, PixelMed, dcmqi) run in the tests; this runs on every result, and finds what none of them does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from pydicom.dataset import Dataset

from node.evidence.gate.faults import Fault, Severity
from node.evidence.gate.identity import algorithm_device_uid, equipment_faults, identity_faults, loss_faults
from node.evidence.gate.other import other_faults, other_source_faults
from node.evidence.gate.presence import form_faults, presence_faults
from node.evidence.gate.report import agreement_faults, observer_uid, presence_conflicts, referenced_segmentations, report_faults
from node.evidence.gate.segmentation import segmentation_faults, source_faults
from node.evidence.gate.volumes import segment_volumes_mm3

__all__ = ["Fault", "Severity", "examine_object", "examine_set"]

_SEGMENTATIONS: Final = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
_REPORTS: Final = "1.2.840.10008.5.1.4.1.1.88."
_KEY_OBJECTS: Final = "1.2.840.10008.5.1.4.1.1.88.59"


def examine_object(dataset: Dataset) -> tuple[Fault, ...]:
    """Answers what is wrong with one object by itself."""
    return tuple(_object_faults(dataset))


def examine_set(objects: Sequence[Dataset], sources: Sequence[Dataset] = ()) -> tuple[tuple[Dataset, Fault], ...]:
    """Answers what is wrong with the results of one run, each by itself, with each other and with their source images.

    `sources` are headers of the images that were analysed, in any order; without them only the first two circles are drawn.
    """
    found: list[tuple[Dataset, Fault]] = [(one, fault) for one in objects for fault in _object_faults(one)]
    by_uid = {str(one.get("SOPInstanceUID")): one for one in objects}
    headers = {str(source.get("SOPInstanceUID")): source for source in sources}
    for one in objects:
        if is_report(one):
            for uid in referenced_segmentations(one):
                if uid in by_uid:
                    found += [(one, fault) for fault in _guarded(_set_faults, one, by_uid[uid], sources)]
        if sources:
            found += [(one, fault) for fault in _circle_of_sources(one, headers)]
    return tuple(found)


def is_report(dataset: Dataset) -> bool:
    """Answers whether an object is a structured report."""
    uid = str(dataset.get("SOPClassUID") or "")
    return uid.startswith(_REPORTS) and uid != _KEY_OBJECTS


def _object_faults(dataset: Dataset) -> Iterator[Fault]:
    yield from _guarded(presence_faults, dataset)
    yield from _guarded(form_faults, dataset)
    yield from _guarded(equipment_faults, dataset)
    if str(dataset.get("SOPClassUID") or "") in _SEGMENTATIONS:
        yield from _guarded(segmentation_faults, dataset)
    elif is_report(dataset):
        yield from _guarded(report_faults, dataset)
        yield from _guarded(presence_conflicts, dataset)
        yield from _guarded(_observer_conflicts, dataset)
    else:
        yield from _guarded(other_faults, dataset)


def _observer_conflicts(report: Dataset) -> Iterator[Fault]:
    device = algorithm_device_uid(report)
    if device and observer_uid(report) != device:
        yield Fault("content item 1", "the observer's UID is not the Device UID in Contributing Equipment", "IHE AIR 6.5.3.1")


def _set_faults(report: Dataset, seg: Dataset, sources: Sequence[Dataset]) -> Iterator[Fault]:
    yield from agreement_faults(report, seg, segment_volumes_mm3(seg, sources))


def _circle_of_sources(dataset: Dataset, headers: Mapping[str, Dataset]) -> Iterator[Fault]:
    yield from _guarded(identity_faults, dataset, next(iter(headers.values())))
    yield from _guarded(loss_faults, dataset, list(headers.values()))
    if str(dataset.get("SOPClassUID") or "") in _SEGMENTATIONS:
        yield from _guarded(source_faults, dataset, headers)
    else:
        yield from _guarded(other_source_faults, dataset, headers)


def _guarded(check: Callable[..., Iterator[Fault]], *arguments: object) -> Iterator[Fault]:
    """Answers what a check finds; one that breaks on an object has found something, too: the object must not pass unexamined."""
    try:
        yield from tuple(check(*arguments))
    except Exception as error:  # noqa: BLE001 - anybody's objects are examined, and pydicom raises whatever its parsers meet
        yield Fault("object", f"the check itself failed ({type(error).__name__}): it cannot be read as what it says it is")

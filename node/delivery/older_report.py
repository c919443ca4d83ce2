"""What of a report fits an older SOP class: coordinates in space do not (PS3.3 A.35.2, A.35.3).

Our reports tell all that they place in space on an image, too, under the same Tracking UID (`node/evidence/report_groups.py`): there
the group in space is left out. What a report says in space alone stays, and with it no older class can hold the report.
"""

from typing import Final

from pydicom.dataset import Dataset

_MEASUREMENT_GROUP: Final = "125007"
_TRACKING_UID: Final = "112040"


def leave_out_space(report: Dataset) -> None:
    """Takes the measurement groups out that hold coordinates in space, measure nothing, and are told on an image by another group."""
    for container in report.get("ContentSequence") or []:
        groups = list(container.get("ContentSequence") or [])
        in_space = [number for number, one in enumerate(groups) if _concept(one) == _MEASUREMENT_GROUP and "SCOORD3D" in value_types(one)]
        on_images = {_tracking_uid(one) for number, one in enumerate(groups) if number not in in_space and "SCOORD" in value_types(one)}
        left_out = {
            number for number in in_space if _tracking_uid(groups[number]) in on_images and "NUM" not in value_types(groups[number])
        }
        if left_out:
            container.ContentSequence = [one for number, one in enumerate(groups) if number not in left_out]


def value_types(item: Dataset) -> set[str]:
    """Answers the value types of a content item and of all below it."""
    found = {str(item.get("ValueType") or "")}
    for child in item.get("ContentSequence") or []:
        found |= value_types(child)
    return found


def _tracking_uid(group: Dataset) -> str:
    return next((str(one.get("UID") or "") for one in group.get("ContentSequence") or [] if _concept(one) == _TRACKING_UID), "")


def _concept(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence") or []
    return str(names[0].get("CodeValue") or "") if names else ""

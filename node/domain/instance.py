"""What the headers of received images say, without pixels: the material of routing and series choice."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

Value = str | float
"""One value of an element: text as it stands, numbers (DS, IS, US, FD, ...) as float."""


def as_text(value: Value) -> str:
    """Answers a value as a person writes it: 4, not 4.0."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return value


@dataclass(frozen=True, slots=True)
class InstanceHeader:
    """The header of one instance: UIDs, and every plain top-level element by DICOM keyword.

    Sequences, bulk data and private elements are left out; an absent, empty or malformed element is an absent key.
    """

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    attributes: Mapping[str, tuple[Value, ...]]
    frames: int = 1
    first_frame: Mapping[str, tuple[Value, ...]] | None = None
    """For enhanced multi-frame objects: spacing, position and orientation out of the functional groups."""

    def values(self, keyword: str) -> tuple[Value, ...]:
        """Answers the values of an element, () where it has none."""
        found = self.attributes.get(keyword, ())
        if not found and self.first_frame is not None:
            found = self.first_frame.get(keyword, ())
        return found

    def text(self, keyword: str) -> str:
        """Answers the values of an element as one upper-case text, '' where it has none."""
        return "\\".join(as_text(value) for value in self.values(keyword)).upper()

    def numbers(self, keyword: str) -> tuple[float, ...]:
        """Answers the values of an element as numbers, () where one of them is none."""
        try:
            return tuple(float(value) for value in self.values(keyword))
        except ValueError:
            return ()


@dataclass(frozen=True, slots=True)
class SeriesHeader:
    """The headers of a series' instances, as far as they have arrived."""

    series_instance_uid: str
    instances: tuple[InstanceHeader, ...]

    @property
    def study_instance_uid(self) -> str:
        """The study of the series (of its first instance)."""
        return self.instances[0].study_instance_uid

    @property
    def slices(self) -> int:
        """Number of images: instances, or frames of multi-frame instances."""
        return sum(instance.frames for instance in self.instances)

    @property
    def representative(self) -> InstanceHeader:
        """The instance in the middle of the series: scouts and first-slice oddities lie at the ends."""
        return self.instances[len(self.instances) // 2]


def place_in_series(header: InstanceHeader) -> tuple[float, str]:
    """Answers a sort key: Instance Number, then UID; instances without a number come last."""
    number = header.numbers("InstanceNumber")
    return (number[0] if number else math.inf, header.sop_instance_uid)


def group_into_series(headers: Iterable[InstanceHeader]) -> tuple[SeriesHeader, ...]:
    """Answers the series of some instances, each in the order of Instance Number; an instance that comes twice counts once."""
    found: dict[str, dict[str, InstanceHeader]] = {}
    for header in headers:
        found.setdefault(header.series_instance_uid, {}).setdefault(header.sop_instance_uid, header)
    return tuple(SeriesHeader(uid, tuple(sorted(instances.values(), key=place_in_series))) for uid, instances in found.items())


NOT_IMAGES: Final = frozenset({"SR", "PR", "KO", "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG", "DOC", "AU", "FID", "PLAN"})
"""Modalities of objects that carry no image to analyse (PS3.3 C.7.3.1.1.1)."""

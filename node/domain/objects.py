"""What a result can be sent as: the objects that a destination is configured to get."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Final


class ResultObject(StrEnum):
    """A kind of object, as the configuration and the files name it."""

    SR = "sr"
    SEG = "seg"
    LABELMAP = "labelmap"
    SC = "sc"
    RTSTRUCT = "rtstruct"
    PDF = "pdf"
    GSPS = "gsps"
    KOS = "kos"
    PM = "pm"
    SR_LABELMAP = "sr-labelmap"
    """The report that cites the label map: for a destination that gets no binary segmentation. Never configured by this name."""


CONFIGURABLE: Final = tuple(one for one in ResultObject if one is not ResultObject.SR_LABELMAP)


def objects_for(configured: Sequence[str]) -> tuple[ResultObject, ...]:
    """Answers what a destination gets: its report cites the segmentation that it has."""
    wanted = [ResultObject(name) for name in configured]
    if ResultObject.LABELMAP in wanted and ResultObject.SEG not in wanted:
        wanted = [ResultObject.SR_LABELMAP if one is ResultObject.SR else one for one in wanted]
    return tuple(wanted)


DEFAULT_OBJECTS: Final = (ResultObject.SR, ResultObject.SEG)
"""What a destination gets that is not configured otherwise (IHE AIR)."""

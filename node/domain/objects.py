"""What a result can be sent as: the objects that a destination is configured to get."""

from enum import StrEnum
from typing import Final


class ResultObject(StrEnum):
    """A kind of object, as the configuration and the files name it."""

    SR = "sr"
    SEG = "seg"
    SC = "sc"
    RTSTRUCT = "rtstruct"
    PDF = "pdf"
    GSPS = "gsps"
    KOS = "kos"
    PM = "pm"


DEFAULT_OBJECTS: Final = (ResultObject.SR, ResultObject.SEG)
"""What a destination gets that is not configured otherwise (IHE AIR)."""

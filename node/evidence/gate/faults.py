"""What the gate finds wrong with an object."""

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad it is."""

    ERROR = "error"
    """Against the standard, or wrong: a node does not send it."""
    WARNING = "warning"
    """Legal, but readers are known to stumble over it, or a profile asks for more."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong."""

    where: str
    """For a person: `segment 2`, `frame 17`, `content item 1.3.2`, `header`."""
    text: str
    clause: str = ""
    """Where the rule stands: `PS3.3 C.8.20.2`."""
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        return f"{self.where}: {self.text}" + (f" ({self.clause})" if self.clause else "")

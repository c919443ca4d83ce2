"""What an evidence object says of its making beside the result itself."""

from dataclasses import dataclass
from datetime import datetime

from node.domain.identifiers import derive_uid
from node.domain.result import PredecessorDocument
from node.errors import EvidenceError


@dataclass(frozen=True, slots=True)
class EvidenceContext:
    """The circumstances under which a result is encoded: equal contexts and results give equal bytes."""

    job_key: str
    """Every Series, SOP Instance and Tracking UID derives from it."""
    encoded_at: datetime
    """Aware; becomes Content Date and Time."""
    ae_title: str
    device_serial_number: str
    predecessor: PredecessorDocument | None = None
    """The SR that the new one supersedes."""
    content_qualification: str = "RESEARCH"
    """RESEARCH, or PRODUCT where the site runs a cleared model (PS3.3 C.12.1.1.13)."""

    def __post_init__(self) -> None:
        """Refuses a moment without a time zone: its Content Date could not be told."""
        if self.encoded_at.tzinfo is None:
            raise EvidenceError("encoded_at must know its time zone")

    def uid(self, *parts: str) -> str:
        """Answers the UID that belongs to `parts` of this job: always the same."""
        return derive_uid(self.job_key, *parts)

"""Numbers and coded concepts that the standard fixes. Imports nothing of ours; no bare protocol number lives elsewhere."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class StoreStatus(IntEnum):
    """C-STORE response status (PS3.4 Table B.2-1, PS3.7 Annex C)."""

    SUCCESS = 0x0000
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    NOT_AUTHORIZED = 0x0124
    OUT_OF_RESOURCES = 0xA700
    DATA_SET_DOES_NOT_MATCH_SOP_CLASS = 0xA900
    CANNOT_UNDERSTAND = 0xC000


class FailureReason(IntEnum):
    """Why an instance was not stored over the web, where C-STORE has no status for it (PS3.18 Table I.2-2)."""

    PROCESSING_FAILURE = 0x0110
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    TRANSFER_SYNTAX_NOT_SUPPORTED = 0xC122


class ExitCode(IntEnum):
    """What the `radnode` command answers to the shell; 64 and above as in BSD sysexits."""

    OK = 0
    FAILED = 1
    USAGE = 2
    PEER_UNAVAILABLE = 69
    CONFIG = 78


@dataclass(frozen=True, slots=True)
class Code:
    """A coded concept: value, coding scheme designator, meaning (PS3.3 Table 8.8-1)."""

    value: str
    scheme: str
    meaning: str


UCUM_CUBIC_MILLIMETRE: Final = Code("mm3", "UCUM", "cubic millimeter")
UCUM_CUBIC_CENTIMETRE: Final = Code("cm3", "UCUM", "cubic centimeter")
UCUM_HOUNSFIELD: Final = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
UCUM_NO_UNITS: Final = Code("1", "UCUM", "no units")
UCUM_PERCENT: Final = Code("%", "UCUM", "Percent")

ARTIFICIAL_INTELLIGENCE: Final = Code("123110", "DCM", "Artificial Intelligence")
PROCESSING_EQUIPMENT: Final = Code("109102", "DCM", "Processing Equipment")
VOLUME: Final = Code("118565006", "SCT", "Volume")
AREA: Final = Code("42798000", "SCT", "Area")
LONG_AXIS: Final = Code("103339001", "SCT", "Long axis")
MAXIMUM_3D_DIAMETER: Final = Code("L0JK", "IBSI", "Maximum 3D Diameter of a Mesh")
ATTENUATION_COEFFICIENT: Final = Code("112031", "DCM", "Attenuation Coefficient")
DERIVATION: Final = Code("121401", "DCM", "Derivation")
MEAN: Final = Code("373098007", "SCT", "Mean")
STANDARD_DEVIATION: Final = Code("386136009", "SCT", "Standard Deviation")
TENTH_PERCENTILE: Final = Code("371890005", "SCT", "10th Percentile Value of population")
NINETIETH_PERCENTILE: Final = Code("371887004", "SCT", "90th Percentile Value of population")
UCUM_SQUARE_MILLIMETRE: Final = Code("mm2", "UCUM", "square millimeter")
UCUM_MILLIMETRE: Final = Code("mm", "UCUM", "millimeter")
CERTAINTY_OF_FINDING: Final = Code("111012", "DCM", "Certainty of Finding")
"""The likelihood that what was detected is what it is called (PS3.16 Annex D): the score of a box or a point, in percent (TID 4104)."""
PROBABILITY: Final = Code("122157", "DCM", "Probability")
PRESENT: Final = Code("52101004", "SCT", "Present")
ABSENT: Final = Code("272519000", "SCT", "Absent")
QUALITATIVE_EVALUATIONS: Final = Code("C0034375", "UMLS", "Qualitative Evaluations")
SUMMARY_OF_ANALYSES: Final = Code("111065", "DCM", "Summary of Analyses")
ANALYSIS_SUCCEEDED: Final = Code("111222", "DCM", "Succeeded")
ANALYSIS_FAILED: Final = Code("111224", "DCM", "Failed")
ANALYSIS_NOT_ATTEMPTED: Final = Code("111225", "DCM", "Not Attempted")

IMPLEMENTATION_CLASS_UID: Final = "2.25.170203941562740127215811206041863049183"
"""Ours alone (a UUID under 2.25, PS3.5 B.2); every file and association of radnode carries it."""

MANUFACTURER: Final = "radnode"
MANUFACTURER_MODEL_NAME: Final = "radnode AI node"

"""Codes and units: whether a code says what its meaning says, and a number has a unit that its concept can have."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Final

from pydicom.sr._concepts_dict import concepts

from node.evidence.gate.faults import Fault
from node.evidence.gate.view import View

_LENGTH: Final = frozenset({"mm", "cm", "um", "m"})
_VOLUME: Final = frozenset({"mm3", "cm3", "ml", "mL", "l", "L", "dm3"})
_RATIO: Final = frozenset({"%", "1", "{ratio}", "[ppth]"})

UNITS_OF: Final[Mapping[tuple[str, str], frozenset[str]]] = {
    ("SCT", "118565006"): _VOLUME,
    ("SRT", "G-D705"): _VOLUME,
    ("SCT", "103339001"): _LENGTH,
    ("SCT", "103340004"): _LENGTH,
    ("SCT", "81827009"): _LENGTH,
    ("SCT", "410668003"): _LENGTH,
    ("SCT", "42798000"): frozenset({"mm2", "cm2", "um2", "m2"}),
    ("DCM", "112031"): frozenset({"[hnsf'U]"}),
    ("DCM", "122157"): _RATIO,
    ("DCM", "111047"): _RATIO,
    ("DCM", "111012"): _RATIO,
}
"""Concept (scheme, value) → UCUM units that it can have (PS3.16)."""

_CODE_LIMITS: Final = (("CodeValue", 16), ("CodingSchemeDesignator", 16), ("CodeMeaning", 64))


def code_of(item: View | None) -> tuple[str, str]:
    """Answers (coding scheme, code value) of a code sequence item, empty where it says none."""
    if item is None:
        return ("", "")
    value = item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue") or ""
    return (str(item.get("CodingSchemeDesignator") or ""), str(value))


def code_faults(item: View, where: str) -> Iterator[Fault]:
    """Answers what is wrong with a code sequence item (PS3.3 Table 8.8-1): parts that are missing, a meaning of another code."""
    scheme, value = code_of(item)
    meaning = str(item.get("CodeMeaning") or "")
    for keyword, limit in _CODE_LIMITS:
        length = len(str(item.get(keyword) or ""))
        if length > limit:
            yield Fault(where, f"{keyword} has {length} characters, at most {limit} fit", "PS3.3 Table 8.8-1")
    if not value or not meaning or (not scheme and "URNCodeValue" not in item):
        yield Fault(where, f"the code ({value or '?'}, {scheme or '?'}, {meaning or '?'}) lacks a part", "PS3.3 Table 8.8-1")
        return
    own, others = _names(scheme)
    folded = meaning.casefold().strip()
    if value in own and folded not in own[value] and folded in others:
        yield Fault(
            where, f"the code ({value}, {scheme}) does not mean {meaning!r}: that is ({others[folded]}, {scheme})", "PS3.16 Annex D"
        )


def unit_faults(concept: View | None, unit: View, where: str) -> Iterator[Fault]:
    """Answers what is wrong with the unit of a measured value."""
    scheme, value = code_of(unit)
    if scheme != "UCUM":
        yield Fault(where, f"the unit ({value}, {scheme}) is not of UCUM", "PS3.3 C.18.1")
        return
    allowed = UNITS_OF.get(code_of(concept))
    if allowed is not None and value not in allowed:
        meaning = str(concept.get("CodeMeaning")) if concept is not None else "the value"
        yield Fault(where, f"{meaning} cannot be measured in {value}; its units are {', '.join(sorted(allowed))}", "PS3.16 TID 300")


@cache
def _names(scheme: str) -> tuple[dict[str, set[str]], dict[str, str]]:
    """Answers code value → its meanings, and meaning → a code value, as the standard's context groups have them."""
    meanings: dict[str, set[str]] = {}
    values: dict[str, str] = {}
    named: Mapping[str, Mapping[str, tuple[str, Sequence[int]]]] = concepts.get(scheme, {})  # type: ignore[assignment]
    for codes in named.values():
        for value, (meaning, _groups) in codes.items():
            meanings.setdefault(value, set()).add(meaning.casefold())
            values.setdefault(meaning.casefold(), value)
    return meanings, values

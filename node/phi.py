"""What looks like patient data, and how it is masked: the net under logs, error messages and reasons. Pure."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from typing import Final

MASK: Final = "[PHI]"

_PATIENT_KEYS: Final = (
    "patientname", "patientid", "patientbirth", "patientaddress", "patientsaddress", "patientcomments", "patienttelephone",
    "patientsname", "patientsbirth", "otherpatient", "birthdate", "mothersbirthname", "accession", "physician", "operatorsname",
    "operatorname", "institutionaddress", "medicalrecord",
)  # fmt: skip
"""A field whose name holds one of these (lower case, letters only) names a person."""

_PATIENT_GROUP_TAG: Final = re.compile(r"0010[0-9a-f]{4}")
_PRINTED_ELEMENT: Final = re.compile(r"\((?:0010, ?[0-9a-fA-F]{4}|0008, ?(?:0050|0090|1048|1050|1060|1070))\)[^\n]*")
_PRINTED_PAIR: Final = re.compile(
    r"(?i)\b(patient['’]?s?[ _]?(?:name|id|birth[ _]?date|address)|accession(?:[ _]?(?:number|no))?|birth[ _]?date|mrn)"
    r"(['\"]?\s*[=:]\s*)('[^'\n]*'|\"[^\"\n]*\"|[^\s,;)\]}]+)"
)
_PYDICOM_VALUE: Final = re.compile(r"(Invalid value for VR (?!UI)[A-Z]{2}: )[^\n]*")
_QUOTED: Final = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"")
_BETWEEN_SEPARATORS: Final = re.compile(r"[^\n\t,;:()\[\]{}<>'\"|/\\]+")
_UNDERLINE: Final = re.compile(r"[\^~]+")

_PSEUDONYM_KEY: Final = secrets.token_bytes(32)


def scrub_text(text: str) -> str:
    """Masks what looks like patient data in a text: person names (`X^Y`), printed elements, `PatientID=...`."""
    text = _PRINTED_ELEMENT.sub(MASK, text)
    text = _PRINTED_PAIR.sub(rf"\1\2{MASK}", text)
    text = _PYDICOM_VALUE.sub(rf"\1{MASK}", text)
    if "^" not in text:
        return text
    text = _QUOTED.sub(lambda found: MASK if _holds_name(found[0]) else found[0], text)
    return _BETWEEN_SEPARATORS.sub(lambda found: _mask_names(found[0]) if _holds_name(found[0]) else found[0], text)


def pseudonym(value: object) -> str:
    """Answers a stand-in for a value that names a person: the same for the same value while the process lives."""
    return "phi:" + hmac.new(_PSEUDONYM_KEY, str(value).encode(), hashlib.sha256).hexdigest()[:10]


def scrub_field(key: str, value: object) -> object:
    """Answers a named value without patient data: a pseudonym where the name says so, else masked inside."""
    if value is None or (isinstance(value, str) and not value):
        return value
    if _names_person(key):
        return pseudonym(value)
    return _scrub_value(value)


def _names_person(key: str) -> bool:
    lowered = key.lower()
    letters = "".join(character for character in lowered if character.isalpha())
    return letters == "mrn" or any(part in letters for part in _PATIENT_KEYS) or _PATIENT_GROUP_TAG.fullmatch(lowered) is not None


def _scrub_value(value: object) -> object:
    if isinstance(value, bool | int | float) or value is None:
        return value
    if isinstance(value, bytes):
        return scrub_text(value.decode("utf-8", "replace"))
    if isinstance(value, Mapping):
        return {str(key): scrub_field(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_scrub_value(item) for item in value]
    return scrub_text(str(value))


def _holds_name(text: str) -> bool:
    return any("^" in word and _UNDERLINE.fullmatch(word) is None for word in text.split(" "))


def _mask_names(text: str) -> str:
    """Masks each word with a caret, and the capitalised words that touch it: VAN DYKE^JANE MARY is one name."""
    words = text.split(" ")
    masked = {place for place, word in enumerate(words) if "^" in word and _UNDERLINE.fullmatch(word) is None}
    for place in sorted(masked):
        for step in (-1, 1):
            neighbour = place + step
            while 0 <= neighbour < len(words) and _may_belong_to_name(words[neighbour]):
                masked.add(neighbour)
                neighbour += step
    kept = [MASK if place in masked else word for place, word in enumerate(words)]
    return " ".join(word for place, word in enumerate(kept) if not (word == MASK and place and kept[place - 1] == MASK))


def _may_belong_to_name(word: str) -> bool:
    return bool(word) and word[0].isalpha() and not word[0].islower() and not word.endswith("Error")

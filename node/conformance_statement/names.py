"""Names of SOP classes, transfer syntaxes and statuses, also of those that pydicom does not know yet."""

from functools import cache

from pydicom.uid import UID
from pynetdicom import sop_class

from node.conformance_statement.markdown import words_of


def class_name(uid: str) -> str:
    """Answers the name of a SOP class, its UID where nobody knows it."""
    name = UID(uid).name
    return name if name != uid else _newer_names().get(uid, uid)


def syntax_name(uid: str) -> str:
    """Answers the name of a transfer syntax."""
    return str(UID(uid).name)


def status_words(name: str) -> str:
    """Answers the name of a number of the standard as words: `SOP_CLASS_NOT_SUPPORTED` is SOP Class not supported."""
    words = name.replace("_", " ").lower().replace("sop class", "SOP Class").replace("sop instance", "SOP Instance").replace(" uid", " UID")
    return words[:1].upper() + words[1:]


@cache
def _newer_names() -> dict[str, str]:
    found = vars(sop_class).items()
    return {str(value): words_of(name) for name, value in found if isinstance(value, UID) and not name.startswith("_")}

"""What an object must have: type 1 and 2 attributes of the mandatory modules of its IOD, and well-formed UIDs and codes.

The tables are those of PS3.3 that highdicom ships; conditions (type 1C, 2C) are not in them in a form that a program can judge.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final

from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map

from node.domain.identifiers import is_uid, is_usable_uid
from node.evidence.gate.faults import Fault, Severity
from node.evidence.gate.terms import code_faults
from node.evidence.gate.view import View, is_private, keyword_of

_PER_FRAME: Final = 0x52009230
_EXAMINED: Final = frozenset({"SQ", "UI", "UN", "None"})
"""Value representations that hold UIDs and codes, or may turn out to."""
_RETIRED_BUT_SENT: Final = frozenset({"OtherPatientIDs", "EthnicGroup"})
"""Retired of late: scanners write them, and results must agree with the patient's other objects."""


def presence_faults(view: View) -> Iterator[Fault]:
    """Answers what is absent, empty, or of another IOD."""
    iod = _iod_of(str(view.get("SOPClassUID") or ""))
    if iod is None:
        yield Fault("header", f"the SOP class {view.get('SOPClassUID') or '(none)'} is not in the tables", severity=Severity.WARNING)
        return
    required, known = iod
    for tag, _ in view.elements():
        keyword = keyword_of(tag)
        if not is_private(tag) and keyword and keyword not in known:
            yield Fault("header", f"{keyword} belongs to no module of this IOD", "PS3.3 Annex A", Severity.WARNING)
    for path, attributes in required.items():
        for parent in _parents(view, path):
            for keyword, kind in attributes:
                yield from _presence_fault(parent, path, keyword, kind)


@cache
def _iod_of(sop_class_uid: str) -> tuple[Mapping[tuple[str, ...], Sequence[tuple[str, str]]], frozenset[str]] | None:
    """Answers what an IOD requires (path of sequences → keyword and type 1 or 2), and the keywords that it knows."""
    name = get_sop_class_iod_map().get(sop_class_uid)
    if name is None:
        return None
    modules = get_iod_module_map()[name]
    attributes = get_module_attribute_map()
    known = {one["keyword"] for module in modules for one in attributes[module["key"]] if not one["path"]}
    required: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for module in modules:
        if module["usage"] == "M" and "functional-groups" not in module["key"] and module["key"] != "sr-document-content":
            for one in attributes[module["key"]]:
                if one["type"] in {"1", "2"}:
                    required.setdefault(tuple(one["path"]), []).append((one["keyword"], one["type"]))
    return required, frozenset(known) | _RETIRED_BUT_SENT


def _parents(view: View, path: Sequence[str]) -> Iterator[View]:
    if not path:
        yield view
        return
    for item in view.items(path[0]):
        yield from _parents(item, path[1:])


def _presence_fault(parent: View, path: Sequence[str], keyword: str, kind: str) -> Iterator[Fault]:
    if keyword not in parent:
        yield Fault("header", f"{'.'.join([*path, keyword])} is absent (type {kind})", "PS3.3")
    elif kind == "1" and parent.is_empty(keyword):
        yield Fault("header", f"{'.'.join([*path, keyword])} is empty (type 1)", "PS3.3")


def form_faults(view: View, where: str = "header") -> Iterator[Fault]:
    """Answers UIDs that are none and codes that are incomplete or wrong, in all the data set but its frames.

    What stands in the place of a UID is not told: it may be anything, a patient's name among it, and faults go into logs.
    """
    for tag, vr in view.elements():
        if vr not in _EXAMINED or tag == _PER_FRAME:
            continue
        value = view.value(tag)
        keyword = keyword_of(tag)
        if vr == "UI":
            yield from _uid_faults(value, keyword, where)
        elif isinstance(value, list) and value and isinstance(value[0], View):
            is_code = keyword.endswith("CodeSequence")
            for number, item in enumerate(value, 1):
                inside = f"{keyword}[{number}]" if where == "header" else f"{where}.{keyword}[{number}]"
                if is_code:
                    yield from code_faults(item, inside)
                yield from form_faults(item, inside)


def _uid_faults(value: Any, keyword: str, where: str) -> Iterator[Fault]:
    for uid in [value] if isinstance(value, str) else value or []:
        if not is_usable_uid(uid):
            yield Fault(where, f"{keyword} is no UID", "PS3.5 9.1")
        elif not is_uid(uid):  # hospitals have such studies, and results must agree with them
            yield Fault(where, f"{keyword} has a component with a leading zero", "PS3.5 9.1", Severity.WARNING)

"""What an object must have: type 1 and 2 attributes of the mandatory modules of its IOD, and well-formed UIDs and codes.

The tables are those of PS3.3 that highdicom ships; conditions (type 1C, 2C) are not in them in a form that a program can judge.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, cast

from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from node.domain.identifiers import is_uid, is_usable_uid
from node.evidence.exact import TEXT_VRS
from node.evidence.gate.faults import Fault, Severity
from node.evidence.gate.terms import code_faults

_PER_FRAME: Final = Tag("PerFrameFunctionalGroupsSequence")
_EXAMINED: Final = frozenset({"SQ", "UI", "UN", None})
"""Value representations that hold UIDs and codes, or may turn out to."""
_RETIRED_BUT_SENT: Final = frozenset({"OtherPatientIDs", "EthnicGroup"})
"""Retired of late: scanners write them, and results must agree with the patient's other objects."""


def presence_faults(dataset: Dataset) -> Iterator[Fault]:
    """Answers what is absent, empty, or of another IOD."""
    iod = _iod_of(str(dataset.get("SOPClassUID") or ""))
    if iod is None:
        yield Fault("header", f"the SOP class {dataset.get('SOPClassUID') or '(none)'} is not in the tables", severity=Severity.WARNING)
        return
    modules, known = iod
    for tag in dataset.keys():  # noqa: SIM118 - a Dataset iterates over converted elements, ten thousand frames among them
        keyword = Tag(tag).is_private or _keyword(tag)
        if isinstance(keyword, str) and keyword and keyword not in known:
            yield Fault("header", f"{keyword} belongs to no module of this IOD", "PS3.3 Annex A", Severity.WARNING)
    for module in modules:
        if module["usage"] != "M" or "functional-groups" in module["key"] or module["key"] == "sr-document-content":
            continue
        for attribute in get_module_attribute_map()[module["key"]]:
            if attribute["type"] in {"1", "2"}:
                for parent in _parents(dataset, attribute["path"]):
                    yield from _presence_fault(parent, attribute)


def _keyword(tag: int) -> str:
    from pydicom.datadict import keyword_for_tag

    return keyword_for_tag(tag)


@cache
def _iod_of(sop_class_uid: str) -> tuple[Sequence[Mapping[str, Any]], frozenset[str]] | None:
    name = get_sop_class_iod_map().get(sop_class_uid)
    if name is None:
        return None
    modules = get_iod_module_map()[name]
    attributes = get_module_attribute_map()
    known = {one["keyword"] for module in modules for one in attributes[module["key"]] if not one["path"]}
    return modules, frozenset(known) | _RETIRED_BUT_SENT


def _parents(dataset: Dataset, path: Sequence[str]) -> Iterator[Dataset]:
    if not path:
        yield dataset
        return
    for item in dataset.get(path[0]) or []:
        yield from _parents(item, path[1:])


def _presence_fault(parent: Dataset, attribute: Mapping[str, Any]) -> Iterator[Fault]:
    keyword = attribute["keyword"]
    name = ".".join([*attribute["path"], keyword])
    if keyword not in parent:
        yield Fault("header", f"{name} is absent (type {attribute['type']})", "PS3.3")
    elif attribute["type"] == "1" and _is_empty(parent, keyword):
        yield Fault("header", f"{name} is empty (type 1)", "PS3.3")


def _is_empty(parent: Dataset, keyword: str) -> bool:
    """Answers whether an attribute has no value; bytes are not decoded for it: contours have millions of numbers."""
    element = cast("DataElement | RawDataElement", parent.get_item(keyword))
    if not isinstance(element, RawDataElement):
        return element.is_empty
    value = element.value or b""
    return not (value.strip(b" \0") if element.VR in TEXT_VRS else value)


def form_faults(dataset: Dataset, where: str = "header") -> Iterator[Fault]:
    """Answers UIDs that are none and codes that are incomplete or wrong, in all the data set but its frames.

    What stands in the place of a UID is not told: it may be anything, a patient's name among it, and faults go into logs.
    """
    for tag in sorted(dataset.keys()):
        if tag == _PER_FRAME or dataset.get_item(tag).VR not in _EXAMINED:
            continue
        element = dataset[tag]
        if element.VR == "SQ":
            is_code = element.keyword.endswith("CodeSequence")
            for number, item in enumerate(element.value or [], 1):
                inside = f"{element.keyword}[{number}]" if where == "header" else f"{where}.{element.keyword}[{number}]"
                if is_code:
                    yield from code_faults(item, inside)
                yield from form_faults(item, inside)
        elif element.VR == "UI" and not element.is_empty:
            values = element.value if element.VM > 1 else [element.value]
            for value in values:
                if not is_usable_uid(str(value)):
                    yield Fault(where, f"{element.keyword} is no UID", "PS3.5 9.1")
                elif not is_uid(str(value)):  # hospitals have such studies, and results must agree with them
                    yield Fault(where, f"{element.keyword} has a component with a leading zero", "PS3.5 9.1", Severity.WARNING)

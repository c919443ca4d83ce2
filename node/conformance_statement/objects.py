"""The annexes on the objects that radnode makes: modules, attributes, content trees, codes; read off specimens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from highdicom._standard_utils import get_iod_module_map, get_module_attribute_map, get_sop_class_iod_map
from pydicom.datadict import dictionary_description, dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.sr._cid_dict import cid_concepts, name_for_cid
from pydicom.sr._concepts_dict import concepts
from pydicom.uid import UID

from node import codes
from node.conformance_statement.markdown import Section, bullets, paragraphs, table, words_of
from node.conformance_statement.observed import (
    FIRST,
    ITEMS,
    LEGEND,
    Path,
    Seen,
    choices_of,
    is_copied,
    merged_paths,
    offered_by,
    origins_of,
    presence_of,
    read_dataset,
    told_code,
)
from node.conformance_statement.specimen import RESULT_OBJECTS, ResultObject, Specimen, objects_of, specimens
from node.evidence.header import DESCRIPTION, IDENTITY
from node.evidence.sop_common import codes_of

_CONTENT: Final = "sr-document-content"
_CONTENT_KEYWORDS: Final = frozenset(
    {"ContentSequence", "ContentTemplateSequence", "ConceptNameCodeSequence", "ContinuityOfContent", "ValueType"}
)
"""Told by the content tree."""

_COPIED: Final = frozenset({*IDENTITY, *DESCRIPTION, "SpecificCharacterSet"})

_STRUCTURE: Final = "the structure, the kind of box or the question (model card)"

INCLUDED_TEMPLATES: Final[Mapping[str, str]] = {
    "1204": "Language of Content Item and Descendants",
    "1001": "Observation Context, with TID 1002 Observer Context",
    "1004": "Device Observer Identifying Attributes: the model",
    "4019": "Algorithm Identification, in every group",
    "1419": "ROI Measurements, with TID 300 Measurement: the numbers of a structure",
}
"""PS3.16 templates of the report that no object names."""

TEMPLATES: Final[Mapping[str, str]] = {
    "1500": "Measurement Report: the root",
    "1410": "Planar ROI Measurements and Qualitative Evaluations: the outline of a structure, the cut of a box or a point on one image",
    "1411": "Volumetric ROI Measurements and Qualitative Evaluations: a structure that was outlined, a box or a point in space",
    "1501": "Measurement and Qualitative Evaluation Group: what has no place of its own on an image",
}
"""PS3.16 templates of the report's containers, which name them: told of those that are there."""

CONTEXT_GROUPS: Final = (7021, 100, 7162, 7464, 218, 7005, 7202, 7203, 222)
"""Where codes of ours are looked for, the first that fits is named."""


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A kind of object as every specimen of it showed it."""

    kind: ResultObject
    made: Mapping[str, Dataset]
    """By the name of the specimen, where that has such an object."""
    specimens: Mapping[str, Specimen]

    @property
    def first(self) -> Dataset:
        """The usual object."""
        return self.made[FIRST]

    @property
    def sop_class_uid(self) -> str:
        """Its SOP class."""
        return str(self.first.SOPClassUID)

    @property
    def transfer_syntax_uid(self) -> str:
        """In which its file is written."""
        return str(self.first.file_meta.TransferSyntaxUID)


@cache
def exhibits() -> tuple[Exhibit, ...]:
    """Answers what every kind of object looks like; made once."""
    shown = specimens()
    made = {name: objects_of(specimen) for name, specimen in shown.items()}
    return tuple(
        Exhibit(kind, {name: objects[kind.role] for name, objects in made.items() if kind.role in objects}, shown)
        for kind in RESULT_OBJECTS
    )


def object_annexes() -> list[Section]:
    """Answers an annex for each kind of object."""
    return [_annex(exhibit) for exhibit in exhibits()]


def _annex(exhibit: Exhibit) -> Section:
    seen = {name: read_dataset(dataset, frozenset(DESCRIPTION)) for name, dataset in exhibit.made.items()}
    rows = _rows(exhibit, seen)
    body = paragraphs(
        f"Made {exhibit.kind.when}. SOP Class {UID(exhibit.sop_class_uid).name}, `{exhibit.sop_class_uid}`; "
        f"file in {UID(exhibit.transfer_syntax_uid).name}.",
        "Presence: ALWAYS with a value; VNAP always there, its value not always; ANAP not always there; EMPTY always without a value. "
        "What is inside a sequence counts for its items. Types are those of PS3.3 (2026b) in the module that is named.",
        "Where values come from:\n\n" + bullets(*(f"{word}: {meaning}" for word, meaning in LEGEND.items())),
    )
    inside = [Section("Modules", _modules(exhibit, rows))]
    inside += [Section(f"{_title(module)} attributes", _attributes(module_rows)) for module, module_rows in rows.items()]
    if "ContentSequence" in exhibit.first:
        inside += [
            Section("Content tree", _content(exhibit)),
            Section("Templates", _templates(exhibit)),
        ]
    inside.append(Section("Codes", _codes(exhibit)))
    return Section(f"{exhibit.kind.title} IOD", body, tuple(inside))


# ── attributes ──────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Row:
    path: Path
    type: str
    presence: str
    origins: tuple[str, ...]
    value: str


def _rows(exhibit: Exhibit, seen: Mapping[str, Seen]) -> dict[str, list[_Row]]:
    """Answers the attributes of each module, in the order of the IOD and of the tags."""
    types = _types_of(exhibit.sop_class_uid)
    offered = {name: offered_by(exhibit.specimens[name].sources) for name in seen}
    found: dict[str, list[_Row]] = {}
    for path in sorted(merged_paths(seen.values()), key=lambda path: [tag_for_keyword(step) or 0 for step in path]):
        module, type_ = types.get(path, (types.get(path[:1], ("", ""))[0], ""))
        if module == _CONTENT or path[0] in _CONTENT_KEYWORDS:
            continue
        origins = origins_of(path, seen)
        if path[0] in _COPIED or is_copied(path, seen, offered):
            origins = tuple("COPY" if origin == "SOURCE" else origin for origin in origins)
        is_choice = not origins or (origins == ("RESULT",) and dictionary_VR(path[-1]) == "CS")
        value = ", ".join(choices_of(path, seen.values())) if is_choice else ""
        if value in {"", ITEMS} and dictionary_VR(path[-1]) == "SQ":
            value, origins = "", origins if any(values not in ([], [ITEMS]) for values in _values_at(path, seen)) else ()
        elif not origins and any(any(values) for values in _values_at(path, seen)):
            origins = ("FIXED",)
        found.setdefault(module, []).append(_Row(path, type_, presence_of(path, seen.values()), origins, value))
    order = [module["key"] for module in _modules_of(exhibit.sop_class_uid)]
    return {module: found[module] for module in (*order, "") if module in found}


def _values_at(path: Path, seen: Mapping[str, Seen]) -> Iterator[list[str]]:
    for one in seen.values():
        yield list(dict.fromkeys(one.values.get(path, [])))


def _modules_of(sop_class_uid: str) -> Sequence[Mapping[str, Any]]:
    return get_iod_module_map()[get_sop_class_iod_map()[sop_class_uid]]


@cache
def _types_of(sop_class_uid: str) -> dict[Path, tuple[str, str]]:
    """Answers module and type of every attribute of an IOD; of several modules that have it, the strictest."""
    found: dict[Path, tuple[str, str]] = {}
    for module in _modules_of(sop_class_uid):
        for attribute in get_module_attribute_map()[module["key"]]:
            path = (*attribute["path"], attribute["keyword"])
            if path not in found or attribute["type"] < found[path][1]:
                found[path] = (module["key"], attribute["type"])
    return found


def _modules(exhibit: Exhibit, rows: Mapping[str, list[_Row]]) -> str:
    used = [
        (module["ie"], _title(module["key"]), module["usage"], _presence_of_module(rows[module["key"]]))
        for module in _modules_of(exhibit.sop_class_uid)
        if module["key"] in rows
    ]
    if "ContentSequence" in exhibit.first:
        used.append(("SR Document", "SR Document Content", "M", "ALWAYS"))
    return paragraphs(
        table(("IE", "module", "usage", "presence"), used),
        "An attribute that several modules have stands in the one that is strictest about it. Modules that are not named are absent.",
    )


def _presence_of_module(rows: Sequence[_Row]) -> str:
    return "ALWAYS" if any(row.presence != "ANAP" and len(row.path) == 1 for row in rows) else "ANAP"


def _title(module: str) -> str:
    title = module.replace("multi-frame", "Multi-frame").replace("-", " ").title() if module else "Further"
    return title.replace("Sr ", "SR ").replace("Sop ", "SOP ").replace(" Of ", " of ").replace("Multi Frame", "Multi-frame")


def _attributes(rows: Sequence[_Row]) -> str:
    cells = []
    for row in rows:
        tag = tag_for_keyword(row.path[-1]) or 0
        name = "&gt;" * (len(row.path) - 1) + dictionary_description(tag)
        number = f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
        cells.append((name, number, dictionary_VR(tag), row.type, row.presence, ", ".join(row.origins), row.value))
    return table(("attribute", "tag", "VR", "type", "presence", "source", "value"), cells)


# ── content tree ────────────────────────────────────────────────────────────


def _content(exhibit: Exhibit) -> str:
    seen = {}
    for name, dataset in exhibit.made.items():
        card = exhibit.specimens[name].result.card
        kinds = [*(one.type for one in card.segments), *(one.type for one in card.detections), *(one.concept for one in card.evaluations)]
        types = {(kind.value, kind.scheme) for kind in kinds}
        seen[name] = Seen()
        root = (_step_of(dataset, types),)
        seen[name].hold((), {root})
        _read_item(seen[name], dataset, root, types)
    rows = []
    for path in merged_paths(seen.values()):
        relationship, value_type, concept, template = path[-1].split("\t")
        origins = origins_of(path, seen)
        choices = choices_of(path, seen.values()) if not origins or (origins == ("RESULT",) and value_type == "CODE") else ()
        value = "; ".join(choices) if value_type not in {"CONTAINER", "IMAGE"} else ""
        source = "" if value_type == "CONTAINER" else ", ".join(origins or ("FIXED",))
        rows.append(
            ("&gt;" * (len(path) - 1) + relationship, value_type, concept, template, presence_of(path, seen.values()), source, value)
        )
    return paragraphs(
        table(("relationship", "value type", "concept name", "TID", "presence", "source", "value"), rows),
        "Presence counts for the items of one container in all reports: successful, without a finding, not attempted and failed. "
        "Language is fixed; reports are unverified and preliminary.",
    )


def _read_item(seen: Seen, item: Dataset, path: Path, structures: set[tuple[str, str]]) -> None:
    seen.note(path, _value_of(item))
    inside = [((*path, _step_of(inner, structures)), inner) for inner in item.get("ContentSequence") or []]
    seen.hold(path, {inner_path for inner_path, _ in inside})
    for inner_path, inner in inside:
        _read_item(seen, inner, inner_path, structures)


def _step_of(item: Dataset, structures: set[tuple[str, str]]) -> str:
    """Answers relationship, value type, concept name and template of a content item."""
    names = item.get("ConceptNameCodeSequence") or []  # an item of a Key Object Selection needs none
    is_structure = any((str(name.CodeValue), str(name.CodingSchemeDesignator)) in structures for name in names)
    concept = _STRUCTURE if is_structure else "".join(told_code(name) for name in names)
    template = str(item.ContentTemplateSequence[0].TemplateIdentifier) if "ContentTemplateSequence" in item else ""
    return "\t".join((str(item.get("RelationshipType") or ""), str(item.ValueType), concept, template))


def _value_of(item: Dataset) -> str:
    readers: dict[str, Callable[[], str]] = {
        "CODE": lambda: told_code(item.ConceptCodeSequence[0]),
        "TEXT": lambda: str(item.TextValue),
        "UIDREF": lambda: str(item.UID),
        "NUM": lambda: (
            f"{item.MeasuredValueSequence[0].NumericValue} {told_code(item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0])}"
        ),
        "SCOORD": lambda: f"{item.GraphicType} {item.GraphicData}",
        "SCOORD3D": lambda: f"{item.GraphicType} {item.GraphicData}",
        "IMAGE": lambda: str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID),
    }
    return readers.get(str(item.ValueType), lambda: "items")()


def _templates(exhibit: Exhibit) -> str:
    named = {template for dataset in exhibit.made.values() for template in _named_templates(dataset)}
    rows = [(template, use) for template, use in TEMPLATES.items() if template in named]
    rows += [(template, "") for template in sorted(named - set(TEMPLATES))]
    return table(("TID", "use"), [*rows, *INCLUDED_TEMPLATES.items()])


def _named_templates(item: Dataset) -> Iterator[str]:
    for template in item.get("ContentTemplateSequence") or []:
        yield str(template.TemplateIdentifier)
    for inner in item.get("ContentSequence") or []:
        yield from _named_templates(inner)


# ── codes ───────────────────────────────────────────────────────────────────


def _codes(exhibit: Exhibit) -> str:
    ours = {(value.value, value.scheme) for value in vars(codes).values() if isinstance(value, codes.Code)}
    rows: dict[tuple[str, str], tuple[str, ...]] = {}
    for name, dataset in exhibit.made.items():
        card = exhibit.specimens[name].result.card
        of_model = {(code.value, code.scheme) for code in (card.family, *codes_of(card))} - ours
        for keyword, item in _code_items(dataset):
            own = (str(item.CodeValue), str(item.CodingSchemeDesignator))
            if own not in of_model and own[1] != "99SCANNER":
                uses = rows.get(own, (str(item.CodeMeaning), ""))
                rows[own] = (uses[0], ", ".join(dict.fromkeys(filter(None, (*uses[1].split(", "), keyword)))))
    cells = [(value, scheme, meaning, uses, _groups_of(value, scheme)) for (value, scheme), (meaning, uses) in sorted(rows.items())]
    return paragraphs(
        table(("code value", "scheme", "meaning", "in", "context group"), cells),
        "Codes of structures, boxes and points (category, type, region, side), of questions and answers are those of the model card; codes of procedures are those of the source "
        "images, where they state any. Private schemes of a model (99…) are identified in Coding Scheme Identification Sequence.",
    )


def _code_items(dataset: Dataset) -> Iterator[tuple[str, Dataset]]:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                if "CodeValue" in item and "CodeMeaning" in item:
                    yield dictionary_description(element.tag).removesuffix(" Sequence"), item
                yield from _code_items(item)


def _groups_of(value: str, scheme: str) -> str:
    of_scheme: Mapping[str, Any] = concepts.get(scheme, {})
    names = {keyword for keyword, meanings in of_scheme.items() if value in meanings}
    for group in CONTEXT_GROUPS:
        if names & set(cid_concepts.get(group, {}).get(scheme, ())):
            return f"CID {group} {words_of(name_for_cid[group])}"
    return ""
